"""Model folders: what is written comes back; what is damaged, newer, or hostile is refused in one line."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from safetensors.torch import load_file, save

from snnp.errors import InputError, ModelFileError
from snnp.files import write_atomically
from snnp.models import Potential, SplineNNP, SplineNNPConfig, list_models, load_model, save_model
from snnp.models.formats import FORMAT_VERSION
from snnp.models.spline import special_cases
from snnp.models.store import dump_model, fingerprint, parse_model
from snnp.structure import Structure

CONFIG = special_cases.s_nnp(("Si", "C"), n_radial=2, n_angular=2, cutoff=4.0, hidden=(4,))


@pytest.fixture
def model() -> SplineNNP:
    made = SplineNNP(CONFIG, {"Si": -7.25, "C": -9.0 / 7.0}, seed=2)
    made.metadata = {"data": {"name": "none", "size": 3}, "licence": "CC0", "errors": [1e-300, 0.1]}
    return made


@pytest.fixture
def folder(model: SplineNNP, tmp_path: Path) -> Path:
    return save_model(model, tmp_path / "model")


def _edit(folder: Path, **changes: Any) -> None:
    """Change keys of config.json; None removes a key."""
    path = folder / "config.json"
    description = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in description.items() if value is not None}))


def _replace_weights(folder: Path, content: bytes) -> None:
    """Other weights, with a checksum that fits them."""
    (folder / "model.safetensors").write_bytes(content)
    _edit(folder, weights_sha256=hashlib.sha256(content).hexdigest())


def _refused(folder: Path) -> str:
    """The message of the error, which is one line."""
    with pytest.raises(ModelFileError) as caught:
        load_model(folder)
    message = str(caught.value)
    assert "\n" not in message
    assert str(folder) in message
    return message


# What comes back.


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_round_trip_is_exact(model: SplineNNP, tmp_path: Path, dtype: torch.dtype) -> None:
    model = model.to(dtype)
    model.isolated_atoms = ("C",)
    loaded = load_model(save_model(model, tmp_path / "deep" / "model"))
    assert isinstance(loaded, SplineNNP)
    assert loaded.config == model.config
    assert loaded.metadata == model.metadata
    assert loaded.reference_energies == model.reference_energies
    assert loaded.isolated_atoms == ("C",)
    assert loaded.dtype == dtype
    assert not loaded.training
    state, wanted = loaded.state_dict(), model.state_dict()
    assert state.keys() == wanted.keys()
    assert all(torch.equal(state[name], wanted[name]) for name in wanted)


def test_folder_holds_two_readable_files(folder: Path) -> None:
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors"}
    description = json.loads((folder / "config.json").read_text())
    assert description["format"] == "snnp-model"
    assert description["format_version"] == FORMAT_VERSION == 3
    assert description["class"] == "SplineNNP"
    assert description["units"] == {"energy": "eV", "length": "angstrom"}
    assert SplineNNPConfig.model_validate(description["config"]) == CONFIG
    assert "rho.free" in load_file(folder / "model.safetensors")


def test_fingerprint_is_of_what_a_model_computes(model: SplineNNP) -> None:
    before = fingerprint(model)
    model.metadata = {"description": "something else"}
    assert fingerprint(model) == before
    model.isolated_atoms = ("C",)
    isolated = fingerprint(model)
    model.reference_energies = {"Si": -1.0, "C": -9.0}
    assert len({before, isolated, fingerprint(model), fingerprint(model.float())}) == 4


def test_constants_are_not_stored(model: SplineNNP) -> None:
    """Only what was learned: spline maps and harmonics follow from the configuration."""
    parameters = {name for name, _ in model.named_parameters()}
    assert set(model.state_dict()) == parameters | {"readout.mean", "readout.std"}


def test_type_can_be_chosen_when_loading(folder: Path) -> None:
    single = load_model(folder, dtype=torch.float32)
    assert single.dtype == torch.float32
    with pytest.raises(InputError, match=r"must be torch\.float32 or torch\.float64"):
        load_model(folder, dtype=torch.float16)


def test_float32_weights_in_float64_keep_forces_the_derivative(model: SplineNNP, tmp_path: Path) -> None:
    """Constants are made in float64, not rounded with the weights."""
    loaded = load_model(save_model(model.float(), tmp_path / "m"), dtype=torch.float64)
    atoms = bulk("SiC", "zincblende", 4.36)
    atoms.rattle(0.1, seed=1)
    forces = loaded.compute(Structure.from_ase(atoms)).forces
    assert forces is not None
    energies = []
    for step in (1e-5, -1e-5):
        moved = atoms.copy()
        moved.positions[0, 1] += step
        energies.append(float(loaded.compute(Structure.from_ase(moved)).energy[0]))
    assert float(forces[0, 1]) == pytest.approx((energies[1] - energies[0]) / 2e-5, abs=1e-9)


def test_a_model_passes_through(model: SplineNNP) -> None:
    assert load_model(model) is model
    changed = load_model(model, dtype=torch.float32)
    assert changed is not model
    assert model.dtype == torch.float64


def test_path_of_the_config_and_of_a_run(model: SplineNNP, tmp_path: Path) -> None:
    """Where a run folder is given, its best model is meant."""
    folder = save_model(model, tmp_path / "run" / "best")
    for path in (folder, folder / "config.json", tmp_path / "run"):
        assert load_model(path).elements == ("Si", "C")


def test_bundled_models_load_offline() -> None:
    names = list_models()
    assert "snnp-si" in names
    model = load_model("snnp-si")
    assert model.elements == ("Si",)
    assert model.metadata


def test_saving_over_a_model_replaces_it(model: SplineNNP, folder: Path) -> None:
    with torch.no_grad():
        model.rho.free.add_(1.0)
    save_model(model, folder)
    loaded = load_model(folder)
    assert isinstance(loaded, SplineNNP)
    assert torch.equal(loaded.rho.free, model.rho.free)


# What is not whole.


def test_missing_files(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    assert "model.safetensors is missing" in _refused(folder)
    (folder / "config.json").unlink()
    assert "holds no config.json" in _refused(folder)


def test_names_of_bundled_models(model: SplineNNP, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder counts as a model once its configuration is there; a wrong name is told the near ones."""
    for name in ("snnp-si", "snnp-cu"):
        save_model(model, tmp_path / "model_zoo" / name)
    (tmp_path / "model_zoo" / "snnp-unfinished").mkdir()
    nowhere = importlib.util.find_spec("snnp_nothing")
    monkeypatch.setattr("snnp.files.importlib.util.find_spec", lambda name: nowhere)
    monkeypatch.setattr("snnp.files.__file__", str(tmp_path / "snnp" / "files.py"))
    assert list_models() == ["snnp-cu", "snnp-si"]
    assert load_model("snnp-si").elements == ("Si", "C")
    with pytest.raises(ModelFileError, match=r"no model named 'snnp-sii'.* Did you mean 'snnp-si'"):
        load_model("snnp-sii")
    with pytest.raises(ModelFileError, match=r"Bundled models: snnp-cu, snnp-si\."):
        load_model("completely-different")


