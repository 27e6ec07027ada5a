"""The command line: every command does its job, results on stdout, messages on stderr."""

from __future__ import annotations

import json
import os
import platform
import pty
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.constraints import FixAtoms
from ase.io import read, write
from typer.testing import CliRunner, Result

import snnp
from snnp.cli.console import number
from snnp.cli.main import app
from snnp.errors import InputError
from snnp.kernels.library import native_target
from snnp.models import SplineNNP, list_models, load_model, save_model, special_cases
from snnp.models.ensemble import Ensemble
from snnp.sampling import MDProgress, MDSettings, build_structure, run_md
from snnp.structure import Structure
from snnp.units import EV_PER_ANGSTROM3_IN_GPA

COMMANDS = ["ls", "info", "train", "evaluate", "energy", "md", "relax", "export", "plot", "benchmark", "version"]


def _snnp(*arguments: object) -> Result:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result


def _json(*arguments: object) -> Any:
    """What a command prints with --json: the whole of stdout."""
    return json.loads(_snnp(*arguments, "--json").stdout)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with labelled copper structures and a configuration."""
    folder = tmp_path_factory.mktemp("data")
    frames = []
    for seed in range(12):
        atoms = bulk("Cu", cubic=True)
        atoms.set_cell(atoms.cell * np.random.default_rng(seed).uniform(0.96, 1.04), scale_atoms=True)
        atoms.rattle(0.08, seed=seed)
        atoms.calc = EMT()
        energy, forces = atoms.get_potential_energy(), atoms.get_forces()
        atoms.calc = None
        atoms.info |= {"my_energy": energy, "config_type": "odd" if seed % 2 else "even"}
        atoms.arrays["my_forces"] = forces
        frames.append(atoms)
    write(folder / "train.xyz", frames[:9])
    write(folder / "test.xyz", frames[9:])
    (folder / "config.yaml").write_text(
        f"""
data:
  train: [{folder}/train.xyz]
  valid: 0.2
  test: {folder}/test.xyz
  energy_key: my_energy
  forces_key: my_forces
model:
  radial: {{n_filters: 3, cutoff: 4.0}}
  angular: {{n_filters: 3, cutoff: 4.0, degree: 2}}
  network: {{hidden: [4]}}
