from __future__ import annotations

import re

import numpy as np
import pytest

import logitloss
from command_line.commands import REDUCTIONS, assert_one_line, save, save_pair


@pytest.mark.parametrize("shape", [(30, 4), (7, 3), (5, 3, 4), (0, 3), (3, 20)])
@pytest.mark.parametrize("order", "CF")
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_per_class(small_blocks, report, shape, order, reduction):
    rng = np.random.default_rng(6)
    labels, logits, weight = rng.random(shape), rng.normal(0, 3, shape), rng.random(shape)
    weight[1:][rng.random(shape)[1:] < 0.3] = 0
    labels[weight == 0] = np.nan
    for name, array in [("labels.npy", labels), ("logits.npy", logits), ("w.npy", weight)]:
        save(name, array.copy(order))
    options = ("--weight", "w.npy", "--reduction", reduction)
    warning = "" if labels.size else f"logits.npy: no elements, its shape is {shape}"
    assert "classes" not in report("labels.npy", "logits.npy", *options, warning=warning)
    rows = report("labels.npy", "logits.npy", *options, "--per-class", warning=warning)["classes"]
    assert [row["class"] for row in rows] == [str(index) for index in range(shape[-1])]
    for index, row in enumerate(rows):
        part = labels[..., index], logits[..., index], 1.0
        kept = weight[..., index] != 0
        expected = logitloss.weighted_cross_entropy_with_logits(
            *part, weight=weight[..., index], reduction=reduction
        )
        assert row["elements"] == part[0].size
        if part[0].size:
            assert row["value"] == pytest.approx(float(expected), rel=1e-13)
            assert row["share_of_positives"] == pytest.approx(np.mean(part[0][kept]), rel=1e-13)
        else:
            assert row["value"] == (0 if reduction == "sum" else "NaN")
            assert row["share_of_positives"] == "NaN"


def test_classes_are_named_after_columns(tables, run, report):
    tables(cat=[1, 0], dog=[0, 0])
    save("logits.npy", np.zeros((2, 2)))
    rows = report("table.csv:cat,dog", "logits.npy", "--per-class")["classes"]
    assert [row["class"] for row in rows] == ["cat", "dog"]
    assert [row["share_of_positives"] for row in rows] == [0.5, 0]
    _, out, _ = run("table.csv:cat,dog", "logits.npy", "--per-class")
    assert re.search(
        r"\n\nclass +value \(mean\) +share of positives\n"
        r"cat +0\.6931471805599\d* +50\.00%\n"
        r"dog +0\.6931471805599\d* +0\.00%\n$",
        out,
    )


def test_classes_are_not_named_after_weights(tables, report):
    save_pair((2, 3))
    tables(w=[1.0, 2.0])
    options = ("--weight", "table.csv:w,", "--per-class")
    rows = report("labels.npy", "logits.npy", *options)["classes"]
    assert [row["class"] for row in rows] == ["0", "1", "2"]


def test_weights_of_a_class_that_are_zero_in_the_dtype_of_the_result(report):
    save_pair((2, 1))
    save("w.npy", [[1e-50], [1e-50]])
    options = ("--weight", "w.npy", "--reduction", "weighted_mean", "--per-class")
    got = report("labels.npy", "logits.npy", *options)
    assert got["value"] == got["classes"][0]["value"] == "NaN"


def test_per_class_needs_classes_and_a_value(run):
    save_pair((30,))
    assert_one_line(run("labels.npy", "logits.npy", "--per-class"), "--per-class", "(30,)")
    options = ("--reduction", "none", "--loss-out", "loss.npy", "--per-class")
    assert_one_line(run("labels.npy", "logits.npy", *options), "--per-class")
