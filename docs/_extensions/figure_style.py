"""The figures of the gallery look like those on the other pages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

STYLE = Path(__file__).parents[1] / "figures" / "logitloss.mplstyle"


def use(gallery_conf: dict[str, Any], script: str) -> None:
    import matplotlib.style

    matplotlib.style.use(STYLE)


def setup(app: Sphinx) -> dict[str, bool]:
    return {"parallel_read_safe": True, "parallel_write_safe": True}
