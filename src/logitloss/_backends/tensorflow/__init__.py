"""TensorFlow's tensors: the kernel for eager ones on a CPU, TensorFlow's own operations in graphs.

A graph holds nothing that is not TensorFlow's, so that it can be compiled, saved, and loaded where
this package is not installed. `_values` computes, `_rules` differentiates, and `namespace` is what
`_call.check` takes for TensorFlow's array API.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from logitloss import _reductions
from logitloss._backends.tensorflow import namespace as xp
from logitloss._backends.tensorflow._rules import derivatives, followed_among, mean_and_gradient
from logitloss._backends.tensorflow._shapes import with_checked_shapes
from logitloss._backends.tensorflow._values import Results, by_kernel, is_eager, is_readable
from logitloss._backends.tensorflow.namespace import FLOATING, INTEGRAL, Tensor
from logitloss._call import LOSS, Call, check, effective, refuse_layout
from logitloss._libraries import is_of_tensorflow
from logitloss._reductions import REDUCTIONS, TOTAL

_NAME = "logistic_loss"
_FLOATING = frozenset(FLOATING)
_READABLE = frozenset((*FLOATING, *INTEGRAL))


def describe(
    orders: tuple[int, ...],
    labels: Any,
    logits: Any,
    pos_weight: Any,
    weight: Any,
    reduction: Any,
    out: object,
    name: object,
) -> Call:
    """What `_call.check` returns, and for the commonest arguments in a tenth of the time."""
    labels, logits = _as_tensor("labels", labels, logits), _as_tensor("logits", logits, labels)
    pos_weight, weight = _as_tensor("pos_weight", pos_weight), _as_tensor("weight", weight)
    if (
        is_eager(labels)
        and is_eager(logits)
        and logits.dtype in _FLOATING
        and (labels.dtype is logits.dtype or labels.dtype in INTEGRAL)
        and labels.shape == logits.shape
        and _is_coefficient(pos_weight, logits)
        and (weight is None or _is_coefficient(weight, logits))
        and (name is None or isinstance(name, str))
        and isinstance(reduction, str)
        and reduction in REDUCTIONS
        and out is None
    ):
        reduction = effective(reduction, weight)
        pos_weight, weight = (float(c) if type(c) is int else c for c in (pos_weight, weight))
        return Call(
            orders, xp, labels, logits, pos_weight, weight, logits.dtype, reduction, None, name
        )
    return check(orders, labels, logits, pos_weight, weight, reduction, out, name)


def _is_coefficient(value: Any, logits: Tensor) -> bool:
    if type(value) is float or (type(value) is int and abs(value) <= 2**53):
        return True
    # `check` handles other shapes, and words the errors.
    return is_eager(value) and value.dtype in _READABLE and value.shape in ((), logits.shape[-1:])


def _as_tensor(argument: str, value: Any, beside: Any = None) -> Any:
    """A tensor for anything of TensorFlow's; everything else unchanged.

    A list takes the dtype of the tensor `beside` it, as in TensorFlow's own functions.
    """
    if isinstance(value, tf.Tensor) or value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, (tf.RaggedTensor, tf.SparseTensor, tf.IndexedSlices)):
        refuse_layout(argument, type(value).__name__)
    if is_of_tensorflow(value):
        return tf.convert_to_tensor(value)
    if isinstance(value, (list, tuple)) and isinstance(beside, (tf.Tensor, tf.Variable)):
        array = np.asarray(value)
        if array.dtype == np.float64 and beside.dtype in _FLOATING:
            return tf.constant(array, beside.dtype)
    return value


def compute(call: Call) -> Results:
    if tf.executing_eagerly():
        return _compute_eagerly(call)
    with tf.name_scope(call.name or _NAME):
        return _compute(with_checked_shapes(call))


def _compute_eagerly(call: Call) -> Results:
    operands = [call.labels, call.logits, call.pos_weight, call.weight]
    tensors = [operand for operand in operands if isinstance(operand, tf.Tensor)]
    if not is_readable(tensors):
        # On the device of the logits. TensorFlow itself would not put all operations there.
        with tf.device(call.logits.device):
            return _compute(call)
    followed = followed_among(operands)
    if not followed:
        if call.logits.dtype in INTEGRAL:
            operands[1] = tf.cast(call.logits, call.dtype)
        labels, logits, pos_weight, weight = operands
        arguments = labels, logits, pos_weight, weight, call.orders, call.reduction
        return by_kernel(*arguments, call.dtype)
    if followed == [_LOGITS] and call.orders == LOSS and call.reduction != "none":
        return (_step(call),)
    return _compute(call)


_LOGITS = 1


def _step(call: Call) -> Tensor:
    call = _widened(call)
    value = mean_and_gradient(
        call.labels,
        call.logits,
        call.pos_weight,
        call.weight,
        call.reduction,
        lambda: _reduced(call._replace(orders=(1,)))[0],
    )
    return tf.cast(value, call.dtype)


def _compute(call: Call) -> Results:
    results = _reduced(_widened(call))
    return tuple([tf.cast(result, call.dtype) for result in results])


def _widened(call: Call) -> Call:
    """The call with everything rounded to its dtype, and half precision widened to float32."""
    dtype = call.dtype
    wide = tf.float64 if dtype == tf.float64 else tf.float32

    def cast(value: Any) -> Any:
        if value is None or (isinstance(value, float) and dtype == wide):
            return value
        return tf.cast(xp.asarray(value, dtype), wide)

    return call._replace(
        # The kernel reads integers as they are.
        labels=call.labels if call.labels.dtype in INTEGRAL else cast(call.labels),
        logits=cast(call.logits),
        pos_weight=cast(call.pos_weight),
        weight=cast(call.weight),
    )


def _reduced(call: Call) -> Results:
    """Derivatives of one of the two full dtypes, reduced."""
    is_summed = call.reduction != "none" and 0 in call.orders
    results = derivatives(
        call.labels,
        call.logits,
        call.pos_weight,
        call.weight,
        call.orders,
        TOTAL if is_summed else "none",
    )
    weight = None if call.weight is None else xp.asarray(call.weight, call.logits.dtype)
    divisor = _reductions.divisor(call.reduction, call.logits, weight, xp, _count)
    return _reductions.divide_each(results, call.orders, divisor, weight, xp)


def _count(tensor: Tensor, _: Any) -> Tensor | float:
    size = tensor.shape.num_elements()
    return tf.cast(tf.size(tensor), tf.float64) if size is None else float(size)
