"""CUDA tensors, computed by one launch of the kernel."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from array_api_compat import torch as xp
from torch import Tensor

from logitloss._backends import cuda
from logitloss._backends.torch._private import current_stream
from logitloss._backends.torch._reduced import reduced_by
from logitloss._backends.torch._values import (
    NAMES,
    READABLE,
    TYPES,
    Results,
    by_formula,
    memory_of,
    promoted,
)
from logitloss._reductions import TOTAL, for_kernel, masked

_DTYPES = {name: dtype for dtype, name in NAMES.items()}


def is_launchable(tensors: Sequence[Tensor]) -> bool:
    """Whether the kernel on the GPU can read the memory of all the tensors."""
    for tensor in tensors:
        if not (tensor.is_cuda and type(tensor) in TYPES and tensor.dtype in READABLE):
            return False
    # On AMD's GPUs tensors are "cuda", too.
    return torch.version.hip is None and not isinstance(cuda.launcher_or_reason(), str)


def by_cuda(
    labels: Tensor,
    logits: Tensor,
    pos_weight: Tensor | float,
    weight: Tensor | float | None,
    orders: tuple[int, ...],
    reduction: str,
    outs: tuple[Tensor, ...] | None = None,
    scale: Tensor | None = None,
) -> Results:
    """All of a call; `outs` are tensors to write the results to, apart from the others.

    The results are multiplied by `scale`, which masks with its zeros as a weight does.
    """
    dtype = promoted(labels, logits)
    with _on(logits.device):
        results = cuda.compute(
            _LIBRARY,
            NAMES[dtype],
            orders,
            labels,
            logits,
            pos_weight,
            weight,
            for_kernel(reduction, logits, weight, xp),
            outs,
            scale,
        )
    if results is not None:
        return results
    operands = labels, logits, pos_weight, weight
    results = reduced_by(by_formula, operands, orders, reduction)
    if scale is not None:
        results = tuple([masked(result, scale, xp) for result in results])
    if outs is not None:
        return tuple([out.copy_(result) for out, result in zip(outs, results, strict=True)])
    # A total has the dtype of the sum.
    return results if reduction == TOTAL else tuple([result.to(dtype) for result in results])


_AS_IT_IS = nullcontext()


def _on(device: torch.device) -> Any:
    """A context in which the device is the current one."""
    if torch.cuda.current_device() == device.index:
        return _AS_IT_IS
    return torch.cuda.device(device)


def _empty(shape: tuple[int, ...], dtype: str, like: Tensor) -> Tensor:
    return like.new_empty(shape, dtype=_DTYPES[dtype])


def _empty_like(dtype: str, like: Tensor) -> Tensor:
    return torch.empty_like(like, dtype=_DTYPES[dtype])


def _place(tensor: Tensor) -> tuple[int, int]:
    device = tensor.get_device()
    return device, current_stream(device)


_LIBRARY = cuda.Library(memory_of, _empty, _empty_like, _place)
