"""Training: gradients of the loss, the optimiser, a run's folder, resuming after SIGKILL, divergence."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import ase.io
import numpy as np
import pytest
import torch
import yaml
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from safetensors import safe_open
from safetensors.torch import save_file

from snnp.data import read_frames
from snnp.errors import ConfigError, DataError, TrainingError
from snnp.models import load_model
from snnp.models.potential import Potential
from snnp.training import evaluate, load_config, resume, train
from snnp.training.backends import choose_backend
from snnp.training.batches import prepare
from snnp.training.loop import Loss
from snnp.training.problem import build_model, load_problem, resolve
from snnp.training.soap import Soap, _eigenbasis
from snnp.training.transfer import frame_weights


def emt_frames(n: int, seed: int = 0) -> list[Atoms]:
    """Perturbed copper crystals with the energies, forces and stresses of ASE's effective medium theory."""
    frames = []
    for k in range(n):
        atoms = bulk("Cu", cubic=True, a=3.6) * (2, 1, 1)
        generator = np.random.default_rng([seed, k])
        atoms.set_cell(atoms.cell.array @ (np.eye(3) + 0.01 * generator.normal(size=(3, 3))), scale_atoms=True)
        atoms.rattle(0.05, rng=generator)
        atoms.calc = EMT()
        results = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces(), "stress": atoms.get_stress()}
        results["energies"] = atoms.get_potential_energies()
        atoms.calc = SinglePointCalculator(atoms, **results)
        atoms.info["group"] = "hot" if k % 2 else "cold"
        frames.append(atoms)
    return frames


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    ase.io.write(folder / "train.xyz", emt_frames(40))
    ase.io.write(folder / "test.xyz", emt_frames(6, seed=1))
    return folder


def settings(data: Path, **optimiser: object) -> dict[str, object]:
    return {
        "data": {"train": [str(data / "train.xyz")], "valid": 0.2, "test": str(data / "test.xyz")},
        "model": {
            "radial": {"n_filters": 4, "cutoff": 4.5, "intervals": 6},
            "angular": {"n_filters": 4, "cutoff": 4.5, "intervals": 6, "degree": 3},
            "network": {"hidden": [8]},
        },
        "loss": {"stress_weight": 10.0, "atomic_energy_weight": 5.0, "atomic_energy_weight_end": 1.0},
        "optimiser": {"epochs": 6, "batch_atoms": 32, **optimiser},
        "dtype": "float64",
        "threads": 1,
    }


@pytest.mark.parametrize("evaluator", ["legendre", "spline"])
def test_prepared_prediction_equals_the_model(data: Path, evaluator: str) -> None:
    tree = settings(data)
    tree["model"]["angular"]["evaluator"] = evaluator  # type: ignore[index]
    config = load_config(tree)
    problem = load_problem(config)
    config = resolve(config, problem)
    model = build_model(config, problem)
    frames = problem.split.train
    prepared = prepare(choose_backend(model, torch.float64), model, frames)
    chosen = [5, 0, 3]
    batch = prepared.batch(chosen)
    with torch.no_grad():
        predicted = prepared.backend.predict(model, batch)
    start = 0
    for row, k in enumerate(chosen):
        reference = model.compute(frames[k].structure, stress=True)
        n = frames[k].structure.n_atoms
        error = reference.energy[0] - frames[k].energy
        assert float(predicted.energy[row] - batch.energy[row]) == pytest.approx(float(error), abs=1e-9)
        residual = predicted.forces[start : start + n] - batch.forces[start : start + n]
        expected = reference.forces - torch.from_numpy(frames[k].forces)
        torch.testing.assert_close(residual, expected, rtol=0, atol=1e-9)
        residual = predicted.energies[start : start + n] - batch.energies[start : start + n]
        expected = reference.energies - torch.from_numpy(frames[k].energies)
        torch.testing.assert_close(residual, expected, rtol=0, atol=1e-9)
        residual = predicted.stress[row] - batch.stress[row]
        expected = reference.stress[0] - torch.from_numpy(frames[k].stress)
        torch.testing.assert_close(residual, expected, rtol=0, atol=1e-9)
        start += n


