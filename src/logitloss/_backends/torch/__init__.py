"""PyTorch tensors: the kernel on CPUs and on GPUs of NVIDIA's, the formula elsewhere.

`_ways` decides how a call is computed, `_values` computes it, `_rules` differentiates it, and
`_operator` is what stands in compiled graphs.

Threads are those of the kernel. Where PyTorch brings the OpenMP runtime that the kernel uses too,
`torch.set_num_threads` lowers their number as `threadpoolctl` does.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
import torch
from array_api_compat import torch as xp
from torch import Tensor

from logitloss._array_likes import refuse_mask_and_unit
from logitloss._backends.torch._cuda import by_cuda
from logitloss._backends.torch._private import (
    is_autocast_anywhere,
    is_profiled,
    is_transformed,
    is_zero_without_memory,
)
from logitloss._backends.torch._reduced import reduced_by
from logitloss._backends.torch._values import (
    FULL,
    HALF,
    INTEGRAL,
    READABLE,
    TYPES,
    by_kernel,
    check_memory,
    converted,
    is_addressable,
    memory_of,
)
from logitloss._backends.torch._ways import (
    by_compiled_kernel,
    by_compiled_step,
    by_cuda_step,
    by_step,
    way_of,
)
from logitloss._call import (
    Call,
    effective,
    finish,
    refuse_layout,
    refuse_shared_outs,
    refuse_zeros,
    share_memory,
)
from logitloss._kernel import kernel
from logitloss._libraries import is_masked_tensor
from logitloss._reductions import REDUCTIONS

is_compiling = torch.compiler.is_compiling
_FLOATING = FULL | HALF
_REDUCTIONS = frozenset(REDUCTIONS)
_OPERANDS = ("labels", "logits", "pos_weight", "weight")
# By their number.
_OUTS = {1: ("out",), 2: ("out[0]", "out[1]")}
# Dynamo turns these into tensors, but cannot trace them through the checks.
_CONSTANTS = (list, tuple, np.ndarray, np.generic)


def describe(
    orders: tuple[int, ...],
    labels: Any,
    logits: Any,
    pos_weight: Any,
    weight: Any,
    reduction: Any,
    out: object,
    name: object,
) -> Call | None:
    """What `_call.check` would return, or None where only that can tell.

    It knows tensors alone, takes a tenth of the time, and leaves Dynamo nothing to trip over.
    """
    if not (isinstance(labels, Tensor) and isinstance(logits, Tensor)):
        return None
    dtype = logits.dtype
    # There is no promotion of other dtypes.
    if labels.dtype is not dtype and labels.dtype in _FLOATING and dtype in READABLE:
        dtype = torch.promote_types(labels.dtype, dtype)
    if (
        labels.layout is logits.layout is torch.strided
        and not (labels.is_nested or logits.is_nested)
        and (type(labels) is type(logits) is Tensor or (_is_dense(labels) and _is_dense(logits)))
        and logits.dtype in _FLOATING
        and (labels.dtype is dtype or labels.dtype in _FLOATING or labels.dtype in INTEGRAL)
        and labels.shape == logits.shape
        and labels.device == logits.device
        and _is_coefficient(pos_weight, logits)
        and (weight is None or _is_coefficient(weight, logits))
        and (name is None or isinstance(name, str))
        and isinstance(reduction, str)
        and reduction in _REDUCTIONS
    ):
        if isinstance(pos_weight, int):
            pos_weight = float(pos_weight)
        if isinstance(weight, int):
            weight = float(weight)
        reduction = effective(reduction, weight)
        call = Call(orders, xp, labels, logits, pos_weight, weight, dtype, reduction, None, name)
        return call if out is None else finish(call, reduction, out, name)
    _refuse_other_layouts(labels=labels, logits=logits, pos_weight=pos_weight, weight=weight)
    coefficients = [pos_weight, weight]
    if torch.compiler.is_compiling() and any(isinstance(c, _CONSTANTS) for c in coefficients):
        if out is None:
            dtype = result_dtype(dtype, logits)
        pos_weight, weight = (
            torch.as_tensor(value, dtype=dtype, device=logits.device)
            if isinstance(value, _CONSTANTS)
            else value
            for value in coefficients
        )
        return describe(orders, labels, logits, pos_weight, weight, reduction, out, name)
    return None


def _is_dense(tensor: Tensor) -> bool:
    return (
        tensor.layout is torch.strided
        and not tensor.is_nested
        and (type(tensor) is Tensor or not is_masked_tensor(tensor))
    )


def _refuse_other_layouts(**given: object) -> None:
    for argument, value in given.items():
        if isinstance(value, Tensor) and not _is_dense(value):
            refuse_mask_and_unit(argument, value)
            refuse_layout(argument, "nested" if value.is_nested else str(value.layout))


def _is_coefficient(value: object, logits: Tensor) -> bool:
    if isinstance(value, float):
        return True
    if not isinstance(value, Tensor):
        return isinstance(value, int) and abs(value) <= 2**53
    if not (value.dtype in READABLE and _is_dense(value) and value.device == logits.device):
        return False
    if not value.dim():
        return True
    missing = logits.dim() - value.dim()
    return missing >= 0 and all(
        size in (1, goal) for size, goal in zip(value.shape, logits.shape[missing:], strict=True)
    )


def compute(call: Call) -> tuple[Tensor, ...]:
    # Entering a profiler range takes as long as a whole call on a small tensor.
    if is_compiling() or not is_profiled():
        return _compute(call)
    with torch.profiler.record_function(call.name or "logistic_loss"):
        return _compute(call)


def _compute(call: Call) -> tuple[Tensor, ...]:
    if call.logits.dtype not in FULL:
        call = _widened(call)
    orders, _, labels, logits, pos_weight, weight, dtype, reduction, outs, _ = call
    operands = labels, logits, pos_weight, weight
    way = way_of(operands, orders)
    if outs is not None:
        _refuse_recording((*operands, *outs))
        _refuse_unwritable(outs)
        if (way is by_kernel and _have_memory(outs)) or (
            way is by_cuda and _have_memory(outs) and not _overlap(outs, operands)
        ):
            way(*operands, orders, reduction, outs)
            torch.autograd.graph.increment_version(outs)
            return outs
    # Those that know every reduction, and numbers for coefficients. One by one, since a small call
    # notices a loop, and Dynamo compares these in no other way; compiled calls check the first of
    # them in every call.
    if (
        way is by_compiled_step
        or way is by_compiled_kernel
        or way is by_kernel
        or way is by_step
        or way is by_cuda
        or way is by_cuda_step
    ):
        results = tuple(way(*operands, orders, reduction))
        if outs is None:
            return results
    else:
        results = reduced_by(way, operands, orders, reduction)
    if outs is not None:
        return tuple(map(_copied, _OUTS[len(outs)], outs, results))
    return tuple(result.to(dtype) for result in results)


def _refuse_unwritable(outs: Sequence[Tensor]) -> None:
    # Dynamo cannot be asked for an address.
    if is_compiling():
        return
    for argument, out in zip(_OUTS[len(outs)], outs, strict=True):
        if is_zero_without_memory(out):
            refuse_zeros(argument)
    if len(outs) > 1:
        arrays = [
            _view(argument, out)
            for argument, out in zip(_OUTS[len(outs)], outs, strict=True)
            if is_addressable(out)
        ]
        if any(share_memory(one, other) for one, other in combinations(arrays, 2)):
            refuse_shared_outs()


def _copied(argument: str, out: Tensor, result: Tensor) -> Tensor:
    check_memory(argument, out)
    return out.copy_(result)


def result_dtype(dtype: torch.dtype, logits: Tensor) -> torch.dtype:
    """Of results for which no outputs are given: under autocast float32 instead of half precision.

    Those of torch's own loss are, too.
    """
    is_cast = (
        dtype in HALF and is_autocast_anywhere() and torch.is_autocast_enabled(logits.device.type)
    )
    return torch.float32 if is_cast else dtype


def _widened(call: Call) -> Call:
    """The call with operands of dtypes that have a kernel or a formula together."""
    dtype, logits = call.dtype, call.logits
    if call.outs is None:
        dtype = result_dtype(dtype, logits)
    if dtype in HALF or (logits.dtype in HALF and call.labels.dtype is dtype):
        return call
    # Integers; or logits in half precision for results that are not, which then decide the dtype.
    return call._replace(dtype=dtype, logits=converted("logits", logits, dtype))


def _refuse_recording(tensors: Sequence[Any]) -> None:
    if is_transformed() or (
        torch.is_grad_enabled()
        and any(isinstance(tensor, Tensor) and tensor.requires_grad for tensor in tensors)
    ):
        # torch's own functions raise the same RuntimeError with the same words.
        raise RuntimeError(
            "`out` must be None where autograd records: functions with out=... arguments "
            "don't support automatic differentiation, but one of the arguments requires grad."
        )


def _have_memory(outs: Sequence[Tensor]) -> bool:
    """Whether the kernel can write to the outputs as they lie in memory."""
    return all(type(out) in TYPES and out.is_contiguous() and not out.is_neg() for out in outs)


def _overlap(outs: Sequence[Tensor], operands: Sequence[Any]) -> bool:
    """Whether outputs share memory with operands, of which the kernel makes no copy on a GPU."""
    written = [_view("out", out) for out in outs]
    read = [
        _view(argument, value)
        for argument, value in zip(_OPERANDS, operands, strict=True)
        if isinstance(value, Tensor)
    ]
    return any(share_memory(out, value) for out in written for value in read)


def _view(argument: str, tensor: Tensor) -> Any:
    # Axes of length 1 say nothing of memory, and arrays may have fewer of them than tensors.
    if tensor.dim() > kernel.MAX_AXES:
        tensor = tensor.squeeze()
    return kernel.view(memory_of(argument, tensor))
