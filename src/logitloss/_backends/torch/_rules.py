"""How the derivatives by the logits are differentiated and batched, whatever records it.

The rules take `derivatives`, a way to compute them (see `_values`), by which the derivatives of
derivatives come about. What one is multiplied with, a gradient or a tangent, multiplies the weight
instead: then the kernel does so in passing, and zeros in it mask NaN as zero weights do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from array_api_compat import torch as xp
from torch import Tensor

from logitloss import _formula
from logitloss._backends.torch._values import accumulator, total
from logitloss._reductions import TOTAL

Way: TypeAlias = Callable[..., Sequence[Tensor]]


def save(ctx: Any, inputs: tuple[Any, ...], output: object) -> None:
    *operands, ctx.orders, ctx.reduction = inputs
    ctx.save_for_backward(*operands)
    ctx.set_materialize_grads(False)


def backward(derivatives: Way, ctx: Any, *scales: Tensor | None) -> tuple[Any, ...]:
    operands = ctx.saved_tensors
    gradients: list[Any] = [None] * 4
    for order, scale in zip(ctx.orders, scales, strict=True):
        factors = [scale if needed else None for needed in ctx.needs_input_grad[:4]]
        for position, slope in enumerate(_slopes(derivatives, operands, order, factors)):
            if slope is not None:
                slope = slope.sum_to_size(operands[position].shape)
                before = gradients[position]
                gradients[position] = slope if before is None else before + slope
    return *gradients, None, None


def push_forward(
    derivatives: Way, ctx: Any, operands: Sequence[Any], tangents: Sequence[Any]
) -> tuple[Tensor, ...]:
    results = []
    for order in ctx.orders:
        slopes = _slopes(derivatives, operands, order, tangents)
        first, *rest = (slope for slope in slopes if slope is not None)
        tangent: Tensor = sum(rest, start=first).expand_as(operands[1])
        is_total = ctx.reduction == TOTAL and order == 0
        results.append(total(tangent) if is_total else tangent)
    return tuple(results)


def _slopes(
    derivatives: Way, operands: Sequence[Any], order: int, factors: Sequence[Tensor | None]
) -> list[Tensor | None]:
    """The derivatives of D(order) by each operand, times the factors given for them."""
    labels, logits, pos_weight, weight = operands
    unless_masked = _formula.unless_masked

    def derivative(order: int, *operands: Any) -> Tensor:
        result: Tensor = derivatives(*operands, (order,), "none")[0]
        return result

    def full(value: float) -> Any:
        return logits.new_full((), value).expand_as(logits)

    def scaled(factor: Tensor | None) -> Tensor | None:
        if factor is None or weight is None:
            return factor
        product: Tensor = unless_masked(factor, weight, xp) * unless_masked(weight, factor, xp)
        return product

    # The factor of a total has the dtype of the sum.
    factors = [factor if factor is None else factor.to(logits.dtype) for factor in factors]
    rules = _formula.slopes(derivative, order, labels, logits, pos_weight, weight, full, xp)
    scales = [*map(scaled, factors[:3]), factors[3]]
    return [
        None if scale is None else rule(scale) for rule, scale in zip(rules, scales, strict=True)
    ]


def batch(
    derivatives: Way, info: Any, in_dims: tuple[Any, ...], *inputs: Any
) -> tuple[list[Tensor], list[int]]:
    *operands, orders, reduction = inputs
    logits, dim = operands[1], in_dims[1]
    shape = logits.shape if dim is None else logits.movedim(dim, 0).shape[1:]

    def align(operand: Tensor | None, dim: int | None) -> Any:
        """Move the batch in front of all dimensions of the logits."""
        if operand is None or dim is None:
            return operand
        operand = operand.movedim(dim, 0)
        missing = len(shape) + 1 - operand.dim()
        return operand.reshape(operand.shape[:1] + (1,) * missing + operand.shape[1:])

    labels, logits, *coefficients = map(align, operands, in_dims[:4])
    shape = (info.batch_size, *shape)
    results = list(
        derivatives(labels.expand(shape), logits.expand(shape), *coefficients, orders, "none")
    )
    if reduction == TOTAL and 0 in orders:
        losses = results[0].reshape(info.batch_size, math.prod(shape[1:]))
        results[0] = losses.sum(1, dtype=accumulator(losses))
    return results, [0] * len(results)
