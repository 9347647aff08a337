"""Every layout, dtype and mixture of NumPy arrays: the bits of plain arrays, and no copy."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import reference
from backends import DTYPES

import logitloss
from logitloss import weighted_cross_entropy_with_logits as weighted

FUNCTIONS: dict[str, Callable[..., Any]] = {
    "loss": lambda *args, **options: (weighted(*args, **options),),
    "value_and_grad": logitloss.value_and_grad,
    "grad_and_hess": logitloss.grad_and_hess,
}
for _reduction in ("sum", "mean", "weighted_mean"):
    FUNCTIONS[_reduction] = lambda *args, r=_reduction, **options: logitloss.value_and_grad(
        *args, reduction=r, **options
    )

# Rows that are shorter than a vector of the kernel, blocks that begin within a row, and more
# elements than a block has.
SHAPES = [(4, 5, 6), (3, 7, 41), (2, 2, 150), (300, 3)]


def unaligned(a: np.ndarray) -> np.ndarray:
    memory = np.frombuffer(b"x" + a.tobytes(), np.uint8)
    return memory[1:].view(a.dtype).reshape(a.shape)


LAYOUTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "C": lambda a: a,
    "Fortran": np.asfortranarray,
    "axes in another order": lambda a: np.ascontiguousarray(a.swapaxes(0, 1)).swapaxes(0, 1),
    "reversed": lambda a: np.ascontiguousarray(a[::-1])[::-1],
    "reversed rows": lambda a: np.ascontiguousarray(a[..., ::-1])[..., ::-1],
    "all reversed": lambda a: np.flip(np.asfortranarray(np.flip(a))),
    "every second column": lambda a: np.repeat(a, 2, axis=-1)[..., ::2],
    "every third row": lambda a: np.repeat(a, 3, axis=0)[::3],
    "columns of a wider array": lambda a: np.concatenate([a, a], axis=-1)[..., : a.shape[-1]],
    "rows cut from all sides": lambda a: np.pad(a, 1)[(slice(1, -1),) * a.ndim],
    "byte-swapped": lambda a: a.astype(a.dtype.newbyteorder()),
    "unaligned": unaligned,
    "field of a record": lambda a: np.rec.fromarrays([a, a.astype("i1")]).f0.view(np.ndarray),
}


def values(shape: tuple[int, ...], dtype: str = "float64") -> tuple[np.ndarray, ...]:
    """Labels, logits, pos_weight and weight that every dtype of these tests holds."""
    rng = np.random.default_rng(3)
    labels, weight = rng.integers(0, 2, shape), rng.integers(0, 3, shape)
    logits, pos_weight = rng.integers(-90, 90, shape) / 8, rng.integers(1, 9, shape) / 4
    return tuple(a.astype(dtype) for a in (labels, logits, pos_weight, weight))


def assert_same(got, expected) -> None:
    for mine, theirs in zip(got, expected, strict=True):
        mine, theirs = np.asarray(mine), np.asarray(theirs)
        assert mine.dtype == theirs.dtype
        if mine.dtype == "bfloat16":
            # In which NumPy does not know NaN when it sees it.
            mine, theirs = mine.astype("f4"), theirs.astype("f4")
        np.testing.assert_array_equal(mine, theirs, strict=True)


@pytest.fixture
def no_formula(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no call of NumPy arrays reach the formula, which gives nearly the same."""

    def refuse(call: object) -> None:
        raise AssertionError("not computed by the kernel")

    monkeypatch.setattr("logitloss._backends.generic.compute", refuse)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
@pytest.mark.parametrize("position", range(4))
def test_one_argument_in_every_layout(
    layout: str, dtype: str, position: int, no_formula: None
) -> None:
    if layout == "byte-swapped" and dtype == "bfloat16":
        pytest.skip("ml_dtypes has no such arrays")
    for shape in SHAPES:
        arguments = list(values(shape, dtype))
        expected = {
            name: function(*arguments[:3], weight=arguments[3])
            for name, function in FUNCTIONS.items()
        }
        arguments[position] = LAYOUTS[layout](arguments[position])
        for name, function in FUNCTIONS.items():
            assert_same(function(*arguments[:3], weight=arguments[3]), expected[name])