optimiser: {{epochs: 30, batch_atoms: 8}}
threads: 1
"""
    )
    return folder


@pytest.fixture(scope="module")
def run(data: Path) -> Path:
    """The folder of a training run, made by the command."""
    torch.set_num_threads(1)
    _snnp("train", data / "config.yaml", "--set", "optimiser.epochs=20", "--out", data / "run")
    return data / "run"


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_examples(command: str) -> None:
    text = _snnp(command, "--help").stdout
    assert "Examples:" in text
    assert f"$ snnp {command}" in text


def test_help_lists_all_commands() -> None:
    text = _snnp("--help").stdout
    assert all(f" {command} " in text for command in COMMANDS)
    assert _snnp().stdout == text


def test_version() -> None:
    assert _snnp("--version").stdout.startswith("snnp ")


def test_version_says_what_computes() -> None:
    said = _json("version")
    assert said["snnp"] == version("snnp")
    assert said["torch"] == version("torch")
    assert said["kernel"] == native_target()
    assert said["platform"] == platform.platform()
    assert "python" in _snnp("version").stdout


@pytest.mark.parametrize(
    "words, found", [("snnp rel", "relax"), ("snnp info snnp-s", "snnp-si"), ("snnp md a b --d", "--dt")]
)
def test_shell_completes_commands_options_and_models(words: str, found: str) -> None:
    """What the script that `snnp --install-completion` writes asks the program at every Tab."""
    script = Path(sys.executable).with_name("snnp")
    asked = {"COMP_WORDS": words, "COMP_CWORD": str(words.count(" ")), "_SNNP_COMPLETE": "complete_bash"}
    done = subprocess.run([script], capture_output=True, text=True, check=True, env={**os.environ, **asked})
    assert found in done.stdout.split()


@pytest.mark.parametrize(
    "arguments, meant",
    [
        ("md a b --timestep 1", "no such option --timestep; did you mean --dt? See 'snnp md --help'."),
        ("md a b --temp 1", "--temperature"),
        ("md a b --nsteps 1", "--steps"),
        ("md a b -dt 1", "--dt"),
        ("md a b --traj x", "--trajectory"),
        ("train c.yaml --lr 1", "--set optimiser.learning_rate=VALUE"),
        ("train c.yaml --batch-size 1", "--set optimiser.batch_atoms=VALUE"),
        ("train c.yaml --output x", "--out"),
        ("evaluate a b --precision float64", "--dtype"),
        ("relax a b --ftol 1", "--fmax"),
        ("optimize a b", "'relax'"),
        ("predict a b", "'energy'"),
    ],
)
def test_words_of_other_programs_are_understood(arguments: str, meant: str) -> None:
    result = CliRunner().invoke(app, arguments.split())
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "did you mean " in result.stderr.lower()
    assert meant in result.stderr.lower().partition("did you mean ")[2] or meant in result.stderr


def test_unknown_options_without_a_likeness_get_no_advice() -> None:
    result = CliRunner().invoke(app, ["md", "a", "b", "--qqq", "1"])
    assert result.stderr == "error: no such option --qqq. See 'snnp md --help'.\n"


def test_help_does_not_wait_for_torch() -> None:
    """Seconds of imports for a help text would make the program feel slow."""
    code = "import sys, snnp.cli.main; print({'torch', 'ase', 'matplotlib', 'numpy', 'openmm'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_train_writes_a_run_and_says_so(data: Path, tmp_path: Path) -> None:
    arguments = ["train", data / "config.yaml", "--set", "optimiser.epochs=3", "--set", "seed=5"]
    result = _json(*arguments, "--out", tmp_path / "run")
    assert result["run"] == str(tmp_path / "run")
    assert set(result["errors"]) == {"train", "valid", "test"}
    assert result["errors"]["test"]["n_structures"] == 3
    assert load_model(result["model"]).n_parameters == result["n_parameters"]
    assert "epochs: 3" in (tmp_path / "run" / "config.yaml").read_text()


def test_train_reports_for_people(run: Path) -> None:
    """A finished run resumes to its end at once."""
    result = _snnp("train", "--resume", run)
    assert "force MAE" in result.stdout
    assert "parity_forces.png" in result.stdout
    assert f"snnp md {run}" in result.stderr


def test_interrupted_training_names_the_way_on(data: Path, tmp_path: Path) -> None:
    """Ctrl-C while it trains: no traceback, and the command that goes on, which does."""
    folder = tmp_path / "run"

    def interrupt() -> None:
        while not (folder / "last" / "config.json").exists():
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    arguments = ["train", data / "config.yaml", "--set", "optimiser.epochs=100000", "--out", folder]
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    thread.join()
    assert result.exit_code == 130
    assert result.stdout == ""
    assert result.stderr.splitlines()[-1] == f"Interrupted; 'snnp train --resume {folder}' goes on from here."


def test_evaluate_gives_the_promised_keys(run: Path, data: Path) -> None:
    keys = ["--energy-key", "my_energy", "--forces-key", "my_forces"]
    result = _json("evaluate", run, data / "test.xyz", *keys)
    assert result["model"] == str(run)
    assert result["data"] == str(data / "test.xyz")
    assert (result["n_structures"], result["n_atoms"]) == (3, 12)
    frames: Any = read(data / "test.xyz", index=":")
    predicted = load_model(run).compute(Structure.from_ase(frames))
    reference = np.concatenate([frame.arrays["my_forces"] for frame in frames])
    assert predicted.forces is not None
    difference = predicted.forces.numpy() - reference
    assert result["force_mae_ev_per_angstrom"] == pytest.approx(np.abs(difference).mean(), rel=1e-4)
    assert result["force_rmse_ev_per_angstrom"] == pytest.approx(np.sqrt((difference**2).mean()), rel=1e-4)
    energies = (predicted.energy.numpy() - [frame.info["my_energy"] for frame in frames]) / 4.0
    assert result["energy_mae_mev_per_atom"] == pytest.approx(1000.0 * np.abs(energies).mean(), rel=1e-3)
    assert set(result["groups"]) == {"even", "odd"}
    assert result["stress_mae_gpa"] is None


def test_evaluate_prints_a_table(run: Path, data: Path) -> None:
    keys = ["--energy-key", "my_energy", "--forces-key", "my_forces"]
    lines = _snnp("evaluate", run, data / "train.xyz", data / "test.xyz", *keys).stdout.splitlines()
    assert [line.split()[0] for line in lines[2:]] == ["all", "even", "odd"]
    assert lines[2].split()[1:3] == ["12", "48"]


def test_evaluate_warns_about_units_on_stderr(run: Path, data: Path, tmp_path: Path) -> None:
    frames: Any = read(data / "train.xyz", index=":")
    for frame in frames:
        frame.arrays["my_forces"] *= 1e4
    write(tmp_path / "odd.xyz", frames)
    keys = ["--energy-key", "my_energy", "--forces-key", "my_forces", "--json"]
    result = _snnp("evaluate", run, tmp_path / "odd.xyz", *keys)
    json.loads(result.stdout)
    assert "warning: " in result.stderr
    assert "odd.xyz#" in result.stderr


def test_info_says_everything(run: Path) -> None:
    result = _json("info", run)
    model = load_model(run)
    assert result["class"] == "SplineNNP"
    assert result["elements"] == ["Cu"]
    assert result["cutoff_angstrom"] == model.cutoff
    assert result["n_parameters"] == model.n_parameters
    assert result["dtype"] == "float32"
    assert result["reference_energies_ev"] == model.reference_energies
    assert result["format_version"] == 3
    assert result["isolated_atoms"] == []
    assert len(result["files"]["model.safetensors"]["sha256"]) == 64
    assert result["metadata"]["errors"]["test"]["n_structures"] == 3
    text = _snnp("info", run).stdout
    for words in ("SplineNNP", "sha256", "training_data", "force MAE", "angular.degree"):
        assert words in text


def test_ls_lists_the_bundled_models() -> None:
    listed = _json("ls")
    assert [model["name"] for model in listed] == list_models()
    table = _snnp("ls").stdout
    for model in listed:
        assert model["name"] in table
        assert model["n_parameters"] == load_model(model["name"]).n_parameters


@pytest.mark.parametrize("engine", ["ase", "openmm"])
def test_md_writes_its_files(engine: str, run: Path, tmp_path: Path) -> None:
    arguments = ["md", run, "fcc:Cu:2x2x2", "--engine", engine, "--ensemble", "nve", "--steps", 20]
    result = _json(*arguments, "--every", 10, "--trajectory", tmp_path / "cu.extxyz", "--dtype", "float64")
    assert result["steps"] == 20
    assert result["ns_per_day"] > 0.0
    assert result["files"]["trajectory"] == str(tmp_path / "cu.extxyz")
    assert len(read(tmp_path / "cu.extxyz", index=":")) == 3
    assert (tmp_path / "cu.csv").read_text().startswith("step,")
    assert (tmp_path / "cu.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "cu.npz").is_file()


def test_md_resumes(run: Path, tmp_path: Path) -> None:
    arguments = ["md", run, "fcc:Cu:2x2x2", "--engine", "ase", "--trajectory", tmp_path / "cu.xyz", "--plot", "none"]
    _snnp(*arguments, "--steps", 10)
    result = _snnp(*arguments, "--steps", 30, "--resume")
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
        _snnp(*command, "--overwrite")
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
    _snnp(*_md(run, "--trajectory", tmp_path / "st.dcd"))
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert "st.csv' exists already" in _refused(*_md(run, "--trajectory", tmp_path / "st.xyz"))
    line = _refused(*_md(run, "--trajectory", tmp_path / "st.xyz", "--overwrite"))
    assert "st.npz' belongs to the run that wrote 'st.dcd'; give this run a trajectory of another name" in line
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    _snnp(*_md(run, "--trajectory", tmp_path / "st.dcd", "--overwrite"))
    _snnp(*_md(run, "--trajectory", tmp_path / "st.xyz", "--log", "none", "--checkpoint", "none"))


def test_a_resumed_run_keeps_what_is_not_said_again(run: Path, tmp_path: Path) -> None:
    files = ["--trajectory", tmp_path / "cu.xyz", "--log", tmp_path / "log.csv"]
    plan = ["--temperature", 500, "--dt", 2, "--every", 5, "--log-every", 2, "--checkpoint-every", 4, "--seed", 3]
    _snnp(*_md(run, *files, *plan))
    start = ["md", run, "fcc:Cu:2x2x2", "--trajectory", tmp_path / "cu.xyz"]
    result = _json(*start, "--steps", 20, "--resume")
    assert (result["engine"], result["first_step"], result["last_step"]) == ("native", 10, 20)
    rows = (tmp_path / "log.csv").read_text().splitlines()
    assert [row.split(",")[:2] for row in rows[1:]] == [[str(k), f"{0.002 * k:.6f}"] for k in range(0, 21, 2)]
    assert len(read(tmp_path / "cu.xyz", index=":")) == 5
    assert not (tmp_path / "cu.csv").exists()
    assert not (tmp_path / "cu.png").exists()
    assert "--dt is 1.0 but the run to resume had 2.0" in _refused(*start, "--resume", "--dt", 1, "--steps", 30)
    _snnp(*start, "--resume", "--dt", 1, "--steps", 30, "--accept-changes")
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
    _snnp(*start, *asked)
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
    assert "the first 5 steps" in _snnp(*start, "--trajectory", parts, "--resume", "--minimise").stdout
    assert parts.read_bytes() == whole.read_bytes()
    assert parts.with_suffix(".csv").read_bytes() == whole.with_suffix(".csv").read_bytes()


def test_a_run_that_blew_up_is_mended_with_a_smaller_step(run: Path, tmp_path: Path) -> None:
    command = ["md", run, "fcc:Cu:2x2x2", "--engine", "native", "--trajectory", tmp_path / "cu.xyz"]
    _snnp(*command, "--temperature", 4000, "--ensemble", "nve", "--steps", 5, "--log-every", 5)
    assert "blew up" in _refused(*command, "--resume", "--steps", 400, "--dt", 200, "--accept-changes")
    result = _json(*command, "--resume", "--steps", 10, "--dt", 0.5, "--accept-changes")
    assert (result["first_step"], result["last_step"]) == (5, 10)


def test_a_full_disk_is_one_line_that_names_the_file(run: Path, tmp_path: Path) -> None:
    line = _refused(*_md(run, "--trajectory", tmp_path / "cu.xyz", "--log", "/dev/full"))
    assert line == "error: cannot write /dev/full: the disk is full; make room there, or write elsewhere."


def test_velocities_of_a_file_are_named_and_can_be_replaced(run: Path, tmp_path: Path) -> None:
    hot = bulk("Cu", cubic=True) * (2, 2, 2)
    hot.set_momenta(np.random.default_rng(0).normal(size=(32, 3)) * 10.0)
    write(tmp_path / "hot.xyz", hot)
    command = ["md", run, tmp_path / "hot.xyz", "--engine", "native", "--steps", 0, "--ensemble", "nve"]
    kept = _snnp(*command, "--trajectory", tmp_path / "a.xyz")
    assert f"The structure brings velocities ({hot.get_temperature():.0f} K)" in kept.stderr
    drawn = _snnp(*command, "--trajectory", tmp_path / "b.xyz", "--new-velocities", "--temperature", 100)
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
    assert f"{step} to {step + 2}" in _snnp(*again[1:], "--steps", step + 2).stdout
    assert not list(tmp_path.glob(".*"))


def test_md_without_files(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    nothing = [word for name in ("trajectory", "log", "plot", "checkpoint") for word in (f"--{name}", "none")]
    result = _json("md", run, "fcc:Cu:2x2x2", "--engine", "ase", "--steps", 2, *nothing)
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
    text = _snnp(*asked, "--equilibrate", 10).stdout
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
    told = _json(*arguments, "--ensemble", "nve", "--steps", 10)
    assert told["drift_mev_per_atom_per_ns"] is None
    assert told["temperature_std_k"] is None
    assert told["mean_temperature_k"] > 0.0
    again = _json(*arguments, "--ensemble", "nve", "--steps", 10, "--resume")
    assert (again["steps"], again["ns_per_day"]) == (0, None)


def test_relax_finds_a_minimum(run: Path, tmp_path: Path) -> None:
    atoms = bulk("Cu", cubic=True)
    atoms.rattle(0.1, seed=1)
    write(tmp_path / "start.xyz", atoms)
    result = _json("relax", run, tmp_path / "start.xyz", "--fmax", 0.005, "--out", tmp_path / "new" / "end.cif")
    assert result["converged"]
    assert result["energy_ev"] < result["initial_energy_ev"]
    relaxed: Any = read(tmp_path / "new" / "end.cif")
    forces = load_model(run, dtype=torch.float64).compute(Structure.from_ase(relaxed)).forces
    assert forces is not None
    assert float(forces.norm(dim=1).max()) < 0.006  # the file holds rounded positions


def test_relax_under_pressure_ends_at_that_pressure(tmp_path: Path) -> None:
    """The stress at the end is minus the pressure; silicon's volume falls by about P / B."""
    free, pressed = (
        _json("relax", "snnp-si", "diamond:Si:1x1x1", "--fmax", 1e-4, *more)
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


# Single points.


def test_energy_of_every_frame_is_the_models(run: Path, data: Path, tmp_path: Path) -> None:
    """To a file, to stdout and as JSON: the same numbers; what the file says about its frames stays."""
    model = load_model(run)
    frames: Any = read(data / "test.xyz", index=":")
    found = model.compute(frames, stress=True)
    assert found.forces is not None
    assert found.stress is not None
    _snnp("energy", run, data / "test.xyz", "--out", tmp_path / "new" / "out.xyz")
    written: Any = read(tmp_path / "new" / "out.xyz", index=":")
    (tmp_path / "piped.xyz").write_text(_snnp("energy", run, data / "test.xyz").stdout)
    piped: Any = read(tmp_path / "piped.xyz", index=":")
    for k, (one, other, frame) in enumerate(zip(written, piped, frames, strict=True)):
        assert one.info["my_energy"] == frame.info["my_energy"]
        for each in (one, other):
            assert each.get_potential_energy() == pytest.approx(float(found.energy[k]), abs=1e-6)
            np.testing.assert_allclose(each.get_forces(), found.forces[4 * k : 4 * k + 4], atol=1e-6)
            np.testing.assert_allclose(each.get_stress(voigt=False), found.stress[k], atol=1e-8)
    said = _json("energy", run, data / "test.xyz")
    assert [each["energy_ev"] for each in said["frames"]] == found.energy.tolist()
    assert said["frames"][0]["forces_ev_per_angstrom"] == found.forces[:4].double().tolist()
    assert [said["frames"][0][key] for key in ("formula", "n_atoms", "energy_std_ev")] == ["Cu4", 4, None]


def test_energy_of_a_molecule_has_no_stress() -> None:
    (frame,) = _json("energy", "snnp-3bpa", "molecule:CH3CH2OH")["frames"]
    assert frame["stress_ev_per_angstrom3"] is None
    assert np.shape(frame["forces_ev_per_angstrom"]) == (9, 3)


def test_energy_of_an_ensemble_has_a_spread(tmp_path: Path) -> None:
    members = [SplineNNP(special_cases.eam(("Cu",)), seed=seed) for seed in (0, 1)]
    save_model(Ensemble(members), tmp_path / "two")
    (frame,) = _json("energy", tmp_path / "two", "fcc:Cu:1x1x1", "--out", tmp_path / "cu.xyz")["frames"]
    energies = [float(member.compute(bulk("Cu", cubic=True)).energy) for member in members]
    assert frame["energy_std_ev"] == pytest.approx(np.std(energies))
    atoms: Any = read(tmp_path / "cu.xyz")
    assert atoms.info["energy_std"] == pytest.approx(np.std(energies))
    assert atoms.arrays["forces_std"].shape == (4, 3)


def test_energy_does_not_overwrite_what_it_reads(run: Path, data: Path) -> None:
    before = (data / "test.xyz").read_bytes()
    result = CliRunner().invoke(app, ["energy", str(run), str(data / "test.xyz"), "--out", str(data / "test.xyz")])
    assert result.exit_code == 1
    assert "is read" in result.stderr
    assert (data / "test.xyz").read_bytes() == before


def test_models_take_what_ase_has() -> None:
    """Atoms, a list of them, and a batch give the same; anything else is an error that names its type."""
    model, atoms = snnp.load_model("snnp-si"), bulk("Si")
    batch = model.compute(Structure.from_ase([atoms, atoms]))
    assert torch.equal(model.compute([atoms, atoms]).energy, batch.energy)
    assert torch.equal(model.compute(atoms).energy, batch.energy[:1])
    with pytest.raises(InputError, match="not str"):
        model.compute("si.xyz")


def test_calculator_comes_with_the_package() -> None:
    atoms = bulk("Si")
    atoms.calc = snnp.SNNPCalculator("snnp-si")
    assert atoms.get_potential_energy() == pytest.approx(float(snnp.load_model("snnp-si").compute(atoms).energy))
    code = "import sys; sys.modules['snnp_ase'] = None; from snnp import SNNPCalculator"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "MissingDependencyError: snnp.SNNPCalculator needs the plugin snnp_ase" in done.stderr


def test_relax_says_when_it_stops_early(run: Path, tmp_path: Path) -> None:
    atoms = bulk("Cu", cubic=True)
    atoms.rattle(0.1, seed=1)
    write(tmp_path / "start.xyz", atoms)
    result = _snnp("relax", run, tmp_path / "start.xyz", "--steps", 1)
    assert "warning: not relaxed after 1 steps" in result.stderr
    assert "no, 1 steps" in result.stdout


# Deprecated in torch 2.13, but the one format that openmm-torch reads.
@pytest.mark.filterwarnings(r"ignore:.*torch\.jit\.(save|load):DeprecationWarning")
def test_export_gives_the_energy_of_the_model(run: Path, tmp_path: Path) -> None:
    options = ["--structure", "fcc:Cu:2x2x2", "--unit", "angstrom", "--energy-unit", "eV", "--dtype", "float64"]
    result = _json("export", run, tmp_path / "cu.pt", *options)
    assert result["call"] == "module(positions, boxvectors) -> energy"
    assert result["n_atoms"] == 32
    structure = Structure.from_ase(bulk("Cu", cubic=True).repeat(2))
    module = torch.jit.load(tmp_path / "cu.pt")
    energy = module(structure.positions, structure.cell[0])
    expected = load_model(run, dtype=torch.float64).compute(structure).energy
    assert float(energy) == pytest.approx(float(expected), rel=1e-10)


def test_export_refuses_a_slab_with_fixed_atoms(run: Path, tmp_path: Path) -> None:
    slab = bulk("Cu", cubic=True)
    slab.pbc = (True, True, False)
    write(tmp_path / "slab.xyz", slab)
    arguments = ["export", run, tmp_path / "cu.pt", "--structure", tmp_path / "slab.xyz"]
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 1
    assert "some directions only" in result.stderr
    assert not (tmp_path / "cu.pt").exists()


def test_plot_writes_a_picture(run: Path, data: Path, tmp_path: Path) -> None:
    assert str(tmp_path / "a.png") in _snnp("plot", run, tmp_path / "a.png").stdout
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_benchmark_measures_the_plugin(run: Path) -> None:
    result = _json("benchmark", run, "--engine", "openmm", "--structure", "fcc:Cu:2x2x2", "--steps", 3)
    assert result["engine"] == "openmm"
    assert result["n_atoms"] == 32
    assert result["model_us_per_atom"] > 0.0


_BAR = """
import time
from snnp.cli.console import progress_bar
with progress_bar("working", 4) as update:
    for done in range(4):
        update(done, note="halfway")
        time.sleep(0.15)
"""


def test_progress_is_silent_when_not_a_terminal() -> None:
    done = subprocess.run([sys.executable, "-c", _BAR], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


def test_progress_shows_the_remaining_time_on_a_terminal() -> None:
    master, slave = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120"}
    with subprocess.Popen([sys.executable, "-c", _BAR], stderr=slave, stdout=slave, env=environment) as process:
        os.close(slave)
        seen = b""
        try:
            while chunk := os.read(master, 4096):
                seen += chunk
        except OSError:  # Linux reports the closed end of a terminal so
            pass
        os.close(master)
    assert process.returncode == 0
    assert b"working" in seen
    assert b"ETA" in seen
    assert b"halfway" in seen


@pytest.mark.parametrize(
    "value, text",
    [
        (0.0, "0.00"),
        (1.2345, "1.23"),
        (12.345, "12.3"),
        (123456.7, "123,457"),
        (0.0012345, "0.00123"),
        (0.00012345, "1.23e-04"),
        (None, "–"),
        (float("nan"), "–"),
    ],
)
def test_numbers_have_three_digits(value: float | None, text: str) -> None:
    assert number(value) == text


def test_no_cohesive_energy_from_a_fitted_zero() -> None:
    """E0 of this model is a fit: beside the measured cohesive energy stands a dash."""
    (silicon,) = _json("evaluate", "snnp-si", "--properties")["properties"]
    assert silicon["cohesive_energy_ev_per_atom"] is None
    assert silicon["references"]["experiment"]["cohesive_energy_ev_per_atom"] == 4.63
    assert _json("info", "snnp-si")["metadata"]["properties"]["Si"]["cohesive_energy_ev_per_atom"] is None
    assert "the model has none where E0 is not the energy of an isolated atom" in _snnp("info", "snnp-si").stderr