def test_loss_gradient_equals_finite_differences(data: Path) -> None:
    config = load_config(settings(data))
    problem = load_problem(config)
    model = build_model(resolve(config, problem), problem)
    backend, loss = choose_backend(model, torch.float64), Loss.at(config.loss, 0.0)
    batch = prepare(backend, model, problem.split.train[:3]).batch([0, 1, 2])

    def value() -> torch.Tensor:
        return loss(backend.predict(model, batch), batch).value

    assert float(backend.backward(model, batch, loss)) == pytest.approx(float(value()), rel=1e-12)
    for parameter in (model.f.free, model.g.free, model.rho.free, model.readout.network.weights[0]):
        direction = torch.randn(parameter.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        analytic = float((parameter.grad * direction).sum())
        with torch.no_grad():
            parameter += 1e-5 * direction
            upper = float(value())
            parameter -= 2e-5 * direction
            lower = float(value())
            parameter += 1e-5 * direction
        assert (upper - lower) / 2e-5 == pytest.approx(analytic, rel=1e-5, abs=1e-8)


def test_frames_weigh_by_their_energy_above_the_lowest(data: Path) -> None:
    problem = load_problem(load_config(settings(data)))
    model = build_model(resolve(load_config(settings(data)), problem), problem)
    backend, frames = choose_backend(model, torch.float64), problem.split.train[:3]
    bound = frames.energy / frames.counts
    expected = (0.1 / (0.1 + bound - bound.min())) ** 2
    prepared = prepare(backend, model, frames, energy_scale=0.1)
    batch = prepared.batch([0, 1, 2])
    np.testing.assert_allclose(batch.weight, expected / expected.mean(), rtol=1e-12)
    assert float(batch.weight.max()) > 1.05 * float(batch.weight.min())
    assert prepare(backend, model, frames).batch([0, 1, 2]).weight.tolist() == [1.0, 1.0, 1.0]
    assert frame_weights(model, frames[:0], 0.1).shape == (0,)  # a piece of a stream of which no frame is learned
    # A weight is as if a frame were there so many times: in the loss, and in what it asks of the prediction.
    loss = Loss.at(load_config(settings(data)).loss, 0.0)
    once = replace(batch, weight=torch.tensor([2.0, 1.0, 0.0], dtype=torch.float64))
    with torch.no_grad():
        found = loss(backend.predict(model, once), once)
        alone = [replace(prepared.batch([k]), weight=torch.ones(1, dtype=torch.float64)) for k in (0, 1)]
        first, second = (loss(backend.predict(model, each), each).value for each in alone)
    torch.testing.assert_close(found.value, (2.0 * first + second) / 3.0)
    assert found.to_forces is not None
    assert not found.to_forces[batch.owner == 2].any()


def test_missing_forces_are_ignored_and_not_zero(data: Path) -> None:
    config = load_config(settings(data))
    problem = load_problem(config)
    model = build_model(resolve(config, problem), problem)
    frame = problem.split.train[0]
    without = type(frame)(frame.structure, frame.energy, None, None, frame.group, frame.source)
    backend = choose_backend(model, torch.float64)
    batch = prepare(backend, model, [without]).batch([0])
    assert bool(batch.forces.isnan().all())
    value = backend.backward(model, batch, Loss.at(config.loss, 0.0))
    assert bool(torch.isfinite(value))
    assert all(bool(torch.isfinite(p.grad).all()) for p in model.parameters())


def test_soap_beats_adam_on_a_correlated_problem() -> None:
    """A least-squares problem with strongly correlated inputs, equal steps, and the best of several rates for Adam."""
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(12, 12, generator=generator) * torch.logspace(0, -2, 12)
    inputs = torch.randn(400, 12, generator=generator) @ mixing
    targets = inputs @ torch.randn(12, 8, generator=generator)

    def final(kind: type, rate: float) -> float:
        weight = torch.zeros(12, 8, requires_grad=True)
        optimiser = kind([weight], lr=rate)
        for step in range(300):
            optimiser.param_groups[0]["lr"] = rate * (1.0 - step / 300)
            error = (inputs @ weight - targets).square().mean()
            optimiser.zero_grad()
            error.backward()
            optimiser.step()
        return float(error.detach())

    assert final(Soap, 0.1) < 0.1 * min(final(torch.optim.Adam, rate) for rate in (0.01, 0.03, 0.1, 0.3))


def test_soap_gives_many_rows_a_basis_for_each_matrix() -> None:
    """As if each were a parameter of its own; few rows share one."""

    def steps(shape: tuple[int, ...], apart: bool) -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        gradients = [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(25)]
        whole = torch.zeros(shape, dtype=torch.float64)
        parameters = [each.clone() for each in whole] if apart else [whole]
        optimiser = Soap([each.requires_grad_() for each in parameters], lr=0.1)
        for gradient in gradients:
            for parameter, own in zip(parameters, gradient if apart else [gradient], strict=True):
                parameter.grad = own.clone()
            optimiser.step()
        return torch.stack(parameters).detach().reshape(shape)

    torch.testing.assert_close(steps((4, 70, 5), apart=False), steps((4, 70, 5), apart=True))
    assert not torch.allclose(steps((4, 7, 5), apart=False), steps((4, 7, 5), apart=True))


def test_the_first_basis_of_a_matrix_is_what_it_was_to_the_bit() -> None:
    """Where eigenvalues are equal, the last bit of the jitter chooses the vectors, and a recipe ends elsewhere."""
    for rows, columns in ((24, 6), (6, 24), (9, 9)):
        tall = torch.randn(rows, columns, generator=torch.Generator().manual_seed(rows))
        matrix = tall @ tall.T
        jitter = 1e-30 + 1e-7 * float(matrix.diagonal().mean())
        _, vectors = torch.linalg.eigh(matrix.double() + jitter * torch.eye(rows, dtype=torch.float64))
        assert torch.equal(_eigenbasis(matrix), vectors.flip(1).float())
        assert torch.equal(_eigenbasis(torch.stack([matrix, 2.0 * matrix]))[0], vectors.flip(1).float())


@pytest.mark.parametrize("method", ["soap", "adamw"])
def test_a_run_learns_and_leaves_a_complete_folder(data: Path, tmp_path: Path, method: str) -> None:
    events = []
    result = train(load_config(settings(data, epochs=40, method=method)), tmp_path / "run", events.append)
    expected = {"config.yaml", "split.json", "metrics.csv", "state.safetensors", "best", "last", "loss.png"}
    expected |= {"parity_energy.png", "parity_forces.png", "summary.json", "summary.md"}
    assert {path.name for path in (tmp_path / "run").iterdir()} == expected
    reference = np.concatenate([f.forces for f in read_frames(data / "test.xyz")])
    spread = np.abs(reference).mean()
    assert result.evaluations["test"].total.forces.mae < 0.3 * spread
    assert [e.epoch for e in events if e.message is None] == list(range(1, 41))
    again = evaluate(load_model(tmp_path / "run"), read_frames(data / "test.xyz"))
    assert again.total.forces.mae == pytest.approx(result.evaluations["test"].total.forces.mae, rel=1e-9)
    resolved = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert resolved["model"]["elements"] == ["Cu"]
    assert resolved["model"]["repulsion"] is not None
    lowest = min(frame.energy / frame.structure.n_atoms for frame in read_frames(data / "train.xyz"))
    # Where a run of molecular dynamics stops; some of the lowest frames may be in the validation set.
    stated = result.model.metadata["lowest_energy_ev_per_atom"] + result.model.reference_energies["Cu"]
    assert lowest - 1e-9 <= stated < lowest + 0.05


def read_metrics(run: Path) -> list[list[str]]:
    with (run / "metrics.csv").open() as handle:
        return [row[:-1] for row in csv.reader(handle)]  # without the seconds


@pytest.mark.usefixtures("without_pictures")
def test_resume_after_sigkill_is_as_if_never_stopped(data: Path, tmp_path: Path) -> None:
    tree = settings(data, epochs=30)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(tree))
    train(load_config(tree), tmp_path / "whole")
    program = (
        "import snnp.training.loop as loop; from snnp.training import train, load_config;"
        "loop._SAVE_EVERY_SECONDS = 0.0;"
        f"train(load_config({str(tmp_path / 'config.yaml')!r}), {str(tmp_path / 'killed')!r})"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen([sys.executable, "-c", program], env=environment) as process:
        metrics = tmp_path / "killed" / "metrics.csv"
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and process.poll() is None:
            if metrics.exists() and len(metrics.read_text().splitlines()) > 5:
                break
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "killed" / "summary.json").exists()
    resume(tmp_path / "killed")
    assert read_metrics(tmp_path / "killed") == read_metrics(tmp_path / "whole")
    for part in ("best", "last"):
        a, b = (tmp_path / run / part / "model.safetensors" for run in ("whole", "killed"))
        assert a.read_bytes() == b.read_bytes()


