"""How each array library computes a call: each module has one function, `compute`."""

from __future__ import annotations

from typing import Any

from logitloss._call import check
from logitloss._formula import Array
from logitloss._libraries import (
    is_of_tensorflow,
    is_tensor,
    library_of,
    load_backend,
    taken_over,
)

# The module for PyTorch, once an eager call has imported it: an import statement takes a thirtieth
# of a small call.
_torch: Any = None


def _load_torch() -> Any:
    global _torch
    from logitloss._backends import torch

    # Dynamo would compile again after a call that changes what it has been asked.
    if not torch.is_compiling():
        _torch = torch
    return torch


def compute(
    orders: tuple[int, ...],
    labels: object,
    logits: object,
    pos_weight: object,
    weight: object = None,
    reduction: Any = "none",
    out: object = None,
    name: str | None = None,
) -> tuple[Array, ...]:
    """Check what was passed, and compute it where its arrays belong."""
    call = None
    results: tuple[Array, ...] | None
    if is_tensor(logits):
        torch = _torch or _load_torch()
        # This check is for tensors alone. It takes a tenth of the time, and Dynamo can trace it.
        call = torch.describe(orders, labels, logits, pos_weight, weight, reduction, out, name)
        if call is not None:
            results = torch.compute(call)
            return results
    elif any(map(is_of_tensorflow, (labels, logits, pos_weight, weight))):
        from logitloss._backends import tensorflow

        call = tensorflow.describe(orders, labels, logits, pos_weight, weight, reduction, out, name)
    if call is None:
        arguments = orders, labels, logits, pos_weight, weight, reduction, out, name
        results = taken_over(compute, *arguments)
        if results is not None:
            return results
        call = check(*arguments)
    results = load_backend(library_of(call.xp)).compute(call)
    return results
