"""Writing into arrays that the caller gives."""

from __future__ import annotations

import re

import backends
import numpy as np
import pytest
from backends import Backend

import logitloss
from logitloss import weighted_cross_entropy_with_logits as weighted

LABELS = np.array([[1.0, 0.0, 0.25], [0.0, 1.0, 1.0]])
LOGITS = np.array([[0.5, -3.0, 2.0], [-0.25, 4.0, -1.0]])


def _can_write(name: str) -> bool:
    library, _, _ = name.partition("-")
    return "out" not in backends.LACKS.get(library, ())


@pytest.fixture(params=filter(_can_write, backends.NAMES))
def writer(request: pytest.FixtureRequest) -> Backend:
    return backends.get(request.param)


def buffer(backend: Backend, shape=(2, 3), dtype: str = "float32"):
    array = backend.array(np.full(shape, 7.0), dtype)
    return array.copy() if backend.name == "numpy" else array


def data(backend: Backend, dtype: str = "float32"):
    return backend.array(LABELS, dtype), backend.array(LOGITS, dtype)


@pytest.mark.parametrize("reduction", ["none", "sum", "mean", "weighted_mean"])
def test_out_is_written_and_returned(writer: Backend, reduction: str) -> None:
    labels, logits = data(writer)
    value, gradient = logitloss.value_and_grad(labels, logits, 2.0, reduction=reduction)
    shape = (2, 3) if reduction == "none" else ()

    out = buffer(writer, shape)
    assert weighted(labels, logits, 2.0, reduction=reduction, out=out) is out
    np.testing.assert_array_equal(writer.to_numpy(out), writer.to_numpy(value))

    for pair_type in (tuple, list):
        outs = pair_type([buffer(writer, shape), buffer(writer)])
        got = logitloss.value_and_grad(labels, logits, 2.0, reduction=reduction, out=outs)
        assert got[0] is outs[0]
        assert got[1] is outs[1]
        np.testing.assert_array_equal(writer.to_numpy(outs[0]), writer.to_numpy(value))
        np.testing.assert_array_equal(writer.to_numpy(outs[1]), writer.to_numpy(gradient))


def test_out_of_the_derivatives(writer: Backend) -> None:
    labels, logits = data(writer)
    outs = buffer(writer), buffer(writer)
    expected = logitloss.grad_and_hess(labels, logits, 2.0)
    got = logitloss.grad_and_hess(labels, logits, 2.0, out=outs)
    for mine, out, value in zip(got, outs, expected, strict=True):
        assert mine is out
        np.testing.assert_array_equal(writer.to_numpy(out), writer.to_numpy(value))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64", "longdouble"])
def test_out_of_every_numpy_dtype(dtype: str) -> None:
    labels, logits = LABELS.astype(dtype), LOGITS.astype(dtype)
    out = np.empty((2, 3), dtype)
    assert weighted(labels, logits, 2.0, out=out) is out
    np.testing.assert_array_equal(out, weighted(labels, logits, 2.0))


@pytest.mark.parametrize("position", [0, 1])
def test_in_place(writer: Backend, position: int) -> None:
    expected = [writer.to_numpy(a) for a in logitloss.value_and_grad(*data(writer), 2.0)]
    inputs = [buffer(writer), buffer(writer)]
    for array, values in zip(inputs, data(writer), strict=True):
        array[...] = values
    weighted(*inputs, 2.0, out=inputs[position])
    np.testing.assert_array_equal(writer.to_numpy(inputs[position]), expected[0])

    for array, values in zip(inputs, data(writer), strict=True):
        array[...] = values
    logitloss.value_and_grad(*inputs, 2.0, out=inputs)
    for got, values in zip(inputs, expected, strict=True):
        np.testing.assert_array_equal(writer.to_numpy(got), values)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("position", [0, 1])
def test_in_place_at_every_length(dtype: str, position: int) -> None:
    """The kernel's last, incomplete vector may not read what has been overwritten."""
    rng = np.random.default_rng(0)
    for size in [*range(1, 70), 255, 257, 300]:
        arrays = [rng.random(size).astype(dtype), rng.normal(size=size).astype(dtype)]
        expected = weighted(*arrays, 2.0)
        weighted(*arrays, 2.0, out=arrays[position])
        np.testing.assert_array_equal(arrays[position], expected)


@pytest.mark.parametrize("view", [slice(1, 7), slice(0, 6), slice(5, None, -1)])
def test_partial_overlap_reads_before_it_writes(view: slice) -> None:
    memory = np.linspace(-3, 3, 8)
    logits, labels = memory[0:6], np.array([1.0, 0.0, 1.0, 0.0, 0.5, 0.5])
    expected = weighted(labels, logits.copy(), 2.0)
    out = memory[view]
    weighted(labels, logits, 2.0, out=out)
    np.testing.assert_array_equal(out, expected)


def test_strided_out() -> None:
    memory = np.full((4, 9), 7.0)
    out = memory[::-2, 1::3]
    weighted(LABELS, LOGITS, 2.0, out=out)
    np.testing.assert_array_equal(out, weighted(LABELS, LOGITS, 2.0))
    out[...] = 7.0
    assert (memory == 7.0).all()


