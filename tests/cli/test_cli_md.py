"""`snnp md` and `snnp relax`: files, resuming, signals, and what is refused."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase.build import bulk
from ase.constraints import FixAtoms
from ase.io import read, write
from cli_runs import run_json, run_snnp
from typer.testing import CliRunner

from snnp.cli.main import app
from snnp.models import Potential, load_model, store
from snnp.sampling import MDProgress, MDSettings, build_structure, run_md
from snnp.sampling.checkpoint import read_checkpoint
from snnp.structure import Structure
from snnp.units import EV_PER_ANGSTROM3_IN_GPA


@pytest.mark.parametrize("engine", ["ase", "openmm"])
def test_md_writes_its_files(engine: str, run: Path, tmp_path: Path) -> None:
    arguments = ["md", run, "fcc:Cu:2x2x2", "--engine", engine, "--ensemble", "nve", "--steps", 20]
    result = run_json(*arguments, "--every", 10, "--trajectory", tmp_path / "cu.extxyz", "--dtype", "float64")
    assert result["steps"] == 20
    assert result["ns_per_day"] > 0.0
    assert result["files"]["trajectory"] == str(tmp_path / "cu.extxyz")
    assert len(read(tmp_path / "cu.extxyz", index=":")) == 3
    assert (tmp_path / "cu.csv").read_text().startswith("step,")
    assert (tmp_path / "cu.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "cu.npz").is_file()


@pytest.mark.parametrize("engine", ["ase", "native", "openmm"])
def test_md_loads_the_model_once(engine: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, parse_model = [], store.parse_model

    def counted(text: str, weights: bytes, *rest: str) -> Potential:
        loaded.append(weights)
        return parse_model(text, weights, *rest)

    monkeypatch.setattr(store, "parse_model", counted)
    arguments = ["md", run, "fcc:Cu:2x2x2", "--engine", engine, "--minimise", "--steps", 2, "--plot", "none"]
    run_snnp(*arguments, "--trajectory", tmp_path / "cu.xyz")
    assert len(loaded) == 1
    assert read_checkpoint(tmp_path / "cu.npz").record.model == str(run)


def test_md_resumes(run: Path, tmp_path: Path) -> None:
    arguments = ["md", run, "fcc:Cu:2x2x2", "--engine", "ase", "--trajectory", tmp_path / "cu.xyz", "--plot", "none"]
    run_snnp(*arguments, "--steps", 10)
    result = run_snnp(*arguments, "--steps", 30, "--resume")
    assert "10 to 30" in result.stdout
    assert "ns/day" in result.stdout
    rows = (tmp_path / "cu.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows] == ["step", "0", "10", "20", "30"]
    assert not (tmp_path / "cu.png").exists()


def _refused(*arguments: object) -> str:
    """The one line of a command that refuses."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 1, result.output
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    return line


def _md(run: Path, *arguments: object) -> list[object]:
    return ["md", run, "fcc:Cu:2x2x2", "--engine", "native", "--plot", "none", "--steps", 10, *arguments]


def test_nothing_that_a_user_may_have_is_replaced_unless_asked(run: Path, data: Path, tmp_path: Path) -> None:
    labels = ["--method", "EMT", "--energy-key", "my_energy", "--forces-key", "my_forces"]
    commands = {
        "md.xyz": _md(run, "--trajectory", tmp_path / "md.xyz"),
        "relaxed.cif": ["relax", run, "fcc:Cu:1x1x1", "--out", tmp_path / "relaxed.cif"],
        "curves.png": ["plot", run, tmp_path / "curves.png"],
        "computed.xyz": ["energy", run, "fcc:Cu:1x1x1", "--out", tmp_path / "computed.xyz"],
        "model.pt": ["export", run, tmp_path / "model.pt"],
        "data.parquet": ["convert", data / "train.xyz", tmp_path / "data.parquet", *labels],
    }
    for name, command in commands.items():
        (tmp_path / name).write_text("mine")
        assert f"{name}' exists already and would be replaced; choose another name, or say --overwrite" in _refused(
            *command
        )
        assert (tmp_path / name).read_text() == "mine"
        run_snnp(*command, "--overwrite")
        assert (tmp_path / name).read_bytes() != b"mine"
    assert not list(tmp_path.glob(".*"))


