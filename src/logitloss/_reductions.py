"""Sums, divisors and masks over any array namespace."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from logitloss._formula import Array, Namespace
from logitloss._kernel import kernel
from logitloss._libraries import placement

REDUCTIONS = ("none", "sum", "mean", "weighted_mean")

#: The sum of the losses in the dtype in which it is accumulated, to add up the parts of a whole.
TOTAL = "total"


def masked(values: Array, weight: Array | None, xp: Namespace) -> Array:
    """`values` times `weight`, and exactly zero where the weight is, whatever the value."""
    return values if weight is None else weight * xp.where(weight == 0, 0.0, values)


def reduce_each(
    results: tuple[Array, ...],
    orders: tuple[int, ...],
    divisor: Array | float,
    weight: Array | None,
    xp: Namespace,
) -> tuple[Array, ...]:
    """The reduced loss, and derivatives of it, from the weighted derivatives of these orders."""
    summed = tuple(
        result if order else total(result, xp)
        for order, result in zip(orders, results, strict=True)
    )
    return divide_each(summed, orders, divisor, weight, xp)


def divide_each(
    results: Sequence[Array],
    orders: tuple[int, ...],
    divisor: Array | float,
    weight: Array | None,
    xp: Namespace,
) -> tuple[Array, ...]:
    """The same from derivatives of which that of order 0 has been summed already."""
    if isinstance(divisor, float) and divisor == 1:
        return tuple(results)
    return tuple(
        (reduce_gradient if order else divided)(result, divisor, weight, xp)
        for order, result in zip(orders, results, strict=True)
    )


def divided(summed: Array, divisor: Array | float, weight: Array | None, xp: Namespace) -> Array:
    """The sum of the weighted losses over the divisor, in the dtype of the sum."""
    if isinstance(divisor, float):
        return summed / (divisor or math.nan)
    # Added, NaN stays out of the derivatives, which are zero where all weights are.
    zero = xp.zeros_like(divisor)
    return summed / _nonzero(divisor, weight, xp) + xp.where(divisor == 0, zero + math.nan, zero)


def reduce_gradient(
    gradient: Array, divisor: Array | float, weight: Array | None, xp: Namespace
) -> Array:
    """The derivative of the reduced loss, from the weighted derivatives of its terms."""
    if isinstance(divisor, float):
        return gradient / (divisor or math.nan)
    divisor = _nonzero(divisor, weight, xp)
    # A sum of weights may be beyond the range of the gradient's dtype, a quotient is not.
    is_large = xp.abs(divisor) > 2.0**100
    divisor = xp.where(is_large, divisor * 2.0**-64, divisor)
    gradient = xp.where(is_large, gradient * 2.0**-64, gradient)
    return zeros_kept(gradient / xp.astype(divisor, gradient.dtype, copy=False), weight, xp)


def zeros_kept(quotient: Array, weight: Array | None, xp: Namespace) -> Array:
    """A divided gradient: zero stays zero where other weights are NaN or cancel."""
    return quotient if weight is None else xp.where(weight == 0, 0.0, quotient)


def total(values: Array, xp: Namespace) -> Array:
    dtype = accumulator(values, xp)
    if hasattr(values, "fill_value"):
        # A sparse array would multiply its fill value in its own dtype, and convert the product.
        values = xp.astype(values, dtype)
    return xp.sum(values, dtype=dtype)


def accumulator(values: Array, xp: Namespace) -> Any:
    """float64 if the device of `values` has it, and longdouble for longdouble."""
    available = xp.__array_namespace_info__().dtypes(
        device=placement(values, xp), kind="real floating"
    )
    # Compared instead of promoted, because JAX may be set to refuse promotions.
    is_longer = values.dtype == getattr(xp, "longdouble", xp.float64)
    return xp.float64 if "float64" in available and not is_longer else values.dtype


def count(values: Array, xp: Namespace) -> Array | float:
    """The number of elements: a number if it is known beforehand."""
    if all(isinstance(length, int) for length in values.shape):
        return float(math.prod(values.shape))
    return total(xp.ones_like(values), xp)


def divisor(
    reduction: str, logits: Array, weight: Any, xp: Any, count: Any = count, total: Any = total
) -> Any:
    """The divisor of the sum of the weighted losses: a number if it is known beforehand.

    A library may count and add up in its own way.
    """
    if reduction == "mean":
        return count(logits, xp)
    if reduction == "weighted_mean":
        given = count(weight, xp)
        if isinstance(given, float):
            return total(weight, xp) * (count(logits, xp) / (given or 1.0))
        # A graph does not know yet how often a weight is repeated.
        return total(weight * xp.ones_like(logits), xp)
    assert reduction in ("none", "sum", TOTAL)
    return 1.0


def for_kernel(
    reduction: str, logits: Array, weight: Array | None, xp: Namespace
) -> str | Array | float:
    """A reduction as the kernel takes it: by name, or the divisor of one that it does not know."""
    known = reduction in kernel.REDUCTIONS
    return reduction if known else divisor(reduction, logits, weight, xp)


def _nonzero(divisor: Array, weight: Array | None, xp: Namespace) -> Array:
    """NaN for zero, but 1 where all weights are zero: there every derivative is zero already."""
    by_zero = xp.zeros_like(divisor) + math.nan
    if weight is not None:
        by_zero = xp.where(xp.any(weight != 0), by_zero, 1.0)
    return xp.where(divisor == 0, by_zero, divisor)
