"""cuda.cu, compiled for the host, against the kernel of the CPU: the same bits of everything."""

from __future__ import annotations

import itertools
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from backends import MISSING

from gpu_on_host.host import COMPILER, FOLDER, NUMPY, HostLauncher, build
from logitloss._backends import cuda
from logitloss._kernel import kernel

DTYPES = tuple(t for t in ("float16", "bfloat16", "float32", "float64") if t not in MISSING)
ORDERS = ((0,), (0, 1), (1, 2), (1,), (2,))
SPECIAL = [0.0, -0.0, 1.0, 0.5, 1e-7, np.nan, np.inf, -np.inf, 33.0, -88.0, 104.0, -709.0, 750.0]

pytestmark = [
    pytest.mark.exhaustive,
    pytest.mark.skipif(COMPILER is None, reason="no C++ compiler"),
    pytest.mark.skipif(not kernel.TARGET_IS_FUSED, reason="this CPU has no fused multiply-add"),
]


@pytest.fixture(scope="module")
def launcher(tmp_path_factory: pytest.TempPathFactory) -> HostLauncher:
    return HostLauncher(tmp_path_factory.mktemp("host"))


@pytest.fixture(autouse=True)
def on_host(launcher: HostLauncher, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "launcher_or_reason", lambda: launcher)


def assert_same(got: Any, expected: Any) -> None:
    got, expected = np.atleast_1d(got), np.atleast_1d(expected)
    assert got.dtype == expected.dtype and got.shape == expected.shape
    integer = f"i{got.itemsize}"
    differs = got.copy().view(integer) != expected.copy().view(integer)
    differs &= ~(np.isnan(got) & np.isnan(expected))
    assert not differs.any(), (got[differs][:5], expected[differs][:5])


def check(
    orders: tuple[int, ...],
    labels: np.ndarray,
    logits: np.ndarray,
    pos_weight: Any,
    weight: Any = None,
    reduction: Any = "none",
) -> None:
    """The same bits by both kernels; a sum of both is exact but for its last rounding."""
    with np.errstate(over="ignore"):
        expected = kernel.compute(
            orders, labels, logits, pos_weight, weight, reduction, None, is_checked=True
        )
    assert expected is not None
    dtype = logits.dtype.name if logits.dtype.kind in "fV" else "float64"
    got = cuda.compute(NUMPY, dtype, orders, labels, logits, pos_weight, weight, reduction)
    assert got is not None
    for ours, theirs in zip(got, expected, strict=True):
        assert_same(ours, theirs)


def drawn(dtype: str, shape: Any, seed: int = 0) -> list[np.ndarray]:
    """Labels, logits, pos_weight and weight, the logits partly beyond the ordinary."""
    rng = np.random.default_rng(seed)
    values = (
        rng.random(shape),
        rng.normal(0, 20, shape),
        rng.uniform(0, 4, shape),
        rng.random(shape),
    )
    return [value.astype(dtype) for value in values]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("orders", ORDERS)
def test_special_values_and_every_scale(dtype: str, orders: tuple[int, ...]) -> None:
    with np.errstate(over="ignore"):
        powers = 10.0 ** np.arange(-320, 309, 23)
        values = np.concatenate([SPECIAL, powers, -powers]).astype(dtype)
        grid = np.array(list(itertools.product(values, repeat=2))).astype(dtype).T
    logits, others = grid.copy()
    for label in (0.0, 1.0, 0.3, 1.5, np.nan):
        labels = np.full_like(logits, label)
        check(orders, labels, logits, others)
        check(orders, labels, logits, 3.0, others)
    check(orders, others, logits, 1e-7, np.abs(others[::-1]).copy())


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("label", [0.0, 1.0, 0.25])
def test_every_logit_of_half_precision(dtype: str, label: float) -> None:
    if dtype in MISSING:
        pytest.skip(MISSING[dtype])
    logits = np.arange(2**16, dtype=np.uint16).view(dtype)
    labels = np.full_like(logits, label)
    for orders in ORDERS[:3]:
        check(orders, labels, logits, 3.0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [0, 1, 3, 4, 1023, 1025, 5001])
