"""Results as columns of Parquet and text files."""

from __future__ import annotations

import gc
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import logitloss
from command_line.commands import (
    assert_one_line,
    assert_within_four_ulp,
    files,
    interrupt,
    parts,
    posix_only,
    save,
    save_pair,
    sparse,
)
from logitloss._command_line.table_outputs import TableOutput

pa = pytest.importorskip("pyarrow", reason="needs the extra `tables`")
csv, parquet = pytest.importorskip("pyarrow.csv"), pytest.importorskip("pyarrow.parquet")

SUFFIXES = ["parquet", "pq", "csv", "tsv", "csv.gz", "tsv.gz", "CSV"]


def read(name: str) -> Any:
    if name.lower().endswith(("parquet", "pq")):
        return parquet.read_table(name)
    options = csv.ParseOptions(delimiter="\t" if ".tsv" in name.lower() else ",")
    return csv.read_csv(name, parse_options=options)


def columns(name: str, dtype: Any) -> Any:
    return np.stack([column.to_numpy().astype(dtype) for column in read(name).columns], axis=-1)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("order", "CF")
def test_tables_hold_what_arrays_would(small_blocks, report, suffix, dtype, order):
    labels, logits = save_pair((30, 4), dtype)
    save("labels.npy", labels.copy(order))
    logits[3, 2] = np.inf
    save("logits.npy", logits.copy(order))
    outputs = (f"loss.{suffix}", f"grad.{suffix}")
    options = ("--reduction", "sum", "--loss-out", outputs[0], "--grad-out", outputs[1])
    report("labels.npy", "logits.npy", "--pos-weight", 3, *options)
    for name, expected in zip(outputs, logitloss.value_and_grad(labels, logits, 3), strict=True):
        assert read(name).column_names == ["0", "1", "2", "3"]
        np.testing.assert_array_equal(columns(name, dtype), expected)
    if suffix in ("parquet", "pq"):
        assert set(read("loss." + suffix).schema.types) == {pa.from_numpy_dtype(np.dtype(dtype))}


@pytest.mark.parametrize("block", [1, 2, 3, 5])
@pytest.mark.parametrize("orders", ["CC", "FF", "CF"])
def test_blocks_narrower_than_a_row(monkeypatch, report, block, orders):
    from logitloss._command_line import blocks

    monkeypatch.setattr(blocks, "BLOCK_ELEMENTS", block)
    labels, logits = save_pair((7, 4))
    save("labels.npy", labels.copy(orders[0]))
    save("logits.npy", logits.copy(orders[1]))
    rows = []
    write_rows = TableOutput._write_rows
    monkeypatch.setattr(
        *(TableOutput, "_write_rows"),
        lambda self, values: (rows.append(len(values)), write_rows(self, values)),
    )
    report("labels.npy", "logits.npy", "--loss-out", "loss.parquet", "--grad-out", "grad.npy")
    # More would have to be kept in memory.
    assert rows == [1] * 7
    value, gradient = logitloss.value_and_grad(labels, logits)
    np.testing.assert_array_equal(columns("loss.parquet", "f4"), value)
    assert_within_four_ulp(np.load("grad.npy"), (gradient / np.float64(28)).astype("f4"))


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_names_of_columns(tables, report, suffix):
    tables(cat=[1, 0], dog=[0, 0], x=[0.5, 1.0])
    save("logits.npy", np.zeros((2, 2)))
    report("table.csv:cat,dog", "logits.npy", "--loss-out", f"classes.{suffix}")
    assert read(f"classes.{suffix}").column_names == ["cat", "dog"]
    options = ("--loss-out", f"loss.{suffix}", "--grad-out", f"grad.{suffix}")
    report("table.csv:cat", "table.csv:x", *options)
    assert read(f"loss.{suffix}").column_names == ["loss"]
    assert read(f"grad.{suffix}").column_names == ["gradient"]
    # They are sources like any other.
    got = report("table.csv:cat", f"grad.{suffix}:gradient")
    assert got["elements"] == 2


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
@pytest.mark.parametrize("shape", [(0,), (0, 3), (1, 1)])
def test_small_tables(report, suffix, shape):
    labels, logits = save_pair(shape)
    warning = "" if labels.size else f"logits.npy: no elements, its shape is {shape}"
    options = ("--reduction", "sum", "--loss-out", f"loss.{suffix}")
    report("labels.npy", "logits.npy", *options, warning=warning)
    loss = logitloss.sigmoid_cross_entropy_with_logits(labels, logits)
    table = read(f"loss.{suffix}")
    assert table.num_columns == (shape[1] if len(shape) == 2 else 1)
    np.testing.assert_array_equal(columns(f"loss.{suffix}", "f4").reshape(shape), loss)


