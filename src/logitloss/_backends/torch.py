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
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import torch
from array_api_compat import torch as xp
from torch import Tensor
from torch.autograd import Function, forward_ad

from logitloss import _formula
from logitloss._arguments import Arguments, refuse_layout
from logitloss._backends import numpy as numpy_backend
from logitloss._kernel import kernel

_FLOATING = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_INTEGRAL = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
_NUMPY_DTYPES: dict[torch.dtype, np.dtype[Any]] = {
    torch.float32: np.dtype(np.float32),
    torch.float64: np.dtype(np.float64),
}
_READABLE = (*_NUMPY_DTYPES, *_INTEGRAL)
_TYPES = (Tensor, torch.nn.Parameter)
_Outs: TypeAlias = tuple[Tensor | None, Tensor | None]
_is_wrapper = torch._C._functorch.is_legacy_batchedtensor
_is_functorch = torch._C._functorch.is_functorch_wrapped_tensor


def short_loss(
    labels: object, logits: Any, pos_weight: object, weight: object, reduction: str
) -> Tensor | None:
    """`numpy.short_loss` of tensors, with derivatives by the logits; None for everything else.

    On a few elements it takes less time than PyTorch's own loss, since it checks no more than has
    to be known before the kernel checks the rest.
    """
    if (
        torch.compiler.is_compiling()
        or type(labels) is not Tensor
        or type(logits) not in _TYPES
        or not logits.is_cpu
        or _is_transformed()
        or _is_traced()
        or torch.autograd.profiler._is_profiler_enabled
    ):
        return None
    try:
        # Asked to, `numpy` detaches; it would copy from another device as well.
        arrays = (
            labels.numpy(),
            logits.numpy(force=True),
            pos_weight if type(pos_weight) is float else _short_coefficient(pos_weight),
            None if weight is None else _short_coefficient(weight),
        )
    except (RuntimeError, TypeError):
        # One is not on the CPU, or not in memory as it reads, or requires a gradient.
        return None
    # One that outlived its `torch.func.grad` says it requires a gradient.
    needs_grad = logits.requires_grad and torch.is_grad_enabled() and not _is_functorch(logits)
    value: Any
    gradient: Any = None
    if reduction == "none":
        value = kernel.plain_loss(*arrays)
    elif needs_grad:
        results = numpy_backend.short_value_and_grad(*arrays, reduction, None)
        value, gradient = results or (None, None)
    else:
        value = numpy_backend.short_loss(*arrays, reduction, None)
    if value is None:
        return None
    value = _from_numpy(value)
    if not needs_grad:
        return value  # type: ignore[no-any-return]
    if gradient is not None:
        gradient = _from_numpy(gradient)
    return _apply_eager_loss(logits, (labels, pos_weight, weight, reduction, value, gradient))


def _short_coefficient(value: object) -> Any:
    if type(value) is Tensor:
        return value.numpy() if value.dim() else value.numpy().item()
    if not isinstance(value, (float, int)):
        raise TypeError
    return value


def parse(
    labels: object, logits: object, pos_weight: object, weight: object = None, name: object = None
) -> Arguments | None:
    """What `_arguments.parse` would return, or None where only that can tell.

    It knows tensors alone, takes a tenth of the time, and leaves Dynamo nothing to trip over.
    """
    if not (isinstance(labels, Tensor) and isinstance(logits, Tensor)):
        return None
    _check_dense("labels", labels)
    _check_dense("logits", logits)
    dtype = logits.dtype
    # There is no promotion of the 8-bit formats.
    if labels.dtype is not dtype and labels.dtype in _FLOATING:
        dtype = torch.promote_types(labels.dtype, dtype)
    if (
        logits.dtype in _FLOATING
        and labels.dtype in (*_FLOATING, *_INTEGRAL)
        and labels.shape == logits.shape
        and labels.device == logits.device
        and _is_coefficient(pos_weight, logits)
        and (weight is None or _is_coefficient(weight, logits))
        and (name is None or isinstance(name, str))
    ):
        if isinstance(pos_weight, int):
            pos_weight = float(pos_weight)
        if isinstance(weight, int):
            weight = float(weight)
        return Arguments(xp, labels, logits, pos_weight, weight, dtype)
    return None


