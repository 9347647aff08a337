"""Properties that hold for every input, over all dtypes and memory layouts."""

from __future__ import annotations

import math
from typing import Any

import array_api_compat
import backends
import numpy as np
import pytest
import reference
from backends import Backend
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from mpmath import mp, mpf

import logitloss
from logitloss import _formula

DTYPES = backends.DTYPES["numpy"]
ULP = {"float16": 0.501, "bfloat16": 0.501, "float32": 4, "float64": 4, "longdouble": 4}

logits = st.floats() | st.floats(-20, 20) | st.sampled_from([0.0, -0.0, math.inf, -math.inf])
real_logits = logits.filter(lambda x: not math.isnan(x))
labels = st.floats(0, 1) | st.sampled_from([0.0, 1.0])
coefficients = st.floats(0, 1e300) | st.floats(0, 10) | st.sampled_from([0.0, 1.0])


@st.composite
def elements(draw: st.DrawFn, dtype: str, *strategies: Any) -> list[np.ndarray]:
    """One-dimensional arrays of the dtype, drawn element by element from the strategies."""
    # Always as many, because some libraries compile for each shape.
    points = draw(st.lists(st.tuples(*strategies), min_size=6, max_size=6))
    with np.errstate(over="ignore"):
        return [np.array(column).astype(dtype) for column in zip(*points, strict=True)]


def finite(values: np.ndarray) -> np.ndarray:
    """What the dtype rounds to infinity becomes 1."""
    return np.where(np.isfinite(values), values, values.dtype.type(1))


def same_bits(first: Any, second: Any) -> bool:
    return all(map(_same_bits, map(np.asarray, first), map(np.asarray, second)))


def _same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    if a.dtype == np.longdouble:
        # Some of its bytes are padding.
        return np.array_equal(a, b, equal_nan=True) and bool((np.signbit(a) == np.signbit(b)).all())
    return a.tobytes() == b.tobytes()


def everything(z: Any, x: Any, q: Any = 1.0, **options: Any) -> list[np.ndarray]:
    """Loss, gradient, Hessian, and the gradient as its other function gives it."""
    loss, gradient = logitloss.value_and_grad(z, x, q, **options)
    again, hessian = logitloss.grad_and_hess(z, x, q, **options)
    assert same_bits([again], [gradient])
    alone = logitloss.weighted_cross_entropy_with_logits(z, x, q, **options)
    assert same_bits([alone], [loss])
    return [loss, gradient, hessian]


@pytest.mark.parametrize("dtype", DTYPES)
@given(data=st.data())
def test_loss_and_hessian_are_never_negative(dtype: str, data: st.DataObject) -> None:
    z, x, q, w = data.draw(elements(dtype, labels, real_logits, coefficients, coefficients))
    loss, _, hessian = everything(z, x, finite(q), weight=finite(w))
    assert (loss >= 0).all()
    assert (hessian >= 0).all()


