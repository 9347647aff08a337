"""What only the compiled kernel promises: the same bits however the work is cut up."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import reference
from mpmath import mp, mpf

import logitloss
from logitloss._kernel import kernel

SOURCES = Path(__file__).parents[1] / "src" / "logitloss" / "_kernel"
FUNCTIONS = (logitloss.value_and_grad, logitloss.grad_and_hess)

# Hashes of every result over awkward values: run in a fresh process per instruction set.
SCRIPT = """
import hashlib, json, sys
import numpy as np, logitloss
rng = np.random.default_rng(7)
digests = {}
for dtype in ("float32", "float64"):
    size = 40_011
    logits = (rng.normal(size=size) * 10.0 ** rng.integers(-3, 3, size)).astype(dtype)
    logits[:4] = [np.inf, -np.inf, 0.0, -0.0]
    labels = np.where(rng.random(size) < 0.5, rng.integers(0, 2, size), rng.random(size))
    labels = labels.astype(dtype)
    weight = rng.random(size).astype(dtype)
    per_element = (10.0 ** rng.uniform(-30, 30, size)).astype(dtype)
    for name, pos_weight, options in (
        ("plain", 2.5, {}),
        ("small", 1e-7, {}),
        ("general", per_element, {"weight": weight}),
        ("mean", 2.5, {"reduction": "mean"}),
    ):
        results = logitloss.value_and_grad(labels, logits, pos_weight, **options)
        if name != "mean":
            results += logitloss.grad_and_hess(labels, logits, pos_weight, **options)
        data = b"".join(np.asarray(result).tobytes() for result in results)
        digests[f"{dtype} {name}"] = hashlib.sha256(data).hexdigest()
