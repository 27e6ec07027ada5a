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

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True, "show-inheritance": True}
napoleon_numpy_docstring = False
napoleon_use_ivar = True
python_use_unqualified_type_names = True

generate.write_pages(DOCS / "_generated", DOCS.parent / "model_zoo")

_CODE = re.compile(r"(``.+?``|(?<!`)`[^`]+`(?!`))")


def _plain_docstrings(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Docstrings in the code are plain text with `code` in single backticks; give reStructuredText what it expects."""
    for index, line in enumerate(lines):
        parts = _CODE.split(line)
        for k, part in enumerate(parts):
            if k % 2:
                parts[k] = f"``{part.strip('`')}``"
            else:
                parts[k] = re.sub(r"([*|\\])|(?<=\w)(_)(?!\w)", lambda found: "\\" + found.group(0), part)
        lines[index] = "".join(parts)


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("autodoc-process-docstring", _plain_docstrings, priority=100)  # before napoleon
