"""OpenMM itself, and structures in its terms: nanometres and a reduced, lower-triangular periodic box; and back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from ase import Atoms

from snnp.errors import MissingDependencyError
from snnp.structure import Structure, clip_to_reduced, complete_cell, reduce_cell
from snnp.units import NM_IN_ANGSTROM

__all__ = ["CURE", "OpenMMGeometry", "openmm", "to_openmm"]

_VACUUM_ANGSTROM = 50.0
"""Room left around the atoms along an open direction, so that a platform that wraps atoms into the box moves none."""

CURE = "pip install 'snnp[openmm]' brings a version that works"


def openmm() -> Any:
    """The module `openmm`, with `openmm.app`; raises `MissingDependencyError` where it cannot be imported."""
    try:
        import openmm as module
        import openmm.app
    except ImportError as error:
        raise MissingDependencyError(f"OpenMM is needed but cannot be imported ({error}); {CURE}.") from error
    return module


@dataclass(frozen=True)
class OpenMMGeometry:
    """A structure as OpenMM needs it: `topology` (with the box, where periodic), `positions` [N, 3] and `box` in nm.

    OpenMM accepts only boxes with `a` along x, `b` in the xy plane and no vector longer along another than half of it.
    A general cell `C` (rows, Å) is brought there by other vectors of the same lattice (`steps`, integers) and a proper
    rotation (`rotation`): `box = steps @ C @ rotation`, `x_openmm = x @ rotation`. Energies do not change.
    """

    topology: Any
    positions: np.ndarray
    box: np.ndarray | None  # [3, 3] reduced; None where no direction is periodic
    pbc: tuple[bool, bool, bool]
    rotation: np.ndarray
    steps: np.ndarray

    def rotate_back(self, vectors: np.ndarray) -> np.ndarray:
        """Turn [N, 3] vectors of any unit from OpenMM's axes to the structure's."""
        return vectors @ self.rotation.T

    def cell_of(self, box: np.ndarray, original: np.ndarray) -> np.ndarray:
        """[3, 3] cell in Å and the structure's axes, for a `box` in nm; open directions keep `original` rows (Å)."""
        assert self.box is not None
        if np.array_equal(box, self.box):
            return original
        cell = np.linalg.solve(self.steps, box * NM_IN_ANGSTROM) @ self.rotation.T
        return np.where(np.array(self.pbc)[:, None], cell, original)


def to_openmm(atoms: Atoms) -> OpenMMGeometry:
    """Turn an `ase.Atoms` with any cell and periodicity into a topology, positions and a box that OpenMM accepts.

    Raises `InputError` for positions or a cell that are not finite, or a periodic cell without volume.
    """
    Structure.from_ase(atoms).check()
    pbc = (bool(atoms.pbc[0]), bool(atoms.pbc[1]), bool(atoms.pbc[2]))
    app = openmm().app
    topology = app.Topology()
    residue = topology.addResidue("SNNP", topology.addChain())
    for number in atoms.numbers.tolist():
        element = app.Element.getByAtomicNumber(number)
        topology.addAtom(element.symbol, element, residue)
    if not any(pbc):
        return OpenMMGeometry(topology, atoms.positions / NM_IN_ANGSTROM, None, pbc, np.eye(3), np.eye(3, dtype=int))
    extent = float(np.linalg.norm(np.ptp(atoms.positions, axis=0))) if len(atoms) else 0.0
    cell = complete_cell(atoms.cell.array, atoms.pbc, extent + 2.0 * _VACUUM_ANGSTROM)
    steps, rotation = reduce_cell(cell)
    box = clip_to_reduced(steps @ cell @ rotation / NM_IN_ANGSTROM)
    topology.setPeriodicBoxVectors(box)
    return OpenMMGeometry(topology, atoms.positions @ rotation / NM_IN_ANGSTROM, box, pbc, rotation, steps)
