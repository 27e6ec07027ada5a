"""Crystal properties: published results of known potentials, and elastic constants from energies alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from snnp.analysis.properties import GROUND_STATES, REFERENCES, cubic_properties, model_properties
from snnp.errors import InputError, UnknownElementError
from snnp.models.potential import Potential
from snnp.neighbours import Neighbours
from snnp.structure import Structure
from snnp.units import EV_PER_ANGSTROM3_IN_GPA


class Morse(Potential):
    """Pair potential D (x² - 2x), x = exp(-alpha (r - r0)), smoothly cut off."""

    def __init__(self, element: str, depth: float, alpha: float, r0: float, cutoff: float = 7.0) -> None:
        super().__init__((element,), {element: -1.5}, cutoff)
        self.depth = torch.nn.Parameter(torch.tensor(depth, dtype=torch.float64))
        self.alpha, self.r0 = alpha, r0

    def atomic_energies(self, structure: Structure, vectors: Tensor, neighbours: Neighbours) -> Tensor:
        r = vectors.norm(dim=1)
        x = torch.exp(-self.alpha * (r - self.r0))
        smooth = (1.0 - (r / self.cutoff).clamp(max=1.0) ** 2) ** 3
        pair = 0.5 * self.depth * (x * x - 2.0 * x) * smooth
        return torch.zeros(structure.n_atoms, dtype=pair.dtype).index_add(0, neighbours.i, pair)


class StillingerWeber(Potential):
    """Silicon, Phys. Rev. B 31, 5262 (1985); `epsilon` as in Balamane et al., Phys. Rev. B 46, 2250 (1992)."""

    def __init__(self, epsilon: float = 2.315, tetrahedral: float = 21.0) -> None:
        super().__init__(("Si",), {}, 1.8 * 2.0951)
        self.epsilon = torch.nn.Parameter(torch.tensor(epsilon, dtype=torch.float64))
        self.tetrahedral = tetrahedral

    def atomic_energies(self, structure: Structure, vectors: Tensor, neighbours: Neighbours) -> Tensor:
        inside = vectors.norm(dim=1) < self.cutoff - 1e-6
        vectors, centre = vectors[inside], neighbours.i[inside]
        r = vectors.norm(dim=1) / 2.0951
        tail = 1.0 / (r - 1.8)
        pair = 0.5 * 7.049556277 * (0.6022245584 * r**-4 - 1.0) * torch.exp(tail)
        energies = torch.zeros(structure.n_atoms, dtype=pair.dtype).index_add(0, centre, pair)
        j, k = torch.nonzero(torch.triu(centre[:, None] == centre[None, :], diagonal=1), as_tuple=True)
        cosine = (vectors[j] * vectors[k]).sum(dim=1) / (vectors[j].norm(dim=1) * vectors[k].norm(dim=1))
        bend = self.tetrahedral * (cosine + 1.0 / 3.0) ** 2 * torch.exp(1.2 * (tail[j] + tail[k]))
        return self.epsilon * energies.index_add(0, centre[j], bend)


@pytest.fixture(scope="module")
def copper() -> Morse:
    return Morse("Cu", depth=0.3429, alpha=1.3588, r0=2.866)


def test_stillinger_weber_silicon_has_its_published_properties() -> None:
    model = StillingerWeber()
    model.isolated_atoms = ("Si",)
    found = cubic_properties(model, "Si")
    # Balamane, Halicioglu, Tiller, Phys. Rev. B 46, 2250 (1992), tables of the SW potential.
    assert found.structure == "diamond"
    assert found.lattice_constant == pytest.approx(5.431, abs=0.001)
    assert found.cohesive_energy == pytest.approx(4.63, abs=0.005)
    assert found.c11 == pytest.approx(161.6, rel=0.01)
    assert found.c12 == pytest.approx(81.6, rel=0.01)
    assert found.c44 == pytest.approx(60.3, rel=0.01), "117.2 GPa would be the value without internal relaxation"
    assert found.bulk_modulus == pytest.approx(108.3, rel=0.01)


@pytest.mark.parametrize("structure", ["fcc", "bcc"])
def test_pair_potential_obeys_cauchy(copper: Morse, structure: str) -> None:
    # In a crystal of inversion centres held by pair forces alone, at zero pressure, C12 = C44.
    found = cubic_properties(copper, "Cu", structure)
    assert found.c12 == pytest.approx(found.c44, rel=1e-4)
    assert found.c11 > 0


def _energy_per_volume(model: Potential, a: float, strain: np.ndarray) -> float:
    """GPa; fcc conventional cell built by hand, energy only: nothing shared with the code under test but the model."""
    basis = torch.tensor([[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]], dtype=torch.float64)
    cell = a * (torch.eye(3, dtype=torch.float64) + torch.from_numpy(strain))
    zeros = torch.zeros(4, dtype=torch.int64)
    cells = Structure(zeros + 29, basis @ cell, cell[None], torch.ones(1, 3, dtype=torch.bool), zeros)
    return float(model.compute(cells, forces=False).energy[0]) / a**3 * EV_PER_ANGSTROM3_IN_GPA


def test_elastic_constants_are_second_derivatives_of_the_energy(copper: Morse) -> None:
    found = cubic_properties(copper, "Cu")
    a, h = found.lattice_constant, 2e-3

    def curvature(strain: np.ndarray) -> float:
        plus, none, minus = (_energy_per_volume(copper, a, x * strain) for x in (h, 0.0, -h))
        return (plus - 2.0 * none + minus) / h**2

    shear = np.zeros((3, 3))
    shear[0, 1] = shear[1, 0] = 0.5
    tetragonal = np.diag([1.0, -1.0, 0.0])
    assert curvature(np.diag([1.0, 0.0, 0.0])) == pytest.approx(found.c11, rel=1e-3)
    assert curvature(shear) == pytest.approx(found.c44, rel=1e-3)
    assert 0.5 * curvature(tetragonal) == pytest.approx(found.c11 - found.c12, rel=1e-3)
    assert curvature(np.eye(3)) / 9.0 == pytest.approx(found.bulk_modulus, rel=1e-3)


def test_lattice_constant_is_the_minimum_of_the_energy(copper: Morse) -> None:
    found = cubic_properties(copper, "Cu", guess=3.2)
    a = found.lattice_constant
    here, *beside = (_energy_per_volume(copper, x, np.zeros((3, 3))) * x**3 for x in (a, a - 0.01, a + 0.01))
    assert here < min(beside)
    assert found.cohesive_energy is None, "E0 is not said to be that of an isolated atom"
    assert found.to_dict()["cohesive_energy_ev_per_atom"] is None
    assert cubic_properties(copper, "Cu", guess=4.2).lattice_constant == pytest.approx(a, abs=1e-8)


def test_float32_model_gives_the_same_and_stays_float32() -> None:
    model = Morse("Cu", 0.3429, 1.3588, 2.866).float()
    found = cubic_properties(model, "Cu")
    assert model.dtype == torch.float32
    assert found.c44 == pytest.approx(cubic_properties(Morse("Cu", 0.3429, 1.3588, 2.866), "Cu").c44, rel=1e-5)


def test_model_properties_and_their_json(copper: Morse) -> None:
    (found,) = model_properties(copper)
    values = found.to_dict()
    assert values["c11_gpa"] == found.c11
    assert values["references"]["experiment"]["c11_gpa"] == 168.4
    assert values["references"]["experiment"]["bulk_modulus_gpa"] == pytest.approx(137.1, abs=0.1)
    assert "Zuo" in values["references"]["DFT"]["source"]
    assert cubic_properties(copper, "Cu", "bcc").to_dict()["references"] == {}
    assert model_properties(Morse("C", 3.0, 1.9, 1.4)) == [], "a model of molecules is not asked for crystals"


def test_published_values_are_mechanically_stable_and_sourced() -> None:
    for element, sets in REFERENCES.items():
        assert element in GROUND_STATES
        for values in sets.values():
            assert values["source"]
            assert values["c11_gpa"] > values["c12_gpa"] > 0


def test_errors(copper: Morse) -> None:
    with pytest.raises(InputError, match=r"got 'fc'\. Did you mean 'fcc'"):
        cubic_properties(copper, "Cu", "fc")
    with pytest.raises(UnknownElementError, match="holds Si"):
        cubic_properties(copper, "Si")
    with pytest.raises(InputError, match="give one as guess"):
        cubic_properties(copper, "Zn", "fcc")
    with pytest.raises(InputError, match="no fcc Cu crystal with a lattice constant between"):
        cubic_properties(Morse("Cu", -0.3429, 1.3588, 2.866), "Cu")
    # With the angular term turned around, tetrahedral angles are a maximum of the energy: the sublattices slide off.
    with pytest.raises(InputError, match="unstable"):
        cubic_properties(StillingerWeber(tetrahedral=-100.0), "Si")
