"""Neighbour lists: which pairs of atoms lie within a cutoff, through vesin, with reuse between steps."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import vesin
from torch import Tensor

from snnp.errors import InputError
from snnp.structure import Structure, complete_cell

__all__ = ["Neighbours", "VerletList", "neighbour_list", "pair_vectors", "shortest_distances", "unordered_pairs"]

_FARTHEST = 1e9  # Å
_MOST_NEIGHBOURS = 25_000  # of an atom: those within 30 Å in diamond are 20,000; far more do not fit into memory
_MOST_IMAGES = 400  # along one direction: a cell of 0.15 Å has them within 30 Å
_SMALL = 32  # atoms


@dataclass(frozen=True)
class Neighbours:
    """A full neighbour list (both i -> j and j -> i), sorted by `i`.

    Arguments:
        i: [P] int64, the centre.
        j: [P] int64, the neighbour.
        shift: [P, 3] int64: `r_ij = r_j - r_i + shift @ cell`.
        cutoff: Å; every pair closer than this is in the list. It may hold farther ones (the skin).
        derived: what others computed from the list and keep with it, such as a kernel's own layout.
    """

    i: Tensor
    j: Tensor
    shift: Tensor
    cutoff: float
    derived: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def n_pairs(self) -> int:
        """Number of directed pairs."""
        return self.i.shape[0]

    def to(self, device: torch.device | str) -> Neighbours:
        """Return a copy on another device."""
        return Neighbours(self.i.to(device), self.j.to(device), self.shift.to(device), self.cutoff)


def find_pairs(
    positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray, cutoff: float, *, half: bool = False
) -> tuple[np.ndarray, ...]:
    """Pairs (i [P], j [P], shift [P, 3]) of one structure, sorted by i; with `half`, one of i -> j and j -> i.

    `positions`: [N, 3] Å, not empty and finite; `cell`: [3, 3] Å; `pbc`: [3]. Raises `InputError` for atoms or cells
    too far apart to be searched, or a density that no matter has.
    """
    reach = float(np.abs(positions).max())
    box = cell
    if not pbc.all() and reach < _FARTHEST:
        # Long enough to hold the atoms. Shifts along open directions are zero: these vectors are in no `shift @ cell`.
        extent = np.ptp(positions, axis=0).max()
        box = complete_cell(cell, pbc, 2.0 * np.sqrt(3.0) * extent + 2.0 * cutoff + 1.0)
    volume = abs(float(np.linalg.det(box)))
    # Beyond these sizes vesin's cell list and its 32-bit shifts overflow, which ends the whole process.
    if not (reach < _FARTHEST and volume < 1e15 * cutoff**3):
        raise InputError(
            f"atoms or cell reach too far to be searched for neighbours (coordinates up to {reach:.3g} Å); "
            "check their units, and whether the simulation has exploded."
        )
    dense = len(positions) * 4.0 / 3.0 * math.pi * cutoff**3 > _MOST_NEIGHBOURS * volume
    if dense or (2.0 * cutoff * np.linalg.norm(np.linalg.inv(box), axis=0)[pbc]).max(initial=0.0) > _MOST_IMAGES:
        raise InputError(
            f"{len(positions)} atoms in {volume:.3g} Å³ are denser than any matter; check the units of the cell (Å "
            "expected), and whether the simulation has collapsed."
        )
    calculator = vesin.NeighborList(cutoff=cutoff, full_list=not half, sorted=not half)
    i, j, shift = calculator.compute(points=positions, box=box, periodic=pbc, quantities="ijS")
    return i.view(np.int64), j.view(np.int64), shift.reshape(-1, 3)


def _all_pairs(positions: np.ndarray, starts: np.ndarray, cutoff: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs of all structures of an open batch, (i, j, shift) sorted by i, from the distances of all atoms of each."""
    sizes = np.diff(starts)
    partners = np.repeat(sizes, sizes)
    before = partners.cumsum() - partners - np.repeat(starts[:-1], sizes)
    i = np.repeat(np.arange(len(positions)), partners)
    j = np.arange(len(i)) - np.repeat(before, partners)
    near = (((positions[j] - positions[i]) ** 2).sum(axis=1) < cutoff**2) & (i != j)
    i, j = i[near], j[near]
    return i, j, np.zeros((len(i), 3), np.int64)


