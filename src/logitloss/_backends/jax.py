"""JAX arrays: the kernel on a CPU, the formula elsewhere, with one derivative rule for both.

XLA's CPU takes subnormal numbers for zero, as inputs and as results; the kernel does not.
"""

from __future__ import annotations

import functools
import operator
import types
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir

from logitloss import _formula, _reductions
from logitloss._call import Call
from logitloss._formula import Array
from logitloss._kernel import kernel

Arrays: TypeAlias = tuple[Array, ...]

_NAME = "logistic_loss"
_TARGET = "logitloss"


def compute(call: Call) -> Arrays:
    arguments = call.labels, call.logits, call.pos_weight, call.weight
    with jax.named_scope(call.name or _NAME):
        results: Arrays = _compiled(*arguments, call.orders, call.reduction, jnp.dtype(call.dtype))
    return results


# Compiled for callers who do not compile. Uncompiled, each operation would be a pass of its own.
@functools.partial(jax.jit, static_argnums=(4, 5, 6))
def _compiled(
    labels: Array,
    logits: Array,
    pos_weight: Array | float,
    weight: Array | float | None,
    orders: tuple[int, ...],
    reduction: str,
    dtype: Any,
) -> Arrays:
    def coefficient(value: Array | float) -> Array:
        # A number, or as many axes as the logits have, because JAX may be set to add none itself.
        value = jnp.asarray(value)
        missing = logits.ndim - value.ndim if value.ndim else 0
        return jnp.expand_dims(value, tuple(range(missing)))

    if logits.dtype.kind in "biu" or dtype not in (labels.dtype, logits.dtype):
        # Neither of the two half precisions holds the other.
        logits = logits.astype(dtype)
    is_total = reduction == _reductions.TOTAL
    results: Arrays = _computed(
        orders,
        "sum" if is_total else reduction,
        (_accumulator(dtype) if is_total else dtype,) * len(orders),
        labels,
        logits,
        coefficient(pos_weight),
        None if weight is None else coefficient(weight),
    )
    return results


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1, 2))
def _computed(
    orders: tuple[int, ...],
    reduction: str,
    dtypes: tuple[Any, ...],
    labels: Array,
    logits: Array,
    pos_weight: Array,
    weight: Array | None,
) -> Arrays:
    """The derivatives of these orders by the logits, weighted and reduced, in these dtypes.

    The arguments are as the caller has them. All have the number of axes of the logits or none.
    """
    operands = [labels, logits, pos_weight]
    if weight is not None:
        operands.append(weight)
    if logits.size == 0 or _is_sharded(logits):
        return _by_formula(*operands, orders=orders, reduction=reduction, dtypes=dtypes)
    return tuple(_primitive.bind(*operands, orders=orders, reduction=reduction, dtypes=dtypes))


# Symbolic zeros: the slope of an argument that is not differentiated may be infinite.
@functools.partial(_computed.defjvp, symbolic_zeros=True)
def _computed_jvp(
    orders: tuple[int, ...],
    reduction: str,
    dtypes: tuple[Any, ...],
    primals: tuple[Any, ...],
    tangents: tuple[Any, ...],
) -> tuple[Arrays, Arrays]:
    changes = {
        index: tangent
        for index, tangent in enumerate(tangents)
        if not (tangent is None or isinstance(tangent, SymbolicZero))
    }
    if reduction == "none":
        return _elementwise_jvp(orders, dtypes, primals, changes)
    if orders == (0,) and list(changes) == [1]:
        # In a training step one call gives the loss and its gradient.
        work = _working(_promoted(*primals[:2]))
        value, gradient = _computed((0, 1), reduction, (*dtypes, work), *primals)
        products = gradient * changes[1].astype(work)
        return (value,), (jnp.sum(products, dtype=_accumulator(work)).astype(value.dtype),)

    def by_parts(varied: dict[int, Array]) -> Arrays:
        arguments = [varied.get(index, primal) for index, primal in enumerate(primals)]
        return _by_parts(*arguments, orders=orders, reduction=reduction, dtypes=dtypes)

    results: tuple[Arrays, Arrays] = jax.jvp(
        by_parts, [{index: primals[index] for index in changes}], [changes]
    )
    return results


