"""Every code block of README.md and of the pages in docs/ is a test.

The blocks of a page run in order and share their names, in an empty folder that holds a copy of
examples/. A ```python block runs as it is; one that starts with >>> must give the output that
follows, numbers to the digits shown. In a ```console block the lines that start with $ are run by
bash, and must give the output that follows, where there is any. A block that imports a library
which is not installed is skipped. So is one after `<!-- skip: next "reason" -->`.
"""

from __future__ import annotations

import doctest
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from unittest import SkipTest

from sybil import Document, Example, Region, Sybil
from sybil.evaluators.doctest import NUMBER, OutputChecker
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser, SkipParser

import logitloss

ROOT = Path(__file__).parent
OPTIONS = NUMBER | doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
IMPORT = re.compile(r"^(?:>>> |\.\.\. )?\s*(?:from|import) (\w+)", re.MULTILINE)


class PythonParser(PythonCodeBlockParser):
    def __call__(self, document: Document) -> Iterable[Region]:
        for block in self.codeblock_parser(document):
            names = dict.fromkeys(IMPORT.findall(block.parsed))
            missing = [name for name in names if not is_installed(name)]
            if missing:
                block.evaluator = skip_without(missing)
                yield block
            elif block.parsed.startswith(">>>"):
                for region in self.doctest_parser(block.parsed, document.path):
                    region.adjust(block, block.parsed)
                    yield region
            else:
                yield block


def is_installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def skip_without(missing: list[str]) -> Any:
    def evaluate(example: Example) -> None:
        raise SkipTest(f"needs {' and '.join(missing)}")

    return evaluate


def run_console(example: Example) -> None:
    # The package under test, installed or not.
    environment = os.environ | {"PYTHONPATH": str(Path(logitloss.__file__).parents[1])}
    command_line = f'logitloss() {{ "{sys.executable}" -m logitloss "$@"; }}'
    commands = re.split(r"^\$ ", example.parsed, flags=re.MULTILINE)[1:]
    for command in commands:
        # A command goes on while its lines end in a backslash.
        line, expected = re.fullmatch(r"((?:.*\\\n)*.*)\n?((?s:.*))", command).groups()
        script = f"{command_line}\n{line}"
        result = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            env=environment,
            capture_output=True,
            text=True,
        )
        output = result.stdout + result.stderr
        assert result.returncode == 0, f"{line}\n{output}"
        if expected.strip():
            assert OutputChecker().check_output(expected, output, OPTIONS), f"{line}\n{output}"


def enter_folder(namespace: dict[str, Any]) -> None:
    namespace["_left"] = os.getcwd()
    namespace["_folder"] = tempfile.mkdtemp()
    shutil.copytree(ROOT / "examples", Path(namespace["_folder"]) / "examples")
    os.chdir(namespace["_folder"])


def leave_folder(namespace: dict[str, Any]) -> None:
    os.chdir(namespace["_left"])
    shutil.rmtree(namespace["_folder"])


pytest_collect_file = Sybil(
    parsers=[
        PythonParser(doctest_optionflags=OPTIONS),
        CodeBlockParser("console", run_console),
        SkipParser(),
    ],
    patterns=["README.md", "docs/*.md"],
    setup=enter_folder,
    teardown=leave_folder,
).pytest()
