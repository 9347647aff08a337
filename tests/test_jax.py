"""JAX: derivatives of every argument through every transformation, and tracing."""

from __future__ import annotations

import concurrent.futures
import itertools
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import backends
import numpy as np
import pytest
import reference
from mpmath import mp, mpf

import logitloss
from logitloss import sigmoid_cross_entropy_with_logits as sigmoid_loss
from logitloss import weighted_cross_entropy_with_logits as weighted

jax = pytest.importorskip("jax")
jnp = jax.numpy

from jax import export  # noqa: E402

from logitloss._backends import jax as backend  # noqa: E402
from logitloss._backends import jax_plugin  # noqa: E402
from logitloss._kernel import kernel  # noqa: E402

BACKEND = backends.get("jax")

inf, nan = math.inf, math.nan

CUSTOM_CALL = "custom_call @logitloss"
needs_kernel = pytest.mark.skipif(kernel.xla_handler() is None, reason="no custom call here")

POS_WEIGHTS = [0.0, 1e-8, 1.0, 3.0]
# A power of two: it adds no rounding to that of the slope which it multiplies.
WEIGHT = 0.25


def one_loss(labels, logits, pos_weight, weight):
    return weighted(labels, logits, pos_weight, weight=weight)


def points(dtype: str) -> list[np.ndarray]:
    grid = np.array(list(itertools.product(reference.LABELS, reference.LOGITS, POS_WEIGHTS))).T
    return list(grid.astype(dtype))


def assert_close(
    got, form, at: list[np.ndarray], dtype: str, factor: float = 1.0, bound: float = 4
) -> None:
    function, scale_function = form
    true = [factor * t for t in reference.at(function, *at)]
    scale = [factor * t for t in reference.at(scale_function or function, *at)]
    distances = reference.distances(np.asarray(got), true, dtype, scale)
    smallest = reference.smallest_normal(dtype)
    for distance, size, *point in zip(distances, scale, *at, strict=True):
        # XLA's CPU flushes subnormal numbers to zero.
        assert distance <= bound or abs(size) < 4 * smallest, (float(distance), point)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
@pytest.mark.parametrize("mode", ["jacfwd", "jacrev"])
def test_gradient_by_every_argument(mode: str, dtype: str) -> None:
    at = points(dtype)
    differentiate = jax.vmap(getattr(jax, mode)(one_loss, (0, 1, 2, 3)), (0, 0, 0, None))
    got = jax.jit(differentiate)(*at, jnp.asarray(WEIGHT, dtype))
    for index, (slope, form) in enumerate(zip(got, reference.GRADIENT, strict=True)):
        assert slope.dtype == dtype
        factor = 1.0 if index == 3 else WEIGHT
        assert_close(slope, form, at, dtype, factor, bound=0.51 if dtype == "bfloat16" else 4)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("modes", list(itertools.product(["jacfwd", "jacrev"], repeat=2)), ids=str)
def test_second_derivatives_by_every_argument(modes: tuple[str, str], dtype: str) -> None:
    at = points(dtype)
    function = one_loss
    for mode in modes:
        function = getattr(jax, mode)(function, (0, 1, 2, 3))
    got = jax.jit(jax.vmap(function, (0, 0, 0, None)))(*at, jnp.asarray(WEIGHT, dtype))
    for (row, column), form in reference.HESSIAN.items():
        factor = 1.0 if column == 3 else WEIGHT
        assert_close(got[row][column], form, at, dtype, factor)
        assert_close(got[column][row], form, at, dtype, factor)


def test_third_derivative() -> None:
    def third(z, x, q):
        return reference.hessian(z, x, q) * (reference.sigmoid(-x) - reference.sigmoid(x))

    at = points("float64")
    function = one_loss
    for _ in range(3):
        function = jax.grad(function, 1)
    got = jax.vmap(function, (0, 0, 0, None))(*at, 1.0)
    assert_close(got, (third, None), at, "float64", bound=8)


def scanned(loss, logits):
    def step(carry, x):
        return carry, jax.grad(loss)(x)

    return jax.lax.scan(step, 0, logits)[1]


# d loss / d logits of an elementwise loss, with every element at hand or one at a time.
TRANSFORMATIONS = {
    "grad": lambda loss, x: jax.grad(lambda x: loss(x).sum())(x),
    "jvp": lambda loss, x: jax.jvp(loss, (x,), (jnp.ones_like(x),))[1],
    "vjp": lambda loss, x: jax.vjp(loss, x)[1](jnp.ones_like(x))[0],
    "linearize": lambda loss, x: jax.linearize(loss, x)[1](jnp.ones_like(x)),
    "jit(grad)": lambda loss, x: jax.jit(jax.grad(lambda x: loss(x).sum()))(x),
    "grad(jit)": lambda loss, x: jax.grad(lambda x: jax.jit(loss)(x).sum())(x),
    "checkpoint": lambda loss, x: jax.grad(lambda x: jax.checkpoint(loss)(x).sum())(x),
    "vmap(grad)": lambda loss, x: jax.vmap(jax.grad(loss))(x),
    "grad(vmap)": lambda loss, x: jax.grad(lambda x: jax.vmap(loss)(x).sum())(x),
    "jacobian": lambda loss, x: jnp.diagonal(jax.jacobian(loss)(x)),
    "scan": scanned,
    "map": lambda loss, x: jax.lax.map(jax.grad(loss), x),
}


