"""What is added up in a pass over the data, and what is reported of that."""

import math
from typing import Any

import numpy as np

from logitloss._command_line.blocks import Array
from logitloss._command_line.inputs import Inputs, Part


class _Tally:
    """Sums in float64, one of each kind for every row of a report."""

    def __init__(self, names: list[str], dtype: np.dtype[Any]) -> None:
        self._names = names
        self._dtype = dtype
        sums = np.zeros((5, len(names)))
        self._loss, self._weights, self._positives, self._elements, self._kept = sums

    def _add(self, rows: slice, axes: tuple[int, ...], part: Part, loss: Array) -> None:
        """Add up what is in a block over these axes, into these rows."""
        elements = math.prod(loss.shape[axis] for axis in axes)
        self._loss[rows] += np.sum(loss, axes, np.float64)
        self._elements[rows] += elements
        if part.weight is None:
            self._weights[rows] += elements
            self._positives[rows] += np.sum(part.labels, axes, np.float64)
            self._kept[rows] += elements
        else:
            kept = part.weight != 0
            self._weights[rows] += np.sum(part.weight.astype(self._dtype), axes, np.float64)
            self._positives[rows] += np.sum(part.labels, axes, np.float64, where=kept)
            self._kept[rows] += np.count_nonzero(kept, axes)

    def _value(self, reduction: str) -> Array:
        divisor = {
            "sum": np.ones_like(self._loss),
            "mean": self._elements,
            "weighted_mean": self._weights,
        }[reduction]
        # In the library, too, a weighted mean is NaN where the weights cancel.
        return np.where(divisor == 0, np.nan, self._loss / divisor)

    def _rows(self, reduction: str) -> list[dict[str, Any]]:
        values = self._value(reduction)
        shares = self._positives / self._kept
        return [
            {
                "value": float(values[index]),
                "elements": int(self._elements[index]),
                "share_of_positives": float(shares[index]),
            }
            for index in range(len(self._names))
        ]


class Overall(_Tally):
    """All elements together."""

    def __init__(self, inputs: Inputs) -> None:
        super().__init__([""], inputs.dtype)

    def add(self, part: Part, loss: Array) -> None:
        self._add(slice(0, 1), tuple(range(loss.ndim)), part, loss)

    def report(self, reduction: str) -> dict[str, Any]:
        (row,) = self._rows("sum" if reduction == "none" else reduction)
        return row | ({"value": None} if reduction == "none" else {})


class PerClass(_Tally):
    """A row for each class: for each index of the last axis."""

    def __init__(self, inputs: Inputs) -> None:
        if len(inputs.shape) < 2:
            raise ValueError(
                f"--per-class needs rows of classes; got logits of shape {inputs.shape}"
            )
        super().__init__(inputs.class_names, inputs.dtype)

    def add(self, part: Part, loss: Array) -> None:
        self._add(part.block[-1], tuple(range(loss.ndim - 1)), part, loss)

    def report(self, reduction: str) -> list[dict[str, Any]]:
        rows = self._rows(reduction)
        return [{"class": name} | row for name, row in zip(self._names, rows, strict=True)]
