"""Ways to the energies, forces and gradients of a batch: the compiled kernel, sums for torch, plain pairs."""

from __future__ import annotations

import torch

from snnp.models.potential import Potential
from snnp.models.spline.model import SplineNNP
from snnp.training.backends.backend import Backend, Batch, Loss, Predicted, Residuals
from snnp.training.backends.compiled import CompiledBackend
from snnp.training.backends.through_torch import PairsBackend, SumsBackend

__all__ = ["Backend", "Batch", "Loss", "Predicted", "Residuals", "choose_backend"]


def choose_backend(
    model: Potential, dtype: torch.dtype, device: torch.device | str = "cpu", displacement: float | None = None
) -> Backend:
    """The fastest that covers a model: the compiled kernel or sums over neighbours for an s-NNP, pairs for the others.

    Arguments:
        model: in float64 on the CPU. dtype, device: of the training.
        displacement: Å by which directional training changes the vectors of pairs; None for exact training.
    """
    if not isinstance(model, SplineNNP) or displacement is not None:
        return PairsBackend(dtype, torch.device(device), displacement)
    if CompiledBackend.covers(model, dtype, device):
        return CompiledBackend(model, dtype)
    return SumsBackend(dtype, torch.device(device))
