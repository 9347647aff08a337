from __future__ import annotations

import json
import math
import os
import pickle
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import logitloss
from logitloss import __main__ as command_line

COMMAND = [sys.executable, "-m", "logitloss"]
REDUCTIONS = ("sum", "mean", "weighted_mean")

posix_only = pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals and files")


@pytest.fixture(autouse=True)
def work_in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command_line, "BLOCK_ELEMENTS", 7)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run the command line in this process; return its status, stdout and stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        try:
            status = command_line.main([str(argument) for argument in arguments])
        except SystemExit as stop:
            status = stop.code
        return (status, *capsys.readouterr())

    return run


@pytest.fixture
def report(run: Callable[..., tuple[int, str, str]]) -> Callable[..., dict[str, Any]]:
    """Run the command line, which has to succeed; return what --json prints."""

    def report(*arguments: object) -> dict[str, Any]:
        status, out, err = run(*arguments, "--json")
        assert (status, err) == (0, "")
        return json.loads(out, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))

    return report


def save(name: str, array: Any) -> str:
    np.save(name, array)
    return name


def save_pair(shape: Any = (30, 4), dtype: str = "float32", seed: int = 0) -> tuple[Any, Any]:
    """Write labels.npy (uint8) and logits.npy; return them."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, shape, dtype=np.uint8)
    logits = rng.normal(0, 5, shape).astype(dtype)
    save("labels.npy", labels)
    save("logits.npy", logits)
    return labels, logits


def assert_one_line(result: tuple[int, str, str], *words: str) -> None:
    status, out, err = result
    assert (status, out) == (2, "")
    assert re.fullmatch(r"logitloss: .+\n", err), err
    for word in words:
        assert word in err


def assert_within_four_ulp(got: Any, expected: Any) -> None:
    """Dividing by the sum of the weights may differ: it is added up in another order."""
    assert got.dtype == expected.dtype
    # Sums and divisors of the command line are float64, whatever the dtype.
    ulp = np.maximum(np.spacing(np.abs(expected)), np.spacing(np.abs(expected).astype(float)))
    assert np.all(np.abs(got - expected) <= 4 * ulp)


def files() -> set[str]:
    return set(os.listdir())


# Values


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
    monkeypatch.setattr(command_line, "BLOCK_ELEMENTS", 1024)
    rng = np.random.default_rng(0)
    labels, logits = rng.random(shape), rng.normal(0, 5, shape)
    save("labels.npy", np.asfortranarray(labels))
    save("logits.npy", logits)
    reads = []
    read = command_line.Input._read
    monkeypatch.setattr(
        command_line.Input, "_read", lambda *args: (reads.append(len(args[2])), read(*args))
    )
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
    got = report("labels.npy", "logits.npy", "--reduction", "sum", "--loss-out", "loss.npy")
    assert (got["value"], got["elements"], got["elements_per_second"]) == (0, 0, 0)
    assert got["share_of_positives"] == "NaN"
    assert np.load("loss.npy").shape == shape
    assert report("labels.npy", "logits.npy", "--reduction", "mean")["value"] == "NaN"


def test_several_blocks_of_the_real_size(report, monkeypatch):
    size = command_line.BLOCK_ELEMENTS + 12345
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
    assert calls == [command_line.BLOCK_ELEMENTS, 12345]
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


def test_special_values_stay_quiet(run):
    save("logits.npy", np.array([np.inf, -np.inf, np.nan]))
    save("labels.npy", np.array([0.0, 1.0, 0.5]))
    status, out, err = run("labels.npy", "logits.npy", "--json", "--reduction", "sum")
    assert (status, err, json.loads(out)["value"]) == (0, "", "NaN")
    save("logits.npy", np.array([np.inf, -np.inf, -1e308]))
    status, out, err = run("labels.npy", "logits.npy", "--json", "--pos-weight", -1)
    assert (status, err, json.loads(out)["value"]) == (0, "", "NaN")
    status, out, err = run("labels.npy", "logits.npy", "--json")
    assert (status, err, json.loads(out)["value"]) == (0, "", "Infinity")


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
    assert report("labels.npy", "logits.npy", *options)["value"] == "NaN"
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


# What is printed


def test_text_report(run):
    save("labels.npy", np.zeros(4, bool))
    save("logits.npy", np.zeros(4))
    status, out, err = run("labels.npy", "logits.npy")
    assert (status, err) == (0, "")
    assert re.fullmatch(
        r"value \(mean\)            0\.693147180559945\d\n"
        r"elements                4\n"
        r"share of positives      0\.00%\n"
        r"elements per second     [\d.,]+ million\n",
        out,
    )


def test_text_report_without_a_value(run):
    save_pair()
    status, out, _ = run("labels.npy", "logits.npy", "--reduction", "none", "--loss-out", "l.npy")
    assert status == 0
    assert "value" not in out


def test_version_and_config_need_no_files(run, monkeypatch):
    monkeypatch.setitem(vars(logitloss), "__version__", "1.2.3")
    monkeypatch.setattr(logitloss, "show_config", lambda mode: {mode: "the build"})
    assert run("--version") == (0, "1.2.3\n", "")
    assert run("--config") == (0, '{\n  "dicts": "the build"\n}\n', "")


def test_help_names_every_option(run):
    status, out, _ = run("--help")
    assert status == 0
    options = ("--pos-weight", "--weight", "--reduction", "--loss-out", "--grad-out")
    for option in (*options, "--per-class", "--plot", "FILE:COLUMN"):
        assert option in out


def test_the_examples_of_the_help_run(run):
    pa = pytest.importorskip("pyarrow", reason="needs the extra `tables`")
    csv, parquet = pytest.importorskip("pyarrow.csv"), pytest.importorskip("pyarrow.parquet")
    pytest.importorskip("matplotlib", reason="needs the extra `plot`")
    save_pair((30,))
    scores = pa.table({"label": [0, 1], "logit": [-2.0, 1.0], "weight": [1.0, 2.0]})
    parquet.write_table(scores, "scores.parquet")
    csv.write_csv(pa.table({"cat": [0.5, -1.0], "dog": [2.0, 3.0]}), "tags.csv")
    save("tags.npy", np.eye(2))
    save("per_class.npy", [1.0, 2.0])
    _, help, _ = run("--help")
    _, examples = help.replace("\\\n", "").split("examples:\n")
    assert examples.count("\n") == 4
    for line in examples.splitlines():
        command, *arguments = line.split()
        assert command == "logitloss"
        status, _, err = run(*arguments)
        assert (status, err) == (0, "")
    assert {"scores.png", "loss.npy"} < files()


def test_threads(run, monkeypatch):
    save_pair()
    given = []
    monkeypatch.setattr(logitloss, "set_num_threads", given.append)
    assert run("labels.npy", "logits.npy", "--threads", 2)[0] == 0
    assert given == [2]


def test_runs_as_a_module():
    labels, logits = save_pair()
    done = subprocess.run(
        [*COMMAND, "labels.npy", "logits.npy", "--pos-weight", "3", "--json"],
        capture_output=True,
        check=True,
    )
    assert done.stderr == b""
    expected = logitloss.weighted_cross_entropy_with_logits(labels, logits, 3, reduction="mean")
    assert json.loads(done.stdout)["value"] == pytest.approx(float(expected), rel=1e-6)


# Progress


def in_terminal(*arguments: str) -> str:
    """Run the command with stderr on a terminal; return what it shows there."""
    termios = pytest.importorskip("termios", reason="needs pseudo-terminals")
    terminal, stderr = os.openpty()
    termios.tcsetwinsize(stderr, (24, 80))
    shown = []

    def watch() -> None:
        # Reading fails once the program has closed its end.
        while True:
            try:
                shown.append(os.read(terminal, 4096))
            except OSError:
                return
            if not shown[-1]:
                return

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        subprocess.run([*COMMAND, *arguments], stdout=subprocess.DEVNULL, stderr=stderr, check=True)
    finally:
        os.close(stderr)
        watcher.join()
        os.close(terminal)
    return b"".join(shown).decode()


@posix_only
def test_progress_shows_in_a_terminal():
    pytest.importorskip("tqdm", reason="needs the extra `cli`")
    save_pair((1000,))
    assert re.search(r"\d+%\|", in_terminal("labels.npy", "logits.npy"))


def test_terminal_without_tqdm_shows_nothing(run, monkeypatch):
    save_pair()
    monkeypatch.setitem(sys.modules, "tqdm", None)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    status, _, err = run("labels.npy", "logits.npy")
    assert (status, err) == (0, "")


# Bad input


def test_missing_file(run):
    save_pair()
    assert_one_line(run("nowhere.npy", "logits.npy"), "nowhere.npy: No such file")
    assert_one_line(run("labels.npy", "logits.npy", "--weight", "nowhere.npy"), "nowhere.npy")
    assert_one_line(run("labels.npy", "logits.npy", "--pos-weight", "often"), "often: No such")
    assert_one_line(run("labels.npy", "two\nlines.npy"), "two lines.npy: No such file")


def test_directory_as_input(run):
    save_pair()
    assert_one_line(run("labels.npy", "."), ".: not a regular file")


@posix_only
def test_fifo_as_input_is_not_waited_for(run):
    save_pair()
    os.mkfifo("fifo.npy")
    assert_one_line(run("labels.npy", "fifo.npy"), "fifo.npy: not a regular file")


def header(text: str, version: bytes = b"\x01\x00") -> bytes:
    width = 2 if version == b"\x01\x00" else 4
    return b"\x93NUMPY" + version + len(text).to_bytes(width, "little") + text.encode("latin-1")


def described(shape: object, descr: object = "<f4", data: bytes = b"") -> bytes:
    text = {"descr": descr, "fortran_order": False, "shape": shape}
    return header(f"{text!r}\n") + data


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"\x93NUM", id="cut in the magic string"),
        pytest.param(b"1.0,0.5\n", id="text"),
        pytest.param(b"PK\x03\x04" + bytes(100), id="npz"),
        pytest.param(described((4,))[:40], id="cut in the header"),
        pytest.param(described((4,)), id="no data"),
        pytest.param(described((4,), data=bytes(15)), id="cut in the data"),
        pytest.param(described((4,), data=bytes(17)), id="more data than promised"),
        pytest.param(described((10**15,), data=bytes(16)), id="petabytes promised"),
        pytest.param(described((2**32, 2**32), data=bytes(16)), id="size overflows"),
        pytest.param(described((10**40, 0)), id="size beyond integers"),
        pytest.param(described((-2, -2), data=bytes(16)), id="negative shape"),
        pytest.param(described((1,) * 100, data=bytes(4)), id="too many dimensions"),
        pytest.param(described((4.0,), data=bytes(16)), id="shape of floats"),
        pytest.param(described(4, data=bytes(16)), id="shape is no tuple"),
        pytest.param(described((4,), descr="nonsense", data=bytes(16)), id="no such dtype"),
        pytest.param(header("not a dict\n"), id="header is no dict"),
        pytest.param(header("{'descr'\n"), id="unbalanced header"),
        pytest.param(header("-" * 9000 + "1\n"), id="deeply nested header"),
        pytest.param(header("(" * 9000 + "\n"), id="many parentheses"),
        pytest.param(header("{}\n", b"\x03\x00"), id="format version 3"),
        pytest.param(header("{}\n", b"\x09\x00"), id="format version 9"),
    ],
)
def test_file_that_is_no_complete_npy(run, content):
    save("labels.npy", np.zeros(4, np.float32))
    Path("logits.npy").write_bytes(content)
    result = run("labels.npy", "logits.npy", "--loss-out", "loss.npy")
    assert_one_line(result, "logits.npy: not a usable .npy file")
    assert files() == {"labels.npy", "logits.npy"}


def test_truncation_is_told_in_bytes(run):
    save_pair((100,))
    os.truncate("logits.npy", os.path.getsize("logits.npy") - 1)
    assert_one_line(run("labels.npy", "logits.npy"), "400 bytes", "399")


@pytest.mark.parametrize("name", ["labels.npy", "logits.npy", "w.npy"])
def test_file_cut_short_while_it_is_read(small_blocks, run, monkeypatch, earlier_results, name):
    """A memory map of it would end the process, without a word."""
    save_pair()
    save("w.npy", np.ones((30, 4)))
    compute = logitloss.value_and_grad

    def cut(*args, **kwargs):
        os.truncate(name, os.path.getsize(name) // 2)
        return compute(*args, **kwargs)

    monkeypatch.setattr(logitloss, "value_and_grad", cut)
    result = run("labels.npy", "logits.npy", "--weight", "w.npy", *OUTPUTS)
    assert_one_line(result, f"{name}: it became shorter while it was read")
    os.remove("w.npy")
    assert_nothing_changed(earlier_results)


def test_format_version_2_is_read(report):
    labels, logits = save_pair()
    with open("logits.npy", "wb") as file:
        np.lib.format.write_array(file, logits, version=(2, 0))
    assert report("labels.npy", "logits.npy")["elements"] == labels.size


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("exploded"),))


@pytest.mark.parametrize("option", [None, "--weight", "--pos-weight"])
def test_objects_are_never_unpickled(run, option):
    save_pair((1,))
    Path("objects.npy").write_bytes(described((1,), "|O", pickle.dumps(Bomb())))
    if option is None:
        result = run("labels.npy", "objects.npy")
    else:
        result = run("labels.npy", "logits.npy", option, "objects.npy")
    assert_one_line(result, "objects.npy", "never unpickled")
    assert not Path("exploded").exists()


def test_shape_mismatch(run):
    save("labels.npy", np.zeros((4, 1)))
    save("logits.npy", np.zeros(4))
    result = run("labels.npy", "logits.npy", "--loss-out", "loss.npy")
    assert_one_line(result, "must have the same shape", "(4, 1)", "(4,)")
    assert files() == {"labels.npy", "logits.npy"}


@pytest.mark.parametrize("option", ["--weight", "--pos-weight"])
@pytest.mark.parametrize("shape", [(3,), (30,), (2, 30, 4), (0,)])
def test_coefficient_that_does_not_broadcast(run, option, shape):
    save_pair((30, 4))
    save("c.npy", np.ones(shape))
    result = run("labels.npy", "logits.npy", option, "c.npy")
    assert_one_line(result, option.strip("-").replace("-", "_"), "must broadcast")


@pytest.mark.parametrize("dtype", ["complex64", "U3", "S3", "M8[s]", "f4,f4", "V2"])
def test_dtype_that_is_no_real_number(run, dtype):
    save_pair((4,))
    save("other.npy", np.zeros(4, dtype))
    assert_one_line(run("labels.npy", "other.npy"), "`logits`", "dtype")
    assert_one_line(run("labels.npy", "logits.npy", "--weight", "other.npy"), "`weight`", "dtype")


@pytest.mark.parametrize(
    "arguments",
    [
        ["labels.npy"],
        ["labels.npy", "logits.npy", "--reduction", "median"],
        ["labels.npy", "logits.npy", "--threads", "many"],
        ["labels.npy", "logits.npy", "--threads", "0"],
        ["labels.npy", "logits.npy", "--no-such\noption"],
        ["labels.npy", "logits.npy", "--reduction", "none"],
    ],
)
def test_bad_arguments(run, arguments):
    save_pair()
    assert_one_line(run(*arguments))


def test_reduction_none_says_what_it_needs(run):
    save_pair()
    result = run("labels.npy", "logits.npy", "--reduction", "none")
    assert_one_line(result, "--loss-out", "--grad-out")


@pytest.mark.parametrize("pos_weight", ["-1", "nan", "inf", "0"])
def test_any_number_is_a_pos_weight(report, pos_weight):
    labels, logits = save_pair(dtype="float64")
    got = report("labels.npy", "logits.npy", "--pos-weight", pos_weight)
    expected = logitloss.weighted_cross_entropy_with_logits(
        labels, logits, float(pos_weight), reduction="mean"
    )
    assert float(got["value"]) == pytest.approx(float(expected), nan_ok=True)


# Bad output


def test_output_into_a_missing_directory(run):
    save_pair()
    result = run("labels.npy", "logits.npy", "--loss-out", "nowhere/loss.npy")
    assert_one_line(result, "nowhere/loss.npy: No such file or directory")
    result = run("labels.npy", "logits.npy", "--loss-out", "labels.npy/loss.npy")
    assert_one_line(result, "labels.npy/loss.npy: Not a directory")


def test_output_must_not_replace_a_directory(run):
    save_pair()
    Path("folder").mkdir()
    result = run("labels.npy", "logits.npy", "--loss-out", "folder")
    assert_one_line(result, "folder: not a regular file")


@posix_only
def test_output_must_not_replace_a_device(run):
    save_pair()
    # A fifo stands for /dev/null, which root would lose if this failed.
    os.mkfifo("device")
    result = run("labels.npy", "logits.npy", "--loss-out", "device")
    assert_one_line(result, "device: not a regular file")


@posix_only
def test_output_in_a_directory_without_permission(run):
    if os.geteuid() == 0:
        pytest.skip("root may write anywhere")
    save_pair()
    Path("locked").mkdir(mode=0o500)
    result = run("labels.npy", "logits.npy", "--loss-out", "locked/loss.npy")
    assert_one_line(result, "locked/loss.npy: Permission denied")


def test_output_must_not_replace_a_read_only_file(run, monkeypatch):
    save_pair()
    save("loss.npy", np.zeros(1))
    # Root could write to it whatever its mode.
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    result = run("labels.npy", "logits.npy", "--loss-out", "loss.npy")
    assert_one_line(result, "loss.npy: Permission denied")


@pytest.mark.parametrize("name", ["labels.npy", "logits.npy", "w.npy", "q.npy"])
@pytest.mark.parametrize("link", [None, os.symlink, os.link])
def test_output_must_not_replace_an_input(run, name, link):
    save_pair((30, 4))
    save("w.npy", np.ones((30, 4)))
    save("q.npy", np.ones(4))
    output = name
    if link is not None:
        output = "alias.npy"
        link(name, output)
    before = Path(name).read_bytes()
    options = ("--weight", "w.npy", "--pos-weight", "q.npy", "--grad-out", output)
    assert_one_line(run("labels.npy", "logits.npy", *options), output, "input")
    assert Path(name).read_bytes() == before


def test_two_outputs_must_not_share_a_file(run):
    save_pair()
    result = run("labels.npy", "logits.npy", "--loss-out", "a.npy", "--grad-out", "./a.npy")
    assert_one_line(result, "a.npy", "two outputs")
    assert files() == {"labels.npy", "logits.npy"}


@posix_only
def test_output_gets_the_permissions_of_a_new_file(report):
    save_pair()
    previous = os.umask(0o027)
    try:
        report("labels.npy", "logits.npy", "--loss-out", "loss.npy")
    finally:
        os.umask(previous)
    assert os.stat("loss.npy").st_mode & 0o777 == 0o640


@posix_only
def test_output_behind_a_symbolic_link(report):
    save_pair()
    Path("elsewhere").mkdir()
    os.symlink("elsewhere/loss.npy", "link.npy")
    report("labels.npy", "logits.npy", "--loss-out", "link.npy")
    assert os.path.islink("link.npy")
    assert np.load("elsewhere/loss.npy").shape == (30, 4)


# Complete or not at all


@pytest.fixture
def earlier_results() -> dict[str, bytes]:
    """Outputs of an earlier run, which a failing one has to leave as they are."""
    for name in ("loss.npy", "grad.npy"):
        Path(name).write_bytes(b"earlier " + name.encode())
    return {name: Path(name).read_bytes() for name in ("loss.npy", "grad.npy")}


def assert_nothing_changed(earlier_results: dict[str, bytes]) -> None:
    assert files() == {"labels.npy", "logits.npy", *earlier_results}
    for name, content in earlier_results.items():
        assert Path(name).read_bytes() == content


OUTPUTS = ("--loss-out", "loss.npy", "--grad-out", "grad.npy")


def test_outputs_appear_when_all_is_done(small_blocks, report, monkeypatch):
    save_pair()
    compute = logitloss.value_and_grad

    def spy(*args, **kwargs):
        assert not {"loss.npy", "grad.npy"} & files()
        return compute(*args, **kwargs)

    monkeypatch.setattr(logitloss, "value_and_grad", spy)
    report("labels.npy", "logits.npy", *OUTPUTS)
    assert files() == {"labels.npy", "logits.npy", "loss.npy", "grad.npy"}


def test_ctrl_c(small_blocks, run, monkeypatch, earlier_results):
    save_pair()
    blocks = iter(range(3))
    compute = logitloss.value_and_grad

    def interrupted(*args, **kwargs):
        if next(blocks) == 2:
            raise KeyboardInterrupt
        return compute(*args, **kwargs)

    monkeypatch.setattr(logitloss, "value_and_grad", interrupted)
    result = run("labels.npy", "logits.npy", *OUTPUTS)
    assert result == (130, "", "logitloss: interrupted\n")
    assert_nothing_changed(earlier_results)


def test_the_handler_of_sigterm_is_put_back(run):
    save_pair()
    previous = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        for path in ("loss.npy", "nowhere/loss.npy"):
            run("labels.npy", "logits.npy", "--loss-out", path)
            assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, previous)


def sparse(name: str, dtype: str, shape: tuple[int, ...], fortran_order: bool = False) -> None:
    """A file of zeros that takes no room on the disk."""
    np.lib.format.open_memmap(name, "w+", dtype, shape, fortran_order)


@posix_only
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_leave_nothing_behind(number, earlier_results):
    size = 2**30
    sparse("labels.npy", "bool", (size,))
    sparse("logits.npy", "float32", (size,))
    interrupt(
        "labels.npy",
        "logits.npy",
        number=number,
        when=lambda: sum(map(os.path.getsize, parts())) >= 2**20,
    )
    assert_nothing_changed(earlier_results)


def interrupt(*sources: str, number: int, when: Callable[[], object]) -> None:
    """Score the sources, send the signal as soon as it is time, and see how that ends."""
    # A shell's background jobs ignore interrupts, and so does what they start.
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(
        [*COMMAND, *sources, *OUTPUTS],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    signal.signal(signal.SIGINT, handler)
    try:
        while process.poll() is None and not when():
            time.sleep(0.01)
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (process.returncode, out, err) == (130, "", "logitloss: interrupted\n")


def parts() -> list[str]:
    return [name for name in os.listdir() if name.endswith(".part")]


@posix_only
def test_full_disk(earlier_results):
    pytest.importorskip("resource")
    size = 2**21
    sparse("labels.npy", "bool", (size,))
    sparse("logits.npy", "float32", (size,))
    room = 6 * 2**20
    # The limit is set by the child itself: a fork with Python code in it is not safe once other
    # libraries have started threads.
    limited = f"""
