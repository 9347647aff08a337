"""Long names in code may go on in the next line, after punctuation, as on a phone they have to."""

from __future__ import annotations

import re
from typing import Any

from sphinx.application import Sphinx


def with_breaks(code: str) -> str:
    # The lookahead keeps entities, such as `&quot;`, whole.
    return re.sub(r"([_./:=,(\[]+)(?=[\w&])", r"\1<wbr>", code)


def let_code_break(
    app: Sphinx, page: str, template: str, context: dict[str, Any], document: Any
) -> None:
    if "body" in context:
        context["body"] = re.sub(
            r'<span class="pre">([^<]{16,})',
            lambda code: f'<span class="pre long">{with_breaks(code[1])}',
            re.sub("<h1>[^<]+", lambda title: with_breaks(title[0]), context["body"]),
        )
    for neighbour in filter(None, (context.get("prev"), context.get("next"))):
        neighbour["title"] = with_breaks(neighbour["title"])


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("html-page-context", let_code_break)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
