"""Code blocks of README.md and of the pages in docs/, copied by their button, can be pasted."""

from __future__ import annotations

import ast
import importlib.util
import re
import subprocess
import sys
from code import InteractiveConsole
from pathlib import Path
from types import CodeType

import pytest

import logitloss

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# How the pages' buttons copy.
COPYBUTTON = {
    statement.targets[0].id: ast.literal_eval(statement.value)
    for statement in ast.parse((ROOT / "docs" / "conf.py").read_text("utf-8")).body
    if isinstance(statement, ast.Assign) and statement.targets[0].id.startswith("copybutton_")
}


def blocks(page: Path, language: str) -> list[str]:
    text = page.read_text("utf-8")
    # What a reader cannot run as it stands is said to be so.
    text = re.sub(r"<!-- not run: .*? -->\n```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


def first_line(block: str) -> str:
    return block.split("\n")[0]


def copied(block: str) -> str:
    """What the button puts on the clipboard; tests/test_site.py compares it with a browser's."""
    prompt = re.compile(f"^(?:{COPYBUTTON['copybutton_prompt_text']})")
    lines, goes_on = [], False
    for line in block.split("\n"):
        if prompt.match(line) or goes_on:
            lines.append(prompt.sub("", line))
            goes_on = line.endswith(COPYBUTTON["copybutton_line_continuation_character"])
        elif not line.strip():
            lines.append(line)
    has_prompt = any(map(prompt.match, block.split("\n")))
    return ("\n".join(lines) if has_prompt else block).removesuffix("\n")


class Console(InteractiveConsole):
    """Python's prompt. An error ends the test; statements are run if `runs`."""

    def __init__(self, runs: bool) -> None:
        super().__init__({"__name__": "__main__"})
        self.runs = runs

    def runcode(self, code: CodeType) -> None:
        if self.runs:
            exec(code, self.locals)

    def showsyntaxerror(self, filename: str | None = None, **options: object) -> None:
        raise

    def paste(self, text: str) -> None:
        expects_more = False
        for line in text.split("\n"):
            expects_more = self.push(line)
        assert not expects_more, f"the prompt waits for the end of\n{text}"


def needs(block: str) -> list[str]:
    """Libraries that a block imports and that are not installed."""
    imported = re.findall(r"^(?:>>> )?(?:from|import) (\w+)", block, flags=re.MULTILINE)
    return [name for name in imported if importlib.util.find_spec(name) is None]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_block_for_the_prompt_can_be_pasted_there(page: Path) -> None:
    for block in blocks(page, "python"):
        if block.startswith(">>>"):
            Console(runs=False).paste(copied(block))


@pytest.mark.parametrize(
    "pasted",
    [
        "def f():\n    return 1\nf()",
        "for i in range(3):\n    print(i)",
        ">>> 1",
    ],
)
def test_the_prompt_refuses_what_it_would(pasted: str) -> None:
    with pytest.raises((SyntaxError, AssertionError)):
        Console(runs=False).paste(pasted)


@pytest.mark.skipif(sys.platform == "win32", reason="needs a POSIX shell")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_command_is_copied_whole(page: Path) -> None:
    for block in blocks(page, "console"):
        commands = copied(block)
        # A command goes on while its lines end in a backslash.
        expected = re.findall(r"^\$ ((?:.*\\\n)*.*)", block, flags=re.MULTILINE)
        assert re.sub(r"\n+", "\n", commands).strip() == "\n".join(expected)
        subprocess.run(["bash", "-n"], input=commands, text=True, check=True)


@pytest.mark.parametrize("block", blocks(ROOT / "README.md", "python"), ids=first_line)
def test_a_block_of_the_readme_runs_by_itself(block: str) -> None:
    if missing := needs(block):
        pytest.skip(f"needs {' and '.join(missing)}")
    Console(runs=True).paste(copied(block))


@pytest.mark.parametrize(
    "program",
    blocks(ROOT / "docs" / "scale_out.md", "python"),
    ids=first_line,
)
def test_a_program_runs_twice_and_leaves_files_alone(program: str, tmp_path: Path) -> None:
    if missing := needs(program):
        pytest.skip(f"needs {' and '.join(missing)}")
    for suffix, library in {".parquet": "pyarrow", ".zarr": "zarr"}.items():
        if suffix in program:
            pytest.importorskip(library)
    # Every name of a file that the program mentions is the name of a file that its reader has.
    mine = {name: f"mine: {name}" for name in re.findall(r'"(\w+\.(?:npy|parquet|zarr))"', program)}
    assert mine
    for name, text in mine.items():
        (tmp_path / name).write_text(text)
    script = tmp_path / "program.py"
    script.write_text(program)
    package = str(Path(logitloss.__file__).parents[1])
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, script],
            cwd=tmp_path,
            env={"PATH": "", "HOME": str(tmp_path), "PYTHONPATH": package},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout == "1.2942\n"
    left = {path.name: path.read_text() for path in tmp_path.iterdir() if path.is_file()}
    assert left == mine | {"program.py": program}
