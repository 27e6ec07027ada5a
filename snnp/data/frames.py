"""Frames: reference structures with energies, forces and stresses."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from ase.data import chemical_symbols

from snnp.errors import DataError
from snnp.structure import Structure

__all__ = ["Frame", "elements_of"]


@dataclass(frozen=True)
class Frame:
    """One reference structure of N atoms with what is known about it.

    Arguments:
        structure: exactly one structure, float64.
        energy: eV, or None.
        forces: [N, 3] eV/Å, or None.
        stress: [3, 3] eV/Å³, `dE/dstrain / V`, or None.
        group: kind of structure (`config_type`), or None.
        source: where it came from, as in "train.xyz#17"; unique within one data set.

    Raises:
        DataError: for wrong shapes, NaN or infinite numbers.
    """

    structure: Structure
    energy: float | None
    forces: np.ndarray | None
    stress: np.ndarray | None
    group: str | None
    source: str

    def __post_init__(self) -> None:
        n = self.structure.n_atoms
        if self.structure.n_structures != 1 or n == 0:
            raise DataError(f"{self.source}: a frame holds one structure with atoms, got {n} atoms.")
        expected = {"energy": (), "forces": (n, 3), "stress": (3, 3)}
        for name, shape in expected.items():
            value = getattr(self, name)
            if value is None:
                continue
            if np.shape(value) != shape:
                raise DataError(f"{self.source}: {name} has shape {np.shape(value)}, expected {shape} for {n} atoms.")
            if not np.isfinite(value).all():
                raise DataError(f"{self.source}: {name} holds NaN or infinite numbers; remove or recompute this frame.")

    @property
    def n_atoms(self) -> int:
        """Number of atoms N."""
        return self.structure.n_atoms


def elements_of(frames: Iterable[Frame]) -> tuple[str, ...]:
    """Chemical symbols that occur in `frames`, sorted by atomic number."""
    numbers = {z for frame in frames for z in frame.structure.numbers.tolist()}
    return tuple(chemical_symbols[z] for z in sorted(numbers))
