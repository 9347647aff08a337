from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import logitloss
from command_line.commands import assert_one_line, files, save, save_pair
from logitloss._command_line import plot as plots
from logitloss._command_line.drawing import draw_calibration
from logitloss._command_line.histograms import LOSS_EDGES, Histograms
from logitloss._command_line.inputs import Part


@pytest.mark.parametrize(
    ("name", "magic"), [("a.png", b"\x89PNG"), ("a.SVG", b"<?xml"), ("a.pdf", b"%PDF")]
)
def test_plot_is_a_picture(run, name, magic):
    pytest.importorskip("matplotlib", reason="needs the extra `plot`")
    save_pair()
    status, _, err = run("labels.npy", "logits.npy", "--plot", name)
    assert (status, err) == (0, "")
    assert Path(name).read_bytes().startswith(magic)


@pytest.mark.parametrize(
    ("labels", "logits"),
    [
        ([], []),
        ([0.0, 0.0], [1.0, 2.0]),
        ([0.5, np.nan], [0.0, 0.0]),
        ([0.0, 1.0, 1.0], [-np.inf, np.inf, -np.inf]),
        (1.0, 800.0),
    ],
)
def test_plot_of_next_to_nothing(run, labels, logits):
    pytest.importorskip("matplotlib", reason="needs the extra `plot`")
    save("labels.npy", labels)
    save("logits.npy", logits)
    status, _, err = run("labels.npy", "logits.npy", "--plot", "a.png")
    assert status == 0
    assert err.count("\n") == err.count("logitloss: warning: ") <= 1


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Histograms, str, str]]:
    """What was to be drawn, instead of pictures."""
    pytest.importorskip("matplotlib", reason="needs the extra `plot`")
    calls: list[tuple[Histograms, str, str]] = []

    def draw(*arguments: Any) -> bytes:
        calls.append(arguments)
        return b"a picture"

    monkeypatch.setattr(plots, "draw", draw)
    return calls


def assert_counts(plot: Histograms, labels: Any, logits: Any, weight: Any, pos_weight: Any) -> None:
    kept = (weight != 0) & ~np.isnan(labels)
    x, z, w = logits[kept], labels[kept], weight[kept]
    loss = logitloss.weighted_cross_entropy_with_logits(z, x, pos_weight, weight=w)
    place = np.digitize(x, range(-15, 16))
    for counted, weights in [
        (plot.weights, w),
        (plot.squared_weights, w**2),
        (plot.observed, w * z),
        (plot.predicted, w / (1 + np.exp(-x))),
    ]:
        expected = [weights[place == index].sum() for index in range(32)]
        np.testing.assert_allclose(counted, expected, rtol=1e-13)
    edges = np.array([0, *LOSS_EDGES[1:-1], np.inf])
    for row, members in enumerate((loss[z < 0.5], loss[z >= 0.5])):
        assert plot.loss[row] == pytest.approx(members.sum(), rel=1e-13)
        np.testing.assert_array_equal(plot.elements[row], np.histogram(members, edges)[0])


@pytest.mark.parametrize("order", "CF")
@pytest.mark.parametrize("weights", ["of all kinds", "none"])
@pytest.mark.parametrize("dtype", ["bool", "uint8", "float64"])
def test_what_the_plot_counts(small_blocks, run, drawn, order, weights, dtype):
    rng = np.random.default_rng(7)
    shape = (50, 4)
    logits = rng.normal(0, 3, shape)
    labels = (rng.random(shape) < 0.4).astype(dtype)
    weight = np.ones(shape)
    logits[1, :2] = [-40, 40]
    logits[5] = [0, -1, 1, 16]
    if weights != "none":
        weight = rng.uniform(0.5, 2, shape) * (rng.random(shape) < 0.7)
        logits[weight == 0] = np.nan
    if dtype == "float64":
        labels[0, 0] = np.nan
        labels[2, 0], logits[2, 0], weight[2, 0] = 0.5, 0, 1
        labels[3, 0], logits[3, 0], weight[3, 0] = 0.25, 0, 1
    for name, array in [("labels.npy", labels), ("logits.npy", logits), ("w.npy", weight)]:
        save(name, array.copy(order))
    options = () if weights == "none" else ("--weight", "w.npy")
    assert run("labels.npy", "logits.npy", "--pos-weight", 5, "--plot", "a.png", *options)[0] == 0
    ((plot, _, suffix),) = drawn
    assert suffix == ".png"
    assert_counts(plot, labels, logits, weight, 5)