@pytest.mark.usefixtures("without_pictures")
def test_resume_refuses_a_damaged_state_and_a_folder_without_a_run(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no run to resume"):
        resume(tmp_path)
    train(load_config(settings(data, epochs=1)), tmp_path / "run")
    (tmp_path / "run" / "state.safetensors").write_bytes(b"garbage")
    with pytest.raises(TrainingError, match=r"state\.safetensors cannot be continued from"):
        resume(tmp_path / "run")


@pytest.mark.usefixtures("without_pictures")
def test_resume_refuses_changed_data(data: Path, tmp_path: Path) -> None:
    frames = emt_frames(40)
    ase.io.write(tmp_path / "train.xyz", frames)
    tree = settings(data, epochs=2)
    tree["data"] = {"train": [str(tmp_path / "train.xyz")], "valid": 0.2}
    train(load_config(tree), tmp_path / "run")
    resume(tmp_path / "run")
    frames[3].calc.results["energy"] += 1e-3
    ase.io.write(tmp_path / "train.xyz", frames)
    with pytest.raises(DataError, match=r"1 frames have changed since .*split.json was written, the first is .*xyz#3'"):
        resume(tmp_path / "run")
    ase.io.write(tmp_path / "train.xyz", frames[:30])
    with pytest.raises(DataError, match="frames that the data does not hold"):
        resume(tmp_path / "run")


@pytest.mark.usefixtures("without_pictures")
def test_resume_refuses_another_configuration(data: Path, tmp_path: Path) -> None:
    train(load_config(settings(data, epochs=2)), tmp_path / "run")
    path = tmp_path / "run" / "config.yaml"
    tree = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump({**tree, "threads": None}))  # where it is computed may change
    resume(tmp_path / "run")
    tree["optimiser"]["learning_rate"] = 1e-4
    path.write_text(yaml.safe_dump(tree))
    with pytest.raises(ConfigError, match=r"optimiser.learning_rate is 0.0001 now, but .* was begun with 0\."):
        resume(tmp_path / "run")


