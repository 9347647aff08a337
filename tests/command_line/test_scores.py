from __future__ import annotations

import math

import numpy as np
import pytest

import logitloss
from command_line.commands import REDUCTIONS, assert_within_four_ulp, save, save_pair
from logitloss._command_line import blocks
from logitloss._command_line.npy import NpyInput


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "longdouble", ">f4", "int8"])
def test_equals_the_library_on_whole_arrays(small_blocks, report, reduction, dtype):
    labels, logits = save_pair(dtype=dtype)
    rng = np.random.default_rng(1)
    pos_weight = rng.uniform(0.1, 10, 4)
    weight = rng.uniform(0, 2, (30, 1))
    save("q.npy", pos_weight)
    save("w.npy", weight)

    got = report(
        *("labels.npy", "logits.npy", "--pos-weight", "q.npy", "--weight", "w.npy"),
        *("--reduction", reduction, "--loss-out", "loss.npy", "--grad-out", "grad.npy"),
    )

    value, gradient = logitloss.value_and_grad(
        labels, logits, pos_weight, weight=weight, reduction=reduction
    )
    loss, _ = logitloss.value_and_grad(labels, logits, pos_weight, weight=weight)
    precision = max(float(np.finfo(value.dtype).eps), np.finfo(np.float64).eps)
    assert got["value"] == pytest.approx(float(value), rel=4 * precision)
    assert got["reduction"] == reduction
    assert got["elements"] == 120
    assert got["elements_per_second"] > 0
    written_loss, written_gradient = np.load("loss.npy"), np.load("grad.npy")
    assert written_loss.dtype == written_gradient.dtype == value.dtype
    np.testing.assert_array_equal(written_loss, loss)
    assert_within_four_ulp(written_gradient, gradient)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_without_weight_the_means_agree(small_blocks, report, reduction):
    labels, logits = save_pair(dtype="float64")
    got = report("labels.npy", "logits.npy", "--pos-weight", 3, "--reduction", reduction)
    expected = logitloss.weighted_cross_entropy_with_logits(labels, logits, 3, reduction=reduction)
    assert got["value"] == pytest.approx(float(expected), rel=1e-14)


def test_pos_weight_is_one_and_reduction_mean_by_default(report):
    labels, logits = save_pair(dtype="float64")
    expected = logitloss.sigmoid_cross_entropy_with_logits(labels, logits, reduction="mean")
    assert report("labels.npy", "logits.npy")["value"] == pytest.approx(expected, rel=1e-14)


def test_reduction_none_writes_elementwise_results_and_no_value(small_blocks, report):
    labels, logits = save_pair()
    options = ("--reduction", "none", "--loss-out", "loss.npy", "--grad-out", "grad.npy")
    assert report("labels.npy", "logits.npy", "--pos-weight", 3, *options)["value"] is None
    loss, gradient = logitloss.value_and_grad(labels, logits, 3)
    np.testing.assert_array_equal(np.load("loss.npy"), loss)
    np.testing.assert_array_equal(np.load("grad.npy"), gradient)


@pytest.mark.parametrize("shape", [(), (1,), (7,), (8,), (100,), (2, 9), (3, 5, 7), (20, 1, 2)])
@pytest.mark.parametrize("labels_order", "CF")
@pytest.mark.parametrize("logits_order", "CF")
def test_every_shape_and_memory_order(small_blocks, report, shape, labels_order, logits_order):
    rng = np.random.default_rng(2)
    labels, logits, weight = rng.random(shape), rng.normal(0, 3, shape), rng.random(shape)
    pos_weight = rng.random(shape[-1:])
    save("labels.npy", labels.copy(labels_order))
    save("logits.npy", logits.copy(logits_order))
    save("w.npy", weight.copy(labels_order))
    save("q.npy", pos_weight)

    got = report(
        *("labels.npy", "logits.npy", "--pos-weight", "q.npy", "--weight", "w.npy"),
        *("--reduction", "sum", "--loss-out", "loss.npy", "--grad-out", "grad.npy"),
    )

    loss, gradient = logitloss.value_and_grad(labels, logits, pos_weight, weight=weight)
    assert got["value"] == pytest.approx(float(np.sum(loss)), rel=1e-14)
    for name, expected in [("loss.npy", loss), ("grad.npy", gradient)]:
        written = np.load(name)
        assert written.shape == shape
        np.testing.assert_array_equal(written, expected)
        assert written.flags.c_contiguous or logits_order == "F"


@pytest.mark.parametrize("shape", [(300, 500), (5000, 3), (3, 5000), (40, 3, 50), (2, 700, 2)])
def test_mixed_memory_orders_are_read_in_runs(report, monkeypatch, shape):
    """Not single elements far apart, for each of which a disk would read a page."""
    monkeypatch.setattr(blocks, "BLOCK_ELEMENTS", 1024)
    rng = np.random.default_rng(0)
    labels, logits = rng.random(shape), rng.normal(0, 5, shape)
    save("labels.npy", np.asfortranarray(labels))
    save("logits.npy", logits)
    reads = []
    read = NpyInput._read
    monkeypatch.setattr(NpyInput, "_read", lambda *args: (reads.append(len(args[2])), read(*args)))
    report("labels.npy", "logits.npy", "--reduction", "sum", "--grad-out", "grad.npy")
    assert sum(reads) == labels.nbytes + logits.nbytes
    assert len(reads) <= 2 * 2 * labels.size / 32
    gradient = logitloss.value_and_grad(labels, logits)[1]
    np.testing.assert_array_equal(np.load("grad.npy"), gradient)


@pytest.mark.parametrize("order", "CF")
def test_outputs_keep_the_order_of_the_logits(report, order):
    _, logits = save_pair((30, 4))
    save("logits.npy", logits.copy(order))
    report("labels.npy", "logits.npy", "--loss-out", "loss.npy")
    assert np.load("loss.npy").flags[f"{order}_CONTIGUOUS"]


