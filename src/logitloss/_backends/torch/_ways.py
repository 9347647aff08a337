"""Which way a call goes, and the ways that record how it may be differentiated."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import isfinite
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad

from logitloss._backends.torch import _rules
from logitloss._backends.torch._cuda import by_cuda, is_launchable
from logitloss._backends.torch._operator import by_call_operator, by_operator, by_step_operator
from logitloss._backends.torch._private import (
    forward_mode_of_transformations,
    is_batched,
    is_exporting,
    is_functionalized,
    is_left_over,
    is_traced,
    is_transformed,
    untransformed_apply,
)
from logitloss._backends.torch._reduced import reduced_by
from logitloss._backends.torch._rules import Way
from logitloss._backends.torch._values import (
    HALF,
    as_tensors,
    by_formula,
    by_kernel,
    is_readable,
)
from logitloss._call import LOSS, VALUE_AND_GRAD

# Looked up once, since the smallest calls notice. So do compiled ones, which check each time that
# what they look up has stayed the same.
is_compiling, is_grad_enabled = torch.compiler.is_compiling, torch.is_grad_enabled


def way_of(operands: Sequence[Any], orders: Sequence[int], is_inside: bool = False) -> Way:
    """How to compute derivatives of these operands.

    An eager call goes straight to the kernel or the formula, since PyTorch's dispatcher takes
    longer to reach a Python operator than its own loss takes altogether. What has to be recorded
    goes through a Function, because an operator can have neither a forward mode nor nested
    `torch.func` levels; but compiled graphs, exports and traces hold the operator.

    `is_inside` a Function nothing is recorded or transformed any more.
    """
    # Loops, because a small call notices comprehensions.
    tensors = []
    for operand in operands:
        if not (operand is None or isinstance(operand, float)):
            tensors.append(operand)
    readable = is_readable(tensors)
    if is_compiling():
        if is_transformed():
            # Dynamo would lose tangents and second derivatives. Now it leaves the call uncompiled,
            # or with fullgraph=True refuses it.
            raise NotImplementedError("a transformation of torch.func inside torch.compile")
        # On the CPU the kernel is faster than what Inductor makes of the formula. Elsewhere
        # Inductor fuses the formula with its surroundings. But an export drops the rules of a
        # Function.
        if is_exporting():
            return by_operator
        recorded = [t for t in tensors if is_grad_enabled() and t.requires_grad]
        if not readable:
            return by_traceable_function if recorded and not is_inside else by_formula
        if not recorded and not is_inside:
            return by_compiled_kernel
        only_logits = len(recorded) == 1 and recorded[0] is operands[1]
        return by_compiled_step if only_logits and orders == LOSS else by_operator
    # Only the weight can be batched, by a gradient or tangent that multiplies it.
    has_batch = tensors[-1] is operands[-1] and is_batched(tensors[-1])
    readable = readable and not has_batch
    if is_transformed() and not is_inside:
        return by_operator if is_functionalized() else by_function
    direct = by_kernel if readable else by_formula
    if not (readable or has_batch) and is_launchable(tensors):
        direct = by_cuda
    if direct is not by_formula and is_traced():
        return by_formula if torch.onnx.is_in_onnx_export() else by_operator
    recorded = []
    if is_grad_enabled() and not is_inside:
        for tensor in tensors:
            if tensor.requires_grad and not is_left_over(tensor):
                recorded.append(tensor)
    if not recorded:
        return direct
    only_logits = len(recorded) == 1 and recorded[0] is operands[1]
    if not only_logits or orders != LOSS or direct is by_formula:
        return by_function
    return by_step if readable else by_cuda_step


def derivatives(*inputs: Any) -> Sequence[Tensor]:
    *operands, orders, _ = inputs
    return way_of(operands, orders)(*inputs)


def _forward(*inputs: Any) -> tuple[Tensor, ...]:
    *operands, orders, _ = inputs
    return tuple(way_of(operands, orders, is_inside=True)(*inputs))


class _TraceableFunction(Function):
    """For Dynamo: a Function without a forward mode."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, ...]:
        _rules.save(ctx, inputs, None)
        return _forward(*inputs)

    @staticmethod
    def backward(ctx: Any, *scales: Tensor | None) -> Any:
        return _rules.backward(derivatives, ctx, *scales)


class _Function(Function):
    """Everything that autograd and `torch.func` may ask for."""

    forward = staticmethod(_forward)
    backward = _TraceableFunction.backward

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        _rules.save(ctx, inputs, output)
        ctx.save_for_forward(*inputs[:4])

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> tuple[Tensor, ...]:
        with forward_mode_of_transformations():
            operands = [
                operand if operand is None else forward_ad.unpack_dual(operand).primal  # type: ignore[no-untyped-call]
                for operand in ctx.saved_tensors
            ]
            return _rules.push_forward(derivatives, ctx, operands, tangents[:4])

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> tuple[tuple[Any, ...], ...]:
        results, out_dims = _rules.batch(derivatives, info, in_dims, *inputs)
        return tuple(results), tuple(out_dims)


