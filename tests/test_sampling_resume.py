"""Runs that go on: with their own structure, model, settings and files, or not at all."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import ase.io
import mdtraj
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk

from snnp.errors import ConfigError, InputError
from snnp.models import load_model
from snnp.sampling import MDResult, run_md
from snnp.sampling.checkpoint import (
    read_checkpoint,
)
from snnp.sampling.settings import MDSettings
from snnp.sampling.trajectory import read_log


def crystal(**changes: object) -> Atoms:
    atoms = bulk("Si", cubic=True)
    for name, value in changes.items():
        getattr(atoms, f"set_{name}")(value)
    return atoms


def short_run(folder: Path, structure: Atoms | None = None, model: str = "snnp-si", **changes: object) -> MDResult:
    files = {"trajectory": folder / "run.extxyz", "log": folder / "run.csv", "checkpoint": folder / "run.npz"}
    plan = {"steps": 20, "log_interval": 5, "trajectory_interval": 5, "checkpoint_interval": 10, "ensemble": "nve"}
    settings = MDSettings(**{**files, **plan, **changes})
    return run_md(model, crystal() if structure is None else structure, settings, engine="native")


@pytest.mark.parametrize(
    "structure, message",
    [
        (crystal(cell=[5.5, 5.43, 5.43]), r"has the cell \[5.4300, .* the structure \[5.5000, "),
        (crystal(pbc=(True, True, False)), r"periodic along \[True, True, True\], the structure along"),
        (crystal(masses=[30.0] * 8), "has other masses"),
        (crystal(atomic_numbers=[14] * 7 + [32]), "holds Si8, the structure is "),
    ],
)
def test_a_run_goes_on_with_its_own_structure(tmp_path: Path, structure: Atoms, message: str) -> None:
    short_run(tmp_path, steps=10)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(InputError, match=message):
        short_run(tmp_path, structure, resume=True)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_run_goes_on_with_its_own_model(tmp_path: Path) -> None:
    short_run(tmp_path, steps=10)
    with pytest.raises(InputError, match=r"with model 'snnp-si' \(sha256 .* not with model 'snnp-shared6' \(sha256"):
        short_run(tmp_path, model="snnp-shared6", resume=True)
    changed = load_model("snnp-si")
    changed.reference_energies = {"Si": 0.0}
    with pytest.raises(InputError, match="not with model 'without a name'"):
        short_run(tmp_path, model=changed, resume=True)  # type: ignore[arg-type]
    assert short_run(tmp_path, resume=True).last_step == 20


def rewrite(path: Path, header: dict[str, object] | None = None, **arrays: object) -> None:
    """Change entries of a checkpoint; None takes one away."""
    with np.load(path) as archive:
        stored = {name: archive[name] for name in archive.files}
    stored["header"] = np.array(json.dumps({**json.loads(str(stored["header"])), **(header or {})}))
    np.savez(path, **{name: value for name, value in {**stored, **arrays}.items() if value is not None})


def test_early_checkpoints_still_load_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    short_run(tmp_path, steps=10, ensemble="nvt")
    with np.load(tmp_path / "run.npz") as archive:
        stored = {name: archive[name] for name in archive.files}
    header = json.loads(str(stored["header"]))
    known = (
        "ensemble",
        "temperature_k",
        "pressure_gpa",
        "dt_fs",
        "friction_per_ps",
        "barostat_time_fs",
        "seed",
        "dtype",
    )
    header["settings"] = {k: v for k, v in header["settings"].items() if k in known or k.endswith("_interval")}
    stored["header"] = np.array(json.dumps({k: v for k, v in header.items() if k not in ("record", "tails")}))
    del stored["held"]
    np.savez(tmp_path / "run.npz", **stored)
    with caplog.at_level(logging.WARNING):
        result = short_run(tmp_path, ensemble="nvt", resume=True)
    assert (result.last_step, result.equilibration) == (20, 0)
    assert "does not say which model it was run with" in caplog.text


@pytest.mark.parametrize(
    "header, arrays, message",
    [
        ({}, {"positions": np.full((8, 3), np.nan)}, "positions holds NaN or infinity: the run had blown up"),
        ({}, {"momenta": np.full((8, 3), np.inf)}, "momenta holds NaN or infinity"),
        ({}, {"cell": np.zeros(3)}, r"cell has shape \(3,\)"),
        ({}, {"numbers": np.full(8, 200)}, "numbers are not atomic numbers"),
        ({}, {"masses": np.zeros(8)}, "masses are not positive"),
        ({}, {"held": np.zeros(7, dtype=bool)}, "held does not say of each atom"),
        ({"settings": {"dt_fs": 1.0, "equilibrate": "long"}}, {}, "'long' is not a number of steps"),
        ({}, {"momenta": None}, "momenta"),
        ({"step": -5}, {}, "-5 is not a number of steps"),
        ({"step": "ten"}, {}, "'ten' is not a number of steps"),
        ({"values": {"rng": {"bit_generator": "PCG64", "state": "junk"}}}, {}, "not a readable checkpoint"),
        ({"values": {"p_eps": float("nan")}}, {}, "p_eps is nan"),
        ({"files": {"log": [3]}}, {}, "not a readable checkpoint"),
        ({"settings": []}, {}, "not a readable checkpoint"),
        ({"record": {"model": "x"}}, {}, "not a readable checkpoint"),
    ],
)
def test_junk_in_a_checkpoint_is_named(
    tmp_path: Path, header: dict[str, object], arrays: dict[str, object], message: str
) -> None:
    short_run(tmp_path, steps=10)
    rewrite(tmp_path / "run.npz", header, **arrays)
    with pytest.raises(InputError, match=message) as caught:
        short_run(tmp_path, resume=True)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_beyond_the_last_step_is_no_success(tmp_path: Path) -> None:
    short_run(tmp_path, steps=20)
    with pytest.raises(ConfigError, match="is at step 20, beyond the last step 10 that is asked for"):
        short_run(tmp_path, steps=10, resume=True)


def test_a_changed_time_step_is_refused_or_recorded_and_time_goes_on(tmp_path: Path) -> None:
    short_run(tmp_path, steps=10, dt_fs=2.0)
    with pytest.raises(ConfigError, match=r"dt_fs is 0.5 but the run to resume had 2.0; .*accept_changes"):
        short_run(tmp_path, dt_fs=0.5, resume=True)
    short_run(tmp_path, dt_fs=0.5, resume=True, accept_changes=True)
    times = [(row.step, row.time_ps) for row in read_log(tmp_path / "run.csv")]
    assert times == [(0, 0.0), (5, 0.01), (10, 0.02), (15, 0.0225), (20, 0.025)]
    frames = ase.io.read(tmp_path / "run.extxyz", index=":")
    assert [frame.info["time_fs"] for frame in frames] == [0.0, 10.0, 20.0, 22.5, 25.0]
    record = read_checkpoint(tmp_path / "run.npz").record
    assert record.changes == [{"step": 10, "setting": "dt_fs", "before": 2.0, "now": 0.5}]
    with pytest.raises(ConfigError, match="ensemble is 'nvt' but the run to resume had 'nve'; keep it, or start a new"):
        short_run(tmp_path, steps=30, dt_fs=0.5, ensemble="nvt", resume=True, accept_changes=True)


def test_dcd_holds_one_time_step(tmp_path: Path) -> None:
    short_run(tmp_path, steps=10, trajectory=tmp_path / "run.dcd")
    changed = {"resume": True, "dt_fs": 0.5, "accept_changes": True}
    with pytest.raises(ConfigError, match="holds one time step and one interval"):
        short_run(tmp_path, trajectory=tmp_path / "run.dcd", **changed)
    short_run(tmp_path, trajectory=tmp_path / "rest.dcd", **changed)
    assert mdtraj.load(str(tmp_path / "rest.dcd"), top=str(tmp_path / "rest_topology.pdb")).n_frames == 2


def test_the_trajectory_of_another_run_is_not_cut(tmp_path: Path) -> None:
    short_run(tmp_path, steps=10)
    log = (tmp_path / "run.csv").read_bytes() + b"15,"
    (tmp_path / "run.csv").write_bytes(log)
    foreign = (tmp_path / "run.extxyz").read_bytes().replace(b"1", b"2") * 2
    (tmp_path / "run.extxyz").write_bytes(foreign)
    with pytest.raises(InputError, match=r"run.extxyz' is not the file that the run wrote"):
        short_run(tmp_path, resume=True)
    assert (tmp_path / "run.extxyz").read_bytes() == foreign
    assert (tmp_path / "run.csv").read_bytes() == log


def test_runs_do_not_share_files_and_replace_them_only_if_allowed(tmp_path: Path) -> None:
    def once_more(now: object) -> None:
        with pytest.raises(InputError, match="is being written by another run"):
            short_run(tmp_path)

    files = {"log": tmp_path / "run.csv", "trajectory": tmp_path / "run.xyz", "steps": 10}
    run_md("snnp-si", crystal(), MDSettings(**files), engine="native", report=once_more)
    with pytest.raises(InputError, match=r"run.xyz' exists already and would be replaced"):
        run_md("snnp-si", crystal(), MDSettings(**files, overwrite=False), engine="native")
    assert not list(tmp_path.glob(".*"))


def test_step_zero_is_written_once(tmp_path: Path) -> None:
    class KilledError(Exception): ...

    def kill(now: object) -> None:
        raise KilledError

    settings = MDSettings(
        **{name: tmp_path / f"run.{ending}" for name, ending in (("log", "csv"), ("checkpoint", "npz"))},
        **{"trajectory": tmp_path / "run.xyz", "log_interval": 10, "trajectory_interval": 10, "steps": 20},
    )
    for engine in ("ase", "native", "openmm"):
        with pytest.raises(KilledError):
            run_md("snnp-si", crystal(), settings, engine=engine, report=kill)
        run_md("snnp-si", crystal(), settings.model_copy(update={"resume": True}), engine=engine)
        assert [row.step for row in read_log(tmp_path / "run.csv")] == [0, 10, 20]
        assert len(ase.io.read(tmp_path / "run.xyz", index=":")) == 3
