"""The scan of compression: paths, pressures, and holes against potentials whose energy is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase.build import bulk, molecule
from torch import Tensor, nn

from snnp.analysis.properties import Compression, compression_scan, lattice_constants
from snnp.models import Potential, load_model
from snnp.neighbours import Neighbours
from snnp.structure import Structure
from snnp.units import EV_PER_ANGSTROM3_IN_GPA

WAYS = ["hydrostatic", "[100]", "[110]", "[111]"]


class Liquid(Potential):
    """Copper or aluminium whose energy per atom is a function of V / V0 alone, V0 that of a = 3.65 Å."""

    def __init__(self, hole: float = 0.0) -> None:
        super().__init__(("Cu",), {}, cutoff=4.0)
        self.scale = nn.Parameter(torch.tensor(1.0, dtype=torch.float64))
        self.hole = hole

    def atomic_energies(self, structure: Structure, vectors: Tensor, neighbours: Neighbours) -> Tensor:
        atoms = torch.bincount(structure.structure_of_atom, minlength=structure.n_structures)
        x = structure.volume() / atoms / (3.65**3 / 4.0)
        rise = 4.0 * (x - 1.0).square()
        fall = self.hole * torch.exp(-(((x - 0.4) / 0.08) ** 2))
        return self.scale * (rise - fall)[structure.structure_of_atom]


class Morse(Potential):
    """Copper by pairs; `dent` eV are missing around 1.9 Å."""

    def __init__(self, dent: float) -> None:
        super().__init__(("Cu",), {}, cutoff=6.0)
        self.depth, self.dent = nn.Parameter(torch.tensor(0.3429, dtype=torch.float64)), dent

    def atomic_energies(self, structure: Structure, vectors: Tensor, neighbours: Neighbours) -> Tensor:
        r = vectors.norm(dim=1)
        rise = torch.exp(-1.3588 * (r - 2.866))
        pair = self.depth * rise * (rise - 2.0) - self.dent * torch.exp(-(((r - 1.9) / 0.15) ** 2))
        end = (1.0 - (r / self.cutoff).clamp(max=1.0) ** 2) ** 3
        return torch.zeros(structure.n_atoms, dtype=r.dtype).index_add(0, neighbours.i, 0.5 * pair * end)


def _by_way(model: Potential) -> dict[str, Compression]:
    return {each.way: each for each in compression_scan(model)}


def test_volumes_are_those_of_the_scan() -> None:
    """An energy of the volume alone shows that every way has the volume that it claims."""
    model = Liquid()
    assert lattice_constants(model)["Cu"] == pytest.approx(3.65, abs=2e-3)
    scan = _by_way(model)
    assert list(scan) == WAYS
    for way, each in scan.items():
        assert each.system == "fcc Cu"
        assert each.ratio[-1] == pytest.approx(0.2 if way == "hydrostatic" else 0.5)
        np.testing.assert_allclose(each.energy, 4.0 * (each.ratio - 1.0) ** 2, atol=2e-2)
        assert each.hole is None
        assert each.to_dict()["hole"] is None


def test_barrier_and_depth_of_a_known_hole() -> None:
    scan = _by_way(Liquid(hole=6.0))
    x = np.linspace(0.2, 1.0, 100_001)
    energy = 4.0 * (x - 1.0) ** 2 - 6.0 * np.exp(-(((x - 0.4) / 0.08) ** 2))
    top = int(np.where(x > 0.4, energy, -9.0).argmax())
    hole = scan["hydrostatic"].hole
    assert hole is not None
    assert hole.v_over_v0 == pytest.approx(x[top], abs=0.01)
    assert hole.barrier_ev_per_atom == pytest.approx(energy[top], abs=0.02)
    assert hole.bottom_ev_per_atom == pytest.approx(energy.min(), abs=0.02)
    assert hole.bottom_v_over_v0 == pytest.approx(x[energy.argmin()], abs=0.01)
    for way in WAYS[1:]:  # which end at half the volume, on the slope of the same hole
        other = scan[way].hole
        assert other is not None
        assert other.v_over_v0 == pytest.approx(x[top], abs=0.01)
        assert other.bottom_v_over_v0 == pytest.approx(0.5)


def test_pressure_is_the_slope_of_the_energy() -> None:
    model = Morse(dent=12.0)
    volume = lattice_constants(model)["Cu"] ** 3 / 4.0
    for way, each in _by_way(model).items():
        assert each.hole is not None, way
        slope = -np.gradient(each.energy, each.ratio * volume) * EV_PER_ANGSTROM3_IN_GPA
        most = slope[each.ratio >= each.hole.v_over_v0].max()
        assert each.hole.pressure_gpa == pytest.approx(most, rel=0.02), way


def test_a_sound_pair_potential_rises_all_the_way() -> None:
    assert [each.hole for each in compression_scan(Morse(dent=0.0))] == [None] * 4


def test_numbers_that_are_none_are_a_hole() -> None:
    class Breaks(Liquid):
        def atomic_energies(self, structure: Structure, vectors: Tensor, neighbours: Neighbours) -> Tensor:
            energies = super().atomic_energies(structure, vectors, neighbours)
            near = vectors.norm(dim=1).min() < 2.0
            return torch.where(near, torch.nan, energies)

    hole = _by_way(Breaks())["hydrostatic"].hole
    assert hole is not None
    assert hole.v_over_v0 > 0.4


def test_molecules_are_scaled_where_there_is_no_crystal() -> None:
    model = load_model("snnp-3bpa")
    (seen,) = compression_scan(model, {"methane": molecule("CH4")})
    assert (seen.system, seen.way, seen.solid) == ("methane", "scaled", False)

    def energies(scales: np.ndarray) -> np.ndarray:
        scaled = [molecule("CH4") for _ in scales]
        for atoms, scale in zip(scaled, scales, strict=True):
            atoms.positions *= scale
        return model.double().compute(Structure.from_ase(scaled)).energy.numpy() / 5.0

    scales = np.linspace(0.9, 1.1, 1001)
    at_rest = scales[energies(scales).argmin()]  # the measured bonds are not quite the model's
    end, rest = energies(at_rest * np.array([seen.ratio[-1] ** (1.0 / 3.0), 1.0]))
    assert seen.energy[-1] == pytest.approx(end - rest, rel=0.01)


def test_hexagonal_crystals_and_carbon() -> None:
    """Every fcc, bcc, hcp or diamond element has its crystal; carbon only where it is no part of molecules."""

    class Pairs(Morse):
        def __init__(self, *elements: str) -> None:
            super().__init__(dent=0.0)
            Potential.__init__(self, elements, {}, cutoff=6.0)
            self.depth = nn.Parameter(torch.tensor(0.3429, dtype=torch.float64))

    scan = compression_scan(Pairs("Ti", "O"))
    assert [(each.system, each.way) for each in scan] == [
        ("hcp Ti", way) for way in ("hydrostatic", "along a", "along c")
    ]
    assert compression_scan(Pairs("C", "H")) == []
    assert {each.system for each in compression_scan(Pairs("C"))} == {"diamond C"}
    of_molecules = Pairs("Li", "F")
    of_molecules.metadata = {"training_range": {"periodic": "none"}}
    assert compression_scan(of_molecules) == []


def test_the_lattice_constant_is_not_found_in_a_hole() -> None:
    """A hole 5 % inside the measured constant, deeper than the crystal."""

    class Near(Liquid):
        def atomic_energies(self, structure: Structure, vectors: Tensor, neighbours: Neighbours) -> Tensor:
            energies = super().atomic_energies(structure, vectors, neighbours)
            x = structure.volume()[structure.structure_of_atom] / (bulk("Cu", a=3.65 * 0.94).get_volume())
            return energies - 3.0 * torch.exp(-(((x - 1.0) / 0.02) ** 2))

    assert lattice_constants(Near())["Cu"] == pytest.approx(3.65, abs=2e-3)
