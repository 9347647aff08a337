"""Sphinx configuration: `sphinx-build -n -W docs docs/_build/html`."""

from importlib.util import find_spec

from logitloss import __version__

project = "logitloss"
author = "the logitloss developers"
copyright = "2026, the logitloss developers"
version = release = __version__

extensions = [
    "myst_parser",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx_copybutton",
]
exclude_patterns = ["_build", "conftest.py"]
# Of a class it shows the docstring alone, which says what its members are.
templates_path = ["_templates"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

autosummary_generate = True
autodoc_typehints = "none"
# Without PyTorch the pages on `compat.torch` lack nothing but the signature of a class.
autodoc_mock_imports = [] if find_spec("torch") else ["torch"]
numpydoc_show_class_members = False
# Parameters that are "as in" another function have no type; not every function needs the rest.
numpydoc_validation_checks = {"all", "ES01", "EX01", "PR04", "RT02", "RT03", "SA01", "SA04"}
# The prompt and the output of an example stay behind when it is copied.
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

html_theme = "pydata_sphinx_theme"
html_title = "logitloss"
html_theme_options = {
    "header_links_before_dropdown": 6,
    "navbar_end": ["search-button", "theme-switcher"],
    "navbar_persistent": [],
    "navigation_with_keys": False,
    "show_prev_next": True,
    "secondary_sidebar_items": ["page-toc"],
}
html_static_path = ["_static"]
html_css_files = ["custom.css"]
html_sidebars = {"**": []}
html_show_sourcelink = False
