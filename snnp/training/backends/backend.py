"""The seam of training: what a step works on, what it finds, and what leads from one to the other and back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from snnp.models.potential import Potential
from snnp.structure import Structure

__all__ = ["Backend", "Batch", "Loss", "Predicted", "Residuals"]


@dataclass(frozen=True)
class Batch:
    """Frames ready for a training step: n atoms of B frames.

    `geometry` of the atoms is in the form of the backend that made it, with indices local to the batch. `owner` [n]
    frame of each atom, `counts` [B] atoms per frame, `volume` [B] Å³ (1 where a frame is not fully periodic). Labels
    have E0 and the fixed repulsion taken off: `energy` [B], `forces` [n, 3], `stress` [B, 3, 3], `energies` [n] of each
    atom; what a frame lacks is NaN. `weight` [B] is that of the frame in the loss, one on average. Of compressed
    structures (see `CompressedFrame`) the product of stress and `push` [B, 3, 3] is the work of compression in units of
    its label, to lie between the two `limits` [B, 2]; others have neither. `sources` name the frames.
    """

    geometry: Any
    owner: Tensor
    counts: Tensor
    volume: Tensor
    energy: Tensor
    forces: Tensor
    stress: Tensor
    energies: Tensor
    weight: Tensor
    push: Tensor
    limits: Tensor
    sources: Sequence[str] = ()

    def per_frame(self, of_atoms: Tensor) -> Tensor:
        """[B] sums over the atoms [n] of each frame, in the type of the batch."""
        return torch.zeros_like(self.volume).index_add(0, self.owner, of_atoms.to(self.volume.dtype))

    def symmetric(self, strain: Tensor) -> Tensor:
        """Stress [B, 3, 3] from dE/dstrain [B, 3, 3]; the derivatives of a loss by these go the same way back."""
        return (strain + strain.mT) / (2.0 * self.volume[:, None, None])


@dataclass(frozen=True)
class Predicted:
    """Energy [B], energies of atoms [n], forces [n, 3], stress [B, 3, 3] of a batch, without E0 and repulsion.

    `penalty` [n]: what the family itself wants small, differentiable; None if it wants nothing.
    """

    energy: Tensor
    energies: Tensor
    forces: Tensor
    stress: Tensor
    penalty: Tensor | None = None

    @classmethod
    def of(
        cls,
        batch: Batch,
        energies: Tensor,
        forces: Tensor | None = None,
        stress: Tensor | None = None,
        penalty: Tensor | None = None,
    ) -> Predicted:
        """From the energies of atoms [n] in any type; forces and stresses that nobody asked for are NaN."""
        forces = torch.full_like(batch.forces, torch.nan) if forces is None else forces
        stress = torch.full_like(batch.stress, torch.nan) if stress is None else stress
        energies = energies.to(batch.volume.dtype)
        return cls(batch.per_frame(energies), energies, forces, stress, penalty)


@dataclass(frozen=True)
class Residuals:
    """The loss of a batch, and its derivatives by energies of atoms [n], forces [n, 3] and stresses [B, 3, 3]; those by
    forces and stresses are None where they have no weight. The mean of a penalty, times its weight, comes on top."""

    value: Tensor
    to_energies: Tensor
    to_forces: Tensor | None
    to_stress: Tensor | None
    penalty_weight: float = 0.0


Loss = Callable[[Predicted, Batch], Residuals]


class Backend(ABC):
    """One way from the parameters of a model to energies and forces, and from a loss of these back to the parameters.

    A backend is made for models of one form, on one device, where its batches live, and computes in one type;
    `choose_backend` finds the fastest.
    """

    dtype: torch.dtype
    device: torch.device

    @abstractmethod
    def prepare(self, model: Potential, structure: Structure) -> Any:
        """Whatever of the atoms no parameter changes, formed in float64 and stored in the backend's type.

        The model, in float64 on the CPU, fixes cutoffs and grids; its parameters are not used.
        """

    @abstractmethod
    def cut(self, geometry: Any, frames: Tensor, rows: Tensor, owner: Tensor) -> Any:
        """The geometry of some `frames` [B]: of their atoms `rows` [n], each in the new frame `owner` [n]."""

    @abstractmethod
    def predict(self, model: Potential, batch: Batch, *, forces: bool = True) -> Predicted:
        """Evaluate a batch. Without `forces`, forces and stresses that would cost something are NaN."""

    @abstractmethod
    def features(self, model: Potential, batch: Batch) -> Tensor:
        """[n, D] features of an s-NNP's atoms."""

    def backward(self, model: Potential, batch: Batch, loss: Loss, *, forces: bool = True) -> Tensor:
        """Add the gradient of a loss to the parameters' `grad`; returns the loss.

        `forces` says whether the loss asks for forces or stresses. Here torch takes back what `predict` recorded.
        """
        predicted = self.predict(model, batch, forces=forces)
        found = loss(predicted, batch)
        outputs = (predicted.energies, predicted.forces, predicted.stress)
        pairs = zip(outputs, (found.to_energies, found.to_forces, found.to_stress), strict=True)
        roots = [(output, value) for output, value in pairs if value is not None and output.requires_grad]
        value = found.value
        if predicted.penalty is not None and found.penalty_weight > 0.0:
            penalty = found.penalty_weight * predicted.penalty.mean()
            roots.append((penalty, torch.ones_like(penalty)))
            value = value + penalty.detach()
        torch.autograd.backward([root for root, _ in roots], [gradient for _, gradient in roots])
        return value

    def alone(self) -> AbstractContextManager[None]:
        """For the time of a run: keeps torch's threads off the cores that the backend needs; here they are its own."""
        return nullcontext()
