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
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import torch
from array_api_compat import torch as xp
from torch import Tensor
from torch.autograd import Function, forward_ad

from logitloss import _formula
from logitloss._arguments import Arguments
from logitloss._backends import numpy as numpy_backend

# labels, logits, pos_weight, weight
Operands: TypeAlias = tuple[Tensor, Tensor, Tensor, Tensor | None]

_FLOATING = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_NUMPY_DTYPES = {torch.float32: np.dtype(np.float32), torch.float64: np.dtype(np.float64)}
_READABLE = {*_NUMPY_DTYPES, torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32}
_READABLE |= {torch.uint16, torch.uint32, torch.int64, torch.uint64}
_PLAIN = (Tensor, torch.nn.Parameter)
_PLAIN_KEYS = 0
for _key in ("CPU", "AutogradCPU", "AutocastCPU", "ADInplaceOrView", "Negative"):
    _PLAIN_KEYS |= torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, _key)).raw_repr()


def parse(
    labels: object, logits: object, pos_weight: object, weight: object = None
) -> Arguments | None:
    """What `_arguments.parse` would return, or None where only that can tell.

    It takes tensors alone, in a tenth of the time, and leaves nothing in the way of Dynamo.
    """
    if not (isinstance(labels, Tensor) and isinstance(logits, Tensor)):
        return None
    dtype = logits.dtype
    if labels.dtype != dtype and labels.dtype.is_floating_point:
        dtype = torch.promote_types(labels.dtype, dtype)
    if not (
        logits.dtype in _FLOATING
        and dtype in _FLOATING
        and not labels.dtype.is_complex
        and labels.shape == logits.shape
        and labels.device == logits.device
        and _is_coefficient(pos_weight, logits)
        and (weight is None or _is_coefficient(weight, logits))
    ):
        return None
    return Arguments(xp, labels, logits, pos_weight, weight, dtype)


def _is_coefficient(value: object, logits: Tensor) -> bool:
    if isinstance(value, float):
        return True
    if not (isinstance(value, Tensor) and value.dtype in _FLOATING):
        return False
    missing = logits.dim() - value.dim()
    return (
        value.device == logits.device
        and missing >= 0
        and all(
            size == 1 or size == goal
            for size, goal in zip(value.shape, logits.shape[missing:], strict=True)
        )
    )


def loss(arguments: Arguments, reduction: str, out: Tensor | None, name: str | None) -> Tensor:
    # Entering a range costs as much as a whole call on a small tensor.
    if not torch.compiler.is_compiling() and torch.autograd._profiler_enabled():
        with torch.profiler.record_function(name or "logistic_loss"):
            return _loss(arguments, reduction, out)
    return _loss(arguments, reduction, out)


def _loss(arguments: Arguments, reduction: str, out: Tensor | None) -> Tensor:
    inputs = _prepare(arguments, out)
    if _is_eager(*inputs[1:5]) and not _needs_grad(inputs):
        value = _target(out, inputs, reduction)
        numpy_backend.loss(_to_numpy(inputs), reduction, value.numpy(), None)
        return _deliver(value, inputs, out)
    return _deliver(_differentiable_loss(inputs, reduction), inputs, out)


def value_and_grad(
    arguments: Arguments, reduction: str, out: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, Tensor]:
    value_out, gradient_out = out or (None, None)
    inputs = _prepare(arguments, value_out, gradient_out)
    if _is_eager(*inputs[1:5]) and not _needs_grad(inputs):
        value = _target(value_out, inputs, reduction)
        gradient = _target(gradient_out, inputs)
        results = value.numpy(), gradient.numpy()
        numpy_backend.value_and_grad(_to_numpy(inputs), reduction, results)
    else:
        value = _differentiable_loss(inputs, reduction)
        gradient = _derivative(*_operands(inputs), order=1) / _divisor(inputs, reduction)
    return _deliver(value, inputs, value_out), _deliver(gradient, inputs, gradient_out)


def grad_and_hess(arguments: Arguments, out: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor]:
    gradient_out, hessian_out = out or (None, None)
    inputs = _prepare(arguments, gradient_out, hessian_out)
    if _is_eager(*inputs[1:5]) and not _needs_grad(inputs):
        gradient, hessian = _target(gradient_out, inputs), _target(hessian_out, inputs)
        numpy_backend.grad_and_hess(_to_numpy(inputs), (gradient.numpy(), hessian.numpy()))
    else:
        gradient = _derivative(*_operands(inputs), order=1)
        hessian = _derivative(*_operands(inputs), order=2)
    return _deliver(gradient, inputs, gradient_out), _deliver(hessian, inputs, hessian_out)


