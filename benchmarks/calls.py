"""Measure what a call costs beside its arithmetic, and what layouts and masks cost.

    python benchmarks/calls.py [--page docs/targets.md]

Prints two tables in Markdown, or renews those of the page. The first has calls on 100 elements over
`np.add` of the same arrays, the second calls on 8 million elements over one another. What misses
its aim is bold.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from peers import POS_WEIGHT as Q
from report import mark, renew, table
from timing import Calls, seconds

from logitloss import value_and_grad, weighted_cross_entropy_with_logits

LARGE = 8_000_000
Layout = Callable[[np.ndarray], np.ndarray]

PLAIN: Layout = np.ascontiguousarray
FORTRAN: Layout = np.asfortranarray
REVERSED: Layout = lambda a: np.ascontiguousarray(a[::-1])[::-1]  # noqa: E731
SLICED: Layout = lambda a: np.repeat(a, 2, axis=1)[:, ::2]  # noqa: E731


def arrays(rows: int, columns: int, dtype: str) -> tuple[np.ndarray, ...]:
    """Labels, logits, and a mask that keeps two elements of three."""
    rng = np.random.default_rng(0)
    shape = rows, columns
    labels = (rng.random(shape) < 0.2).astype(dtype)
    return labels, rng.normal(0, 3, shape).astype(dtype), rng.random(shape) < 2 / 3


def small() -> list[tuple[str, float, Callable[[], Any], Callable[[], Any]]]:
    """Name, aim and call of each case, and NumPy's addition of the same arrays."""
    z, x, mask = arrays(10, 10, "float32")
    ints, doubles = z.astype("int64"), z.astype("float64")
    zf, xf = FORTRAN(z), FORTRAN(x)
    zs, xs = SLICED(z), SLICED(x)
    zr, xr = REVERSED(z), REVERSED(x)
    zh, xh = z.astype("float16"), x.astype("float16")
    classes, rows = np.linspace(1, 2, 10), np.linspace(1, 2, 10, dtype="f4").reshape(10, 1)
    out, place, strided = np.empty_like(x), x.copy(), SLICED(x)
    f, both, add = weighted_cross_entropy_with_logits, value_and_grad, np.add
    # Each as its users write it: an argument passed on in a dictionary costs a tenth of a call.
    return [
        ("plain", 1.1, lambda: f(z, x, Q), lambda: add(z, x)),
        ("with `name`", 2, lambda: f(z, x, Q, "n"), lambda: add(z, x)),
        ("integer labels", 3, lambda: f(ints, x, Q), lambda: add(ints, x)),
        ("labels of the other float type", 5, lambda: f(doubles, x, Q), lambda: add(doubles, x)),
        ("Fortran order", 5, lambda: f(zf, xf, Q), lambda: add(zf, xf)),
        ("every second column", 5, lambda: f(zs, xs, Q), lambda: add(zs, xs)),
        ("reversed rows", 5, lambda: f(zr, xr, Q), lambda: add(zr, xr)),
        ("C beside Fortran order", 6, lambda: f(z, xf, Q), lambda: add(z, xf)),
        ("`(C,)` float64 pos_weight", 5, lambda: f(z, x, classes), lambda: add(z, x)),
        ("weight for each row", 5, lambda: f(z, x, Q, weight=rows), lambda: add(z, x)),
        ("bool weight", 5, lambda: f(z, x, Q, weight=mask), lambda: add(z, x)),
        ("mean", 4, lambda: f(z, x, Q, reduction="mean"), lambda: add(z, x)),
        (
            "weighted_mean",
            6,
            lambda: f(z, x, Q, weight=rows, reduction="weighted_mean"),
            lambda: add(z, x),
        ),
        (
            "weighted_mean, bool mask",
            8,
            lambda: f(z, x, Q, weight=mask, reduction="weighted_mean"),
            lambda: add(z, x),
        ),
        ("out", 3, lambda: f(z, x, Q, out=out), lambda: add(z, x, out=out)),
        ("in place", 5, lambda: f(z, place, Q, out=place), lambda: add(z, x, out=out)),
        ("strided out", 6, lambda: f(z, x, Q, out=strided), lambda: add(z, x, out=strided)),
        ("value_and_grad, mean", 7, lambda: both(z, x, Q, reduction="mean"), lambda: add(z, x)),
        (
            "value_and_grad, weighted_mean, bool mask",
            9,
            lambda: both(z, x, Q, weight=mask, reduction="weighted_mean"),
            lambda: add(z, x),
        ),
        ("float16", 5, lambda: f(zh, xh, Q), lambda: add(zh, xh)),
    ]


def calls_table(budget: float) -> str:
    cases = small()
    timed: Calls = {name: call for name, _, call, _ in cases}
    timed |= {f"add {name}": addition for name, _, _, addition in cases}
    found = seconds(timed, budget)
    rows = []
    for name, aim, _, _ in cases:
        ratio = found[name] / found[f"add {name}"]
        rows.append([name, mark(ratio, ratio <= aim), f"{aim}", f"{found[name] * 1e9:.0f}"])
    return table(["100 elements, float32", "over `np.add`", "at most", "ns"], rows)


# A case, the one it is compared with, and the most that its time may be of the other's.
OVER = (
    ("weighted_mean", "weighted mean over N", 1.15),
    ("weighted_mean, bool mask", "mean", 1.5),
    ("weighted_mean, mask for each row", "mean", 1.4),
    ("float64 labels beside float32 logits", "float64 loss", 1.1),
)


def loss(z: np.ndarray, x: np.ndarray, **options: Any) -> Callable[[], Any]:
    return lambda: weighted_cross_entropy_with_logits(z, x, Q, **options)


def large(rows: int, columns: int) -> Calls:
    z, x, mask = arrays(rows, columns, "float32")
    weight = mask * np.float32(0.5)
    row = np.ascontiguousarray(mask[:, :1])
    doubles, wide = z.astype("float64"), x.astype("float64")
    out = np.empty_like(wide)
    by_weights = {"reduction": "weighted_mean"}
    return {
        "mean": loss(z, x, reduction="mean"),
        "weighted mean over N": loss(z, x, weight=weight, reduction="mean"),
        "weighted_mean": loss(z, x, weight=weight, **by_weights),
        "weighted_mean, bool mask": loss(z, x, weight=mask, **by_weights),
        "weighted_mean, mask for each row": loss(z, x, weight=row, **by_weights),
        "float64 labels beside float32 logits": loss(doubles, x, out=out),
        "float64 loss": loss(doubles, wide, out=out),
    }


def layouts_table(budget: float, size: int = LARGE) -> str:
    columns = (8, 100, 1000)
    found = [seconds(large(size // n, n), budget) for n in columns]
    rows = []
    for case, other, aim in OVER:
        ratios = (times[case] / times[other] for times in found)
        rows.append([f"{case} / {other}", *(mark(r, r <= aim) for r in ratios), f"{aim}"])
    return table([f"{size:,} elements", *(f"{n} columns" for n in columns), "at most"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--page", type=Path, help="renew the tables of this page")
    parser.add_argument("--seconds", type=float, default=15, help="for each table")
    options = parser.parse_args()
    tables = {
        "calls": calls_table(options.seconds),
        "layouts": layouts_table(options.seconds / 3),
    }
    if options.page:
        renew(options.page, tables)
    else:
        print("\n\n".join(tables.values()))


if __name__ == "__main__":
    main()
