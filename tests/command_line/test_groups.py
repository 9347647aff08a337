"""The value of each group of rows."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

import logitloss
from command_line.commands import REDUCTIONS, assert_one_line, save

REGIONS = ["north", "south", "", "east", "region 10", "region 9"]


def save_rows(shape: tuple[int, ...], order: str = "C") -> tuple[Any, Any, Any, Any]:
    """Write labels, logits, weights and one of six groups for each row; return them."""
    rng = np.random.default_rng(9)
    labels, logits = rng.random(shape), rng.normal(0, 3, shape)
    weight = rng.random(shape) * (rng.random(shape) < 0.7)
    labels[weight == 0] = np.nan
    for name, array in [("labels.npy", labels), ("logits.npy", logits), ("w.npy", weight)]:
        save(name, array.copy(order))
    return labels, logits, weight, rng.integers(0, 6, shape[0])


def expected_rows(labels, logits, weight, group, names, reduction) -> list[dict[str, Any]]:
    rows = []
    for number, name in enumerate(names):
        z, x, w = (array[group == number] for array in (labels, logits, weight))
        value = logitloss.sigmoid_cross_entropy_with_logits(z, x, weight=w, reduction=reduction)
        share = np.mean(z[w != 0])
        rows.append(
            {
                "group": name,
                "value": pytest.approx(float(value), rel=1e-13),
                "elements": z.size,
                "share_of_positives": pytest.approx(float(share), rel=1e-13),
            }
        )
    return rows


@pytest.mark.parametrize("shape", [(60,), (60, 4), (60, 2, 3)])
@pytest.mark.parametrize("order", "CF")
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_groups_of_an_array(small_blocks, report, shape, order, reduction):
    *arrays, group = save_rows(shape, order)
    save("group.npy", group)
    options = ("--weight", "w.npy", "--reduction", reduction, "--by", "group.npy")
    rows = report("labels.npy", "logits.npy", *options)["groups"]
    assert rows == expected_rows(*arrays, group, [str(number) for number in range(6)], reduction)


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
@pytest.mark.parametrize("block", [3, 7, 1000])
def test_groups_of_a_column(monkeypatch, tables, report, suffix, block):
    from logitloss._command_line import blocks

    monkeypatch.setattr(blocks, "BLOCK_ELEMENTS", block)
    *arrays, group = save_rows((60, 4))
    regions = [REGIONS[number] or None for number in group]
    tables(region=regions, other=regions)
    options = ("--weight", "w.npy", "--reduction", "mean", "--by", f"table.{suffix}:region")
    rows = report("labels.npy", "logits.npy", *options)["groups"]
    names = ["north", "south", "" if suffix == "csv" else "null", "east", "region 10", "region 9"]
    expected = expected_rows(*arrays, group, names, "mean")
    # By name, and numbers in names by their size.
    order = [2, 3, 0, 5, 4, 1] if suffix == "csv" else [3, 0, 2, 5, 4, 1]
    assert rows == [expected[number] for number in order]


def test_groups_beside_the_columns_that_are_scored(small_blocks, tables, report):
    rng = np.random.default_rng(0)
    labels, logits, group = rng.random(40) < 0.5, rng.normal(size=40), rng.integers(0, 3, 40)
    tables(z=labels, x=logits, g=group, flag=group == 1)
    for name in ("table.csv", "table.parquet"):
        got = report(f"{name}:z", f"{name}:x", "--by", f"{name}:g")["groups"]
        ones = np.ones(40)
        assert got == expected_rows(labels, logits, ones, group, ["0", "1", "2"], "mean")
        # A column that is read as numbers, too, and one of booleans.
        got = report(f"{name}:z", f"{name}:x", "--weight", f"{name}:g", "--by", f"{name}:g")
        assert [row["group"] for row in got["groups"]] == ["0", "1", "2"]
        got = report(f"{name}:z", f"{name}:x", "--by", f"{name}:flag")
        assert [row["group"] for row in got["groups"]] == ["false", "true"]


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_groups_beside_weights_of_the_same_table(small_blocks, tables, report, suffix):
    """Those are read before the pass begins, and are used again for every row."""
    labels, logits, _, _ = save_rows((3, 3))
    save("labels.npy", np.nan_to_num(labels))
    tables(q=[1.0, 2.0, 3.0], g=["a", "b", "a"])
    name = f"table.{suffix}"
    got = report("labels.npy", "logits.npy", "--pos-weight", f"{name}:q", "--by", f"{name}:g")
    loss = logitloss.weighted_cross_entropy_with_logits(np.nan_to_num(labels), logits, [1, 2, 3.0])
    assert [row["value"] for row in got["groups"]] == [
        pytest.approx(float(np.mean(loss[[0, 2]])), rel=1e-13),
        pytest.approx(float(np.mean(loss[1])), rel=1e-13),
    ]


def test_groups_of_a_column_are_read_once(monkeypatch, tables, report):
    """Not once for each column of an array in Fortran order."""
    from logitloss._command_line import blocks
    from logitloss._command_line.tables import Table

    monkeypatch.setattr(blocks, "BLOCK_ELEMENTS", 20)
    labels, logits, _, group = save_rows((60, 4), "F")
    save("labels.npy", np.asfortranarray(np.nan_to_num(labels)))
    tables(g=group)
    rewinds = []
    rewind = Table._rewind
    monkeypatch.setattr(Table, "_rewind", lambda self: (rewinds.append(None), rewind(self)))
    got = report("labels.npy", "logits.npy", "--by", "table.csv:g")["groups"]
    # One when it is opened, one when it is read.
    assert len(rewinds) == 2
    arrays = (np.nan_to_num(labels), logits, np.ones((60, 4)), group)
    assert got == expected_rows(*arrays, [str(number) for number in range(6)], "mean")


def test_dictionaries_with_nulls(report):
    pa = pytest.importorskip("pyarrow", reason="needs the extra `tables`")
    parquet = pytest.importorskip("pyarrow.parquet")
    group = pa.array(["a", None, "b", "a"]).dictionary_encode()
    parquet.write_table(pa.table({"z": [1, 0, 1, 0], "g": group}), "table.parquet")
    rows = report("table.parquet:z", "table.parquet:z", "--by", "table.parquet:g")["groups"]
    assert [(row["group"], row["elements"]) for row in rows] == [("a", 2), ("b", 1), ("null", 1)]


@pytest.mark.parametrize(
    ("group", "names"),
    [
        (np.array(["b", "a", "b"]), ["a", "b"]),
        (np.array([b"b", b"a", b"b"]), ["a", "b"]),
        ([True, False, True], ["false", "true"]),
        ([10, 9, 10], ["9", "10"]),
        ([0.5, -2.0, np.nan], ["-2", "0.5", "nan"]),
    ],
)
def test_names_of_groups(report, group, names):
    save("z.npy", np.zeros(3))
    save("group.npy", group)
    rows = report("z.npy", "z.npy", "--by", "group.npy")["groups"]
    assert [row["group"] for row in rows] == names


def test_groups_as_text(run):
    save("z.npy", np.zeros((3, 2)))
    save("group.npy", ["a", "b", "a very long name of a group"])
    _, out, _ = run("z.npy", "z.npy", "--by", "group.npy", "--per-class")
    *_, classes, groups = out.split("\n\n")
    assert classes.startswith("class ")
    assert re.fullmatch(
        r"group +value \(mean\) +share of positives +elements\n"
        r"a +0\.6931471805599\d* +0\.00% +2\n"
        r"a very long name of a group 0\.6931471805599\d* +0\.00% +2\n"
        r"b +0\.6931471805599\d* +0\.00% +2\n",
        groups,
    )
    # Below each other.
    header, first, *_ = groups.splitlines()
    assert header.index("value") == first.index("0.69")
    assert header.index("elements") == first.rindex("2")


def test_groups_that_do_not_fit(run, monkeypatch, tables):
    from logitloss._command_line import groups

    save("z.npy", np.zeros((3, 2)))
    for shape in [(2,), (3, 1), ()]:
        save("group.npy", np.zeros(shape, int))
        result = run("z.npy", "z.npy", "--by", "group.npy")
        assert_one_line(result, "--by must hold one value for each row", str(shape), "(3, 2)")
    tables(g=["a", "b"])
    result = run("z.npy", "z.npy", "--by", "table.csv:g")
    assert_one_line(result, "--by must hold one value for each row", "(2,) in table.csv:g")
    assert_one_line(run("z.npy", "z.npy", "--by", "table.csv:h"), "table.csv: no column 'h'")
    options = ("--by", "table.csv:g", "--reduction", "none", "--loss-out", "loss.npy")
    assert_one_line(run("z.npy", "z.npy", *options), "--by")
    monkeypatch.setattr(groups, "MOST_GROUPS", 2)
    save("group.npy", [1, 2, 3])
    result = run("z.npy", "z.npy", "--by", "group.npy", "--loss-out", "loss.npy")
    assert_one_line(result, "group.npy: --by takes at most 2 different values")