@pytest.mark.parametrize("shape", [(), (2, 3, 4)])
def test_shapes_that_are_no_table(run, shape):
    save_pair(shape)
    result = run("labels.npy", "logits.npy", "--loss-out", "loss.csv")
    assert_one_line(result, "loss.csv: a table has one or two axes", str(shape))
    assert "loss.csv" not in files()


@pytest.mark.skipif(np.longdouble(1).itemsize == 8, reason="long double is float64 here")
@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_a_dtype_that_tables_lack(run, suffix):
    save_pair((3,), "longdouble")
    result = run("labels.npy", "logits.npy", "--loss-out", f"loss.{suffix}")
    assert_one_line(result, f"loss.{suffix}: a table cannot hold {np.dtype('longdouble')}")


def test_tables_without_pyarrow(run, monkeypatch):
    save_pair()
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    result = run("labels.npy", "logits.npy", "--loss-out", "loss.csv")
    assert_one_line(result, "loss.csv: writing it needs pyarrow", "pip install", "[tables]")


def earlier_tables() -> dict[str, bytes]:
    for name in ("loss.parquet", "grad.csv.gz"):
        Path(name).write_bytes(b"earlier " + name.encode())
    return {name: Path(name).read_bytes() for name in ("loss.parquet", "grad.csv.gz")}


def test_tables_appear_together_or_not_at_all(small_blocks, run, monkeypatch):
    save_pair((30,))
    earlier = earlier_tables()
    done = []
    compute = logitloss.value_and_grad

    def interrupted(*args, **kwargs):
        assert {name: Path(name).read_bytes() for name in earlier} == earlier
        done.append(None)
        if len(done) == 3:
            raise KeyboardInterrupt
        return compute(*args, **kwargs)

    monkeypatch.setattr(logitloss, "value_and_grad", interrupted)
    options = ("--loss-out", "loss.parquet", "--grad-out", "grad.csv.gz")
    assert run("labels.npy", "logits.npy", *options) == (130, "", "logitloss: interrupted\n")
    assert {name: Path(name).read_bytes() for name in earlier} == earlier
    assert files() == {"labels.npy", "logits.npy", *earlier}


@pytest.mark.parametrize("name", ["loss.parquet", "loss.csv", "loss.csv.gz"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_writers_that_are_not_finished_keep_quiet(small_blocks, run, monkeypatch, name, error):
    """Some would go on to write when they are collected."""
    complaints = []
    monkeypatch.setattr(sys, "unraisablehook", complaints.append)
    written = []
    write_rows = TableOutput._write_rows

    def fail(self, values):
        write_rows(self, values)
        written.append(None)
        if len(written) == 3:
            raise error(28, "No space left on device")

    monkeypatch.setattr(TableOutput, "_write_rows", fail)
    save_pair((30,))
    assert run("labels.npy", "logits.npy", "--loss-out", name)[0] in (2, 130)
    gc.collect()
    assert complaints == []
    assert files() == {"labels.npy", "logits.npy"}


@posix_only
@pytest.mark.parametrize("name", ["loss.parquet", "loss.csv", "loss.csv.gz"])
def test_a_table_on_a_full_disk(name):
    pytest.importorskip("resource")
    rng = np.random.default_rng(0)
    save("labels.npy", rng.random(2**20) < 0.5)
    save("logits.npy", rng.normal(size=2**20))
    Path(name).write_bytes(b"earlier")
    limited = """
import resource, runpy
resource.setrlimit(resource.RLIMIT_FSIZE, (2**19, 2**19))
runpy.run_module("logitloss", run_name="__main__", alter_sys=True)
"""
    done = subprocess.run(
        [sys.executable, "-c", limited, "labels.npy", "logits.npy", "--loss-out", name],
        capture_output=True,
        text=True,
    )
    assert_one_line((done.returncode, done.stdout, done.stderr), f"{name}: File too large")
    assert Path(name).read_bytes() == b"earlier"
    assert files() == {"labels.npy", "logits.npy", name}


@posix_only
def test_a_signal_while_a_table_is_written():
    sparse("labels.npy", "bool", (2**28,))
    sparse("logits.npy", "float32", (2**28,))
    outputs = ("--loss-out", "loss.parquet", "--grad-out", "grad.csv")
    interrupt("labels.npy", "logits.npy", *outputs, number=signal.SIGTERM, when=parts)
    assert files() == {"labels.npy", "logits.npy"}


def test_suffixes_that_are_refused_before_any_work(run):
    for option in ("--loss-out", "--grad-out"):
        for name in ("a", "a.txt", "a.csv.zst", "a.feather", "parquet", "a.npz", "a.png"):
            # There is no such file to read.
            result = run("nowhere.npy", "nowhere.npy", option, name)
            assert_one_line(result, f"argument {option}: {name}: it must end in .npy, .parquet")
    result = run("nowhere.npy", "nowhere.npy", "--loss-out", "s3://bucket/loss.npy")
    assert_one_line(result, "s3://bucket/loss.npy: only files on this machine are written")
