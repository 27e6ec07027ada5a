"""The embedded engine against ASE's integrators, and resuming to the bit on all engines (ensembles: tests/physics)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk

from snnp.errors import ConfigError
from snnp.sampling import MDProgress, MDResult, MDSettings, run_md


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


@pytest.mark.parametrize(
    "asked",
    [
        {"ensemble": "nve"},
        {"ensemble": "nve", "equilibrate": 30},
        {"fix": "0-3", "temperature_end_k": 900.0, "equilibrate": 50},
        {"ensemble": "npt", "thermostat": "bussi", "barostat": "anisotropic", "equilibrate": 30},
    ],
)
@pytest.mark.parametrize("engine", ["native", "ase", "openmm"])
def test_a_resumed_run_is_the_uninterrupted_run(
    engine: str, asked: dict[str, Any], crystal: Atoms, tmp_path: Path
) -> None:
    def settings(name: str, steps: int, *, resume: bool = False) -> dict[str, Any]:
        files = {"checkpoint": tmp_path / f"{name}.npz", "log": tmp_path / f"{name}.csv"}
        values = {"steps": steps, "dt_fs": 2.0, "checkpoint_interval": 20, "resume": resume}
        return {**files, **values, **asked}

    whole = run(crystal, engine, **settings("whole", 60))
    if "temperature_end_k" in asked:  # a shorter run would be another ramp: this one is interrupted
        with pytest.raises(KeyboardInterrupt):
            run_md("snnp-al", crystal, MDSettings(**settings("parts", 60)), engine=engine, report=_interrupt_after(40))
        with pytest.raises(ConfigError, match="steps is 80 but the run to resume had 60"):
            run(crystal, engine, **settings("parts", 80, resume=True))
    else:
        run(crystal, engine, **settings("parts", 40))
    resumed = run(crystal, engine, **settings("parts", 60, resume=True))
    assert resumed.first_step == 40
    assert np.array_equal(whole.final.positions, resumed.final.positions)
    assert np.array_equal(whole.final.get_momenta(), resumed.final.get_momenta())
    assert np.array_equal(whole.final.cell.array, resumed.final.cell.array)
    assert (tmp_path / "whole.csv").read_text() == (tmp_path / "parts.csv").read_text()


def _interrupt_after(step: int) -> Callable[[MDProgress], None]:
    def report(progress: MDProgress) -> None:
        if progress.step > step:
            raise KeyboardInterrupt

    return report
