"""The derivatives by the logits, by the kernel or by TensorFlow's operations; nothing here records.

Both ways take ``labels, logits, pos_weight, weight, orders, reduction`` and return

    D(n) = weight · dⁿ loss / d logitsⁿ    for n in orders

With the reduction TOTAL that of order 0 is the sum over all elements, of float64. The kernel knows
all the other reductions as well. Coefficients may be numbers, and so may the labels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import tensorflow as tf

from logitloss._backends.tensorflow import namespace as xp
from logitloss._backends.tensorflow.namespace import DType, Tensor
from logitloss._kernel import kernel
from logitloss._reductions import TOTAL, for_kernel, total

Results: TypeAlias = tuple[Tensor, ...]

_HOST = "device:CPU:0"
# TensorFlow's kernels abort the process if memory from DLPack has a smaller alignment.
_ALIGNMENT = 64


def is_eager(tensor: object) -> bool:
    return isinstance(tensor, tf.Tensor) and hasattr(tensor, "numpy")


def is_readable(tensors: Sequence[Tensor]) -> bool:
    """Whether the kernel can read the memory of all these tensors now."""
    if not tf.executing_eagerly():
        return False
    for tensor in tensors:
        if not (is_eager(tensor) and tensor.device.endswith(_HOST)):
            return False
    return True


def by_kernel(
    labels: Tensor | float,
    logits: Tensor,
    pos_weight: Tensor | float,
    weight: Tensor | float | None,
    orders: tuple[int, ...],
    reduction: str,
    dtype: DType = None,
) -> Results:
    x = _as_array(logits)
    z = np.broadcast_to(x.dtype.type(labels), x.shape) if _is_number(labels) else _as_array(labels)
    q, w = _as_array(pos_weight), _as_array(weight)
    if reduction == TOTAL and 0 in orders:
        return _with_total(z, x, q, w, orders)
    kind = (dtype or logits.dtype).as_numpy_dtype
    outs = tuple(
        [_aligned(() if order == 0 and reduction != "none" else x.shape, kind) for order in orders]
    )
    how = for_kernel(reduction, logits, weight, xp)
    kernel.compute(orders, z, x, q, w, how, outs, True)
    return tuple([_as_tensor(out) for out in outs])


def _with_total(z: Any, x: Any, q: Any, w: Any, orders: tuple[int, ...]) -> Results:
    """The kernel would round a total that it writes into the caller's memory, so it writes none."""
    rest = tuple([order for order in orders if order])
    outs = tuple([_aligned(x.shape, x.dtype) for _ in rest])
    if rest:
        kernel.compute(rest, z, x, q, w, "none", outs)
    found = kernel.compute((0,), z, x, q, w, TOTAL, None, is_checked=True)
    assert found is not None
    return tf.constant(found[0], tf.float64), *map(_as_tensor, outs)


def _is_number(value: object) -> bool:
    return isinstance(value, float)


def _as_array(value: Tensor | float | None) -> Any:
    """The memory of a tensor, without a copy."""
    if value is None or isinstance(value, float):
        return value
    # Without dimensions, bfloat16 arrives as a number, which `np.asarray` refuses.
    return np.asarray(value if value.shape.rank else value.numpy())


def _aligned(shape: tuple[int, ...], dtype: Any) -> np.ndarray[Any, Any]:
    size = math.prod(shape) * np.dtype(dtype).itemsize
    block = np.empty(size + _ALIGNMENT, np.uint8)
    start = -block.__array_interface__["data"][0] % _ALIGNMENT
    return np.ndarray(shape, dtype, block, start)


def _as_tensor(array: np.ndarray[Any, Any]) -> Tensor:
    """A tensor in the memory of an aligned array."""
    if array.dtype.kind == "f" and array.dtype.name != "bfloat16":
        return tf.experimental.dlpack.from_dlpack(array.__dlpack__())
    # NumPy exports only its own dtypes.
    bits = tf.experimental.dlpack.from_dlpack(array.view(np.uint16).__dlpack__())
    return tf.bitcast(bits, tf.bfloat16)


def by_operations(
    labels: Tensor | float,
    logits: Tensor,
    pos_weight: Tensor | float,
    weight: Tensor | float | None,
    orders: tuple[int, ...],
    reduction: str,
) -> Results:
    """The closed forms of `_formula`, in fewer operations.

    In a graph that XLA does not compile each operation is a pass over memory, and `_formula` would
    be twice as many. TensorFlow has one for ``0 * inf = 0``, and keeps no subnormal numbers.
    """
    dtype = logits.dtype
    if _is_number(labels):
        labels = tf.fill(tf.shape(logits), xp.asarray(labels, dtype))
    pieces = _pieces(tf.cast(labels, dtype), logits, pos_weight)
    results = [_CLOSED_FORMS[order](pieces) for order in orders]
    if weight is not None:
        weight = xp.asarray(weight, dtype)
        # Exactly zero where the weight is, NaN or not.
        results = [tf.math.multiply_no_nan(result, weight) for result in results]
    if reduction == TOTAL:
        results = [
            result if order else total(result, xp)
            for order, result in zip(orders, results, strict=True)
        ]
    return tuple(results)