def test_what_is_counted_by_more_than_a_chunk(run, drawn):
    rng = np.random.default_rng(7)
    logits = rng.normal(-3, 3, 100_000).astype("f4")
    labels = rng.random(100_000) < 0.1
    save("labels.npy", labels)
    save("logits.npy", logits)
    assert run("labels.npy", "logits.npy", "--plot", "a.png")[0] == 0
    ((plot, _, _),) = drawn
    assert plot.weights.sum() == plot.elements.sum() == 100_000
    assert plot.observed.sum() == labels.sum()
    expected = 1 / (1 + np.exp(-logits.astype("f8")))
    assert plot.predicted.sum() == pytest.approx(expected.sum(), rel=1e-13)
    # Infinite losses, and those of negative weights, which are in the first bin.
    save("labels.npy", np.array([True, True, False]))
    save("logits.npy", np.array([-np.inf, 0.0, np.inf]))
    run("labels.npy", "logits.npy", "--plot", "a.png", "--pos-weight", -1)
    plot = drawn[-1][0]
    assert (plot.elements[0, -1], plot.elements[1, 0]) == (1, 2)
    assert list(plot.loss) == [np.inf, -np.inf]


@pytest.mark.parametrize("order", "CF")
def test_a_plot_of_each_class(small_blocks, tables, run, drawn, order):
    rng = np.random.default_rng(7)
    labels = (rng.random((30, 3)) < 0.4).astype(float)
    logits = rng.normal(0, 3, (30, 3))
    weight = rng.uniform(0, 2, (30, 3))
    tables(**dict(zip(("cat", "a/b", "dog"), labels.T, strict=True)))
    save("logits.npy", logits.copy(order))
    save("w.npy", weight.copy(order))
    arguments = ("table.csv:cat,a/b,dog", "logits.npy", "--weight", "w.npy", "--pos-weight", 5)
    before = files()
    status, out, err = run(*arguments, "--plot", "of {class}.svg")
    assert (status, err) == (0, "")
    assert "class" not in out
    assert files() - before == {"of cat.svg", "of a_b.svg", "of dog.svg"}
    for index, (plot, heading, _) in enumerate(drawn):
        of_class = (array[:, index] for array in (labels, logits, weight))
        assert_counts(plot, *of_class, 5)
        loss = logitloss.weighted_cross_entropy_with_logits(
            labels[:, index], logits[:, index], 5, weight=weight[:, index], reduction="mean"
        )
        assert f"class {('cat', 'a/b', 'dog')[index]}" in heading
        assert heading.endswith(f"30 elements, mean of the loss {loss:.6g}")


def test_a_plot_of_each_class_needs_classes(run, drawn):
    save_pair((30,))
    result = run("labels.npy", "logits.npy", "--plot", "{class}.png")
    assert_one_line(result, "{class}.png: a plot of each class needs rows of classes")
    save_pair((30, 2))
    save("0.png", np.zeros(2))
    os.rename("0.png.npy", "0.png")
    result = run("labels.npy", "logits.npy", "--pos-weight", "0.png", "--plot", "{class}.png")
    assert_one_line(result, "0.png: an output must not replace an input")
    assert "1.png" not in files()


def test_classes_whose_plots_would_share_a_file(tables, run, drawn):
    tables(**{"a/b": [1.0], "a\\b": [0.0]})
    save("logits.npy", np.zeros((1, 2)))
    result = run("table.csv:a/b,a\\b", "logits.npy", "--plot", "{class}.png")
    assert_one_line(result, "a_b.png: two outputs must not share a file")


def test_the_title_says_what_was_scored(run, drawn):
    labels, logits = save_pair((30,), "float64")
    weight = np.arange(30.0)
    save("w.npy", weight)
    options = ("--weight", "w.npy", "--pos-weight", 2.5, "--plot", "a.png")
    for reduction in ("mean", "weighted_mean", "none"):
        run("labels.npy", "logits.npy", *options, "--reduction", reduction, "--loss-out", "l.npy")
        shown = "mean" if reduction == "none" else reduction
        loss = logitloss.weighted_cross_entropy_with_logits(
            labels, logits, 2.5, weight=weight, reduction=shown
        )
        assert drawn[-1][1] == (
            "labels.npy and logits.npy\n"
            f"pos_weight 2.5, weight w.npy: 30 elements, {shown} of the loss {loss:.6g}"
        )
    long = "a_very_long_name_of_a_file_of_scores_that_goes_on_and_on.npy"
    save(long, logits)
    run("labels.npy", long, "--plot", "a.png")
    assert drawn[-1][1].startswith(f"labels.npy and …{long[-39:]}\n")


