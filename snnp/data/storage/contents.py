"""What a file says of each frame, made into `Frames`: labels by their names and units, and all else as JSON.

    {"info": {...}, "arrays": {...}, "names": {...}}

gives back what went in: types, shapes, every digit. `info` belongs to the frame, `arrays` to its atoms; `names` holds
the names that energy, forces and stress had where they came from, if those were unusual. A NumPy array is
`{"ndarray": [...], "dtype": "float64", "shape": [3]}`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from snnp.data.frames import Frames
from snnp.data.labels import Names, Units
from snnp.errors import DataError

__all__ = ["LABELS", "Extras", "Said", "contents_of", "full_tensor", "in_usual_units", "made_frames", "pack", "unpack"]

LABELS = ("energy", "forces", "stress")
_DTYPES = frozenset(
    ["bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float32", "float64", "str"]
)
_MOST_CHARACTERS = 10_000_000
_COLUMNS = ("cell", "pbc", "energy", "stress", "energies", "groups", "extras")
_ATOMS = frozenset({"positions", "numbers", "pos", "species", "symbols", "Z"})


@dataclass(frozen=True)
class Extras:
    """Everything else about one frame: what belongs to it, to its atoms ([N, ...]), and the names of its labels."""

    info: dict[str, Any] = field(default_factory=dict)
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)


def pack(extras: Extras, where: str) -> str | None:
    """JSON of the extras, None where there are none; refuses what JSON cannot hold, and names of other things."""
    _check_names(extras, where)
    tree = {
        "info": {str(key): _encode(value, f"{where}: info[{key!r}]") for key, value in extras.info.items()},
        "arrays": {key: _encode(value, f"{where}: arrays[{key!r}]") for key, value in extras.arrays.items()},
        "names": extras.names,
    }
    tree = {key: value for key, value in tree.items() if value}
    return json.dumps(tree, ensure_ascii=False, allow_nan=False) if tree else None


def unpack(text: str | None, where: str) -> Extras:
    """The reverse of `pack`; refuses what that does not write, such as what would replace positions or labels."""
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
    labels = [extras.names.get(what, what) for what in LABELS]
    unusual = [name for name in labels if name not in LABELS]
    strange = any(name in _ATOMS or _stands_for_cell(name, None) for name in unusual) or set(extras.names) - set(LABELS)
    if strange or len(set(labels)) < 3 or any(name in LABELS and name != what for what, name in extras.names.items()):
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
        items = [_encode(item, where) for item in value.ravel().tolist()]
        return {"ndarray": items, "dtype": dtype, "shape": list(value.shape)}
    if isinstance(value, list | tuple):
        return [_encode(item, where) for item in value]
    if isinstance(value, Mapping) and not any(mark in value for mark in ("ndarray", "float")):
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


class Said(NamedTuple):
    """What a file says of one frame of N atoms; `source` is its name from now on, `where` that in errors.

    `info` (name -> value) is of the frame, with `Lattice` and `pbc`; `arrays` (name -> [N, ...]) are of its atoms.
    """

    source: str
    where: str
    numbers: np.ndarray
    positions: np.ndarray
    forces: np.ndarray | None
    info: dict[str, Any]
    arrays: dict[str, np.ndarray]


def made_frames(said: Sequence[Said], names: Names, units: Units, *, extras: bool) -> Frames:
    """Frames of what a file says, in eV and Å; refuses an energy or a stress that is none, and what cannot be kept.

    `names` are as from `choose_names`; `extras`: whether what is no label is kept.
    """
    rows: list[tuple[Any, ...]] = []
    for one in said:
        info = dict(one.info)
        lattice = info.pop("Lattice", None)
        cell = np.zeros((3, 3)) if lattice is None else np.asarray(lattice, dtype=np.float64)
        pbc = np.broadcast_to(np.asarray(info.pop("pbc", lattice is not None), dtype=bool), 3)
        renamed = {what: name for what in LABELS if (name := names[what]) is not None and name != what}
        energy = info.pop(str(names["energy"]), None)
        if energy is not None:
            what, given = f"{one.where}: energy (key '{names['energy']}')", np.asarray(energy)
            if given.dtype.kind not in "iuf":
                raise DataError(f"{what} is not numeric: {str(energy)[:60]!r}; expected one total energy.")
            if given.size != 1:
                raise DataError(f"{what} has {given.size} numbers, expected one total energy.")
            energy = float(given.reshape(()))
        name, stress = str(names["stress"]), None
        if info.get(name) is not None:
            # Under another name than `stress` it also stays in `info`: its form would be lost.
            stress = stress_of(info.pop(name) if name == "stress" else info[name], name, cell, one.where)
            stress = None if "virial" in name.lower() and not pbc.all() else stress
        if units != Units():  # in their own units they cannot keep their own names
            info.pop(name, None)
            renamed = {}
        group = info.get(str(names["group"]))
        arrays = dict(one.arrays)
        energies = arrays.pop("energies", None)
        if energies is not None and (energies.shape != (len(one.numbers),) or energies.dtype.kind not in "iuf"):
            raise DataError(f"{one.where}: energies of atoms (column 'energies') are not one number for each atom.")
        text = pack(Extras(info, arrays, renamed), one.where) if extras else None
        rows.append((cell, pbc, energy, stress, energies, None if group is None else str(group), text))
    columns = dict(zip(_COLUMNS, zip(*rows, strict=True), strict=True))
    frames = Frames.join(
        numbers=[one.numbers for one in said],
        positions=[one.positions for one in said],
        forces=[one.forces for one in said],
        sources=[one.source for one in said],
        **columns,
    )
    return in_usual_units(frames, units, names)


def contents_of(one: Frames) -> tuple[dict[str, Any], Extras]:
    """Labels of a single frame under the names that they had, but for a stress that `info` holds itself; all else."""
    where = one.sources[0] if one.sources else "a frame"
    extras = unpack(one.extras[0] if one.extras else None, where)
    for name, value in extras.arrays.items():
        if np.shape(value)[:1] != (len(one.numbers),):
            raise DataError(f"{where}: arrays[{name[:40]!r}] has not one value for each atom.")
    group = one.groups[0] if one.groups else None
    if group is not None and group not in map(str, extras.info.values()):  # a column of another program's parquet
        extras = replace(extras, info={**extras.info, "config_type": group})
    found: dict[str, Any] = {}
    if one.has_energies[0]:
        if "energies" in extras.arrays:
            raise DataError(f"{where}: its metadata hold energies of the atoms beside those of the frame; remove them.")
        found["energies"] = one.energies.copy()
    if one.has_energy[0]:
        found[extras.names.get("energy", "energy")] = float(one.energy[0])
    if one.has_forces[0]:
        found[extras.names.get("forces", "forces")] = one.forces.copy()
    name = extras.names.get("stress", "stress")
    if name in extras.info:
        said = stress_of(extras.info[name], name, one.cell[0], where) if one.has_stress[0] else None
        if said is not None and not np.allclose(said, one.stress[0], rtol=1e-6, atol=1e-9):
            raise DataError(f"{where}: {name} in its metadata is another stress than that of the frame; do not use it.")
    elif one.has_stress[0]:
        found[name] = one.stress[0].copy()
    return found, extras


def stress_of(value: Any, name: str, cell: np.ndarray, where: str) -> np.ndarray | None:
    """[3, 3] stress of what a file has under a name: a virial is `-stress * V`; None for one without a volume."""
    tensor = full_tensor(value, where, name)
    if "virial" not in name.lower():
        return tensor
    with np.errstate(all="ignore"):  # of numbers that no structure has; they are refused where it is made
        volume = abs(float(np.linalg.det(cell)))
        return -tensor / volume if volume > 0.0 else None


def full_tensor(value: Any, where: str, name: str = "stress") -> np.ndarray:
    """[3, 3] from 3x3, 9, or 6 numbers in Voigt order xx, yy, zz, yz, xz, xy."""
    try:
        numbers = np.asarray(value)
    except ValueError:
        numbers = np.zeros(0, dtype=object)
    if numbers.dtype.kind not in "iuf" or numbers.size not in (6, 9):
        size = f"{numbers.size} numbers" if numbers.dtype.kind in "iuf" else repr(str(value)[:60])
        raise DataError(f"{where}: stress (key '{name}') has {size}, expected 3x3, 9, or 6 (Voigt).")
    if numbers.size == 9:
        return numbers.reshape(3, 3).astype(np.float64)
    xx, yy, zz, yz, xz, xy = numbers.reshape(6).astype(np.float64)
    return np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]])


def in_usual_units(frames: Frames, units: Units, names: Mapping[str, str | None] | None = None) -> Frames:
    """Frames of numbers in other units, in eV and Å; what is a virial by its name has the unit of energy."""
    if units == Units():
        return frames
    by = units.factors
    virial = names is not None and "virial" in str(names["stress"]).lower()
    return replace(
        frames,
        positions=frames.positions * by["length"],
        cell=frames.cell * by["length"],
        energy=frames.energy * by["energy"],
        energies=frames.energies * by["energy"],
        forces=frames.forces * by["forces"],
        stress=frames.stress * (by["virial"] / by["length"] ** 3 if virial else by["stress"]),
    )
