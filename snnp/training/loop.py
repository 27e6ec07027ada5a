r"""The training loop: epochs of batches, and of each batch a prediction, its loss, the gradient, and a step.

The loss is of weighted errors of energy per atom, forces, stress, atomic energies, ignoring labels that a frame lacks:

L = w_E <w l(dE / n)> + w_F <w l(dF)> + w_S <w l(dS)> + w_A <w l(dE_i)>,   l(x) = x² or Huber's function

The weight w of each frame is one, or falls with its energy (see `frame_weights`). The last term, of a teacher's way
to divide the energy among atoms, is that of Matin et al. 2025, doi 10.1039/D5DD00085H.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from snnp.errors import TrainingError
from snnp.models.potential import Potential
from snnp.models.store import save_model
from snnp.process import Interrupted, StopRequest, stop_requests
from snnp.training.backends import Batch, Predicted, Residuals
from snnp.training.batches import Batches, StreamedBatches
from snnp.training.checkpoint import TrainState, append_metrics, save_state
from snnp.training.config import LossConfig, OptimiserConfig, TrainConfig
from snnp.training.soap import Soap

__all__ = ["Loss", "Progress", "Report", "Training", "make_optimiser"]

_SAVE_EVERY_SECONDS = 5.0
_NO_LOSS = 1e-6  # below which a loss that rises is noise: a model may begin where its labels come from
_WORK_WEIGHT, _WORK_DELTA = 0.2, 0.1  # of the work of compression outside of its limits, in units of its label


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
class Training:
    """What is trained (`state`), on what (`data`), what chooses the best weights (`valid`), and where they are kept."""

    config: TrainConfig
    state: TrainState
    data: Batches | StreamedBatches
    valid: Batches
    folder: Path
    report: Report

    def run(self) -> None:
        """All epochs that are left, or those until a stop is requested."""
        counters, epochs = self.state.counters, self.config.optimiser.epochs
        start, saved = time.monotonic() - counters.seconds, time.monotonic()
        with self.data.backend.alone(), stop_requests() as request:
            while counters.epoch < epochs:
                mean_loss, rate = self._epoch(request)
                counters.epoch += 1
                counters.seconds = time.monotonic() - start
                errors: tuple[float | None, float | None] = (None, None)
                if counters.epoch % self.config.validate_every == 0 or counters.epoch == epochs:
                    errors = self._validate()
                append_metrics(self.folder, (counters.epoch, counters.step, rate, mean_loss, *errors, counters.seconds))
                asked = request.signum is not None and counters.epoch < epochs
                if time.monotonic() - saved > _SAVE_EVERY_SECONDS or counters.epoch == epochs or asked:
                    save_state(self.state, self.folder)
                    saved = time.monotonic()
                if asked:
                    said = f"stopped after epoch {counters.epoch} of {epochs}, which is saved"
                    raise Interrupted(request.signum or 0, said)
                self.report(Progress(counters.epoch, epochs, None, mean_loss, *errors))

    def _epoch(self, request: StopRequest) -> tuple[float, float]:
        """One pass over the data in an order that depends on seed and epoch only; returns mean loss and rate."""
        config, state, counters, backend = self.config, self.state, self.state.counters, self.data.backend
        losses, rate = list[float](), 0.0
        for share, batch in self.data.epoch([config.seed, counters.epoch], config.optimiser.batch_atoms):
            # Long epochs are not waited for: then the one before was saved.
            if request.signum is not None and request.overdue(_SAVE_EVERY_SECONDS):
                said = f"stopped in epoch {counters.epoch + 1}; the state after epoch {counters.epoch} is saved"
                raise Interrupted(request.signum, said)
            progress = (counters.epoch + share) / config.optimiser.epochs
            loss = Loss.at(config.loss, progress)
            state.optimiser.zero_grad(set_to_none=True)
            # Prediction, loss, and the gradient of the loss in all parameters.
            forces = loss.needs_forces or bool(batch.push.any())
            value = float(backend.backward(state.model, batch, loss, forces=forces))
            torch.nn.utils.clip_grad_norm_(state.parameters, config.optimiser.gradient_clip)
            rate = _learning_rate(config.optimiser, counters.step, progress)
            for parameters in state.optimiser.param_groups:
                parameters["lr"] = rate
            state.optimiser.step()
            counters.step += 1
            state.update_average(config.optimiser.ema_decay)
            self._stop_if_diverged(value, batch)
            losses.append(value)
        mean = sum(losses) / len(losses)
        counters.lowest_loss = min(counters.lowest_loss, mean)
        return mean, rate

    @torch.no_grad()
    def _validate(self) -> tuple[float, float]:
        """Energy MAE (meV/atom) and force MAE (eV/Å) of the averaged weights, which are saved as last, and as best."""
        state, counters, valid = self.state, self.state.counters, self.valid
        before = state.swap(state.average)
        energy_errors, force_errors = [], []
        for group in valid.groups(np.arange(valid.n_frames), max(self.config.optimiser.batch_atoms, 512)):
            batch = valid.batch(group)
            predicted = valid.backend.predict(state.model, batch)
            # Weighed as in the loss: what matters little there must not decide here.
            energy_errors.append(batch.weight * (predicted.energy - batch.energy) / batch.counts)
            force_errors.append((batch.weight[batch.owner, None] * (predicted.forces - batch.forces)).flatten())
        energy = 1000.0 * float(torch.cat(energy_errors).abs().nanmean())
        force = float(torch.cat(force_errors).abs().nanmean())
        # One number to choose by: forces in meV/Å and energies in meV/atom differ by about a factor of ten in MAE.
        score = (energy if math.isfinite(energy) else 0.0) + (100.0 * force if math.isfinite(force) else 0.0)
        if math.isfinite(score) and score <= counters.best_score:
            counters.best_score, counters.best_epoch = score, counters.epoch
            state.best = [value.clone() for value in state.average]
            save_model(state.model, self.folder / "best")
        save_model(state.model, self.folder / "last")
        state.swap(before)
        return energy, force

    def _stop_if_diverged(self, value: float, batch: Batch) -> None:
        """Stop at a NaN or a diverging loss; checkpoints on disk stay as they are."""
        counters, lowest = self.state.counters, max(self.state.counters.lowest_loss, _NO_LOSS)
        if math.isfinite(value) and value <= self.config.optimiser.divergence_factor * lowest:
            return
        what = f"rose to {value:.3g}" if math.isfinite(value) else f"became {value}"
        written = (self.folder / "last").is_dir()
        kept = f"the last good checkpoint is in {self.folder}" if written else "no checkpoint was written yet"
        raise TrainingError(
            f"training stopped in epoch {counters.epoch + 1}, step {counters.step}: the loss {what} on a batch with "
            f"{', '.join(batch.sources[:4])}; {kept}. Check these frames, lower optimiser.learning_rate, or set "
            "data.max_force."
        )


def make_optimiser(model: Potential, config: OptimiserConfig) -> torch.optim.Optimizer:
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


@dataclass(frozen=True)
class Loss:
    """The loss at some moment of training, with the weights `energy`, `force`, `stress`, `atoms` of its four parts."""

    config: LossConfig
    energy: float
    force: float
    stress: float
    atoms: float = 0.0

    @classmethod
    def at(cls, config: LossConfig, progress: float) -> Loss:
        """Weights at `progress` in [0, 1], from start to end geometrically (linearly where one of them is zero)."""

        def between(start: float, end: float | None) -> float:
            if end is None:
                return start
            if start > 0.0 and end > 0.0:
                return float(start * (end / start) ** progress)
            return start + (end - start) * progress

        parts = (f"{part}_weight" for part in ("energy", "force", "stress", "atomic_energy"))
        return cls(config, *(between(getattr(config, part), getattr(config, f"{part}_end")) for part in parts))

    @property
    def needs_forces(self) -> bool:
        """Whether data ask for more than energies; compressed structures do in any case."""
        return self.force > 0.0 or self.stress > 0.0

    @torch.no_grad()
    def __call__(self, predicted: Predicted, batch: Batch) -> Residuals:
        """The loss and what it asks of the prediction."""
        config, counts = self.config, batch.counts
        of_frame, of_atom = batch.weight, batch.weight[batch.owner]
        value, to_energy = _mean(
            predicted.energy / counts, batch.energy / counts, of_frame, config.shape, config.energy_delta
        )
        value, to_energies = self.energy * value, (to_energy * (self.energy / counts))[batch.owner]
        if self.atoms > 0.0:
            delta = config.atomic_energy_delta
            mean, to_atoms = _mean(predicted.energies, batch.energies, of_atom, config.shape, delta)
            value, to_energies = value + self.atoms * mean, to_energies + self.atoms * to_atoms
        to_forces = to_stress = None
        if self.force > 0.0:
            mean, to_forces = _mean(predicted.forces, batch.forces, of_atom[:, None], config.shape, config.force_delta)
            value, to_forces = value + self.force * mean, self.force * to_forces
        if self.stress > 0.0:
            of_frame = of_frame[:, None, None]
            mean, to_stress = _mean(predicted.stress, batch.stress, of_frame, config.shape, config.stress_delta)
            value, to_stress = value + self.stress * mean, self.stress * to_stress
        if bool(batch.push.any()):
            cost, to_work = _work(predicted.stress, batch)
            value, to_stress = value + cost, to_work if to_stress is None else to_stress + to_work
        return Residuals(value, to_energies, to_forces, to_stress, config.hierarchicality_weight)


def _mean(found: Tensor, label: Tensor, weight: Tensor, shape: str, delta: float) -> tuple[Tensor, Tensor]:
    """Mean of w l(found - label) where there is a label, zero if there is none, and its derivative by `found`."""
    known = ~label.isnan()
    # A NaN that was found beside a label stays one, and stops the training.
    values, slopes = _penalty(torch.where(known, found - label, 0.0), shape, delta)
    count = known.sum().clamp_min(1)
    return (weight * values).sum() / count, weight * slopes / count


def _work(stress: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """Of compressed structures: what work outside of its limits costs, and its derivative by stresses [B, 3, 3].

    By Huber's function in units of the label, so that a structure of a hundred eV/atom pulls no more than another.
    """
    found = (stress * batch.push).sum(dim=(1, 2))
    values, slopes = _penalty(found - found.clamp(*batch.limits.unbind(dim=1)), "huber", _WORK_DELTA)
    scale = _WORK_WEIGHT / len(found)
    return scale * values.sum(), scale * slopes[:, None, None] * batch.push


def _penalty(errors: Tensor, shape: str, delta: float) -> tuple[Tensor, Tensor]:
    """l(errors) and its derivative; Huber is scaled to x² near zero."""
    if shape == "mse":
        return errors.square(), 2.0 * errors
    size = errors.abs()
    return torch.where(size < delta, size.square(), delta * (2.0 * size - delta)), 2.0 * errors.clamp(-delta, delta)
