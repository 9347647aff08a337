from __future__ import annotations

import backends
import pytest
from hypothesis import HealthCheck, settings

# The suite draws the same examples every time; `--hypothesis-profile search` draws many new ones.
_COMMON = {
    "deadline": None,
    # The fixtures are only names for a library and a dtype.
    "suppress_health_check": [HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
}
settings.register_profile("suite", derandomize=True, max_examples=50, **_COMMON)
settings.register_profile("search", max_examples=2000, **_COMMON)
settings.load_profile("suite")


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
