"""Uncertainty in runs of ASE and OpenMM that are not ours: a log, a colour, an end, a harvest."""

from __future__ import annotations

import csv
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from ase.io import read
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import thermalize_momenta
from ase.md.verlet import VelocityVerlet
from ase.optimize import FIRE

from snnp.errors import ConfigError, InputError
from snnp.models import Ensemble, SplineNNP
from snnp.models.spline import special_cases
from snnp.uncertainty import Committee, FeatureDistance, TooUncertainError, Watch
from snnp_ase import SNNPCalculator, UncertaintyObserver

ENSEMBLE = Ensemble(
    [
        SplineNNP(special_cases.s_nnp(("Cu", "O"), n_radial=3, n_angular=3, cutoff=4.0, hidden=(4,)), seed=seed)
        for seed in (0, 1)
    ]
)


def _spread(atoms: Atoms) -> Any:
    return Committee(ENSEMBLE).evaluate(atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc)[1].forces


def _copper() -> Atoms:
    atoms = bulk("Cu", cubic=True)
    atoms.rattle(0.02, seed=0)
    return atoms


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open() as stream:
        return list(csv.DictReader(stream))


@pytest.mark.parametrize("calculator", [SNNPCalculator(ENSEMBLE), EMT()])
def test_ase_runs_are_watched_whoever_moves_the_atoms(tmp_path: Path, calculator: Any) -> None:
    atoms = _copper()
    atoms.calc = calculator
    thermalize_momenta(atoms, 600.0, rng=np.random.default_rng(0))
    dynamics = VelocityVerlet(atoms, 2.0 * units.fs)
    observer = UncertaintyObserver(dynamics, ENSEMBLE, log=tmp_path / "spread.csv")
    dynamics.attach(observer, interval=5)
    seen: list[Any] = []
    dynamics.attach(lambda: seen.append((atoms.arrays["uncertainty"].copy(), atoms.copy())), interval=5)
    dynamics.run(20)
    rows = _rows(tmp_path / "spread.csv")
    assert [int(row["step"]) for row in rows] == [0, 5, 10, 15, 20]
    assert [float(row["time_ps"]) for row in rows] == pytest.approx([0.0, 0.01, 0.02, 0.03, 0.04])
    for row, (colour, moment) in zip(rows, seen, strict=True):
        np.testing.assert_allclose(colour, _spread(moment), rtol=1e-5)
        assert float(row["uncertainty"]) == pytest.approx(colour.max(), rel=1e-4)
        assert float(row["mean"]) == pytest.approx(colour.mean(), rel=1e-4)


def test_ase_runs_end_or_are_harvested_beyond_a_limit(tmp_path: Path) -> None:
    atoms = _copper()
    atoms.calc = EMT()
    limit = 1.2 * _spread(atoms).max()
    dynamics = Langevin(
        atoms, 2.0 * units.fs, temperature_K=3000.0, friction=0.05 / units.fs, rng=np.random.default_rng(1), fixcm=False
    )
    harvest = tmp_path / "harvest.extxyz"
    dynamics.attach(UncertaintyObserver(dynamics, ENSEMBLE, limit=limit, on_limit="harvest", harvest=harvest), 5)
    dynamics.attach(UncertaintyObserver(dynamics, ENSEMBLE, limit=3.0 * limit, on_limit="stop"), 5)
    with pytest.raises(TooUncertainError, match=r"step \d+: the spread of forces of atom \d is .* eV/Å, more than"):
        dynamics.run(2000)
    frames = read(harvest, ":")
    assert frames[-1].info["step"] == dynamics.nsteps < 2000
    for frame in frames:
        assert frame.calc is None
        assert frame.arrays["uncertainty"].max() > limit
        np.testing.assert_allclose(frame.arrays["uncertainty"], _spread(frame), rtol=1e-5)


def test_optimisers_and_other_signs_are_watched(tmp_path: Path) -> None:
    atoms = _copper()
    atoms.calc = EMT()
    measure = FeatureDistance(ENSEMBLE.potentials[0], bulk("Cu", cubic=True))  # type: ignore[arg-type]
    optimiser = FIRE(atoms, logfile=None)
    optimiser.attach(UncertaintyObserver(optimiser, measure, log=tmp_path / "distance.csv"), interval=1)
    optimiser.run(fmax=0.01, steps=50)
    rows = _rows(tmp_path / "distance.csv")
    assert float(rows[-1]["uncertainty"]) < 0.1 * float(rows[0]["uncertainty"])


