r"""A committee of potentials: the mean of its members drives the atoms, their spread says how far to trust it.

    F = 1/M sum_m F_m,   s_i = sqrt(1/M sum_m |F_m,i - F_i|²),   s_E = sqrt(1/M sum_m (E_m - E)²) / N

Members share one neighbour list.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from snnp.errors import InputError
from snnp.models.ensemble import Ensemble
from snnp.models.potential import Potential
from snnp.models.session import Evaluation, Session

__all__ = ["Committee", "Spread"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Spread:
    """How far the members of a committee disagree about one structure; zero means agreement, not truth.

    Arguments:
        energy: eV/atom, standard deviation of the members' energies per atom.
        energies: [N] eV, standard deviation of the members' energies of each atom.
        forces: [N] eV/Å, root mean square over the members of `|F_m - F|` on each atom.
    """

    energy: float
    energies: Array
    forces: Array

    @property
    def mean_force(self) -> float:
        """eV/Å, mean over the atoms; 0 without atoms."""
        return float(self.forces.mean()) if len(self.forces) else 0.0

    @property
    def largest_force(self) -> float:
        """eV/Å, of the atom about which the members disagree most; 0 without atoms."""
        return float(self.forces.max(initial=0.0))

    @staticmethod
    def of(energies: Array, forces: Array) -> Spread:
        """From what the members say: energies [M, N] eV and forces [M, N, 3] eV/Å."""
        total = energies.sum(axis=1) / max(energies.shape[1], 1)
        apart = ((forces - forces.mean(axis=0)) ** 2).sum(axis=2).mean(axis=0)
        return Spread(float(total.std()), energies.std(axis=0), np.sqrt(apart))


class Committee:
    """Evaluates several potentials for atoms that move a little from call to call; see `Session` for what is kept.

    Arguments:
        potentials: a list of potentials, or an ensemble. skin: Å, how much farther than the cutoff the list reaches.

    Raises:
        InputError: for fewer than two members, or members of different elements.

    Example:
        >>> from ase.build import bulk
        >>> from snnp.models import SplineNNP, special_cases
        >>> pair = Committee([SplineNNP(special_cases.eam(("Cu",)), seed=seed) for seed in (0, 1)])
        >>> copper = bulk("Cu") * (2, 1, 1)
        >>> evaluation, spread = pair.evaluate(copper.numbers, copper.positions, copper.cell.array, copper.pbc)
        >>> evaluation.forces.shape, spread.forces.shape
        ((2, 3), (2,))
    """

    def __init__(self, potentials: Sequence[Potential] | Potential, skin: float = 1.0) -> None:
        members = [potentials] if isinstance(potentials, Potential) else list(potentials)
        if isinstance(potentials, Ensemble):
            members = list(potentials.potentials)
        if len(members) < 2:
            raise InputError(
                f"a committee needs at least 2 potentials to disagree, got {len(members)}; give a list of them, or an "
                "ensemble."
            )
        for k, member in enumerate(members):
            if set(member.elements) != set(members[0].elements):
                raise InputError(
                    f"member {k} of the committee knows {', '.join(member.elements)}, member 0 "
                    f"{', '.join(members[0].elements)}; give members of the same elements."
                )
        self.potentials, self.skin = tuple(members), float(skin)
        farthest = max(members, key=lambda member: member.cutoff)
        owner = Session(farthest, skin)
        self._sessions = [owner if each is farthest else Session(each, skin, owner) for each in members]
        self._owner = owner

    def forget(self) -> None:
        """Drop the neighbour list, so that the next call does not depend on the ones before."""
        for session in self._sessions:
            session.forget()

    @property
    def n_neighbour_builds(self) -> int:
        """How often a neighbour list was built."""
        return self._owner.n_neighbour_builds

    def evaluate(
        self, numbers: NDArray[np.int64], positions: Array, cell: Array, pbc: NDArray[np.bool_], *, stress: bool = False
    ) -> tuple[Evaluation, Spread]:
        """What the mean of the members says, and how far they disagree.

        Arguments:
            numbers: [N] atomic numbers; positions: [N, 3] Å; cell: [3, 3] Å, rows are lattice vectors; pbc: [3].

        Raises:
            UnknownElementError: for an element that the members do not know.
            InputError: for NaN positions, a flat cell, or atoms closer than 0.1 Å.
        """
        each = [session.evaluate(numbers, positions, cell, pbc, stress=stress) for session in self._sessions]
        energies = np.stack([one.energies for one in each])
        forces = np.stack([one.forces for one in each])
        tensors = [one.stress for one in each if one.stress is not None]
        tensor = np.mean(tensors, axis=0) if len(tensors) == len(each) else None
        mean = Evaluation(
            float(np.mean([one.energy for one in each])), energies.mean(axis=0), forces.mean(axis=0), tensor
        )
        return mean, Spread.of(energies, forces)