@pytest.mark.usefixtures("without_pictures")
def test_resume_names_junk_in_its_state(data: Path, tmp_path: Path) -> None:
    train(load_config(settings(data, epochs=1)), tmp_path / "run")
    path = tmp_path / "run" / "state.safetensors"
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    spoiled = next(name for name in tensors if name.startswith("average"))
    save_file({**tensors, spoiled: tensors[spoiled] * float("nan")}, path, metadata)
    with pytest.raises(TrainingError, match=rf"{spoiled} holds NaN or infinity: the run had diverged"):
        resume(tmp_path / "run")
    for counters in ({"epoch": -1}, {"epoch": "two"}, {"seconds": float("nan")}, {"unknown": 1}, []):
        save_file(tensors, path, {**metadata, "counters": json.dumps(counters)})
        with pytest.raises(TrainingError, match="cannot be continued from"):
            resume(tmp_path / "run")
    save_file(tensors, path, metadata)
    (tmp_path / "run" / "metrics.csv").write_bytes(b"\0\xff,junk\n" * 3)
    resume(tmp_path / "run")
    assert len(read_metrics(tmp_path / "run")) == 1


@pytest.mark.usefixtures("without_pictures")
def test_a_new_run_replaces_an_old_one_only_if_asked(data: Path, tmp_path: Path) -> None:
    train(load_config(settings(data, epochs=2)), tmp_path / "run")
    (tmp_path / "run" / "notes.txt").write_text("mine")
    train(load_config(settings(data, epochs=1)), tmp_path / "run", overwrite=True)
    assert [row[0] for row in read_metrics(tmp_path / "run")] == ["epoch", "1"]
    assert (tmp_path / "run" / "notes.txt").read_text() == "mine"
    (tmp_path / "run" / "config.yaml").unlink()
    with pytest.raises(ConfigError, match=r"state.safetensors exists and would be replaced"):
        train(load_config(settings(data, epochs=1)), tmp_path / "run")


