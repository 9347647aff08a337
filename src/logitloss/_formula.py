"""The loss and its derivatives by the logits over any array namespace `xp`.

The coefficients ``a = z - 1`` and ``b = q z`` have opposite signs, so that

    loss = b softplus(-x) - a softplus(x)

Let `near` be the one that multiplies the larger softplus (a for x >= 0, b otherwise), `far` the
other one, and ``e = exp(-|x|)``. Then ``softplus(±x) = max(±x, 0) + log1p(e)``, so that nothing
cancels and nothing overflows:

    loss     = (b - a) log1p(e) - near x
    gradient = -(near + far e) / (1 + e)
    Hessian  = (b - a) e / (1 + e)²

The functions take arrays of `xp` of one floating dtype whose shapes broadcast. They ask no array
for its value and index none, so they run lazily and under a tracing compiler. Where every operation
is a pass over memory, their number is the time of a call.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

Array: TypeAlias = Any
Namespace: TypeAlias = Any

# Just above the logarithm of the smallest normal number, by the number of bits of a format. Long
# doubles of any size have 15 bits of exponent.
_LOWEST_EXPONENT = {32: -87.0, 64: -708.0}
_LOWEST_OF_LONG_DOUBLE = -11355.0


def derivatives(
    orders: tuple[int, ...], labels: Array, logits: Array, pos_weight: Array, xp: Namespace
) -> tuple[Array, ...]:
    """The derivatives of these orders by the logits: 0 the loss, 1 the gradient, 2 the Hessian."""
    pieces = _pieces(labels, logits, pos_weight, xp)
    return tuple(_CLOSED_FORMS[order](pieces, xp) for order in orders)


class _Pieces(NamedTuple):
    logits: Array
    positive: Array  # x >= 0
    near: Array
    a: Array
    b: Array  # finite where the tail is zero
    e: Array  # exp(-|x|), but a normal number
    tail: Array  # what e lacks: exp(-|x|) = e * tail


def _pieces(labels: Array, logits: Array, pos_weight: Array, xp: Namespace) -> _Pieces:
    # Zero times infinity is zero here. The infinite factor is replaced before each multiplication,
    # not the product after it: a NaN in the branch that `where` drops would poison automatic
    # derivatives. What stands for pos_weight is finite, and NaN where pos_weight is.
    bounded = xp.tanh(pos_weight)
    a = labels - 1.0
    b = xp.where(labels == 0, bounded, pos_weight) * labels

    # exp(-|x|) is rounded to a subnormal, then to zero, where a large pos_weight still lifts the
    # loss into the normal range. Multiplying by two factors keeps every digit.
    opposite = -xp.abs(logits)
    lowest = _LOWEST_EXPONENT.get(xp.finfo(logits.dtype).bits, _LOWEST_OF_LONG_DOUBLE)
    head = xp.where(opposite < lowest, lowest, opposite)
    tail = xp.exp(opposite - head)

    # At 0 either side would do, but an infinite b would meet a zero.
    positive = logits >= 0
    return _Pieces(
        logits=logits,
        positive=positive,
        near=xp.where(positive, a, b),
        a=a,
        b=xp.where(tail == 0, bounded, b),
        e=xp.exp(head),
        tail=tail,
    )


def _loss(p: _Pieces, xp: Namespace) -> Array:
    linear = p.near * xp.where(p.near == 0, p.near, p.logits)
    return (p.b - p.a) * p.tail * xp.log1p(p.e) - linear


def _gradient(p: _Pieces, xp: Namespace) -> Array:
    far = xp.where(p.positive, p.b, p.a)
    return (p.near + far * p.tail * p.e) / (-1.0 - p.e)


def _hessian(p: _Pieces, xp: Namespace) -> Array:
    # (1 + e)², with one rounding where e is small instead of two that the square doubles.
    return (p.b - p.a) * p.tail * p.e / (1.0 + p.e * (2.0 + p.e))


_CLOSED_FORMS = (_loss, _gradient, _hessian)

# D(order, labels, logits, pos_weight, weight), an array or what a library's rule makes of it.
Derivative: TypeAlias = Callable[[int, Array, Array, Array, Array], Array]


def unless_masked(values: Array, factor: Array, xp: Namespace) -> Array:
    """`values` that are about to be multiplied by `factor`, whose zeros mask what is not finite.

    Finite values stay, since they are the derivative of the product by the factor.
    """
    return xp.where((factor == 0) & ~xp.isfinite(values), 0.0, values)


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
        return unless_masked(values, weight, xp)

    return by_labels, by_logits, by_pos_weight, by_weight
