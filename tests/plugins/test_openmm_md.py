"""Molecular dynamics with OpenMM: the trajectories of other programs, exact resumption, and what the plugin costs."""

from __future__ import annotations

import _thread
import threading
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk, molecule
from ase.md.verlet import VelocityVerlet

import snnp_openmm
from snnp.errors import ConfigError, InputError, UnknownElementError
from snnp.models import (
    AngularConfig,
    NetworkConfig,
    RadialConfig,
    RepulsionConfig,
    SplineNNP,
    SplineNNPConfig,
)
from snnp.sampling.checkpoint import read_checkpoint
from snnp.sampling.cost import measure_engine
from snnp.sampling.settings import MDSettings
from snnp_ase import SNNPCalculator
from snnp_openmm import run_md


def make_model(*elements: str) -> SplineNNP:
    config = SplineNNPConfig(
        elements=elements,
        radial=RadialConfig(n_filters=4),
        angular=AngularConfig(n_filters=3, degree=3),
        network=NetworkConfig(hidden=(8,)),
        repulsion=RepulsionConfig(inner=1.0, outer=2.3),
    )
    return SplineNNP(config, dict.fromkeys(elements, -3.0), seed=1)


@pytest.fixture(scope="module")
def model() -> SplineNNP:
    return make_model("Si")


def silicon() -> Atoms:
    atoms = bulk("Si", cubic=True)
    atoms.rattle(0.02, seed=1)
    return atoms


def left_handed_triclinic() -> Atoms:
    atoms = bulk("Si") * (2, 2, 2)
    atoms.set_cell(atoms.cell.array[[1, 0, 2]] + [[0.3, 0.0, 0.0], [0.0, 0.2, 0.1], [0.0, 0.0, 0.0]], scale_atoms=True)
    atoms.rattle(0.02, seed=1)
    return atoms


def slab() -> Atoms:
    """Periodic in y and z only, without a third vector."""
    atoms = bulk("Si", cubic=True)
    atoms.pbc = (False, True, True)
    atoms.cell[0] = 0.0
    atoms.rattle(0.02, seed=1)
    return atoms


def settings(**values: object) -> MDSettings:
    return MDSettings(**{"ensemble": "nve", "dtype": "float64", "steps": 20, "temperature_k": 300.0, **values})


def same(a: Atoms, b: Atoms) -> None:
    """To the last bit."""
    np.testing.assert_array_equal(a.positions, b.positions)
    np.testing.assert_array_equal(a.get_momenta(), b.get_momenta())
    np.testing.assert_array_equal(a.cell.array, b.cell.array)


@pytest.mark.parametrize("build", [silicon, left_handed_triclinic, slab], ids=lambda build: build.__name__)
def test_nve_follows_ase(model: SplineNNP, build: object, tmp_path: Path) -> None:
    start = tmp_path / "start.npz"
    atoms = build()  # type: ignore[operator]
    run_md(model, atoms, settings(steps=0, checkpoint=start))
    # The same structure, with the velocities that OpenMM began with.
    atoms.set_velocities(read_checkpoint(start).atoms.get_velocities())
    result = run_md(model, atoms, settings(steps=100))
    reference = atoms.copy()
    reference.calc = SNNPCalculator(model)
    VelocityVerlet(reference, units.fs).run(100)
    moved = np.abs(reference.positions - atoms.positions).max()
    assert moved > 0.1
    np.testing.assert_allclose(result.final.positions, reference.positions, atol=1e-6)
    np.testing.assert_allclose(result.final.get_momenta(), reference.get_momenta(), atol=1e-6)
    np.testing.assert_array_equal(result.final.cell.array, atoms.cell.array)


def test_snapshots_hold_energy_forces_and_stress_of_their_positions(model: SplineNNP, tmp_path: Path) -> None:
    path = tmp_path / "run.extxyz"
    for ensemble in ("nve", "nvt", "npt"):
        run_md(model, left_handed_triclinic(), settings(ensemble=ensemble, trajectory=path, trajectory_interval=10))
        frames = ase.io.read(path, ":")
        assert [frame.info["step"] for frame in frames] == [0, 10, 20]
        for frame in frames:
            again = frame.copy()
            again.calc = SNNPCalculator(model)
            assert frame.get_potential_energy() == pytest.approx(again.get_potential_energy(), abs=1e-5)
            np.testing.assert_allclose(frame.get_forces(), again.get_forces(), atol=1e-5)
            np.testing.assert_allclose(frame.get_stress(), again.get_stress(), atol=1e-6)


@pytest.mark.parametrize("ensemble", ["nve", "nvt"])
@pytest.mark.parametrize("build", [silicon, left_handed_triclinic], ids=lambda build: build.__name__)
def test_resumed_run_is_the_uninterrupted_one(model: SplineNNP, ensemble: str, build: object, tmp_path: Path) -> None:
    atoms = build()  # type: ignore[operator]
    common = {"ensemble": ensemble, "checkpoint_interval": 20, "log_interval": 7, "trajectory_interval": 5}
    whole = {"checkpoint": tmp_path / "whole.npz", "log": tmp_path / "whole.csv", "trajectory": tmp_path / "whole.xyz"}
    part = {"checkpoint": tmp_path / "part.npz", "log": tmp_path / "part.csv", "trajectory": tmp_path / "part.xyz"}
    uninterrupted = run_md(model, atoms, settings(steps=40, **common, **whole))
    run_md(model, atoms, settings(steps=20, **common, **part))
    resumed = run_md(model, atoms, settings(steps=40, **common, **part, resume=True))
    assert (resumed.first_step, resumed.last_step) == (20, 40)
    same(resumed.final, uninterrupted.final)
    assert part["log"].read_text() == whole["log"].read_text()
    assert part["trajectory"].read_text() == whole["trajectory"].read_text()


