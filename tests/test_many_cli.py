"""`snnp relax` of files with many structures: all of them, those that fail by name, and the numbers of frames."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read, write
from strained import silicon
from typer.testing import CliRunner

from snnp.cli.main import app
from snnp.errors import InputError
from snnp.sampling.many import build_structures


@pytest.fixture
def many(tmp_path: Path) -> Path:
    frames = silicon(5)
    bad = frames[0].copy()
    bad.positions[1] = bad.positions[0]
    write(tmp_path / "many.xyz", [*frames[:3], bad, *frames[3:]])
    write(tmp_path / "good.xyz", frames)
    return tmp_path / "many.xyz"


def _run(*arguments: object) -> Any:
    return CliRunner().invoke(app, list(map(str, arguments)))


def test_the_command_relaxes_all_frames(many: Path) -> None:
    out = many.with_name("relaxed.xyz")
    result = _run("relax", "snnp-si", many.with_name("good.xyz"), "--out", out, "--json", "--cell")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert (found["n_structures"], found["n_relaxed"], found["n_failed"]) == (5, 5, 0)
    relaxed: Any = read(out, index=":")
    assert [atoms.info["frame"] for atoms in relaxed] == [0, 1, 2, 3, 4]
    alone = json.loads(_run("relax", "snnp-si", f"{many.with_name('good.xyz')}@2", "--json", "--cell").stdout)
    assert found["results"][2]["energy_ev"] == pytest.approx(alone["energy_ev"], abs=1e-9)
    assert relaxed[2].get_potential_energy() == pytest.approx(alone["energy_ev"], abs=1e-6)
    assert isinstance(relaxed[2].calc, SinglePointCalculator)


def test_the_command_names_those_that_fail_and_goes_on(many: Path) -> None:
    out = many.with_name("relaxed.xyz")
    result = _run("relax", "snnp-si", many, "--out", out, "--optimiser", "lbfgs")
    assert result.exit_code == 1
    assert "warning: structure 3: atoms 0 and 1 overlap" in " ".join(result.stderr.split())
    assert "5 of 6 structures" in result.stdout
    assert [atoms.info["frame"] for atoms in read(out, index=":")] == [0, 1, 2, 4, 5]  # type: ignore[union-attr]
    assert "good" not in result.stderr


def test_the_command_says_what_is_not_relaxed(many: Path) -> None:
    result = _run("relax", "snnp-si", many.with_name("good.xyz"), "--steps", 2)
    assert result.exit_code == 0
    assert "5 structures are not relaxed after 2 steps (0, 1, 2, 3, 4)" in " ".join(result.stderr.split())


def test_the_command_refuses_to_write_over_its_input(many: Path) -> None:
    result = _run("relax", "snnp-si", many, "--out", many, "--overwrite")
    assert result.exit_code == 1
    assert "many.xyz" in result.stderr


def test_another_optimiser_serves_one_structure_too() -> None:
    result = _run("relax", "snnp-si", "diamond:Si:1x1x1", "--optimizer", "lbfgs", "--json")
    assert json.loads(result.stdout)["n_relaxed"] == 1
    refused = _run("relax", "snnp-si", "diamond:Si:1x1x1", "--optimiser", "bfgs")
    assert refused.exit_code == 1
    assert "no optimiser 'bfgs'" in refused.stderr


def test_the_frame_that_was_named_keeps_its_number(many: Path) -> None:
    out = many.with_name("relaxed.xyz")
    good = many.with_name("good.xyz")
    for named, number in (("@3", 3), ("@-1", -1)):
        _run("relax", "snnp-si", f"{good}{named}", "--optimiser", "lbfgs", "--out", out, "--overwrite")
        assert read(out).info["frame"] == number  # type: ignore[union-attr]


def test_a_specification_is_one_structure(many: Path) -> None:
    assert len(build_structures("diamond:Si:1x1x1")) == 1
    assert len(build_structures(many)) == 6
    assert len(build_structures(f"{many}@1")) == 1
    many.write_text("3\nnothing\n")
    with pytest.raises(InputError, match="cannot read a structure"):
        build_structures(many)
