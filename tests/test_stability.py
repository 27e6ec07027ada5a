"""Stability runs of a pair potential for copper whose behaviour is known: what survives, what does not, and why."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase import Atoms

from snnp.analysis.stability import (
    crystal,
    stability_test,
    time_step_for,
    watch_run,
)
from snnp.errors import InputError, UnknownElementError
from snnp.models.config import RepulsionConfig
from snnp.models.spline.config import AngularConfig, RadialConfig, SplineNNPConfig
from snnp.models.spline.model import SplineNNP
from snnp.sampling.settings import MDSettings
from snnp_ase.md import run_md

LATTICE_CONSTANT = 3.74  # Å, of the potential below


def morse_copper(depth: float = 0.3429, repulsion: RepulsionConfig | None = None) -> SplineNNP:
    """L. A. Girifalco, V. G. Weizer, Phys. Rev. 114, 687 (1959): D (x² - 2x), x = exp(-1.3588 (r - 2.866)), cut off."""
    config = SplineNNPConfig(
        elements=("Cu",),
        radial=RadialConfig(n_filters=1, lower=1.0, cutoff=5.0, intervals=40),
        angular=AngularConfig(n_filters=0),
        network=None,
        pair_term=True,
        repulsion=repulsion,
    )
    model = SplineNNP(config)
    assert model.phi is not None
    r = model.phi.grids[0].knots()
    x = torch.exp(-1.3588 * (r - 2.866))
    model.phi.set_knots((depth * (x * x - 2.0 * x) * (1.0 - (r / 5.0) ** 2).clamp_min(0.0) ** 3)[None])
    return model.float().eval()


@pytest.fixture(scope="module")
def copper() -> SplineNNP:
    return morse_copper()


@pytest.fixture
def cell() -> Atoms:
    return crystal("Cu", LATTICE_CONSTANT, 32)


def test_good_model_survives_and_conserves_energy(copper: SplineNNP, cell: Atoms) -> None:
    settings = MDSettings(steps=200, dt_fs=4.0, dtype="float64")
    runs = stability_test(copper, cell, settings, run_md, hot_k=600.0, equilibration_ps=0.5)
    nve, hot = runs["nve"], runs["langevin"]
    assert (nve.ensemble, hot.ensemble) == ("nve", "nvt")
    assert nve.survived
    assert hot.survived
    assert nve.picoseconds == pytest.approx(0.8)
    assert nve.drift_mev_per_atom_per_ns is not None
    assert nve.drift_error is not None
    # A fiftieth of kT per atom in the whole run would be 500 meV/atom/ns; the slope is zero within its error.
    assert abs(nve.drift_mev_per_atom_per_ns) < max(5.0 * nve.drift_error, 1.0)
    assert nve.drift_error < 20.0
    assert hot.drift_mev_per_atom_per_ns is None
    assert nve.mean_temperature_k == pytest.approx(300.0, rel=0.35)
    assert hot.mean_temperature_k == pytest.approx(600.0, rel=0.35)
    assert hot.max_temperature_k > hot.mean_temperature_k
    # Harmonic crystal: <u²> = 3 kT <1 / (M w²)>, some tenths of an Å, and growing with temperature.
    assert 0.03 < nve.rms_displacement_angstrom < hot.rms_displacement_angstrom < 0.5
    nearest = LATTICE_CONSTANT / np.sqrt(2.0)
    assert 0.7 * nearest < hot.shortest_distance_angstrom < nve.shortest_distance_angstrom < nearest
    assert nve.to_dict()["survived"] is True


def test_time_step_that_is_too_long_is_seen(copper: SplineNNP, cell: Atoms) -> None:
    # The fastest vibration of the crystal has a period of about 130 fs: velocity Verlet fails beyond a third of it.
    settings = MDSettings(ensemble="nve", temperature_k=300.0, steps=200, dt_fs=60.0)
    run, final = watch_run(copper, cell, settings, run_md)
    assert not run.survived
    assert final is None
    assert run.drift_mev_per_atom_per_ns is None
    assert run.picoseconds < 12.0, "a run that blew up is not carried on"


def test_failed_equilibration_is_reported_as_the_run(copper: SplineNNP, cell: Atoms) -> None:
    settings = MDSettings(steps=2, dt_fs=60.0)
    nve = stability_test(copper, cell, settings, run_md, hot_k=300.0, equilibration_ps=6.0)["nve"]
    assert nve.failure is not None
    assert nve.ensemble == "nvt"


def test_collapse_is_seen_by_its_heat(cell: Atoms) -> None:
    # Upside down the potential pulls atoms together as soon as they are closer than its maximum.
    settings = MDSettings(temperature_k=300.0, steps=300, dt_fs=4.0)
    run, _ = watch_run(morse_copper(depth=-0.3429), cell, settings, run_md)
    assert run.failure is not None
    assert "temperature rose" in run.failure
    assert run.max_temperature_k > 900.0


def test_fused_atoms_are_seen_even_if_the_heat_is_taken_away(cell: Atoms) -> None:
    settings = MDSettings(temperature_k=5000.0, steps=300, dt_fs=1.0, friction_per_ps=200.0)
    model = morse_copper(depth=-0.3429, repulsion=RepulsionConfig(inner=0.8, outer=1.8))
    run, _ = watch_run(model, cell, settings, run_md)
    assert run.failure is not None
    assert "two atoms came as close as" in run.failure
    assert run.shortest_distance_angstrom < 0.6 * LATTICE_CONSTANT / np.sqrt(2.0)


def test_molecule_that_falls_apart_is_seen(copper: SplineNNP) -> None:
    edge = 2.6 / np.sqrt(8.0)
    tetrahedron = Atoms("Cu4", edge * np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]]))
    cold = MDSettings(temperature_k=50.0, steps=100, dt_fs=4.0, friction_per_ps=10.0)
    hot = MDSettings(temperature_k=20000.0, steps=150, dt_fs=2.0, friction_per_ps=50.0)
    held, final = watch_run(copper, tetrahedron, cold, run_md)
    assert held.survived
    assert final is not None
    assert held.rms_displacement_angstrom is None
    broken, _ = watch_run(copper, tetrahedron, hot, run_md)
    assert broken.failure is not None
    assert "bond Cu" in broken.failure


def test_bad_input_is_no_blown_up_run(copper: SplineNNP, cell: Atoms) -> None:
    settings = MDSettings(steps=10)
    with pytest.raises(UnknownElementError, match="holds Ni"):
        watch_run(copper, Atoms("Ni2", [[0, 0, 0], [0, 0, 2.5]]), settings, run_md)
    cell.positions[1] = cell.positions[0]
    with pytest.raises(InputError):
        watch_run(copper, cell, settings, run_md)


@pytest.mark.parametrize(
    ("element", "n_atoms", "expected"), [("Ni", 100, 108), ("Mo", 100, 96), ("Si", 100, 96), ("Si", 1000, 1000)]
)
def test_supercells_are_nearly_cubic_and_of_the_size_asked_for(element: str, n_atoms: int, expected: int) -> None:
    atoms = crystal(element, 4.0, n_atoms)
    assert len(atoms) == expected
    lengths = atoms.cell.lengths()
    assert lengths.max() - lengths.min() <= 4.0 + 1e-9
    assert atoms.get_volume() / len(atoms) == pytest.approx(4.0**3 / {"Ni": 4, "Mo": 2, "Si": 8}[element])


def test_crystals_that_are_not_known() -> None:
    with pytest.raises(InputError, match="no cubic or hcp ground state of 'Ga'"):
        crystal("Ga", 4.0)
    with pytest.raises(InputError, match="no cubic or hcp ground state of 'Xx'"):
        crystal("Xx", 4.0)


def test_hexagonal_crystals_have_nearly_cubic_supercells() -> None:
    atoms = crystal("Mg", 3.21, 100)
    assert 90 <= len(atoms) <= 150
    lengths = atoms.cell.lengths()
    assert lengths.max() - lengths.min() <= 3.21 * np.sqrt(3.0)
    np.testing.assert_allclose(atoms.cell.angles(), 90.0)
    assert atoms.get_volume() / len(atoms) == pytest.approx(np.sqrt(3.0) / 4.0 * 1.624 * 3.21**3, rel=1e-3)


def test_time_step_follows_the_lightest_atom() -> None:
    assert [time_step_for(Atoms(symbols)) for symbols in ("CH4", "Li2", "Si2")] == [0.5, 1.0, 2.0]
