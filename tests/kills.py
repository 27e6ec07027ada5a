"""Kills programs at random moments and runs them again: what is left in the end must be what an undisturbed run leaves.

    python tests/kills.py                     # three kills of each job, as the tests do
    python tests/kills.py --times 30 --only md-ase train --seed 7

Every job is a command of `snnp` in a fresh folder. After the kill no file may be broken under its final name; then the
run is resumed, or the command given again; in the end the files must be those of an undisturbed run, byte for byte but
for times, without a step twice and without hidden files. Processes are forked from this one, which has imported
everything, so that a trial takes well below a second.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import shutil
import signal
import socketserver
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import hub_server

os.environ.update(hub_server.environment())
os.environ.update(HF_TOKEN="hf_writer", MPLBACKEND="Agg", OMP_NUM_THREADS="1")

import ase.io
import matplotlib.figure  # noqa: F401
import numpy as np
import openmm.app  # noqa: F401
import torch
import typer
import yaml
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator
from huggingface_hub import constants

import snnp.publish
import snnp.training.evaluation
import snnp.training.loop
import snnp_ase.md  # noqa: F401
import snnp_openmm.md  # noqa: F401
from snnp.cli.main import app
from snnp.data.storage.parquet import ParquetSource
from snnp.doctor import Report
from snnp.hub import make_manifest, write_manifest
from snnp.models import save_model
from snnp.models.store import load_model, model_folder
from snnp.sampling.checkpoint import read_checkpoint

Files = dict[str, bytes]
MODEL = "snnp-si"
_COMMAND = typer.main.get_command(app)


@dataclass(frozen=True)
class Job:
    """A command, how to go on after a kill, and what must be the same in the end."""

    arguments: list[str]
    again: Callable[[Path], list[str]]  # in the folder of the killed one
    outcome: Callable[[Path], Files]
    check: Callable[[Path], None] = lambda folder: None  # of what the kill left
    prepare: Callable[[Path], None] = lambda folder: None


def run(arguments: list[str], folder: Path, kill_after: float = math.inf) -> tuple[bool, float]:
    """Run a command in a process of its own; returns whether it was killed, and after how many seconds it ended."""
    output = folder.with_suffix(".out")
    child = os.fork()
    if child == 0:
        _be_the_command(arguments, folder, output)
    began = time.monotonic()
    while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0) and time.monotonic() - began < kill_after:
        time.sleep(0.001)
    seconds = time.monotonic() - began
    if ended == (0, 0):
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return True, seconds
    if ended[1] != 0:
        printed = output.read_text(errors="replace")
        raise AssertionError(f"'snnp {' '.join(arguments)}' ended with status {ended[1]}: {printed[-2000:]}")
    return False, seconds


def _be_the_command(arguments: list[str], folder: Path, output: Path) -> None:
    code = 1
    try:
        os.chdir(folder)
        for number in (1, 2):
            os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        constants.HF_HUB_CACHE = str(folder.with_suffix(".cache"))
        tempfile.tempdir = str(folder.with_suffix(".tmp"))
        os.makedirs(tempfile.tempdir, exist_ok=True)
        snnp.training.loop._SAVE_EVERY_SECONDS = 0.0  # each epoch: an epoch here takes milliseconds
        snnp.training.evaluation.plot_parity = snnp.training.evaluation.plot_loss = lambda *_: None  # seconds
        snnp.publish.draw_page = lambda *_, **__: None
        snnp.publish.examine_model = lambda *_, subject, **__: Report(subject, "model", (), ())  # minutes
        _COMMAND(arguments)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


# Molecular dynamics.


def _md(engine: str, suffix: str, *more: str) -> Job:
    files = ["--trajectory", f"run.{suffix}", "--engine", engine]
    plan = ["--steps", "120", "--every", "5", "--log-every", "5", "--checkpoint-every", "10", "--dt", "2", *more]
    start = ["md", MODEL, "diamond:Si:1x1x1", *files]

    def again(folder: Path) -> list[str]:
        # Without its first checkpoint a run begins anew, and has to be told that its files may go.
        return [*start, "--resume"] if (folder / "run.npz").exists() else [*start, *plan, "--overwrite"]

    def check(folder: Path) -> None:
        if (folder / "run.npz").exists():
            read_checkpoint(folder / "run.npz")

    def outcome(folder: Path) -> Files:
        steps = [line.split(",")[0] for line in (folder / "run.csv").read_text().splitlines()[1:]]
        assert steps == [str(step) for step in range(0, 121, 5)], f"steps of the log: {steps}"
        found = _tree(folder)
        found.pop("run.png", None)  # its g(r) is gathered after the kill alone
        if suffix == "dcd":  # its header ends with the time of writing
            found["run.dcd"] = found["run.dcd"][:180] + found["run.dcd"][264:]
        found["run.npz"] = b"".join(array.tobytes() for array in _arrays(read_checkpoint(folder / "run.npz").atoms))
        return found

    return Job([*start, *plan], again, outcome, check)


def _arrays(atoms: ase.Atoms) -> list[np.ndarray]:
    return [atoms.positions, atoms.get_momenta(), atoms.cell.array]


# Training and data.


def _frames(path: Path, count: int) -> None:
    images = []
    for seed in range(count):
        atoms = bulk("Si", cubic=True)
        atoms.rattle(0.1, seed=seed)
        rng = np.random.default_rng(seed)
        atoms.calc = SinglePointCalculator(atoms, energy=float(rng.normal()), forces=rng.normal(size=(8, 3)))
        images.append(atoms)
    ase.io.write(path, images)


def _train_data(folder: Path) -> None:
    _frames(folder / "train.xyz", 12)
    model = {"radial": {"n_filters": 3, "cutoff": 4.0, "intervals": 6}, "angular": {"n_filters": 0}, "network": None}
    config = {"data": {"train": ["train.xyz"], "valid": 0.25}, "model": model, "threads": 1}
    config["optimiser"] = {"epochs": 8, "batch_atoms": 32}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))


def _train() -> Job:
    start = ["train", "config.yaml", "--out", "run"]

    def again(folder: Path) -> list[str]:
        return ["train", "--resume", "run"] if (folder / "run" / "config.yaml").exists() else start

    def check(folder: Path) -> None:
        for path in folder.glob("run/*.json"):
            json.loads(path.read_text())

    def outcome(folder: Path) -> Files:
        found = _tree(folder)
        rows = found["run/metrics.csv"].decode().splitlines()
        found["run/metrics.csv"] = "\n".join(row.rpartition(",")[0] for row in rows).encode()  # the last is seconds
        for name in ("run/state.safetensors", "run/summary.json", "run/summary.md"):
            del found[name]  # these hold seconds, too
        load_model(folder / "run")
        load_model(folder / "run" / "last")
        return found

    return Job(start, again, outcome, check, _train_data)


def _convert() -> Job:
    start = ["convert", "data.xyz", "data.parquet", "--method", "PBE"]

    def again(folder: Path) -> list[str]:
        return [*start, "--overwrite"] if (folder / "data.parquet").exists() else start

    def check(folder: Path) -> None:
        if (folder / "data.parquet").exists():
            assert sum(ParquetSource(folder / "data.parquet").sizes) == 1500

    return Job(start, again, _tree, check, lambda folder: _frames_repeated(folder / "data.xyz", 1500))


def _frames_repeated(path: Path, count: int) -> None:
    _frames(path, 50)
    path.write_bytes(path.read_bytes() * (count // 50))


# The Hub.


def _mirror() -> Job:
    def prepare(folder: Path) -> None:
        made = folder.with_suffix(".repository")
        save_model(load_model(MODEL), made)
        (made / "README.md").write_text("---\ntags: [snnp]\n---\n")
        write_manifest(made, make_manifest(made, "model"))
        hub_server.HUB.clear()
        hub_server.HUB.add_commit("model", "org/name", _tree(made))

    start = ["mirror", "mirror", "org/name"]
    return Job(start, lambda folder: start, _tree, prepare=prepare)


def _publish() -> Job:
    words = {"licence": "mit", "level_of_theory": "PBE", "dataset": "none", "description": "of silicon"}
    start = ["publish", "model", MODEL, "org/silicon", "--folder", "kept"]
    start += [word for name, text in words.items() for word in ("--set", f"{name}={text}")]

    def again(folder: Path) -> list[str]:
        shutil.rmtree(folder / "kept", ignore_errors=True)  # it is whole, and a new one is asked for
        return start

    def check(folder: Path) -> None:
        if (folder / "kept").exists():
            assert (folder / "kept" / "manifest.json").is_file()
        for repository in hub_server.HUB.repositories.values():
            names = {name for name in repository.files("main")[1] if name != ".gitattributes"}  # type: ignore[index]
            assert not names or "manifest.json" in names, f"half of a repository is published: {names}"

    def outcome(folder: Path) -> Files:
        (repository,) = hub_server.HUB.repositories.values()
        _, files = repository.files("main")  # type: ignore[misc]
        return {**_tree(folder), **{f"hub/{name}": content for name, content in files.items()}}

    return Job(start, again, outcome, check, lambda folder: hub_server.HUB.clear())


def _tree(folder: Path) -> Files:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


JOBS: dict[str, Callable[[], Job]] = {
    "md-ase": lambda: _md("ase", "extxyz"),
    "md-native": lambda: _md("native", "xtc"),
    "md-native-npt": lambda: _md("native", "dcd", "--ensemble", "npt", "--plot", "none"),
    "md-openmm": lambda: _md("openmm", "dcd", "--plot", "none"),
    "train": _train,
    "convert": _convert,
    "mirror": _mirror,
    "publish": _publish,
}


def trial(job: Job, folder: Path, moment: float, expected: Files) -> tuple[bool, float]:
    """One kill; returns what `run` does. Raises AssertionError for what is wrong afterwards."""
    folder.mkdir(parents=True)
    job.prepare(folder)
    killed, seconds = run(job.arguments, folder, kill_after=moment)
    job.check(folder)
    run(job.again(folder), folder)
    found = job.outcome(folder)
    scratch = folder.with_suffix(".tmp")
    hidden = [str(path) for place in (folder, scratch) for path in place.rglob(".*")]
    assert not hidden, f"hidden files are left: {hidden}"
    assert found.keys() == expected.keys(), f"other files: {sorted(found.keys() ^ expected.keys())}"
    different = [name for name in found if found[name] != expected[name]]
    assert not different, f"other content: {different}"
    return killed, seconds


def kill(name: str, times: int, rng: random.Random, place: Path) -> list[str]:
    """Kill one job some times; returns what went wrong."""
    job = JOBS[name]()
    whole = place / name / "whole"
    whole.mkdir(parents=True)
    job.prepare(whole)
    _, seconds = run(job.arguments, whole)
    expected = job.outcome(whole)
    failures, in_time = [], 0
    for k in range(times):
        moment = rng.uniform(0.0, seconds)
        try:
            killed, ended = trial(job, place / name / f"trial-{k}", moment, expected)
        except Exception as error:
            failures.append(f"{name}, killed after {moment:.3f} of {seconds:.3f} s: {error}")
            continue
        shutil.rmtree(place / name / f"trial-{k}")
        in_time += killed
        seconds = seconds if killed else min(seconds, ended)  # the first run was slower: nothing was in the caches
    print(f"{name}: {times - len(failures)} of {times} as undisturbed ({seconds:.2f} s), {in_time} killed in time")
    return failures


def main() -> int:
    """Run the chosen jobs; the exit code says whether all was well."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=3, help="kills of each job")
    parser.add_argument("--only", nargs="*", choices=JOBS, default=list(JOBS), help="jobs")
    parser.add_argument("--seed", type=int, default=None, help="of the moments; printed, so that they can be repeated")
    chosen = parser.parse_args()
    seed = random.SystemRandom().randrange(10**6) if chosen.seed is None else chosen.seed
    warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
    torch.set_num_threads(1)
    socketserver.BaseServer.handle_error = lambda *_: None  # type: ignore[method-assign]  # connections of the killed
    model_folder(MODEL)
    print(f"seed {seed}", flush=True)
    place = Path(tempfile.mkdtemp(prefix="snnp-kills-"))
    failures = [failure for name in chosen.only for failure in kill(name, chosen.times, random.Random(seed), place)]
    print("\n".join(failures))
    if failures:
        print(f"what is left: {place}")
    else:
        shutil.rmtree(place)
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())