def test_no_input_is_written_onto_even_if_asked(run: Path, data: Path, tmp_path: Path) -> None:
    start = tmp_path / "start.xyz"
    write(start, bulk("Cu", cubic=True) * (2, 2, 2))
    (tmp_path / "link.xyz").symlink_to(start)
    train = shutil.copy(data / "train.xyz", tmp_path / "train.xyz")
    config = shutil.copy(data / "config.yaml", tmp_path / "config.yaml")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    commands: list[list[object]] = [
        ["md", run, start, "--trajectory", start],
        ["md", run, start, "--trajectory", tmp_path / "link.xyz"],
        ["md", run, start, "--log", run / "best" / "config.json"],
        ["relax", run, start, "--out", start],
        ["convert", train, tmp_path / "train.xyz", "--energy-key", "my_energy"],
        ["plot", run, tmp_path / "start.png", "--data", tmp_path / "start.png"],
        ["train", config, "--out", tmp_path],
    ]
    (tmp_path / "start.png").write_text("data")
    for command in commands:
        assert "is the file that is read; choose another file" in _refused(*command, "--overwrite")
    (tmp_path / "start.png").unlink()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_two_trajectories_of_one_stem_do_not_share_companions(run: Path, tmp_path: Path) -> None:
    run_snnp(*_md(run, "--trajectory", tmp_path / "st.dcd"))
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert "st.csv' exists already" in _refused(*_md(run, "--trajectory", tmp_path / "st.xyz"))
    line = _refused(*_md(run, "--trajectory", tmp_path / "st.xyz", "--overwrite"))
    assert "st.npz' belongs to the run that wrote 'st.dcd'; give this run a trajectory of another name" in line
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    run_snnp(*_md(run, "--trajectory", tmp_path / "st.dcd", "--overwrite"))
    run_snnp(*_md(run, "--trajectory", tmp_path / "st.xyz", "--log", "none", "--checkpoint", "none"))


def test_a_resumed_run_keeps_what_is_not_said_again(run: Path, tmp_path: Path) -> None:
    files = ["--trajectory", tmp_path / "cu.xyz", "--log", tmp_path / "log.csv"]
    plan = ["--temperature", 500, "--dt", 2, "--every", 5, "--log-every", 2, "--checkpoint-every", 4, "--seed", 3]
    run_snnp(*_md(run, *files, *plan))
    start = ["md", run, "fcc:Cu:2x2x2", "--trajectory", tmp_path / "cu.xyz"]
    result = run_json(*start, "--steps", 20, "--resume")
    assert (result["engine"], result["first_step"], result["last_step"]) == ("native", 10, 20)
    rows = (tmp_path / "log.csv").read_text().splitlines()
    assert [row.split(",")[:2] for row in rows[1:]] == [[str(k), f"{0.002 * k:.6f}"] for k in range(0, 21, 2)]
    assert len(read(tmp_path / "cu.xyz", index=":")) == 5
    assert not (tmp_path / "cu.csv").exists()
    assert not (tmp_path / "cu.png").exists()
    assert "--dt is 1.0 but the run to resume had 2.0" in _refused(*start, "--resume", "--dt", 1, "--steps", 30)
    run_snnp(*start, "--resume", "--dt", 1, "--steps", 30, "--accept-changes")
    assert (tmp_path / "log.csv").read_text().splitlines()[-1].startswith("30,0.050000")


