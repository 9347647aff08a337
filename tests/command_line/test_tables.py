from __future__ import annotations

import math
import os
import sys
from pathlib import Path

import numpy as np
import pytest

import logitloss
from command_line.commands import (
    REDUCTIONS,
    assert_one_line,
    assert_within_four_ulp,
    files,
    save,
    save_pair,
    scored,
)
from logitloss._command_line import blocks


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
    monkeypatch.setattr(blocks, "BLOCK_ELEMENTS", block)
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
    labels, logits = np.array([0, 1, 1, 0]).astype(dtype), np.linspace(-3, 3, 4, dtype="float32")
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
    warning = "table.csv:logit: 1 logit is NaN, the first is nan in row 0 (from 0)"
    assert report("table.csv:label", "table.csv:logit", warning=warning)["value"] == "NaN"


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
    options = (*options, "--loss-out", "loss.npy")
    warning = f"{name}:x: no elements, its shape is (0,)"
    assert report(f"{name}:z", f"{name}:x", *options, warning=warning)["value"] == 0
    assert np.load("loss.npy").shape == (0,)
    save_pair((3, 0))
    options = ("--pos-weight", f"{name}:z", "--reduction", "sum")
    warning = "logits.npy: no elements, its shape is (3, 0)"
    assert report("labels.npy", "logits.npy", *options, warning=warning)["value"] == 0


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


def test_more_names_than_the_name_of_a_file_may_hold(tables, report):
    names = [f"a_name_of_a_column_{index}" for index in range(300)]
    tables(**{name: [1.0, 0.0] for name in names})
    for name in ("table.csv", "table.parquet"):
        source = f"{name}:{','.join(names)}"
        assert report(source, source, "--weight", source)["elements"] == 600


def test_a_colon_in_the_name_of_a_npy_file(report):
    if os.name != "posix":
        pytest.skip("no such names here")
    labels, _ = save_pair()
    for name in ("12:30.npy", "12:30", "a.csv:b"):
        os.rename("logits.npy", name)
        assert report("labels.npy", name)["elements"] == labels.size
        os.rename(name, "logits.npy")


@pytest.mark.parametrize(
    ("text", "path", "columns"),
    [
        (r"C:\x.npy", r"C:\x.npy", None),
        ("C:/x.parquet:y", "C:/x.parquet", "y"),
        ("x.PARQUET:y", "x.PARQUET", "y"),
        ("x.csv.gz:y", "x.csv.gz", "y"),
        ("x.tsv.ZST:y", "x.tsv.ZST", "y"),
        ("x.pq:y", "x.pq", "y"),
        ("x.csv:y.csv:z", "x.csv", "y.csv:z"),
        ("*.csv:y", "*.csv", "y"),
        ("-:y", "-", "y"),
        (" -:y", "-", "y"),
        ("x.csv", "x.csv", None),
        ("x.txt:y", "x.txt:y", None),
    ],
)
def test_where_a_path_ends(text, path, columns):
    from logitloss._command_line.sources import read_source

    assert read_source(text) == (Path(path), columns)


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
    assert_one_line(run("labels.npy", f"folder.{suffix}:a"), "it holds no table")


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("null", ["", '""', "NA"])
@pytest.mark.parametrize("rows", [["1", None, "0", "1"], [None, "1"], ["1", "0", None]])
def test_a_null_in_a_file_of_one_column(run, rows, null, end):
    """Were it skipped, the rows after it would move up, and the lengths could still agree."""
    pytest.importorskip("pyarrow", reason="needs the extra `tables`")
    lines = ["z", *(null if row is None else row for row in rows)]
    Path("labels.csv").write_bytes("".join(line + end for line in lines).encode())
    save("logits.npy", np.zeros(len(rows) - 1))
    result = run("labels.csv:z", "logits.npy", "--loss-out", "loss.npy")
    assert_one_line(result, "must have the same shape", f"({len(rows)},)")
    save("logits.npy", np.zeros(len(rows)))
    result = run("labels.csv:z", "logits.npy", "--loss-out", "loss.npy")
    assert_one_line(result, "labels.csv", "'z'", "null", f"row {rows.index(None)} ")
    assert_one_line(result, "in a file of one column an empty line is a null\n")
    assert files() == {"labels.csv", "logits.npy"}


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("has_last_end", [True, False])
def test_lines_of_one_column(report, end, has_last_end):
    pytest.importorskip("pyarrow", reason="needs the extra `tables`")
    for name, rows in {"labels.csv": "100", "logits.csv": "000"}.items():
        text = end.join(["v", *rows]) + end * has_last_end
        Path(name).write_bytes(text.encode())
    got = report("labels.csv:v", "logits.csv:v")
    assert (got["elements"], got["value"]) == (3, pytest.approx(math.log(2), rel=1e-15))


def test_empty_lines_between_rows_of_several_fields_are_no_rows(report):
    pytest.importorskip("pyarrow", reason="needs the extra `tables`")
    Path("table.csv").write_text("\nz,x\n\n1,0\n\n0,0\n\n")
    assert report("table.csv:z", "table.csv:x")["elements"] == 2


def test_an_empty_line_is_no_header_of_one_column(run):
    pytest.importorskip("pyarrow", reason="needs the extra `tables`")
    Path("table.csv").write_text("\nz\n1\n")
    assert_one_line(run("table.csv:z", "table.csv:z"), "table.csv: the first line must name")


def test_a_null_late_in_the_file(small_blocks, tables, run):
    tables(z=[0.0] * 31, x=[0.0] * 30 + [None])
    save("labels.npy", np.zeros(31))
    for name in ("table.csv", "table.parquet"):
        result = run("labels.npy", f"{name}:x", "--loss-out", "loss.npy")
        assert_one_line(result, name, "null", "row 30", "with a weight of 0\n")
    assert files() == {"labels.npy", "table.csv", "table.parquet"}


def test_files_of_different_lengths(tables, run):
    tables(z=[1.0, 0.0, 1.0])
    save("logits.npy", np.zeros(4))
    for name in ("table.csv", "table.parquet"):
        assert_one_line(
            run(f"{name}:z", "logits.npy"),
            "must have the same shape",
            f"3 rows, shape (3,), in {name}:z and 4 rows, shape (4,), in logits.npy",
        )
        result = run("logits.npy", "logits.npy", "--weight", f"{name}:z")
        assert_one_line(
            result,
            "--weight must broadcast",
            f"3 rows, shape (3,), in {name}:z and 4 rows, shape (4,), in logits.npy",
        )


def test_hints_for_shapes_speak_of_commas(tables, run):
    tables(z=[1.0, 0.0, 1.0], w=[1.0, 2.0, 3.0], q=[1.0, 2.0, 3.0])
    save("column.npy", np.zeros((3, 1)))
    save("flat.npy", np.zeros(3))
    save("wide.npy", np.zeros((3, 2)))
    result = run("table.csv:z", "column.npy")
    assert_one_line(result, "; table.csv:z, with a comma at the end has shape (3, 1)")
    result = run("table.csv:z,", "flat.npy")
    assert_one_line(result, "; table.csv:z without a comma at the end has shape (3,)")
    assert_one_line(run("flat.npy", "column.npy"), "; reshape one of the files")
    assert_one_line(run("flat.npy", "wide.npy"), "in wide.npy\n")
    result = run("wide.npy", "wide.npy", "--weight", "table.csv:w")
    assert_one_line(result, "; table.csv:w, with a comma at the end is one value for each row")
    assert run("wide.npy", "wide.npy", "--weight", "table.csv:w,")[0] == 0


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
    save("labels.npy", np.zeros(max(1, content.count(b"\n") - 1)))
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