class _Pieces(NamedTuple):
    positive: Tensor  # x > 0
    opposite: Tensor  # -|x|
    near: Tensor
    far: Tensor
    both: Tensor  # near + far
    e: Tensor  # exp(-|x|), but not below exp(-87)
    tail: Tensor | None  # what e lacks: exp(-|x|) = e * tail; None stands for 1
    has_positives: bool  # pos_weight is known not to be zero
    is_finite: bool  # pos_weight is known to be finite


# exp(-87) is still a normal number of float32.
_TAIL = 87.0
# A pos_weight lifts what was a subnormal number, and therefore zero, into the normal range. To keep
# its digits takes another exponential, a third of all the time: not for what cannot be larger than
# this many of the smallest normal numbers.
_NEGLIGIBLE_LIFT = 4.0


def _pieces(labels: Tensor, logits: Tensor, pos_weight: Tensor | float) -> _Pieces:
    positive = logits > 0
    # Not `abs`, whose derivative at 0 is 0: forward mode in a graph and a tape around
    # `vectorized_map` differentiate these operations and never ask for the rules.
    opposite = tf.minimum(logits, -logits)
    negative_cost = 1.0 - labels
    known = _known(pos_weight)
    pos_weight = xp.asarray(pos_weight, labels.dtype)
    is_finite = known is not None and bool(np.all(np.isfinite(known)))
    if is_finite:
        positive_cost = labels * pos_weight
    else:
        positive_cost = _product(pos_weight, labels)
    if known is not None and np.all(np.abs(known) <= _NEGLIGIBLE_LIFT):
        e, tail = tf.exp(opposite), None
    else:
        head = tf.maximum(opposite, xp.asarray(-_TAIL, opposite.dtype))
        e, tail = tf.exp(head), tf.exp(opposite - head)
    return _Pieces(
        positive=positive,
        opposite=opposite,
        near=_select(positive, negative_cost, positive_cost),
        far=_select(positive, positive_cost, negative_cost),
        both=negative_cost + positive_cost,
        e=e,
        tail=tail,
        has_positives=known is not None and bool(np.all(known)),
        is_finite=is_finite,
    )


def _known(value: Tensor | float) -> Any:
    """The value of a coefficient, if it is known without waiting for a device."""
    if _is_number(value):
        return value
    return None if is_eager(value) else tf.get_static_value(value)


def _product(coefficient: Tensor, labels: Tensor) -> Tensor:
    """Multiply with ``inf * 0 = 0``; NaN stays NaN."""
    # In the shape of the coefficient, which is mostly a small one.
    nan = xp.where(tf.math.is_nan(coefficient), coefficient, 0.0)
    return tf.math.multiply_no_nan(coefficient, labels) + nan


def _select(condition: Tensor, first: Tensor, second: Tensor) -> Tensor:
    # `tf.where`, which broadcasts, takes twice as long.
    return tf.raw_ops.Select(condition=condition, x=first, y=second)


def _times_tail(values: Tensor, p: _Pieces) -> Tensor:
    if p.tail is None:
        return values
    if p.is_finite:
        return values * p.tail
    # Infinity times zero is zero, but NaN stays NaN.
    nan = xp.where(tf.math.is_nan(values), values, 0.0)
    return tf.math.multiply_no_nan(values, p.tail) + nan


def _loss(p: _Pieces) -> Tensor:
    if p.has_positives:
        small = tf.math.xlog1py(p.both, p.e)
    else:
        # `xlog1py` is 0 for a logit of NaN where `both` is, as it is for label 1 and pos_weight 0.
        small = p.both * tf.math.log1p(p.e)
    small = _times_tail(small, p)
    large = tf.math.multiply_no_nan(p.opposite, p.near)
    if not p.is_finite:
        large = _select(p.opposite == 0, p.opposite, large)
    return small - large


def _gradient(p: _Pieces) -> Tensor:
    difference = p.near - _times_tail(p.far * p.e, p)
    return _select(p.positive, difference, -difference) / (1.0 + p.e)


def _hessian(p: _Pieces) -> Tensor:
    return _times_tail(p.both * p.e, p) / (1.0 + p.e * (2.0 + p.e))


_CLOSED_FORMS = (_loss, _gradient, _hessian)
