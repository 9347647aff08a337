"""The loss and its derivatives by the logits over any array namespace `xp`.

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
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

Array: TypeAlias = Any
Namespace: TypeAlias = Any

# Beyond |x| = 87, log1p(e) = e and 1 + e = 1 in every format up to quadruple precision, while
# exp(-87) is still a normal number in float32, the format with the least range.
_TAIL = 87.0


def derivatives(
    orders: tuple[int, ...], labels: Array, logits: Array, pos_weight: Array, xp: Namespace
) -> tuple[Array, ...]:
    """The derivatives of these orders by the logits: 0 the loss, 1 the gradient, 2 the Hessian."""
    pieces = _pieces(labels, logits, pos_weight, xp)
    return tuple(_CLOSED_FORMS[order](pieces, xp) for order in orders)


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


_CLOSED_FORMS = (_loss, _gradient, _hessian)

# D(order, labels, logits, pos_weight, weight), an array or what a library's rule makes of it.
Derivative: TypeAlias = Callable[[int, Array, Array, Array, Array], Array]


def slopes(
    derivative: Derivative,
    order: int,
    labels: Array,
    logits: Array,
    pos_weight: Array,
    weight: Array | None,
    full: Callable[[float], Array],
    xp: Namespace,
) -> tuple[Callable[[Array | None], Array], ...]:
    """The derivatives of D(order) by labels, logits, pos_weight and weight.

    The loss is affine in labels and in pos_weight and linear in weight, so that the family

        D(n) = weight · dⁿ loss / d logitsⁿ

    is closed under differentiation:

        by logits      D(n + 1)
        by labels      D(n) at labels = 1, less D(n) at labels = 0
        by pos_weight  D(n) at labels = 1 and pos_weight = labels
        by weight      D(n) at weight = 1

    Each is a function of what it is multiplied by, given to `derivative` in the place of the
    weight: its zeros mask, as those of a weight do. None stands for 1. `full` makes an array of
    one value in the shape of the logits. The third derivative is left to the caller's automatic
    differentiation, from ``d² loss / d logits² = (a + b) s(x) s(-x)``, whose slope is
    ``-tanh(x / 2)`` times itself.
    """

    def by_labels(scale: Array | None) -> Array:
        positives = derivative(order, full(1.0), logits, pos_weight, scale)
        return positives - derivative(order, full(0.0), logits, pos_weight, scale)

    def by_logits(scale: Array | None) -> Array:
        if order < 2:
            return derivative(order + 1, labels, logits, pos_weight, scale)
        hessian = derivative(2, labels, logits, pos_weight, scale)
        # What is masked may have any logit.
        return hessian * -xp.tanh(xp.where(hessian == 0, 0.0, logits) / 2)

    def by_pos_weight(scale: Array | None) -> Array:
        return derivative(order, full(1.0), logits, labels, scale)

    def by_weight(scale: Array | None) -> Array:
        values = derivative(order, labels, logits, pos_weight, scale)
        # What is masked stays masked.
        return xp.where((weight == 0) & ~xp.isfinite(values), 0.0, values)

    return by_labels, by_logits, by_pos_weight, by_weight
