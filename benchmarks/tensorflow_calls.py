"""Measure calls on TensorFlow's tensors beside its own loss.

    python benchmarks/tensorflow_calls.py [--page docs/performance.md]

Prints Markdown: the time of a call over that of TensorFlow's own function, from one run, eagerly,
in `tf.function` and compiled by XLA. A step is the mean and its gradient by the logits. `--page`
writes the table into that page.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from peers import POS_WEIGHT, arrays
from report import renew
from timing import Calls, seconds

from logitloss import get_num_threads, weighted_cross_entropy_with_logits

SIZES = (10, 1_000, 100_000, 1_000_000, 10_000_000)
WAYS: dict[str, Callable[..., Any]] = {
    "eager": lambda function: function,
    "tf.function": lambda function: tf.function(function, autograph=False),
    "XLA": lambda function: tf.function(function, autograph=False, jit_compile=True),
}


def their_loss(z: Any, x: Any) -> Any:
    return tf.nn.weighted_cross_entropy_with_logits(z, x, POS_WEIGHT)


def their_mean(z: Any, x: Any) -> Any:
    return tf.reduce_mean(their_loss(z, x))


def our_loss(z: Any, x: Any) -> Any:
    return weighted_cross_entropy_with_logits(z, x, POS_WEIGHT)


def our_mean(z: Any, x: Any) -> Any:
    return weighted_cross_entropy_with_logits(z, x, POS_WEIGHT, reduction="mean")


def step(mean: Callable[..., Any]) -> Callable[..., Any]:
    def value_and_gradient(z: Any, x: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(x)
            value = mean(z, x)
        return value, tape.gradient(value, x)

    return value_and_gradient


def calls(size: int, dtype: str, way: Callable[..., Any]) -> Calls:
    z, x = map(tf.constant, arrays(size, dtype))
    functions = {
        "loss": our_loss,
        "loss, TensorFlow": their_loss,
        "step": step(our_mean),
        "step, TensorFlow": step(their_mean),
    }

    def waiting(function: Callable[..., Any]) -> Callable[[], None]:
        def call() -> None:
            # Reaching for the numbers waits for them.
            np.asarray(tf.nest.flatten(function(z, x))[-1])

        return call

    return {name: waiting(way(function)) for name, function in functions.items()}


def table() -> str:
    columns = [f"{way}, {case}" for way in WAYS for case in ("loss", "step")]
    lines = ["| dtype | elements | " + " | ".join(columns) + " |"]
    lines.append("| --- | ---: |" + " ---: |" * len(columns))
    for dtype in ("float32", "float64"):
        for size in SIZES:
            ratios = []
            for way in WAYS.values():
                found = seconds(calls(size, dtype, way))
                ratios += [found[case] / found[f"{case}, TensorFlow"] for case in ("loss", "step")]
            cells = " | ".join(f"{ratio:.2f}" for ratio in ratios)
            lines.append(f"| {dtype} | {size:,} | {cells} |")
            print(lines[-1], flush=True)
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--page", type=Path)
    options = parser.parse_args()
    tf.config.threading.set_intra_op_parallelism_threads(get_num_threads())
    found = table()
    print(found)
    if options.page is not None:
        renew(options.page, {"tensorflow": found})


if __name__ == "__main__":
    main()
