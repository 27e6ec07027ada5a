"""Data and a training run that the tests of commands share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.io import write
from cli_runs import run_snnp


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with labelled copper structures and a configuration."""
    folder = tmp_path_factory.mktemp("data")
    frames = []
    for seed in range(12):
        atoms = bulk("Cu", cubic=True)
        atoms.set_cell(atoms.cell * np.random.default_rng(seed).uniform(0.96, 1.04), scale_atoms=True)
        atoms.rattle(0.08, seed=seed)
        atoms.calc = EMT()
        energy, forces = atoms.get_potential_energy(), atoms.get_forces()
        atoms.calc = None
        atoms.info |= {"my_energy": energy, "config_type": "odd" if seed % 2 else "even"}
        atoms.arrays["my_forces"] = forces
        frames.append(atoms)
    write(folder / "train.xyz", frames[:9])
    write(folder / "test.xyz", frames[9:])
    (folder / "config.yaml").write_text(
        f"""
data:
  train: [{folder}/train.xyz]
  valid: 0.2
  test: {folder}/test.xyz
  energy_key: my_energy
  forces_key: my_forces
model:
  radial: {{n_filters: 3, cutoff: 4.0}}
  angular: {{n_filters: 3, cutoff: 4.0, degree: 2}}
  network: {{hidden: [4]}}
optimiser: {{epochs: 30, batch_atoms: 8}}
threads: 1
"""
    )
    return folder


@pytest.fixture(scope="module")
def run(data: Path) -> Path:
    """The folder of a training run, made by the command."""
    torch.set_num_threads(1)
    run_snnp("train", data / "config.yaml", "--set", "optimiser.epochs=20", "--out", data / "run")
    return data / "run"
