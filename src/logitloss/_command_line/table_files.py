"""One file of a table, read from top to bottom. pyarrow is imported when it is opened.

pyarrow.dataset would read files of either format, but a row group of a Parquet file, which may be
the whole file, is in memory at a time there. Here it is a few thousand rows.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol, TypeVar

from logitloss._command_line.formats import table_format

T = TypeVar("T")

# What is missing in a CSV file. Unlike pyarrow's own list, it takes NaN for the number it is.
_NULLS = ["", "NA", "N/A", "n/a", "#N/A", "NULL", "null", "None"]

# How much of a column of a row group is in memory at a time; otherwise it is the whole.
_BUFFER_BYTES = 2**20

# How much of a CSV file is parsed at a time. A row must fit, so blocks grow up to this size.
_BLOCK_BYTES = 2**20
_MOST_BLOCK_BYTES = 2**26


# Appended to a text file when its rows are counted. If a quote was left open, it is not found.
_LAST_ROW = "the end that logitloss looks for"


class TableFile(Protocol):
    names: list[str]
    empty_lines_are_nulls: bool

    def kind(self, name: str) -> Any:
        """The pyarrow type that a column is read as."""

    def count(self, name: str) -> int:
        """The number of rows, which a column of this name has. No batch is asked for before."""

    def batches(self, kinds: dict[str, Any]) -> Iterator[Any]:
        """Record batches of these columns, as these types where the file does not say."""


def open_table_file(path: Path) -> TableFile:
    form = table_format(path)
    assert form is not None
    return TextFile(path, form.delimiter, form.codec) if form.delimiter else ParquetFile(path)


class ParquetFile:
    empty_lines_are_nulls = False

    def __init__(self, path: Path) -> None:
        self._path = path
        file = self._open()
        self._schema = file.schema_arrow
        self._count = int(file.metadata.num_rows)
        self.names: list[str] = self._schema.names

    def _open(self) -> Any:
        import pyarrow
        import pyarrow.parquet

        # Opened here, because ParquetFile takes a path with a colon for the address of a server.
        return pyarrow.parquet.ParquetFile(
            pyarrow.OSFile(str(self._path)), buffer_size=_BUFFER_BYTES, pre_buffer=False
        )

    def kind(self, name: str) -> Any:
        return self._schema.field(name).type

    def count(self, name: str) -> int:
        return self._count

    def batches(self, kinds: dict[str, Any]) -> Iterator[Any]:
        batches: Iterator[Any] = self._open().iter_batches(columns=list(kinds))
        return batches


class TextFile:
    """CSV, or its like with another delimiter."""

    def __init__(self, path: Path, delimiter: str, codec: str | None) -> None:
        self._path = path
        self._delimiter = delimiter
        self._codec = codec
        self._block_bytes = _BLOCK_BYTES
        self.empty_lines_are_nulls = False
        self._length = 0
        # The types are those of the first block.
        self._schema = self._in_blocks_that_hold_a_row(lambda: self._open(self._completed()).schema)
        if len(self._schema) == 1:
            # If an empty line were skipped, every row after it would move up, and face another row
            # of the file beside this one.
            self.empty_lines_are_nulls = True
            self._schema = self._open(self._completed()).schema
        self.names: list[str] = self._schema.names
        if self.names == [""]:
            raise ValueError("the first line must name the columns; got an empty line")

    def kind(self, name: str) -> Any:
        """float64 instead of another number: a fraction may follow any number of integers."""
        import pyarrow

        kind = self._schema.field(name).type
        types = pyarrow.types
        is_number = types.is_integer(kind) or types.is_floating(kind) or types.is_null(kind)
        return pyarrow.float64() if is_number else kind

    def count(self, name: str) -> int:
        self._length = self._in_blocks_that_hold_a_row(lambda: self._count(name))
        return self._length

    def _count(self, name: str) -> int:
        import pyarrow

        length, last = 0, None
        row = self._delimiter.join([_LAST_ROW] * len(self.names)) + "\n"
        # Any column can be read as this.
        for batch in self._open(self._completed(row), {name: pyarrow.binary()}):
            if len(batch):
                length, last = length + len(batch), batch.column(0)[-1].as_py()
        if last != _LAST_ROW.encode():
            # pyarrow takes the rest of the file for one long field, and says nothing.
            raise ValueError("a quote is left open")
        return length - 1

    def batches(self, kinds: dict[str, Any]) -> Iterator[Any]:
        # pyarrow cannot read a header that does not end.
        return iter(self._open(self._stream(), kinds)) if self._length else iter(())

    def _stream(self) -> Any:
        import pyarrow

        # Left to itself, pyarrow knows compressed files by suffixes in small letters only.
        return pyarrow.input_stream(str(self._path), compression=self._codec)

    def _completed(self, row: str = "") -> Any:
        import pyarrow

        return pyarrow.PythonFile(_Completed(self._stream(), row.encode()), "r")

    def _open(self, stream: Any, kinds: dict[str, Any] | None = None) -> Any:
        from pyarrow import csv

        conversions = {} if kinds is None else {"include_columns": [*kinds], "column_types": kinds}
        return csv.open_csv(
            stream,
            read_options=csv.ReadOptions(block_size=self._block_bytes),
            parse_options=csv.ParseOptions(
                delimiter=self._delimiter,
                # Texts in other columns may hold them.
                newlines_in_values=True,
                ignore_empty_lines=not self.empty_lines_are_nulls,
            ),
            convert_options=csv.ConvertOptions(null_values=_NULLS, **conversions),
        )

    def _in_blocks_that_hold_a_row(self, read: Callable[[], T]) -> T:
        """Read, with larger blocks if need be, which are kept."""
        while True:
            try:
                return read()
            except ValueError as error:
                # pyarrow has no error of its own for a row that ends in another block, or for a
                # header that does.
                if not any(text in str(error) for text in ("straddling", "Empty CSV")):
                    raise
                if self._block_bytes >= _MOST_BLOCK_BYTES:
                    raise ValueError(
                        "its first line names no columns"
                        if "Empty" in str(error)
                        else f"a row takes more than {_MOST_BLOCK_BYTES // 2**20} MiB; "
                        "is a quote left open?"
                    ) from error
                self._block_bytes *= 8


class _Completed:
    """A text whose last line ends, and a row after it, as a file of Python's for pyarrow."""

    closed = False

    def __init__(self, stream: Any, row: bytes = b"") -> None:
        self._stream = stream
        self._row = row
        self._last = b""
        self._rest: bytes | None = None

    def read(self, size: int) -> bytes:
        # Never less than was asked for, because pyarrow needs a whole header at once.
        pieces: list[bytes] = []
        while size > 0 and (piece := self._next(size)):
            pieces.append(piece)
            size -= len(piece)
        return b"".join(pieces)

    def _next(self, size: int) -> bytes:
        if self._rest is None:
            piece: bytes = self._stream.read(size)
            if piece:
                self._last = piece[-1:]
                return piece
            # A text of nothing stays one.
            self._rest = self._row if self._last in (b"", b"\n", b"\r") else b"\n" + self._row
        piece, self._rest = self._rest[:size], self._rest[size:]
        return piece

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return False

    def close(self) -> None:
        self.closed = True
