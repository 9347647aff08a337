"""Runs TensorFlow's cases for compare.py, which writes requests to this process's standard input.

Each line is a JSON list: ["load", size, dtype] makes the arrays and answers with the names of the
cases; ["run", library, case] runs one twice and answers with the seconds of the second call.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

from peers import POS_WEIGHT, arrays


def load(tf: Any, size: int, dtype: str) -> dict[str, dict[str, Callable]]:
    z, x = (tf.constant(a) for a in arrays(size, dtype))

    def loss(z: Any, x: Any) -> Any:
        return tf.nn.weighted_cross_entropy_with_logits(z, x, POS_WEIGHT)

    def mean(z: Any, x: Any) -> Any:
        return tf.reduce_mean(loss(z, x))

    def both(z: Any, x: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(x)
            value = mean(z, x)
        return value, tape.gradient(value, x)

    functions = {"loss": loss, "mean": mean, "mean + gradient": both}
    compiled = {case: tf.function(f, jit_compile=True) for case, f in functions.items()}
    return {
        library: {case: lambda f=f: f(z, x) for case, f in chosen.items()}
        for library, chosen in {"TensorFlow": functions, "TensorFlow XLA": compiled}.items()
    }


def seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    result = call()
    # Reaching for the numbers waits for them.
    memoryview(result[-1] if isinstance(result, tuple) else result)
    del result
    return time.perf_counter() - start


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # Nothing that TensorFlow prints can be taken for an answer.
    import tensorflow as tf

    threads = int(sys.argv[1])
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    print(json.dumps(tf.__version__), file=answers, flush=True)
    cases: dict[str, dict[str, Callable]] = {}
    for line in sys.stdin:
        request, *values = json.loads(line)
        if request == "load":
            cases = load(tf, *values)
            answer: Any = {library: list(functions) for library, functions in cases.items()}
        else:
            library, case = values
            call = cases[library][case]
            seconds(call)
            answer = seconds(call)
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
