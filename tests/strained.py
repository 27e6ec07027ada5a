"""Structures for tests of many at once."""

from __future__ import annotations

import numpy as np
from ase import Atoms
from ase.build import bulk


def silicon(n: int = 6, size: float = 0.05) -> list[Atoms]:
    """Cells of two, four and eight atoms, each strained and shaken."""
    rng, found = np.random.default_rng(4), []
    for k in range(n):
        atoms = [bulk("Si"), bulk("Si", cubic=True), bulk("Si") * (1, 1, 2)][k % 3]
        atoms.set_cell(atoms.cell @ (np.eye(3) + rng.normal(0.0, 0.01, (3, 3))), scale_atoms=True)
        atoms.rattle(size, seed=k)
        found.append(atoms)
    return found
