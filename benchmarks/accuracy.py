"""Measure the errors of loss and gradient beside those of the peers, in float32 and in ulp.

    python benchmarks/accuracy.py --plot docs/figures/accuracy.svg

The worst error of each interval of logits is plotted, for labels 0 and 1 and pos_weight 3. Peers
that are not installed are left out. float64 serves as exact: its error is 1e-9 of an ulp here.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import report

import logitloss

Array = np.ndarray[Any, Any]
# The loss and its gradient by the logits, of labels and logits.
Pair = Callable[[Array, Array], tuple[Array, Array]]

POS_WEIGHT = 3.0
LIMIT = 104.0
BINS = 208
PER_BIN = 5000


def exact(z: Array, x: Array) -> tuple[Array, Array]:
    z, x = z.astype(np.float64), x.astype(np.float64)
    e = np.exp(-np.abs(x))
    negative, positive = 1 - z, POS_WEIGHT * z
    loss = (negative + positive) * np.log1p(e)
    loss += negative * np.maximum(x, 0) + positive * np.maximum(-x, 0)
    near, far = np.where(x > 0, negative, positive), np.where(x > 0, positive, negative)
    return loss, np.where(x > 0, 1, -1) * (near - far * e) / (1 + e)


def ours(z: Array, x: Array) -> tuple[Array, Array]:
    return logitloss.value_and_grad(z, x, POS_WEIGHT)


def textbook(z: Any, x: Any, xp: Any) -> Any:
    scale = 1 + (POS_WEIGHT - 1) * z
    return (1 - z) * x + scale * (xp.log1p(xp.exp(-xp.abs(x))) + xp.maximum(-x, 0))


def numpy_textbook(z: Array, x: Array) -> tuple[Array, Array]:
    with np.errstate(over="ignore"):
        sigmoid = 1 / (1 + np.exp(-x))
    return textbook(z, x, np), (1 - z) * sigmoid - POS_WEIGHT * z * (1 - sigmoid)


def torch_pair() -> Pair:
    torch = importlib.import_module("torch")
    function = torch.nn.functional.binary_cross_entropy_with_logits

    def pair(z: Array, x: Array) -> tuple[Array, Array]:
        logits = torch.from_numpy(x).requires_grad_()
        q = torch.tensor(POS_WEIGHT)
        loss = function(logits, torch.from_numpy(z), pos_weight=q, reduction="none")
        loss.sum().backward()
        return loss.detach().numpy(), logits.grad.numpy()

    return pair


def jax_pair() -> Pair:
    jax = importlib.import_module("jax")

    @jax.jit
    def pair(z: Any, x: Any) -> Any:
        loss, pullback = jax.vjp(lambda x: textbook(z, x, jax.numpy), x)
        return loss, pullback(jax.numpy.ones_like(x))[0]

    return pair


def tensorflow_pair() -> Pair:
    tf = importlib.import_module("tensorflow")

    def pair(z: Array, x: Array) -> tuple[Array, Array]:
        logits = tf.constant(x)
        with tf.GradientTape() as tape:
            tape.watch(logits)
            loss = tf.nn.weighted_cross_entropy_with_logits(z, logits, POS_WEIGHT)
        return loss.numpy(), tape.gradient(loss, logits).numpy()

    return pair


def libraries() -> dict[str, Pair]:
    found: dict[str, Pair] = {"NumPy, textbook formula": numpy_textbook}
    makers = {
        "TensorFlow": tensorflow_pair,
        "PyTorch": torch_pair,
        "JAX, textbook formula": jax_pair,
    }
    for name, make in makers.items():
        try:
            found[name] = make()
        except ImportError as error:
            print(f"left out: {error}")
    return found | {"logitloss": ours}


def in_ulp(got: Array, true: Array) -> Array:
    spacing = np.spacing(np.abs(true).astype(np.float32)).astype(np.float64)
    return np.abs(np.asarray(got).astype(np.float64) - true) / spacing


def measure(functions: dict[str, Pair]) -> dict[str, dict[str, Array]]:
    """The worst error of every bin: of the loss and the gradient at both labels, by library."""
    rng = np.random.default_rng(0)
    edges = np.linspace(-LIMIT, LIMIT, BINS + 1)
    x = rng.uniform(edges[:-1, None], edges[1:, None], (BINS, PER_BIN)).astype(np.float32)
    worst: dict[str, dict[str, Array]] = {}
    for label in (0, 1):
        z = np.full_like(x, label)
        true = exact(z, x)
        for name, function in functions.items():
            for what, got, value in zip(("loss", "gradient"), function(z, x), true, strict=True):
                errors = in_ulp(got, value).max(axis=1)
                worst.setdefault(f"{what}, label {label}", {})[name] = errors
    return worst


def draw(worst: dict[str, dict[str, Array]], path: Path) -> None:
    matplotlib = importlib.import_module("matplotlib")
    matplotlib.use("svg")
    plt = importlib.import_module("matplotlib.pyplot")
    path.parent.mkdir(parents=True, exist_ok=True)
    with plt.style.context(report.STYLE):
        figure, axes = plt.subplots(2, 2, figsize=(9, 6), sharex=True, sharey=True)
        centres = (np.arange(BINS) + 0.5) / BINS * 2 * LIMIT - LIMIT
        for axis, what in zip(axes.T.flat, worst, strict=True):
            for name, errors in worst[what].items():
                own = name == "logitloss"
                colour = report.COLOURS[name.split(",")[0]]
                width, order = (2.2, 3) if own else (1.2, 2)
                # Zero has no place on the scale; anything below is at the floor.
                shown = np.maximum(errors, 0.1)
                axis.semilogy(
                    centres, shown, label=name, color=colour, linewidth=width, zorder=order
                )
            axis.set_title(what)
            axis.grid(True)
        for axis in axes[1]:
            axis.set_xlabel("logit")
        for axis in axes[:, 0]:
            axis.set_ylabel("largest error (ulp)")
        axes[0, 0].set_ylim(0.1, 1e8)
        handles, labels = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=3)
        report.save(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    worst = measure(libraries())
    for what, errors in worst.items():
        print(what)
        for name, values in errors.items():
            exceeding = np.mean(values > 4)
            print(f"  {name:24s} at most {values.max():12.4g} ulp, beyond 4 in {exceeding:4.0%}")
    if options.plot:
        draw(worst, options.plot)


if __name__ == "__main__":
    main()
