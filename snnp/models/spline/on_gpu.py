"""Batches of structures through the GPU kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from snnp.kernels.gpu.call import Atoms, GpuKernel, GpuResult
from snnp.kernels.gpu.lists import Rows, image_vectors, rows_of
from snnp.neighbours import Neighbours
from snnp.structure import Structure

__all__ = ["evaluate_on_gpu"]

_ROWS = "rows for the GPU kernels"


def evaluate_on_gpu(kernel: GpuKernel, structure: Structure, species: Tensor, neighbours: Neighbours) -> GpuResult:
    """Evaluate a batch on the kernel's device, where `structure` lies.

    Raises:
        InputError: for NaN positions, or atoms closer than 0.1 Å.
    """
    rows, reach = _rows(structure, neighbours)
    positions = structure.positions.detach().to(torch.float64).contiguous()
    atoms = Atoms(positions, species.to(torch.int32).contiguous(), image_vectors(reach, structure.cell))
    return kernel.evaluate(atoms, rows, structure.structure_of_atom, structure.n_structures)


def _rows(structure: Structure, neighbours: Neighbours) -> tuple[Rows, tuple[int, int, int]]:
    """The list as rows on the device; kept with the list, because lists are used many times."""
    device = structure.positions.device
    kept: tuple[Rows, tuple[int, int, int]] | None = neighbours.derived.get(_ROWS)
    if kept is not None and kept[0].length.device == device and kept[0].length.shape[0] == structure.n_atoms:
        return kept
    pairs = (neighbours.i.to(device), neighbours.j.to(device), neighbours.shift.to(device))
    made = rows_of(pairs, structure.n_atoms, structure.structure_of_atom)
    neighbours.derived[_ROWS] = made
    return made