def _elementwise_jvp(
    orders: tuple[int, ...],
    dtypes: tuple[Any, ...],
    primals: tuple[Any, ...],
    changes: dict[int, Array],
) -> tuple[Arrays, Arrays]:
    labels, logits, pos_weight, weight = primals
    dtype = _promoted(labels, logits)
    work = _working(dtype)
    # Slopes by the logits are results of the next order, which the same call gives. What is
    # multiplied is rounded to half precision afterwards.
    found = dict(zip(orders, dtypes, strict=True))
    found |= {order + 1: work for order in orders if order < 2 and 1 in changes}
    together = tuple(sorted(found))
    wanted = tuple(found[order] for order in together)
    known = dict(zip(together, _computed(together, "none", wanted, *primals), strict=True))

    def derivative(order: int, labels: Array, _: Array, pos_weight: Array, scale: Array) -> Array:
        arguments = labels, logits, pos_weight, scale
        if all(map(operator.is_, arguments, primals)) and found.get(order) == work:
            return known[order]
        return _computed((order,), "none", (work,), *arguments)[0]

    def full(value: float) -> Array:
        # A number is enough.
        return jnp.asarray(value, dtype)

    wide_logits = logits.astype(work)
    wide_weight = None if weight is None else _widened(weight, dtype)
    scales = [weight, weight, weight, _unmasked(*primals) if 3 in changes else None]
    tangents = []
    for order, result in zip(orders, dtypes, strict=True):
        by = _formula.slopes(
            derivative, order, labels, wide_logits, pos_weight, wide_weight, full, jnp
        )
        terms = [
            by[index](scales[index]) * change.astype(work) for index, change in changes.items()
        ]
        tangents.append(functools.reduce(operator.add, terms).astype(result))
    values = (known[order].astype(result) for order, result in zip(orders, dtypes, strict=True))
    return tuple(values), tuple(tangents)


def _unmasked(labels: Array, logits: Array, pos_weight: Array, weight: Array) -> Array:
    """1, but 0 where a weight of zero masks what is not finite, for the slope by the weight.

    Neither that slope nor its own derivatives may see such an element: automatic derivatives
    multiply what `where` drops by zero, and 0 * nan is nan.
    """
    dtype = _promoted(labels, logits)
    labels, logits, pos_weight, weight = (
        _widened(value, dtype) for value in (labels, logits, pos_weight, weight)
    )
    # No term of the loss or of its derivatives is larger.
    bound = (1 + jnp.abs(labels)) * (1 + jnp.abs(logits)) * (1 + jnp.abs(pos_weight))
    return jnp.where((weight == 0) & ~jnp.isfinite(bound), 0, 1).astype(dtype)


def _by_parts(
    labels: Array,
    logits: Array,
    pos_weight: Array,
    weight: Array | None = None,
    *,
    orders: tuple[int, ...],
    reduction: str,
    dtypes: tuple[Any, ...],
) -> Arrays:
    """The same, computed element by element and reduced by XLA."""
    dtype = _promoted(labels, logits)
    wide = (_working(dtype),) * len(orders)
    results = _computed(orders, "none", wide, labels, logits, pos_weight, weight)
    weight = None if weight is None else _widened(weight, dtype)
    return _reduced(results, orders, reduction, dtypes, logits.astype(wide[0]), weight)


def _reduced(
    results: Arrays,
    orders: tuple[int, ...],
    reduction: str,
    dtypes: tuple[Any, ...],
    logits: Array,
    weight: Array | None,
) -> Arrays:
    divisor = _reductions.divisor(reduction, logits, weight, jnp)
    results = _reductions.reduce_each(results, orders, divisor, weight, jnp)
    return _rounded(results, dtypes)


def _by_formula(
    labels: Array,
    logits: Array,
    pos_weight: Array,
    weight: Array | None = None,
    *,
    orders: tuple[int, ...],
    reduction: str,
    dtypes: tuple[Any, ...],
) -> Arrays:
    dtype = _promoted(labels, logits)
    labels, logits, pos_weight = (_widened(a, dtype) for a in (labels, logits, pos_weight))
    weight = None if weight is None else _widened(weight, dtype)
    results = _formula.derivatives(orders, labels, logits, pos_weight, _xp)
    results = tuple(_reductions.masked(result, weight, jnp) for result in results)
    if reduction == "none":
        return _rounded(results, dtypes)
    # Without this, XLA's CPU compiler takes the comparisons of the formula apart where the losses
    # are added up, which then takes two to five times as long.
    results = tuple(jnp.where(jnp.isnan(result), jnp.nan, result) for result in results)
    return _reduced(results, orders, reduction, dtypes, logits, weight)


def _by_kernel(
    labels: Array,
    logits: Array,
    *coefficients: Array,
    orders: tuple[int, ...],
    reduction: str,
    dtypes: tuple[Any, ...],
) -> Arrays:
    options: Any = {"orders": orders, "reduction": reduction, "dtypes": dtypes}
    if reduction not in kernel.REDUCTIONS:
        return _by_parts(labels, logits, *coefficients, **options)
    # The kernel repeats coefficients itself.
    labels = jnp.broadcast_to(labels, logits.shape)
    operands = labels, logits, *coefficients
    call = jax.ffi.ffi_call(_TARGET, _types(*operands, **options))
    wanted = sum(1 << order for order in orders)
    number = _reductions.REDUCTIONS.index(reduction)
    return tuple(call(*operands, orders=np.int64(wanted), reduction=np.int64(number)))


