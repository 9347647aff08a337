"""What is computed with: labels, logits and their weights, checked, and read block by block."""

import math
import re
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from logitloss._call import LOSS, check
from logitloss._command_line.agreement import Given, check_groups, check_order, check_shapes
from logitloss._command_line.blocks import Array, Block, blocks
from logitloss._command_line.groups import Groups
from logitloss._command_line.npy import NpyInput
from logitloss._command_line.sources import STANDARD_INPUT, Source, files_of
from logitloss._command_line.standard_input import spooled
from logitloss._command_line.tables import Columns, Table, TextColumn

_NAMES = ("labels", "logits", "pos_weight", "weight")

Value: TypeAlias = NpyInput | Columns | Array


class Part(NamedTuple):
    """A block of all arguments, good until the next one is read."""

    block: Block
    labels: Array
    logits: Array
    pos_weight: Array | float
    weight: Array | None
    # The number of the group of each row.
    group: Array | None


class Inputs:
    """Files and numbers, checked as the library checks arrays.

    They are closed with `open_files`. `whole_rows` asks for blocks from the first row to the last,
    of whole rows, or of parts of one row in their order.
    """

    def __init__(
        self,
        labels: Source,
        logits: Source,
        pos_weight: Source | float,
        weight: Source | None,
        by: Source | None,
        open_files: ExitStack,
        whole_rows: bool = False,
    ) -> None:
        self._open_files = open_files
        self._files: list[NpyInput] = []
        self._tables: dict[Path, Table] = {}
        sources = (labels, logits, pos_weight, weight)
        values = [self._open(source) for source in sources]
        self.dtype = _checked([Given(*one) for one in zip(_NAMES, sources, values, strict=True)])
        self.shape: tuple[int, ...] = values[1].shape
        self.size = math.prod(self.shape)
        named = [value.names for value in values[:2] if isinstance(value, Columns)]
        self._column_names: list[str] | None = named[0] if named else None
        # All columns of a table have to be known before any of them is read.
        self.groups = None if by is None else self._open_groups(by)
        self.labels: Value
        self.logits: Value
        self.pos_weight: Value | float
        self.weight: Value | None
        spread = [self._spread(value) for value in values]
        self.labels, self.logits, self.pos_weight, self.weight = spread
        # Rows of a table come in their own order.
        has_rows = any(isinstance(value, Columns) for value in spread) or bool(by and by.columns)
        self.fortran_order: bool = not (whole_rows or has_rows) and values[1].fortran_order
        orders = {file.fortran_order for file in self._files if file.has_an_order}
        orders.update([False] if has_rows else [])
        # Blocks that are wide both ways would have to be kept until their rows are whole.
        self._is_mixed = not whole_rows and len(orders) > 1

    def _open(self, source: Any) -> Any:
        if not isinstance(source, Source):
            return source
        if source.columns is None:
            return self._open_array(source.path)
        return self._table(source.path).columns(source.columns)

    def _open_array(self, path: Path) -> NpyInput:
        self._files.append(self._open_files.enter_context(closing(NpyInput(path))))
        return self._files[-1]

    def _table(self, path: Path) -> Table:
        if path not in self._tables:
            self._tables[path] = self._open_table(path)
        return self._tables[path]

    def _open_table(self, path: Path) -> Table:
        if path == STANDARD_INPUT:
            return Table("standard input", [self._open_files.enter_context(spooled())])
        return Table(str(path), files_of(path))

    def _open_groups(self, by: Source) -> Groups:
        values: NpyInput | TextColumn
        if by.columns is None:
            values = self._open_array(by.path)
        else:
            values = self._table(by.path).text_column(by.columns)
        check_groups(by, values.shape, self.shape)
        return Groups(values, by)

    def _spread(self, value: Any) -> Any:
        """Columns in the shape of the logits; files broadcast by themselves."""
        if not isinstance(value, Columns):
            return value
        if len(value.shape) == len(self.shape) and value.shape[0] == self.shape[0]:
            return value.broadcast_to(self.shape)
        # A coefficient that is used again for every row.
        return np.broadcast_to(value.read(), self.shape)

    @property
    def class_names(self) -> list[str]:
        """What the indices of the last axis are called: as the columns, if there are any."""
        return self._column_names or [str(index) for index in range(self.shape[-1])]

    def paths(self) -> list[Path]:
        tables = [path for table in self._tables.values() for path in table.paths]
        return [*(file.path for file in self._files), *tables]

    def parts(self) -> Iterator[Part]:
        """All elements in blocks, in the order of the logits' file."""
        for block in self._blocks():
            yield self._part(block)

    def parts_of_weight(self) -> Iterator[Array]:
        """The weights alone, in blocks."""
        for block in self._blocks():
            weight = self._part_of_weight(block)
            if weight is not None:
                yield weight

    def _blocks(self) -> Iterator[Block]:
        return blocks(self.shape, self.fortran_order, self._is_mixed)

    def _part_of_weight(self, block: Block) -> Array | None:
        weight: Array | None = self._read(self.weight, block)
        _refuse_nulls(self.weight, block)
        return weight

    def _part(self, block: Block) -> Part:
        labels, logits, pos_weight = (
            self._read(value, block) for value in (self.labels, self.logits, self.pos_weight)
        )
        weight = self._part_of_weight(block)
        kept = True if weight is None else weight != 0
        for value in (self.labels, self.logits, self.pos_weight):
            _refuse_nulls(value, block, kept)
        if self.dtype == np.float16:
            # The library computes in float32. Its results are needed as they are then: they are
            # added up first, and rounded when they are written.
            logits = logits.astype(np.float32)
            pos_weight = np.asarray(pos_weight).astype(self.dtype)
            weight = None if weight is None else weight.astype(self.dtype)
        group = None if self.groups is None else self.groups.read(block[0])
        return Part(block, labels, logits, pos_weight, weight, group)

    def _read(self, value: Any, block: Block) -> Any:
        if value is None or isinstance(value, float):
            return value
        # Without the ellipsis a 0-d array would become a scalar.
        return value[(*block, ...) if isinstance(value, np.ndarray) else block]


def _checked(given: list[Given]) -> np.dtype[Any]:
    """The dtype of the result, if the arguments fit together."""
    files = [one for one in given if isinstance(one.source, Source)]
    check_shapes(files)
    check_order([one for one in files if isinstance(one.value, Columns)])
    # Files are checked as if they were in memory.
    stand_ins = {one.name: getattr(one.value, "stand_in", one.value) for one in given}
    try:
        dtype: np.dtype[Any] = check(LOSS, **stand_ins).dtype
    except (TypeError, ValueError) as error:
        # The library knows arguments, and here they are files.
        named = re.match(r"`(\w+)`", str(error))
        sources = [f"{one.source}: " for one in given if named and one.name == named[1]]
        raise type(error)("".join(sources) + str(error)) from error
    return dtype


def _refuse_nulls(value: Any, block: Block, kept: Array | bool = True) -> None:
    if isinstance(value, Columns):
        value.refuse_nulls(block, kept)
