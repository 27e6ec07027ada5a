"""The contract of a potential: per-atom energies; forces and stress follow in one shared place.

A family implements `atomic_energies`, differentiable in the pair vectors. Energies, forces and stress follow here by
automatic differentiation; a family with analytic forces overrides `_energies_and_pair_gradients`. To what the family
says this adds, for all of them alike,

    E_i = E0[z_i] + (E_family,i - E_family[z_i alone]) + 1/2 sum_j repulsion(r_ij)

where the term of the atom alone is taken off only if E0 is the energy of an isolated atom (`isolated_atoms`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from ase.data import atomic_numbers, chemical_symbols
from numpy.typing import NDArray
from pydantic import BaseModel
from torch import Tensor

from snnp.errors import InputError, UnknownElementError
from snnp.exact import ExactModule
from snnp.models.config import RepulsionConfig
from snnp.models.gradients import PairGradients, join_gradients, stress_of, sum_forces, sum_virial
from snnp.models.repulsion import Repulsion
from snnp.neighbours import Neighbours, neighbour_list, pair_vectors
from snnp.structure import Structure, StructureLike, as_structure

__all__ = ["Evaluated", "Evaluator", "Potential", "Prediction", "Stepper", "versions"]

_Array = NDArray[np.float64]


def versions(tensors: Sequence[Tensor]) -> tuple[tuple[int, int], ...]:
    """What changes when a tensor does: all of torch's own ways to change one advance its counter or its place."""
    return tuple([(tensor._version, tensor.data_ptr()) for tensor in tensors])


@dataclass(frozen=True)
class Prediction:
    """What a potential says about a batch of B structures with N atoms.

    Arguments:
        energy: [B] float64, eV.
        energies: [N] float64, eV, one per atom.
        forces: [N, 3], eV/Å, or None if not asked for.
        stress: [B, 3, 3], eV/Å³, `dE/dstrain / V` (ASE's sign), zeros for structures that are not fully periodic;
            None if not asked for.
        energy_std: [B] float64, eV, spread of the members of an ensemble; None from a single potential.
        forces_std: [N, 3], eV/Å, spread of the members' forces; None from a single potential, or if not asked for.
    """

    energy: Tensor
    energies: Tensor
    forces: Tensor | None
    stress: Tensor | None
    energy_std: Tensor | None = None
    forces_std: Tensor | None = None


@dataclass(frozen=True)
class Evaluated:
    """energies [N] in eV with E0 and virial [B, 3, 3] in eV (sum of r_ij (x) dE/dr_ij), float64; forces [N, 3] in eV/Å.

    Forces and virial are None where they were not asked for.
    """

    energies: Tensor
    forces: Tensor | None
    virial: Tensor | None


class Evaluator(Protocol):
    """A family's own code for the present parameters of a potential, in place of torch; later changes do not reach it.

    Attributes:
        kernel: what a simulation that runs on the device as a whole is made of. target: what the code is built for.
        stepper: makes, from cutoff and skin (Å), what evaluates one moving system; None where `evaluate` is as good.
    """

    kernel: Any
    target: str | None
    stepper: Callable[[float, float], Stepper] | None

    def evaluate(self, structure: Structure, species: Tensor, neighbours: Neighbours, *, forces: bool) -> Evaluated:
        """Evaluate a batch on the device where it lies; `species` [N] index the potential's elements.

        Raises `InputError` for NaN positions, or atoms closer than 0.1 Å.
        """


class Stepper(Protocol):
    """Evaluates one system whose atoms move a little from call to call; threads may share it."""

    @property
    def n_builds(self) -> int:
        """How often a neighbour list was built."""

    def __call__(
        self,
        evaluator: Evaluator,
        species: NDArray[np.int32],
        positions: _Array,
        cell: _Array,
        pbc: tuple[bool, bool, bool],
    ) -> tuple[_Array, _Array, _Array]:
        """Energies [N], forces [N, 3], virial [3, 3] as in `Evaluated`, from the evaluator of the present parameters.

        `species` [N] are the same object while atoms stay the same; positions [N, 3] are contiguous.
        """


