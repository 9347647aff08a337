"""JAX arrays: the kernel on a CPU, the formula elsewhere, with derivative rules of their own.

XLA's CPU takes subnormal numbers for zero, as inputs and as results; the kernel does not.
"""

from __future__ import annotations

import functools
import math
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir

from logitloss import _formula
from logitloss._arguments import Arguments
from logitloss._backends import generic
from logitloss._backends.numpy import period_and_repeat
from logitloss._formula import Array
from logitloss._kernel import kernel

_NAME = "logistic_loss"


def loss(arguments: Arguments, reduction: str, out: Array | None, name: str | None) -> Array:
    with jax.named_scope(name or _NAME):
        return _results(*_inputs(arguments), kernel.LOSS, reduction, arguments.dtype)[0]


def value_and_grad(
    arguments: Arguments, reduction: str, out: tuple[Array, Array] | None
) -> tuple[Array, Array]:
    with jax.named_scope(_NAME):
        value, gradient = _results(
            *_inputs(arguments), kernel.VALUE_AND_GRAD, reduction, arguments.dtype
        )
    return value, gradient


def grad_and_hess(arguments: Arguments, out: tuple[Array, Array] | None) -> tuple[Array, Array]:
    with jax.named_scope(_NAME):
        gradient, hessian = _results(
            *_inputs(arguments), kernel.GRAD_AND_HESS, "none", arguments.dtype
        )
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
    operation: int,
    reduction: str,
    dtype: Any,
) -> list[Array]:
    """What the operation computes, weighted and reduced."""
    inputs = generic.prepare(Arguments(jnp, labels, logits, pos_weight, weight, dtype))
    if labels.dtype.kind in "biu":
        # The kernel converts them itself.
        inputs = inputs._replace(labels=labels)
    total, divisor = None, 1.0
    if reduction != "none":
        total = generic.accumulator(inputs.logits, jnp)
    if reduction == "mean" or (reduction == "weighted_mean" and weight is None):
        # A program that is exported may leave it open.
        divisor = float(logits.size) if isinstance(logits.size, int) else logits.size
    results = list(_computed(operation, total, divisor, *_inputs(inputs)))
    if reduction == "weighted_mean" and weight is not None:
        results[0] = generic.reduce(results[0], inputs, reduction)
        results[1:] = [generic.reduce_gradient(g, inputs, reduction) for g in results[1:]]
    return [result.astype(dtype) for result in results]


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1, 2))
def _computed(
    operation: int,
    total: Any,
    divisor: float,
    labels: Array,
    logits: Array,
    pos_weight: Array,
    weight: Array | None,
) -> tuple[Array, ...]:
    """The two results of the operation, or the one of LOSS.

    If `total` is a dtype, the losses are added up to one of it. Divided by `divisor` are that sum
    and the gradient of VALUE_AND_GRAD.
    """
    operands = [labels, logits, pos_weight]
    if weight is not None:
        operands.append(weight)
    options = {"operation": operation, "total": total, "divisor": divisor}
    if logits.size == 0 or _is_sharded(logits):
        return tuple(_by_formula(*operands, **options))
    return tuple(_primitive.bind(*operands, **options))


@functools.partial(_computed.defjvp, symbolic_zeros=True)
def _computed_jvp(
    operation: int,
    total: Any,
    divisor: float,
    primals: tuple[Any, ...],
    tangents: tuple[Any, ...],
) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
    varying = [
        index
        for index, tangent in enumerate(tangents)
        if not (tangent is None or isinstance(tangent, SymbolicZero))
    ]
    if varying == [1] and operation != kernel.GRAD_AND_HESS:
        results = _computed(kernel.VALUE_AND_GRAD, total, divisor, *primals)
        slopes = [results[1]]
        if operation == kernel.LOSS:
            results = results[:1]
        else:
            _, hessian = _computed(kernel.GRAD_AND_HESS, None, 1.0, *primals)
            slopes.append(hessian / divisor)
        changes = [slope * tangents[1] for slope in slopes]
        if total is not None:
            changes[0] = jnp.sum(changes[0], dtype=total)
        return results, tuple(changes)

    def by_formula(*varied: Array) -> tuple[Array, ...]:
        operands = list(primals)
        for index, operand in zip(varying, varied, strict=True):
            operands[index] = operand
        return tuple(_by_formula(*operands, operation=operation, total=total, divisor=divisor))

    return jax.jvp(
        by_formula, [primals[index] for index in varying], [tangents[index] for index in varying]
    )


# One operation for the compiler, so that the kernel is chosen only when it is known that the code
# is for one CPU.
_primitive = Primitive("logistic_loss")
_primitive.multiple_results = True


def _is_sharded(array: Array) -> bool:
    """Whether this may be a part of an array, or one of which several devices hold parts."""
    # Before there was jax.shard_map, its predecessor did not show in the types of arrays.
    return not hasattr(jax, "shard_map") or not jax.typeof(array).sharding.mesh.empty


def _shapes(labels: Any, logits: Any, *coefficients: Any, **options: Any) -> list[Any]:
    whole = jax.core.ShapedArray(logits.shape, logits.dtype)
    first = whole if options["total"] is None else jax.core.ShapedArray((), options["total"])
    return [first] if options["operation"] == kernel.LOSS else [first, whole]


_primitive.def_abstract_eval(_shapes)


