"""Training of all families: the key `family`, what follows from the data, whole runs, resuming, and force training."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
import torch
import yaml
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator

from snnp.data import read_frames
from snnp.errors import ConfigError
from snnp.models import SplineNNPConfig, load_model
from snnp.models.ani.model import ANI, ANIConfig
from snnp.models.hipnn.model import HIPNN, HIPNNConfig
from snnp.training import Progress, evaluate, load_config, loop, resume, train
from snnp.training.backends import choose_backend
from snnp.training.batches import prepare
from snnp.training.problem import build_model, load_problem, resolve

pytestmark = pytest.mark.usefixtures("without_pictures")

MODELS: dict[str, dict[str, Any]] = {
    "hip-nn": {"family": "hip-nn", "n_features": 6, "n_sensitivities": 8, "n_interactions": 1, "cutoff": 4.5},
    "hip-nn-ts": {"family": "hip-nn", "n_features": 5, "n_sensitivities": 6, "n_interactions": 1, "l_max": 1},
    "ani": {"family": "ani", "hidden": [16, 8], "aev": {"radial": {"cutoff": 4.5}}},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Perturbed copper crystals with energies, forces and stresses of ASE's effective medium theory."""
    folder = tmp_path_factory.mktemp("data")
    frames = []
    for k in range(38):
        atoms = bulk("Cu", cubic=True, a=3.6)
        generator = np.random.default_rng(k)
        atoms.set_cell(atoms.cell.array @ (np.eye(3) + 0.02 * generator.normal(size=(3, 3))), scale_atoms=True)
        atoms.rattle(0.08, rng=generator)
        atoms.calc = EMT()
        results = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces(), "stress": atoms.get_stress()}
        atoms.calc = SinglePointCalculator(atoms, **results)
        frames.append(atoms)
    ase.io.write(folder / "train.xyz", frames[:32])
    ase.io.write(folder / "test.xyz", frames[32:])
    return folder


def settings(data: Path, family: str, **optimiser: object) -> dict[str, Any]:
    return {
        "data": {"train": [str(data / "train.xyz")], "valid": 0.2, "test": str(data / "test.xyz")},
        "model": MODELS[family],
        "loss": {"stress_weight": 10.0},
        "optimiser": {"epochs": 6, "batch_atoms": 32, **optimiser},
        "dtype": "float64",
        "threads": 1,
        "compression": None,  # dense crystals would take most of the time; tests of their own train on them
    }


def metrics(run: Path) -> np.ndarray:
    """Numbers of all epochs but the seconds; NaN where a cell is empty."""
    with (run / "metrics.csv").open() as handle:
        return np.array([[float(cell or "nan") for cell in row[:-1]] for row in list(csv.reader(handle))[1:]])


