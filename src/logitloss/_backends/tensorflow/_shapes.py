"""Shapes that a graph does not know until it runs."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from logitloss._backends.tensorflow.namespace import Tensor
from logitloss._call import Call


def with_checked_shapes(call: Call) -> Call:
    """The call with what is known of the shapes of labels and logits together, and checks of the
    rest that are made when the graph runs."""
    labels, logits = call.labels, call.logits
    checks = []
    if not _are_known(labels, logits):
        checks.append(_check_same_shape(labels, logits))
    for argument in ("pos_weight", "weight"):
        value = getattr(call, argument)
        if isinstance(value, tf.Tensor) and not _are_known(value, logits):
            checks.append(_check_broadcasts(argument, value, logits))
    if not checks:
        return call
    shape = logits.shape.merge_with(labels.shape)
    with tf.control_dependencies(checks):
        labels, logits = (tf.ensure_shape(tensor, shape) for tensor in (labels, logits))
    return call._replace(labels=labels, logits=logits)


def _are_known(*tensors: Tensor) -> bool:
    # What is known was checked before there was a graph. A scalar goes with everything.
    return tensors[0].shape.rank == 0 or all(tensor.shape.is_fully_defined() for tensor in tensors)


def _check_same_shape(labels: Tensor, logits: Tensor) -> Any:
    first, second = _of_one_length(labels, logits)
    same = tf.reduce_all(tf.equal(first, second)) & tf.equal(*map(tf.rank, (labels, logits)))
    message = "`labels` and `logits` must have the same shape; got"
    return tf.debugging.Assert(same, [message, tf.shape(labels), "and", tf.shape(logits)])


def _check_broadcasts(argument: str, value: Tensor, logits: Tensor) -> Any:
    ours, target = _of_one_length(value, logits)
    fits = tf.reduce_all(tf.equal(ours, 1) | tf.equal(ours, target)) & (
        tf.rank(value) <= tf.rank(logits)
    )
    message = f"`{argument}` must broadcast to the shape of `logits`,"
    return tf.debugging.Assert(fits, [message, tf.shape(logits), "; got shape", tf.shape(value)])


def _of_one_length(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Both shapes, the shorter one filled up with ones at the front."""
    shapes = tf.shape(first), tf.shape(second)
    length = tf.maximum(*map(tf.size, shapes))
    padded = [tf.pad(shape, [[length - tf.size(shape), 0]], constant_values=1) for shape in shapes]
    return padded[0], padded[1]
