r"""Atomic environment vectors (AEV): what an ANI network sees of an atom's surroundings.

For atom i, with neighbours j, k of elements s, t, and theta = arccos(0.95 cos theta_jik),

    G_s,k(i)   = 1/4 sum_j exp[-eta_R (r_ij - R_k)²] f_R(r_ij)
    G_st,az(i) = 2 sum_{j<k} Z_z(theta) exp[-eta_A ((r_ij + r_ik) / 2 - R_a)²] f_A(r_ij) f_A(r_ik)
    Z_z(theta) = [(1 + cos(theta - theta_z)) / 2]^zeta
    f(r)       = 1/2 [1 + cos(pi r / R_c)] inside the cutoff, zero outside

The factors 1/4, 0.95 and 2 are NeuroChem's; the order of the vector is radial terms by element, then angular terms by
unordered pair of elements (0,0), (0,1), ..., (1,1), ..., the sections z running fastest.

An angular term is a product of a radial factor [T, A] and an angular one [T, Z] of T triples. A bin holds the triples
(i; j, k) of one atom i and one unordered pair of elements. Bins of like size form a block, padded to its largest bin:
sums over a block are batched matrix products, and little of them is padding.
Source: J. S. Smith, O. Isayev, A. E. Roitberg, Chem. Sci. 8, 3192 (2017), doi 10.1039/C6SC05720A.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field, model_validator
from torch import Tensor

from snnp.exact import ExactModule
from snnp.models.config import AngularReach, FormConfig, Reach
from snnp.neighbours import unordered_pairs

__all__ = ["AEV", "ANGLE_FACTOR", "LEAST_EXPONENT", "AEVAngularConfig", "AEVConfig", "AEVRadialConfig"]

_MERGE = 512  # padded triples that a block of its own is worth: they take as long as its share of operator calls
_Back = Callable[[Tensor], Tensor]  # from dE/d(terms) to gradients of pairs
ANGLE_FACTOR = 0.95  # NeuroChem's: keeps the sine away from zero, where the derivative of an angle is infinite
LEAST_EXPONENT = -40.0  # exp of it, 4e-18, stands for everything smaller
_SHARPEST = 1e6  # of a Gaussian (1/Å²) or a power; from infinity times zero come forces that are no numbers
_Place = Annotated[float, Field(ge=-100.0, le=100.0)]


class AEVRadialConfig(FormConfig):
    """Radial terms: Gaussians of width `eta` (1/Å²) at `shifts` (Å), up to `cutoff` (Å)."""

    eta: float = Field(16.0, gt=0.0, le=_SHARPEST)
    shifts: tuple[_Place, ...] = Field(tuple(0.9 + 0.26875 * k for k in range(16)), min_length=1, max_length=1000)
    cutoff: Reach = 5.2


class AEVAngularConfig(FormConfig):
    """Angular terms: `eta` (1/Å²) at `shifts` (Å) times power `zeta` at angles `sections` (rad), up to `cutoff` (Å)."""

    eta: float = Field(8.0, gt=0.0, le=_SHARPEST)
    zeta: float = Field(32.0, gt=0.0, le=_SHARPEST)
    shifts: tuple[_Place, ...] = Field((0.9, 1.55, 2.2, 2.85), min_length=1, max_length=1000)
    sections: tuple[float, ...] = Field(
        tuple(math.pi * (2 * k + 1) / 16 for k in range(8)), min_length=1, max_length=1000
    )
    cutoff: AngularReach = 3.5

    @model_validator(mode="after")
    def _check(self) -> AEVAngularConfig:
        # Between them the base of the power stays positive, whatever the angle.
        if min(self.sections) < 0.0 or max(self.sections) > math.pi:
            raise ValueError(f"sections must be in [0, pi] (rad), got {min(self.sections)} to {max(self.sections)}")
        return self


class AEVConfig(FormConfig):
    """The form of the vector; the defaults are those of ANI-1x and ANI-1ccx."""

    radial: AEVRadialConfig = AEVRadialConfig()
    angular: AEVAngularConfig = AEVAngularConfig()

    @property
    def cutoff(self) -> float:
        """Å, the farther of the two reaches."""
        return max(self.radial.cutoff, self.angular.cutoff)

    def length(self, n_elements: int) -> int:
        """D for a number of elements."""
        n_pairs = n_elements * (n_elements + 1) // 2
        n_angular = len(self.angular.shifts) * len(self.angular.sections)
        return n_elements * len(self.radial.shifts) + n_pairs * n_angular


class AEV(ExactModule):
    """Environment vectors and their pair gradients, for whichever elements are present."""

    def __init__(self, config: AEVConfig) -> None:
        super().__init__()
        self.config = config
        self.register_constant("radial_shifts", torch.tensor(config.radial.shifts, dtype=torch.float64))
        self.register_constant("angular_shifts", torch.tensor(config.angular.shifts, dtype=torch.float64))
        sections = torch.tensor(config.angular.sections, dtype=torch.float64)
        self.register_constant("half_sections", 0.5 * torch.stack([sections.cos(), sections.sin()]))

    radial_shifts: Tensor
    angular_shifts: Tensor
    half_sections: Tensor

    def columns(self, present: list[int], n_elements: int) -> Tensor:
        """Where the terms of the elements `present` (ascending) stand in the vector of all elements."""
        n_radial, n_angular = len(self.radial_shifts), len(self.angular_shifts) * self.half_sections.shape[1]
        pairs = unordered_pairs(n_elements)
        blocks = [torch.arange(s * n_radial, (s + 1) * n_radial) for s in present]
        for k, low in enumerate(present):
            for high in present[k:]:
                start = n_elements * n_radial + int(pairs[low, high]) * n_angular
                blocks.append(torch.arange(start, start + n_angular))
        return torch.cat(blocks)

    def forward(self, row: Tensor, element: Tensor, vectors: Tensor, sizes: tuple[int, int]) -> tuple[Tensor, _Back]:
        """Vectors [n, D] of n atoms, and the way back to the pairs; twice differentiable in the pair vectors.

        Arguments:
            row: [P] ascending, the centre in [0, n); element: [P] of the neighbour, in [0, Z); vectors: [P, 3] Å.
            sizes: n, Z.
        """
        distance = vectors.norm(dim=1)
        unit, key = vectors / distance[:, None], row * sizes[1] + element
        radial, radial_back = self._radial(key, distance, sizes)
        near, triples = make_triples(key, element, distance.detach() < self.config.angular.cutoff, sizes)
        angular, angular_back = self._angular(distance[near], unit[near], triples)
        radial, angular = radial.reshape(sizes[0], -1), angular.reshape(sizes[0], -1)

        def back(h: Tensor) -> Tensor:
            split = radial.shape[1]
            along = radial_back(h[:, :split])[:, None] * unit
            return along.index_add(0, near, angular_back(h[:, split:]))

        return torch.cat([radial, angular], dim=1), back

    def _radial(self, key: Tensor, distance: Tensor, sizes: tuple[int, int]) -> tuple[Tensor, _Back]:
        """Terms [n Z, K], and from dE/dG of that many dE/dr [P]; `key` [P]: atom and element of each pair."""
        config, shifts = self.config.radial, self.radial_shifts
        gaussians, inside = _gaussians(distance, shifts, config.eta), cosine_cutoff(distance, config.cutoff)
        terms = gaussians.new_zeros(sizes[0] * sizes[1], len(shifts))
        terms = terms.index_add(0, key, gaussians * (0.25 * inside)[:, None])

        def back(h: Tensor) -> Tensor:
            weighted = gaussians * h.reshape(-1, len(shifts)).index_select(0, key)
            plain, shifted = (weighted @ _plain_and_shifted(shifts)).unbind(dim=1)
            slope = cosine_cutoff_slope(distance, config.cutoff)
            return 0.25 * (slope * plain - 2.0 * config.eta * inside * (distance * plain - shifted))

        return terms, back

    def _angular(self, distance: Tensor, unit: Tensor, triples: Triples) -> tuple[Tensor, _Back]:
        """Terms [n pairs, A Z] of Q angular pairs, and from dE/dG of that many dE/dr_ij [Q, 3]."""
        config, shifts = self.config.angular, self.angular_shifts
        # Padding of triples is one more pair, beyond the cutoff.
        distance = torch.cat([distance, distance.new_full((1,), 2.0 * config.cutoff)])
        unit = torch.cat([unit, unit.new_tensor([[1.0, 0.0, 0.0]])])
        cutoff = cosine_cutoff(distance, config.cutoff)
        first, second = triples.first, triples.second
        cosine = (unit.index_select(0, first) * unit.index_select(0, second)).sum(dim=1)
        mean = 0.5 * (distance.index_select(0, first) + distance.index_select(0, second))
        weight = 2.0 * cutoff.index_select(0, first) * cutoff.index_select(0, second)
        shells = _gaussians(mean, shifts, config.eta)
        # [1 + cos(theta - theta_z)] / 2, and its power.
        tilted = ANGLE_FACTOR * cosine
        sine = (1.0 - tilted.square()).sqrt()
        base = torch.stack([tilted, sine], dim=1) @ self.half_sections + 0.5
        powers = _exp(base.log(), config.zeta)

        def back(h: Tensor) -> Tensor:
            h = h.reshape(-1, len(shifts), self.half_sections.shape[1])
            over_sections, over_shells = triples.contractions(shells, powers, h)
            value, shifted = ((over_sections * shells) @ _plain_and_shifted(shifts)).unbind(dim=1)
            by_mean = -2.0 * config.eta * weight * (mean * value - shifted)
            turned = (over_shells * powers / base) @ self.half_sections.T
            by_cosine = (turned[:, 0] - tilted / sine * turned[:, 1]) * weight * (ANGLE_FACTOR * config.zeta)
            slope = cosine_cutoff_slope(distance, config.cutoff)
            # Per pair: the slope along it, sum by_cosine cos, and sum by_cosine u_k.
            sums = distance.new_zeros(len(distance), 5)
            for one, other in ((first, second), (second, first)):
                along = 2.0 * value * slope.index_select(0, one) * cutoff.index_select(0, other) + 0.5 * by_mean
                turn = by_cosine[:, None] * unit.index_select(0, other)
                columns = torch.cat([along[:, None], (by_cosine * cosine)[:, None], turn], dim=1)
                sums = sums.index_add(0, one, columns)
            sideways = (sums[:, 2:] - sums[:, 1:2] * unit) / distance[:, None]
            return (sums[:, :1] * unit + sideways)[:-1]

        return triples.products(shells * weight[:, None], powers), back


def cosine_cutoff(distance: Tensor, cutoff: float) -> Tensor:
    """f(r), zero beyond the cutoff."""
    return torch.where(distance < cutoff, 0.5 * torch.cos(distance * (math.pi / cutoff)) + 0.5, 0.0)


def cosine_cutoff_slope(distance: Tensor, cutoff: float) -> Tensor:
    """f'(r) in 1/Å, zero beyond the cutoff."""
    inside = -0.5 * math.pi / cutoff * torch.sin(distance * (math.pi / cutoff))
    return torch.where(distance < cutoff, inside, 0.0)


