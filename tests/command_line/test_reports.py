from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import logitloss
from command_line.commands import COMMAND, files, posix_only, save, save_pair


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
    page = (Path(__file__).parents[2] / "docs" / "command_line.md").read_text()
    listed = set(re.findall(r"^ +(?:-h, )?(--[a-z-]+)", out, re.MULTILINE))
    assert len(listed) > 12
    for option in listed:
        assert f"`{option}" in page


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
