"""Text from elsewhere (files, names, metadata), made fit for a terminal and for Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import chain, islice
from typing import Any

__all__ = ["UNSEEN", "code", "markdown", "nested", "one_line", "printable"]

# What a terminal obeys instead of showing it: C0 and C1 (escape sequences begin there), marks that turn the direction
# of writing, separators of lines, invisible tags; and halves of characters, which no encoding can write.
UNSEEN = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060\u2066-\u2069\ufeff\ud800-\udfff\U000e0000-\U000e007f]"
)
# Marks that begin code, links, tags, cells or formulas anywhere, and headings, quotes or lists at the start of a line;
# underscores and stars stay, for addresses hold them.
_MARKUP = re.compile(r"([\\`<|$]|\](?=[(\[:])|^[#>=~]|^[+-](?=[\s+-]))")
_CODE = re.compile(r"(`[^`]+`)")
_LONGEST = 2000


def printable(text: Any) -> str:
    r"""The text with everything that a terminal would obey written out, as in `\x1b[2J`; newlines and tabs stay."""
    return UNSEEN.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), str(text))


def one_line(text: Any) -> str:
    """The text on one line of at most 2,000 characters that a terminal shows as they are."""
    line = printable(" ".join(str(text).split()))
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]}…"


def markdown(text: Any) -> str:
    """One line of Markdown that shows the text and nothing else: of its own marks only code spans count."""
    pieces = _CODE.split(one_line(text))
    return "".join(code(piece[1:-1]) if k % 2 else _MARKUP.sub(r"\\\1", piece) for k, piece in enumerate(pieces))


def code(text: Any) -> str:
    """The text as a code span of Markdown, also in the cell of a table."""
    return "`" + one_line(text).replace("`", "'").replace("|", "\\|") + "`"


def nested(tree: Any, deepest: int, most: int) -> Iterator[Any]:
    """Every value and key in lists and mappings of a file; ValueError for more of them, or nested deeper.

    Level by level, so that lists that hold themselves, and growth by aliases of YAML, come to an end.
    """
    level, count = [tree], 0
    for _ in range(deepest):
        yield from level
        groups = ((*v, *v.values()) if isinstance(v, dict) else v for v in level if isinstance(v, dict | list))
        level = list(islice(chain.from_iterable(groups), most + 1))
        count += len(level)
        if not level:
            return
        if count > most:
            raise ValueError(f"it holds more than {most:,} values")
    raise ValueError(f"it holds lists nested more than {deepest} deep")
