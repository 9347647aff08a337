"""Break the compiled code line by line and see whether a test notices.

    python tests/attack/mutants.py [--jobs N] [--match REGEX] [--sample N] [FILE ...]

Each mutant changes one thing in one line of a C or Cython source: an operator, a constant, a sign,
a condition, or it leaves the statement out. It is killed if it does not compile, if the fuzzer
finds a wrong result or a sanitizer an error, or if a test of the suite fails. One that gives the
same machine code is none. Survivors that are known, with the reason why no test can kill them, are
in `survivors.toml`; any other makes the exit status 1, and so does one there whose line is no more.

Wants gcc, meson, ninja, Cython and the packages of the extra `test`, and takes seconds for each
mutant, or a minute for one that survives.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import queue
import random
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
HEADERS = ("logistic.h", "element.h", "half.h", "task.h")
FILES = (*HEADERS, "task.c", "blocks.c", "careful.c", "kernel.pyx")
# Those that fail soonest go first.
TESTS = "test_layouts test_numpy test_out test_values test_reductions test_properties test_kernel"
CYTHON_TESTS = "test_hostile test_inputs test_threads test_processes test_memory"
# What only a sanitizer sees is a way out of memory or numbers, of which the others know nothing.
SANITIZED = ("task.h", "task.c", "blocks.c")
NUMPY_ALONE = "numpy or not (strict or torch or jax or dask or cupy or sparse or ndonnx)"
# A mutant that takes longer for one test, for the fuzzer or for the whole suite hangs.
SECONDS_PER_TEST, SECONDS_OF_FUZZER, SECONDS = 60, 120, 900
# What the fuzzer tries, whatever else the machine does.
INPUTS = 1500

SWAPS = [
    *[(" + ", " - "), (" - ", " + "), (" * ", " / "), (" / ", " * "), (" // ", " * ")],
    *[(" % ", " / "), (" += ", " -= "), (" *= ", " /= "), (" |= ", " &= ")],
    *[(" < ", " <= "), (" < ", " > "), (" <= ", " < "), (" <= ", " > ")],
    *[(" > ", " >= "), (" > ", " < "), (" >= ", " > "), (" >= ", " < ")],
    *[(" == ", " != "), (" != ", " == "), (" && ", " || "), (" || ", " && ")],
    *[(" & ", " | "), (" | ", " & "), (" and ", " or "), (" or ", " and ")],
    *[("True", "False"), ("False", "True"), ("not ", "")],
]
PREFIX = r"(?<=[\s(])[-!](?=[\w(])"
HEX_FLOAT = r"-?0x1(?:\.[0-9a-f]+)?p[+-]\d+"
NUMBER = r"(?<![\w.+-])\d+(?:\.\d+)?(?![\w.])"
NO_CODE = ("import", "from", "cimport", "ctypedef", "#include", "#if", "#e")

CYTHON_COMMENT = r'"""[^"]*?"""|#.*'
CYTHON_CONDITION = r"\s*(?:if|while|elif) (.+):$"
CYTHON_STATEMENT = r"\s+([\w.\[\]]+ [-+*]?= .+[^(\[{,]|\w+\(.*\)|raise .*|return .+)$"

C_COMMENT = r"(?s)/\*.*?\*/"
C_CONDITION = r"\s*(?:else )?if \((.+)\)(?: \{)?$"
C_STATEMENT = (
    r"\s+(?![\s+:]|return|const|case|typedef|REAL |UINT |int |double |char |ptrdiff_t )"
    r"([\w>.*\[\]()+ -]+(?:[-+|<]*= .+|\(.*\));)$"
)


class Mutant(NamedTuple):
    file: str
    number: int  # of the line, from 0
    line: str
    becomes: str

    def __str__(self) -> str:
        return f"{self.file}:{self.number + 1}: {self.line.strip()}  =>  {self.becomes.strip()}"


def mutants(file: str) -> Iterator[Mutant]:
    text = (ROOT / KERNEL / file).read_text()
    is_cython = file.endswith(".pyx")
    # Comments become spaces, so that the columns stay.
    comment = CYTHON_COMMENT if is_cython else C_COMMENT
    code = re.sub(comment, lambda found: re.sub(r"\S", " ", found[0]), text)
    for number, (line, bare) in enumerate(zip(text.split("\n"), code.split("\n"), strict=True)):
        if bare.strip().startswith(NO_CODE):
            continue
        changes = {
            line[:start] + new + line[stop:]: None
            for start, stop, new in _changes(bare.rstrip(), is_cython)
        }
        for becomes in changes:
            yield Mutant(file, number, line, becomes)


def stale(survivors: list[dict[str, str]]) -> Iterator[str]:
    """Survivors whose line is no more."""
    for entry in survivors:
        folder = KERNEL if entry["file"] in FILES else KERNEL.parent
        lines = (ROOT / folder / entry["file"]).read_text().split("\n")
        if entry["line"] not in map(str.strip, lines):
            yield f"{entry['file']}: {entry['line']}"


def _changes(code: str, is_cython: bool) -> Iterator[tuple[int, int, str]]:
    for old, new in SWAPS:
        for found in re.finditer(re.escape(old), code):
            yield *found.span(), new
    for found in re.finditer(PREFIX, code):
        yield *found.span(), ""
    for found in re.finditer(HEX_FLOAT, code):
        value = float.fromhex(found[0])
        yield *found.span(), (-value).hex()
        yield *found.span(), (value * (1 + 2.0**-8)).hex()
    for found in re.finditer(NUMBER, code):
        is_whole = found[0].isdigit()
        yield *found.span(), str(int(found[0]) + 1 if is_whole else float(found[0]) * 1.01)
    if condition := re.match(CYTHON_CONDITION if is_cython else C_CONDITION, code):
        for constant in ("True", "False") if is_cython else ("1", "0"):
            yield *condition.span(1), constant
    if statement := re.match(CYTHON_STATEMENT if is_cython else C_STATEMENT, code):
        yield *statement.span(1), "pass" if is_cython else ";"


class Workspace:
    """A copy of the tree with a build folder of its own."""

    def __init__(self, folder: Path, files: list[str]) -> None:
        self.folder = folder
        for name in ("src", "tests"):
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("*.so"))
        for name in ("pyproject.toml", "meson.options"):
            shutil.copy(ROOT / name, folder)
        # Compiled in a third of the time, to the same results.
        build = (ROOT / "meson.build").read_text().replace("'-O3'", "'-O1'")
        (folder / "meson.build").write_text(build)
        if failure := self._run("meson", "setup", "build") or self.compile():
            raise RuntimeError(f"the unchanged code does not compile: {failure}")
        self.unchanged = self.install()
        # The suite for Cython holds the other.
        if failure := self.fuzz() or self.test("kernel.pyx" if "kernel.pyx" in files else files[0]):
            raise RuntimeError(f"the unchanged code fails: {failure}")

    def _run(self, *command: str, seconds: float = SECONDS) -> str:
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
                timeout=seconds,
            )
        except subprocess.TimeoutExpired:
            return "hung"
        return f"{done.returncode}: {done.stdout}{done.stderr}" if done.returncode else ""

    def compile(self) -> str:
        return self._run("ninja", "-C", "build", "-j", "1")

    def install(self) -> str:
        """Put the extension beside the sources, and return its hash."""
        (extension,) = (self.folder / "build").glob("kernel.*.so")
        shutil.copy(extension, self.folder / KERNEL)
        return hashlib.sha256(extension.read_bytes()).hexdigest()

    def fuzz(self) -> str:
        """Random calls, without sanitizers: what most mutants fail soonest."""
        libraries = map(str, (self.folder / "build").glob("libkernel_*.a"))
        flags = ("-O1", "-DLOGITLOSS_X86", "-DSTANDALONE", f"-I{KERNEL}")
        sources = (f"{KERNEL}/careful.c", f"{KERNEL}/task.c", "tests/attack/fuzz_kernel.c")
        build = ("gcc", *flags, *sources, *libraries, "-lm", "-o", "build/fuzz")
        fuzz = ("build/fuzz", str(SECONDS), "1", str(INPUTS))
        return self._run(*build) or self._run(*fuzz, seconds=SECONDS_OF_FUZZER)

    def test(self, file: str) -> str:
        names = TESTS if file != "kernel.pyx" else f"{CYTHON_TESTS} {TESTS}"
        options = ["-m", "", "-x", "-q", "--tb=line", "-p", "no:cacheprovider", "-k", NUMPY_ALONE]
        options += ["-o", f"faulthandler_timeout={SECONDS_PER_TEST}"]
        options += ["-o", "faulthandler_exit_on_timeout=true"]
        files = [f"tests/{name}.py" for name in names.split()]
        return self._run(sys.executable, "-m", "pytest", *options, *files)

    def judge(self, mutant: Mutant) -> str:
        path = self.folder / KERNEL / mutant.file
        text = path.read_text()
        lines = text.split("\n")
        lines[mutant.number] = mutant.becomes
        try:
            path.write_text("\n".join(lines))
            if self.compile():
                return "not compiled"
            if self.install() == self.unchanged:
                return "the same machine code"
            if mutant.file != "kernel.pyx" and self.fuzz():
                return "killed by the fuzzer"
            if self.test(mutant.file):
                return "killed by the suite"
            sanitized = ("bash", "tests/attack/run.sh", "short", "random")
            if mutant.file in SANITIZED and self._run(*sanitized):
                return "killed by a sanitizer"
            return "survived"
        finally:
            path.write_text(text)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("files", nargs="*", default=FILES, metavar="FILE")
    parser.add_argument("--jobs", type=int, default=1, metavar="N")
    parser.add_argument("--match", default="", metavar="REGEX", help="only lines that match")
    parser.add_argument("--sample", type=int, metavar="N", help="only N of them, always the same")
    parser.add_argument("--list", action="store_true", help="print the mutants and stop")
    chosen = parser.parse_args()

    survivors = tomllib.loads((Path(__file__).parent / "survivors.toml").read_text())["survivor"]
    if gone := list(stale(survivors)):
        print("survivors.toml has lines that are no more:", *gone, sep="\n")
        return 1
    # None stands for anything that the line may become.
    known = {(entry["file"], entry["line"], entry.get("becomes")) for entry in survivors}
    todo = [
        mutant
        for file in chosen.files
        for mutant in mutants(file)
        if re.search(chosen.match, mutant.line) and (file, mutant.line.strip(), None) not in known
    ]
    if chosen.sample:
        todo = random.Random(0).sample(todo, min(chosen.sample, len(todo)))
    if chosen.list:
        print(*todo, f"{len(todo)} mutants", sep="\n")
        return 0

    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as temporary, ThreadPoolExecutor(chosen.jobs) as pool:
        free: queue.SimpleQueue[Workspace] = queue.SimpleQueue()
        for job in range(chosen.jobs):
            folder = Path(temporary, str(job))
            folder.mkdir()
            free.put(Workspace(folder, list(chosen.files)))

        def judge(mutant: Mutant) -> str:
            workspace = free.get()
            try:
                return workspace.judge(mutant)
            finally:
                free.put(workspace)

        for mutant, verdict in zip(todo, pool.map(judge, todo), strict=True):
            change = (mutant.file, mutant.line.strip(), mutant.becomes.strip())
            if verdict == "survived" and change in known:
                verdict = "survived, for a known reason"
            counts[verdict] += 1
            print(f"{verdict}: {mutant}", flush=True)
    for verdict, count in counts.most_common():
        print(f"{count} {verdict}")
    return 1 if counts["survived"] else 0


if __name__ == "__main__":
    sys.exit(main())
