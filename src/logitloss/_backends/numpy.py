"""NumPy arrays, computed by the compiled kernel without copying or converting a whole array."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np

from logitloss._arguments import Arguments
from logitloss._kernel import kernel

ndarray: TypeAlias = np.ndarray[Any, Any]
# An array and how it repeats: element i of the flattened task is array[i // repeat % period].
Coefficient: TypeAlias = float | tuple[ndarray, int, int]

# Elements converted at a time where NumPy does the converting: enough for the kernel's threads,
# few enough to stay in the cache.
_CHUNK = 256 * kernel.BLOCK

# The C code may leave flags of its own, and rounding a result to half precision may overflow.
_silently = np.errstate(all="ignore")


# The short ways: plain arrays need none of the preparations below, which take some thirty
# microseconds. They return None for everything else, which goes the long way; if something is
# wrong with it, that is said there.


def short_loss(
    labels: object, logits: ndarray, pos_weight: object, weight: object, reduction: str, out: Any
) -> Any:
    inputs = labels, logits, pos_weight, weight
    if reduction == "none":
        if out is None:
            return kernel.plain_loss(*inputs)
        written = kernel.plain_run(kernel.LOSS, *inputs, out, None, 1.0, False)
        return None if written is None else out
    if out is not None or not (divisor := _short_divisor(logits, weight, reduction)):
        return None
    total = kernel.plain_run(kernel.LOSS, *inputs, None, None, 1.0, True)
    return None if total is None else _short_value(total / divisor, logits)


def short_value_and_grad(
    labels: object, logits: ndarray, pos_weight: object, weight: object, reduction: str, out: Any
) -> tuple[Any, Any] | None:
    inputs = labels, logits, pos_weight, weight
    first, gradient = _short_pair(logits, out, is_reduced=reduction != "none")
    if gradient is None:
        return None
    if reduction == "none":
        written = kernel.plain_run(kernel.VALUE_AND_GRAD, *inputs, first, gradient, 1.0, False)
        return None if written is None else (_deliver(first, out), _deliver(gradient, out))
    if not (divisor := _short_divisor(logits, weight, reduction)) or not (
        out is None or _is_place_for_value(first, logits, gradient)
    ):
        return None
    total = kernel.plain_run(kernel.VALUE_AND_GRAD, *inputs, None, gradient, divisor, True)
    if total is None:
        return None
    value = _short_value(total / divisor, logits)
    if out is None:
        return value, _deliver(gradient, out)
    first[()] = value
    return first, gradient


def short_grad_and_hess(
    labels: object, logits: ndarray, pos_weight: object, weight: object, out: Any
) -> tuple[Any, Any] | None:
    first, second = _short_pair(logits, out)
    if second is None:
        return None
    written = kernel.plain_run(
        kernel.GRAD_AND_HESS, labels, logits, pos_weight, weight, first, second, 1.0, False
    )
    return None if written is None else (_deliver(first, out), _deliver(second, out))


def _short_pair(logits: ndarray, out: Any, is_reduced: bool = False) -> tuple[Any, Any]:
    if out is None:
        first = None if is_reduced else np.empty(logits.shape, logits.dtype)
        return first, np.empty(logits.shape, logits.dtype)
    if type(out) is tuple and len(out) == 2 and all(type(array) is np.ndarray for array in out):
        return out
    return None, None


def _short_divisor(logits: ndarray, weight: object, reduction: object) -> float:
    """What the sum is divided by, or 0 where the short way ends."""
    if reduction == "sum":
        return 1.0 if logits.size else 0.0
    if reduction == "mean" or (reduction == "weighted_mean" and weight is None):
        return float(logits.size)
    return 0.0


def _short_value(value: float, logits: ndarray) -> Any:
    if abs(value) < 3e38:
        return logits.dtype.type(value)
    # Float32 may overflow, of which NumPy would warn.
    with np.errstate(over="ignore"):
        return logits.dtype.type(value)


def _is_place_for_value(array: ndarray, logits: ndarray, gradient: ndarray) -> bool:
    return (
        array.ndim == 0
        and array.dtype == logits.dtype
        and array.flags.writeable
        and not np.may_share_memory(array, gradient)
    )


@_silently
def loss(arguments: Arguments, reduction: str, out: ndarray | None, name: str | None) -> Any:
    arguments = _without_overlap(arguments, out)
    if reduction == "none":
        first = _allocate(arguments) if out is None else out
        _run(kernel.LOSS, arguments, first, None)
        return _deliver(first, out)
    total = _run(kernel.LOSS, arguments, None, None, reduce=True)
    return _deliver_value(total, _divisor(arguments, reduction), arguments, out)


@_silently
def value_and_grad(
    arguments: Arguments, reduction: str, out: tuple[ndarray, ndarray] | None
) -> tuple[Any, Any]:
    value_out, gradient_out = out or (None, None)
    arguments = _without_overlap(arguments, value_out, gradient_out)
    gradient = _allocate(arguments) if gradient_out is None else gradient_out
    if reduction == "none":
        value = _allocate(arguments) if value_out is None else value_out
        _run(kernel.VALUE_AND_GRAD, arguments, value, gradient)
        return _deliver(value, value_out), _deliver(gradient, gradient_out)
    divisor = _divisor(arguments, reduction)
    # The kernel multiplies by the reciprocal, which has to be a normal number of every dtype.
    by_kernel = not gradient.size or 2.0**-100 < abs(divisor) < 2.0**100
    # Seen before the gradient may be written over the weights.
    masked = None if by_kernel else np.equal(_round(arguments.weight, arguments), 0)
    total = _run(
        kernel.VALUE_AND_GRAD,
        arguments,
        None,
        gradient,
        divisor=(divisor or 1.0) if by_kernel else 1.0,
        reduce=True,
    )
    if not by_kernel:
        # In float64, because the divisor may be beyond the range of the result dtype.
        by = np.float64(divisor or math.nan)
        np.divide(gradient, by, out=gradient, dtype=np.float64, casting="unsafe")
        # Zero stays zero where other weights are NaN or cancel.
        np.copyto(gradient, 0, where=masked)
    # The divisor from before: the gradient may have been written over the weights.
    value = _deliver_value(total, divisor, arguments, value_out)
    return value, _deliver(gradient, gradient_out)


@_silently
def grad_and_hess(arguments: Arguments, out: tuple[ndarray, ndarray] | None) -> tuple[Any, Any]:
    gradient_out, hessian_out = out or (None, None)
    arguments = _without_overlap(arguments, gradient_out, hessian_out)
    gradient = _allocate(arguments) if gradient_out is None else gradient_out
    hessian = _allocate(arguments) if hessian_out is None else hessian_out
    _run(kernel.GRAD_AND_HESS, arguments, gradient, hessian)
    return _deliver(gradient, gradient_out), _deliver(hessian, hessian_out)


@_silently
def total(arguments: Arguments, gradient: ndarray | None = None) -> float:
    """The sum of the losses before it is rounded, for adding up parts; fills `gradient`."""
    operation = kernel.LOSS if gradient is None else kernel.VALUE_AND_GRAD
    return _run(operation, arguments, None, gradient, reduce=True)


def _allocate(arguments: Arguments) -> ndarray:
    # In the memory order of the logits, so that Fortran arrays are read and written straight on.
    return np.empty_like(arguments.logits, dtype=arguments.dtype, subok=False)


def _deliver(result: ndarray, out: object) -> Any:
    # Like NumPy's own functions: a scalar for a 0-d result, unless it was asked for as an array.
    return result[()] if out is None and result.ndim == 0 else result


def _deliver_value(total: float, divisor: float, arguments: Arguments, out: ndarray | None) -> Any:
    value = np.float64(total / divisor if divisor else math.nan).astype(arguments.dtype)
    if out is None:
        return value
    out[...] = value
    return out


def _divisor(arguments: Arguments, reduction: str) -> float:
    """What the sum of the weighted losses is divided by."""
    weight = arguments.weight
    size: int = arguments.logits.size
    if reduction == "sum":
        return 1.0
    if reduction == "mean" or weight is None:
        return float(size)
    if isinstance(weight, float):
        return float(_round(weight, arguments)) * size
    if not weight.size:
        return 0.0
    weights = _sum_of_weights(weight, arguments)
    return float(weights * (size / weight.size))


def _sum_of_weights(weight: ndarray, arguments: Arguments) -> float:
    """As exact as the sum of the losses, because it is one, of elements that cost 1 each.

    A label of 63/64 leaves 1/64 of softplus(64), which is 64 in every dtype of the kernel.
    """
    # In the order of the memory, in which the kernel walks them.
    axes = sorted(range(weight.ndim), key=lambda axis: -abs(weight.strides[axis]))
    weight = weight.transpose(axes)
    labels, logits = (np.broadcast_to(value, weight.shape) for value in (63 / 64, 64.0))
    ones = arguments._replace(labels=labels, logits=logits, pos_weight=0.0, weight=weight)
    return _run(kernel.LOSS, ones, None, None, reduce=True)


def _round(value: Any, arguments: Arguments) -> Any:
    return np.asarray(value).astype(arguments.dtype)


def _without_overlap(arguments: Arguments, *outs: ndarray | None) -> Arguments:
    """Copy the inputs that an output overlaps in any other way than element on element."""

    def separate(value: Any) -> Any:
        if not isinstance(value, np.ndarray):
            return value
        for out in outs:
            if out is None or not np.may_share_memory(value, out) or _is_same_view(value, out):
                continue
            return value.copy(order="K")
        return value

    return arguments._replace(
        labels=separate(arguments.labels),
        logits=separate(arguments.logits),
        pos_weight=separate(arguments.pos_weight),
        weight=separate(arguments.weight),
    )


def _is_same_view(first: ndarray, second: ndarray) -> bool:
    return (
        first.ctypes.data == second.ctypes.data
        and first.shape == second.shape
        and first.strides == second.strides
        and first.itemsize == second.itemsize
    )


def _run(
    operation: int,
    arguments: Arguments,
    first: ndarray | None,
    second: ndarray | None,
    *,
    divisor: float = 1.0,
    reduce: bool = False,
) -> float:
    """Run the kernel over everything, and return the sum of the losses if it is wanted."""
    compute_dtype = np.dtype(np.float64 if arguments.dtype == np.float64 else np.float32)
    inputs = (arguments.labels, arguments.logits, arguments.pos_weight, arguments.weight)
    in_place = any(
        isinstance(value, np.ndarray) and out is not None and np.may_share_memory(value, out)
        for value in inputs
        for out in (first, second)
    )
    total = (0.0, 0.0)
    is_float32 = compute_dtype == np.float32
    for task in _flatten(arguments, first, second, compute_dtype):
        term = kernel.run(operation, *task, divisor, in_place, reduce, is_float32)  # type: ignore[call-arg]
        total = kernel.add(total, term)
    # After an overflow to infinity the low part is NaN.
    return sum(total) if math.isfinite(total[0]) else total[0]


def _flatten(
    arguments: Arguments, first: ndarray | None, second: ndarray | None, dtype: np.dtype[Any]
) -> Iterator[tuple[Any, ...]]:
    """Cut the task into one-dimensional ones: a single one, unless NumPy has to convert."""
    labels, logits = arguments.labels, arguments.logits
    # The axes in the order of the memory: for Fortran arrays the flattened task runs down columns.
    axes = sorted(range(logits.ndim), key=lambda axis: -abs(logits.strides[axis]))
    outs = [out for out in (first, second) if out is not None]
    try:
        if arguments.dtype != dtype:
            raise _Irregular
        flat = [_flat(array, axes) for array in (labels, logits, *outs)]
        coefficients = [
            _coefficient(value, logits.shape, axes, arguments, dtype)
            for value in (arguments.pos_weight, arguments.weight)
        ]
    except _Irregular:
        yield from _converted(arguments, first, second, dtype)
        return
    results = iter(flat[2:])
    yield (
        *flat[:2],
        *coefficients,
        None if first is None else next(results),
        None if second is None else next(results),
    )


class _Irregular(Exception):
    """An array that the kernel cannot walk by itself."""


def _is_readable(array: ndarray) -> bool:
    return array.dtype.isnative and array.flags.aligned and array.dtype.char in "?bBhHiIlLqQfd"


def _flat(array: ndarray, axes: list[int]) -> ndarray:
    """A one-dimensional view of the array, its axes in the given order."""
    if not _is_readable(array):
        raise _Irregular
    try:
        return array.transpose(axes).reshape(-1, copy=False)
    except ValueError:
        raise _Irregular from None


def _coefficient(
    value: ndarray | float | None,
    shape: tuple[int, ...],
    axes: list[int],
    arguments: Arguments,
    dtype: np.dtype[Any],
) -> Coefficient:
    if value is None:
        return 1.0
    if isinstance(value, float):
        return float(_round(value, arguments))
    # What a view only repeats is read once, like what is still to be broadcast.
    value = value[tuple(slice(1 if step == 0 else None) for step in value.strides)]
    if value.size == 1:
        return float(_round(value, arguments).item())
    value = value.reshape((1,) * (len(shape) - value.ndim) + value.shape).transpose(axes)
    period, repeat = period_and_repeat(value.shape, [shape[axis] for axis in axes])
    if value.size != period:
        raise _Irregular
    if value.size == math.prod(shape):
        return _flat(value, list(range(value.ndim))), 1, period
    if repeat == 1:
        # The kernel reads past the end of a period: see blocks.h.
        value = np.resize(value.astype(dtype, copy=False), period + kernel.BLOCK)
    elif not _is_readable(value):
        value = value.astype(dtype)
    return value.reshape(-1), repeat, period


def period_and_repeat(own: Sequence[int], goal: Sequence[int]) -> tuple[int, int]:
    """How a coefficient of more than one element repeats in the flattened goal: see blocks.h.

    If it does not vary along adjacent axes alone, the period is more than its size.
    """
    varying = [axis for axis, size in enumerate(own) if size != 1]
    inner, outer = varying[-1] + 1, varying[0]
    return math.prod(goal[outer:inner]), math.prod(goal[inner:])


def _converted(
    arguments: Arguments, first: ndarray | None, second: ndarray | None, dtype: np.dtype[Any]
) -> Iterator[tuple[Any, ...]]:
    """Chunks that NumPy's iterator has converted to the kernel's dtype and byte order.

    Results are converted back when the iterator moves on.
    """
    operands: list[ndarray] = [arguments.labels, arguments.logits]
    scalars: list[float | None] = []
    for value in (arguments.pos_weight, arguments.weight):
        if isinstance(value, np.ndarray) and value.size > 1:
            operands.append(value)
            scalars.append(None)
        else:
            one = 1.0 if value is None or not np.size(value) else _round(value, arguments).item()
            scalars.append(float(one))
    outs = [out for out in (first, second) if out is not None]
    with np.nditer(  # type: ignore[call-overload]
        [*operands, *outs],
        flags=["buffered", "external_loop", "zerosize_ok", "delay_bufalloc"],
        op_flags=[["readonly", "aligned"]] * len(operands) + [["writeonly", "aligned"]] * len(outs),
        # Coefficients are rounded to the dtype of the result, which may be half precision.
        op_dtypes=[dtype, dtype] + [arguments.dtype] * (len(operands) - 2) + [dtype] * len(outs),
        casting="unsafe",
        buffersize=_CHUNK,
    ) as chunks:
        chunks.reset()
        for chunk in chunks if chunks.itersize else ():
            labels, logits, *rest = chunk
            read = iter(rest)
            pos_weight, weight = (
                (next(read).astype(dtype, copy=False), 1, logits.size) if scalar is None else scalar
                for scalar in scalars
            )
            yield (
                labels,
                logits,
                pos_weight,
                weight,
                None if first is None else next(read),
                None if second is None else next(read),
            )
