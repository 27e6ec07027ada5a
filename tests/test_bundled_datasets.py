"""Datasets that are part of the installation: by name, offline, checked, and good for everything that takes data."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ase.build import bulk
from cli_runs import run_json

from snnp import load_dataset, training
from snnp.data import read_frames
from snnp.data.description import Description, finish, read_description
from snnp.data.write import parquet_writer
from snnp.distillation.crystals import frames_of
from snnp.errors import HubError
from snnp.hub import bundled_datasets, load_model, read_manifest, resolve

DATASETS = Path(__file__).resolve().parents[1] / "datasets"
BUNDLED = sorted({path.parent.name for path in DATASETS.glob("*/*.parquet")})


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no Hub."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small set of labels in the place of the bundled ones: `small-cu`, twelve crystals labelled by snnp-cu."""
    rng, images = np.random.default_rng(0), []
    for _ in range(12):
        atoms = bulk("Cu", cubic=True)
        atoms.positions += 0.05 * rng.standard_normal((4, 3))
        images.append(("rattled", atoms))
    frames = frames_of(images, "made")
    found = load_model("snnp-cu").compute(frames.structure())
    assert found.forces is not None
    known = np.ones(len(frames), dtype=bool)
    frames = replace(
        frames, energy=found.energy.numpy(), forces=found.forces.numpy(), has_energy=known, has_forces=known
    )
    folder = tmp_path / "installed" / "small-cu"
    folder.mkdir(parents=True)
    with parquet_writer(folder / "labels.parquet", "snnp-cu", "snnp") as writer:
        frames = frames.named(frames.sources, frames.groups)
        writer.add(frames[:9], "train")
        writer.add(frames[9:], "test")
    about = {"title": "copper", "summary": "Rattled crystals.", "origin": "Made by a test.", "licence": "mit"}
    finish(folder, Description(name="small-cu", redistributable=True, parts={"labels": {"method": "snnp-cu"}}, **about))
    monkeypatch.setattr("snnp.hub.resolver.bundled_folders", lambda kind, holding: {"small-cu": folder})
    monkeypatch.chdir(tmp_path)
    return folder


def test_a_bundled_dataset_is_opened_by_name(small: Path) -> None:
    dataset = load_dataset("small-cu", split="train")
    assert len(dataset) == 9
    assert resolve("small-cu", "dataset").record() == {"name": "small-cu", "source": "bundled"}
    assert len(read_frames("small-cu:test")) == 3
    assert read_description(small / "manifest.json").title == "copper"
    shown = run_json("describe", "small-cu")
    assert shown["source"] == "bundled"
    assert shown["licence"] == "mit"
    assert shown["parts"]["labels"]["frames"] == 12
    assert run_json("doctor", "data", "small-cu")["kind"] == "data"


def test_training_takes_it_by_name(small: Path) -> None:
    config = {
        "data": {"train": ["small-cu:train"], "valid": 0.2, "test": "small-cu:test"},
        "model": {"radial": {"n_filters": 4}, "angular": {"n_filters": 0}, "network": None},
        "optimiser": {"epochs": 1},
        "compression": None,
    }
    result = training.train(training.load_config(config), Path("run"))
    assert result.evaluations["test"].total.n_structures == 3


def test_damage_and_names_that_are_not_there(small: Path) -> None:
    with pytest.raises(HubError, match=r"Did you mean 'small-cu'"):
        load_dataset("smal-cu")
    path = small / "labels.parquet"
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)
    with pytest.raises(HubError, match=r"labels.parquet has sha256 .* install snnp again"):
        load_dataset("small-cu")


def test_datasets_that_are_bundled_are_found() -> None:
    assert sorted(bundled_datasets()) == BUNDLED


@pytest.mark.parametrize("name", BUNDLED)
def test_bundled_labels_are_whole(name: str, tmp_path: Path) -> None:
    """Counts are those of the manifest, splits are there, and a model can be trained on some of it."""
    description = read_description(DATASETS / name / "manifest.json")
    manifest = read_manifest(DATASETS / name, "dataset")
    assert set(manifest.files) <= {path.name for path in (DATASETS / name).iterdir()}
    assert description.why_not_redistributable() is None
    for part, about in description.parts.items():
        dataset = load_dataset(name, part=part)
        assert len(dataset) == about.frames
        assert {"train", "test"} <= set(dataset.splits)
        frames = dataset.select("test")[:50].frames()
        assert frames.has_energy.all()
        assert frames.has_forces.all()
        assert np.isfinite(frames.forces).all()
