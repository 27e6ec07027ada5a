r"""The loss: weighted errors of energy per atom, forces and stress, ignoring labels that a frame lacks.

    L = w_E <l(dE / n)> + w_F <l(dF)> + w_S <l(dS)>,   l(x) = x² or Huber's function

`predict` is the one place where a batch meets a model, `residuals` is the loss with its derivatives by what was
predicted, and `exact_backward` takes these on to the parameters. The compiled kernel does that itself. The sums of an
s-NNP give analytic pair gradients that are differentiable in the parameters, so a force loss needs one backward pass;
pairs of any other family are differentiated twice, unless no parameter gradient is asked for: then the model's own
inference answers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from snnp.models.potential import PairGradients, Potential, sum_forces, sum_stress
from snnp.models.spline.model import Geometry, SplineNNP
from snnp.training.backends.compiled import (
    Derivatives,
    NativeGeometry,
    NativePrediction,
    native_backward,
    predict_native,
)
from snnp.training.backends.pairs import Pairs
from snnp.training.batches import Batch
from snnp.training.compressed import LEAST_TOLERANCE
from snnp.training.config import LossConfig

__all__ = ["Predicted", "Residuals", "Weights", "exact_backward", "predict", "residuals", "weights_at"]


_TOLERANT_WEIGHT = 0.1
"""Of a frame with a tolerance, beside one of the data."""


@dataclass(frozen=True)
class Predicted:
    """Energy [B], forces [n, 3], stress [B, 3, 3] of a batch, without E0 and repulsion.

    `penalty` [n]: what the family itself wants small, differentiable; None if it wants nothing.
    """

    energy: Tensor
    forces: Tensor
    stress: Tensor
    penalty: Tensor | None = None


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


def predict(model: Potential, batch: Batch, *, forces: bool = True) -> Predicted:
    """Evaluate a batch; differentiable in the parameters where gradients are enabled, but for stored pairs.

    Without `forces`, forces and stresses that would cost something are NaN.
    """
    if isinstance(batch.geometry, Pairs):
        return _predict_pairs(model, batch, batch.geometry, forces)
    assert isinstance(model, SplineNNP)
    if isinstance(batch.geometry, NativeGeometry):
        return _of_native(predict_native(model, batch.geometry, forces=forces), batch)
    return _predict_sums(model, batch, batch.geometry)


def _of_native(found: NativePrediction, batch: Batch) -> Predicted:
    dtype = batch.volume.dtype
    energy = torch.zeros_like(batch.volume).index_add(0, batch.owner, found.energies.to(dtype))
    if found.forces is None or found.virial is None:
        return Predicted(energy, *_unknown(batch))
    return Predicted(energy, found.forces.to(dtype), _stress(found.virial.to(dtype), batch))


def _unknown(batch: Batch) -> tuple[Tensor, Tensor]:
    return torch.full_like(batch.forces, torch.nan), torch.full_like(batch.stress, torch.nan)


def _stress(strain: Tensor, batch: Batch) -> Tensor:
    """[B, 3, 3] from dE/dstrain [B, 3, 3]."""
    return (strain + strain.mT) / (2.0 * batch.volume[:, None, None])


def _predict_sums(model: SplineNNP, batch: Batch, geometry: Geometry) -> Predicted:
    energies, gradients = model.evaluate(geometry)
    energies = model.above_isolated(energies, geometry.species)
    n_frames, n_atoms = batch.counts.shape[0], batch.owner.shape[0]
    energy = torch.zeros_like(batch.volume).index_add(0, batch.owner, energies)
    forces = torch.zeros(n_atoms, 3, dtype=energies.dtype, device=energies.device)
    strain = torch.zeros(n_frames, 9, dtype=energies.dtype, device=energies.device)
    for shell, gradient in gradients:
        forces = forces + sum_forces(shell.pair_gradients(gradient), n_atoms)
        # Sum over the neighbours of an atom first: a product of small matrices instead of an outer product per pair.
        per_atom = (shell.unit * shell.distance[..., None]).transpose(1, 2) @ gradient
        strain = strain.index_add(0, batch.owner, per_atom.flatten(1))
    return Predicted(energy, forces, _stress(strain.unflatten(1, (3, 3)), batch))


def _predict_pairs(model: Potential, batch: Batch, pairs: Pairs, forces: bool) -> Predicted:
    structure, neighbours = pairs.structure, pairs.neighbours
    penalty = None
    if not forces:
        energies, penalty = model.energies_and_penalty(structure, pairs.vectors, neighbours)
        return Predicted(pairs.per_structure(energies), *_unknown(batch), penalty)
    if torch.is_grad_enabled():
        vectors = pairs.vectors.detach().requires_grad_()
        energies, penalty = model.energies_and_penalty(structure, vectors, neighbours)
        (gradients,) = torch.autograd.grad(
            energies.sum(), vectors, create_graph=True, allow_unused=True, materialize_grads=True
        )
        found = PairGradients(neighbours.i, neighbours.j, pairs.vectors, gradients)
    else:
        energies, found = model._energies_and_pair_gradients(structure, neighbours)
        energies = model.above_isolated(energies, model.species(structure))
    energy = pairs.per_structure(energies)
    return Predicted(energy, sum_forces(found, structure.n_atoms), sum_stress(found, structure), penalty)


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


@dataclass(frozen=True)
class Residuals:
    """The loss of a batch, and its derivatives by energies [B], forces [n, 3] and stresses [B, 3, 3]; those by forces
    and stresses are None where they have no weight."""

    value: Tensor
    to_energy: Tensor
    to_forces: Tensor | None
    to_stress: Tensor | None


@torch.no_grad()
def residuals(predicted: Predicted, batch: Batch, config: LossConfig, weights: Weights) -> Residuals:
    """The loss and what it asks of the prediction, a penalty left out."""
    counts, shape = batch.counts, config.shape
    value, to_energy = _mean(
        predicted.energy / counts, batch.energy / counts, shape, config.energy_delta, batch.tolerance
    )
    value, to_energy = weights.energy * value, to_energy * (weights.energy / counts)
    to_forces = to_stress = None
    if weights.force > 0.0:
        mean, to_forces = _mean(predicted.forces, batch.forces, shape, config.force_delta)
        value, to_forces = value + weights.force * mean, weights.force * to_forces
    if weights.stress > 0.0:
        mean, to_stress = _mean(predicted.stress, batch.stress, shape, config.stress_delta)
        value, to_stress = value + weights.stress * mean, weights.stress * to_stress
    return Residuals(value, to_energy, to_forces, to_stress)


def exact_backward(model: Potential, batch: Batch, config: LossConfig, weights: Weights) -> Tensor:
    """Add the gradient of the loss of a batch to the parameters' `grad`; returns the loss."""
    forces = weights.force > 0.0 or weights.stress > 0.0
    if isinstance(batch.geometry, NativeGeometry):
        assert isinstance(model, SplineNNP)
        values: list[Tensor] = []

        def derive(prediction: NativePrediction) -> Derivatives:
            found = residuals(_of_native(prediction, batch), batch, config, weights)
            values.append(found.value)
            virial = None if found.to_stress is None else _stress(found.to_stress, batch)
            return found.to_energy[batch.owner], found.to_forces, virial

        native_backward(model, batch.geometry, derive, forces=forces)
        return values[0]
    predicted = predict(model, batch, forces=forces)
    found = residuals(predicted, batch, config, weights)
    outputs = (predicted.energy, predicted.forces, predicted.stress)
    derivatives = (found.to_energy, found.to_forces, found.to_stress)
    pairs = zip(outputs, derivatives, strict=True)
    roots = [(output, value) for output, value in pairs if value is not None and output.requires_grad]
    value = found.value
    if predicted.penalty is not None and config.hierarchicality_weight > 0.0:
        penalty = config.hierarchicality_weight * predicted.penalty.mean()
        roots.append((penalty, torch.ones_like(penalty)))
        value = value + penalty.detach()
    torch.autograd.backward([root for root, _ in roots], [gradient for _, gradient in roots])
    return value