@pytest.mark.parametrize("dtype", DTYPES)
@given(data=st.data())
def test_within_ulp_of_the_closed_form(dtype: str, data: st.DataObject) -> None:
    drawn = labels, real_logits, coefficients, coefficients
    if dtype == "longdouble":
        # The formula forms products that may leave the range on the way to a result inside it.
        drawn = (st.floats(1e-9, 0.999), real_logits, *[st.floats(1e-9, 1e9)] * 2)
    z, x, q, w = (finite(a) for a in data.draw(elements(dtype, *drawn)))
    # Half precision is computed in float32: the products are rounded there.
    compute = "float32" if ULP[dtype] < 1 else dtype
    factors = [reference.exact(v) for v in w]
    for got, function, scale in zip(
        everything(z, x, q, weight=w),
        (reference.loss, reference.gradient, reference.hessian),
        (reference.loss, reference.gradient_scale, reference.hessian),
        strict=True,
    ):
        true, scale = (
            [f * v for f, v in zip(factors, reference.at(form, z, x, q), strict=True)]
            for form in (function, scale)
        )
        for g, t, s in zip(got, true, scale, strict=True):
            if abs(t) > reference.largest(compute):
                assert np.isinf(g)
                continue
            bound = mpf(ULP[dtype]) * reference.ulp(t if ULP[dtype] < 1 else s, dtype)
            if compute != dtype:
                bound += 4 * reference.ulp(s, compute)
            if abs(t) + bound < reference.largest(dtype):
                assert abs(reference.exact(g) - t) <= bound


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@given(data=st.data())
def test_kernel_is_the_formula(dtype: str, data: st.DataObject) -> None:
    """Within the 4 ulp of each, where the formula has none of its products beyond the range."""
    moderate = st.floats(1e-9, 1e9) | st.just(0.0)
    z, x, q = data.draw(elements(dtype, labels, st.floats(-80, 80), moderate))
    z[z < 1e-9] = 0
    xp = array_api_compat.array_namespace(x)
    pairs = zip(
        everything(z, x, q),
        _formula.derivatives((0, 1, 2), z, x, q, xp),
        (reference.loss, reference.gradient_scale, reference.hessian),
        strict=True,
    )
    for got, expected, scale in pairs:
        scales = reference.at(scale, z, x, q)
        for g, e, s in zip(got, expected, scales, strict=True):
            assert abs(reference.exact(g) - reference.exact(e)) <= 8 * reference.ulp(s, dtype)


@given(
    point=st.tuples(
        st.floats(0, 1).filter(lambda z: z == 0 or z > 1e-9),
        st.floats(-30, 30).filter(lambda x: abs(x) > 1e-3),
        st.floats(1e-3, 1e3),
    )
)
def test_closed_forms_of_the_reference_are_derivatives(point: tuple[float, float, float]) -> None:
    """What every other test compares with, against the numerical derivative at 50 digits."""
    z, x, q = map(mpf, point)
    for function, derivative, scale in (
        (lambda v: reference.loss(z, v, q), reference.gradient, reference.gradient_scale),
        (lambda v: reference.gradient(z, v, q), reference.hessian, reference.hessian),
    ):
        error = mp.diff(function, x) - derivative(z, x, q)
        assert abs(error) <= scale(z, x, q) * mpf(10) ** -20
    for function, derivative in (
        (reference.loss(1, x, q) - reference.loss(0, x, q), reference.labels_gradient(z, x, q)),
        (reference.loss(z, x, 1) - reference.loss(z, x, 0), reference.pos_weight_gradient(z, x, q)),
    ):
        assert abs(function - derivative) <= mpf(10) ** -40 * (1 + abs(x)) * (1 + q)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@given(data=st.data())
def test_loss_is_affine_in_labels_and_pos_weight(dtype: str, data: st.DataObject) -> None:
    z, x, q = data.draw(elements(dtype, labels, st.floats(-1e3, 1e3), coefficients))
    q = np.where(q < 1e30, q, q.dtype.type(1))
    ones, zeros = np.ones_like(x), np.zeros_like(x)
    weighted = logitloss.weighted_cross_entropy_with_logits
    negative, positive = weighted(zeros, x, 1.0), weighted(ones, x, 1.0)
    for got, *parts in zip(weighted(z, x, q), z, q, negative, positive, strict=True):
        z_, q_, n, p = map(reference.exact, parts)
        expected = (1 - z_) * n + q_ * z_ * p
        # Both parts are rounded results themselves, which may be subnormal.
        bound = 8 * reference.ulp(expected, dtype) + (1 + q_) * reference.ulp(mpf(0), dtype)
        if expected < reference.largest(dtype):
            assert abs(reference.exact(got) - expected) <= bound


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@given(data=st.data())
def test_loss_is_convex_in_logits(dtype: str, data: st.DataObject) -> None:
    z, left, right, q = data.draw(
        elements(dtype, labels, st.floats(-1e3, 1e3), st.floats(-1e3, 1e3), st.floats(0, 1e6))
    )
    middle = (left + right) / 2
    (low, slope_low, _), (mid, slope_mid, _), (high, slope_high, _) = (
        everything(z, x, q) for x in (left, middle, right)
    )
    chord = low / 2 + high / 2
    assert (mid <= chord + 8 * np.spacing(np.maximum(low, high) + np.abs(middle))).all()
    sign = np.sign(right - left)
    rounding = 8 * np.spacing(1 + q)
    assert (sign * (slope_mid - slope_low) >= -rounding).all()
    assert (sign * (slope_high - slope_mid) >= -rounding).all()


