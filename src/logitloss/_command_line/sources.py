"""What a SOURCE of the command line names: a `.npy` file, or columns of a table.

A table is a file, the files of a folder or those that a pattern matches, in their natural order, or
standard input.
"""

import glob
import re
from argparse import ArgumentTypeError
from pathlib import Path
from typing import NamedTuple

from logitloss._command_line.files import exists
from logitloss._command_line.formats import READABLE, TABLE_SUFFIX, is_address, table_format

STANDARD_INPUT = Path("-")

# The first such suffix before a colon ends the path: a drive letter, a colon in the name of a
# folder and one in the name of a column all stay where they belong.
_TABLE_AND_COLUMNS = re.compile(rf"(.+?{TABLE_SUFFIX}):(.*)", re.IGNORECASE | re.DOTALL)


class Source(NamedTuple):
    """A `.npy` file, if there are no columns."""

    path: Path
    columns: str | None = None

    def __str__(self) -> str:
        return str(self.path) if self.columns is None else f"{self.path}:{self.columns}"


def read_source(text: str) -> Source:
    """Read an argument, and refuse what can be told from its text and the names of files."""
    # The option parser puts a space before a minus sign.
    text = text.removeprefix(" ") if text.startswith(" -:") else text
    path = Path(text)
    is_there = exists(path)
    if path == STANDARD_INPUT or (is_there and (path.is_dir() or table_format(path))):
        raise ArgumentTypeError(f"{text}: a column has to be named, as in {text}:COLUMN")
    if is_there:
        return Source(path)
    if is_address(text):
        raise ArgumentTypeError(
            f"{text}: only files on this machine are read; copy it, or pipe CSV into -:COLUMN"
        )
    table, colon, columns = _split(text)
    if not colon:
        return Source(path)
    _refuse_suffix(table)
    if "" in columns.removesuffix(",").split(","):
        raise ArgumentTypeError(f"{text}: a column name is empty")
    return Source(Path(table), columns)


def _split(text: str) -> tuple[str, str, str]:
    """A table, a colon and columns; only the first part is not empty if there is no table."""
    if text.startswith("-:"):
        return "-", ":", text[2:]
    if match := _TABLE_AND_COLUMNS.fullmatch(text):
        return match[1], ":", match[2]
    for colon in re.finditer(":", text):
        table = text[: colon.start()]
        if table and _matches(table):
            return table, ":", text[colon.end() :]
    return text, "", ""


def _matches(pattern: str) -> list[Path]:
    """The path of this name, or else those that the pattern matches."""
    if exists(Path(pattern)):
        return [Path(pattern)]
    return [Path(name) for name in glob.glob(pattern, recursive=True)]


def _refuse_suffix(table: str) -> None:
    path = Path(table)
    if path.is_file() and not table_format(path):
        raise ArgumentTypeError(f"{table}: its suffix is unknown; a source is {READABLE}")


def files_of(table: Path) -> list[Path]:
    """The files that a table is made of, in their order. A missing file is left for its reader."""
    found = _matches(str(table))
    if not found and glob.has_magic(str(table)):
        raise ValueError(f"{table}: no file matches")
    if found == [table] and not table.is_dir():
        return found
    files = sorted((file for path in found for file in _data_files(path)), key=_natural)
    if found and not files:
        raise ValueError(f"{table}: it holds no table")
    for file in files:
        if table_format(file) is None:
            raise ValueError(f"{file}: its suffix is not that of a table")
        if table_format(file) != table_format(files[0]):
            raise ValueError(f"{table}: {files[0].name} and {file.name} have different suffixes")
    return files or [table]


def _data_files(path: Path) -> list[Path]:
    """What is in a folder, or the file, without `_SUCCESS`, `.part-0.crc` and their like."""

    def is_hidden(name: str) -> bool:
        return name.startswith(("_", "."))

    if not path.is_dir():
        return [] if is_hidden(path.name) or _is_empty_text(path) else [path]
    return [
        file
        for file in path.rglob("*")
        if file.is_file()
        and not any(map(is_hidden, file.relative_to(path).parts))
        and not _is_empty_text(file)
    ]


def _is_empty_text(path: Path) -> bool:
    """Whether this is what Spark writes for a part without rows: not even a header."""
    form = table_format(path)
    return form is not None and form.delimiter is not None and path.stat().st_size == 0


def _natural(path: Path) -> list[list[str | int]]:
    return [natural(part) for part in path.parts]


def natural(text: str) -> list[str | int]:
    """A key that puts part-10 after part-9."""
    pieces = re.split(r"([0-9]+)", text)
    return [int(piece) if index % 2 else piece for index, piece in enumerate(pieces)]
