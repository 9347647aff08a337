"""What a SOURCE of the command line names: a file, or columns of a table."""

import re
from pathlib import Path
from typing import NamedTuple, TypeAlias

# The first such suffix before a colon ends the path: a drive letter, a colon in the name of a
# folder and one in the name of a column all stay where they belong.
_TABLE = r"\.(?:parquet|csv|csv\.gz)"
_PATH_AND_COLUMNS = re.compile(rf"(.+?{_TABLE}):(.+)", re.IGNORECASE | re.DOTALL)
_SOME_TABLE = re.compile(rf".+{_TABLE}", re.IGNORECASE | re.DOTALL)


class ColumnsOf(NamedTuple):
    """What `FILE:COLUMN` names."""

    path: Path
    columns: str


Source: TypeAlias = Path | ColumnsOf


def read_source(text: str) -> Source:
    path = Path(text)
    match = _PATH_AND_COLUMNS.fullmatch(text)
    if match and not path.exists():
        return ColumnsOf(Path(match[1]), match[2])
    return path


def is_table(path: Path) -> bool:
    return _SOME_TABLE.fullmatch(path.name) is not None
