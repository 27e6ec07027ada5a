"""Radial distribution functions gathered during a run."""

from __future__ import annotations

from collections import defaultdict
from itertools import combinations_with_replacement

import numpy as np
from ase import Atoms
from ase.data import chemical_symbols

from snnp.neighbours import neighbour_list, pair_vectors
from snnp.structure import Structure

__all__ = ["RadialDistribution"]


class RadialDistribution:
    """Averages g(r) per pair of elements over the structures added.

    Fully periodic structures give `g(r) = n(r) V / (N_a N_b 4 pi r² dr)`, which goes to one at large distance. Others
    have no density, so the curve is the number of neighbours of the second element per atom of the first and per Å.

    Arguments:
        reach: Å, largest distance.
        width: Å, of a bin.
    """

    def __init__(self, reach: float = 8.0, width: float = 0.05) -> None:
        self.reach = reach
        self.edges = np.linspace(0.0, reach, round(reach / width) + 1)
        self.last_step = -1
        self.n_added = 0
        self.normalised = True
        self._sums: dict[str, np.ndarray] = defaultdict(lambda: np.zeros(len(self.edges) - 1))

    @property
    def centres(self) -> np.ndarray:
        """[M] bin centres, Å."""
        return 0.5 * (self.edges[1:] + self.edges[:-1])

    def add(self, atoms: Atoms, step: int) -> None:
        """Count the pairs of one structure."""
        structure = Structure.from_ase(atoms)
        neighbours = neighbour_list(structure, self.reach)
        distances = pair_vectors(structure, neighbours).norm(dim=1).numpy()
        first, second = atoms.numbers[neighbours.i.numpy()], atoms.numbers[neighbours.j.numpy()]
        self.normalised = bool(atoms.pbc.all())
        shells = 4.0 / 3.0 * np.pi * np.diff(self.edges**3)
        for a, b in combinations_with_replacement(np.unique(atoms.numbers).tolist(), 2):
            counts, _ = np.histogram(distances[(first == a) & (second == b)], self.edges)
            per_atom = counts / np.count_nonzero(atoms.numbers == a)
            if self.normalised:
                density = np.count_nonzero(atoms.numbers == b) / atoms.get_volume()
                curve = per_atom / (shells * density)
            else:
                curve = per_atom / np.diff(self.edges)
            self._sums[f"{chemical_symbols[a]}-{chemical_symbols[b]}"] += curve
        self.n_added += 1
        self.last_step = step

    def curves(self) -> dict[str, np.ndarray]:
        """[M] mean curve by pair of elements; empty if nothing was added."""
        return {pair: total / self.n_added for pair, total in self._sums.items()}
