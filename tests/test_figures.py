"""The figure on the page of the command line is what the command beside it draws.

Run as a script this draws the figure anew.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import logitloss

DOCS = Path(__file__).parents[1] / "docs"
FIGURES = DOCS / "figures"


def draw(folder: Path) -> str:
    """Run the blocks of the section in a folder, and return the figure."""
    section = (DOCS / "command_line.md").read_text("utf-8").split("\n## The plot\n")[1]
    program = re.search(r"```python\n(.*?)```", section, re.DOTALL)
    command = re.search(r"^\$ logitloss (.*)$", section, re.MULTILINE)
    figure = re.search(r"\(figures/(.*?)\)", section)
    assert program and command and figure
    style = {"MATPLOTLIBRC": str(FIGURES / "logitloss.mplstyle")}
    package = {"PYTHONPATH": str(Path(logitloss.__file__).parents[1])}
    for arguments in (["-c", program[1]], ["-m", "logitloss", *command[1].split()]):
        subprocess.run(
            [sys.executable, *arguments],
            check=True,
            cwd=folder,
            env=os.environ | style | package,
            stdout=subprocess.DEVNULL,
        )
    return (folder / figure[1]).read_text("utf-8")


def texts(figure: str) -> list[str]:
    return re.findall(r"<text\b[^>]*>([^<]*)</text>", figure)


def test_the_figure_is_what_the_command_draws(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    shown = texts((FIGURES / "scores.svg").read_text("utf-8"))
    assert any("1,000,000 elements" in text for text in shown)
    assert texts(draw(tmp_path)) == shown


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as name:
        (FIGURES / "scores.svg").write_text(draw(Path(name)), "utf-8")
