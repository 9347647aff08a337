"""What the suffix of a file says about it, in capitals or not."""

import re
from pathlib import Path
from typing import NamedTuple

_PARQUET = (".parquet", ".pq")
_DELIMITERS = {".csv": ",", ".tsv": "\t"}
# The names that pyarrow has for these.
_CODECS = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd"}

_TEXT = rf"(?:{'|'.join(map(re.escape, _DELIMITERS))})"
_CODEC = rf"(?:{'|'.join(map(re.escape, _CODECS))})"
# A regular expression, to be used with re.IGNORECASE.
TABLE_SUFFIX = rf"(?:{'|'.join(map(re.escape, _PARQUET))}|{_TEXT}{_CODEC}?)"

READABLE = (
    "a .npy file, or FILE:COLUMN of a .parquet, .pq, .csv or .tsv file (text also .gz, .bz2, .zst)"
)


_ADDRESS = re.compile(r"\w[\w+.-]+://", re.ASCII)


def is_address(text: str) -> bool:
    """Whether this is a file on another machine."""
    return _ADDRESS.match(text) is not None


class TableFormat(NamedTuple):
    """Parquet, if there is no delimiter."""

    delimiter: str | None
    codec: str | None


def table_format(path: Path) -> TableFormat | None:
    """The format of a table, or None if the suffix is not that of a table."""
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    if suffixes and suffixes[-1] in _PARQUET:
        return TableFormat(None, None)
    codec = _CODECS.get(suffixes[-1]) if len(suffixes) == 2 else None
    if codec:
        suffixes.pop()
    delimiter = _DELIMITERS.get(suffixes[-1]) if suffixes else None
    return TableFormat(delimiter, codec) if delimiter else None
