"""How the modules of the package depend on each other."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import logitloss

PACKAGE = Path(logitloss.__file__).parent
MODULES = {
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in PACKAGE.rglob("*.py")
}


def imported_by(path: Path) -> set[str]:
    """The modules of the package that a file imports, at its top or within a function."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = {f"{node.module}.{alias.name}" for alias in node.names} & MODULES.keys()
            names.update(parts or {node.module})
    return names & MODULES.keys()


def test_imports_run_in_no_circle() -> None:
    graph = {name: imported_by(path) for name, path in MODULES.items()}
    # The package itself is what users import, and it gives its version to whoever asks.
    graph = {name: found - {"logitloss", name} for name, found in graph.items()}
    assert graph["logitloss._losses"]
    assert [*TopologicalSorter(graph).static_order()]


def test_the_formula_and_the_reductions_know_no_library_by_name() -> None:
    for name in ("_formula", "_reductions"):
        imports = {
            alias.name.partition(".")[0]
            for node in ast.walk(ast.parse(MODULES[f"logitloss.{name}"].read_text()))
            if isinstance(node, ast.Import | ast.ImportFrom)
            for alias in node.names
        }
        assert imports.isdisjoint({"numpy", "torch", "jax", "dask", "tensorflow", "cupy"})