def _check_dense(argument: str, tensor: Tensor) -> None:
    if tensor.layout is not torch.strided or tensor.is_nested:
        refuse_layout(argument, "nested" if tensor.is_nested else str(tensor.layout))


def _is_coefficient(value: object, logits: Tensor) -> bool:
    if isinstance(value, float) or (isinstance(value, int) and abs(value) <= 2**53):
        return True
    if not isinstance(value, Tensor) or value.dtype not in (*_FLOATING, *_INTEGRAL):
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
    if not torch.compiler.is_compiling() and torch.autograd.profiler._is_profiler_enabled:
        with torch.profiler.record_function(name or "logistic_loss"):
            return _loss(arguments, reduction, out)
    return _loss(arguments, reduction, out)


def _loss(arguments: Arguments, reduction: str, out: Tensor | None) -> Tensor:
    inputs = _prepare(arguments, out)
    tensors = _tensors(inputs[1:5])
    if _is_eager(tensors) and not _needs_grad(tensors):
        return _deliver(_kernel_loss(inputs, reduction, out), inputs, out)
    return _deliver(_differentiable_loss(inputs, reduction), inputs, out)


def value_and_grad(
    arguments: Arguments, reduction: str, out: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, Tensor]:
    outs: _Outs = out or (None, None)
    inputs = _prepare(arguments, *outs)
    tensors = _tensors(inputs[1:5])
    if _is_eager(tensors) and not _needs_grad(tensors):
        value, gradient = _kernel_value_and_grad(inputs, reduction, outs)
    else:
        value = _differentiable_loss(inputs, reduction)
        gradient = _derivative(*_operands(inputs), 1)
        if reduction != "none":
            gradient = gradient / _nonzero(_divisor(inputs, reduction), inputs)
    return _deliver(value, inputs, outs[0]), _deliver(gradient, inputs, outs[1])


def grad_and_hess(arguments: Arguments, out: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor]:
    outs: _Outs = out or (None, None)
    inputs = _prepare(arguments, *outs)
    tensors = _tensors(inputs[1:5])
    if _is_eager(tensors) and not _needs_grad(tensors):
        gradient, hessian = _kernel_grad_and_hess(inputs, outs)
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
        if _needs_grad(_tensors([*arguments[1:5], *outs])):
            # RuntimeError and its wording are those of torch's own functions.
            raise RuntimeError(
                "`out` must be None where autograd records: functions with out=... arguments "
                "don't support automatic differentiation, but one of the arguments requires grad."
            )
    elif half and torch.is_autocast_enabled(arguments.logits.device.type):
        # Autocast has torch's own loss among the operations whose results are float32.
        dtype = torch.float32

    _, labels, logits, pos_weight, weight, _ = arguments

    def cast(value: Any) -> Any:
        if half and isinstance(value, float):
            value = torch.full((), value, dtype=dtype, device=logits.device)
        if isinstance(value, Tensor):
            if value.dtype is not dtype:
                value = value.to(dtype)
            if half:
                value = value.float()
        return value

    if labels.is_floating_point():
        labels = cast(labels)
    return Arguments(xp, labels, cast(logits), cast(pos_weight), cast(weight), dtype)


def _deliver(value: Tensor, inputs: Arguments, out: Tensor | None) -> Tensor:
    if out is None:
        return value if value.dtype is inputs.dtype else value.to(inputs.dtype)
    return out if value is out else out.copy_(value)


def _tensors(values: Iterable[Any]) -> list[Tensor]:
    return [value for value in values if isinstance(value, Tensor)]


