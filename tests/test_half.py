"""Half precision: every logit there is, rounded once from what float32 gives."""

from __future__ import annotations

import backends
import numpy as np
import pytest
import reference

import logitloss
from logitloss import weighted_cross_entropy_with_logits as weighted

DTYPES = ("float16", "bfloat16")
# How far a result may be from the nearest number, in ulp: a float32 that is wrong by less than an
# ulp and a half of its own can lie on the other side of a tie.
MARGIN = 2.0**-12

pytestmark = pytest.mark.skipif(
    np.finfo(np.longdouble).nmant < 63, reason="no wider type to compare with"
)


def every_finite(dtype: str) -> np.ndarray:
    patterns = np.arange(2**16, dtype=np.uint16).view(dtype)
    return patterns[np.isfinite(patterns.astype(np.float32))]


def closed_forms(z: float, x: np.ndarray, q: float) -> tuple[np.ndarray, ...]:
    """Loss, gradient and Hessian in long double, of logits that are exact there."""
    m = np.abs(x)
    e = np.exp(-m)
    softplus, small, large = np.log1p(e), e / (1 + e), 1 / (1 + e)
    negative, positive = np.longdouble(1 - z), np.longdouble(q) * np.longdouble(z)
    loss = (negative + positive) * softplus + np.where(x > 0, negative, positive) * m
    gradient = np.where(
        x > 0, negative * large - positive * small, negative * small - positive * large
    )
    return loss, gradient, (negative + positive) * small * large


def assert_rounded_once(got: np.ndarray, true: np.ndarray, dtype: str, scale: np.ndarray) -> None:
    largest = float(reference.largest(dtype))
    smallest, _, bits = reference.format_of(dtype)
    exponent = np.maximum(np.frexp(true)[1] - 1, smallest)
    ulp = np.ldexp(np.longdouble(1), exponent - bits)
    # Where terms cancel, float32 has the error of its terms.
    margin = MARGIN * ulp + 2.0**-22 * np.where(scale > 4 * np.abs(true), scale, 0)
    wide = got.astype(np.longdouble)
    beyond = np.abs(true) > largest
    assert np.isinf(wide[np.abs(true) >= largest * (1 + 2.0**-bits)]).all()
    assert (np.abs(wide - true) <= ulp / 2 + margin)[~beyond].all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("label", [0.0, 1.0, 0.25, 0.75])
@pytest.mark.parametrize("pos_weight", [1.0, 0.125, 10.0, 0.3])
def test_every_logit(dtype: str, label: float, pos_weight: float) -> None:
    logits = every_finite(dtype)
    labels = np.full(logits.shape, label, logits.dtype)
    # What the coefficient is rounded to.
    q = float(np.asarray(pos_weight).astype(logits.dtype))
    loss, gradient = logitloss.value_and_grad(labels, logits, pos_weight)
    again, hessian = logitloss.grad_and_hess(labels, logits, pos_weight)
    assert gradient.tobytes() == again.tobytes()
    x = logits.astype(np.longdouble)
    true = closed_forms(label, x, q)
    small = np.exp(-np.abs(x))
    scale = (1 - label) * np.where(x > 0, 1, small) + q * label * np.where(x > 0, small, 1)
    for got, value, size in zip(
        (loss, gradient, hessian), true, (true[0], scale, true[2]), strict=True
    ):
        assert got.dtype == logits.dtype
        assert_rounded_once(got, value, dtype, size)


@pytest.mark.parametrize("dtype", DTYPES)
def test_sums_are_of_unrounded_losses(dtype: str) -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 5000).astype(dtype)
    logits = rng.normal(size=5000).astype(dtype)
    weight = rng.random(5000).astype(dtype)
    wide = [a.astype(np.float32) for a in (labels, logits, weight)]
    for reduction in ("sum", "mean", "weighted_mean"):
        single = weighted(*wide[:2], 2.5, weight=wide[2], reduction=reduction)
        half = weighted(labels, logits, 2.5, weight=weight, reduction=reduction)
        assert half.dtype == labels.dtype
        assert abs(float(half) - float(single)) <= float(np.spacing(half)) * 0.5001


@pytest.mark.parametrize(
    "kind",
    [
        np.asarray,
        np.ndarray.tolist,
        lambda values: float(values[0]),
        lambda values: float(values[2]),
    ],
    ids=["array", "list", "number", "large"],
)
@pytest.mark.parametrize(
    ("name", "dtype"),
    [(name, dtype) for name, dtypes in backends.DTYPES.items() for dtype in dtypes[:2]],
)
def test_other_coefficients_are_rounded_once(name: str, dtype: str, kind) -> None:
    """Most libraries round float64 to float32 before."""
    if dtype not in DTYPES:
        pytest.skip("no half precision")
    backend = backends.get(name)
    labels, logits = backend.array([1, 1, 1], dtype), backend.array([-40, 3, 3], dtype)
    _, _, bits = reference.format_of(dtype)
    eps = 2.0**-bits
    # A bit above the middle of two numbers, of which the even one is 1; a bit below; beyond all.
    given = np.array([1 + eps / 2 + 2.0**-40, 1 + eps + eps / 2 - 2.0**-40, -1e300])
    nearest = np.array([1 + eps, 1 + eps, -np.inf])
    for weight in (True, False):
        got, expected = (
            backend.to_numpy(
                weighted(labels, logits, 1.0, weight=kind(values))
                if weight
                else weighted(labels, logits, kind(values))
            )
            for values in (given, nearest)
        )
        np.testing.assert_array_equal(got.astype(float), expected.astype(float))