@pytest.mark.parametrize("layouts", list(itertools.combinations(LAYOUTS, 2)))
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_two_layouts_beside_each_other(
    layouts: tuple[str, str], dtype: str, no_formula: None
) -> None:
    labels, logits, pos_weight, weight = values((3, 7, 41), dtype)
    first, second = (LAYOUTS[layout] for layout in layouts)
    mixed = first(labels), second(logits), first(pos_weight), second(weight)
    for function in FUNCTIONS.values():
        expected = function(labels, logits, pos_weight, weight=weight)
        assert_same(function(*mixed[:3], weight=mixed[3]), expected)


FLOATS = [*DTYPES["torch"]]
REALS = [*FLOATS, "?", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", ">f4", ">i4", "<f8"]


@pytest.mark.parametrize("kinds", list(itertools.product(REALS, [*FLOATS, "i8", ">f4"])))
def test_labels_and_logits_of_every_two_dtypes(kinds: tuple[str, str], no_formula: None) -> None:
    """As if both had been converted to the dtype that they promote to, which holds them."""
    labels, logits, _, _ = values((7, 41))
    z, x = labels.astype(kinds[0]), np.trunc(logits).astype(kinds[1])
    floating = [np.dtype(kind) for kind in kinds if kind in (*FLOATS, ">f4", "<f8")]
    if {str(dtype) for dtype in floating} == {"float16", "bfloat16"}:
        with pytest.raises(TypeError, match="must have floating dtypes with a common one"):
            weighted(z, x, 2.5)
        return
    if kinds[1] == "i8":
        floating.append(np.dtype("f8"))
    dtype = np.result_type(*floating).newbyteorder("=")
    for function in FUNCTIONS.values():
        assert_same(function(z, x, 2.5), function(z.astype(dtype), x.astype(dtype), 2.5))


@pytest.mark.parametrize("kind", [*REALS, "g", ">f8"])
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", [(7, 41), (41,), (7, 1), (1, 41), (1, 1), ()])
def test_coefficients_are_rounded_to_the_result(
    kind: str, dtype: str, shape: tuple[int, ...], no_formula: None
) -> None:
    labels, logits, _, _ = values((7, 41), dtype)
    coefficient = np.linspace(0, 1.9, int(np.prod(shape))).reshape(shape).astype(kind)
    rounded = np.array(np.broadcast_to(coefficient, (7, 41))).astype(dtype)
    for function in FUNCTIONS.values():
        expected = function(labels, logits, rounded, weight=rounded)
        assert_same(function(labels, logits, coefficient, weight=coefficient), expected)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_coefficient_is_rounded_once(dtype: str) -> None:
    """A float64 that is next to a tie of the half precision would be one after float32."""
    bits = 11 if dtype == "float16" else 8
    tie = 1 + 2.0**-bits
    above, below = np.nextafter(tie, 2), np.nextafter(tie, 0)
    labels, logits = np.ones(2, dtype), np.zeros(2, dtype)
    pos_weight = np.array([above, below])
    expected = weighted(labels, logits, np.array([1 + 2.0 ** (1 - bits), 1]).astype(dtype))
    assert_same([weighted(labels, logits, pos_weight)], [expected])
    for number, one in zip(pos_weight.tolist(), expected, strict=True):
        assert weighted(labels, logits, number)[0] == one


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_every_half_is_read_as_it_is(dtype: str) -> None:
    """As labels beside float32 logits that leave them as they are."""
    patterns = np.arange(2**16, dtype=np.uint16).view(dtype)
    zeros, infinite = np.zeros(2**16, np.float32), np.full(2**16, -np.inf, np.float32)
    wide = patterns.astype(np.float32)
    with np.errstate(all="ignore"):
        gradient, _ = logitloss.grad_and_hess(patterns, infinite, 1.0)
        np.testing.assert_array_equal(gradient, np.where(wide == 0, 0, -wide))
        assert_same(
            [weighted(patterns, zeros, 3.0)], [weighted(patterns.astype(np.float32), zeros, 3.0)]
        )


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("strided", [False, True])
def test_every_result_is_rounded_to_nearest_even(dtype: str, strided: bool) -> None:
    """What float32 gives for the same numbers, of any exponent and any last bits, rounded once."""
    kind = np.dtype(dtype)
    rng = np.random.default_rng(0)
    size = 100_003
    logits = (rng.normal(size=size) * 10.0 ** rng.uniform(-3, 2, size)).astype(kind)
    labels = rng.choice([0, 0.25, 0.75, 1], size).astype(kind)
    weight = (10.0 ** rng.uniform(-7, 4.8, size)).astype(kind)
    wide = [a.astype(np.float32) for a in (labels, logits, weight)]
    for function in (logitloss.value_and_grad, logitloss.grad_and_hess):
        expected = function(*wide[:2], 2.5, weight=wide[2])
        outs = [np.empty((size, 2), kind)[:, 0] if strided else np.empty(size, kind) for _ in "ab"]
        function(labels, logits, 2.5, weight=weight, out=tuple(outs))
        with np.errstate(all="ignore"):
            assert_same(outs, [result.astype(kind) for result in expected])


@pytest.mark.parametrize("kind", ["labels", "weight"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_any_byte_but_zero_is_true(kind: str, dtype: str) -> None:
    memory = np.arange(256, dtype=np.uint8).view(bool)
    labels, logits = np.zeros(256, dtype), np.linspace(-5, 5, 256).astype(dtype)
    for flags in (memory, np.repeat(memory, 2)[::2], memory[100:101]):
        arguments = {"labels": labels[: flags.size], "weight": None, kind: flags}
        truth = arguments | {kind: (flags.view(np.uint8) != 0).astype(dtype)}
        for function in FUNCTIONS.values():
            got = function(logits=logits[: flags.size], pos_weight=2.5, **arguments)
            assert_same(got, function(logits=logits[: flags.size], pos_weight=2.5, **truth))


@pytest.mark.parametrize("shape", [(7,), (1, 7), (5, 1), (5, 7), (3, 1, 7), (3, 5, 1), (3, 1, 1)])
@pytest.mark.parametrize("layout", ["C", "Fortran", "axes in another order", "all reversed"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_way_to_broadcast(shape: tuple[int, ...], layout: str, dtype: str) -> None:
    labels, logits, _, _ = (LAYOUTS[layout](a) for a in values((3, 5, 7), dtype))
    coefficient = np.random.default_rng(1).integers(0, 9, shape).astype(dtype)
    full = np.array(np.broadcast_to(coefficient, (3, 5, 7)))
    for name, function in FUNCTIONS.items():
        got = function(labels, logits, coefficient, weight=coefficient)
        expected = function(labels, logits, full, weight=full)
        if name == "weighted_mean":
            # The weights are whole numbers, so that their sum is exact in either way.
            assert got[0] == expected[0]
        assert_same(got, expected)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 15, 16, 17, 31, 64, 255, 256, 257, 300, 1000])
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_rows_and_columns_of_every_length(size: int, dtype: str) -> None:
    """A weight for each row and for each column, repeated within blocks and across them."""
    rows = 3000 // size + 2
    labels, logits, _, _ = values((rows, size), dtype)
    by_row = np.random.default_rng(1).integers(0, 9, (rows, 1)).astype("i2")
    by_column = np.random.default_rng(2).integers(1, 9, size) / 4
    for function in FUNCTIONS.values():
        got = function(labels, logits, by_column, weight=by_row)
        pos_weight, weight = np.broadcast_arrays(by_column, by_row)
        pos_weight, weight = pos_weight.astype(dtype), weight.astype(dtype)
        assert_same(got, function(labels, logits, pos_weight, weight=weight))


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "byte-swapped"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_results_in_every_layout(layout: str, dtype: str, no_formula: None) -> None:
    for shape in SHAPES:
        arguments = values(shape, dtype)
        for name in ("value_and_grad", "grad_and_hess", "weighted_mean"):
            expected = FUNCTIONS[name](*arguments[:3], weight=arguments[3])
            outs = [
                LAYOUTS[layout](np.full(e.shape, 7, dtype)) if e.ndim else np.empty((), dtype)
                for e in expected
            ]
            outs = [out if out.flags.writeable else out.copy() for out in outs]
            got = FUNCTIONS[name](*arguments[:3], weight=arguments[3], out=outs)
            assert [a is b for a, b in zip(got, outs, strict=True)] == [True, True]
            assert_same(got, expected)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_nothing_between_the_elements_of_a_result_is_written(dtype: str) -> None:
    labels, logits, _, _ = values((20, 30), dtype)
    memory = np.full((45, 100), 7, dtype)
    outs = memory[1:41:2, 2:62:2], memory[2:42:2, 92:2:-3]
    expected = logitloss.value_and_grad(labels, logits, 2.5)
    assert_same(logitloss.value_and_grad(labels, logits, 2.5, out=outs), expected)
    for out in outs:
        out[...] = 7
    assert (memory == 7).all()


@pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 3), (2, 0, 4), (), (1,), (1, 1, 1)])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_sizes_at_the_limits(shape: tuple[int, ...], layout: str) -> None:
    if not shape and layout not in ("C", "byte-swapped"):
        pytest.skip("needs an axis")
    if len(shape) < 2 and layout == "axes in another order":
        pytest.skip("needs two axes")
    arguments = values(shape, "float32")
    expected = {n: f(*arguments[:3], weight=arguments[3]) for n, f in FUNCTIONS.items()}
    arguments = [LAYOUTS[layout](a) for a in arguments]
    for name, function in FUNCTIONS.items():
        assert_same(function(*arguments[:3], weight=arguments[3]), expected[name])