@pytest.mark.parametrize(
    ("label", "dtype"),
    [*((label, "float64") for label in (0.0, 1.0, 0.25)), (0.25, "float32"), (0.25, "bfloat16")],
)
@pytest.mark.parametrize("transformation", TRANSFORMATIONS)
def test_transformations_meet_the_closed_form(
    path: str, transformation: str, label: float, dtype: str
) -> None:
    finite = np.array([0.0, -0.0, 1.0, -3.0, 40.0, -40.0, 80.0, -80.0, -700.0])
    q = 3.0
    at = [np.full_like(finite, label), finite, np.full_like(finite, q)]
    bound = 0.51 if dtype == "bfloat16" else 4

    def loss(x):
        return weighted(jnp.full_like(x, label), x, q)

    def slope(x):
        return logitloss.value_and_grad(jnp.full_like(x, label), x, q)[1]

    logits = jnp.asarray([*finite, inf, -inf], dtype)
    apply = TRANSFORMATIONS[transformation]
    got = apply(loss, logits)
    assert got.dtype == dtype
    assert_close(got[:-2], reference.GRADIENT[1], at, dtype, bound=bound)
    np.testing.assert_array_equal(got[:2], (1 - label) / 2 - q * label / 2)
    np.testing.assert_array_equal(got[-2:], [1 - label, -q * label])
    got = apply(slope, logits)
    assert_close(got[:-2], reference.HESSIAN[1, 1], at, dtype, bound=bound)
    np.testing.assert_array_equal(got[-2:], 0)


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_hessian_of_a_sum(path: str, reduction: str, dtype: str) -> None:
    at = [np.array(a, dtype) for a in ([1, 0, 0.25, 1], [0, -3, 40, -80], [0.5, 3, 3, 3])]
    labels, logits, pos_weight = map(jnp.asarray, at)
    got = jax.hessian(lambda x: weighted(labels, x, pos_weight, reduction=reduction))(logits)
    bound = 0.51 if dtype == "bfloat16" else 4
    factor = 0.25 if reduction == "mean" else 1.0
    assert_close(jnp.diagonal(got), reference.HESSIAN[1, 1], at, dtype, factor, bound)
    np.testing.assert_array_equal(got[~np.eye(4, dtype=bool)], 0)


@pytest.mark.parametrize(("dtype", "bound"), [("float32", -25.8), ("float64", -55.5)])
def test_bounds_of_the_polynomials(dtype: str, bound: float) -> None:
    coefficients = [mpf(c) for c in reversed(backend._LOG1P[dtype])]
    for i in range(1, 1001):
        e = mpf(i) / 1000
        error = e * (1 + mp.polyval(coefficients, e - mpf(1) / 2)) / mp.log1p(e) - 1
        assert abs(error) <= mpf(2) ** bound


def test_own_log1p_is_accurate() -> None:
    _log1p = backend._log1p
    for dtype in ("float32", "float64"):
        e = np.concatenate([np.linspace(0, 1, 2001), np.exp(-np.linspace(0, 87, 501))])
        e = e.astype(dtype)
        true = [mp.log1p(reference.exact(v)) for v in e]
        for log1p in (_log1p, jax.jit(_log1p)):
            assert max(reference.distances(np.asarray(log1p(jnp.asarray(e))), true, dtype)) <= 1.3