def test_a_resumed_run_keeps_its_ensemble(run: Path, tmp_path: Path) -> None:
    """Ramp, thermostat, held atoms and equilibration are the checkpoint's; the run ends as one without a stop."""

    def stop(now: MDProgress) -> None:
        if now.step > 20:
            raise KeyboardInterrupt

    slab = bulk("Cu", cubic=True) * (2, 2, 2)
    slab.set_constraint(FixAtoms([7]))
    write(tmp_path / "slab.vasp", slab)
    start, parts, whole = ["md", run, tmp_path / "slab.vasp"], tmp_path / "parts.xyz", tmp_path / "whole.xyz"
    asked = ["--engine", "native", "--temperature", "400:100", "--thermostat", "bussi", "--fix", "0-1", "--steps", 40]
    asked += ["--equilibrate", 5, "--friction", 20, "--every", 10, "--checkpoint-every", 20, "--trajectory", whole]
    run_snnp(*start, *asked)
    settings = MDSettings(
        **{"temperature_k": 400.0, "temperature_end_k": 100.0, "thermostat": "bussi", "fix": "0-1", "steps": 40},
        **{"equilibrate": 5, "friction_per_ps": 20.0, "trajectory_interval": 10, "checkpoint_interval": 20},
        **{"trajectory": parts, "log": parts.with_suffix(".csv"), "checkpoint": parts.with_suffix(".npz")},
    )
    with pytest.raises(KeyboardInterrupt):
        run_md(run, build_structure(str(tmp_path / "slab.vasp")), settings, engine="native", report=stop)
    for words, message in (
        (["--temperature", 400], "--temperature K:K is None but the run to resume had 100.0"),
        (
            ["--thermostat", "langevin", "--accept-changes"],
            "thermostat is 'langevin' but the run to resume had 'bussi'",
        ),
        (
            ["--fix", "0", "--accept-changes"],
            "fix is '0' but the run to resume had '0-1'; keep it, or start a new run.",
        ),
        (["--equilibrate", 9], "equilibrate is 9 but the run to resume had 5"),
        (["--steps", 50], "steps is 50 but the run to resume had 40"),
    ):
        assert message in _refused(*start, "--trajectory", parts, "--resume", *words)
    write(tmp_path / "free.vasp", bulk("Cu", cubic=True) * (2, 2, 2))
    line = _refused("md", run, tmp_path / "free.vasp", "--trajectory", parts, "--resume")
    assert "atom 7 is fixed in the checkpoint" in line
    assert "the first 5 steps" in run_snnp(*start, "--trajectory", parts, "--resume", "--minimise").stdout
    assert parts.read_bytes() == whole.read_bytes()
    assert parts.with_suffix(".csv").read_bytes() == whole.with_suffix(".csv").read_bytes()


def test_a_run_that_blew_up_is_mended_with_a_smaller_step(run: Path, tmp_path: Path) -> None:
    command = ["md", run, "fcc:Cu:2x2x2", "--engine", "native", "--trajectory", tmp_path / "cu.xyz"]
    run_snnp(*command, "--temperature", 4000, "--ensemble", "nve", "--steps", 5, "--log-every", 5)
    assert "blew up" in _refused(*command, "--resume", "--steps", 400, "--dt", 200, "--accept-changes")
    result = run_json(*command, "--resume", "--steps", 10, "--dt", 0.5, "--accept-changes")
    assert (result["first_step"], result["last_step"]) == (5, 10)


def test_a_full_disk_is_one_line_that_names_the_file(run: Path, tmp_path: Path) -> None:
    line = _refused(*_md(run, "--trajectory", tmp_path / "cu.xyz", "--log", "/dev/full"))
    assert line == "error: cannot write /dev/full: the disk is full; make room there, or write elsewhere."


def test_velocities_of_a_file_are_named_and_can_be_replaced(run: Path, tmp_path: Path) -> None:
    hot = bulk("Cu", cubic=True) * (2, 2, 2)
    hot.set_momenta(np.random.default_rng(0).normal(size=(32, 3)) * 10.0)
    write(tmp_path / "hot.xyz", hot)
    command = ["md", run, tmp_path / "hot.xyz", "--engine", "native", "--steps", 0, "--ensemble", "nve"]
    kept = run_snnp(*command, "--trajectory", tmp_path / "a.xyz")
    assert f"The structure brings velocities ({hot.get_temperature():.0f} K)" in kept.stderr
    drawn = run_snnp(*command, "--trajectory", tmp_path / "b.xyz", "--new-velocities", "--temperature", 100)
    assert "brings velocities" not in drawn.stderr
    assert read(tmp_path / "a.xyz").get_temperature() == pytest.approx(hot.get_temperature(), rel=1e-6)
    assert 50.0 < read(tmp_path / "b.xyz").get_temperature() < 150.0


