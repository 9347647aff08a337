"""The formula on any array library: cast, compute, weight, reduce, write."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from array_api_compat import size as size_of

from logitloss import _formula
from logitloss._arguments import Arguments, placement
from logitloss._formula import Array, Namespace

# Many libraries compute through NumPy, where an underflow or an infinite coefficient would warn,
# or raise under the caller's np.seterr.
_silently = np.errstate(all="ignore")


@_silently
def loss(arguments: Arguments, reduction: str, out: Array | None, name: str | None) -> Array:
    inputs = prepare(arguments)
    values = _formula.loss(inputs.labels, inputs.logits, inputs.pos_weight, inputs.xp)
    return _deliver(reduce(weighted(values, inputs), inputs, reduction), out)


@_silently
def value_and_grad(
    arguments: Arguments, reduction: str, out: tuple[Array, Array] | None
) -> tuple[Array, Array]:
    inputs = prepare(arguments)
    values, gradient = _formula.value_and_grad(
        inputs.labels, inputs.logits, inputs.pos_weight, inputs.xp
    )
    value = reduce(weighted(values, inputs), inputs, reduction)
    gradient = reduce_gradient(weighted(gradient, inputs), inputs, reduction)
    value_out, gradient_out = out or (None, None)
    return _deliver(value, value_out), _deliver(gradient, gradient_out)


@_silently
def grad_and_hess(arguments: Arguments, out: tuple[Array, Array] | None) -> tuple[Array, Array]:
    inputs = prepare(arguments)
    gradient, hessian = _formula.grad_and_hess(
        inputs.labels, inputs.logits, inputs.pos_weight, inputs.xp
    )
    gradient = reduce(weighted(gradient, inputs), inputs, "none")
    hessian = reduce(weighted(hessian, inputs), inputs, "none")
    gradient_out, hessian_out = out or (None, None)
    return _deliver(gradient, gradient_out), _deliver(hessian, hessian_out)


def prepare(arguments: Arguments) -> Arguments:
    """Make every argument an array of the dtype that the formula is computed in."""
    return arguments._replace(
        labels=cast(arguments.labels, arguments),
        logits=cast(arguments.logits, arguments),
        pos_weight=cast(arguments.pos_weight, arguments),
        weight=None if arguments.weight is None else cast(arguments.weight, arguments),
    )


def cast(value: Array | float, arguments: Arguments) -> Array:
    """Round to the result dtype, then widen half precision, which is computed in float32."""
    xp, dtype = arguments.xp, arguments.dtype
    if isinstance(value, float):
        value = xp.asarray(value, dtype=dtype, device=placement(arguments.logits, xp))
    value = xp.astype(value, dtype, copy=False)
    return xp.astype(value, xp.result_type(dtype, xp.float32), copy=False)


def weighted(values: Array, inputs: Arguments) -> Array:
    if inputs.weight is None:
        return values
    return _formula.masked(values, inputs.weight, inputs.xp)


def reduce(values: Array, inputs: Arguments, reduction: str) -> Array:
    """Reduce the weighted losses, and round to the result dtype once."""
    xp = inputs.xp
    if reduction != "none":
        values = total(values, xp)
    if reduction in ("mean", "weighted_mean"):
        divisor = _divisor(inputs, reduction)
        values = xp.where(divisor == 0, math.nan, values / _or_nan(divisor, inputs))
    return xp.astype(values, inputs.dtype, copy=False)


def reduce_gradient(gradient: Array, inputs: Arguments, reduction: str) -> Array:
    """The derivative of the reduced loss, from the weighted derivatives of its terms."""
    xp = inputs.xp
    if reduction in ("mean", "weighted_mean"):
        divisor = _or_nan(_divisor(inputs, reduction), inputs)
        if inputs.weight is not None:
            # A sum of weights may be beyond the range of the gradient's dtype, a quotient is not.
            is_large = xp.abs(divisor) > 2.0**100
            divisor = xp.where(is_large, divisor * 2.0**-64, divisor)
            gradient = xp.where(is_large, gradient * 2.0**-64, gradient)
        gradient = gradient / xp.astype(divisor, gradient.dtype, copy=False)
        if inputs.weight is not None:
            # Zero stays zero where other weights are NaN or cancel.
            gradient = xp.where(inputs.weight == 0, 0.0, gradient)
    return xp.astype(gradient, inputs.dtype, copy=False)


def total(values: Array, xp: Namespace) -> Array:
    dtype = accumulator(values, xp)
    if hasattr(values, "fill_value"):
        # A sparse array would multiply its fill value in its own dtype, and convert the product.
        values = xp.astype(values, dtype)
    return xp.sum(values, dtype=dtype)


def accumulator(values: Array, xp: Namespace) -> Any:
    """float64, or longdouble for itself, where the device of `values` has it."""
    available = xp.__array_namespace_info__().dtypes(
        device=placement(values, xp), kind="real floating"
    )
    return xp.result_type(values.dtype, xp.float64) if "float64" in available else values.dtype


def _divisor(inputs: Arguments, reduction: str) -> Array:
    xp, logits = inputs.xp, inputs.logits
    size = size_of(logits)
    if reduction == "weighted_mean" and inputs.weight is not None:
        if size is None:
            # There is no shape yet to broadcast to.
            return total(inputs.weight * xp.ones_like(logits), xp)
        return total(xp.broadcast_to(inputs.weight, logits.shape), xp)
    if size is None:
        return total(xp.ones_like(logits), xp)
    return xp.asarray(size, dtype=accumulator(logits, xp), device=placement(logits, xp))


def _or_nan(divisor: Array, inputs: Arguments) -> Array:
    """NaN for zero, but 1 where all weights are zero: there every derivative is zero already."""
    xp = inputs.xp
    by_zero = xp.full_like(divisor, math.nan)
    if inputs.weight is not None:
        by_zero = xp.where(xp.any(inputs.weight != 0), by_zero, 1.0)
    return xp.where(divisor == 0, by_zero, divisor)


def _deliver(result: Array, out: Array | None) -> Array:
    if out is not None:
        out[...] = result
        return out
    # NumPy's own functions return scalars for 0-d results.
    return result[()] if isinstance(result, np.ndarray) and result.ndim == 0 else result