def _needs_grad(tensors: list[Tensor]) -> bool:
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def _is_eager(tensors: list[Tensor]) -> bool:
    """Whether the kernel can be called at once: nothing traces or transforms the call."""
    return not (
        torch.compiler.is_compiling() or _is_transformed() or _is_traced()
    ) and _fits_kernel(tensors, eager=True)


def _is_transformed() -> bool:
    return forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active()


def _is_traced() -> bool:
    return torch._C._len_torch_dispatch_stack() > 0 or torch._C._is_tracing()


def _fits_kernel(tensors: list[Tensor], eager: bool) -> bool:
    for tensor in tensors:
        if not (type(tensor) in _TYPES and tensor.is_cpu and tensor.dtype in _READABLE):
            return False
        # The wrappers of `torch.autograd.grad` with is_grads_batched, whose type is Tensor as
        # well. Dynamo has no such tensors, and cannot ask.
        if eager and _is_wrapper(tensor):
            return False
    return True


def _kernel_loss(inputs: Arguments, reduction: str, out: Tensor | None = None) -> Tensor:
    arrays, view = _to_numpy(inputs), _view(out, inputs)
    value = numpy_backend.short_loss(*arrays[1:5], reduction, view)
    if value is None:
        value = numpy_backend.loss(arrays, reduction, view, None)
    return _from_numpy(value, view, out)


def _kernel_value_and_grad(
    inputs: Arguments, reduction: str, outs: _Outs = (None, None)
) -> tuple[Tensor, Tensor]:
    arrays, views = _to_numpy(inputs), _views(outs, inputs)
    results = numpy_backend.short_value_and_grad(*arrays[1:5], reduction, views)
    if results is None:
        results = numpy_backend.value_and_grad(arrays, reduction, views)
    return _both_from_numpy(results, views, outs)


def _kernel_grad_and_hess(inputs: Arguments, outs: _Outs = (None, None)) -> tuple[Tensor, Tensor]:
    arrays, views = _to_numpy(inputs), _views(outs, inputs)
    results = numpy_backend.short_grad_and_hess(*arrays[1:5], views)
    if results is None:
        results = numpy_backend.grad_and_hess(arrays, views)
    return _both_from_numpy(results, views, outs)


