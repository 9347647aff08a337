"""What the tests of the command line share."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

COMMAND = [sys.executable, "-m", "logitloss"]
REDUCTIONS = ("sum", "mean", "weighted_mean")
OUTPUTS = ("--loss-out", "loss.npy", "--grad-out", "grad.npy")

posix_only = pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals and files")


def save(name: str, array: Any) -> str:
    np.save(name, array)
    return name


def save_pair(shape: Any = (30, 4), dtype: str = "float32", seed: int = 0) -> tuple[Any, Any]:
    """Write labels.npy (uint8) and logits.npy; return them."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, shape, dtype=np.uint8)
    logits = rng.normal(0, 5, shape).astype(dtype)
    save("labels.npy", labels)
    save("logits.npy", logits)
    return labels, logits


def assert_one_line(result: tuple[int, str, str], *words: str) -> None:
    status, out, err = result
    assert (status, out) == (2, "")
    assert re.fullmatch(r"logitloss: .+\n", err), err
    for word in words:
        assert word in err


def assert_within_four_ulp(got: Any, expected: Any) -> None:
    """Dividing by the sum of the weights may differ: it is added up in another order."""
    assert got.dtype == expected.dtype
    # Sums and divisors of the command line are float64, whatever the dtype.
    ulp = np.maximum(np.spacing(np.abs(expected)), np.spacing(np.abs(expected).astype(float)))
    assert np.all(np.abs(got - expected) <= 4 * ulp)


def files() -> set[str]:
    return set(os.listdir())


def scored(rows: int = 40) -> dict[str, Any]:
    rng = np.random.default_rng(3)
    return {
        "label": rng.random(rows) < 0.3,
        "logit": rng.normal(0, 5, rows),
        "weight": rng.uniform(0, 2, rows) * (rng.random(rows) < 0.8),
    }


def sparse(name: str, dtype: str, shape: tuple[int, ...], fortran_order: bool = False) -> None:
    """A file of zeros that takes no room on the disk."""
    np.lib.format.open_memmap(name, "w+", dtype, shape, fortran_order)


def assert_nothing_changed(earlier_results: dict[str, bytes]) -> None:
    assert files() == {"labels.npy", "logits.npy", *earlier_results}
    for name, content in earlier_results.items():
        assert Path(name).read_bytes() == content


def interrupt(*arguments: str, number: int, when: Callable[[], object]) -> None:
    """Run the command, send the signal as soon as it is time, and see how that ends."""
    # A shell's background jobs ignore interrupts, and so does what they start.
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(
        [*COMMAND, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    signal.signal(signal.SIGINT, handler)
    try:
        while process.poll() is None and not when():
            time.sleep(0.01)
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (process.returncode, out, err) == (130, "", "logitloss: interrupted\n")


def parts() -> list[str]:
    return [name for name in os.listdir() if name.endswith(".part")]
