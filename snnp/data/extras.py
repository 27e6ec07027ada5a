"""What a frame says beyond structure and labels, as JSON that gives back what went in: types, shapes, every digit.

    {"info": {...}, "arrays": {...}, "names": {...}}

`info` belongs to the frame, `arrays` to its atoms; `names` holds the names that energy, forces and stress had where
they came from, if those were unusual. A NumPy array is `{"ndarray": [...], "dtype": "float64", "shape": [3]}`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from snnp.errors import DataError

__all__ = ["Extras", "pack", "unpack"]

_DTYPES = frozenset(
    ["bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float32", "float64", "str"]
)
_MARKS = ("ndarray", "float")
_MOST_CHARACTERS = 10_000_000
_ATOMS = frozenset({"positions", "numbers", "pos", "species", "symbols", "Z"})


@dataclass(frozen=True)
class Extras:
    """Everything else about one frame.

    Arguments:
        info: name -> value, of the frame.
        arrays: name -> [N, ...] array, of its atoms.
        names: "energy", "forces", "stress" -> name at the source, where it was another.
    """

    info: dict[str, Any] = field(default_factory=dict)
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)


def pack(extras: Extras, where: str) -> str | None:
    """JSON of the extras; None where there are none.

    Raises:
        DataError: for values that JSON cannot hold, and names that stand for something else; names the key and
            `where` it was.
    """
    _check_names(extras, where)
    tree = {
        "info": {str(key): _encode(value, f"{where}: info[{key!r}]") for key, value in extras.info.items()},
        "arrays": {key: _encode(value, f"{where}: arrays[{key!r}]") for key, value in extras.arrays.items()},
        "names": extras.names,
    }
    tree = {key: value for key, value in tree.items() if value}
    return json.dumps(tree, ensure_ascii=False, allow_nan=False) if tree else None


def unpack(text: str | None, where: str) -> Extras:
    """The reverse of `pack`.

    Raises:
        DataError: for a text that `pack` did not write, such as one that would replace positions or labels.
    """
    if not text:
        return Extras()
    try:
        tree = json.loads(text)
        if not isinstance(tree, dict):
            raise TypeError("no JSON object")
        if not {"info", "arrays", "names"} >= set(tree):  # of another program: all of it is about the frame
            tree = {"info": tree}
        parts = [{str(k): _decode(v) for k, v in tree.get(name, {}).items()} for name in ("info", "arrays", "names")]
        extras = Extras(info=parts[0], arrays=parts[1], names={key: str(value) for key, value in parts[2].items()})
        if strange := [name for name, value in extras.arrays.items() if not isinstance(value, np.ndarray)]:
            raise TypeError(f"arrays[{strange[0][:40]!r}] is no array")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError) as error:
        raise DataError(
            f"{where}: configuration_metadata cannot be read ({' '.join(str(error).split())}); the file is damaged."
        ) from None
    _check_names(extras, where)
    return extras


def _check_names(extras: Extras, where: str) -> None:
    """Nothing here may stand for what the frame says itself: atoms, positions, cell, boundaries, labels."""
    usual = ("energy", "forces", "stress")
    labels = [extras.names.get(what, what) for what in usual]
    unusual = [name for name in labels if name not in usual]
    strange = any(name in _ATOMS or _stands_for_cell(name, None) for name in unusual) or set(extras.names) - set(usual)
    if strange or len(set(labels)) < 3 or any(name in usual and name != what for what, name in extras.names.items()):
        raise DataError(f"{where}: the metadata give labels names that stand for something else; do not use them.")
    # Its own form of a stress may lie beside it; whether it is the same is looked at where it is used.
    info = {str(name): value for name, value in extras.info.items() if not name == labels[2] != "stress"}
    bad = [f"info[{name!r}]" for name, value in info.items() if name in labels or _stands_for_cell(name, value)]
    bad += [f"arrays[{name!r}]" for name in extras.arrays if name in labels or name in _ATOMS]
    if bad:
        raise DataError(
            f"{where}: {bad[0][:60]} has a name that stands for atoms, cell or labels of the frame, of which there is "
            "one truth; rename or remove it."
        )


def _stands_for_cell(name: str, value: Any) -> bool:
    """Whether extended XYZ would take it for the cell, the boundaries or the columns; not so lattice=fcc."""
    lower = name.lower() if name[:1] in ("p", "P", "l", "L") else ""
    return lower in ("pbc", "properties") or (lower == "lattice" and not (name != "Lattice" and isinstance(value, str)))


def _encode(value: Any, where: str) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"float": repr(value)}
    if isinstance(value, np.ndarray):
        dtype = "str" if value.dtype.kind == "U" else value.dtype.name
        if dtype not in _DTYPES:
            raise DataError(f"{where} is an array of {value.dtype}, which a dataset cannot hold; remove it.")
        return {
            "ndarray": [_encode(item, where) for item in value.ravel().tolist()],
            "dtype": dtype,
            "shape": list(value.shape),
        }
    if isinstance(value, list | tuple):
        return [_encode(item, where) for item in value]
    if isinstance(value, Mapping) and not any(mark in value for mark in _MARKS):
        return {str(key): _encode(item, where) for key, item in value.items()}
    raise DataError(f"{where} is of type {type(value).__name__}, which a dataset cannot hold; remove or convert it.")


def _decode(value: Any) -> Any:
    if isinstance(value, list):
        return [_decode(item) for item in value]
    if not isinstance(value, dict):
        return value
    if set(value) == {"float"}:
        return float(value["float"])
    if set(value) == {"ndarray", "dtype", "shape"}:
        if value["dtype"] not in _DTYPES:
            raise ValueError(f"an array of {str(value['dtype'])[:40]!r}")
        items = [_decode(item) for item in value["ndarray"]]
        if value["dtype"] == "str" and max(map(len, items), default=0) * len(items) > _MOST_CHARACTERS:
            raise ValueError("an array of texts too large")  # NumPy gives each text the room of the longest
        array = np.array(items, dtype=value["dtype"])
        return array.reshape([int(size) for size in value["shape"]])
    return {key: _decode(item) for key, item in value.items()}
