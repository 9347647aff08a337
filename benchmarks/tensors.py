"""Measure calls on PyTorch's tensors beside its own loss, and beside the same calls on arrays.

    python benchmarks/tensors.py

Prints Markdown: how many times faster than `binary_cross_entropy_with_logits`, run eagerly, and how
many times the time of NumPy arrays. What a mean and its gradient take at least is that of NumPy
arrays and then a forward and a backward pass of a Function that does nothing.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np
import torch
from peers import POS_WEIGHT, arrays
from torch.nn.functional import binary_cross_entropy_with_logits

from logitloss import value_and_grad, weighted_cross_entropy_with_logits

SIZES = (1, 100, 10_000, 100_000, 1_000_000, 10_000_000)


class Nothing(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, shape: Any) -> torch.Tensor:
        ctx.shape = shape
        return torch.from_numpy(np.zeros(()))

    @staticmethod
    def backward(ctx: Any, scale: torch.Tensor) -> Any:
        return torch.from_numpy(np.empty(*ctx.shape)), None


def calls(size: int, dtype: str) -> dict[str, Callable[[], Any]]:
    z, x = arrays(size, dtype)
    labels, logits, pos_weight = map(torch.from_numpy, (z, x, np.asarray(POS_WEIGHT, dtype)))

    def backward(loss: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[], None]:
        leaf = logits.clone().requires_grad_()

        def call() -> None:
            leaf.grad = None
            loss(leaf).backward()

        return call

    def ours(z: Any, x: Any, reduction: Any) -> Any:
        return weighted_cross_entropy_with_logits(z, x, POS_WEIGHT, reduction=reduction)

    def theirs(x: torch.Tensor, reduction: str) -> torch.Tensor:
        return binary_cross_entropy_with_logits(
            x, labels, pos_weight=pos_weight, reduction=reduction
        )

    nothing = backward(lambda leaf: Nothing.apply(leaf, (size, dtype)))
    both = "mean + backward"
    return {
        "loss": lambda: ours(labels, logits, "none"),
        "loss, PyTorch": lambda: theirs(logits, "none"),
        "loss, NumPy": lambda: ours(z, x, "none"),
        "mean": lambda: ours(labels, logits, "mean"),
        "mean, PyTorch": lambda: theirs(logits, "mean"),
        "mean, NumPy": lambda: ours(z, x, "mean"),
        both: backward(lambda leaf: ours(labels, leaf, "mean")),
        f"{both}, PyTorch": backward(lambda leaf: theirs(leaf, "mean")),
        f"{both}, NumPy": lambda: value_and_grad(z, x, POS_WEIGHT, reduction="mean"),
        f"{both}, at least": lambda: (
            value_and_grad(z, x, POS_WEIGHT, reduction="mean"),
            nothing(),
        ),
    }


def seconds(cases: dict[str, Callable[[], Any]], budget: float = 3) -> dict[str, float]:
    """Median seconds of each of some calls, in turn, in random order."""
    times: dict[str, list[float]] = {name: [] for name in cases}
    repeats = {}
    for name, call in cases.items():
        call()
        start = time.perf_counter()
        call()
        repeats[name] = 1 + int(0.002 / (time.perf_counter() - start))
    names = list(cases)
    end = time.perf_counter() + budget
    while time.perf_counter() < end:
        random.shuffle(names)
        for name in names:
            start = time.perf_counter()
            for _ in range(repeats[name]):
                cases[name]()
            times[name].append((time.perf_counter() - start) / repeats[name])
    return {name: median(series) for name, series in times.items()}


def main() -> None:
    names = ("loss", "mean", "mean + backward")
    columns = [
        *((f"{name}, PyTorch", name) for name in names),
        *((name, f"{name}, NumPy") for name in names),
        ("mean + backward", "mean + backward, at least"),
    ]
    print("| dtype | elements | " + " | ".join(" / ".join(column) for column in columns) + " |")
    print("| --- | ---: |" + " ---: |" * len(columns))
    for dtype in ("float32", "float64"):
        for size in SIZES:
            found = seconds(calls(size, dtype))
            ratios = (f"{found[above] / found[below]:.1f}" for above, below in columns)
            print(f"| {dtype} | {size:,} | " + " | ".join(ratios) + " |", flush=True)


if __name__ == "__main__":
    main()
