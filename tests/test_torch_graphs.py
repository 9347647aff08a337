"""PyTorch: compiled graphs, exports and traces, and the operator that stands in them."""

from __future__ import annotations

import math
import shutil
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest
from torch_cases import (
    EXECUTIONS,
    FUNCTIONS,
    MARKS,
    REDUCTIONS,
    compiled,
    executed_by,
    loss,
    operator,
    reduced,
    small_operands,
    tensors,
    torch,
)

import logitloss
from logitloss import _losses
from logitloss import weighted_cross_entropy_with_logits as weighted
from logitloss._backends import compute
from logitloss._backends.torch import _operator

torch_loss = torch.nn.functional.binary_cross_entropy_with_logits

pytestmark = MARKS


@pytest.fixture
def execution(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with executed_by(request.param, monkeypatch):
        yield


@pytest.mark.parametrize(
    ("orders", "reduction"),
    [*(((n,), "none") for n in range(3)), ((1, 2), "none"), ((0,), "total"), ((0, 1), "total")],
)
def test_opcheck(orders: tuple[int, ...], reduction: str) -> None:
    labels, logits, pos_weight, weight = small_operands(requires_grad=True)
    samples = [
        (labels, logits, pos_weight, weight),
        (labels.detach(), logits.detach(), pos_weight.detach(), None),
        (labels > 0.5, logits.detach().T.contiguous().T, pos_weight.detach(), None),
        (labels.detach()[0, 0], logits.detach()[0, 0], pos_weight.detach()[0], None),
        (labels.detach(), logits.detach()[:1].expand(3, 4), pos_weight.detach(), None),
    ]
    for sample in samples:
        torch.library.opcheck(_operator.by_operator, (*sample, orders, reduction))


@pytest.mark.parametrize("reduction", ["none", "mean"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_opcheck_of_a_whole_call(dtype: str, reduction: str) -> None:
    kind = getattr(torch, dtype)
    labels, logits, pos_weight, weight = (value.to(kind) for value in small_operands())
    samples = [
        (labels, logits, pos_weight, weight),
        (labels.float() > 0.5, logits.T.contiguous().T, pos_weight, None),
        (labels.float()[0, 0], logits[0, 0], pos_weight[0], None),
        (labels, logits[:1].expand(3, 4), pos_weight, None),
    ]
    for sample in samples:
        torch.library.opcheck(_operator.by_step_operator, (*sample, reduction))
        for orders in ((0,), (0, 1), (1, 2)):
            how = orders, "none" if 2 in orders else reduction
            torch.library.opcheck(_operator.by_call_operator, (*sample, *how))


@pytest.mark.parametrize(
    "view", ["repeated rows", "repeated columns", "permuted", "every second", "windows"]
)
def test_results_lie_as_graphs_expect(view: str) -> None:
    """Compiled code relies on the strides; `opcheck` compares them on a GPU alone."""
    logits = {
        "repeated rows": torch.randn(2, 1, 4).expand(2, 3, 4),
        "repeated columns": torch.randn(2, 3, 1).expand(2, 3, 4),
        "permuted": torch.randn(2, 3, 4).permute(2, 0, 1),
        "every second": torch.randn(2, 3, 4)[..., ::2],
        "windows": torch.randn(6).unfold(0, 4, 1),
    }[view]
    operands = torch.ones(logits.shape), logits, torch.ones(()), None
    expected = [torch.empty_like(logits).stride()] * 2
    for results in (
        _operator.by_operator(*operands, [0, 1], "none"),
        _operator.by_call_operator(*operands, [0, 1], "none"),
        _operator.by_step_operator(*operands, "none"),
    ):
        assert [result.stride() for result in results] == expected


def test_vmap_of_the_operator() -> None:
    labels, logits, pos_weight, weight = small_operands()
    got = torch.vmap(operator, in_dims=(0, 0, None, 0))(labels, logits, pos_weight, weight)
    torch.testing.assert_close(got, loss(labels, logits, pos_weight, weight))


class Graphs:
    """A backend of torch.compile that remembers the operators of the graphs it is given."""

    def __init__(self) -> None:
        self.operators: list[list[str]] = []

    def __call__(self, module, inputs):
        from functorch.compile import make_boxed_func
        from torch._dynamo.backends.common import aot_autograd

        def remember(module, inputs):
            self.operators.append([str(node.target) for node in module.graph.nodes])
            return make_boxed_func(module.forward)

        return aot_autograd(fw_compiler=remember)(module, inputs)

    def count(self, name: str = "derivatives") -> list[int]:
        return [operators.count(f"logitloss.{name}.default") for operators in self.operators]


COMPILED = {
    **FUNCTIONS,
    "no weight": lambda z, x, q, w: weighted(z, x, q, reduction="mean"),
    "numbers": lambda z, x, q, w: weighted(z, x, 2.0, weight=0.5, reduction="weighted_mean"),
    "integer labels": lambda z, x, q, w: weighted(z > 0.5, x, 2, reduction="mean"),
    "0-d": lambda z, x, q, w: weighted(z[0, 0], x[0, 0], q[0], weight=w[0, 0]),
    "bfloat16": lambda z, x, q, w: weighted(z.bfloat16(), x.bfloat16(), 2.0, reduction="sum"),
    "mixed": lambda z, x, q, w: weighted(z.bfloat16(), x.float(), q, weight=w),
    "name": lambda z, x, q, w: weighted(z, x, q, "loss", weight=w),
}


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("name", COMPILED)
def test_compiled_is_eager(name: str, dynamic: bool) -> None:
    function = COMPILED[name]
    leaves = small_operands(requires_grad=True)

    def both(function):
        results = function(*leaves)
        results = results if isinstance(results, tuple) else (results,)
        total = sum(result.sum() for result in results)
        return results, torch.autograd.grad(total, leaves, allow_unused=True)

    expected = both(function)
    got = both(compiled(function, dynamic=dynamic))
    torch.testing.assert_close(got, expected, rtol=1e-14, atol=1e-16)


def test_compiled_graph_holds_one_operator_and_its_derivative() -> None:
    labels, logits, pos_weight, weight = small_operands()
    weight.requires_grad_()
    for reduction in REDUCTIONS:
        torch._dynamo.reset()
        graphs = Graphs()
        function = torch.compile(reduced(reduction), fullgraph=True, backend=graphs)
        function(labels, logits, pos_weight, weight).sum().backward()
        assert graphs.count() == [1, 1]


STEPS = {
    "mean": lambda z, x, q, w: weighted(z, x, 2.0, reduction="mean"),
    "sum": lambda z, x, q, w: weighted(z, x, q, weight=w, reduction="sum"),
    "masked": lambda z, x, q, w: weighted(z, x, q, weight=w > 0.5, reduction="weighted_mean"),
    "none": lambda z, x, q, w: (x * weighted(z, x, q, weight=w)).sum(),
    "squared": lambda z, x, q, w: weighted(z > 0.5, x, q, reduction="mean") ** 2,
}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64", "mixed"])
@pytest.mark.parametrize("name", STEPS)
def test_compiled_step_is_one_pass(name: str, dtype: str) -> None:
    """Value and gradient come from one operator, with the bits of an eager step."""
    kind = torch.bfloat16 if dtype == "mixed" else getattr(torch, dtype)
    labels, logits, pos_weight, weight = (value.to(kind) for value in small_operands())
    if dtype == "mixed":
        labels = labels.float()
    source = logits.requires_grad_()

    def function(labels, source, pos_weight, weight):
        # Logits that come from something.
        return STEPS[name](labels, source * 1.5, pos_weight, weight)

    def step(function):
        value = function(labels, source, pos_weight, weight)
        return value, torch.autograd.grad(value, source)[0]

    torch._dynamo.reset()
    graphs = Graphs()
    got = step(torch.compile(function, fullgraph=True, backend=graphs))
    assert graphs.count("step") == [1, 0]
    assert graphs.count() == [0, 0]
    ulp = torch.finfo(kind).eps
    for ours, eager in zip(got, step(function), strict=True):
        assert ours.dtype is eager.dtype
        torch.testing.assert_close(ours, eager, rtol=2 * ulp if name == "none" else ulp, atol=0)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_steps_have_no_second_derivatives(backend: str) -> None:
    """Nor has PyTorch's own loss where AOTAutograd compiles: an error, and no wrong number."""
    labels = torch.tensor([1.0, 0.0])

    def ours(logits):
        return weighted(labels, logits * 1.5, 2.0, reduction="mean") ** 2

    def theirs(logits):
        return torch_loss(logits * 1.5, labels) ** 2

    for function in (ours, theirs) if backend == "aot_eager" else (ours,):
        torch._dynamo.reset()
        logits = torch.tensor([0.5, -1.0], requires_grad=True)
        value = torch.compile(function, backend=backend)(logits)
        (gradient,) = torch.autograd.grad(value, logits, create_graph=True)
        with pytest.raises(
            RuntimeError, match=r"double backward|not have been used|not require grad"
        ):
            torch.autograd.grad(gradient.sum(), logits)


def test_compiled_step_masks() -> None:
    """A weight or an incoming gradient of zero masks everything."""
    labels, logits = torch.tensor([1.0, math.nan, 0.0]), torch.tensor([0.5, 1.0, math.nan])
    mask = torch.tensor([1.0, 0.0, 0.0])

    def by_weight(x):
        return weighted(labels, x, 2.0, weight=mask, reduction="weighted_mean")

    def by_slope(x):
        return torch.where(mask > 0, weighted(labels, x, 2.0), 0.0).sum()

    for function in (by_weight, by_slope):
        values = [f(logits.clone().requires_grad_()) for f in (function, compiled(function))]
        slopes = []
        for f in (function, compiled(function)):
            leaf = logits.clone().requires_grad_()
            slopes.append(torch.autograd.grad(f(leaf), leaf)[0])
        torch.testing.assert_close(*values)
        torch.testing.assert_close(*slopes, rtol=0, atol=0)
        assert torch.isfinite(slopes[0]).all()


def test_gradient_of_a_compiled_step_is_rounded_once() -> None:
    """A scale like that of GradScaler keeps what is too small for float16."""
    labels, logits = torch.zeros(1 << 16).half(), torch.full((1 << 16,), -9.0).half()
    leaf = logits.requires_grad_()
    scaled = compiled(lambda x: weighted(labels, x, 1.0, reduction="mean").float() * 2.0**15)
    (got,) = torch.autograd.grad(scaled(leaf), leaf)
    expected = 0.5 / (1 + math.exp(9))
    assert got[0].item() == pytest.approx(expected, rel=2**-11, abs=0)


# array-api-compat caches what it knows of types; the checks of `out` ask it.
@pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`:UserWarning")
def test_compiled_out() -> None:
    labels, logits, pos_weight, _ = small_operands()
    out, expected = torch.empty_like(logits), torch.empty_like(logits)
    weighted(labels, logits, pos_weight, out=expected)
    compiled(lambda *operands: weighted(*operands, out=out))(labels, logits, pos_weight)
    torch.testing.assert_close(out, expected, rtol=0, atol=0)


def test_sizes_and_numbers_are_dynamic() -> None:
    torch._dynamo.reset()
    graphs = Graphs()
    function = torch.compile(
        lambda z, x, q: weighted(z, x, q, reduction="mean"),
        fullgraph=True,
        dynamic=True,
        backend=graphs,
    )
    for size, pos_weight in ((4, 2.0), (9, 2.5), (6, 0.5)):
        labels, logits = torch.rand(3, size), torch.randn(3, size)
        got = function(labels, logits, pos_weight)
        expected = weighted(labels, logits, pos_weight, reduction="mean")
        torch.testing.assert_close(got, expected)
    assert len(graphs.operators) == 1


@pytest.mark.skipif(shutil.which("g++") is None, reason="Inductor needs a C++ compiler")
@pytest.mark.parametrize("execution", EXECUTIONS, indirect=True)
def test_inductor(execution: None) -> None:
    torch._dynamo.reset()
    labels, logits, pos_weight, weight = small_operands()
    function = torch.compile(
        lambda z, x, q, w: reduced("weighted_mean")(z, x, q, w), fullgraph=True
    )
    logits.requires_grad_()
    got = function(labels, logits, pos_weight, weight)
    expected = reduced("weighted_mean")(labels, logits, pos_weight, weight)
    torch.testing.assert_close(got, expected, rtol=1e-14, atol=0)
    torch.testing.assert_close(
        *(torch.autograd.grad(value, logits)[0] for value in (got, expected)), rtol=1e-13, atol=0
    )


TRANSFORMATIONS = {
    "vmap of grad": lambda f: torch.vmap(torch.func.grad(lambda x: f(x).sum())),
    "jvp": lambda f: lambda x: torch.func.jvp(f, (x,), (x,))[1],
    "hessian": lambda f: torch.func.hessian(lambda x: f(x).sum()),
}


# Dynamo asks every tensor in a frame that it resumes after the break.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
@pytest.mark.parametrize("name", TRANSFORMATIONS)
def test_transformations_under_compile_are_right_or_refused(name: str) -> None:
    logits = small_operands()[1][0]
    function = TRANSFORMATIONS[name](lambda x: weighted(torch.ones_like(x), x, 2.0))
    with pytest.raises(torch._dynamo.exc.Unsupported, match="NotImplementedError"):
        compiled(function)(logits)
    torch._dynamo.reset()
    got = torch.compile(function, backend="aot_eager")(logits)
    torch.testing.assert_close(got, function(logits), rtol=1e-13, atol=1e-15)


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(4, 4)

    def forward(self, labels, inputs):
        return weighted(labels, self.linear(inputs), 2.0, "head", reduction="mean")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("strict", [False, True])
def test_export_keeps_the_derivative(strict: bool, dtype: str) -> None:
    model = Model().to(getattr(torch, dtype))
    labels, inputs = tensors([np.ones((6, 4)), np.arange(24.0).reshape(6, 4) - 9], dtype)
    rows = torch.export.Dim("rows")
    program = torch.export.export(
        model, (labels, inputs), dynamic_shapes=({0: rows}, {0: rows}), strict=strict
    )
    assert str(program.graph).count("logitloss.derivatives.default") == 1
    # Zero logits: where a derivative of the formula's own operations would be wrong.
    labels, inputs = labels[:3], torch.zeros_like(inputs[:3])
    for module in (model, program.module()):
        torch.nn.init.zeros_(module.linear.bias)
        module(labels, inputs).backward()
        expected = torch.full((4,), -2 / 2 * 3 / 12).to(labels.dtype)
        torch.testing.assert_close(module.linear.bias.grad, expected)
        module.linear.bias.grad = None


JUST_NUMBERS = {
    "float32": np.float32(2),
    "float64": np.float64(2),
    "list": [1.0, 2.0, 3.0, 0.1],
    "tuple": (1, 2, 3, 4),
    "array": np.array([1.0, 2.0, 3.0, 0.1]),
    "array of float32": np.array([1.0, 2.0, 3.0, 0.1], "float32"),
}


@pytest.mark.parametrize("name", JUST_NUMBERS)
def test_compiled_beside_numbers_that_are_no_tensors(name: str) -> None:
    labels, logits, *_ = small_operands()
    logits.requires_grad_()

    def function(labels, logits):
        numbers = JUST_NUMBERS[name]
        # Not the function that the suite wraps, which looks at every array.
        return _losses.weighted_cross_entropy_with_logits(
            labels, logits, numbers, weight=numbers, reduction="weighted_mean"
        )

    got, expected = (f(labels, logits) for f in (compiled(function), function))
    torch.testing.assert_close(got, expected, rtol=1e-14, atol=0)
    got, expected = (torch.autograd.grad(value, logits)[0] for value in (got, expected))
    torch.testing.assert_close(got, expected, rtol=1e-13, atol=0)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_functionalize(reduction: str) -> None:
    operands = small_operands()
    got = torch.func.functionalize(reduced(reduction))(*operands)
    torch.testing.assert_close(got, reduced(reduction)(*operands), rtol=1e-15, atol=0)


class Head(torch.nn.Module):
    """A layer, and the loss of what it gives, with or without weights."""

    def __init__(self, reduction: str, masked: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = torch.nn.Linear(4, 4)
        self.register_buffer("pos_weight", torch.tensor([1.0, 2.0, 3.0, 0.5]))
        self.reduction, self.masked = reduction, masked

    def forward(self, labels, inputs, weight):
        weight = weight if self.masked else None
        logits = self.linear(inputs)
        return weighted(labels, logits, self.pos_weight, weight=weight, reduction=self.reduction)


def batch(rows: int) -> tuple:
    generator = torch.Generator().manual_seed(rows)
    labels, inputs, weight = (torch.rand(rows, n, generator=generator) for n in (4, 4, 1))
    return labels, 6 * inputs - 3, weight


# Of shapes that are compared, as they are in PyTorch's own loss.
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.filterwarnings("ignore:`torch.jit.*:DeprecationWarning")
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_a_trace_of_torchscript_holds_for_other_sizes(
    reduction: str, masked: bool, tmp_path
) -> None:
    head = Head(reduction, masked).double()
    first, second = ([operand.double() for operand in batch(rows)] for rows in (3, 5))
    torch.jit.save(torch.jit.trace(head, first), tmp_path / "trace.pt")
    trace = torch.jit.load(tmp_path / "trace.pt")
    got, expected = trace(*second), head(*second)
    torch.testing.assert_close(got, expected, rtol=1e-15, atol=0)
    got.sum().backward()
    expected.sum().backward()
    for ours, theirs in zip(trace.parameters(), head.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-13, atol=1e-15)


@pytest.mark.filterwarnings("ignore::Warning")
@pytest.mark.parametrize("dynamo", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_onnx(reduction: str, masked: bool, dynamo: bool, tmp_path) -> None:
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    head, names = Head(reduction, masked), ["labels", "inputs", "weight"]
    rows = {name: {0: "rows"} for name in names}
    dynamic = {"dynamic_shapes": rows} if dynamo else {"dynamic_axes": rows}
    path = tmp_path / "head.onnx"
    torch.onnx.export(head, batch(3), path, input_names=names, dynamo=dynamo, **dynamic)
    session = runtime.InferenceSession(path)
    given = dict(zip(names, batch(5), strict=True))
    kept = {node.name: given[node.name].numpy() for node in session.get_inputs()}
    (got,) = session.run(None, kept)
    torch.testing.assert_close(torch.from_numpy(got), head(*batch(5)).detach())


# The commonest call is computed before anything else is looked at.
PLAIN = {**FUNCTIONS, "plain": lambda z, x, q, w: weighted(z, x, 2.0)}


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
def test_a_tracer_sees_the_call(mode: str, name: str) -> None:
    from torch.fx.experimental.proxy_tensor import make_fx

    labels, logits, pos_weight, weight = small_operands()
    traced = make_fx(PLAIN[name], tracing_mode=mode)(labels, logits, pos_weight, weight)
    got = traced(labels, -logits, pos_weight, weight)
    torch.testing.assert_close(got, PLAIN[name](labels, -logits, pos_weight, weight))


SYMBOLIC = {
    "all arguments": lambda z, x, q, w: weighted(z, x, q, weight=w, reduction="mean"),
    "coefficients alone": lambda z, x, q, w: weighted(torch.ones(3, 4), torch.ones(3, 4), q),
    "beside a list": lambda z, x, q, w: weighted(z, x, [1.0, 2.0, 3.0, 4.0], "name"),
    "a pair": lambda z, x, q, w: [result * 2 for result in pair(z, x, q, w)],
}


def pair(labels, logits, pos_weight, weight):
    first, second = logitloss.value_and_grad(labels, logits, pos_weight, weight=weight)
    return first, second


class Symbolic(torch.nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, labels, logits, pos_weight, weight):
        return self.function(labels, logits, pos_weight, weight)


@pytest.mark.parametrize("name", SYMBOLIC)
def test_symbolic_traces_hold_the_call_as_one_step(name: str) -> None:
    module = Symbolic(SYMBOLIC[name])
    traced = torch.fx.symbolic_trace(module)
    operands = small_operands()
    assert [node.target for node in traced.graph.nodes].count(compute) == 1
    torch.testing.assert_close(traced(*operands), module(*operands), rtol=0, atol=0)


FIRST_CALL = """
import torch, logitloss
call = torch.compile(
    lambda z, x: logitloss.weighted_cross_entropy_with_logits(z, x, 2.0, reduction="mean"),
    fullgraph=True, backend="aot_eager",
)
print(call(torch.ones(3), torch.zeros(3)).item())
torch._dynamo.config.error_on_recompile = True
import imaplib
call(torch.ones(3), torch.zeros(3))
"""


def test_the_first_call_of_a_process_may_be_compiled() -> None:
    """It imports what the calls after it find, and what is imported later does not matter."""
    result = subprocess.run(
        [sys.executable, "-c", FIRST_CALL], capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert float(result.stdout) == pytest.approx(2 * math.log(2), rel=2**-23, abs=0)
