from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from logitloss._command_line import blocks
from logitloss._command_line.main import main


@pytest.fixture(autouse=True)
def work_in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BLOCK_ELEMENTS", 7)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run the command line in this process; return its status, stdout and stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as stop:
            status = stop.code
        return (status, *capsys.readouterr())

    return run


@pytest.fixture
def report(run: Callable[..., tuple[int, str, str]]) -> Callable[..., dict[str, Any]]:
    """Run the command line, which has to succeed, with this warning or none; return its JSON."""

    def report(*arguments: object, warning: str = "") -> dict[str, Any]:
        status, out, err = run(*arguments, "--json")
        assert (status, err) == (0, warning and f"logitloss: warning: {warning}\n")
        return json.loads(out, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))

    return report


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


@pytest.fixture
def earlier_results() -> dict[str, bytes]:
    """Outputs of an earlier run, which a failing one has to leave as they are."""
    for name in ("loss.npy", "grad.npy"):
        Path(name).write_bytes(b"earlier " + name.encode())
    return {name: Path(name).read_bytes() for name in ("loss.npy", "grad.npy")}
