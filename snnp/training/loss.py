r"""The loss: weighted errors of energy per atom, forces, stress, atomic energies, ignoring labels that a frame lacks.

L = w_E <w l(dE / n)> + w_F <w l(dF)> + w_S <w l(dS)> + w_A <w l(dE_i)>,   l(x) = x² or Huber's function

The weight w of each frame is one, or falls with its energy (see `frame_weights`). The last term, of a teacher's way
to divide the energy among atoms, is that of Matin et al. 2025, doi 10.1039/D5DD00085H.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from snnp.training.backends import Batch, Predicted, Residuals
from snnp.training.config import LossConfig

__all__ = ["Loss"]

_WORK_WEIGHT, _WORK_DELTA = 0.2, 0.1  # of the work of compression outside of its limits, in units of its label


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