@pytest.mark.skipif(importlib.util.find_spec("openmm") is None, reason="needs OpenMM")
def test_openmm_runs_are_watched(tmp_path: Path) -> None:
    import openmm
    from openmm.app import Simulation

    from snnp_openmm import UncertaintyReporter, create_system, to_openmm

    geometry = to_openmm(_copper() * (2, 2, 2))
    system = create_system(ENSEMBLE, geometry.topology)
    integrator = openmm.VerletIntegrator(0.001)
    platform = openmm.Platform.getPlatformByName("Reference")
    simulation = Simulation(geometry.topology, system, integrator, platform)
    simulation.context.setPositions(geometry.positions)
    harvest = tmp_path / "harvest.extxyz"
    how = {"log": tmp_path / "spread.csv", "limit": 1e-6, "on_limit": "harvest", "harvest": harvest}
    simulation.reporters.append(UncertaintyReporter(ENSEMBLE, geometry.topology, 5, **how))
    simulation.step(20)
    rows, frames = _rows(tmp_path / "spread.csv"), read(harvest, ":")
    assert [int(row["step"]) for row in rows] == [5, 10, 15, 20] == [frame.info["step"] for frame in frames]
    assert float(rows[-1]["time_ps"]) == pytest.approx(0.02)
    for row, frame in zip(rows, frames, strict=True):
        assert frame.pbc.all()
        np.testing.assert_allclose(frame.arrays["uncertainty"], _spread(frame), rtol=1e-4)
        assert float(row["uncertainty"]) == pytest.approx(frame.arrays["uncertainty"].max(), rel=1e-4)
    simulation.reporters.append(UncertaintyReporter(ENSEMBLE, geometry.topology, 10, limit=1e-6, on_limit="stop"))
    with pytest.raises(TooUncertainError, match="step 30: "):
        simulation.step(50)


@pytest.mark.skipif(importlib.util.find_spec("openmm") is None, reason="needs OpenMM")
def test_some_of_openmms_atoms_are_watched(tmp_path: Path) -> None:
    import openmm
    from openmm.app import Simulation

    from snnp_openmm import UncertaintyReporter, to_openmm

    whole = bulk("Cu", cubic=True) + molecule("O2", vacuum=0)
    whole.pbc, whole.cell = False, None
    geometry = to_openmm(whole)
    system = openmm.System()
    for mass in whole.get_masses():
        system.addParticle(mass)
    platform = openmm.Platform.getPlatformByName("Reference")
    simulation = Simulation(geometry.topology, system, openmm.VerletIntegrator(0.001), platform)
    simulation.context.setPositions(geometry.positions)
    log = tmp_path / "spread.csv"
    simulation.reporters.append(UncertaintyReporter(ENSEMBLE, geometry.topology, 1, atoms=range(4), log=log))
    simulation.step(1)
    assert float(_rows(log)[0]["uncertainty"]) == pytest.approx(_spread(whole[:4]).max(), rel=1e-4)
    with pytest.raises(InputError, match="atoms holds 9, but the topology's atoms are numbered 0 to 5"):
        UncertaintyReporter(ENSEMBLE, geometry.topology, 1, atoms=[9])
    with pytest.raises(InputError, match="interval must be at least one step, got 0"):
        UncertaintyReporter(ENSEMBLE, geometry.topology, 0)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"on_limit": "quit"}, "on_limit is log, stop or harvest, got 'quit'"),
        ({"limit": 0.0}, r"limit must be positive, got 0\.0"),
        ({"on_limit": "stop"}, "on_limit 'stop' needs a limit"),
        ({"limit": 0.3, "on_limit": "harvest"}, "go together; give both or neither"),
    ],
)
def test_arguments_that_do_not_go_together(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Watch(ENSEMBLE, **given)


def test_models_that_know_nothing_and_folders_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no sign of its own uncertainty"):
        Watch(ENSEMBLE.potentials[0])
    with pytest.raises(InputError, match=r"log: the folder of .*none/a\.csv does not exist"):
        Watch(ENSEMBLE, log=tmp_path / "none" / "a.csv")
    with pytest.raises(InputError, match=r"harvest: the folder of .*none/a\.xyz does not exist"):
        Watch(ENSEMBLE, limit=0.1, on_limit="harvest", harvest=tmp_path / "none" / "a.xyz")


def test_a_harvest_begins_anew(tmp_path: Path) -> None:
    harvest = tmp_path / "harvest.extxyz"
    harvest.write_text("of another run")
    watch = Watch(ENSEMBLE, limit=1e6, on_limit="harvest", harvest=harvest)
    watch.look(_copper(), 0, 0.0)
    assert not harvest.exists()
