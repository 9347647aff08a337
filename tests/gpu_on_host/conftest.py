"""Says at the end what NVIDIA's compiler made of the kernel."""

from __future__ import annotations

from typing import Any


def pytest_terminal_summary(terminalreporter: Any) -> None:
    compiled = [
        (report.nodeid.rpartition("::")[2], dict(report.user_properties))
        for report in terminalreporter.getreports("passed")
        if "registers" in dict(report.user_properties)
    ]
    if compiled:
        terminalreporter.section("registers of each thread, and bytes that are spilled")
    for name, properties in compiled:
        numbers = " ".join(map(str, sorted(properties["registers"], reverse=True)))
        terminalreporter.line(f"{name}: {numbers}; {properties['spilled']}")
