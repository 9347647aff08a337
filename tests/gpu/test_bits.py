"""Results on a GPU against those on the CPU: bits, dtypes, layouts and sums."""

from __future__ import annotations

import os

import backends
import pytest
from backends import DTYPES, Backend

import logitloss
from gpu.cases import (
    CALLS,
    GPUS,
    KERNEL,
    REDUCED,
    anything,
    assert_as_on_cpu,
    assert_within,
    ordinary,
    served_by_kernel,
)

# Of each type of numbers.
SIZE = int(os.environ.get("LOGITLOSS_GPU_VALUES", 10_000_000))
PAIRS = [(name, dtype) for name in GPUS for dtype in DTYPES[name]]
BITS = [(name, dtype) for name in KERNEL for dtype in DTYPES[name]]
INTEGERS = ("bool", "uint8", "int8", "int16", "int32", "int64")
FLOATS = ("float16", "bfloat16", "float32", "float64")

pytestmark = pytest.mark.skipif(
    logitloss.show_config("dicts")["cpu"] == "sse2", reason="SSE2 has other bits"
)


@pytest.mark.parametrize("backend", KERNEL, indirect=True)
def test_the_kernel_serves(backend: Backend) -> None:
    backend.array([0.5])
    assert served_by_kernel(backend), logitloss.show_config("dicts")


@pytest.mark.parametrize(("backend", "dtype"), BITS, indirect=["backend"])
def test_the_same_bits_of_any_values(backend: Backend, dtype: str) -> None:
    if not served_by_kernel(backend):
        pytest.skip("the formula has other bits")
    values = anything(dtype, SIZE)
    arrays = [backend.array(v, dtype) for v in values]
    for call in CALLS.values():
        assert_as_on_cpu(backend, call(*arrays[:3]), call(*values[:3]))
        got = call(*arrays[:3], weight=arrays[3])
        assert_as_on_cpu(backend, got, call(*values[:3], weight=values[3]))


@pytest.mark.parametrize(("backend", "dtype"), PAIRS, indirect=["backend"])
def test_close_to_the_cpu(backend: Backend, dtype: str) -> None:
    values = ordinary(dtype, SIZE)
    arrays = [backend.array(v, dtype) for v in values]
    for call in CALLS.values():
        got = call(*arrays[:3], weight=arrays[3])
        assert_as_on_cpu(backend, got, call(*values[:3], weight=values[3]))


@pytest.mark.parametrize(("backend", "dtype"), PAIRS, indirect=["backend"])
def test_sums_have_the_same_bits_in_every_run(backend: Backend, dtype: str) -> None:
    # A float16 holds sums up to 65,504.
    for size in (1, 1000, 10_007) if dtype == "float16" else (1, 1000, 1_000_003, SIZE):
        values = ordinary(dtype, size)
        arrays = [backend.array(v, dtype) for v in values]
        for reduction in REDUCED:
            options = {"reduction": reduction}
            expected = logitloss.value_and_grad(*values[:3], weight=values[3], **options)
            first = None
            for _ in range(3):
                got = logitloss.value_and_grad(*arrays[:3], weight=arrays[3], **options)
                bits = [backend.to_numpy(result).tobytes() for result in got]
                assert bits == (first or bits)
                first = bits
            # In another order than on the CPU, but of the same losses and nearly exact.
            bound = 1 if served_by_kernel(backend) else 8
            assert_within(bound, backend, got[:1], expected[:1])


@pytest.mark.parametrize("backend", KERNEL, indirect=True)
@pytest.mark.parametrize("logits", FLOATS)
@pytest.mark.parametrize("labels", (*INTEGERS, *FLOATS))
def test_two_dtypes_of_every_kind(backend: Backend, labels: str, logits: str) -> None:
    if {labels, logits} - {*INTEGERS, *backend.dtypes}:
        pytest.skip("the library lacks the dtype")
    kinds = [kind for kind in FLOATS if kind in backend.dtypes]
    # Every combination takes the time of compiling it: coefficients take turns.
    turn = FLOATS.index(logits) + (*INTEGERS, *FLOATS).index(labels)
    dtypes = labels, logits, kinds[turn % len(kinds)], kinds[(turn + 1) % len(kinds)]
    drawn = ordinary("float64", (7, 33))
    values = [v.astype(dtype) for v, dtype in zip(drawn, dtypes, strict=True)]
    arrays = [backend.array(v, dtype) for v, dtype in zip(values, dtypes, strict=True)]
    if {labels, logits} == {"float16", "bfloat16"}:
        # Together they are float32, which NumPy does not say of them.
        values = [v.astype("float32") for v in values]
    got = logitloss.value_and_grad(*arrays[:3], weight=arrays[3])
    expected = logitloss.value_and_grad(*values[:3], weight=values[3])
    assert_as_on_cpu(backend, got, expected)


LAYOUTS = {
    "transposed": lambda a: a.T,
    "every second column": lambda a: a[:, ::2],
    "a slice": lambda a: a[1:, 2:],
    "one row": lambda a: a[2],
    "empty": lambda a: a[:, :0],
    "one number": lambda a: a[0, 0],
}


@pytest.mark.parametrize("backend", GPUS, indirect=True)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(backend: Backend, dtype: str, layout: str) -> None:
    view, values = LAYOUTS[layout], ordinary(dtype, (65, 130))
    given = [view(v) for v in values]
    arrays = [view(backend.array(v, dtype)) for v in values]
    # A coefficient in every shape that broadcasts.
    for part in (lambda a: a, lambda a: a[..., :1], lambda a: a[:1], lambda a: a[:1, :1]):
        if given[0].ndim < 2 and part(values[0]).shape != values[0].shape:
            continue
        for call in CALLS.values():
            got = call(*arrays[:2], part(arrays[2]), weight=part(arrays[3]))
            expected = call(*given[:2], part(given[2]), weight=part(given[3]))
            assert_as_on_cpu(backend, got, expected)


@pytest.mark.parametrize("backend", KERNEL, indirect=True)
def test_out_and_in_place(backend: Backend) -> None:
    values = ordinary("float32", (65, 130))
    for target in (0, 1, 2):
        arrays = [backend.array(v, "float32") for v in values]
        out = (arrays[target], backend.array(values[0], "float32"))
        got = logitloss.value_and_grad(*arrays[:3], weight=arrays[3], out=out)
        assert all(result is o for result, o in zip(got, out, strict=True))
        expected = logitloss.value_and_grad(*values[:3], weight=values[3])
        assert_as_on_cpu(backend, got, expected)


def test_rows_for_gpus_are_rows_of_the_suite() -> None:
    assert set(GPUS) <= set(backends.NAMES)
