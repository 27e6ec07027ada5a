"""Pairs: what any family of potentials needs of some frames, with distances formed once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from snnp.neighbours import Neighbours, neighbour_list, pair_vectors
from snnp.structure import Structure

__all__ = ["Pairs", "cut_pairs", "join_pairs", "make_pairs"]


@dataclass(frozen=True)
class Pairs:
    """Structures (float64), their neighbour list, and its vectors [P, 3] in the type of the training."""

    structure: Structure
    neighbours: Neighbours
    vectors: Tensor

    def to(self, dtype: torch.dtype, device: torch.device | str) -> Pairs:
        """Return a copy on a device, the vectors in another type."""
        neighbours, structure = self.neighbours.to(device), self.structure.to(device=device)
        return Pairs(structure, neighbours, self.vectors.to(dtype=dtype, device=device))

    def per_structure(self, of_atoms: Tensor) -> Tensor:
        """[B] sums over the atoms [N] of each structure."""
        zero = torch.zeros(self.structure.n_structures, dtype=of_atoms.dtype, device=of_atoms.device)
        return zero.index_add(0, self.structure.structure_of_atom, of_atoms)

    def displaced(self, by: Tensor) -> Pairs:
        """The same pairs with `by` [P, 3] added to the vectors; the list must reach far enough."""
        return replace(self, vectors=self.vectors + by)


def make_pairs(structure: Structure, cutoff: float, skin: float) -> Pairs:
    """All pairs within `cutoff + skin` (Å), in float64: vectors may then be displaced by up to `skin`."""
    neighbours = neighbour_list(structure, cutoff + skin)
    return Pairs(structure, neighbours, pair_vectors(structure, neighbours))


def join_pairs(parts: Sequence[Pairs]) -> Pairs:
    """One batch of several, in order."""
    if len(parts) == 1:
        return parts[0]
    lists = [part.neighbours for part in parts]
    structure = Structure.concatenate([part.structure for part in parts])
    offsets = [0]
    for part in parts[:-1]:
        offsets.append(offsets[-1] + part.structure.n_atoms)
    neighbours = Neighbours(
        i=torch.cat([each.i + offset for each, offset in zip(lists, offsets, strict=True)]),
        j=torch.cat([each.j + offset for each, offset in zip(lists, offsets, strict=True)]),
        shift=torch.cat([each.shift for each in lists]),
        cutoff=min(each.cutoff for each in lists),
    )
    return Pairs(structure, neighbours, torch.cat([part.vectors for part in parts]))


def cut_pairs(pairs: Pairs, frames: Tensor, rows: Tensor, local: Tensor, owner: Tensor) -> Pairs:
    """Pairs of some structures.

    Arguments:
        frames: [B] which structures; rows: [n] their atoms, structure by structure.
        local: [N] new index of each of these atoms; owner: [n] new index of the structure of each.
    """
    whole, lists = pairs.structure, pairs.neighbours
    structure = Structure(whole.numbers[rows], whole.positions[rows], whole.cell[frames], whole.pbc[frames], owner)
    # The list is sorted by centre: the pairs of an atom are a run of rows.
    first = torch.searchsorted(lists.i, rows)
    counts = torch.searchsorted(lists.i, rows, right=True) - first
    before = counts.cumsum(0) - counts
    chosen = torch.arange(int(counts.sum()), device=rows.device) + (first - before).repeat_interleave(counts)
    neighbours = Neighbours(local[lists.i[chosen]], local[lists.j[chosen]], lists.shift[chosen], lists.cutoff)
    return Pairs(structure, neighbours, pairs.vectors[chosen])
