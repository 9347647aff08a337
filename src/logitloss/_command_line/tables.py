"""Columns of Parquet and CSV files for the command line, read from top to bottom.

A pass over the data asks for the same rows of every column in turn, so that columns of one file
are read together, a few thousand rows at a time. pyarrow is imported when a table is opened.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from logitloss._command_line.blocks import Array, Block
from logitloss._command_line.files import require_regular_file

# What is missing in a CSV file. Unlike pyarrow's own list, it takes NaN for the number it is.
_NULLS = ["", "NA", "N/A", "n/a", "#N/A", "NULL", "null", "None"]

# How much of a column of a row group is in memory at a time; otherwise it is the whole.
_BUFFER_BYTES = 2**20


class Table:
    """A Parquet or CSV file, of which the columns that were asked for are read."""

    def __init__(self, path: Path) -> None:
        require_regular_file(path)
        # Python's own error for a missing file is clearer than pyarrow's.
        open(path, "rb").close()
        try:
            import pyarrow
        except ImportError as error:
            raise ValueError(
                f"{path}: reading it needs pyarrow: pip install 'logitloss[tables]'"
            ) from error
        self.path = path
        self._arrow = pyarrow
        self._used: list[str] = []
        self._rewind()
        self._held: Any = None
        self._held_rows = (0, 0)
        with self._errors_name_the_path():
            self._reader = _Parquet(path) if path.suffix.lower() == ".parquet" else _CSV(path)

    @contextmanager
    def _errors_name_the_path(self) -> Iterator[None]:
        try:
            yield
        except (self._arrow.ArrowException, OSError, ValueError) as error:
            raise ValueError(f"{self.path}: {error}") from error

    @cached_property
    def length(self) -> int:
        with self._errors_name_the_path():
            return self._reader.count(self._used[0])

    def columns(self, text: str) -> "Columns":
        """One column by its name, or several by their names with commas between them."""
        names = self._reader.names
        wanted = [text] if text in names else text.split(",")
        is_one = len(wanted) == 1
        if not is_one and wanted[-1] == "":
            # As in Python, a comma at the end makes a row of one.
            del wanted[-1]
        for name in wanted:
            if name not in names:
                raise ValueError(f"{self.path}: no column {name!r}; it has {_listed(names)}")
            if names.count(name) > 1:
                raise ValueError(f"{self.path}: {names.count(name)} columns are named {name!r}")
        dtypes = [self._dtype(name) for name in wanted]
        self._used = list(dict.fromkeys([*self._used, *wanted]))
        shape = (self.length,) if is_one else (self.length, len(wanted))
        return Columns(self, wanted, np.result_type(*dtypes), shape)

    def _dtype(self, name: str) -> np.dtype[Any]:
        kind = self._reader.kind(name)
        types = self._arrow.types
        if not (types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind)):
            raise ValueError(f"{self.path}: column {name!r} must be numbers or bool; got {kind}")
        dtype: np.dtype[Any] = np.dtype(kind.to_pandas_dtype())
        return dtype

    def _rewind(self) -> None:
        self._batches: Iterator[Any] | None = None
        self._rest: Any = None
        self._position = 0

    def rows(self, start: int, stop: int) -> Any:
        """Rows of the columns in use. They follow those read before, are the same or the first."""
        if (start, stop) == self._held_rows and self._held is not None:
            return self._held
        # Otherwise they stay in memory beside those that take their place.
        self._held = None
        if start != self._position or self._batches is None:
            assert start == 0
            self._rewind()
            self._batches = self._reader.batches(self._used)
        pieces = []
        with self._errors_name_the_path():
            while self._position < stop:
                batch = self._rest if self._rest is not None else next(self._batches, None)
                if batch is None:
                    raise ValueError("it became shorter while it was read")
                piece = batch.slice(0, stop - self._position)
                self._rest = batch.slice(len(piece)) if len(piece) < len(batch) else None
                self._position += len(piece)
                pieces.append(piece)
            schema = pieces[0].schema if pieces else None
            self._held = self._arrow.Table.from_batches(pieces, schema)
        self._held_rows = (start, stop)
        return self._held

    def values(self, name: str, start: int, stop: int) -> Array:
        column = self.rows(start, stop).column(name)
        if column.null_count:
            first = start + column.is_null().index(True).as_py()
            raise ValueError(
                f"{self.path}: column {name!r} holds a null, the first in row {first} (from 0); "
                "nulls have to be filled or dropped before"
            )
        values: Array = column.to_numpy()
        return values


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
        # pyarrow makes no table of no batches.
        if not self.shape[0]:
            return np.empty(self.shape, self.dtype)
        return self[tuple(slice(0, size) for size in self.shape)]

    def __getitem__(self, block: Block) -> Array:
        rows, *others = block
        columns = [self._table.values(name, rows.start, rows.stop) for name in self.names]
        values = columns[0] if len(self.shape) == 1 else np.stack(columns, axis=1, dtype=self.dtype)
        values = np.broadcast_to(values, (rows.stop - rows.start, *self.shape[1:]))
        return values[(slice(None), *others)]


class _Parquet:
    def __init__(self, path: Path) -> None:
        import pyarrow
        import pyarrow.parquet

        # Opened here, because ParquetFile takes a path with a colon for the address of a server.
        self._file = pyarrow.parquet.ParquetFile(
            pyarrow.OSFile(str(path)), buffer_size=_BUFFER_BYTES, pre_buffer=False
        )
        self.names: list[str] = self._file.schema_arrow.names

    def kind(self, name: str) -> Any:
        return self._file.schema_arrow.field(name).type

    def count(self, name: str) -> int:
        return int(self._file.metadata.num_rows)

    def batches(self, names: list[str]) -> Iterator[Any]:
        batches: Iterator[Any] = self._file.iter_batches(columns=names)
        return batches


class _CSV:
    def __init__(self, path: Path) -> None:
        import pyarrow

        self._arrow = pyarrow
        self._path = path
        self._skips_empty_lines = True
        # The types are those of the first megabyte.
        self._schema = self._open().schema
        if len(self._schema) == 1:
            # An empty line is a null here. If it were skipped, every row after it would move up,
            # and face another row of the file beside this one.
            self._skips_empty_lines = False
            self._schema = self._open().schema
        self.names: list[str] = self._schema.names
        if self.names == [""]:
            raise ValueError("the first line must name the columns; got an empty line")

    def kind(self, name: str) -> Any:
        """bool or float64: a fraction may follow any number of integers."""
        kind = self._schema.field(name).type
        types = self._arrow.types
        is_number = types.is_integer(kind) or types.is_floating(kind) or types.is_null(kind)
        return self._arrow.float64() if is_number else kind

    def count(self, name: str) -> int:
        return sum(len(batch) for batch in self.batches([name]))

    def batches(self, names: list[str]) -> Iterator[Any]:
        return iter(
            self._open(
                include_columns=names, column_types={name: self.kind(name) for name in names}
            )
        )

    def _open(self, **conversions: Any) -> Any:
        from pyarrow import csv

        return csv.open_csv(
            str(self._path),
            parse_options=csv.ParseOptions(
                # Texts in other columns may hold them.
                newlines_in_values=True,
                ignore_empty_lines=self._skips_empty_lines,
            ),
            convert_options=csv.ConvertOptions(null_values=_NULLS, **conversions),
        )


def _listed(names: list[str]) -> str:
    most = 20
    text = ", ".join(repr(name) for name in names[:most])
    return text + f" and {len(names) - most} more" if len(names) > most else text
