"""Structures from a file or from a short specification such as `fcc:Al:4x4x4`."""

from __future__ import annotations

import math
import re
import warnings
from pathlib import Path
from typing import Any

import ase.build
import ase.io
import numpy as np
from ase import Atoms
from ase.collections import g2
from ase.data import atomic_masses, atomic_numbers, chemical_symbols, reference_states
from ase.io.formats import UnknownFileTypeError

from snnp.data.read import holds_xyz, read_atoms
from snnp.errors import DataError, InputError, near_matches
from snnp.sampling.trajectory import read_dcd_frame, topology_beside

__all__ = ["build_structure", "structure_files"]

_LATTICES = ("fcc", "bcc", "diamond", "hcp", "sc")
_EXAMPLES = "fcc:Al:4x4x4, bcc:Mo:3x3x3:a=3.16, hcp:Mg:4x3x3:a=3.21:c=5.21, diamond:Si:3x3x3, molecule:CH3CH2OH"
_MOST_ATOMS = 10_000_000
_FORMATS = {"pdb": "proteindatabank", "poscar": "vasp", "contcar": "vasp", "lammps": "lammps-data", "xyz": "extxyz"}
_NO_BOX_IN_PDB = (1.0, 1.0, 1.0, 90.0, 90.0, 90.0)  # what the format prescribes for structures without a periodic cell
_MASS_TOLERANCE = 0.3
"""amu; more than rounding and the choice of isotopic abundances, less than the distance of most neighbours."""


def build_structure(
    spec: str | Path,
    *,
    lattice_constant: float | None = None,
    file_format: str | None = None,
    topology: str | Path | None = None,
) -> Atoms:
    """Read or build the atoms that a specification names; what exists on the disk is a file.

    Arguments:
        spec: a file (the last frame, or `file.xyz@3` for another), a crystal `LATTICE:ELEMENT:SIZE[:a=Å][:c=Å]` with
            lattice fcc, bcc, diamond, sc (cubic cells) or hcp (orthorhombic cells), or `molecule:NAME` from the G2 set.
        lattice_constant: Å, for crystals whose specification gives none; by default ASE's reference value.
        file_format: of the file, where its name does not tell: pdb, cif, poscar, lammps, dcd, or ASE's name of one.
        topology: a structure file with the elements, which DCD does not hold; by default `NAME_topology.pdb` beside it.

    Raises `InputError` for a missing or unreadable file, or a specification that is not understood.

    Example:
        >>> len(build_structure("fcc:Al:4x4x4"))
        256
    """
    text = str(spec)
    path, index = _file_and_index(text)
    if path.is_file():
        name = _FORMATS.get(str(file_format).lower(), file_format)
        if name == "dcd" or (name is None and path.suffix.lower() == ".dcd"):
            return _from_dcd(path, index, topology)
        if topology is not None:
            raise InputError(f"a topology goes with a DCD file; '{path}' holds its elements itself.")
        return _from_file(path, index, name)
    kind, colon, rest = text.partition(":")
    if colon and kind in ("molecule", *_LATTICES):
        if file_format is not None or topology is not None:
            raise InputError(f"'{text}' is not a file; leave its format and topology away.")
        if kind != "molecule":
            return _crystal(text, lattice_constant)
        if rest not in g2.names:
            hint = near_matches(rest, g2.names)
            raise InputError(f"no molecule '{rest}' in ASE's G2 set.{hint} Example: molecule:CH3CH2OH.")
        return ase.build.molecule(rest)
    if path.is_dir():
        raise InputError(f"'{path}' is a folder; name a structure file, or a specification such as {_EXAMPLES}.")
    if colon and path.parent == Path("."):
        hint = near_matches(kind, [*_LATTICES, "molecule"])
        raise InputError(f"unknown kind of structure '{kind}' in '{text}'.{hint} Examples: {_EXAMPLES}.")
    there = [file.name for file in path.parent.iterdir()] if path.parent.is_dir() else []
    why = "" if path.parent.is_dir() else f" (There is no folder '{path.parent}'.)"
    hint = near_matches(path.name, there)
    raise InputError(f"no structure file '{text}'.{hint} Give a file or a specification such as {_EXAMPLES}.{why}")


def structure_files(spec: str | Path, topology: str | Path | None = None) -> list[Path]:
    """The files that `build_structure` would read."""
    path = _file_and_index(str(spec))[0]
    return [each for each in (path, Path(topology or topology_beside(path))) if each.is_file()]


def _file_and_index(text: str) -> tuple[Path, str]:
    """A path and which frame of it is meant (the last, where none is named); an existing path may hold an @ itself."""
    name, at, index = text.rpartition("@")
    return (Path(text), "-1") if not at or Path(text).exists() else (Path(name), index)


