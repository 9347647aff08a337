"""A block: the part of an array that is in memory at a time."""

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import numpy.typing as npt

Array = npt.NDArray[Any]

# A slice of each axis, with its bounds.
Block: TypeAlias = tuple[slice, ...]

# Large enough that every thread has work, small enough that labels, logits, loss and gradient of
# a block take some MiB together.
BLOCK_ELEMENTS = 2**20


def blocks(shape: Sequence[int], fortran_order: bool, is_mixed: bool) -> Iterator[Block]:
    """Cut an array into blocks of at most BLOCK_ELEMENTS elements, in the order of a file.

    `is_mixed` says that there are files of the other order, too.
    """
    if 0 in shape:
        return
    sizes = [1] * len(shape)

    def widen(axes: Sequence[int], most: int) -> None:
        for axis in axes:
            sizes[axis] = min(shape[axis], sizes[axis] * (most // math.prod(sizes)))

    inner_first = range(len(shape))[:: 1 if fortran_order else -1]
    if is_mixed:
        # Next to each other in one file is far apart in the other. In a block that is wide both
        # ways each file is read in runs, and not a page for each element.
        widen(inner_first, math.isqrt(BLOCK_ELEMENTS))
        widen(inner_first[::-1], BLOCK_ELEMENTS)
    else:
        widen(inner_first, BLOCK_ELEMENTS)
    outer_first = inner_first[::-1]
    for starts in itertools.product(*(range(0, shape[axis], sizes[axis]) for axis in outer_first)):
        start = dict(zip(outer_first, starts, strict=True))
        yield tuple(
            slice(start[axis], min(start[axis] + sizes[axis], shape[axis]))
            for axis in range(len(shape))
        )
