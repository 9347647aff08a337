"""A block: the part of an array that is in memory at a time."""

from typing import Any, TypeAlias

import numpy.typing as npt

Array = npt.NDArray[Any]

# A slice of each axis, with its bounds.
Block: TypeAlias = tuple[slice, ...]
