"""The comment line of extended XYZ: `name=value` pairs, and the columns of the lines of atoms that follow.

What is unusual is left to ASE's own parser, so that both agree on every file.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from ase.io.extxyz import key_val_str_to_dict

from snnp.errors import DataError

__all__ = [
    "DEFAULT_PROPERTIES",
    "TRUTH",
    "Column",
    "Layout",
    "comment_names",
    "read_comment",
    "read_layout",
    "write_pair",
]

DEFAULT_PROPERTIES = "species:S:1:pos:R:3"
_ARRAY_NAMES = {"pos": "positions", "Z": "numbers", "charge": "charges", "species": "symbols"}  # as ASE renames them
_SPECIAL = frozenset({"Lattice", "stress", "virial"})  # nine numbers of a 3x3 matrix, column by column
_PAIR = re.compile(r'\s*([^\s=,"\'{}\[\]\\]+)=(?:"([^"\\]*)"|([^\s="\'{}\[\]\\]+))(?=\s|$)')
TRUTH = {word: word[0] in "tT" for word in ("T", "F", "true", "false", "True", "False", "TRUE", "FALSE")}
_MOST_KNOWN = 4096  # values that are remembered
_BARE = re.compile(r"[^\s=,\"'{}\[\]\\]+")


@dataclass(frozen=True)
class Column:
    """One property of the atoms: kind R, I, S or L, and its place in the line."""

    name: str
    kind: str
    first: int
    number: int


@dataclass(frozen=True)
class Layout:
    """What the lines of atoms hold."""

    columns: tuple[Column, ...]
    width: int


def read_layout(properties: str, where: str) -> Layout:
    """The columns that a `Properties` value describes.

    Raises:
        DataError: if it does not.
    """
    fields = properties.split(":")
    columns, first = [], 0
    try:
        for name, kind, number in zip(fields[::3], fields[1::3], map(int, fields[2::3]), strict=True):
            if kind not in "RISL" or not 1 <= number <= 1000:
                raise ValueError
            columns.append(Column(_ARRAY_NAMES.get(name, name), kind, first, number))
            first += number
    except ValueError:
        raise DataError(
            f"{where}: Properties={properties[:80]} is not a list of name:type:columns with types R, I, S, L."
        ) from None
    return Layout(tuple(columns), first)


def read_comment(comment: str, where: str, known: dict[tuple[str, str], Any]) -> dict[str, Any]:
    """Names and values of a comment line.

    Arguments:
        comment: the line.
        where: the frame, named in errors.
        known: remembers values, which repeat; an empty dictionary at first.

    Raises:
        DataError: if it is not understood.
    """
    values: dict[str, Any] = {}
    end = 0
    while end < len(comment) and (match := _PAIR.match(comment, end)) is not None:
        name, quoted, bare = match.groups()
        plain = bare if quoted is None else quoted
        if plain == "" or plain.startswith("_JSON ") or name == "uid":
            break
        pair = (name, plain)
        if pair in known:
            values[name] = known[pair]
        else:
            values[name] = read_value(name, plain, where)
            if len(known) < _MOST_KNOWN:
                known[pair] = values[name]
        end = match.end()
    if end < len(comment):
        try:
            values = key_val_str_to_dict(comment)
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise DataError(f"{where}: comment line not understood: {' '.join(str(error).split())}.") from error
        values = {name: v.item() if isinstance(v, np.generic) else v for name, v in values.items()}
    return values


def read_value(name: str, text: str, where: str) -> Any:
    """Integers, floats, truth values, or arrays of them, else text: ASE's rules."""
    parts = text.replace(",", " ").split()
    value: Any = text
    for convert in (int, float, TRUTH.__getitem__):
        try:
            items = [convert(part) for part in parts]
        except (ValueError, KeyError):
            continue
        value = items if isinstance(items[0], bool) else np.array(items)
        value = items[0] if len(items) == 1 else value
        break
    if name in _SPECIAL:
        if not isinstance(value, np.ndarray) or value.shape != (9,):
            raise DataError(f"{where}: {name} must be the nine numbers of a 3x3 matrix, got {text[:60]!r}.")
        value = value.reshape((3, 3), order="F")
    return value


def comment_names(comment: str) -> tuple[list[str], str | None]:
    """The names in a comment line, and its `Properties` if it has any: a quick look, without values."""
    pairs = _PAIR.findall(comment)
    properties = next((quoted or bare for name, quoted, bare in pairs if name == "Properties"), None)
    return [pair[0] for pair in pairs], properties


def write_pair(name: str, value: Any) -> str:
    """`name=value` that reads back as the same value: as plain text where that is so, else as ASE's `_JSON`."""
    key = name if _BARE.fullmatch(name) else '"' + re.sub(r'(["\\])', r"\\\1", name) + '"'
    text = _plain(value)
    if text is None or not _same(read_value(name, text, name) if _readable(name, text) else None, value):
        text = "_JSON " + json.dumps(value, default=np.ndarray.tolist)
    if not _BARE.fullmatch(text):
        text = '"' + re.sub(r'(["\\])', r"\\\1", text) + '"'
    return f"{key}={text}"


def _plain(value: Any) -> str | None:
    """Numbers, truth values and vectors of them as extended XYZ has them; None for what it has no form for."""
    if isinstance(value, str):
        return None if "\n" in value or "\r" in value or value.startswith("_JSON ") else value
    if isinstance(value, bool | np.bool_):
        return "T" if value else "F"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, np.ndarray) and value.ndim == 1 and value.dtype.kind in "ifb" and len(value) > 1:
        return " ".join(str(_plain(item)) for item in value.tolist())
    return None


def _readable(name: str, text: str) -> bool:
    return text.strip() == text and text != "" and name not in _SPECIAL


def _same(one: Any, other: Any) -> bool:
    if isinstance(other, np.ndarray):
        return isinstance(one, np.ndarray) and one.dtype == other.dtype and np.array_equal(one, other, equal_nan=True)
    return type(one) is type(other) and (one == other or (one != one and other != other))