def _gaussians(distance: Tensor, shifts: Tensor, eta: float) -> Tensor:
    """[n, K] exp[-eta (r - R_k)²]."""
    away = distance[:, None] - shifts
    return _exp(away.square() if away.requires_grad else away.square_(), -eta)


def _exp(exponent: Tensor, factor: float) -> Tensor:
    """Exponential of `factor` times `exponent`, a number below zero; what is less than 1e-17 stays there.

    Gaussians far out and their products would otherwise be denormal numbers, which processors treat ten times slower.
    `exponent` is overwritten where no graph needs it: fresh memory costs more than the arithmetic.
    """
    if exponent.requires_grad:
        return torch.exp((factor * exponent).clamp(min=LEAST_EXPONENT))
    return exponent.mul_(factor).clamp_(min=LEAST_EXPONENT).exp_()


def _plain_and_shifted(shifts: Tensor) -> Tensor:
    """[K, 2] that sums over shifts, plain and times the shift."""
    return torch.stack([torch.ones_like(shifts), shifts], dim=1)


@dataclass(frozen=True)
class _Block:
    """Bins of `length` triples each: their `triples` among all, and their `bins` among the filled ones."""

    n_bins: int
    length: int
    triples: slice
    bins: slice

    def binned(self, values: Tensor) -> Tensor:
        """[n_bins, length, X] of the block from [T, X]."""
        return values[self.triples].reshape(self.n_bins, self.length, -1)


