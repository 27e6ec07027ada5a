"""The contract checks pass a sound potential of any family and find what is broken."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import snnp.testing
from snnp.errors import InputError
from snnp.models import Potential, Prediction, SplineNNP
from snnp.models.gradients import PairGradients
from snnp.models.spline import special_cases
from snnp.neighbours import Neighbours
from snnp.structure import Structure
from snnp.testing import CHECKS, ContractError, check_potential, example_structures

NOT_AN_SNNP = ("save_load", "export")


class Pair(Potential):
    """A smooth pair potential of two elements, outside the s-NNP family: forces come from automatic differentiation."""

    def __init__(self) -> None:
        super().__init__(("Ar", "Ne"), {"Ar": -2.0, "Ne": -1.0}, cutoff=5.0)
        self.strength = nn.Parameter(torch.tensor([1.0, 0.6], dtype=torch.float64))

    def pair_energies(self, r: Tensor) -> Tensor:
        """Half the energy of pairs at distances r."""
        return 0.5 * torch.exp(-r) * (1.0 - (r / self.cutoff).clamp(max=1.0) ** 2) ** 3

    def atomic_energies(self, structure: Structure, vectors: Tensor, neighbours: Neighbours) -> Tensor:
        species = self.species(structure)
        weight = self.strength[species[neighbours.i]] * self.strength[species[neighbours.j]]
        each = weight * self.pair_energies(vectors.norm(dim=1))
        return torch.zeros(structure.n_atoms, dtype=each.dtype).index_add(0, neighbours.i, each)


class WrongForceSign(Pair):
    def _energies_and_pair_gradients(
        self, structure: Structure, neighbours: Neighbours
    ) -> tuple[Tensor, PairGradients]:
        energies, pairs = super()._energies_and_pair_gradients(structure, neighbours)
        return energies, replace(pairs, gradients=-pairs.gradients)


class ForcesOffByLittle(Pair):
    def _energies_and_pair_gradients(
        self, structure: Structure, neighbours: Neighbours
    ) -> tuple[Tensor, PairGradients]:
        energies, pairs = super()._energies_and_pair_gradients(structure, neighbours)
        return energies, replace(pairs, gradients=pairs.gradients * (1.0 + 1e-7))


class WrongStress(Pair):
    def _energies_and_pair_gradients(
        self, structure: Structure, neighbours: Neighbours
    ) -> tuple[Tensor, PairGradients]:
        energies, pairs = super()._energies_and_pair_gradients(structure, neighbours)
        return energies, replace(pairs, vectors=2.0 * pairs.vectors)


class Truncated(Pair):
    def pair_energies(self, r: Tensor) -> Tensor:
        return torch.exp(-r) * (r < self.cutoff)


class KinkInside(Pair):
    def pair_energies(self, r: Tensor) -> Tensor:
        return super().pair_energies(r) * (1.0 + 1e-2 * (r - 3.1).abs())


class PrefersX(Pair):
    def atomic_energies(self, structure: Structure, vectors: Tensor, neighbours: Neighbours) -> Tensor:
        return super().atomic_energies(structure, vectors * vectors.new_tensor([1.01, 1.0, 1.0]), neighbours)


class Handed(Pair):
    def atomic_energies(self, structure: Structure, vectors: Tensor, neighbours: Neighbours) -> Tensor:
        energies = super().atomic_energies(structure, vectors, neighbours)
        if neighbours.n_pairs < 3:
            return energies
        volume = torch.linalg.det(vectors[:3])
        return energies + torch.nn.functional.one_hot(neighbours.i[0], structure.n_atoms) * 1e-3 * volume


class CountsByIndex(Pair):
    def atomic_energies(self, structure: Structure, vectors: Tensor, neighbours: Neighbours) -> Tensor:
        return super().atomic_energies(structure, vectors, neighbours) * torch.arange(1, structure.n_atoms + 1)


class KnowsWhereItIs(Pair):
    def atomic_energies(self, structure: Structure, vectors: Tensor, neighbours: Neighbours) -> Tensor:
        energies = super().atomic_energies(structure, vectors, neighbours)
        return energies + 1e-4 * structure.positions.sum(dim=1).to(energies.dtype)


class SeesTheCell(Pair):
    def atomic_energies(self, structure: Structure, vectors: Tensor, neighbours: Neighbours) -> Tensor:
        energies = super().atomic_energies(structure, vectors, neighbours)
        shifts = neighbours.shift.square().sum(dim=1).to(energies.dtype)
        near = vectors.norm(dim=1) < self.cutoff
        return energies.index_add(0, neighbours.i, 1e-4 * shifts * near)


class MixesTheBatch(Pair):
    def atomic_energies(self, structure: Structure, vectors: Tensor, neighbours: Neighbours) -> Tensor:
        energies = super().atomic_energies(structure, vectors, neighbours)
        return energies + energies.mean()


class NotExtensive(Pair):
    def atomic_energies(self, structure: Structure, vectors: Tensor, neighbours: Neighbours) -> Tensor:
        counts = structure.atoms_per_structure[structure.structure_of_atom]
        return super().atomic_energies(structure, vectors, neighbours) / counts


class LonelyAtomsDiffer(Pair):
    def atomic_energies(self, structure: Structure, vectors: Tensor, neighbours: Neighbours) -> Tensor:
        energies = super().atomic_energies(structure, vectors, neighbours)
        return energies + 1e-3 * (structure.pbc.any(dim=1)[structure.structure_of_atom])


class IgnoresStrangers(Pair):
    def species(self, structure: Structure) -> Tensor:
        return self.species_of_number[structure.numbers].clamp_min(0)


class CountsTheList(Pair):
    def atomic_energies(self, structure: Structure, vectors: Tensor, neighbours: Neighbours) -> Tensor:
        ones = torch.ones_like(vectors[:, 0])
        return super().atomic_energies(structure, vectors, neighbours).index_add(0, neighbours.i, 1e-3 * ones)


class Cancels(Pair):
    def atomic_energies(self, structure: Structure, vectors: Tensor, neighbours: Neighbours) -> Tensor:
        return (super().atomic_energies(structure, vectors, neighbours) + 1e6) - 1e6


class _Retold(Pair):
    """A pair potential that changes what it computed before it hands it over."""

    def compute(self, *arguments: Any, **options: Any) -> Prediction:
        return self.retell(super().compute(*arguments, **options))

    def retell(self, result: Prediction) -> Prediction:
        raise NotImplementedError


class TotalIsNotTheSum(_Retold):
    def retell(self, result: Prediction) -> Prediction:
        return replace(result, energy=result.energy + 1e-6)


class LosesTheBatchAxis(_Retold):
    def retell(self, result: Prediction) -> Prediction:
        return replace(result, energy=result.energy.sum())


class NotANumber(_Retold):
    def retell(self, result: Prediction) -> Prediction:
        return replace(result, energies=result.energies * float("nan"))


FOUND_BY: list[tuple[Callable[[], Potential], str, str]] = [
    (WrongForceSign, "forces", "finite differences differ by"),
    (WrongForceSign, "analytic_gradients", "autograd"),
    (ForcesOffByLittle, "analytic_gradients", "autograd"),
    (WrongStress, "stress", "stress .* differ by"),
    (Truncated, "smoothness", "jump by .* Å"),
    (KinkInside, "smoothness", r"jump by .* at \d\.\d+ Å"),
    (PrefersX, "rotation", "differ by"),
    (Handed, "rotation", "differ by"),
    (CountsByIndex, "permutation", "energies per atom .* differ by"),
    (KnowsWhereItIs, "translation", "energies per atom .* differ by"),
    (SeesTheCell, "periodicity", "differ by"),
    (MixesTheBatch, "batch", "energies per atom .* differ by"),
    (NotExtensive, "extensivity", "energies per atom .* differ by"),
    (LonelyAtomsDiffer, "isolated_atoms", r"one atom in a box\): energies .* differ by 0.001"),
    (IgnoresStrangers, "unknown_element", "a structure with H was computed"),
    (CountsTheList, "longer_list", "differ by"),
    (Cancels, "precision", "float32 differ by"),
    (TotalIsNotTheSum, "conservation", "sum over atoms differ by 1e-06"),
    (LosesTheBatchAxis, "empty", r"energy has shape \(\), expected \(0,\)"),
    (NotANumber, "permutation", "not finite"),
]


def test_a_sound_potential_of_another_family_passes() -> None:
    check_potential(Pair(), skip=NOT_AN_SNNP)


@pytest.mark.parametrize("broken, check, words", FOUND_BY)
def test_broken_potential_is_found(broken: Callable[[], Potential], check: str, words: str) -> None:
    with pytest.raises(ContractError, match=words):
        CHECKS[check](broken(), None)


def test_every_check_finds_something() -> None:
    tested = {check for _, check, _ in FOUND_BY} | {"save_load", "export"}
    assert tested == set(CHECKS)


def _small() -> SplineNNP:
    return SplineNNP(special_cases.s_nnp(("Si",), n_radial=2, n_angular=2, hidden=(4,)), {"Si": -4.0})


def test_save_and_load_finds_what_does_not_come_back() -> None:
    model = _small()
    model.metadata = {"range": (1, 2)}  # JSON has no tuples
    with pytest.raises(ContractError, match="metadata"):
        CHECKS["save_load"](model, None)


class Doubled(SplineNNP):
    """Differs from the s-NNP that the export writes."""

    def _energies_and_pair_gradients(
        self, structure: Structure, neighbours: Neighbours
    ) -> tuple[Tensor, PairGradients]:
        energies, pairs = super()._energies_and_pair_gradients(structure, neighbours)
        return 2.0 * energies, replace(pairs, gradients=2.0 * pairs.gradients)


def test_export_finds_a_difference() -> None:
    with pytest.raises(ContractError, match=r"export: energies .* differ by"):
        CHECKS["export"](Doubled(_small().config), None)


def test_structures_can_be_given() -> None:
    model = Pair()
    mine = example_structures(model, seed=7)[:2]
    check_potential(model, mine, skip=NOT_AN_SNNP)


def test_given_structures_are_used() -> None:
    """A potential that is wrong in periodic structures only passes on clusters."""
    model = SeesTheCell()
    clusters = [s for s in example_structures(model) if not bool(s.pbc.any())]
    CHECKS["extensivity"](model, clusters)
    with pytest.raises(ContractError):
        CHECKS["extensivity"](model, example_structures(model))


def test_unknown_name_of_a_check() -> None:
    with pytest.raises(InputError, match="Did you mean 'rotation'"):
        check_potential(Pair(), skip=["rotations"])


def test_every_check_is_public() -> None:
    names = {f"check_{name}" for name in CHECKS}
    assert names <= set(snnp.testing.__all__)
    assert all(CHECKS[name] is getattr(snnp.testing, f"check_{name}") for name in CHECKS)


def test_example_structures_cover_the_cases() -> None:
    structures = example_structures(_small())
    directions = {int(s.pbc.sum()) for s in structures}
    assert directions == {0, 1, 2, 3}
    assert any(bool(s.pbc.all()) and float(s.cell[0].norm(dim=1).min()) < 5.0 for s in structures)
    repeated = example_structures(_small())
    assert all(torch.equal(a.positions, b.positions) for a, b in zip(structures, repeated, strict=True))
