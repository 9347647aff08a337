"""CuPy arrays: the kernel on GPUs of NVIDIA's, and the formula elsewhere."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import cupy

from logitloss import _reductions
from logitloss._backends import cuda, generic
from logitloss._call import Call, refuse_shared_outs, share_memory
from logitloss._kernel import kernel


def compute(call: Call) -> tuple[Any, ...]:
    outs = call.outs
    if outs is not None and any(_share_memory(*pair) for pair in combinations(outs, 2)):
        refuse_shared_outs()
    reduction = _reductions.for_kernel(call.reduction, call.logits, call.weight, call.xp)
    with call.logits.device:
        results = _launch(call, reduction)
        if results is None:
            return generic.compute(call)
        for out, result in zip(outs or (), results, strict=False):
            if out is not result:
                out[...] = result
    return outs or results


def _launch(call: Call, reduction: Any) -> tuple[Any, ...] | None:
    dtype = call.dtype.name
    if cupy.cuda.runtime.is_hip or dtype not in kernel.TYPES:
        return None
    inputs = call.labels, call.logits, call.pos_weight, call.weight
    arrays = [value for value in inputs if isinstance(value, cupy.ndarray)]
    if any(array.dtype.name not in kernel.TYPES for array in arrays):
        return None
    outs = call.outs
    can_write = outs is not None and all(
        out.flags.c_contiguous and not any(_share_memory(out, array) for array in arrays)
        for out in outs
    )
    return cuda.compute(
        _LIBRARY, dtype, call.orders, *inputs, reduction, outs if can_write else None
    )


def _share_memory(first: Any, second: Any) -> bool:
    return share_memory(*(kernel.view(_describe("", array)) for array in (first, second)))


def _describe(_: str, value: Any) -> Any:
    if value is None or isinstance(value, float):
        return value
    code = kernel.TYPES[value.dtype.name]
    return value.data.ptr, code, value.shape, value.strides, 1, value


def _empty(shape: tuple[int, ...], dtype: str, like: Any) -> Any:
    return cupy.empty(shape, _dtype(dtype, like))


def _empty_like(dtype: str, like: Any) -> Any:
    return cupy.empty_like(like, dtype=_dtype(dtype, like))


def _dtype(name: str, like: Any) -> Any:
    # bfloat16 is none of NumPy's names.
    return like.dtype if name == like.dtype.name else cupy.dtype(name)


def _place(array: Any) -> tuple[int, int]:
    return array.device.id, cupy.cuda.get_current_stream().ptr


_LIBRARY = cuda.Library(_describe, _empty, _empty_like, _place)