def test_many_axes() -> None:
    shape = (2, 1) * 8
    arguments = values(shape, "float32")
    expected = logitloss.grad_and_hess(*arguments[:3], weight=arguments[3])
    order = np.random.default_rng(0).permutation(len(shape))
    back = np.argsort(order)
    moved = [np.ascontiguousarray(a.transpose(order)).transpose(back) for a in arguments[:2]]
    got = logitloss.grad_and_hess(*moved, arguments[2], weight=arguments[3])
    assert_same(got, expected)


def test_against_exact_arithmetic() -> None:
    """A mixture of everything, at 50 digits: float32 logits, the rest of other dtypes."""
    labels, logits, pos_weight, weight = values((9, 11), "float32")
    z = np.asfortranarray(labels).astype("?")
    x = np.repeat(logits, 2, axis=1)[:, ::2]
    q = pos_weight[0].astype(">f8")
    w = weight[:, :1].astype("u2")
    full = [np.array(np.broadcast_to(a, (9, 11)), "float32").ravel() for a in (z, x, q, w)]
    loss, gradient = logitloss.value_and_grad(z, x, q, weight=w)
    for got, form, scale in (
        (loss, reference.loss, reference.loss),
        (gradient, reference.gradient, reference.gradient_scale),
    ):
        true, scales = (
            [float(v) * t for v, t in zip(full[3], reference.at(f, *full[:3]), strict=True)]
            for f in (form, scale)
        )
        assert max(reference.distances(got.ravel(), true, "float32", scales)) <= 3


