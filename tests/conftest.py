from __future__ import annotations

import functools
import zlib
from collections.abc import Callable
from typing import Any

import backends
import numpy as np
import pytest
from hypothesis import HealthCheck, settings

import logitloss
from logitloss import _reductions

# The suite draws the same examples every time; `--hypothesis-profile search` draws many new ones.
_COMMON = {
    "deadline": None,
    # The fixtures are only names for a library and a dtype.
    "suppress_health_check": [HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
}
settings.register_profile("suite", derandomize=True, max_examples=50, **_COMMON)
settings.register_profile("search", max_examples=2000, **_COMMON)
settings.load_profile("suite")


def _leaving_inputs_alone(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, which must not change a NumPy array that it was not given as `out`."""

    @functools.wraps(function)
    def checked(*arguments: Any, **options: Any) -> Any:
        inputs = [
            value
            for value in (*arguments, *options.values())
            # Not isinstance, which asks a hostile value for its class.
            if issubclass(type(value), np.ndarray) and not value.dtype.hasobject
        ]
        outs = options.get("out")
        outs = outs if isinstance(outs, (tuple, list)) else [outs]
        inputs = [v for v in inputs if not any(_may_overlap(v, out) for out in outs)]
        before = [_checksum(value) for value in inputs]
        try:
            return function(*arguments, **options)
        finally:
            assert [_checksum(value) for value in inputs] == before, "an input was modified"

    return checked


def _checksum(array: np.ndarray) -> int:
    array = array.view(np.ndarray)
    # What is only repeated counts once, however often.
    # The ellipsis keeps an array without axes from becoming a number, whose padding is any.
    array = array[(*(slice(1 if step == 0 else None) for step in array.strides), ...)]
    return zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8))


def _may_overlap(value: np.ndarray, out: Any) -> bool:
    return issubclass(type(out), np.ndarray) and np.may_share_memory(value, out, max_work=1000)


# Before any test module imports them: every call of the suite is checked.
for _name in logitloss.__all__:
    if _name.endswith(("_with_logits", "_grad", "_hess")):
        setattr(logitloss, _name, _leaving_inputs_alone(getattr(logitloss, _name)))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test over every backend, and over every dtype that the backend has."""
    given = set(metafunc.fixturenames)
    for mark in metafunc.definition.iter_markers("parametrize"):
        names = mark.args[0]
        given.difference_update([names] if isinstance(names, str) else names)
    if given >= {"backend", "dtype"}:
        pairs = [(name, dtype) for name, dtypes in backends.DTYPES.items() for dtype in dtypes]
        metafunc.parametrize(("backend", "dtype"), pairs, indirect=["backend"])
    elif "backend" in given:
        metafunc.parametrize("backend", backends.NAMES, indirect=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what names a dtype that this platform has not."""
    for item in items:
        callspec = getattr(item, "callspec", None)
        for value in callspec.params.values() if callspec else ():
            if isinstance(value, str) and value in backends.MISSING:
                item.add_marker(pytest.mark.skip(reason=backends.MISSING[value]))


@pytest.fixture
def backend(request: pytest.FixtureRequest) -> backends.Backend:
    return backends.get(request.param)


@pytest.fixture
def pair_mean(monkeypatch: pytest.MonkeyPatch) -> str:
    """A reduction that nothing but `divisor` knows: the sum divided by half the number of terms."""
    rule = _reductions.divisor

    def longer_rule(reduction: str, *how: Any) -> Any:
        return rule("mean", *how) / 2 if reduction == "pair_mean" else rule(reduction, *how)

    monkeypatch.setattr(_reductions, "divisor", longer_rule)
    return "pair_mean"
