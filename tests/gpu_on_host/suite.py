"""A plugin of pytest that runs the suite's rows for CUDA tensors on the host.

PYTHONPATH=tests python -m pytest -p gpu_on_host.suite -k torch-cuda tests/test_*.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import backends
import pytest

from gpu_on_host.host import COMPILER, HostLauncher, send_torch_to
from logitloss._kernel import kernel


def pytest_configure(config: pytest.Config) -> None:
    if COMPILER is None or not kernel.TARGET_IS_FUSED:
        pytest.exit("skipped: no C++ compiler, or a CPU without fused multiply-add", 0)
    folder, patch = tempfile.TemporaryDirectory(), pytest.MonkeyPatch()
    config.add_cleanup(folder.cleanup)
    config.add_cleanup(patch.undo)
    of_cpu = backends._torch("cpu")
    patch.setattr(backends, "_torch", lambda device: of_cpu)
    send_torch_to(HostLauncher(Path(folder.name)), patch)
