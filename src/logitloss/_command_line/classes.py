"""What is reported of each class: of each index of the last axis."""

import math
from typing import Any

import numpy as np

from logitloss._command_line.blocks import Array, Block
from logitloss._command_line.inputs import Inputs


class PerClass:
    def __init__(self, inputs: Inputs) -> None:
        shape = inputs.shape
        if len(shape) < 2:
            raise ValueError(f"--per-class needs rows of classes; got logits of shape {shape}")
        self._names = inputs.class_names
        self._elements = math.prod(shape[:-1])
        self._dtype = inputs.dtype
        self._loss = np.zeros(shape[-1])
        self._weights = np.zeros(shape[-1])
        self._positives = np.zeros(shape[-1])
        self._counted = np.zeros(shape[-1])

    def add(self, block: Block, labels: Array, weight: Array | None, loss: Array) -> None:
        weight = np.ones(loss.shape) if weight is None else weight
        kept = weight != 0
        classes, others = block[-1], tuple(range(loss.ndim - 1))
        self._loss[classes] += np.sum(loss, others, np.float64)
        self._weights[classes] += np.sum(weight.astype(self._dtype), others, np.float64)
        self._positives[classes] += np.sum(labels, others, np.float64, where=kept)
        self._counted[classes] += np.count_nonzero(kept, others)

    def report(self, reduction: str) -> list[dict[str, Any]]:
        divisor = self._weights
        if reduction != "weighted_mean":
            divisor = np.full_like(self._loss, self._elements if reduction == "mean" else 1)
        value = np.where(divisor == 0, np.nan, self._loss / divisor)
        share = self._positives / self._counted
        return [
            {
                "class": name,
                "value": float(value[index]),
                "elements": self._elements,
                "share_of_positives": float(share[index]),
            }
            for index, name in enumerate(self._names)
        ]
