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
        DataError: for values that JSON cannot hold; names the key and `where` it was.
    """
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
        DataError: for a text that `pack` did not write.
    """
    if not text:
        return Extras()
    try:
        tree = json.loads(text)
        if not isinstance(tree, dict):
            raise TypeError("no JSON object")
        if not {"info", "arrays", "names"} >= set(tree):  # of another program: all of it is about the frame
            return Extras(info={key: _decode(value) for key, value in tree.items()})
        parts = [{str(k): _decode(v) for k, v in tree.get(name, {}).items()} for name in ("info", "arrays", "names")]
        return Extras(info=parts[0], arrays=parts[1], names={key: str(value) for key, value in parts[2].items()})
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise DataError(
            f"{where}: configuration_metadata cannot be read ({' '.join(str(error).split())}); the file is damaged."
        ) from None


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