@pytest.fixture(params=[pytest.param("kernel", marks=needs_kernel), "formula", "jax-cuda"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Compute by the kernel, or as where XLA does not take it, or on a GPU."""
    if request.param == "jax-cuda":
        # For threads as well, which a context would leave where they are.
        before = jax.config.jax_default_device
        jax.config.update("jax_default_device", backends.get(request.param).device)
        yield request.param
        jax.config.update("jax_default_device", before)
        return
    if request.param == "kernel":
        yield "kernel"
        return
    monkeypatch.setattr(backend, "_is_registered", lambda: False)
    jax.clear_caches()
    yield "formula"
    jax.clear_caches()


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
@pytest.mark.parametrize("pos_weight", [0.0, 1.0, 1e30])
def test_sums_of_any_values(path: str, pos_weight: float, dtype: str) -> None:
    magnitudes = [0.0, 1e-10, 0.5, 3.0, 30.0, 86.0, 88.0, 100.0, 103.0, 700.0, 740.0, 1e4, inf]
    logits = np.array([*magnitudes, *(-m for m in magnitudes)]).astype(dtype)
    smallest = reference.smallest_normal(dtype)
    total = jax.jit(lambda z, x: weighted(z, x, pos_weight, reduction="sum"))
    for label in (0.0, 1.0, 0.25):
        for logit in logits:
            labels = np.full(1, label, dtype)
            got = total(labels, logit[None])
            # In float64 nothing overflows but what does so in exact arithmetic.
            expected = weighted(labels.astype(float), logit[None].astype(float), pos_weight)
            if np.isfinite(expected) and expected > smallest:
                assert reference.distances([got], map(reference.exact, expected), dtype)[0] <= 4
            elif not np.isfinite(expected) or expected == 0:
                np.testing.assert_array_equal(got, expected[0].astype(dtype))


# Labels, logits and coefficients.
MIXTURES = [
    *((dtype,) * 3 for dtype in ("float16", "bfloat16", "float32", "float64")),
    ("float32", "bfloat16", "float64"),
    ("float64", "float32", "float16"),
    ("int8", "float16", "float32"),
    ("bool", "bfloat16", "bool"),
]


@needs_kernel
@pytest.mark.parametrize("dtypes", MIXTURES, ids="-".join)
def test_kernel_gives_the_bits_of_numpy(dtypes: tuple[str, str, str]) -> None:
    """Of the sum, too, and with the work divided among threads: on one there are no others."""
    generator = np.random.default_rng(0)

    def drawn(shape, dtype):
        numbers = generator.random(shape)
        return (numbers < 0.5 if dtype in ("bool", "int8") else numbers).astype(dtype)

    for shape in ((), (1,), (7, 3), (300, 5, 7), (70_001, 3)):
        logits = (generator.normal(size=shape) * 20).astype(dtypes[1])
        labels = drawn(shape, dtypes[0])
        for weight_shape in ((), shape[-1:], (*shape[:1], *(1,) * (len(shape) - 1)), shape):
            q, w = (drawn(weight_shape, dtypes[2]) for _ in range(2))
            arguments = labels, logits, q
            for function, options in (
                (weighted, {}),
                (weighted, {"weight": w, "reduction": "sum"}),
                (logitloss.value_and_grad, {"weight": w}),
                (logitloss.value_and_grad, {"reduction": "mean"}),
                (logitloss.grad_and_hess, {"weight": w}),
            ):
                got = function(*map(jnp.asarray, arguments), **options)
                jax.tree.map(np.testing.assert_array_equal, got, function(*arguments, **options))


@needs_kernel
@pytest.mark.parametrize("dtypes", MIXTURES, ids="-".join)
def test_kernel_reads_arrays_as_they_lie(dtypes: tuple[str, str, str]) -> None:
    def step(labels, logits, pos_weight, weight):
        options = {"weight": weight, "reduction": "mean"}
        return (
            weighted(labels, logits, pos_weight, weight=weight),
            logitloss.value_and_grad(labels, logits, pos_weight, **options),
        )

    shapes = zip([(4, 3), (4, 3), (3,), (4, 3)], [*dtypes, dtypes[2]], strict=True)
    lowered = jax.jit(step).lower(*(jax.ShapeDtypeStruct(*given) for given in shapes))
    text = lowered.as_text()
    assert text.count(CUSTOM_CALL) == 2
    assert "convert" not in text


@needs_kernel
@pytest.mark.parametrize(
    "kind", ["bool", *(f"{u}int{n}" for u in ("", "u") for n in (8, 16, 32, 64))]
)
def test_kernel_reads_labels_of_any_integer_type(kind: str) -> None:
    labels = np.array([[1, 0, 1, 1], [0, 0, 1, 0]])
    logits = jnp.linspace(-3, 3, 8, dtype="float32").reshape(2, 4)
    function = jax.jit(jax.value_and_grad(one_mean, 1))
    given = jnp.asarray(labels, kind)
    lines = function.lower(given, logits).as_text().splitlines()
    (call,) = (line for line in lines if CUSTOM_CALL in line)
    assert call.count("tensor<2x4xf32>") == 2  # logits and gradient
    for reduce in (function, jax.vmap(function)):
        got, expected = (reduce(z, logits) for z in (given, labels.astype("float32")))
        jax.tree.map(np.testing.assert_array_equal, got, expected)


@pytest.mark.parametrize("argument", range(4))
@pytest.mark.parametrize("reduction", ["sum", "mean", "weighted_mean"])
def test_gradients_of_reductions(path: str, reduction: str, argument: int) -> None:
    generator = np.random.default_rng(7)
    labels, logits = generator.random((4, 3)), generator.normal(size=(4, 3)) * 4
    pos_weight, weight = generator.random(3) + 0.5, generator.random((4, 1)) + 0.5

    def numpy_loss(*arguments):
        *arguments, weight = arguments
        return weighted(*arguments, weight=weight, reduction=reduction)

    def jax_loss(*arguments):
        return numpy_loss(*map(jnp.asarray, arguments))

    arguments = [labels, logits, pos_weight, weight]
    got = jax.grad(jax_loss, argument)(*arguments)
    differences = reference.central_differences(numpy_loss, arguments, argument)
    np.testing.assert_allclose(got, differences, rtol=1e-8, atol=1e-9)
    if argument == 1:
        *arguments, weight = map(jnp.asarray, arguments)
        _, gradient = logitloss.value_and_grad(*arguments, weight=weight, reduction=reduction)
        np.testing.assert_allclose(got, gradient, rtol=1e-15)


@pytest.mark.parametrize("poison", [nan, inf, -inf, 1e300])
@pytest.mark.parametrize("place", range(3))
def test_zero_weight_masks_every_derivative(place: int, poison: float) -> None:
    arguments = [np.ones(3), np.array([1.0, 2.0, -3.0]), np.full(3, 2.0), np.array([1.0, 0.0, 0.5])]
    arguments[place][1] = poison

    def total(*arguments):
        return one_loss(*arguments).sum()

    gradients = jax.grad(total, (0, 1, 2, 3))(*map(jnp.asarray, arguments))
    second = jax.grad(lambda *a: sum(g.sum() for g in jax.grad(total, (0, 1, 2))(*a)), 1)
    for got in (*gradients[:3], second(*map(jnp.asarray, arguments))):
        assert got[1] == 0
        assert np.isfinite(got).all() and (got[::2] != 0).all()
    assert np.isfinite(gradients[3]).all()


@pytest.mark.parametrize("poison", [nan, inf, -inf])
def test_zero_weight_masks_mixed_and_third_derivatives(path: str, poison: float) -> None:
    labels, weight = jnp.array([1.0, 1.0, 0.0]), jnp.array([1.0, 0.0, 0.5])
    logits = jnp.array([1.0, poison, -3.0])

    def total(x, w):
        return one_loss(labels, x, 2.0, w).sum()

    mixed = jax.grad(lambda x: jax.grad(total, 1)(x, weight).sum())(logits)
    orders, function = [], total
    for _ in range(3):
        function = jax.grad(lambda x, w, f=function: f(x, w).sum())
        orders.append(function(logits, weight))
    for got in (mixed, *orders):
        assert got[1] == 0
        assert (got[::2] != 0).all() and np.isfinite(got).all()


def test_derivative_by_a_weight_of_zero_is_the_loss() -> None:
    # Methods that learn the weights of examples start from zero.
    labels, logits = jnp.array([1.0, 0.0]), jnp.array([-2.0, 3.0])
    weight = jnp.zeros(2)
    got = jax.grad(lambda w: one_loss(labels, logits, 2.0, w).sum())(weight)
    np.testing.assert_array_equal(got, weighted(labels, logits, 2.0))


def test_infinite_slopes_stay_with_their_argument() -> None:
    # The slope by the label is infinite there, which is no reason for the one by the logit to be.
    logits = jnp.array([inf, -inf])
    for label, expected in ((0.0, [1, 0]), (1.0, [0, -1])):
        labels = jnp.full(2, label)
        _, tangent = jax.jvp(lambda x, z=labels: sigmoid_loss(z, x), (logits,), (jnp.ones(2),))
        np.testing.assert_array_equal(tangent, expected)
    _, tangent = jax.jvp(lambda z: sigmoid_loss(z, logits), (jnp.zeros(2),), (jnp.ones(2),))
    np.testing.assert_array_equal(tangent, [-inf, inf])
    # The positive term is no part of the loss of a negative, whatever the pos_weight.
    slopes = jax.grad(lambda q: weighted(jnp.array([0.0, 1.0]), -logits[:1].repeat(2), q).sum())
    np.testing.assert_array_equal(slopes(jnp.ones(2)), [0, inf])


@pytest.mark.parametrize("reduction", ["none", "mean"])
@pytest.mark.parametrize("coefficient", [(), (3,), (2, 3)], ids=str)
def test_vmap_over_any_argument(path: str, coefficient: tuple[int, ...], reduction: str) -> None:
    generator = np.random.default_rng(3)
    arguments = [generator.random((4, *s)) for s in ((2, 3), (2, 3), coefficient, coefficient)]

    def results(labels, logits, pos_weight, weight):
        options = {"weight": weight, "reduction": reduction}
        return logitloss.value_and_grad(labels, logits, pos_weight, **options)

    for mapped in [*np.eye(4, dtype=bool), np.ones(4, dtype=bool)]:
        # Along the last axis, lest the first be right by chance.
        given = [
            np.moveaxis(a, 0, -1) if m else a[0] for a, m in zip(arguments, mapped, strict=True)
        ]
        axes = [a.ndim - 1 if m else None for a, m in zip(given, mapped, strict=True)]
        got = jax.vmap(results, axes)(*map(jnp.asarray, given))
        for i in range(4):
            one = [a[i if m else 0] for a, m in zip(arguments, mapped, strict=True)]
            for value, expected in zip(got, results(*one), strict=True):
                np.testing.assert_allclose(value[i], expected, rtol=1e-14, atol=1e-15)


def test_jit_needs_shapes_and_dtypes_only() -> None:
    def results(labels, logits, pos_weight, weight):
        yield logitloss.grad_and_hess(labels, logits, pos_weight, weight=weight)
        for reduction in ("none", "sum", "mean", "weighted_mean"):
            options = {"weight": weight, "reduction": reduction}
            yield logitloss.value_and_grad(labels, logits, pos_weight, **options)
            yield weighted(labels, logits, pos_weight, **options)

    arrays = [
        jax.ShapeDtypeStruct(shape, dtype)
        for shape, dtype in (((2, 3), "int8"), ((2, 3), "float32"), ((3,), "float64"), ((), "bool"))
    ]
    shapes = jax.eval_shape(lambda *arguments: list(results(*arguments)), *arrays)
    for leaf in jax.tree.leaves(shapes):
        assert leaf.dtype == "float32"
        assert leaf.shape in ((2, 3), ())


@pytest.mark.parametrize("rows", [4, 0])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
def test_strict_modes_of_jax(path: str, dtype: str, rows: int) -> None:
    """JAX may be set to promote nothing and to add no axis: every derivative can be compiled."""

    def derivatives(reduction, labels, *given):
        def total(logits, pos_weight, weight, labels=labels):
            return weighted(labels, logits, pos_weight, weight=weight, reduction=reduction).sum()

        yield jax.value_and_grad(total, (0, 1, 2))(*given)
        yield jax.jvp(jax.grad(total), given, given)
        yield jax.vmap(lambda x: total(x, *given[1:]), 1)(given[0][:, None])
        if labels.dtype == dtype:
            yield jax.grad(lambda z: total(*given, labels=z))(labels)

    def results(labels, logits, pos_weight, weight):
        options = {"weight": weight}
        yield logitloss.grad_and_hess(labels, logits, pos_weight, **options)
        for options["reduction"] in ("none", "sum", "mean", "weighted_mean"):
            yield logitloss.value_and_grad(labels, logits, pos_weight, **options)
            yield from derivatives(options["reduction"], labels, logits, pos_weight, weight)

    shapes = (rows, 3), (3,), (3,)
    logits, *coefficients = (jax.ShapeDtypeStruct(shape, dtype) for shape in shapes)
    for kind in (dtype, "bool"):
        labels = jax.ShapeDtypeStruct((rows, 3), kind)
        function = jax.jit(lambda *arguments: list(results(*arguments)))
        with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
            lowered = function.lower(labels, logits, *coefficients)
        assert {leaf.dtype.name for leaf in jax.tree.leaves(lowered.out_info)} == {dtype}


def test_numpy_beside_traced_arrays() -> None:
    labels, pos_weight = np.array([1, 0], dtype="int8"), np.float64(3.0)
    logits = np.array([0.5, -1.0], dtype="float32")
    got = jax.jit(lambda x: weighted(labels, x, pos_weight, weight=[1.0, 0.5]))(logits)
    assert got.dtype == "float32"
    expected = weighted(labels, logits, pos_weight, weight=[1.0, 0.5])
    np.testing.assert_array_max_ulp(got, expected, 4)


@pytest.mark.parametrize("argument", ["pos_weight", "weight"])
def test_lists_of_traced_numbers(argument: str) -> None:
    labels, logits = jnp.array([1.0, 0.0]), jnp.array([0.5, -1.0])

    def total(first, second):
        given = {"pos_weight": 2.0} | {argument: [first, second]}
        return weighted(labels, logits, **given, reduction="sum")

    got = jax.jit(jax.value_and_grad(total, (0, 1)))(1.5, 3.0)
    expected = jax.value_and_grad(total, (0, 1))(jnp.array(1.5), jnp.array(3.0))
    jax.tree.map(lambda a, b: np.testing.assert_array_max_ulp(a, b, 4), got, expected)
    # The second label is 0, which a pos_weight does not concern.
    assert (got[1][1] == 0) == (argument == "pos_weight")
    with pytest.raises(TypeError, match="`labels` must be an array of numbers"):
        jax.jit(lambda z: weighted([z, 0.0], logits, 1.0))(1.0)


def test_subnormals(path: str) -> None:
    """As inputs and as results: zeros for XLA's CPU, but not for the kernel (docs/backends.md)."""
    if path == "jax-cuda":
        pytest.skip("XLA's CPU alone takes subnormal numbers for zero")
    points = np.float32([[1, 0, 1e-40], [0, -100, 1], [1e-40, -1e38, 1]])
    expected = weighted(*points.T) if path == "kernel" else np.zeros(3)
    assert (weighted(*points.T) > 0).all()
    for run in (weighted, jax.jit(weighted)):
        np.testing.assert_array_equal(run(*map(jnp.asarray, points.T)), expected)
    # What is normal in the end is right, although exp(-100) is not.
    lifted = [np.full(1, value, "float32") for value in (1, 100, 1e30)]
    np.testing.assert_array_max_ulp(weighted(*map(jnp.asarray, lifted)), weighted(*lifted), 4)
    # Neither the caller's mode nor that of XLA is changed.
    assert points[0, 2] * np.float32(1) > 0
    assert jnp.asarray(points)[2, 0] * 1 == 0


@needs_kernel
def test_kernel_is_for_one_cpu_only() -> None:
    arguments = [jax.ShapeDtypeStruct((4, 3), "float32")] * 2
    mean = jax.jit(lambda z, x: jax.value_and_grad(one_mean, 1)(z, x))
    traced = mean.trace(*arguments)
    assert traced.lower(lowering_platforms=("cpu",)).as_text().count(CUSTOM_CALL) == 1
    for platform in ("cuda", "tpu"):
        assert CUSTOM_CALL not in traced.lower(lowering_platforms=(platform,)).as_text()


def one_mean(labels, logits):
    return weighted(labels, logits, 3.0, reduction="mean")


def test_xla_can_leave_out_no_rounding_of_a_weight() -> None:
    """Its compiler for GPUs makes one conversion of one to float32 and one back, which is none."""
    labels, weight = jnp.ones(3, "float32"), jnp.ones(3, "float64")
    mean = jax.jit(lambda z, w: weighted(z, z, 1.0, weight=w, reduction="weighted_mean"))
    traced = mean.trace(labels, weight)
    lines = traced.lower(lowering_platforms=("cuda",)).as_text().splitlines()
    narrowed = [line.split()[0] for line in lines if "xf64>) -> tensor<3xf32>" in line]
    assert narrowed
    widened = [line for line in lines if "xf32>) -> tensor<3xf64>" in line]
    assert widened
    assert not [line for line in widened if line.split("convert ")[1].split()[0] in narrowed]


def test_export() -> None:
    """An exported program holds the formula, for any platform and any number of rows."""
    labels, logits = np.float32([[1, 0, 1], [0, 0.5, 1]]), np.float32([[-20, 3, 0], [-1, 2, 70]])
    shape = export.symbolic_shape("rows, 3")
    arguments = [jax.ShapeDtypeStruct(shape, "float32")] * 2
    function = jax.jit(jax.value_and_grad(one_mean, 1))
    exported = export.export(function, platforms=["cpu", "cuda"])(*arguments)
    got = exported.call(labels, logits)
    expected = logitloss.value_and_grad(labels, logits, 3.0, reduction="mean")
    for value, true in zip(got, expected, strict=True):
        np.testing.assert_array_max_ulp(np.asarray(value), true, 4)


@pytest.mark.parametrize("weight_shape", [None, (3,), ("rows", 3), ("rows", 1), ()], ids=str)
@pytest.mark.parametrize("reduction", ["sum", "mean", "weighted_mean"])
def test_export_of_any_number_of_rows(
    reduction: str, weight_shape: tuple[int | str, ...] | None
) -> None:
    def gradients(labels, logits, weight):
        def loss(labels, logits, weight):
            return weighted(labels, logits, 3.0, weight=weight, reduction=reduction)

        return jax.value_and_grad(loss, (0, 1) if weight is None else (0, 1, 2))(
            labels, logits, weight
        )

    shapes = [("rows", 3), ("rows", 3), weight_shape]
    rows = export.symbolic_shape("rows")
    symbolic = [
        None
        if shape is None
        else jax.ShapeDtypeStruct(
            tuple(rows[0] if size == "rows" else size for size in shape), "float32"
        )
        for shape in shapes
    ]
    exported = export.export(jax.jit(gradients))(*symbolic)
    generator = np.random.default_rng(4)
    for rows in (1, 5):
        given = [
            None
            if shape is None
            else generator.random(
                tuple(rows if size == "rows" else size for size in shape), "float32"
            )
            for shape in shapes
        ]
        got = exported.call(*given)
        expected = gradients(*(a if a is None else jnp.asarray(a, "float64") for a in given))
        for value, true in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
            # The slopes by weights are differences of terms of about 1.
            ulp = np.spacing(np.float32(max(1, abs(true).max())))
            assert (abs(value - true) <= 4 * ulp).all()


@pytest.mark.skipif(sys.platform == "win32", reason="no custom call there")
@pytest.mark.skipif(jax.__version_info__ < (0, 6, 1), reason="the formula alone")
def test_the_kernel_is_a_custom_call() -> None:
    """Without it the tests above would be skipped."""
    assert backend._is_registered()


@pytest.mark.parametrize("refusal", [RuntimeError("incompatible API version"), AttributeError()])
def test_without_the_kernel_there_is_the_formula(
    refusal: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments, **options):
        raise refusal

    monkeypatch.setattr(jax.ffi, "register_ffi_target", refuse)
    backend._is_registered.cache_clear()
    jax.clear_caches()
    try:
        labels, logits = np.array([1.0, 0.0]), np.array([-3.0, -30.0])
        lowered = jax.jit(one_mean).lower(labels, logits)
        assert CUSTOM_CALL not in lowered.as_text()
        np.testing.assert_array_max_ulp(
            np.asarray(lowered.compile()(labels, logits)), one_mean(labels, logits), 4
        )
    finally:
        backend._is_registered.cache_clear()
        jax.clear_caches()


@needs_kernel
def test_kernel_accumulates_in_float64_without_x64() -> None:
    # In float32 the thousand small terms would vanish beside the large one.
    logits = np.float32([2.0**24, *1000 * [-3.0]])
    labels = np.zeros_like(logits)
    jax.config.update("jax_enable_x64", False)
    try:
        got = weighted(*map(jnp.asarray, (labels, logits)), 1.0, reduction="sum")
    finally:
        jax.config.update("jax_enable_x64", True)
    assert got.dtype == "float32"
    np.testing.assert_array_equal(got, weighted(labels, logits, 1.0, reduction="sum"))


def test_disable_jit(path: str) -> None:
    labels, logits = np.array([1.0, 0.0]), np.array([-3.0, -30.0])
    with jax.disable_jit():
        got = jax.value_and_grad(one_mean, 1)(labels, jnp.asarray(logits))
    expected = logitloss.value_and_grad(labels, logits, 3.0, reduction="mean")
    for value, true in zip(got, expected, strict=True):
        np.testing.assert_array_max_ulp(np.asarray(value), true, 4)


def test_many_calls_at_once(path: str) -> None:
    """From many threads, each call divided among those of XLA; into the memory of an input, too."""
    generator = np.random.default_rng(0)
    logits = generator.normal(size=200_000)
    labels = generator.random(logits.size)
    step = jax.jit(jax.value_and_grad(one_mean, 1), donate_argnums=1)
    expected = step(labels, jnp.array(logits))
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for got in pool.map(lambda _: step(labels, jnp.array(logits)), range(100)):
            jax.tree.map(np.testing.assert_array_equal, got, expected)


@pytest.mark.parametrize("name", [None, "cost_of_clicks"])
def test_name_is_a_named_scope(name: str | None) -> None:
    lowered = jax.jit(lambda x: sigmoid_loss(x, x, name)).lower(jnp.ones(2))
    assert (name or "logistic_loss") in lowered.as_text(debug_info=True)


def test_out_is_refused() -> None:
    array = jnp.ones(2)
    with pytest.raises(TypeError, match="`out` must be None for jax arrays"):
        sigmoid_loss(array, array, out=array)


TWO_DEVICES = """
import jax, jax.numpy as jnp, numpy as np
from functools import partial
from jax.sharding import NamedSharding, PartitionSpec as P
import logitloss

assert len(jax.devices()) == 2
generator = np.random.default_rng(1)
labels = generator.integers(0, 2, (8, 3)).astype("float32")
logits = generator.normal(size=(8, 3)).astype("float32")
pos_weight = np.float32([0.5, 1.0, 3.0])
loss, slopes = logitloss.value_and_grad(labels, logits, pos_weight, reduction="mean")

def mean(labels, logits, pos_weight):
    return logitloss.weighted_cross_entropy_with_logits(
        labels, logits, pos_weight, reduction="mean"
    )

def check(value, gradient):
    np.testing.assert_allclose(value, loss, rtol=1e-6)
    np.testing.assert_allclose(gradient, slopes, rtol=1e-5)

mesh = jax.sharding.Mesh(jax.devices(), ("rows",))
rows, everywhere = P("rows"), P()

@jax.jit
@partial(jax.shard_map, mesh=mesh, in_specs=(rows, rows, everywhere), out_specs=everywhere)
def sharded(*arguments):
    return jax.lax.pmean(mean(*arguments), "rows")

check(*jax.value_and_grad(sharded, 1)(labels, logits, pos_weight))
arguments = [jnp.asarray(a) for a in (labels, logits, pos_weight)]
by_pos_weight, expected = (jax.grad(f, 2)(*arguments) for f in (sharded, mean))
np.testing.assert_allclose(by_pos_weight, expected, rtol=1e-5)

halves = [a.reshape(2, 4, 3) for a in (labels, logits)]
values, gradients = jax.pmap(jax.value_and_grad(mean, 1), in_axes=(0, 0, None))(*halves, pos_weight)
check(values.mean(), gradients.reshape(8, 3) / 2)

placed = [jax.device_put(a, NamedSharding(mesh, rows)) for a in (labels, logits)]
value, gradient = logitloss.value_and_grad(*placed, pos_weight, reduction="mean")
assert gradient.sharding == placed[1].sharding
check(value, gradient)

with jax.set_mesh(jax.make_mesh((2,), ("rows",), axis_types=(jax.sharding.AxisType.Explicit,))):
    placed = [jax.device_put(a, rows) for a in (labels, logits)]
    value, gradient = jax.jit(jax.value_and_grad(mean, 1))(*placed, pos_weight)
    assert gradient.sharding.is_equivalent_to(placed[1].sharding, 2)
    check(value, gradient)

second = [jax.device_put(a, jax.devices()[1]) for a in (labels, logits)]
value, gradient = logitloss.value_and_grad(*second, pos_weight, reduction="mean")
assert gradient.devices() == {jax.devices()[1]}
check(value, gradient)
"""


LOAD = """
import pickle, sys
import jax, jax.numpy as jnp
from jax.experimental import serialize_executable

labels, logits = jnp.ones(5), jnp.arange(5.0)
if "compile" in sys.argv:
    import logitloss

    step = jax.jit(lambda z, x: logitloss.value_and_grad(z, x, reduction="mean"))
    compiled = step.lower(labels, logits).compile()
    assert "logitloss" in compiled.as_text()
    sys.stdout.buffer.write(pickle.dumps(serialize_executable.serialize(compiled)))
else:
    compiled = serialize_executable.deserialize_and_load(*pickle.load(sys.stdin.buffer))
    print(compiled(labels, logits)[0])
"""


@needs_kernel
@pytest.mark.skipif(jax.__version_info__ < (0, 6, 1), reason="the formula alone")
def test_compiled_programs_run_in_other_processes(tmp_path: Path) -> None:
    """The kernel is known as soon as JAX has devices, without a call of logitloss before."""
    # What an installation leaves: these tests may run on the source tree.
    tomllib = pytest.importorskip("tomllib")
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text("utf-8"))
    folder = tmp_path / "logitloss-0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Name: logitloss\nVersion: 0\n", encoding="utf-8")
    (module,) = project["project"]["entry-points"]["jax_plugins"].values()
    entry = f"[jax_plugins]\nlogitloss = {module}\n"
    (folder / "entry_points.txt").write_text(entry, encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}

    def run(*arguments: str, **options) -> bytes:
        command = [sys.executable, "-c", LOAD, *arguments]
        run = subprocess.run(command, env=environment, capture_output=True, **options)
        assert run.returncode == 0, run.stderr.decode()
        return run.stdout

    expected = sigmoid_loss(np.ones(5), np.arange(5.0), reduction="mean")
    got = np.float32(run(input=run("compile")))
    np.testing.assert_array_max_ulp(got, np.float32(expected), 2)


