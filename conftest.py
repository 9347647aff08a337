"""Every code block of README.md and of the pages in docs/ is a test.

The blocks of a page run in order and share their names, in an empty folder that holds a copy of
examples/. A ```python block runs as it is; one that starts with >>> must give the output that
follows, numbers to the digits shown. In a ```console block the lines that start with $ are run by
bash, and must give the output that follows, if there is any. A block that imports a library which
is not installed is skipped. So is one after `<!-- not run: the reason -->`, and one that uses a
name which only a skipped block would have bound.
"""

from __future__ import annotations

import ast
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
from sybil.evaluators.doctest import NUMBER, DocTestEvaluator, OutputChecker
from sybil.evaluators.python import PythonEvaluator
from sybil.parsers.abstract.doctest import DocTestStringParser
from sybil.parsers.markdown import CodeBlockParser, SkipParser
from sybil.typing import Evaluator

import logitloss

ROOT = Path(__file__).parent
OPTIONS = NUMBER | doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
# Keras uses TensorFlow by default.
KERAS_BACKENDS = filter(importlib.util.find_spec, ("tensorflow", "jax", "torch"))
os.environ.setdefault("KERAS_BACKEND", next(KERAS_BACKENDS, "tensorflow"))
IMPORT = re.compile(r"^(?:>>> |\.\.\. )?\s*(?:from|import) (\w+)", re.MULTILINE)
NOT_RUN = re.compile(r"<!-- not run: (.*) -->\n\Z")


def parse_python(document: Document) -> Iterable[Region]:
    statements = DocTestStringParser(DocTestEvaluator(OPTIONS))
    unbound: dict[str, Skip] = {}
    for block in blocks(document, "python", PythonEvaluator()):
        imported = dict.fromkeys(IMPORT.findall(block.parsed))
        missing = [name for name in imported if importlib.util.find_spec(name) is None]
        bound, used = names(block.parsed)
        if missing:
            block.evaluator = Skip(f"needs {' and '.join(missing)}")
        elif lacking := sorted((used - bound) & unbound.keys()):
            block.evaluator = unbound[lacking[0]]
        for name in bound:
            unbound.pop(name, None)
            if isinstance(block.evaluator, Skip):
                unbound[name] = block.evaluator
        if not block.parsed.startswith(">>>") or isinstance(block.evaluator, Skip):
            yield block
            continue
        for statement in statements(block.parsed, document.path):
            statement.adjust(block, block.parsed)
            yield statement


def names(block: str) -> tuple[set[str], set[str]]:
    """The names that a block binds, and those that it uses."""
    if block.startswith(">>>"):
        block = "".join(example.source for example in doctest.DocTestParser().get_examples(block))
    bound, used = set(), set()
    for node in ast.walk(ast.parse(block)):
        match node:
            case ast.Name(name, ast.Load()):
                used.add(name)
            case ast.Name(name) | ast.FunctionDef(name) | ast.ClassDef(name):
                bound.add(name)
            case ast.alias(name, other):
                bound.add(other or name.partition(".")[0])
    return bound, used


def parse_console(document: Document) -> Iterable[Region]:
    return blocks(document, "console", run_console)


def blocks(document: Document, language: str, evaluator: Evaluator) -> Iterable[Region]:
    for block in CodeBlockParser(language, evaluator)(document):
        if reason := NOT_RUN.search(document.text, 0, block.start):
            block.evaluator = Skip(reason[1])
        yield block


class Skip:
    def __init__(self, reason: str) -> None:
        self.reason = reason

    def __call__(self, example: Example) -> None:
        raise SkipTest(self.reason)


def run_console(example: Example) -> None:
    # The package under test, installed or not.
    environment = os.environ | {"PYTHONPATH": str(Path(logitloss.__file__).parents[1])}
    command_line = f'logitloss() {{ "{sys.executable}" -m logitloss "$@"; }}'
    for command in re.split(r"^\$ ", example.parsed, flags=re.MULTILINE)[1:]:
        # A command goes on while its lines end in a backslash.
        line, expected = re.fullmatch(r"((?:.*\\\n)*.*)\n?((?s:.*))", command).groups()
        result = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", f"{command_line}\n{line}"],
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
    # The pages show JAX with its defaults. The tests in tests/ change them.
    if jax := sys.modules.get("jax"):
        namespace["_x64"] = jax.config.jax_enable_x64
        jax.config.update("jax_enable_x64", False)


def leave_folder(namespace: dict[str, Any]) -> None:
    os.chdir(namespace["_left"])
    shutil.rmtree(namespace["_folder"])
    if "_x64" in namespace:
        sys.modules["jax"].config.update("jax_enable_x64", namespace["_x64"])


pytest_collect_file = Sybil(
    parsers=[SkipParser(), parse_python, parse_console],
    patterns=["README.md", "docs/*.md"],
    setup=enter_folder,
    teardown=leave_folder,
).pytest()
