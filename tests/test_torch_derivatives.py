"""PyTorch: derivatives of every order by every argument, by every way that they come about."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest
import reference
from torch_cases import (
    EXECUTIONS,
    FUNCTIONS,
    MARKS,
    REDUCTIONS,
    by_backward,
    by_dual,
    by_func,
    by_jvp,
    by_vmap,
    compiled,
    executed_by,
    inf,
    loss,
    nan,
    operator,
    reduced,
    small_operands,
    tensors,
    torch,
)

import logitloss
from logitloss import weighted_cross_entropy_with_logits as weighted

pytestmark = MARKS

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
PATHS += [(way, "torch-cuda") for way in FIRST]


@pytest.fixture
def execution(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with executed_by(request.param, monkeypatch):
        yield


def rounded(operands: Sequence) -> list[np.ndarray]:
    return [operand.cpu().numpy() for operand in operands]


def assert_within(bound: float, got, points: Sequence, function, scale, dtype: str) -> None:
    true = reference.at(function, *points)
    scales = None if scale is None else reference.at(scale, *points)
    distances = reference.distances(got.detach().cpu().numpy(), true, dtype, scales)
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
    for got, (function, scale) in zip(slopes, reference.GRADIENT, strict=True):
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
@pytest.mark.parametrize("execution", ["kernel", "torch-cuda"], indirect=True)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_second_derivatives_within_ulp(way: str, execution: None, dtype: str) -> None:
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


@pytest.mark.parametrize("execution", EXECUTIONS, indirect=True)
def test_third_derivative(execution: None) -> None:
    labels, logits, pos_weight, weight = small_operands()

    def gradient(logits):
        return torch.func.grad(lambda x: loss(labels, x, pos_weight, weight).sum())(logits)

    hessian = torch.func.grad(lambda x: gradient(x).sum())
    third = torch.func.grad(lambda x: hessian(x).sum())(logits)
    step = 1e-5
    difference = (hessian(logits + step) - hessian(logits - step)) / (2 * step)
    torch.testing.assert_close(third, difference, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("execution", ["kernel", "torch-cuda"], indirect=True)
def test_gradcheck(name: str, execution: None) -> None:
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
            np.testing.assert_array_equal(got[masked].detach().cpu(), 0)


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


def test_what_the_caller_leaves_out_is_masked() -> None:
    labels, logits = torch.ones(3), torch.tensor([1.0, nan, -inf], requires_grad=True)
    weighted(labels, logits, 2.0)[:1].sum().backward()
    np.testing.assert_array_equal(logits.grad[1:], 0)


@pytest.mark.parametrize("way", ["eager", "recorded", "compiled"])
@pytest.mark.parametrize("execution", EXECUTIONS, indirect=True)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("weight", [None, 2.0, [0.0, 1.0, -3.0, inf, -inf, nan]], ids=str)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_a_gradient_is_multiplied_as_a_whole(
    reduction: str, weight, dtype: str, execution: None, way: str
) -> None:
    """Infinity multiplies no term of a soft label apart, and zeros mask NaN and infinity."""
    # Of weights some of which are not finite there is no mean.
    weight = weight[:3] if isinstance(weight, list) and reduction == "weighted_mean" else weight
    weight = (
        torch.tensor(weight, dtype=getattr(torch, dtype)) if isinstance(weight, list) else weight
    )
    columns = len(weight) if isinstance(weight, torch.Tensor) else 2
    points = itertools.product([0.0, 0.3, 0.7, 1.0], [-2.0, 0.5, nan])
    labels, logits = (
        operand[:, None].repeat(1, columns) for operand in tensors(zip(*points, strict=True), dtype)
    )
    function = compiled(reduced(reduction)) if way == "compiled" else reduced(reduction)
    for number in (0.0, 3.0, *((inf, -inf, nan) if way != "compiled" else ())):
        leaf = logits.clone().requires_grad_()
        value = function(labels, leaf, 2.0, weight)
        scale = torch.full_like(value, number)
        if value.dim():
            # Not the same for all.
            scale[::2] *= -1
        (got,) = torch.autograd.grad(value, leaf, scale, create_graph=way == "recorded")
        _, gradient = logitloss.value_and_grad(
            labels.double(), logits.double(), 2.0, weight=weight, reduction=reduction
        )
        is_masked = (scale == 0) | (torch.as_tensor(1.0 if weight is None else weight) == 0)
        expected = torch.where(is_masked, 0.0, gradient * scale.double()).to(labels.dtype)
        torch.testing.assert_close(got.detach(), expected, equal_nan=True)


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
@pytest.mark.parametrize("execution", EXECUTIONS, indirect=True)
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
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("factor", [1.0, 3.0, 1024.0, [0.1, 1.0, 3.0]], ids=str)
def test_half_precision_steps_are_rounded_once(
    dtype: str, reduction: str, masked: bool, factor
) -> None:
    """After a loss was scaled, so that no gradient underflows."""
    *half, factors = tensors([[1, 0, 0.3], [7, -9, 3], [1.7] * 3, [0.3, 1, 2], [1] * 3], dtype)
    factors = factors * torch.tensor(factor, dtype=factors.dtype)
    exact = [operand.double() for operand in half]
    steps = []
    for labels, logits, pos_weight, weight in (half, exact):
        logits = logits.clone().requires_grad_()
        weight = weight if masked else None
        value = weighted(labels, logits, pos_weight, weight=weight, reduction=reduction)
        scale = factors if reduction == "none" else factors[0]
        steps.append((value, *torch.autograd.grad(value, logits, scale.to(value.dtype))))
    for got, expected in zip(*steps, strict=True):
        torch.testing.assert_close(got, expected.to(got.dtype), rtol=0, atol=0)
        assert got.dtype == half[0].dtype


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_gradients_are_rounded_once(dtype: str) -> None:
    half = tensors([[1.0, 0.0, 0.3], [0.7, -2.0, 3.0], [1.7] * 3, [0.3, 1.0, 2.0]], dtype)
    exact = by_backward(loss, [operand.double() for operand in half])
    for got, expected in zip(by_backward(loss, half), exact, strict=True):
        torch.testing.assert_close(got, expected.to(half[0].dtype), rtol=0, atol=0)


@pytest.mark.parametrize("slopes", [by_func, by_vmap, by_jvp, by_dual])
def test_a_transformation_sees_the_plain_call(slopes: Callable) -> None:
    labels, logits, *_ = tensors([[1.0, 0.0], [0.5, -2.0], [1.0, 1.0], [1.0, 1.0]])
    expected = logitloss.value_and_grad(labels, logits, 2.0)[1]

    def plain(labels, logits, *unused):
        return weighted(labels, logits, 2.0) + sum(0 * operand for operand in unused)

    torch.testing.assert_close(slopes(plain, [labels, logits, labels, labels])[1], expected)


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


def test_a_repeated_weight_is_multiplied() -> None:
    """A sum of so many would be rounded many times."""

    def mean(logits: torch.Tensor) -> torch.Tensor:
        labels = torch.zeros_like(logits)
        return weighted(labels, logits, 1.0, weight=0.1, reduction="weighted_mean")

    # Eagerly, the kernel would serve.
    gradient = torch.func.grad(mean)(torch.zeros(30_000, dtype=torch.float64))
    np.testing.assert_array_max_ulp(gradient.numpy(), np.full(30_000, 0.5 / 30_000), 2)
