"""The derivatives by the logits, from the kernel or from the formula; nothing here records how.

Every way to compute takes ``labels, logits, pos_weight, weight, orders, reduction`` and returns

    D(n) = weight · dⁿ loss / d logitsⁿ    for n in orders

With the reduction TOTAL that of order 0 is the sum over all elements instead, in the dtype in which
sums are accumulated. Only the kernel knows other reductions as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from array_api_compat import torch as xp
from torch import Tensor

from logitloss import _formula
from logitloss._kernel import kernel
from logitloss._reductions import TOTAL, for_kernel, masked

FULL = (torch.float32, torch.float64)
HALF = (torch.float16, torch.bfloat16)
INTEGRAL = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
READABLE = frozenset((*FULL, *HALF, *INTEGRAL))
TYPES = (Tensor, torch.nn.Parameter)

Results: TypeAlias = tuple[Tensor, ...]


def is_readable(tensors: Sequence[Tensor]) -> bool:
    """Whether the kernel can read the memory of all the tensors."""
    for tensor in tensors:
        if not (type(tensor) in TYPES and tensor.is_cpu and tensor.dtype in READABLE):
            return False
    return True


def by_kernel(
    labels: Tensor,
    logits: Tensor,
    pos_weight: Tensor | float,
    weight: Tensor | float | None,
    orders: tuple[int, ...],
    reduction: str,
    outs: tuple[Any, ...] | None = None,
    are_multiplied: bool = False,
) -> Results:
    """All of a call in one pass; `outs` is memory to write the results to.

    Derivatives that are multiplied before they are rounded to half precision come in float32.
    """
    results: Any = kernel.compute(
        orders,
        as_array(labels),
        as_array(logits),
        _as_coefficient(pos_weight),
        _as_coefficient(weight),
        for_kernel(reduction, logits, weight, xp),
        outs,
        is_checked=True,
        are_multiplied=are_multiplied,
    )
    # NumPy allocates the memory, because it keeps small blocks and asks for huge pages. PyTorch's
    # page faults would take longer than the kernel.
    tensors = [torch.from_numpy(np.asarray(result)) for result in results]
    if tensors[0].dtype is torch.int16:
        # The bits of bfloat16, which NumPy does not have.
        tensors = [t.view(torch.bfloat16) if t.dtype is torch.int16 else t for t in tensors]
    return tuple(tensors)


def promoted(labels: Tensor, logits: Tensor) -> torch.dtype:
    """The dtype of the loss of floating logits."""
    if not labels.is_floating_point():
        return logits.dtype
    return torch.promote_types(labels.dtype, logits.dtype)


def as_array(value: Tensor | float | None) -> Any:
    """What the kernel takes: the memory of a tensor, of which only a negated view is copied."""
    # The commonest types come first, because PyTorch takes longer to reject what is not a tensor.
    if value is None or type(value) is float or not isinstance(value, Tensor):
        return value
    if value.dtype is torch.bfloat16:
        return value.resolve_neg().view(torch.int16).numpy(force=True).view(kernel.BFloat16Bits)
    # `numpy(force=True)` detaches.
    return value.numpy(force=True)


def _as_coefficient(value: Tensor | float | None) -> Any:
    # `item` takes a fifth of the time of an array without dimensions.
    if isinstance(value, Tensor) and not value.dim() and value.is_floating_point():
        return value.item()
    return as_array(value)


def as_tensor(value: Tensor | float, logits: Tensor) -> Tensor:
    # A product, because Dynamo compiles again for every number that is passed to a constructor.
    return value if isinstance(value, Tensor) else logits.new_ones(()) * value


def as_tensors(
    labels: Tensor, logits: Tensor, pos_weight: Tensor | float, weight: Tensor | float | None
) -> tuple[Any, ...]:
    """What an operator takes."""
    weight = None if weight is None else as_tensor(weight, logits)
    return labels, logits, as_tensor(pos_weight, logits), weight


def by_formula(
    labels: Tensor,
    logits: Tensor,
    pos_weight: Tensor,
    weight: Tensor | None,
    orders: tuple[int, ...],
    reduction: str,
) -> Results:
    labels = labels.to(logits.dtype)
    results = _formula.derivatives(orders, labels, logits, pos_weight.to(logits.dtype), xp)
    results = tuple(masked(result, weight, xp) for result in results)
    if reduction != TOTAL:
        return results
    return tuple(
        result if order else total(result) for order, result in zip(orders, results, strict=True)
    )


def total(values: Tensor) -> Tensor:
    return values.sum(dtype=accumulator(values))


def working(dtype: torch.dtype) -> torch.dtype:
    """What is computed in: half precision in float32."""
    return torch.float32 if dtype in HALF else dtype


def accumulator(values: Tensor) -> torch.dtype:
    # `_reductions` asks array-api-compat, which Dynamo cannot follow.
    return values.dtype if values.device.type == "mps" else torch.float64