# Operands and results in one piece of memory. The sizes are those of less than a block, since
# what is copied does not depend on them.
SIZE = 24


OPERANDS = [
    *[("labels", kind) for kind in ("?", "i1", "i2", "i4", "i8", "own")],
    *[("logits", kind) for kind in ("own", "f2")],
    *[("pos_weight", kind) for kind in ("i1", "f2", "f4", "f8", "i8")],
    *[("weight", kind) for kind in ("?", "i2", "f4", "f8", "u8")],
]


@pytest.mark.parametrize(("name", "kind"), OPERANDS)
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("which", [0, 1])
def test_every_operand_overlaps_every_result_at_every_offset(
    name: str, kind: str, dtype: str, which: int
) -> None:
    """A result in the memory of an operand, of any item size, is what copies would give."""
    kind = dtype if kind == "own" else kind
    labels, logits, pos_weight, weight = values((SIZE,), dtype)
    arguments = dict(labels=labels, logits=logits, pos_weight=pos_weight, weight=weight)
    if name == "logits" and kind != dtype:
        # Narrower logits beside labels of the dtype of the result.
        arguments["logits"] = logits.astype(kind)
    operand = arguments[name].astype(kind)
    arguments[name] = operand
    expected = {
        "value_and_grad": logitloss.value_and_grad(**arguments),
        "weighted_mean": logitloss.value_and_grad(**arguments, reduction="weighted_mean"),
    }
    nbytes = SIZE * np.dtype(dtype).itemsize
    room = nbytes + 8
    memory = np.zeros(2 * room + operand.nbytes, np.uint8)
    place = memory[room : room + operand.nbytes].view(kind)
    other = [np.empty(SIZE, dtype), np.empty(SIZE, dtype)]
    for function, results in expected.items():
        if which == 0 and function == "weighted_mean":
            continue
        for offset in range(4, room + operand.nbytes + 4):
            place[...] = operand
            arguments[name] = place
            outs = list(other)
            if function == "weighted_mean":
                outs[0] = np.empty((), dtype)
            outs[which] = memory[offset : offset + nbytes].view(dtype)
            reduction = "none" if function == "value_and_grad" else function
            got = logitloss.value_and_grad(**arguments, reduction=reduction, out=tuple(outs))
            assert_same(got, results)


