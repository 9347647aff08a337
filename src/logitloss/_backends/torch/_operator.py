"""The operator that stands in compiled graphs, exports and traces."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from logitloss._backends.torch import _rules
from logitloss._backends.torch._private import register_decomposition
from logitloss._backends.torch._rules import Way
from logitloss._backends.torch._values import accumulator, by_formula, by_kernel, is_readable
from logitloss._reductions import TOTAL

_NAME = "logitloss::derivatives"

torch.library.define(
    _NAME,
    "(Tensor labels, Tensor logits, Tensor pos_weight, Tensor? weight, int[] orders,"
    " str reduction) -> Tensor[]",
    tags=torch.Tag.pt2_compliant_tag,
)
by_operator = torch.ops.logitloss.derivatives.default


def _compute(*inputs: Any) -> list[Tensor]:
    *operands, orders, reduction = inputs
    readable = is_readable([operand for operand in operands if operand is not None])
    compute: Way = by_kernel if readable else by_formula
    return list(compute(*operands, tuple(orders), reduction))


def _shapes(*inputs: Any) -> list[Tensor]:
    _, logits, _, _, orders, reduction = inputs
    results = [torch.empty_like(logits) for _ in orders]
    if reduction == TOTAL and 0 in orders:
        results[0] = logits.new_empty((), dtype=accumulator(logits))
    return results


def _backward(ctx: Any, scales: list[Tensor | None]) -> tuple[Any, ...]:
    return _rules.backward(by_operator, ctx, *scales)


def _batch(*arguments: Any) -> Any:
    return _rules.batch(by_operator, *arguments)


torch.library.impl(_NAME, "default", _compute)
torch.library.register_fake(_NAME, _shapes)
torch.library.register_autograd(_NAME, _backward, setup_context=_rules.save)
torch.library.register_vmap(_NAME, _batch)
# What an exporter takes that knows no operators but PyTorch's own, that of ONNX for one.
register_decomposition(by_operator)(by_formula)
