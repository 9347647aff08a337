"""Keras 3, on TensorFlow, JAX or PyTorch."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from logitloss import _losses

__all__ = ["WeightedBinaryCrossentropy"]


@keras.saving.register_keras_serializable(package="logitloss")
class WeightedBinaryCrossentropy(keras.losses.Loss):  # type: ignore[misc]
    """Binary cross-entropy from logits, with the cost of positives scaled by `pos_weight`.

    Parameters
    ----------
    pos_weight : float or array-like
        Weight of the positive term: one number, or one for each class (the last axis).
    reduction : {"sum_over_batch_size", "sum", "mean", "mean_with_sample_weight", "none"} or None
        As in Keras's own losses.
    name : str
        The name of the loss in logs and configurations.
    dtype : str or keras.DTypePolicy, optional
        The dtype to which labels and logits are cast. The default is ``keras.config.floatx()``.

    See Also
    --------
    logitloss.weighted_cross_entropy_with_logits : The formula.

    Notes
    -----
    The loss replaces ``keras.losses.BinaryCrossentropy(from_logits=True)``. The model ends in a
    layer without an activation, and the loss of a sample is the mean over its last axis. Sample
    weights, class weights and masks are those of Keras, which multiplies the losses by them.

    Examples
    --------
    >>> from logitloss.compat.keras import WeightedBinaryCrossentropy
    >>> loss = WeightedBinaryCrossentropy(pos_weight=3.0)
    >>> round(float(loss([[1.0], [0.0]], [[0.0], [-2.0]])), 4)
    1.1032
    """

    def __init__(
        self,
        pos_weight: Any = 1.0,
        reduction: str | None = "sum_over_batch_size",
        name: str = "weighted_binary_crossentropy",
        dtype: Any = None,
    ) -> None:
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        # A configuration holds plain numbers.
        self.pos_weight = np.asarray(pos_weight, np.float64).tolist()

    def call(self, y_true: Any, y_pred: Any) -> Any:
        y_true, y_pred = (keras.ops.convert_to_tensor(y, self.dtype) for y in (y_true, y_pred))
        if len(y_true.shape) != len(y_pred.shape):
            y_true = _with_axes_of(y_true, y_pred)
        losses = _losses.weighted_cross_entropy_with_logits(y_true, y_pred, self.pos_weight)
        # One number for each sample. Keras multiplies it by the weight of the sample.
        return keras.ops.mean(losses, axis=-1) if len(y_pred.shape) > 1 else losses

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "dtype": self.dtype, "pos_weight": self.pos_weight}


def _with_axes_of(y_true: Any, y_pred: Any) -> Any:
    """`y_true` with or without the last axis of size 1 that `y_pred` has or lacks, as in Keras."""
    if len(y_true.shape) == len(y_pred.shape) - 1 and y_pred.shape[-1] == 1:
        return keras.ops.expand_dims(y_true, -1)
    if len(y_true.shape) == len(y_pred.shape) + 1 and y_true.shape[-1] == 1:
        return keras.ops.squeeze(y_true, -1)
    return y_true