def _to_numpy(inputs: Arguments) -> Arguments:
    """The same memory, but for negated views, which are copied."""

    def view(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if value.numel() and not any(value.stride()):
            # One number, however often an expanded tensor repeats it.
            return float(value.as_strided((), ()).item())
        return value.numpy(force=True)

    _, labels, logits, pos_weight, weight, _ = inputs
    dtype = _NUMPY_DTYPES[logits.dtype]
    arrays = labels.numpy(force=True), logits.numpy(force=True)
    return Arguments(np, *arrays, view(pos_weight), view(weight), dtype)


def _view(out: Tensor | None, inputs: Arguments) -> Any:
    """The memory of `out`, if it is laid out so that the kernel can write to it."""
    if out is None or out.dtype is not inputs.logits.dtype:
        return None
    if not (_fits_kernel([out], eager=True) and out.is_contiguous()) or out.is_neg():
        return None
    return out.detach().numpy()


def _views(outs: _Outs, inputs: Arguments) -> tuple[Any, Any] | None:
    first, second = (_view(out, inputs) for out in outs)
    return None if first is second is None else (first, second)


def _from_numpy(result: Any, view: Any = None, out: Tensor | None = None) -> Tensor:
    if view is None or out is None:
        # In memory that NumPy allocated: it keeps small blocks and asks for huge pages, where
        # PyTorch pays for page faults that cost more than the kernel.
        return torch.from_numpy(np.asarray(result))
    torch.autograd.graph.increment_version(out)
    return out


def _both_from_numpy(
    results: tuple[Any, Any], views: tuple[Any, Any] | None, outs: _Outs
) -> tuple[Tensor, Tensor]:
    first, second = map(_from_numpy, results, views or (None, None), outs)
    return first, second


def _operands(inputs: Arguments) -> tuple[Any, Any, Any, Any]:
    """Labels, logits, pos_weight and weight as tensors."""
    _, labels, logits, pos_weight, weight, _ = inputs

    def tensor(value: Any) -> Any:
        if value is None or isinstance(value, Tensor):
            return value
        # A product, for Dynamo compiles anew for every number that a constructor is given.
        return value * logits.new_ones(())

    return labels, logits, tensor(pos_weight), tensor(weight)


def _differentiable_loss(inputs: Arguments, reduction: str) -> Tensor:
    _, labels, logits, pos_weight, weight, _ = inputs
    others = _tensors([labels, pos_weight, weight])
    if _is_eager([logits, *others]) and not _needs_grad(others):
        results: tuple[Tensor, Tensor | None]
        if reduction == "none":
            results = _kernel_loss(inputs, reduction), None
        else:
            results = _kernel_value_and_grad(inputs, reduction)
        return _apply_eager_loss(logits, (labels, pos_weight, weight, reduction, *results))
    if reduction == "none":
        return _derivative(*_operands(inputs), 0)
    total = _derivative(*_operands(inputs), 0, total=True)
    divisor = _divisor(inputs, reduction)
    value: Tensor = total / _nonzero(divisor, inputs)
    if isinstance(divisor, Tensor):
        # Added, NaN stays out of the derivatives, which are zero where all weights are.
        value = value + torch.where(divisor == 0, math.nan, 0.0)
    return value


def _divisor(inputs: Arguments, reduction: str) -> Any:
    """What the sum of the weighted losses is divided by."""
    if reduction == "sum":
        return 1
    if reduction == "mean" or inputs.weight is None:
        return inputs.logits.numel()
    *_, weight = _operands(inputs)
    return weight.expand(inputs.logits.shape).sum(dtype=_accumulator(weight))


def _nonzero(divisor: Any, inputs: Arguments) -> Any:
    """1 for zero where all weights are zero, as then every derivative is; NaN where they cancel."""
    if not isinstance(divisor, Tensor):
        return divisor
    *_, weight = _operands(inputs)
    return torch.where(divisor == 0, torch.where((weight != 0).any(), math.nan, 1.0), divisor)


def _accumulator(values: Tensor) -> torch.dtype:
    return values.dtype if values.device.type == "mps" else torch.float64


class _EagerLoss(Function):
    """The loss where only logits need a gradient: a reduced one has it from the same pass."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, call: tuple[Any, ...]) -> Tensor:
        # In a tuple, because a Function makes a view of a tensor that it returns as it was given.
        labels, pos_weight, weight, ctx.reduction, value, ctx.gradient = call
        pos_weight, ctx.pos_weight = _tensor_or_number(pos_weight)
        weight, ctx.weight = _tensor_or_number(weight)
        ctx.save_for_backward(labels, logits, pos_weight, weight)
        return value  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, None]:
        # Given away, so that it may be multiplied in place and become `.grad` without a copy.
        gradient: Tensor | None = vars(ctx).pop("gradient", None)
        labels, logits, pos_weight, weight = ctx.saved_tensors
        pos_weight = ctx.pos_weight if pos_weight is None else pos_weight
        weight = ctx.weight if weight is None else weight
        inputs = Arguments(xp, labels, logits, pos_weight, weight, logits.dtype)
        is_reduced = ctx.reduction != "none"
        if not torch.is_grad_enabled() and _is_eager([scale]):
            if not is_reduced:
                weight = scale if weight is None else scale * weight
                return _kernel_value_and_grad(inputs._replace(weight=weight), "sum")[1], None
            if gradient is None:
                _, gradient = _kernel_value_and_grad(inputs, ctx.reduction)
            # `loss.backward()` passes 1, and multiplying is another pass over memory.
            return gradient if scale.item() == 1 else gradient.mul_(scale), None
        if is_reduced:
            scale = scale / _nonzero(_divisor(inputs, ctx.reduction), inputs)
        partials = _partials(_derivative, *_operands(inputs), 0, None, scale, None, None)
        return partials[1], None


def _tensor_or_number(value: Any) -> tuple[Tensor | None, float | None]:
    return (None, value) if value is None or isinstance(value, (float, int)) else (value, None)


# `Function.apply` without its look at `torch.func`: no transformation is active then.
_apply_eager_loss: Callable[..., Tensor] = super(Function, _EagerLoss).apply


def _derivative(
    labels: Tensor,
    logits: Tensor,
    pos_weight: Tensor,
    weight: Tensor | None,
    order: int,
    total: bool = False,
) -> Tensor:
    """D(order), or the sum over all its elements."""
    inputs = labels, logits, pos_weight, weight, order, total
    result: Tensor
    if torch.compiler.is_compiling() and not _is_transformed():
        # On the CPU the kernel outruns what Inductor makes of the formula; elsewhere Inductor fuses
        # the formula with its surroundings. But an export drops the derivative rule of a Function.
        if torch.compiler.is_exporting() or _fits_kernel(_tensors(inputs), eager=False):
            result = _operator(*inputs)
        else:
            result = _TraceableDerivative.apply(*inputs)  # type: ignore[no-untyped-call]
        return result
    if torch.compiler.is_compiling():
        # Dynamo would lose tangents and second derivatives. Now it leaves the call uncompiled, or
        # with fullgraph=True refuses it.
        raise NotImplementedError("a transformation of torch.func inside torch.compile")
    if not _is_transformed() and not _needs_grad(_tensors(inputs)):
        return _compute(*inputs)
    result = _Derivative.apply(*inputs)  # type: ignore[no-untyped-call]
    return result


def _compute(*inputs: Any) -> Tensor:
    """D from the inputs of `_derivative`, which does not record how."""
    if torch.compiler.is_compiling() or not _fits_kernel(_tensors(inputs), eager=True):
        return _compute_by_formula(*inputs)
    result: Tensor = _operator(*inputs) if _is_traced() else _compute_by_kernel(*inputs)
    return result


def _compute_by_formula(
    labels: Tensor,
    logits: Tensor,
    pos_weight: Tensor,
    weight: Tensor | None,
    order: int,
    total: bool,
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
    total: bool,
) -> Tensor:
    inputs = Arguments(xp, labels, logits, pos_weight, weight, logits.dtype)
    if order == 0:
        return _kernel_loss(inputs, "sum" if total else "none")
    results = _kernel_value_and_grad(inputs, "sum") if order == 1 else _kernel_grad_and_hess(inputs)
    result: Tensor = results[1]
    return result.sum(dtype=torch.float64).to(result.dtype) if total else result


def _partials(
    derivative: Callable[..., Tensor],
    labels: Tensor,
    logits: Tensor,
    pos_weight: Tensor,
    weight: Tensor | None,
    order: int,
    *factors: Tensor | None,
) -> list[Tensor | None]:
    """The derivatives of D(order) by each operand, times the factors given for them."""

    def times_weight(factor: Tensor) -> Tensor:
        return factor if weight is None else factor * weight

    def by_labels(factor: Tensor) -> Tensor:
        scale = times_weight(factor)
        zero = logits.new_zeros(()).expand_as(logits)
        positives = derivative(one, logits, pos_weight, scale, order, False)
        return positives - derivative(zero, logits, pos_weight, scale, order, False)

    def by_logits(factor: Tensor) -> Tensor:
        scale = times_weight(factor)
        if order < 2:
            return derivative(labels, logits, pos_weight, scale, order + 1, False)
        # D(3), from which on autograd knows what to do.
        return -torch.tanh(logits / 2) * derivative(labels, logits, pos_weight, scale, 2, False)

    def by_pos_weight(factor: Tensor) -> Tensor:
        return derivative(one, logits, labels, times_weight(factor), order, False)

    def by_weight(factor: Tensor) -> Tensor:
        values = derivative(labels, logits, pos_weight, factor, order, False)
        # What is masked stays masked.
        return torch.where((weight == 0) & ~torch.isfinite(values), 0.0, values)

    one = logits.new_ones(()).expand_as(logits)
    rules = by_labels, by_logits, by_pos_weight, by_weight
    return [
        None if factor is None else rule(factor)
        for rule, factor in zip(rules, factors, strict=True)
    ]


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *operands, ctx.order, ctx.total = inputs
    ctx.save_for_backward(*operands)


def _backward(derivative: Callable[..., Tensor], ctx: Any, scale: Tensor) -> tuple[Any, ...]:
    operands = ctx.saved_tensors
    factors = (scale if needed else None for needed in ctx.needs_input_grad[:4])
    partials = _partials(derivative, *operands, ctx.order, *factors)
    gradients = (
        None if partial is None else partial.sum_to_size(operand.shape)
        for partial, operand in zip(partials, operands, strict=True)
    )
    return *gradients, None, None


def _vmap(
    derivative: Callable[..., Tensor], info: Any, in_dims: tuple[int | None, ...], *inputs: Any
) -> tuple[Tensor, int]:
    *operands, order, total = inputs
    logits, batch = operands[1], in_dims[1]
    shape = logits.shape if batch is None else logits.movedim(batch, 0).shape[1:]

    def align(operand: Tensor | None, batch: int | None) -> Any:
        """Move the batch in front of all dimensions of the logits."""
        if operand is None or batch is None:
            return operand
        operand = operand.movedim(batch, 0)
        missing = len(shape) + 1 - operand.dim()
        return operand.reshape(operand.shape[:1] + (1,) * missing + operand.shape[1:])

    labels, logits, *coefficients = map(align, operands, in_dims[:4])
    shape = (info.batch_size, *shape)
    result = derivative(labels.expand(shape), logits.expand(shape), *coefficients, order, False)
    if total:
        result = result.reshape(info.batch_size, math.prod(shape[1:])).sum(1)
    return result, 0


class _TraceableDerivative(Function):
    """`_derivative` for Dynamo, which takes no Function with a forward mode."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        result = _compute(*inputs)
        _save(ctx, inputs, result)
        return result

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> Any:
        return _backward(_TraceableDerivative.apply, ctx, scale)


class _Derivative(Function):
    """`_derivative` with everything that autograd and `torch.func` may ask of it."""

    forward = staticmethod(_compute)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _save(ctx, inputs, output)
        ctx.save_for_forward(*inputs[:4])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> Any:
        return _backward(_derivative, ctx, scale)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        # Without forward mode in here an outer `torch.func.jvp` would see a constant.
        with forward_ad._set_fwd_grad_enabled(torch._C._are_functorch_transforms_active()):
            operands: list[Any] = [
                operand if operand is None else forward_ad.unpack_dual(operand).primal  # type: ignore[no-untyped-call]
                for operand in ctx.saved_tensors
            ]
            partials = _partials(_derivative, *operands, ctx.order, *tangents[:4])
            first, *rest = (partial for partial in partials if partial is not None)
            tangent: Tensor = sum(rest, start=first).expand_as(operands[1])
            return tangent.sum() if ctx.total else tangent

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> tuple[Tensor, int]:
        return _vmap(_derivative, info, in_dims, *inputs)


def _shape(*inputs: Any) -> Any:
    _, logits, _, _, _, total = inputs
    return logits.new_empty(()) if total else torch.empty_like(logits)


torch.library.define(
    "logitloss::derivative",
    "(Tensor labels, Tensor logits, Tensor pos_weight, Tensor? weight, int order, bool total)"
    " -> Tensor",
    tags=torch.Tag.pt2_compliant_tag,
)
_operator = torch.ops.logitloss.derivative.default
torch.library.impl("logitloss::derivative", "default", _compute)
torch.library.register_fake("logitloss::derivative", _shape)
torch.library.register_vmap("logitloss::derivative", partial(_vmap, _operator))
torch.library.register_autograd(
    "logitloss::derivative", partial(_backward, _operator), setup_context=_save
)
