"""Dask arrays: every chunk is computed by the library it belongs to, when Dask gets there."""

from __future__ import annotations

import contextlib
import functools
import math
import operator
from collections.abc import Callable, Iterable
from typing import Any

import dask.array as da
import numpy as np
from array_api_compat import array_namespace
from dask.array.utils import meta_from_array
from dask.core import flatten

from logitloss import _losses
from logitloss._arguments import Arguments
from logitloss._backends import generic
from logitloss._formula import Array

_NAME = "logistic_loss"

# Dask runs as many tasks as there are processors: threads within them would only compete.
_one_thread = contextlib.nullcontext

# Tasks run outside the np.errstate of the call that made them.
_silently = np.errstate(all="ignore")


def loss(arguments: Arguments, reduction: str, out: Array | None, name: str | None) -> Array:
    name = name or _NAME
    function = _losses.weighted_cross_entropy_with_logits
    if reduction == "none":
        return _chunkwise(_compute, arguments, name, _meta(arguments), function=function)
    wide = _widened(arguments)
    sums = _chunkwise(_compute, wide, name, _meta(wide), function=function, reduction="sum")
    return _reduced(sums, _divisor(wide, reduction), arguments, name)


def value_and_grad(
    arguments: Arguments, reduction: str, out: tuple[Array, Array] | None
) -> tuple[Array, Array]:
    function = _losses.value_and_grad
    if reduction == "none":
        return _two(arguments, function, "value", "gradient")
    wide = _widened(arguments)
    pairs = _chunkwise(
        _compute, wide, _NAME, _meta(wide, object), function=function, reduction="sum"
    )
    divisor = _divisor(wide, reduction)
    value = _reduced(_item(pairs, 0, "sum", _meta(wide)), divisor, arguments, _NAME)
    gradient = _item(pairs, 1, "gradient", _meta(wide))
    # All weights zero: every derivative is zero already, and must not become 0 / 0.
    return value, _divided(gradient, divisor, 1.0, arguments.dtype, "gradient")


def grad_and_hess(arguments: Arguments, out: tuple[Array, Array] | None) -> tuple[Array, Array]:
    return _two(arguments, _losses.grad_and_hess, "gradient", "hessian")


def _two(
    arguments: Arguments, function: Callable[..., Any], first: str, second: str
) -> tuple[Array, Array]:
    """Both results of `function`, which is called once for each chunk."""
    pairs = _chunkwise(_compute, arguments, _NAME, _meta(arguments, object), function=function)
    meta = _meta(arguments)
    return _item(pairs, 0, first, meta), _item(pairs, 1, second, meta)


def _chunkwise(
    task: Callable[..., Any], arguments: Arguments, name: str, meta: Array, **options: Any
) -> Array:
    axes = range(arguments.logits.ndim)
    operands: list[Any] = []
    for value in (arguments.labels, arguments.logits, arguments.pos_weight, arguments.weight):
        is_array = isinstance(value, da.Array)
        operands += [value, tuple(axes[len(axes) - value.ndim :]) if is_array else None]
    return da.blockwise(
        task, tuple(axes), *operands, token=name, dtype=meta.dtype, meta=meta, **options
    )


def _compute(
    labels: Array,
    logits: Array,
    pos_weight: Array | float,
    weight: Array | float | None,
    *,
    function: Callable[..., Any],
    **options: Any,
) -> Any:
    with _one_thread():
        return function(labels, logits, pos_weight, weight=weight, **options)


def _item(pairs: Array, index: int, name: str, meta: Array) -> Array:
    return da.map_blocks(operator.itemgetter(index), pairs, token=name, dtype=meta.dtype, meta=meta)


def _meta(arguments: Arguments, dtype: Any = None) -> Array:
    logits = arguments.logits
    return meta_from_array(logits, ndim=logits.ndim, dtype=dtype or arguments.dtype)


def _widened(arguments: Arguments) -> Arguments:
    """Half precision as float32, in which it is computed anyhow: the sum of a chunk may overflow."""
    if arguments.dtype.itemsize > 2:
        return arguments
    return generic.prepare(arguments)._replace(dtype=np.dtype(np.float32))


def _divisor(arguments: Arguments, reduction: str) -> Array | float:
    """What the sum of the weighted losses is divided by; an array where only the data tell."""
    logits, weight = arguments.logits, arguments.weight
    if reduction == "sum":
        return 1.0
    size = logits.size
    if math.isnan(size):
        size = da.ones_like(logits, dtype=np.float64).sum()
    if reduction == "mean" or weight is None:
        return size
    if isinstance(weight, float):
        return float(np.asarray(weight).astype(arguments.dtype)) * size
    weight = weight.astype(arguments.dtype)
    if weight.size == logits.size:
        return weight.sum(dtype=np.float64)
    return (da.ones_like(logits, dtype=np.float64) * weight).sum()


def _reduced(sums: Array, divisor: Array | float, arguments: Arguments, name: str) -> Array:
    """A single number from the sums of the chunks."""
    total = da.reduction(
        sums,
        chunk=_part,
        combine=_gather,
        aggregate=_add,
        concatenate=False,
        dtype=np.float64,
        meta=meta_from_array(sums, ndim=0, dtype=np.float64),
    )
    return _divided(total, divisor, math.nan, arguments.dtype, name)


# The parts of Dask's tree are lists of the sums of chunks, eight bytes each: added up at once,
# correctly rounded, they give a number that does not depend on how the tree has grown.


def _part(sum_of_chunk: Array, axis: Any, keepdims: bool) -> list[Array]:
    return [sum_of_chunk]


def _gather(parts: Any, axis: Any, keepdims: bool) -> list[Array]:
    return list(flatten(parts))


@_silently
def _add(parts: Any, axis: Any, keepdims: bool) -> Array:
    sums = list(flatten(parts))
    xp = array_namespace(*sums)
    try:
        total = math.fsum(map(float, sums))
    except (OverflowError, ValueError):  # past the largest number, or infinities of both signs
        total = sum(map(float, sums))
    return xp.asarray(total, dtype=xp.float64)


def _divided(values: Array, divisor: Array | float, by_zero: float, dtype: Any, name: str) -> Array:
    axes = tuple(range(values.ndim))
    return da.blockwise(
        _divide,
        axes,
        *(values, axes),
        *(divisor, () if isinstance(divisor, da.Array) else None),
        token=name,
        dtype=dtype,
        meta=meta_from_array(values, dtype=dtype),
        by_zero=by_zero,
        to=dtype,
    )


@_silently
def _divide(values: Array, divisor: Any, *, by_zero: float, to: Any) -> Array:
    # A Python float, so that it does not promote the values.
    return (values / float(divisor or by_zero)).astype(to)