print(json.dumps([logitloss.show_config("dicts")["cpu"], digests]))
"""


def run(script: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | variables,
        capture_output=True,
        text=True,
        timeout=120,
    )


def values(dtype: str, size: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = np.where(rng.random(size) < 0.7, rng.integers(0, 2, size), rng.random(size))
    return labels.astype(dtype), (3 * rng.normal(size=size)).astype(dtype)


def same_bits(first, second) -> bool:
    return all(
        np.asarray(a).dtype == np.asarray(b).dtype
        and np.asarray(a).tobytes() == np.asarray(b).tobytes()
        for a, b in zip(first, second, strict=True)
    )


def test_fused_instruction_sets_give_the_same_bits() -> None:
    if not {"avx2", "avx512"} <= set(kernel.AVAILABLE_TARGETS):
        pytest.skip(f"this processor runs {', '.join(kernel.AVAILABLE_TARGETS)} only")
    results = {}
    for target in ("avx2", "avx512"):
        result = run(SCRIPT, LOGITLOSS_CPU=target)
        assert result.returncode == 0, result.stderr
        chosen, results[target] = json.loads(result.stdout)
        assert chosen == target
    assert results["avx2"] == results["avx512"]


@pytest.mark.exhaustive
@pytest.mark.parametrize("target", kernel.AVAILABLE_TARGETS)
def test_every_instruction_set_is_accurate(target: str) -> None:
    """The tests of values, and of bits beside others, run again with the instruction set forced."""
    if target == kernel.TARGET:
        pytest.skip("the rest of the suite runs on it")
    result = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-x", "-k", "numpy or change_no_bit"),
            *("tests/test_values.py", "tests/test_kernel.py"),
        ],
        env=os.environ | {"LOGITLOSS_CPU": target},
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stdout[-3000:]


def test_unknown_instruction_set() -> None:
    result = run("import logitloss", LOGITLOSS_CPU="mmx")
    assert result.returncode == 1
    available = ", ".join(kernel.AVAILABLE_TARGETS)
    assert f"ImportError: `LOGITLOSS_CPU` must be one of {available} on" in result.stderr
    assert "'mmx'" in result.stderr


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("size", [*range(1, 70), 255, 256, 257, 511, 4095, 4096, 4097])
def test_every_length(dtype: str, size: int) -> None:
    """Blocks, their tails and the padding: nothing is left out, counted twice or written past."""
    labels, logits = values(dtype, size, seed=size)
    guard = np.full(size + 64, 77, dtype)
    loss, gradient = guard.copy(), guard.copy()
    logitloss.value_and_grad(labels, logits, 2.5, out=(loss[32:-32], gradient[32:-32]))
    for padded in (loss, gradient):
        assert (padded[:32] == 77).all() and (padded[-32:] == 77).all()
    single = [
        logitloss.value_and_grad(labels[i : i + 1], logits[i : i + 1], 2.5) for i in range(size)
    ]
    assert same_bits(
        [loss[32:-32], gradient[32:-32]], map(np.concatenate, zip(*single, strict=True))
    )
    total = logitloss.weighted_cross_entropy_with_logits(labels, logits, 2.5, reduction="sum")
    exact = math.fsum(loss[32:-32].tolist())
    assert abs(total - exact) <= np.spacing(np.dtype(dtype).type(exact))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
# The most slices of the least size fill the array of their sums to its end.
@pytest.mark.parametrize(
    "size",
    [100_003, *(pytest.param(n, marks=pytest.mark.exhaustive) for n in (1024 * 4096, 4_300_000))],
)
def test_number_of_threads_changes_no_bit(dtype: str, size: int) -> None:
    labels, logits = values(dtype, size)
    results = []
    for threads in (1, 2, 3, 7):
        logitloss.set_num_threads(threads)
        results.append(
            [
                *logitloss.value_and_grad(labels, logits, 2.5, reduction="mean"),
                logitloss.weighted_cross_entropy_with_logits(labels, logits, 2.5),
            ]
        )
    kernel.set_threads(0)
    assert all(same_bits(results[0], other) for other in results[1:])
    assert float(results[0][0]) == pytest.approx(
        math.fsum(results[0][2].tolist()) / size, rel=2 * float(np.finfo(dtype).eps), abs=0
    )


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_alignment_and_slices_change_no_bit(dtype: str) -> None:
    labels, logits = values(dtype, 3000)
    whole = logitloss.value_and_grad(labels, logits, 0.3)
    for start, stop, step in ((1, 2999, 1), (17, 1200, 1), (5, 2900, 3), (2999, 100, -1)):
        part = slice(start, stop, step)
        got = logitloss.value_and_grad(labels[part], logits[part], 0.3)
        assert same_bits(got, [result[part] for result in whole])
    itemsize = np.dtype(dtype).itemsize
    raw = np.empty(logits.nbytes + 1, np.uint8)
    unaligned = raw[1:].view(dtype)
    unaligned[:] = logits
    assert not unaligned.flags.aligned and unaligned.itemsize == itemsize
    assert same_bits(logitloss.value_and_grad(labels, unaligned, 0.3), whole)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("as_array", [False, True])
def test_large_logits_beside_it_change_no_bit(dtype: str, as_array: bool) -> None:
    """A block with one of them is computed with another scaling."""
    labels, logits = values(dtype, 256 * 40)
    logits[: 256 * 20] *= 0.05 if dtype == "float32" else 1
    logits[256 * 20 :] *= 2 if dtype == "float32" else 15
    pos_weight = 10.0 ** np.random.default_rng(1).integers(-12, 12, logits.size)
    pos_weight = pos_weight.astype(dtype) if as_array else 3e-10
    logits[::256] = 0
    alone = [function(labels, logits, pos_weight) for function in FUNCTIONS]
    for large in (40.0, -90.0, 300.0, -800.0, np.inf, -np.inf, np.nan):
        logits[::256] = large
        for function, expected in zip(FUNCTIONS, alone, strict=True):
            got = function(labels, logits, pos_weight)
            assert same_bits(
                *([np.delete(a, np.s_[::256]) for a in results] for results in (got, expected))
            )


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_large_logits_beside_small_coefficients_change_no_bit(dtype: str) -> None:
    """Sums from the least that is computed in blocks, where a scaled term may be subnormal."""
    rng = np.random.default_rng(2)
    size, exponents = 256 * 400, (-51, -49) if dtype == "float32" else (-485, -483)
    weight = np.exp2(rng.uniform(*exponents, size)).astype(dtype)
    labels, logits = rng.random(size).astype(dtype), rng.normal(size=size).astype(dtype)
    alone = [function(labels, logits, 1.0, weight=weight) for function in FUNCTIONS]
    logits[::256] = 1000
    for function, expected in zip(FUNCTIONS, alone, strict=True):
        got = function(labels, logits, 1.0, weight=weight)
        assert same_bits(
            *([np.delete(a, np.s_[::256]) for a in results] for results in (got, expected))
        )


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_large_logits_beside_ties_change_no_bit(dtype: str) -> None:
    """Next to odd multiples of ln(2) / 2, which are rounded to one power of two or the next."""
    middles = ((np.arange(150, dtype=np.longdouble) + 0.5) * np.log(np.longdouble(2))).astype(dtype)
    steps = np.spacing(middles) * np.arange(-40, 41, dtype=dtype)[:, None]
    logits = (middles + steps).ravel()
    logits = logits[logits < (32 if dtype == "float32" else 104)]
    labels = np.resize([0, 1], logits.size).astype(dtype)
    beside = np.insert(logits, np.arange(0, logits.size, 64), 1000)
    labels_beside = np.insert(labels, np.arange(0, logits.size, 64), 0)
    for function in FUNCTIONS:
        got = function(labels_beside, beside, 1.0)
        got = [results[beside != 1000] for results in got]
        assert same_bits(got, function(labels, logits, 1.0))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("limit", ["great weights", "small weights", "logits", "labels"])
def test_others_at_the_limits_change_no_bit(dtype: str, limit: str) -> None:
    """Just within what the passes are made for, and just beyond."""
    rng = np.random.default_rng(3)
    size, most, least = 3000, *((51, -51) if dtype == "float32" else (484, -485))
    around = 1 + np.ldexp(rng.choice([-1, 0, 1], size), rng.integers(-52, -18, size))
    labels, logits = rng.choice([0, 1, 0.5, 0.3], size), rng.normal(0, 3, size)
    weight, pos_weight = rng.uniform(0.5, 2, size), np.ones(size)
    if limit == "great weights":
        weight = np.ldexp(around, most)
    elif limit == "small weights":
        weight = np.ldexp(around, least)
    else:
        # Sums that one of the two terms alone would put out of range.
        pos_weight = np.ldexp(around, rng.choice([least * 2, -3, 3], size))
        if limit == "logits":
            logits = around * rng.choice([-1, 1], size) * (32 if dtype == "float32" else 256)
        else:
            labels = around * rng.choice([-1e-30, 1], size)
    operands = [a.astype(dtype) for a in (labels, logits, pos_weight, weight)]
    for function in FUNCTIONS:
        labels, logits, pos_weight, weight = operands
        together = function(labels, logits, pos_weight, weight=weight)
        single = [
            function(*(a[i : i + 1] for a in operands[:3]), weight=weight[i : i + 1])
            for i in range(size)
        ]
        assert same_bits(together, map(np.concatenate, zip(*single, strict=True)))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_memory_order_changes_no_bit(dtype: str) -> None:
    labels, logits = (array.reshape(60, 50) for array in values(dtype, 3000))
    pos_weight = np.linspace(0.5, 4, 50).astype(dtype)
    weight = np.linspace(0, 2, 60).astype(dtype)[:, None]
    fortran = np.asfortranarray
    for reduction in ("none", "mean", "weighted_mean"):
        expected = logitloss.value_and_grad(
            labels, logits, pos_weight, weight=weight, reduction=reduction
        )
        for z, x in (
            (fortran(labels), fortran(logits)),
            (labels, fortran(logits)),
            (fortran(labels), logits),
            (labels.astype(labels.dtype.newbyteorder()), logits),
            (np.repeat(labels, 2, axis=1)[:, ::2], np.repeat(logits, 2, axis=0)[::2]),
        ):
            got = logitloss.value_and_grad(z, x, pos_weight, weight=weight, reduction=reduction)
            assert same_bits(got, expected)


@pytest.mark.parametrize("shape", [(7,), (1, 7), (5, 1), (5, 7), (3, 1, 7), (3, 5, 1), (3, 1, 1)])
@pytest.mark.parametrize("order", ["C", "F"])
def test_every_way_to_broadcast(shape: tuple[int, ...], order: str) -> None:
    labels, logits = (
        np.asarray(array.reshape(3, 5, 7), order=order) for array in values("float64", 105)
    )
    coefficient = np.random.default_rng(1).random(shape)
    full = np.array(np.broadcast_to(coefficient, (3, 5, 7)))
    for function in FUNCTIONS:
        assert same_bits(
            function(labels, logits, coefficient, weight=coefficient + 1),
            function(labels, logits, full, weight=full + 1),
        )


@pytest.mark.parametrize("classes", [1, 2, 3, 8, 100, 255, 256, 257, 1000])
def test_per_class_weights_across_blocks(classes: int) -> None:
    rows = 3000 // classes + 3
    labels, logits = (a.reshape(rows, classes) for a in values("float32", rows * classes))
    pos_weight = np.linspace(0.5, 2, classes)
    got = logitloss.value_and_grad(labels, logits, pos_weight)
    columns = [
        logitloss.value_and_grad(labels[:, c], logits[:, c], np.float32(pos_weight[c]))
        for c in range(classes)
    ]
    assert same_bits(got, [np.stack(column, axis=1) for column in zip(*columns, strict=True)])


# Each leaves the range of its dtype on the way to a result inside it: q z underflows, or q x
# overflows, or the softplus is subnormal and pos_weight lifts it out.
EXTREMES = [
    (1e-30, -1e30, 1e-30),
    (-1e-30, -1e30, 1e-30),
    (1e-40, -1e35, 1e-20),
    (1e-44, -100.0, 1e30),
    (1e-45, -3e38, 1.0),
    (0.0, -1e5, np.inf),
    (1.0, 95.0, 1e30),
    (1.0, 150.0, 1e30),
    (1.0, -1e-40, 1e-30),
    (0.5, 88.5, 1e20),
    (1.0, 1e38, 1e30),
    (5e-324, -1e300, 1e-20),
    (1e-300, -1e305, 1e-30),
    (1.0, 740.0, 1e30),
    (1.0, -745.0, 1e-300),
    (3e-310, 1e308, 1e30),
    (1.0, 180.0, 1e38),
    (1.0, 850.0, 1e308),
    (1.0, 1000.0, 1e308),
    (0.3, -1000.0, 1e308),
    (2.0, 740.0, 1e308),
    (-1e-300, -1e305, 1e-30),
]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("as_array", [False, True])
@pytest.mark.parametrize("point", EXTREMES)
def test_extremes(dtype: str, as_array: bool, point: tuple[float, float, float]) -> None:
    with np.errstate(over="ignore", under="ignore"):
        z, x, q = (np.array([value]).astype(dtype) for value in point)
    if not all(np.isfinite([z, x])) or (np.isinf(q) and z):
        pytest.skip(f"beyond {dtype}")
    pos_weight = q if as_array else float(q[0])
    loss, gradient = logitloss.value_and_grad(z, x, pos_weight)
    _, hessian = logitloss.grad_and_hess(z, x, pos_weight)
    if not np.isfinite(q[0]):
        pos_weight, q = 1.0, np.ones(1, dtype)  # z is 0: any pos_weight gives the same
    for got, function, scale in (
        (loss, reference.loss, reference.loss),
        (gradient, reference.gradient, reference.gradient_scale),
        (hessian, reference.hessian, reference.hessian),
    ):
        true, scale = reference.at(function, z, x, q), reference.at(scale, z, x, q)
        assert max(reference.distances(got, true, dtype, scale)) <= 3


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("hard", [True, False], ids=["hard labels", "any labels"])
def test_logits_of_every_exponent(dtype: str, hard: bool) -> None:
    limits = np.finfo(dtype)
    rng = np.random.default_rng(5)
    # Every exponent, subnormal ones included, and more of those where most work is done.
    exponents = np.arange(limits.minexp - limits.nmant, limits.maxexp)
    exponents = np.concatenate([exponents, rng.integers(-7, 7, 500)])
    mantissas = rng.uniform(1, 2 - limits.eps, exponents.size).astype(dtype)
    logits = np.ldexp(mantissas, exponents)
    logits *= rng.choice([-1, 1], logits.size)
    if hard:
        labels, pos_weight = rng.integers(0, 2, logits.size), np.ones(logits.size)
    else:
        labels = np.where(
            logits > 1, rng.random(logits.size), 10 ** rng.uniform(-30, 0, logits.size)
        )
        # What a loss of less than the largest number allows.
        highest = 30 + np.minimum(0, np.log10(limits.max) - 31 - np.log10(np.abs(logits)))
        pos_weight = 10 ** rng.uniform(-30, highest)
    points = [a.astype(dtype) for a in (labels, logits, pos_weight)]
    loss, gradient = logitloss.value_and_grad(*points)
    _, hessian = logitloss.grad_and_hess(*points)
    for got, function, scale in (
        (loss, reference.loss, reference.loss),
        (gradient, reference.gradient, reference.gradient_scale),
        (hessian, reference.hessian, reference.hessian),
    ):
        true, scale = reference.at(function, *points), reference.at(scale, *points)
        distances = reference.distances(got, true, dtype, scale)
        worst = max(range(len(true)), key=distances.__getitem__)
        bound = (1 if kernel.TARGET_IS_FUSED else 1.5) if hard else 3
        assert distances[worst] <= bound, [point[worst] for point in points]


# Largest errors in ulp of loss, gradient and Hessian: with fused multiply-add, and without it.
MEASURED = {
    ("float32", True): (0.96, 0.85, 0.85),
    ("float64", True): (0.95, 0.85, 0.85),
    ("float32", False): (0.96, 0.85, 1.1),
    ("float64", False): (1.2, 0.85, 1.1),
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_no_accuracy_is_given_away(dtype: str) -> None:
    """Each correction in logistic.h earns its place: without it a dense sample exceeds these.

    The 4 ulp that are promised leave room for most of them to be lost unseen.
    """
    wide = {"float32": np.float64, "float64": np.longdouble}[dtype]
    if np.finfo(wide).nmant < np.finfo(dtype).nmant + 11:
        pytest.skip("no wider type to compare with")
    rng = np.random.default_rng(0)
    logits = np.concatenate([rng.uniform(-20, 20, 100_000), rng.uniform(-1, 1, 100_000)])
    logits = logits.astype(dtype)
    m = np.abs(logits).astype(wide)
    e = np.exp(-m)
    small, large = e / (1 + e), 1 / (1 + e)
    bounds = MEASURED[dtype, kernel.TARGET_IS_FUSED]
    for label, sign in ((0, 1), (1, -1)):
        wrong = (logits >= 0) == (label == 0)
        loss = np.log1p(e) + np.where(wrong, m, 0)
        gradient = sign * np.where(wrong, large, small)
        labels = np.full(logits.shape, label, dtype)
        results = logitloss.weighted_cross_entropy_with_logits(labels, logits, 1.0)
        results = results, *logitloss.grad_and_hess(labels, logits)
        for got, true, bound in zip(results, (loss, gradient, small * large), bounds, strict=True):
            errors = np.abs(got.astype(wide) - true) / np.spacing(np.abs(true).astype(dtype))
            assert errors.max() <= bound


# (label, logit, pos_weight, weight): as EXTREMES, where it is the weight that leaves the range, or
# that brings back what has left it.
EXTREME_WEIGHTS = [
    (0.7, 1e30, 1.0, 1e-40),
    (0.7, 1e30, 1e30, 1e-40),
    (0.7, -1e30, 1.0, 1e-40),
    (1.0, 80.0, 1e20, 1e20),
    (1.0, -1e30, 1e-20, 1e-25),
    (1.0, -1e-30, 1e20, 1e20),
    (0.3, 95.0, 1.0, 1e30),
    (1.0, 100.0, 1e-10, 1e30),
    (1.0, 100.0, 1e10, 1e-20),
    (1.0, 0.5, 1e-20, 1e-20),
    (1.0, 0.5, 1e-160, 1e-160),
    (0.7, 1e300, 1.0, 1e-310),
    (0.7, 1e300, 1e100, 1e-310),
    (1.0, 700.0, 1e200, 1e200),
    # Where even exp(-|x| / 2) is subnormal, or zero.
    (0.5, -1481.25, 4e222, 7e225),
    (1.0, 1600.0, 1e300, 1e300),
]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("point", EXTREME_WEIGHTS)
def test_extreme_weights(dtype: str, point: tuple[float, float, float, float]) -> None:
    with np.errstate(over="ignore", under="ignore"):
        z, x, q, w = (np.array([value]).astype(dtype) for value in point)
    if not all(np.isfinite([z, x, q, w])) or not w:
        pytest.skip(f"beyond {dtype}")
    loss, gradient = logitloss.value_and_grad(z, x, q, weight=w)
    again, hessian = logitloss.grad_and_hess(z, x, q, weight=w)
    assert same_bits([gradient], [again])
    for got, function, scale in (
        (loss, reference.loss, reference.loss),
        (gradient, reference.gradient, reference.gradient_scale),
        (hessian, reference.hessian, reference.hessian),
    ):
        true, scale = (
            reference.exact(w[0]) * reference.at(f, z, x, q)[0] for f in (function, scale)
        )
        assert reference.distances(got, [true], dtype, [scale])[0] <= 3


@pytest.mark.parametrize("dtype", ["float32", "float64"])
# With 0.5 and a pos_weight of 1 the coefficients of the two terms are equal.
@pytest.mark.parametrize("label", [0.0, 1.0, 0.3, 0.5])
@pytest.mark.parametrize("argument", ["pos_weight", "weight"])
@pytest.mark.parametrize("as_array", [False, True])
def test_coefficients_of_every_size(
    dtype: str, label: float, argument: str, as_array: bool
) -> None:
    """Down to the subnormals, in steps finer than those in which the kernel scales."""
    limits = np.finfo(dtype)
    logits = np.linspace(-20, 20, 41).astype(dtype)
    labels = np.full(41, label, dtype)
    for exponent in np.linspace(limits.minexp - 10, limits.maxexp - 10, 30):
        coefficient = np.array(2**exponent).astype(dtype)
        given = np.full(41, coefficient) if as_array else float(coefficient)
        loss, gradient = logitloss.value_and_grad(labels, logits, **{argument: given})
        _, hessian = logitloss.grad_and_hess(labels, logits, **{argument: given})
        pos_weight = np.full(41, coefficient if argument == "pos_weight" else 1, dtype)
        factor = reference.exact(coefficient) if argument == "weight" else 1
        for got, function, scale in (
            (loss, reference.loss, reference.loss),
            (gradient, reference.gradient, reference.gradient_scale),
            (hessian, reference.hessian, reference.hessian),
        ):
            true, scale = (
                [factor * value for value in reference.at(f, labels, logits, pos_weight)]
                for f in (function, scale)
            )
            assert max(reference.distances(got, true, dtype, scale)) <= 4


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_nan_beside_a_subnormal_weight(dtype: str) -> None:
    """Such elements are computed singly, where a label of zero must not hide the NaN."""
    labels, logits, weight = np.zeros(4, dtype), np.ones(4, dtype), np.ones(4, dtype)
    weight *= np.finfo(dtype).smallest_subnormal
    pos_weight = np.array([np.nan, 1, 1, 1], dtype)
    labels[1] = logits[2] = weight[3] = np.nan
    for function in FUNCTIONS:
        for result in function(labels, logits, pos_weight, weight=weight):
            assert np.isnan(result).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_rare_elements_of_a_mean(dtype: str) -> None:
    """Those that are computed singly are divided like the others, which they leave alone."""
    labels, logits = values(dtype, 300)
    tiny = float(np.finfo(dtype).smallest_subnormal)
    labels[::7] = tiny
    for divided, whole in zip(
        logitloss.value_and_grad(labels, logits, 0.5, reduction="mean"),
        logitloss.value_and_grad(labels, logits, 0.5),
        strict=True,
    ):
        true = whole.sum(dtype=np.float64) if divided.ndim == 0 else whole.astype(np.float64)
        np.testing.assert_array_max_ulp(divided, (true / 300).astype(dtype), 1)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("divisor", [3, 7, 49, 1000])
def test_a_mean_gradient_is_as_exact_as_a_division(dtype: str, divisor: int) -> None:
    """A multiplication by a rounded reciprocal misses every few quotients."""
    labels, logits = values(dtype, divisor)
    _, gradient = logitloss.value_and_grad(labels, logits)
    _, divided = logitloss.value_and_grad(labels, logits, reduction="mean")
    exact = gradient / np.dtype(dtype).type(divisor)
    np.testing.assert_array_max_ulp(divided, exact, 0 if kernel.TARGET_IS_FUSED else 1)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_infinite_coefficients_beside_infinite_logits(dtype: str) -> None:
    """A term of an infinite weight that is zero stays zero, and one that is not is infinite."""
    labels = np.array([0, 1, 0, 1, 0.3, 0.7], dtype)
    logits = np.array([-np.inf, np.inf, 1, 1, 2, -2], dtype)
    for infinity in (np.inf, -np.inf):
        for weight in (infinity, np.full(6, infinity)):
            loss, gradient = logitloss.value_and_grad(labels, logits, 2.0, weight=weight)
            np.testing.assert_array_equal(loss, [0, 0, *[infinity] * 4])
            # Of soft labels it does not multiply one term apart from the other.
            np.testing.assert_array_equal(gradient, [0, 0, *[infinity, -infinity] * 2])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("infinity", [np.inf, -np.inf])
def test_infinite_pos_weight_at_negatives(dtype: str, infinity: float) -> None:
    labels = np.array([0, 1, 0, 1], dtype)
    logits = np.array([1, 1, np.inf, -1], dtype)
    softplus = logitloss.sigmoid_cross_entropy_with_logits(labels, logits)
    for pos_weight in (infinity, np.full(4, infinity)):
        got = logitloss.weighted_cross_entropy_with_logits(labels, logits, pos_weight)
        expected = [softplus[0], infinity, np.inf, infinity]
        np.testing.assert_allclose(got, expected, rtol=2 * np.finfo(dtype).eps)


def test_bounds_of_the_polynomials() -> None:
    """The bounds that logistic.h states for its two polynomials, checked on the constants there."""
    header = (SOURCES / "logistic.h").read_text()
    constants = header[header.index("#if LOGITLOSS_REAL == 32") :]
    for branch, bits in zip(constants.split("#else\n"), (24, 53), strict=False):
        for name, variable, least, most, contribution in (
            ("EXP", "r", -mp.log(2) / 2, mp.log(2) / 2, _exp_error),
            ("LOG", "u", mpf(0), mpf(1) / 9, _log_error),
        ):
            pattern = (
                rf"/\* 2\^(-[\d.]+) \*/\n#define {name}_POLYNOMIAL\(\w, \w2\) ((?:.*\\\n)*.*)\n"
            )
            bound, text = re.search(pattern, branch).groups()
            text = re.sub(r"-?0x[0-9a-f.]+p[+-]?\d+", lambda m: f"N('{m[0]}')", text)
            code = text.replace("\\\n", " ").replace("f,", ",").replace("f)", ")")
            code = re.sub(r"'\)f", "')", code).strip()
            for i in range(401):
                v = least + (most - least) * i / 400
                names = {
                    "FMA": lambda a, b, c: a * b + c,
                    "N": lambda literal: mpf(float.fromhex(literal)),
                    variable: v,
                    f"{variable}2": v * v,
                }
                error = contribution(v, eval(code, names))
                assert abs(error) < mpf(2) ** (float(bound) + 0.05), (name, bits, float(v))


def _exp_error(r: mpf, polynomial: mpf) -> mpf:
    return (1 + r + r * r * polynomial) / mp.exp(r) - 1


def _log_error(u: mpf, polynomial: mpf) -> mpf:
    s = mp.sqrt(u)
    return (2 * s + s**3 * polynomial) / (2 * mp.atanh(s)) - 1 if s else mpf(0)
