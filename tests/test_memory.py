"""The memory that a call takes: its result, and nothing else that grows with the input."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import logitloss

# Less than one byte for each element of the larger size, more than the buffers of fixed size and
# what the kernel's page size adds to a result.
SIZES = 1_000_000, 10_000_000
ALLOWANCE = 5 * 2**20


def spread(array: np.ndarray) -> np.ndarray:
    """A view of every second element along the last axis."""
    return np.repeat(array, 2, axis=1)[:, ::2]


def swap(array: np.ndarray) -> np.ndarray:
    return array.astype(array.dtype.newbyteorder())


Layout = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray, dict[str, Any]]]
LAYOUTS: dict[str, Layout] = {
    "contiguous": lambda z, x: (z, x, {}),
    "Fortran": lambda z, x: (np.asfortranarray(z), np.asfortranarray(x), {}),
    "C and Fortran": lambda z, x: (z, np.asfortranarray(x), {}),
    "strided": lambda z, x: (spread(z), spread(x), {}),
    "reversed": lambda z, x: (z[::-1, ::-1], x[::-1, ::-1], {}),
    "bool labels": lambda z, x: (z.astype(bool), x, {}),
    "int64 labels": lambda z, x: (z.astype(np.int64), x, {}),
    "float64": lambda z, x: (z.astype(np.float64), x.astype(np.float64), {}),
    "float16": lambda z, x: (z.astype(np.float16), x.astype(np.float16), {}),
    "float16 labels": lambda z, x: (z.astype(np.float16), x, {}),
    "byte-swapped": lambda z, x: (swap(z), swap(x), {}),
    "pos_weight per class": lambda z, x: (z, x, {"pos_weight": np.linspace(1, 2, 10)}),
    "pos_weight per row": lambda z, x: (z, x, {"pos_weight": np.float32(x[:, :1] > 0)}),
    "weight": lambda z, x: (z, x, {"weight": x * x}),
    "strided weight": lambda z, x: (z, x, {"weight": spread(x * x)}),
    "float64 weight": lambda z, x: (z, x, {"weight": np.ones(x.shape)}),
    "bool weight": lambda z, x: (z, x, {"weight": x > 0}),
}
CALLS: dict[str, Callable[..., Any]] = {
    "loss": logitloss.weighted_cross_entropy_with_logits,
    "grad_and_hess": logitloss.grad_and_hess,
}
for reduction in ("sum", "mean", "weighted_mean"):
    CALLS[reduction] = lambda *args, r=reduction, **options: (
        logitloss.weighted_cross_entropy_with_logits(*args, reduction=r, **options)
    )
CALLS["weighted_mean and gradient"] = lambda *args, **options: logitloss.value_and_grad(
    *args, reduction="weighted_mean", **options
)


def status(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) * 1024
    raise KeyError(key)


def extra_memory(call: Callable[[], Any]) -> int:
    """The peak of this process during a call, less what was there before and the result."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = status("VmRSS")
    result = call()
    peak = status("VmHWM")
    results = result if isinstance(result, tuple) else (result,)
    return peak - before - sum(array.nbytes for array in results)


def measure() -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    for size in SIZES:
        rng = np.random.default_rng(0)
        logits = rng.standard_normal((size // 10, 10), np.float32)
        labels = (logits > 1).astype(np.float32)
        for layout, arrange in LAYOUTS.items():
            z, x, options = arrange(labels, logits)
            options = {"pos_weight": 2.5} | options
            for name, call in CALLS.items():
                extra = extra_memory(lambda call=call, z=z, x=x, o=options: call(z, x, **o))
                # What is there only once, such as threads, is left behind by the smaller size.
                found.setdefault(layout, {})[name] = extra
    # Something that takes the least that could grow: one byte for each element.
    found["control"] = {"any": extra_memory(lambda: np.any(logits > 0))}
    return found


@pytest.fixture(scope="module")
def extra() -> dict[str, dict[str, int]]:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pytest.skip("the peak of the memory cannot be reset here")
    result = subprocess.run(
        [sys.executable, __file__],
        # Whatever is freed goes back at once and is seen when it is taken again.
        env=os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.mark.exhaustive
@pytest.mark.parametrize("layout", LAYOUTS)
def test_nothing_but_the_result_grows_with_the_input(
    extra: dict[str, dict[str, int]], layout: str
) -> None:
    over = {name: size for name, size in extra[layout].items() if size > ALLOWANCE}
    assert not over


@pytest.mark.exhaustive
def test_one_byte_for_each_element_would_be_seen(extra: dict[str, dict[str, int]]) -> None:
    assert extra["control"]["any"] > ALLOWANCE


if __name__ == "__main__":
    print(json.dumps(measure()))
