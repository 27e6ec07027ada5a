"""Training that goes on from a model: other elements, other zeros of energy, frozen filters, and exact resuming."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.io import write
from typer.testing import CliRunner

from snnp.cli.main import app
from snnp.errors import ConfigError
from snnp.models import SplineNNP
from snnp.models.store import load_model
from snnp.process import Interrupted
from snnp.training import Progress, load_config, resume, train

_FORM: dict[str, Any] = {
    "filters": "shared",
    "radial": {"n_filters": 4, "cutoff": 4.5},
    "angular": {"n_filters": 3, "cutoff": 4.0, "degree": 2},
    "network": {"hidden": [6]},
}


def _write(path: Path, symbol: str, shift: float = 0.0, n: int = 8) -> str:
    """Labelled crystals; `shift` eV/atom moves the zero of energy."""
    frames = []
    for seed in range(n):
        atoms: Atoms = bulk(symbol, cubic=True)
        atoms.set_cell(atoms.cell * np.random.default_rng(seed).uniform(0.96, 1.04), scale_atoms=True)
        atoms.rattle(0.08, seed=seed)
        atoms.calc = EMT()
        energy, forces = atoms.get_potential_energy(), atoms.get_forces()
        atoms.calc = None
        atoms.info["REF_energy"] = energy + shift * len(atoms)
        atoms.arrays["REF_forces"] = forces
        frames.append(atoms)
    write(path, frames)
    return str(path)


def _config(file: str, epochs: int = 4, **changes: Any) -> Any:
    tree = {"data": {"train": file, "valid": 0.25}, "model": _FORM, "compression": None, "threads": 1}
    tree["optimiser"] = {"epochs": epochs, "batch_atoms": 16, "warmup_steps": 5}
    return load_config({**tree, **changes})


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data of Cu, Ni and Cu of another zero, a model of Cu and Ni with shared filters, and one of Cu."""
    folder = tmp_path_factory.mktemp("transfer")
    for symbol in ("Cu", "Ni", "Ag"):
        _write(folder / f"{symbol}.xyz", symbol)
    _write(folder / "moved.xyz", "Cu", shift=-7.0)
    both = {"data": {"train": [str(folder / "Cu.xyz"), str(folder / "Ni.xyz")], "valid": 0.25}}
    train(_config("", 12, **both), folder / "shared")
    train(_config(str(folder / "Cu.xyz"), 12, model={**_FORM, "filters": "element"}), folder / "single")
    hip = {"family": "hip-nn", "n_features": 4, "n_sensitivities": 5, "n_interactions": 1, "n_atom_layers": 1}
    train(_config(str(folder / "Cu.xyz"), 1, model=hip), folder / "hip")
    return folder


def _energy(model: Any, symbol: str) -> float:
    atoms = bulk(symbol, cubic=True)
    atoms.rattle(0.05, seed=3)
    return float(model.compute(atoms, forces=False).energy)


def test_frozen_filters_stay_and_known_elements_stay_exactly(made: Path, tmp_path: Path) -> None:
    config = _config(str(made / "Ag.xyz"), 8, start=str(made / "shared"), freeze="filters")
    result = train(config, tmp_path / "run")
    before, after = load_model(made / "shared"), load_model(tmp_path / "run")
    assert isinstance(before, SplineNNP)
    assert isinstance(after, SplineNNP)
    assert set(after.elements) == {"Cu", "Ni", "Ag"}
    for name in ("rho", "f", "g"):
        assert torch.equal(getattr(after, name).free, getattr(before, name).free)
    for symbol in ("Cu", "Ni"):
        assert _energy(after, symbol) == pytest.approx(_energy(before, symbol), abs=1e-6)
    assert result.evaluations["train"].total.to_dict()["energy_mae_mev_per_atom"] < 200.0


def test_new_elements_replace_old_ones_where_filters_move(made: Path, tmp_path: Path) -> None:
    for start in ("shared", "single"):
        train(_config(str(made / "Ag.xyz"), start=str(made / start)), tmp_path / start)
        model = load_model(tmp_path / start)
        assert model.elements == ("Ag",)
        assert model.config.radial.n_filters == 4  # type: ignore[attr-defined]


