"""Loss, gradient and Hessian over any array namespace `xp`.

With ``a = 1 - z`` (what a negative costs) and ``b = q z`` (what a positive costs),

    loss = a softplus(x) + b softplus(-x)

Let `near` be the coefficient on the side of the logit's sign (a for x > 0, b otherwise), `far` the
other one, and ``e = exp(-|x|)``. Then ``softplus(|x|) = |x| + log1p(e)`` and
``softplus(-|x|) = log1p(e)``, so that nothing is subtracted and nothing overflows:

    loss     = near |x| + (a + b) log1p(e)
    gradient = ±(near - far e) / (1 + e)          + for x > 0, - otherwise
    Hessian  = (a + b) e / (1 + e)²

The functions take arrays of `xp` of one floating dtype whose shapes broadcast. They ask no array
for its value and index none, so they run lazily and under a tracing compiler.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, TypeAlias

Array: TypeAlias = Any
Namespace: TypeAlias = Any

# Beyond |x| = 87, log1p(e) = e and 1 + e = 1 in every format up to quadruple precision, while
# exp(-87) is still a normal number in float32, the format with the least range.
_TAIL = 87.0


class _Pieces(NamedTuple):
    positive: Array  # x > 0
    magnitude: Array  # |x|
    near: Array
    far: Array
    both: Array  # near + far
    root: Array  # exp(-|x|), or its square root in the tail
    tail: Array  # root in the tail, 1 elsewhere: exp(-|x|) = root * tail


def _pieces(labels: Array, logits: Array, pos_weight: Array, xp: Namespace) -> _Pieces:
    positive = logits > 0
    magnitude = xp.abs(logits)
    negative_cost = 1.0 - labels
    positive_cost = _product(pos_weight, labels, xp)

    # exp(-|x|) is rounded to a subnormal, then to zero, where a large pos_weight still lifts the
    # loss into the normal range. Multiplying by its square root twice keeps every digit.
    in_tail = magnitude > _TAIL
    root = xp.exp(xp.where(in_tail, -0.5 * magnitude, -magnitude))
    return _Pieces(
        positive=positive,
        magnitude=magnitude,
        near=xp.where(positive, negative_cost, positive_cost),
        far=xp.where(positive, positive_cost, negative_cost),
        both=negative_cost + positive_cost,
        root=root,
        tail=xp.where(in_tail, root, 1.0),
    )


def _product(first: Array, second: Array, xp: Namespace) -> Array:
    """Multiply with ``0 * inf = 0``; NaN stays NaN.

    The infinite factor is replaced before the multiplication, not the product after it: a NaN in
    the branch that `where` drops would still warn in NumPy and poison automatic derivatives.
    """
    dropped = ((first == 0) & (xp.abs(second) == math.inf)) | (
        (second == 0) & (xp.abs(first) == math.inf)
    )
    return xp.where(dropped, 0.0, first) * xp.where(dropped, 0.0, second)


def _loss(p: _Pieces, xp: Namespace) -> Array:
    log1p_root = xp.where(p.tail < 1.0, p.root, xp.log1p(p.root))
    return _product(p.near, p.magnitude, xp) + _product(p.both, log1p_root, xp) * p.tail


def _gradient(p: _Pieces, xp: Namespace) -> Array:
    opposing = _product(p.far, p.root, xp) * p.tail
    signed = xp.where(p.positive, p.near - opposing, opposing - p.near)
    return signed / (1.0 + p.root * p.tail)


def _hessian(p: _Pieces, xp: Namespace) -> Array:
    e = p.root * p.tail
    # (1 + e)², with one rounding where e is small instead of two that the square doubles.
    return _product(p.both, p.root, xp) * p.tail / (1.0 + e * (2.0 + e))


def loss(labels: Array, logits: Array, pos_weight: Array, xp: Namespace) -> Array:
    return _loss(_pieces(labels, logits, pos_weight, xp), xp)


def gradient(labels: Array, logits: Array, pos_weight: Array, xp: Namespace) -> Array:
    """d loss / d logits."""
    return _gradient(_pieces(labels, logits, pos_weight, xp), xp)


def hessian(labels: Array, logits: Array, pos_weight: Array, xp: Namespace) -> Array:
    """d² loss / d logits²."""
    return _hessian(_pieces(labels, logits, pos_weight, xp), xp)


def value_and_grad(
    labels: Array, logits: Array, pos_weight: Array, xp: Namespace
) -> tuple[Array, Array]:
    pieces = _pieces(labels, logits, pos_weight, xp)
    return _loss(pieces, xp), _gradient(pieces, xp)


def grad_and_hess(
    labels: Array, logits: Array, pos_weight: Array, xp: Namespace
) -> tuple[Array, Array]:
    pieces = _pieces(labels, logits, pos_weight, xp)
    return _gradient(pieces, xp), _hessian(pieces, xp)


def labels_gradient(logits: Array, pos_weight: Array, xp: Namespace) -> Array:
    """d loss / d labels: the loss is affine in the labels, with this slope."""
    positives = loss(xp.ones_like(logits), logits, pos_weight, xp)
    return positives - loss(xp.zeros_like(logits), logits, pos_weight, xp)


def pos_weight_gradient(labels: Array, logits: Array, xp: Namespace) -> Array:
    """d loss / d pos_weight: the loss is affine in pos_weight, with this slope."""
    ones = xp.ones_like(logits)
    return _product(labels, loss(ones, logits, ones, xp), xp)


def masked(values: Array, weight: Array, xp: Namespace) -> Array:
    """`values` times `weight`, and exactly zero where the weight is, whatever the value."""
    return weight * xp.where(weight == 0, 0.0, values)
