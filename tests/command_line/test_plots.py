from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest
from commands import assert_one_line, files, save, save_pair

import logitloss


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


@pytest.mark.parametrize("order", "CF")
def test_what_the_plot_counts(small_blocks, run, monkeypatch, order):
    pytest.importorskip("matplotlib", reason="needs the extra `plot`")
    from logitloss._command_line.plot import Plot

    rng = np.random.default_rng(7)
    shape = (50, 4)
    logits = rng.normal(0, 3, shape)
    labels = (rng.random(shape) < 0.4).astype(float)
    weight = rng.uniform(0.5, 2, shape) * (rng.random(shape) < 0.7)
    logits[weight == 0] = np.nan
    labels[0, 0] = np.nan
    logits[1, :2], weight[1, :2] = [-40, 40], 1
    labels[2, 0], logits[2, 0], weight[2, 0] = 0.5, 0, 1
    for name, array in [("labels.npy", labels), ("logits.npy", logits), ("w.npy", weight)]:
        save(name, array.copy(order))
    drawn = []
    monkeypatch.setattr(Plot, "draw", lambda self: drawn.append(self) or b"")
    options = ("--pos-weight", 5, "--weight", "w.npy", "--plot", "a.png")
    assert run("labels.npy", "logits.npy", *options)[0] == 0
    (plot,) = drawn

    kept = (weight != 0) & ~np.isnan(labels)
    x, z, w = logits[kept], labels[kept], weight[kept]
    loss = logitloss.weighted_cross_entropy_with_logits(z, x, 5, weight=w)
    edges = np.array([-np.inf, *range(-15, 16), np.inf])
    for counted, weights in [
        (plot._weights, w),
        (plot._observed, w * z),
        (plot._predicted, w / (1 + np.exp(-x))),
    ]:
        expected, _ = np.histogram(x, edges, weights=weights)
        np.testing.assert_allclose(counted, expected, rtol=1e-13)
    for row, members in enumerate((loss[z < 0.5], loss[z >= 0.5])):
        assert plot._elements[row].sum() == members.size
        assert plot._loss[row] == pytest.approx(members.sum(), rel=1e-13)
        between = (members >= 1e-2) & (members < 1e-1)
        # Four bins to the decade, from 1e-8.
        assert plot._elements[row, 24:28].sum() == between.sum() > 0


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
    from logitloss._command_line.plot import Plot

    def draw(self):
        raise OSError(28, "No space left on device")

    save_pair()
    monkeypatch.setattr(Plot, "draw", draw)
    result = run("labels.npy", "logits.npy", "--plot", "a.png", "--loss-out", "loss.npy")
    assert_one_line(result, "No space left")
    assert files() == {"labels.npy", "logits.npy"}
