"""What must hold of a Linux wheel: python .ci/check_wheel.py WHEEL...

It is small, holds every file of the package and nothing else, and its extension exports the
module's initialiser alone.
"""

import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path, PurePosixPath

SOURCES = Path(__file__).parents[1] / "src"
# Without the OpenMP runtime that auditwheel adds.
MOST_BYTES = 1_000_000
# Compiled in, or used by developers only.
NOT_INSTALLED = {".c", ".h", ".pyx", ".pyc", ".so"}


def expected_files() -> set[str]:
    return {
        path.relative_to(SOURCES).as_posix()
        for path in (SOURCES / "logitloss").rglob("*")
        if path.is_file() and not {path.suffix, path.name} & NOT_INSTALLED
    } | {f"logitloss/_kernel/{name}" for name in sources_for_gpus()}


def sources_for_gpus() -> list[str]:
    """What is compiled where it runs: cuda.cu, and all that it includes."""
    names = ["cuda.cu"]
    for name in names:
        source = (SOURCES / "logitloss/_kernel" / name).read_text(encoding="utf-8")
        names += {*re.findall('#include "(.*)"', source)} - {*names}
    return names


def exported_symbols(library: bytes) -> set[str]:
    with tempfile.NamedTemporaryFile(suffix=".so") as file:
        file.write(library)
        file.flush()
        command = ["nm", "--dynamic", "--defined-only", "--format=just-symbols", file.name]
        return set(subprocess.check_output(command, text=True).split())


def check(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        members = [member for member in archive.infolist() if not member.is_dir()]
        package = [member for member in members if member.filename.startswith("logitloss/")]
        others = {PurePosixPath(member.filename).parts[0] for member in members} - {"logitloss"}
        assert all(name.endswith((".dist-info", ".libs")) for name in others), others

        (extension,) = (member for member in package if member.filename.endswith(".so"))
        symbols = exported_symbols(archive.read(extension))
        assert symbols == {"PyInit_kernel"}, symbols
        differing = {member.filename for member in package if member != extension}
        differing ^= expected_files()
        assert not differing, differing

        size = sum(member.compress_size for member in members if ".libs/" not in member.filename)
        assert size < MOST_BYTES, size
    print(f"{wheel.name}: {size / 1000:.0f} kB, exports {', '.join(symbols)}")


for argument in sys.argv[1:]:
    check(Path(argument))