@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0)])
def test_empty_files(report, shape):
    save_pair(shape)
    warning = f"logits.npy: no elements, its shape is {shape}"
    options = ("--reduction", "sum", "--loss-out", "loss.npy")
    got = report("labels.npy", "logits.npy", *options, warning=warning)
    assert (got["value"], got["elements"], got["elements_per_second"]) == (0, 0, 0)
    assert got["share_of_positives"] == "NaN"
    assert np.load("loss.npy").shape == shape
    got = report("labels.npy", "logits.npy", "--reduction", "mean", warning=warning)
    assert got["value"] == "NaN"


def test_several_blocks_of_the_real_size(report, monkeypatch):
    size = blocks.BLOCK_ELEMENTS + 12345
    labels, logits = save_pair((size,))
    calls = []
    whole = logitloss.value_and_grad

    def spy(labels, *args, **kwargs):
        calls.append(labels.size)
        return whole(labels, *args, **kwargs)

    monkeypatch.setattr(logitloss, "value_and_grad", spy)
    monkeypatch.setattr(
        *(logitloss, "weighted_cross_entropy_with_logits"),
        lambda *args, **kwargs: pytest.fail("loss and gradient take one pass"),
    )
    got = report("labels.npy", "logits.npy", "--loss-out", "loss.npy", "--grad-out", "grad.npy")
    assert calls == [blocks.BLOCK_ELEMENTS, 12345]
    expected, gradient = whole(labels, logits, reduction="mean")
    assert got["value"] == pytest.approx(float(expected), rel=1e-6)
    # The library rounds its result to float32, the command line does not.
    losses = np.load("loss.npy").astype(np.float64)
    assert got["value"] == pytest.approx(losses.mean(), rel=1e-12)
    assert_within_four_ulp(np.load("grad.npy"), gradient)


def test_half_precision_losses_are_not_rounded_before_they_are_added(report):
    save("logits.npy", np.full(10000, 10, np.float16))
    save("labels.npy", np.zeros(10000, bool))
    got = report("labels.npy", "logits.npy", "--reduction", "sum")
    assert got["value"] == pytest.approx(10000 * (10 + math.log1p(math.exp(-10))), rel=1e-7)


def test_half_precision_rounds_coefficients_as_the_library_does(report):
    save("logits.npy", np.float16([-8]))
    save("labels.npy", np.uint8([1]))
    save("w.npy", np.array([1 / 3]))
    options = ("--pos-weight", 0.1, "--weight", "w.npy")
    expected = float(np.float16(0.1)) * float(np.float16(1 / 3)) * math.log1p(math.exp(8))
    assert report("labels.npy", "logits.npy", *options)["value"] == pytest.approx(expected, 1e-6)


def test_special_values(report):
    """NumPy says nothing about them; NaN and negative weights raise doubts."""
    save("logits.npy", np.array([np.inf, -np.inf, np.nan]))
    save("labels.npy", np.array([0.0, 1.0, 0.5]))
    warning = "logits.npy: 1 logit is NaN, the first is nan in row 2 (from 0)"
    options = ("--reduction", "sum")
    assert report("labels.npy", "logits.npy", *options, warning=warning)["value"] == "NaN"
    save("logits.npy", np.array([np.inf, -np.inf, -1e308]))
    options, warning = ("--pos-weight", -1), "--pos-weight -1 is negative or not finite"
    assert report("labels.npy", "logits.npy", *options, warning=warning)["value"] == "NaN"
    assert report("labels.npy", "logits.npy")["value"] == "Infinity"


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_masked_elements_count_for_nothing(small_blocks, report, reduction):
    labels, logits = save_pair((20,), "float64")
    labels = labels.astype(float)
    weight = np.ones(20)
    labels[:9], logits[5:14], weight[:14] = 255, np.nan, 0
    for name, array in [("labels.npy", labels), ("logits.npy", logits), ("w.npy", weight)]:
        save(name, array)
    got = report("labels.npy", "logits.npy", "--weight", "w.npy", "--reduction", reduction)
    expected = logitloss.weighted_cross_entropy_with_logits(
        labels, logits, 1, weight=weight, reduction=reduction
    )
    assert got["value"] == pytest.approx(float(expected), rel=1e-14)
    assert got["share_of_positives"] == np.mean(labels[14:])


# The last ones are zero in the dtype of the result.
@pytest.mark.parametrize("weight", [[0.0, 0.0], [1.0, -1.0], [1e-50, 1e-50]])
def test_weighted_mean_of_weights_that_sum_to_zero(report, weight):
    labels, logits = save_pair((2,))
    save("w.npy", weight)
    options = ("--weight", "w.npy", "--reduction", "weighted_mean", "--grad-out", "grad.npy")
    warning = ""
    if weight[1] < 0:
        warning = "w.npy: 1 weight is negative or not finite, the first is -1.0 in row 1 (from 0)"
    assert report("labels.npy", "logits.npy", *options, warning=warning)["value"] == "NaN"
    _, gradient = logitloss.value_and_grad(
        labels, logits, weight=np.array(weight), reduction="weighted_mean"
    )
    np.testing.assert_array_equal(np.load("grad.npy"), gradient)


@pytest.mark.parametrize(
    ("labels", "share"),
    [([True, False, False, False], 0.25), ([0.5, 0.5, 1.0, 0.0], 0.5), ([0, 0, 0, 1], 0.25)],
)
def test_share_of_positives(report, labels, share):
    save("labels.npy", labels)
    save("logits.npy", np.zeros(4))
    assert report("labels.npy", "logits.npy")["share_of_positives"] == share
