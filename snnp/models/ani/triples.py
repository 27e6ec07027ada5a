"""Pairs of neighbours of atoms, ordered by their elements, and sums over them as matrix products.

A bin holds the triples (i; j, k) of one atom i and one unordered pair of elements. Bins of like size form a block,
padded to its largest bin: products of a block are batched matrix products, and little of them is padding.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Block", "Triples", "make_triples"]

_MERGE = 512
"""Padded triples that a block of its own is worth: that many take as long as its share of operator calls."""


@dataclass(frozen=True)
class Block:
    """`n_bins` bins of `length` triples each: `triples` of all, and `bins` in the list of filled bins."""

    n_bins: int
    length: int
    triples: slice
    bins: slice


@dataclass(frozen=True)
class Triples:
    """T triples of Q angular pairs, in blocks of bins.

    Arguments:
        first, second: [T] the two pairs; Q in padding.
        filled: [B] bins that are not empty, in the order of the blocks.
        counts: [n pairs] triples in each bin, by atom and then pair of elements.
        blocks: what stands where.
    """

    first: Tensor
    second: Tensor
    filled: Tensor
    counts: Tensor
    blocks: tuple[Block, ...]

    def products(self, shells: Tensor, powers: Tensor) -> Tensor:
        """Sums over each bin of shells [T, A] times powers [T, Z]: [n pairs, A Z], zero for empty bins."""
        size = shells.shape[1] * powers.shape[1]
        sums = [(_binned(shells, b).transpose(1, 2) @ _binned(powers, b)).reshape(b.n_bins, size) for b in self.blocks]
        zeros = shells.new_zeros(len(self.counts), size)
        return zeros.index_copy(0, self.filled, torch.cat(sums)) if sums else zeros

    def contractions(self, shells: Tensor, powers: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """`sum_z h_az Z_z` [T, A] and `sum_a h_az R_a` [T, Z] with the h [n pairs, A, Z] of each triple's bin."""
        filled = h.index_select(0, self.filled)
        over_powers, over_shells = [shells[:0]], [powers[:0]]
        for b in self.blocks:
            mine = filled[b.bins]
            over_powers.append((_binned(powers, b) @ mine.transpose(1, 2)).reshape(-1, shells.shape[1]))
            over_shells.append((_binned(shells, b) @ mine).reshape(-1, powers.shape[1]))
        return torch.cat(over_powers), torch.cat(over_shells)


def _binned(values: Tensor, block: Block) -> Tensor:
    return values[block.triples].reshape(block.n_bins, block.length, -1)


def make_triples(key: Tensor, element: Tensor, near: Tensor, sizes: tuple[int, int]) -> tuple[Tensor, Triples]:
    """Choose the angular pairs [Q] of P, sorted by atom and element, and form their triples.

    Arguments:
        key: [P] atom times Z plus `element`, atoms ascending; element: [P] in [0, Z).
        near: [P] bool, within the cutoff.
        sizes: number of atoms n, number of elements Z.
    """
    n_atoms, n_elements = sizes
    chosen = near.nonzero()[:, 0]
    key, element = key.index_select(0, chosen), element.index_select(0, chosen)
    counts = torch.bincount(key, minlength=n_atoms * n_elements)
    starts = counts.cumsum(0) - counts
    if n_elements > 1:
        # Place of each pair among those of its atom and element, without sorting.
        seen = (element[:, None] == torch.arange(n_elements, device=key.device)).to(torch.int64).cumsum(dim=0)
        of_element = counts.reshape(n_atoms, n_elements)
        before = (of_element.cumsum(dim=0) - of_element).flatten()
        place = starts[key] + seen.gather(1, element[:, None])[:, 0] - 1 - before[key]
        chosen = torch.empty_like(chosen).index_copy_(0, place, chosen)
    return chosen, _fill_bins(counts, starts, n_elements, len(chosen))


def _fill_bins(counts: Tensor, starts: Tensor, n_elements: int, n_pairs: int) -> Triples:
    a, b = torch.triu_indices(n_elements, n_elements, device=counts.device)
    n, start = counts.reshape(-1, n_elements), starts.reshape(-1, n_elements)
    n_a, n_b = n[:, a], n[:, b]
    alike = a == b
    in_bin = torch.where(alike, n_a * (n_a - 1) // 2, n_a * n_b).flatten()
    sizes, order = in_bin.sort(descending=True, stable=True)
    n_filled = int((sizes > 0).sum())
    sizes, filled = sizes[:n_filled], order[:n_filled]
    first, second, blocks = [], [], []
    columns = torch.stack([n_b.flatten(), start[:, a].flatten(), start[:, b].flatten(), alike.repeat(len(n)).long()])
    columns = columns[:, filled]
    done = 0
    for begin, end, length in _block_ends(sizes):
        n_second, start_a, start_b, same = columns[:, begin:end, None].unbind(dim=0)
        t = torch.arange(length, device=counts.device)
        # Numbers in the triangle below the diagonal depend on t alone; exact for whole numbers far below 2**24.
        row = (0.5 + (0.25 + 2.0 * t.double()).sqrt()).long()
        j = torch.where(same > 0, row, ((t + 0.5) / n_second).long())
        k = torch.where(same > 0, t - row * (row - 1) // 2, t - j * n_second)
        inside = t < sizes[begin:end, None]
        first.append(torch.where(inside, start_a + j, n_pairs).flatten())
        second.append(torch.where(inside, start_b + k, n_pairs).flatten())
        n_triples = (end - begin) * length
        blocks.append(Block(end - begin, length, slice(done, done + n_triples), slice(begin, end)))
        done += n_triples
    none = filled[:0]
    return Triples(torch.cat([none, *first]), torch.cat([none, *second]), filled, in_bin, tuple(blocks))


def _block_ends(sizes: Tensor) -> list[tuple[int, int, int]]:
    """Ranges of bins (sizes descending) and their lengths: sizes within a factor of about 1.4, or little padding."""
    if len(sizes) == 0:
        return []
    levels = (2.0 * torch.log2(sizes.double())).ceil().long()
    per_level = torch.bincount(levels)
    ends = per_level.flip(0).cumsum(0).tolist()
    lengths = sizes.tolist()
    ranges: list[tuple[int, int, int]] = []
    begin = 0
    for end in ends:
        if end == begin:
            continue
        length = lengths[begin]
        if ranges and (end - begin) * (ranges[-1][2] - length) < _MERGE:
            ranges[-1] = (ranges[-1][0], end, ranges[-1][2])
        else:
            ranges.append((begin, end, length))
        begin = end
    return ranges
