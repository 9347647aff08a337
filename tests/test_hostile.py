"""Arguments meant to break things: a clear error or a defined result, and never a crash."""

from __future__ import annotations

import contextlib
import decimal
import fractions
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import logitloss
from logitloss.__main__ import main

LABELS, LOGITS = np.array([1.0, 0.0, 0.5]), np.array([0.5, -3.0, 2.0])
EXPECTED = logitloss.weighted_cross_entropy_with_logits(LABELS, LOGITS, 2.0)


class Hostile(Exception):
    pass


def refuse(*args: Any, **kwargs: Any) -> Any:
    raise Hostile


def raising(name: str, base: type = object) -> Any:
    """An object one of whose special methods raises."""
    return type(f"Raises_{name}", (base,), {name: refuse})()


class RaisesEverywhere:
    def __getattribute__(self, name: str) -> Any:
        raise Hostile


class Endless:
    """A sequence that never ends the recursion into it."""

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> Endless:
        if index:
            raise IndexError
        return self


class LyingLength:
    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> float:
        if index > 2:
            raise IndexError
        return 0.5


class ClaimsANamespace:
    shape, dtype, ndim = (3,), np.dtype("f8"), 1

    def __array_namespace__(self, api_version: Any = None) -> Any:
        raise Hostile


recursive: list[Any] = []
recursive.append(recursive)

WRONG = {
    "None": None,
    "str": "0.5",
    "bytes": b"0.5",
    "object": object(),
    "dict": {"a": 1},
    "set": {1.0},
    "generator": (v for v in (1.0, 0.0, 0.5)),
    "function": refuse,
    "class": float,
    "module": np,
    "complex": 1j,
    "Decimal": decimal.Decimal(1),
    "Fraction": fractions.Fraction(1, 2),
    "Ellipsis": ...,
    "slice": slice(3),
    "huge integer": 10**400,
    "ragged": [[1.0], [1.0, 2.0], 3.0],
    "recursive": recursive,
    "list of str": ["a", "b", "c"],
    "strings": np.array(["a", "b", "c"]),
    "dates": np.array(["2020-01-01"] * 3, "M8[D]"),
    "durations": np.array([1, 2, 3], "m8[s]"),
    "complex array": np.zeros(3, "c8"),
    "objects": np.array([1.0, None, "x"], object),
    "numbers as objects": np.array([1.0, 0.0, 0.5], object),
    "raising objects": np.array([raising("__float__"), raising("__bool__"), 1], object),
    "structured": np.zeros(3, [("a", "f8"), ("b", "i4")]),
    "subarray dtype": np.zeros(3, np.dtype(("f8", (2,)))),
    "void": np.zeros(3, "V8"),
    "masked": np.ma.masked_array([1.0, 0.0, 0.5], [True, False, False]),
    "masked constant": np.ma.masked,
    "__array__ raises": raising("__array__"),
    "__array_interface__ raises": type("A", (), {"__array_interface__": property(refuse)})(),
    "__array_namespace__ raises": ClaimsANamespace(),
    "everything raises": RaisesEverywhere(),
    "endless": Endless(),
    "negative length": LyingLength(-1),
    "length beyond sys.maxsize": LyingLength(2**70),
    "wrong __array__": type("B", (), {"__array__": lambda self, dtype=None, copy=None: "no"})(),
    "another shape": np.ones(4),
    "more dimensions": np.ones((1, 1, 3)),
}


@pytest.mark.parametrize("position", ["labels", "logits", "pos_weight", "weight"])
@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_types_in_every_position(wrong: str, position: str) -> None:
    if position == "weight" and wrong == "None":
        pytest.skip("the default")
    arguments = {"labels": LABELS, "logits": LOGITS, "pos_weight": 2.0, "weight": 1.0}
    arguments[position] = WRONG[wrong]
    out = np.full(3, 7.0), np.full(3, 7.0)
    refusals = (TypeError, ValueError, Hostile, RecursionError, OverflowError, MemoryError)
    for function in (logitloss.value_and_grad, logitloss.grad_and_hess):
        with pytest.raises(refusals) as caught:
            function(**arguments, out=out)
        if wrong not in ("everything raises", "__array_namespace__ raises"):
            assert not isinstance(caught.value, (AttributeError, SystemError))
    # An error is raised before any output is written, and leaves nothing behind.
    assert all((array == 7).all() for array in out)
    got = logitloss.weighted_cross_entropy_with_logits(LABELS, LOGITS, 2.0)
    np.testing.assert_array_equal(got, EXPECTED)