class _Step(Function):
    """The loss of eager CPU tensors where only the logits need a gradient.

    It has that from the same pass over memory, and then multiplies it.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, others: tuple[Any, ...]) -> Tensor:
        labels, pos_weight, weight, ctx.reduction = others
        value, *ctx.gradient = by_kernel(
            labels, logits, pos_weight, weight, VALUE_AND_GRAD, ctx.reduction
        )
        _save(ctx, labels, logits, pos_weight, weight)
        return value

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, None]:
        # Released, so that it can be multiplied in place and become `.grad` without a copy.
        gradient, ctx.gradient = ctx.gradient, []
        operands = _saved(ctx)
        if torch.is_grad_enabled() or way_of((scale,), ()) is not by_kernel:
            return _recorded_gradient(operands, ctx.reduction, scale), None
        factor = scale.item() if ctx.reduction != "none" else _common_factor(scale)
        if factor == 1 and gradient:
            # `loss.backward()` passes 1. Multiplying would be another pass over memory.
            return gradient[0], None
        if not gradient or factor is None or not isfinite(factor) or operands[1].dtype in HALF:
            # Half precision is rounded once, after the multiplication. A weight of zero masks
            # infinity.
            outs = tuple(gradient) or None
            return by_kernel(*operands, (1,), ctx.reduction, outs, scale)[0], None
        # A zero masks NaN, as that of a weight does.
        return gradient[0].mul_(factor) if factor else gradient[0].zero_(), None


def _common_factor(scale: Tensor) -> float | None:
    """The number by which all elements are multiplied, if there is one."""
    if any(scale.stride()) or not scale.numel():
        return None
    # The derivative of a sum is an expanded tensor.
    return scale.as_strided((), ()).item()


def _recorded_gradient(operands: Sequence[Any], reduction: str, scale: Tensor) -> Tensor:
    """The gradient by the logits, which autograd can differentiate further."""
    with torch.enable_grad():
        (value,) = reduced_by(by_function, operands, LOSS, reduction)
    gradient: Tensor
    (gradient,) = torch.autograd.grad(
        value, operands[1], scale, create_graph=torch.is_grad_enabled()
    )
    return gradient


class _CudaStep(Function):
    """The same on a GPU, where the gradient is computed when it is called for.

    That reads the inputs once more, as multiplying a gradient would, and rounds once; and to look
    at what it is multiplied by would be to wait for the GPU.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, others: tuple[Any, ...]) -> Tensor:
        labels, pos_weight, weight, ctx.reduction = others
        _save(ctx, labels, logits, pos_weight, weight)
        return by_cuda(labels, logits, pos_weight, weight, LOSS, ctx.reduction)[0]

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor, None]:
        operands = _saved(ctx)
        if torch.is_grad_enabled() or way_of((scale,), ()) is not by_cuda:
            return _recorded_gradient(operands, ctx.reduction, scale), None
        return by_cuda(*operands, (1,), ctx.reduction, None, scale)[0], None


def _save(ctx: Any, labels: Tensor, logits: Tensor, pos_weight: Any, weight: Any) -> None:
    # Without loops, which a step on few elements would notice.
    ctx.numbers = pos_weight, weight
    tensors = [labels, logits, None, None]
    if isinstance(pos_weight, Tensor):
        tensors[2], ctx.numbers = pos_weight, (None, weight)
    if isinstance(weight, Tensor):
        tensors[3], ctx.numbers = weight, (ctx.numbers[0], None)
    ctx.save_for_backward(*tensors)


def _saved(ctx: Any) -> tuple[Any, Any, Any, Any]:
    labels, logits, pos_weight, weight = ctx.saved_tensors
    if pos_weight is None:
        pos_weight = ctx.numbers[0]
    if weight is None:
        weight = ctx.numbers[1]
    return labels, logits, pos_weight, weight


def _by(step: type[Function]) -> Way:
    apply: Callable[..., Tensor] = untransformed_apply(step)

    def way(*inputs: Any) -> tuple[Tensor, ...]:
        labels, logits, pos_weight, weight, _, reduction = inputs
        # In a tuple, so that autograd looks at nothing but the logits.
        return (apply(logits, (labels, pos_weight, weight, reduction)),)

    return way


by_step, by_cuda_step = _by(_Step), _by(_CudaStep)


class _CompiledStep(Function):
    """The same in compiled graphs, whose compiler fuses the multiplication with what follows."""

    @staticmethod
    def forward(
        ctx: Any,
        labels: Tensor,
        logits: Tensor,
        pos_weight: Tensor,
        weight: Tensor | None,
        reduction: str,
    ) -> Tensor:
        operands = labels, logits, pos_weight, weight
        value, gradient = by_step_operator(*operands, reduction)
        ctx.save_for_backward(gradient)
        ctx.dtype = logits.dtype
        result: Tensor = value
        return result

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        # `masked`, by methods: Dynamo would check in every call what functions are called.
        product = gradient.masked_fill(scale == 0, 0.0) * scale.to(gradient.dtype)
        return None, product.to(ctx.dtype), None, None, None


def by_compiled_step(
    labels: Tensor,
    logits: Tensor,
    pos_weight: Any,
    weight: Any,
    orders: tuple[int, ...],
    reduction: str,
) -> tuple[Tensor, ...]:
    def alias(value: Any) -> Any:
        # Dynamo takes no tensor twice.
        return value if value is None else value.detach()

    labels, _, pos_weight, weight = map(alias, as_tensors(labels, logits, pos_weight, weight))
    value: Tensor = _CompiledStep.apply(labels, logits, pos_weight, weight, reduction)  # type: ignore[no-untyped-call]
    return (value,)


def by_compiled_kernel(*inputs: Any) -> tuple[Tensor, ...]:
    *operands, orders, reduction = inputs
    return tuple(by_call_operator(*as_tensors(*operands), orders, reduction))


by_function: Way = _Function.apply
by_traceable_function: Way = _TraceableFunction.apply
