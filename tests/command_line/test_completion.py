"""Completion in shells."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from command_line.commands import assert_one_line, files


@pytest.fixture
def script(run) -> str:
    """The script for bash, in a file."""
    pytest.importorskip("shtab", reason="needs the extra `completion`")
    if shutil.which("bash") is None:
        pytest.skip("needs bash")
    status, out, err = run("--print-completion", "bash")
    assert (status, err) == (0, "")
    Path("completion.bash").write_text(out)
    return "completion.bash"


def completed(script: str, *words: str) -> set[str]:
    """What bash offers for the last of the words."""
    command = """
    source "$1"; shift
    COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
    eval "$(complete -p logitloss | sed 's/.*-F \\([^ ]*\\).*/\\1/') logitloss '${@: -1}'"
    printf '%s\\n' "${COMPREPLY[@]}"
    """
    done = subprocess.run(
        ["bash", "-c", command, "bash", script, "logitloss", *words],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    return set(done.stdout.split())


def test_options_are_completed(script):
    assert completed(script, "--pos") == {"--pos-weight"}
    assert completed(script, "--p") == {
        "--pos-weight",
        "--plot",
        "--per-class",
        "--print-completion",
    }
    assert completed(script, "--reduction", "w") == {"weighted_mean"}


def test_files_are_completed(script):
    for name in ("labels.npy", "logits.npy", "scores.csv"):
        Path(name).touch()
    assert completed(script, "l") == {"labels.npy", "logits.npy"}
    for option in ("--weight", "--pos-weight", "--by", "--loss-out", "--grad-out", "--plot"):
        assert completed(script, option, "s") == {"scores.csv"}


@pytest.mark.parametrize("shell", ["zsh", "tcsh"])
def test_scripts_for_other_shells(run, shell):
    pytest.importorskip("shtab", reason="needs the extra `completion`")
    status, out, err = run("--print-completion", shell)
    assert (status, err) == (0, "")
    assert "pos-weight" in out


def test_without_shtab(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "shtab", None)
    result = run("--print-completion", "bash")
    assert_one_line(result, "--print-completion needs shtab", "pip install", "[completion]")
    assert_one_line(run("--print-completion", "fish"), "--print-completion", "fish", "bash")
    assert files() == set()
