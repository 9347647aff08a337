"""Sphinx configuration: `sphinx-build -n -W docs docs/_build/html`."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from sphinx_gallery.sorting import ExplicitOrder

from logitloss import __version__

DOCS = Path(__file__).parent
EXAMPLES = DOCS.parent / "examples"
sys.path.insert(0, str(DOCS / "_extensions"))


def repository() -> str | None:
    """The page of the repository that this copy was cloned from."""
    command = ["git", "-C", str(DOCS), "remote", "get-url", "origin"]
    url = subprocess.run(command, capture_output=True, text=True).stdout.strip()
    url = re.sub(r"^git@([^:]+):", r"https://\1/", url).removesuffix(".git")
    return url if url.startswith("https://") else None


def can_run(script: Path) -> bool:
    """Whether all libraries that an example imports are installed."""
    imported = re.findall(r"^(?:from|import) (\w+)", script.read_text("utf-8"), re.MULTILINE)
    return all((EXAMPLES / f"{name}.py").exists() or find_spec(name) for name in imported)


project = "logitloss"
author = "the logitloss developers"
copyright = "2026, the logitloss developers"
version = release = __version__

extensions = [
    "myst_parser",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinx_gallery.gen_gallery",
    # In _extensions.
    "code_breaks",
    "figure_style",
    "mathml",
    "parameter_names",
]
exclude_patterns = ["_build", "conftest.py"]
# Of a class it shows the docstring alone, which says what its members are.
templates_path = ["_templates"]
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
html_math_renderer = "mathml"

autosummary_generate = True
autodoc_typehints = "none"
# Without PyTorch or Keras their pages lack nothing but the signature of a class.
autodoc_mock_imports = [name for name in ("torch", "keras") if not find_spec(name)]
# Keras needs one of its backends; JAX is the smallest.
os.environ.setdefault("KERAS_BACKEND", "jax")
python_maximum_signature_line_length = 60
# A name in single backticks is a link, or a parameter of the function that the text is about.
default_role = "py:obj"
numpydoc_show_class_members = False
# Parameters that are "as in" another function have no type; not every function needs the rest.
numpydoc_validation_checks = {"all", "ES01", "EX01", "PR04", "RT02", "RT03", "SA01", "SA04"}

# The prompt and the output of an example stay behind when it is copied, and a line that holds only
# `...` is copied as the empty line that ends a block.
copybutton_prompt_text = r">>> ?|\.\.\. ?|\$ "
copybutton_prompt_is_regexp = True
copybutton_line_continuation_character = "\\"

sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "examples",
    "filename_pattern": "|".join(
        re.escape(f"{os.sep}{path.name}") for path in EXAMPLES.glob("*.py") if can_run(path)
    ),
    "within_subsection_order": ExplicitOrder(
        [
            "precision_recall.py",
            "breast_cancer.py",
            "boosting.py",
            "torch_multilabel.py",
            "jax_training.py",
            "keras_imbalanced.py",
            "larger_than_memory.py",
        ]
    ),
    "reset_modules": ("matplotlib", "figure_style.use"),
    "remove_config_comments": True,
    "show_signature": False,
    # Times of the machine that builds the pages say nothing to their readers.
    "min_reported_time": float("inf"),
    "write_computation_times": False,
    "backreferences_dir": None,
}

html_theme = "pydata_sphinx_theme"
html_title = f"logitloss {version}"
html_logo = "_static/logo.svg"
html_favicon = "_static/logo.svg"
html_theme_options = {
    "logo": {"text": html_title, "alt_text": ""},
    "header_links_before_dropdown": 6,
    "icon_links": [{"name": "Repository", "url": url, "icon": "fa-solid fa-code-branch"}]
    if (url := repository())
    else [],
    "navbar_end": ["search-button", "theme-switcher", "navbar-icon-links"],
    "navbar_persistent": [],
    "navigation_with_keys": False,
    "show_prev_next": True,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": ["last-updated"],
}
html_static_path = ["_static"]
html_css_files = ["custom.css"]
html_sidebars = {"index": [], "start": []}
html_show_sourcelink = False
