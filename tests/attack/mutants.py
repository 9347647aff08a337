"""Break the compiled code line by line and see whether a test notices.

    python tests/attack/mutants.py [--jobs N] [--match REGEX] [FILE ...]

Each mutant changes one thing in one line of a C or Cython source: an operator, a constant, a sign,
a condition, or it leaves the statement out. It is killed if it does not compile, if a test of the
suite fails, or if the fuzzer finds a wrong result or a sanitizer an error. One that gives the same
machine code is none. Survivors that are known, with the reason why no test can kill them, are in
`survivors.toml`; any other makes the exit status 1.

Wants meson, ninja, Cython and the packages of the extra `test`, and takes seconds for each mutant.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import queue
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
KERNEL = Path("src/logitloss/_kernel")
FILES = ("logistic.h", "blocks.h", "blocks.c", "careful.c", "kernel.pyx")
# Those that fail soonest go first.
TESTS = ("test_numpy", "test_out", "test_values", "test_reductions", "test_properties", "test_kernel")
CYTHON_TESTS = ("test_hostile", "test_inputs", "test_config", "test_processes")
# A mutant that takes longer for one test, or for the whole suite, hangs.
SECONDS_PER_TEST, SECONDS = 60, 900

_SWAPS = [
    (r" \+ ", " - "),
    (r" - ", " + "),
    (r" \* ", " / "),
    (r" / ", " * "),
    (r" // ", " * "),
    (r" % ", " / "),
    (r" \+= ", " -= "),
    (r" \*= ", " /= "),
    (r" \|= ", " &= "),
    (r" < ", " <= "),
    (r" < ", " > "),
    (r" <= ", " < "),
    (r" <= ", " > "),
    (r" > ", " >= "),
    (r" > ", " < "),
    (r" >= ", " > "),
    (r" >= ", " < "),
    (r" == ", " != "),
    (r" != ", " == "),
    (r" && ", " || "),
    (r" \|\| ", " && "),
    (r" & ", " | "),
    (r" \| ", " & "),
    (r"(?<=[\s(])-(?=[\w(])", ""),
    (r"(?<=[\s(])!(?=[\w(])", ""),
    (r"\bnot ", ""),
    (r" and ", " or "),
    (r" or ", " and "),
    (r"\bTrue\b", "False"),
    (r"\bFalse\b", "True"),
]
_HEX_FLOAT = r"-?0x1(?:\.[0-9a-f]+)?p[+-]\d+"


class Mutant(NamedTuple):
    file: str
    number: int  # of the line, from 0
    line: str
    changed: str


def mutants(file: str) -> Iterator[Mutant]:
    text = (ROOT / KERNEL / file).read_text()
    is_cython = file.endswith(".pyx")
    # What is no code becomes spaces, so that the columns stay.
    nothing = r'"""[^"]*?"""|#.*' if is_cython else r"/\*.*?\*/"
    code = re.sub(nothing, lambda found: re.sub(r"\S", " ", found[0]), text, flags=0 if is_cython else re.S)
    lines, seen = text.split("\n"), set()
    for number, bare in enumerate(code.split("\n")):
        for start, stop, new in _changes(bare.rstrip(), is_cython):
            line = lines[number]
            changed = line[:start] + new + line[stop:]
            if (number, changed) not in seen:
                seen.add((number, changed))
                yield Mutant(file, number, line, changed)


def _changes(code: str, is_cython: bool) -> Iterator[tuple[int, int, str]]:
    stripped = code.strip()
    if not stripped or stripped.startswith(("import", "from", "cimport", "ctypedef", "#include", "#if", "#e")):
        return
    for pattern, new in _SWAPS:
        for found in re.finditer(pattern, code):
            yield *found.span(), new
    for found in re.finditer(_HEX_FLOAT, code):
        value = float.fromhex(found[0])
        yield *found.span(), (-value).hex()
        yield *found.span(), (value * (1 + 2.0**-8)).hex()
    for found in re.finditer(r"(?<![\w.+-])\d+(?:\.\d+)?(?![\w.])", code):
        yield *found.span(), f"{float(found[0]) * 1.01}" if "." in found[0] else f"{int(found[0]) + 1}"
    if is_cython:
        if found := re.match(r"\s*(?:if|while|elif) (.+):$", code):
            yield *found.span(1), "True"
            yield *found.span(1), "False"
        if re.match(r"\s+(?:[\w.\[\]]+ (?:[-+*]?=) .+[^(\[{,]|\w+\(.*\)|raise .*|return .+)$", code):
            begin = len(code) - len(code.lstrip())
            yield begin, len(code), "pass"
    else:
        if found := re.match(r"\s*(?:else )?if \((.+)\)( \{)?$", code):
            yield *found.span(1), "1"
            yield *found.span(1), "0"
        if re.match(
            r"\s+(?![\s+:]|return|const|case|typedef|REAL |UINT |int |double |char |ptrdiff_t )"
            r"[\w>.*\[\]()+ -]+(?:[-+|<]*= .+|\(.*\));$",
            code,
        ):
            begin = len(code) - len(code.lstrip())
            yield begin, len(code), ";"


class Workspace:
    """A copy of the tree with a build folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("src", "tests"):
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
        for name in ("pyproject.toml", "meson.options"):
            shutil.copy(ROOT / name, folder)
        # Compiled in a third of the time, to the same results.
        build = (ROOT / "meson.build").read_text().replace("'-O3'", "'-O1'")
        (folder / "meson.build").write_text(build)
        self._run("meson", "setup", "build")

    def _run(self, *command: str) -> str:
        """Nothing if all went well, or what went wrong."""
        environment = {
            **os.environ,
            "PYTHONPATH": str(self.folder / "src"),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        try:
            done = subprocess.run(
                command,
                cwd=self.folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=SECONDS,
            )
        except subprocess.TimeoutExpired:
            return "hung"
        return done.stdout[-2000:] + done.stderr[-2000:] if done.returncode else ""

    def compile(self) -> str | None:
        """The hash of the extension, or None if there is none."""
        if self._run("ninja", "-C", "build", "-j", "1"):
            return None
        (extension,) = (self.folder / "build").glob("kernel.*.so")
        shutil.copy(extension, self.folder / KERNEL)
        return hashlib.sha256(extension.read_bytes()).hexdigest()

    def fuzz(self) -> str:
        """Random tasks for a moment, without sanitizers: what most mutants fail soonest."""
        libraries = map(str, (self.folder / "build").glob("libkernel_*.a"))
        sources = KERNEL / "careful.c", Path("tests/attack/fuzz_kernel.c")
        flags = "-O1", "-DLOGITLOSS_X86", "-DSTANDALONE", f"-I{KERNEL}"
        return self._run(
            *("gcc", *flags, *map(str, sources), *libraries, "-lm", "-o", "build/fuzz")
        ) or self._run("build/fuzz", "1", "1")

    def test(self, file: str) -> str:
        names = (CYTHON_TESTS if file == "kernel.pyx" else ()) + TESTS
        selection = "numpy or not (strict or torch or jax or dask or cupy or sparse or ndonnx)"
        return self._run(
            *(sys.executable, "-m", "pytest", "-x", "-q", "--tb=line", "--no-header", "-p", "no:cacheprovider"),
            *("-o", f"faulthandler_timeout={SECONDS_PER_TEST}", "-o", "faulthandler_exit_on_timeout=true"),
            *(f"tests/{name}.py" for name in names),
            *("-k", selection),
        )

    def judge(self, mutant: Mutant, unchanged: str) -> str:
        path = self.folder / KERNEL / mutant.file
        text = path.read_text()
        lines = text.split("\n")
        lines[mutant.number] = mutant.changed
        try:
            path.write_text("\n".join(lines))
            compiled = self.compile()
            if compiled is None:
                return "not compiled"
            if compiled == unchanged:
                return "the same machine code"
            is_c = mutant.file != "kernel.pyx"
            if is_c and self.fuzz():
                return "killed by the fuzzer"
            if self.test(mutant.file):
                return "killed by the suite"
            if is_c and self._run("bash", "tests/attack/run.sh", "short", "random"):
                return "killed by a sanitizer"
            return "survived"
        finally:
            path.write_text(text)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("files", nargs="*", default=FILES, metavar="FILE")
    parser.add_argument("--jobs", type=int, default=1, metavar="N")
    parser.add_argument("--match", default="", metavar="REGEX", help="only lines that match")
    parser.add_argument("--list", action="store_true", help="print the mutants and stop")
    chosen = parser.parse_args()

    known = tomllib.loads((Path(__file__).parent / "survivors.toml").read_text())["survivor"]
    todo = [
        mutant
        for file in chosen.files
        for mutant in mutants(file)
        if re.search(chosen.match, mutant.line)
        and not any(entry["line"] == mutant.line.strip() and "becomes" not in entry for entry in known)
    ]
    if chosen.list:
        for mutant in todo:
            print(_show(mutant))
        print(len(todo), "mutants")
        return 0

    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as temporary, ThreadPoolExecutor(chosen.jobs) as pool:
        free: queue.SimpleQueue[Workspace] = queue.SimpleQueue()
        for job in range(chosen.jobs):
            folder = Path(temporary, str(job))
            folder.mkdir()
            free.put(Workspace(folder))
        hashes: dict[Workspace, str | None] = {}

        def judge(mutant: Mutant) -> tuple[Mutant, str]:
            workspace = free.get()
            try:
                if workspace not in hashes:
                    hashes[workspace] = workspace.compile()
                    if failure := workspace.fuzz() or workspace.test("kernel.pyx"):
                        raise SystemExit(f"the unchanged code fails: {failure}")
                return mutant, workspace.judge(mutant, hashes[workspace] or "")
            finally:
                free.put(workspace)

        for mutant, verdict in pool.map(judge, todo):
            if verdict == "survived" and _is_known(mutant, known):
                verdict = "survived, for a known reason"
            counts[verdict] += 1
            print(f"{verdict}: {_show(mutant)}", flush=True)
    print(f"{len(todo)} mutants:", *(f"{count} {verdict};" for verdict, count in counts.items()))
    return 1 if counts["survived"] else 0


def _show(mutant: Mutant) -> str:
    return f"{mutant.file}:{mutant.number + 1}: {mutant.line.strip()}  =>  {mutant.changed.strip()}"


def _is_known(mutant: Mutant, known: list[dict[str, str]]) -> bool:
    return any(
        entry["line"] == mutant.line.strip() and entry.get("becomes") == mutant.changed.strip()
        for entry in known
    )


if __name__ == "__main__":
    sys.exit(main())
