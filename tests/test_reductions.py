"""Sums and means, weights, and the gradients of reduced losses."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from itertools import chain

import numpy as np
import pytest
import reference
from backends import Backend
from mpmath import mp, mpf

import logitloss
from logitloss import weighted_cross_entropy_with_logits as weighted
from logitloss._call import LOSS, VALUE_AND_GRAD, check
from logitloss._libraries import library_of, load_backend

REDUCTIONS = ("none", "sum", "mean", "weighted_mean")

LABELS = np.array([[1.0, 0.0, 0.25], [0.0, 1.0, 1.0]])
LOGITS = np.array([[0.5, -3.0, 2.0], [-0.25, 4.0, -1.0]])
POS_WEIGHT = np.array([0.5, 1.0, 3.0])
WEIGHTS = {
    "none": None,
    "scalar": 0.25,
    "per class": np.array([0.5, 0.0, 2.0]),
    "per row": np.array([[3.0], [0.5]]),
    "full": np.array([[1.0, 0.0, 0.25], [4.0, 1.0, 0.125]]),
}


def arrays(backend: Backend, dtype: str, *values):
    return [backend.array(v, dtype) if isinstance(v, np.ndarray) else v for v in values]


@pytest.mark.parametrize("weight", WEIGHTS.values(), ids=WEIGHTS)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_against_exact_arithmetic(
    backend: Backend, reduction: str, weight: np.ndarray | float | None
) -> None:
    assert_reduces(backend, "float32", reduction, weight)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_every_dtype_against_exact_arithmetic(backend: Backend, dtype: str, reduction: str) -> None:
    assert_reduces(backend, dtype, reduction, WEIGHTS["full"])


def assert_reduces(
    backend: Backend, dtype: str, reduction: str, weight: np.ndarray | float | None
) -> None:
    labels, logits, pos_weight, given = arrays(backend, dtype, LABELS, LOGITS, POS_WEIGHT, weight)
    value, gradient = logitloss.value_and_grad(
        labels, logits, pos_weight, weight=given, reduction=reduction
    )
    alone = weighted(labels, logits, pos_weight, weight=given, reduction=reduction)
    backend.equals(alone, backend.to_numpy(value), dtype)

    weights = [mpf(w) for w in np.broadcast_to(1.0 if weight is None else weight, (2, 3)).ravel()]
    points = LABELS.ravel(), LOGITS.ravel(), np.broadcast_to(POS_WEIGHT, (2, 3)).ravel()
    divisor = {"mean": mpf(6), "weighted_mean": mp.fsum(weights)}.get(reduction, mpf(1))

    def terms(function):
        return [w * t for w, t in zip(weights, reference.at(function, *points), strict=True)]

    losses = terms(reference.loss)
    true = losses if reduction == "none" else [mp.fsum(losses) / divisor]
    slopes = [t / divisor for t in terms(reference.gradient)]
    scales = [t / divisor for t in terms(reference.gradient_scale)]
    # Weighting and dividing round once each on top of the element's own error.
    bound = 0.51 if dtype in ("float16", "bfloat16") else 5
    got = backend.to_numpy(value)
    assert got.shape == (LABELS.shape if reduction == "none" else ())
    assert max(reference.distances(got.ravel(), true, dtype)) <= bound
    got = backend.to_numpy(gradient)
    assert got.shape == LABELS.shape
    assert max(reference.distances(got.ravel(), slopes, dtype, scales)) <= bound


@pytest.mark.parametrize("function", [logitloss.value_and_grad, logitloss.grad_and_hess])
def test_weights_multiply_every_result(backend: Backend, function) -> None:
    # Powers of two, so that the product is exact.
    weight = np.array([[0.5, 0.0, 2.0], [1.0, 8.0, 0.25]])
    labels, logits, weights = arrays(backend, "float32", LABELS, LOGITS, weight)
    plain = function(labels, logits, 3.0)
    for got, unweighted in zip(function(labels, logits, 3.0, weight=weights), plain, strict=True):
        backend.equals(got, weight * backend.to_numpy(unweighted), "float32")


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_zero_weight_masks_anything(backend: Backend, reduction: str, poison: float) -> None:
    labels = np.array([1.0, 0.0, 1.0, 0.0, 1.0])
    logits = np.array([0.5, 2.0, -1.0, 4.0, 0.0])
    pos_weight = np.array([2.0, 2.0, 2.0, 2.0, 2.0])
    weight = np.array([1.0, 0.0, 0.5, -0.0, 0.0])
    clean = arrays(backend, "float32", labels, logits, pos_weight, weight)
    labels[1], logits[[1, 3]], pos_weight[4] = poison, poison, poison
    *data, weights = arrays(backend, "float32", labels, logits, pos_weight, weight)

    expected = logitloss.value_and_grad(*clean[:3], weight=clean[3], reduction=reduction)
    got = logitloss.value_and_grad(*data, weight=weights, reduction=reduction)
    for mine, theirs in zip(got, expected, strict=True):
        backend.equals(mine, backend.to_numpy(theirs), "float32")
    for result in (got[1], *logitloss.grad_and_hess(*data, weight=weights)):
        np.testing.assert_array_equal(backend.to_numpy(result)[[1, 3, 4]], 0)


@pytest.mark.parametrize("weight", [0.0, np.zeros(3)], ids=["scalar", "array"])
def test_all_weights_zero(backend: Backend, weight: float | np.ndarray) -> None:
    labels, logits, weights = arrays(
        backend, "float32", np.ones(3), np.array([1.0, math.nan, math.inf]), weight
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for reduction, expected in (("sum", 0), ("mean", 0), ("weighted_mean", math.nan)):
            value, gradient = logitloss.value_and_grad(
                labels, logits, weight=weights, reduction=reduction
            )
            backend.equals(value, expected, "float32")
            backend.equals(gradient, np.zeros(3), "float32")


@pytest.mark.parametrize("weight", [None, 2.0, np.ones(3)], ids=["none", "scalar", "array"])
@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0)])
def test_empty(backend: Backend, shape: tuple[int, ...], weight) -> None:
    if shape[-1] == 0 and isinstance(weight, np.ndarray):
        weight = weight[:1]
    labels, logits, weights = arrays(backend, "float32", np.ones(shape), np.ones(shape), weight)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for reduction, expected in (("sum", 0), ("mean", math.nan), ("weighted_mean", math.nan)):
            value, gradient = logitloss.value_and_grad(
                labels, logits, weight=weights, reduction=reduction
            )
            backend.equals(value, expected, "float32")
            backend.equals(gradient, np.ones(shape), "float32")


@pytest.mark.parametrize("orders", [LOSS, VALUE_AND_GRAD], ids=["loss", "both"])
def test_another_divisor(backend: Backend, orders: tuple[int, ...], pair_mean: str) -> None:
    call = check(orders, *arrays(backend, "float32", LABELS, LOGITS, POS_WEIGHT, WEIGHTS["full"]))
    compute = load_backend(library_of(call.xp)).compute
    means, others = (compute(call._replace(reduction=name)) for name in ("mean", pair_mean))
    for mean, other in zip(means, others, strict=True):
        # JAX divides outside of the kernel.
        expected = 2 * backend.to_numpy(mean)
        np.testing.assert_array_max_ulp(backend.to_numpy(other), expected, 2)


def test_weighted_mean_divides_by_the_weights_and_mean_does_not(backend: Backend) -> None:
    labels, logits, weight = arrays(
        backend, "float32", np.ones(4), np.zeros(4), np.array([1.0, 1.0, 0.0, 0.0])
    )
    one = backend.to_numpy(weighted(labels[:1], logits[:1], 1.0))[0]
    for reduction, value in (("weighted_mean", one), ("mean", one / 2), ("sum", 2 * one)):
        got = weighted(labels, logits, 1.0, weight=weight, reduction=reduction)
        backend.equals(got, value, "float32")
    got = weighted(labels, logits, 1.0, reduction="weighted_mean")
    backend.equals(got, one, "float32")


def test_sums_are_accumulated_in_float64(backend: Backend) -> None:
    if "float64" not in backend.dtypes:
        pytest.skip("this device has no float64")
    # In float32 the thousand small terms would vanish beside the large one.
    labels = np.zeros(1001)
    logits = np.full(1001, -3.0)
    logits[0] = 2.0**24
    labels, logits = arrays(backend, "float32", labels, logits)
    small = reference.exact(backend.to_numpy(weighted(labels[1:2], logits[1:2], 1.0))[0])
    total = weighted(labels, logits, 1.0, reduction="sum")
    true = mpf(2) ** 24 + 1000 * small
    assert reference.distances([backend.to_numpy(total)[()]], [true], "float32")[0] <= 0.5


@pytest.mark.parametrize("backend", ["numpy", "torch", "jax", "dask"], indirect=True)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_mean_does_not_overflow(backend: Backend, dtype: str) -> None:
    labels, logits = arrays(backend, dtype, np.zeros(1000), np.full(1000, 600.0))
    backend.equals(weighted(labels, logits, 1.0, reduction="mean"), 600.0, dtype)
    _, gradient = logitloss.value_and_grad(labels, logits, reduction="mean")
    backend.equals(gradient, np.full(1000, 1e-3).astype(dtype), dtype)


@pytest.mark.parametrize(
    ("weight", "gradient"),
    [
        ([0, 0, 0], [0, 0, 0]),
        ([0, 1e-60, 0], [0, 0, 0]),
        ([1, -1, 0], [math.nan, math.nan, 0]),
        ([math.nan, 1, 0], [math.nan, math.nan, 0]),
        ([math.inf, 1, 0], [math.nan, 0, 0]),
    ],
)
def test_weighted_mean_without_a_usable_sum_of_weights(
    backend: Backend, weight: list[float], gradient: list[float]
) -> None:
    """The value is NaN, and so is its gradient, except by what is masked."""
    labels, logits = arrays(
        backend, "float32", np.array([1.0, 0, 1]), np.array([0.5, -1, math.nan])
    )
    given = backend.array(weight, "float64" if "float64" in backend.dtypes else "float32")
    value, got = logitloss.value_and_grad(labels, logits, weight=given, reduction="weighted_mean")
    backend.equals(value, math.nan, "float32")
    backend.equals(got, gradient, "float32")


@pytest.mark.parametrize("kind", ["b1", "i1", "u1", "i2", "u2", "i4", "u4"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_sums_of_integer_weights_are_exact(dtype: str, kind: str) -> None:
    greatest = 1 if kind == "b1" else np.iinfo(kind).max
    weight = np.random.default_rng(0).integers(0, greatest, 10_001, endpoint=True).astype(kind)
    labels, logits = np.zeros((2, weight.size), dtype)

    def gradient(weight: np.ndarray) -> bytes:
        options = {"weight": weight, "reduction": "weighted_mean"}
        return logitloss.value_and_grad(labels, logits, **options)[1].tobytes()

    # Numbers of float64 are added up with their rounding errors.
    assert gradient(weight) == gradient(weight.astype("f8"))


@pytest.mark.parametrize("as_array", [False, True])
def test_sum_of_weights_beyond_float32(backend: Backend, as_array: bool) -> None:
    if "float64" not in backend.dtypes:
        pytest.skip("this device has no float64 to add the weights up in")
    labels, logits = arrays(backend, "float32", np.resize([1.0, 0.0], 100), np.zeros(100))
    weight = backend.array(np.full(100, 1e38), "float32") if as_array else 1e38
    options = {"weight": weight, "reduction": "weighted_mean"}
    value, gradient = logitloss.value_and_grad(labels, logits, **options)
    for mean in (value, weighted(labels, logits, 1.0, **options)):
        np.testing.assert_array_max_ulp(backend.to_numpy(mean), np.float32(math.log(2)), 1)
    expected = np.resize(np.float32([-0.005, 0.005]), 100)
    np.testing.assert_array_max_ulp(backend.to_numpy(gradient), expected, 1)


@pytest.mark.exhaustive
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_sums_of_ten_million(dtype: str) -> None:
    """Within 1 ulp of the sum of the exact losses, those of the elements rounded to float64."""
    if dtype == "float64" and np.finfo(np.longdouble).nmant <= np.finfo(dtype).nmant:
        pytest.skip("no wider type to compare with")
    size = 10_000_000
    rng = np.random.default_rng(11)
    logits = (3 * rng.normal(size=size)).astype(dtype)
    labels = np.where(rng.random(size) < 0.9, rng.random(size) < 0.2, rng.random(size))
    labels, weight = labels.astype(dtype), rng.random(size).astype(dtype)

    def exact() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for start in range(0, size, 2**16):
            part = slice(start, start + 2**16)
            z, x, w = (a[part].astype(np.longdouble) for a in (labels, logits, weight))
            log1p_exp = np.log1p(np.exp(-np.abs(x)))
            losses = 2.5 * z * (log1p_exp + np.maximum(-x, 0))
            losses += (1 - z) * (log1p_exp + np.maximum(x, 0))
            yield losses.astype(np.float64), (w * losses).astype(np.float64)

    plain, weighted_losses = (
        math.fsum(chain.from_iterable(part.tolist() for part in parts))
        for parts in zip(*exact(), strict=True)
    )
    weights = math.fsum(weight.tolist())
    for reduction, options, true in (
        ("sum", {}, plain),
        ("mean", {}, plain / size),
        ("weighted_mean", {}, plain / size),
        ("sum", {"weight": weight}, weighted_losses),
        ("mean", {"weight": weight}, weighted_losses / size),
        ("weighted_mean", {"weight": weight}, weighted_losses / weights),
    ):
        got = weighted(labels, logits, 2.5, reduction=reduction, **options)
        assert abs(float(got) - true) <= np.spacing(got), reduction
