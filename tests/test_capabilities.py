"""The table in docs/backends.md: every yes is tried, every no raises what it says.

Run as a script this writes the table anew.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import array_api_compat
import backends
import numpy as np
import pytest
from backends import CAPABILITIES, DTYPES, LACKS, Backend

import logitloss
from logitloss import weighted_cross_entropy_with_logits as weighted
from logitloss._libraries import namespace_of

PAGE = Path(__file__).parents[1] / "docs" / "backends.md"
PLACE = re.compile(r"(?<=<!-- capabilities -->\n).*(?=<!-- /capabilities -->)", re.DOTALL)
TITLES = {
    "numpy": "NumPy",
    "torch": "PyTorch, CPU",
    "torch-cuda": "PyTorch, CUDA ¹",
    "jax": "JAX",
    "dask": "Dask",
    "tensorflow": "TensorFlow",
    "cupy": "CuPy ¹",
    "array_api_strict": "`array_api_strict`",
    "sparse": "sparse",
    "ndonnx": "ndonnx",
}
FLOATS = ("float16", "bfloat16", "float32", "float64", "longdouble")
ON_GPU = (
    "Its tests skip where there is no GPU. They were last run on an H100, with PyTorch 2.11 and "
    "CuPy 14.2, before [the latest changes](performance.md#gpus-from-nvidia) of the kernel."
)


def table() -> str:
    """A row for each capability and dtype, a column for each library."""
    reasons: list[str] = [ON_GPU]
    columns = []
    for name in TITLES:
        column = []
        for capability in CAPABILITIES:
            no = LACKS[name].get(capability)
            if no and no.reason not in reasons:
                reasons.append(no.reason)
            column.append(f"no{'¹²³⁴⁵⁶⁷'[reasons.index(no.reason)]}" if no else "yes")
        columns.append(column + ["yes" if dtype in DTYPES[name] else "no" for dtype in FLOATS])
    header = " | ".join(("", "capability", *TITLES.values(), "")).strip()
    lines = [header, "|---" * (len(TITLES) + 1) + "|"]
    for capability, *cells in zip((*CAPABILITIES, *FLOATS), *columns, strict=True):
        lines.append("| " + " | ".join((capability, *cells)) + " |")
    notes = [f"{number}. {reason}" for number, reason in enumerate(reasons, 1)]
    return "\n".join([*lines, "", *notes]) + "\n"


LABELS = np.array([[1.0, 0.0, 1.0], [0.0, 1.0, 0.5]])
LOGITS = np.array([[0.0, -20.0, 3.0], [40.0, -2.0, 0.0]])
POS_WEIGHT = 3.0
LOSS = weighted(LABELS, LOGITS, POS_WEIGHT)
GRADIENT, HESSIAN = logitloss.grad_and_hess(LABELS, LOGITS, POS_WEIGHT)


def close(backend: Backend, got: Any, expected: Any) -> None:
    np.testing.assert_allclose(backend.to_numpy(got), expected, rtol=1e-14)


def arrays(backend: Backend) -> tuple[Any, Any]:
    return backend.array(LABELS), backend.array(LOGITS)


def loss(backend: Backend) -> None:
    close(backend, weighted(*arrays(backend), POS_WEIGHT), LOSS)


def reductions(backend: Backend) -> None:
    weight = backend.array([0.5, 1.0, 2.0])
    for reduction in ("sum", "mean", "weighted_mean"):
        expected, got = (
            weighted(*given, POS_WEIGHT, weight=by, reduction=reduction)
            for given, by in (((LABELS, LOGITS), [0.5, 1.0, 2.0]), (arrays(backend), weight))
        )
        close(backend, got, expected)


def value_and_grad(backend: Backend) -> None:
    value, gradient = logitloss.value_and_grad(*arrays(backend), POS_WEIGHT)
    close(backend, value, LOSS)
    close(backend, gradient, GRADIENT)


def grad_and_hess(backend: Backend) -> None:
    gradient, hessian = logitloss.grad_and_hess(*arrays(backend), POS_WEIGHT)
    close(backend, gradient, GRADIENT)
    close(backend, hessian, HESSIAN)


def out(backend: Backend) -> None:
    labels, logits = arrays(backend)
    written = backend.array(np.zeros(LOGITS.shape))
    written = written.copy() if backend.name == "numpy" else written
    assert weighted(labels, logits, POS_WEIGHT, out=written) is written
    close(backend, written, LOSS)


def transformed(backend: Backend, name: str, function: Any) -> Any:
    if backend.name == "tensorflow":
        tf = import_module("tensorflow")
        return tf.function(function) if name == "jit" else taped(tf, function)
    libraries = {"torch": "torch.func", "jax": "jax"}
    library = libraries.get(backend.name)
    module = import_module(library) if library else backend.library
    return getattr(module, name)(function)


def taped(tf: Any, function: Any) -> Any:
    """The gradient of `function`, or of the sum of what it returns."""

    def slope(x: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(x)
            value = function(x)
        return tape.gradient(value, x)

    return slope


def slope_of_the_sum(backend: Backend, labels: Any) -> Any:
    return transformed(backend, "grad", lambda x: weighted(labels, x, POS_WEIGHT, reduction="sum"))


def gradient(backend: Backend) -> None:
    labels, logits = arrays(backend)
    close(backend, slope_of_the_sum(backend, labels)(logits), GRADIENT)


def second_derivative(backend: Backend) -> None:
    labels, logits = arrays(backend)
    slope = slope_of_the_sum(backend, labels)
    xp = namespace_of(logits)
    second = transformed(backend, "grad", lambda x: xp.sum(slope(x), dtype=x.dtype))
    close(backend, second(logits), HESSIAN)


def mean(labels: Any, logits: Any) -> Any:
    return weighted(labels, logits, POS_WEIGHT, reduction="mean")


def compiles(backend: Backend) -> None:
    if backend.name == "ndonnx":
        pytest.importorskip("onnxruntime")
        return is_lazy(backend)
    if backend.name == "torch":
        backend.library._dynamo.reset()
        function = backend.library.compile(mean, fullgraph=True, backend="aot_eager")
    else:
        function = transformed(backend, "jit", mean)
    close(backend, function(*arrays(backend)), LOSS.mean())


def refuse(*args: Any, **kwargs: Any) -> None:
    raise AssertionError("the graph was computed")


def is_lazy(backend: Backend) -> None:
    if backend.name == "ndonnx":
        return is_onnx_model(backend)
    if backend.name == "dask":
        with import_module("dask").config.set(scheduler=refuse):
            result = mean(*arrays(backend))
    else:
        result = mean(*arrays(backend))
    np.testing.assert_allclose(result.compute(scheduler="synchronous"), LOSS.mean(), rtol=1e-14)


def is_onnx_model(backend: Backend) -> None:
    """A number of rows that is not known yet, and no values."""
    ndonnx = backend.library
    labels, logits = (ndonnx.argument(shape=("rows", 3), dtype=ndonnx.float64) for _ in range(2))
    outputs, expected = {}, {}
    for reduction in ("none", "sum", "mean", "weighted_mean"):
        options = {"weight": [2.0, 1.0, 0.5], "reduction": reduction}
        outputs[reduction] = weighted(labels, logits, POS_WEIGHT, **options)
        expected[reduction] = weighted(LABELS, LOGITS, POS_WEIGHT, **options)
    model = ndonnx.build({"labels": labels, "logits": logits}, outputs)
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(model.SerializeToString())
    results = session.run(list(outputs), {"labels": LABELS, "logits": LOGITS})
    for name, result in zip(outputs, results, strict=True):
        np.testing.assert_allclose(result, expected[name], rtol=1e-14)


SECOND_JAX_DEVICE = """
import jax, logitloss
second = jax.devices()[1]
ones = jax.device_put(jax.numpy.ones(3), second)
for result in logitloss.value_and_grad(ones, ones, 2.0, reduction="mean"):
    assert result.devices() == {second}
