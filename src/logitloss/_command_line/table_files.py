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

# How much of a CSV file is parsed at a time. A row must fit, so blocks grow as far as this.
_BLOCK_BYTES = 2**20
_MOST_BLOCK_BYTES = 2**26


class TableFile(Protocol):
    names: list[str]

    def kind(self, name: str) -> Any:
        """The pyarrow type that a column is read as."""

    def count(self) -> int:
        """The number of rows. It is asked for before any batch."""

    def batches(self, kinds: dict[str, Any]) -> Iterator[Any]:
        """Record batches of these columns, as these types where the file does not say."""


def open_table_file(path: Path) -> TableFile:
    form = table_format(path)
    assert form is not None
    return TextFile(path, form.delimiter, form.codec) if form.delimiter else ParquetFile(path)


class ParquetFile:
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

    def count(self) -> int:
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
        self._skips_empty_lines = True
        # The types are those of the first block.
        self._schema = self._in_blocks_that_hold_a_row(lambda: self._open().schema)
        if len(self._schema) == 1:
            # An empty line is a null here. If it were skipped, every row after it would move up,
            # and face another row of the file beside this one.
            self._skips_empty_lines = False
            self._schema = self._open().schema
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

    def count(self) -> int:
        import pyarrow

        def count() -> int:
            # Whatever the first column holds, it can be read as this.
            return sum(map(len, self.batches({self.names[0]: pyarrow.binary()})))

        length = self._in_blocks_that_hold_a_row(count)
        if self._block_bytes > _BLOCK_BYTES and self._has_an_odd_quote():
            # pyarrow takes the rest of the file for one long field.
            raise ValueError("a quote is left open")
        return length

    def batches(self, kinds: dict[str, Any]) -> Iterator[Any]:
        return iter(self._open(include_columns=list(kinds), column_types=kinds))

    def _stream(self) -> Any:
        import pyarrow

        # Left to itself, pyarrow knows compressed files by suffixes in small letters only.
        return pyarrow.input_stream(str(self._path), compression=self._codec)

    def _has_an_odd_quote(self) -> bool:
        stream = self._stream()
        quotes: int = 0
        while part := stream.read(_BLOCK_BYTES):
            quotes += part.count(b'"')
        return bool(quotes % 2)

    def _open(self, **conversions: Any) -> Any:
        from pyarrow import csv

        return csv.open_csv(
            self._stream(),
            read_options=csv.ReadOptions(block_size=self._block_bytes),
            parse_options=csv.ParseOptions(
                delimiter=self._delimiter,
                # Texts in other columns may hold them.
                newlines_in_values=True,
                ignore_empty_lines=self._skips_empty_lines,
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
