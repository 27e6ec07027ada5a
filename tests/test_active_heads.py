"""The loop with a committee that shares its filters, and with molecules to begin with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from active_runs import SMALL, no_report, settings, untrained
from ase.build import molecule
from ase.io import read, write

import snnp.training.evaluation
from snnp.active import ActiveSettings, account, run
from snnp.active.stages import Stages, place, train
from snnp.data.read import read_any
from snnp.errors import ConfigError
from snnp.hub import load_model
from snnp.models.ensemble import Ensemble
from snnp.models.heads import SharedFilters


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No pictures."""
    monkeypatch.setattr(account, "write", no_report)
    monkeypatch.setattr(snnp.training.evaluation, "plot_parity", lambda *_: None)
    monkeypatch.setattr(snnp.training.evaluation, "plot_loss", lambda *_: None)


def _ethanol(path: Path, **changes: Any) -> ActiveSettings:
    write(path, molecule("CH3CH2OH"))
    changes = {"elements": ["H", "C", "O"], "start": {"molecules": str(path), "number": 12}, **changes}
    return settings(**changes)


def test_one_model_with_heads_is_a_committee(tmp_path: Path) -> None:
    asked = settings(
        heads=True, members=3, training=SMALL, start={"number": 20}, limits={"labels": 40, "rounds": 1}, per_round=8,
        sampling={"trajectories": 4, "picoseconds": 0.02, "n_atoms": [6, 8], "energy_limit": 1e-5},
    )  # fmt: skip
    result = run(asked, tmp_path / "run")
    assert result.finished
    assert result.model is not None
    here = tmp_path / "run" / "round-1"
    assert (here / "filters" / "summary.json").is_file()
    assert sorted(path.name for path in (here / "heads").iterdir()) == ["best", "head-0", "head-1", "head-2"]
    kept = load_model(str(tmp_path / "run"))
    assert isinstance(kept, Ensemble)
    assert len(kept.potentials) == 3
    assert SharedFilters().evaluator(kept.potentials) is not None
    assert "uncertainty" not in result.model.metadata  # 20 to 28 labels leave fewer than 8 to calibrate with
    # What is there is not trained again, and gives the same to the bit.
    stamps = {path: path.stat().st_mtime_ns for path in here.rglob("summary.json")}
    known = next(iter(read_any(here / "labels.extxyz")))
    again = train(asked, known, here, lambda *_: None).value
    first = torch.cat([value.flatten() for value in again.parameters()])
    second = torch.cat([value.flatten() for value in train(asked, known, here, lambda *_: None).value.parameters()])
    assert torch.equal(first, second)
    assert stamps == {path: path.stat().st_mtime_ns for path in here.rglob("summary.json")}


def test_heads_need_filters() -> None:
    with pytest.raises(ConfigError, match=r"heads: true needs filters to share.*training.model.family is hip-nn"):
        settings(heads=True, training={"model": {"family": "hip-nn"}})


def test_molecules_begin_as_conformers_and_each_round_has_its_own(tmp_path: Path) -> None:
    asked = _ethanol(tmp_path / "ethanol.xyz")
    first, second = place(asked, 12, 0), place(asked, 12, 1)
    assert {str(atoms.symbols) for atoms in first} == {str(molecule("CH3CH2OH").symbols)}
    shapes = np.array([np.sort(atoms.get_all_distances().ravel()) for atoms in [*first, *second]])
    assert np.abs(shapes[:, None] - shapes[None]).max(axis=2)[~np.eye(24, dtype=bool)].min() > 1e-3
    assert all(np.array_equal(a.positions, b.positions) for a, b in zip(first, place(asked, 12, 0), strict=True))
    with pytest.raises(ConfigError, match=r"start.molecules hold O, which elements does not name"):
        place(_ethanol(tmp_path / "ethanol.xyz", elements=["H", "C"]), 3)
    with pytest.raises(ConfigError, match=r"start.data and start.molecules were both given"):
        settings(start={"molecules": "CCO", "data": "a.xyz"})


def test_trajectories_of_molecules_begin_with_conformers(tmp_path: Path) -> None:
    springs = {"calculator": "ase.calculators.emt:EMT", "check_units": "off"}
    asked = _ethanol(
        tmp_path / "ethanol.xyz", labeller=springs, limits={"labels": 20, "rounds": 1}, probe={"number": 0},
        sampling={"trajectories": 4, "picoseconds": 0.01, "energy_limit": 1e-6},
    )  # fmt: skip
    run(asked, tmp_path / "run", work=Stages(train=untrained))
    sampled = read(tmp_path / "run" / "round-1" / "sample" / "frames.extxyz", ":")
    assert sampled
    assert all(str(atoms.symbols) == str(molecule("CH3CH2OH").symbols) and not atoms.pbc.any() for atoms in sampled)
