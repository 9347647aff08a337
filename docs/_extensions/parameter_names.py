"""Names in single backticks that lead nowhere are warnings, except those of parameters.

numpydoc writes a parameter, such as `labels`, and a function in the same way.
"""

from __future__ import annotations

import inspect
from functools import cache
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.ext.autosummary import import_by_name


@cache
def parameters(reference: Path) -> set[str]:
    """The parameters of all functions and classes that the reference has a page of."""
    documented = [import_by_name(page.stem)[1] for page in reference.glob("*.rst")]
    return {name for each in documented for name in inspect.signature(each).parameters}


def keep_parameter(
    app: Sphinx, environment: Any, node: nodes.Element, content: nodes.Element
) -> nodes.Element | None:
    reference = Path(app.srcdir) / "generated"
    is_name = node.get("reftype") == "obj" and node["reftarget"] in parameters(reference)
    return content if is_name else None


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("missing-reference", keep_parameter)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
