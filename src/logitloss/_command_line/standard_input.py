"""Standard input as a file: it is read more than once."""

import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def spooled() -> Iterator[Path]:
    """A temporary CSV file with what comes from standard input."""
    with tempfile.TemporaryDirectory(prefix="logitloss-") as folder:
        path = Path(folder) / "standard-input.csv"
        with open(path, "wb") as file:
            shutil.copyfileobj(sys.stdin.buffer, file)
        yield path