def test_a_result_behind_integer_labels() -> None:
    """Larger than the results that are written over them, seen from any element on."""
    labels, logits = np.resize([0, 1, 1], 1000), np.linspace(-5, 5, 1000).astype("f4")
    expected = weighted(labels.copy(), logits, 3.0)
    for start in (0, 1, 2, 500, 999, 1000):
        memory = labels.copy()
        out = memory.view("f4")[start : start + 1000]
        np.testing.assert_array_equal(weighted(memory, logits, 3.0, out=out), expected)


def test_interleaved_memory_is_not_copied() -> None:
    """It spans the same bytes, and shares none."""
    size = 400_000
    memory = np.zeros((size, 2), "float32")
    labels, logits, _, _ = values((size,), "float32")
    memory[:, 0] = logits
    expected = weighted(labels, logits, 2.5)
    out = memory[:, 1]
    weighted(labels, memory[:, 0], 2.5, out=out)
    np.testing.assert_array_equal(out, expected)
    np.testing.assert_array_equal(memory[:, 0], logits)


@pytest.mark.parametrize("tiny", [1e-50, -1e-50, 5e-324])
def test_half_precision_beside_a_double_below_every_float(tiny: float) -> None:
    labels, logits = np.ones(3, np.float16), np.arange(3, dtype=np.float16)
    for pos_weight in (tiny, np.array([tiny, tiny, 0])):
        np.testing.assert_array_equal(weighted(labels, logits, pos_weight), [0, 0, 0])


def test_coefficients_are_rounded_to_half_precision_wherever_they_lie() -> None:
    logits = np.linspace(-3, 3, 64).astype(np.float16)
    labels = np.zeros_like(logits)
    exact = np.full(64, 1 + 2**-11 + 2**-12, np.float32)
    expected = weighted(labels, logits, 1.0, weight=exact.astype(np.float16))
    for weight in (exact, np.repeat(exact, 2)[::2], exact[:1], exact.astype(np.float64)):
        np.testing.assert_array_equal(weighted(labels, logits, 1.0, weight=weight), expected)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_one_coefficient_is_rounded_like_many(dtype: str) -> None:
    """Once, not by way of float64."""
    logits = np.linspace(-3, 3, 5).astype(dtype)
    weight = np.full(5, 2**60 + 2**36 + 1)
    many = weighted(np.zeros_like(logits), logits, 1.0, weight=weight)
    one = weighted(np.zeros_like(logits), logits, 1.0, weight=weight[:1])
    np.testing.assert_array_equal(one, many)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_weight_next_to_nothing_is_not_nothing(dtype: str) -> None:
    """Its products with the label's parts are zero, but not with those of the loss."""
    tiny = np.finfo(dtype).smallest_subnormal
    labels, logits = np.full(20, 0.625, dtype), np.full(20, 16, dtype)
    loss = weighted(labels, logits, 0.5, weight=np.full(20, tiny))
    # 16 * 0.375, and next to nothing for the positive part.
    np.testing.assert_array_equal(loss, 6 * tiny)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_bits_do_not_depend_on_neighbours(dtype: str) -> None:
    """Not even where a product of coefficients leaves the normal numbers."""
    tiny = np.finfo(dtype).smallest_subnormal
    rng = np.random.default_rng(0)
    labels, logits = rng.random(200).astype(dtype), rng.uniform(-3, 3, 200).astype(dtype)
    weight = rng.random(200).astype(dtype)
    alone = logitloss.value_and_grad(labels, logits, np.full(200, tiny), weight=weight)
    # What cannot be told from the greatest and the least of a block is looked at singly.
    labels[::2], logits[::2] = -1, 1e4
    beside = logitloss.value_and_grad(labels, logits, np.full(200, tiny), weight=weight)
    for first, second in zip(alone, beside, strict=True):
        np.testing.assert_array_equal(first[1::2], second[1::2])
