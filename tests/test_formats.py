"""Versions of `config.json`: files of every version load and give the numbers that they gave when they were written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
from ase import Atoms

from snnp.data import convert, load_dataset
from snnp.errors import ModelFileError
from snnp.models import load_model, save_model
from snnp.models.formats import FORMAT_VERSION, UNITS
from snnp.sampling import MDSettings, run_md
from snnp.structure import Structure

FORMATS = Path(__file__).parent / "formats"
OLD = sorted(FORMATS.glob("model-v*"))


@pytest.mark.parametrize("folder", OLD, ids=lambda path: path.name)
def test_old_model_gives_its_old_numbers(folder: Path) -> None:
    """The energies and forces were stored beside the model by the release that wrote it."""
    assert json.loads((folder / "config.json").read_text())["format_version"] < FORMAT_VERSION
    model, wanted = load_model(folder), json.loads((folder / "expected.json").read_text())
    found = model.compute(Structure.from_ase(Atoms(wanted["symbols"], wanted["positions"])))
    assert found.forces is not None
    assert float(found.energy) == pytest.approx(wanted["energy"], abs=1e-10)
    np.testing.assert_allclose(found.forces.numpy(), wanted["forces"], atol=1e-10)


def test_every_old_version_has_an_example() -> None:
    assert [path.name for path in OLD] == [f"model-v{version}" for version in range(1, FORMAT_VERSION)]


@pytest.mark.parametrize("folder", OLD, ids=lambda path: path.name)
def test_old_model_is_saved_in_the_present_form(folder: Path, tmp_path: Path) -> None:
    model = load_model(folder)
    stored = json.loads((save_model(model, tmp_path / "new") / "config.json").read_text())
    assert stored["format_version"] == FORMAT_VERSION
    assert stored["elements"] == ["Si", "C"]
    assert stored["cutoff"] == 4.0
    assert stored["units"] == UNITS
    assert stored["metadata"] == {"licence": "CC0-1.0", "dataset": "none"}
    assert load_model(tmp_path / "new").reference_energies == model.reference_energies


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "other units": ({"units": {"energy": "kcal/mol", "length": "angstrom"}}, "units must be"),
    "no units": ({"units": None}, "units must be"),
    "other elements": ({"elements": ["C", "Si"]}, "elements are Si, C, config.json says"),
    "elements that are a word": ({"elements": "SiC"}, "elements are"),
    "another cutoff": ({"cutoff": 5.0}, "cutoff is 4 Å, config.json says 5.0"),
    "a cutoff that is no number": ({"cutoff": float("nan")}, "cutoff is 4 Å"),
    "a cutoff that is a word": ({"cutoff": "4.0"}, "cutoff is 4 Å"),
}


@pytest.mark.parametrize("name", WRONG)
def test_statements_must_hold(tmp_path: Path, name: str) -> None:
    """Other programs read them without knowing the class: they must be true."""
    changes, words = WRONG[name]
    folder = save_model(load_model(OLD[0]), tmp_path / "model")
    stored = {**json.loads((folder / "config.json").read_text()), **changes}
    (folder / "config.json").write_text(json.dumps(stored))
    with pytest.raises(ModelFileError, match=words):
        load_model(folder)


def test_a_dataset_of_the_first_version_is_read_to_the_same_digits(tmp_path: Path) -> None:
    folder = FORMATS / "dataset-v1"
    dataset = load_dataset(folder / "data.parquet")
    assert (dataset.method, dataset.software, len(dataset)) == ("DFT-PBE", "none", 6)
    assert convert({"": [folder / "data.parquet"]}, tmp_path / "back.xyz") == 6
    assert (tmp_path / "back.xyz").read_text() == (folder / "expected.xyz").read_text()


def test_a_run_of_the_first_version_goes_on_to_the_same_digits(tmp_path: Path) -> None:
    """The checkpoint is of step 20; the release that wrote it continued to step 40 and left `expected.csv`."""
    folder = tmp_path / "md"
    shutil.copytree(FORMATS / "md-v1", folder)
    settings = MDSettings(
        **{"ensemble": "nvt", "temperature_k": 200.0, "dt_fs": 0.5, "seed": 3, "steps": 40, "dtype": "float64"},
        **{"log_interval": 10, "trajectory_interval": 10, "resume": True},
        **{"trajectory": folder / "md.extxyz", "log": folder / "md.csv", "checkpoint": folder / "md.npz"},
    )
    run_md(FORMATS / "model-v2", ase.io.read(folder / "start.extxyz"), settings, engine="native")
    found, wanted = (np.loadtxt(folder / name, delimiter=",", skiprows=1) for name in ("md.csv", "expected.csv"))
    np.testing.assert_allclose(found, wanted, atol=1e-7)
