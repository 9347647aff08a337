"""What only NumPy arrays meet: memory shared with outputs, integer widths, unusual coefficients."""

from __future__ import annotations

import inspect
import itertools
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest

import logitloss
from logitloss import weighted_cross_entropy_with_logits as weighted

FUNCTIONS = (logitloss.value_and_grad, logitloss.grad_and_hess)

# Several of the kernel's blocks: within one, everything is read before anything is written.
SIZE = 2000


def values(shape: int | tuple[int, ...], dtype: str = "float64") -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    return rng.integers(0, 2, shape).astype(dtype), (3 * rng.normal(size=shape)).astype(dtype)


def assert_same(got, expected) -> None:
    for mine, theirs in zip(got, expected, strict=True):
        mine, theirs = np.asarray(mine), np.asarray(theirs)
        assert mine.dtype == theirs.dtype
        np.testing.assert_array_equal(mine, theirs, strict=True)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("integer", ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8"])
def test_labels_over_the_whole_range_of_an_integer(dtype: str, integer: str) -> None:
    """0 and 1 look the same in every integer type: only its limits tell signed from unsigned."""
    limits = np.iinfo(integer)
    labels = np.resize(np.array([limits.min, limits.max, limits.max // 3, 1], integer), 96)
    logits = np.linspace(-5, 5, 96).astype(dtype)
    for z in (labels, np.repeat(labels, 2)[::2]):
        for function in FUNCTIONS:
            assert_same(function(z, logits, 2.5), function(labels.astype(dtype), logits, 2.5))


@pytest.mark.parametrize("function", [weighted, *FUNCTIONS])
@pytest.mark.parametrize("position", range(4))
@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("shift", [0, 1, 300, -300])
def test_either_out_may_overlap_any_input(function, position: int, which: int, shift: int) -> None:
    """Exactly, so that a block is read before it is written, or shifted, so that it is copied."""
    memory = np.empty(SIZE + 600)
    view = memory[300 : 300 + SIZE]
    labels, logits = values(SIZE)
    # Labels that are computed singly, once the rest of their block has been written.
    labels[::7] = 5e-324
    inputs = [labels, logits, np.linspace(0.5, 2, SIZE), np.linspace(2, 0.5, SIZE)]
    expected = function(*inputs[:3], weight=inputs[3])
    view[...] = inputs[position]
    inputs[position] = view
    outs = [np.empty(SIZE), np.empty(SIZE)]
    outs[which] = memory[300 + shift : 300 + shift + SIZE]
    if function is weighted:
        expected, got = [expected], [weighted(*inputs[:3], weight=inputs[3], out=outs[which])]
    else:
        got = function(*inputs[:3], weight=inputs[3], out=outs)
    assert_same(got, expected)


@pytest.mark.parametrize("position", range(4))
def test_a_reduced_out_inside_an_input(position: int) -> None:
    labels, logits = values(SIZE)
    inputs = [labels, logits, np.linspace(0.5, 2, SIZE), np.linspace(2, 0.5, SIZE)]
    expected = logitloss.value_and_grad(*inputs[:3], weight=inputs[3], reduction="sum")
    outs = inputs[position][-1:].reshape(()), np.empty(SIZE)
    got = logitloss.value_and_grad(*inputs[:3], weight=inputs[3], reduction="sum", out=outs)
    assert_same(got, expected)


def test_the_same_address_is_not_the_same_view() -> None:
    """Out may begin where an input does and still have other strides, items or rows."""
    labels, logits = values((300, 300))
    expected = weighted(labels, logits, 2.0)
    memory = logits.copy()
    np.testing.assert_array_equal(weighted(labels, memory, 2.0, out=memory.T), expected)

    memory = np.empty(SIZE)
    narrow = memory.view("float32")[:SIZE]
    narrow[...] = np.linspace(-3, 3, SIZE)
    labels, _ = values(SIZE)
    expected = weighted(labels, narrow.copy(), 2.0)
    np.testing.assert_array_equal(weighted(labels, narrow, 2.0, out=memory), expected)

    labels, logits = values((SIZE, 3))
    memory = np.ones((SIZE, 3))
    column = memory[:, :1]
    column[:, 0] = np.linspace(0.5, 3, SIZE)
    expected = weighted(labels, logits, column.copy())
    np.testing.assert_array_equal(weighted(labels, logits, column, out=memory), expected)


def test_an_out_without_dimensions_is_returned_itself() -> None:
    out, other = np.empty(()), np.empty(())
    assert weighted(np.array(1.0), np.array(0.0), 1.0, out=out) is out
    assert out == np.log(2)
    got = logitloss.value_and_grad(np.array(1.0), np.array(0.0), out=(out, other))
    assert got[0] is out
    assert got[1] is other


@pytest.mark.parametrize("order", ["C", "F"])
def test_results_are_laid_out_like_the_logits(order: str) -> None:
    labels, logits = (np.asarray(array, order=order) for array in values((4, 5)))
    results = [weighted(labels, logits, [1.0] * 5)]
    for function in FUNCTIONS:
        results += function(labels, logits)
    for result in results:
        assert result.flags.c_contiguous is (order == "C")
        assert result.flags.f_contiguous is (order == "F")


def test_weights_are_rounded_before_they_are_added_up() -> None:
    """The divisor is the sum of the weights that multiply, not of those that were passed."""
    labels, logits = values((3, 2), "float16")
    rounded = np.float16(1 / 3)
    for weight, same in (
        (1 / 3, np.full((3, 2), rounded)),
        (np.full((3, 1), 1 / 3), np.full((3, 2), rounded)),
        (np.full(2, 1 / 3, "longdouble"), rounded),
    ):
        options = {"pos_weight": 2.0, "reduction": "weighted_mean"}
        got = logitloss.value_and_grad(labels, logits, weight=weight, **options)
        assert_same(got, logitloss.value_and_grad(labels, logits, weight=same, **options))
    labels, logits = np.zeros(2, "float32"), np.zeros(2, "float32")
    tiny = 1e-46
    assert np.isnan(weighted(labels, logits, 1.0, weight=tiny, reduction="weighted_mean"))
    tiny = np.array([tiny, tiny])
    assert np.isnan(weighted(labels, logits, 1.0, weight=tiny, reduction="weighted_mean"))


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_many_weights_are_added_up_in_float64(dtype: str) -> None:
    size = 200_000
    labels, logits = np.zeros(size, dtype), np.zeros(size, dtype)
    weight = np.ones(size, dtype)
    weight[0] = 2.0**15
    value = weighted(labels, logits, 1.0, weight=weight, reduction="weighted_mean")
    assert value == np.float64(np.log(2)).astype(dtype)
    weight = np.ones((size // 2, 1), dtype)
    value, gradient = logitloss.value_and_grad(
        labels.reshape(-1, 2), logits.reshape(-1, 2), weight=weight, reduction="weighted_mean"
    )
    assert value == np.float64(np.log(2)).astype(dtype)
    np.testing.assert_array_equal(gradient, np.full(gradient.shape, 0.5 / size).astype(dtype))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_sums_of_weights_are_exact(dtype: str) -> None:
    """No error but that of rounding them and the quotient: all of the loss is in one element."""
    rng = np.random.default_rng(0)
    for size in (2, 100, 1000, 10_000, 30_000, 50_000, 100_001):
        weight = (10.0 ** rng.uniform(-9, 0, size)).astype(dtype)
        labels, logits = np.ones(size, dtype), np.zeros(size, dtype)
        labels[0], logits[0] = 0, 64
        true = 64 * Fraction(float(weight[0])) / sum(map(Fraction, weight.tolist()))
        got = weighted(labels, logits, 0.0, weight=weight, reduction="weighted_mean")
        strided, swapped = np.repeat(weight, 3)[::3], weight.astype(weight.dtype.newbyteorder())
        for layout in (strided, swapped):
            again = weighted(labels, logits, 0.0, weight=layout, reduction="weighted_mean")
            assert again == got
        for shape in ((size // 2, 2), (2, size // 2), (size // 2, 1, 2)):
            if size % 2 == 0:
                arrays = [np.asfortranarray(a.reshape(shape)) for a in (labels, logits, weight)]
                again = weighted(*arrays[:2], 0.0, weight=arrays[2], reduction="weighted_mean")
                assert abs(again - got) <= np.spacing(got)
        bound = 0.51 if dtype == "float32" else 1
        assert abs(Fraction(float(got)) - true) <= Fraction(bound * float(np.spacing(got)))


@pytest.mark.parametrize("order", ["C", "F"])
def test_sums_of_broadcast_weights_are_those_of_the_whole(order: str) -> None:
    labels, logits = values((4, 6, 5))
    for shape in ((), (5,), (6, 1), (4, 1, 1), (4, 1, 5), (4, 6, 1), (1, 6, 5), (4, 6, 5)):
        weight = np.asarray(np.random.default_rng(0).integers(0, 9, shape), float, order)
        whole = np.broadcast_to(weight, labels.shape)
        expected = np.sum(weighted(labels, logits, 2.0) * whole) / np.sum(whole)
        got = weighted(labels, logits, 2.0, weight=weight, reduction="weighted_mean")
        np.testing.assert_array_almost_equal_nulp(got, expected, 20)


def test_an_infinite_sum_is_infinite() -> None:
    """Its rounding errors are NaN by then, and must not be added to it."""
    labels, logits = np.zeros(100), np.full(100, np.inf)
    for reduction in ("sum", "mean", "weighted_mean"):
        assert weighted(labels, logits, 1.0, reduction=reduction) == np.inf
    assert weighted(labels, np.full(100, 1e308), 1.0, reduction="sum") == np.inf


def test_sums_of_half_precision_are_of_unrounded_losses() -> None:
    labels, logits = values(150_000, "float16")
    losses = weighted(labels.astype("float32"), logits.astype("float32"), 2.0)
    exact = np.sum(losses, dtype=np.float64)
    got = weighted(labels, logits, 2.0, reduction="mean")
    assert got == np.float64(exact / 150_000).astype("float16")


@pytest.mark.parametrize("terms", list(itertools.permutations([2.0**60, 1.0, -(2.0**60)])))
def test_terms_that_cancel_leave_the_smallest(terms: tuple[float, ...]) -> None:
    """Rounding errors of every addition count: within a lane, between lanes, between slices."""
    for size, places in ((600, [0, 64, 128]), (600, [0, 1, 2]), (100_000, [0, 50_000, 99_999])):
        logits, weight = np.zeros(size), np.zeros(size)
        logits[places] = 1000.0
        weight[places] = terms
        assert weighted(np.zeros(size), logits, 1.0, weight=weight, reduction="sum") == 1000.0


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 3), (2, 0, 4)])
def test_empty_with_every_shape_of_coefficient(dtype: str, shape: tuple[int, ...]) -> None:
    labels, logits = np.empty(shape, dtype), np.empty(shape, dtype)
    shapes = {shape, shape[-1:], (1,) * len(shape), (), (*shape[:-1], 1), (1, *shape[1:])}
    for coefficient_shape in shapes:
        coefficient = np.ones(coefficient_shape)
        for function in FUNCTIONS:
            for result in function(labels, logits, coefficient, weight=coefficient):
                assert result.shape == shape
        total = weighted(labels, logits, coefficient, weight=coefficient, reduction="sum")
        assert total == 0
        for reduction in ("mean", "weighted_mean"):
            value, gradient = logitloss.value_and_grad(
                labels, logits, coefficient, weight=coefficient, reduction=reduction
            )
            assert np.isnan(value)
            assert gradient.shape == shape


@pytest.mark.parametrize("dtype", ["?", "i8", "u2", ">f4", "f2", "f8", "g"])
@pytest.mark.parametrize("shape", [(5, 1), (1, 7), (3, 1, 1), (3, 5, 7), (3, 1, 7)])
def test_coefficients_of_every_dtype(dtype: str, shape: tuple[int, ...]) -> None:
    labels, logits = values((3, 5, 7), "float32")
    coefficient = np.resize(np.arange(5), shape).astype(dtype)
    full = np.array(np.broadcast_to(coefficient, logits.shape)).astype("float32")
    for function in FUNCTIONS:
        assert_same(
            function(labels, logits, coefficient, weight=coefficient),
            function(labels, logits, full, weight=full),
        )


@pytest.mark.parametrize("classes", [300, 700, 70_000])
def test_a_period_read_in_place_ends_beside_nothing(classes: int) -> None:
    """Per-class weights of several blocks: the block that wraps around reads the next period."""
    labels, logits = values((3, classes))
    pos_weight, weight = np.linspace(0.5, 2, classes), np.linspace(3, 1, classes)
    for function in FUNCTIONS:
        got = function(labels, logits, pos_weight, weight=weight)
        for row in range(3):
            expected = function(labels[row], logits[row], pos_weight, weight=weight)
            assert_same([result[row] for result in got], expected)


@pytest.mark.parametrize("columns", [255, 70_000])
def test_a_repeated_weight_fills_no_more_than_its_block(columns: int) -> None:
    labels, logits = values((3, columns))
    weight = np.array([[0.5], [2.0], [3.0]])
    for function in FUNCTIONS:
        got = function(labels, logits, 1.5, weight=weight)
        full = np.array(np.broadcast_to(weight, logits.shape))
        assert_same(got, function(labels, logits, 1.5, weight=full))


# Maps two pages, cuts the file behind them to one, so that touching the second is fatal, and lays
# the arrays against the end of the first.
EDGE = """
import mmap, os, tempfile
import numpy as np, logitloss
page = mmap.PAGESIZE
def at_the_edge(values):
    file = tempfile.TemporaryFile()
    file.truncate(2 * page)
    memory = mmap.mmap(file.fileno(), 2 * page)
    files.append((file, memory))
    array = np.frombuffer(memory, values.dtype, values.size, page - values.nbytes)
    array[...] = values
    os.ftruncate(file.fileno(), page)
    return array
files = []
for dtype in ("float32", "float64"):
    for size in (1, 31, 33, 257, 500):
        labels, logits, weight = (
            at_the_edge(np.linspace(first, 1, size).astype(dtype)) for first in (0, -5, 0.5)
        )
        logitloss.value_and_grad(labels, logits, 2.0)
        logitloss.grad_and_hess(labels, logits, weight, weight=weight)
        outs = at_the_edge(labels.copy()), at_the_edge(labels.copy())
        logitloss.value_and_grad(labels, logits, weight, out=outs)
        logitloss.value_and_grad(np.tile(labels, (2, 1)), np.tile(logits, (2, 1)), weight)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="a mapped file cannot be truncated there")
def test_nothing_is_read_or_written_past_the_end() -> None:
    result = subprocess.run([sys.executable, "-c", EDGE], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_half_precision_overflows_silently() -> None:
    """The suite turns warnings into errors, of which rounding to float16 would be one."""
    labels, logits = np.ones(3, "float16"), np.full(3, -10, "float16")
    loss, gradient = logitloss.value_and_grad(labels, logits, 1e6, weight=2)
    again, _ = logitloss.grad_and_hess(labels, logits, 1e6, weight=2)
    assert (loss == np.inf).all()
    assert (gradient == -np.inf).all()
    assert (again == -np.inf).all()


@pytest.mark.parametrize("pos_weight", [np.inf, -np.inf])
def test_zero_weight_masks_nan_beside_infinite_pos_weight(pos_weight: float) -> None:
    for function in FUNCTIONS:
        for result in function(
            [np.nan, 1.0, 0.0], [1.0, np.nan, np.nan], pos_weight, weight=[0.0, 0.0, -0.0]
        ):
            np.testing.assert_array_equal(result, 0)


def test_weighted_mean_whose_gradient_overwrites_the_weights() -> None:
    labels, logits = values(SIZE)
    weight = np.linspace(0.5, 2, SIZE)
    options = {"pos_weight": 2.0, "reduction": "weighted_mean"}
    expected = logitloss.value_and_grad(labels, logits, weight=weight, **options)
    got = logitloss.value_and_grad(
        labels, logits, weight=weight, out=(np.empty(()), weight), **options
    )
    assert_same(got, expected)


def test_sum_of_weights_beyond_float32() -> None:
    labels, logits = np.array([1, 0] * 50, "float32"), np.zeros(100, "float32")
    value, gradient = logitloss.value_and_grad(
        labels, logits, weight=np.full(100, 1e38, "float32"), reduction="weighted_mean"
    )
    np.testing.assert_array_max_ulp(value, np.float32(np.log(2)), 1)
    np.testing.assert_array_max_ulp(gradient, (0.5 - labels) / np.float32(100), 1)


@pytest.mark.parametrize("divisor", [2.0**-1030, 2.0**-130, 2.0**1010, np.inf])
def test_weighted_mean_at_the_limits_of_the_weights(divisor: float) -> None:
    """The reciprocal of the sum of the weights may leave the number range; a quotient need not."""
    labels, logits = values(4)
    weight = np.full(4, divisor / 4)
    _, expected = logitloss.value_and_grad(labels, logits, 2.0, weight=weight)
    value, gradient = logitloss.value_and_grad(
        labels, logits, 2.0, weight=weight, reduction="weighted_mean"
    )
    with np.errstate(invalid="ignore"):
        np.testing.assert_array_equal(gradient, expected / divisor)
    assert np.isnan(value) if np.isinf(divisor) else 0 < value < 10


@pytest.mark.parametrize(("dtype", "logit"), [("float32", 104.8), ("float64", 860.0)])
@pytest.mark.parametrize("sign", [1, -1])
def test_negative_coefficients_give_negative_results(dtype: str, logit: float, sign: int) -> None:
    """The tails that a coefficient lifts out of the subnormals, whatever its sign."""
    logits = np.array([sign * logit], dtype)
    for label, options in ((0, {"weight": 1e30}), (1, {"weight": 1e30}), (1, {"pos_weight": 1e30})):
        labels = np.array([label], dtype)
        negated = {name: -value for name, value in options.items()}
        for function in FUNCTIONS:
            expected = function(labels, logits, **options)
            assert_same(function(labels, logits, **negated), [-result for result in expected])


def test_coefficients_whose_sum_overflows() -> None:
    labels, weight = np.float32([0.5, 0.5]), np.float32(3e38)
    loss = weighted(labels, np.float32([200, -np.inf]), 2.0, weight=weight)
    np.testing.assert_array_equal(loss, np.inf)
    _, hessian = logitloss.grad_and_hess(labels, np.float32([0, 0]), 2.0, weight=weight)
    np.testing.assert_array_equal(hessian, np.float32(1.5 * 0.25 * float(weight)))


def test_weight_lifts_a_product_out_of_the_subnormals() -> None:
    labels, logits, pos_weight, weight = np.float32([[1e-12], [-100], [1e-30], [1e30]])
    expected = np.float64(weight) * (
        np.float64(pos_weight) * np.float64(labels) * 100 + np.exp(np.float64(-100))
    )
    got = weighted(labels, logits, pos_weight, weight=weight)
    np.testing.assert_array_max_ulp(got, expected.astype(np.float32), 2)


@pytest.mark.parametrize(("dtype", "label"), [("float32", 1e-45), ("float64", 5e-324)])
def test_unit_pos_weight_array_with_subnormal_labels(dtype: str, label: float) -> None:
    logits = np.linspace(-30, 30, 61).astype(dtype)
    labels = np.full(61, label, dtype)
    for function in FUNCTIONS:
        assert_same(function(labels, logits, np.ones(61, dtype)), function(labels, logits, 1.0))


@pytest.mark.parametrize(("dtype", "bits"), [("float32", "u4"), ("float64", "u8")])
def test_zero_weight_masks_every_nan(dtype: str, bits: str) -> None:
    """NaN has many bit patterns, and the kernel masks bits."""
    poison = np.full(2, -1).astype(bits).view(dtype)
    assert np.isnan(poison).all()
    half, none = np.full(2, 0.5, dtype), np.zeros(2, dtype)
    for arguments in ((poison, half, half), (half, poison, half), (half, half, poison)):
        for function in FUNCTIONS:
            assert_same(function(*arguments, weight=none), [none, none])


@pytest.mark.parametrize("weight", [0.5, 1.0, 2.0, 4.0])
def test_one_weight_for_all(weight: float) -> None:
    for dtype in ("float32", "float64"):
        labels, logits = values(50, dtype)
        for function in FUNCTIONS:
            expected = [weight * result for result in function(labels, logits, 3.0)]
            assert_same(function(labels, logits, 3.0, weight=weight), expected)


@pytest.mark.parametrize("pos_weight", [0.0, -0.0, np.inf, -np.inf, np.nan])
def test_one_pos_weight_for_all_beyond_the_numbers(pos_weight: float) -> None:
    for dtype in ("float32", "float64"):
        labels, logits = np.resize([0.0, 1.0, 0.5], 50), np.linspace(-3, 3, 50)
        labels, logits = labels.astype(dtype), logits.astype(dtype)
        for function in FUNCTIONS:
            expected = function(labels, logits, np.full(50, pos_weight))
            assert_same(function(labels, logits, pos_weight), expected)


def test_zero_weights_beside_nan_weights() -> None:
    labels, logits = values(3, "float32")
    weight = np.array([1, np.nan, 0])
    _, gradient = logitloss.value_and_grad(labels, logits, weight=weight, reduction="weighted_mean")
    np.testing.assert_array_equal(gradient, [np.nan, np.nan, 0])


@pytest.mark.parametrize("shapes", [((3, 2), (2, 3)), ((4,), (5,)), ((5,), (4,)), ((0,), (1,))])
def test_shapes_are_compared(shapes: tuple[tuple[int, ...], ...]) -> None:
    with pytest.raises(ValueError, match="must have the same shape"):
        weighted(np.zeros(shapes[0]), np.zeros(shapes[1]), 2.0)


REGULAR = {
    "plain": {},
    "name": {"name": "n"},
    "integer labels": {"labels": np.resize([0, 1], (6, 8))},
    "another float": {"labels": np.ones((6, 8))},
    "Fortran": {"logits": np.asfortranarray(np.ones((6, 8), "f4"))},
    "reversed": {"logits": np.ones((6, 8), "f4")[::-1]},
    "every second": {"logits": np.ones((6, 16), "f4")[:, ::2]},
    "float64 pos_weight": {"pos_weight": np.ones(8)},
    "bool weight": {"weight": np.ones((6, 8), bool)},
    "row weight": {"weight": np.ones((6, 1))},
    "mean": {"reduction": "mean"},
    "masked mean": {"weight": np.ones((6, 8), bool), "reduction": "weighted_mean"},
    "out": {"out": np.empty((6, 8), "f4")},
    "strided out": {"out": np.empty((6, 16), "f4")[:, ::2]},
    "half": {"labels": np.ones((6, 8), "f2"), "logits": np.ones((6, 8), "f2")},
    "byte-swapped": {"logits": np.ones((6, 8), ">f4")},
}


@pytest.mark.parametrize("case", REGULAR)
def test_a_regular_call_goes_through_one_function(case: str) -> None:
    """What a call costs beside its arithmetic is the Python that it goes through."""
    ones = np.ones((6, 8), "f4")
    arguments = {"labels": ones, "logits": ones, "pos_weight": 2.0} | REGULAR[case]
    # Not what the suite puts around it to see whether inputs change.
    function = inspect.unwrap(weighted)
    entered = []
    sys.setprofile(lambda frame, event, _: event == "call" and entered.append(frame.f_code.co_name))
    try:
        function(**arguments)
    finally:
        sys.setprofile(None)
    assert entered == ["weighted_cross_entropy_with_logits"]