@pytest.mark.usefixtures("without_pictures")
def test_a_folder_with_a_run_is_not_overwritten(data: Path, tmp_path: Path) -> None:
    train(load_config(settings(data, epochs=1)), tmp_path / "run")
    with pytest.raises(ConfigError, match="already holds a run"):
        train(load_config(settings(data, epochs=1)), tmp_path / "run")


def test_divergence_stops_with_the_cause_and_keeps_the_checkpoint(data: Path, tmp_path: Path) -> None:
    config = settings(data, epochs=40, learning_rate=200.0, warmup_steps=150, divergence_factor=100.0)
    config["validate_every"] = 1
    with pytest.raises(TrainingError, match=r"training stopped in epoch \d+, step \d+: the loss .* on a batch with"):
        train(load_config(config), tmp_path / "run")
    assert isinstance(load_model(tmp_path / "run" / "last"), Potential)


def test_limits_duplicates_and_forces_only(data: Path, tmp_path: Path) -> None:
    tree = settings(data)
    tree["data"]["train"] = [str(data / "train.xyz"), str(tmp_path / "copy.xyz")]  # type: ignore[index]
    (tmp_path / "copy.xyz").write_text((data / "train.xyz").read_text())
    split = load_problem(load_config(tree)).split
    assert len(split.train) + len(split.valid) == 40
    limited = load_problem(load_config(tree, ["data.max_energy=0.02"])).split
    assert 0 < len(limited.train) < len(split.train)
    narrow = load_problem(load_config(tree, ["data.test_max_energy=0.02"])).split
    assert len(narrow.train) == len(split.train)
    assert 0 < len(narrow.test) < len(split.test)
    tree["data"]["train"] = [str(data / "train.xyz")]  # type: ignore[index]
    tree["data"]["forces_only"] = [str(data / "test.xyz")]  # type: ignore[index]
    more = load_problem(load_config(tree)).split.train
    assert sum(frame.energy is None for frame in more) == 6


def test_config_errors_name_key_and_near_match(data: Path) -> None:
    with pytest.raises(ConfigError, match=r"unknown key 'optimiser.epoch'.*'optimiser.epochs'"):
        load_config(settings(data), ["optimiser.epoch=3"])
    with pytest.raises(ConfigError, match="expected key=value"):
        load_config(settings(data), ["epochs"])
    with pytest.raises(ConfigError, match=r"key 'optimiser.epochs'.*got -1"):
        load_config(settings(data), ["optimiser.epochs=-1"])
    assert load_config(settings(data), ["optimiser.epochs=7"]).optimiser.epochs == 7
