"""`.npy` files, read without trust and written block by block."""

import io
import itertools
import math
import operator
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from logitloss._command_line.blocks import Array, Block
from logitloss._command_line.files import Output, require_regular_file
from logitloss._command_line.formats import READABLE


class NpyInput:
    """A `.npy` file whose header agrees with its size, read block by block.

    Not mapped into memory: if somebody cuts a mapped file short, the process is killed.
    """

    def __init__(self, path: Path) -> None:
        require_regular_file(path)
        self.path = path
        self._file = open(path, "rb", buffering=0)
        try:
            self.shape, self.fortran_order, self.dtype = _read_header(self._file)
            self._data = self._file.tell()
            promised = math.prod(self.shape) * self.dtype.itemsize
            held = os.fstat(self._file.fileno()).st_size - self._data
            if promised != held:
                raise ValueError(
                    f"{self.dtype} of shape {self.shape} takes {promised} bytes, "
                    f"the file has {held}"
                )
            # NumPy has limits of its own.
            self.stand_in: Array = np.broadcast_to(np.zeros((), self.dtype), self.shape)
        # NumPy's parser raises nearly anything on a hostile header.
        except Exception as error:
            self._file.close()
            hint = "" if path.suffix.lower() == ".npy" else f"; a source is {READABLE}"
            raise ValueError(f"{path}: not a usable .npy file: {error}{hint}") from error
        self._buffer = np.empty(0, np.uint8)

    @property
    def has_an_order(self) -> bool:
        return sum(size > 1 for size in self.shape) > 1

    def close(self) -> None:
        self._file.close()

    def __getitem__(self, block: Block) -> Array:
        """A block of the array as broadcast, good until the next one is read."""
        shape = tuple(part.stop - part.start for part in block)
        axes = len(block) - len(self.shape)
        own = [
            slice(0, 1) if size == 1 else part
            for size, part in zip(self.shape, block[axes:], strict=True)
        ]
        sizes = [part.stop - part.start for part in own]
        itemsize = self.dtype.itemsize
        wanted = math.prod(sizes) * itemsize
        if len(self._buffer) < wanted:
            self._buffer = np.empty(wanted, np.uint8)
        filled = 0
        for start, count in runs(self.shape, own, self.fortran_order):
            self._read(self._data + start * itemsize, self._buffer[filled:][: count * itemsize])
            filled += count * itemsize
        values = self._buffer[:wanted].view(self.dtype)
        values = values.reshape(sizes, order="F" if self.fortran_order else "C")
        return values if values.shape == shape else np.broadcast_to(values, shape)

    def _read(self, position: int, into: Array) -> None:
        self._file.seek(position)
        while len(into):
            count = self._file.readinto(into.data)
            if not count:
                raise ValueError(f"{self.path}: it became shorter while it was read")
            into = into[count:]


def runs(
    shape: Sequence[int], block: Sequence[slice], fortran_order: bool
) -> Iterator[tuple[int, int]]:
    """Where the elements of a block are in a file, in their order there: starts and counts."""
    if fortran_order:
        shape, block = shape[::-1], block[::-1]
    # The last axes that the block holds in full make one run with the part of that before them.
    axis, count = len(shape), 1
    while axis:
        axis -= 1
        size = block[axis].stop - block[axis].start
        count *= size
        if size < shape[axis]:
            break
    steps = [math.prod(shape[i + 1 :]) for i in range(len(shape))]
    first = sum(part.start * step for part, step in zip(block[axis:], steps[axis:], strict=True))
    for index in itertools.product(*(range(part.start, part.stop) for part in block[:axis])):
        yield first + sum(map(operator.mul, index, steps)), count


def _read_header(file: BinaryIO | io.FileIO) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(file)
    elif version == (2, 0):
        shape, fortran_order, dtype = np.lib.format.read_array_header_2_0(file)
    else:
        raise ValueError(f"format version {version[0]}.{version[1]} is for structured arrays")
    if dtype.hasobject:
        raise ValueError("it holds Python objects, which are never unpickled")
    return shape, fortran_order, dtype


class NpyOutput(Output):
    """A `.npy` file, filled block by block."""

    def __init__(
        self, path: Path, shape: tuple[int, ...], dtype: np.dtype[Any], fortran_order: bool
    ) -> None:
        super().__init__(path)
        self._dtype = dtype
        self.shape = shape
        self._fortran_order = fortran_order
        self._header = {
            "descr": np.lib.format.dtype_to_descr(dtype),
            "fortran_order": fortran_order,
            "shape": shape,
        }

    def open(self) -> None:
        super().open()
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(header, self._header)
        self.write(header.getvalue())
        self._data = header.tell()

    def __setitem__(self, block: Block, values: npt.ArrayLike) -> None:
        flat = np.asarray(values, self._dtype).ravel(order="F" if self._fortran_order else "C")
        written = 0
        for start, count in runs(self.shape, block, self._fortran_order):
            self.write(flat[written:][:count].data, self._data + start * self._dtype.itemsize)
            written += count
