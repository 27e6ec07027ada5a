"""The s-NNP in compiled code: which kernel belongs to its present parameters; batches and moving systems through it.

Others meet this as the `Evaluator` of the contract alone.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import is_
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from snnp.kernels.cpu.call import ListKeeper, NeighbourRows, PreparedCall, pack_pairs, supports
from snnp.kernels.cpu.library import instruction_set, library, pack_parameters
from snnp.kernels.gpu import call as gpu
from snnp.kernels.gpu.call import Atoms
from snnp.kernels.gpu.lists import Rows, image_vectors, rows_of
from snnp.kernels.parameters import SplineParameters
from snnp.models.potential import Evaluated, Evaluator, Stepper, versions
from snnp.neighbours import Neighbours
from snnp.structure import Structure

__all__ = ["Compiled", "CpuEvaluator", "CpuStepper", "GpuEvaluator", "packed_system"]

Array = NDArray[np.float64]
_CPU_LIST, _GPU_ROWS = "packed for the CPU kernel", "rows for the GPU kernels"


class Compiled:
    """Keeps the evaluator of a model's parameters as they are; packed again when one of them has changed."""

    def __init__(self) -> None:
        # Tensors, their state when they were packed, and the evaluator: replaced together, as threads share a model.
        self._known: tuple[list[Tensor], tuple[Any, ...], CpuEvaluator | GpuEvaluator | None] = ([], (), None)

    def evaluator(
        self, tensors: Callable[[], list[Tensor]], zero: tuple[Any, ...], parameters: Callable[[], SplineParameters]
    ) -> Evaluator | None:
        """The CPU's, or the GPU's in float32; None without library or Triton, and for forms that they do not cover.

        `tensors`: all that `parameters` come from, a parameter first. `zero`: what else E0 depends on.
        """
        known, state, evaluator = self._known
        known = known or tensors()
        device = known[0].device
        if not (library() is not None if device.type == "cpu" else device.type == "cuda" and gpu.available()):
            return None
        if state != (zero, versions(known)):
            # Parameters may have been replaced, not only changed. Changes during packing are packed at the next call.
            known = tensors()
            state = zero, versions(known)
            evaluator = _evaluator(parameters(), known[0])
            self._known = known, state, evaluator
        return evaluator

    def __deepcopy__(self, memo: dict[int, Any]) -> Compiled:
        """Copies of a model start afresh."""
        return Compiled()

    def __reduce__(self) -> tuple[Any, ...]:
        return Compiled, ()


def _evaluator(parameters: SplineParameters, like: Tensor) -> CpuEvaluator | GpuEvaluator | None:
    single, on_cpu = like.dtype == torch.float32, like.device.type == "cpu"
    if on_cpu and supports(parameters):
        return CpuEvaluator(pack_parameters(parameters, np.float32 if single else np.float64))
    if not on_cpu and single and gpu.supports(parameters):
        return GpuEvaluator(gpu.GpuKernel(parameters, like.device))
    return None


class CpuStepper:
    """One system step by step: a list that follows the atoms, and a call that is prepared once for all steps."""

    def __init__(self, cutoff: float, skin: float) -> None:
        self._keeper = ListKeeper(cutoff, skin)
        self._prepared: tuple[tuple[Any, ...], Any] | None = None

    @property
    def n_builds(self) -> int:
        return self._keeper.n_builds

    def __call__(
        self, evaluator: Any, species: NDArray[np.int32], positions: Array, cell: Array, pbc: tuple[bool, bool, bool]
    ) -> tuple[Array, Array, Array]:
        energies, forces, virial = self.prepared(evaluator, species, positions, cell, pbc)(positions)
        return energies, forces, virial[0]

    def prepared(self, evaluator: Any, species: NDArray[np.int32], *where: Any) -> Any:
        """What `evaluator.prepare` made of the system; made anew where anything but positions has changed."""
        system, kept = (evaluator, species, *self._keeper.update(*where), torch.get_num_threads()), self._prepared
        if kept is None or not all(map(is_, system, kept[0])):
            self._prepared = kept = system, evaluator.prepare(*system[1:])
        return kept[1]


def packed_system(structure: Structure, species: Tensor, neighbours: Neighbours) -> tuple[tuple[Any, ...], Array]:
    """What `PreparedCall` takes behind the model, and positions; the rows stay with the list, which is used often."""
    owner = structure.structure_of_atom.to(torch.int32).numpy() if structure.n_structures > 1 else None
    rows: NeighbourRows | None = neighbours.derived.get(_CPU_LIST)
    if rows is None or len(rows.first) != structure.n_atoms + 1:
        pairs = (neighbours.i.numpy(), neighbours.j.numpy(), neighbours.shift.to(torch.int32).numpy())
        neighbours.derived[_CPU_LIST] = rows = pack_pairs(pairs, structure.n_atoms, structure=owner)
    positions = structure.positions.detach().to(torch.float64).contiguous().numpy()
    images = rows.images(structure.cell.detach().to(torch.float64).numpy())
    elements, threads = species.to(torch.int32).contiguous().numpy(), torch.get_num_threads()
    return (elements, rows, images, threads, owner, structure.n_structures), positions


class CpuEvaluator:
    """The compiled code on the CPU."""

    stepper: Callable[[float, float], Stepper] | None = CpuStepper

    def __init__(self, packed: NDArray[np.uint8]) -> None:
        self.kernel, self.target = packed, instruction_set()

    def prepare(self, *system: Any) -> PreparedCall:
        return PreparedCall(self.kernel, *system)

    def evaluate(self, structure: Structure, species: Tensor, neighbours: Neighbours, *, forces: bool) -> Evaluated:
        system, positions = packed_system(structure, species, neighbours)
        energies, per_atom, virial = self.prepare(*system)(positions, forces=forces)
        as_tensor = torch.from_numpy
        return Evaluated(as_tensor(energies), None if per_atom is None else as_tensor(per_atom), as_tensor(virial))


class GpuEvaluator:
    """The Triton kernels; whole simulations on the device take the `kernel` itself."""

    stepper: Callable[[float, float], Stepper] | None = None
    target: str | None = "triton"

    def __init__(self, kernel: gpu.GpuKernel) -> None:
        self.kernel: Any = kernel

    def evaluate(self, structure: Structure, species: Tensor, neighbours: Neighbours, *, forces: bool) -> Evaluated:
        """As the contract has it; forces come along."""
        owner, device = structure.structure_of_atom, structure.positions.device
        # Kept with the list, because lists are used many times.
        kept: tuple[Rows, tuple[int, int, int]] | None = neighbours.derived.get(_GPU_ROWS)
        if kept is None or kept[0].length.device != device or kept[0].length.shape[0] != structure.n_atoms:
            pairs = (neighbours.i.to(device), neighbours.j.to(device), neighbours.shift.to(device))
            neighbours.derived[_GPU_ROWS] = kept = rows_of(pairs, structure.n_atoms, owner)
        positions = structure.positions.detach().to(torch.float64).contiguous()
        atoms = Atoms(positions, species.to(torch.int32).contiguous(), image_vectors(kept[1], structure.cell))
        return Evaluated(*self.kernel.evaluate(atoms, kept[0], owner, structure.n_structures))
