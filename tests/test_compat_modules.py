"""The modules of `compat`: imported when they are used, and their examples run."""

from __future__ import annotations

import doctest
import importlib
import subprocess
import sys
from importlib.util import find_spec

import pytest

import logitloss

OPTIONAL = {"torch", "sklearn", "xgboost", "lightgbm", "catboost", "pandas", "tensorflow", "keras"}


def imported_by(code: str) -> set[str]:
    code += "\nimport sys; print(*{name.partition('.')[0] for name in sys.modules})"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(run.stdout.split())


def test_nothing_is_imported_before_its_use() -> None:
    assert OPTIONAL.isdisjoint(imported_by("import logitloss, logitloss.compat"))
    # Neither of these needs the library that it is for.
    code = (
        "import logitloss\n"
        "logitloss.compat.boosting.Objective(3.0)([1.0], [0.5])\n"
        "logitloss.compat.sklearn.make_scorer(3.0)"
    )
    assert OPTIONAL.isdisjoint(imported_by(code))


def test_attributes_are_imported_at_their_first_use() -> None:
    pytest.importorskip("torch")
    assert "torch" in imported_by("import logitloss; logitloss.compat.torch.BCEWithLogitsLoss")


def test_unknown_attributes_raise() -> None:
    with pytest.raises(AttributeError, match=r"'logitloss\.compat' has no attribute 'nothing'"):
        _ = logitloss.compat.nothing


@pytest.mark.parametrize(
    ("name", "library"), [("boosting", "numpy"), ("sklearn", "sklearn"), ("torch", "torch")]
)
def test_examples_in_docstrings(name: str, library: str) -> None:
    if find_spec(library) is None:
        pytest.skip(f"{library} is not installed")
    result = doctest.testmod(importlib.import_module(f"logitloss.compat.{name}"))
    assert result.attempted > 3 and result.failed == 0
