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
from snnp.models.heads import JointEvaluator, JointStepper, SharedFilters
from snnp.models.potential import Potential
from snnp.models.session import Evaluation, Session
from snnp.uncertainty.calibration import scales_of

__all__ = ["Committee", "Spread"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Spread:
    """How far the members of a committee disagree about one structure; zero means agreement, not truth.

    Arguments:
        energy: eV/atom, standard deviation of the members' energies per atom.
        energies: [N] eV, standard deviation of the members' energies of each atom.
        forces: [N] eV/Å, root mean square over the members of `|F_m - F|` on each atom; NaN where not asked for.
    """

    energy: float
    energies: Array
    forces: Array

    @property
    def mean_force(self) -> float:
        """eV/Å, mean over the atoms; 0 without atoms, NaN where forces were not asked for."""
        return float(self.forces.mean()) if len(self.forces) else 0.0

    @property
    def largest_force(self) -> float:
        """eV/Å, of the atom about which the members disagree most; as `mean_force`."""
        return float(self.forces.max(initial=0.0))

    @staticmethod
    def of(energies: Array, forces: Array | None) -> Spread:
        """From what the members say: energies [M, N] eV, and forces [M, N, 3] eV/Å if known."""
        total = energies.sum(axis=1) / max(energies.shape[1], 1)
        if forces is None:
            return Spread(float(total.std()), energies.std(axis=0), np.full(energies.shape[1], np.nan))
        apart = ((forces - forces.mean(axis=0)) ** 2).sum(axis=2).mean(axis=0)
        return Spread(float(total.std()), energies.std(axis=0), np.sqrt(apart))

    def scaled(self, scales: tuple[float, float]) -> Spread:
        """With energies and forces times these numbers: from disagreement to expected errors, where calibrated."""
        energy, force = scales
        return (
            self if scales == (1.0, 1.0) else Spread(energy * self.energy, energy * self.energies, force * self.forces)
        )


class Committee:
    """Evaluates several potentials for atoms that move a little from call to call; see `Session` for what is kept.

    Arguments:
        potentials: a list of potentials, or an ensemble. skin: Å, how much farther than the cutoff the list reaches.

    Raises:
        InputError: for fewer than two members, or members of different elements.

    Attributes:
        calibrated, scales: whether an ensemble states how its spread relates to errors (see
            `snnp.uncertainty.calibration`), and by what spreads of energies and forces are multiplied then.

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
        self._owner, self._shared = owner, SharedFilters()
        self._stepper: JointStepper | None = None
        known = scales_of(potentials.metadata) if isinstance(potentials, Ensemble) else None
        self.calibrated, self.scales = known is not None, known or (1.0, 1.0)

    def forget(self) -> None:
        """Drop the neighbour list, so that the next call does not depend on the ones before."""
        self._stepper = None
        for session in self._sessions:
            session.forget()

    @property
    def n_neighbour_builds(self) -> int:
        """How often a neighbour list was built."""
        return self._owner.n_neighbour_builds + (0 if self._stepper is None else self._stepper.n_builds)

    def evaluate(
        self,
        numbers: NDArray[np.int64],
        positions: Array,
        cell: Array,
        pbc: NDArray[np.bool_],
        *,
        stress: bool = False,
        force_spread: bool = True,
    ) -> tuple[Evaluation, Spread]:
        """What the mean of the members says, and how far they disagree.

        Arguments:
            numbers: [N] atomic numbers; positions: [N, 3] Å; cell: [3, 3] Å, rows are lattice vectors; pbc: [3].
            force_spread: whether the spread has forces. Of members that share their filters the mean and the spread of
                energies cost what one model costs; each member's forces take a way back through the filters.

        Raises:
            UnknownElementError: for an element that the members do not know.
            InputError: for NaN positions, a flat cell, or atoms closer than 0.1 Å.
        """
        if (heads := self._shared.evaluator(self.potentials)) is not None:
            return self._through_heads(heads, numbers, positions, cell, pbc, force_spread)
        each = [session.evaluate(numbers, positions, cell, pbc, stress=stress) for session in self._sessions]
        energies = np.stack([one.energies for one in each])
        forces = np.stack([one.forces for one in each])
        tensors = [one.stress for one in each if one.stress is not None]
        tensor = np.mean(tensors, axis=0) if len(tensors) == len(each) else None
        energy = float(np.mean([one.energy for one in each]))
        mean = Evaluation(energy, energies.mean(axis=0), forces.mean(axis=0), tensor)
        return mean, Spread.of(energies, forces if force_spread else None).scaled(self.scales)

    def _through_heads(
        self,
        heads: JointEvaluator,
        numbers: NDArray[np.int64],
        positions: Array,
        cell: Array,
        pbc: NDArray[np.bool_],
        each: bool,
    ) -> tuple[Evaluation, Spread]:
        if self._stepper is None:
            self._stepper = JointStepper(self._owner.potential.cutoff, self.skin)
        species, periodic = self._owner.species(numbers), (bool(pbc[0]), bool(pbc[1]), bool(pbc[2]))
        positions = np.ascontiguousarray(positions, dtype=np.float64)
        cell = np.ascontiguousarray(cell, dtype=np.float64)
        found = self._stepper.evaluate(heads, species, positions, cell, periodic, each=each)
        energies, forces, virial, apart = found
        stress = 0.5 * (virial + virial.T) / abs(np.linalg.det(cell)) if all(periodic) else None
        mean = energies.mean(axis=0)
        whole = Evaluation(float(mean.sum()), mean, forces, stress)
        return whole, Spread.of(energies, apart).scaled(self.scales)
