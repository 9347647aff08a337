"""Dask arrays: every chunk is computed by the library it belongs to, when Dask gets there."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable
from typing import Any

import dask.array as da
import numpy as np
from array_api_compat import array_namespace, is_numpy_namespace
from dask.array.utils import meta_from_array

from logitloss import _losses
from logitloss._arguments import Arguments, parse
from logitloss._backends import generic
from logitloss._backends import numpy as numpy_backend
from logitloss._config import one_thread
from logitloss._formula import Array

_NAME = "logistic_loss"

# Tasks run outside the np.errstate of the call that made them.
_silently = np.errstate(all="ignore")


def loss(arguments: Arguments, reduction: str, out: Array | None, name: str | None) -> Array:
    name = name or _NAME
    if reduction == "none":
        return _chunkwise(_loss, arguments, name)
    sums = _chunkwise(_sum_of_losses, arguments, name)
    return _reduced(sums, _divisor(arguments, reduction), arguments, name)


def value_and_grad(
    arguments: Arguments, reduction: str, out: tuple[Array, Array] | None
) -> tuple[Array, Array]:
    if reduction == "none":
        return _two(_value_and_grad, arguments, "value", "gradient")
    pairs = _chunkwise(_sum_and_grad, arguments, _NAME)
    divisor = _divisor(arguments, reduction)
    sums = _item(pairs, 0, "sum")
    gradient = _item(pairs, 1, "gradient")
    gradient = _divided(gradient, divisor, arguments.weight, arguments.dtype, "gradient")
    return _reduced(sums, divisor, arguments, "value"), gradient


def grad_and_hess(arguments: Arguments, out: tuple[Array, Array] | None) -> tuple[Array, Array]:
    return _two(_grad_and_hess, arguments, "gradient", "hessian")


# The tasks: one for each chunk.


def _single_threaded(task: Callable[..., Any]) -> Callable[..., Any]:
    # Dask runs as many tasks as there are processors: threads within them would only compete.
    @functools.wraps(task)
    def run(*operands: Any) -> Any:
        with one_thread():
            return task(*operands)

    return run


@_single_threaded
def _loss(labels: Array, logits: Array, pos_weight: Any, weight: Any) -> Array:
    return _losses.weighted_cross_entropy_with_logits(labels, logits, pos_weight, weight=weight)


@_single_threaded
def _value_and_grad(
    labels: Array, logits: Array, pos_weight: Any, weight: Any
) -> tuple[Array, Array]:
    return _losses.value_and_grad(labels, logits, pos_weight, weight=weight)


@_single_threaded
def _grad_and_hess(
    labels: Array, logits: Array, pos_weight: Any, weight: Any
) -> tuple[Array, Array]:
    return _losses.grad_and_hess(labels, logits, pos_weight, weight=weight)


# Half precision stays float32 in the next two, and the sum float64: the last step rounds.


@_single_threaded
def _sum_of_losses(labels: Array, logits: Array, pos_weight: Any, weight: Any) -> Array:
    arguments = parse(labels, logits, pos_weight, weight)
    if _is_for_kernel(arguments):
        return _as_chunk(np.float64(numpy_backend.total(arguments)), logits)
    labels, logits, pos_weight, weight = generic.prepare(arguments)[1:5]
    return _sum(_loss(labels, logits, pos_weight, weight))


@_single_threaded
def _sum_and_grad(
    labels: Array, logits: Array, pos_weight: Any, weight: Any
) -> tuple[Array, Array]:
    arguments = parse(labels, logits, pos_weight, weight)
    if _is_for_kernel(arguments):
        gradient = np.empty_like(logits, dtype=np.result_type(arguments.dtype, np.float32))
        total = numpy_backend.total(arguments, gradient)
        return _as_chunk(np.float64(total), logits), gradient
    labels, logits, pos_weight, weight = generic.prepare(arguments)[1:5]
    values, gradient = _value_and_grad(labels, logits, pos_weight, weight)
    return _sum(values), gradient


def _is_for_kernel(arguments: Arguments) -> bool:
    # Not long double, where it is longer than double.
    return is_numpy_namespace(arguments.xp) and arguments.dtype.itemsize <= 8


def _as_chunk(total: Any, like: Array) -> Array:
    """One number in the shape of a chunk."""
    xp = array_namespace(like)
    return xp.reshape(xp.asarray(total), (1,) * like.ndim)


# The graph.


def _chunkwise(task: Callable[..., Any], arguments: Arguments, name: str) -> Array:
    """What `task` gives for each chunk, be it a chunk of results, a pair of them, or a sum."""
    axes = tuple(range(arguments.logits.ndim))
    operands: list[Any] = []
    for value in (arguments.labels, arguments.logits, arguments.pos_weight, arguments.weight):
        operands += [value, axes[len(axes) - value.ndim :] if isinstance(value, da.Array) else None]
    meta = meta_from_array(arguments.logits, dtype=arguments.dtype)
    return da.blockwise(task, axes, *operands, token=name, dtype=meta.dtype, meta=meta)


def _two(
    task: Callable[..., Any], arguments: Arguments, first: str, second: str
) -> tuple[Array, Array]:
    """Both results of tasks that give two."""
    pairs = _chunkwise(task, arguments, _NAME)
    return _item(pairs, 0, first), _item(pairs, 1, second)


def _item(pairs: Array, index: int, name: str) -> Array:
    axes = tuple(range(pairs.ndim))
    getter = operator.itemgetter(index)
    return da.blockwise(getter, axes, pairs, axes, token=name, dtype=pairs.dtype, meta=pairs._meta)


def _divisor(arguments: Arguments, reduction: str) -> Array | float:
    """What the sum of the weighted losses is divided by; an array where only the data tell."""
    logits, weight = arguments.logits, arguments.weight
    if reduction == "sum":
        return 1.0
    size = logits.size
    if math.isnan(size):
        size = _total(da.ones_like(logits, dtype=arguments.dtype))
    if reduction == "mean" or weight is None:
        return size
    if isinstance(weight, float):
        return float(np.asarray(weight).astype(arguments.dtype)) * size
    weight = weight.astype(arguments.dtype)
    if weight.shape != logits.shape:
        weight = weight * da.ones_like(logits, dtype=arguments.dtype)
    return _total(weight)


def _reduced(sums: Array, divisor: Array | float, arguments: Arguments, name: str) -> Array:
    return _divided(_total(sums), divisor, None, arguments.dtype, name)


def _total(array: Array) -> Array:
    dtype = _sum(array._meta, None, True).dtype
    return da.reduction(array, chunk=_sum, combine=_keep, aggregate=_add, dtype=dtype)


# The sums of chunks are only gathered up Dask's tree, and added at its root, correctly rounded:
# the result does not depend on how the tree has grown.


def _sum(chunk: Array, axis: Any = None, keepdims: bool = True) -> Array:
    return _as_chunk(generic.total(chunk, array_namespace(chunk)), chunk)


def _keep(sums: Array, axis: Any, keepdims: bool) -> Array:
    return sums


def _add(sums: Array, axis: Any, keepdims: bool) -> Array:
    terms = sums.ravel().tolist()
    try:
        total = math.fsum(terms)
    except (OverflowError, ValueError):  # past the largest number, or infinities of both signs
        total = sum(terms)
    return array_namespace(sums).asarray(total, dtype=sums.dtype)


def _divided(
    values: Array,
    divisor: Array | float,
    weight: Array | float | None,
    dtype: Any,
    name: str,
) -> Array:
    """`values` divided, but zero wherever `weight` is."""
    axes = tuple(range(values.ndim))
    operands: list[Any] = [values, axes]
    operands += [divisor, () if isinstance(divisor, da.Array) else None]
    operands += [weight, axes[len(axes) - weight.ndim :] if isinstance(weight, da.Array) else None]
    meta = meta_from_array(values, dtype=dtype)
    return da.blockwise(_divide, axes, *operands, token=name, dtype=dtype, meta=meta, to=dtype)


@_silently
def _divide(values: Array, divisor: Any, weight: Any, *, to: Any) -> Array:
    divisor = float(divisor) or math.nan
    if weight is None:
        # A Python float, so that it does not promote the values.
        return (values / divisor).astype(to)
    xp = array_namespace(values)
    weight = xp.asarray(weight, dtype=values.dtype)
    # In float64, because the sum of the weights may be beyond the range of the values.
    quotient = xp.astype(values, xp.float64) / divisor
    # Zero stays zero where other weights are NaN or cancel.
    return xp.astype(xp.where(weight == 0, 0.0, quotient), to)
