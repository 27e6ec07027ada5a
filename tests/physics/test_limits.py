"""Simulations stop where a model has a hole: far below its training data, or far too hot; on every engine."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from torch import Tensor, nn

from snnp.analysis.properties import compression_scan, lattice_constants
from snnp.errors import InputError
from snnp.models import Potential, load_model
from snnp.neighbours import Neighbours
from snnp.sampling import MDSettings, run_md
from snnp.sampling.checkpoint import read_checkpoint
from snnp.sampling.snapshot import least_energy
from snnp.structure import Structure


class Imploding(Potential):
    """Copper by pairs, with 12 eV missing around 1.9 Å."""

    def __init__(self) -> None:
        super().__init__(("Cu",), {"Cu": -3.0}, cutoff=5.0)
        self.depth = nn.Parameter(torch.tensor(0.3429, dtype=torch.float64))

    def atomic_energies(self, structure: Structure, vectors: Tensor, neighbours: Neighbours) -> Tensor:
        r = vectors.norm(dim=1)
        rise = torch.exp(-1.3588 * (r - 2.866))
        pair = self.depth * rise * (rise - 2.0) - 12.0 * torch.exp(-(((r - 1.9) / 0.15) ** 2))
        end = (1.0 - (r / self.cutoff).clamp(max=1.0) ** 2) ** 3
        return torch.zeros(structure.n_atoms, dtype=r.dtype, device=r.device).index_add(
            0, neighbours.i, 0.5 * pair * end
        )


@pytest.fixture(scope="module")
def start() -> Atoms:
    """Copper just over the barrier of its hole."""
    model = Imploding()
    hole = compression_scan(model)[0].hole
    assert hole is not None
    cell = bulk("Cu", a=lattice_constants(model)["Cu"] * (hole.v_over_v0 - 0.05) ** (1.0 / 3.0), cubic=True)
    return cell * (3, 3, 3)


def _settings(**values: Any) -> MDSettings:
    return MDSettings(**{"ensemble": "nve", "steps": 2000, "log_interval": 5, "dtype": "float64", **values})


@pytest.mark.parametrize("engine", ["ase", "native", "openmm"])
def test_a_box_that_collapses_ends_the_run_before_memory_ends(engine: str) -> None:
    settings = MDSettings(ensemble="npt", pressure_gpa=1e6, steps=100)
    with pytest.raises(InputError, match=r"blew up .* are denser than any matter"):
        run_md("snnp-si", bulk("Si", cubic=True), settings, engine=engine)


@pytest.mark.parametrize("engine", ["ase", "native", "openmm"])
@pytest.mark.parametrize("stated", [True, False])
def test_a_fall_into_a_hole_stops_the_run(engine: str, stated: bool, start: Atoms, tmp_path: Path) -> None:
    """By the energy where the model states that of its training data, else by the temperature."""
    if engine == "openmm":
        pytest.importorskip("openmm")
    model = Imploding()
    settings = _settings(checkpoint=tmp_path / "c.npz", checkpoint_interval=5)
    if stated:
        model.metadata = {"lowest_energy_ev_per_atom": -2.0}
    words = "the energy is below -6 eV/atom, far below any" if stated else "make no sense in this run"
    with pytest.raises(InputError, match=rf"blew up: at step \d+ \(T = .* K, potential .*{words}") as caught:
        run_md(model, start, settings, engine=engine)
    assert "snnp doctor model" in str(caught.value)
    assert f"The last checkpoint before is in {tmp_path / 'c.npz'}" in str(caught.value)
    kept = read_checkpoint(tmp_path / "c.npz")
    energy = float(model.compute(Structure.from_ase(kept.atoms), forces=False).energy) / len(start)
    kelvin = kept.atoms.get_temperature()
    assert energy >= -6.0 if stated else kelvin < 10 * (1 + 10 / 321) * 300 + 2100, "the last good state is kept"


def test_sound_runs_go_on(tmp_path: Path) -> None:
    """A perfect crystal is lower than any frame of a hot training set, and one atom alone is often far too hot."""
    model = load_model("snnp-ge")
    model.metadata["lowest_energy_ev_per_atom"] = -0.1
    run_md(model, bulk("Ge", cubic=True), _settings(steps=20, ensemble="nvt"), engine="native")
    alone = Atoms("Ge", cell=[20.0] * 3, pbc=True)
    strong = _settings(steps=20_000, ensemble="nvt", friction_per_ps=100.0, log_interval=1, temperature_k=1000.0)
    found = run_md(model, alone, strong, engine="native")
    assert found.mean_temperature_k == pytest.approx(1000.0, rel=0.15)


def test_least_energy_of_a_million_atoms_is_no_wait() -> None:
    """It is asked for at the start of every run."""
    model = load_model("snnp-shared6")
    model.metadata["lowest_energy_ev_per_atom"] = -0.3
    atoms = Atoms(numbers=np.tile([28, 29], 500_000), positions=np.zeros((1_000_000, 3)))
    began = time.perf_counter()
    zero = 500_000 * (model.reference_energies["Ni"] + model.reference_energies["Cu"])
    assert least_energy(model, atoms) == pytest.approx(zero - 1.3e6)
    assert time.perf_counter() - began < 5.0


def test_least_energy_counts_from_e0() -> None:
    model = load_model("snnp-shared6")
    atoms = Atoms("NiNiCu", np.eye(3) * 3.0)
    del model.metadata["lowest_energy_ev_per_atom"]
    assert least_energy(model, atoms) is None, "nothing is known of older models"
    zero = 2 * model.reference_energies["Ni"] + model.reference_energies["Cu"]
    for stated, lowest in ((-0.3, -1.3), (-5.0, -7.5)):
        model.metadata["lowest_energy_ev_per_atom"] = stated
        assert least_energy(model, atoms) == pytest.approx(zero + 3 * lowest)
    for odd in ("low", float("nan"), None, [1.0]):
        model.metadata["lowest_energy_ev_per_atom"] = odd
        assert least_energy(model, atoms) is None
