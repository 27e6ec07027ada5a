"""Training on a dataset that is never held whole: the losses of one in memory, few frames at a time, resumed alike."""

from __future__ import annotations

import csv
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator

from snnp.data.storage.atoms import from_atoms
from snnp.data.write import write_frames
from snnp.errors import ConfigError
from snnp.training import Progress, load_config, loop, resume, train
from snnp.training.backends import Batch, choose_backend
from snnp.training.batches import StreamedBatches, prepare
from snnp.training.loop import Loss
from snnp.training.problem import Problem, build_model, load_problem, resolve

pytestmark = pytest.mark.usefixtures("without_pictures")


def images(n: int, seed: int = 0) -> list[Atoms]:
    """Perturbed crystals with the labels of ASE's effective medium theory."""
    found = []
    for k in range(n):
        rng = np.random.default_rng([seed, k])
        atoms = bulk("Cu", cubic=True, a=3.6)
        atoms.rattle(0.08, rng=rng)
        found.append(labelled(atoms))
    return found


def labelled(atoms: Atoms) -> Atoms:
    atoms.calc = EMT()
    energy, forces = atoms.get_potential_energy(), atoms.get_forces()
    atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces)
    return atoms


def write(path: Path, atoms: list[Atoms]) -> Path:
    frames = from_atoms(atoms, [f"{path.stem}#{k}" for k in range(len(atoms))])
    write_frames([("train", frames)], path, "EMT", "ASE")
    return path


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Row groups and pieces so small that the datasets here have many."""
    monkeypatch.setattr("snnp.data.write._GROUP_ROWS", 8)
    monkeypatch.setattr("snnp.training.batches._ROW_GROUPS", 2)
    monkeypatch.setattr("snnp.training.batches._PIECE_ATOMS", 40)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write(tmp_path / "cu.parquet", images(60))


def settings(data: Path, **more: Any) -> dict[str, Any]:
    model = {
        "radial": {"n_filters": 3, "cutoff": 4.0, "intervals": 5},
        "angular": {"n_filters": 2, "cutoff": 4.0, "intervals": 5, "degree": 2},
        "network": {"hidden": [4]},
    }
    return {
        "data": {"train": str(data), "valid": 0.1, "stream": True},
        "model": model,
        "optimiser": {"epochs": 4, "batch_atoms": 12},
        **{"dtype": "float64", "threads": 1, "compression": None, **more},
    }


def streamed(tree: dict[str, Any]) -> tuple[Problem, StreamedBatches, Any]:
    config = load_config(tree)
    problem = load_problem(config)
    model = build_model(resolve(config, problem), problem)
    assert problem.stream is not None
    backend = choose_backend(model, torch.float64)
    return problem, StreamedBatches(backend, model, problem.stream, problem.inside, problem.compressed), model


def test_losses_and_gradients_are_those_of_data_in_memory(data: Path) -> None:
    problem, pieces, model = streamed(settings(data))
    memory = prepare(pieces.backend, model, problem.split.train)
    row_of = {source: row for row, source in enumerate(problem.split.train.sources)}
    loss = Loss.at(load_config(settings(data)).loss, 0.0)

    def gradients(batch: Batch) -> tuple[float, list[torch.Tensor]]:
        model.zero_grad()
        value = float(pieces.backend.backward(model, batch, loss))
        return value, [p.grad.clone() for p in model.parameters() if p.grad is not None]

    seen: list[str] = []
    for _, batch in pieces.epoch([0, 0], 12):
        value, found = gradients(batch)
        again, expected = gradients(memory.batch([row_of[source] for source in batch.sources]))
        assert value == again
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
        seen += batch.sources
    assert sorted(seen) == sorted(problem.split.train.sources)
    assert not set(seen) & set(problem.split.valid.sources)
    assert len(seen) == 54


def test_the_order_depends_on_seed_and_epoch_alone(data: Path) -> None:
    _, pieces, _ = streamed(settings(data))

    def order(*seed: int) -> list[str]:
        return [source for _, batch in pieces.epoch(seed, 12) for source in batch.sources]

    assert order(0, 1) == order(0, 1)
    assert len({tuple(order(*seed)) for seed in ((0, 0), (0, 1), (1, 0))}) == 3
    shares = [share for share, _ in pieces.epoch([0, 0], 12)]
    assert shares[0] == 0.0
    assert np.all(np.diff(shares) > 0.0)
    assert shares[-1] < 1.0


def metrics(run: Path) -> list[list[str]]:
    with (run / "metrics.csv").open() as handle:
        return [row[:-1] for row in csv.reader(handle)]  # without the seconds


def test_a_run_resumes_to_the_bit(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "_SAVE_EVERY_SECONDS", 0.0)
    config = load_config(settings(data, compression={"share": 0.2, "levels": 2}))
    result = train(config, tmp_path / "whole")
    assert result.model.metadata["n_training_frames"] == 54
    assert result.model.metadata["n_compressed_frames"] > 0
    losses = [float(row[3]) for row in metrics(tmp_path / "whole")[1:]]
    assert losses[-1] < losses[0]

    def stop(now: Progress) -> None:
        if now.epoch == 2:
            raise RuntimeError

    with pytest.raises(RuntimeError):
        train(config, tmp_path / "stopped", stop)
    resume(tmp_path / "stopped")
    assert metrics(tmp_path / "stopped") == metrics(tmp_path / "whole")
    weights = [(tmp_path / run / "best" / "model.safetensors").read_bytes() for run in ("whole", "stopped")]
    assert weights[0] == weights[1]


def test_compressed_structures_come_along_once_in_an_epoch(data: Path) -> None:
    problem, pieces, model = streamed(settings(data, compression={"share": 0.2, "levels": 2}))
    batches = [batch for _, batch in pieces.epoch([0, 0], 12)]
    seen = [source for batch in batches for source in batch.sources if "compressed" in source]
    assert sorted(seen) == sorted(each.frame.source for each in problem.compressed)
    memory = prepare(pieces.backend, model, problem.split.train, problem.compressed).everything
    row_of = {source: row for row, source in enumerate(memory.sources)}
    for batch in batches:
        rows = [row_of[source] for source in batch.sources]
        assert torch.equal(batch.push, memory.push[rows])
        assert torch.equal(batch.limits, memory.limits[rows])
        # Steps on the data are the same with and without them.
        assert len({"compressed" in source for source in batch.sources}) == 1


def test_the_sample_knows_what_a_few_frames_would_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("snnp.training.problem._SAMPLE_ATOMS", 60)
    atoms = images(80)
    gold = bulk("Cu", cubic=True, a=3.7)
    gold.numbers[0] = 79
    atoms[41], atoms[63] = labelled(gold), labelled(Atoms("Cu"))
    lowest = min(k for k in range(80) if energy(atoms[k]) == min(map(energy, atoms)))
    tree = settings(write(tmp_path / "mixed.parquet", atoms))
    tree["data"]["valid"] = str(write(tmp_path / "valid.parquet", images(4, seed=1)))
    problem, pieces, _ = streamed(tree)
    sample = problem.split.train
    assert 10 <= len(sample) <= 30
    assert {f"mixed#{k}" for k in (41, 63, lowest)} <= set(sample.sources)
    assert sample.elements == ("Cu", "Au")
    assert problem.reference.provenance == {"Cu": "isolated atoms", "Au": "least squares"}
    assert sum(len(batch.sources) for _, batch in pieces.epoch([0, 0], 12)) == 80
    # Limits are those of the whole training part, in the sample and in what passes by.
    tree["data"]["max_energy"] = 0.02
    problem, pieces, _ = streamed(tree)
    kept = {source for _, batch in pieces.epoch([0, 0], 12) for source in batch.sources}
    floor = energy(atoms[lowest])
    within = {k for k in range(80) if len(atoms[k]) == 1 or energy(atoms[k]) - floor <= 0.02}
    assert kept == {f"mixed#{k}" for k in within}


def energy(atoms: Atoms) -> float:
    return float(atoms.get_potential_energy()) / len(atoms) if len(atoms) > 1 else np.inf


def test_memory_does_not_grow_with_the_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("snnp.training.problem._SAMPLE_ATOMS", 200)
    peaks = []
    for copies in (1, 16):
        _, pieces, _ = streamed(settings(write(tmp_path / f"x{copies}.parquet", images(64) * copies)))
        for _ in pieces.epoch([0, 0], 12):
            pass  # what is kept from the first time on does not count
        tracemalloc.start()
        n = sum(1 for _ in pieces.epoch([0, 1], 12))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert n > 15 * copies
    assert peaks[1] < 1.6 * peaks[0]


def test_what_cannot_be_streamed_is_said(data: Path, tmp_path: Path) -> None:
    tree = settings(data)
    tree["data"]["train"] = [str(data), str(data)]
    with pytest.raises(ConfigError, match=r"data\.stream takes one dataset as data\.train"):
        load_config(tree)
    (tmp_path / "a.xyz").write_text("1\nenergy=1.0\nCu 0 0 0\n")
    tree["data"]["train"] = str(tmp_path / "a.xyz")
    with pytest.raises(ConfigError, match=r"reads datasets in parquet; make one of .*a\.xyz with 'snnp convert'"):
        load_problem(load_config(tree))