@pytest.mark.parametrize(
    ("argument", "values"),
    [
        ("reduction", [None, 1, "SUM", b"sum", "", "x" * 10**6, ["sum"], np.str_("max")]),
        ("name", [1, b"name", ["name"], object()]),
        ("out", ["out", 1.0, [1.0] * 3, object(), LABELS.tobytes(), RaisesEverywhere()]),
    ],
)
def test_wrong_options(argument: str, values: list[Any]) -> None:
    for value in values:
        with pytest.raises((TypeError, ValueError, Hostile)):
            logitloss.weighted_cross_entropy_with_logits(LABELS, LOGITS, 2.0, **{argument: value})


def test_wrong_numbers_of_arguments() -> None:
    for arguments in ((), (LABELS,), (LABELS, LOGITS), (LABELS, LOGITS, 2.0, None, 1.0)):
        with pytest.raises(TypeError, match="argument"):
            logitloss.weighted_cross_entropy_with_logits(*arguments)
    with pytest.raises(TypeError, match="unexpected keyword"):
        logitloss.value_and_grad(LABELS, LOGITS, targets=LABELS)


class Loud(np.ndarray):
    """Raises at every chance that NumPy gives a subclass."""

    __array_ufunc__ = __array_function__ = __array_wrap__ = refuse


def test_subclasses_are_read_as_the_plain_arrays_they_hold() -> None:
    class Text(str):
        __eq__ = refuse
        __hash__ = str.__hash__

    class Number(float):
        __float__ = __mul__ = __eq__ = refuse
        __hash__ = float.__hash__

    class Index(int):
        __index__ = __float__ = refuse

    loud = LABELS.view(Loud), LOGITS.view(Loud), np.full(3, 2.0).view(Loud)
    for result in (
        logitloss.weighted_cross_entropy_with_logits(*loud),
        logitloss.weighted_cross_entropy_with_logits(*loud, weight=np.ones(3).view(Loud)),
        logitloss.weighted_cross_entropy_with_logits(LABELS, LOGITS, Number(2)),
    ):
        assert type(result) is np.ndarray
        np.testing.assert_array_equal(result, EXPECTED)
    with contextlib.suppress(Hostile):
        logitloss.weighted_cross_entropy_with_logits(LABELS, LOGITS, Index(2))
    with contextlib.suppress(Hostile, ValueError):
        logitloss.weighted_cross_entropy_with_logits(LABELS, LOGITS, 2.0, reduction=Text("sum"))


def test_a_modified_input_would_be_seen() -> None:
    """Every call of the suite is checked; here one whose argument changes another."""

    class Rude:
        def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
            logits[0] = 1
            return np.ones(3)

    for logits in (LOGITS.copy(), LOGITS.copy().view(Loud)):
        with pytest.raises(AssertionError, match="an input was modified"):
            logitloss.weighted_cross_entropy_with_logits(LABELS, logits, Rude())


def test_memory_that_others_hold() -> None:
    memory = bytearray(LABELS.tobytes() + LOGITS.tobytes())
    labels = np.frombuffer(memory, count=3)
    logits = np.frombuffer(memory, offset=24)
    with memoryview(memory):
        np.testing.assert_array_equal(
            logitloss.weighted_cross_entropy_with_logits(labels, logits, 2.0), EXPECTED
        )
        logitloss.weighted_cross_entropy_with_logits(labels, logits, 2.0, out=logits)
    np.testing.assert_array_equal(logits, EXPECTED)
    with pytest.raises(BufferError):
        memory.clear()
    del labels, logits
    memory.clear()
    read_only = np.frombuffer(LABELS.tobytes())
    with pytest.raises(ValueError, match="`out` must be writable"):
        logitloss.weighted_cross_entropy_with_logits(LABELS, LOGITS, 2.0, out=read_only)


@pytest.mark.exhaustive
@pytest.mark.skipif(sys.maxsize < 2**33, reason="needs 64-bit indices")
def test_more_elements_than_32_bits_count() -> None:
    """One element repeated: no memory is needed, but every index and count is as large."""
    size = 2**31 + 2**20 + 3
    one = np.ones((), np.float32)
    labels, logits = np.broadcast_to(one, size), np.broadcast_to(one * 0, size)
    mean = logitloss.weighted_cross_entropy_with_logits(labels, logits, 3.0, reduction="mean")
    assert mean == logitloss.weighted_cross_entropy_with_logits(one, one * 0, 3.0)


