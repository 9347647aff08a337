"""What logitloss is compared with: each library's own way to compute the same loss.

Every function takes labels, logits, an output that has been touched, and a number of threads, and
returns the calls to time, by library and by what is computed. Libraries that can write into a given
array do; the others allocate their result in every call, as their users do.
"""

from __future__ import annotations

import importlib
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

POS_WEIGHT = 2.5
Cases = dict[str, Callable[[], Any]]


def arrays(size: int, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """Labels and logits: a fifth of positives, and what a fair classifier makes of them."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 3, size).astype(dtype)
    labels = (rng.random(size) < 0.2).astype(dtype)
    return labels, logits


def textbook(xp: Any, z: Any, x: Any, q: Any = POS_WEIGHT) -> Any:
    """The form that TensorFlow documents, as people write it down."""
    return (1 - z) * x + (1 + (q - 1) * z) * (
        xp.log1p(xp.exp(-xp.abs(x))) + xp.maximum(-x, xp.zeros_like(x))
    )


def numpy(z: np.ndarray, x: np.ndarray, out: np.ndarray, threads: int) -> dict[str, Cases]:
    return {"NumPy": {"loss": lambda: textbook(np, z, x)}}


def numexpr(z: np.ndarray, x: np.ndarray, out: np.ndarray, threads: int) -> dict[str, Cases]:
    library = importlib.import_module("numexpr")
    library.set_num_threads(threads)
    expression = (
        "(one - z) * x + (one + (q - one) * z) * (log1p(exp(-abs(x))) + where(x < 0, -x, 0 * x))"
    )
    names = {"z": z, "x": x, "q": x.dtype.type(POS_WEIGHT), "one": x.dtype.type(1)}
    return {"numexpr": {"loss": lambda: library.evaluate(expression, names, out=out)}}


def numba(z: np.ndarray, x: np.ndarray, out: np.ndarray, threads: int) -> dict[str, Cases]:
    library = importlib.import_module("numba")
    library.set_num_threads(min(threads, library.config.NUMBA_NUM_THREADS))

    @library.njit(parallel=True)
    def run(z, x, q, out):
        for i in library.prange(x.size):
            v = x[i]
            out[i] = (1 - z[i]) * v + (1 + (q - 1) * z[i]) * (
                np.log1p(np.exp(-abs(v))) + max(-v, q * 0)
            )

    q = x.dtype.type(POS_WEIGHT)
    return {"numba": {"loss": lambda: run(z, x, q, out)}}


def scikit_learn(z: np.ndarray, x: np.ndarray, out: np.ndarray, threads: int) -> dict[str, Cases]:
    """Its loss has no pos_weight, which saves it a multiplication."""
    half_binomial = importlib.import_module("sklearn._loss").HalfBinomialLoss()
    gradient = np.ones_like(x)
    return {
        "scikit-learn": {
            "loss": lambda: half_binomial.loss(z, x, loss_out=out, n_threads=threads),
            "mean + gradient": lambda: half_binomial.loss_gradient(
                z, x, loss_out=out, gradient_out=gradient, n_threads=threads
            ),
        }
    }


def torch(z: np.ndarray, x: np.ndarray, out: np.ndarray, threads: int) -> dict[str, Cases]:
    library = importlib.import_module("torch")
    library.set_num_threads(threads)
    # What was compiled for other shapes would be made general, or be given up as too many.
    importlib.import_module("torch._dynamo").reset()
    labels, logits = library.from_numpy(z), library.from_numpy(x)
    leaf = logits.clone().requires_grad_()
    q = library.tensor(POS_WEIGHT, dtype=logits.dtype)
    eager = library.nn.functional.binary_cross_entropy_with_logits

    def loss(x: Any, z: Any, reduction: str) -> Any:
        return eager(x, z, pos_weight=q, reduction=reduction)

    def gradient(function: Callable[..., Any]) -> None:
        leaf.grad = None
        function(leaf, labels, "mean").backward()

    return {
        name: {
            "loss": lambda f=function: f(logits, labels, "none"),
            "mean": lambda f=function: f(logits, labels, "mean"),
            "mean + gradient": lambda f=function: gradient(f),
        }
        for name, function in {"PyTorch": loss, "torch.compile": library.compile(loss)}.items()
    }


def jax(z: np.ndarray, x: np.ndarray, out: np.ndarray, threads: int) -> dict[str, Cases]:
    """It takes its number of threads from the processors of the process alone."""
    library = importlib.import_module("jax")
    library.config.update("jax_enable_x64", True)
    jnp = library.numpy
    labels, logits = jnp.asarray(z), jnp.asarray(x)
    loss = library.jit(lambda z, x: textbook(jnp, z, x))
    mean = library.jit(lambda z, x: textbook(jnp, z, x).mean())
    both = library.jit(library.value_and_grad(lambda x, z: textbook(jnp, z, x).mean()))
    return {
        "JAX jit": {
            "loss": lambda: loss(labels, logits).block_until_ready(),
            "mean": lambda: mean(labels, logits).block_until_ready(),
            "mean + gradient": lambda: library.block_until_ready(both(logits, labels)),
        }
    }


class TensorFlow:
    """TensorFlow in a process of its own, which may be another Python: it runs a case when asked.

    A case returns the seconds that it took over there.
    """

    def __init__(self, python: str, threads: int) -> None:
        worker = Path(__file__).parent / "tensorflow_worker.py"
        self._process = subprocess.Popen(
            [python, worker, str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.version: str = self._read()

    def _read(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise ImportError(f"TensorFlow does not run with {self._process.args[0]}")
        return json.loads(line)

    def _ask(self, *request: Any) -> Any:
        assert self._process.stdin is not None
        print(json.dumps(request), file=self._process.stdin, flush=True)
        return self._read()

    def cases(self, size: int, dtype: str) -> dict[str, Cases]:
        names: dict[str, list[str]] = self._ask("load", size, dtype)
        return {
            library: {
                case: lambda library=library, case=case: self._ask("run", library, case)
                for case in cases
            }
            for library, cases in names.items()
        }

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
