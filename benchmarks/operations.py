"""Count the vector operations that the kernel takes for an element, from the compiler's assembly.

    python benchmarks/operations.py [--page docs/targets.md]

Wants GCC on x86-64. Loads and stores are not counted: they have units of their own.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import tempfile
from collections import Counter
from functools import cache
from pathlib import Path
from typing import NamedTuple

from report import renew, table

HERE = Path(__file__).parent
KERNEL = HERE.parent / "src" / "logitloss" / "_kernel"
# As in meson.build.
FLAGS = [
    *("-O3", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"),
    *("-fno-tree-loop-distribute-patterns", "-fexcess-precision=fast"),
    *("-fschedule-insns", "-fsched-pressure"),
]
AVX2 = ["-mavx2", "-mfma", "-mf16c", "-mprfchw"]
AVX512 = [*AVX2, *(f"-mavx512{part}" for part in ("f", "dq", "bw", "vl"))]
TARGETS = {"avx2": AVX2, "avx512": [*AVX512, "-mprefer-vector-width=512"]}
WIDTHS = {"avx2": 32, "avx512": 64}
ITEMSIZES = {"float32": 4, "float64": 8}
# The vectors that a loop stores for one vector of elements tell how far it is unrolled.
STORES = {
    "first_loss": 4,
    "second_loss": 1,
    "first_loss_and_gradient": 6,
    "second_loss_and_gradient": 2,
    "first_weighted_loss": 4,
    "quotients": 1,
}
# The loops that each case of compare.py takes.
CASES = {
    "loss": ("first_loss", "quotients", "second_loss"),
    "mean": ("first_loss", "quotients", "second_loss"),
    "mean + gradient": ("first_loss_and_gradient", "quotients", "second_loss_and_gradient"),
    "loss, weight": ("first_weighted_loss", "quotients", "second_loss"),
}

MOVES = re.compile(r"v?(mov|pmov|lddqu|prefetch|broadcast|pbroadcast|extract|insert)")
# Not to the stack, where registers go for a while.
STORE = re.compile(r"vmov\w+ %[yz]mm\d+, (?!.*%r[sb]p).*\)")
FUSED = re.compile(r"v(fn?m(add|sub)|mul)")
ADDED = re.compile(r"v(add|sub)[ps]")
DIVIDED = re.compile(r"vdiv")


class Operations(NamedTuple):
    """Operations for one vector of elements."""

    fused: float  # and products, which take the same units
    added: float
    divided: float
    other: float

    def __add__(self, more: Operations) -> Operations:  # type: ignore[override]
        return Operations(*(a + b for a, b in zip(self, more, strict=True)))


# As `accumulate` has them: conversions and additions of vectors half as wide; a sum and its error.
SUMS = {"float32": Operations(0, 2, 0, 2), "float64": Operations(0, 7, 0, 0)}


@cache
def assembly(dtype: str, target: str) -> str:
    options = [f"-DLOGITLOSS_REAL={8 * ITEMSIZES[dtype]}", "-DLOGITLOSS_RUN=unused", f"-I{KERNEL}"]
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "operations.s"
        compiler = os.environ.get("CC", "cc")
        source = HERE / "operations.c"
        subprocess.run(
            [compiler, "-std=c11", *FLAGS, *TARGETS[target], *options, "-S", source, "-o", output],
            check=True,
        )
        return output.read_text()


def loops(text: str, function: str) -> list[list[tuple[str, str]]]:
    """The innermost loops of a function, as instructions and their operands; all if it has none."""
    body = re.split(r"\n\s*\.size\t", text.split(f"\n{function}:\n", 1)[1], maxsplit=1)[0]
    labels: dict[str, int] = {}
    code: list[tuple[str, str]] = []
    found: list[tuple[int, int]] = []
    for line in body.splitlines():
        if label := re.match(r"(\.L\w+):", line):
            labels[label[1]] = len(code)
        elif instruction := re.match(r"\t(\w+)(?:\t(.*))?$", line):
            code.append((instruction[1], instruction[2] or ""))
            if instruction[1].startswith("j") and instruction[2] in labels:
                found.append((labels[instruction[2]], len(code)))
    innermost = [
        code[start:stop]
        for start, stop in found
        if not any(start <= a and b < stop for a, b in found if (a, b) != (start, stop))
    ]
    return innermost or [code]


def count(dtype: str, target: str, function: str) -> Operations:
    """What a vector of elements takes in the loop of this function."""
    register = "%zmm" if WIDTHS[target] == 64 else "%ymm"

    def kinds(loop: list[tuple[str, str]]) -> Counter[str]:
        seen: Counter[str] = Counter()
        for name, operands in loop:
            if register not in operands:
                continue
            if STORE.match(f"{name} {operands}"):
                seen["stored"] += 1
            elif MOVES.match(name):
                continue
            elif FUSED.match(name):
                seen["fused"] += 1
            elif ADDED.match(name):
                seen["added"] += 1
            elif DIVIDED.match(name):
                seen["divided"] += 1
            else:
                seen["other"] += 1
        return seen

    # The loop over whole vectors, rather than over what is left.
    most = max(map(kinds, loops(assembly(dtype, target), function)), key=Counter.total)
    vectors = most["stored"] / STORES[function]
    return Operations(*(most[kind] / vectors for kind in Operations._fields))


def operations(dtype: str, target: str, case: str) -> Operations:
    total = Operations(0, 0, 0, 0)
    for function in CASES[case]:
        total += count(dtype, target, function)
    return total + SUMS[dtype] if case.startswith("mean") else total


def counts_table() -> str:
    rows = []
    for dtype in ITEMSIZES:
        for target in TARGETS:
            for case in CASES:
                found = operations(dtype, target, case)
                numbers = [f"{number:g}" for number in (*found, sum(found))]
                rows.append([f"{dtype}, {target}: {case}", *numbers])
    header = ["a vector of", "fused, products", "additions", "divisions", "other", "all"]
    return table(header, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--page", type=Path, help="renew the table of this page")
    options = parser.parse_args()
    counted = counts_table()
    print(counted)
    if options.page:
        renew(options.page, {"operations": counted})


if __name__ == "__main__":
    main()
