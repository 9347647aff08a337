"""The Keras loss, on every backend of Keras that is installed."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

import logitloss

pytest.importorskip("keras")

BACKENDS = [
    pytest.param(
        name,
        marks=pytest.mark.skipif(
            importlib.util.find_spec(name) is None, reason=f"could not import {name!r}"
        ),
    )
    for name in ("tensorflow", "jax", "torch")
]

# A process knows one backend of Keras.
PRELUDE = """
import keras
import numpy as np
import logitloss
from logitloss.compat.keras import WeightedBinaryCrossentropy

keras.utils.set_random_seed(0)
generator = np.random.default_rng(0)
y = (generator.random(200) < 0.2).astype("float32")
X = (generator.normal(size=(200, 3)) + y[:, None]).astype("float32")


def model(loss, outputs=1, **options):
    made = keras.Sequential([keras.Input((3,)), keras.layers.Dense(outputs)])
    made.compile(keras.optimizers.SGD(0.5), loss, **options)
    return made
"""

SCRIPTS = {
    "values": """
for labels, logits, pos_weight in (
    ([[1.0], [0.0]], [[0.0], [-20.0]], 3.0),
    ([[1.0, 0.0], [0.5, 1.0]], [[0.0, 2.0], [-1.0, 30.0]], [2.0, 5.0]),
    ([1.0, 0.0, 1.0], [0.5, -2.0, 3.0], 0.5),
):
    expected = logitloss.weighted_cross_entropy_with_logits(
        np.array(labels, "float32"), np.array(logits, "float32"), pos_weight
    )
    got = WeightedBinaryCrossentropy(pos_weight)(labels, logits)
    np.testing.assert_allclose(keras.ops.convert_to_numpy(got), expected.mean(), rtol=1e-6)
    each = WeightedBinaryCrossentropy(pos_weight, reduction=None)(labels, logits)
    expected = expected.mean(-1) if expected.ndim > 1 else expected
    np.testing.assert_allclose(keras.ops.convert_to_numpy(each), expected, rtol=1e-6)
    assert keras.backend.standardize_dtype(each.dtype) == "float32"
""",
    "agrees with Keras where Keras is right": """
theirs = keras.losses.BinaryCrossentropy(from_logits=True)
labels, logits = y[:, None], X[:, :1]
for weights in (None, np.linspace(0, 1, 200).astype("float32")):
    for reduction in ("sum_over_batch_size", "sum", "mean", "mean_with_sample_weight"):
        ours, theirs = (
            loss(labels, logits, sample_weight=weights)
            for loss in (
                WeightedBinaryCrossentropy(reduction=reduction),
                keras.losses.BinaryCrossentropy(from_logits=True, reduction=reduction),
            )
        )
        np.testing.assert_allclose(float(ours), float(theirs), rtol=1e-5)
""",
    "shapes": """
for labels, logits in ((y, X[:, :1]), (y[:, None], X[:, 0])):
    got = WeightedBinaryCrossentropy(2.0)(labels, logits)
    expected = WeightedBinaryCrossentropy(2.0)(y, X[:, 0])
    np.testing.assert_allclose(float(got), float(expected), rtol=1e-6)
for labels, logits in ((y, X), (X[:, :2], X)):
    try:
        WeightedBinaryCrossentropy(2.0)(labels, logits)
    except ValueError as error:
        assert "must have the same shape" in str(error)
    else:
        raise AssertionError
""",
    "fit, evaluate, weights": """
recalls = []
for pos_weight in (1.0, 20.0):
    fitted = model(WeightedBinaryCrossentropy(pos_weight))
    history = fitted.fit(X, y, epochs=5, verbose=0).history["loss"]
    assert history[-1] < history[0]
    found = fitted.predict(X, verbose=0)[:, 0]
    expected = logitloss.weighted_cross_entropy_with_logits(y, found, pos_weight, reduction="mean")
    np.testing.assert_allclose(fitted.evaluate(X, y, verbose=0), expected, rtol=1e-5)
    recalls.append((found > 0)[y == 1].mean())
