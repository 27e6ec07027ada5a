"""The comment line of extended XYZ: `name=value` pairs in all the ways in which programs write them.

    Lattice="5 0 0 0 5 0 0 0 5" Properties=species:S:1:pos:R:3 energy=-1.5 pbc="T T F"      ASE, quippy
    lattice = '5 0 0 0 5 0 0 0 5' "energy"={-1.5} virial=[[1, 0, 0], [0, 1, 0], [0, 0, 1]]

Quotes are "", '', [] and {}, of which the last two may be nested; a backslash takes the next character as it is; a word
without a value is True. A line without "=" is a remark. Every line is gone through once, whatever it holds.
"""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np

from snnp.errors import DataError

__all__ = ["TRUTH", "comment_names", "integer", "read_comment", "real", "write_pair"]

Pair = tuple[str, str | None, str]  # name, text of the value (None: a word alone), and what it was quoted with

_SPECIAL = frozenset({"Lattice", "stress", "virial"})  # nine numbers of a 3x3 matrix, column by column
_PERIODIC = re.compile(
    r"(?:is_?)?periodic(?:ity)?|boundar(?:y|ies)(?:_?conditions?)?|periodic_?boundar(?:y|ies)(?:_?conditions?)?"
    r"|(?:is_?|box_|cell_|lattice_)?pbcs?|pbc_?flags?|bcs?"
)
_LENGTHS = frozenset(map(len, ("pbc", "Lattice", "Properties")))
_LATTICE = re.compile(r"[\s\[({]*[-+.\d]|_JSON")  # what may be a cell, unlike lattice=fcc
_PROPERTIES = re.compile(r"[^:\s]+:[RISL]:")
_CELLS = re.compile(r"(?!super).*(?:cell|latt|box)|h_?mat|tv_?1$")
_REMARKED_CELL = ("cell(", "cell{", "cell:", "lattice:", "lattice(")  # as i-PI writes it
_PAIR = re.compile(r'\s*([^\s=,"\'{}\[\]\\]+)=(?:"([^"\\]*)"|([^\s="\'{}\[\]\\]+))(?=\s|$)')
_SPACE = re.compile(r"\s*")
_BARE = re.compile(r"[^\s=,\"'{}\[\]\\]+")
_CLOSING = {'"': '"', "'": "'", "[": "]", "{": "}"}
TRUTH = {word: word[0] in "tT" for word in ("T", "F", "true", "false", "True", "False", "TRUE", "FALSE")}
_FLAGS = {**dict.fromkeys(("t", "true", ".true.", "yes", "1", "1.0", "p", "pp"), True)}
_FLAGS |= dict.fromkeys(("f", "false", ".false.", "no", "0", "0.0"), False)
_FLAGS |= {a + b: False for a in "fsm" for b in ("", *"fsm")}  # LAMMPS: fixed, shrink-wrapped, with a minimum
_OF_ONE_AXIS = frozenset({"pp"} | {a + b for a in "fsm" for b in "fsm"})
_MOST_KNOWN = 4096  # values that are remembered
_LARGEST = 2**63 - 1


def integer(text: str) -> int:
    """A whole number as files have it; ValueError for Python's 1_000 and for what has no 64 bits."""
    value = int(text)
    if "_" in text or not text.isascii() or not -_LARGEST - 1 <= value <= _LARGEST:
        raise ValueError(text)
    return value


def real(text: str) -> float:
    """A number as files have it; ValueError for Python's 1_0.0."""
    if "_" in text or not text.isascii():
        raise ValueError(text)
    return float(text)


def read_comment(comment: str, where: str, known: dict[tuple[str, str], Any]) -> dict[str, Any]:
    """Names and values of a comment line; `known` remembers values, which repeat: an empty dictionary at first.

    `Lattice` ([3, 3], rows are vectors), `pbc` (three truth values) and `Properties` come in any case and spelling.
    """
    values: dict[str, Any] = {}
    texts: dict[str, str | None] = {}
    for name, text, quote in _pairs(comment, where):
        if name in texts:
            if texts[name] != text:
                raise DataError(f"{where}: {name[:40]} is given twice, with different values; remove one of them.")
            continue
        texts[name] = text
        pair = (name, quote + (text or ""))
        if text is not None and pair in known:
            values[name] = known[pair]
            continue
        values[name] = _value(name, text, quote, where)
        if text is not None and len(known) < _MOST_KNOWN and len(text) < 1000:
            known[pair] = values[name]
    _unify_boundaries(values, texts, where)
    for name in values if "Lattice" not in values else ():
        if texts[name] is None and name.lower().startswith(_REMARKED_CELL):
            raise _no_cell(comment, where)
        if isinstance(values[name], np.ndarray) and values[name].size >= 3 and _CELLS.match(name.lower()):
            raise DataError(f"{where}: the cell is given as {name}=..., which extended XYZ calls Lattice; rename it.")
    return values


