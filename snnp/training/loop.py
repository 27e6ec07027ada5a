"""The training loop: everything that happens between data and model, in the order in which it happens."""

from __future__ import annotations

import csv
import io
import math
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from snnp.data import check_frames, save_split
from snnp.errors import ConfigError, DataError, TrainingError
from snnp.files import hold, naming, write_atomically
from snnp.models.formats import CONFIG_FILE, WEIGHTS_FILE
from snnp.models.potential import Potential
from snnp.models.store import save_model, usable_device
from snnp.process import Interrupted, StopRequest, stop_requests
from snnp.training.backends.compiled import kernel_threads_alone
from snnp.training.batches import PreparedData, prepare
from snnp.training.checkpoint import STATE_FILE, TrainState, load_state, save_state
from snnp.training.compressed import MOST_ELEMENTS
from snnp.training.config import OptimiserConfig, TrainConfig, load_config
from snnp.training.directional import directional_backward
from snnp.training.evaluation import Evaluation, evaluate
from snnp.training.loss import exact_backward, predict, weights_at
from snnp.training.problem import Problem, build_model, check_units, load_problem, resolve, standardise
from snnp.training.report import REPORT_FILES, write_report
from snnp.training.soap import Soap

__all__ = ["Progress", "RunResult", "resume", "train"]

_CONFIG, _SPLIT, _METRICS = "config.yaml", "split.json", "metrics.csv"
_COLUMNS = (
    *("epoch", "step", "learning_rate", "train_loss"),
    *("valid_energy_mae_mev_per_atom", "valid_force_mae_ev_per_angstrom", "seconds"),
)
_SAVE_EVERY_SECONDS = 5.0


@dataclass(frozen=True)
class Progress:
    """What a run reports: an epoch that ended (of `epochs`), or a `message` for the user."""

    epoch: int
    epochs: int
    message: str | None = None
    train_loss: float | None = None
    valid_energy_mae: float | None = None
    valid_force_mae: float | None = None


Report = Callable[[Progress], None]


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

    `overwrite` removes the files of an earlier run first.

    Raises:
        ConfigError: if the folder already holds a run, or files that a run would replace.
        Interrupted: at Ctrl-C or SIGTERM, once the state is saved.
        DataError: for unusable data. InputError: for an unusable device.
        TrainingError: for a NaN or a diverging loss. OSError: if nothing can be written.
    """
    folder = Path(folder)
    usable_device(config.device)
    _refuse_old_run(folder, overwrite)
    folder.mkdir(parents=True, exist_ok=True)
    with hold([folder / _CONFIG]):
        _refuse_old_run(folder, overwrite)  # another one may have ended meanwhile
        # Data that are refused must not cost the run that is to be replaced.
        problem = load_problem(config, check=lambda problem: _say_what_is_wrong(config, problem, report))
        if overwrite:
            _remove_run(folder)
        return _begin(config, problem, folder, report)


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
    return [folder / name for name in (_CONFIG, STATE_FILE, _METRICS, _SPLIT, *REPORT_FILES, *models)]


def _remove_run(folder: Path) -> None:
    for path in _files_of_run(folder):
        path.unlink(missing_ok=True)


def _say_what_is_wrong(config: TrainConfig, problem: Problem, report: Report) -> None:
    frames = [*problem.split.train, *problem.split.valid]
    messages = check_units(config.data, problem)
    for finding in check_frames(frames):
        if (
            finding.check == "short_distance"
            and config.data.check_units == "error"
            and 2 * len(finding.frames) > len(frames)
        ):
            raise DataError(
                f"{finding}; state the unit with data.units, such as {{length: nm}}. To train all the same set "
                "data.check_units to warn."
            )
        messages.append(str(finding))
    for message in messages:
        report(Progress(0, config.optimiser.epochs, message=message))


def _begin(config: TrainConfig, problem: Problem, folder: Path, report: Report) -> RunResult:
    if config.compression is not None and not problem.compressed:
        why = f"no energies of two atoms and more, or more than {MOST_ELEMENTS} elements"
        message = f"no compressed structures ({why}): see with 'snnp doctor model' whether the energy falls"
        report(Progress(0, config.optimiser.epochs, message=message))
    config = resolve(config, problem)
    save_split(problem.split, folder / _SPLIT, checksums=True)
    text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
    write_atomically(folder / _CONFIG, text.encode())
    return _run(config, problem, folder, report)


def resume(folder: str | Path, report: Report = _silent) -> RunResult:
    """Continue a run that was stopped at any moment, as if it had never stopped.

    Raises:
        ConfigError: if the folder holds no run, or its configuration has changed.
        DataError: if the data have changed. TrainingError: if its state is damaged.
        Interrupted: as in `train`.
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


