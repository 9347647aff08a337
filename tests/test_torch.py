"""PyTorch: derivatives of every order, transformations, compilers, and the customs of its users."""

from __future__ import annotations

import itertools
import math
import shutil
import weakref
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import reference
from mpmath import mpf

import logitloss
from logitloss import _call
from logitloss import weighted_cross_entropy_with_logits as weighted

torch = pytest.importorskip("torch")

from torch.autograd import forward_ad  # noqa: E402
from torch.nn.functional import binary_cross_entropy_with_logits as torch_loss  # noqa: E402

from logitloss._backends import torch as backend  # noqa: E402
from logitloss._backends.torch import _operator, _values, _ways  # noqa: E402
from logitloss._kernel import kernel  # noqa: E402

pytestmark = [
    # PyTorch's own forward mode and Inductor are written in it.
    pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning"),
    # Dynamo does so to every Function that it traces.
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
]

inf, nan = math.inf, math.nan
REDUCTIONS = ("none", "sum", "mean", "weighted_mean")

OPERANDS = ("labels", "logits", "pos_weight", "weight")
MAGNITUDES = [0.0, 1e-10, 0.1, 1.0, 5.0, 15.0, 20.0, 37.0, 60.0, 86.0]
POINTS = np.array(
    list(
        itertools.product(
            [0.0, 1.0, 0.25, 0.9],
            [s * m for s in (1, -1) for m in MAGNITUDES],
            [0.0, 0.3, 1.0, 8.0],
        )
    )
).T


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


# Every way by which the first derivatives come about.
FIRST = {
    "backward": lambda operands: by_backward(loss, operands),
    "logits alone": lambda operands: (
        None,
        by_backward(lambda logits: loss(operands[0], logits, *operands[2:]), [operands[1]])[0],
        None,
        None,
    ),
    "func": lambda operands: by_func(loss, operands),
    "vmap": lambda operands: by_vmap(loss, operands),
    "jvp": lambda operands: by_jvp(loss, operands),
    "dual": lambda operands: by_dual(loss, operands),
    "operator": lambda operands: by_backward(operator, operands),
    "compiled": lambda operands: by_backward(compiled(loss), operands),
}
PATHS = [*((way, "kernel") for way in FIRST), ("backward", "formula"), ("compiled", "formula")]