def test_sizes(dtype: str, size: int) -> None:
    labels, logits, pos_weight, weight = drawn(dtype, size)
    check((0, 1), labels, logits, pos_weight, weight)
    # Where memory is not aligned for several elements at a time.
    check((0,), labels[1:], logits[1:], 2.0)
    for reduction in ("sum", "mean", "weighted_mean", 7.0, "total"):
        check((0,), labels, logits, 2.0, weight, reduction)


LAYOUTS = {
    "transposed": lambda a: a.T,
    "Fortran": np.asfortranarray,
    "every second column": lambda a: a[:, ::2],
    "reversed": lambda a: a[::-1],
    "both reversed": lambda a: a[::-1, ::-1],
    "a slice": lambda a: a[3:, 2:-1],
    "three axes": lambda a: a.reshape(12, -1, 5).transpose(2, 0, 1),
    "one row": lambda a: a[5],
    "one number": lambda a: a[5, 6:7].reshape(()),
    "one row, repeated": lambda a: np.broadcast_to(a[:1], a.shape),
    "one number, repeated": lambda a: np.broadcast_to(a[5, 6], a.shape),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_layouts(layout: str, dtype: str) -> None:
    labels, logits, pos_weight, weight = map(LAYOUTS[layout], drawn(dtype, (60, 35)))
    check((0, 1), labels, logits, pos_weight, weight)
    check((1, 2), np.array(labels, order="C"), logits, 2.0)
    check((0, 1), labels, logits, 2.0, weight, "weighted_mean")


@pytest.mark.parametrize("shape", [(), (1,), (35,), (60, 1), (1, 35), (60, 35)])
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_coefficients_that_repeat(shape: tuple[int, ...], dtype: str) -> None:
    labels, logits, *_ = drawn(dtype, (60, 35))
    _, _, pos_weight, weight = drawn(dtype, shape, seed=1)
    check((0, 1), labels, logits, pos_weight, weight)
    for reduction in ("mean", "weighted_mean"):
        check((0,), labels, logits, pos_weight, weight, reduction)
        check((0, 1), labels, logits, pos_weight, np.asarray(weight > 0.5), reduction)


INTEGERS = ("bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("labels_dtype", [*INTEGERS, *DTYPES])
def test_mixtures(dtype: str, labels_dtype: str) -> None:
    labels, logits, pos_weight, weight = drawn("float64", 1003)
    labels, logits = (labels > 0.4).astype(labels_dtype), logits.astype(dtype)
    # Numbers that are rounded to the dtype of the results.
    most = min(np.iinfo(labels_dtype).max, 20_000) if labels.dtype.kind in "iu" else 1
    weight = (most * weight > 0.4 if labels_dtype == "bool" else most * weight).astype(labels_dtype)
    if np.dtype(labels_dtype).itemsize > logits.itemsize and labels_dtype in DTYPES:
        labels, logits = logits, labels
    if {labels_dtype, dtype} == {"float16", "bfloat16"}:
        pytest.skip("no common dtype")
    check((0,), labels, logits, pos_weight, weight)


def test_logits_of_integers() -> None:
    labels, logits, *_ = drawn("float64", 1003)
    check((0, 1), labels, logits.astype(np.int32), 2.5)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("reduction", ["sum", "mean", "weighted_mean"])
def test_sums_of_many_blocks(dtype: str, reduction: str) -> None:
    """More elements than a pass of all blocks takes, whose sums come in any order."""
    labels, logits, _, weight = drawn(dtype, 2_500_001)
    check((0, 1), labels, logits, 2.0, weight, reduction)
    check((0,), labels, logits, 2.0, weight, reduction)


@pytest.mark.parametrize(("dtype", "size"), [("bool", 4_500_001), ("float32", 3 * 2**18 + 2)])
def test_a_sum_of_many_weights_alone(dtype: str, size: int) -> None:
    """A thread reads several pieces of 16 bytes before it adds the first."""
    labels, logits, _, weight = drawn("float32", size + 16)
    weight = (10 * weight).astype(dtype)
    # What comes after the end is no part of the sum.
    check((1,), labels[:size], logits[:size], 2.0, weight[:size], "weighted_mean")


@pytest.mark.parametrize("divisor", [0.0, 1.0, 3.0, 2.0**120, 2.0**-140, np.inf, np.nan])
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_divisors(divisor: float, dtype: str) -> None:
    labels, logits, pos_weight, weight = drawn(dtype, 1003)
    weight[::3] = 0
    # At the limits of the type, where products have to be formed with care.
    weight[1::3] *= 4 * np.finfo(dtype).tiny
    with np.errstate(invalid="ignore"):
        check((0, 1), labels, logits, pos_weight, weight, divisor)


def test_weights_that_are_all_zero() -> None:
    labels, logits, _, weight = drawn("float32", (30, 20))
    check((0, 1), labels, logits, 2.0, 0 * weight, "weighted_mean")
    check((0, 1), labels, logits, 2.0, 0 * weight[:, :1], "weighted_mean")
    check((0, 1), labels, logits, 2.0, 0.0, "weighted_mean")


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_an_incoming_gradient(dtype: str) -> None:
    labels, logits, pos_weight, weight = drawn(dtype, (40, 30))
    incoming = logits[:, :1].copy()
    incoming[3], incoming[4], weight[5] = 0, np.nan, 0
    incoming[5] = np.inf
    (got,) = cuda.compute(
        NUMPY, dtype, (1,), labels, logits, pos_weight, weight, "none", None, incoming
    )
    wide = "float32" if dtype == "float16" else dtype
    (gradient,) = kernel.compute(
        (1,),
        *(array.astype(wide) for array in (labels, logits, pos_weight, weight)),
        "none",
        None,
    )
    with np.errstate(invalid="ignore", over="ignore"):
        product = gradient * incoming.astype(wide)
    expected = np.where((incoming == 0) | (weight == 0), 0, product)
    assert_same(got, expected.astype(dtype))


def test_indices_of_64_bits(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, launcher: HostLauncher
) -> None:
    wide = HostLauncher(tmp_path, is_wide=True)
    monkeypatch.setattr(cuda, "launcher_or_reason", lambda: wide)
    labels, logits, pos_weight, weight = (a[:, ::2] for a in drawn("float32", (60, 35)))
    check((0, 1), labels, logits, pos_weight[:1], weight[:, :1], "weighted_mean")


def test_outputs_are_written_where_they_lie() -> None:
    labels, logits, *_ = drawn("float64", (60, 35))
    for out in (np.zeros((60, 35)), np.zeros((35, 60)).T, np.zeros((60, 70))[:, ::2]):
        (got,) = cuda.compute(NUMPY, "float64", (0,), labels, logits, 2.0, None, "none", (out,))
        assert got is out
        assert_same(out, kernel.compute((0,), labels, logits, 2.0, None, "none", None)[0])


def test_too_many_axes_are_left_to_the_formula() -> None:
    array = np.zeros((3,) * 10)[tuple([slice(0, 2)] * 10)]
    assert cuda.compute(NUMPY, "float64", (0,), array, array, 2.0, None, "none") is None


def test_quotients_are_those_of_a_division(launcher: HostLauncher, tmp_path: Path) -> None:
    array = np.zeros(10, np.float32)
    check((0, 1), array, array, 3.0)
    constants = dict(zip(kernel.CONSTANTS, next(iter(launcher.versions)), strict=True))
    build(FOLDER / "quotients.cpp", tmp_path / "quotients", constants)
    run = subprocess.run([tmp_path / "quotients"], capture_output=True, text=True)
    assert not run.returncode, run.stdout
