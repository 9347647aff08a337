"""Which files make a table, and how each is read."""

from __future__ import annotations

import bz2
import gzip
import io
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import logitloss
from command_line.commands import (
    COMMAND,
    assert_one_line,
    assert_within_four_ulp,
    files,
    posix_only,
    save,
)

pa = pytest.importorskip("pyarrow", reason="needs the extra `tables`")
csv, parquet = pytest.importorskip("pyarrow.csv"), pytest.importorskip("pyarrow.parquet")

RNG = np.random.default_rng(8)
LABELS, LOGITS = RNG.random(60) < 0.4, RNG.normal(0, 3, 60)
LOSS = logitloss.sigmoid_cross_entropy_with_logits(LABELS, LOGITS)


def write_parts(folder: str, suffix: str, count: int = 12, pattern: str = "part-{}") -> None:
    """Spread the rows over files, of which part-10 holds what comes after part-9."""
    Path(folder).mkdir()
    for part in range(count):
        rows = slice(60 * part // count, 60 * (part + 1) // count)
        table = pa.table({"z": LABELS[rows], "x": LOGITS[rows]})
        write = parquet.write_table if suffix == "parquet" else csv.write_csv
        path = Path(folder, f"{pattern.format(part)}.{suffix}")
        path.parent.mkdir(exist_ok=True)
        write(table, str(path))


def assert_all_rows(report: Callable[..., dict[str, Any]], labels: str, logits: str) -> None:
    """That every row was read, and in its place."""
    got = report(labels, logits, "--loss-out", "loss.npy")
    assert got["elements"] == 60
    np.testing.assert_array_equal(np.load("loss.npy"), LOSS)


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
@pytest.mark.parametrize("name", ["scores", "scores/", "scores.parquet"])
def test_a_folder_of_parts(small_blocks, report, suffix, name):
    write_parts(name, suffix)
    for other in ("_SUCCESS", "._SUCCESS.crc", ".part-0.parquet.crc", "_common_metadata"):
        Path(name, other).write_bytes(b"")
    Path(name, "_temporary").mkdir()
    Path(name, "_temporary", f"part-0.{suffix}").write_bytes(b"unfinished")
    assert_all_rows(report, f"{name}:z", f"{name}:x")
    # Parts of one table beside one file.
    save("logits.npy", LOGITS)
    assert_all_rows(report, f"{name}:z", "logits.npy")


def test_empty_parts_of_text(run, report):
    """Spark writes them for partitions without rows."""
    write_parts("scores", "csv")
    Path("scores/part-5b.csv").touch()
    assert_all_rows(report, "scores:z", "scores:x")
    Path("scores/part-5c.csv").write_text("z,x\n")
    assert_all_rows(report, "scores/*.csv:z", "scores/*.csv:x")
    Path("scores.csv").touch()
    assert_one_line(run("scores.csv:z", "scores.csv:x"), "scores.csv: ", "names no columns")
    write_parts("others", "parquet")
    Path("others/part-5b.parquet").touch()
    assert_one_line(run("others:z", "others:x"), "part-5b.parquet: ")


def test_a_folder_of_folders(report):
    write_parts("scores", "parquet", pattern="day={}/part-0")
    assert_all_rows(report, "scores:z", "scores:x")


@pytest.mark.parametrize("pattern", ["scores/*.csv", "scores/part-*.csv", "sco*/", "[s]cores"])
def test_files_that_a_pattern_matches(small_blocks, report, pattern):
    write_parts("scores", "csv")
    Path("scores/_part-0.csv").write_text("left out")
    assert_all_rows(report, f"{pattern}:z", f"{pattern}:x")


def test_a_name_with_the_signs_of_a_pattern(report):
    csv.write_csv(pa.table({"z": LABELS, "x": LOGITS}), "run[1].csv")
    Path("run1.csv").write_text("z,x\n1,0\n")
    assert_all_rows(report, "run[1].csv:z", "run[1].csv:x")


def test_parts_of_different_types(report):
    Path("parts").mkdir()
    # The second part starts with a fraction, and its columns are in another order.
    Path("parts/1.csv").write_text("z,x\n1,2\n0,-1\n")
    Path("parts/2.csv").write_text("x,z\n0.5,1\n")
    got = report("parts:z", "parts:x", "--loss-out", "loss.npy")
    expected = logitloss.sigmoid_cross_entropy_with_logits([1.0, 0, 1], [2, -1, 0.5])
    assert got["elements"] == 3
    np.testing.assert_array_equal(np.load("loss.npy"), expected)
    parquet.write_table(pa.table({"z": [1], "x": pa.array([2.0], "float32")}), "parts/1.parquet")
    parquet.write_table(pa.table({"z": [True], "x": [0.5]}), "parts/2.parquet")
    report("parts/*.parquet:z", "parts/*.parquet:x", "--loss-out", "loss.npy")
    np.testing.assert_array_equal(np.load("loss.npy"), expected[[0, 2]])


def test_parts_that_make_no_table(run):
    def result() -> tuple[int, str, str]:
        return run("parts:z", "parts:x", "--loss-out", "loss.npy")

    Path("parts").mkdir()
    assert_one_line(result(), "parts: it holds no table")
    Path("parts/1.csv").write_text("z,x\n1,2\n")
    Path("parts/2.csv").write_text("z,y\n1,2\n")
    assert_one_line(result(), "parts/2.csv".replace("/", os.sep), "no column 'x'")
    Path("parts/2.csv").write_text("z,x\n1,a\n")
    assert_one_line(result(), "parts/2.csv".replace("/", os.sep), "must be numbers or bool")
    Path("parts/2.csv").write_text("z,x\n1\n")
    assert_one_line(result(), "parts/2.csv".replace("/", os.sep))
    os.rename("parts/2.csv", "parts/2.parquet")
    assert_one_line(result(), "parts: 1.csv and 2.parquet have different suffixes")
    assert_one_line(run("nothing-*.csv:z", "parts:x"), "nothing-*.csv: no file matches")
    assert files() == {"parts"}


def test_output_must_not_replace_a_part(run):
    write_parts("scores", "parquet")
    os.link("scores/part-4.parquet", "alias.npy")
    result = run("scores:z", "scores:x", "--loss-out", "alias.npy")
    assert_one_line(result, "alias.npy: an output must not replace an input")


def compressed(codec: str, content: bytes) -> bytes:
    if codec == "zst":
        return pa.compress(content, codec="zstd", asbytes=True)
    return {"gz": gzip, "bz2": bz2}[codec].compress(content)


@pytest.mark.parametrize("codec", ["gz", "bz2", "zst"])
@pytest.mark.parametrize("suffix", ["csv", "tsv"])
@pytest.mark.parametrize("capitals", [True, False])
def test_compressed_text(report, codec, suffix, capitals):
    text = io.BytesIO()
    delimiter = {"csv": ",", "tsv": "\t"}[suffix]
    csv.write_csv(pa.table({"z": LABELS, "x": LOGITS}), text, csv.WriteOptions(delimiter=delimiter))
    name = f"s.{suffix}.{codec}"
    name = name.upper() if capitals else name
    Path(name).write_bytes(compressed(codec, text.getvalue()))
    assert_all_rows(report, f"{name}:z", f"{name}:x")


@pytest.mark.parametrize("name", ["t.tsv", "T.TSV", "t.pq", "T.Pq"])
def test_other_suffixes(report, name):
    table = pa.table({"z": LABELS, "x": LOGITS})
    if name.lower().endswith("pq"):
        parquet.write_table(table, name)
    else:
        csv.write_csv(table, name, csv.WriteOptions(delimiter="\t"))
    assert_all_rows(report, f"{name}:z", f"{name}:x")


@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz"])
@pytest.mark.parametrize("row", [0, 30, 200_000])
def test_a_field_longer_than_what_is_parsed_at_a_time(report, name, row):
    """pyarrow gives up on it: the row must fit into a block."""
    lines = ["1,0.0,a\n"] * 300_000
    lines[row] = f'0,0.5,"{"long " * 2_000_000}"\n'
    content = "".join(["z,x,text\n", *lines]).encode()
    Path(name).write_bytes(gzip.compress(content, 1) if name.endswith("gz") else content)
    report(f"{name}:z", f"{name}:x", "--loss-out", "loss.npy")
    loss = np.load("loss.npy")
    assert len(loss) == 300_000
    assert loss[row] == logitloss.sigmoid_cross_entropy_with_logits([0.0], [0.5])[0]


def test_a_header_longer_than_what_is_parsed_at_a_time(report):
    names = [f"{'a_long_name_' * 100}{index}" for index in range(1000)]
    Path("t.csv").write_text(",".join(names) + "\n" + ",".join(["0"] * 1000) + "\n")
    got = report(f"t.csv:{names[3]}", f"t.csv:{names[-1]}")
    assert got["value"] == pytest.approx(math.log(2), rel=1e-15)


@pytest.mark.parametrize("rows_after", [1, 10, 1_000_000])
@pytest.mark.parametrize("name", ["t.csv", "t.tsv.gz"])
def test_a_quote_left_open(run, rows_after, name):
    """pyarrow takes what follows for a long field, and the rows would be missing."""
    text = 'z,x,text\n1,0,"no end\n' + "1,0,a\n" * rows_after
    content = text.replace(",", "\t" if ".tsv" in name else ",").encode()
    Path(name).write_bytes(gzip.compress(content, 1) if name.endswith("gz") else content)
    assert_one_line(run(f"{name}:z", f"{name}:x"), f"{name}: a quote is left open")


def test_a_row_longer_than_blocks_may_be(run, monkeypatch):
    from logitloss._command_line import table_files

    monkeypatch.setattr(table_files, "_BLOCK_BYTES", 2**19)
    monkeypatch.setattr(table_files, "_MOST_BLOCK_BYTES", 2**22)
    Path("t.csv").write_text('z,x,text\n1,0,"' + "long " * 4_000_000 + '"\n')
    assert_one_line(run("t.csv:z", "t.csv:x"), "t.csv: a row takes more than 4 MiB", "quote")


@pytest.mark.parametrize("end", ["", "\n", "\r\n", "\r", "\n\n"])
@pytest.mark.parametrize("last", ["0,1,a", '0,1,5" disk', '0,1,"5"" disk"', '0,1,"', "0,1,"])
def test_how_a_file_may_end(run, report, end, last):
    Path("t.csv").write_bytes(f"z,x,text\n1,2,b\n{last}{end}".encode())
    if last.endswith(',"'):
        assert_one_line(run("t.csv:z", "t.csv:x"), "t.csv: a quote is left open")
    else:
        assert report("t.csv:z", "t.csv:x")["elements"] == 2


@pytest.mark.parametrize("end", ["", "\n"])
def test_a_header_alone(report, end):
    Path("t.csv").write_text(f"z,x{end}")
    warning = "t.csv:x: no elements, its shape is (0,)"
    assert report("t.csv:z", "t.csv:x", warning=warning)["elements"] == 0


def test_columns_of_one_name_that_are_not_asked_for(report):
    Path("t.csv").write_text("a,a,z,x\n1,2,1,0\n")
    assert report("t.csv:z", "t.csv:x")["elements"] == 1


def test_standard_input(tmp_path):
    text = io.BytesIO()
    csv.write_csv(pa.table({"z": LABELS, "x": LOGITS, "w": LABELS}), text)
    Path("spool").mkdir()
    done = subprocess.run(
        [*COMMAND, "-:z", "-:x", "--weight", "-:w", "--loss-out", "loss.npy"],
        input=text.getvalue(),
        capture_output=True,
        check=True,
        env=os.environ | {"TMPDIR": str(tmp_path / "spool"), "TEMP": str(tmp_path / "spool")},
    )
    assert done.stderr == b""
    np.testing.assert_array_equal(np.load("loss.npy"), LOSS * LABELS)
    assert os.listdir("spool") == []


@posix_only
def test_a_signal_while_standard_input_is_copied(tmp_path):
    Path("spool").mkdir()
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(
        [*COMMAND, "-:z", "-:x"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"TMPDIR": str(tmp_path / "spool")},
    )
    signal.signal(signal.SIGINT, handler)
    try:
        while process.poll() is None and not list(Path("spool").glob("*/*.csv")):
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (process.returncode, out, err) == (130, "", "logitloss: interrupted\n")
    assert os.listdir("spool") == []


def test_standard_input_that_is_no_table(run, monkeypatch):
    Path("spool").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", "spool")

    def given(content: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))

    save("logits.npy", LOGITS)
    given(b"z\n1\n")
    assert_one_line(run("-:y", "logits.npy"), "standard input: no column 'y'; it has 'z'")
    given(b"")
    assert_one_line(run("-:z", "logits.npy"), "standard input: ")
    given(b"z\n1\n")
    assert_one_line(run("-", "logits.npy"), "as in -:COLUMN")
    assert os.listdir("spool") == []


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
@pytest.mark.parametrize("reduction", ["sum", "mean", "weighted_mean"])
def test_nulls_of_zero_weight_are_masked(small_blocks, tables, report, suffix, reduction):
    labels = [1, None, 0, 1] * 8
    logits = [0.5, None, -1.0, None] * 8
    weight = [2.0, 0.0, 1.0, 0.0] * 8
    tables(z=labels, x=logits, w=weight, q=logits)
    name = f"table.{suffix}"
    options = ("--weight", f"{name}:w", "--reduction", reduction, "--grad-out", "grad.npy")
    got = report(f"{name}:z", f"{name}:x", *options)
    z, x, w = (np.array([v or 0.0 for v in values]) for values in (labels, logits, weight))
    value, gradient = logitloss.value_and_grad(z, x, weight=w, reduction=reduction)
    assert got["value"] == pytest.approx(float(value), rel=1e-14)
    assert got["share_of_positives"] == 0.5
    assert_within_four_ulp(np.load("grad.npy"), gradient)


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_nulls_of_other_weights_are_refused(small_blocks, tables, run, suffix):
    columns = {"z": [1, 0] * 9, "x": [0.5, 1.0] * 9, "q": [1.0, 2.0] * 9, "w": [0.0, 1.0] * 9}
    save("row.npy", np.zeros((18, 1)))
    name = f"table.{suffix}"
    for column, values in columns.items():
        for row in (10, 11):
            holed = {**columns, column: [*values[:row], None, *values[row + 1 :]]}
            tables(**holed)
            result = run(
                *(f"{name}:z", f"{name}:x", "--pos-weight", f"{name}:q"),
                *("--weight", f"{name}:w", "--loss-out", "loss.npy"),
            )
            if column != "w" and row == 10:
                assert result[0] == 0
                os.remove("loss.npy")
            else:
                assert_one_line(result, name, f"column {column!r}", f"row {row} ")
                assert "loss.npy" not in files()


def test_nulls_beside_classes(tables, run):
    tables(cat=[1, 0, None], dog=[1, None, 0])
    save("logits.npy", np.zeros((3, 2)))
    save("w.npy", [[1, 1], [1, 1], [0, 1]])
    for name in ("table.csv", "table.parquet"):
        result = run(f"{name}:cat,dog", "logits.npy", "--weight", "w.npy")
        assert_one_line(result, name, "'dog'", "row 1 ")
