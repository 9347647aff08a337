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
    working,
)
from logitloss._call import VALUE_AND_GRAD
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

# The reduced loss and its derivative by the logits, for steps of training in compiled graphs. What
# differentiates it stands around it in the graph: reaching a rule of its own would take PyTorch's
# dispatcher longer than the kernel takes for ten thousand elements.
_STEP = "logitloss::step"

torch.library.define(
    _STEP,
    "(Tensor labels, Tensor logits, Tensor pos_weight, Tensor? weight, str reduction)"
    " -> (Tensor, Tensor)",
    tags=torch.Tag.pt2_compliant_tag,
)
step = torch.ops.logitloss.step.default


def _compute_step(
    labels: Tensor, logits: Tensor, pos_weight: Tensor, weight: Tensor | None, reduction: str
) -> tuple[Tensor, ...]:
    operands = labels, logits, pos_weight, weight
    return by_kernel(*operands, VALUE_AND_GRAD, reduction, are_multiplied=True)


def _step_shapes(
    labels: Tensor, logits: Tensor, pos_weight: Tensor, weight: Tensor | None, reduction: str
) -> tuple[Tensor, ...]:
    dtype = logits.dtype
    if labels.is_floating_point():
        dtype = torch.promote_types(labels.dtype, dtype)
    whole = torch.empty_like(logits, dtype=dtype)
    gradient = torch.empty_like(logits, dtype=working(dtype))
    return whole if reduction == "none" else whole.new_empty(()), gradient


torch.library.impl(_STEP, "CPU", _compute_step)
torch.library.register_fake(_STEP, _step_shapes)
