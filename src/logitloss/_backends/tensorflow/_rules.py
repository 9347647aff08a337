"""How the derivatives by the logits are differentiated: rules whose parts have such rules again.

What a derivative is multiplied with multiplies the weight instead: the kernel does so in passing,
and zeros in it mask NaN as zero weights do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from logitloss import _formula
from logitloss._backends.tensorflow import namespace as xp
from logitloss._backends.tensorflow._private import is_recorded
from logitloss._backends.tensorflow._values import (
    Results,
    by_kernel,
    by_operations,
    is_readable,
)
from logitloss._backends.tensorflow.namespace import FLOATING, Tensor


def derivatives(
    labels: Tensor | float,
    logits: Tensor,
    pos_weight: Tensor | float,
    weight: Tensor | float | None,
    orders: tuple[int, ...],
    reduction: str,
) -> Results:
    """What `_values` computes, with the rules that differentiate it.

    `logits` and whatever else is a floating tensor have one dtype. A graph does not know what it
    will be asked for, and drops what it was not; eagerly, only what is followed gets a rule.
    """
    operands = [labels, logits, pos_weight, weight]
    followed = followed_among(operands)
    if not followed:
        return _computed(*operands, orders, reduction)

    def recorded(*values: Tensor) -> tuple[Results, Callable[..., list[Tensor]]]:
        varied = list(operands)
        for position, value in zip(followed, values, strict=True):
            varied[position] = value

        def rule(*scales: Tensor) -> list[Tensor]:
            return _pulled_back(varied, followed, orders, scales)

        return _computed(*varied, orders, reduction), rule

    results: Results = tf.custom_gradient(recorded)(*(operands[p] for p in followed))
    return results


def followed_among(operands: Sequence[Any]) -> list[int]:
    """The positions of the operands that may be differentiated by."""
    tensors = {
        position: operand
        for position, operand in enumerate(operands)
        if isinstance(operand, tf.Tensor) and operand.dtype in FLOATING
    }
    if not tf.executing_eagerly():
        return list(tensors)
    if not is_recorded(list(tensors.values())):
        return []
    return [position for position, tensor in tensors.items() if is_recorded([tensor])]


def _computed(*inputs: Any) -> Results:
    *operands, _, _ = inputs
    readable = is_readable([operand for operand in operands if isinstance(operand, tf.Tensor)])
    return by_kernel(*inputs) if readable else by_operations(*inputs)


def _pulled_back(
    operands: Sequence[Any],
    followed: Sequence[int],
    orders: tuple[int, ...],
    scales: Sequence[Tensor],
) -> list[Tensor]:
    """The gradient by each of the followed operands, from those by each of the results."""
    if not tf.executing_eagerly():
        # The graph may be another one than that of the operands. Rules recorded in it have to name
        # tensors of its own, for those who differentiate it in turn.
        operands = [tf.identity(o) if isinstance(o, tf.Tensor) else o for o in operands]
    gradients = []
    for position in followed:
        terms = [
            _slope(operands, position, order, scale)
            for order, scale in zip(orders, scales, strict=True)
        ]
        gradients.append(_summed_to(operands[position], sum(terms[1:], start=terms[0])))
    return gradients


def _slope(operands: Sequence[Any], position: int, order: int, scale: Tensor) -> Tensor:
    """The derivative of D(order) by one operand, times `scale`."""
    labels, logits, pos_weight, weight = operands

    def derivative(order: int, z: Any, x: Any, q: Any, w: Any) -> Tensor:
        return derivatives(z, x, q, w, (order,), "none")[0]

    # A number is enough for an array of one value.
    rules = _formula.slopes(derivative, order, labels, logits, pos_weight, weight, float, xp)
    # The factor of a total has the dtype of the sum.
    scale = tf.cast(scale, logits.dtype)
    if position != _WEIGHT and weight is not None:
        scale = scale * xp.asarray(weight, logits.dtype)
    return rules[position](scale)


_WEIGHT = 3


def _summed_to(operand: Tensor, slope: Tensor) -> Tensor:
    """The sum of `slope` over the axes along which a coefficient was repeated."""
    if operand.shape.is_fully_defined() and operand.shape == slope.shape:
        return slope
    shape = tf.shape(operand)
    axes, _ = tf.raw_ops.BroadcastGradientArgs(s0=shape, s1=tf.shape(slope))
    return tf.reshape(tf.reduce_sum(slope, axes), shape)


def mean_and_gradient(
    labels: Tensor | float,
    logits: Tensor,
    pos_weight: Tensor | float,
    weight: Tensor | float | None,
    reduction: str,
    gradient_again: Callable[[], Tensor],
) -> Tensor:
    """A reduced loss of which the logits alone are followed, and its gradient, in one pass.

    `gradient_again` computes the gradient by `derivatives`, for who goes on to differentiate it.
    """

    def recorded(logits: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        value, gradient = by_kernel(labels, logits, pos_weight, weight, (0, 1), reduction)

        def rule(scale: Tensor) -> Tensor:
            if not is_readable([scale]) or is_recorded([scale, logits]):
                return scale * gradient_again()
            # `tape.gradient` passes 1, and multiplying is another pass over memory.
            return gradient if scale.numpy() == 1 else scale * gradient

        return value, rule

    result: Tensor = tf.custom_gradient(recorded)(logits)
    return result
