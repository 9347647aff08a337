"""Long names in code may go on in the next line, after punctuation, as on a phone they have to."""

from __future__ import annotations

import re
from typing import Any

from sphinx.application import Sphinx


def let_code_break(
    app: Sphinx, page: str, template: str, context: dict[str, Any], document: Any
) -> None:
    def with_breaks(code: re.Match[str]) -> str:
        # The lookahead keeps entities, such as `&quot;`, whole.
        return '<span class="pre long">' + re.sub(r"([_./:=,(\[]+)(?=[\w&])", r"\1<wbr>", code[1])

    if "body" in context:
        context["body"] = re.sub(r'<span class="pre">([^<]{16,})', with_breaks, context["body"])


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("html-page-context", let_code_break)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