def calibration(labels: Any, logits: Any) -> Any:
    """The axes of the left panel."""
    figure = pytest.importorskip("matplotlib.figure", reason="needs the extra `plot`")
    labels, logits = np.asarray(labels), np.asarray(logits, float)
    loss = logitloss.sigmoid_cross_entropy_with_logits(labels, logits)
    histograms = Histograms()
    histograms.add(Part((slice(0, loss.size),), labels, logits, 1.0, None, None), loss)
    axes = figure.Figure().subplots()
    draw_calibration(axes, histograms)
    # So that scales and limits are final.
    axes.figure.canvas.draw()
    return axes


def points(axes: Any) -> dict[str, list[tuple[float, float]]]:
    """By marker."""
    return {
        line.get_marker(): list(zip(*line.get_data(), strict=True))
        for line in axes.lines
        if line.get_marker() in ("o", "v", "^")
    }


def test_every_bin_is_drawn():
    # Logits -5 and -2.5: no positives; 0.5: both; 4.5: all positive.
    labels = [0, 0, 0, 1, 0, 1, 1]
    axes = calibration(labels, [-5, -2.5, -2.5, 0.5, 0.5, 4.5, 4.5])
    low, high = axes.get_ylim()
    assert (low, high) == axes.get_xlim()
    shown = points(axes)
    sigmoid = {x: pytest.approx(1 / (1 + np.exp(-x)), rel=1e-13) for x in (-5, -2.5, 0.5, 4.5)}
    assert shown["o"] == [(sigmoid[0.5], 0.5)]
    assert shown["v"] == [(sigmoid[-5], low), (sigmoid[-2.5], low)]
    assert shown["^"] == [(sigmoid[4.5], high)]
    assert low < sigmoid[-5].expected
    assert high > sigmoid[4.5].expected


def test_a_perfect_model_is_drawn():
    shown = points(calibration([0, 0, 1, 1], [-20, -np.inf, 20, np.inf]))
    assert {marker: len(of_marker) for marker, of_marker in shown.items()} == {"v": 1, "^": 1}
    assert points(calibration([0, 1], [-np.inf, np.inf])) == {
        "v": [(0.05, 0.05)],
        "^": [(0.95, 0.95)],
    }


def test_names_are_no_mathematics(run):
    pytest.importorskip("matplotlib", reason="needs the extra `plot`")
    save_pair()
    os.rename("logits.npy", "$logits_{$.npy")
    status, _, err = run("labels.npy", "$logits_{$.npy", "--plot", "a.svg")
    assert (status, err) == (0, "")


def test_plot_without_matplotlib(run, monkeypatch):
    save_pair()
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    result = run("labels.npy", "logits.npy", "--plot", "a.png")
    assert_one_line(result, "--plot needs matplotlib", "pip install", "[plot]")


def test_plot_to_a_place_it_cannot_go(run):
    pytest.importorskip("matplotlib", reason="needs the extra `plot`")
    save_pair()
    assert_one_line(run("labels.npy", "logits.npy", "--plot", "a.xyz"), "a.xyz", ".png")
    assert_one_line(run("labels.npy", "logits.npy", "--plot", "png"), "png", ".svg")
    # matplotlib could write it, but it is not what --help says.
    assert_one_line(run("labels.npy", "logits.npy", "--plot", "a.jpg"), "a.jpg", ".png")
    result = run("labels.npy", "logits.npy", "--plot", "nowhere/a.png")
    assert_one_line(result, "nowhere/a.png: No such file")
    os.rename("logits.npy", "logits.png")
    result = run("labels.npy", "logits.png", "--plot", "logits.png")
    assert_one_line(result, "logits.png: an output must not replace an input")


def test_plot_that_fails_leaves_nothing_behind(run, monkeypatch):
    pytest.importorskip("matplotlib", reason="needs the extra `plot`")

    def draw(*_):
        raise OSError(28, "No space left on device")

    save_pair()
    monkeypatch.setattr(plots, "draw", draw)
    result = run("labels.npy", "logits.npy", "--plot", "a.png", "--loss-out", "loss.npy")
    assert_one_line(result, "No space left")
    assert files() == {"labels.npy", "logits.npy"}
