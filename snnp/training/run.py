"""The folder of a run: begun, continued and finished. What happens in between is in `snnp.training.loop`."""

from __future__ import annotations

import copy
import resource
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml

from snnp.data import save_split
from snnp.errors import ConfigError
from snnp.files import hold, write_atomically
from snnp.models.formats import CONFIG_FILE, WEIGHTS_FILE
from snnp.models.potential import Potential
from snnp.models.store import save_model, usable_device
from snnp.training.backends import choose_backend
from snnp.training.batches import Batches, StreamedBatches, prepare
from snnp.training.checkpoint import METRICS_FILE, STATE_FILE, TrainState, load_state, truncate_metrics
from snnp.training.compressed import MOST_ELEMENTS
from snnp.training.config import TrainConfig, load_config
from snnp.training.evaluation import REPORT_FILES, Evaluation, evaluate, write_report
from snnp.training.loop import Progress, Report, Training, make_optimiser
from snnp.training.problem import Problem, build_model, check_data, features_of, load_problem, resolve

__all__ = ["RunResult", "resume", "train"]

_CONFIG, _SPLIT = "config.yaml", "split.json"


@dataclass(frozen=True)
class RunResult:
    """A finished run: its folder, the best model, and its errors on each part of the data."""

    folder: Path
    model: Potential
    evaluations: dict[str, Evaluation]
    seconds: float


def _silent(_: Progress) -> None:
    return None


def train(config: TrainConfig, folder: str | Path, report: Report = _silent, *, overwrite: bool = False) -> RunResult:
    """Train a model into a new run folder; see `TrainConfig` for what can be chosen.

    The folder receives config.yaml (resolved), split.json, metrics.csv, state.safetensors (to resume), best/ and last/
    (model folders), parity and loss pictures, summary.json and summary.md.

    `overwrite` removes the files of an earlier run first. Raises `ConfigError` if the folder already holds a run, or
    files that a run would replace; `Interrupted` at Ctrl-C or SIGTERM, once the state is saved; `DataError` for
    unusable data; `InputError` for an unusable device; `TrainingError` for a NaN or a diverging loss; `OSError` if
    nothing can be written.
    """
    folder = Path(folder)

    def say(messages: list[str]) -> None:
        for message in messages:
            report(Progress(0, config.optimiser.epochs, message=message))

    usable_device(config.device)
    _refuse_old_run(folder, overwrite)
    folder.mkdir(parents=True, exist_ok=True)
    with hold([folder / _CONFIG]):
        _refuse_old_run(folder, overwrite)  # another one may have ended meanwhile
        # Data that are refused must not cost the run that is to be replaced.
        problem = load_problem(config, check=lambda problem: say(check_data(config.data, problem)))
        if overwrite:
            for path in _files_of_run(folder):
                path.unlink(missing_ok=True)
        if config.compression is not None and not problem.compressed:
            why = f"no energies of two atoms and more, or more than {MOST_ELEMENTS} elements"
            say([f"no compressed structures ({why}): see with 'snnp doctor model' whether the energy falls"])
        config = resolve(config, problem)
        save_split(problem.split, folder / _SPLIT, checksums=True)
        text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
        write_atomically(folder / _CONFIG, text.encode())
        return _run(config, problem, folder, report)


def resume(folder: str | Path, report: Report = _silent) -> RunResult:
    """Continue a run that was stopped at any moment, as if it had never stopped.

    Raises `ConfigError` if the folder holds no run, or its configuration has changed, `DataError` if the data have,
    `TrainingError` if its state is damaged, `Interrupted` as `train` does.
    """
    folder = Path(folder)
    if not (folder / _CONFIG).is_file():
        raise ConfigError(f"{folder} holds no run to resume (no {_CONFIG}); start one with 'snnp train CONFIG --out'.")
    tree = yaml.safe_load((folder / _CONFIG).read_text(encoding="utf-8"))
    # Runs of the first version had no compressed structures, and must end as they began.
    config = load_config({"compression": None, **tree} if isinstance(tree, dict) else folder / _CONFIG)
    usable_device(config.device)
    with hold([folder / _CONFIG]):
        return _run(config, load_problem(config, folder / _SPLIT), folder, report)


