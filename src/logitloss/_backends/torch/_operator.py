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


def _dense(logits: Tensor) -> Tensor:
    """Logits whose memory order NumPy and PyTorch see alike, unlike that of repeated ones."""
    if logits.is_contiguous():
        return logits
    strides = [
        stride for size, stride in zip(logits.shape, logits.stride(), strict=True) if size > 1
    ]
    # Sliding windows have two equal ones.
    is_alike = 0 not in logits.stride() and len(set(strides)) == len(strides)
    return logits if is_alike else logits.clone()


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

# Whole calls in compiled graphs: one where nothing has to be recorded, and one for a step of
# training. The graph itself holds the multiplication that differentiates a step: reaching a rule of
# the operator's own takes PyTorch's dispatcher longer than the kernel takes for ten thousand
# elements. The gradient of a step has not been rounded to half precision, because it is multiplied
# first.
_CALL, _STEP = "logitloss::call", "logitloss::step"
_OPERANDS = "Tensor labels, Tensor logits, Tensor pos_weight, Tensor? weight"

for _name, _schema in (
    (_CALL, f"({_OPERANDS}, int[] orders, str reduction) -> Tensor[]"),
    (_STEP, f"({_OPERANDS}, str reduction) -> (Tensor, Tensor)"),
):
    torch.library.define(_name, _schema, tags=torch.Tag.pt2_compliant_tag)
by_call_operator = torch.ops.logitloss.call.default
by_step_operator = torch.ops.logitloss.step.default


def _call(
    labels: Tensor, logits: Tensor, pos_weight: Tensor, weight: Tensor | None, *how: Any
) -> list[Tensor]:
    orders, reduction = how
    return list(by_kernel(labels, _dense(logits), pos_weight, weight, tuple(orders), reduction))


def _step(
    labels: Tensor, logits: Tensor, pos_weight: Tensor, weight: Tensor | None, reduction: str
) -> tuple[Tensor, ...]:
    operands = labels, _dense(logits), pos_weight, weight
    return by_kernel(*operands, VALUE_AND_GRAD, reduction, are_multiplied=True)


def _call_shapes(*inputs: Any) -> list[Tensor]:
    labels, logits, _, _, orders, reduction = inputs
    dtype = promoted(labels, logits)
    return [_shape(logits, dtype, order, reduction) for order in orders]


def _step_shapes(*inputs: Any) -> tuple[Tensor, ...]:
    labels, logits, _, _, reduction = inputs
    dtype = promoted(labels, logits)
    return _shape(logits, dtype, 0, reduction), _shape(logits, working(dtype), 1, reduction)


def _shape(logits: Tensor, dtype: torch.dtype, order: int, reduction: str) -> Tensor:
    is_full = order or reduction == "none"
    return torch.empty_like(logits, dtype=dtype) if is_full else logits.new_empty((), dtype=dtype)


torch.library.impl(_CALL, "CPU", _call)
torch.library.impl(_STEP, "CPU", _step)
torch.library.register_fake(_CALL, _call_shapes)
torch.library.register_fake(_STEP, _step_shapes)
