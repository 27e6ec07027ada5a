"""Molecular dynamics through ASE: ensembles, files, and resuming as if nothing had happened."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.build import bulk
from ase.md.verlet import VelocityVerlet

from snnp.errors import InputError
from snnp.models.config import RepulsionConfig
from snnp.models.spline.config import AngularConfig, RadialConfig, SplineNNPConfig
from snnp.models.spline.model import SplineNNP
from snnp.models.store import save_model
from snnp.sampling import MDProgress, MDResult, MDSettings, run_md, starting_point
from snnp.sampling.trajectory import read_log
from snnp_ase import SNNPCalculator

A = 4.268  # Å, lattice constant of the model below


@pytest.fixture(scope="module")
def model() -> SplineNNP:
    """A small s-NNP that keeps fcc aluminium together: a Morse-like pair term with weak many-body terms."""
    config = SplineNNPConfig(
        elements=("Al",),
        pair_term=True,
        radial=RadialConfig(n_filters=2, lower=1.8, cutoff=5.0, intervals=20),
        angular=AngularConfig(n_filters=2, lower=1.8, cutoff=4.5, intervals=10, degree=2),
        network=None,
        repulsion=RepulsionConfig(inner=1.2, outer=2.2),
    )
    potential = SplineNNP(config, {"Al": -1.0})
    assert potential.phi is not None
    assert potential.readout.linear is not None
    x = torch.exp(-1.7 * (potential.phi.grids[0].knots() - 3.06))
    potential.phi.set_knots((0.25 * (x * x - 2.0 * x))[None])
    torch.nn.init.constant_(potential.readout.linear, 1e-4)
    return potential


@pytest.fixture
def crystal() -> Atoms:
    return bulk("Al", cubic=True, a=A) * (2, 2, 2)


def settings(folder: Path, **values: Any) -> MDSettings:
    """Short runs in float64 with every file, unless said otherwise."""
    files = {
        "trajectory": folder / "run.extxyz",
        "log": folder / "run.csv",
        "checkpoint": folder / "run.npz",
        "trajectory_interval": 5,
        "log_interval": 2,
        "checkpoint_interval": 20,
        "dt_fs": 2.0,
        "dtype": "float64",
    }
    return MDSettings(**{**files, **values})


def test_nve_is_velocity_verlet_of_an_ase_script(model: SplineNNP, crystal: Atoms, tmp_path: Path) -> None:
    asked = settings(tmp_path, ensemble="nve", steps=40)
    result = run_md(model, crystal, asked)
    script = starting_point(crystal, asked, "ase").atoms
    script.calc = SNNPCalculator(model)
    VelocityVerlet(script, 2.0 * units.fs).run(40)
    # ASE's constants are those of CODATA 2014, ours of 2018: 1e-8 in the time step.
    assert np.abs(result.final.positions - script.positions).max() < 1e-6
    assert np.abs(result.final.get_momenta() - script.get_momenta()).max() < 1e-6


def test_nve_conserves_the_energy(model: SplineNNP, crystal: Atoms) -> None:
    result = run_md(model, crystal, MDSettings(ensemble="nve", steps=400, dt_fs=3.0, temperature_k=600.0))
    assert result.drift_mev_per_atom_per_ns is not None
    # Over the 1.2 ps of this run, in single precision.
    assert abs(result.drift_mev_per_atom_per_ns) * 1.2e-3 < 0.05
    assert 200.0 < result.mean_temperature_k < 400.0  # half of the kinetic energy went into the potential


@pytest.mark.parametrize("ensemble", ["nve", "nvt", "npt"])
def test_a_resumed_run_is_the_uninterrupted_run_to_the_last_bit(
    model: SplineNNP, crystal: Atoms, tmp_path: Path, ensemble: str
) -> None:
    whole = run_md(model, crystal, settings(tmp_path / "whole", ensemble=ensemble, steps=40))
    first = run_md(model, crystal, settings(tmp_path / "parts", ensemble=ensemble, steps=20))
    second = run_md(model, crystal, settings(tmp_path / "parts", ensemble=ensemble, steps=40, resume=True))
    assert (first.steps, second.first_step, second.last_step) == (20, 20, 40)
    assert np.array_equal(second.final.positions, whole.final.positions)
    assert np.array_equal(second.final.get_momenta(), whole.final.get_momenta())
    assert np.array_equal(second.final.cell.array, whole.final.cell.array)
    for name in ("run.extxyz", "run.csv"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert second.mean_temperature_k == pytest.approx(whole.mean_temperature_k)
    # A checkpoint is no event in the physics: without one the sums round differently, nothing more.
    plain = run_md(model, crystal, settings(tmp_path / "plain", ensemble=ensemble, steps=40, checkpoint=None))
    assert np.abs(plain.final.positions - whole.final.positions).max() < 1e-10
    assert np.abs(plain.final.cell.array - whole.final.cell.array).max() < 1e-10


def test_a_killed_run_resumes_without_doubled_or_lost_frames(model: SplineNNP, crystal: Atoms, tmp_path: Path) -> None:
    save_model(model, tmp_path / "model")
    ase.io.write(tmp_path / "start.extxyz", crystal)
    whole, torn = tmp_path / "whole", tmp_path / "torn"
    # DCD counts its frames in a header, which the kill leaves ahead of the checkpoint.
    asked = settings(torn, trajectory=torn / "run.dcd", steps=60)
    (tmp_path / "asked.json").write_text(asked.model_dump_json())
    script = """
