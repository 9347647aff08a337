"""What is added up in a pass over the data, and what is reported of that."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from logitloss._command_line.blocks import Array
from logitloss._command_line.groups import MOST_GROUPS, Groups
from logitloss._command_line.inputs import Inputs, Part
from logitloss._command_line.sources import natural


class _Tally:
    """Sums in float64, one of each kind for every row of a report."""

    def __init__(self, names: list[str], dtype: np.dtype[Any]) -> None:
        self._names = names
        self._dtype = dtype
        self._make_room(len(names))

    def _make_room(self, rows: int) -> None:
        sums = np.zeros((5, rows))
        self._loss, self._weights, self._positives, self._elements, self._kept = sums

    def _add(
        self,
        rows: slice,
        axes: tuple[int, ...],
        part: Part,
        loss: Array,
        spread: Callable[[Array], Array] = np.asarray,
    ) -> None:
        """Add up a block over these axes, and add to these rows what `spread` makes of that."""

        def total(values: Array, kept: Array | bool = True) -> Array:
            return spread(np.asarray(np.sum(values, axes, np.float64, where=kept)))

        sizes = [size for axis, size in enumerate(loss.shape) if axis not in axes]
        elements = spread(np.full(sizes, math.prod(loss.shape[axis] for axis in axes)))
        self._loss[rows] += total(loss)
        self._elements[rows] += elements
        if part.weight is None:
            self._weights[rows] += elements
            self._positives[rows] += total(part.labels)
            self._kept[rows] += elements
        else:
            kept = part.weight != 0
            self._weights[rows] += total(part.weight.astype(self._dtype))
            self._positives[rows] += total(part.labels, kept)
            self._kept[rows] += spread(np.asarray(np.count_nonzero(kept, axes)))

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


class PerGroup(_Tally):
    """A row for each group of rows."""

    def __init__(self, groups: Groups, dtype: np.dtype[Any]) -> None:
        super().__init__([], dtype)
        self._groups = groups
        self._make_room(MOST_GROUPS)

    def add(self, part: Part, loss: Array) -> None:
        group = part.group
        assert group is not None
        count = len(self._groups.names)

        def spread(sums: Array) -> Array:
            return np.bincount(group, sums, count)

        self._add(slice(0, count), tuple(range(1, loss.ndim)), part, loss, spread)

    def report(self, reduction: str) -> list[dict[str, Any]]:
        self._names = self._groups.names
        rows = dict(zip(self._names, self._rows(reduction), strict=True))
        return [{"group": name} | rows[name] for name in sorted(rows, key=_by_size_or_name)]


def _by_size_or_name(name: str) -> tuple[bool, float, list[str | int]]:
    try:
        return False, float(name), []
    except ValueError:
        return True, 0.0, natural(name)
