"""JAX arrays: the formula, with a derivative rule of its own.

Subnormal numbers are zero on XLA's CPU, as inputs and as results.
"""

from __future__ import annotations

import functools
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero

from logitloss import _formula
from logitloss._arguments import Arguments
from logitloss._backends import generic
from logitloss._formula import Array

_NAME = "logistic_loss"


def loss(arguments: Arguments, reduction: str, out: Array | None, name: str | None) -> Array:
    with jax.named_scope(name or _NAME):
        return _results(*_inputs(arguments), (0,), reduction, arguments.dtype)[0]


def value_and_grad(
    arguments: Arguments, reduction: str, out: tuple[Array, Array] | None
) -> tuple[Array, Array]:
    with jax.named_scope(_NAME):
        value, gradient = _results(*_inputs(arguments), (0, 1), reduction, arguments.dtype)
    return value, gradient


def grad_and_hess(arguments: Arguments, out: tuple[Array, Array] | None) -> tuple[Array, Array]:
    with jax.named_scope(_NAME):
        gradient, hessian = _results(*_inputs(arguments), (1, 2), "none", arguments.dtype)
    return gradient, hessian


def _inputs(arguments: Arguments) -> tuple[Array, Array, Array | float, Array | float | None]:
    return arguments.labels, arguments.logits, arguments.pos_weight, arguments.weight


# Compiled for callers who do not compile: operation by operation each would be a pass of its own.
@functools.partial(jax.jit, static_argnums=(4, 5, 6))
def _results(
    labels: Array,
    logits: Array,
    pos_weight: Array,
    weight: Array | None,
    orders: tuple[int, ...],
    reduction: str,
    dtype: Any,
) -> list[Array]:
    """The weighted loss and its derivatives by the logits, of those orders."""
    inputs = generic.prepare(Arguments(jnp, labels, logits, pos_weight, weight, dtype))
    results = []
    for order in orders:
        if order == 0 and reduction != "none":
            total = _total(inputs.labels, inputs.logits, inputs.pos_weight, inputs.weight)
            results.append(generic.reduce(total, inputs, reduction))
            continue
        finish = generic.reduce_gradient if order else generic.reduce
        results.append(finish(_weighted(order, inputs), inputs, reduction))
    return results


def _weighted(order: int, inputs: Arguments) -> Array:
    live = _without_masked(inputs)
    values = _derivative(order, live.labels, live.logits, live.pos_weight)
    return values if inputs.weight is None else inputs.weight * values


def _without_masked(inputs: Arguments) -> Arguments:
    """Replace what an element of zero weight holds, if it could make anything else than zero.

    Before the formula, not after it: an automatic derivative multiplies what `where` drops by
    zero, and 0 * nan is nan. Finite elements stay, for the derivative by their weight.
    """
    if inputs.weight is None:
        return inputs
    labels, logits, pos_weight = inputs.labels, inputs.logits, inputs.pos_weight
    # No term of the loss or of its derivatives is larger.
    bound = (1 + jnp.abs(labels)) * (1 + jnp.abs(logits)) * (1 + jnp.abs(pos_weight))
    masked = (inputs.weight == 0) & ~jnp.isfinite(bound)
    return inputs._replace(
        labels=jnp.where(masked, 0, labels),
        logits=jnp.where(masked, 0, logits),
        pos_weight=jnp.where(masked, 0, pos_weight),
    )


# Elements from which on it pays to keep a sum from being written to memory first.
_MANY = 2**21


@jax.custom_jvp
def _total(labels: Array, logits: Array, pos_weight: Array, weight: Array | None) -> Array:
    """The sum of the weighted losses.

    XLA's CPU compiler makes one loop of a sum and of what feeds it, unless that compares: then it
    writes losses to memory and adds them up from there. So large sums are taken of a form without
    comparisons first, which is NaN wherever they would matter.
    """
    operands = labels, logits, pos_weight, weight
    if logits.size < _MANY:
        return _careful_total(*operands)
    # Constants would become arrays, if they were seen to be constant; and so would what the
    # gradient has in common with the sum.
    one = jnp.ones((), logits.dtype)
    hidden = jax.lax.optimization_barrier((*operands, one, 0 * one))  # type: ignore[no-untyped-call]
    labels, logits, pos_weight, weight, one, zero = hidden
    values = _loss_without_care(labels, logits, pos_weight, one, zero)
    total = generic.total(values if weight is None else weight * values, jnp)
    return jax.lax.cond(jnp.isnan(total), _careful_total, lambda *_: total, *operands)


def _loss_without_care(
    labels: Array, logits: Array, pos_weight: Array, one: Array, zero: Array
) -> Array:
    """The loss, or NaN: at zero times infinity, and where exp(-|x|) falls below normal numbers."""
    negative_cost, positive_cost = one - labels, pos_weight * labels
    positive = jnp.maximum(logits, zero)
    limits = np.finfo(logits.dtype)
    to_the_limit = logits * float(limits.max / -np.log(limits.smallest_normal))
    return (
        negative_cost * positive
        + positive_cost * (positive - logits)
        + (negative_cost + positive_cost) * jnp.log1p(jnp.exp(-jnp.abs(logits)))
        + (to_the_limit - to_the_limit)
    )


