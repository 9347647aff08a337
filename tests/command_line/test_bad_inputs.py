from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import logitloss
from command_line.commands import (
    OUTPUTS,
    assert_nothing_changed,
    assert_one_line,
    files,
    posix_only,
    save,
    save_pair,
)


def test_missing_file(run):
    save_pair()
    assert_one_line(run("nowhere.npy", "logits.npy"), "nowhere.npy: No such file")
    assert_one_line(run("labels.npy", "logits.npy", "--weight", "nowhere.npy"), "nowhere.npy")
    result = run("labels.npy", "logits.npy", "--pos-weight", "often.npy")
    assert_one_line(result, "often.npy: No such file")
    assert_one_line(run("labels.npy", "two\nlines.npy"), "two lines.npy: No such file")


def test_directory_as_input(run):
    save_pair()
    assert_one_line(run("labels.npy", "."), ".: a column has to be named, as in .:COLUMN")
    assert_one_line(run("labels.npy", ".:x"), "labels.npy: its suffix is not that of a table")


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
    shape = f"({', '.join(map(str, shape))}{',' * (len(shape) == 1)})"
    assert_one_line(result, f"{option} must broadcast", f"shape {shape}, in c.npy", "(30, 4)")
    assert ("has shape (30, 1)" in result[2]) == (shape == "(30,)")


@pytest.mark.parametrize("dtype", ["complex64", "U3", "S3", "M8[s]", "f4,f4", "V2"])
def test_dtype_that_is_no_real_number(run, dtype):
    save_pair((4,))
    save("other.npy", np.zeros(4, dtype))
    assert_one_line(run("labels.npy", "other.npy"), "other.npy: `logits`", "dtype")
    result = run("labels.npy", "logits.npy", "--weight", "other.npy")
    assert_one_line(result, "other.npy: `weight`", "dtype")


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


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["required: LABELS, LOGITS; `logitloss --help` tells more"]),
        (["--pos-weight", "ten"], ["argument --pos-weight: ten: neither a number nor a file"]),
        (["--pos-weight", "10,5"], ["argument --pos-weight: 10,5: neither a number nor a file"]),
        (["--pos-weight", "10," * 200], [f"--pos-weight: {'10,' * 200}: neither a number nor"]),
        (["--weight", "2"], ["argument --weight: it takes a SOURCE", "the number 2"]),
        (["--threads", "0"], ["--threads must be between 1 and", "got 0"]),
        (["--threads", "-3"], ["--threads must be between 1 and", "got -3"]),
        (["--threads", "many"], ["argument --threads: ", "'many'"]),
        (["--pos_weight", "3"], ["unknown option --pos_weight; did you mean --pos-weight?"]),
        (["--pos_weight=3"], ["unknown option --pos_weight; did you mean --pos-weight?"]),
        (["-pos-weight", "3"], ["unknown option -pos-weight; did you mean --pos-weight?"]),
        (["--wieght", "w.npy"], ["unknown option --wieght; did you mean --weight?"]),
        (["--frobnicate"], ["unknown option --frobnicate\n"]),
        # Abbreviations, with and without a value.
        (["--red", "sum"], ["unknown option --red"]),
        (["--js"], ["unknown option --js; did you mean --json?"]),
        (["--reduction=median"], ["argument --reduction: ", "median", "weighted_mean"]),
    ],
)
def test_messages_about_options(run, arguments, words):
    save_pair()
    assert_one_line(run(*(["labels.npy", "logits.npy"] if arguments else []), *arguments), *words)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("table.csv:", ["table.csv:: a column name is empty"]),
        ("table.csv:,", ["table.csv:,: a column name is empty"]),
        ("table.csv:a,,b", ["a column name is empty"]),
        ("-:", ["a column name is empty"]),
        ("s3://bucket/x.npy", ["s3://bucket/x.npy: only files on this machine"]),
        ("s3://bucket/x.parquet:a", ["s3://bucket/x.parquet:a: only files on this machine"]),
        ("https://host/x.csv:a", ["only files on this machine"]),
        ("table.feather:a", ["table.feather: its suffix is unknown", ".parquet", ".tsv"]),
        ("table.json", ["table.json: not a usable .npy file", "; a source is a .npy file, or"]),
    ],
)
def test_messages_about_sources(run, source, words):
    save_pair()
    for name in ("table.feather", "table.json"):
        Path(name).write_bytes(b"{}")
    assert_one_line(run("labels.npy", source), *words)
    assert_one_line(run("labels.npy", "logits.npy", "--weight", source), *words)
    assert_one_line(run("labels.npy", "logits.npy", "--pos-weight", source), *words)


def test_a_missing_file_of_an_unknown_suffix(run):
    save_pair()
    assert_one_line(run("labels.npy", "nowhere.feather:a"), "nowhere.feather:a: No such file")


def test_a_file_named_like_a_number(report):
    """What is there is meant."""
    labels, logits = save_pair(dtype="float64")
    save("2.npy", np.full(4, 3.0))
    os.rename("2.npy", "2")
    expected = logitloss.weighted_cross_entropy_with_logits(
        labels, logits, 2.0, weight=np.full(4, 3.0), reduction="mean"
    )
    got = report("labels.npy", "logits.npy", "--weight", "2", "--pos-weight", "2")
    assert got["value"] == pytest.approx(expected, rel=1e-14)


def test_reduction_none_says_what_it_needs(run):
    save_pair()
    result = run("labels.npy", "logits.npy", "--reduction", "none")
    assert_one_line(result, "--loss-out", "--grad-out")


@pytest.mark.parametrize("pos_weight", ["-1", "nan", "inf", "0"])
def test_any_number_is_a_pos_weight(report, pos_weight):
    labels, logits = save_pair(dtype="float64")
    warning = "" if pos_weight == "0" else f"--pos-weight {pos_weight} is negative or not finite"
    got = report("labels.npy", "logits.npy", "--pos-weight", pos_weight, warning=warning)
    expected = logitloss.weighted_cross_entropy_with_logits(
        labels, logits, float(pos_weight), reduction="mean"
    )
    assert float(got["value"]) == pytest.approx(float(expected), nan_ok=True)
