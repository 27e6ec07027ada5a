"""Compiled code of several s-NNPs at once: heads on one encoding, or members one after another on one list."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from operator import is_
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from snnp.kernels.cpu.call import ListKeeper, NeighbourRows, PreparedCall, pack_pairs
from snnp.kernels.cpu.heads import PreparedHeads, pack_heads
from snnp.models.potential import Evaluated, Evaluator, Stepper
from snnp.models.spline.compiled import CPU_LIST, CpuEvaluator
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


class JointEvaluator(ABC):
    """The compiled code of several potentials on the CPU. Energies, forces and virial are those of their mean."""

    kernel: Any
    target: str | None

    def __init__(self) -> None:
        self.stepper: Callable[[float, float], Stepper] | None = JointStepper

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
        owner = structure.structure_of_atom.to(torch.int32).numpy() if structure.n_structures > 1 else None
        rows: NeighbourRows | None = neighbours.derived.get(CPU_LIST)
        if rows is None or len(rows.first) != structure.n_atoms + 1:
            pairs = (neighbours.i.numpy(), neighbours.j.numpy(), neighbours.shift.to(torch.int32).numpy())
            neighbours.derived[CPU_LIST] = rows = pack_pairs(pairs, structure.n_atoms, structure=owner)
        positions = structure.positions.detach().to(torch.float64).contiguous().numpy()
        images = rows.images(structure.cell.detach().to(torch.float64).numpy())
        elements, threads = species.to(torch.int32).contiguous().numpy(), torch.get_num_threads()
        call = self.prepare(elements, rows, images, threads, owner, structure.n_structures)
        energies, per_atom, virial, apart = call(positions, forces=forces, each=each)
        mean = torch.from_numpy(energies.mean(axis=0))
        whole = Evaluated(mean, None if per_atom is None else torch.from_numpy(per_atom), torch.from_numpy(virial))
        return whole, energies, apart


class HeadsEvaluator(JointEvaluator):
    """Of heads on one encoding."""

    def __init__(self, members: Sequence[CpuEvaluator], potentials: Sequence[SplineNNP]) -> None:
        super().__init__()
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
        super().__init__()
        self.kernel, self.target = tuple(member.kernel for member in members), members[0].target

    def prepare(self, *system: Any) -> PreparedMembers:
        """As the base says."""
        return PreparedMembers(self.kernel, *system)


class JointStepper:
    """One system step by step, as the s-NNP's own; `evaluate` also gives what each one says."""

    def __init__(self, cutoff: float, skin: float) -> None:
        self._keeper = ListKeeper(cutoff, skin)
        self._prepared: tuple[tuple[Any, ...], PreparedHeads | PreparedMembers] | None = None

    @property
    def n_builds(self) -> int:
        """How often a neighbour list was built."""
        return self._keeper.n_builds

    def __call__(
        self,
        evaluator: Evaluator,
        species: NDArray[np.int32],
        positions: Array,
        cell: Array,
        pbc: tuple[bool, bool, bool],
    ) -> tuple[Array, Array, Array]:
        """Energies [N], forces [N, 3] and virial [3, 3] of the mean."""
        energies, forces, virial, _ = self.evaluate(evaluator, species, positions, cell, pbc)
        return energies.mean(axis=0), forces, virial

    def evaluate(
        self,
        evaluator: Evaluator,
        species: NDArray[np.int32],
        positions: Array,
        cell: Array,
        pbc: tuple[bool, bool, bool],
        *,
        each: bool = False,
    ) -> tuple[Array, Array, Array, Array | None]:
        """Energies [M, N] of every one, forces and virial of the mean, and forces [M, N, 3] if asked for `each`."""
        system = (evaluator, species, *self._keeper.update(positions, cell, pbc), torch.get_num_threads())
        prepared = self._prepared
        if prepared is None or not all(map(is_, system, prepared[0])):
            assert isinstance(evaluator, JointEvaluator)
            self._prepared = prepared = system, evaluator.prepare(*system[1:])
        energies, forces, virial, apart = prepared[1](positions, each=each)
        assert forces is not None
        return energies, forces, virial[0], apart