def test_family_chooses_the_configuration() -> None:
    tree: dict[str, Any] = {"data": {"train": ["a.xyz"]}}
    assert load_config(tree).model == SplineNNPConfig()
    assert load_config(tree, ["model.radial.n_filters=3"]).model == SplineNNPConfig(radial={"n_filters": 3})
    assert load_config(tree, ["model.family=s-nnp"]).model == SplineNNPConfig()
    tree["model"] = {"family": "hip-nn", "l_max": 1}
    config = load_config(tree)
    assert config.model == HIPNNConfig(l_max=1)
    assert load_config(config.model_dump(mode="json")) == config


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"family": "mace"}, r"key 'model': .*no family 'mace'.*s-nnp, hip-nn, ani"),
        ({"family": ["hip-nn"]}, r"key 'model': .*no family"),
        ({"family": "hip-nn", "n_feature": 3}, r"unknown key 'model.n_feature'.*'model.n_features'"),
        ({"family": "hip-nn", "n_features": 0}, r"key 'model.n_features': .*\(got 0\)"),
        ({"radial": {"n_filters": -1}}, r"key 'model.radial.n_filters': .*\(got -1\)"),
        ("hip-nn", r"key 'model': .*expected a group of keys"),
    ],
)
def test_bad_models_are_named(model: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config({"data": {"train": ["a.xyz"]}, "model": model})


def test_hierarchicality_is_for_hip_nn() -> None:
    tree = {"data": {"train": ["a.xyz"]}, "loss": {"hierarchicality_weight": 0.1}}
    with pytest.raises(ConfigError, match=r"hierarchicality_weight is for model\.family hip-nn only"):
        load_config(tree)
    assert load_config({**tree, "model": {"family": "hip-nn"}}).loss.hierarchicality_weight == 0.1


@pytest.mark.parametrize("family", MODELS)
def test_what_follows_from_the_data(data: Path, family: str) -> None:
    config = load_config(settings(data, family))
    problem = load_problem(config)
    resolved = resolve(config, problem)
    shortest = min(
        float(np.min(frame.structure.to_ase()[0].get_all_distances(mic=True) + 9.0 * np.eye(frame.n_atoms)))
        for frame in problem.split.train
    )
    if isinstance(resolved.model, ANIConfig):
        radial = resolved.model.aev.radial
        assert radial.shifts[0] == pytest.approx(0.9 * shortest, abs=1e-3)
        # As far from the cutoff as before, counted in the widths of the Gaussians.
        assert isinstance(config.model, ANIConfig)
        old = config.model.aev.radial
        distances = [(each.cutoff - each.shifts[-1]) * each.eta**0.5 for each in (radial, old)]
        assert distances[0] == pytest.approx(distances[1], rel=1e-4)
    else:
        assert isinstance(resolved.model, HIPNNConfig)
        assert resolved.model.lower == pytest.approx(0.85 * shortest, abs=1e-3)
    assert resolved.model.elements == ("Cu",)
    assert resolved.optimiser.force_training == ("exact" if family == "hip-nn" else "directional")
    assert resolve(resolved, problem) == resolved
    kept = resolve(load_config(settings(data, family), ["ranges=given"]), problem)
    assert kept.model == config.model.model_copy(update={"elements": ("Cu",)})


@pytest.mark.parametrize("family", MODELS)
def test_prepared_prediction_equals_the_model(data: Path, family: str) -> None:
    config = load_config(settings(data, family))
    problem = load_problem(config)
    model = build_model(resolve(config, problem), problem)
    frames, chosen = problem.split.train, [5, 0, 3]
    backend = choose_backend(model, torch.float64)
    batch = prepare(backend, model, frames).batch(chosen)
    differentiated = backend.predict(model, batch)
    with torch.no_grad():
        analytic = backend.predict(model, batch)
    for predicted in (differentiated, analytic):
        start = 0
        for row, k in enumerate(chosen):
            reference, n = model.compute(frames[k].structure, stress=True), frames[k].n_atoms
            error = float(reference.energy[0]) - float(frames[k].energy or 0.0)
            assert float((predicted.energy[row] - batch.energy[row]).detach()) == pytest.approx(error, abs=1e-9)
            torch.testing.assert_close(predicted.forces[start : start + n], reference.forces, rtol=0, atol=1e-9)
            torch.testing.assert_close(predicted.stress[row], reference.stress[0], rtol=0, atol=1e-9)
            start += n


@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize("force_training", ["exact", "directional"])
def test_a_run_learns(data: Path, tmp_path: Path, family: str, force_training: str) -> None:
    tree = settings(data, family, epochs=40, force_training=force_training)
    tree["dtype"] = "float32"
    result = train(load_config(tree), tmp_path / "run")
    reference = np.concatenate([frame.forces for frame in read_frames(data / "test.xyz")])
    assert result.evaluations["test"].total.forces.mae < 0.35 * np.abs(reference).mean()
    model = load_model(tmp_path / "run")
    assert isinstance(model, ANI if family == "ani" else HIPNN)
    again = evaluate(model, read_frames(data / "test.xyz"))
    assert again.total.forces.mae == pytest.approx(result.evaluations["test"].total.forces.mae, rel=1e-6)
    resolved = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert resolved["model"]["family"] == MODELS[family]["family"]
    assert resolved["optimiser"]["force_training"] == force_training


def test_both_force_trainings_take_the_same_path(data: Path, tmp_path: Path) -> None:
    """In float64 the two gradients differ by less than a millionth, so the first epochs are the same to that order."""
    for force_training in ("exact", "directional"):
        tree = settings(data, "hip-nn", epochs=3, force_training=force_training, method="adamw", displacement=1e-4)
        train(load_config(tree), tmp_path / force_training)
    exact, directional = (metrics(tmp_path / name) for name in ("exact", "directional"))
    np.testing.assert_allclose(directional, exact, rtol=1e-4)
    weights = [(tmp_path / run / "last" / "model.safetensors").read_bytes() for run in ("exact", "directional")]
    assert weights[0] != weights[1]  # they were not the same computation


@pytest.mark.parametrize("method", ["soap", "adamw"])
def test_weight_decay_leaves_distances_and_biases_alone(method: str) -> None:
    model = HIPNN(HIPNNConfig(elements=("Cu",), n_features=3, n_sensitivities=4, n_interactions=1))
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    config = load_config({"data": {"train": ["a.xyz"]}, "optimiser": {"method": method, "weight_decay": 0.5}}).optimiser
    optimiser = loop.make_optimiser(model, config)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimiser.step()
    for name, parameter in model.named_parameters():
        factor = 1.0 - 0.5 * config.learning_rate if parameter.dim() > 1 else 1.0
        torch.testing.assert_close(parameter.detach(), factor * before[name], msg=name)


def test_resume_is_as_if_never_stopped(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "_SAVE_EVERY_SECONDS", 0.0)
    config = load_config(settings(data, "hip-nn-ts", force_training="directional"))
    train(config, tmp_path / "whole")

    def stop(now: Progress) -> None:
        if now.epoch == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "stopped", stop)
    resume(tmp_path / "stopped")
    np.testing.assert_array_equal(metrics(tmp_path / "stopped"), metrics(tmp_path / "whole"))
    weights = [(tmp_path / run / "best" / "model.safetensors").read_bytes() for run in ("whole", "stopped")]
    assert weights[0] == weights[1]
