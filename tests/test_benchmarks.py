"""That the scripts in benchmarks/ still run, and notice what they are there to notice."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import logitloss
from logitloss._kernel import kernel

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def load(monkeypatch) -> Callable[[str], ModuleType]:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module


def run(script: str, *arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, BENCHMARKS / script, *map(str, arguments)],
        env=os.environ | variables,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.parametrize("target", kernel.AVAILABLE_TARGETS)
def test_a_share_of_all_float32_logits(target: str) -> None:
    """An odd step, so that the last bits of the patterns differ, too."""
    result = run("walk_float32.py", "--every", 2049, LOGITLOSS_CPU=target)
    assert result.returncode == 0, result.stdout + result.stderr
    assert f"{target}, 2,096,129 logits" in result.stdout


@pytest.mark.parametrize("name", ["loss", "gradient", "hessian"])
def test_the_walk_notices_a_single_wrong_result(name: str, load, monkeypatch) -> None:
    walk = load("walk_float32")
    # The patterns of the logits from 1 to 2.
    first, stop, every = 0x3F80_0000, 0x4000_0000, 97
    right = walk.walk(first, stop, every)
    assert all(worst.ulp <= walk.BOUNDS[key[0]] for key, worst in right.items())

    def spoilt(function):
        def call(labels: np.ndarray, logits: np.ndarray) -> list[np.ndarray]:
            results = dict(zip(NAMES[function], function(labels, logits), strict=True))
            if name in results:
                at = np.flatnonzero((logits == logit) & (labels == 1))
                results[name][at] += 3 * np.spacing(np.abs(results[name][at]))
            return list(results.values())

        return call

    NAMES = {
        logitloss.value_and_grad: ("loss", "gradient"),
        logitloss.grad_and_hess: ("gradient", "hessian"),
    }
    logit = np.uint32(first + 12345 * every).view(np.float32)
    for function in NAMES:
        monkeypatch.setattr(walk.logitloss, function.__name__, spoilt(function))
    wrong = walk.walk(first, stop, every)
    assert wrong[name, 1].ulp > walk.BOUNDS[name]
    assert wrong[name, 1].logit == logit
    assert {k: v for k, v in wrong.items() if k != (name, 1)} == {
        k: v for k, v in right.items() if k != (name, 1)
    }


def test_the_largest_rise_over_a_smaller_size(load) -> None:
    report = load("report")
    # 1, then 2, 1.5 and 0.5 ns per element; what is outside of the range does not count.
    seconds = {"10": 1e-9, "100": 1e-7, "1000": 2e-6, "10000": 1.5e-5, "100000": 5e-5}
    assert report.largest_rise(seconds) == (pytest.approx(2), 1000)
    assert report.largest_rise({"100": 3e-7, "1000": 2e-6}) == (1, 100)


@pytest.mark.exhaustive
def test_compare(load, tmp_path: Path) -> None:
    if shutil.which(os.environ.get("CC", "cc")) is None or not kernel.OPENMP:
        pytest.skip("needs a C compiler with OpenMP")
    page, saved = tmp_path / "page.md", tmp_path / "results.json"
    page.write_text("before\n<!-- table: bounds -->\nold\n<!-- end -->\nafter\n")
    options = ["--size", 1e4, "--largest", 100, "--rounds", 1, "--no-peers", "--json", saved]
    result = run("compare.py", *options)
    assert result.returncode == 0, result.stderr
    results = json.loads(saved.read_text())
    assert results["environment"]["logitloss"] == logitloss.show_config("dicts")
    assert set(results["large"]["float64"]) - {"arithmetic"} == {"memory", "logitloss"}
    if kernel.TARGET in ("avx2", "avx512"):
        # The division of the gradient comes on top of what the loss takes.
        arithmetic = results["large"]["float64"]["arithmetic"]
        assert 0 < arithmetic["loss"] < arithmetic["mean + gradient"]
    assert results["sizes"]["float32"]["logitloss"]["mean"].keys() >= {"1", "100"}

    again = run("compare.py", "--from", saved, "--page", page)
    assert again.stdout == result.stdout
    before, _, rest = page.read_text().partition("<!-- table: bounds -->\n\n")
    table, _, after = rest.partition("\n\n<!-- end -->")
    assert (before, after) == ("before\n", "\nafter\n")
    assert table in result.stdout
    assert table.count("\n") == 1 + len(load("report").OVER_BOUNDS)


@pytest.mark.exhaustive
@pytest.mark.skipif(kernel.TARGET not in ("avx2", "avx512"), reason="not x86-64 with AVX2")
@pytest.mark.skipif(shutil.which("gcc") is None, reason="reads the assembly of GCC")
def test_operations_are_those_of_the_loops(load) -> None:
    operations = load("operations")
    for target in operations.TARGETS:
        single, double = (operations.operations(d, target, "loss") for d in ("float32", "float64"))
        # Two polynomials at least, and those of float64 are longer.
        assert 18 <= single.fused < double.fused
        assert single.divided == double.divided == 1
        both = operations.operations("float64", target, "mean + gradient")
        assert both.divided == 2
        assert all(more >= less for more, less in zip(both, double, strict=True))
        # Whole numbers: no loop was taken for one that is unrolled otherwise.
        assert all(number == round(number) for number in (*single, *double, *both))


@pytest.mark.exhaustive
def test_the_grid(load, tmp_path: Path) -> None:
    pytest.importorskip("ml_dtypes")
    pytest.importorskip("matplotlib")
    saved, page = tmp_path / "grid.json", tmp_path / "page.md"
    page.write_text("<!-- table: grid --><!-- end --><!-- table: slower --><!-- end -->")
    options = ["--libraries", "NumPy", "--dtypes", "float32", "bfloat16", "--sizes", 10, 1000]
    result = run("grid.py", *options, "--seconds", 0.001, "--json", saved)
    assert result.returncode == 0, result.stderr
    grid = load("grid")
    results = json.loads(saved.read_text())
    assert len(results["cells"]) == 4 * len(grid.CASES)

    results["cells"][3]["seconds"] = 7 * results["cells"][3]["other"]
    saved.write_text(json.dumps(results))
    again = run("grid.py", "--from", saved, "--page", page, "--plots", tmp_path)
    assert again.returncode == 0, again.stderr
    cell = results["cells"][3]
    row = f"| NumPy | {cell['dtype']} | {cell['size']:,} | {cell['case']} | 7.00 |"
    assert row in page.read_text()
    assert ">NumPy, bfloat16<" in (tmp_path / "grid.svg").read_text()


@pytest.mark.exhaustive
@pytest.mark.parametrize("library", ["NumPy", "PyTorch", "JAX", "JAX jit"])
def test_both_sides_of_a_cell_compute_the_same(library: str, load) -> None:
    pytest.importorskip("ml_dtypes")
    if library != "NumPy":
        pytest.importorskip({"PyTorch": "torch"}.get(library, "jax"))
    grid = load("grid")
    for name, case in grid.CASES.items():
        if library == "PyTorch" and case.kind == "step":
            continue  # returns nothing
        given = grid.operands(20, "float32", case)
        sides = [call() for call in grid.LIBRARIES[library](case, given)]
        sides = [side if isinstance(side, tuple) else (side,) for side in sides]
        for own, other in zip(*sides, strict=True):
            np.testing.assert_allclose(
                np.asarray(own), np.asarray(other), rtol=2e-5, atol=1e-6, err_msg=name
            )


def test_plots(load, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    report = load("report")
    seconds = {"loss": 0.02, "mean": 0.01, "mean + gradient": 0.03}
    bounds = {"triad": 0.01, "sweep": 0.005}
    large = {"memory": bounds, "logitloss": seconds, "NumPy": {"loss": 0.2}}
    loss = {"loss": {"1": 1e-6, "1000000": 1e-3}}
    sizes = {"logitloss": loss, "NumPy": loss}
    dtypes = ("float32", "float64")
    report.draw(
        {
            "size": 10**7,
            "large": dict.fromkeys(dtypes, large),
            "sizes": dict.fromkeys(dtypes, sizes),
        },
        tmp_path,
    )
    for name in ("peers.svg", "throughput.svg"):
        text = (tmp_path / name).read_text()
        assert ">logitloss<" in text and ">NumPy<" in text
