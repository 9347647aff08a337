"""How calls are timed side by side, and ratios shown."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from statistics import median
from typing import Any

Calls = dict[str, Callable[[], Any]]


def seconds(calls: Calls, budget: float = 3) -> dict[str, float]:
    """Median seconds of each of some calls, in turn, in random order, within so many seconds."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    repeats = {}
    for name, call in calls.items():
        call()
        start = time.perf_counter()
        call()
        repeats[name] = 1 + int(0.002 / (time.perf_counter() - start))
    names = list(calls)
    end = time.perf_counter() + budget
    while time.perf_counter() < end:
        random.shuffle(names)
        for name in names:
            start = time.perf_counter()
            for _ in range(repeats[name]):
                calls[name]()
            times[name].append((time.perf_counter() - start) / repeats[name])
    return {name: median(series) for name, series in times.items()}
