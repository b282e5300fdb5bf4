"""Sphinx's settings for the book: `make book` lays the pages out, and Sphinx sets them.

Sphinx with MyST-NB, because it shows notebooks with the outputs they have, makes the reference from
the docstrings, and comes from the package index whole: Jupyter Book 2 fetches its theme when it
builds, and so cannot be built offline.
"""

from __future__ import annotations

from typing import Any

from latex2mathml.converter import convert

import codit

project = "CoDIT, reproduced"
author = copyright = "The codit developers"
release = codit.__version__
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["data/models", "data/cache", "codit", "tests/vllm"]

nb_execution_mode = "off"  # executed by `codit reproduce`
nb_output_stderr = "remove"  # progress bars
nb_ipywidgets_js: dict[str, Any] = {}  # a picture stands where no kernel is
nb_mime_priority_overrides = [("html", "application/vnd.jupyter.widget-view+json", None)]
myst_enable_extensions = ["colon_fence", "dollarmath", "amsmath"]
myst_heading_anchors = 3
# Cards and tables begin below their page's first heading; links point at files of the repository.
suppress_warnings = [
    "myst.header",
    "myst.xref_missing",
    "toc.not_included",
    "mystnb.unknown_mime_type",
]

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
html_math_renderer = "mathml"
html_theme = "furo"
html_title = project
html_static_path = ["static"]
html_css_files = ["book.css"]
html_show_sourcelink = html_copy_source = False


def mathml(self: Any, node: Any) -> None:
    """Write a formula as MathML, which browsers draw by themselves: no script, no network."""
    from docutils.nodes import SkipNode

    self.body.append(
        convert(node.astext(), display="block" if node.tagname == "math_block" else "inline")
    )
    raise SkipNode


def plain(_app: Any, what: str, _name: str, _value: Any, _options: Any, lines: list[str]) -> None:
    """Read docstrings as the plain text they are; of a module's, its page says enough."""
    text = [line.replace("|", r"\|").replace("`", "``") for line in lines]
    lines[:] = text if what != "module" else []


def setup(app: Any) -> None:
    """Tell Sphinx of both."""
    app.connect("autodoc-process-docstring", plain, priority=100)  # before Google's sections
    app.add_html_math_renderer("mathml", (mathml, None), (mathml, None))