@pytest.mark.skipif(sys.maxsize < 2**33, reason="needs 64-bit indices")
@pytest.mark.parametrize("shape", [(2**55,), (2**29, 2**26), (1, 2**59)])
def test_results_that_no_memory_holds(shape: tuple[int, ...]) -> None:
    half = np.broadcast_to(np.float64(0.5), shape)
    for function in (logitloss.sigmoid_cross_entropy_with_logits, logitloss.grad_and_hess):
        with pytest.raises(MemoryError):
            function(half, half)


def test_wide_shapes_of_nothing() -> None:
    """No elements, but products of sizes that overflow."""
    for shape in ((2**40, 0), (0, 2**59), (2**20, 2**20, 0, 2**20)):
        empty = np.empty(shape, np.float32)
        total = logitloss.weighted_cross_entropy_with_logits(empty, empty, 1.0, reduction="sum")
        assert total == 0
        for result in logitloss.value_and_grad(empty, empty):
            assert result.shape == shape


def test_as_many_dimensions_as_numpy_has() -> None:
    array = np.full((1,) * 63 + (3,), 0.5)
    for layout in (array, array.T, array[..., ::-1]):
        loss, gradient = logitloss.value_and_grad(layout, layout, layout, weight=layout)
        assert loss.shape == gradient.shape == layout.shape


def test_an_output_that_overlaps_itself_is_refused() -> None:
    """Several results for one place: which of them stays would be chance."""
    windows = np.lib.stride_tricks.sliding_window_view
    repeated = np.lib.stride_tricks.as_strided(np.empty(1), (3,), (0,), writeable=True)
    sliding = windows(np.empty(4), 3, writeable=True)
    for shape, out in (((3,), repeated), ((2, 3), sliding)):
        labels, logits = np.broadcast_to(LABELS, shape), np.broadcast_to(LOGITS, shape)
        with pytest.raises(ValueError, match="`out` must not overlap itself"):
            logitloss.weighted_cross_entropy_with_logits(labels, logits, 2.0, out=out)
        with pytest.raises(ValueError, match=r"`out\[1\]` must not overlap itself"):
            logitloss.grad_and_hess(labels, logits, 2.0, out=(np.empty(shape), out))


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    np.save("labels.npy", LABELS.astype("f4"))
    np.save("logits.npy", LOGITS.astype("f4"))
    return tmp_path


@given(data=st.data())
def test_damaged_files(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Any bytes changed, cut off or added: the command line reports them, or computes."""
    folder = tmp_path_factory.mktemp("damaged")
    labels, logits, loss = (folder / f"{name}.npy" for name in ("labels", "logits", "loss"))
    np.save(labels, np.zeros((4, 5), data.draw(st.sampled_from(["f4", "f8", "i2", "?"]))))
    np.save(logits, np.ones((4, 5), data.draw(st.sampled_from(["f4", "<f8", ">f4", "f2"]))))
    target = data.draw(st.sampled_from([labels, logits]))
    content = bytearray(target.read_bytes())
    for _ in range(data.draw(st.integers(1, 5))):
        place = data.draw(st.integers(0, min(len(content), 140)))
        match data.draw(st.sampled_from(["change", "insert", "delete", "cut"])):
            case "change":
                content[place : place + 1] = data.draw(st.binary(min_size=1, max_size=1))
            case "insert":
                content[place:place] = data.draw(
                    st.binary(max_size=4) | st.sampled_from([b"9", b"-", b"(", b"'O'", b"99999999"])
                )
            case "delete":
                del content[place : place + data.draw(st.integers(1, 10))]
            case "cut":
                del content[place:]
    target.write_bytes(content)
    status = main([str(labels), str(logits), "--reduction", "none", "--loss-out", str(loss)])
    assert status in (0, 2)
    assert loss.exists() == (status == 0)
    assert {path.name for path in folder.iterdir()} <= {"labels.npy", "logits.npy", "loss.npy"}


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
@pytest.mark.parametrize("buffered", [True, False])
@pytest.mark.parametrize("options", [[], ["--json"], ["--version"], ["--config"], ["--help"]])
def test_output_onto_a_full_disk(files: Path, options: list[str], buffered: bool) -> None:
    environment = {name: v for name, v in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with open("/dev/full", "w") as full:
        result = subprocess.run(
            [sys.executable, "-m", "logitloss", "labels.npy", "logits.npy", *options],
            env=environment if buffered else environment | {"PYTHONUNBUFFERED": "1"},
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
        )
    assert result.returncode == 2
    assert result.stderr.startswith("logitloss: ")
    assert result.stderr.endswith("No space left on device\n")
    assert result.stderr.count("\n") == 1