class Potential(ExactModule, ABC):
    """Base of all potentials.

    Arguments:
        elements: chemical symbols that the potential knows.
        reference_energies: E0 in eV per element, added to the energy of each atom.
        cutoff: Å, the largest distance at which atoms act on each other.

    A family that is to be stored sets `config`, which fixes its form, and has a line in `snnp.models.families`. `name`:
    under which it was loaded, for reports; empty for one made in memory.
    """

    config: BaseModel
    name: str = ""

    def __init__(self, elements: tuple[str, ...], reference_energies: dict[str, float], cutoff: float) -> None:
        super().__init__()
        unknown = [symbol for symbol in elements if symbol not in atomic_numbers]
        if unknown or not elements or len(set(elements)) != len(elements):
            raise InputError(f"elements must be distinct chemical symbols, got {list(elements)}.")
        self.elements = tuple(elements)
        self.cutoff = float(cutoff)
        self.metadata: dict[str, Any] = {}
        species = torch.full((len(chemical_symbols),), -1, dtype=torch.int64)
        species[[atomic_numbers[symbol] for symbol in elements]] = torch.arange(len(elements))
        self.register_buffer("species_of_number", species, persistent=False)
        e0 = [float(reference_energies.get(symbol, 0.0)) for symbol in elements]
        # Kept out of `_apply`'s float casts: a float32 E0 of -2000 eV would cost 0.1 meV.
        self._reference = torch.tensor(e0, dtype=torch.float64)
        self._isolated: tuple[str, ...] = ()
        self._alone: tuple[list[Tensor], tuple[tuple[int, int], ...], Tensor] | None = None

    species_of_number: Tensor

    @property
    def dtype(self) -> torch.dtype:
        """Type in which the potential computes."""
        return next(self.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Where the parameters live."""
        return next(self.parameters()).device

    @property
    def n_parameters(self) -> int:
        """Number of trainable parameters."""
        return sum(p.numel() for p in self.parameters())

    @property
    def reference_energies(self) -> dict[str, float]:
        """E0 in eV per element."""
        return dict(zip(self.elements, self._reference.tolist(), strict=True))

    @reference_energies.setter
    def reference_energies(self, values: dict[str, float]) -> None:
        self._set_reference_energies(values)

    def _set_reference_energies(self, values: dict[str, float]) -> None:
        self._reference = torch.tensor([float(values[symbol]) for symbol in self.elements], dtype=torch.float64)

    @property
    def isolated_atoms(self) -> tuple[str, ...]:
        """Elements whose E0 is the energy of an isolated atom, which the potential then gives exactly.

        Setting it to symbols outside `elements` raises `InputError`.
        """
        return self._isolated

    @isolated_atoms.setter
    def isolated_atoms(self, symbols: Collection[str]) -> None:
        if unknown := [symbol for symbol in symbols if symbol not in self.elements]:
            raise InputError(f"isolated_atoms must be among {', '.join(self.elements)}, got {unknown[0]!r}.")
        self._isolated, self._alone = tuple(symbol for symbol in self.elements if symbol in symbols), None

    @property
    def repulsion(self) -> RepulsionConfig | None:
        """The fixed short-range repulsion, or None."""
        found = getattr(getattr(self, "config", None), "repulsion", None)
        return found if isinstance(found, RepulsionConfig) else None

    def species(self, structure: Structure) -> Tensor:
        """[N] index of each atom's element in `elements`.

        Raises `UnknownElementError`, which names the first element that the potential does not know.
        """
        species = self.species_of_number[structure.numbers]
        if structure.n_atoms and int(species.min()) < 0:
            self.check_elements(structure.numbers.cpu().numpy())
        return species

    def check_elements(self, numbers: np.ndarray, where: str = "the structure") -> None:
        """Raise `UnknownElementError` for the first of the atomic numbers [N] that the potential does not know."""
        for number in numbers.tolist():
            symbol = chemical_symbols[number] if 0 < number < len(chemical_symbols) else f"atomic number {number}"
            if symbol not in self.elements:
                raise UnknownElementError(
                    f"this model knows {', '.join(self.elements)} but {where} holds {symbol}; "
                    f"use a model trained with {symbol}, or remove these atoms."
                )

    @abstractmethod
    def atomic_energies(self, structure: Structure, vectors: Tensor, neighbours: Neighbours) -> Tensor:
        """[N] energies in eV that the family gives, without E0 and repulsion.

        Differentiable in the pair vectors [P, 3] and in the parameters.
        """

    def standardise(self, features: Callable[[], Tensor]) -> None:
        """Before training: fit what the family scales its inputs by; most families have nothing to fit.

        `features`: computes them for all atoms of the training set [n, D], of the present parameters.
        """

    def interaction_energies(self, structure: Structure, vectors: Tensor, neighbours: Neighbours) -> Tensor:
        """[N] energies in eV without E0, and nothing else left out; differentiable like `atomic_energies`."""
        energies = self.atomic_energies(structure, vectors, neighbours)
        if self.repulsion is not None:
            energies = energies + self.repulsion_energies(structure, vectors, neighbours)[0]
        return self.above_isolated(energies, self.species(structure))

    def energies_and_penalty(
        self, structure: Structure, vectors: Tensor, neighbours: Neighbours
    ) -> tuple[Tensor, Tensor | None]:
        """Energies [N] in eV without E0 and repulsion, and what the family wants small in training [N], if anything."""
        energies = self.atomic_energies(structure, vectors, neighbours)
        return self.above_isolated(energies, self.species(structure)), None

    def above_isolated(self, energies: Tensor, species: Tensor) -> Tensor:
        """Energies [N] of the family less those of the same atoms alone; see `isolated_energies`."""
        return energies - self.isolated_energies().to(energies)[species] if self._isolated else energies

    def isolated_energies(self) -> Tensor:
        """[Z] energies in eV that the family gives to atoms without neighbours; differentiable in the parameters.

        Zero for elements whose E0 is not the energy of an isolated atom.
        """
        chosen = torch.tensor([symbol in self._isolated for symbol in self.elements], device=self.device)
        return torch.where(chosen, self._energies_alone(), 0.0)

    def _energies_alone(self) -> Tensor:
        """[Z] of every element. A family may know a shorter way."""
        numbers = torch.tensor([atomic_numbers[symbol] for symbol in self.elements], device=self.device)
        zeros = torch.zeros(len(numbers), 3, 3, dtype=torch.float64, device=self.device)
        order = torch.arange(len(numbers), device=self.device)
        structure, none = Structure(numbers, zeros[:, 0], zeros, zeros[:, 0].bool(), order), numbers[:0]
        nobody = Neighbours(none, none, none.reshape(0, 3), self.cutoff)
        return self.atomic_energies(structure, self._vectors(structure, nobody), nobody)

    def energy_offsets(self) -> Tensor:
        """[Z] float64 in eV: what stands beside energies of the family and the repulsion, E0 less `isolated_energies`.

        Kept until a parameter changes.
        """
        if not self._isolated:
            return self._reference
        known = self._alone
        if known is None or known[1] != versions(known[0]):
            tensors = [*self.parameters(), *self.buffers()]
            with torch.no_grad():
                value = self.isolated_energies().double().cpu()
            self._alone = known = tensors, versions(tensors), value
        return self._reference - known[2]

    def repulsion_energies(
        self, structure: Structure, vectors: Tensor, neighbours: Neighbours
    ) -> tuple[Tensor, PairGradients]:
        """Energies [N] of the short-range repulsion in eV (half of each pair's), and its pair gradients.

        Energies are differentiable in the vectors [P, 3]. The potential must have a `repulsion`.
        """
        assert self.repulsion is not None
        potential = Repulsion(self.repulsion.inner, self.repulsion.outer)
        near = (vectors.detach().square().sum(dim=1) < potential.outer**2).nonzero()[:, 0]
        i, j, vectors = neighbours.i[near], neighbours.j[near], vectors[near]
        distance, charge = vectors.norm(dim=1), structure.numbers.to(vectors)
        halves, slopes = potential(distance, charge[i], charge[j])
        energies = torch.zeros_like(charge).index_add(0, i, halves)
        return energies, PairGradients(i, j, vectors, (slopes / distance)[:, None] * vectors)

    def evaluator(self) -> Evaluator | None:
        """The family's own code for the present parameters; None where torch computes (most families)."""
        return None

    def _energies_and_pair_gradients(
        self, structure: Structure, neighbours: Neighbours
    ) -> tuple[Tensor, PairGradients]:
        """`atomic_energies` and their pair gradients; by default through automatic differentiation."""
        vectors = self._vectors(structure, neighbours).detach().requires_grad_()
        with torch.enable_grad():
            energies = self.atomic_energies(structure, vectors, neighbours)
            # Zeros where no pair enters the energy (isolated atoms).
            (gradients,) = torch.autograd.grad(energies.sum(), vectors, allow_unused=True, materialize_grads=True)
        return energies.detach(), PairGradients(neighbours.i, neighbours.j, vectors.detach(), gradients)

    def compute(
        self,
        structure: StructureLike,
        neighbours: Neighbours | None = None,
        *,
        forces: bool = True,
        stress: bool = False,
    ) -> Prediction:
        """Energy, forces and stress for inference; no graph is kept.

        Arguments:
            structure: one structure or a batch, also as `ase.Atoms` or a list of them; positions in any float type
                (distances are formed in it, then cast to the model's type).
            neighbours: a list that reaches at least `cutoff`; built here if None.
            forces, stress: what to compute besides the energies.

        Raises `UnknownElementError` for an element outside `elements`, `InputError` for NaN positions, a flat cell,
        atoms closer than 0.1 Å, or a list that is too short.
        """
        structure = as_structure(structure).to(device=self.device)
        species = self.species(structure)
        if neighbours is None:
            neighbours = neighbour_list(structure, self.cutoff)
        elif neighbours.cutoff < self.cutoff - 1e-9:
            raise InputError(f"the neighbour list reaches {neighbours.cutoff} Å but the model needs {self.cutoff} Å.")
        return self._compute(structure, species, neighbours, forces=forces, stress=stress)

    @torch.no_grad()
    def _compute(
        self, structure: Structure, species: Tensor, neighbours: Neighbours, *, forces: bool, stress: bool
    ) -> Prediction:
        if (evaluator := self.evaluator()) is not None:
            found = evaluator.evaluate(structure, species, neighbours, forces=forces or stress)
            return self.prediction(structure, found, forces=forces, stress=stress)
        neighbours, pairs = neighbours.to(self.device), None
        if forces or stress:
            energies, pairs = self._energies_and_pair_gradients(structure, neighbours)
        else:
            energies = self.atomic_energies(structure, self._vectors(structure, neighbours), neighbours)
        return self._complete(structure, neighbours, energies, pairs, forces=forces, stress=stress)

    def _vectors(self, structure: Structure, neighbours: Neighbours) -> Tensor:
        """[P, 3] pair vectors in the potential's type."""
        return pair_vectors(structure, neighbours).to(self.dtype)

    def compute_each(
        self, potentials: Sequence[Potential], structure: Structure, neighbours: Neighbours, **wanted: bool
    ) -> list[Prediction]:
        """What each member of an ensemble says, which this one leads; a family may share work between its own.

        `wanted`: whether `forces` and `stress` are, and each `apart`; else those of their mean are as good.
        """
        wanted.pop("apart")
        return [each.compute(structure, neighbours, **wanted) for each in potentials]

    def _complete(
        self,
        structure: Structure,
        neighbours: Neighbours,
        energies: Tensor,
        pairs: PairGradients | None,
        *,
        forces: bool,
        stress: bool,
    ) -> Prediction:
        """Add what does not come from the family to its energies [N] and pair gradients, and sum these."""
        if self.repulsion is not None:
            extra, theirs = self.repulsion_energies(structure, self._vectors(structure, neighbours), neighbours)
            energies, pairs = energies + extra, None if pairs is None else join_gradients([pairs, theirs])
        energies = energies.double() + self.energy_offsets().to(self.device)[self.species(structure)]
        found = Evaluated(
            energies,
            sum_forces(pairs, structure.n_atoms) if pairs is not None and forces else None,
            sum_virial(pairs, structure) if pairs is not None and stress else None,
        )
        return self.prediction(structure, found, forces=forces, stress=stress)

    def prediction(self, structure: Structure, found: Evaluated, *, forces: bool, stress: bool) -> Prediction:
        total = torch.zeros(structure.n_structures, dtype=torch.float64, device=found.energies.device)
        total.index_add_(0, structure.structure_of_atom, found.energies)
        known = found.virial if stress else None
        return Prediction(
            energy=total,
            energies=found.energies,
            forces=found.forces.to(self.dtype) if forces and found.forces is not None else None,
            stress=None if known is None else stress_of(known, structure).to(self.dtype),
        )
