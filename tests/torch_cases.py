"""Functions and operands for the tests of PyTorch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext

import backends
import numpy as np
import pytest

import logitloss
from logitloss import weighted_cross_entropy_with_logits as weighted

torch = pytest.importorskip("torch")

from torch.autograd import forward_ad  # noqa: E402

from logitloss._backends.torch import _operator, _ways  # noqa: E402

MARKS = [
    # PyTorch's own forward mode and Inductor are written in it.
    pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning"),
    # Dynamo does so to every Function that it traces.
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
]

inf, nan = math.inf, math.nan
REDUCTIONS = ("none", "sum", "mean", "weighted_mean")


def have_other_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have other tensors than those of the CPU's kernel, which take the formula."""
    for module in (_ways, _operator):
        monkeypatch.setattr(module, "is_readable", lambda tensors: False)


EXECUTIONS = ("kernel", "formula", "torch-cuda")


@contextmanager
def executed_by(execution: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Have tensors made whose loss is computed by the kernel, by the formula or on a GPU."""
    if execution == "formula":
        have_other_tensors(monkeypatch)
    with backends.get(execution).device if execution == "torch-cuda" else nullcontext():
        yield


def loss(labels, logits, pos_weight, weight):
    return weighted(labels, logits, pos_weight, weight=weight)


def operator(labels, logits, pos_weight, weight):
    return torch.ops.logitloss.derivatives(labels, logits, pos_weight, weight, [0], "none")[0]


def compiled(function: Callable, **options) -> Callable:
    torch._dynamo.reset()
    return torch.compile(function, fullgraph=True, backend="aot_eager", **options)


def by_backward(function: Callable, operands: Sequence, create_graph: bool = False) -> tuple:
    leaves = [operand.detach().requires_grad_() for operand in operands]
    return torch.autograd.grad(function(*leaves).sum(), leaves, create_graph=create_graph)


def by_func(function: Callable, operands: Sequence) -> tuple:
    return torch.func.grad(lambda *a: function(*a).sum(), argnums=(0, 1, 2, 3))(*operands)


def by_vmap(function: Callable, operands: Sequence) -> tuple:
    return torch.vmap(torch.func.grad(function, argnums=(0, 1, 2, 3)))(*operands)


def by_jvp(function: Callable, operands: Sequence) -> tuple:
    """One element depends on its own operands alone: a tangent of ones gives the slopes."""
    slopes = []
    for position, operand in enumerate(operands):

        def of_one(value, position=position):
            return function(*operands[:position], value, *operands[position + 1 :])

        slopes.append(torch.func.jvp(of_one, (operand,), (torch.ones_like(operand),))[1])
    return tuple(slopes)


def by_dual(function: Callable, operands: Sequence) -> tuple:
    slopes = []
    for position, operand in enumerate(operands):
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(operand, torch.ones_like(operand))
            result = function(*operands[:position], dual, *operands[position + 1 :])
            slopes.append(forward_ad.unpack_dual(result).tangent)
    return tuple(slopes)


def tensors(values: Sequence, dtype: str = "float64") -> list:
    return [torch.tensor(np.asarray(v), dtype=getattr(torch, dtype)) for v in values]


def small_operands(requires_grad: bool = False) -> tuple:
    generator = torch.Generator("cpu").manual_seed(0)

    def draw(*shape):
        values = torch.rand(shape, dtype=torch.float64, generator=generator, device="cpu")
        return values.to(torch.get_default_device()).requires_grad_(requires_grad)

    labels, logits, pos_weight, weight = draw(3, 4), draw(3, 4), draw(4), draw(3, 1)
    return labels, (6 * logits.detach() - 3).requires_grad_(requires_grad), pos_weight, weight


def reduced(reduction: str) -> Callable:
    return lambda z, x, q, w: weighted(z, x, q, weight=w, reduction=reduction)


FUNCTIONS = {
    **{reduction: reduced(reduction) for reduction in REDUCTIONS},
    "value_and_grad": lambda z, x, q, w: logitloss.value_and_grad(
        z, x, q, weight=w, reduction="weighted_mean"
    ),
    "grad_and_hess": lambda z, x, q, w: logitloss.grad_and_hess(z, x, q, weight=w),
}
