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
from logitloss._backends.torch._private import is_zero_without_memory
from logitloss._call import refuse_freed
from logitloss._kernel import kernel
from logitloss._reductions import TOTAL, for_kernel, masked

# Looked up once, since the smallest calls notice.
from_numpy, asarray = torch.from_numpy, np.asarray

# Sets, which compiled calls compare as one.
FULL = frozenset((torch.float32, torch.float64))
HALF = frozenset((torch.float16, torch.bfloat16))
_WIDEST = torch.float64
INTEGRAL = frozenset(
    getattr(torch, name)
    for name in ("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
)
READABLE = FULL | HALF | INTEGRAL
TYPES = (Tensor, torch.nn.Parameter)
NAMES = {dtype: str(dtype).removeprefix("torch.") for dtype in READABLE}
_CODES = {dtype: (kernel.TYPES[name], dtype.itemsize) for dtype, name in NAMES.items()}

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
    outs: tuple[Tensor, ...] | None = None,
    scale: Tensor | None = None,
    are_multiplied: bool = False,
) -> Results:
    """All of a call in one pass; `outs` are tensors to write the results to.

    The results are multiplied by `scale`, which masks with its zeros as a weight does. Derivatives
    that are yet to be multiplied before they are rounded to half precision come in float32.
    """
    results: Any = kernel.compute(
        orders,
        memory_of("labels", labels),
        memory_of("logits", logits),
        _coefficient("pos_weight", pos_weight),
        _coefficient("weight", weight),
        for_kernel(reduction, logits, weight, xp),
        None if outs is None else tuple([memory_of("out", out) for out in outs]),
        True,
        are_multiplied,
        None if scale is None else memory_of("grad_output", scale),
    )
    if results is None:
        assert logits.dim() > kernel.MAX_AXES
        operands = labels, logits, pos_weight, weight, scale
        return _by_kernel_in_line(operands, orders, reduction, outs, are_multiplied)
    if outs is not None:
        return outs
    # NumPy allocates the memory, because it keeps small blocks and asks for huge pages. PyTorch's
    # page faults would take longer than the kernel.
    tensors = [from_numpy(asarray(result)) for result in results]
    if logits.dtype is torch.bfloat16:
        # NumPy does not have it, and holds its bits.
        tensors = [t.view(torch.bfloat16) if t.dtype is torch.int16 else t for t in tensors]
    return tuple(tensors)


def _by_kernel_in_line(
    operands: tuple[Any, ...],
    orders: tuple[int, ...],
    reduction: str,
    outs: tuple[Tensor, ...] | None,
    are_multiplied: bool,
) -> Results:
    """The same on one axis, for tensors with more of them than the kernel has."""
    shape = operands[1].shape

    def in_line(value: Any) -> Any:
        has_axes = isinstance(value, Tensor) and value.dim()
        return value.expand(shape).reshape(-1) if has_axes else value

    labels, logits, pos_weight, weight, scale = map(in_line, operands)
    memory = None if outs is None else tuple(map(in_line, outs))
    results = by_kernel(
        labels, logits, pos_weight, weight, orders, reduction, memory, scale, are_multiplied
    )
    return outs or tuple([result.reshape(shape) if result.dim() else result for result in results])


def promoted(labels: Tensor, logits: Tensor) -> torch.dtype:
    """The dtype of the loss of floating logits."""
    if not labels.is_floating_point():
        return logits.dtype
    return torch.promote_types(labels.dtype, logits.dtype)


def memory_of(argument: str, value: Any) -> Any:
    """The memory of a tensor, as `kernel.view` takes it; numbers and None as they are."""
    if value is None or isinstance(value, float):
        return value
    if value.is_neg():
        # The memory holds the other sign.
        value = value.resolve_neg()
    try:
        address = value.data_ptr()
    except RuntimeError:
        # The tensor outlived its `torch.func.grad`, and wraps the one that has the memory.
        value = value.detach()
        address = value.data_ptr()
    if not address and value.numel():
        if not is_zero_without_memory(value):
            # PyTorch's own functions end the process.
            refuse_freed(argument)
        value = value.clone()
        address = value.data_ptr()
    code, itemsize = _CODES[value.dtype]
    return address, code, value.shape, value.stride(), itemsize, value


def converted(argument: str, value: Tensor, dtype: torch.dtype) -> Tensor:
    """A tensor in another dtype."""
    if value.dtype is dtype:
        return value
    check_memory(argument, value)
    return value.to(dtype)


def check_memory(argument: str, tensor: Tensor) -> None:
    """Raise an error where PyTorch's own functions would end the process."""
    # Dynamo cannot be asked for an address.
    if torch.compiler.is_compiling() or not is_addressable(tensor):
        return
    try:
        has_memory = tensor.data_ptr() or not tensor.numel() or is_zero_without_memory(tensor)
    except RuntimeError:
        # It wraps another tensor, for `torch.func`.
        return
    if not has_memory:
        refuse_freed(argument)


def is_addressable(tensor: Tensor) -> bool:
    """Whether the tensor can be asked where its memory is, which a subclass cannot."""
    return type(tensor) in TYPES and (tensor.is_cpu or tensor.is_cuda)


def _coefficient(argument: str, value: Tensor | float | None) -> Any:
    if value is None or isinstance(value, float):
        return value
    if value.dim() or not value.is_floating_point():
        return memory_of(argument, value)
    try:
        # It takes a third of the time.
        return value.item()
    except RuntimeError:
        return memory_of(argument, value)


def as_tensor(value: Tensor | float, logits: Tensor) -> Tensor:
    """A coefficient, of a dtype that loses nothing of a number if the device has one."""
    if not isinstance(value, float):
        return value
    # A product, because Dynamo compiles again for every number that is passed to a constructor.
    return logits.new_ones((), dtype=accumulator(logits)) * value


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


def total(values: Tensor, _: Any = None) -> Tensor:
    return values.sum(dtype=accumulator(values))


def working(dtype: torch.dtype) -> torch.dtype:
    """What is computed in: half precision in float32."""
    return torch.float32 if dtype in HALF else dtype


def accumulator(values: Tensor) -> torch.dtype:
    # `_reductions` asks array-api-compat, which Dynamo cannot follow.
    return values.dtype if values.device.type == "mps" else _WIDEST
