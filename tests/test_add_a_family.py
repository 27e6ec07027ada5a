"""The family of docs/add-a-family.md: its code, as it stands there, goes through all that it is said to get."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
import yaml
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.io import read, write
from cli_runs import run_json, run_snnp
from typer.testing import CliRunner

from snnp.cli.main import app
from snnp.errors import InputError
from snnp.models import load_model
from snnp.models.export import scripted_module
from snnp.models.families import FAMILIES, Family
from snnp.testing import check_potential

PAGE = Path(__file__).resolve().parents[1] / "docs" / "add-a-family.md"
BLOCK = re.compile(r"^```(?:python|text)\n(.*?)^```", re.MULTILINE | re.DOTALL)
CODE, LINE, *_ = BLOCK.findall(PAGE.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def morse() -> Iterator[ModuleType]:
    """The module of the page, with its line among the families."""
    module = ModuleType("snnp.models.morse.model")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, module.__name__, module)
        exec(compile(CODE, str(PAGE), "exec"), module.__dict__)
        (family,) = eval(LINE, {**module.__dict__, "Family": Family})
        patch.setitem(FAMILIES, "morse", family)
        yield module


@pytest.fixture(scope="module")
def run(morse: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the trainer on copper, as anybody would have it."""
    folder = tmp_path_factory.mktemp("morse")
    frames = []
    for seed in range(16):
        atoms = bulk("Cu", cubic=True, a=3.5 + 0.02 * seed)
        atoms.rattle(0.1, seed=seed)
        atoms.calc = EMT()
        energy, forces = atoms.get_potential_energy(), atoms.get_forces()
        atoms.calc = None
        atoms.info["REF_energy"], atoms.arrays["REF_forces"] = energy, forces
        frames.append(atoms)
    write(folder / "train.xyz", frames)
    tree = {
        "data": {"train": [str(folder / "train.xyz")], "valid": 0.25},
        "model": {"family": "morse", "cutoff": 5.0},
        "optimiser": {"epochs": 150, "batch_atoms": 16, "learning_rate": 0.03, "warmup_steps": 10},
        "threads": 1,
        "compression": None,
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(tree))
    torch.set_num_threads(1)
    run_snnp("train", folder / "config.yaml", "--out", folder / "run")
    return folder / "run"


def test_it_is_short() -> None:
    assert len(CODE.splitlines()) <= 60
    assert len(LINE.splitlines()) == 1


def test_it_keeps_the_contract(morse: ModuleType) -> None:
    check_potential(morse.Morse(morse.MorseConfig(elements=("Ar", "Kr"))), skip=["export"])


def test_it_learns(run: Path) -> None:
    with (run / "metrics.csv").open() as file:
        losses = np.loadtxt(file, delimiter=",", skiprows=1, usecols=3)
    assert losses[-1] < 0.2 * losses[0]
    resolved = yaml.safe_load((run / "config.yaml").read_text())
    assert resolved["model"]["family"] == "morse"
    assert resolved["model"]["repulsion"] is not None


def test_it_is_stored_and_evaluated(run: Path, morse: ModuleType) -> None:
    model = load_model(run)
    assert isinstance(model, morse.Morse)
    found = run_json("evaluate", run, run.parent / "train.xyz")
    assert found["force_mae_ev_per_angstrom"] < 0.2


@pytest.mark.parametrize("engine", ["native", "ase", "openmm"])
def test_it_moves_atoms_in_every_engine(engine: str, run: Path, tmp_path: Path) -> None:
    if engine == "openmm":
        pytest.importorskip("openmm")
    path = tmp_path / "cu.extxyz"
    arguments = ["md", run, "fcc:Cu:2x2x2", "--engine", engine, "--ensemble", "nve", "--temperature", 300]
    run_snnp(*arguments, "--steps", 40, "--every", 20, "--trajectory", path, "--plot", "none", "--dtype", "float64")
    assert len(read(path, index=":")) == 3
    total = np.genfromtxt(tmp_path / "cu.csv", delimiter=",", names=True)["total_energy_ev"]
    assert np.ptp(total) < 0.01


def test_without_a_twin_the_export_says_so(run: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"class Morse cannot be exported to TorchScript; SplineNNP, HIPNN, ANI can"):
        scripted_module(load_model(run), length_unit="angstrom", energy_unit="eV", forces=True)
    refused = CliRunner().invoke(app, ["export", str(run), str(tmp_path / "morse.pt")])
    assert refused.exit_code == 1
    assert "models of class Morse cannot be exported" in refused.stderr
