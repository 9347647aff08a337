"""Dask arrays: each chunk is computed by its own library, when Dask gets to it."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import dask.array as da
import numpy as np
from array_api_compat import array_namespace
from dask.array.utils import meta_from_array

from logitloss import _reductions
from logitloss._backends import generic
from logitloss._call import Call, check
from logitloss._formula import Array
from logitloss._kernel import kernel
from logitloss._libraries import library_of, load_backend
from logitloss._threads import one_thread

_NAME = "logistic_loss"
# Names for the results of each order, if a call has two.
_NAMES = ("value", "gradient", "hessian")

# How many sums of chunks a task gathers: enough to keep such tasks few, and not so many that one of
# them waits for all chunks of a large array.
_GATHERED = 64


class Sum(NamedTuple):
    """The unrounded sum of the losses of a chunk or of all, and what it is to be divided by."""

    total: float
    divisor: float


def compute(call: Call) -> tuple[Array, ...]:
    names = [_NAMES[order] for order in call.orders]
    if len(names) == 1:
        names = [call.name or _NAME]
    if call.reduction == "none":
        return _by_chunk(_results, call, names)

    divisor = _known_divisor(call)
    sums, *gradients = _by_chunk(
        _results_with_sum,
        call,
        names,
        divisor=divisor,
        reduction=call.reduction,
        result_dtype=call.dtype,
    )
    number = _meta(call, ndim=0)
    whole = da.reduction(
        sums,
        chunk=_keep,
        combine=_gather,
        aggregate=functools.partial(_add_up, divisor=divisor),
        concatenate=False,
        split_every=_GATHERED,
        dtype=call.dtype,
        meta=number,
    )
    value = _blockwise(_value, names[0], number, whole, like=number)
    # If the divisor is known, a gradient need not wait for the other chunks.
    by, masked = (whole, call.weight) if divisor is None else (Sum(math.nan, divisor), None)
    return value, *(
        _blockwise(_divided, name, _meta(call), gradient, by, masked, result_dtype=call.dtype)
        for gradient, name in zip(gradients, names[1:], strict=True)
    )


def _known_divisor(call: Call) -> float | None:
    """The divisor of the sum, if it does not depend on the data."""
    if call.reduction == "weighted_mean":
        return None
    divisor = _reductions.divisor(call.reduction, call.logits, None, call.xp)
    return divisor if isinstance(divisor, float) else None


# The graph.


def _by_chunk(
    task: Callable[..., Any], call: Call, names: list[str], **options: Any
) -> tuple[Array, ...]:
    """The results that `task` gives for each chunk: one alone, or several as a tuple."""
    operands = call.labels, call.logits, call.pos_weight, call.weight
    options["orders"] = call.orders
    if len(names) == 1:
        return (_blockwise(task, names[0], _meta(call), *operands, **options),)
    together = _blockwise(task, _NAME, _meta(call), *operands, **options)
    return tuple(
        _blockwise(operator.itemgetter(index), name, _meta(call), together)
        for index, name in enumerate(names)
    )


def _blockwise(
    task: Callable[..., Any], name: str, meta: Array, *operands: Any, **options: Any
) -> Array:
    """What `task` gives for each chunk of the operands; what is no array is passed as it is."""
    ndim = max(operand.ndim for operand in operands if isinstance(operand, da.Array))
    axes = tuple(range(ndim))
    indexed: list[Any] = []
    for operand in operands:
        is_lazy = isinstance(operand, da.Array)
        indexed += [operand, axes[ndim - operand.ndim :] if is_lazy else None]
    return da.blockwise(task, axes, *indexed, token=name, dtype=meta.dtype, meta=meta, **options)


def _meta(call: Call, ndim: int | None = None) -> Array:
    return meta_from_array(call.logits, ndim=ndim, dtype=call.dtype)


# The tasks.

# Tasks run outside the np.errstate of the call that made them.
_silently = np.errstate(all="ignore")


def _results(*arguments: Any, orders: tuple[int, ...]) -> Any:
    results = _computed(orders, arguments, "none")
    return results if len(results) > 1 else results[0]


def _results_with_sum(
    labels: Array,
    logits: Array,
    pos_weight: Any,
    weight: Any,
    *,
    orders: tuple[int, ...],
    divisor: float | None,
    reduction: str,
    result_dtype: Any,
) -> Any:
    total, *gradients = _computed(orders, (labels, logits, pos_weight, weight), _reductions.TOTAL)
    if divisor is None:
        divisor = _part_of_divisor(logits, weight, reduction, result_dtype)
    part = Sum(float(total), divisor)
    return (part, *gradients) if gradients else part


def _computed(
    orders: tuple[int, ...], arguments: tuple[Any, ...], reduction: str
) -> tuple[Any, ...]:
    labels, logits, pos_weight, weight = arguments
    results: tuple[Any, ...] | None = None
    # Dask runs as many tasks as there are processors, so threads within them would only compete.
    with one_thread():
        if type(logits) is np.ndarray and logits.dtype.itemsize >= 4:
            # The shortest way. The kernel returns None if something has to be converted or refused.
            results = kernel.compute(
                orders, labels, logits, pos_weight, weight, reduction, None, is_checked=True
            )
        if results is None:
            call = check(orders, labels, logits, pos_weight, weight)._replace(reduction=reduction)
            if reduction == _reductions.TOTAL and call.dtype.itemsize < 4:
                # Half precision is rounded once, after a gradient has been divided.
                call = generic.cast(call)
            results = load_backend(library_of(call.xp)).compute(call)
    return results


@_silently
def _part_of_divisor(logits: Array, weight: Any, reduction: str, dtype: Any) -> float:
    xp = array_namespace(logits)
    weight = None if weight is None else xp.asarray(weight, dtype=dtype)
    return float(_reductions.divisor(reduction, logits, weight, xp))


# Sums of chunks are only gathered up Dask's tree, and added at its root, correctly rounded: the
# result does not depend on how the tree has grown.


def _keep(part: Sum, axis: Any, keepdims: bool) -> Sum:
    return part


def _gather(parts: Any, axis: Any, keepdims: bool) -> list[Sum]:
    return list(_flat(parts))


def _flat(parts: Any) -> Iterator[Sum]:
    if isinstance(parts, Sum):
        yield parts
    else:
        for part in parts:
            yield from _flat(part)


def _add_up(parts: Any, axis: Any, keepdims: bool, divisor: float | None) -> Sum:
    totals, divisors = zip(*_flat(parts), strict=True)
    return Sum(_added(totals), _added(divisors) if divisor is None else divisor)


def _added(terms: tuple[float, ...]) -> float:
    try:
        return math.fsum(terms)
    except (OverflowError, ValueError):  # past the largest number, or infinities of both signs
        return sum(terms)


@_silently
def _value(whole: Sum, *, like: Array) -> Any:
    value = np.float64(whole.total) / (whole.divisor or math.nan)
    if hasattr(like, "__array_function__"):
        return np.asarray(value, dtype=like.dtype, like=like)[()]
    return value.astype(like.dtype)


@_silently
def _divided(gradient: Array, whole: Sum, weight: Any, *, result_dtype: Any) -> Array:
    xp = array_namespace(gradient)
    # As long as can be: the sum of the weights may be beyond the range of the gradient.
    quotient = xp.astype(gradient, _reductions.accumulator(gradient, xp), copy=False)
    weight = None if weight is None else xp.asarray(weight, dtype=gradient.dtype)
    quotient = _reductions.zeros_kept(quotient / (whole.divisor or math.nan), weight, xp)
    return xp.astype(quotient, result_dtype, copy=False)