@pytest.mark.parametrize("signum", [2, 15])
def test_a_signal_during_imports_ends_the_program(signum: int) -> None:
    """An exception would be lost where an extension module swallows it, and the run go on."""
    late = (
        "import os, sys\n"
        "from snnp.cli.main import run\n"
        "class Finder:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'torch':\n"
        f"            try: os.kill(os.getpid(), {signum})\n"
        "            except BaseException: pass\n"
        "sys.meta_path.insert(0, Finder())\n"
        "sys.argv = ['snnp', 'version']\n"
        "run()\n"
    )
    done = subprocess.run([sys.executable, "-c", late], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (128 + signum, "", "")


def test_a_pressure_without_a_barostat_is_refused(tmp_path: Path) -> None:
    for option in (["--pressure", "1"], ["--barostat", "anisotropic"]):
        asked = ["md", "snnp-si", "diamond:Si:1x1x1", "--trajectory", str(tmp_path / "md.xyz"), *option]
        result = CliRunner().invoke(app, asked)
        assert result.exit_code == 1
        assert "say --ensemble npt" in result.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", [".", "/", ".."])
def test_a_trajectory_needs_a_name(name: str) -> None:
    result = CliRunner().invoke(app, ["md", "snnp-si", "diamond:Si:1x1x1", "--trajectory", name])
    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1
    assert "unexpected" not in result.stderr


@pytest.mark.parametrize("name, why", [("a.vasp", "cannot hold"), ("a.zzz", "has no ending")])
def test_relax_says_before_the_work_that_a_format_does_not_serve(name: str, why: str, tmp_path: Path) -> None:
    asked = ["relax", "snnp-3bpa", "molecule:CH4", "--steps", "1000000", "--fmax", "1e-300"]
    result = CliRunner().invoke(app, [*asked, "--out", str(tmp_path / name)])
    assert result.exit_code == 1
    assert f"error: '{tmp_path / name}' {why}" in result.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("engine, signum", [("ase", 2), ("native", 15), ("openmm", 15), ("openmm", 2)])
def test_an_interrupted_run_saves_and_names_the_way_on(engine: str, signum: int, run: Path, tmp_path: Path) -> None:
    path = tmp_path / "a b.npz"

    def interrupt() -> None:
        while not path.exists():
            time.sleep(0.01)
        time.sleep(0.2)
        os.kill(os.getpid(), signum)

    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, before if before is not signal.SIG_DFL else lambda *_: None)
    thread = threading.Thread(target=interrupt)
    thread.start()
    long = ["--steps", 10**7, "--log-every", 10**6, "--trajectory", path.with_suffix(".xyz"), "--plot", "none"]
    command = ["md", run, "fcc:Cu:2x2x2", "--engine", engine, *long]
    result = CliRunner().invoke(app, [str(word) for word in command])
    thread.join()
    signal.signal(signal.SIGTERM, before)
    assert result.exit_code == 128 + signum, result.output
    said = re.search(r"Interrupted: stopped at step (\d+) of 10000000; the state is in '(.*)'\.", result.stderr)
    assert said is not None
    assert said[2] == str(path)
    again = shlex.split(result.stderr.split("Go on with: ")[1])
    step = int(said[1])
    assert f"{step} to {step + 2}" in run_snnp(*again[1:], "--steps", step + 2).stdout
    assert not list(tmp_path.glob(".*"))


