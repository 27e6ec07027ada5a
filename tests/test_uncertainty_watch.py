"""Runs that watch their uncertainty: a column, a colour, harvested frames, an end; whatever the engine."""

from __future__ import annotations

import csv
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.io import read, write

from snnp.data.read import read_images
from snnp.errors import ConfigError, InputError
from snnp.models import Ensemble, SplineNNP
from snnp.models.spline import special_cases
from snnp.sampling import MDSettings, run_md
from snnp.sampling.trajectory import read_log
from snnp.uncertainty import Committee


def _ensemble() -> Ensemble:
    config = special_cases.s_nnp(("Si",), n_radial=3, n_angular=3, cutoff=4.5, hidden=(4,))
    return Ensemble([SplineNNP(config, seed=seed) for seed in (0, 1)])


def _silicon() -> Atoms:
    atoms = bulk("Si", cubic=True)
    atoms.rattle(0.02, seed=0)
    return atoms


def _run(folder: Path, engine: str = "native", **more: Any) -> Any:
    names = {"trajectory": folder / "md.extxyz", "log": folder / "md.csv", "checkpoint": folder / "md.npz"}
    every = {"trajectory_interval": 5, "log_interval": 5, "checkpoint_interval": 10}
    settings = MDSettings(**{"steps": 20, "dtype": "float64", "dt_fs": 0.5, **names, **every, **more})
    return run_md(_ensemble(), _silicon(), settings, engine=engine)


ENGINES = ["native", "ase", *(["openmm"] if importlib.util.find_spec("openmm") else [])]


@pytest.mark.parametrize("engine", ENGINES)
def test_the_log_has_a_column_and_frames_a_colour(tmp_path: Path, engine: str) -> None:
    _run(tmp_path, engine, watch="uncertainty")
    samples, frames = read_log(tmp_path / "md.csv"), read(tmp_path / "md.extxyz", ":")
    assert len(samples) == len(frames) == 5
    for sample, atoms in zip(samples, frames, strict=True):
        where = atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc
        expected = Committee(_ensemble()).evaluate(*where)[1].forces
        np.testing.assert_allclose(atoms.arrays["uncertainty"], expected, atol=1e-6)
        assert sample.uncertainty == pytest.approx(expected.max(), abs=1e-6)


def test_nothing_changes_for_runs_that_do_not_watch(tmp_path: Path) -> None:
    _run(tmp_path)
    with open(tmp_path / "md.csv") as file:
        assert "uncertainty" not in next(csv.reader(file))
    assert "uncertainty" not in read(tmp_path / "md.extxyz").arrays
    watched = tmp_path / "watched"
    watched.mkdir()
    _run(watched, watch="uncertainty")
    np.testing.assert_array_equal(read(watched / "md.extxyz").positions, read(tmp_path / "md.extxyz").positions)


def test_frames_beyond_the_limit_are_harvested_and_can_be_read(tmp_path: Path) -> None:
    harvest = tmp_path / "more.extxyz"
    result = _run(tmp_path, watch="uncertainty", limit=1e-6, on_limit="harvest", harvest=harvest)
    assert result.last_step == 20
    assert result.files["harvest"] == harvest
    frames = read(harvest, ":")
    assert [atoms.info["step"] for atoms in frames] == [0, 5, 10, 15, 20]
    assert all(atoms.calc is None and atoms.info["spread"] > 1e-6 for atoms in frames)  # a model's energy is no label
    assert len(read_images(harvest)) == 5  # as the structures of a distillation are read
    # A resumed run cuts the file back to its checkpoint, and goes on.
    _run(tmp_path, watch="uncertainty", limit=1e-6, on_limit="harvest", harvest=harvest, resume=True, steps=30)
    assert [atoms.info["step"] for atoms in read(harvest, ":")] == [0, 5, 10, 15, 20, 25, 30]


def test_nothing_is_harvested_below_the_limit(tmp_path: Path) -> None:
    harvest = tmp_path / "more.extxyz"
    result = _run(tmp_path, watch="uncertainty", limit=1e6, on_limit="harvest", harvest=harvest)
    assert "harvest" not in result.files
    assert not harvest.exists()


