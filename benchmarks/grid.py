"""Measure every kind of call beside the library whose arrays are passed.

    python benchmarks/grid.py --plots docs/figures --page docs/performance.md docs/targets.md

A cell is the time of a call divided by that of the library's own way to compute the same: NumPy's
expression, PyTorch's loss, eager and compiled, and the textbook formula in JAX, eager and jitted.
Both sides run in turn, in random order; medians are compared. Prints the median of the cells and
those in which the library is faster. --quick tries a few cells in a minute; all of them take the
better part of an hour, most of it for compilers. The machine should do nothing else meanwhile.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import ml_dtypes  # noqa: F401 - registers the name bfloat16 with NumPy
import numpy as np
from compare import environment
from peers import POS_WEIGHT, textbook
from report import STYLE, add_options, renew, save, saved_or, table
from timing import seconds

from logitloss import grad_and_hess, value_and_grad, weighted_cross_entropy_with_logits

CLASSES = 10
DTYPES = ("float16", "bfloat16", "float32", "float64")
SIZES = (10, 1_000, 100_000, 1_000_000, 10_000_000)
QUICK = {"dtypes": ["bfloat16", "float32"], "sizes": [10, 100_000], "seconds": 0.05}
# What rounds to 1.0 is not slower.
SLOWER = 1.05
LONGEST_LIST = 40

Call = Callable[[], Any]
Loss = Callable[..., Any]
Cell = dict[str, Any]


class Case(NamedTuple):
    """A call: what is computed, how it is reduced, and whether with classes or a mask."""

    kind: str
    reduction: str
    by_class: bool = False
    masked: bool = False


CASES = {
    "loss": Case("loss", "none"),
    "loss, classes": Case("loss", "none", by_class=True),
    "loss, mask": Case("loss", "none", masked=True),
    "mean": Case("loss", "mean"),
    "step": Case("step", "mean"),
    "step, classes": Case("step", "mean", by_class=True),
    "step, mask": Case("step", "weighted_mean", masked=True),
    "none, sum, step": Case("step", "none"),
    "gradient, Hessian": Case("second order", "none"),
}


class Operands(NamedTuple):
    labels: Any
    logits: Any
    pos_weight: Any
    weight: Any


def operands(size: int, dtype: str, case: Case) -> Operands:
    """Arrays of NumPy: a fifth of positives, and a mask that keeps two elements of three."""
    rng = np.random.default_rng(0)
    shape = max(1, size // CLASSES), CLASSES
    logits = rng.normal(0, 3, shape).astype(dtype)
    labels = (rng.random(shape) < 0.2).astype(dtype)
    pos_weight = np.linspace(1, 4, CLASSES).astype(dtype) if case.by_class else POS_WEIGHT
    weight = (rng.random(shape) < 2 / 3).astype(dtype) if case.masked else None
    return Operands(labels, logits, pos_weight, weight)


def ours(z: Any, x: Any, q: Any, w: Any, reduction: str) -> Any:
    return weighted_cross_entropy_with_logits(z, x, q, weight=w, reduction=reduction)


def reduced(losses: Any, weight: Any, reduction: str) -> Any:
    if weight is not None:
        losses = weight * losses
    if reduction == "none":
        return losses
    return losses.mean() if reduction == "mean" else losses.sum() / weight.sum()


def closed_form(z: Any, x: Any, q: Any, sigmoid: Loss) -> tuple[Any, Any]:
    """Gradient and Hessian as people write them down."""
    p = sigmoid(x)
    return (1 - z) * p - q * z * (1 - p), (1 - z + q * z) * p * (1 - p)


def value(loss: Loss, case: Case) -> Loss:
    """The number that a step differentiates."""

    def number(z: Any, x: Any, q: Any, w: Any) -> Any:
        result = loss(z, x, q, w, case.reduction)
        return result.sum() if case.reduction == "none" else result

    return number


def with_numpy(case: Case, given: Operands) -> tuple[Call, Call]:
    z, x, q, w = given

    def sigmoid(x: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(-x))

    def theirs() -> Any:
        return reduced(textbook(np, z, x, q), w, case.reduction)

    def their_step() -> Any:
        gradient = closed_form(z, x, q, sigmoid)[0]
        if case.reduction == "mean":
            return theirs(), gradient / x.size
        if case.reduction == "weighted_mean":
            return theirs(), w * gradient / w.sum()
        return theirs().sum(), gradient

    def our_step() -> Any:
        value, gradient = value_and_grad(z, x, q, weight=w, reduction=case.reduction)
        return (value.sum() if case.reduction == "none" else value), gradient

    return {
        "loss": (lambda: ours(z, x, q, w, case.reduction), theirs),
        "step": (our_step, their_step),
        "second order": (lambda: grad_and_hess(z, x, q), lambda: closed_form(z, x, q, sigmoid)),
    }[case.kind]


def with_torch(case: Case, given: Operands, is_compiled: bool) -> tuple[Call, Call]:
    import torch
    from torch.nn.functional import binary_cross_entropy_with_logits as bce

    def tensor(array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array.astype("float64")).to(getattr(torch, array.dtype.name))

    z, x = tensor(given.labels), tensor(given.logits)
    w = None if given.weight is None else tensor(given.weight)
    q = tensor(given.pos_weight) if case.by_class else given.pos_weight
    their_q = q if case.by_class else torch.tensor(q, dtype=x.dtype)
    factor = torch.ones_like(x)

    def theirs(z: Any, x: Any, q: Any, w: Any, reduction: str) -> Any:
        if reduction == "weighted_mean":
            return bce(x, z, w, pos_weight=q, reduction="sum") / w.sum()
        return bce(x, z, w, pos_weight=q, reduction=reduction)

    def call(loss: Loss, q: Any) -> Call:
        if is_compiled:
            # What was compiled for other shapes would be made general, or be given up as too many.
            torch._dynamo.reset()
        if case.kind == "loss":
            function = torch.compile(loss) if is_compiled else loss
            return lambda: function(z, x, q, w, case.reduction)
        if case.kind == "second order":
            function = torch.compile(second[loss]) if is_compiled else second[loss]
            return lambda: function(z, x, q)
        number = value(loss, case)
        leaf = x.clone().requires_grad_()

        # Logits come from something that the compiler may fuse the loss with.
        def of_a_product(z: Any, leaf: Any, factor: Any, q: Any, w: Any) -> Any:
            return number(z, leaf * factor, q, w)

        compiled = torch.compile(of_a_product)

        def step() -> None:
            leaf.grad = None
            if is_compiled:
                compiled(z, leaf, factor, q, w).backward()
            else:
                number(z, leaf, q, w).backward()

        return step

    second = {ours: grad_and_hess, theirs: lambda z, x, q: closed_form(z, x, q, torch.sigmoid)}
    return call(ours, q), call(theirs, their_q)


def with_jax(case: Case, given: Operands, is_compiled: bool) -> tuple[Call, Call]:
    import jax

    jax.config.update("jax_enable_x64", True)
    z, x, q, w = (a if a is None or isinstance(a, float) else jax.numpy.asarray(a) for a in given)
    factor = jax.numpy.ones_like(x)

    def theirs(z: Any, x: Any, q: Any, w: Any, reduction: str) -> Any:
        return reduced(textbook(jax.numpy, z, x, q), w, reduction)

    second = {ours: grad_and_hess, theirs: lambda z, x, q: closed_form(z, x, q, jax.nn.sigmoid)}

    def call(loss: Loss) -> Call:
        number = value(loss, case)

        def of_a_product(x: Any, factor: Any, z: Any, w: Any) -> Any:
            return number(z, x * factor, q, w)

        function: Loss = {
            "loss": lambda z, x, w: loss(z, x, q, w, case.reduction),
            "second order": lambda z, x, w: second[loss](z, x, q),
            "step": lambda z, x, w: jax.value_and_grad(lambda x: number(z, x, q, w))(x),
        }[case.kind]
        if case.kind == "step" and is_compiled:
            step = jax.jit(jax.value_and_grad(of_a_product))
            return lambda: jax.block_until_ready(step(x, factor, z, w))
        function = jax.jit(function) if is_compiled else function
        return lambda: jax.block_until_ready(function(z, x, w))

    return call(ours), call(theirs)


LIBRARIES: dict[str, Callable[[Case, Operands], tuple[Call, Call]]] = {
    "NumPy": with_numpy,
    "PyTorch": lambda case, given: with_torch(case, given, is_compiled=False),
    "torch.compile": lambda case, given: with_torch(case, given, is_compiled=True),
    "JAX": lambda case, given: with_jax(case, given, is_compiled=False),
    "JAX jit": lambda case, given: with_jax(case, given, is_compiled=True),
}


def measure(libraries: list[str], dtypes: list[str], sizes: list[int], budget: float) -> list[Cell]:
    cells: list[Cell] = []
    for library in libraries:
        for dtype in dtypes:
            for size in sizes:
                for name, case in CASES.items():
                    own, other = LIBRARIES[library](case, operands(size, dtype, case))
                    found = seconds({"own": own, "other": other}, budget)
                    cells.append(
                        {
                            "library": library,
                            "dtype": dtype,
                            "size": size,
                            "case": name,
                            "seconds": found["own"],
                            "other": found["other"],
                        }
                    )
                    print(describe(cells[-1]), flush=True)
    return cells


def ratio(cell: Cell) -> float:
    return float(cell["seconds"] / cell["other"])


def describe(cell: Cell) -> str:
    place = f"{cell['library']}, {cell['dtype']}, {cell['size']:,} elements, {cell['case']}"
    return f"{place}: {ratio(cell):.2f}"


def slower(cells: list[Cell]) -> list[Cell]:
    """The cells in which the library is faster than logitloss, the worst first."""
    return sorted((cell for cell in cells if ratio(cell) > SLOWER), key=ratio, reverse=True)


def summary(cells: list[Cell]) -> str:
    rows = []
    for library in dict.fromkeys(cell["library"] for cell in cells):
        own = [ratio(cell) for cell in cells if cell["library"] == library]
        worse = sum(r > SLOWER for r in own)
        rows.append([library, f"{median(own):.2f}", f"{max(own):.2f}", f"{worse} of {len(own)}"])
    everything = [ratio(cell) for cell in cells]
    count = f"{len(slower(cells))} of {len(cells)}"
    rows.append(["all", f"{median(everything):.2f}", f"{max(everything):.2f}", count])
    return table(["time over that of", "median", "highest", f"above {SLOWER}"], rows)


def listing(cells: list[Cell]) -> str:
    rows = [
        [cell["library"], cell["dtype"], f"{cell['size']:,}", cell["case"], f"{ratio(cell):.2f}"]
        for cell in slower(cells)[:LONGEST_LIST]
    ]
    return table(["library", "dtype", "elements", "call", "ratio"], rows) or "None."


def draw(cells: list[Cell], folder: Path) -> None:
    """A heat map: rows are libraries and dtypes, columns calls and sizes."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    rows = list(dict.fromkeys((cell["library"], cell["dtype"]) for cell in cells))
    sizes = sorted({cell["size"] for cell in cells})
    columns = [(name, size) for name in CASES for size in sizes]
    picture = np.full((len(rows), len(columns)), math.nan)
    for cell in cells:
        at = (
            rows.index((cell["library"], cell["dtype"])),
            columns.index((cell["case"], cell["size"])),
        )
        picture[at] = math.log2(ratio(cell))
    folder.mkdir(parents=True, exist_ok=True)
    with plt.style.context(STYLE):
        figure, axes = plt.subplots(figsize=(10, 0.24 * len(rows) + 1.6))
        image = axes.imshow(
            picture, cmap="RdBu_r", vmin=-3, vmax=3, aspect="auto", interpolation="none"
        )
        starts = range(0, len(columns), len(sizes))
        axes.set_xticks([start + (len(sizes) - 1) / 2 for start in starts], CASES, fontsize=8)
        axes.set_yticks(
            range(len(rows)), [f"{library}, {dtype}" for library, dtype in rows], fontsize=8
        )
        axes.tick_params(length=0)
        for spine in axes.spines.values():
            spine.set_visible(False)
        for start in starts[1:]:
            axes.axvline(start - 0.5, color="white", linewidth=2)
        for row in range(1, len(rows)):
            if rows[row][0] != rows[row - 1][0]:
                axes.axhline(row - 0.5, color="white", linewidth=2)
        marks = [-3, -2, -1, 0, 1, 2, 3]
        bar = figure.colorbar(image, ax=axes, location="bottom", shrink=0.5, aspect=40, pad=0.08)
        bar.set_ticks(marks, labels=[f"{2.0**mark:g}" for mark in marks], fontsize=8)
        bar.outline.set_visible(False)
        exponents = ", ".join(f"{size:,}" for size in sizes)
        bar.set_label(
            f"time over the library's; elements from left to right: {exponents}", fontsize=8
        )
        save(figure, folder / "grid.svg")
        plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--libraries", nargs="+", choices=LIBRARIES, default=list(LIBRARIES))
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--sizes", nargs="+", type=lambda text: int(float(text)), default=SIZES)
    parser.add_argument("--seconds", type=float, default=0.4, help="for each cell")
    parser.add_argument("--quick", action="store_true", help="a few cells, to try it")
    add_options(parser)
    options = parser.parse_args()
    if options.quick:
        vars(options).update(QUICK)

    def results_now() -> dict[str, Any]:
        cells = measure(options.libraries, options.dtypes, options.sizes, options.seconds)
        return {"environment": environment(None), "cells": cells}

    results = saved_or(results_now, options)
    tables = {"grid": summary(results["cells"]), "slower": listing(results["cells"])}
    print("", *tables.values(), sep="\n\n")
    for page in options.page:
        renew(page, tables)
    if options.plots:
        draw(results["cells"], options.plots)


if __name__ == "__main__":
    main()