def _prepare(arguments: Arguments, *outs: Tensor | None) -> Arguments:
    """Round tensors to the result dtype, and widen half precision, which is computed in float32.

    Integer labels stay: the kernel reads them as they are.
    """
    dtype = arguments.dtype
    if any(out is not None for out in outs):
        _refuse_grad(arguments, outs)
    elif dtype.itemsize == 2 and torch.is_autocast_enabled(arguments.logits.device.type):
        # As torch's own loss does, which autocast lists among the operations for float32.
        dtype = torch.float32
    work = torch.float32 if dtype.itemsize == 2 else dtype

    def cast(value: Any) -> Any:
        return value.to(dtype).to(work) if isinstance(value, Tensor) else value

    labels = arguments.labels
    return Arguments(
        xp=arguments.xp,
        labels=cast(labels) if labels.is_floating_point() else labels,
        logits=cast(arguments.logits),
        pos_weight=cast(arguments.pos_weight),
        weight=cast(arguments.weight),
        dtype=dtype,
    )


def _refuse_grad(arguments: Arguments, outs: tuple[Tensor | None, ...]) -> None:
    if _needs_grad(arguments) or (
        torch.is_grad_enabled() and any(out is not None and out.requires_grad for out in outs)
    ):
        # RuntimeError and its wording are those of torch's own functions.
        raise RuntimeError(
            "`out` must be None where autograd records: functions with out=... arguments don't "
            "support automatic differentiation, but one of the arguments requires grad."
        )


def _needs_grad(inputs: Arguments) -> bool:
    return torch.is_grad_enabled() and any(
        isinstance(value, Tensor) and value.requires_grad for value in inputs[1:5]
    )


def _is_eager(*values: Any) -> bool:
    """Whether the kernel can be called at once: nothing traces or transforms the call."""
    return (
        not torch.compiler.is_compiling()
        and not _is_transformed()
        and not _is_traced()
        and _fits_kernel(*values)
        and _have_memory(*values)
    )


def _is_transformed() -> bool:
    return forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active()


def _is_traced() -> bool:
    return torch._C._len_torch_dispatch_stack() > 0 or torch.jit.is_tracing()


def _fits_kernel(*values: Any) -> bool:
    return all(
        type(value) in _PLAIN and value.is_cpu and value.dtype in _READABLE
        for value in values
        if isinstance(value, Tensor)
    )


def _have_memory(*values: Any) -> bool:
    """Whether these are neither sparse nor wrapped by `vmap` and its like."""
    return all(
        torch._C._dispatch_keys(value).raw_repr() & ~_PLAIN_KEYS == 0
        for value in values
        if isinstance(value, Tensor)
    )


def _target(out: Tensor | None, inputs: Arguments, reduction: str = "none") -> Tensor:
    """A tensor for the kernel to write to: `out` itself, where its memory is what it shows."""
    logits = inputs.logits
    if out is None or out.dtype != logits.dtype or not out.is_contiguous() or out.is_neg():
        with torch.no_grad():
            return torch.empty_like(logits) if reduction == "none" else logits.new_empty(())
    return out.detach()


def _deliver(value: Tensor, inputs: Arguments, out: Tensor | None) -> Tensor:
    if out is None:
        return value.to(inputs.dtype)
    if value.data_ptr() != out.data_ptr():
        return out.copy_(value)
    torch.autograd.graph.increment_version(out)
    return out


def _to_numpy(inputs: Arguments) -> Arguments:
    """Views of the same memory."""

    def view(value: Any) -> Any:
        return value.numpy(force=True) if isinstance(value, Tensor) else value

    _, labels, logits, pos_weight, weight, _ = inputs
    dtype = _NUMPY_DTYPES[logits.dtype]
    return Arguments(np, view(labels), view(logits), view(pos_weight), view(weight), dtype)