@pytest.mark.parametrize("engine", ENGINES)
def test_a_run_ends_in_good_order_at_the_limit(tmp_path: Path, engine: str) -> None:
    _run(tmp_path, engine, watch="uncertainty", steps=60, temperature_k=3000.0)
    seen = [sample.uncertainty for sample in read_log(tmp_path / "md.csv")]
    limit = seen[0] + 0.5 * (max(seen) - seen[0])
    where = tmp_path / "stopped"
    where.mkdir()
    result = _run(where, engine, watch="uncertainty", steps=60, temperature_k=3000.0, limit=limit, on_limit="stop")
    assert 0 < result.last_step < 60
    assert f"more than {limit:g}" in result.stopped
    assert read_log(where / "md.csv")[-1].step == result.last_step
    assert (where / "md.npz").is_file()


def test_a_start_beyond_the_limit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"beyond the limit already \(spread of forces .* eV/Å, more than"):
        _run(tmp_path, watch="uncertainty", limit=1e-9, on_limit="stop")


def test_a_limit_of_what_was_never_calibrated_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    _run(tmp_path, watch="uncertainty", limit=1e6)
    assert "was never calibrated: the limit is compared with it as it is" in caplog.text


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"limit": 0.3}, "limit and on_limit are about what is watched; say watch=uncertainty, too"),
        ({"watch": "uncertainty", "on_limit": "stop"}, "on_limit 'stop' needs a limit; give one in eV/Å"),
        ({"watch": "uncertainty", "limit": 0.3, "on_limit": "harvest"}, "go together; give both or neither"),
        ({"watch": "uncertainty", "limit": 0.0}, "setting 'limit': input should be greater than 0"),
    ],
)
def test_settings_that_do_not_go_together(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        MDSettings(**given)


def test_a_model_alone_cannot_be_watched(tmp_path: Path) -> None:
    settings = MDSettings(steps=5, watch="uncertainty")
    with pytest.raises(InputError, match="is one SplineNNP and has no sign of its own uncertainty"):
        run_md("snnp-si", _silicon(), settings, engine="native")


def test_a_damaged_harvest_is_named(tmp_path: Path) -> None:
    harvest = tmp_path / "md.harvest.extxyz"
    _run(tmp_path, watch="uncertainty", limit=1e-6, on_limit="harvest", harvest=harvest)
    whole = harvest.read_text()
    for text in (whole[: len(whole) // 2], whole.replace("step=", "stop="), "8\n\n" + "\x00" * 40):
        harvest.write_text(text)
        with pytest.raises(InputError, match=r"cannot be read from .*md\.harvest\.extxyz .*move it elsewhere"):
            _run(tmp_path, watch="uncertainty", limit=1e-6, on_limit="harvest", harvest=harvest, resume=True, steps=30)
        assert harvest.read_text() == text


def test_the_distance_from_training_structures_can_be_watched(tmp_path: Path) -> None:
    near, far = _silicon(), bulk("Si", cubic=True)
    far.set_cell(far.cell * 1.15, scale_atoms=True)
    found = {}
    for name, atoms in (("near", near), ("far", far)):
        write(tmp_path / f"{name}.xyz", [atoms, atoms], format="extxyz")
        _run(tmp_path, watch=str(tmp_path / f"{name}.xyz"))
        found[name] = [sample.uncertainty for sample in read_log(tmp_path / "md.csv")]
    assert found["near"][0] == pytest.approx(0.0, abs=1e-4)
    assert max(found["near"]) < min(found["far"])
    with pytest.raises(InputError, match=r"watch: 'uncertanty' is no file; say uncertainty, or name a file"):
        _run(tmp_path, watch="uncertanty")


def test_a_harvest_of_another_run_is_refused_or_removed(tmp_path: Path) -> None:
    harvest = tmp_path / "md.harvest.extxyz"
    harvest.write_text("of another run")
    asked = {"watch": "uncertainty", "limit": 1e6, "on_limit": "harvest", "harvest": harvest}
    with pytest.raises(InputError, match=r"md\.harvest\.extxyz.* exists"):
        _run(tmp_path, overwrite=False, **asked)
    assert harvest.read_text() == "of another run"
    assert "harvest" not in _run(tmp_path, **asked).files
    assert not harvest.exists()
