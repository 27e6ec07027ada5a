"""Before the first step: features are standardised, and an embedding's grid covers its arguments."""

from __future__ import annotations

import os
from pathlib import Path

import ase.io
import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk

from snnp.errors import ConfigError
from snnp.models.spline_nnp import SplineNNP
from snnp.training import TrainConfig, load_config
from snnp.training.prepared import prepare
from snnp.training.setup import build_model, load_problem, resolve, standardise

MODEL = {
    "radial": {"n_filters": 2, "cutoff": 4.5, "intervals": 6},
    "angular": {"n_filters": 3, "cutoff": 4.0, "intervals": 6, "angle_intervals": 4, "evaluator": "spline"},
}


def _frames() -> list[Atoms]:
    frames = []
    for k in range(6):
        atoms = bulk("Cu", cubic=True, a=3.5 + 0.05 * k) * (2, 1, 1)
        atoms.rattle(0.2, seed=k)
        atoms.info["energy"] = -3.0 * len(atoms) + 0.1 * k
        atoms.arrays["forces"] = np.zeros((len(atoms), 3))
        frames.append(atoms)
    return frames


def _standardised(folder: Path, **model: object) -> tuple[SplineNNP, torch.Tensor]:
    """A fresh model after standardisation, and its features [n, D] of the training set."""
    ase.io.write(folder / "train.xyz", _frames())
    config = load_config({"data": {"train": [str(folder / "train.xyz")], "valid": 0.0}, "model": {**MODEL, **model}})
    problem = load_problem(config)
    built = build_model(resolve(config, problem), problem)
    data = prepare(built, problem.split.train, torch.float64)
    standardise(built, data)
    with torch.no_grad():
        return built, built.features(data.everything.geometry)


@pytest.mark.parametrize("of", ["sum", "features"])
@pytest.mark.parametrize("limits", [(-2.0, 2.0), (-1.0, 3.0)])
def test_embedding_arguments_spread_over_the_grid(tmp_path: Path, of: str, limits: tuple[float, float]) -> None:
    embedding = {"of": of, "lower": limits[0], "upper": limits[1]}
    _, features = _standardised(tmp_path, embedding=embedding, network=None, skip=False)
    arguments = features.sum(dim=1, keepdim=True) if of == "sum" else features
    inside = (arguments > limits[0]) & (arguments < limits[1])
    assert float(inside.double().mean()) > 0.97
    centre = arguments.mean(dim=0)
    torch.testing.assert_close(centre, torch.full_like(centre, sum(limits) / 2.0), rtol=0.0, atol=1e-9)
    spread = (limits[1] - limits[0]) / arguments.std(dim=0)
    assert bool(((spread > 2.5) & (spread < 14.0)).all())


@pytest.mark.parametrize("path", ["$SNNP_DATA/Si.xyz", "${SNNP_DATA}/Si.xyz"])
def test_an_unset_variable_is_named_with_the_cure(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SNNP_DATA", raising=False)
    with pytest.raises(ConfigError, match=r"variable SNNP_DATA, which is not set; 'export SNNP_DATA=/path"):
        load_problem(TrainConfig.model_validate({"data": {"train": [path]}}))
    assert "SNNP_DATA" not in os.environ


def test_features_without_embedding_keep_their_filters(tmp_path: Path) -> None:
    model, features = _standardised(tmp_path, network={"hidden": [4]})
    fresh = SplineNNP(model.config, seed=0)
    torch.testing.assert_close(model.rho.free, fresh.rho.free)
    torch.testing.assert_close(features.mean(dim=0), model.readout.mean)
    torch.testing.assert_close(features.std(dim=0, correction=0), model.readout.std)
