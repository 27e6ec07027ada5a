r"""Several potentials as one: the mean of their predictions, and their spread as a sign of uncertainty.

    E = 1/M sum_m E_m,   F = 1/M sum_m F_m,   energy_std = sqrt(1/M sum_m (E_m - E)²),   forces_std likewise

Members may be of any families and have different cutoffs and E0; they share their elements and one neighbour list.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from snnp.errors import InputError
from snnp.models.config import FormConfig
from snnp.models.heads import SharedFilters
from snnp.models.potential import Evaluator, Potential, Prediction
from snnp.neighbours import Neighbours
from snnp.structure import Structure

__all__ = ["Ensemble", "EnsembleConfig", "MemberConfig"]


class MemberConfig(FormConfig):
    """One member: its class (`family`), configuration, E0 (eV per element), and which E0 are isolated atoms'."""

    family: str
    config: dict[str, Any]
    reference_energies: dict[str, float]
    isolated_atoms: tuple[str, ...] = ()


class EnsembleConfig(FormConfig):
    """The members of an ensemble, in order; their weights lie under `members.0.`, `members.1.`, ... in one file."""

    elements: tuple[str, ...]
    members: tuple[MemberConfig, ...] = Field(min_length=1)


class Ensemble(Potential):
    """The mean of several potentials; `compute` also returns their spread: `energy_std` [B] and `forces_std` [N, 3].

    `potentials`: the members, of the same elements and float type; the ensemble keeps them, not copies. Raises
    `InputError` for no members, members of other elements or of another float type, or an ensemble among them.

    Example:
        >>> from ase.build import bulk
        >>> from snnp.models import SplineNNP, special_cases
        >>> two = Ensemble([SplineNNP(special_cases.eam(("Cu",)), seed=seed) for seed in (0, 1)])
        >>> two.compute(Structure.from_ase(bulk("Cu"))).forces_std.shape
        torch.Size([1, 3])
    """

    config: EnsembleConfig
    force_spread: bool = True
    """Whether `compute` returns `forces_std`. Without it ANI networks that share their vectors differentiate once."""

    def __init__(self, potentials: Sequence[Potential]) -> None:
        if not potentials:
            raise InputError("an ensemble needs at least one potential.")
        first = potentials[0]
        for k, member in enumerate(potentials):
            if isinstance(member, Ensemble):
                raise InputError(f"member {k} is itself an ensemble; give its members one by one.")
            if set(member.elements) != set(first.elements) or member.dtype != first.dtype:
                raise InputError(
                    f"member {k} knows {', '.join(member.elements)} in {member.dtype}, member 0 "
                    f"{', '.join(first.elements)} in {first.dtype}; all members need the same elements and float type."
                )
        energies = {s: sum(m.reference_energies[s] for m in potentials) / len(potentials) for s in first.elements}
        super().__init__(first.elements, energies, max(member.cutoff for member in potentials))
        self.members = nn.ModuleList(potentials)
        self._shared = SharedFilters()
        self._describe()
        if any(member.metadata for member in potentials):
            self.metadata = {"members": [member.metadata for member in potentials]}

    @property
    def potentials(self) -> tuple[Potential, ...]:
        return tuple(member for member in self.members if isinstance(member, Potential))

    def _describe(self) -> None:
        members = (
            MemberConfig(
                family=type(member).__name__,
                config=member.config.model_dump(mode="json"),
                reference_energies=member.reference_energies,
                isolated_atoms=member.isolated_atoms,
            )
            for member in self.potentials
        )
        self.config = EnsembleConfig(elements=self.elements, members=tuple(members))

    def _set_reference_energies(self, values: dict[str, float]) -> None:
        """Shifts every member by the same amount, so that the spread stays."""
        before = self.reference_energies
        for member in self.potentials:
            shifted = {s: e0 + (float(values[s]) - before[s]) for s, e0 in member.reference_energies.items()}
            member.reference_energies = shifted
        super()._set_reference_energies(values)
        self._describe()

    @property
    def isolated_atoms(self) -> tuple[str, ...]:
        """Elements whose E0 is that of an isolated atom in every member; setting it sets it in all of them."""
        return tuple(s for s in self.elements if all(s in member.isolated_atoms for member in self.potentials))

    @isolated_atoms.setter
    def isolated_atoms(self, symbols: Collection[str]) -> None:
        for member in self.potentials:
            member.isolated_atoms = symbols
        self._describe()

    def evaluator(self) -> Evaluator | None:
        """The compiled code of all members together where each has some (see `snnp.models.heads`), else None."""
        return self._shared.evaluator(self.potentials)

    def atomic_energies(self, structure: Structure, vectors: Tensor, neighbours: Neighbours) -> Tensor:
        """[N] mean of the members' energies, each without its E0."""
        each = [member.interaction_energies(structure, vectors, neighbours) for member in self.potentials]
        return torch.stack(each).mean(dim=0)

    def _compute(
        self, structure: Structure, species: Tensor, neighbours: Neighbours, *, forces: bool, stress: bool
    ) -> Prediction:
        wanted = {"forces": forces, "stress": stress, "apart": self.force_spread}
        shared = self._shared.predict(self.potentials, structure, neighbours, **wanted)
        each = shared or self.potentials[0].compute_each(self.potentials, structure, neighbours, **wanted)
        energy = torch.stack([prediction.energy for prediction in each])
        all_forces = torch.stack([p.forces for p in each if p.forces is not None]) if forces else None
        all_stress = torch.stack([p.stress for p in each if p.stress is not None]) if stress else None
        return Prediction(
            energy=energy.mean(dim=0),
            energies=torch.stack([prediction.energies for prediction in each]).mean(dim=0),
            forces=None if all_forces is None else all_forces.mean(dim=0),
            stress=None if all_stress is None else all_stress.mean(dim=0),
            energy_std=_spread(energy),
            forces_std=None if all_forces is None or not self.force_spread else _spread(all_forces),
        )


def _spread(members: Tensor) -> Tensor:
    """Standard deviation over the first axis; not `Tensor.std`, which warns where there are no atoms."""
    return (members - members.mean(dim=0)).square().mean(dim=0).sqrt()
