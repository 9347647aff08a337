"""Measure calls on PyTorch's CPU tensors beside its own loss, run eagerly on the same tensors.

    python benchmarks/tensors.py

Prints Markdown: our time over that of `binary_cross_entropy_with_logits`, and in brackets what it
is to be at most. What is more is bold. A step is a forward and a backward pass of a leaf; the last
column is what a Function that does nothing takes over PyTorch's step with a mean.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from peers import POS_WEIGHT, arrays
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from logitloss import weighted_cross_entropy_with_logits

Call = Callable[[], Any]

# Our time over PyTorch's, at most, by the number of elements.
AIMS = {
    "none": {10: 1.0, 10_000: 0.6, 1_000_000: 0.4},
    "mean": {10: 1.0, 10_000: 0.6, 1_000_000: 0.4},
    "mean, step": {10: 1.0, 10_000: 0.7, 1_000_000: 0.35},
    "masked weighted mean, step": {10: 1.6, 10_000: 1.0, 1_000_000: 0.4},
    "none and then sum, step": {10: 1.5, 10_000: 0.9, 1_000_000: 0.6},
}
SIZES = (10, 10_000, 1_000_000)
SECONDS_A_BATCH = 0.001


class Nothing(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, value: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        return torch.empty_like(x), None


def pairs(size: int, dtype: torch.dtype) -> dict[str, tuple[Call, Call]]:
    """Our call and PyTorch's, by what they compute."""
    labels, logits = (torch.from_numpy(array).to(dtype) for array in arrays(size, "float64"))
    pos_weight = torch.tensor(POS_WEIGHT, dtype=dtype)
    mask = (torch.rand(size) < 0.7).to(dtype)
    zero = torch.zeros((), dtype=dtype)

    def ours(x: Tensor, reduction: str, weight: Tensor | None = None) -> Tensor:
        result: Tensor = weighted_cross_entropy_with_logits(
            labels, x, POS_WEIGHT, weight=weight, reduction=reduction
        )
        return result

    def theirs(x: Tensor, reduction: str, weight: Tensor | None = None) -> Tensor:
        return binary_cross_entropy_with_logits(
            x, labels, weight, pos_weight=pos_weight, reduction=reduction
        )

    def step(loss: Callable[[Tensor], Tensor]) -> Call:
        leaf = logits.clone().requires_grad_()

        def call() -> None:
            leaf.grad = None
            loss(leaf).backward()

        return call

    their_step = step(lambda x: theirs(x, "mean"))
    return {
        "none": (lambda: ours(logits, "none"), lambda: theirs(logits, "none")),
        "mean": (lambda: ours(logits, "mean"), lambda: theirs(logits, "mean")),
        "mean, step": (step(lambda x: ours(x, "mean")), their_step),
        "masked weighted mean, step": (
            step(lambda x: ours(x, "weighted_mean", mask)),
            step(lambda x: theirs(x, "sum", mask) / mask.sum()),
        ),
        "none and then sum, step": (
            step(lambda x: ours(x, "none").sum()),
            step(lambda x: theirs(x, "none").sum()),
        ),
        "nothing, step": (step(lambda x: Nothing.apply(x, zero)), their_step),
    }


def seconds(call: Call, repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats


def ratios(cases: dict[str, tuple[Call, Call]], budget: float) -> dict[str, float]:
    """The median over rounds of the first call's time over the second's.

    In a round every case is measured once, in random order, the two side by side.
    """
    repeats = {}
    for name, both in cases.items():
        for call in both:
            call()
        repeats[name] = [1 + int(SECONDS_A_BATCH / seconds(call, 2)) for call in both]
    found: dict[str, list[float]] = {name: [] for name in cases}
    names = list(cases)
    end = time.perf_counter() + budget
    while time.perf_counter() < end:
        random.shuffle(names)
        for name in names:
            times = {i: seconds(cases[name][i], repeats[name][i]) for i in random.sample((0, 1), 2)}
            found[name].append(times[0] / times[1])
    return {name: median(series) for name, series in found.items()}


def cell(ratio: float, aim: float | None) -> str:
    if aim is None:
        return f"{ratio:.2f}"
    # What rounds to the aim has reached it.
    return f"**{ratio:.2f}** ({aim})" if round(ratio, 2) > aim else f"{ratio:.2f} ({aim})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--dtypes", nargs="+", default=["float32", "float64", "bfloat16", "float16"]
    )
    parser.add_argument("--seconds", type=float, default=5.0, help="for each row")
    options = parser.parse_args()

    columns = [*AIMS, "nothing, step"]
    print("| dtype | elements | " + " | ".join(columns) + " |")
    print("| --- | ---: |" + " ---: |" * len(columns))
    for dtype in options.dtypes:
        for size in SIZES:
            found = ratios(pairs(size, getattr(torch, dtype)), options.seconds)
            cells = (cell(found[name], AIMS.get(name, {}).get(size)) for name in columns)
            print(f"| {dtype} | {size:,} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
