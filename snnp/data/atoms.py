"""Blocks from and to ASE's `Atoms`, and extended XYZ that holds every digit of them."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import PropertyNotImplementedError, all_properties
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms, FixCartesian
from ase.data import chemical_symbols
from ase.io.extxyz import per_config_properties

from snnp.data.extras import Extras, pack, unpack
from snnp.data.extxyz.comment import read_comment, write_pair
from snnp.data.frames import Frames
from snnp.data.labels import (
    Keys,
    Names,
    Units,
    choose_names,
    full_tensor,
    in_usual_units,
    outranked,
    stress_of,
    take_labels,
)
from snnp.errors import DataError

__all__ = ["from_atoms", "to_atoms", "xyz_lines"]

_log = logging.getLogger(__name__)
_LABELS = ("energy", "forces", "stress")


def to_atoms(block: Frames) -> Iterator[Atoms]:
    """One `Atoms` per frame: labels as results of a calculator (in `info` and `arrays` where they had other names)."""
    for row in range(len(block)):
        one = block[row : row + 1]
        extras = _extras(one)
        atoms = Atoms(numbers=one.numbers, positions=one.positions, cell=one.cell[0], pbc=one.pbc[0])
        results: dict[str, Any] = {}
        info, arrays = dict(extras.info), dict(extras.arrays)
        for name, value in _labels(one, extras).items():
            if name in _LABELS:
                results[name] = value
            elif np.ndim(value) == 2 and len(value) == len(atoms) and name == extras.names.get("forces"):
                arrays[name] = value
            else:
                info[name] = value
        for table in (info, arrays):
            results |= {name: table.pop(name) for name in list(table) if name in all_properties}
        mask = arrays.pop("move_mask", None)
        if mask is not None:
            atoms.set_constraint(_constraints(np.asarray(mask, dtype=bool)))
        for name, value in arrays.items():
            atoms.set_array(name, value)
        atoms.info.update(info)
        if results:
            if "stress" in results and np.shape(results["stress"]) == (3, 3):
                results["stress"] = _voigt(results["stress"])
            atoms.calc = SinglePointCalculator(atoms, **results)
        yield atoms


def _extras(one: Frames) -> Extras:
    """What else a single frame says."""
    where = one.sources[0] if one.sources else "a frame"
    extras = unpack(one.extras[0] if one.extras else None, where)
    for name, value in extras.arrays.items():
        if np.shape(value)[:1] != (len(one.numbers),):
            raise DataError(f"{where}: arrays[{name[:40]!r}] has not one value for each atom.")
    group = one.groups[0] if one.groups else None
    if group is not None and group not in map(str, extras.info.values()):  # a column of another program's parquet
        extras = replace(extras, info={**extras.info, "config_type": group})
    return extras


def _labels(one: Frames, extras: Extras) -> dict[str, Any]:
    """Energy, forces and stress of a single frame under the names that they had; not a stress that `info` holds itself.

    Raises:
        DataError: where that is another one.
    """
    found: dict[str, Any] = {}
    if one.has_energy[0]:
        found[extras.names.get("energy", "energy")] = float(one.energy[0])
    if one.has_forces[0]:
        found[extras.names.get("forces", "forces")] = one.forces.copy()
    name = extras.names.get("stress", "stress")
    if name in extras.info:
        where = one.sources[0] if one.sources else "a frame"
        said = stress_of(extras.info[name], name, one.cell[0], where) if one.has_stress[0] else None
        if said is not None and not np.allclose(said, one.stress[0], rtol=1e-6, atol=1e-9):
            raise DataError(f"{where}: {name} in its metadata is another stress than that of the frame; do not use it.")
    elif one.has_stress[0]:
        found[name] = one.stress[0].copy()
    return found


def _voigt(stress: np.ndarray) -> np.ndarray:
    """Six numbers, as ASE keeps a stress; its reader of extended XYZ takes the upper triangle, too."""
    return np.array([stress[0, 0], stress[1, 1], stress[2, 2], stress[1, 2], stress[0, 2], stress[0, 1]])


def _constraints(mask: np.ndarray) -> list[Any]:
    if mask.ndim == 1:
        return [FixAtoms(mask=~mask)]
    return [FixCartesian(int(atom), mask=~free) for atom, free in enumerate(mask) if not free.all()]


def from_atoms(
    images: Sequence[Atoms], ids: Sequence[str], keys: Keys = Keys(), *, labelled: bool = True, extras: bool = True
) -> Frames:
    """Frames from `Atoms`: labels under the names that `read_frames` looks for, all else as extras.

    Arguments:
        images: each with `info`, `arrays`, and the results of a calculator, or without.
        ids: configuration ids.
        keys: names and units of the labels, where they are unusual.
        labelled: whether there must be energies.
        extras: whether what is no label is kept.

    Raises:
        DataError: for what a dataset cannot hold, or where energies are missing; names the frame.
    """
    if not images:
        raise DataError("there are no structures to store; give at least one.")
    tables = [_tables(atoms, name, extras) for atoms, name in zip(images, ids, strict=True)]
    shapes = Counter((frozenset(map(str, info)), frozenset(arrays)) for info, arrays in tables)
    single = all(len(atoms) == 1 for atoms in images)
    names = choose_names(Path(ids[0].rpartition("#")[0]), shapes, single, keys, labelled=labelled)
    rows = zip(images, tables, ids, strict=True)
    return Frames.concatenate(
        [_one_block(atoms, *table, names, where, keys.units, extras) for atoms, table, where in rows]
    )


def _tables(atoms: Atoms, name: str, extras: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """What belongs to the frame, and what to its atoms; results of a calculator among them."""
    if len(atoms) == 0:
        raise DataError(f"{name} has no atoms.")
    info, arrays = dict(atoms.info), {k: v for k, v in atoms.arrays.items() if k not in ("numbers", "positions")}
    info.update(info.pop("key_value_pairs", {}))  # of an ASE database
    for reserved in ("Lattice", "pbc"):  # of the atoms; in `info` they would stand for it
        if info.pop(reserved, None) is not None and extras:
            raise DataError(f"{name}: info holds {reserved!r}, which is the name of the cell's own; rename it.")
    for key, value in _results(atoms).items():
        table = arrays if key not in per_config_properties and np.shape(value)[:1] == (len(atoms),) else info
        if key in table and not np.array_equal(table[key], value):
            raise DataError(f"{name} has two values of {key}, of its calculator and beside it; remove one of them.")
        table[key] = value
    if atoms.constraints and extras:
        arrays["move_mask"] = _mask(atoms, name)
    return info, arrays


def _one_block(
    atoms: Atoms, info: dict[str, Any], arrays: dict[str, Any], names: Names, where: str, units: Units, extras: bool
) -> Frames:
    forces = arrays.pop(str(names["forces"]), None)
    if forces is not None and (np.shape(forces) != (len(atoms), 3) or np.asarray(forces).dtype.kind not in "iuf"):
        raise DataError(
            f"{where}: forces (column '{names['forces']}') have shape {np.shape(forces)}, expected {(len(atoms), 3)} "
            f"numbers for {len(atoms)} atoms."
        )
    block = Frames.conformers(
        atoms.numbers,
        atoms.positions[None],
        energy=np.array([np.nan]),
        forces=None if forces is None else np.asarray(forces, dtype=np.float64)[None],
        cell=atoms.cell.array[None].copy(),
    )
    if "stress" in info and names["stress"] == "stress":
        info["stress"] = full_tensor(info["stress"], where)
    as_it_is = units == Units()
    info["pbc"] = atoms.pbc
    renamed = take_labels(block, 0, info, names, where)
    group = info.get(str(names["group"]))
    if not as_it_is:  # in their own units they cannot keep their own names
        info.pop(str(names["stress"]), None)
        renamed = {}
    packed = pack(Extras(info, arrays, renamed), where) if extras else None
    return in_usual_units(block.named([where], [None if group is None else str(group)], [packed]), units, names)


def _results(atoms: Atoms) -> dict[str, Any]:
    """What a calculator has computed for these atoms as they are; nothing is computed now."""
    if atoms.calc is None or atoms.calc.calculation_required(atoms, []):
        return {}
    try:
        return {key: value for key, value in atoms.calc.results.items() if value is not None}
    except (AttributeError, PropertyNotImplementedError):
        return {}


def _mask(atoms: Atoms, name: str) -> np.ndarray:
    """[N] or [N, 3] bool, what may move, as extended XYZ has it."""
    free = np.ones((len(atoms), 3), dtype=bool)
    for constraint in atoms.constraints:
        if isinstance(constraint, FixAtoms):
            free[constraint.index] = False
        elif isinstance(constraint, FixCartesian):
            free[constraint.index] = ~np.asarray(constraint.mask)
        else:
            raise DataError(
                f"{name} has a constraint {type(constraint).__name__}, which a dataset cannot hold (FixAtoms and "
                "FixCartesian it can); remove it."
            )
    return free[:, 0] if (free == free[:, :1]).all() else free


def xyz_lines(block: Frames, said: set[str] | None = None) -> Iterator[str]:
    """The text of each frame in extended XYZ, with the shortest digits that give back the same numbers.

    Arguments:
        block: the frames.
        said: warnings of the same file, which are given once.

    Raises:
        DataError: for metadata that would not be read as they were meant.
    """
    said = set() if said is None else said
    for row in range(len(block)):
        one = block[row : row + 1]
        extras = _extras(one)
        labels = _labels(one, extras)
        forces = labels.pop(extras.names.get("forces", "forces"), None)
        columns: list[tuple[str, np.ndarray]] = [("pos", one.positions)]
        columns += [] if forces is None else [(extras.names.get("forces", "forces"), forces)]
        columns += list(extras.arrays.items())
        comment = _comment(one, extras, labels, columns)
        if extras.info or extras.arrays or extras.names:
            _check_comment(comment, {*labels, *extras.info}, columns, one)
            _say_rivals(extras, said, one.sources[0] if one.sources else "a frame")
        yield f"{len(one.numbers)}\n{comment}\n" + "\n".join(_rows(one, columns)) + "\n"


def _check_comment(comment: str, names: set[str], columns: list[tuple[str, np.ndarray]], one: Frames) -> None:
    """What is written must be read as it was meant: metadata of other programs may have any names."""
    where = one.sources[0] if one.sources else "a frame"
    try:
        comment.encode()
        found = read_comment(comment, where, {})
        whole = not set("\r\n") & set(comment) and set(found) - {"Lattice", "Properties", "pbc"} == names
        whole = whole and found["pbc"] == one.pbc[0].tolist()
        whole = whole and all(array[0].size and not set(name) & set(': \t"') for name, array in columns)
        reason = "" if whole else ": names that stand for something else, or hold spaces"
    except (DataError, UnicodeEncodeError) as error:
        whole, reason = False, f" ({str(error).removeprefix(f'{where}: ')[:100]})"
    if not whole:
        raise DataError(f"{where}: its metadata cannot be written as extended XYZ{reason}; rename, or use parquet.")


def _say_rivals(extras: Extras, said: set[str], where: str) -> None:
    """Of two energies, both of which are kept, a reader must be told which one was meant."""
    for quantity in _LABELS:
        name = extras.names.get(quantity, quantity)
        others = ", ".join(outranked(name, extras.arrays if quantity == "forces" else extras.info))
        if others and f"{name}: {others}" not in said:
            said.add(f"{name}: {others}")
            _log.warning(
                "%s: beside its %s it says %s, which a reader of extended XYZ may take instead; read what is written "
                "with --%s-key %s (data.%s_key).",
                *(where, name, others, quantity, name, quantity),
            )


def _comment(one: Frames, extras: Extras, labels: dict[str, Any], columns: Iterable[tuple[str, np.ndarray]]) -> str:
    pairs = []
    if one.cell[0].any():
        pairs.append(f'Lattice="{_matrix(one.cell[0].T)}"')
    kinds = {"f": "R", "i": "I", "u": "I", "b": "L", "U": "S"}
    fields = [f"{name}:{kinds[array.dtype.kind]}:{array[0].size}" for name, array in columns]
    pairs.append("Properties=" + ":".join(["species:S:1", *fields]))
    for name, value in {**labels, **extras.info}.items():
        special = name in ("stress", "virial") and np.shape(value) == (3, 3)
        pairs.append(f'{name}="{_matrix(value)}"' if special else write_pair(name, value))
    flags = " ".join("T" if periodic else "F" for periodic in one.pbc[0])
    return " ".join([*pairs, f'pbc="{flags}"'])


def _matrix(value: np.ndarray) -> str:
    """Nine numbers, column by column."""
    return " ".join(map(repr, np.asarray(value).ravel(order="F").tolist()))


def _rows(one: Frames, columns: Iterable[tuple[str, np.ndarray]]) -> Iterator[str]:
    """One line per atom."""
    texts: list[list[str]] = [[chemical_symbols[number] for number in one.numbers]]
    for name, array in columns:
        flat = array.reshape(len(array), -1)
        for values in flat.T.tolist():
            if array.dtype.kind == "b":
                texts.append(["T" if value else "F" for value in values])
            elif array.dtype.kind == "U":
                if any(not value or value.split() != [value] for value in values):
                    raise DataError(f"the texts of {name} have spaces, which extended XYZ cannot hold; use parquet.")
                texts.append(values)
            else:
                texts.append(list(map(repr, values)))
    return (" ".join(row) for row in zip(*texts, strict=True))
