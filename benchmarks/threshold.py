"""Find from how many elements on threads, and giving up the GIL, are worth what they cost.

    python benchmarks/threshold.py

Prints the time with one thread over that with all of them, for calls back to back, when OpenMP's
threads are still awake from the call before, and for calls after a pause, when they have to be
woken.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np
from peers import POS_WEIGHT, arrays

import logitloss
from logitloss._kernel import kernel

NEVER = 2**62


def calls(size: int, dtype: str) -> dict[str, Callable[[], Any]]:
    z, x = arrays(size, dtype)
    value, gradient = np.zeros((), dtype), np.ones_like(x)
    loss, both = logitloss.weighted_cross_entropy_with_logits, logitloss.value_and_grad
    return {
        "loss": lambda: loss(z, x, POS_WEIGHT),
        "mean": lambda: loss(z, x, POS_WEIGHT, reduction="mean"),
        "mean + gradient": lambda: both(z, x, POS_WEIGHT, reduction="mean", out=(value, gradient)),
    }


def seconds(
    call: Callable[[], Any], settings: dict[str, tuple[int, int]], pause: float, rounds: int
) -> dict[str, float]:
    """Median seconds of a call with each of some thresholds, in turn, in random order."""
    times: dict[str, list[float]] = {name: [] for name in settings}
    names = list(settings)
    order = random.Random(0)
    for _ in range(rounds):
        order.shuffle(names)
        for name in names:
            kernel.set_thresholds(*settings[name])
            # Back to back, or each on its own after a pause.
            for _ in range(1 if pause else 5):
                time.sleep(pause)
                start = time.perf_counter()
                call()
                last = time.perf_counter() - start
            times[name].append(last)
    return {name: median(series) for name, series in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=101)
    parser.add_argument("--largest", type=lambda text: int(float(text)), default=1_000_000)
    options = parser.parse_args()

    sizes = [round(10 ** (k / 4)) for k in range(12, 100)]
    sizes = [size for size in sizes if size <= options.largest]
    names = list(calls(1, "float32"))
    print(f"{logitloss.get_num_threads()} threads; time of one over time of all")
    header = "".join(f"{name:>18s}" for name in names)
    for dtype in ("float32", "float64"):
        for state, pause in (("back to back", 0.0), ("after 10 ms", 0.01)):
            print(f"\n{dtype + ', ' + state:>24s}{header}")
            gains: dict[str, list[float]] = {name: [] for name in names}
            for size in sizes:
                for name, call in calls(size, dtype).items():
                    settings = {"one": (NEVER, 1), "all": (1, 1)}
                    found = seconds(call, settings, pause, options.rounds)
                    gains[name].append(found["one"] / found["all"])
                row = "".join(f"{gains[name][-1]:18.2f}" for name in names)
                print(f"{size:24,}{row}", flush=True)
            pays = [_pays_from(sizes, gains[name]) for name in names]
            print(f"{'threads pay from':>24s}" + "".join(f"{size:>18s}" for size in pays))

    print("\nloss on one thread, giving up the GIL over keeping it")
    print(f"{'':>24s}{'float32':>18s}{'float64':>18s}")
    for size in [round(10 ** (k / 4)) for k in range(8, 17)]:
        row = ""
        for dtype in ("float32", "float64"):
            settings = {"keep": (NEVER, NEVER), "give up": (NEVER, 1)}
            found = seconds(calls(size, dtype)["loss"], settings, 0.0, options.rounds)
            row += f"{found['give up'] / found['keep']:18.2f}"
        print(f"{size:24,}{row}", flush=True)


def _pays_from(sizes: list[int], gains: list[float]) -> str:
    """The smallest size from which on threads are faster at every size."""
    losing = [i for i, gain in enumerate(gains) if gain < 1]
    first = losing[-1] + 1 if losing else 0
    return f"{sizes[first]:,}" if first < len(sizes) else "nowhere"


if __name__ == "__main__":
    main()