def _run(config: TrainConfig, problem: Problem, folder: Path, report: Report) -> RunResult:
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    dtype = getattr(torch, config.dtype)
    model = build_model(config, problem)
    tolerance = [0.0] * len(problem.split.train) + [each.tolerance for each in problem.compressed]
    data = prepare(model, problem.learned, dtype, config.device, displacement=config.displacement, tolerance=tolerance)
    valid = prepare(model, problem.split.valid or problem.split.train, dtype, config.device)
    model.to(dtype=dtype, device=config.device)
    standardise(model, data, len(problem.split.train))
    state = TrainState(model, _optimiser(model, config.optimiser), _must_stay(config, problem))
    resumed = load_state(state, folder)
    _truncate_metrics(folder / _METRICS, state.counters.epoch)
    if resumed:
        report(Progress(state.counters.epoch, config.optimiser.epochs, message="resumed"))
    with kernel_threads_alone(data.everything.geometry), stop_requests() as request:
        _epochs(config, state, (data, valid), problem, folder, report, request)
    return _finish(config, state, problem, folder)


def _must_stay(config: TrainConfig, problem: Problem) -> dict[str, Any]:
    """What a continued run must have in common with its beginning: everything but where it is computed."""
    values = config.model_dump(mode="json", exclude={"device", "threads"})
    return {**values, "reference_energies": problem.reference.energies}


def _optimiser(model: Potential, config: OptimiserConfig) -> torch.optim.Optimizer:
    """SOAP or AdamW. Only matrices decay: distances and widths of sensitivities, say, are not better near zero."""
    kind = Soap if config.method == "soap" else torch.optim.AdamW
    matrices = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    others = [parameter for parameter in model.parameters() if parameter.dim() <= 1]
    groups: list[dict[str, Any]] = [{"params": matrices}, {"params": others, "weight_decay": 0.0}]
    groups = [group for group in groups if group["params"]]
    return kind(groups, lr=config.learning_rate, weight_decay=config.weight_decay)


def _learning_rate(config: OptimiserConfig, step: int, progress: float) -> float:
    """Linear warm-up over steps, then half a cosine over the run's `progress` (0 to 1) down to the final rate."""
    warm = min(1.0, (step + 1) / max(config.warmup_steps, 1))
    fall = 0.5 * (1.0 + math.cos(math.pi * progress))
    return warm * (config.final_learning_rate + (config.learning_rate - config.final_learning_rate) * fall)


def _epochs(
    config: TrainConfig,
    state: TrainState,
    data: tuple[PreparedData, PreparedData],
    problem: Problem,
    folder: Path,
    report: Report,
    request: StopRequest,
) -> None:
    """All epochs that are left, or those until a stop is requested."""
    counters, epochs = state.counters, config.optimiser.epochs
    start, saved = time.monotonic() - counters.seconds, time.monotonic()
    while counters.epoch < epochs:
        mean_loss, rate = _epoch(config, state, data[0], problem, folder, request)
        counters.epoch += 1
        counters.seconds = time.monotonic() - start
        errors: tuple[float | None, float | None] = (None, None)
        if counters.epoch % config.validate_every == 0 or counters.epoch == epochs:
            errors = _validate(config, state, data[1], folder)
        row = (counters.epoch, counters.step, rate, mean_loss, *errors, counters.seconds)
        _append_metrics(folder / _METRICS, row)
        asked = request.signum is not None and counters.epoch < epochs
        if time.monotonic() - saved > _SAVE_EVERY_SECONDS or counters.epoch == epochs or asked:
            save_state(state, folder)
            saved = time.monotonic()
        if asked:
            raise Interrupted(request.signum or 0, f"stopped after epoch {counters.epoch} of {epochs}, which is saved")
        report(Progress(counters.epoch, epochs, None, mean_loss, *errors))


def _epoch(
    config: TrainConfig, state: TrainState, data: PreparedData, problem: Problem, folder: Path, request: StopRequest
) -> tuple[float, float]:
    """One pass over the training set in an order that depends on seed and epoch only; returns mean loss and rate."""
    order = np.random.default_rng([config.seed, state.counters.epoch]).permutation(data.n_frames)
    groups = data.batches(order, config.optimiser.batch_atoms)
    total, rate = 0.0, 0.0
    for k, group in enumerate(groups):
        # Long epochs are not waited for: then the one before was saved.
        if request.signum is not None and request.overdue(_SAVE_EVERY_SECONDS):
            epoch = state.counters.epoch
            raise Interrupted(request.signum, f"stopped in epoch {epoch + 1}; the state after epoch {epoch} is saved")
        progress = (state.counters.epoch + k / len(groups)) / config.optimiser.epochs
        rate = _learning_rate(config.optimiser, state.counters.step, progress)
        value = _step(config, state, data, group, progress, rate)
        _guard(value, config, state, group, problem, folder)
        total += value
    mean = total / len(groups)
    state.counters.lowest_loss = min(state.counters.lowest_loss, mean)
    return mean, rate


def _step(
    config: TrainConfig, state: TrainState, data: PreparedData, group: list[int], progress: float, rate: float
) -> float:
    """One batch: predict, loss, its gradient in one of two ways, one step of the optimiser."""
    for parameters in state.optimiser.param_groups:
        parameters["lr"] = rate
    batch, weights = data.batch(group), weights_at(config.loss, progress)
    state.optimiser.zero_grad(set_to_none=True)
    if config.displacement is None:
        value = exact_backward(state.model, batch, config.loss, weights)
    else:
        value = directional_backward(state.model, batch, config.loss, weights, config.displacement)
    torch.nn.utils.clip_grad_norm_(state.parameters, config.optimiser.gradient_clip)
    state.optimiser.step()
    state.counters.step += 1
    state.update_average(config.optimiser.ema_decay)
    return float(value)


