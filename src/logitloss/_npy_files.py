"""Files for the command line: `.npy` read without trust, outputs complete or not at all."""

import errno
import io
import math
import mmap
import os
import secrets
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def require_regular_file(path: Path) -> None:
    """Refuse a folder, and a pipe that would be waited for; a missing file is none of these."""
    if path.exists() and not path.is_file():
        raise ValueError(f"{path}: not a regular file")


class Input:
    """A memory-mapped `.npy` file whose header agrees with its size."""

    def __init__(self, path: Path) -> None:
        require_regular_file(path)
        with open(path, "rb") as file:
            try:
                shape, fortran_order, dtype = _read_header(file)
                promised = math.prod(shape) * dtype.itemsize
                held = os.fstat(file.fileno()).st_size - file.tell()
                if promised != held:
                    raise ValueError(
                        f"{dtype} of shape {shape} takes {promised} bytes, the file has {held}"
                    )
                self._mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
                self.array: Array = np.ndarray(
                    shape, dtype, self._mapping, file.tell(), order="F" if fortran_order else "C"
                )
            # NumPy's parser raises nearly anything on a hostile header.
            except Exception as error:
                raise ValueError(f"{path}: not a usable .npy file: {error}") from error
        self.path = path

    def release(self) -> None:
        """Hand back the pages read so far, which count as memory of this process until then."""
        if hasattr(mmap, "MADV_DONTNEED"):
            self._mapping.madvise(mmap.MADV_DONTNEED)


def _read_header(file: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
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


class Output:
    """A file that goes by another name until it is complete."""

    def __init__(self, path: Path) -> None:
        require_regular_file(path)
        if path.exists() and not os.access(path, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        self.path = path
        # The file behind a symbolic link is replaced, not the link.
        self.target = Path(os.path.realpath(path))
        self._part = self.target.with_name(f".logitloss-{secrets.token_hex(8)}.part")
        self._file: BinaryIO | None = None

    @contextmanager
    def _errors_name_the_path(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.path)) from error

    def open(self) -> None:
        with self._errors_name_the_path():
            # Unlike tempfile, this gives the file the permissions that any new file gets.
            self._file = open(self._part, "xb")

    def write(self, data: bytes | memoryview) -> None:
        assert self._file is not None
        with self._errors_name_the_path():
            self._file.write(data)

    def complete(self) -> None:
        assert self._file is not None
        with self._errors_name_the_path():
            self._file.flush()
            # Otherwise the new name may reach the disk before the data does.
            os.fsync(self._file.fileno())
            self._file.close()

    def publish(self) -> None:
        with self._errors_name_the_path():
            os.replace(self._part, self.target)

    def discard(self) -> None:
        """Remove what has not been published."""
        if self._file is not None:
            # Closing writes what is left, which fails again on a full disk.
            with suppress(OSError):
                self._file.close()
            self._part.unlink(missing_ok=True)


class NpyOutput(Output):
    """A `.npy` file, filled in memory order."""

    def __init__(
        self, path: Path, shape: tuple[int, ...], dtype: np.dtype[Any], fortran_order: bool
    ) -> None:
        super().__init__(path)
        self._dtype = dtype
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

    def append(self, values: npt.ArrayLike) -> None:
        """Write the values that follow, in memory order, those written before."""
        self.write(np.ascontiguousarray(values, self._dtype).data)


@contextmanager
def published_together(outputs: Sequence[Output]) -> Iterator[None]:
    """Open the outputs; give them their names if all goes well, and remove them if not."""
    if len({output.target for output in outputs}) < len(outputs):
        raise ValueError(f"{outputs[0].path}: two outputs must not share a file")
    with ExitStack() as stack:
        # Batch systems stop a job with SIGTERM; as an exception it leaves no unfinished file. Only
        # the main thread can ask for that, and only a handler that Python knows can come back.
        before = signal.getsignal(signal.SIGTERM)
        if threading.current_thread() is threading.main_thread() and before is not None:
            signal.signal(signal.SIGTERM, signal.default_int_handler)
            stack.callback(signal.signal, signal.SIGTERM, before)
        for output in outputs:
            stack.callback(output.discard)
            output.open()
        yield
        for output in outputs:
            output.complete()
        for output in outputs:
            output.publish()
