from __future__ import annotations

import backends
import pytest


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


@pytest.fixture
def backend(request: pytest.FixtureRequest) -> backends.Backend:
    return backends.get(request.param)
