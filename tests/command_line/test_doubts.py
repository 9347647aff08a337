"""Numbers that can be computed with but cannot be meant."""

from __future__ import annotations

import numpy as np
import pytest

import logitloss
from command_line.commands import OUTPUTS, assert_one_line, files, save, save_pair


def save_arrays(**arrays: object) -> None:
    for name, array in arrays.items():
        save(f"{name}.npy", array)


def assert_doubted(report, run, arguments: tuple[object, ...], warning: str) -> None:
    """A warning as it is, an error with nothing written if asked for."""
    before = files()
    report(*arguments, warning=warning)
    assert_one_line(run(*arguments, *OUTPUTS, "--strict"), f"logitloss: {warning}\n")
    assert files() == before


CASES = {
    "swapped": (
        {"labels": [0.5, -2.0, 3.0], "logits": [0.0, 1.0, 1.0]},
        "labels.npy: 2 labels are not between 0 and 1, the first is -2.0 in row 1 (from 0); "
        "are labels and logits swapped?",
    ),
    "labels of -1 and 1": (
        {"labels": np.array([1, -1, 1], "int8"), "logits": [0.5, 1.0, 2.0]},
        "labels.npy: 1 label is not between 0 and 1, the first is -1 in row 1 (from 0); "
        "for labels of -1 and 1, take (labels + 1) / 2",
    ),
    "labels in percent": (
        {"labels": np.uint8([[0, 100], [100, 0]]), "logits": [[0.5, 1.0], [2.0, 3.0]]},
        "labels.npy: 2 labels are not between 0 and 1, the first is 100 at index [0, 1]",
    ),
    "a NaN label": (
        {"labels": [1.0, 0.0, np.nan], "logits": [0.5, 1.0, 2.0]},
        "labels.npy: 1 label is not between 0 and 1, the first is nan in row 2 (from 0)",
    ),
    "NaN logits": (
        {"labels": [1.0, 0.0, 0.0], "logits": [np.nan, 1.0, np.nan]},
        "logits.npy: 2 logits are NaN, the first is nan in row 0 (from 0)",
    ),
    "a single element": (
        {"labels": 2.0, "logits": 0.5},
        "labels.npy: 1 label is not between 0 and 1, the first is 2.0",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_labels_and_logits(small_blocks, report, run, case):
    arrays, warning = CASES[case]
    save_arrays(**arrays)
    assert_doubted(report, run, ("labels.npy", "logits.npy"), warning)


@pytest.mark.parametrize("value", [-1.0, np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("option", ["--weight", "--pos-weight"])
@pytest.mark.parametrize("shape", [(30, 4), (4,), (30, 1)])
def test_weights(small_blocks, report, run, option, value, shape):
    labels, _ = save_pair()
    weights = np.ones(shape)
    weights[-1] = value
    save("w.npy", weights)
    count = np.count_nonzero(np.broadcast_to(weights, labels.shape) != 1)
    first = [0, 3] if shape == (4,) else [29, 0]
    warning = (
        f"w.npy: {count} weight{'s are' if count > 1 else ' is'} negative or not finite, "
        f"the first is {value} at index {first}"
    )
    assert_doubted(report, run, ("labels.npy", "logits.npy", option, "w.npy"), warning)


@pytest.mark.parametrize("value", ["-3", "nan", "inf", "-0.5"])
def test_pos_weight_as_a_number(report, run, value):
    save_pair()
    arguments = ("labels.npy", "logits.npy", "--pos-weight", value)
    assert_doubted(report, run, arguments, f"--pos-weight {value} is negative or not finite")


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_table_without_rows(tables, report, run, suffix):
    tables(z=np.zeros(0), x=np.zeros(0))
    name = f"table.{suffix}"
    warning = f"{name}:x: no elements, its shape is (0,)"
    assert_doubted(report, run, (f"{name}:z", f"{name}:x"), warning)


def test_what_is_known_before_is_refused_before(run, monkeypatch):
    """A pass may take hours."""
    save_pair()
    monkeypatch.setattr(
        *(logitloss, "weighted_cross_entropy_with_logits"),
        lambda *args, **kwargs: pytest.fail("nothing is computed"),
    )
    result = run("labels.npy", "logits.npy", "--pos-weight", -1, "--strict")
    assert_one_line(result, "--pos-weight -1 is negative")


def test_what_is_counted_over_blocks(small_blocks, report):
    labels = np.zeros(100)
    labels[[30, 50, 99]] = [7, 8, 9]
    save_arrays(labels=labels, logits=np.linspace(-3, 3, 100))
    warning = "labels.npy: 3 labels are not between 0 and 1, the first is 7.0 in row 30 (from 0)"
    report("labels.npy", "logits.npy", warning=warning)


def test_elements_of_zero_weight_raise_no_doubts(small_blocks, report):
    save_arrays(
        labels=[1.0, 0.0, 255.0, np.nan],
        logits=[0.5, -0.5, np.nan, np.inf],
        w=[1.0, 2.0, 0.0, 0.0],
        q=[1.0, 1.0, -1.0, np.nan],
    )
    report("labels.npy", "logits.npy", "--weight", "w.npy", "--pos-weight", "q.npy", "--strict")


@pytest.mark.parametrize("labels", [[0.0, 1.0], [False, True], [0.3, 0.7], np.uint8([0, 1])])
def test_what_is_meant_raises_no_doubts(report, labels):
    save_arrays(labels=labels, logits=[np.inf, -np.inf], w=[0.0, 1e300])
    options = ("--weight", "w.npy", "--pos-weight", 0, "--strict")
    report("labels.npy", "logits.npy", *options)


def test_several_doubts(run):
    save_arrays(labels=[2.0, 0.0], logits=[np.nan, 1.0])
    arguments = ("labels.npy", "logits.npy", "--pos-weight", -1)
    status, out, err = run(*arguments)
    assert (status, err.count("logitloss: warning: "), err.count("\n")) == (0, 3, 3)
    assert out.startswith("value (mean)")
    assert_one_line(run(*arguments, "--strict"), "--pos-weight -1")
    assert_one_line(run("labels.npy", "logits.npy", "--strict"), "labels.npy: 1", "; logits.npy: 1")


@pytest.mark.parametrize(
    ("labels", "logits", "options"),
    [
        ("table.csv:cat,dog", "table.parquet:dog,cat", ()),
        ("labels.npy", "table.csv:cat,dog", ("--weight", "table.parquet:dog,cat")),
        ("labels.npy", "table.csv:a,b", ("--weight", "table.csv:b,a")),
    ],
)
def test_columns_of_the_same_names_in_another_order(tables, run, labels, logits, options):
    tables(cat=[1, 0], dog=[0, 0], a=[1, 1], b=[1, 2])
    save("labels.npy", np.zeros((2, 2)))
    first, second = [one for one in (labels, logits, *options[1:]) if ":" in one]
    result = run(labels, logits, *options, "--loss-out", "loss.npy")
    assert_one_line(result, f"the columns of {first} and of {second} have the same names in")
    assert "loss.npy" not in files()


def test_columns_of_other_names_and_the_same_order(tables, report):
    tables(cat=[1, 0], dog=[0, 0], x=[0.5, 1.0], y=[1.0, 2.0])
    report("table.csv:cat,dog", "table.parquet:cat,dog")
    report("table.csv:cat,dog", "table.csv:y,x")
    report("table.csv:cat,dog", "table.csv:dog,x")
