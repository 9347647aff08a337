"""Everything that this package asks of PyTorch under a private name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, compiler
from torch._decomp import register_decomposition as register_decomposition
from torch.autograd import Function, forward_ad

# Looked up once, because every call needs them.
_has_transformations = torch._C._are_functorch_transforms_active
_count_dispatch_modes = torch._C._len_torch_dispatch_stack
is_jit_traced = torch._C._is_tracing
# For any kind of device, in a third of the time that it takes to ask for one.
is_autocast_anywhere = torch._C._is_any_autocast_enabled

# Builds without CUDA have none.
current_stream: Callable[[int], int] = getattr(torch._C, "_cuda_getCurrentRawStream", int)

# Forward mode has such tangents.
is_zero_without_memory: Callable[[Tensor], bool] = Tensor._is_zerotensor


def is_profiled() -> bool:
    return torch.autograd.profiler._is_profiler_enabled


def is_exporting() -> bool:
    """What `torch.compiler.is_exporting` says, which Dynamo takes to be true in PyTorch 2.11."""
    return compiler._is_exporting_flag


def is_transformed() -> bool:
    """Whether `torch.func` or forward mode is at work."""
    return forward_ad._current_level >= 0 or _has_transformations()


def is_functionalized() -> bool:
    """Whether the innermost transformation is `torch.func.functionalize`."""
    innermost = torch._C._functorch.peek_interpreter_stack()
    functionalize = torch._C._functorch.TransformType.Functionalize
    return innermost is not None and innermost.key() == functionalize


def is_traced() -> bool:
    """Whether operators are recorded, by `make_fx` or `torch.jit.trace`, or otherwise caught."""
    return _count_dispatch_modes() > 0 or is_jit_traced()


# A tensor that outlived its `torch.func.grad` says that it requires a gradient.
is_left_over: Callable[[Tensor], bool] = torch._C._functorch.is_functorch_wrapped_tensor
# Made by `torch.autograd.grad` with is_grads_batched. Its type is Tensor, like any other.
is_batched: Callable[[Tensor], bool] = torch._C._functorch.is_legacy_batchedtensor


def forward_mode_of_transformations() -> Any:
    """A context with forward mode as `torch.func` has it, which a Function's `jvp` turns off.

    Without, an outer `torch.func.jvp` would see a constant.
    """
    return forward_ad._set_fwd_grad_enabled(_has_transformations())


def untransformed_apply(function: type[Function]) -> Callable[..., Any]:
    """`Function.apply` without its look at `torch.func`, which takes as long as a small loss."""
    apply: Callable[..., Any] = super(Function, function).apply  # type: ignore[misc]
    return apply


def replicated_beside(tensor: Tensor, other: Tensor) -> Tensor:
    """`other`, which every process holds, as a distributed tensor beside a distributed one."""
    if type(other) is not Tensor or not hasattr(tensor, "device_mesh"):
        return other
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(other, tensor.device_mesh)
