"""The kernel for GPUs on the host: what launches it there, and NumPy's arrays as those of a GPU."""

from __future__ import annotations

import contextlib
import ctypes
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from logitloss._backends import cuda
from logitloss._kernel import kernel

COMPILER = shutil.which("g++") or shutil.which("clang++")
FOLDER = Path(__file__).parent
# Without the instruction the C library has a function, which is as right and many times slower.
_FUSED = ["-mfma"] if platform.machine() == "x86_64" else []


class HostLauncher:
    """Compiles cuda.cu as C++, and runs it in the caller's thread."""

    def __init__(self, folder: Path, is_wide: bool = False) -> None:
        self.versions: dict[bytes, Any] = {}
        self.refused: dict[int, str] = {}
        self._folder = folder
        # Indices of 64 bits, which arrays that fit in memory do not need.
        self._changes = {"IS_WIDE": 1} if is_wide else {}

    def describe(self) -> str:
        return "the host"

    def enter(self, device: int) -> None:
        pass

    def launch(
        self, constants: bytes, blocks: int, parameters: int, device: int, stream: int
    ) -> None:
        if constants not in self.versions:
            self.versions[constants] = self._compiled(constants)
        self.versions[constants](parameters, blocks)

    def clear(self, address: int, stream: int) -> None:
        ctypes.memset(address, 0, 4)

    def _compiled(self, constants: bytes) -> Any:
        values = dict(zip(kernel.CONSTANTS, constants, strict=True)) | self._changes
        library = self._folder / f"{len(self.versions)}.so"
        build(FOLDER / "host.cpp", library, values, "-shared", "-fPIC")
        launch = ctypes.CDLL(str(library)).launch
        launch.argtypes = [ctypes.c_void_p, ctypes.c_uint]
        return launch


def build(source: Path, target: Path, constants: dict[str, int], *options: str) -> None:
    assert COMPILER is not None
    known = ["-std=c++17", "-O1", "-Wall", "-Werror", "-ffp-contract=off", *_FUSED]
    # What is out of bounds or not aligned ends the process.
    known += ["-fsanitize=undefined", "-fsanitize-undefined-trap-on-error"]
    known.append(f"-I{Path(kernel.__file__).parent}")
    defined = [f"-D{name}={value}" for name, value in constants.items()]
    subprocess.run([COMPILER, *known, *options, *defined, source, "-o", target], check=True)


def _describe(_: str, value: Any) -> Any:
    if value is None or isinstance(value, float):
        return value
    code = kernel.TYPES[value.dtype.name]
    return value.ctypes.data, code, value.shape, value.strides, 1, value


NUMPY = cuda.Library(
    describe=_describe,
    empty=lambda shape, dtype, like: np.empty(shape, dtype),
    empty_like=lambda dtype, like: np.empty_like(like, dtype=dtype),
    place=lambda array: (0, 0),
)


def send_torch_to(launcher: HostLauncher, patch: pytest.MonkeyPatch) -> None:
    """Let PyTorch's CPU tensors go the way of CUDA tensors."""
    from logitloss._backends.torch import _cuda, _operator, _ways

    patch.setattr(cuda, "launcher_or_reason", lambda: launcher)
    for module in (_ways, _operator):
        patch.setattr(module, "is_readable", lambda tensors: False)
        patch.setattr(module, "is_launchable", lambda tensors: not any(t.is_meta for t in tensors))
    patch.setattr(_cuda, "_on", lambda device: contextlib.nullcontext())
    patch.setattr(_cuda, "_LIBRARY", _cuda._LIBRARY._replace(place=lambda tensor: (0, 0)))