import resource, runpy
resource.setrlimit(resource.RLIMIT_FSIZE, ({room}, {room}))
runpy.run_module("logitloss", run_name="__main__", alter_sys=True)
"""
    done = subprocess.run(
        [sys.executable, "-c", limited, "labels.npy", "logits.npy", *OUTPUTS],
        capture_output=True,
        text=True,
    )
    assert_one_line((done.returncode, done.stdout, done.stderr), "grad.npy: File too large")
    assert_nothing_changed(earlier_results)


def test_disk_that_fills_at_the_last_moment(run, monkeypatch, earlier_results):
    save_pair()
    synced = []

    def fsync(descriptor):
        synced.append(descriptor)
        if len(synced) == 2:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fsync)
    result = run("labels.npy", "logits.npy", *OUTPUTS)
    assert_one_line(result, "grad.npy: No space left on device")
    assert_nothing_changed(earlier_results)


@posix_only
@pytest.mark.parametrize("arguments", [[], ["--json"]])
def test_reader_that_has_gone(arguments):
    save_pair()
    reader, writer = os.pipe()
    os.close(reader)
    # What is buffered would be flushed again at exit.
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    done = subprocess.run(
        [*COMMAND, "labels.npy", "logits.npy", *arguments],
        env=buffered,
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(writer)
    assert_one_line((done.returncode, "", done.stderr), "standard output: Broken pipe")


# Memory

PEAK = """
import sys
from logitloss.__main__ import main
assert main(sys.argv[1:]) == 0
for line in open("/proc/self/status"):
    if line.startswith("VmHWM:"):
        print(line.split()[1])
