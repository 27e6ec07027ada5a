r"""The loss: weighted errors of energy per atom, forces and stress, ignoring labels that a frame lacks.

L = w_E <l(dE / n)> + w_F <l(dF)> + w_S <l(dS)>,   l(x) = x² or Huber's function
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from snnp.training.backends import Batch, Predicted, Residuals
from snnp.training.compressed import LEAST_TOLERANCE
from snnp.training.config import LossConfig

__all__ = ["Loss"]

_TOLERANT_WEIGHT = 0.1
"""Of a frame with a tolerance, beside one of the data."""


@dataclass(frozen=True)
class Loss:
    """The loss at some moment of training, with the weights `energy`, `force` and `stress` of its three parts."""

    config: LossConfig
    energy: float
    force: float
    stress: float

    @classmethod
    def at(cls, config: LossConfig, progress: float) -> Loss:
        """Weights at `progress` in [0, 1], from start to end geometrically (linearly where one of them is zero)."""

        def between(start: float, end: float | None) -> float:
            if end is None:
                return start
            if start > 0.0 and end > 0.0:
                return float(start * (end / start) ** progress)
            return start + (end - start) * progress

        return cls(
            config,
            between(config.energy_weight, config.energy_weight_end),
            between(config.force_weight, config.force_weight_end),
            between(config.stress_weight, config.stress_weight_end),
        )

    @property
    def needs_forces(self) -> bool:
        """Whether energies alone are not enough."""
        return self.force > 0.0 or self.stress > 0.0

    @torch.no_grad()
    def __call__(self, predicted: Predicted, batch: Batch) -> Residuals:
        """The loss and what it asks of the prediction."""
        config, counts = self.config, batch.counts
        value, to_energy = _mean(
            predicted.energy / counts, batch.energy / counts, config.shape, config.energy_delta, batch.tolerance
        )
        value, to_energy = self.energy * value, to_energy * (self.energy / counts)
        to_forces = to_stress = None
        if self.force > 0.0:
            mean, to_forces = _mean(predicted.forces, batch.forces, config.shape, config.force_delta)
            value, to_forces = value + self.force * mean, self.force * to_forces
        if self.stress > 0.0:
            mean, to_stress = _mean(predicted.stress, batch.stress, config.shape, config.stress_delta)
            value, to_stress = value + self.stress * mean, self.stress * to_stress
        return Residuals(value, to_energy, to_forces, to_stress, config.hierarchicality_weight)


def _mean(
    found: Tensor, label: Tensor, shape: str, delta: float, tolerance: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Mean of l(found - label) where there is a label, zero if there is none, and its derivative by `found`.

    Huber is scaled to x² near zero. Errors within a tolerance cost nothing, and those beyond it are measured by it: a
    structure of a hundred eV/atom must not drown those that are known to a meV.
    """
    known = ~label.isnan()
    # A NaN that was found beside a label stays one, and stops the training.
    errors = torch.where(known, found - label, 0.0)
    weight, scale = known.to(errors.dtype), torch.ones_like(errors)
    if tolerance is not None:
        errors = errors - errors.clamp(-tolerance, tolerance)
        tolerant = tolerance > 0.0
        scale = torch.where(tolerant, (LEAST_TOLERANCE / tolerance).clamp_max(1.0), scale)
        weight = torch.where(tolerant, _TOLERANT_WEIGHT * weight, weight)
        errors = errors * scale
    weight = weight / weight.sum().clamp_min(1e-6)
    if shape == "mse":
        return (weight * errors * errors).sum(), 2.0 * weight * scale * errors
    size = errors.abs()
    values = torch.where(size < delta, size.square(), delta * (2.0 * size - delta))
    return (weight * values).sum(), 2.0 * weight * scale * errors.clamp(-delta, delta)
