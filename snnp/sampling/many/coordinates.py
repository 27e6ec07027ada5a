"""What a relaxation of many structures moves: positions, and the logarithm of the strain of each cell if asked.

With the strain F = exp(L / n) of a structure of n atoms (rows x of positions become x F^T, likewise the cell) the
variables are the positions u before the strain and L, as in ASE's `FrechetCellFilter`. The forces on them are

    f F   and   D exp(L^T / n)[-V (stress + P) F^-T] / n,

D exp(A)[B] being the derivative of the matrix exponential at A towards B: the upper right block of exp of the matrix
[[A, B], [0, A]].
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from snnp.sampling.many.crowd import Crowd, Found

__all__ = ["Coordinates", "Vector"]

Array = NDArray[np.float64]


class Vector(NamedTuple):
    """A value for each variable: of atoms [N, 3], of cells [B, 3, 3] (None where cells stay)."""

    atoms: Array
    cells: Array | None


class Coordinates:
    """The variables of a crowd, which it keeps in `atoms["u"]` and, where cells move, `each["log"]`.

    Arguments:
        cell: whether cells move; all structures are periodic then. pressure: eV/Å³, on the cells.
        free: [N] which atoms move.
    """

    def __init__(self, crowd: Crowd, cell: bool, pressure: float, free: NDArray[np.bool_]) -> None:
        self.crowd, self.cell, self.pressure = crowd, cell, pressure
        crowd.atoms |= {"u": crowd.atoms["positions"].copy(), "free": free[:, None]}
        if cell:
            crowd.each |= {"log": np.zeros((len(crowd), 3, 3)), "start": crowd.each["cells"].copy()}

    def values(self) -> Vector:
        """The variables now."""
        return Vector(self.crowd.atoms["u"], self.crowd.each["log"] if self.cell else None)

    def zeros(self) -> Vector:
        """A value of zero for each."""
        atoms, cells = self.values()
        return Vector(np.zeros_like(atoms), None if cells is None else np.zeros_like(cells))

    def place(self, values: Vector) -> None:
        """Set the variables, and atoms and cells by them."""
        crowd = self.crowd
        crowd.atoms["u"] = values.atoms
        if values.cells is None:
            crowd.atoms["positions"] = values.atoms
            return
        crowd.each["log"] = values.cells
        turned = self._strain().transpose(0, 2, 1)
        crowd.each["cells"] = crowd.each["start"] @ turned
        crowd.atoms["positions"] = np.einsum("na,nab->nb", values.atoms, turned[crowd.owner])

    def _strain(self) -> Array:
        exponent = self.crowd.each["log"] / self.crowd.sizes[:, None, None]
        return np.asarray(torch.matrix_exp(torch.from_numpy(exponent)).numpy())

    def forces(self, found: Found) -> Vector:
        """Less the derivatives of energy (or enthalpy) in the variables."""
        crowd = self.crowd
        atoms = np.where(crowd.atoms["free"], found.forces, 0.0)
        if not self.cell:
            return Vector(atoms, None)
        n = crowd.sizes[:, None, None]
        strain = self._strain()
        virial = -self.volumes()[:, None, None] * (found.stress + self.pressure * np.eye(3))
        towards = virial @ np.linalg.inv(strain.transpose(0, 2, 1))
        block = np.zeros((len(crowd), 6, 6))
        block[:, :3, :3] = block[:, 3:, 3:] = crowd.each["log"].transpose(0, 2, 1) / n
        block[:, :3, 3:] = towards
        derivative = torch.matrix_exp(torch.from_numpy(block)).numpy()[:, :3, 3:]
        return Vector(np.einsum("na,nab->nb", atoms, strain[crowd.owner]), derivative / n)

    def energies(self, found: Found) -> Array:
        """[B] energies in eV, or enthalpies where cells move."""
        return found.energy + self.pressure * self.volumes() if self.cell else found.energy

    def volumes(self) -> Array:
        """[B] Å³."""
        return np.abs(np.linalg.det(self.crowd.each["cells"]))

    def dot(self, a: Vector, b: Vector) -> Array:
        """[B] scalar products."""
        total = self.crowd.sums(np.einsum("na,na->n", a.atoms, b.atoms))
        if a.cells is not None and b.cells is not None:
            total = total + np.einsum("bij,bij->b", a.cells, b.cells)
        return total

    def largest(self, values: Vector) -> Array:
        """[B] the largest norm of a row: an atom's, or a cell's."""
        found = self.crowd.largest(np.einsum("na,na->n", values.atoms, values.atoms))
        if values.cells is not None:
            found = np.maximum(found, np.einsum("bij,bij->bi", values.cells, values.cells).max(axis=1))
        return np.sqrt(found)

    def combine(self, *terms: tuple[Array, Vector]) -> Vector:
        """The sum of vectors, each times a factor for each structure [B]."""
        owner = self.crowd.owner
        atoms = sum((factor[owner][:, None] * vector.atoms for factor, vector in terms), np.zeros(()))
        parts = [(factor, vector.cells) for factor, vector in terms if vector.cells is not None]
        cells = sum((factor[:, None, None] * part for factor, part in parts), np.zeros(()))
        return Vector(atoms, cells if parts else None)

    def remember(self, name: str, values: Vector) -> None:
        """Keep a vector with the crowd, so that structures that leave take their part along."""
        self.crowd.atoms[name] = values.atoms
        if values.cells is not None:
            self.crowd.each[name] = values.cells

    def recall(self, name: str) -> Vector:
        """A vector that was kept."""
        return Vector(self.crowd.atoms[name], self.crowd.each[name] if self.cell else None)