@pytest.mark.parametrize("n_bytes", [4, 100, -1])
def test_truncated_weights(folder: Path, n_bytes: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:n_bytes])
    assert "model.safetensors is damaged: its sha256 is" in _refused(folder)


def test_one_flipped_bit(folder: Path) -> None:
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(bytes(content))
    assert "damaged" in _refused(folder)


def test_weights_of_another_save(model: SplineNNP, folder: Path, tmp_path: Path) -> None:
    """A save that was interrupted between its two files."""
    other = save_model(SplineNNP(CONFIG, seed=9), tmp_path / "other")
    (folder / "model.safetensors").write_bytes((other / "model.safetensors").read_bytes())
    assert "expects" in _refused(folder)


@pytest.mark.parametrize("text", ["{", '{"format": "snnp-model", ', "\x00\x01"])
def test_config_is_not_json(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)
    assert "config.json is not valid JSON" in _refused(folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_empty_files_are_called_empty(folder: Path, name: str) -> None:
    (folder / name).write_bytes(b"")
    assert f"{name} is empty" in _refused(folder)


def test_config_is_not_text(folder: Path) -> None:
    (folder / "config.json").write_bytes(b"\xff\xfe\x80")
    assert "not a text file" in _refused(folder)


@pytest.mark.parametrize("text", ["[]", "3", "null", "{}", '{"format": "other"}', '"snnp-model"'])
def test_config_is_of_something_else(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)
    assert "is not an snnp model" in _refused(folder)


def test_newer_version_says_how_to_upgrade(folder: Path) -> None:
    _edit(folder, format_version=4)
    assert "has format version 4, this snnp reads up to 3; upgrade with" in _refused(folder)


@pytest.mark.parametrize("version", ["1", 0, -1, 1.0, []])
def test_version_that_is_none(folder: Path, version: Any) -> None:
    _edit(folder, format_version=version)
    assert "no valid format_version" in _refused(folder)


def test_unknown_class(folder: Path) -> None:
    _edit(folder, **{"class": "os.system"})
    assert "unknown class 'os.system'" in _refused(folder)


BAD_DESCRIPTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "no configuration": ({"config": None}, "config"),
    "no checksum": ({"weights_sha256": None}, "damaged"),
    "no energies": ({"reference_energies": None}, "reference_energies"),
    "energies of other elements": ({"reference_energies": {"Si": -1.0, "O": -2.0}}, "reference_energies"),
    "energies that are words": ({"reference_energies": {"Si": "low", "C": -1.0}}, "reference_energies"),
    "energies that are no numbers": ({"reference_energies": {"Si": float("nan"), "C": -1.0}}, "reference_energies"),
    "energies that are a list": ({"reference_energies": [-1.0, -2.0]}, "reference_energies"),
    "no isolated atoms": ({"isolated_atoms": None}, "does not hold a working model"),
    "isolated atoms of other elements": ({"isolated_atoms": ["O"]}, "isolated_atoms must be among Si, C"),
    "isolated atoms twice": ({"isolated_atoms": ["C", "C"]}, "isolated_atoms are C"),
    "isolated atoms that are a word": ({"isolated_atoms": "Si"}, "isolated_atoms"),
    "no type": ({"dtype": None}, "dtype"),
    "a type that is a function": ({"dtype": "load"}, "dtype"),
    "a type of integers": ({"dtype": "int64"}, "dtype"),
}