@pytest.fixture
def execution(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have other tensors than those of the CPU's kernel, which take the formula."""
    if request.param == "formula":
        for module in (_ways, _operator):
            monkeypatch.setattr(module, "is_readable", lambda operands: False)


def tensors(values: Sequence, dtype: str = "float64") -> list:
    return [torch.tensor(np.asarray(v), dtype=getattr(torch, dtype)) for v in values]


def rounded(operands: Sequence) -> list[np.ndarray]:
    return [operand.numpy() for operand in operands]


def slope_scale(z: mpf, x: mpf, q: mpf) -> mpf:
    return q * reference.softplus(-x) + reference.softplus(x)


FORMS = [
    (reference.labels_gradient, slope_scale),
    (reference.gradient, reference.gradient_scale),
    (reference.pos_weight_gradient, None),
    (reference.loss, None),
]


def assert_within(bound: float, got, points: Sequence, function, scale, dtype: str) -> None:
    true = reference.at(function, *points)
    scales = None if scale is None else reference.at(scale, *points)
    distances = reference.distances(got.detach().numpy(), true, dtype, scales)
    worst = max(range(len(true)), key=distances.__getitem__)
    assert distances[worst] <= bound, (
        f"{float(distances[worst]):.2f} ulp at {[p[worst] for p in points]}"
    )


@pytest.mark.parametrize(("way", "execution"), PATHS, indirect=["execution"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_first_derivatives_within_ulp(way: str, execution: None, dtype: str) -> None:
    operands = tensors([*POINTS, np.ones(POINTS.shape[1])], dtype)
    points = rounded(operands[:3])
    slopes = FIRST[way](operands)
    for got, (function, scale) in zip(slopes, FORMS, strict=True):
        if got is not None:
            assert_within(4, got, points, function, scale, dtype)


SECOND = {
    "backward twice": lambda operands: by_backward(
        lambda *a: by_backward_of_logits(loss, a), operands
    ),
    "operator twice": lambda operands: by_backward(
        lambda *a: by_backward_of_logits(operator, a), operands
    ),
    "func twice": lambda operands: by_func(lambda *a: by_func(loss, a)[1], operands),
    "vmap twice": lambda operands: by_vmap(
        lambda *a: torch.func.grad(loss, argnums=1)(*a), operands
    ),
    "forward over reverse": lambda operands: by_jvp(lambda *a: by_func(loss, a)[1], operands),
    "reverse over forward": lambda operands: by_func(lambda *a: by_jvp(loss, a)[1], operands),
    "forward twice": lambda operands: by_jvp(lambda *a: by_jvp(loss, a)[1], operands),
}


def by_backward_of_logits(function: Callable, operands: Sequence):
    total = function(*operands).sum()
    return torch.autograd.grad(total, operands[1], create_graph=True)[0]


@pytest.mark.parametrize("way", SECOND)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_second_derivatives_within_ulp(way: str, dtype: str) -> None:
    operands = tensors([*POINTS, np.ones(POINTS.shape[1])], dtype)
    points = rounded(operands[:3])
    forms = [
        (lambda z, x, q: -reference.sigmoid(x) - q * reference.sigmoid(-x), None),
        (reference.hessian, None),
        (lambda z, x, q: -z * reference.sigmoid(-x), None),
        (reference.gradient, reference.gradient_scale),
    ]
    for got, (function, scale) in zip(SECOND[way](operands), forms, strict=True):
        assert_within(4, got, points, function, scale, dtype)


def test_second_derivatives_of_a_reduced_loss_by_its_logits() -> None:
    labels, logits, pos_weight = tensors(POINTS)
    logits.requires_grad_()
    for scale, reduction in ((1, "sum"), (labels.numel(), "mean")):
        value = scale * weighted(labels, logits, pos_weight, reduction=reduction)
        (gradient,) = torch.autograd.grad(value, logits, create_graph=True)
        (hessian,) = torch.autograd.grad(gradient.sum(), logits)
        expected = logitloss.grad_and_hess(labels, logits.detach(), pos_weight)
        torch.testing.assert_close((gradient, hessian), expected, rtol=1e-15, atol=0)


def test_third_derivative() -> None:
    labels, logits, pos_weight, weight = small_operands()

    def gradient(logits):
        return torch.func.grad(lambda x: loss(labels, x, pos_weight, weight).sum())(logits)

    hessian = torch.func.grad(lambda x: gradient(x).sum())
    third = torch.func.grad(lambda x: hessian(x).sum())(logits)
    step = 1e-5
    difference = (hessian(logits + step) - hessian(logits - step)) / (2 * step)
    torch.testing.assert_close(third, difference, rtol=1e-8, atol=1e-10)


def small_operands(requires_grad: bool = False) -> tuple:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        values = torch.rand(shape, dtype=torch.float64, generator=generator)
        return values.requires_grad_(requires_grad)

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


@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradcheck(name: str) -> None:
    operands = small_operands(requires_grad=True)
    assert torch.autograd.gradcheck(
        FUNCTIONS[name],
        operands,
        check_forward_ad=True,
        check_batched_grad=True,
        check_batched_forward_grad=True,
    )
    assert torch.autograd.gradgradcheck(
        FUNCTIONS[name], operands, check_fwd_over_rev=True, check_batched_grad=True
    )


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("weight", [None, 0.5, "tensor"])
def test_gradcheck_by_logits_alone(reduction: str, weight: float | str | None) -> None:
    labels, logits, pos_weight, tensor = small_operands()
    weight = tensor if weight == "tensor" else weight

    def function(logits):
        return weighted(labels, logits, pos_weight, weight=weight, reduction=reduction)

    logits.requires_grad_()
    assert torch.autograd.gradcheck(function, logits, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(function, logits)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_hessian_by_every_transformation(reduction: str) -> None:
    operands = small_operands()
    everything = (0, 1, 2, 3)

    def total(*operands):
        return reduced(reduction)(*operands).sum()

    expected = torch.autograd.functional.hessian(total, operands)
    jacrev, jacfwd = torch.func.jacrev, torch.func.jacfwd
    for outer, inner in ((jacfwd, jacrev), (jacrev, jacfwd), (jacrev, jacrev), (jacfwd, jacfwd)):
        got = outer(inner(total, argnums=everything), argnums=everything)(*operands)
        torch.testing.assert_close(got, expected, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize(
    ("shapes", "in_dims"),
    [
        ([(5, 3, 4), (5, 3, 4), (5, 4), (5, 3, 1)], 0),
        ([(3, 4), (3, 4), (5,), ()], (None, None, 0, None)),
        ([(3, 4), (3, 5, 4), (4,), (3, 1, 5)], (None, 1, None, -1)),
        ([(3, 4, 5), (3, 4), (4,), (5,)], (2, None, None, 0)),
        ([(5,), (5,), (5,), (5,)], 0),
        ([(5, 0, 4), (5, 0, 4), (5, 4), ()], (0, 0, 0, None)),
    ],
    ids=str,
)
def test_vmap_is_a_loop(reduction: str, shapes, in_dims) -> None:
    operands = [torch.rand(shape, dtype=torch.float64) for shape in shapes]
    dims = (in_dims,) * 4 if isinstance(in_dims, int) else in_dims
    each = [
        [operand] * 5 if dim is None else operand.unbind(dim)
        for operand, dim in zip(operands, dims, strict=True)
    ]
    expected = torch.stack([reduced(reduction)(*one) for one in zip(*each, strict=True)])
    got = torch.vmap(reduced(reduction), in_dims=in_dims)(*operands)
    torch.testing.assert_close(got, expected, rtol=1e-15, atol=0, equal_nan=True)


@pytest.mark.parametrize(("way", "execution"), PATHS, indirect=["execution"])
def test_derivatives_at_the_kink_and_at_infinity(way: str, execution: None) -> None:
    # labels, logits, pos_weight -> by labels, by logits, by pos_weight
    table = [
        (0, 0.0, 3, 2 * math.log(2), 0.5, 0),
        (1, -0.0, 3, 2 * math.log(2), -1.5, math.log(2)),
        (0.25, 0.0, 3, 2 * math.log(2), 0.0, math.log(2) / 4),
        (0.25, -0.0, 1, 0, 0.25, math.log(2) / 4),
        (0, -inf, 3, inf, 0, 0),
        (1, -inf, 3, inf, -3, inf),
        (0, inf, 3, -inf, 1, 0),
        (1, inf, 3, -inf, 0, 0),
        (0, -inf, 0, 0, 0, 0),
    ]
    *points, by_labels, by_logits, by_pos_weight = tensors(zip(*table, strict=True))
    slopes = FIRST[way]([*points, torch.ones(len(table), dtype=torch.float64)])
    expected = by_labels, by_logits, by_pos_weight
    for got, slope in zip(slopes[:3], expected, strict=True):
        if got is not None:
            torch.testing.assert_close(got.detach(), slope, rtol=1e-15, atol=0)


@pytest.mark.parametrize(("way", "execution"), PATHS, indirect=["execution"])
def test_zero_weight_masks_derivatives(way: str, execution: None) -> None:
    clean = tensors([[1, 0, 0.5, 1, 0, 1], [0.5, 2, -1, 3, -4, 1], [2] * 6, [1, 0, 0.5, 0, 0, 0]])
    poisoned = [operand.clone() for operand in clean]
    for element, poison in ((1, nan), (3, inf), (4, -inf)):
        poisoned[1][element] = poison
    poisoned[0][5] = poisoned[2][5] = nan
    kept, masked = [0, 2], [1, 3, 4, 5]
    for got, expected in zip(FIRST[way](poisoned), FIRST[way](clean), strict=True):
        if got is not None:
            torch.testing.assert_close(got[kept], expected[kept], rtol=0, atol=0)
            np.testing.assert_array_equal(got[masked].detach(), 0)


def test_derivative_by_a_weight_of_zero_is_the_loss() -> None:
    labels, logits, pos_weight, weight = small_operands()
    slope = by_backward(loss, [labels, logits, pos_weight, torch.zeros_like(weight)])[3]
    torch.testing.assert_close(slope, weighted(labels, logits, pos_weight).sum(1, keepdim=True))


def test_zero_weight_masks_second_derivatives() -> None:
    operands = tensors([[1.0, nan, 0.5], [0.5, nan, inf], [2.0, nan, nan], [1.0, 0.0, 0.0]])
    for way in SECOND.values():
        for got in way(operands):
            assert got[0].isfinite()
            np.testing.assert_array_equal(got[1:].detach(), 0)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_all_weights_zero(reduction: str) -> None:
    labels, logits, pos_weight, _ = small_operands(requires_grad=True)
    weight = torch.zeros(3, 1, dtype=torch.float64)
    for leaves in ([logits], [labels, logits, pos_weight]):
        with torch.no_grad():
            detached = [t.detach() for t in (labels, logits, pos_weight)]
        given = [
            t if any(t is leaf for leaf in leaves) else d
            for t, d in zip((labels, logits, pos_weight), detached, strict=True)
        ]
        value = weighted(*given, weight=weight, reduction=reduction)
        for gradient in torch.autograd.grad(value.sum(), leaves):
            np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_requiring_grad_changes_no_value(name: str) -> None:
    got = FUNCTIONS[name](*small_operands(requires_grad=True))
    torch.testing.assert_close(got, FUNCTIONS[name](*small_operands()), rtol=1e-15, atol=0)


def test_what_the_caller_leaves_out_is_masked() -> None:
    labels, logits = torch.ones(3), torch.tensor([1.0, nan, -inf], requires_grad=True)
    weighted(labels, logits, 2.0)[:1].sum().backward()
    np.testing.assert_array_equal(logits.grad[1:], 0)


@pytest.mark.parametrize("reduction", ["sum", "mean", "weighted_mean"])
def test_backward_scales_accumulates_and_repeats(reduction: str) -> None:
    labels, logits, pos_weight, weight = small_operands()
    _, expected = logitloss.value_and_grad(
        labels, logits, pos_weight, weight=weight, reduction=reduction
    )
    logits.requires_grad_()
    value = weighted(labels, logits, pos_weight, weight=weight, reduction=reduction)
    value.backward(retain_graph=True)
    np.testing.assert_array_equal(logits.grad, expected)
    # What the caller does to the gradient must not reach the next backward pass.
    logits.grad.zero_()
    value.backward(retain_graph=True)
    np.testing.assert_array_equal(logits.grad, expected)
    (4 * value).backward()
    np.testing.assert_array_equal(logits.grad, 5 * expected)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_kernel_works_in_the_memory_of_the_tensors(
    dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = []

    class Spy:
        @staticmethod
        def compute(orders, *arguments):
            results = kernel.compute(orders, *arguments)
            arrays = [*arguments[:3], *results]
            read.append([array.ctypes.data for array in arrays if isinstance(array, np.ndarray)])
            return results

    monkeypatch.setattr(_values, "kernel", Spy)
    labels, logits = tensors([[1.0, 0.0, 0.5], [0.5, -2.0, 3.0]], dtype)
    pos_weight = torch.full_like(logits, 2.0)
    logits.requires_grad_()
    for reduction in REDUCTIONS:
        read.clear()
        value = weighted(labels, logits, pos_weight, reduction=reduction)
        value.sum().backward()
        for pointers in read:
            assert pointers[:3] == [t.data_ptr() for t in (labels, logits, pos_weight)]
        # A reduced loss has its gradient from the forward pass.
        assert len(read) == (2 if reduction == "none" else 1)
        if reduction != "none":
            assert read[0][3] == logits.grad.data_ptr()
        logits.grad = None


def test_the_graph_keeps_nothing_that_was_given_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loss that is kept, as for a log, does not keep the gradient of all elements with it."""
    arrays, from_numpy = [], torch.from_numpy

    def remember(array):
        arrays.append(weakref.ref(array))
        return from_numpy(array)

    monkeypatch.setattr(torch, "from_numpy", remember)
    labels, logits = torch.ones(3), torch.zeros(3, requires_grad=True)
    value = weighted(labels, logits, 2.0, reduction="mean")
    value.backward()
    assert [array() is None for array in arrays] == [False, False]
    logits.grad = None
    assert [array() is None for array in arrays] == [False, True]


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("requires_grad", [False, True])
def test_0d_tensors(reduction: str, requires_grad: bool) -> None:
    results = []
    for shape in ((), (1,)):
        labels, logits = torch.full(shape, 0.25), torch.full(shape, -1.5)
        value = weighted(labels, logits.requires_grad_(requires_grad), 3.0, reduction=reduction)
        assert value.shape == (shape if reduction == "none" else ())
        results.append([value.detach().reshape(())])
        if requires_grad:
            value.sum().backward()
            assert logits.grad.shape == shape
            results[-1].append(logits.grad.reshape(()))
    torch.testing.assert_close(*results, rtol=0, atol=0)


@pytest.mark.parametrize("requires_grad", [False, True])
def test_a_sum_beyond_float32_is_infinite_without_a_warning(requires_grad: bool) -> None:
    labels, logits = torch.zeros(4), torch.full((4,), 3e38, requires_grad=requires_grad)
    assert weighted(labels, logits, 2.0, reduction="sum") == inf


@pytest.mark.parametrize("weight", [np.full((2, 3), 0.5, "float32"), np.float64(0.5), True, 2])
def test_numbers_and_arrays_of_numpy_as_coefficients(weight) -> None:
    labels, logits = torch.ones(2, 3), torch.zeros(2, 3, requires_grad=True)
    value = weighted(labels, logits, weight, weight=weight, reduction="mean")
    (gradient,) = torch.autograd.grad(value, logits, create_graph=True)
    number = float(np.mean(weight))
    torch.testing.assert_close(value.item(), number**2 * math.log(2))
    torch.testing.assert_close(gradient.detach(), torch.full((2, 3), -(number**2) / 12))
    (hessian,) = torch.autograd.grad(gradient.sum(), logits)
    torch.testing.assert_close(hessian, torch.full((2, 3), number**2 / 24))


def test_an_operand_changed_since_is_an_error() -> None:
    for reduction in REDUCTIONS:
        labels, logits = torch.rand(3), torch.rand(3, requires_grad=True)
        value = weighted(labels, logits, 2.0, reduction=reduction).sum()
        # Written by the kernel, behind autograd's back.
        weighted(torch.ones(3), torch.zeros(3), 2.0, out=labels)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            value.backward()


@pytest.mark.parametrize("position", range(4))
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_any_operand_may_require_grad(position: int, reduction: str) -> None:
    operands = list(small_operands())
    assert not reduced(reduction)(*operands).requires_grad
    operands[position].requires_grad_()
    value = reduced(reduction)(*operands)
    assert value.requires_grad
    (gradient,) = torch.autograd.grad(value.sum(), operands[position])
    expected = by_func(reduced(reduction), [operand.detach() for operand in operands])
    torch.testing.assert_close(gradient, expected[position], rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("integer", ["bool", "uint8", "int64"])
@pytest.mark.parametrize("execution", ["kernel", "formula"], indirect=True)
def test_integer_labels_keep_the_graph(execution: None, integer: str) -> None:
    _, logits, pos_weight, weight = small_operands(requires_grad=True)
    labels = (logits > 0).to(getattr(torch, integer))
    leaves = logits, pos_weight, weight
    for reduction in REDUCTIONS:
        got, expected = (
            torch.autograd.grad(reduced(reduction)(given, *leaves).sum(), leaves)
            for given in (labels, labels.double())
        )
        torch.testing.assert_close(got, expected, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_gradients_are_rounded_once(dtype: str) -> None:
    half = tensors([[1.0, 0.0, 0.3], [0.7, -2.0, 3.0], [1.7] * 3, [0.3, 1.0, 2.0]], dtype)
    exact = by_backward(loss, [operand.double() for operand in half])
    for got, expected in zip(by_backward(loss, half), exact, strict=True):
        torch.testing.assert_close(got, expected.to(half[0].dtype), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("autocast", ["float16", "bfloat16"])
def test_autocast_does_what_it_does_to_the_loss_of_torch(dtype: str, autocast: str) -> None:
    labels, logits = tensors([[1.0, 0.0], [0.3, -2.0]], dtype)
    logits.requires_grad_()
    with torch.autocast("cpu", dtype=getattr(torch, autocast)):
        for reduction in ("none", "mean"):
            value = weighted(labels, logits, 2.0, reduction=reduction)
            theirs = torch_loss(logits, labels, reduction=reduction)
            assert value.dtype == theirs.dtype
            assert torch.autograd.grad(value.sum(), logits)[0].dtype == logits.dtype
        out = torch.empty_like(labels)
        assert weighted(labels, logits.detach(), 2.0, out=out) is out


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_grad_modes_do_what_they_do_to_the_loss_of_torch(mode, requires_grad: bool) -> None:
    labels, logits = torch.rand(3), torch.rand(3, requires_grad=requires_grad)
    with mode():
        for reduction in ("none", "mean"):
            value = weighted(labels, logits, 2.0, reduction=reduction)
            theirs = torch_loss(logits, labels, reduction=reduction)
            assert value.requires_grad == theirs.requires_grad
            assert value.is_inference() == theirs.is_inference()


VIEWS = {
    "transposed": lambda t: t.T.contiguous().T,
    "strided": lambda t: t.repeat_interleave(3, dim=1)[:, ::3],
    "negated": lambda t: torch.complex(torch.zeros_like(t), -t).conj().imag,
    "real part": lambda t: torch.complex(t, t).conj().real,
    "parameter": torch.nn.Parameter,
}


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_views(view: str, reduction: str) -> None:
    operands = small_operands()
    *viewed, pos_weight = (VIEWS[view](operands[i]) for i in (0, 1, 3))
    viewed = [*viewed, operands[2], pos_weight]
    copies = [operand.detach().clone() for operand in viewed]
    value, gradient = logitloss.value_and_grad(
        *(t.detach() for t in viewed[:3]), weight=viewed[3].detach(), reduction=reduction
    )
    expected = logitloss.value_and_grad(*operands[:3], weight=operands[3], reduction=reduction)
    torch.testing.assert_close((value, gradient), expected, rtol=1e-15, atol=0)
    got = by_backward(reduced(reduction), viewed)
    torch.testing.assert_close(got, by_backward(reduced(reduction), operands), rtol=1e-14, atol=0)
    torch.testing.assert_close([t.detach() for t in viewed], copies, rtol=0, atol=0)


def test_results_have_the_layout_of_the_logits() -> None:
    logits = torch.rand(4, 3, 2).permute(2, 0, 1)
    labels = torch.ones(2, 4, 3)
    results = *logitloss.value_and_grad(labels, logits), *logitloss.grad_and_hess(labels, logits)
    for result in (weighted(labels, logits, 2.0), *results):
        assert result.stride() == logits.stride()


def test_expanded_operands() -> None:
    labels, logits = torch.ones(()).expand(4, 5), torch.arange(5.0).expand(4, 5)
    expected = weighted(labels.clone(), logits.clone(), 2.0)
    torch.testing.assert_close(weighted(labels, logits, 2.0), expected, rtol=0, atol=0)


@pytest.mark.parametrize("position", range(5))
def test_out_and_autograd(position: int) -> None:
    given = [*small_operands(), torch.empty(3, 4, dtype=torch.float64)]
    given[position].requires_grad_()
    labels, logits, pos_weight, weight, out = given
    with pytest.raises(RuntimeError, match="don't support automatic differentiation"):
        weighted(labels, logits, pos_weight, weight=weight, out=out)
    with pytest.raises(RuntimeError, match="don't support automatic differentiation"):
        logitloss.grad_and_hess(
            labels, logits, pos_weight, weight=weight, out=(torch.empty_like(out).detach(), out)
        )
    with torch.no_grad():
        assert weighted(labels, logits, pos_weight, weight=weight, out=out) is out
        expected = weighted(labels, logits, pos_weight, weight=weight)
    torch.testing.assert_close(out.detach(), expected, rtol=0, atol=0)


@pytest.mark.parametrize("view", ["transposed", "strided", "negated"])
@pytest.mark.parametrize("rows", [3, 1])
def test_out_of_any_layout(view: str, rows: int) -> None:
    labels, logits, pos_weight, weight = small_operands()
    if rows == 1:
        labels, logits, pos_weight, weight = labels[:1, :1], logits[:1, :1], pos_weight[:1], 1.0
    first, second = (VIEWS[view](torch.zeros_like(logits)) for _ in range(2))
    got = logitloss.value_and_grad(labels, logits, pos_weight, weight=weight, out=(first, second))
    assert got[0] is first
    assert got[1] is second
    expected = logitloss.value_and_grad(labels, logits, pos_weight, weight=weight)
    torch.testing.assert_close(got, expected, rtol=0, atol=0)


def test_out_that_overlaps_itself_is_refused_as_torch_does() -> None:
    out = torch.zeros(()).expand(3)
    with pytest.raises(RuntimeError, match="single memory location"):
        weighted(torch.ones(3), torch.ones(3), 2.0, out=out)


def test_out_that_overlaps_an_operand() -> None:
    memory = torch.linspace(-3, 3, 8)
    labels, logits = torch.tensor([1.0, 0.0, 1.0, 0.0, 0.5, 0.5]), memory[:6]
    expected = weighted(labels, logits.clone(), 2.0)
    torch.testing.assert_close(weighted(labels, logits, 2.0, out=memory[1:7]), expected)


@pytest.mark.parametrize("name", [None, "validation"])
@pytest.mark.parametrize("requires_grad", [False, True])
def test_name_in_the_profiler(name: str | None, requires_grad: bool) -> None:
    labels, logits = torch.rand(3), torch.rand(3, requires_grad=requires_grad)
    with torch.autograd.profiler.profile() as profile:
        weighted(labels, logits, 2.0, name)
    assert (name or "logistic_loss") in {event.name for event in profile.function_events}


def test_subclass_comes_back() -> None:
    class Tagged(torch.Tensor):
        pass

    labels, logits = torch.rand(3).as_subclass(Tagged), torch.rand(3).as_subclass(Tagged)
    got = weighted(labels, logits, 2.0)
    assert type(got) is Tagged
    expected = weighted(labels.as_subclass(torch.Tensor), logits.as_subclass(torch.Tensor), 2.0)
    torch.testing.assert_close(got.as_subclass(torch.Tensor), expected)


LAYOUTS = {
    "sparse_coo": torch.Tensor.to_sparse,
    "sparse_csr": torch.Tensor.to_sparse_csr,
    "_mkldnn": torch.Tensor.to_mkldnn,
    "nested": lambda t: torch.nested.nested_tensor([t, t]),
    "nested jagged": lambda t: torch.nested.nested_tensor([t, t], layout=torch.jagged),
}


@pytest.mark.filterwarnings("ignore:Sparse:UserWarning", "ignore:The PyTorch API of nested")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_other_layouts_are_refused(layout: str) -> None:
    tensor = LAYOUTS[layout](torch.eye(3))
    message = f"`{{}}` must be a dense tensor; got layout .*{layout.split()[0]}"
    for call in (
        lambda *pair: weighted(*pair, 2.0),
        lambda *pair: weighted(*pair, 2.0, reduction="mean"),
        lambda *pair: logitloss.grad_and_hess(*pair, 2.0),
    ):
        with pytest.raises(TypeError, match=message.format("labels")):
            call(tensor, tensor)
        with pytest.raises(TypeError, match=message.format("logits")):
            call(torch.eye(3), tensor)


def test_other_devices_keep_their_own() -> None:
    labels, logits = torch.rand(3, 2, device="meta"), torch.rand(3, 2, device="meta")
    value, gradient = logitloss.value_and_grad(labels, logits, 2.0, reduction="mean")
    assert (value.device.type, value.shape) == ("meta", ())
    assert (gradient.device.type, gradient.shape) == ("meta", (3, 2))


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

    def count(self) -> list[int]:
        return [operators.count("logitloss.derivatives.default") for operators in self.operators]


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
    logits.requires_grad_()
    for reduction in REDUCTIONS:
        torch._dynamo.reset()
        graphs = Graphs()
        function = torch.compile(reduced(reduction), fullgraph=True, backend=graphs)
        function(labels, logits, pos_weight, weight).sum().backward()
        assert graphs.count() == [1, 1]


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
@pytest.mark.parametrize("execution", ["kernel", "formula"], indirect=True)
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


@pytest.mark.parametrize("slopes", [by_func, by_vmap, by_jvp, by_dual])
def test_a_transformation_sees_the_plain_call(slopes: Callable) -> None:
    labels, logits, *_ = tensors([[1.0, 0.0], [0.5, -2.0], [1.0, 1.0], [1.0, 1.0]])
    expected = logitloss.value_and_grad(labels, logits, 2.0)[1]

    def plain(labels, logits, *unused):
        return weighted(labels, logits, 2.0) + sum(0 * operand for operand in unused)

    torch.testing.assert_close(slopes(plain, [labels, logits, labels, labels])[1], expected)


def test_plain_call_looks_at_a_scalar_pos_weight() -> None:
    labels, logits, pos_weight = torch.ones(2), torch.zeros(2), torch.tensor(2.0)
    expected = weighted(labels, logits, 2.0)
    torch.testing.assert_close(weighted(labels, logits, pos_weight), expected, rtol=0, atol=0)
    assert weighted(labels, logits, pos_weight.requires_grad_()).requires_grad
    with pytest.raises(ValueError, match="must be on the same device"):
        weighted(labels, logits, torch.tensor(2.0, device="meta"))


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_a_tensor_that_outlived_its_transformation_is_a_constant(reduction: str) -> None:
    leaked = []

    def leak(logits):
        leaked.append(logits)
        return logits.sum()

    torch.func.grad(leak)(torch.zeros(2))
    value = weighted(torch.ones(2), leaked[0], 2.0, reduction=reduction)
    assert not value.requires_grad
    torch.testing.assert_close(
        value, weighted(torch.ones(2), torch.zeros(2), 2.0, reduction=reduction)
    )


PARSED = list(
    itertools.product(
        [torch.ones(2, 3), torch.ones(2, 3, dtype=torch.bfloat16), torch.ones(2, 3).bool(),
         torch.ones(2, 3, dtype=torch.complex64), torch.ones(3), [[1.0] * 3] * 2],
        [torch.ones(2, 3), torch.ones(2, 3).half(), torch.ones(2, 3).int()],
        [1.0, 2, torch.ones(3), torch.ones(3).double(), torch.ones(2), torch.ones(1, 2, 3), "1",
         torch.ones(3, device="meta"), 2**60, 10**400],
        [None, 1.0, torch.ones(2, 1).int(), np.ones(3)],
        ["mean", "median"],
        [None, "name", 1],
    )
)  # fmt: skip


def test_short_cut_agrees_with_the_parser() -> None:
    taken = 0
    for *given, reduction, name in PARSED:
        call = backend.describe(_call.LOSS, *given, reduction, None, name)
        if call is not None:
            taken += 1
            checked = _call.check(_call.LOSS, *given, reduction, None, name)
            for got, expected in zip(call, checked, strict=True):
                assert got is expected or got == expected
    assert taken > 30
