"""A progress bar on a terminal, if tqdm is installed."""

import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

# Called with the number of elements that have been done since the last call.
Advance: TypeAlias = Callable[[int], object]


@contextmanager
def progress(elements: int) -> Iterator[Advance]:
    if sys.stderr.isatty() and importlib.util.find_spec("tqdm"):
        from tqdm import tqdm

        with tqdm(total=elements, unit=" elements", unit_scale=True, leave=False) as bar:
            yield bar.update
    else:
        yield lambda count: None
