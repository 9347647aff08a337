"""Loss, gradient and Hessian of single elements, over every library and dtype."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import reference
from backends import Backend

import logitloss
from logitloss import _formula
from logitloss._libraries import namespace_of

inf, nan = math.inf, math.nan

# Half precision is computed in float32 and rounded once, everything else carries its own errors.
ULP = {"float16": 0.501, "bfloat16": 0.501, "float32": 4, "float64": 4, "longdouble": 4}

# Around every place where a format stops resolving something: 1 + e, exp(-x), exp(-x / 2).
MAGNITUDES = [0.0, 1e-40, 1e-10, 1e-3, 0.1, 0.5, 1.0, 2.3, 5.0, 11.0, 15.0, 17.0, 20.0, 25.0]
MAGNITUDES += [37.0, 40.0, 60.0, 80.0, 86.9, 87.5, 89.0, 95.0, 103.9, 150.0, 700.0, 709.0, 745.0]
MAGNITUDES += [1000.0, 1400.0, 1500.0, 1e4]
LOGITS = [*MAGNITUDES, *(-m for m in MAGNITUDES)]

FORMS = {
    "loss": (reference.loss, None),
    "gradient": (reference.gradient, reference.gradient_scale),
    "hessian": (reference.hessian, None),
}


def compute(form: str, labels, logits, pos_weight):
    if form == "loss":
        return logitloss.weighted_cross_entropy_with_logits(labels, logits, pos_weight)
    return logitloss.grad_and_hess(labels, logits, pos_weight)[form == "hessian"]


def grid(dtype: str, labels, logits, pos_weight) -> list[np.ndarray]:
    """All combinations whose loss `dtype` can hold, rounded to it."""
    points = np.stack([a.ravel() for a in np.meshgrid(labels, logits, pos_weight)])
    largest = float(reference.largest(dtype))
    points = points[:, (points[2] <= largest) & (points[2] * (np.abs(points[1]) + 1) < largest)]
    return [a.astype(dtype) for a in points]


def assert_close(backend: Backend, got, points, form: str, dtype: str, bound: float) -> None:
    function, scale_function = FORMS[form]
    true = reference.at(function, *points)
    scale = reference.at(scale_function, *points) if scale_function else true
    distances = reference.distances(backend.to_numpy(got), true, dtype, scale)
    if backend.flushes_subnormals:
        smallest = reference.smallest_normal(dtype)
        distances = [0 if s < smallest else d for d, s in zip(distances, scale, strict=True)]
    worst = max(range(len(true)), key=distances.__getitem__)
    assert distances[worst] <= bound, (
        f"{float(distances[worst]):.2f} ulp at labels, logits, pos_weight = "
        f"{[points[i][worst] for i in range(3)]}: true value {float(true[worst])}"
    )


@pytest.mark.parametrize("form", FORMS)
def test_within_ulp_of_the_closed_form(backend: Backend, dtype: str, form: str) -> None:
    points = grid(
        dtype,
        labels=[0.0, 1.0, 0.5, 0.1, 1e-7, 0.9999],
        logits=LOGITS,
        pos_weight=[0.0, 1e-8, 0.3, 1.0, 3.0, 1e8, 1e30, 1e300],
    )
    got = compute(form, *(backend.array(a, dtype) for a in points))
    assert_close(backend, got, points, form, dtype, ULP[dtype])


@pytest.mark.parametrize("backend", ["numpy", "torch", "dask"], indirect=True)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("form", FORMS)
def test_within_2_ulp_for_hard_labels(backend: Backend, dtype: str, form: str) -> None:
    points = grid(dtype, labels=[0.0, 1.0], logits=LOGITS, pos_weight=[1.0])
    got = compute(form, *(backend.array(a, dtype) for a in points))
    assert_close(backend, got, points, form, dtype, bound=2)


def test_slopes_by_labels_and_pos_weight(backend: Backend) -> None:
    dtype = backend.dtypes[-1]
    points = grid(dtype, labels=[0.0, 1.0, 0.1], logits=LOGITS, pos_weight=[0.3, 1.0, 1e8])
    labels, logits, pos_weight = (backend.array(a, dtype) for a in points)
    xp = namespace_of(logits)

    def derivative(order, labels, logits, pos_weight, weight):
        return _formula.derivatives((order,), labels, logits, pos_weight, xp)[0]

    def full(value: float):
        return backend.array(np.full(points[0].shape, value), dtype)

    slopes = _formula.slopes(derivative, 0, labels, logits, pos_weight, None, full, xp)
    by_labels, by_pos_weight = slopes[0](None), slopes[2](None)

    scale = reference.at(reference.labels_gradient_scale, *points)
    for got, function, unit in (
        (by_labels, reference.labels_gradient, scale),
        (by_pos_weight, reference.pos_weight_gradient, None),
    ):
        true = reference.at(function, *points)
        normal = [abs(t) >= reference.smallest_normal(dtype) for t in true]
        distances = reference.distances(backend.to_numpy(got), true, dtype, unit)
        assert max(d for d, n in zip(distances, normal, strict=True) if n) <= 4


def test_special_values(backend: Backend, dtype: str) -> None:
    *points, loss, gradient, hessian = np.array(reference.SPECIAL).T
    arrays = [backend.array(p, dtype) for p in points]
    rounded_loss = loss.astype(dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got_loss, got_gradient = logitloss.value_and_grad(*arrays)
        again, got_hessian = logitloss.grad_and_hess(*arrays)
        backend.equals(got_gradient, gradient, dtype)
        backend.equals(again, gradient, dtype)
        backend.equals(got_hessian, hessian, dtype)
        got_loss = backend.to_numpy(got_loss)
    exactly = ~np.isfinite(loss) | (loss == 0)
    np.testing.assert_array_equal(got_loss[exactly].astype(float), loss[exactly])
    # log(2) is not exact in any dtype, but its rounding is known.
    np.testing.assert_allclose(
        got_loss[~exactly].astype(float), rounded_loss[~exactly].astype(float), rtol=2**-7
    )


def test_confident_negative_with_infinite_pos_weight(backend: Backend) -> None:
    logits = backend.array([-1e4, -200.0, -1.0], "float32")
    labels = backend.array([0.0, 0.0, 0.0], "float32")
    loss = logitloss.weighted_cross_entropy_with_logits(labels, logits, inf)
    one = logitloss.sigmoid_cross_entropy_with_logits(labels, logits)
    backend.equals(loss, backend.to_numpy(one), "float32")


def test_a_negative_weight_negates(backend: Backend, dtype: str) -> None:
    logits = backend.array(LOGITS, dtype)
    labels = backend.array(np.resize([0.0, 1.0, 0.3], len(LOGITS)), dtype)
    weight = backend.array(-np.ones(len(LOGITS)), dtype)
    for function in (logitloss.value_and_grad, logitloss.grad_and_hess):
        positive = function(labels, logits, 3.0)
        negative = function(labels, logits, 3.0, weight=weight)
        for got, expected in zip(negative, positive, strict=True):
            backend.equals(got, -backend.to_numpy(expected), dtype)


def test_gradient_at_zero_is_exact(backend: Backend, dtype: str) -> None:
    labels, pos_weight = (a.ravel() for a in np.meshgrid([0, 1, 0.3, 1e-4], [0, 1e-3, 1, 7, 1e4]))
    labels, pos_weight = labels.astype(dtype), pos_weight.astype(dtype)
    work = "float32" if dtype in ("float16", "bfloat16") else dtype
    z, q = labels.astype(work), pos_weight.astype(work)
    expected = ((1 - z) / 2 - q * z / 2).astype(dtype)
    for zero in (0.0, -0.0):
        logits = backend.array(np.full(labels.shape, zero), dtype)
        _, gradient = logitloss.value_and_grad(
            backend.array(labels, dtype), logits, backend.array(pos_weight, dtype)
        )
        backend.equals(gradient, expected, dtype)


def test_unit_pos_weight_gives_the_bits_of_the_sigmoid_form(backend: Backend, dtype: str) -> None:
    logits = backend.array(LOGITS, dtype)
    labels = backend.array(np.resize([0.0, 1.0, 0.3, 1e-5, 0.9], len(LOGITS)), dtype)
    ones = np.ones(len(LOGITS))
    sigmoid = backend.to_numpy(logitloss.sigmoid_cross_entropy_with_logits(labels, logits))
    for one in (1, 1.0, backend.array(1.0, dtype), backend.array(ones, dtype)):
        weighted = logitloss.weighted_cross_entropy_with_logits(labels, logits, one)
        backend.equals(weighted, sigmoid, dtype)


def test_swapping_classes_gives_the_same_bits(backend: Backend, dtype: str) -> None:
    logits = np.array(LOGITS).astype(dtype)
    ones, zeros = np.ones(logits.shape), np.zeros(logits.shape)
    loss, gradient = logitloss.value_and_grad(
        backend.array(ones, dtype), backend.array(logits, dtype)
    )
    swapped_loss, swapped_gradient = logitloss.value_and_grad(
        backend.array(zeros, dtype), backend.array(-logits, dtype)
    )
    backend.equals(swapped_loss, backend.to_numpy(loss), dtype)
    backend.equals(swapped_gradient, -backend.to_numpy(gradient), dtype)


def test_overflow_is_infinite_and_silent(backend: Backend) -> None:
    logits = backend.array([-1e38, 1e38, -1.0], "float32")
    labels = backend.array([1.0, 0.0, 1.0], "float32")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss = logitloss.weighted_cross_entropy_with_logits(labels, logits, 1e38)
        gradient, hessian = logitloss.grad_and_hess(labels, logits, 1e300)
        loss = backend.to_numpy(loss)
    np.testing.assert_array_equal(loss[:2], np.float32([inf, 1e38]))
    np.testing.assert_array_equal(backend.to_numpy(gradient), [-inf, 1, -inf])
    np.testing.assert_array_equal(backend.to_numpy(hessian), [0, 0, inf])


INTEGERS = [f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)]


@pytest.mark.parametrize("integer", ["bool", *INTEGERS])
def test_integer_labels_give_the_bits_of_float_labels(backend: Backend, integer: str) -> None:
    logits = np.array([-90.0, -20.0, -1.0, 0.0, 0.3, 15.0, 40.0, inf])
    labels = np.arange(8) % 2
    for dtype in backend.dtypes if integer == "bool" else ["float32"]:
        logits_array = backend.array(logits, dtype)
        floats = logitloss.value_and_grad(backend.array(labels, dtype), logits_array, 2.5)
        integers = logitloss.value_and_grad(backend.array(labels, integer), logits_array, 2.5)
        for got, expected in zip(integers, floats, strict=True):
            backend.equals(got, backend.to_numpy(expected), dtype)


@pytest.mark.parametrize("pos_weight", [1.5, 0.5])
def test_numbers_documented_by_tensorflow(backend: Backend, pos_weight: float) -> None:
    labels = backend.array([1.0, 0.5, 0.0], "float32")
    logits = backend.array([1.5, -0.1, -10.0], "float32")
    # TensorFlow prints 4.5776367e-05 for the last: its formula cancels there.
    documented = {
        1.5: [3.0211994e-01, 8.8049585e-01, 4.5398901e-05],
        0.5: [1.00706644e-01, 5.08297503e-01, 4.5398901e-05],
    }[pos_weight]
    loss = logitloss.weighted_cross_entropy_with_logits(labels, logits, pos_weight)
    np.testing.assert_array_max_ulp(backend.to_numpy(loss), np.float32(documented), 2)


def test_sigmoid_numbers_documented_by_tensorflow(backend: Backend) -> None:
    logits = backend.array([1.0, -1.0, 0.0, 1.0, -1.0, 0.0, 0.0], "float32")
    labels = backend.array([0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 0.5], "float32")
    documented = [1.3132617, 0.3132617, 0.6931472, 0.3132617, 1.3132617, 0.6931472, 0.6931472]
    loss = logitloss.sigmoid_cross_entropy_with_logits(labels, logits)
    np.testing.assert_array_max_ulp(backend.to_numpy(loss), np.float32(documented), 2)


def test_agrees_with_torch_where_torch_is_right() -> None:
    torch = pytest.importorskip("torch")
    # torch cancels for negative logits of negatives and nowhere else.
    logits = np.linspace(-6, 6, 97)
    labels = np.stack([np.ones(97), np.zeros(97)])[:, :, None] * np.ones(3)
    logits = np.stack([logits, np.abs(logits)])[:, :, None] * np.ones(3)
    pos_weight = np.array([0.5, 1.0, 3.0])
    leaf = torch.tensor(logits, requires_grad=True)
    theirs = torch.nn.functional.binary_cross_entropy_with_logits(
        leaf, torch.tensor(labels), pos_weight=torch.tensor(pos_weight), reduction="none"
    )
    theirs.sum().backward()
    loss, gradient = logitloss.value_and_grad(labels, logits, pos_weight)
    np.testing.assert_array_max_ulp(loss, theirs.detach().numpy(), 8)
    np.testing.assert_allclose(gradient, leaf.grad.numpy(), rtol=2**-42)