def test_seeds_choose_the_trajectory(model: SplineNNP) -> None:
    first, again, other = (run_md(model, silicon(), settings(ensemble="nvt", seed=seed)).final for seed in (0, 0, 1))
    same(first, again)
    assert np.abs(first.positions - other.positions).max() > 1e-3


def test_thermostat_reaches_its_temperature(model: SplineNNP) -> None:
    atoms = bulk("Si", cubic=True)
    result = run_md(
        model,
        atoms,
        settings(ensemble="nvt", steps=800, dt_fs=2.0, temperature_k=150.0, friction_per_ps=20.0, dtype="float32"),
    )
    # 24 degrees of freedom, correlated for about 50 fs: a standard error of about 8 K.
    assert result.mean_temperature_k == pytest.approx(150.0, abs=25.0)


def test_barostat_follows_the_pressure_and_keeps_the_shape(model: SplineNNP, tmp_path: Path) -> None:
    atoms = left_handed_triclinic()
    common = {"ensemble": "npt", "steps": 150, "barostat_time_fs": 40.0, "checkpoint": tmp_path / "npt.npz"}
    squeezed = run_md(model, atoms, settings(pressure_gpa=15.0, **common))
    assert squeezed.final.get_volume() < 0.97 * atoms.get_volume()
    scale = (squeezed.final.get_volume() / atoms.get_volume()) ** (1 / 3)
    np.testing.assert_allclose(squeezed.final.cell.array, scale * atoms.cell.array, rtol=0, atol=1e-9)
    more = run_md(model, atoms, settings(pressure_gpa=15.0, **{**common, "steps": 160}, resume=True))
    assert more.first_step == 150
    assert more.final.get_volume() == pytest.approx(squeezed.final.get_volume(), rel=0.05)
    stretched = run_md(model, atoms, settings(pressure_gpa=-20.0, **{**common, "checkpoint": None}))
    assert stretched.final.get_volume() > atoms.get_volume()


def test_molecule_without_a_box(tmp_path: Path) -> None:
    water = molecule("H2O")
    water.positions *= 2.5  # out of reach of the repulsion, which would blow it up
    result = run_md(make_model("H", "O"), water, settings(dt_fs=0.25, trajectory=tmp_path / "water.dcd"))
    assert result.mean_volume_a3 is None
    assert np.isfinite(result.final.positions).all()
    with pytest.raises(ConfigError, match="needs a fully periodic structure"):
        run_md(make_model("H", "O"), molecule("H2O"), settings(ensemble="npt"))


def test_isotopes_keep_their_mass(model: SplineNNP) -> None:
    heavy = silicon()
    heavy.set_masses([1e6] * len(heavy))
    result = run_md(model, heavy, settings())
    np.testing.assert_array_equal(result.final.get_masses(), 1e6)
    assert np.abs(result.final.positions - heavy.positions).max() < 0.01


def test_errors_keep_their_type(model: SplineNNP) -> None:
    with pytest.raises(UnknownElementError, match="the structure holds Ge"):
        run_md(model, bulk("Ge"), settings())
    overlapping = silicon()
    overlapping.positions[1] = overlapping.positions[0]
    with pytest.raises(InputError, match="atoms 0 and 1 overlap"):
        run_md(model, overlapping, settings())
    with pytest.raises(InputError, match=r"blew up|overlap|not finite"):
        run_md(model, silicon(), settings(dt_fs=500.0, steps=2000, temperature_k=2000.0))


def test_interrupting_a_run_looks_as_ever(model: SplineNNP) -> None:
    # OpenMM would turn it into an exception without a text.
    timer = threading.Timer(0.3, _thread.interrupt_main)
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        run_md(model, silicon(), settings(steps=10**6, log_interval=10**6))
    timer.join()


def test_platform_follows_openmms_variable(model: SplineNNP, monkeypatch: pytest.MonkeyPatch) -> None:
    reference = run_md(model, silicon(), settings())
    monkeypatch.setenv("OPENMM_DEFAULT_PLATFORM", "CPU")
    np.testing.assert_allclose(
        run_md(model, silicon(), settings()).final.positions, reference.final.positions, atol=1e-5
    )
    monkeypatch.setenv("OPENMM_DEFAULT_PLATFORM", "Abacus")
    with pytest.raises(InputError, match="'Abacus', but OpenMM offers CPU"):
        run_md(model, silicon(), settings())


def test_overhead_is_measured(model: SplineNNP) -> None:
    atoms = bulk("Si", cubic=True) * (4, 4, 4)
    found = measure_engine(model, atoms, "openmm", steps=5)
    assert (found["n_atoms"], found["steps"]) == (512, 5)
    assert found["openmm_us_per_atom"] > 0.0
    assert found["model_us_per_atom"] > 0.0
    assert np.isfinite(found["overhead_percent"])
    with pytest.raises(InputError, match="steps must be at least 1"):
        measure_engine(model, atoms, "openmm", steps=0)


def test_the_old_name_of_the_measurement_works(model: SplineNNP) -> None:
    with pytest.warns(DeprecationWarning, match="measure_engine"):
        measure_overhead = snnp_openmm.measure_overhead
    assert measure_overhead(model, silicon(), steps=1)["openmm_us_per_atom"] > 0.0
