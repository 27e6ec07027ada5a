"""`snnp doctor`: reports on disk, one JSON value on stdout, and exit codes that CI can use."""

from __future__ import annotations

import json
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from typer.testing import CliRunner

from snnp.cli.main import app


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["doctor", *arguments])
    return result.exit_code, result.stdout


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """Warm copper in two splits."""
    paths = []
    for k, name in enumerate(("train", "test")):
        images = []
        for seed in range(24 - 16 * k):
            atoms = bulk("Cu", cubic=True)
            atoms.rattle(0.1, seed=100 * k + seed)
            atoms.calc = EMT()
            energy, forces = atoms.get_potential_energy(), atoms.get_forces()
            atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces)
            images.append(atoms)
        ase.io.write(tmp_path / f"{name}.xyz", images, format="extxyz")
        paths.append(str(tmp_path / f"{name}.xyz"))
    return paths


def test_sound_data(files: list[str], tmp_path: Path) -> None:
    code, out = run("data", *files, "--out", str(tmp_path / "report"), "--json")
    assert code == 0
    report = json.loads(out)
    assert report["errors"] == 0
    assert report["subject"] == "train.xyz, test.xyz"
    assert [row["split"] for row in report["facts"]["Splits"]] == ["train", "test"]
    assert json.loads((tmp_path / "report" / "report.json").read_text()) == report
    assert (tmp_path / "report" / "report.html").read_text().startswith("<!DOCTYPE html>")


def test_faults_give_exit_code_three(files: list[str], tmp_path: Path) -> None:
    images = ase.io.read(files[1], index=":")
    ase.io.write(files[1], [*images, ase.io.read(files[0], index=3)], format="extxyz")
    code, out = run("data", *files, "--out", str(tmp_path / "report"))
    assert code == 3
    assert "leakage" in out
    assert "1 error" in out


def test_warnings_count_with_strict(files: list[str], tmp_path: Path) -> None:
    images = ase.io.read(files[0], index=":")
    ase.io.write(files[0], [*images, images[0]], format="extxyz")
    out = str(tmp_path / "report")
    assert run("data", *files, "--out", out)[0] == 0
    assert run("data", *files, "--out", out, "--strict")[0] == 3


def test_default_folder_has_the_name_of_the_set(
    files: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("data", f"train={files[0]}")[0] == 0
    assert (tmp_path / "runs" / "doctor-train.xyz" / "report.html").is_file()


def test_what_cannot_be_examined(tmp_path: Path) -> None:
    assert run("data", str(tmp_path))[0] == 1
    assert run("data", str(tmp_path / "missing.xyz"))[0] == 1
    assert run("model", str(tmp_path / "missing"))[0] == 1


def test_model(tmp_path: Path) -> None:
    code, out = run("model", "snnp-ge", "--out", str(tmp_path / "report"), "--json", "--strict")
    assert code == 0
    report = json.loads(out)
    assert report["kind"] == "model"
    assert report["findings"] == []
    assert np.isfinite([row["µs_per_atom"] for row in report["facts"]["Cost"]]).all()
    assert (tmp_path / "report" / "report.html").is_file()