@pytest.mark.parametrize("name", BAD_DESCRIPTIONS)
def test_bad_description(folder: Path, name: str) -> None:
    changes, words = BAD_DESCRIPTIONS[name]
    _edit(folder, **changes)
    assert words in _refused(folder)


BAD_CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "an unknown key": ({"radail": {}}, "radail"),
    "a wrong value": ({"filters": "all"}, "filters"),
    "a value of another kind": ({"radial": {"n_filters": "many"}}, "radial.n_filters"),
    "unknown elements": ({"elements": ["Si", "Xx"]}, "Xx"),
    "other sizes than the weights": ({"elements": ["Si"]}, "reference_energies"),
    "more filters than the weights": ({"radial": {"n_filters": 3, "cutoff": 4.0}}, "rho.free has shape"),
    "a part that the weights lack": ({"pair_term": True}, "phi.free"),
}


@pytest.mark.parametrize("name", BAD_CONFIGS)
def test_bad_configuration(folder: Path, name: str) -> None:
    changes, words = BAD_CONFIGS[name]
    config = json.loads((folder / "config.json").read_text())["config"]
    _edit(folder, config={**config, **changes})
    assert words in _refused(folder)


# Hostile weights: the checksum fits, the file does not.


def _header(content: dict[str, Any], data: bytes = b"") -> bytes:
    text = json.dumps(content).encode()
    return struct.pack("<Q", len(text)) + text + data


