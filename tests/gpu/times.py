"""Measure calls on a GPU beside what else computes them, and beside a copy of the same bytes.

    python -m gpu.times --json FILE

Prints a table in Markdown, times in microseconds. The file gets every row as a line of JSON as soon
as it has been measured. Calls are issued one after another and waited for at the end, as in a
training loop. The least of several rounds counts, in each of which all candidates are measured in
turn.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import os
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import logitloss
from logitloss import grad_and_hess, value_and_grad
from logitloss import weighted_cross_entropy_with_logits as weighted

POS_WEIGHT = 2.5
# Those with a bound first, should there be no time for all.
SIZES = (100_000_000, 10, 1_000_000, 10_000)
DTYPES = ("float32", "bfloat16", "float64", "float16")
# The arrays of full size that have to be read and written, and the masks of bytes.
ARRAYS = {
    "loss": (3, 0),
    "value_and_grad": (4, 0),
    "grad_and_hess": (4, 0),
    "loss, a pos_weight per class": (3, 0),
    "mean": (2, 0),
    "step": (5, 0),
    "masked mean": (2, 1),
    "masked step": (5, 3),
}
ROUNDS, SECONDS_A_ROUND = 5, 0.003

Call = Callable[[], Any]


def bce_of_torch(x: Any, labels: Any, weight: Any, pos_weight: Any, reduction: str) -> Any:
    from torch.nn.functional import binary_cross_entropy_with_logits as bce

    if reduction != "weighted_mean":
        return bce(x, labels, pos_weight=pos_weight, reduction=reduction)
    weight = weight.to(x.dtype)
    return bce(x, labels, weight, pos_weight=pos_weight, reduction="sum") / weight.sum()


@functools.cache
def compiled_bce() -> Any:
    """Once for all sizes, since compiling takes longer than everything else here."""
    import torch

    return torch.compile(bce_of_torch, dynamic=True)


def of_torch(size: int, dtype: str) -> dict[str, dict[str, Call]]:
    """The calls on tensors, by what they compute and who computes them."""
    import torch

    kind = getattr(torch, dtype)
    torch.manual_seed(0)
    logits = torch.randn(size, device="cuda").mul_(3).to(kind)
    labels = (torch.rand(size, device="cuda") < 0.2).to(kind)
    mask = torch.rand(size, device="cuda") < 0.7
    pos_weight = torch.tensor(POS_WEIGHT, device="cuda", dtype=kind)
    leaf = logits.clone().requires_grad_()

    def ours(x: Any, labels: Any, weight: Any, pos_weight: Any, reduction: str) -> Any:
        return weighted(labels, x, POS_WEIGHT, weight=weight, reduction=reduction)

    def value(function: Any, reduction: str, weight: Any = None) -> Call:
        return lambda: function(logits, labels, weight, pos_weight, reduction)

    def step(function: Any, reduction: str, weight: Any = None) -> Call:
        def call() -> None:
            leaf.grad = None
            function(leaf, labels, weight, pos_weight, reduction).backward()

        return call

    found: dict[str, dict[str, Call]] = {name: {} for name in ARRAYS}
    candidates = {"logitloss": ours, "PyTorch": bce_of_torch, "torch.compile": compiled_bce()}
    for name, function in candidates.items():
        found["loss"][name] = value(function, "none")
        found["mean"][name] = value(function, "mean")
        found["step"][name] = step(function, "mean")
        found["masked mean"][name] = value(function, "weighted_mean", mask)
        found["masked step"][name] = step(function, "weighted_mean", mask)
    found["value_and_grad"]["logitloss"] = lambda: value_and_grad(labels, logits, POS_WEIGHT)
    found["grad_and_hess"]["logitloss"] = lambda: grad_and_hess(labels, logits, POS_WEIGHT)
    table = [array.reshape(-1, 10) for array in (labels, logits)]
    classes = torch.linspace(1, 3, 10, device="cuda", dtype=kind)
    found["loss, a pos_weight per class"]["logitloss"] = lambda: weighted(*table, classes)
    for name, (arrays, masks) in ARRAYS.items():
        # Half of the bytes are read, and half are written.
        bytes_moved = size * (arrays * kind.itemsize + masks)
        source = torch.empty(math.ceil(bytes_moved / 2), device="cuda", dtype=torch.uint8)
        target = torch.empty_like(source)
        found[name]["copy"] = lambda a=target, b=source: a.copy_(b)
    return found


def of_cupy(size: int, dtype: str) -> dict[str, dict[str, Call]]:
    import cupy

    rng = cupy.random.default_rng(0)
    logits = (3 * rng.standard_normal(size, cupy.float32)).astype(dtype)
    labels = (rng.random(size, cupy.float32) < 0.2).astype(dtype)
    mask = rng.random(size, cupy.float32) < 0.7

    def textbook() -> Any:
        z, x = labels, logits
        return (1 - z) * x + (1 + (POS_WEIGHT - 1) * z) * (
            cupy.log1p(cupy.exp(-cupy.abs(x))) + cupy.maximum(-x, 0)
        )

    return {
        "loss": {
            "logitloss, CuPy": lambda: weighted(labels, logits, POS_WEIGHT),
            "CuPy": textbook,
        },
        "value_and_grad": {"logitloss, CuPy": lambda: value_and_grad(labels, logits, POS_WEIGHT)},
        "mean": {
            "logitloss, CuPy": lambda: weighted(labels, logits, POS_WEIGHT, reduction="mean"),
            "CuPy": lambda: textbook().mean(),
        },
        "masked mean": {
            "logitloss, CuPy": lambda: weighted(
                labels, logits, POS_WEIGHT, weight=mask, reduction="weighted_mean"
            ),
            "CuPy": lambda: (textbook() * mask).sum() / mask.sum(),
        },
    }


LIBRARIES = {"torch": of_torch, "cupy": of_cupy}


def synchronize() -> None:
    for name in ("torch", "cupy"):
        library = sys.modules.get(name)
        if library is not None:
            library.cuda.synchronize() if name == "torch" else library.cuda.Device().synchronize()


def seconds(call: Call, repeats: int) -> float:
    synchronize()
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    synchronize()
    return (time.perf_counter() - start) / repeats


def measured(calls: dict[str, Call]) -> dict[str, float | str]:
    """The least time of each, or why there is none."""
    found: dict[str, float | str] = {}
    repeats = {}
    for name, call in calls.items():
        try:
            call()
            repeats[name] = max(1, round(SECONDS_A_ROUND / seconds(call, 3)))
        except Exception as error:
            found[name] = f"{type(error).__name__}: {error}"[:300]
    for _ in range(ROUNDS):
        for name, count in repeats.items():
            found[name] = min(found.get(name, math.inf), seconds(calls[name], count))
    return found


def cell(name: str, times: dict[str, float | str]) -> str:
    value = times.get(name, "")
    return "failed" if value and isinstance(value, str) else f"{1e6 * value:.1f}" if value else ""


def append(file: Path, row: dict[str, Any]) -> None:
    with file.open("a") as lines:
        print(json.dumps(row), file=lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", type=int, default=SIZES)
    parser.add_argument("--dtypes", nargs="+", default=DTYPES)
    parser.add_argument("--json", type=Path, default=Path(os.devnull))
    options = parser.parse_args()
    warnings.simplefilter("ignore")

    libraries, missing = {}, []
    for library, make in LIBRARIES.items():
        try:
            make(10, "float32")
            libraries[library] = make
        except Exception as error:
            missing.append(f"{library}: {type(error).__name__}: {error}")
    print(*missing, sep="\n", end="\n\n")
    if not libraries:
        print("No GPU, no times.")
        return

    columns = ["logitloss", "PyTorch", "torch.compile", "logitloss, CuPy", "CuPy", "copy"]
    append(options.json, logitloss.show_config("dicts") or {})
    print("| | dtype | elements | " + " | ".join(columns) + " | to the copy | to PyTorch |")
    print("| --- | --- | ---: |" + " ---: |" * (len(columns) + 2))
    for size in options.sizes:
        for dtype in options.dtypes:
            calls: dict[str, dict[str, Call]] = {name: {} for name in ARRAYS}
            errors = {}
            for library, make in libraries.items():
                try:
                    for name, candidates in make(size, dtype).items():
                        calls[name].update(candidates)
                except Exception as error:
                    errors[library] = f"{type(error).__name__}: {error}"[:300]
            for name, candidates in calls.items():
                times = measured(candidates)
                row = {"call": name, "dtype": dtype, "size": size, "seconds": times, **errors}
                append(options.json, row)
                cells = [cell(column, times) for column in columns]
                for other in ("copy", "PyTorch"):
                    pair = times.get("logitloss"), times.get(other)
                    known = all(isinstance(value, float) for value in pair)
                    cells.append(f"{pair[0] / pair[1]:.2f}" if known else "")
                print(f"| {name} | {dtype} | {size:,} | " + " | ".join(cells) + " |", flush=True)
            del calls, candidates


if __name__ == "__main__":
    main()