@pytest.mark.parametrize(
    ("version", "taken"), [((0, 0), False), ((0, 1), True), ((0, 10), True), ((1, 1), False)]
)
def test_an_xla_that_may_refuse_the_kernel_is_not_asked_early(
    version: tuple[int, int], taken: bool, tmp_path: Path
) -> None:
    header = tmp_path / "xla" / "ffi" / "api" / "c_api.h"
    header.parent.mkdir(parents=True)
    names = ("XLA_FFI_API_MAJOR", "XLA_FFI_API_MINOR")
    text = "\n".join(f"#define {n} {v}" for n, v in zip(names, version, strict=True))
    header.write_text(text, encoding="utf-8")
    assert jax_plugin._takes_our_interface(tmp_path) == taken


FORK = """
import os, jax.numpy as jnp, numpy as np, logitloss

def total(logits):
    return float(logitloss.value_and_grad(logits, logits, reduction="mean")[0])

logits = np.linspace(0, 1, 200_000)
expected = total(logits)
assert total(jnp.asarray(logits, "float32")) > 0
child = os.fork()
if not child:
    os._exit(total(logits) != expected)
assert os.waitpid(child, 0)[1] == 0
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_fork_after_calls_from_jax() -> None:
    """NumPy arrays are computed in the child, although XLA's threads are not there."""
    run = subprocess.run([sys.executable, "-c", FORK], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("mapped", [0, 1])
def test_more_axes_than_the_kernel_has(mapped: int) -> None:
    shape = (2, *[1] * (kernel.MAX_AXES - mapped), 3)
    labels, logits = jnp.asarray([[0.0, 1, 1], [1, 0, 0]]), jnp.linspace(-3, 3, 6).reshape(2, 3)
    function = jax.value_and_grad(lambda z, x: weighted(z, x, 2.0, reduction="mean"), 1)
    expected = function(labels, logits)
    mean = jax.vmap(function) if mapped else function
    value, gradient = mean(labels.reshape(shape), logits.reshape(shape))
    np.testing.assert_allclose(jnp.mean(value), expected[0], rtol=1e-6)
    scale = 1 / 2 if mapped else 1
    np.testing.assert_allclose(scale * gradient.reshape(2, 3), expected[1], rtol=1e-6)


def test_two_devices() -> None:
    flags = "--xla_force_host_platform_device_count=2"
    run = subprocess.run(
        [sys.executable, "-c", TWO_DEVICES],
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