@pytest.mark.parametrize("dtype", ["float32"])
@settings(max_examples=15)
@given(data=st.data())
def test_negatives_ignore_pos_weight(backend: Backend, dtype: str, data: st.DataObject) -> None:
    # Beyond 1e30 the kernel computes single elements in another way, within the same bounds.
    x, q = data.draw(elements(dtype, real_logits, coefficients.filter(lambda q: q < 1e30)))
    z = backend.array(np.zeros(x.shape), dtype)
    x, q = backend.array(x, dtype), backend.array(q, dtype)
    for function in (logitloss.value_and_grad, logitloss.grad_and_hess):
        for got, expected in zip(function(z, x, q), function(z, x), strict=True):
            backend.equals(got, backend.to_numpy(expected), dtype)


@pytest.mark.parametrize("dtype", ["float32"])
@settings(max_examples=15)
@given(data=st.data())
def test_classes_swap(backend: Backend, dtype: str, data: st.DataObject) -> None:
    (x,) = data.draw(elements(dtype, real_logits))
    ones, zeros = (backend.array(np.full(x.shape, v), dtype) for v in (1.0, 0.0))
    signs = (1, -1), (-1, 1)
    for function, (first, second) in zip(
        (logitloss.value_and_grad, logitloss.grad_and_hess), signs, strict=True
    ):
        positive = function(ones, backend.array(x, dtype))
        negative = function(zeros, backend.array(-x, dtype))
        for got, expected, sign in zip(positive, negative, (first, second), strict=True):
            backend.equals(got, sign * backend.to_numpy(expected), dtype)


@pytest.mark.parametrize("dtype", ["float32"])
@settings(max_examples=15)
@given(data=st.data())
def test_zero_weight_masks_anything(backend: Backend, dtype: str, data: st.DataObject) -> None:
    anything = st.floats() | st.sampled_from([math.nan, math.inf, -math.inf])
    z, x, q = data.draw(elements(dtype, anything, anything, anything))
    kept = np.array(data.draw(st.lists(st.booleans(), min_size=x.size, max_size=x.size)))
    z, x, q = (np.where(kept, a.dtype.type(0.5), a) for a in (z, x, q))
    zero = data.draw(st.sampled_from([0.0, -0.0]))
    weight = backend.array(np.where(kept, 1.0, zero), dtype)
    arrays = [backend.array(a, dtype) for a in (z, x, q)]
    half = [backend.array(np.full(x.shape, 0.5), dtype)] * 3
    for function in (logitloss.value_and_grad, logitloss.grad_and_hess):
        for got, one in zip(function(*arrays, weight=weight), function(*half), strict=True):
            backend.equals(got, np.where(kept, backend.to_numpy(one), 0), dtype)
    value = logitloss.weighted_cross_entropy_with_logits(*arrays, weight=weight, reduction="sum")
    if backend.flushes_subnormals or not kept.any():
        assert np.isfinite(float(backend.to_numpy(value)))
    mean, gradient = logitloss.value_and_grad(*arrays, weight=weight, reduction="weighted_mean")
    assert math.isnan(float(backend.to_numpy(mean))) == (not kept.any())
    assert (backend.to_numpy(gradient)[~kept] == 0).all()