def _guard(
    value: float, config: TrainConfig, state: TrainState, group: list[int], problem: Problem, folder: Path
) -> None:
    """Stop at a NaN or a diverging loss; checkpoints on disk stay as they are."""
    limit = config.optimiser.divergence_factor * state.counters.lowest_loss
    if math.isfinite(value) and value <= limit:
        return
    what = f"the loss rose to {value:.3g}" if math.isfinite(value) else f"the loss became {value}"
    sources = ", ".join(problem.learned[k].source for k in group[:4])
    kept = f"the last good checkpoint is in {folder}" if (folder / "last").is_dir() else "no checkpoint was written yet"
    raise TrainingError(
        f"training stopped in epoch {state.counters.epoch + 1}, step {state.counters.step}: {what} on a batch with "
        f"{sources}; {kept}. Check these frames, lower optimiser.learning_rate, or set data.max_force."
    )


@torch.no_grad()
def _validate(config: TrainConfig, state: TrainState, valid: PreparedData, folder: Path) -> tuple[float, float]:
    """Energy MAE (meV/atom) and force MAE (eV/Å) of the averaged weights; saves them as last, and best if they are."""
    before = state.swap(state.average)
    energy_errors, force_errors = [], []
    for group in valid.batches(np.arange(valid.n_frames), max(config.optimiser.batch_atoms, 512)):
        batch = valid.batch(group)
        predicted = predict(state.model, batch)
        energy_errors.append((predicted.energy - batch.energy) / batch.counts)
        force_errors.append((predicted.forces - batch.forces).flatten())
    energy = 1000.0 * float(torch.cat(energy_errors).abs().nanmean())
    force = float(torch.cat(force_errors).abs().nanmean())
    # One number to choose by: forces in meV/Å and energies in meV/atom differ by about a factor of ten in MAE.
    score = (energy if math.isfinite(energy) else 0.0) + (100.0 * force if math.isfinite(force) else 0.0)
    counters = state.counters
    if math.isfinite(score) and score <= counters.best_score:
        counters.best_score, counters.best_epoch = score, counters.epoch
        state.best = [value.clone() for value in state.average]
        save_model(state.model, folder / "best")
    save_model(state.model, folder / "last")
    state.swap(before)
    return energy, force


def _finish(config: TrainConfig, state: TrainState, problem: Problem, folder: Path) -> RunResult:
    """Evaluate the best weights on every part, write pictures and summary."""
    state.swap(state.best)
    model, counters = state.model, state.counters
    parts = {"train": problem.split.train, "valid": problem.split.valid, "test": problem.split.test}
    evaluations = {
        name: evaluate(model, frames, model_name=folder.name, data_name=name)
        for name, frames in parts.items()
        if frames
    }
    errors = {name: evaluation.total.to_dict() for name, evaluation in evaluations.items()}
    model.metadata = {**model.metadata, "errors": errors, "best_epoch": counters.best_epoch, "seed": config.seed}
    save_model(model, folder / "best")
    details: dict[str, Any] = {
        "model": folder.name,
        "n_parameters": model.n_parameters,
        "epochs": counters.epoch,
        "best_epoch": counters.best_epoch,
        "training_seconds": round(counters.seconds, 1),
        "seconds_per_epoch": round(counters.seconds / max(counters.epoch, 1), 3),
        "peak_memory_mib": round(_peak_memory_mib()),
        "reference_energies_ev": model.reference_energies,
        "reference_energies_from": problem.reference.provenance,
        "cutoff_angstrom": model.cutoff,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }
    write_report(folder, evaluations, details)
    return RunResult(folder, model, evaluations, counters.seconds)


def _peak_memory_mib() -> float:
    """Largest resident memory of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Linux counts in KiB, macOS in bytes.
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def _append_metrics(path: Path, row: tuple[float | None, ...]) -> None:
    new = not path.exists()
    with naming(path), path.open("a", newline="") as handle:
        writer = csv.writer(handle)
        if new:
            writer.writerow(_COLUMNS)
        writer.writerow(["" if value is None else f"{value:.8g}" for value in row])


def _truncate_metrics(path: Path, epoch: int) -> None:
    """Drop rows of epochs that the saved state does not know: they are computed again."""
    if not path.exists():
        return
    content = path.read_bytes().decode(errors="replace").replace("\0", "")
    rows = [row for row in csv.reader(io.StringIO(content)) if len(row) == len(_COLUMNS)]
    kept = [row for row in rows if row[0].isdecimal() and int(row[0]) <= epoch]
    text = io.StringIO(newline="")
    csv.writer(text).writerows([_COLUMNS, *kept])
    write_atomically(path, text.getvalue().encode())