def _tensor(dtype: str, shape: list[int], first: int, last: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [first, last]}


HOSTILE: dict[str, bytes] = {
    "nothing": b"",
    "a pickle": b"\x80\x04\x95\x1a\x00\x00\x00\x00\x00\x00\x00cposix\nsystem\n(S'true'\ntR.",
    "a header longer than the file": struct.pack("<Q", 2**62) + b"{}",
    "a header of a gigabyte": struct.pack("<Q", 2**30) + b"{" + b" " * 1000,
    "a header that is not JSON": struct.pack("<Q", 4) + b"abcd",
    "a header that is a list": _header([]),  # type: ignore[arg-type]
    "data beyond the end": _header({"rho.free": _tensor("F64", [4], 0, 32)}, b"\0" * 8),
    "negative shape": _header({"rho.free": _tensor("F64", [-1], 0, 8)}, b"\0" * 8),
    "a shape that overflows": _header({"rho.free": _tensor("F64", [2**40, 2**40], 0, 8)}, b"\0" * 8),
    "shape and data that differ": _header({"rho.free": _tensor("F64", [3], 0, 8)}, b"\0" * 8),
    "overlapping tensors": _header(
        {"rho.free": _tensor("F64", [1], 0, 8), "f.free": _tensor("F64", [1], 4, 12)}, b"\0" * 12
    ),
    "an unknown type": _header({"rho.free": _tensor("X64", [1], 0, 8)}, b"\0" * 8),
    "no tensors": _header({}),
    "a hole": _header({"rho.free": _tensor("F64", [1], 8, 16)}, b"\0" * 16),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_weights(folder: Path, name: str) -> None:
    _replace_weights(folder, HOSTILE[name])
    assert "model.safetensors" in _refused(folder)


def test_weights_with_names_missing_or_strange(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    _replace_weights(folder, save({name: value for name, value in state.items() if name != "g.free"}))
    assert "g.free" in _refused(folder)
    _replace_weights(folder, save({**state, "extra": torch.zeros(1)}))
    assert "extra" in _refused(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers(folder: Path, value: float) -> None:
    """They would make every energy NaN, far from the cause."""
    state = load_file(folder / "model.safetensors")
    state["f.free"][0, 0, 0] = value
    _replace_weights(folder, save(state))
    assert "f.free" in _refused(folder)


def test_metadata_of_another_kind_is_dropped(folder: Path) -> None:
    _edit(folder, metadata=["not", "a", "dict"])
    assert load_model(folder).metadata == {}


# Writing.


class _Stranger(Potential):
    def atomic_energies(self, *_: Any) -> torch.Tensor:
        return torch.zeros(1)


def test_other_families_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="_Stranger cannot be saved"):
        save_model(_Stranger(("H",), {}, 3.0), tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_files_are_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"before")

    def full_disk(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, b"after")
    assert path.read_bytes() == b"before"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_text_and_weights_without_a_folder(model: SplineNNP) -> None:
    text, weights = dump_model(model)
    parsed = parse_model(text, weights)
    atoms = Atoms("SiC", [[0, 0, 0], [0, 0, 1.9]])
    for ours, theirs in zip(
        parsed.compute(Structure.from_ase(atoms)).energies,
        model.compute(Structure.from_ase(atoms)).energies,
        strict=True,
    ):
        assert np.isfinite(float(ours))
        assert float(ours) == float(theirs)


@pytest.mark.parametrize("name", ["no-such-device", "cuda:7"])
def test_a_device_that_cannot_be_used_is_named(name: str) -> None:
    """Whether PyTorch has no CUDA, or no eighth GPU is there."""
    with pytest.raises(InputError, match=f"device '{name}' cannot be used here .*; use cpu"):
        load_model("snnp-si", device=name)
