"""`Frames` from and to ASE's `Atoms`, with everything that they say."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import PropertyNotImplementedError, all_properties
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms, FixCartesian
from ase.io.extxyz import per_config_properties

from snnp.data.frames import Frames
from snnp.data.labels import Keys, Names, choose_names
from snnp.data.storage.contents import LABELS, Said, contents_of, full_tensor, made_frames
from snnp.errors import DataError

__all__ = ["from_atoms", "to_atoms"]


def to_atoms(frames: Frames) -> Iterator[Atoms]:
    """One `Atoms` per frame: labels as results of a calculator (in `info` and `arrays` where they had other names)."""
    for row in range(len(frames)):
        one = frames[row : row + 1]
        labels, extras = contents_of(one)
        atoms = Atoms(numbers=one.numbers, positions=one.positions, cell=one.cell[0], pbc=one.pbc[0])
        results: dict[str, Any] = {}
        info, arrays = dict(extras.info), dict(extras.arrays)
        for name, value in labels.items():
            if name in LABELS:
                results[name] = value
            elif np.ndim(value) == 2 and len(value) == len(atoms) and name == extras.names.get("forces"):
                arrays[name] = value
            else:
                info[name] = value
        for table in (info, arrays):
            results |= {name: table.pop(name) for name in list(table) if name in all_properties}
        if (mask := arrays.pop("move_mask", None)) is not None:
            held = ~np.asarray(mask, dtype=bool)
            whole = [FixAtoms(mask=held)] if held.ndim == 1 else None
            atoms.set_constraint(whole or [FixCartesian(k, mask=each) for k, each in enumerate(held) if each.any()])
        for name, value in arrays.items():
            atoms.set_array(name, value)
        atoms.info.update(info)
        if results:
            if "stress" in results and np.shape(results["stress"]) == (3, 3):  # in ASE the upper triangle alone
                results["stress"] = results["stress"][[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]]
            atoms.calc = SinglePointCalculator(atoms, **results)
        yield atoms


def from_atoms(
    images: Sequence[Atoms], sources: Sequence[str], keys: Keys = Keys(), *, labelled: bool = True, extras: bool = True
) -> Frames:
    """Frames from `Atoms` and their sources: labels under the names that `read_frames` looks for, all else as extras.

    Results of a calculator count beside `info` and `arrays`; other arguments as for `read_xyz`.
    """
    if not images:
        raise DataError("there are no structures to store; give at least one.")
    tables = [_tables(atoms, name, extras) for atoms, name in zip(images, sources, strict=True)]
    shapes = Counter((frozenset(map(str, info)), frozenset(arrays)) for info, arrays in tables)
    single = all(len(atoms) == 1 for atoms in images)
    names = choose_names(Path(sources[0].rpartition("#")[0]), shapes, single, keys, labelled=labelled)
    rows = zip(images, tables, sources, strict=True)
    return made_frames([_said(*row, names) for row in rows], names, keys.units, extras=extras)


def _tables(atoms: Atoms, name: str, extras: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """What belongs to the frame, and what to its atoms; results of a calculator among them."""
    if len(atoms) == 0:
        raise DataError(f"{name} has no atoms.")
    info, arrays = dict(atoms.info), {k: v for k, v in atoms.arrays.items() if k not in ("numbers", "positions")}
    info.update(info.pop("key_value_pairs", {}))  # of an ASE database
    for reserved in ("Lattice", "pbc"):  # of the atoms; in `info` they would stand for it
        if info.pop(reserved, None) is not None and extras:
            raise DataError(f"{name}: info holds {reserved!r}, which is the name of the cell's own; rename it.")
    done: dict[str, Any] = {}
    with suppress(AttributeError, PropertyNotImplementedError):  # of these atoms as they are; nothing is computed now
        if atoms.calc is not None and not atoms.calc.calculation_required(atoms, []):
            done = {key: value for key, value in atoms.calc.results.items() if value is not None}
    for key, value in done.items():
        table = arrays if key not in per_config_properties and np.shape(value)[:1] == (len(atoms),) else info
        if key in table and not np.array_equal(table[key], value):
            raise DataError(f"{name} has two values of {key}, of its calculator and beside it; remove one of them.")
        table[key] = value
    if atoms.constraints and extras:
        arrays["move_mask"] = _mask(atoms, name)
    return info, arrays


def _said(atoms: Atoms, tables: tuple[dict[str, Any], dict[str, Any]], source: str, names: Names) -> Said:
    info, arrays = tables
    forces = arrays.pop(str(names["forces"]), None)
    if forces is not None and (np.shape(forces) != (len(atoms), 3) or np.asarray(forces).dtype.kind not in "iuf"):
        raise DataError(
            f"{source}: forces (column '{names['forces']}') have shape {np.shape(forces)}, expected {(len(atoms), 3)} "
            f"numbers for {len(atoms)} atoms."
        )
    if "stress" in info and names["stress"] == "stress":
        info["stress"] = full_tensor(info["stress"], source)
    info |= {"Lattice": atoms.cell.array, "pbc": atoms.pbc}
    return Said(source, source, atoms.numbers, atoms.positions, forces, info, arrays)


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
