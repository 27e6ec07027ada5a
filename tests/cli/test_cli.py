"""The command line: every command does its job, results on stdout, messages on stderr."""

from __future__ import annotations

import json
import os
import platform
import pty
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
from ase.io import read, write
from cli_runs import run_json, run_snnp
from typer.testing import CliRunner

import snnp
from snnp.cli.console import number
from snnp.cli.main import app
from snnp.errors import InputError
from snnp.kernels.cpu.library import instruction_set
from snnp.models import SplineNNP, list_models, load_model, save_model
from snnp.models.ensemble import Ensemble
from snnp.models.spline import special_cases
from snnp.structure import Structure

COMMANDS = ["ls", "info", "train", "evaluate", "energy", "md", "relax", "export", "plot", "benchmark", "version"]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_examples(command: str) -> None:
    text = run_snnp(command, "--help").stdout
    assert "Examples:" in text
    assert f"$ snnp {command}" in text


def test_help_lists_all_commands() -> None:
    text = run_snnp("--help").stdout
    assert all(f" {command} " in text for command in COMMANDS)
    assert run_snnp().stdout == text


def test_version() -> None:
    assert run_snnp("--version").stdout.startswith("snnp ")


@pytest.mark.parametrize("module", ["snnp", "snnp.cli.main"])
def test_modules_are_the_program(module: str) -> None:
    done = subprocess.run([sys.executable, "-m", module, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"snnp {version('snnp')}\n"


def test_commands_that_fail_leave_no_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("data: {train: [none.xyz]}\n")
    words = ["train", tmp_path / "config.yaml", "--out", tmp_path / "new/run"]
    assert CliRunner().invoke(app, list(map(str, words))).exit_code == 1
    words = ["distill", "ase.calculators.emt:EMT", "--data", tmp_path / "none.xyz", "--out", tmp_path / "new/other"]
    assert CliRunner().invoke(app, list(map(str, words))).exit_code == 1
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


def test_version_says_what_computes() -> None:
    said = run_json("version")
    assert said["snnp"] == version("snnp")
    assert said["torch"] == version("torch")
    assert said["kernel"] == instruction_set()
    assert said["platform"] == platform.platform()
    assert "python" in run_snnp("version").stdout


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
    result = run_json(*arguments, "--out", tmp_path / "run")
    assert result["run"] == str(tmp_path / "run")
    assert set(result["errors"]) == {"train", "valid", "test"}
    assert result["errors"]["test"]["n_structures"] == 3
    assert load_model(result["model"]).n_parameters == result["n_parameters"]
    assert "epochs: 3" in (tmp_path / "run" / "config.yaml").read_text()


def test_train_reports_for_people(run: Path) -> None:
    """A finished run resumes to its end at once."""
    result = run_snnp("train", "--resume", run)
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
    result = run_json("evaluate", run, data / "test.xyz", *keys)
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
    lines = run_snnp("evaluate", run, data / "train.xyz", data / "test.xyz", *keys).stdout.splitlines()
    assert [line.split()[0] for line in lines[2:]] == ["all", "even", "odd"]
    assert lines[2].split()[1:3] == ["12", "48"]


def test_evaluate_warns_about_units_on_stderr(run: Path, data: Path, tmp_path: Path) -> None:
    frames: Any = read(data / "train.xyz", index=":")
    for frame in frames:
        frame.arrays["my_forces"] *= 1e4
    write(tmp_path / "odd.xyz", frames)
    keys = ["--energy-key", "my_energy", "--forces-key", "my_forces", "--json"]
    result = run_snnp("evaluate", run, tmp_path / "odd.xyz", *keys)
    json.loads(result.stdout)
    assert "warning: " in result.stderr
    assert "odd.xyz#" in result.stderr


def test_info_says_everything(run: Path) -> None:
    result = run_json("info", run)
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
    text = run_snnp("info", run).stdout
    for words in ("SplineNNP", "sha256", "training_data", "force MAE", "angular.degree"):
        assert words in text
    size = result["files"]["model.safetensors"]["bytes"]
    assert f"bytes {size}" in " ".join(text.split())  # as files have it: 12345, not 12,345


def test_ls_lists_the_bundled_models() -> None:
    listed = run_json("ls")
    assert [model["name"] for model in listed] == list_models()
    table = run_snnp("ls").stdout
    for model in listed:
        assert model["name"] in table
        assert model["n_parameters"] == load_model(model["name"]).n_parameters


# Single points.


def test_energy_of_every_frame_is_the_models(run: Path, data: Path, tmp_path: Path) -> None:
    """To a file, to stdout and as JSON: the same numbers; what the file says about its frames stays."""
    model = load_model(run)
    frames: Any = read(data / "test.xyz", index=":")
    found = model.compute(frames, stress=True)
    assert found.forces is not None
    assert found.stress is not None
    run_snnp("energy", run, data / "test.xyz", "--out", tmp_path / "new" / "out.xyz")
    written: Any = read(tmp_path / "new" / "out.xyz", index=":")
    (tmp_path / "piped.xyz").write_text(run_snnp("energy", run, data / "test.xyz").stdout)
    piped: Any = read(tmp_path / "piped.xyz", index=":")
    for k, (one, other, frame) in enumerate(zip(written, piped, frames, strict=True)):
        assert one.info["my_energy"] == frame.info["my_energy"]
        for each in (one, other):
            assert each.get_potential_energy() == pytest.approx(float(found.energy[k]), abs=1e-6)
            np.testing.assert_allclose(each.get_forces(), found.forces[4 * k : 4 * k + 4], atol=1e-6)
            np.testing.assert_allclose(each.get_stress(voigt=False), found.stress[k], atol=1e-8)
    said = run_json("energy", run, data / "test.xyz")
    assert [each["energy_ev"] for each in said["frames"]] == found.energy.tolist()
    assert said["frames"][0]["forces_ev_per_angstrom"] == found.forces[:4].double().tolist()
    assert [said["frames"][0][key] for key in ("formula", "n_atoms", "energy_std_ev")] == ["Cu4", 4, None]


def test_energy_of_a_molecule_has_no_stress() -> None:
    (frame,) = run_json("energy", "snnp-3bpa", "molecule:CH3CH2OH")["frames"]
    assert frame["stress_ev_per_angstrom3"] is None
    assert np.shape(frame["forces_ev_per_angstrom"]) == (9, 3)


def test_energy_of_an_ensemble_has_a_spread(tmp_path: Path) -> None:
    members = [SplineNNP(special_cases.eam(("Cu",)), seed=seed) for seed in (0, 1)]
    save_model(Ensemble(members), tmp_path / "two")
    (frame,) = run_json("energy", tmp_path / "two", "fcc:Cu:1x1x1", "--out", tmp_path / "cu.xyz")["frames"]
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
    assert "MissingDependencyError: snnp.SNNPCalculator needs snnp_ase, which is not installed" in done.stderr


# Deprecated in torch 2.13, but the one format that openmm-torch reads.
@pytest.mark.filterwarnings(r"ignore:.*torch\.jit\.(save|load):DeprecationWarning")
def test_export_gives_the_energy_of_the_model(run: Path, tmp_path: Path) -> None:
    options = ["--structure", "fcc:Cu:2x2x2", "--unit", "angstrom", "--energy-unit", "eV", "--dtype", "float64"]
    result = run_json("export", run, tmp_path / "cu.pt", *options)
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
    assert str(tmp_path / "a.png") in run_snnp("plot", run, tmp_path / "a.png").stdout
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_benchmark_measures_the_plugin(run: Path) -> None:
    result = run_json("benchmark", run, "--engine", "openmm", "--structure", "fcc:Cu:2x2x2", "--steps", 3)
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
    (silicon,) = run_json("evaluate", "snnp-si", "--properties")["properties"]
    assert silicon["cohesive_energy_ev_per_atom"] is None
    assert silicon["references"]["experiment"]["cohesive_energy_ev_per_atom"] == 4.63
    assert run_json("info", "snnp-si")["metadata"]["properties"]["Si"]["cohesive_energy_ev_per_atom"] is None
    assert "the model has none where E0 is not the energy of an isolated atom" in run_snnp("info", "snnp-si").stderr


def test_a_plugin_that_is_broken_leaves_the_other_commands(tmp_path: Path) -> None:
    about = tmp_path / "broken-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[snnp.commands]\nbroken = nothing_there:app\n")
    command = [sys.executable, "-c", "from snnp.cli.main import run; run()", "version"]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(tmp_path)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "the commands `snnp broken` are not there: nothing_there:app cannot be loaded" in done.stderr
