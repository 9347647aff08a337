from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from command_line.commands import sparse

pytestmark = pytest.mark.exhaustive

PEAK = """
import sys
from logitloss._command_line.main import main
assert main(sys.argv[1:]) == 0
for line in open("/proc/self/status"):
    if line.startswith("VmHWM:"):
        print(line.split()[1])
"""


def peak_memory(rows: int, labels_order: str, logits_order: str) -> int:
    """Bytes that a run takes at most, which writes a gradient of rows * 1024 elements."""
    shape = (rows, 1024)
    sparse("labels.npy", "uint8", shape, labels_order == "F")
    sparse("logits.npy", "float32", shape, logits_order == "F")
    done = subprocess.run(
        [sys.executable, "-c", PEAK, "labels.npy", "logits.npy", "--grad-out", "grad.npy"],
        capture_output=True,
        check=True,
    )
    return 1024 * int(done.stdout.splitlines()[-1])


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs Linux's /proc")
@pytest.mark.parametrize(("labels_order", "logits_order"), ["CC", "FF", "FC"])
def test_memory_does_not_grow_with_the_files(labels_order, logits_order):
    few = peak_memory(2 * 1024, labels_order, logits_order)
    many = peak_memory(16 * 1024, labels_order, logits_order)
    # The files have grown by 126 MiB.
    assert many - few < 16 * 2**20


def write_large(name: str, rows: int) -> int:
    """A table of incompressible numbers in a single row group; return its size."""
    rng = np.random.default_rng(0)
    if name.endswith(".csv"):
        lines = "".join(f"1,{x}\n" for x in rng.normal(size=10_000))
        with open(name, "w") as file:
            file.write("z,x\n")
            for _ in range(rows // 10_000):
                file.write(lines)
    else:
        import pyarrow as pa
        import pyarrow.parquet

        table = pa.table({"z": rng.random(rows), "x": rng.normal(size=rows)})
        pyarrow.parquet.write_table(
            table, name, row_group_size=rows, compression="none", use_dictionary=False
        )
    return os.path.getsize(name)


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs Linux's /proc")
@pytest.mark.parametrize("name", ["table.csv", "table.parquet"])
def test_memory_does_not_grow_with_tables(name):
    pytest.importorskip("pyarrow", reason="needs the extra `tables`")

    def peak(rows: int) -> tuple[int, int]:
        size = write_large(name, rows)
        done = subprocess.run(
            [sys.executable, "-c", PEAK, f"{name}:z", f"{name}:x", "--grad-out", "grad.npy"],
            capture_output=True,
            check=True,
        )
        return size, 1024 * int(done.stdout.splitlines()[-1])

    small_file, few = peak(2_000_000)
    large_file, many = peak(12_000_000)
    assert large_file - small_file > 150 * 2**20
    # Some tens of MiB depend on how far pyarrow's threads have read ahead.
    assert many - few < 96 * 2**20


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs Linux's /proc")
@pytest.mark.parametrize("name", ["loss.parquet", "loss.csv"])
def test_memory_does_not_grow_with_tables_that_are_written(name):
    pytest.importorskip("pyarrow", reason="needs the extra `tables`")

    def peak(size: int) -> int:
        sparse("labels.npy", "bool", (size,))
        sparse("logits.npy", "float64", (size,))
        done = subprocess.run(
            [sys.executable, "-c", PEAK, "labels.npy", "logits.npy", "--loss-out", name],
            capture_output=True,
            check=True,
        )
        return 1024 * int(done.stdout.splitlines()[-1])

    few = peak(2 * 2**20)
    many = peak(8 * 2**20)
    # The table has grown by 48 MiB of numbers, and by twice that as text.
    assert many - few < 24 * 2**20
