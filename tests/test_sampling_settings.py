"""Settings of a run, starting points, and finding engines."""

from __future__ import annotations

from importlib.metadata import EntryPoint
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.constraints import FixAtoms, FixScaled

from snnp.errors import ConfigError, InputError, MissingDependencyError
from snnp.sampling import MDSettings, run_md, starting_point
from snnp.sampling import run as run_module
from snnp.sampling.snapshot import cure
from snnp.sampling.thermostats import degrees_of_freedom
from snnp.units import BOLTZMANN_EV_PER_K


@pytest.mark.parametrize(
    "values, message",
    [
        ({"step": 5}, "unknown molecular dynamics setting 'step'. Did you mean 'steps'"),
        ({"ensemble": "nvx"}, "setting 'ensemble': .*'nve', 'nvt' or 'npt'.*, got 'nvx'"),
        ({"steps": -1}, "setting 'steps': .* got -1"),
        ({"dt_fs": 0.0}, "setting 'dt_fs': .* got 0.0"),
        ({"dt_fs": float("nan")}, "setting 'dt_fs': .* got nan"),
        ({"temperature_k": -3.0}, "setting 'temperature_k': .* got -3.0"),
        ({"temperature_k": 0.0}, "temperature_k must be positive for ensemble 'nvt', got 0"),
        ({"temperature_end_k": 50.0, "ensemble": "nve"}, "asks for a ramp, but there is no thermostat"),
        ({"temperature_end_k": 0.0}, "setting 'temperature_end_k': .* got 0.0"),
        ({"thermostat": "andersen"}, "setting 'thermostat': .*'langevin' or 'bussi'.*, got 'andersen'"),
        ({"barostat": "berendsen"}, "setting 'barostat': .*'isotropic' or 'anisotropic'.*, got 'berendsen'"),
        ({"equilibrate": -1}, "setting 'equilibrate': .* got -1"),
        ({"log_interval": 0}, "setting 'log_interval': .* got 0"),
        ({"trajectory": "run.trr"}, "'run.trr' has no known suffix; use one of .extxyz, .xyz, .dcd, .xtc"),
        ({"resume": True}, "resume needs a checkpoint"),
        ({"log": "a.csv", "plot": "a.csv"}, "must be different files"),
        ({"dtype": "float16"}, "setting 'dtype': .* got 'float16'"),
    ],
)
def test_wrong_settings_are_one_line_that_names_them(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        MDSettings(**values)
    assert "\n" not in str(caught.value)


def test_settings_do_not_change() -> None:
    settings = MDSettings(temperature_k=500.0)
    with pytest.raises(ValueError, match="frozen"):
        settings.temperature_k = 600.0  # type: ignore[misc]


def test_initial_velocities_are_thermal_without_a_total_momentum() -> None:
    atoms = bulk("Al", cubic=True) * (8, 8, 8)
    settings = MDSettings(temperature_k=700.0, seed=4)
    start = starting_point(atoms, settings, "ase")
    momenta = start.atoms.get_momenta()
    assert np.abs(momenta.sum(axis=0)).max() < 1e-10
    n_freedom = 3 * len(atoms) - 3
    temperature = 2.0 * start.atoms.get_kinetic_energy() / n_freedom / BOLTZMANN_EV_PER_K
    assert abs(temperature - 700.0) < 4.0 * 700.0 * np.sqrt(2.0 / n_freedom)
    assert np.array_equal(momenta, starting_point(atoms, settings, "ase").atoms.get_momenta())
    other = starting_point(atoms, MDSettings(temperature_k=700.0, seed=5), "ase")
    assert not np.allclose(momenta, other.atoms.get_momenta())
    assert not atoms.has("momenta")  # the caller's structure is left alone


def test_a_structure_keeps_its_momenta_and_masses() -> None:
    atoms = bulk("Si", cubic=True)
    atoms.set_masses([28.0] * 4 + [30.0] * 4)
    atoms.set_momenta(np.random.default_rng(0).standard_normal((8, 3)))
    start = starting_point(atoms, MDSettings(), "ase")
    assert np.array_equal(start.atoms.get_momenta(), atoms.get_momenta())
    assert np.array_equal(start.atoms.get_masses(), atoms.get_masses())


def test_structures_that_cannot_run_are_refused() -> None:
    with pytest.raises(InputError, match="holds no atoms"):
        starting_point(Atoms(), MDSettings(), "ase")
    with pytest.raises(ConfigError, match="'npt' needs a fully periodic structure"):
        starting_point(Atoms("Al", pbc=(1, 1, 0), cell=[4, 4, 0]), MDSettings(ensemble="npt"), "ase")
    with pytest.raises(ConfigError, match=r"rectangular cell, or 'isotropic'"):
        starting_point(bulk("Al"), MDSettings(ensemble="npt", barostat="anisotropic"), "ase")
    half = bulk("Al", cubic=True)
    half.set_constraint(FixScaled(0, mask=(True, False, False)))
    with pytest.raises(InputError, match="a constraint FixScaled"):
        starting_point(half, MDSettings(), "ase")


@pytest.mark.parametrize(
    "fix, held",
    [(None, [3]), ("0", [0, 3]), ("0-1, 3", [0, 1, 3]), ("Ni", [1, 3]), ("Ni,2", [1, 2, 3])],
)
def test_held_atoms_are_those_named_and_those_constrained(fix: str | None, held: list[int]) -> None:
    atoms = bulk("Al", cubic=True)
    atoms.symbols[1] = "Ni"
    atoms.set_constraint(FixAtoms([3]))
    start = starting_point(atoms, MDSettings(fix=fix), "ase").atoms
    assert start.constraints[0].get_indices().tolist() == held
    assert not start.get_momenta()[held].any()
    free = np.setdiff1d(np.arange(4), held)
    assert start.get_momenta()[free].all()
    assert degrees_of_freedom(start, MDSettings(ensemble="nve")) == 3 * len(free)


@pytest.mark.parametrize(
    "fix, message",
    [
        ("4", "cannot fix '4': atoms are numbered from 0 to 3"),
        ("2-1", "cannot fix '2-1'"),
        ("Cu", "cannot fix 'Cu': the structure is Al4"),
        ("-1", "name elements, numbers or ranges"),
        ("Als", "cannot fix 'Als'.*Did you mean .*'Al'"),
        ("", "cannot fix ''"),
        ("Al", "all 4 atoms are fixed"),
    ],
)
def test_atoms_that_cannot_be_held_are_named(fix: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        starting_point(bulk("Al", cubic=True), MDSettings(fix=fix), "ase")
    with pytest.raises(ConfigError, match="'npt' would move the 1 fixed atoms"):
        starting_point(bulk("Al", cubic=True), MDSettings(fix="0", ensemble="npt"), "ase")


def test_equilibration_is_for_drawn_velocities_that_a_thermostat_follows() -> None:
    def steps(atoms: Atoms, **values: Any) -> int:
        return starting_point(atoms, MDSettings(dt_fs=2.0, **values), "ase").equilibration

    atoms = bulk("Al", cubic=True)
    assert steps(atoms) == 50
    assert steps(atoms, ensemble="npt") == 150
    assert steps(atoms, ensemble="nve") == 0
    assert steps(atoms, ensemble="nve", equilibrate=7) == 7
    atoms.set_momenta(np.ones((4, 3)))
    assert steps(atoms) == 0


def test_advice_after_a_blow_up_shortens_only_long_steps() -> None:
    def advice(formula: str, dt_fs: float) -> str:
        return cure(Atoms(formula), MDSettings(dt_fs=dt_fs))

    assert "1 to 2 fs instead of 5 fs" in advice("Cu", 5.0)
    assert "of 1 fs instead of 2 fs" in advice("Cu", 2.0)
    assert "0.5 fs, as there is hydrogen, instead of 1 fs" in advice("CuH", 1.0)
    for text in (advice("Cu", 1.0), advice("CuH", 0.5)):
        assert "is short enough: suspect the structure" in text


def test_engines_are_found_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"no engine 'asi'; there are: .*ase.*openmm.*Did you mean 'ase'"):
        run_md("no-model", bulk("Al"), MDSettings(), engine="asi")
    broken = EntryPoint("openmm", "a_package_that_is_not_there:run_md", "snnp.md_engines")
    monkeypatch.setattr(run_module, "entry_points", lambda group: [broken])
    with pytest.raises(
        MissingDependencyError, match=r"engine 'openmm' cannot be imported.*pip install 'snnp\[openmm\]'"
    ):
        run_md("no-model", bulk("Al"), MDSettings(), engine="openmm")