def _batched(operands: Any, axes: Any, **options: Any) -> tuple[list[Array], list[int]]:
    """The operation on arrays with one more axis at the front: elementwise, then added up."""
    count = next(
        operand.shape[axis]
        for operand, axis in zip(operands, axes, strict=True)
        if axis is not None
    )
    ndim = operands[1].ndim - (axes[1] is not None)
    aligned = []
    for index, (operand, axis) in enumerate(zip(operands, axes, strict=True)):
        if axis is not None:
            operand = jnp.moveaxis(operand, axis, 0)
            missing = tuple(range(1, ndim - operand.ndim + 2))
            operand = jnp.expand_dims(operand, missing)
        elif index < 2:
            operand = jnp.broadcast_to(operand, (count, *operand.shape))
        aligned.append(operand)
    total = options.pop("total")
    first, *second = _primitive.bind(*aligned, **options, total=None)
    if total is not None:
        first = jnp.sum(first, axis=range(1, first.ndim), dtype=total) / options["divisor"]
    return [first, *second], [0] * (1 + len(second))


batching.primitive_batchers[_primitive] = _batched


def _lowered(context: Any, *operands: Any, **options: Any) -> Any:
    module = context.module_context
    # An exported program may run where there is no kernel, and between devices the compiler can
    # divide only what it sees into.
    is_exported = getattr(getattr(module, "lowering_parameters", None), "for_export", True)
    devices = getattr(getattr(module, "axis_context", None), "num_devices", None)
    use_kernel = not is_exported and devices == 1 and _is_registered()
    rule = mlir.lower_fun(_by_kernel if use_kernel else _by_formula, multiple_results=True)
    return rule(context, *operands, **options)


@functools.cache
def _is_registered() -> bool:
    """Make the kernel known to XLA, if its version takes it."""
    handler = kernel.xla_handler()
    try:
        # A target registered before this would be refused here, and the CPU with it.
        jax.devices("cpu")
        jax.ffi.register_ffi_target(_TARGET, handler, platform="cpu")
    except Exception:
        return False
    return True


_TARGET = "logitloss"


def _by_kernel(
    labels: Array,
    logits: Array,
    pos_weight: Array,
    weight: Array | None = None,
    *,
    operation: int,
    total: Any,
    divisor: float,
) -> list[Array]:
    pos_weight, pos_weight_period, pos_weight_repeat = _coefficient(pos_weight, logits.shape)
    weight, weight_period, weight_repeat = _coefficient(
        jnp.ones((), logits.dtype) if weight is None else weight, logits.shape
    )
    whole = jax.ShapeDtypeStruct(logits.shape, logits.dtype)
    first = whole if total is None else jax.ShapeDtypeStruct((), total)
    call = jax.ffi.ffi_call(_TARGET, [first] if operation == kernel.LOSS else [first, whole])
    # xla.c finds these in alphabetical order.
    results = call(
        labels,
        logits,
        pos_weight,
        weight,
        divisor=np.float64(divisor),
        operation=np.int64(operation),
        pos_weight_period=np.int64(pos_weight_period),
        pos_weight_repeat=np.int64(pos_weight_repeat),
        reduce=np.int64(total is not None),
        weight_period=np.int64(weight_period),
        weight_repeat=np.int64(weight_repeat),
    )
    return list(results)


def _coefficient(value: Array, shape: tuple[int, ...]) -> tuple[Array, int, int]:
    """Values, period and repeat of a coefficient, as blocks.h has them; no period for a number."""
    if value.size == 1:
        return value, 0, 1
    own = (1,) * (len(shape) - value.ndim) + value.shape
    period, repeat = period_and_repeat(own, shape)
    if value.size != period:
        return jnp.broadcast_to(value, shape), math.prod(shape), 1
    if repeat == 1 and period < math.prod(shape):
        # The kernel reads past the end of a period: see blocks.h.
        copies = 1 + -(-kernel.BLOCK // period)
        value = jnp.tile(value.reshape(-1), copies)[: period + kernel.BLOCK]
    return value, period, repeat


def _by_formula(
    labels: Array,
    logits: Array,
    pos_weight: Array,
    weight: Array | None = None,
    *,
    operation: int,
    total: Any,
    divisor: float,
) -> list[Array]:
    labels = labels.astype(logits.dtype)
    inputs = Arguments(jnp, labels, logits, pos_weight, weight, logits.dtype)
    results = [_weighted(order, inputs) for order in _ORDERS[operation]]
    if total is not None:
        results[0] = jnp.sum(results[0], dtype=total) / divisor
    if operation == kernel.VALUE_AND_GRAD:
        results[1] = results[1] / divisor
    return results


# The derivatives by the logits that an operation gives.
_ORDERS = {kernel.LOSS: (0,), kernel.VALUE_AND_GRAD: (0, 1), kernel.GRAD_AND_HESS: (1, 2)}

_primitive.def_impl(_by_formula)
mlir.register_lowering(_primitive, mlir.lower_fun(_by_formula, multiple_results=True))
mlir.register_lowering(_primitive, _lowered, platform="cpu")


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


def _summable_loss(
    labels: Array, logits: Array, pos_weight: Array, xp: _formula.Namespace
) -> Array:
    values = _formula.loss(labels, logits, pos_weight, xp)
    # Without this, XLA's CPU compiler takes the comparisons of the formula apart where the losses
    # are added up, which then takes two to five times as long.
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