@pytest.mark.parametrize("dtype", DTYPES)
@given(seed=st.integers(0, 2**32), size=st.integers(1, 1000), spread=st.sampled_from([0, 1, 3]))
def test_reductions_are_the_sum_of_parts(dtype: str, seed: int, size: int, spread: int) -> None:
    rng = np.random.default_rng(seed)
    z, x = rng.random(size).astype(dtype), rng.normal(scale=3, size=size).astype(dtype)
    w = (10.0 ** rng.uniform(-spread, spread, size)).astype(dtype)
    # Half precision is rounded after the reduction.
    wide = "float32" if dtype in ("float16", "bfloat16") else dtype
    losses, terms = logitloss.value_and_grad(
        z.astype(wide), x.astype(wide), 2.0, weight=w.astype(wide)
    )
    total, weights = (sum(map(reference.exact, values), mpf(0)) for values in (losses, w))
    for reduction, divisor in (("sum", mpf(1)), ("mean", mpf(size)), ("weighted_mean", weights)):
        value, gradient = logitloss.value_and_grad(z, x, 2.0, weight=w, reduction=reduction)
        true = [total / divisor]
        assert reference.distances([value], true, dtype)[0] <= {"longdouble": 9}.get(dtype, 3)
        true = [reference.exact(term) / divisor for term in terms[:50]]
        assert max(reference.distances(gradient[:50], true, dtype)) <= 3


# Memory layouts.


@st.composite
def layouts(
    draw: st.DrawFn, values: np.ndarray, to_write: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """The same values somewhere else in memory: (array, the memory that it is a view of)."""
    dtype = values.dtype
    if not to_write and draw(st.booleans()) and dtype.name != "bfloat16":
        dtype = dtype.newbyteorder()
    axes = draw(st.permutations(range(values.ndim)))
    steps = [draw(st.sampled_from([1, 1, -1, 2, -3])) for _ in axes]
    # An axis along which all values are equal may have a stride of zero.
    constant = [
        size > 1 and bool((values == values.take([0], axis)).all())
        for axis, size in enumerate(values.shape)
    ]
    repeated = [c and not to_write and draw(st.booleans()) for c in constant]
    sizes = [1 if repeated[a] else values.shape[a] * abs(steps[a]) for a in axes]
    offset = draw(st.sampled_from([0, 0, 1, dtype.itemsize]))
    memory = np.zeros(offset + math.prod(sizes) * dtype.itemsize, np.uint8)
    array = memory[offset:].view(dtype).reshape(sizes).transpose(np.argsort(axes))
    for axis, step in enumerate(steps):
        if not repeated[axis]:
            array = array[(slice(None),) * axis + (slice(None if step > 0 else -1, None, step),)]
            array = array[(slice(None),) * axis + (slice(values.shape[axis]),)]
    array[...] = values[(*(slice(0, 1) if r else slice(None) for r in repeated), ...)]
    return np.broadcast_to(array, values.shape) if any(repeated) else array, memory


@st.composite
def calls(draw: st.DrawFn) -> dict[str, Any]:
    """Contiguous arguments, with coefficients of any shape that broadcasts."""
    dtype = draw(st.sampled_from(DTYPES))
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=6))
    if draw(st.booleans()):
        shape = (*shape[:1], draw(st.sampled_from([31, 64, 257, 600])))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))

    def coefficient() -> Any:
        kind = draw(st.integers(0, 3))
        if kind == 0:
            return 1.5
        part = shape[draw(st.integers(0, len(shape))) :]
        part = tuple(size if draw(st.booleans()) else 1 for size in part)
        values = np.where(rng.random(part) < 0.2, 0, rng.uniform(0.1, 3, part))
        return np.asarray(values).astype(draw(st.sampled_from(["f4", "f8", "f2", "i4", "?", "g"])))

    label_dtype = draw(st.sampled_from([dtype, dtype, "?", "i1", "u1", "i2", "u4", "i8", "u8"]))
    z = np.asarray(rng.random(shape) if label_dtype == dtype else rng.random(shape) < 0.5)
    return {
        "labels": z.astype(label_dtype),
        "logits": np.asarray(rng.normal(scale=3, size=shape)).astype(dtype),
        "pos_weight": coefficient(),
        "weight": None if draw(st.booleans()) else coefficient(),
    }


