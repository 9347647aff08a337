"""Score files that are larger than the memory that the command line takes.

Labels in a .npy file and logits in a Parquet file are written in pieces. Then `logitloss` scores
them, and the operating system tells how much memory it had at most: twice as many pieces would not
change that.

    python examples/larger_than_memory.py
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
from pathlib import Path

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


def score(labels: Path, logits: Path, *options: str) -> str:
    """Return what the command prints."""
    command = [sys.executable, "-m", "logitloss", str(labels), f"{logits}:logit", *options]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def memory_of_children() -> int:
    """Return how many bytes of memory the largest process started from here has had."""
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        labels, logits = write(Path(folder), PIECES)
        print("$ logitloss labels.npy logits.parquet:logit --pos-weight 10")
        print(score(labels, logits, "--pos-weight", "10"))
        for file in (labels, logits):
            print(f"{file.name:14}  {file.stat().st_size / MIB:4.0f} MiB")
    print(f"memory          {memory_of_children() / MIB:4.0f} MiB")


if __name__ == "__main__":
    main()
