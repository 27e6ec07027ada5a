"""Configuration of Sphinx. What lies in `_generated/` is written from the code at every build: it is never stale."""

from __future__ import annotations

import re
import sys
from importlib.metadata import version as installed_version
from pathlib import Path

from sphinx.application import Sphinx

DOCS = Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS))

import generate  # noqa: E402  (lies beside this file)

project = "snnp"
author = "snnp contributors"
project_copyright = "2026, snnp contributors"
release = version = installed_version("snnp")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax", "sphinx.ext.viewcode"]
myst_enable_extensions = ["amsmath", "dollarmath", "fieldlist"]
myst_heading_anchors = 3
exclude_patterns = ["_build", "_generated/*.md"]  # pages that others include
html_theme = "furo"
html_title = "snnp"
html_static_path = ["_static"]
html_css_files = ["snnp.css"]

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True, "show-inheritance": True}
napoleon_numpy_docstring = False
napoleon_use_ivar = True
python_use_unqualified_type_names = True

generate.write_pages(DOCS, DOCS.parent / "model_zoo", DOCS.parent / "datasets")

# Headings that napoleon understands: what is indented below them is text, not a formula.
_SECTIONS = ("Arguments", "Returns", "Raises", "Yields", "Example", "Examples", "Attributes", "Note", "Parameters")
_CODE = re.compile(r"(``.+?``|(?<!`)`[^`]+`(?!`))")
_SPECIAL = re.compile(r"[*|\\]|(?<=\w)_(?!\w)")


def _escape(line: str) -> str:
    """Single backticks mean code; nothing else in a line is markup."""
    parts = _CODE.split(line)
    code = [f"``{part.strip('`')}``" for part in parts[1::2]]
    text = [_SPECIAL.sub(lambda found: "\\" + found.group(0), part) for part in parts[::2]]
    return "".join(piece for pair in zip(text, [*code, ""], strict=True) for piece in pair)


def _plain_docstrings(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Docstrings are plain text with `code` and indented formulas; give reStructuredText what it expects."""
    result: list[str] = []
    formula = section = False
    for line in lines:
        indented = line.startswith("    ")
        if line and not indented:
            section = line.endswith(":") and line[:-1] in _SECTIONS
        if indented and not section and not formula and result and not result[-1]:
            result += [".. code-block:: text", ""]
            formula = True
        elif formula and line and not indented:
            formula = False
            if result[-1]:
                result.append("")
        result.append(line if formula else _escape(line))
    lines[:] = result


# Links to cards lead into the repository; in the built pages, to the copies of the cards.
_CARD = re.compile(r"\.\./(model_zoo|datasets)/([\w.-]+)/README\.md")
_HTML_CARD = re.compile(rf'href="{_CARD.pattern}"')
_COPIES = {"model_zoo": "cards", "datasets": "datasets"}


def _link_copies(app: Sphinx, name: str, source: list[str]) -> None:
    if "/" not in name:
        # Within HTML nobody resolves names of sources.
        source[0] = _HTML_CARD.sub(lambda found: f'href="_generated/{_COPIES[found[1]]}/{found[2]}.html"', source[0])
        source[0] = _CARD.sub(lambda found: f"_generated/{_COPIES[found[1]]}/{found[2]}.md", source[0])


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("source-read", _link_copies)
    app.connect("autodoc-process-docstring", _plain_docstrings, priority=100)  # before napoleon