def _refuse_old_run(folder: Path, overwrite: bool) -> None:
    if overwrite:
        return
    if (folder / _CONFIG).exists():
        raise ConfigError(
            f"{folder} already holds a run; continue it with --resume {folder}, name a new folder, or replace it with "
            "--overwrite."
        )
    # A split alone is what a kill before the first step leaves.
    for path in _files_of_run(folder):
        if path.exists() and path.name != _SPLIT:
            raise ConfigError(f"{path} exists and would be replaced; name a new folder, or say --overwrite.")


def _files_of_run(folder: Path) -> list[Path]:
    """All that a run writes; the configuration first, without which the rest is no run."""
    models = [f"{name}/{file}" for name in ("best", "last") for file in (CONFIG_FILE, WEIGHTS_FILE)]
    return [folder / name for name in (_CONFIG, STATE_FILE, METRICS_FILE, _SPLIT, *REPORT_FILES, *models)]


def _run(config: TrainConfig, problem: Problem, folder: Path, report: Report) -> RunResult:
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    dtype = getattr(torch, config.dtype)
    train = problem.split.train
    model = build_model(config, problem)
    backend = choose_backend(model, dtype, config.device, config.displacement)
    scale = config.loss.energy_scale
    beyond = (problem.compressed, scale, problem.zeros)
    sample = prepare(backend, model, train, *beyond)
    valid = prepare(backend, model, problem.split.valid or train, (), scale, problem.zeros)
    data: Batches | StreamedBatches = sample
    if problem.stream is not None:
        data = StreamedBatches(backend, copy.deepcopy(model), problem.stream, problem.inside, *beyond)
    model.to(dtype=dtype, device=config.device)
    features = partial(features_of, model, sample, len(train))
    if (start := problem.start) is None:
        model.standardise(features)
    else:
        start.fill(model, features, train)
    del sample, features  # which a stream does not need any more
    state = TrainState(model, make_optimiser(model, config.optimiser), _must_stay(config, problem))
    if start is not None:
        start.keep(model, state.optimiser, train.elements)
    resumed = load_state(state, folder)
    truncate_metrics(folder, state.counters.epoch)
    if resumed:
        report(Progress(state.counters.epoch, config.optimiser.epochs, message="resumed"))
    Training(config, state, data, valid, folder, report).run()
    return _finish(config, state, problem, folder)


def _must_stay(config: TrainConfig, problem: Problem) -> dict[str, Any]:
    """What a continued run must have in common with its beginning: everything but where it is computed."""
    values = config.model_dump(mode="json", exclude={"device", "threads"})
    # Runs of earlier versions do not know of these.
    if not config.data.stream:
        del values["data"]["stream"]
    if config.freeze == "none":
        del values["freeze"]
    if not config.loss.teaches_atoms:
        values["loss"] = {key: value for key, value in values["loss"].items() if not key.startswith("atomic_energy")}
    return {**values, "reference_energies": problem.reference.energies}


def _finish(config: TrainConfig, state: TrainState, problem: Problem, folder: Path) -> RunResult:
    """Evaluate the best weights on every part, write pictures and summary."""
    state.swap(state.best)
    model, counters = state.model, state.counters
    parts = {"train": problem.split.train, "valid": problem.split.valid, "test": problem.split.test}
    named = [(name, frames) for name, frames in parts.items() if frames]
    evaluations = {name: evaluate(model, each, model_name=folder.name, data_name=name) for name, each in named}
    errors = {name: evaluation.total.to_dict() for name, evaluation in evaluations.items()}
    model.metadata = {**model.metadata, "errors": errors, "best_epoch": counters.best_epoch, "seed": config.seed}
    save_model(model, folder / "best")
    # Linux counts the largest memory of a process in KiB, macOS in bytes.
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2 ** (20 if sys.platform == "darwin" else 10)
    details: dict[str, Any] = {
        "model": folder.name,
        "n_parameters": model.n_parameters,
        "epochs": counters.epoch,
        "best_epoch": counters.best_epoch,
        "training_seconds": round(counters.seconds, 1),
        "seconds_per_epoch": round(counters.seconds / max(counters.epoch, 1), 3),
        "peak_memory_mib": round(peak_mib),
        "reference_energies_ev": model.reference_energies,
        "reference_energies_from": problem.reference.provenance,
        "cutoff_angstrom": model.cutoff,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }
    write_report(folder, evaluations, details)
    return RunResult(folder, model, evaluations, counters.seconds)
