r"""The loss: weighted errors of energy per atom, forces and stress, ignoring labels that a frame lacks.

    L = w_E <l(dE / n)> + w_F <l(dF)> + w_S <l(dS)>,   l(x) = x² or Huber's function

Pair gradients are analytic and differentiable in the parameters, so a force loss needs one backward pass.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from snnp.models.potential import sum_forces
from snnp.models.spline_nnp import SplineNNP
from snnp.training.config import LossConfig
from snnp.training.prepared import Batch

__all__ = ["Predicted", "Weights", "loss", "predict", "weights_at"]


@dataclass(frozen=True)
class Predicted:
    """Energy [B], forces [n, 3], stress [B, 3, 3] of a batch, without E0 and repulsion."""

    energy: Tensor
    forces: Tensor
    stress: Tensor


@dataclass(frozen=True)
class Weights:
    """Weights of the three parts of the loss at some moment of training."""

    energy: float
    force: float
    stress: float


def weights_at(config: LossConfig, progress: float) -> Weights:
    """Weights at `progress` in [0, 1], between start and end geometrically (linearly where one of them is zero)."""

    def between(start: float, end: float | None) -> float:
        if end is None:
            return start
        if start > 0.0 and end > 0.0:
            return float(start * (end / start) ** progress)
        return start + (end - start) * progress

    return Weights(
        between(config.energy_weight, config.energy_weight_end),
        between(config.force_weight, config.force_weight_end),
        between(config.stress_weight, config.stress_weight_end),
    )


def predict(model: SplineNNP, batch: Batch) -> Predicted:
    """Evaluate a batch; differentiable in the parameters."""
    energies, gradients = model.evaluate(batch.geometry)
    n_frames, n_atoms = batch.counts.shape[0], batch.owner.shape[0]
    energy = torch.zeros_like(batch.volume).index_add(0, batch.owner, energies)
    forces = torch.zeros(n_atoms, 3, dtype=energies.dtype, device=energies.device)
    strain = torch.zeros(n_frames, 9, dtype=energies.dtype, device=energies.device)
    for shell, gradient in gradients:
        forces = forces + sum_forces(shell.pair_gradients(gradient), n_atoms)
        # Sum over the neighbours of an atom first: a product of small matrices instead of an outer product per pair.
        per_atom = (shell.unit * shell.distance[..., None]).transpose(1, 2) @ gradient
        strain = strain.index_add(0, batch.owner, per_atom.flatten(1))
    stress = strain.unflatten(1, (3, 3))
    stress = 0.5 * (stress + stress.transpose(1, 2)) / batch.volume[:, None, None]
    return Predicted(energy, forces, stress)


def _mean(errors: Tensor, shape: str, delta: float) -> Tensor:
    """Mean of l(x) over entries that are not NaN; zero if there are none. Huber is scaled to x² near zero."""
    known = ~errors.isnan()
    errors = errors[known]
    if errors.numel() == 0:
        return errors.sum()
    if shape == "mse":
        return errors.square().mean()
    size = errors.abs()
    return torch.where(size < delta, size.square(), delta * (2.0 * size - delta)).mean()


def loss(predicted: Predicted, batch: Batch, config: LossConfig, weights: Weights) -> Tensor:
    """The scalar loss of a batch."""
    per_atom = (predicted.energy - batch.energy) / batch.counts
    total = weights.energy * _mean(per_atom, config.shape, config.energy_delta)
    total = total + weights.force * _mean(predicted.forces - batch.forces, config.shape, config.force_delta)
    if weights.stress > 0.0:
        total = total + weights.stress * _mean(predicted.stress - batch.stress, config.shape, config.stress_delta)
    return total
