"""Columns of tables, read from top to bottom.

A pass over the data asks for the same rows of every column in turn, so that columns of one table
are read together.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from logitloss._command_line.blocks import Array, Block
from logitloss._command_line.files import require_regular_file
from logitloss._command_line.table_files import TableFile, open_table_file


class Table:
    """Files one after another, of which the columns that were asked for are read."""

    def __init__(self, name: str, paths: list[Path]) -> None:
        for path in paths:
            require_regular_file(path)
            # Python's own error for a missing file is clearer than pyarrow's.
            open(path, "rb").close()
        try:
            import pyarrow
        except ImportError as error:
            raise ValueError(
                f"{name}: reading it needs pyarrow: pip install 'logitloss[tables]'"
            ) from error
        self.name = name
        self.paths = paths
        self._arrow = pyarrow
        self._files = [self._open(path) for path in paths]
        # The columns that are read, and whether as numbers.
        self._used: dict[str, bool] = {}
        self._rewind()
        self._held: list[Any] = []
        self._held_rows = (0, 0)

    def _open(self, path: Path) -> TableFile:
        with self._errors_name(path):
            return open_table_file(path)

    @contextmanager
    def _errors_name(self, path: Path) -> Iterator[None]:
        try:
            yield
        except (self._arrow.ArrowException, OSError, ValueError) as error:
            name = path if len(self.paths) > 1 else self.name
            raise ValueError(f"{name}: {error}") from error

    @cached_property
    def length(self) -> int:
        length = 0
        for path, file in zip(self.paths, self._files, strict=True):
            with self._errors_name(path):
                length += file.count(next(iter(self._used)))
        return length

    def columns(self, text: str) -> "Columns":
        """One column by its name, or several by their names with commas between them."""
        wanted = [text] if text in self._files[0].names else text.split(",")
        is_one = len(wanted) == 1
        if not is_one and wanted[-1] == "":
            # As in Python, a comma at the end makes a row of one.
            del wanted[-1]
        dtype = np.result_type(*(self._dtype(name) for name in wanted))
        self._used |= dict.fromkeys(wanted, True)
        shape = (self.length,) if is_one else (self.length, len(wanted))
        return Columns(self, wanted, dtype, shape)

    def text_column(self, name: str) -> "TextColumn":
        """A column of names rather than numbers."""
        for path, file in zip(self.paths, self._files, strict=True):
            with self._errors_name(path):
                _require_one(name, file.names)
        self._used.setdefault(name, False)
        return TextColumn(self, name)

    def _dtype(self, name: str) -> np.dtype[Any]:
        dtypes = []
        for path, file in zip(self.paths, self._files, strict=True):
            with self._errors_name(path):
                _require_one(name, file.names)
                dtypes.append(_dtype(name, file.kind(name)))
        return np.result_type(*dtypes)

    def hint_of_nulls(self) -> str:
        if any(file.empty_lines_are_nulls for file in self._files):
            return "; in a file of one column an empty line is a null"
        return ""

    def _rewind(self) -> None:
        self._batches: Iterator[Any] | None = None
        self._rest: Any = None
        self._position = 0

    def _all_batches(self) -> Iterator[Any]:
        for path, file in zip(self.paths, self._files, strict=True):
            with self._errors_name(path):
                yield from file.batches(
                    {
                        name: file.kind(name) if as_number else self._arrow.string()
                        for name, as_number in self._used.items()
                    }
                )

    def rows(self, start: int, stop: int) -> list[Any]:
        """Batches with these rows. They follow those read before, are the same or the first."""
        if (start, stop) == self._held_rows and self._held:
            return self._held
        # Otherwise the old ones stay in memory beside the new ones.
        self._held = []
        if start != self._position or self._batches is None:
            assert start == 0
            self._rewind()
            self._batches = self._all_batches()
        while self._position < stop:
            batch = self._rest if self._rest is not None else next(self._batches, None)
            if batch is None:
                raise ValueError(f"{self.name}: it became shorter while it was read")
            piece = batch.slice(0, stop - self._position)
            self._rest = batch.slice(len(piece)) if len(piece) < len(batch) else None
            self._position += len(piece)
            self._held.append(piece)
        self._held_rows = (start, stop)
        return self._held

    def values(self, name: str, start: int, stop: int) -> Array:
        """A column in these rows, with 0 in place of a null."""
        pieces = [
            _without_nulls(batch.column(name)).to_numpy(zero_copy_only=False)
            for batch in self.rows(start, stop)
        ]
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    def nulls(self, name: str, start: int, stop: int) -> Array:
        """Where a column is null in these rows."""
        columns = [batch.column(name) for batch in self.rows(start, stop)]
        if not any(column.null_count for column in columns):
            return np.broadcast_to(False, stop - start)
        return np.concatenate([c.is_null().to_numpy(zero_copy_only=False) for c in columns])


class Columns:
    """Columns of a table as an array of rows, indexed from the first row to the last."""

    def __init__(
        self, table: Table, names: list[str], dtype: np.dtype[Any], shape: tuple[int, ...]
    ) -> None:
        self.names = names
        self.dtype = dtype
        self.shape = shape
        self._table = table

    @property
    def stand_in(self) -> Array:
        """An array of this shape and dtype that takes no memory."""
        return np.broadcast_to(np.zeros((), self.dtype), self.shape)

    def broadcast_to(self, shape: tuple[int, ...]) -> "Columns":
        """The same with rows of another width."""
        return Columns(self._table, self.names, self.dtype, shape)

    def read(self) -> Array:
        """The whole, which must hold no null."""
        if not self.shape[0]:
            return np.empty(self.shape, self.dtype)
        everything = tuple(slice(0, size) for size in self.shape)
        self.refuse_nulls(everything)
        return self[everything]

    def __getitem__(self, block: Block) -> Array:
        """A block, with 0 in place of a null."""
        rows = block[0]
        columns = [self._table.values(name, rows.start, rows.stop) for name in self.names]
        return self._spread(columns, block, self.dtype)

    def refuse_nulls(self, block: Block, kept: Array | bool = True) -> None:
        """Refuse nulls in a block that was read, except in places that are not kept."""
        rows = block[0]
        nulls = [self._table.nulls(name, rows.start, rows.stop) for name in self.names]
        if not any(column.any() for column in nulls):
            return
        refused = np.argwhere(self._spread(nulls, block, np.bool_) & kept)
        if refused.size:
            row, *others = refused[0]
            column = block[-1].start + others[0] if others else 0
            raise ValueError(
                f"{self._table.name}: column {self.names[min(column, len(self.names) - 1)]!r} "
                f"holds a null, the first in row {rows.start + row} (from 0); fill nulls, drop "
                f"them, or mask them with a weight of 0{self._table.hint_of_nulls()}"
            )

    def _spread(self, columns: list[Array], block: Block, dtype: Any) -> Array:
        """Whole columns in the shape of the block."""
        if len(self.shape) == 1:
            return columns[0].astype(dtype, copy=False)
        values = np.stack(columns, axis=1, dtype=dtype)
        rows, *others = block
        values = np.broadcast_to(values, (rows.stop - rows.start, *self.shape[1:]))
        return values[(slice(None), *others)]


class TextColumn:
    """A column of names, one for each row."""

    def __init__(self, table: Table, name: str) -> None:
        self.shape = (table.length,)
        self._table = table
        self._name = name

    def encoded(self, rows: slice) -> Iterator[tuple[list[Any], Array]]:
        """For some rows after others: different values, and for each row which it is of these."""
        for batch in self._table.rows(rows.start, rows.stop):
            column = batch.column(self._name)
            if hasattr(column, "dictionary_decode"):
                # Nulls have no place among its values.
                column = column.dictionary_decode()
            encoded = column.dictionary_encode("encode")
            yield encoded.dictionary.to_pylist(), encoded.indices.to_numpy()


def _require_one(name: str, names: list[str]) -> None:
    if name not in names:
        raise ValueError(f"no column {name!r}; it has {_listed(names)}")
    if names.count(name) > 1:
        raise ValueError(f"{names.count(name)} columns are named {name!r}")


def _dtype(name: str, kind: Any) -> np.dtype[Any]:
    from pyarrow import types

    if not (types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind)):
        raise ValueError(f"column {name!r} must be numbers or bool; got {kind}")
    dtype: np.dtype[Any] = np.dtype(kind.to_pandas_dtype())
    return dtype


def _without_nulls(column: Any) -> Any:
    return column.fill_null(False if str(column.type) == "bool" else 0)


def _listed(names: list[str]) -> str:
    most = 20
    text = ", ".join(repr(name) for name in names[:most])
    return text + f" and {len(names) - most} more" if len(names) > most else text