def _careful_total(labels: Array, logits: Array, pos_weight: Array, weight: Array | None) -> Array:
    inputs = Arguments(jnp, labels, logits, pos_weight, weight, logits.dtype)
    return generic.total(_weighted(0, inputs), jnp)


@functools.partial(_total.defjvp, symbolic_zeros=True)
def _total_jvp(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Array, Array]:
    value = _total(*primals)
    varying = [
        index
        for index, tangent in enumerate(tangents)
        if not (tangent is None or isinstance(tangent, SymbolicZero))
    ]

    def total(*varied: Array) -> Array:
        operands = list(primals)
        for index, operand in zip(varying, varied, strict=True):
            operands[index] = operand
        return _careful_total(*operands)

    _, tangent = jax.jvp(
        total, [primals[index] for index in varying], [tangents[index] for index in varying]
    )
    return value, tangent


def _summable_loss(
    labels: Array, logits: Array, pos_weight: Array, xp: _formula.Namespace
) -> Array:
    values = _formula.loss(labels, logits, pos_weight, xp)
    # Keeps a sum from taking the comparisons of the formula apart: see _total.
    return jnp.where(jnp.isnan(values), jnp.nan, values)


_CLOSED_FORMS = (_summable_loss, _formula.gradient, _formula.hessian)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _derivative(order: int, labels: Array, logits: Array, pos_weight: Array) -> Array:
    """The loss, or its first or second derivative by the logits."""
    return _CLOSED_FORMS[order](labels, logits, pos_weight, _xp)


# Symbolic zeros: the slope of an argument that is not differentiated may be infinite.
@functools.partial(_derivative.defjvp, symbolic_zeros=True)
def _derivative_jvp(
    order: int, primals: tuple[Array, ...], tangents: tuple[Array, ...]
) -> tuple[Array, Array]:
    value = _derivative(order, *primals)
    tangent = jnp.zeros_like(value)
    for slope, change in zip((_by_labels, _by_logits, _by_pos_weight), tangents, strict=True):
        if not isinstance(change, SymbolicZero):
            tangent = tangent + slope(order, *primals) * change
    return value, tangent


# The slopes are made of derivatives with this same rule, so that they have derivatives in turn.


def _by_labels(order: int, labels: Array, logits: Array, pos_weight: Array) -> Array:
    positives = _derivative(order, jnp.ones_like(logits), logits, pos_weight)
    return positives - _derivative(order, jnp.zeros_like(logits), logits, pos_weight)


def _by_logits(order: int, labels: Array, logits: Array, pos_weight: Array) -> Array:
    if order < 2:
        return _derivative(order + 1, labels, logits, pos_weight)
    # s(x) s(-x) has the slope s(x) s(-x) (s(-x) - s(x)).
    return _derivative(2, labels, logits, pos_weight) * -jnp.tanh(logits / 2)


def _by_pos_weight(order: int, labels: Array, logits: Array, pos_weight: Array) -> Array:
    ones = jnp.ones_like(logits)
    slope = _derivative(order, ones, logits, ones)
    return labels * jnp.where((labels == 0) & jnp.isinf(slope), 0, slope)


# log1p(e) / e - 1 for 0 <= e <= 1 in powers of e - 1/2, from the lowest: LOG1P_32 and LOG1P_64 of
# _kernel/constants.py. The relative errors of log1p are 2^-25.8 and 2^-55.5.
_LOG1P_FLOAT32 = """
    -0x1.833704p-3 -0x1.2773a6p-2 0x1.0f955p-3 -0x1.153fb2p-4 0x1.2c1e28p-5
    -0x1.510612p-6 0x1.7b53cap-7 -0x1.ba5cc4p-8 0x1.584892p-8 -0x1.a93344p-9
"""
_LOG1P_FLOAT64 = """
    -0x1.833704d019edp-3 -0x1.2773a5da90bdcp-2 0x1.0f95b3dc0a11p-3 -0x1.1540afd54ae8cp-4
    0x1.2bec9fba5517bp-5 -0x1.50abf6ccb1023p-6 0x1.83c50b0c551abp-7 -0x1.c72c62f032312p-8
    0x1.0f1192221ff9p-8 -0x1.469c8b29418a7p-9 0x1.8d3f99ee9ceb7p-10 -0x1.e6f12f5080797p-11
    0x1.2c73e0b82c719p-11 -0x1.74d2e6d896ecfp-12 0x1.cf98c4cdc65d7p-13 -0x1.22098068df16bp-13
    0x1.7891815feeb9ap-14 -0x1.dd741f2d80c98p-15 0x1.cc43f48554d05p-16 -0x1.1a8b483fd787cp-16
    0x1.a558a0388b513p-16 -0x1.1374ddad0029fp-16
"""
_LOG1P = {
    "float32": [float.fromhex(c) for c in _LOG1P_FLOAT32.split()],
    "float64": [float.fromhex(c) for c in _LOG1P_FLOAT64.split()],
}


def _log1p(e: Array) -> Array:
    """log1p between 0 and 1, to 1.3 ulp. XLA's own errs by 2.3, and takes three times as long as
    all the rest in float64."""
    *lower, slope = _LOG1P[e.dtype.name]
    for coefficient in reversed(lower):
        slope = coefficient + (e - 0.5) * slope
    return e + e * slope


_xp = types.SimpleNamespace(abs=jnp.abs, exp=jnp.exp, log1p=_log1p, where=jnp.where)
