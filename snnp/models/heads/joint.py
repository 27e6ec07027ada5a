"""Compiled code of several s-NNPs at once: heads on one encoding, or members one after another on one list."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from snnp.kernels.cpu.call import PreparedCall
from snnp.kernels.cpu.heads import PreparedHeads, pack_heads
from snnp.models.potential import Evaluated, Stepper
from snnp.models.spline.compiled import CpuEvaluator, CpuStepper, packed_system
from snnp.models.spline.model import SplineNNP
from snnp.neighbours import Neighbours
from snnp.structure import Structure

__all__ = ["HeadsEvaluator", "JointEvaluator", "JointStepper", "MembersEvaluator"]

Array = NDArray[np.float64]
_Found = tuple[Array, Array | None, Array, Array | None]


class PreparedMembers:
    """As `PreparedHeads`, of members with filters of their own: each is evaluated, so the forces of each are there."""

    def __init__(self, kernels: Sequence[NDArray[np.uint8]], *system: Any) -> None:
        self._calls = [PreparedCall(kernel, *system) for kernel in kernels]

    def __call__(self, positions: Array, *, forces: bool = True, each: bool = False) -> _Found:
        found = [call(positions, forces=forces or each) for call in self._calls]
        apart = np.stack([one for _, one, _ in found if one is not None]) if forces or each else None
        virial = np.mean([one for _, _, one in found], axis=0)
        mean = None if apart is None else apart.mean(axis=0)
        return np.stack([one for one, _, _ in found]), mean, virial, apart if each else None


class JointStepper(CpuStepper):
    """One system step by step, as the s-NNP's own; `evaluate` also gives what each one says."""

    def __call__(
        self, evaluator: Any, species: NDArray[np.int32], positions: Array, cell: Array, pbc: tuple[bool, bool, bool]
    ) -> tuple[Array, Array, Array]:
        """Energies [N], forces [N, 3] and virial [3, 3] of the mean."""
        energies, forces, virial, _ = self.evaluate(evaluator, species, positions, cell, pbc)
        return energies.mean(axis=0), forces, virial

    def evaluate(
        self, evaluator: JointEvaluator, species: NDArray[np.int32], positions: Array, *box: Any, each: bool = False
    ) -> tuple[Array, Array, Array, Array | None]:
        """Energies [M, N] of every one, forces and virial of the mean, and forces [M, N, 3] if asked for `each`.

        `box`: the cell [3, 3] in Å, and which of its directions are periodic.
        """
        found = self.prepared(evaluator, species, positions, *box)(positions, each=each)
        energies, forces, virial, apart = found
        return energies, forces, virial[0], apart


class JointEvaluator(ABC):
    """The compiled code of several potentials on the CPU. Energies, forces and virial are those of their mean."""

    kernel: Any
    target: str | None
    stepper: Callable[[float, float], Stepper] | None = JointStepper

    @abstractmethod
    def prepare(self, *system: Any) -> PreparedHeads | PreparedMembers:
        """What evaluates one system again and again; arguments as those of `PreparedCall` behind the model."""

    def evaluate(self, structure: Structure, species: Tensor, neighbours: Neighbours, *, forces: bool) -> Evaluated:
        """As the contract has it."""
        return self.evaluate_each(structure, species, neighbours, forces=forces)[0]

    def evaluate_each(
        self, structure: Structure, species: Tensor, neighbours: Neighbours, *, forces: bool, each: bool = False
    ) -> tuple[Evaluated, Array, Array | None]:
        """What the mean says, energies [M, N] eV of every one, and forces [M, N, 3] eV/Å if asked for `each`."""
        system, positions = packed_system(structure, species, neighbours)
        energies, per_atom, virial, apart = self.prepare(*system)(positions, forces=forces, each=each)
        mean = torch.from_numpy(energies.mean(axis=0))
        whole = Evaluated(mean, None if per_atom is None else torch.from_numpy(per_atom), torch.from_numpy(virial))
        return whole, energies, apart


class HeadsEvaluator(JointEvaluator):
    """Of heads on one encoding."""

    def __init__(self, members: Sequence[CpuEvaluator], potentials: Sequence[SplineNNP]) -> None:
        real = np.float32 if potentials[0].dtype == torch.float32 else np.float64
        parameters = [potential.kernel_parameters() for potential in potentials]
        self.kernel = pack_heads(parameters, [member.kernel for member in members], real)
        self.target = members[0].target

    def prepare(self, *system: Any) -> PreparedHeads:
        """As the base says."""
        return PreparedHeads(self.kernel, *system)


class MembersEvaluator(JointEvaluator):
    """Of members with filters of their own, and the same elements in the same order."""

    def __init__(self, members: Sequence[CpuEvaluator]) -> None:
        self.kernel, self.target = tuple(member.kernel for member in members), members[0].target

    def prepare(self, *system: Any) -> PreparedMembers:
        """As the base says."""
        return PreparedMembers(self.kernel, *system)
