"""What bad input gets: one line that names the cause and the cure, exit code 1, no traceback unless asked for."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.io import write
from typer.testing import CliRunner, Result

from snnp.cli.main import app
from snnp.models import (
    AngularConfig,
    NetworkConfig,
    RadialConfig,
    SplineNNP,
    SplineNNPConfig,
    list_models,
    save_model,
)
from snnp.training.config import load_config

RUN = ["--engine", "ase", "--steps", "2", "--trajectory"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small copper model."""
    config = SplineNNPConfig(
        elements=("Cu",),
        radial=RadialConfig(n_filters=2, cutoff=4.0),
        angular=AngularConfig(n_filters=2, cutoff=4.0, degree=2),
        network=NetworkConfig(hidden=(4,)),
    )
    return save_model(SplineNNP(config), tmp_path_factory.mktemp("models") / "cu")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labelled copper structures."""
    path = tmp_path_factory.mktemp("data") / "cu.xyz"
    write(path, [_labelled(seed) for seed in range(6)])
    return path


def _labelled(seed: int) -> Atoms:
    atoms = bulk("Cu", cubic=True)
    atoms.rattle(0.05, seed=seed)
    atoms.info["REF_energy"] = -14.0 + 0.01 * seed
    atoms.arrays["REF_forces"] = np.full((4, 3), 0.1)
    return atoms


def _snnp(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def _check_error(result: Result, *words: str) -> None:
    """One line on stderr that holds `words`, nothing on stdout, exit code 1."""
    assert result.exit_code == 1, result.output
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ")
    for word in words:
        assert word in lines[0]


def test_unknown_element(model: Path, tmp_path: Path) -> None:
    result = _snnp("md", model, "fcc:Al:2x2x2", *RUN, tmp_path / "md.xyz")
    _check_error(result, "Al", "knows Cu", "use a model trained with Al")


def test_unknown_element_in_data(model: Path, tmp_path: Path) -> None:
    atoms = bulk("Al", cubic=True)
    atoms.info["energy"] = -1.0
    write(tmp_path / "al.xyz", atoms)
    _check_error(_snnp("evaluate", model, tmp_path / "al.xyz", "--json"), "Al", "knows Cu")


def test_unknown_element_in_a_specification(model: Path, tmp_path: Path) -> None:
    _check_error(_snnp("relax", model, "fcc:Cv:2x2x2"), "'Cv'", "not a chemical element", "Did you mean")


def test_missing_model() -> None:
    _check_error(_snnp("info", "no/such/folder"), "no/such/folder", "Bundled models:")


def test_wrong_model_name_has_near_matches() -> None:
    name = list_models()[0]
    _check_error(_snnp("info", f"{name[:-1]}q"), f"'{name[:-1]}q'", "Did you mean", f"'{name}'")


def test_folder_without_a_model(tmp_path: Path) -> None:
    _check_error(_snnp("info", tmp_path), str(tmp_path), "no config.json", "give a model folder")


def test_missing_weights(model: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((model / "config.json").read_bytes())
    _check_error(_snnp("info", tmp_path), str(tmp_path), "model.safetensors is missing")


def test_damaged_weights(model: Path, tmp_path: Path) -> None:
    content = bytearray((model / "model.safetensors").read_bytes())
    content[-1] ^= 1
    _copy(model, tmp_path, weights=bytes(content))
    _check_error(_snnp("info", tmp_path), "model.safetensors is damaged", "sha256", "fetch or save the model again")


def test_damaged_config(model: Path, tmp_path: Path) -> None:
    _copy(model, tmp_path, config=(model / "config.json").read_bytes()[:100])
    _check_error(_snnp("info", tmp_path), "config.json", "not valid JSON", "fetch or save the model again")


def test_newer_format_version(model: Path, tmp_path: Path) -> None:
    stored: dict[str, Any] = json.loads((model / "config.json").read_text())
    stored["format_version"] = 99
    _copy(model, tmp_path, config=json.dumps(stored).encode())
    _check_error(_snnp("info", tmp_path), "format version 99", "reads up to", "upgrade")


def _copy(model: Path, folder: Path, config: bytes | None = None, weights: bytes | None = None) -> None:
    (folder / "config.json").write_bytes(config or (model / "config.json").read_bytes())
    (folder / "model.safetensors").write_bytes(weights or (model / "model.safetensors").read_bytes())


@pytest.mark.parametrize("command", [["md"], ["relax"]])
def test_nan_positions(command: list[str], model: Path, tmp_path: Path) -> None:
    atoms = bulk("Cu", cubic=True)
    atoms.positions[1, 2] = np.nan
    write(tmp_path / "nan.xyz", atoms)
    extra = [*RUN, tmp_path / "md.xyz"] if command == ["md"] else []
    _check_error(_snnp(*command, model, tmp_path / "nan.xyz", *extra), "positions[1, 2] is NaN", "check")


def test_nan_positions_in_data(model: Path, tmp_path: Path) -> None:
    atoms = _labelled(0)
    atoms.positions[1, 2] = np.nan
    write(tmp_path / "nan.xyz", [_labelled(1), atoms])
    _check_error(_snnp("evaluate", model, tmp_path / "nan.xyz"), "nan.xyz#1", "positions[1, 2] is NaN")


@pytest.mark.parametrize("command", [["md"], ["relax"]])
def test_zero_volume_cell(command: list[str], model: Path, tmp_path: Path) -> None:
    cell = [[3.6, 0.0, 0.0], [3.6, 0.0, 0.0], [0.0, 0.0, 3.6]]
    write(tmp_path / "flat.xyz", Atoms("Cu2", [[0.0, 0.0, 0.0], [1.8, 1.8, 0.0]], cell=cell, pbc=True))
    extra = [*RUN, tmp_path / "md.xyz"] if command == ["md"] else []
    _check_error(_snnp(*command, model, tmp_path / "flat.xyz", *extra), "no volume", "three independent")


@pytest.mark.parametrize("command", [["md"], ["relax"]])
def test_overlapping_atoms(command: list[str], model: Path, tmp_path: Path) -> None:
    atoms = bulk("Cu", cubic=True)
    atoms.positions[2] = atoms.positions[0] + 0.001
    write(tmp_path / "overlap.xyz", atoms)
    extra = [*RUN, tmp_path / "md.xyz"] if command == ["md"] else []
    result = _snnp(*command, model, tmp_path / "overlap.xyz", *extra)
    _check_error(result, "atoms 0 and 2 overlap", "remove the duplicate")


def test_missing_structure_file(model: Path, tmp_path: Path) -> None:
    write(tmp_path / "start.xyz", bulk("Cu"))
    _check_error(_snnp("relax", model, tmp_path / "strat.xyz"), "strat.xyz", "Did you mean 'start.xyz'")


def test_empty_data_file(model: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.xyz").touch()
    _check_error(_snnp("evaluate", model, tmp_path / "empty.xyz"), "empty.xyz is empty", "expected at least one")


def test_data_without_energies(model: Path, tmp_path: Path) -> None:
    atoms = bulk("Cu")
    atoms.info["enregy"] = -3.5
    write(tmp_path / "bare.xyz", atoms)
    result = _snnp("evaluate", model, tmp_path / "bare.xyz", "--json")
    _check_error(result, "bare.xyz holds no energies", "it has: enregy", "Name the key")


def test_wrong_key_has_near_matches(model: Path, data: Path) -> None:
    result = _snnp("evaluate", model, data, "--energy-key", "REF_enregy")
    _check_error(result, "no key 'REF_enregy'", "Did you mean 'REF_energy'")


def test_nothing_to_evaluate(model: Path) -> None:
    _check_error(_snnp("evaluate", model), "name a data file", "--properties")


def _config(folder: Path, data: Path, text: str = "optimiser: {epochs: 1}") -> Path:
    path = folder / "config.yaml"
    path.write_text(f"data: {{train: [{data}]}}\n{text}\n")
    return path


def test_config_key_with_a_typo(data: Path, tmp_path: Path) -> None:
    config = _config(tmp_path, data, "optimiser: {epoch: 1}")
    result = _snnp("train", config, "--out", tmp_path / "run")
    _check_error(result, "unknown key 'optimiser.epoch'", "Did you mean 'optimiser.epochs'")


def test_one_file_needs_no_brackets(data: Path, tmp_path: Path) -> None:
    assert load_config({"data": {"train": str(data)}}).data.train == (str(data),)
    (tmp_path / "flat.yaml").write_text(f"data: {data}\n")
    _check_error(_snnp("train", tmp_path / "flat.yaml", "--out", tmp_path / "run"), "'data' must be a group of keys")


def test_set_with_a_typo(data: Path, tmp_path: Path) -> None:
    result = _snnp("train", _config(tmp_path, data), "--set", "optimizer.epochs=3", "--out", tmp_path / "run")
    _check_error(result, "unknown key 'optimizer", "Did you mean 'optimiser")
    for key, meant in (
        ("lr", "'optimiser.learning_rate'"),
        ("optimiser.lr", "'optimiser.learning_rate'"),
        ("epochs", "'optimiser.epochs'"),
        ("batch_size", "'optimiser.batch_atoms'"),
        ("model.cutoff", "'model.radial.cutoff' or 'model.angular.cutoff'"),
        ("loss.forces", "'loss.force_weight'"),
    ):
        result = _snnp("train", _config(tmp_path, data), "--set", f"{key}=3", "--out", tmp_path / "run")
        _check_error(result, f"unknown key '{key}'", f"Did you mean {meant}")


def test_config_value_of_the_wrong_type(data: Path, tmp_path: Path) -> None:
    result = _snnp("train", _config(tmp_path, data), "--set", "optimiser.epochs=many", "--out", tmp_path / "run")
    _check_error(result, "'optimiser.epochs'", "integer", "'many'")


def test_missing_config(tmp_path: Path) -> None:
    _check_error(_snnp("train", tmp_path / "none.yaml"), "none.yaml does not exist", "snnp train --help")


def test_resume_of_nothing(tmp_path: Path) -> None:
    _check_error(_snnp("train", "--resume", tmp_path), str(tmp_path), "no run to resume", "start one")


def test_new_run_over_an_old_one(data: Path, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").touch()
    config = _config(tmp_path.parent, data)
    _check_error(_snnp("train", config, "--out", tmp_path), "already holds a run", "--resume")


def test_unwritable_output(model: Path, data: Path, tmp_path: Path) -> None:
    """Below a regular file nobody can write, not even root."""
    blocker = tmp_path / "file"
    blocker.touch()
    commands: list[list[object]] = [
        ["train", _config(tmp_path, data), "--out", blocker / "run"],
        ["md", model, "fcc:Cu:2x2x2", *RUN, blocker / "md.xyz"],
        ["relax", model, "fcc:Cu:1x1x1", "--out", blocker / "relaxed.xyz"],
        ["plot", model, blocker / "curves.png"],
    ]
    for command in commands:
        _check_error(_snnp(*command), f"'{blocker}' is not a folder", "choose a path")


def test_output_that_is_a_folder(model: Path, tmp_path: Path) -> None:
    (tmp_path / "curves.png").mkdir()
    _check_error(
        _snnp("plot", model, tmp_path / "curves.png"), "curves.png'", "is a folder", "choose the name of a file"
    )


def test_unknown_endings(model: Path, tmp_path: Path) -> None:
    _check_error(_snnp("plot", model, tmp_path / "curves.gif"), "curves.gif", ".png")
    _check_error(_snnp("md", model, "fcc:Cu:2x2x2", *RUN, tmp_path / "md.abc"), "md.abc", ".extxyz")
    _check_error(_snnp("relax", model, "fcc:Cu:1x1x1", "--out", tmp_path / "a.unknown"), "a.unknown", ".cif")


def test_unknown_engine_and_settings(model: Path, tmp_path: Path) -> None:
    run = ["md", model, "fcc:Cu:2x2x2", "--trajectory", tmp_path / "md.xyz"]
    _check_error(_snnp(*run, "--engine", "openm"), "no engine 'openm'", "Did you mean 'openmm'")
    _check_error(_snnp(*run, "--dt", "-1"), "error: --dt: ", "greater than 0", "-1")
    _check_error(_snnp(*run, "--dtype", "float16"), "dtype", "float32")
    _check_error(_snnp(*run, "--engine", "ase", "--resume"), "no checkpoint", "without resume")


def test_debug_shows_the_traceback(model: Path, tmp_path: Path) -> None:
    """`--debug` is understood before and after the command."""
    for command in (["--debug", "info", "no-such-model"], ["info", "no-such-model", "--debug"]):
        result = _snnp(*command)
        assert result.exit_code == 1
        lines = result.stderr.splitlines()
        assert lines[0].startswith("Traceback (most recent call last)")
        assert any(line.startswith("snnp.errors.ModelFileError: ") for line in lines)
        assert lines[-1].startswith("error: there is no model named 'no-such-model'")


def test_mistyped_commands() -> None:
    """What the command line itself gets wrong is one line too, with exit code 2."""
    for arguments, words in (
        (["trian"], ["No such command 'trian'", "Did you mean 'train'", "snnp --help"]),
        (["md", "snnp-si"], ["Missing argument 'STRUCTURE'", "snnp md --help"]),
        (["md", "a", "b", "--stepz", "3"], ["--stepz", "--steps", "snnp md --help"]),
        (["md", "a", "b", "--steps", "many"], ["--steps", "integer"]),
    ):
        result = _snnp(*arguments)
        assert result.exit_code == 2
        assert result.stdout == ""
        assert len(result.stderr.splitlines()) == 1, result.stderr
        for word in ["error: ", *words]:
            assert word in result.stderr


def test_installed_program_fails_the_same_way(tmp_path: Path) -> None:
    """The script itself, in a process of its own."""
    script = Path(sys.executable).with_name("snnp")
    done = subprocess.run([script, "info", tmp_path], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("error: ")
