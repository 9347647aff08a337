"""Compare the float32 results with float64 arithmetic at every logit there is.

    python benchmarks/walk_float32.py --page docs/numerics.md

Walks all 2^32 bit patterns for labels 0 and 1 at pos_weight 1, and prints, for loss, gradient and
Hessian, the largest error in units in the last place of the exact result (subnormal ones included)
and the logit that has it. LOGITLOSS_CPU chooses the instruction set. --every N takes one in N
patterns. Exits with 1 if an error is over its bound, or if special values are not exact.

The reference is NumPy's exp and log1p in float64, of |x|, in forms that do not cancel: its own
error is below 2^-27 of a float32's last place.
"""

from __future__ import annotations

import argparse
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import report

import logitloss

PATTERNS = 2**32
# The fastest of 2^13 to 2^20: the more, the less the threads wait for the interpreter's lock, until
# the temporaries leave the cache.
CHUNK = 2**17
BOUNDS = {"loss": 1.0, "gradient": 1.0, "hessian": 1.25}


class Worst(NamedTuple):
    """The largest error in ulp, and where it was met."""

    ulp: float
    logit: float
    got: float
    exact: float


Errors = dict[tuple[str, int], Worst]


def reference(x: np.ndarray, label: int) -> dict[str, np.ndarray]:
    """Loss, gradient and Hessian in float64."""
    m = np.abs(x)
    e = np.exp(-m)
    # The probability of the class that the logit is for, and of the other.
    likely, unlikely = 1 / (1 + e), e / (1 + e)
    is_wrong = (x < 0) if label else (x >= 0)
    gradient = np.where(is_wrong, likely, unlikely)
    return {
        "loss": np.log1p(e) + np.where(is_wrong, m, 0),
        "gradient": -gradient if label else gradient,
        "hessian": unlikely * likely,
    }


def errors(got: np.ndarray, exact: np.ndarray) -> np.ndarray:
    """|got - exact| in float32 units in the last place of `exact`."""
    # Straight to the exponent field: 2^(exponent - 23), the exponent being at least -126.
    exponent = np.maximum((exact.view(np.int64) >> 52) & 0x7FF, 1023 - 126)
    ulp = ((exponent - 23) << 52).view(np.float64)
    # A result that is the same is right, infinities included.
    return np.where(got == exact, 0, np.abs(got - exact) / ulp)


def walk_chunk(first: int, every: int) -> Errors:
    patterns = np.arange(first, min(first + CHUNK * every, PATTERNS), every, dtype=np.uint32)
    logits = patterns.view(np.float32)
    is_nan = np.isnan(logits)
    x = logits.astype(np.float64)
    worst: Errors = {}
    for label in (0, 1):
        labels = np.full(logits.shape, label, np.float32)
        loss, gradient = logitloss.value_and_grad(labels, logits)
        again, hessian = logitloss.grad_and_hess(labels, logits)
        results = {"loss": loss, "gradient": gradient, "hessian": hessian}
        # Of NaN there are many, and none is promised.
        if again[~is_nan].tobytes() != gradient[~is_nan].tobytes():
            raise SystemExit(f"The two gradients differ at or after the pattern {first:#x}.")
        for name, exact in reference(x, label).items():
            got = results[name]
            if not np.array_equal(np.isnan(got), is_nan):
                raise SystemExit(f"The {name} is wrong about NaN after the pattern {first:#x}.")
            distances = errors(got.astype(np.float64), exact)
            distances[is_nan] = 0
            at = int(np.argmax(distances))
            worst[name, label] = Worst(*map(float, (distances[at], x[at], got[at], exact[at])))
    return worst


def walk(first: int = 0, stop: int = PATTERNS, every: int = 1, threads: int = 1) -> Errors:
    """The worst of the patterns in a range, for each quantity and label."""
    worst: Errors = {}

    def one(start: int) -> Errors:
        with np.errstate(all="ignore"):
            return walk_chunk(start, every)

    with ThreadPoolExecutor(threads) as pool:
        for found in pool.map(one, range(first, stop, CHUNK * every)):
            for key, value in found.items():
                worst[key] = max(worst.get(key, value), value)
    return worst


def table(worst: Errors, title: str) -> str:
    lines = [
        f"| {title} | label | largest error, ulp | at the logit | result | exact |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for (name, label), at in worst.items():
        logit, got = np.float32(at.logit), np.float32(at.got)
        lines.append(
            f"| {name} | {label} | {at.ulp:.3f} | {logit} ({_hex(at.logit)}) | {got} | "
            f"{at.exact:.10g} |"
        )
    return "\n".join(lines)


def _hex(value: float) -> str:
    """The number without the digits that a float32 does not have."""
    mantissa, _, exponent = value.hex().partition("p")
    return f"{mantissa.rstrip('0')}p{exponent}"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--every", type=int, default=1, metavar="N", help="one pattern in N")
    parser.add_argument("--page", type=Path, metavar="FILE", help="renew the table of a page")
    options = parser.parse_args()

    threads = logitloss.get_num_threads()
    # One for each chunk, and as many chunks at a time.
    logitloss.set_num_threads(1)
    start = time.perf_counter()
    worst = walk(every=options.every, threads=threads)
    seconds = time.perf_counter() - start
    count = len(range(0, PATTERNS, options.every))
    target = logitloss.show_config("dicts")["cpu"]
    found = table(worst, f"{target}, {count:,} logits")
    print(f"{found}\n\n{seconds:.0f} s")
    if options.page:
        report.renew(options.page, {f"float32 {target}": found})
    return int(any(at.ulp > BOUNDS[name] for (name, _), at in worst.items()))


if __name__ == "__main__":
    sys.exit(main())