"""


def peak_memory(rows: int, labels_order: str, logits_order: str) -> int:
    """Bytes that a run takes at most, which writes a gradient of rows * 1024 elements."""
    shape = (rows, 1024)
    sparse("labels.npy", "uint8", shape, labels_order == "F")
    sparse("logits.npy", "float32", shape, logits_order == "F")
    done = subprocess.run(
        [sys.executable, "-c", PEAK, "labels.npy", "logits.npy", "--grad-out", "grad.npy"],
        capture_output=True,
        check=True,
    )
    return 1024 * int(done.stdout.splitlines()[-1])


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs Linux's /proc")
@pytest.mark.parametrize(("labels_order", "logits_order"), ["CC", "FF", "FC"])
def test_memory_does_not_grow_with_the_files(labels_order, logits_order):
    few = peak_memory(2 * 1024, labels_order, logits_order)
    many = peak_memory(16 * 1024, labels_order, logits_order)
    # The files have grown by 126 MiB.
    assert many - few < 16 * 2**20


# Columns of tables


@pytest.fixture
def tables() -> Callable[..., None]:
    """Write columns, given as keywords, to table.parquet and table.csv."""
    pa = pytest.importorskip("pyarrow", reason="needs the extra `tables`")
    csv, parquet = pytest.importorskip("pyarrow.csv"), pytest.importorskip("pyarrow.parquet")

    def write(**columns: Any) -> None:
        table = pa.table(columns)
        # Several row groups, which do not end where blocks do.
        parquet.write_table(table, "table.parquet", row_group_size=11)
        csv.write_csv(table, "table.csv")

    return write


def scored(rows: int = 40) -> dict[str, Any]:
    rng = np.random.default_rng(3)
    return {
        "label": rng.random(rows) < 0.3,
        "logit": rng.normal(0, 5, rows),
        "weight": rng.uniform(0, 2, rows) * (rng.random(rows) < 0.8),
    }


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_columns_equal_the_arrays_they_hold(small_blocks, tables, report, suffix, reduction):
    columns = scored()
    tables(**columns)
    got = report(
        *(f"table.{suffix}:label", f"table.{suffix}:logit", "--weight", f"table.{suffix}:weight"),
        *("--pos-weight", 3, "--reduction", reduction),
        *("--loss-out", "loss.npy", "--grad-out", "grad.npy"),
    )
    labels, logits, weight = columns.values()
    expected, gradient = logitloss.value_and_grad(
        labels, logits, 3, weight=weight, reduction=reduction
    )
    loss, _ = logitloss.value_and_grad(labels, logits, 3, weight=weight)
    assert got["value"] == pytest.approx(float(expected), rel=1e-14)
    assert got["elements"] == 40
    assert got["share_of_positives"] == pytest.approx(np.mean(labels[weight != 0]), rel=1e-14)
    np.testing.assert_array_equal(np.load("loss.npy"), loss)
    assert_within_four_ulp(np.load("grad.npy"), gradient)


@pytest.mark.parametrize("order", "CF")
@pytest.mark.parametrize(
    ("labels", "logits"),
    [
        ("labels.npy", "table.csv:a,b,c"),
        ("table.parquet:x,y,z", "logits.npy"),
        ("table.parquet:x,y,z", "table.csv:a,b,c"),
    ],
)
# Narrower than a row as well.
@pytest.mark.parametrize("block", [2, 7])
def test_mixed_sources(monkeypatch, tables, report, labels, logits, order, block):
    monkeypatch.setattr(command_line, "BLOCK_ELEMENTS", block)
    rng = np.random.default_rng(4)
    x, z, w = rng.normal(0, 3, (23, 3)), rng.random((23, 3)), rng.random((23, 1))
    tables(**dict(zip("abcxyzw", [*x.T, *z.T, w[:, 0]], strict=True)))
    save("labels.npy", z.copy(order))
    save("logits.npy", x.copy(order))
    got = report(labels, logits, "--weight", "table.csv:w,", "--loss-out", "loss.npy")
    loss = logitloss.sigmoid_cross_entropy_with_logits(z, x, weight=w)
    assert got["value"] == pytest.approx(float(np.mean(loss)), rel=1e-14)
    np.testing.assert_array_equal(np.load("loss.npy"), loss)


@pytest.mark.parametrize("logits", ["logits.npy", "table.parquet:a,b,c"])
def test_a_column_of_coefficients_for_every_row(small_blocks, tables, report, logits):
    rng = np.random.default_rng(5)
    x, z = rng.normal(0, 3, (3, 3)), rng.random((3, 3))
    tables(**dict(zip("abcq", [*x.T, [1.0, 2.0, 3.0]], strict=True)))
    save("labels.npy", z)
    save("logits.npy", x)
    # As everywhere, (3,) beside (3, 3) is one value per class.
    got = report("labels.npy", logits, "--pos-weight", "table.csv:q")
    expected = logitloss.weighted_cross_entropy_with_logits(z, x, [1.0, 2.0, 3.0], reduction="mean")
    assert got["value"] == pytest.approx(float(expected), rel=1e-14)


def test_more_rows_than_pyarrow_reads_at_a_time(tables, report):
    columns = scored(200_000)
    tables(**columns)
    expected = logitloss.sigmoid_cross_entropy_with_logits(
        columns["label"], columns["logit"], reduction="mean"
    )
    for suffix in ("csv", "parquet"):
        got = report(f"table.{suffix}:label", f"table.{suffix}:logit")
        assert got["value"] == pytest.approx(float(expected), rel=1e-13)


@pytest.mark.parametrize("dtype", ["bool", "int8", "uint64", "float16", "float32", "float64"])
def test_parquet_keeps_dtypes(tables, report, dtype):
    labels, logits = np.arange(4).astype(dtype), np.linspace(-3, 3, 4, dtype="float32")
    tables(z=labels.astype(dtype), x=logits)
    report("table.parquet:z", "table.parquet:x", "--loss-out", "loss.npy")
    loss = logitloss.sigmoid_cross_entropy_with_logits(labels, logits)
    got = np.load("loss.npy")
    assert got.dtype == loss.dtype
    np.testing.assert_array_equal(got, loss)


def test_numbers_in_csv(report):
    pytest.importorskip("pyarrow", reason="needs the extra `tables`")
    # Integers first, fractions after the first megabyte, line breaks inside a text.
    lines = ["label,logit,text", *['1,0,"many\n\n\n\n\n\n\n\n\nlines"'] * 100_000]
    lines += ["0.5,-0.25,", "0,-inf,x", "1,Infinity,", "1e0,-1E2,"]
    Path("table.csv").write_text("\n".join(lines))
    got = report("table.csv:label", "table.csv:logit", "--reduction", "sum")
    last = logitloss.sigmoid_cross_entropy_with_logits(
        np.array([0.5, 0, 1, 1]), np.array([-0.25, -np.inf, np.inf, -100])
    )
    assert got["value"] == pytest.approx(100_000 * math.log(2) + float(np.sum(last)), rel=1e-13)
    Path("table.csv").write_text("label,logit\nTrue,NaN\nfalse,-1\n")
    assert report("table.csv:label", "table.csv:logit")["value"] == "NaN"


def test_compressed_csv(report):
    pytest.importorskip("pyarrow", reason="needs the extra `tables`")
    import gzip

    with gzip.open("table.csv.gz", "wt") as file:
        file.write("z,x\n1,0\n0,0\n")
    assert report("table.csv.gz:z", "table.csv.gz:x")["value"] == pytest.approx(math.log(2))


def test_suffixes_in_capitals(tables, report):
    tables(z=[1.0], x=[0.0])
    os.rename("table.parquet", "A.PARQUET")
    os.rename("table.csv", "A.CSV")
    assert report("A.PARQUET:z", "A.CSV:x")["value"] == pytest.approx(math.log(2))


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_a_table_of_a_single_row_serves_all_rows(small_blocks, tables, report, suffix):
    tables(a=[1.0], b=[2.0], c=[4.0])
    labels, logits = save_pair((30, 3), "float64")
    got = report("labels.npy", "logits.npy", "--pos-weight", f"table.{suffix}:a,b,c")
    expected = logitloss.weighted_cross_entropy_with_logits(
        labels, logits, [1.0, 2.0, 4.0], reduction="mean"
    )
    assert got["value"] == pytest.approx(float(expected), rel=1e-14)


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_tables_without_rows(tables, report, suffix):
    tables(z=np.zeros(0), x=np.zeros(0))
    name = f"table.{suffix}"
    save("q.npy", np.zeros((0,)))
    options = ("--pos-weight", "q.npy", "--weight", f"{name}:z", "--reduction", "sum")
    assert report(f"{name}:z", f"{name}:x", *options, "--loss-out", "loss.npy")["value"] == 0
    assert np.load("loss.npy").shape == (0,)
    save_pair((3, 0))
    options = ("--pos-weight", f"{name}:z", "--reduction", "sum")
    assert report("labels.npy", "logits.npy", *options)["value"] == 0


def test_names_with_colons_and_commas(tables, report, tmp_path):
    tables(**{"a:b": [1.0, 0.0], "c,d": [0.0, 0.0], "e.f": [0.0, 0.0]})
    if os.name == "posix":
        for suffix in ("parquet", "csv"):
            Path(f"table.{suffix}").rename(f"run:1.{suffix}")
        names = ["run:1.csv", "run:1.parquet", f"{tmp_path}/run:1.parquet"]
    else:
        names = ["table.csv", str(tmp_path / "table.parquet")]
    for name in names:
        for column in ("c,d", "e.f"):
            got = report(f"{name}:a:b", f"{name}:{column}")
            assert (got["elements"], got["value"]) == (2, pytest.approx(math.log(2)))


def test_a_colon_in_the_name_of_a_npy_file(report):
    if os.name != "posix":
        pytest.skip("no such names here")
    labels, _ = save_pair()
    for name in ("12:30.npy", "12:30", "a.csv:b"):
        os.rename("logits.npy", name)
        assert report("labels.npy", name)["elements"] == labels.size
        os.rename(name, "logits.npy")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"C:\x.npy", Path(r"C:\x.npy")),
        ("C:/x.parquet:y", (Path("C:/x.parquet"), "y")),
        ("x.PARQUET:y", (Path("x.PARQUET"), "y")),
        ("x.csv.gz:y", (Path("x.csv.gz"), "y")),
        ("x.csv:y.csv:z", (Path("x.csv"), "y.csv:z")),
        ("x.csv", Path("x.csv")),
        ("x.csv:", Path("x.csv:")),
        ("x.txt:y", Path("x.txt:y")),
    ],
)
def test_where_a_path_ends(text, expected):
    from logitloss._table_files import path_or_columns

    assert path_or_columns(text) == expected


def test_tables_without_pyarrow(run, monkeypatch):
    save_pair((2,))
    Path("table.csv").write_text("a\n1\n2\n")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert_one_line(run("labels.npy", "table.csv:a"), "table.csv", "pip install", "[tables]")


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_columns_that_cannot_be_used(tables, run, suffix):
    name = f"table.{suffix}"
    tables(
        label=[1, 0, 1],
        text=["a", "b", "c"],
        date=np.array([0, 1, 2], "M8[s]"),
        missing=[0.5, None, 1.0],
        nothing=[None, None, None],
    )
    save("labels.npy", np.zeros(3))

    def result(column: str) -> tuple[int, str, str]:
        return run("labels.npy", f"{name}:{column}", "--loss-out", "loss.npy")

    assert_one_line(result("logit"), name, "no column 'logit'", "'label', 'text'")
    assert_one_line(result("label,logit"), name, "no column 'logit'")
    assert_one_line(result("text"), name, "'text'", "must be numbers or bool; got string")
    assert_one_line(result("date"), name, "'date'", "must be numbers or bool; got timestamp")
    assert_one_line(result("missing"), name, "'missing'", "null", "row 1")
    if suffix == "csv":
        assert_one_line(result("nothing"), name, "'nothing'", "null", "row 0")
    assert_one_line(run("labels.npy", name), f"as in {name}:COLUMN")
    assert_one_line(run("labels.npy", "nowhere.csv:a"), "nowhere.csv: No such file")
    assert "loss.npy" not in files()
    Path(f"folder.{suffix}").mkdir()
    assert_one_line(run("labels.npy", f"folder.{suffix}:a"), "not a regular file")


def test_a_null_late_in_the_file(small_blocks, tables, run):
    tables(z=[0.0] * 31, x=[0.0] * 30 + [None])
    save("labels.npy", np.zeros(31))
    for name in ("table.csv", "table.parquet"):
        result = run("labels.npy", f"{name}:x", "--loss-out", "loss.npy")
        assert_one_line(result, name, "null", "row 30")
    assert files() == {"labels.npy", "table.csv", "table.parquet"}


def test_files_of_different_lengths(tables, run):
    tables(z=[1.0, 0.0, 1.0])
    save("logits.npy", np.zeros(4))
    for name in ("table.csv", "table.parquet"):
        assert_one_line(run(f"{name}:z", "logits.npy"), "must have the same shape", "(3,)", "(4,)")
        result = run("logits.npy", "logits.npy", "--weight", f"{name}:z")
        assert_one_line(result, "`weight`", "must broadcast", "(3,)", "(4,)")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("table.csv", b""),
        ("table.csv", b"a,b\n1,2\n1\n"),
        ("table.csv", b"a\n" + b"1\n" * 600_000 + b"x\n"),
        ("table.csv", b"\xff\xfe\n1\n"),
        ("table.csv", b"a,a\n1,2\n"),
        ("table.csv.gz", b"a\n1\n"),
        ("table.parquet", b""),
        ("table.parquet", b"PAR1" + bytes(100) + b"PAR1"),
        ("table.parquet", b"PAR1" + bytes(8) + b"\xff\xff\xff\x7fPAR1"),
    ],
)
def test_broken_tables(run, name, content):
    pytest.importorskip("pyarrow", reason="needs the extra `tables`")
    save("labels.npy", np.zeros(1))
    Path(name).write_bytes(content)
    assert_one_line(run("labels.npy", f"{name}:a"), f"{name}: ")


def test_a_parquet_file_with_damaged_data(tables, run):
    tables(x=np.random.default_rng(0).random(1000))
    content = bytearray(Path("table.parquet").read_bytes())
    content[4:2000] = bytes(1996)
    Path("table.parquet").write_bytes(content)
    save("labels.npy", np.zeros(1000))
    result = run("labels.npy", "table.parquet:x", "--loss-out", "loss.npy")
    assert_one_line(result, "table.parquet: ")
    assert "loss.npy" not in files()


def test_output_must_not_replace_a_table(tables, run):
    tables(z=[1.0])
    result = run("table.csv:z", "table.csv:z", "--loss-out", "table.csv")
    assert_one_line(result, "table.csv: an output must not replace an input")


@posix_only
def test_ctrl_c_while_a_table_is_read(earlier_results):
    pytest.importorskip("pyarrow", reason="needs the extra `tables`")
    with open("table.csv", "wb") as file:
        file.write(b"z,x\n")
        for _ in range(200):
            file.write(b"1,0.5\n" * 100_000)
    interrupt("table.csv:z", "table.csv:x", number=signal.SIGINT, when=parts)
    assert files() == {"table.csv", *earlier_results}


def write_large(name: str, rows: int) -> int:
    """A table of incompressible numbers in a single row group; return its size."""
    rng = np.random.default_rng(0)
    if name.endswith(".csv"):
        lines = "".join(f"1,{x}\n" for x in rng.normal(size=10_000))
        with open(name, "w") as file:
            file.write("z,x\n")
            for _ in range(rows // 10_000):
                file.write(lines)
    else:
        import pyarrow as pa
        import pyarrow.parquet

        table = pa.table({"z": rng.random(rows), "x": rng.normal(size=rows)})
        pyarrow.parquet.write_table(
            table, name, row_group_size=rows, compression="none", use_dictionary=False
        )
    return os.path.getsize(name)


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs Linux's /proc")
@pytest.mark.parametrize("name", ["table.csv", "table.parquet"])
def test_memory_does_not_grow_with_tables(name):
    pytest.importorskip("pyarrow", reason="needs the extra `tables`")

    def peak(rows: int) -> tuple[int, int]:
        size = write_large(name, rows)
        done = subprocess.run(
            [sys.executable, "-c", PEAK, f"{name}:z", f"{name}:x", "--grad-out", "grad.npy"],
            capture_output=True,
            check=True,
        )
        return size, 1024 * int(done.stdout.splitlines()[-1])

    small_file, few = peak(2_000_000)
    large_file, many = peak(12_000_000)
    assert large_file - small_file > 150 * 2**20
    # Some tens of MiB depend on how far pyarrow's threads have read ahead.
    assert many - few < 96 * 2**20


# Classes


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
    got = report("labels.npy", "logits.npy", "--weight", "w.npy", "--reduction", reduction)
    assert "classes" not in got
    options = ("--weight", "w.npy", "--reduction", reduction, "--per-class")
    rows = report("labels.npy", "logits.npy", *options)["classes"]
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


# Plots


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
    assert (status, err) == (0, "")


@pytest.mark.parametrize("order", "CF")
def test_what_the_plot_counts(small_blocks, run, monkeypatch, order):
    pytest.importorskip("matplotlib", reason="needs the extra `plot`")
    from logitloss._plot import Plot

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
    result = run("labels.npy", "logits.npy", "--plot", "nowhere/a.png")
    assert_one_line(result, "nowhere/a.png: No such file")
    os.rename("logits.npy", "logits.png")
    result = run("labels.npy", "logits.png", "--plot", "logits.png")
    assert_one_line(result, "logits.png: an output must not replace an input")
    options = ("--plot", "a.png", "--loss-out", "a.png")
    assert_one_line(run("labels.npy", "logits.png", *options), "two outputs")


def test_plot_that_fails_leaves_nothing_behind(run, monkeypatch):
    pytest.importorskip("matplotlib", reason="needs the extra `plot`")
    from logitloss._plot import Plot

    def draw(self):
        raise OSError(28, "No space left on device")

    save_pair()
    monkeypatch.setattr(Plot, "draw", draw)
    result = run("labels.npy", "logits.npy", "--plot", "a.png", "--loss-out", "loss.npy")
    assert_one_line(result, "No space left")
    assert files() == {"labels.npy", "logits.npy"}