@dataclass(frozen=True)
class Triples:
    """T triples of Q angular pairs, in blocks of bins."""

    first: Tensor  # [T] the two pairs; Q in padding
    second: Tensor
    filled: Tensor  # [B] bins that are not empty, in the order of the blocks
    n_bins: int  # by atom and then pair of elements
    blocks: tuple[_Block, ...]

    def products(self, shells: Tensor, powers: Tensor) -> Tensor:
        """Sums over each bin of shells [T, A] times powers [T, Z]: [n_bins, A Z], zero for empty bins."""
        zeros = shells.new_zeros(self.n_bins, shells.shape[1] * powers.shape[1])
        sums = [(b.binned(shells).transpose(1, 2) @ b.binned(powers)).flatten(1) for b in self.blocks]
        return zeros.index_copy(0, self.filled, torch.cat(sums)) if sums else zeros

    def contractions(self, shells: Tensor, powers: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """`sum_z h_az Z_z` [T, A] and `sum_a h_az R_a` [T, Z] with the h [n_bins, A, Z] of each triple's bin."""
        filled = h.index_select(0, self.filled)
        over_powers, over_shells = [shells[:0]], [powers[:0]]
        for b in self.blocks:
            mine = filled[b.bins]
            over_powers.append((b.binned(powers) @ mine.transpose(1, 2)).flatten(0, 1))
            over_shells.append((b.binned(shells) @ mine).flatten(0, 1))
        return torch.cat(over_powers), torch.cat(over_shells)


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
    n_a, n_b, alike = n[:, a], n[:, b], a == b
    in_bin = torch.where(alike, n_a * (n_a - 1) // 2, n_a * n_b).flatten()
    sizes, order = in_bin.sort(descending=True, stable=True)
    n_filled = int((sizes > 0).sum())
    sizes, filled = sizes[:n_filled], order[:n_filled]
    columns = torch.stack([n_b.flatten(), start[:, a].flatten(), start[:, b].flatten(), alike.repeat(len(n)).long()])
    columns = columns[:, filled]
    first, second, blocks, done = [filled[:0]], [filled[:0]], [], 0
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
        blocks.append(_Block(end - begin, length, slice(done, done + n_triples), slice(begin, end)))
        done += n_triples
    return Triples(torch.cat(first), torch.cat(second), filled, len(in_bin), tuple(blocks))


def _block_ends(sizes: Tensor) -> list[tuple[int, int, int]]:
    """Ranges of bins (sizes descending) and their lengths: sizes within a factor of about 1.4, or little padding."""
    if len(sizes) == 0:
        return []
    levels = (2.0 * torch.log2(sizes.double())).ceil().long()
    lengths, begin = sizes.tolist(), 0
    ranges: list[tuple[int, int, int]] = []
    for end in torch.bincount(levels).flip(0).cumsum(0).tolist():
        if end == begin:
            continue
        if ranges and (end - begin) * (ranges[-1][2] - lengths[begin]) < _MERGE:
            ranges[-1] = (ranges[-1][0], end, ranges[-1][2])
        else:
            ranges.append((begin, end, lengths[begin]))
        begin = end
    return ranges
