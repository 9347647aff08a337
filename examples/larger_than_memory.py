"""
Files larger than memory
========================

The command ``logitloss`` reads files in blocks, so its memory does not grow with their size. This
script writes labels to a ``.npy`` file and logits to a Parquet file, scores them, and asks the
operating system how much memory the command took.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pyarrow as pa
from pyarrow import parquet

MIB = 2**20
PIECE = MIB
PIECES = 64


def write(folder: Path, pieces: int) -> tuple[Path, Path]:
    """Write `pieces` times a million labels, as .npy, and logits, as Parquet."""
    rng = np.random.default_rng(0)
    labels_file, logits_file = folder / "labels.npy", folder / "logits.parquet"
    labels = np.lib.format.open_memmap(labels_file, "w+", np.uint8, (pieces * PIECE,))
    schema = pa.schema({"logit": pa.float64()})
    with parquet.ParquetWriter(logits_file, schema, use_dictionary=False) as writer:
        for piece in range(pieces):
            logits = rng.normal(-4, 2, PIECE)
            writer.write_table(pa.table({"logit": logits}))
            is_positive = rng.random(PIECE) < 1 / (1 + np.exp(-logits))
            labels[piece * PIECE : (piece + 1) * PIECE] = is_positive
    labels.flush()
    return labels_file, logits_file


# %%
# Score the files
# ---------------


# Linux counts a process with the memory of the one that started it. This one is small.
MEASURE = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, file=sys.stderr)
"""


def score(labels: Path, logits: Path, *options: str) -> tuple[str, int]:
    """Return what the command prints, and the most bytes of memory that it had."""
    command = [sys.executable, "-m", "logitloss", str(labels), f"{logits}:logit", *options]
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, *command], check=True, capture_output=True, text=True
    )
    peak = int(done.stderr.split()[-1])
    return done.stdout, peak if sys.platform == "darwin" else peak * 1024


def main() -> dict[str, float]:
    """Print the score, and the sizes in MiB, which are also returned."""
    with tempfile.TemporaryDirectory() as folder:
        labels, logits = write(Path(folder), PIECES)
        print("$ logitloss labels.npy logits.parquet:logit --pos-weight 10")
        printed, memory = score(labels, logits, "--pos-weight", "10")
        print(printed)
        sizes = {file.name: file.stat().st_size / MIB for file in (labels, logits)}
    sizes["memory"] = memory / MIB
    for name, size in sizes.items():
        print(f"{name:14}  {size:4.0f} MiB")
    return sizes


def plot(sizes: dict[str, float]) -> None:
    axes = plt.figure(figsize=(5, 2.2)).subplots()
    bars = axes.barh(list(sizes), list(sizes.values()), color=["C1", "C1", "C0"])
    axes.bar_label(bars, fmt=" {:.0f}")
    axes.invert_yaxis()
    axes.set(xlabel="MiB", title="Files, and the memory to score them")


if __name__ == "__main__":
    plot(main())
    plt.show()
