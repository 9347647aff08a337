"""Which group each row belongs to, by a column or an array of names."""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from logitloss._command_line.blocks import Array
from logitloss._command_line.npy import NpyInput
from logitloss._command_line.tables import TextColumn

# They are kept in memory, and printed.
MOST_GROUPS = 10_000


class Groups:
    """Groups numbered as they appear. They are named by the text of their values."""

    def __init__(self, values: NpyInput | TextColumn, source: object) -> None:
        self.names: list[str] = []
        self._numbers: dict[str, int] = {}
        self._values = values
        self._source = source

    def read(self, rows: slice) -> Array:
        """The number of the group of each of these rows."""
        return np.concatenate([self._of(*encoded) for encoded in self._encoded(rows)])

    def _encoded(self, rows: slice) -> Iterator[tuple[Iterable[Any], Array]]:
        """Different values, and for each row the place of its own among these."""
        if isinstance(self._values, TextColumn):
            yield from self._values.encoded(rows)
        else:
            yield np.unique(self._values[(rows,)], return_inverse=True)

    def _of(self, values: Iterable[Any], places: Array) -> Array:
        numbers = []
        for value in values:
            numbers.append(self._numbers.setdefault(_name(value), len(self._numbers)))
            # Asked for each, because a column of numbers may hold a million values in a block.
            if len(self._numbers) > MOST_GROUPS:
                raise ValueError(
                    f"{self._source}: --by takes at most {MOST_GROUPS:,} different values"
                )
        self.names = list(self._numbers)
        return np.array(numbers, np.intp)[places]


def _name(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool | np.bool_):
        return str(bool(value)).lower()
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if isinstance(value, float | np.floating) and value == np.floor(value):
        # Numbers in text are read as float64 if they are used as numbers, too.
        return f"{value + 0.0:.0f}"
    return str(value)
