"""Versions of `config.json`: files of every version load and give the numbers that they gave when they were written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms

from snnp.errors import ModelFileError
from snnp.models import load_model, save_model
from snnp.models.formats import FORMAT_VERSION, UNITS
from snnp.structure import Structure

OLD = sorted((Path(__file__).parent / "formats").glob("model-v*"))


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
