"""The closed forms at 50 digits, and distances in units in the last place."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import mpmath
import numpy as np
from mpmath import mp, mpf

mp.dps = 50

Point = tuple[float, float, float]

# Where derivatives are compared: logits on either side of every limit of the formulas, and labels.
_MAGNITUDES = [0.0, 1e-10, 1e-3, 0.5, 2.3, 15.0, 20.0, 37.0, 80.0, 87.5, 95.0, 150.0, 709.0, 745.0]
LOGITS = [*_MAGNITUDES, *(-m for m in _MAGNITUDES)]
LABELS = [0.0, 1.0, 0.5, 1e-7]

SPECIAL = [
    # labels, logits, pos_weight -> loss, gradient, Hessian
    (0, -math.inf, 3, 0, 0, 0),
    (1, +math.inf, 3, 0, 0, 0),
    (0, +math.inf, 3, math.inf, 1, 0),
    (1, -math.inf, 3, math.inf, -3, 0),
    (1, -math.inf, 0, 0, 0, 0),
    (0.5, -math.inf, 3, math.inf, -1.5, 0),
    (0.5, +math.inf, 3, math.inf, 0.5, 0),
    (0, -math.inf, math.inf, 0, 0, 0),
    (0, 0, math.inf, math.log(2), 0.5, 0.25),
    (1, 0, math.inf, math.inf, -math.inf, math.inf),
    (1, 1, math.inf, math.inf, -math.inf, math.inf),
    (1, math.inf, math.inf, 0, 0, 0),
    (0, 0, 3, math.log(2), 0.5, 0.25),
    (0, -0.0, 3, math.log(2), 0.5, 0.25),
    (1, 0, 3, 3 * math.log(2), -1.5, 0.75),
    (1, -0.0, 3, 3 * math.log(2), -1.5, 0.75),
    (0.25, 0, 3, 1.5 * math.log(2), 0, 0.375),
    (1, 5, 0, 0, 0, 0),
    (1, -5, 0, 0, 0, 0),
    (math.nan, 1, 3, math.nan, math.nan, math.nan),
    (0, math.nan, 3, math.nan, math.nan, math.nan),
    (1, math.nan, 0, math.nan, math.nan, math.nan),
    (1, 1, math.nan, math.nan, math.nan, math.nan),
    (0, 1, math.nan, math.nan, math.nan, math.nan),
    (0, -math.inf, math.nan, math.nan, math.nan, math.nan),
    # Labels beyond 0 and 1, and negative coefficients, continue the formula.
    (2, +math.inf, 3, -math.inf, -1, 0),
    (-1, -math.inf, 3, -math.inf, 3, 0),
    (-0.5, -1, math.inf, -math.inf, math.inf, -math.inf),
    (2, 1, math.inf, math.inf, -math.inf, math.inf),
    (1, -math.inf, -2, -math.inf, 2, 0),
]


def softplus(v: mpf) -> mpf:
    return mp.log1p(mp.exp(-abs(v))) + max(v, 0)


def sigmoid(v: mpf) -> mpf:
    return 1 / (1 + mp.exp(-v)) if v > 0 else mp.exp(v) / (1 + mp.exp(v))


def loss(z: mpf, x: mpf, q: mpf) -> mpf:
    return q * z * softplus(-x) + (1 - z) * softplus(x)


def gradient(z: mpf, x: mpf, q: mpf) -> mpf:
    return (1 - z) * sigmoid(x) - q * z * sigmoid(-x)


def gradient_scale(z: mpf, x: mpf, q: mpf) -> mpf:
    """The size of the gradient's two terms: its errors are measured at their sum."""
    return (1 - z) * sigmoid(x) + q * z * sigmoid(-x)


def hessian(z: mpf, x: mpf, q: mpf) -> mpf:
    return ((1 - z) + q * z) * sigmoid(x) * sigmoid(-x)


def labels_gradient(z: mpf, x: mpf, q: mpf) -> mpf:
    return q * softplus(-x) - softplus(x)


def labels_gradient_scale(z: mpf, x: mpf, q: mpf) -> mpf:
    return q * softplus(-x) + softplus(x)


def pos_weight_gradient(z: mpf, x: mpf, q: mpf) -> mpf:
    return z * softplus(-x)


def _by_logits_and_labels(z: mpf, x: mpf, q: mpf) -> mpf:
    return -sigmoid(x) - q * sigmoid(-x)


