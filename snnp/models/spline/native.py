"""Batches of structures through the compiled kernels: tensors in, arrays out."""

from __future__ import annotations

import torch
from torch import Tensor

from snnp.kernels.cpu.call import CompiledKernel, CompiledResult, NeighbourRows, PreparedCall, pack_pairs
from snnp.neighbours import Neighbours
from snnp.structure import Structure

__all__ = ["evaluate_structure", "packed_list"]

_PACKED = "packed for the CPU kernel"


def packed_list(structure: Structure, neighbours: Neighbours) -> NeighbourRows:
    """The list in the kernel's layout; kept with the list, because lists are used many times."""
    packed = neighbours.derived.get(_PACKED)
    if packed is None or len(packed.first) != structure.n_atoms + 1:
        several = structure.n_structures > 1
        owner = structure.structure_of_atom.to(torch.int32).numpy() if several else None
        pairs = (neighbours.i.numpy(), neighbours.j.numpy(), neighbours.shift.to(torch.int32).numpy())
        packed = pack_pairs(pairs, structure.n_atoms, structure=owner)
        neighbours.derived[_PACKED] = packed
    return packed


def evaluate_structure(
    kernel: CompiledKernel, structure: Structure, species: Tensor, neighbours: Neighbours, *, forces: bool
) -> CompiledResult:
    """Evaluate a batch on the CPU; see `PreparedCall` for what comes back and what is raised."""
    packed = packed_list(structure, neighbours)
    several = structure.n_structures > 1
    positions = structure.positions.detach().to(torch.float64).contiguous().numpy()
    cell = structure.cell.detach().to(torch.float64).numpy()
    elements = species.to(torch.int32).contiguous().numpy()
    owner = structure.structure_of_atom.to(torch.int32).numpy() if several else None
    system = (elements, packed, packed.images(cell), torch.get_num_threads(), owner, structure.n_structures)
    return PreparedCall(kernel, *system)(positions, forces=forces)
