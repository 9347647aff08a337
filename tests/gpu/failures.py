"""A plugin of pytest for runs that may be cut off: failures are written when they happen."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest


def pytest_configure() -> None:
    _file().unlink(missing_ok=True)
    # Told to end, pytest sums up what it has, as after Ctrl+C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.failed:
        with _file().open("a") as lines:
            print(report.nodeid, report.when, report.longreprtext, sep="\n", end="\n\n", file=lines)


def _file() -> Path:
    return Path(os.environ["FAILURES"])