def _canonical(name: str, text: str) -> str:
    """`Lattice`, `Properties` and `pbc` in any case, where the value may be one: lattice=fcc is something else."""
    if len(name) not in _LENGTHS:
        return name
    lower = name.lower()
    if lower == "lattice" and (name == "Lattice" or _LATTICE.match(text)):
        return "Lattice"
    if lower == "properties" and (name == "Properties" or _PROPERTIES.match(text)):
        return "Properties"
    return "pbc" if lower == "pbc" else name


def comment_names(comment: str, where: str) -> tuple[frozenset[str], str | None]:
    """The names in a comment line, and its `Properties` if it has any: a quick look, without values."""
    pairs = _pairs(comment, where)
    return frozenset(pair[0] for pair in pairs), next((text for name, text, _ in pairs if name == "Properties"), None)


def _pairs(comment: str, where: str) -> list[Pair]:
    """The pairs of a line; the usual ones by a regular expression, from the first unusual one on by hand."""
    if "=" not in comment:
        if any(word.startswith(_REMARKED_CELL) for word in comment.lower().split()):
            raise _no_cell(comment, where)
        return [("comment", comment.strip(), '"')] if comment.strip() else []
    pairs: list[Pair] = []
    end = 0
    while end < len(comment) and (match := _PAIR.match(comment, end)) is not None:
        name, quoted, bare = match.groups()
        pairs.append((name, bare, "") if quoted is None else (name, quoted, '"'))
        end = match.end()
    while (end := _skip(comment, end)) < len(comment):
        name, quote, end = _word(comment, end, where, is_name=True)
        sign = _skip(comment, end)
        if sign == len(comment) or comment[sign] != "=":
            pairs.append((name, None, quote))
            continue
        start = _skip(comment, sign + 1)
        if not name or start == len(comment):
            raise DataError(f"{where}: the comment line has a '=' without a {'value' if name else 'name'}.")
        text, quote, end = _word(comment, start, where, is_name=False)
        if not quote and (text.startswith("=") or ("=" in text and start > sign + 1)):
            raise DataError(f'{where}: {name[:40]} has no value in the comment line; write {name[:40]}="" or leave it.')
        pairs.append((name, text, quote))
    return [(_canonical(name, text or ""), text, quote) for name, text, quote in pairs]


def _no_cell(comment: str, where: str) -> DataError:
    return DataError(f'{where}: the cell is not in the form Lattice="ax ay az bx by bz cx cy cz": {comment[:60]!r}.')


def _skip(text: str, place: int) -> int:
    match = _SPACE.match(text, place)
    assert match is not None
    return match.end()


def _word(text: str, place: int, where: str, *, is_name: bool) -> tuple[str, str, int]:
    """A word, how it was quoted, and where it ends: at a space, and as a name also at "="."""
    opening = text[place]
    closing = _CLOSING.get(opening, "")
    start, depth, letters = place, 1, []
    place += bool(closing)
    while place < len(text):
        letter = text[place]
        if letter == "\\" and place + 1 < len(text):
            letters.append(text[place + 1])
            place += 2
            continue
        if closing:
            depth += (letter == opening and opening != closing) - (letter == closing)
            if depth == 0:
                break
        elif letter.isspace() or (is_name and letter == "="):
            return "".join(letters), "", place
        elif letter == '"':
            raise DataError(f"{where}: a quote inside a word of the comment line: {text[start : place + 20]!r}.")
        letters.append(letter)
        place += 1
    if not closing:
        return "".join(letters), "", place
    if place == len(text):
        raise DataError(f"{where}: the comment line has a {opening} that is not closed: {text[start : start + 40]!r}.")
    place += 1
    if place < len(text) and not text[place].isspace() and not (is_name and text[place] == "="):
        if opening in "[{" and not is_name:  # no list, but such as the SMILES [CH3]C
            end = re.compile(r"\s|$").search(text, place)
            assert end is not None
            return text[start : end.start()], "", end.start()
        raise DataError(f"{where}: text after a closing {closing} in the comment line: {text[start : place + 20]!r}.")
    return "".join(letters), opening, place