def _operands(inputs: Arguments) -> Operands:
    """The four operands as tensors."""

    def tensor(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value
        rounded = torch.full((), value, dtype=inputs.dtype, device=inputs.logits.device)
        return rounded.to(inputs.logits.dtype)

    _, labels, logits, pos_weight, weight, _ = inputs
    return labels, logits, tensor(pos_weight), None if weight is None else tensor(weight)


def _differentiable_loss(inputs: Arguments, reduction: str) -> Tensor:
    if reduction == "none":
        return _derivative(*_operands(inputs), order=0)
    if _is_eager(*inputs[1:5]) and not _needs_grad(inputs._replace(logits=None)):
        value: Tensor = _FusedReduction.apply(inputs.logits, inputs, reduction)
        return value
    total = _derivative(*_operands(inputs), order=0, total=True)
    divisor = _divisor(inputs, reduction)
    if not isinstance(divisor, Tensor):
        return total / divisor
    # NaN is added so that it stays out of the derivatives, which are zero where all weights are.
    return total / _nonzero(divisor) + torch.where(divisor == 0, math.nan, 0.0)


def _divisor(inputs: Arguments, reduction: str) -> int | Tensor:
    """What a sum of losses is divided by."""
    if reduction in ("none", "sum"):
        return 1
    if reduction == "mean" or inputs.weight is None:
        return inputs.logits.numel()
    *_, weight = _operands(inputs)
    assert weight is not None
    return weight.expand(inputs.logits.shape).sum(dtype=_accumulator(weight))


def _nonzero(divisor: int | Tensor) -> int | Tensor:
    return torch.where(divisor == 0, 1.0, divisor) if isinstance(divisor, Tensor) else divisor


def _accumulator(values: Tensor) -> torch.dtype:
    return values.dtype if values.device.type == "mps" else torch.float64


class _FusedReduction(Function):
    """The reduced loss, whose gradient the kernel computes in the same pass."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, inputs: Arguments, reduction: str) -> Tensor:
        value, gradient = logits.new_empty(()), torch.empty_like(logits)
        results = value.numpy(), gradient.numpy()
        numpy_backend.value_and_grad(_to_numpy(inputs), reduction, results)
        ctx.reduction = reduction
        ctx.inputs = inputs._replace(labels=None, logits=None, pos_weight=None, weight=None)
        ctx.save_for_backward(gradient, *_operands(inputs))
        return value

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor, None, None]:
        gradient, *operands = ctx.saved_tensors
        inputs = Arguments(ctx.inputs.xp, *operands, ctx.inputs.dtype)
        if torch.is_grad_enabled() or not _is_eager(scale):
            scale = scale / _nonzero(_divisor(inputs, ctx.reduction))
            factors = None, scale, None, None
            by_logits = _partials(*operands, 0, factors, _derivative)[1]
            return by_logits, None, None
        # What `loss.backward()` passes is 1, and multiplying would be another pass over memory.
        return gradient if scale == 1 else gradient * scale, None, None


def _derivative(
    labels: Tensor,
    logits: Tensor,
    pos_weight: Tensor,
    weight: Tensor | None,
    order: int,
    total: bool = False,
) -> Tensor:
    """D(order), or the sum over all its elements."""
    arguments = labels, logits, pos_weight, weight, order, total
    if torch.compiler.is_compiling():
        # On the CPU the kernel outruns what Inductor makes of the formula; elsewhere Inductor fuses
        # the formula with its surroundings. But an export drops the derivative rule of a Function.
        if _is_transformed():
            torch._dynamo.graph_break("Dynamo loses tangents and second derivatives of Functions.")
        elif torch.compiler.is_exporting() or _fits_kernel(*arguments):
            return _operator(*arguments)
        else:
            return _Derivative.apply(*arguments)
    return _DerivativeWithForwardMode.apply(*arguments)


def _compute(
    labels: Tensor,
    logits: Tensor,
    pos_weight: Tensor,
    weight: Tensor | None,
    order: int,
    total: bool = False,
) -> Tensor:
    arguments = labels, logits, pos_weight, weight, order, total
    if torch.compiler.is_compiling() or not (_fits_kernel(*arguments) and _have_memory(*arguments)):
        return _compute_by_formula(*arguments)
    return _operator(*arguments) if _is_traced() else _compute_by_kernel(*arguments)


def _compute_by_formula(
    labels: Tensor,
    logits: Tensor,
    pos_weight: Tensor,
    weight: Tensor | None,
    order: int,
    total: bool = False,
) -> Tensor:
    function = (_formula.loss, _formula.gradient, _formula.hessian)[order]
    values: Tensor = function(labels.to(logits.dtype), logits, pos_weight.to(logits.dtype), xp)
    if weight is not None:
        values = _formula.masked(values, weight, xp)
    return values.sum(dtype=_accumulator(values)).to(values.dtype) if total else values


def _compute_by_kernel(
    labels: Tensor,
    logits: Tensor,
    pos_weight: Tensor,
    weight: Tensor | None,
    order: int,
    total: bool = False,
) -> Tensor:
    arguments = _to_numpy(Arguments(xp, labels, logits, pos_weight, weight, None))
    one = logits.new_empty(())
    if order == 0:
        result = one if total else torch.empty_like(logits)
        numpy_backend.loss(arguments, "sum" if total else "none", result.numpy(), None)
        return result
    result = torch.empty_like(logits)
    if order == 1:
        numpy_backend.value_and_grad(arguments, "sum", (one.numpy(), result.numpy()))
    else:
        numpy_backend.grad_and_hess(arguments, (torch.empty_like(logits).numpy(), result.numpy()))
    return result.sum(dtype=torch.float64).to(result.dtype) if total else result


def _partials(
    labels: Tensor,
    logits: Tensor,
    pos_weight: Tensor,
    weight: Tensor | None,
    order: int,
    factors: tuple[Tensor | None, ...],
    derivative: Callable[..., Tensor],
) -> list[Tensor | None]:
    """The derivatives of D(order) by each operand, times the factors given for them."""
    one = logits.new_ones(()).expand_as(logits)
    zero = logits.new_zeros(()).expand_as(logits)

    def times_weight(factor: Tensor) -> Tensor:
        return factor if weight is None else factor * weight

    def by_labels(factor: Tensor) -> Tensor:
        scale = times_weight(factor)
        positives = derivative(one, logits, pos_weight, scale, order, False)
        return positives - derivative(zero, logits, pos_weight, scale, order, False)

    def by_logits(factor: Tensor) -> Tensor:
        scale = times_weight(factor)
        if order < 2:
            return derivative(labels, logits, pos_weight, scale, order + 1, False)
        # D(3), from which on autograd knows what to do.
        return -torch.tanh(logits / 2) * derivative(labels, logits, pos_weight, scale, order, False)

    def by_pos_weight(factor: Tensor) -> Tensor:
        return derivative(one, logits, labels, times_weight(factor), order, False)

    def by_weight(factor: Tensor) -> Tensor:
        values = derivative(labels, logits, pos_weight, factor, order, False)
        # What is masked stays masked.
        return torch.where((weight == 0) & ~torch.isfinite(values), 0.0, values)

    rules = by_labels, by_logits, by_pos_weight, by_weight
    return [
        None if factor is None else rule(factor)
        for rule, factor in zip(rules, factors, strict=True)
    ]


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *operands, ctx.order, ctx.total = inputs
    ctx.save_for_backward(*operands)


def _backward(
    ctx: Any, scale: Tensor, derivative: Callable[..., Tensor]
) -> tuple[Tensor | None, ...]:
    operands = ctx.saved_tensors
    factors = tuple(scale if needed else None for needed in ctx.needs_input_grad[:4])
    partials = _partials(*operands, ctx.order, factors, derivative)
    gradients = (
        None if partial is None else partial.sum_to_size(operand.shape)
        for partial, operand in zip(partials, operands, strict=True)
    )
    return *gradients, None, None


class _Derivative(Function):
    """`_derivative` for Dynamo, which traces no Function that has a forward mode."""

    forward = staticmethod(_compute)
    setup_context = staticmethod(_save)

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> Any:
        return _backward(ctx, scale, _Derivative.apply)

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[int | None, ...],
        labels: Tensor,
        logits: Tensor,
        pos_weight: Tensor,
        weight: Tensor | None,
        order: int,
        total: bool,
    ) -> tuple[Tensor, int]:
        dimensions = logits.dim() - (in_dims[1] is not None)

        def align(operand: Tensor | None, dim: int | None) -> Any:
            """Move the batch to the front of all dimensions of the logits."""
            if operand is None or dim is None:
                return operand
            operand = operand.movedim(dim, 0)
            missing = dimensions + 1 - operand.dim()
            return operand.reshape(operand.shape[:1] + (1,) * missing + operand.shape[1:])

        operands = labels, logits, pos_weight, weight
        labels, logits, pos_weight, weight = map(align, operands, in_dims[:4])
        shape = (info.batch_size, *logits.shape[logits.dim() - dimensions :])
        result = _derivative(labels.expand(shape), logits.expand(shape), pos_weight, weight, order)
        if total:
            result = result.reshape(info.batch_size, math.prod(shape[1:])).sum(1)
        return result, 0


class _DerivativeWithForwardMode(_Derivative):
    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _save(ctx, inputs, output)
        ctx.save_for_forward(*inputs[:4])

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> Any:
        return _backward(ctx, scale, _DerivativeWithForwardMode.apply)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        operands = ctx.saved_tensors
        partials = _partials(*operands, ctx.order, tangents[:4], _DerivativeWithForwardMode.apply)
        tangent = sum(partial for partial in partials if partial is not None)
        tangent = tangent.expand_as(operands[1])
        return tangent.sum() if ctx.total else tangent


torch.library.define(
    "logitloss::derivative",
    "(Tensor labels, Tensor logits, Tensor pos_weight, Tensor? weight, int order,"
    " bool total=False) -> Tensor",
    tags=torch.Tag.pt2_compliant_tag,
)
_operator = torch.ops.logitloss.derivative.default
torch.library.impl("logitloss::derivative", "default", _compute)
torch.library.register_vmap("logitloss::derivative", _Derivative.vmap)
torch.library.register_autograd(
    "logitloss::derivative", partial(_backward, derivative=_operator), setup_context=_save
)


@torch.library.register_fake("logitloss::derivative")
def _shape(
    labels: Tensor,
    logits: Tensor,
    pos_weight: Tensor,
    weight: Tensor | None,
    order: int,
    total: bool = False,
) -> Tensor:
    return logits.new_empty(()) if total else torch.empty_like(logits)