def _from_file(path: Path, index: str, file_format: str | None) -> Atoms:
    if path.stat().st_size == 0:
        raise InputError(f"'{path}' is empty; name a file with a structure.")
    if file_format in (None, "extxyz") and holds_xyz(path) and re.fullmatch(r"-?\d+", index):
        try:
            return read_atoms(path, int(index))
        except DataError as error:
            raise InputError(f"cannot read a structure from '{path}': {error}") from error
    units: dict[str, Any] = {}
    if file_format == "lammps-data":  # those that `write_data` notes in the first line; metal where it notes none
        with open(path, encoding="utf-8", errors="replace") as file:
            found = re.search(r"units\s*=\s*(\w+)", file.readline(4096))
        units = {"units": "metal" if found is None else found[1]}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of ASE about its own guesses; what matters is checked below
            atoms = ase.io.read(path, index=index, format=file_format, do_not_split_by_at_sign=True, **units)
    except UnknownFileTypeError as error:
        given = "" if file_format is None else f" '{file_format}'"
        raise InputError(
            f"the format{given} of '{path}' is not known to ASE; name it with --format (pdb, cif, poscar, lammps, "
            "dcd), or save it as .extxyz."
        ) from error
    except Exception as error:  # ASE's readers raise whatever their parsing trips over
        detail = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"cannot read a structure from '{path}': {detail}; check the file, name its format with --format, or save "
            "it as .extxyz."
        ) from error
    if not isinstance(atoms, Atoms):
        raise InputError(f"'{path}@{index}' names {len(atoms)} structures; name one, for example {path.name}@0.")
    _check_elements(atoms, path, file_format)
    is_pdb = file_format == "proteindatabank" or (file_format is None and path.suffix.lower() == ".pdb")
    if is_pdb and np.array_equal(atoms.cell.cellpar(), _NO_BOX_IN_PDB):
        atoms.set_cell(None)
        atoms.pbc = False
    return atoms


def _check_elements(atoms: Atoms, path: Path, file_format: str | None) -> None:
    """Refuse types without masses, masses of no element, and sites that several elements share: ASE would guess."""
    shared = atoms.info.get("occupancy", {}).values()
    if any(len(site) > 1 or min(site.values(), default=1.0) < 1.0 for site in shared):
        raise InputError(f"'{path}' has sites that are occupied in part; choose one ordered arrangement and save that.")
    if file_format != "lammps-data":
        return
    if "masses" not in atoms.arrays:
        raise InputError(f"'{path}' has no section Masses, so its elements are not known; add one.")
    usual = atomic_masses[atoms.numbers]
    if (wrong := np.flatnonzero(np.abs(atoms.get_masses() - usual) > _MASS_TOLERANCE)).size:
        mass = atoms.get_masses()[wrong[0]]
        raise InputError(f"'{path}' has a type of mass {mass:g} amu, which is no element's; mend its section Masses.")


def _from_dcd(path: Path, index: str, topology: str | Path | None) -> Atoms:
    companion = Path(topology or topology_beside(path))
    if not companion.is_file():
        raise InputError(f"'{path}' holds no elements; name a file that does with --topology (no '{companion}').")
    atoms = build_structure(companion)
    if re.fullmatch(r"-?\d+", index) is None:
        raise InputError(f"'{path}@{index}' does not name one frame; write a number, for example {path.name}@0.")
    atoms.positions, cell = read_dcd_frame(path, int(index), len(atoms))
    atoms.set_cell(cell)
    atoms.pbc = False if cell is None else atoms.pbc if atoms.pbc.any() else True
    return atoms


def _crystal(text: str, lattice_constant: float | None) -> Atoms:
    if text.count(":") < 2:
        raise InputError(f"'{text}' is not a crystal; write LATTICE:ELEMENT:SIZE, for example {_EXAMPLES}.")
    lattice, symbol, size, *options = text.split(":")
    if symbol not in atomic_numbers or symbol == "X":
        hint = near_matches(symbol, chemical_symbols[1:])
        raise InputError(f"'{symbol}' in '{text}' is not a chemical element.{hint}")
    repeats, lengths = _size(size, text), _lengths(options, text)
    a, c = lengths.get("a", lattice_constant), lengths.get("c")
    if a is None:
        state: dict[str, Any] | None = reference_states[atomic_numbers[symbol]]
        if state is None or state["symmetry"] != lattice or "a" not in state:
            raise InputError(f"no lattice constant of {lattice} {symbol} is known; give one, for example {text}:a=4.0.")
        a = float(state["a"])
        c = float(state["c/a"]) * a if c is None and "c/a" in state else c
    if lattice == "hcp":
        unit = ase.build.bulk(symbol, "hcp", a=a, c=c, orthorhombic=True)
    elif c is not None:
        raise InputError(f"'{text}' gives c, which only hcp has; leave it out.")
    else:
        unit = ase.build.bulk(symbol, lattice, a=a, cubic=True)
    n_atoms = len(unit) * math.prod(repeats)
    if n_atoms > _MOST_ATOMS:
        raise InputError(f"'{text}' has {n_atoms} atoms, more than {_MOST_ATOMS}; make it smaller.")
    atoms: Atoms = unit.repeat(repeats)
    return atoms


def _size(size: str, text: str) -> tuple[int, int, int]:
    if re.fullmatch(r"[1-9]\d{0,6}(x[1-9]\d{0,6}x[1-9]\d{0,6})?", size) is None:
        raise InputError(f"size '{size}' in '{text}' is not understood; write 4x4x4 or 4, all positive.")
    first, second, third = (int(each) for each in (size.split("x") * 3)[:3])
    return first, second, third


def _lengths(options: list[str], text: str) -> dict[str, float]:
    lengths = {}
    for option in options:
        match = re.fullmatch(r"([ac])=(\d+\.?\d*|\.\d+)", option)
        if match is None or float(match[2]) <= 0.0:
            raise InputError(f"'{option}' in '{text}' is not understood; write a=4.05 (and c=... for hcp), in Å.")
        lengths[match[1]] = float(match[2])
    return lengths
