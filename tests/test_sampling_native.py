"""The embedded engine against ASE's integrators, the statistics of its ensembles, and resuming to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk

from snnp.sampling import MDResult, MDSettings, run_md
from snnp.units import GPA_IN_EV_PER_ANGSTROM3


def run(structure: Atoms, engine: str = "native", **values: Any) -> MDResult:
    return run_md("snnp-al", structure, MDSettings(**values), engine=engine)


@pytest.fixture(scope="module")
def crystal() -> Atoms:
    return bulk("Al", cubic=True, a=4.05) * (2, 2, 2)


def test_a_hundred_steps_are_ases(crystal: Atoms) -> None:
    asked = {"ensemble": "nve", "steps": 100, "dt_fs": 2.0, "temperature_k": 600.0, "dtype": "float64"}
    ours, theirs = (run(crystal, engine, **asked) for engine in ("native", "ase"))
    assert np.abs(ours.final.positions - theirs.final.positions).max() < 1e-9
    assert np.abs(ours.final.get_momenta() - theirs.final.get_momenta()).max() < 1e-8


def test_nve_conserves_the_energy(crystal: Atoms) -> None:
    result = run(crystal, ensemble="nve", steps=1500, dt_fs=2.0, temperature_k=600.0, log_interval=5)
    assert result.drift_mev_per_atom_per_ns is not None
    assert abs(result.drift_mev_per_atom_per_ns) * 3e-3 < 0.05


def test_nvt_samples_the_canonical_ensemble(crystal: Atoms) -> None:
    result = run(crystal, steps=4000, dt_fs=3.0, temperature_k=400.0, friction_per_ps=20.0, log_interval=5)
    assert result.mean_temperature_k == pytest.approx(400.0, rel=0.03)
    assert result.temperature_std_k == pytest.approx(400.0 * np.sqrt(2.0 / (3 * len(crystal))), rel=0.2)


def test_npt_samples_pressure_and_volume(crystal: Atoms) -> None:
    """The mean pressure is the target, and the volume fluctuates as its response to pressure demands."""
    volumes = []
    for pressure in (-1.0, 3.0):
        result = run(
            crystal,
            ensemble="npt",
            steps=5000,
            dt_fs=3.0,
            temperature_k=300.0,
            pressure_gpa=pressure,
            friction_per_ps=10.0,
            barostat_time_fs=200.0,
            log_interval=5,
        )
        assert result.mean_pressure_gpa == pytest.approx(pressure, abs=0.35)
        assert result.mean_volume_a3 is not None
        volumes.append(result.mean_volume_a3)
    bulk_modulus = -(4.0 * GPA_IN_EV_PER_ANGSTROM3) * np.mean(volumes) / (volumes[1] - volumes[0])
    # snnp-al's own bulk modulus is 77 GPa at rest; it softens with temperature and stiffens with pressure.
    assert 50.0 < bulk_modulus / GPA_IN_EV_PER_ANGSTROM3 < 100.0


@pytest.mark.parametrize("ensemble", ["nve", "nvt", "npt"])
def test_a_resumed_run_is_the_uninterrupted_run(ensemble: str, crystal: Atoms, tmp_path: Path) -> None:
    def settings(name: str, steps: int, *, resume: bool = False) -> dict[str, Any]:
        files = {"checkpoint": tmp_path / f"{name}.npz", "log": tmp_path / f"{name}.csv"}
        values = {"ensemble": ensemble, "steps": steps, "dt_fs": 2.0, "checkpoint_interval": 20, "resume": resume}
        return {**files, **values}

    whole = run(crystal, **settings("whole", 60))
    run(crystal, **settings("parts", 40))
    resumed = run(crystal, **settings("parts", 60, resume=True))
    assert np.array_equal(whole.final.positions, resumed.final.positions)
    assert np.array_equal(whole.final.get_momenta(), resumed.final.get_momenta())
    assert (tmp_path / "whole.csv").read_text() == (tmp_path / "parts.csv").read_text()