def test_md_without_files(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    nothing = [word for name in ("trajectory", "log", "plot", "checkpoint") for word in (f"--{name}", "none")]
    result = run_json("md", run, "fcc:Cu:2x2x2", "--engine", "ase", "--steps", 2, *nothing)
    assert result["files"] == {}
    assert list(tmp_path.iterdir()) == []


def test_md_ramps_holds_and_minimises(run: Path, tmp_path: Path) -> None:
    atoms = bulk("Cu", cubic=True) * (2, 1, 1)
    atoms.rattle(0.15, seed=1)
    atoms.set_constraint(FixAtoms([7]))
    write(tmp_path / "start.vasp", atoms)  # with selective dynamics
    asked = [
        "md",
        run,
        tmp_path / "start.vasp",
        "--engine",
        "ase",
        "--trajectory",
        tmp_path / "a.xyz",
        "--plot",
        "none",
    ]
    asked += ["--steps", 20, "--every", 20, "--temperature", "10:5", "--thermostat", "bussi"]
    asked += ["--fix", "0-1", "--minimise"]
    text = run_snnp(*asked, "--equilibrate", 10).stdout
    assert "a ramp from 10 to 5 K" in text
    assert "the first 10 steps; no mean holds them" in text
    first, last = read(tmp_path / "a.xyz", index=0), read(tmp_path / "a.xyz", index=-1)
    held = [0, 1, 7]
    assert np.abs(first.positions - atoms.positions)[2:7].max() > 0.05  # minimised
    assert np.abs(first.positions - atoms.positions)[held].max() < 1e-6
    assert np.array_equal(first.positions[held], last.positions[held])
    assert np.abs(first.positions - last.positions)[2:7].min() > 0.0
    wrong = CliRunner().invoke(app, [str(word) for word in [*asked, "--temperature", "10-5"]])
    assert "--temperature '10-5' is not understood" in wrong.output


def test_md_prints_no_number_that_means_nothing(run: Path, tmp_path: Path) -> None:
    arguments = ["md", run, "fcc:Cu:2x2x2", "--engine", "ase", "--trajectory", tmp_path / "a.xyz", "--plot", "none"]
    told = run_json(*arguments, "--ensemble", "nve", "--steps", 10)
    assert told["drift_mev_per_atom_per_ns"] is None
    assert told["temperature_std_k"] is None
    assert told["mean_temperature_k"] > 0.0
    again = run_json(*arguments, "--ensemble", "nve", "--steps", 10, "--resume")
    assert (again["steps"], again["ns_per_day"]) == (0, None)


def test_relax_finds_a_minimum(run: Path, tmp_path: Path) -> None:
    atoms = bulk("Cu", cubic=True)
    atoms.rattle(0.1, seed=1)
    write(tmp_path / "start.xyz", atoms)
    result = run_json("relax", run, tmp_path / "start.xyz", "--fmax", 0.005, "--out", tmp_path / "new" / "end.cif")
    assert result["converged"]
    assert result["energy_ev"] < result["initial_energy_ev"]
    relaxed: Any = read(tmp_path / "new" / "end.cif")
    forces = load_model(run, dtype=torch.float64).compute(Structure.from_ase(relaxed)).forces
    assert forces is not None
    assert float(forces.norm(dim=1).max()) < 0.006  # the file holds rounded positions


def test_relax_under_pressure_ends_at_that_pressure(tmp_path: Path) -> None:
    """The stress at the end is minus the pressure; silicon's volume falls by about P / B."""
    free, pressed = (
        run_json("relax", "snnp-si", "diamond:Si:1x1x1", "--fmax", 1e-4, *more)
        for more in (["--cell"], ["--pressure", 5, "--out", tmp_path / "si.xyz"])
    )
    atoms: Any = read(tmp_path / "si.xyz")
    found = load_model("snnp-si", dtype=torch.float64).compute(atoms, stress=True)
    assert found.stress is not None
    np.testing.assert_allclose(found.stress[0] * EV_PER_ANGSTROM3_IN_GPA, -5.0 * np.eye(3), atol=5e-3)
    assert pressed["pressure_gpa"] == 5.0
    assert pressed["max_stress_gpa"] < 5e-3
    bulk_modulus = 5.0 / -np.log(pressed["volume_a3"] / free["volume_a3"])
    assert 80.0 < bulk_modulus < 130.0  # GPa; experiment: 98, and it grows under pressure


def test_pressure_needs_a_cell(run: Path) -> None:
    result = CliRunner().invoke(app, ["relax", str(run), "fcc:Cu:1x1x1", "--no-cell", "--pressure", "1"])
    assert result.exit_code == 1
    assert "--no-cell" in result.stderr


def test_relax_says_when_it_stops_early(run: Path, tmp_path: Path) -> None:
    atoms = bulk("Cu", cubic=True)
    atoms.rattle(0.1, seed=1)
    write(tmp_path / "start.xyz", atoms)
    result = run_snnp("relax", run, tmp_path / "start.xyz", "--steps", 1)
    assert "warning: not relaxed after 1 steps" in result.stderr
    assert "no, 1 steps" in result.stdout
