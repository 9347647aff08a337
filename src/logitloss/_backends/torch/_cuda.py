"""CUDA tensors, computed by one launch of the kernel."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from array_api_compat import torch as xp
from torch import Tensor

from logitloss._backends import cuda
from logitloss._backends.torch._private import current_stream, is_zero_without_memory
from logitloss._backends.torch._reduced import reduced_by
from logitloss._backends.torch._values import READABLE, TYPES, Results, by_formula, promoted
from logitloss._kernel import kernel
from logitloss._reductions import TOTAL, for_kernel, masked

_NAMES = {dtype: str(dtype).removeprefix("torch.") for dtype in READABLE}
_DTYPES = {name: dtype for dtype, name in _NAMES.items()}
_CODES = {dtype: (kernel.TYPES[name], dtype.itemsize) for dtype, name in _NAMES.items()}


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
    # Held here: the memory of a copy must not become that of a result.
    labels, logits, pos_weight, weight, scale = map(
        _in_memory, (labels, logits, pos_weight, weight, scale)
    )
    dtype = promoted(labels, logits)
    with _on(logits.device):
        results = cuda.compute(
            _LIBRARY,
            _NAMES[dtype],
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


def _on(device: torch.device) -> Any:
    """A context in which the device is the current one."""
    if torch.cuda.current_device() == device.index:
        return nullcontext()
    return torch.cuda.device(device)


def _in_memory(value: Any) -> Any:
    """The tensor, or a copy where its memory holds other numbers or there is none."""
    if not isinstance(value, Tensor):
        return value
    return value.clone() if is_zero_without_memory(value) else value.resolve_neg()


def _describe(value: Any) -> Any:
    if value is None or isinstance(value, float):
        return value
    code, itemsize = _CODES[value.dtype]
    return value.data_ptr(), code, value.shape, value.stride(), itemsize


def memory_of(tensor: Tensor) -> Any:
    """What `share_memory` takes in the place of a tensor."""
    address, _, shape, strides, itemsize = _describe(tensor)
    return cuda.memory(address, shape, [itemsize * stride for stride in strides], itemsize)


def _empty(shape: tuple[int, ...], dtype: str, like: Tensor) -> Tensor:
    return torch.empty(shape, dtype=_DTYPES[dtype], device=like.device)


def _empty_like(dtype: str, like: Tensor) -> Tensor:
    return torch.empty_like(like, dtype=_DTYPES[dtype])


def _current() -> tuple[int, int]:
    device = torch.cuda.current_device()
    return device, current_stream(device)


_LIBRARY = cuda.Library(_describe, _empty, _empty_like, _current)
