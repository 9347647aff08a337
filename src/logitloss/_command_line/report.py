"""What the user reads: the report as text or JSON on standard output, complaints in one line."""

import json
import math
import os
import sys
from typing import Any


def as_json(report: dict[str, Any]) -> str:
    def valid(value: Any) -> Any:
        if isinstance(value, list):
            return [{key: valid(part) for key, part in row.items()} for row in value]
        is_special = isinstance(value, float) and not math.isfinite(value)
        return json.dumps(value) if is_special else value

    return json.dumps({key: valid(value) for key, value in report.items()})


def as_text(report: dict[str, Any]) -> str:
    value = f"value ({report['reduction']})"
    rows = {
        "elements": f"{report['elements']:,}",
        "share of positives": f"{report['share_of_positives']:.2%}",
        "elements per second": f"{report['elements_per_second'] / 1e6:,.2f} million",
    }
    if report["value"] is not None:
        rows = {value: f"{report['value']}"} | rows
    lines = [f"{name:<23} {text}" for name, text in rows.items()]
    for rows_name, name in (("classes", "class"), ("groups", "group")):
        if rows_name in report:
            lines += ["", *_table(name, value, report[rows_name])]
    return "\n".join(lines)


def _table(name: str, value: str, rows: list[dict[str, Any]]) -> list[str]:
    width = max(23, *(len(row[name]) for row in rows)) if rows else 23
    lines = [f"{name:<{width}} {value:<23} share of positives"]
    lines += [
        f"{row[name]:<{width}} {row['value']:<23} {row['share_of_positives']:.2%}" for row in rows
    ]
    # Classes all have as many elements.
    if name == "group":
        ends = ["elements", *(f"{row['elements']:,}" for row in rows)]
        lines = [f"{line:<{width + 45}} {end}" for line, end in zip(lines, ends, strict=True)]
    return lines


def print_out(text: str) -> None:
    try:
        print(text, flush=True)
    except OSError as error:
        # Otherwise the interpreter tries, and fails, once more as it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise OSError(error.errno, error.strerror, "standard output") from error


def complain(message: str) -> None:
    print("logitloss:", *message.split(), file=sys.stderr)


def reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return str(error)