def test_fine_tuning_begins_with_the_model(made: Path, tmp_path: Path) -> None:
    """A learning rate of next to nothing leaves energies where they were."""
    config = _config(str(made / "Cu.xyz"), 1, start=str(made / "shared"))
    slow = config.model_copy(update={"optimiser": config.optimiser.model_copy(update={"learning_rate": 1e-9})})
    train(slow, tmp_path / "run")
    before, after = load_model(made / "shared"), load_model(tmp_path / "run")
    assert after.elements == before.elements
    assert _energy(after, "Cu") == pytest.approx(_energy(before, "Cu"), abs=1e-3)
    assert after.reference_energies == before.reference_energies


def test_another_zero_of_energy_moves_e0(made: Path, tmp_path: Path) -> None:
    config = _config(str(made / "moved.xyz"), 1, start=str(made / "shared"))
    train(config, tmp_path / "run")
    before, after = (load_model(folder).reference_energies for folder in (made / "shared", tmp_path / "run"))
    assert after["Cu"] == pytest.approx(before["Cu"] - 7.0, abs=0.2)
    assert after["Ni"] == before["Ni"]
    model = load_model(tmp_path / "run")
    assert "moved to the zero" in model.metadata["reference_energies_from"]["Cu"]
    errors = model.metadata["errors"]["train"]
    assert errors["energy_mae_mev_per_atom"] < 100.0


def test_every_family_goes_on(made: Path, tmp_path: Path) -> None:
    result = train(_config(str(made / "Cu.xyz"), 1, start=str(made / "hip")), tmp_path / "run")
    assert type(result.model).__name__ == "HIPNN"


def test_resumed_runs_end_alike(made: Path, tmp_path: Path) -> None:
    config = _config(str(made / "Ag.xyz"), 6, start=str(made / "shared"), freeze="filters")
    whole = train(config, tmp_path / "whole").model.state_dict()

    def stop(now: Progress) -> None:
        if now.epoch == 3:
            raise Interrupted(2, "stopped")

    with pytest.raises(Interrupted):
        train(config, tmp_path / "cut", stop)
    resumed = resume(tmp_path / "cut").model.state_dict()
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())


@pytest.mark.parametrize(
    ("data", "changes", "words"),
    [
        ("Cu", {"freeze": "filters"}, "name the model with start"),
        ("Cu", {"start": "hip", "freeze": "filters"}, "a model without filters; use freeze: none"),
        ("Cu", {"start": "hip", "freeze": "heads"}, "'none' or 'filters'"),
        ("Ag", {"start": "hip"}, "cannot learn more elements"),
        ("Cu", {"start": "ani-1ccx"}, "is an ensemble; name one model"),
        ("Ag", {"start": "snnp-organic"}, "a model whose filters all elements share"),
        ("Cu", {"start": "nowhere"}, "nowhere"),
    ],
)
def test_refusals_name_the_cure(made: Path, tmp_path: Path, data: str, changes: dict[str, str], words: str) -> None:
    start = changes.get("start")
    if start == "hip":
        changes = {**changes, "start": str(made / "hip")}
    with pytest.raises(Exception, match=words) as error:
        train(_config(str(made / f"{data}.xyz"), **changes), tmp_path / "run")
    assert isinstance(error.value, ConfigError) or start == "nowhere"


def test_command(made: Path, tmp_path: Path) -> None:
    (tmp_path / "few.yaml").write_text(
        f"data: {{train: [{made}/Ag.xyz], valid: 0.25}}\noptimiser: {{epochs: 2}}\ncompression: null\n"
    )
    words = ["train", str(tmp_path / "few.yaml"), "--from", str(made / "shared"), "--freeze", "filters"]
    done = CliRunner().invoke(app, [*words, "--out", str(tmp_path / "run")])
    assert done.exit_code == 0, done.output
    assert "freeze: filters" in (tmp_path / "run/config.yaml").read_text()
    wrong = CliRunner().invoke(app, [*words[:-1], "heads", "--out", str(tmp_path / "other")])
    assert wrong.exit_code == 1
    assert "'none' or 'filters'" in wrong.output
