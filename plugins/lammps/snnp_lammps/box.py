"""Atoms in the axes and files of LAMMPS: cells are lower triangular, open directions too; masses are those of types."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ase import Atoms
from numpy.typing import NDArray

from snnp.sampling.thermostats import ASE_FS, held_atoms

__all__ = ["LammpsBox", "read_dump"]

Array = NDArray[np.float64]

_MARGIN = 2.0  # Å, around atoms in open directions; LAMMPS shrinks or widens the box itself


@dataclass(frozen=True)
class LammpsBox:
    """A cell in LAMMPS's axes.

    Arguments:
        cell: [3, 3] Å, lower triangular with a positive diagonal; open directions have a vector of their own.
        turn: [3, 3] orthogonal (det -1 for a left-handed cell): vectors in LAMMPS's axes are `v @ turn`.
        low: [3] Å, the corner.
    """

    cell: Array
    turn: Array
    low: Array

    @classmethod
    def of(cls, atoms: Atoms) -> LammpsBox:
        """The box of a structure; the axes depend on cell and periodicity alone."""
        pbc = atoms.pbc
        cell = np.where(pbc[:, None], atoms.cell.array, 0.0)
        _, _, normals = np.linalg.svd(cell)
        cell[~pbc] = normals[int(pbc.sum()) :]
        upright = np.array_equal(cell, np.tril(cell)) and bool((np.diag(cell) > 0.0).all())
        turn = np.eye(3) if upright else _turn(cell)
        inside = atoms.positions @ turn
        cell = cell if upright else np.tril(cell @ turn)
        low = np.where(pbc, 0.0, inside.min(axis=0) - _MARGIN)
        # Those of open directions are unit vectors along the axes by now.
        cell[~pbc] = np.eye(3)[~pbc] * (np.ptp(inside, axis=0) + 2.0 * _MARGIN)
        return cls(cell, turn, low)

    def back(self, vectors: Array) -> Array:
        """Vectors [N, 3] in LAMMPS's axes in those of the structure."""
        return vectors @ self.turn.T

    def tensor_back(self, tensor: Array) -> Array:
        """A tensor [3, 3] likewise."""
        return np.asarray(self.turn @ tensor @ self.turn.T)

    def write_data(self, path: Path, atoms: Atoms) -> tuple[list[str], list[int]]:
        """Write a data file; returns the element of each type, and the types whose atoms are held.

        Types are the combinations of element, mass and held that occur.
        """
        held = held_atoms(atoms, None)
        kinds = np.column_stack([atoms.numbers, atoms.get_masses(), held])
        types, of_atom = np.unique(kinds, axis=0, return_inverse=True)
        of_atom = of_atom.reshape(-1) + 1
        positions = atoms.positions @ self.turn
        velocities = atoms.get_velocities() @ self.turn * (1000.0 * ASE_FS)  # Å/ps
        low, high = self.low.tolist(), (self.low + np.diag(self.cell)).tolist()
        ranges = [f"{a!r} {b!r} {x}lo {x}hi" for a, b, x in zip(low, high, "xyz", strict=True)]
        tilts = self.cell[[1, 2, 2], [0, 0, 1]].tolist()
        tilt = [" ".join(map(repr, tilts)) + " xy xz yz"] if any(tilts) else []
        lines = ["snnp", "", f"{len(atoms)} atoms", f"{len(types)} atom types", *ranges, *tilt, "", "Masses", ""]
        lines += [f"{k} {mass!r}" for k, mass in enumerate(types[:, 1].tolist(), start=1)]
        lines += ["", "Atoms # atomic", ""]
        rows = zip(of_atom.tolist(), positions.tolist(), strict=True)
        lines += [f"{k} {kind} {x!r} {y!r} {z!r}" for k, (kind, (x, y, z)) in enumerate(rows, start=1)]
        lines += ["", "Velocities", ""]
        lines += [f"{k} {x!r} {y!r} {z!r}" for k, (x, y, z) in enumerate(velocities.tolist(), start=1)]
        path.write_text("\n".join(lines) + "\n")
        symbols = Atoms(numbers=types[:, 0].astype(int)).get_chemical_symbols()
        return list(symbols), (np.flatnonzero(types[:, 2]) + 1).tolist()


def _turn(cell: Array) -> Array:
    """The orthogonal matrix with which `cell @ turn` is lower triangular with a positive diagonal."""
    turn, upper = np.linalg.qr(cell.T)
    return np.asarray(turn * np.sign(np.diag(upper)))


def read_dump(path: Path, n_columns: int) -> Array:
    """Rows [N, columns] of a binary dump of one step, as `write_dump ... custom FILE.bin` has it.

    Before the rows stand a header of varying length and its own columns' names; then, for each rank, a count of numbers
    and the numbers. Raises ValueError for another layout.
    """
    content = path.read_bytes()

    def integers(kind: str, offset: int, count: int = 1) -> list[int]:
        return [int(value) for value in np.frombuffer(content, kind, count, offset)]

    magic = -integers("i8", 0)[0]
    if not 0 < magic < 100 or content[8 : 8 + magic] != b"DUMPCUSTOM":
        raise ValueError(f"'{path}' is no binary dump")
    at = 8 + magic + 4 + 4 + 8  # the byte order, the revision, the step
    (n_atoms,), (triclinic,) = integers("i8", at), integers("i4", at + 8)
    at += 12 + 6 * 4 + (6 + 3 * bool(triclinic)) * 8  # sides, and the box
    (size_one,), (unit_length,) = integers("i4", at), integers("i4", at + 4)
    at += 8 + unit_length
    at += 1 + 8 * (content[at] != 0)  # whether the time follows
    at += 4 + integers("i4", at)[0]  # names of columns
    (chunks,) = integers("i4", at)
    at += 4
    parts = []
    for _ in range(chunks):
        (count,) = integers("i4", at)
        parts.append(np.frombuffer(content, "f8", count, at + 4))
        at += 4 + 8 * count
    rows = np.concatenate(parts).reshape(-1, n_columns) if size_one == n_columns else np.zeros((0, n_columns))
    if len(rows) != n_atoms:
        raise ValueError(f"'{path}' holds {len(rows)} rows of {n_columns} numbers for {n_atoms} atoms")
    return rows
