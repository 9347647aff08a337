"""Files that are what they seem, and outputs that are complete or not there at all."""

import errno
import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO


def exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:
        # Longer than any name of a file, as the names of many columns may be.
        return False


def require_regular_file(path: Path) -> None:
    """Refuse a folder, and a pipe that would be waited for; a missing file is none of these."""
    if path.exists() and not path.is_file():
        raise ValueError(f"{path}: not a regular file")


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

    def write(self, data: bytes | memoryview, position: int = 0) -> None:
        assert self._file is not None
        with self._errors_name_the_path():
            self._file.seek(position)
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
        # An interrupt may come when the file is there, and `_file` is not yet.
        with suppress(FileNotFoundError, NotADirectoryError):
            self._part.unlink()


@contextmanager
def published_together(outputs: Sequence[Output]) -> Iterator[None]:
    """Open the outputs; give them their names if all goes well, and remove them if not."""
    if len({output.target for output in outputs}) < len(outputs):
        raise ValueError(f"{outputs[0].path}: two outputs must not share a file")
    with ExitStack() as stack:
        for output in outputs:
            stack.callback(output.discard)
            output.open()
        yield
        for output in outputs:
            output.complete()
        for output in outputs:
            output.publish()
