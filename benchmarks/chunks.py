"""Measure reductions of Dask arrays beside Dask's own sum over the same chunks.

    python benchmarks/chunks.py

Prints Markdown: milliseconds on the threaded scheduler, and how many times the first row, which is
the least that reads labels and logits. Chunks are small, so that what a task costs shows.
"""

from __future__ import annotations

from typing import Any

import dask
import dask.array as da
import numpy as np
from peers import POS_WEIGHT, arrays
from timing import Calls, seconds

from logitloss import value_and_grad, weighted_cross_entropy_with_logits

CHUNKS, SIZE = 1_000, 4_000


def cases(dtype: str) -> Calls:
    labels, logits = arrays(CHUNKS * SIZE, dtype)
    weight = np.random.default_rng(0).random(logits.size) < 0.5
    z, x, w = (da.from_array(values, chunks=SIZE) for values in (labels, logits, weight))

    def reduced(reduction: str, **options: Any) -> Any:
        return weighted_cross_entropy_with_logits(z, x, POS_WEIGHT, reduction=reduction, **options)

    def mean_and_largest_slope() -> Any:
        value, gradient = value_and_grad(z, x, POS_WEIGHT, reduction="mean")
        return dask.compute(value, abs(gradient).max())

    return {
        "`(labels + logits).sum()`": lambda: (z + x).sum().compute(),
        "mean": lambda: reduced("mean").compute(),
        "weighted_mean with a mask": lambda: reduced("weighted_mean", weight=w).compute(),
        "mean and the largest slope": mean_and_largest_slope,
    }


def main() -> None:
    print("| dtype | call | ms | times the sum |\n| --- | --- | ---: | ---: |")
    for dtype in ("float32", "float64"):
        with dask.config.set(scheduler="threads"):
            found = seconds(cases(dtype), budget=20)
        least = next(iter(found.values()))
        for name, time in found.items():
            print(f"| {dtype} | {name} | {time * 1e3:.0f} | {time / least:.2f} |", flush=True)


if __name__ == "__main__":
    main()
