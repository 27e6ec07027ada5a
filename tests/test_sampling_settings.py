"""Settings of a run, starting points, and finding engines."""

from __future__ import annotations

from importlib.metadata import EntryPoint
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.constraints import FixAtoms

from snnp.errors import ConfigError, InputError, MissingDependencyError
from snnp.sampling import MDSettings, available_engines, run_md, starting_point
from snnp.sampling import run as run_module
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
    fixed = bulk("Al", cubic=True)
    fixed.set_constraint(FixAtoms([0]))
    with pytest.raises(InputError, match=r"has constraints \(FixAtoms\)"):
        starting_point(fixed, MDSettings(), "ase")


def test_engines_are_found_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    assert {"ase", "openmm"} <= set(available_engines())
    with pytest.raises(InputError, match=r"no engine 'asi'; there are: .*ase.*Did you mean 'ase'"):
        run_md("no-model", bulk("Al"), MDSettings(), engine="asi")
    broken = EntryPoint("openmm", "a_package_that_is_not_there:run_md", "snnp.md_engines")
    monkeypatch.setattr(run_module, "entry_points", lambda group: [broken])
    with pytest.raises(
        MissingDependencyError, match=r"engine 'openmm' cannot be imported.*pip install 'snnp\[openmm\]'"
    ):
        run_md("no-model", bulk("Al"), MDSettings(), engine="openmm")