def _by_logits_and_pos_weight(z: mpf, x: mpf, q: mpf) -> mpf:
    return -z * sigmoid(-x)


def _by_labels_and_pos_weight(z: mpf, x: mpf, q: mpf) -> mpf:
    return softplus(-x)


def zero(z: mpf, x: mpf, q: mpf) -> mpf:
    return mpf(0)


# The derivatives of the weighted loss, without the weight, by arguments numbered labels, logits,
# pos_weight, weight. The second function is the size at which errors are measured, that of the
# terms of a difference.
GRADIENT = [
    (labels_gradient, labels_gradient_scale),
    (gradient, gradient_scale),
    (pos_weight_gradient, None),
    (loss, None),
]
HESSIAN = {
    (0, 0): (zero, None),
    (0, 1): (_by_logits_and_labels, None),
    (0, 2): (_by_labels_and_pos_weight, None),
    (0, 3): GRADIENT[0],
    (1, 1): (hessian, None),
    (1, 2): (_by_logits_and_pos_weight, None),
    (1, 3): GRADIENT[1],
    (2, 2): (zero, None),
    (2, 3): GRADIENT[2],
    (3, 3): (zero, None),
}


def exact(value: Any) -> mpf:
    """The number that a NumPy scalar of any dtype holds, without rounding."""
    if not isinstance(value, np.longdouble):
        value = float(value)
    if not np.isfinite(value):
        return mpf(float(value))
    numerator, denominator = value.as_integer_ratio()
    # An mpf quotient of integers this long would round: the denominator is a power of two.
    return mp.ldexp(mpf(numerator), 1 - denominator.bit_length())


@functools.cache
def _at(function: Callable[..., mpf], points: tuple[Point, ...]) -> tuple[mpf, ...]:
    return tuple(function(*map(exact, point)) for point in points)


def at(function: Callable[..., mpf], *arrays: np.ndarray) -> tuple[mpf, ...]:
    """`function` of labels, logits and pos_weight, 1-d arrays already rounded to their dtype."""
    return _at(function, tuple(zip(*arrays, strict=True)))


def format_of(dtype: str) -> tuple[int, int, int]:
    """The exponents of the smallest and the largest numbers, and the bits of the mantissa."""
    if dtype == "bfloat16":
        return -126, 127, 7
    limits = np.finfo(dtype)
    return int(limits.minexp), int(limits.maxexp) - 1, int(limits.nmant)


def largest(dtype: str) -> mpf:
    _, exponent, bits = format_of(dtype)
    return mp.ldexp(2 ** (bits + 1) - 1, exponent - bits)


def smallest_normal(dtype: str) -> mpf:
    return mp.ldexp(1, format_of(dtype)[0])


def ulp(value: mpf, dtype: str) -> mpf:
    """The spacing of `dtype` at `value`; below the normal numbers it is that of the subnormals."""
    exponent, _, bits = format_of(dtype)
    if value:
        exponent = max(exponent, mp.mag(value) - 1)
    return mp.ldexp(1, exponent - bits)


def distances(
    got: Iterable[Any],
    true: Iterable[mpf],
    dtype: str,
    scale: Iterable[mpf] | None = None,
) -> list[mpf]:
    """|got - true| in ulp of `scale`, by default of `true`."""
    true = list(true)
    scales = true if scale is None else scale
    return [_distance(exact(g), t, s, dtype) for g, t, s in zip(got, true, scales, strict=True)]


def _distance(got: mpf, true: mpf, scale: mpf, dtype: str) -> mpf:
    if abs(true) > largest(dtype):
        got_overflows = abs(got) >= largest(dtype) and mp.sign(got) == mp.sign(true)
        return mpf(0) if got_overflows else mpf("inf")
    if mpmath.isnan(got):
        return mpf("inf")
    return abs(got - true) / ulp(scale, dtype)


def central_differences(
    loss: Callable[..., Any], arguments: Sequence[np.ndarray], position: int
) -> np.ndarray:
    """The slope of a loss by one of its arguments, element by element."""
    slopes = np.empty(arguments[position].shape)
    for index in np.ndindex(*slopes.shape):
        lower, upper = (list(arguments) for _ in range(2))
        for sides, step in ((lower, -1e-5), (upper, 1e-5)):
            sides[position] = arguments[position].copy()
            sides[position][index] += step
        slopes[index] = (loss(*upper) - loss(*lower)) / 2e-5
    return slopes