def neighbour_list(structure: Structure, cutoff: float) -> Neighbours:
    """Find all pairs within `cutoff` (Å) for a batch of structures.

    Cells may be skewed or smaller than the cutoff (several images of one neighbour appear), directions may be open.
    Raises `InputError` for a cutoff that is not positive, positions that are not finite, or a flat periodic cell.
    """
    if not 0.0 < cutoff < math.inf:
        raise InputError(f"cutoff must be positive and finite, got {cutoff} Å.")
    structure.check()
    positions = structure.positions.detach().cpu().double().numpy()
    cells = structure.cell.detach().cpu().double().numpy()
    pbc = structure.pbc.cpu().numpy()
    starts = np.concatenate([[0], np.cumsum(structure.atoms_per_structure.cpu().numpy())])
    parts = [(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros((0, 3), np.int64))]
    # A call of vesin costs as much as all pairs of a small molecule: a batch of those takes them all at once.
    small = structure.n_structures > 1 and np.diff(starts).max() <= _SMALL and not pbc.any()
    if small and np.abs(positions).max(initial=0.0) < _FARTHEST:
        parts = [_all_pairs(positions, starts, float(cutoff))]
    else:
        for b, (first, last) in enumerate(pairwise(starts.tolist())):
            if last > first:
                i, j, shift = find_pairs(positions[first:last], cells[b], pbc[b], float(cutoff))
                parts.append((i + first, j + first, shift.astype(np.int64)))
    columns = (np.concatenate(column) for column in zip(*parts, strict=True))
    i_t, j_t, shift_t = (torch.from_numpy(column).to(structure.positions.device) for column in columns)
    return Neighbours(i_t, j_t, shift_t, float(cutoff))


def pair_vectors(structure: Structure, neighbours: Neighbours) -> Tensor:
    """[P, 3] vectors `r_ij = r_j - r_i + shift @ cell` in Å, differentiable in positions and cell."""
    positions, cell = structure.positions, structure.cell
    # index_select: several times faster than indexing, and so is its derivative.
    vectors = positions.index_select(0, neighbours.j) - positions.index_select(0, neighbours.i)
    # An all-molecules batch has no images: skipping them saves a third of the time of small systems.
    if bool(structure.pbc.any()):
        owner = structure.structure_of_atom[neighbours.i]
        shift = neighbours.shift.to(cell.dtype)
        if structure.n_structures == 1:
            return vectors + shift @ cell[0]
        vectors = vectors + torch.einsum("pa,pab->pb", shift, cell[owner])
    return vectors


def unordered_pairs(n_elements: int) -> Tensor:
    """[Z, Z] int64, number of each unordered pair of elements: (0, 0), (0, 1), ..., (1, 1), ..."""
    a, b = torch.meshgrid(torch.arange(n_elements), torch.arange(n_elements), indexing="ij")
    low, high = torch.minimum(a, b), torch.maximum(a, b)
    return low * n_elements - low * (low - 1) // 2 + (high - low)


def shortest_distances(structure: Structure, reach: float) -> Tensor:
    """[B] Å, between any two atoms of each structure (images included) closer than `reach`; infinite if none are."""
    pairs = neighbour_list(structure, reach)
    distances = pair_vectors(structure, pairs).norm(dim=1)
    found = torch.full((structure.n_structures,), torch.inf, dtype=distances.dtype)
    return found.scatter_reduce(0, structure.structure_of_atom[pairs.i], distances, "amin")


class VerletList:
    """A neighbour list with a skin, reused until an atom has moved half the skin or the system changed.

    Arguments:
        cutoff: Å, pairs closer than this are always in the list.
        skin: Å, added to the cutoff when the list is built; zero rebuilds at every call.

    Threads may share it: each call gets a list that is right for its structure. `n_builds` counts the lists.
    """

    def __init__(self, cutoff: float, skin: float = 0.5) -> None:
        if skin < 0.0:
            raise InputError(f"skin must not be negative, got {skin} Å.")
        self.cutoff = float(cutoff)
        self.skin = float(skin)
        self.n_builds = 0
        # A list and the structure it was built for, replaced together.
        self._kept: tuple[Structure, Neighbours] | None = None

    def update(self, structure: Structure) -> Neighbours:
        """A list valid for `structure`; a change of atoms, their order, cell, periodicity or device rebuilds it."""
        kept = self._kept
        if kept is None or self._is_stale(kept[0], structure):
            # Cloned: callers may hand over views of arrays that they later change in place.
            reference = replace(structure, positions=structure.positions.clone(), cell=structure.cell.clone())
            self._kept = kept = reference, neighbour_list(reference, self.cutoff + self.skin)
            self.n_builds += 1
        return kept[1]

    def _is_stale(self, old: Structure, structure: Structure) -> bool:
        if old.positions.device != structure.positions.device:
            return True
        fixed = ("numbers", "structure_of_atom", "pbc", "cell")
        if not all(torch.equal(getattr(old, name), getattr(structure, name)) for name in fixed):
            return True
        moved = (structure.positions - old.positions).square().sum(dim=1)
        # `not <=` so that NaN positions rebuild, which raises the error that names them.
        return moved.numel() > 0 and not float(moved.max()) <= (0.5 * self.skin) ** 2
