"""cuda.cu by NVIDIA's compiler, which needs no GPU."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from backends import MISSING

from gpu_on_host.host import NUMPY
from logitloss._backends import cuda
from logitloss._kernel import kernel

nvrtc = pytest.importorskip("cuda.bindings.nvrtc", exc_type=ImportError)
try:
    nvrtc.nvrtcVersion()
except Exception as error:
    pytest.skip(f"no NVRTC: {error}", allow_module_level=True)

DTYPES = tuple(t for t in ("float16", "bfloat16", "float32", "float64") if t not in MISSING)


class Recorder:
    """Notes what would be compiled."""

    def __init__(self) -> None:
        self.versions: list[bytes] = []
        self.refused: dict[int, str] = {}

    def enter(self, device: int) -> None:
        pass

    def launch(
        self, constants: bytes, blocks: int, parameters: int, device: int, stream: int
    ) -> None:
        self.versions.append(constants)

    def clear(self, address: int, stream: int) -> None:
        pass


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    recorder = Recorder()
    monkeypatch.setattr(cuda, "launcher_or_reason", lambda: recorder)
    return recorder


def compiled(constants: bytes, capability: int) -> tuple[int, int]:
    """Registers, and bytes of them that are spilled, of what compiles without a warning."""
    code, log = cuda.compile_for(nvrtc, constants, capability, "--ptxas-options=-v")
    assert code
    assert "warning" not in log, log
    registers = max(map(int, re.findall(r"Used (\d+) registers", log)))
    return registers, sum(map(int, re.findall(r"(\d+) bytes spill", log)))


@pytest.mark.parametrize(
    "capability",
    [
        pytest.param(75, marks=pytest.mark.exhaustive),
        90,
        pytest.param(100, marks=pytest.mark.exhaustive),
    ],
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_compiles(capability: int, dtype: str, recorder: Recorder, record_property: Any) -> None:
    labels, logits, weight = (np.zeros(5000, dtype) for _ in range(3))
    for orders in ((0,), (0, 1), (1,), (1, 2)):
        cuda.compute(NUMPY, dtype, orders, labels, logits, 3.0, None, "none")
    for reduction in ("mean", "weighted_mean"):
        cuda.compute(NUMPY, dtype, (0,), labels, logits, 3.0, weight, reduction)
        cuda.compute(NUMPY, dtype, (0, 1), labels, logits, 3.0, weight, reduction)
    # The step of a mean, without and with weights.
    cuda.compute(NUMPY, dtype, (0,), labels, logits, weight[:1], None, "mean")
    cuda.compute(NUMPY, dtype, (1,), labels, logits, weight[:1], None, "mean", None, weight[:1])
    cuda.compute(NUMPY, dtype, (1,), labels, logits, 3.0, weight, "mean", None, weight[:1])
    # A pos_weight for each class, and arrays with gaps.
    table = labels.reshape(50, 100)
    for reduction in ("none", "mean"):
        cuda.compute(NUMPY, dtype, (0,), table, table, table[0], None, reduction)
        cuda.compute(NUMPY, dtype, (0,), table[:, ::2], table[:, ::2], 3.0, None, reduction)
    needed = [compiled(version, capability) for version in recorder.versions]
    record_property("registers", [registers for registers, _ in needed])
    record_property("spilled", sum(spilled for _, spilled in needed))
    # So that a multiprocessor holds three blocks of threads.
    assert max(registers for registers, _ in needed) <= 80
    # Two registers, stored and loaded, may wait in memory while a function computes the unusual.
    assert max(spilled for _, spilled in needed) <= 16


def test_compiles_every_other_layout(recorder: Recorder) -> None:
    labels = np.zeros((50, 40), np.int64)
    logits, weight = np.zeros((50, 40), np.float32), np.zeros((50, 1), bool)
    cuda.compute(NUMPY, "float32", (0,), labels, logits.T.reshape(50, 40)[::2], 3.0, None, "none")
    cuda.compute(NUMPY, "float32", (0, 1), labels, logits, logits[0], weight, "weighted_mean")
    for constants in recorder.versions:
        assert compiled(constants, 90)[1] == 0
        wide = dict(zip(kernel.CONSTANTS, constants, strict=True)) | {"IS_WIDE": 1}
        assert compiled(bytes(wide.values()), 90)


def test_a_newer_gpu_gets_what_the_driver_translates(recorder: Recorder) -> None:
    array = np.zeros(10, np.float32)
    cuda.compute(NUMPY, "float32", (0,), array, array, 3.0, None, "none")
    code, _ = cuda.compile_for(nvrtc, recorder.versions[0], 91)
    assert b".visible .entry logitloss_run" in code
    assert b".target sm_90" in code


def test_all_sources_are_there() -> None:
    folder = Path(kernel.__file__).parent
    included = re.findall(r'#include "(.*)"', (folder / "cuda.cu").read_text())
    assert all((folder / name).exists() for name in included)


def test_what_does_not_compile_is_said(recorder: Recorder) -> None:
    array = np.zeros(10, np.float32)
    cuda.compute(NUMPY, "float32", (0,), array, array, 3.0, None, "none")
    with pytest.raises(cuda.CompilationError, match="NVRTC_ERROR_COMPILATION"):
        cuda.compile_for(nvrtc, recorder.versions[0], 90, "-Dlogitloss_run=")