def _value(name: str, text: str | None, quote: str, where: str) -> Any:
    if text is None and name == "Lattice":
        raise DataError(f"{where}: Lattice has no value; expected the nine numbers of a 3x3 matrix.")
    if text is None:
        return [True] * 3 if name == "pbc" else True
    if name == "pbc":
        return _boundaries(text, where)
    if text.startswith("_JSON ") or (quote == "[" and "[" in text):
        value = _json(text.removeprefix("_JSON ") if text.startswith("_JSON ") else f"[{text}]", name, where)
        if name != "Lattice":
            return value
        if not isinstance(value, np.ndarray) or value.size != 9 or value.dtype.kind not in "if":
            raise DataError(f"{where}: Lattice must be the nine numbers of a 3x3 matrix, got {text[:60]!r}.")
        return value.reshape(3, 3).astype(np.float64)
    value = read_value(name, text, where)
    return value.T if name == "Lattice" else value


def _json(text: str, name: str, where: str) -> Any:
    """An array where it is one, else what it says."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: {name[:40]} is no JSON: {' '.join(str(error).split())[:80]}.") from None
    try:
        array = np.array(value)
    except (ValueError, OverflowError):
        return value
    return array if array.dtype.kind in "ifb" else value


def _boundaries(text: str, where: str) -> list[bool]:
    """Three truth values of `T T F`, `TTF`, `[T, T, F]`, `true`, `1 0 1`, `p p f`, `ppf`, `pp fs ff`, ..."""
    words = re.sub(r"[\[\]{}(),;\"']", " ", text.removeprefix("_JSON ")).lower().split()
    if len(words) == 1 and len(words[0]) == 3 and words[0] not in _FLAGS:
        words = list(words[0])
    flags = [_FLAGS.get(word) for word in words]
    if len(flags) not in (1, 3) or None in flags or (len(flags) == 1 and words[0] in _OF_ONE_AXIS):
        raise DataError(f'{where}: pbc is {text[:40]!r}; expected three truth values, such as pbc="T T F".')
    return [bool(flag) for flag in flags] * (3 // len(flags))


def _unify_boundaries(values: dict[str, Any], texts: dict[str, str | None], where: str) -> None:
    """Take `boundary="p p f"` for `pbc`; beside `pbc` it must agree, if it is of that form."""
    for name in [name for name in values if name[:1] in "bBcCiIlLpP" and _PERIODIC.fullmatch(name.lower())]:
        if name == "pbc":
            continue
        text = texts[name] or "T"
        if "pbc" not in values:
            values["pbc"] = _boundaries(text, where)
            del values[name]
            continue
        words = text.lower().split()
        if len(words) not in (1, 3) or not set(words) <= set(_FLAGS):
            continue
        # One word, as periodic=T beside pbc="T T F", says whether there are periods at all.
        stated, found = [_FLAGS[word] for word in words], values["pbc"]
        if stated != (found if len(words) == 3 else [any(found)]):
            raise DataError(f"{where}: pbc and {name} do not agree; remove one of them.")


def read_value(name: str, text: str, where: str) -> Any:
    """Integers, floats, truth values, or arrays of them, else text: ASE's rules."""
    if name.lower() == "uid":
        return text
    parts = text.replace(",", " ").split()
    value: Any = text
    for convert in (integer, real, TRUTH.__getitem__) if parts else ():
        try:
            items = [convert(part) for part in parts]
        except (ValueError, KeyError):
            continue
        value = items if isinstance(items[0], bool) else np.array(items)
        value = items[0] if len(items) == 1 else value
        break
    if name in _SPECIAL and not (name != "Lattice" and np.size(value) == 6):
        if not isinstance(value, np.ndarray) or value.shape != (9,):
            raise DataError(f"{where}: {name} must be the nine numbers of a 3x3 matrix, got {text[:60]!r}.")
        value = value.reshape((3, 3), order="F")
    return value


def write_pair(name: str, value: Any) -> str:
    """`name=value` that reads back as the same value: as plain text where that is so, else as ASE's `_JSON`."""
    key = name if _BARE.fullmatch(name) else '"' + re.sub(r'(["\\])', r"\\\1", name) + '"'
    text = _plain(value)
    readable = text is not None and text.strip() == text != "" and name not in _SPECIAL
    if text is None or not _same(read_value(name, text, name) if readable else None, value):
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


def _same(one: Any, other: Any) -> bool:
    if isinstance(other, np.ndarray):
        return isinstance(one, np.ndarray) and one.dtype == other.dtype and np.array_equal(one, other, equal_nan=True)
    return type(one) is type(other) and (one == other or (one != one and other != other))
