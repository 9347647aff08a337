"""The array libraries that one body of tests runs over."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

# What this platform lacks, by the names of dtypes, with the reason.
MISSING: dict[str, str] = {}
try:
    import ml_dtypes  # noqa: F401 - registers the name bfloat16 with NumPy
except ImportError:
    MISSING["bfloat16"] = "ml_dtypes is not installed"
if np.finfo(np.longdouble).nmant == np.finfo(np.float64).nmant:
    MISSING["longdouble"] = "long double is double"

_HALF = ("float16",) if "bfloat16" in MISSING else ("float16", "bfloat16")
_FULL = ("float32", "float64")

DTYPES = {
    "numpy": (*_HALF, *_FULL) if "longdouble" in MISSING else (*_HALF, *_FULL, "longdouble"),
    "array_api_strict": _FULL,
    "array_api_strict-device1": _FULL,
    "array_api_strict-no_float64": ("float32",),
    "torch": (*_HALF, *_FULL),
    "torch-cuda": (*_HALF, *_FULL),
    "jax": (*_HALF, *_FULL),
    "jax-cuda": (*_HALF, *_FULL),
    "dask": (*_HALF, *_FULL),
    "tensorflow": (*_HALF, *_FULL),
    "cupy": ("float16", *_FULL),
    "sparse": _FULL,
    "ndonnx": _FULL,
}

NAMES = tuple(DTYPES)


@dataclass(frozen=True)
class No:
    """Why a library lacks something, and what a try at it raises."""

    reason: str
    error: type[Exception]
    message: str


_NO_OUT = {"out": No("Its arrays cannot be written to.", TypeError, "`out` must be None for")}
_NO_GRADIENT = No(
    "It does not differentiate; `value_and_grad` and `grad_and_hess` give the closed forms.",
    AttributeError,
    "has no attribute 'grad'",
)
_NO_DERIVATIVES = {"gradient": _NO_GRADIENT, "second derivative": _NO_GRADIENT}
_NO_COMPILER = {
    "compile": No("It has no compiler for Python functions.", AttributeError, "attribute 'jit'")
}
_EAGER = {"lazy": No("It computes at once, unless compiled.", AttributeError, "'compute'")}
_ONE_DEVICE = {"devices": No("It knows one device.", IndexError, "out of range")}

# What can be asked of a backend, in the order of the table in docs/backends.md.
CAPABILITIES = (
    "loss",
    "reductions",
    "value_and_grad",
    "grad_and_hess",
    "out",
    "gradient",
    "second derivative",
    "compile",
    "lazy",
    "devices",
)

# The libraries of that table, and what they cannot do.
LACKS: dict[str, dict[str, No]] = {
    "numpy": _NO_DERIVATIVES | _NO_COMPILER | _EAGER | _ONE_DEVICE,
    "torch": _EAGER,
    "torch-cuda": _EAGER,
    "jax": _NO_OUT | _EAGER,
    "dask": _NO_OUT | _NO_DERIVATIVES | _NO_COMPILER,
    "tensorflow": _NO_OUT | _EAGER,
    "cupy": _NO_DERIVATIVES | _NO_COMPILER | _EAGER,
    "array_api_strict": _NO_DERIVATIVES | _NO_COMPILER | _EAGER,
    "sparse": _NO_OUT | _NO_DERIVATIVES | _NO_COMPILER | _EAGER | _ONE_DEVICE,
    "ndonnx": _NO_DERIVATIVES | _ONE_DEVICE,
}


@dataclass(frozen=True)
class Backend:
    """How to make and read the arrays of one library."""

    name: str
    library: Any
    asarray: Callable[[np.ndarray, str], Any]
    to_numpy: Callable[[Any], np.ndarray]
    array_type: type
    dtypes: tuple[str, ...]
    flushes_subnormals: bool = False
    device: Any = None

    def array(self, values: Any, dtype: str | None = None) -> Any:
        """Make an array, of float64 or the integer dtype of `values` unless one is named."""
        values = np.asarray(values)
        return self.asarray(values, dtype or values.dtype.name)

    def default_float(self) -> str:
        return str(self.library.asarray(0.0).dtype).split(".")[-1]

    def equals(self, array: Any, expected: Any, dtype: str) -> None:
        """Assert that `array` is one of this library, with these values, dtype and device."""
        expected = np.asarray(expected)
        if self.name == "numpy" and expected.ndim == 0:
            assert isinstance(array, np.generic)
        else:
            assert isinstance(array, self.array_type)
        assert array.dtype == self.array(0.0, dtype).dtype
        if self.device is not None:
            assert array.device == self.device
        values = self.to_numpy(array)
        assert values.shape == expected.shape
        np.testing.assert_array_equal(values.astype(float), expected.astype(float))


def _numpy() -> Backend:
    def asarray(values: np.ndarray, dtype: str) -> np.ndarray:
        # Writing to an input is an error in every test that does not ask for a copy.
        array = values.astype(dtype)
        array.setflags(write=False)
        return array

    return Backend(
        name="numpy",
        library=np,
        asarray=asarray,
        to_numpy=np.asarray,
        array_type=np.ndarray,
        dtypes=DTYPES["numpy"],
        # As its vector instructions do on 32-bit Arm.
        flushes_subnormals=not np.full(64, 1e-40, np.float32).sum(),
    )


def _array_api_strict(name: str, device: str) -> Backend:
    strict = pytest.importorskip("array_api_strict")
    host, place = strict.Device("CPU_DEVICE"), strict.Device(device)
    return Backend(
        name="array_api_strict",
        library=strict,
        asarray=lambda values, dtype: strict.asarray(values.astype(dtype), device=place),
        to_numpy=lambda array: np.asarray(array.to_device(host)),
        array_type=type(strict.asarray(0.0)),
        dtypes=DTYPES[name],
        device=place,
    )


def _torch(device: str) -> Backend:
    torch = pytest.importorskip("torch")
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("torch finds no GPU")

    def asarray(values: np.ndarray, dtype: str) -> Any:
        widened = values.astype("float32" if values.dtype.name == "bfloat16" else values.dtype)
        return torch.asarray(widened).to(getattr(torch, dtype)).to(device)

    def to_numpy(tensor: Any) -> np.ndarray:
        tensor = tensor.detach().cpu()
        return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()

    return Backend(
        name="torch",
        library=torch,
        asarray=asarray,
        to_numpy=to_numpy,
        array_type=torch.Tensor,
        dtypes=DTYPES["torch"],
        device=torch.asarray(0.0, device=device).device,
    )


def _jax(platform: str) -> Backend:
    jax = pytest.importorskip("jax")
    jax.config.update("jax_enable_x64", True)
    try:
        device = jax.devices(platform)[0]
    except RuntimeError as error:
        pytest.skip(f"jax finds no GPU: {error}")
    # Where there is a GPU, everything else would go there.
    jax.config.update("jax_default_device", jax.devices("cpu")[0])
    return Backend(
        name="jax",
        library=jax.numpy,
        asarray=lambda values, dtype: jax.device_put(
            jax.numpy.asarray(values).astype(dtype), device
        ),
        to_numpy=np.asarray,
        array_type=jax.Array,
        dtypes=DTYPES["jax"],
        flushes_subnormals=platform == "cpu",
        device=device,
    )


def _dask() -> Backend:
    dask_array = pytest.importorskip("dask.array")

    def asarray(values: np.ndarray, dtype: str) -> Any:
        # Two chunks along each axis.
        chunks = tuple(max(1, -(-size // 2)) for size in values.shape)
        return dask_array.from_array(values.astype(dtype), chunks=chunks)

    return Backend(
        name="dask",
        library=dask_array,
        asarray=asarray,
        to_numpy=lambda array: np.asarray(array.compute(scheduler="synchronous")),
        array_type=dask_array.Array,
        dtypes=DTYPES["dask"],
    )


def _tensorflow() -> Backend:
    tf = pytest.importorskip("tensorflow")
    # The namespace that the library's functions are found in by `default_float`.
    namespace = importlib.import_module("logitloss._backends.tensorflow.namespace")
    return Backend(
        name="tensorflow",
        library=namespace,
        asarray=lambda values, dtype: tf.constant(values.astype(dtype)),
        to_numpy=lambda tensor: tensor.numpy(),
        array_type=tf.Tensor,
        dtypes=DTYPES["tensorflow"],
    )


def _cupy() -> Backend:
    cupy = pytest.importorskip("cupy")
    try:
        cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        pytest.skip(f"cupy finds no GPU: {error}")
    return Backend(
        name="cupy",
        library=cupy,
        asarray=lambda values, dtype: cupy.asarray(values.astype(dtype)),
        to_numpy=cupy.asnumpy,
        array_type=cupy.ndarray,
        dtypes=DTYPES["cupy"],
    )


def _sparse() -> Backend:
    sparse = pytest.importorskip("sparse")
    return Backend(
        name="sparse",
        library=sparse,
        asarray=lambda values, dtype: sparse.COO.from_numpy(values.astype(dtype)),
        to_numpy=lambda array: array.todense(),
        array_type=sparse.COO,
        dtypes=DTYPES["sparse"],
    )


def _ndonnx() -> Backend:
    ndonnx = pytest.importorskip("ndonnx")
    return Backend(
        name="ndonnx",
        library=ndonnx,
        asarray=lambda values, dtype: ndonnx.asarray(values.astype(dtype)),
        to_numpy=lambda array: array.unwrap_numpy(),
        array_type=ndonnx.Array,
        dtypes=DTYPES["ndonnx"],
    )


@functools.cache
def get(name: str) -> Backend:
    """The backend of that name, or a skip that says what is missing."""
    match name.split("-"):
        case ["numpy"]:
            return _numpy()
        case ["array_api_strict", *device]:
            return _array_api_strict(name, *(device or ["CPU_DEVICE"]))
        case ["torch", *device]:
            return _torch(*(device or ["cpu"]))
        case ["jax", *device]:
            return _jax(*(device or ["cpu"]))
        case ["dask"]:
            return _dask()
        case ["tensorflow"]:
            return _tensorflow()
        case ["cupy"]:
            return _cupy()
        case ["sparse"]:
            return _sparse()
        case ["ndonnx"]:
            return _ndonnx()
    raise ValueError(name)
