"""The operators that stand in compiled graphs, exports and traces."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from logitloss._backends.torch import _rules
from logitloss._backends.torch._cuda import by_cuda, is_launchable
from logitloss._backends.torch._private import register_decomposition
from logitloss._backends.torch._rules import Way
from logitloss._backends.torch._values import (
    accumulator,
    by_formula,
    by_kernel,
    is_readable,
    promoted,
    working,
)
from logitloss._reductions import TOTAL

_NAME = "logitloss::derivatives"

torch.library.define(
    _NAME,
    "(Tensor labels, Tensor logits, Tensor pos_weight, Tensor? weight, int[] orders,"
    " str reduction) -> Tensor[]",
    tags=torch.Tag.pt2_compliant_tag,
)
by_operator = torch.ops.logitloss.derivatives.default


def _dense(logits: Tensor) -> Tensor:
    """Logits whose memory order NumPy and PyTorch see alike, unlike that of repeated ones."""
    return logits.clone() if 0 in logits.stride() else logits


def _compute(*inputs: Any) -> list[Tensor]:
    labels, logits, *coefficients, orders, reduction = inputs
    operands = labels, _dense(logits), *coefficients
    tensors = [operand for operand in operands if operand is not None]
    compute: Way = by_formula
    if is_readable(tensors):
        compute = by_kernel
    elif is_launchable(tensors):
        compute = by_cuda
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
# For exporters that know only PyTorch's own operators, such as that of ONNX.
register_decomposition(by_operator)(by_formula)

# A whole call in compiled graphs where nothing has to be recorded. What differentiates a step of
# training stands around it in the graph: reaching a rule of the operator's own takes PyTorch's
# dispatcher longer than the kernel takes for ten thousand elements.
_CALL = "logitloss::call"

torch.library.define(
    _CALL,
    "(Tensor labels, Tensor logits, Tensor pos_weight, Tensor? weight, int[] orders,"
    " str reduction, bool are_multiplied) -> Tensor[]",
    tags=torch.Tag.pt2_compliant_tag,
)
by_kernel_operator = torch.ops.logitloss.call.default


def _call(*inputs: Any) -> list[Tensor]:
    labels, logits, pos_weight, weight, orders, reduction, are_multiplied = inputs
    operands = labels, _dense(logits), pos_weight, weight
    return list(by_kernel(*operands, tuple(orders), reduction, are_multiplied=are_multiplied))


def _call_shapes(*inputs: Any) -> list[Tensor]:
    labels, logits, _, _, orders, reduction, are_multiplied = inputs
    dtype = promoted(labels, logits)
    wide = working(dtype) if are_multiplied else dtype
    return [
        torch.empty_like(logits, dtype=wide if order else dtype)
        if order or reduction == "none"
        else logits.new_empty((), dtype=dtype)
        for order in orders
    ]


torch.library.impl(_CALL, "CPU", _call)
torch.library.register_fake(_CALL, _call_shapes)