@pytest.mark.parametrize(
    ("out", "error", "message"),
    [
        (np.empty((3, 2)), ValueError, "`out` must have shape (2, 3); got (3, 2)."),
        (np.empty((1, 2, 3)), ValueError, "`out` must have shape (2, 3); got (1, 2, 3)."),
        (np.empty((2, 3), "float32"), TypeError, "`out` must have dtype float64; got float32."),
        (np.empty((2, 3), ">f8"), TypeError, "`out` must have dtype float64; got >f8."),
        (np.empty((2, 3), "int64"), TypeError, "`out` must have dtype float64; got int64."),
        (np.broadcast_to(7.0, (2, 3)), ValueError, "`out` must be writable; got"),
        (True, TypeError, "`out` must be an array of numpy; got True."),
        (
            [[0.0] * 3] * 2,
            TypeError,
            "`out` must be an array of numpy; got an object of type list.",
        ),
        (
            np.float64(7),
            TypeError,
            "`out` must be an array of numpy; got an object of type float64.",
        ),
        (np.ma.empty((2, 3)), TypeError, "`out` must not be a masked array"),
        ((np.empty((2, 3)),), TypeError, "`out` must be an array of numpy; got"),
    ],
    ids=lambda value: "",
)
def test_out_that_does_not_fit(out, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        weighted(LABELS, LOGITS, 2.0, out=out)


@pytest.mark.parametrize("function", [logitloss.value_and_grad, logitloss.grad_and_hess])
@pytest.mark.parametrize(
    ("outs", "error", "message"),
    [
        (
            lambda a, b: a,
            TypeError,
            "`out` must be a pair of arrays; got an object of type ndarray",
        ),
        (lambda a, b: True, TypeError, "`out` must be a pair of arrays; got True."),
        (lambda a, b: (a,), ValueError, "`out` must be a pair of arrays; got 1 of them."),
        (lambda a, b: (a, b, b), ValueError, "`out` must be a pair of arrays; got 3 of them."),
        (lambda a, b: (a, None), TypeError, "`out[1]` must be an array of numpy; got"),
        (lambda a, b: (a, b[:1]), ValueError, "`out[1]` must have shape (2, 3); got (1, 3)."),
        (lambda a, b: (a.astype("f4"), b), TypeError, "`out[0]` must have dtype float64; got"),
        (lambda a, b: (a, a), ValueError, "`out` must be two arrays with no memory in common"),
        (
            lambda a, b: (a, a[::-1]),
            ValueError,
            "`out` must be two arrays with no memory in common",
        ),
    ],
)
def test_outs_that_do_not_fit(function, outs, error: type[Exception], message: str) -> None:
    first, second = np.full((2, 3), 7.0), np.full((2, 3), 7.0)
    with pytest.raises(error, match=re.escape(message)):
        function(LABELS, LOGITS, 2.0, out=outs(first, second))
    assert (first == 7).all()
    assert (second == 7).all()


def test_interleaved_outs_share_nothing() -> None:
    memory = np.empty((2, 6))
    outs = memory[:, ::2], memory[:, 1::2]
    expected = logitloss.value_and_grad(LABELS, LOGITS, 2.0)
    logitloss.value_and_grad(LABELS, LOGITS, 2.0, out=outs)
    for out, value in zip(outs, expected, strict=True):
        np.testing.assert_array_equal(out, value)


def test_reduced_value_needs_a_0d_out() -> None:
    with pytest.raises(ValueError, match=re.escape("`out` must have shape (); got (2, 3).")):
        weighted(LABELS, LOGITS, 2.0, reduction="sum", out=np.empty((2, 3)))


def test_an_error_leaves_out_alone() -> None:
    out = np.full((2, 3), 7.0)
    with pytest.raises(ValueError, match="`pos_weight` must broadcast"):
        weighted(LABELS, LOGITS, np.ones(5), out=out)
    assert (out == 7).all()


@pytest.mark.parametrize("library", ["jax", "dask"])
def test_libraries_without_in_place_writes(library: str) -> None:
    backend = backends.get(library)
    labels, logits = data(backend)
    message = f"`out` must be None for {library} arrays"
    for out in (np.empty((2, 3), "float32"), logits):
        with pytest.raises(TypeError, match=message):
            weighted(labels, logits, 2.0, out=out)
        with pytest.raises(TypeError, match=message):
            logitloss.value_and_grad(labels, logits, 2.0, out=(out, out))


def test_out_of_another_library_or_device() -> None:
    strict, device1 = backends.get("array_api_strict"), backends.get("array_api_strict-device1")
    labels, logits = data(strict)
    with pytest.raises(TypeError, match="`out` must be an array of array_api_strict; got"):
        weighted(labels, logits, 2.0, out=np.empty((2, 3), "float32"))
    with pytest.raises(TypeError, match="`out` must be an array of numpy; got"):
        weighted(LABELS, LOGITS, 2.0, out=buffer(strict))
    with pytest.raises(ValueError, match=r"`out` must be on device .*CPU_DEVICE.*; got .*device1"):
        weighted(labels, logits, 2.0, out=buffer(device1))


def test_outs_of_a_subclass(tmp_path) -> None:
    """They are returned as they were given, however many axes they have."""
    for shape in ((2, 3), (1, 2) * 11):
        labels, logits = np.zeros(shape), np.ones(shape)
        for order in ("C", "F"):
            out = np.memmap(tmp_path / "out", float, "w+", shape=shape, order=order)
            assert weighted(labels, logits, 2.0, out=out) is out
            np.testing.assert_array_equal(out, weighted(labels, logits, 2.0))