"""


SECOND_TENSORFLOW_DEVICE = """
import tensorflow as tf, logitloss
cpus = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(cpus[0], [tf.config.LogicalDeviceConfiguration()] * 2)
with tf.device("CPU:1"):
    ones = tf.ones(3)
for result in logitloss.value_and_grad(ones, ones, 2.0, reduction="mean"):
    assert result.device.endswith("CPU:1")
"""


def devices(backend: Backend) -> None:
    if backend.name == "tensorflow":
        subprocess.run([sys.executable, "-c", SECOND_TENSORFLOW_DEVICE], check=True)
        return
    if backend.name == "jax":
        flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu"}
        subprocess.run(
            [sys.executable, "-c", SECOND_JAX_DEVICE], env=os.environ | flags, check=True
        )
        return
    if backend.name == "dask":
        # Those of its chunks, which may be of any library.
        jnp = pytest.importorskip("jax.numpy")
        chunks = backend.library.from_array(jnp.asarray(LOGITS), chunks=3, asarray=False)
        assert isinstance(weighted(chunks, chunks, 2.0).compute(), type(jnp.ones(1)))
        return
    labels, logits = arrays(backend)
    if backend.name == "cupy" or "cuda" in str(backend.device):
        expected = array_api_compat.device(logits)
        assert expected != "cpu"
    else:
        xp = array_api_compat.array_namespace(logits)
        expected = xp.__array_namespace_info__().devices()[1]
        labels, logits = (array_api_compat.to_device(a, expected) for a in (labels, logits))
    for result in logitloss.value_and_grad(labels, logits, 2.0, reduction="mean"):
        assert array_api_compat.device(result) == expected


TRIES = {
    "loss": loss,
    "reductions": reductions,
    "value_and_grad": value_and_grad,
    "grad_and_hess": grad_and_hess,
    "out": out,
    "gradient": gradient,
    "second derivative": second_derivative,
    "compile": compiles,
    "lazy": is_lazy,
    "devices": devices,
}


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("name", LACKS)
def test_table_is_true(name: str, capability: str) -> None:
    backend, no = backends.get(name), LACKS[name].get(capability)
    if no is None:
        TRIES[capability](backend)
    else:
        with pytest.raises(no.error, match=no.message):
            TRIES[capability](backend)


@pytest.mark.skipif(bool(backends.MISSING), reason="the table has the dtypes of all libraries")
def test_page_holds_the_table() -> None:
    assert PLACE.findall(PAGE.read_text(encoding="utf-8")) == [table()]


if __name__ == "__main__":
    PAGE.write_text(PLACE.sub(table(), PAGE.read_text(encoding="utf-8")), encoding="utf-8")