def _types(
    labels: Any,
    logits: Any,
    *coefficients: Any,
    orders: tuple[int, ...],
    reduction: str,
    dtypes: tuple[Any, ...],
) -> list[Any]:
    """Shapes and dtypes of the results."""
    return [
        jax.core.ShapedArray(logits.shape if order or reduction == "none" else (), dtype)
        for order, dtype in zip(orders, dtypes, strict=True)
    ]


def _promoted(labels: Array, logits: Array) -> Any:
    """The dtype of the loss, to which coefficients are rounded."""
    if labels.dtype.kind in "biu":
        return logits.dtype
    return jnp.promote_types(labels.dtype, logits.dtype)


def _working(dtype: Any) -> Any:
    """What is computed in: half precision in float32."""
    return dtype if dtype.itemsize >= 4 else jnp.dtype(jnp.float32)


def _accumulator(dtype: Any) -> Any:
    return _reductions.accumulator(jax.ShapeDtypeStruct((), _working(dtype)), jnp)


def _widened(value: Array, dtype: Any) -> Array:
    """The value, as this dtype holds it, in what is computed in."""
    work = _working(dtype)
    wide = value.astype(work)
    # XLA would leave out a conversion to fewer bits and back, on GPUs one from float64 as well. A
    # weight that is 0 in float32 would then count in the sum of the weights.
    if value.dtype.kind == "f" and value.dtype.itemsize > work.itemsize:
        wide = jnp.where(wide == 0, 0, wide)
    if dtype in (work, value.dtype):
        return wide
    info = jnp.finfo(dtype)  # type: ignore[no-untyped-call]
    return jax.lax.reduce_precision(wide, info.nexp, info.nmant)


def _rounded(results: Arrays, dtypes: tuple[Any, ...]) -> Arrays:
    return tuple(result.astype(dtype) for result, dtype in zip(results, dtypes, strict=True))


def _batched(operands: Any, axes: Any, **options: Any) -> tuple[Any, list[int]]:
    """The operation on arrays with one more axis at the front: elementwise, then added up."""
    if options["reduction"] == "none":
        ndim = operands[1].ndim + (axes[1] is None)
        sizes = zip(operands, axes, strict=True)
        count = next(operand.shape[axis] for operand, axis in sizes if axis is not None)
        operands = [_with_axis(*given, ndim) for given in zip(operands, axes, strict=True)]
        operands[1] = jnp.broadcast_to(operands[1], (count, *operands[1].shape[1:]))
        results = _primitive.bind(*operands, **options)
    else:
        results = jax.vmap(functools.partial(_by_parts, **options), axes)(*operands)
    return results, [0] * len(options["orders"])


def _with_axis(operand: Array, axis: int | None, ndim: int) -> Array:
    """`operand` with `ndim` axes, of which the first is the one it is mapped over."""
    operand = operand[None] if axis is None else jnp.moveaxis(operand, axis, 0)
    return jnp.expand_dims(operand, tuple(range(1, ndim - operand.ndim + 1)))


def _lowered(context: Any, *operands: Any, **options: Any) -> Any:
    has_few_axes = context.avals_in[1].ndim <= kernel.MAX_AXES
    use_kernel = has_few_axes and _is_for_one_cpu(context.module_context) and _is_registered()
    rule = mlir.lower_fun(_by_kernel if use_kernel else _by_formula, multiple_results=True)
    return rule(context, *operands, **options)


# One operation for the compiler, so that the kernel is chosen only when it is known that the code
# is for one CPU.
_primitive = Primitive(_NAME)
_primitive.multiple_results = True
_primitive.def_impl(_by_formula)
_primitive.def_abstract_eval(_types)
batching.primitive_batchers[_primitive] = _batched
mlir.register_lowering(_primitive, mlir.lower_fun(_by_formula, multiple_results=True))
mlir.register_lowering(_primitive, _lowered, platform="cpu")


# Everything that is private to JAX, or that older versions lack, is used only below.


def _is_sharded(array: Array) -> bool:
    """Whether this may be a part of an array, or one of which several devices hold parts."""
    # The predecessor of jax.shard_map did not show in the types of arrays.
    return not hasattr(jax, "shard_map") or not jax.typeof(array).sharding.mesh.empty


def _is_for_one_cpu(module: Any) -> bool:
    # An exported program may run where there is no kernel. The compiler can divide among devices
    # only what it can see into.
    is_exported = getattr(getattr(module, "lowering_parameters", None), "for_export", True)
    devices = getattr(getattr(module, "axis_context", None), "num_devices", None)
    return not is_exported and devices == 1


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


# log1p(e) / e - 1 for 0 <= e <= 1 in powers of e - 1/2, from the lowest: LOG1P_32 and LOG1P_64 of
# tools/constants.py. The relative errors of log1p are 2^-25.8 and 2^-55.5.
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


_xp = types.SimpleNamespace(
    abs=jnp.abs,
    exp=jnp.exp,
    finfo=jnp.finfo,
    log1p=_log1p,
    tanh=jnp.tanh,
    where=jnp.where,
)