import os, signal, sys
import ase.io
from snnp.sampling import MDSettings, run_md
def report(progress):
    if progress.step == 32:
        os.kill(os.getpid(), signal.SIGKILL)
asked = MDSettings.model_validate_json(open("asked.json").read())
run_md("model", ase.io.read("start.extxyz"), asked, report=report)
"""
    killed = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, timeout=120, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert read_log(torn / "run.csv")[-1].step == 32
    start = ase.io.read(tmp_path / "start.extxyz")
    resumed = run_md(model, start, asked.model_copy(update={"resume": True}))
    assert (resumed.first_step, resumed.last_step) == (20, 60)
    uninterrupted = run_md(model, start, settings(whole, trajectory=whole / "run.dcd", steps=60))
    assert np.array_equal(resumed.final.positions, uninterrupted.final.positions)
    assert (torn / "run.csv").read_bytes() == (whole / "run.csv").read_bytes()
    a, b = (torn / "run.dcd").read_bytes(), (whole / "run.dcd").read_bytes()
    assert a[:180] + a[264:] == b[:180] + b[264:]  # between them lies the time of writing


def test_a_finished_run_resumes_to_nothing(model: SplineNNP, crystal: Atoms, tmp_path: Path) -> None:
    run_md(model, crystal, settings(tmp_path, steps=10))
    before = (tmp_path / "run.csv").read_bytes()
    result = run_md(model, crystal, settings(tmp_path, steps=10, resume=True))
    assert result.steps == 0
    assert (tmp_path / "run.csv").read_bytes() == before


def test_what_a_run_leaves_and_tells(model: SplineNNP, crystal: Atoms, tmp_path: Path) -> None:
    seen: list[MDProgress] = []
    asked = settings(tmp_path / "new" / "folder", steps=20, plot=tmp_path / "run.png")
    result: MDResult = run_md(model, crystal, asked, report=seen.append)
    assert set(result.files) == {"trajectory", "log", "checkpoint", "plot"}
    assert all(path.is_file() for path in result.files.values())
    assert [progress.step for progress in seen] == list(range(2, 21, 2))
    assert seen[-1].ns_per_day > 0.0
    assert seen[-1].n_steps == 20
    frames = ase.io.read(result.files["trajectory"], index=":")
    rows = read_log(result.files["log"])
    assert [frame.info["step"] for frame in frames] == [0, 5, 10, 15, 20]
    assert [row.step for row in rows] == list(range(0, 21, 2))
    assert frames[2].get_potential_energy() == pytest.approx(rows[5].potential_energy_ev, abs=1e-7)
    assert rows[-1].time_ps == pytest.approx(0.04)
    assert result.ns_per_day == pytest.approx(20 * 2e-6 / result.seconds * 86400.0)
    assert np.array_equal(crystal.positions, (bulk("Al", cubic=True, a=A) * (2, 2, 2)).positions)
    told = json.loads(json.dumps(result.to_json()))
    assert (told["n_atoms"], told["steps"], told["engine"], told["ensemble"]) == (32, 20, "ase", "nvt")
    assert told["drift_mev_per_atom_per_ns"] is None
    assert told["files"]["plot"].endswith("run.png")


def test_molecules_run_without_volume_and_pressure(model: SplineNNP, tmp_path: Path) -> None:
    trimer = Atoms("Al3", [[0.0, 0.0, 0.0], [3.06, 0.0, 0.0], [1.53, 2.65, 0.0]])
    result = run_md(model, trimer, settings(tmp_path, steps=10, temperature_k=50.0))
    assert result.mean_pressure_gpa is None
    assert result.mean_volume_a3 is None
    assert (tmp_path / "run.csv").read_text().splitlines()[1].endswith(",,")


def test_a_run_that_blows_up_stops_with_the_step_and_a_cure(model: SplineNNP, crystal: Atoms, tmp_path: Path) -> None:
    asked = settings(tmp_path, ensemble="nve", steps=400, dt_fs=150.0, temperature_k=3000.0)
    with pytest.raises(
        InputError, match=r"the simulation blew up.*Use a time step of 1 to 2 fs instead of 150 fs"
    ) as caught:
        run_md(model, crystal, asked)
    assert "\n" not in str(caught.value)
    assert len(read_log(tmp_path / "run.csv")) >= 1  # what was seen until then is kept


def test_outputs_that_cannot_be_written_are_named(model: SplineNNP, crystal: Atoms, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match=r"cannot create the folder '.*file.sub' for 'run.csv'"):
        run_md(model, crystal, MDSettings(log=tmp_path / "file" / "sub" / "run.csv", steps=1))
