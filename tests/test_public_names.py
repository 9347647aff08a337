"""The public names, their signatures, and what importing them costs."""

from __future__ import annotations

import doctest
import inspect
import subprocess
import sys
from collections.abc import Callable

import pytest

import logitloss

SIGNATURES = {
    "weighted_cross_entropy_with_logits": (
        "labels, logits, pos_weight, name=None, *, weight=None, reduction='none', out=None"
    ),
    "sigmoid_cross_entropy_with_logits": (
        "labels, logits, name=None, *, weight=None, reduction='none', out=None"
    ),
    "value_and_grad": (
        "labels, logits, pos_weight=1.0, *, weight=None, reduction='none', out=None"
    ),
    "grad_and_hess": "labels, logits, pos_weight=1.0, *, weight=None, out=None",
}


@pytest.mark.parametrize("name", SIGNATURES)
def test_signatures(name: str) -> None:
    signature = inspect.signature(getattr(logitloss, name))
    bare = [p.replace(annotation=p.empty) for p in signature.parameters.values()]
    assert str(inspect.Signature(bare)) == f"({SIGNATURES[name]})"


def test_all_is_sorted_and_complete() -> None:
    assert logitloss.__all__ == sorted(logitloss.__all__)
    for name in logitloss.__all__:
        assert hasattr(logitloss, name)
    assert {*SIGNATURES, "compat", "set_num_threads", "get_num_threads", "show_config"} == set(
        logitloss.__all__
    )


@pytest.mark.parametrize(
    "function",
    [getattr(logitloss, name) for name in logitloss.__all__ if name != "compat"]
    + [logitloss.compat.v1.weighted_cross_entropy_with_logits],
    ids=lambda function: function.__name__,
)
def test_examples_in_docstrings(function: Callable[..., object]) -> None:
    threads = logitloss.get_num_threads()
    try:
        for examples in doctest.DocTestFinder(recurse=False).find(function, globs={}):
            assert doctest.DocTestRunner().run(examples).failed == 0
    finally:
        logitloss.set_num_threads(threads)


def test_unknown_attributes_raise() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = logitloss.nothing


def test_import_brings_no_optional_library() -> None:
    code = (
        "import sys, logitloss; "
        "logitloss.weighted_cross_entropy_with_logits([1], [0.5], 2.0, reduction='mean'); "
        "print(*sorted({m.partition('.')[0] for m in sys.modules}))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    optional = {"torch", "jax", "cupy", "dask", "scipy", "pandas", "array_api_strict", "ml_dtypes"}
    assert optional.isdisjoint(run.stdout.split())
