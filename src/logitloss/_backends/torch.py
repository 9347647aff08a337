"""PyTorch tensors: the kernel on the CPU, the formula elsewhere, derivatives of every order.

The loss is affine in labels and in pos_weight and linear in weight, so that the family

    D(n) = weight · dⁿ loss / d logitsⁿ

is closed under differentiation:

    by logits      D(n + 1)
    by labels      D(n) at labels = 1, less D(n) at labels = 0
    by pos_weight  D(n) at labels = 1 and pos_weight = labels
    by weight      D(n) at weight = 1

The gradient or tangent that a derivative is multiplied with multiplies the weight instead: then the
kernel does it in passing, and its zeros mask NaN as zero weights do.

There are three ways to compute D, which share these rules. On ordinary CPU tensors an eager call
goes straight to the kernel, since PyTorch's dispatcher takes longer to reach a Python operator than
its own loss takes altogether; transformations go through a Function, because an operator can have
neither a forward mode nor nested `torch.func` levels; compiled graphs and exports hold an operator.

Threads are those of the kernel. Where PyTorch brings the OpenMP runtime that the kernel uses too,
`torch.set_num_threads` lowers their number as `threadpoolctl` does.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from array_api_compat import torch as xp
from torch import Tensor
from torch.autograd import Function, forward_ad

from logitloss import _formula
from logitloss._arguments import Arguments
from logitloss._backends import numpy as numpy_backend
from logitloss._kernel import kernel

_FLOATING = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_NUMPY_DTYPES = {torch.float32: np.dtype(np.float32), torch.float64: np.dtype(np.float64)}
_READABLE = {*_NUMPY_DTYPES, torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32}
_READABLE |= {torch.uint16, torch.uint32, torch.int64, torch.uint64}

# The dispatch keys of an ordinary CPU tensor. Sparse ones have others, and wrappers of `torch.func`
# more, although their type is Tensor as well.
_ORDINARY = 0
for _key in ("CPU", "AutogradCPU", "AutocastCPU", "ADInplaceOrView", "Negative"):
    _ORDINARY |= torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, _key)).raw_repr()


def plain_loss(labels: object, logits: object, pos_weight: object) -> Tensor | None:
    """`kernel.plain_loss` of tensors: the loss in the commonest case, or None in another one."""
    if (
        torch.compiler.is_compiling()
        or type(labels) is not Tensor
        or type(logits) is not Tensor
        or _is_transformed()
        or _is_traced()
        or torch.autograd._profiler_enabled()
    ):
        return None
    try:
        losses = kernel.plain_loss(labels.numpy(), logits.numpy(), pos_weight)
    except (RuntimeError, TypeError):
        # One requires grad, is not on the CPU, or is not in memory as it reads.
        return None
    return None if losses is None else torch.from_numpy(losses)


def parse(
    labels: object, logits: object, pos_weight: object, weight: object = None, name: object = None
) -> Arguments | None:
    """What `_arguments.parse` would return, or None where only that can tell.

    It knows tensors alone, takes a tenth of the time, and leaves Dynamo nothing to trip over.
    """
    if not (isinstance(labels, Tensor) and isinstance(logits, Tensor)):
        return None
    dtype = logits.dtype
    if labels.dtype is not dtype and labels.dtype.is_floating_point:
        dtype = torch.promote_types(labels.dtype, dtype)
    if (
        logits.dtype in _FLOATING
        and dtype in _FLOATING
        and not labels.dtype.is_complex
        and labels.shape == logits.shape
        and labels.device == logits.device
        and _is_coefficient(pos_weight, logits)
        and (weight is None or _is_coefficient(weight, logits))
        and (name is None or isinstance(name, str))
    ):
        return Arguments(xp, labels, logits, pos_weight, weight, dtype)
    return None


def _is_coefficient(value: object, logits: Tensor) -> bool:
    if isinstance(value, float):
        return True
    if not isinstance(value, Tensor) or value.dtype not in _FLOATING:
        return False
    missing = logits.dim() - value.dim()
    return (
        missing >= 0
        and all(
            size in (1, goal)
            for size, goal in zip(value.shape, logits.shape[missing:], strict=True)
        )
        and value.device == logits.device
    )


def loss(arguments: Arguments, reduction: str, out: Tensor | None, name: str | None) -> Tensor:
    # Entering a range costs as much as a whole call on a small tensor.
    if not torch.compiler.is_compiling() and torch.autograd._profiler_enabled():
        with torch.profiler.record_function(name or "logistic_loss"):
            return _loss(arguments, reduction, out)
    return _loss(arguments, reduction, out)


def _loss(arguments: Arguments, reduction: str, out: Tensor | None) -> Tensor:
    inputs = _prepare(arguments, out)
    if _is_eager(*inputs[1:5]) and not _needs_grad(*inputs[1:5]):
        return _deliver(_kernel_loss(inputs, reduction, out), inputs, out)
    return _deliver(_differentiable_loss(inputs, reduction), inputs, out)


def value_and_grad(
    arguments: Arguments, reduction: str, out: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, Tensor]:
    outs = out or (None, None)
    inputs = _prepare(arguments, *outs)
    if _is_eager(*inputs[1:5]) and not _needs_grad(*inputs[1:5]):
        value, gradient = _kernel_value_and_grad(inputs, reduction, *outs)
    else:
        value = _differentiable_loss(inputs, reduction)
        gradient = _derivative(*_operands(inputs), 1)
        if reduction != "none":
            gradient = gradient / _nonzero(_divisor(inputs, reduction))
    return _deliver(value, inputs, outs[0]), _deliver(gradient, inputs, outs[1])


def grad_and_hess(arguments: Arguments, out: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor]:
    outs = out or (None, None)
    inputs = _prepare(arguments, *outs)
    if _is_eager(*inputs[1:5]) and not _needs_grad(*inputs[1:5]):
        gradient, hessian = _kernel_grad_and_hess(inputs, *outs)
    else:
        gradient = _derivative(*_operands(inputs), 1)
        hessian = _derivative(*_operands(inputs), 2)
    return _deliver(gradient, inputs, outs[0]), _deliver(hessian, inputs, outs[1])


def _prepare(arguments: Arguments, *outs: Tensor | None) -> Arguments:
    """Round tensors to the result dtype, and widen half precision, which is computed in float32.

    Integer labels stay: the kernel reads them as they are.
    """
    dtype = arguments.dtype
    half = dtype.itemsize == 2
    if any(out is not None for out in outs):
        if _needs_grad(*arguments[1:5], *outs):
            # RuntimeError and its wording are those of torch's own functions.
            raise RuntimeError(
                "`out` must be None where autograd records: functions with out=... arguments "
                "don't support automatic differentiation, but one of the arguments requires grad."
            )
    elif half and torch.is_autocast_enabled(arguments.logits.device.type):
        # Autocast has torch's own loss among the operations whose results are float32.
        dtype = torch.float32

    def cast(value: Any) -> Any:
        if not isinstance(value, Tensor) or value.dtype is dtype:
            return value.float() if half and isinstance(value, Tensor) else value
        value = value.to(dtype)
        return value.float() if half else value

    _, labels, logits, pos_weight, weight, _ = arguments
    if labels.is_floating_point():
        labels = cast(labels)
    return Arguments(xp, labels, cast(logits), cast(pos_weight), cast(weight), dtype)


def _deliver(value: Tensor, inputs: Arguments, out: Tensor | None) -> Tensor:
    if out is None:
        return value if value.dtype is inputs.dtype else value.to(inputs.dtype)
    return out if value is out else out.copy_(value)


def _needs_grad(*values: Any) -> bool:
    return torch.is_grad_enabled() and any(
        isinstance(value, Tensor) and value.requires_grad for value in values
    )


def _is_eager(*values: Any) -> bool:
    """Whether the kernel can be called at once: nothing traces or transforms the call."""
    return (
        not torch.compiler.is_compiling()
        and not _is_transformed()
        and not _is_traced()
        and _fits_kernel(*values)
        and _is_ordinary(*values)
    )


def _is_transformed() -> bool:
    return forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active()


def _is_traced() -> bool:
    return torch._C._len_torch_dispatch_stack() > 0 or torch._C._is_tracing()


def _fits_kernel(*values: Any) -> bool:
    return all(
        type(value) in (Tensor, torch.nn.Parameter) and value.is_cpu and value.dtype in _READABLE
        for value in values
        if isinstance(value, Tensor)
    )


def _is_ordinary(*values: Any) -> bool:
    return all(
        torch._C._dispatch_keys(value).raw_repr() & ~_ORDINARY == 0
        for value in values
        if isinstance(value, Tensor)
    )


def _kernel_loss(inputs: Arguments, reduction: str, out: Tensor | None = None) -> Tensor:
    value = _plain_reduction(kernel.LOSS, inputs, reduction)
    if value is not None:
        return value
    view = _writable(out, inputs)
    result = numpy_backend.loss(_to_numpy(inputs), reduction, view, None)
    return _from_numpy(result, view, out)


def _kernel_value_and_grad(
    inputs: Arguments,
    reduction: str,
    value_out: Tensor | None = None,
    gradient_out: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    if gradient_out is None and inputs.logits.is_contiguous():
        gradient = np.empty(inputs.logits.shape, _NUMPY_DTYPES[inputs.logits.dtype])
        value = _plain_reduction(kernel.VALUE_AND_GRAD, inputs, reduction, gradient)
        if value is not None:
            return value, torch.from_numpy(gradient)
    views: Any = _writable(value_out, inputs), _writable(gradient_out, inputs)
    value, gradient = numpy_backend.value_and_grad(_to_numpy(inputs), reduction, views)
    return _from_numpy(value, views[0], value_out), _from_numpy(gradient, views[1], gradient_out)
