"""A whole call, by the ways whose only reduction is the total."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from array_api_compat import torch as xp
from torch import Tensor

from logitloss import _reductions
from logitloss._backends.torch._private import is_jit_traced, replicated_beside
from logitloss._backends.torch._rules import Way
from logitloss._backends.torch._values import as_tensor, converted, promoted, total
from logitloss._reductions import TOTAL


def reduced_by(
    derivatives: Way, operands: Sequence[Any], orders: tuple[int, ...], reduction: str
) -> tuple[Tensor, ...]:
    labels, logits, pos_weight, weight = _of_one_dtype(*operands)
    is_summed = reduction != "none" and 0 in orders
    results = derivatives(
        labels, logits, pos_weight, weight, orders, TOTAL if is_summed else "none"
    )
    divisor = _reductions.divisor(reduction, logits, weight, xp, _count, total)
    if not isinstance(divisor, (float, Tensor)):
        # Nothing may be asked of a size that a graph leaves open.
        return tuple([result / divisor for result in results])
    return _reductions.divide_each(results, orders, divisor, weight, xp)


def _of_one_dtype(
    labels: Tensor, logits: Tensor, pos_weight: Tensor | float, weight: Tensor | float | None
) -> tuple[Any, ...]:
    """Tensors of the dtype to compute in, with coefficients rounded to the dtype of the results.

    The kernel reads integer labels as they are.
    """
    narrow = promoted(labels, logits)
    dtype = torch.promote_types(narrow, torch.float32)
    if labels.is_floating_point():
        labels = converted("labels", labels, dtype)
    logits = converted("logits", logits, dtype)

    def cast(argument: str, value: Any) -> Any:
        if value is None:
            return None
        value = replicated_beside(logits, as_tensor(value, logits))
        return converted(argument, converted(argument, value, narrow), dtype)

    return labels, logits, cast("pos_weight", pos_weight), cast("weight", weight)


def _count(tensor: Tensor, _: Any) -> Any:
    is_compiling = torch.compiler.is_compiling()
    if not is_compiling and is_jit_traced():
        # The trace records the counting, so that it holds for other sizes too.
        return total(torch.ones_like(tensor))
    size = tensor.numel()
    return size if is_compiling or not isinstance(size, int) else float(size)