@given(call=calls(), data=st.data())
def test_layout_changes_no_bit_and_no_input(call: dict[str, Any], data: st.DataObject) -> None:
    reduction = data.draw(st.sampled_from(["none", "sum", "mean", "weighted_mean"]))
    if call["logits"].dtype == np.longdouble:
        # Its sums are NumPy's own, in an order that follows the memory.
        reduction = "none"
    expected = logitloss.value_and_grad(**call, reduction=reduction)
    expected += logitloss.grad_and_hess(**call)
    memories, moved = {}, {}
    for name, value in call.items():
        if isinstance(value, np.ndarray):
            value, memory = data.draw(layouts(value))
            memories[name] = memory, memory.tobytes()
            value.setflags(write=False)
        moved[name] = value
    got = logitloss.value_and_grad(**moved, reduction=reduction)
    got += logitloss.grad_and_hess(**moved)
    assert same_bits(got, expected)
    alone = logitloss.weighted_cross_entropy_with_logits(**moved, reduction=reduction)
    assert same_bits([alone], expected[:1])

    # Into outputs of any layout, whose memory changes nowhere else.
    outs, places = [], []
    for result in expected[2:]:
        out, memory = data.draw(layouts(np.asarray(np.ones_like(result)), to_write=True))
        out[...] = 0
        outs.append(out)
        places.append(memory)
    logitloss.grad_and_hess(**moved, out=tuple(outs))
    assert same_bits(outs, expected[2:])
    for out, memory in zip(outs, places, strict=True):
        out[...] = 0
        assert out.dtype == np.longdouble or not memory.any()
    for memory, before in memories.values():
        assert memory.tobytes() == before


@given(call=calls(), data=st.data())
def test_a_part_of_a_call_gives_that_part_of_the_results(
    call: dict[str, Any], data: st.DataObject
) -> None:
    shape = call["logits"].shape
    index = data.draw(hnp.basic_indices(shape, allow_ellipsis=False))
    part = {
        name: np.broadcast_to(value, shape)[index] if isinstance(value, np.ndarray) else value
        for name, value in call.items()
    }
    whole = [np.asarray(result)[index] for result in everything_of(call)]
    assert same_bits(everything_of(part), whole)


def everything_of(call: dict[str, Any]) -> tuple[Any, ...]:
    return logitloss.value_and_grad(**call) + logitloss.grad_and_hess(**call)


@settings(max_examples=15)
@given(call=calls())
@example(call={"labels": np.float32([1, 0]), "logits": np.float32([0.5, -2]), "pos_weight": 2.0})
def test_no_backend_modifies_its_inputs(backend: Backend, call: dict[str, Any]) -> None:
    dtype = "float32"
    if call["logits"].dtype.name in backend.dtypes:
        dtype = call["logits"].dtype.name
    arrays = {}
    for name, value in call.items():
        if isinstance(value, np.ndarray):
            is_float = value.dtype.kind not in "biu"
            kind = dtype if is_float else value.dtype.name.replace("uint", "int")
            arrays[name] = backend.array(value.astype(np.float64) if is_float else value, kind)
    before = {name: backend.to_numpy(array).tobytes() for name, array in arrays.items()}
    for reduction in ("none", "mean", "weighted_mean"):
        for result in logitloss.value_and_grad(**({"pos_weight": 2} | arrays), reduction=reduction):
            backend.to_numpy(result)
    for name, array in arrays.items():
        assert backend.to_numpy(array).tobytes() == before[name]