assert recalls[1] > recalls[0]

weighted = model(WeightedBinaryCrossentropy())
weighted.fit(X, y, class_weight={0: 1.0, 1: 5.0}, epochs=1, verbose=0)
weights = np.where(y == 1, 5.0, 1.0).astype("float32")
found = weighted.predict(X, verbose=0)[:, 0]
expected = logitloss.sigmoid_cross_entropy_with_logits(y, found, weight=weights, reduction="mean")
got = weighted.evaluate(X, y, sample_weight=weights, verbose=0)
np.testing.assert_allclose(got, expected, rtol=1e-5)
""",
    "a layer that starts at zero learns from its positives": """
for jit_compile in (True, False) if keras.backend.backend() != "torch" else (False,):
    zero = keras.Sequential(
        [keras.Input((3,)), keras.layers.Dense(1, kernel_initializer="zeros", use_bias=False)]
    )
    loss = WeightedBinaryCrossentropy(3.0)
    zero.compile(keras.optimizers.SGD(1.0), loss, jit_compile=jit_compile)
    zero.fit(X[y == 1], y[y == 1], batch_size=1000, epochs=1, verbose=0)
    np.testing.assert_allclose(zero.get_weights()[0][:, 0], 1.5 * X[y == 1].mean(0), rtol=1e-5)
""",
    "masks": """
sequences = np.array([[[1.0], [2.0], [0.0]], [[3.0], [0.0], [0.0]]], "float32")
labels = np.array([[[1.0], [0.0], [1.0]], [[1.0], [1.0], [1.0]]], "float32")
masked = keras.Sequential(
    [keras.Input((3, 1)), keras.layers.Masking(), keras.layers.Dense(1, use_bias=False)]
)
masked.compile(loss=WeightedBinaryCrossentropy(2.0))
kernel = float(masked.get_weights()[0].item())
logits = np.array([kernel, 2 * kernel, 3 * kernel], "float32")
expected = logitloss.weighted_cross_entropy_with_logits(
    np.array([1, 0, 1], "float32"), logits, 2.0, reduction="mean"
)
np.testing.assert_allclose(masked.evaluate(sequences, labels, verbose=0), expected, rtol=1e-5)
""",
    "saving": """
for pos_weight in (3.0, [1.0, 2.0]):
    loss = WeightedBinaryCrossentropy(pos_weight, name="mine", reduction="sum", dtype="float64")
    for copy in (
        WeightedBinaryCrossentropy.from_config(loss.get_config()),
        keras.losses.deserialize(keras.losses.serialize(loss)),
    ):
        assert isinstance(copy, WeightedBinaryCrossentropy)
        assert copy.get_config() == loss.get_config()
        assert (copy.pos_weight, copy.name, copy.reduction) == (pos_weight, "mine", "sum")
        assert copy.dtype == "float64"
for pos_weight in (3.0, np.array([2.0], "float32")):
    fitted = model(WeightedBinaryCrossentropy(pos_weight))
    fitted.fit(X, y, epochs=1, verbose=0)
    fitted.save("model.keras")
    loaded = keras.models.load_model("model.keras")
    assert loaded.evaluate(X, y, verbose=0) == fitted.evaluate(X, y, verbose=0)
    loaded.fit(X, y, epochs=1, verbose=0)
""",
    "mixed precision": """
keras.mixed_precision.set_global_policy("mixed_bfloat16")
fitted = model(WeightedBinaryCrossentropy(3.0))
assert keras.backend.standardize_dtype(fitted(X).dtype) == "bfloat16"
assert all(np.isfinite(fitted.fit(X, y, epochs=2, verbose=0).history["loss"]))
""",
}


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_keras(backend: str, script: str, tmp_path: Path) -> None:
    environment = {
        "KERAS_BACKEND": backend,
        "PYTHONPATH": str(Path(logitloss.__file__).parents[1]),
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "JAX_PLATFORMS": "cpu",
    }
    result = subprocess.run(
        [sys.executable, "-c", PRELUDE + SCRIPTS[script]],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert result.returncode == 0, result.stderr
