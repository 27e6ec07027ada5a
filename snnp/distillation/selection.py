"""Which structures are worth a label: those whose atoms see what no atom of the chosen ones has seen yet.

Each atom is described by what is around it, without orientation: Gaussians of the distances, for all neighbours and
weighted with their elements, and the power spectrum of directions,

    G_k = sum_j f_c(r) exp(-(r - r_k)² / 2s²),      P_l = sum_m (sum_j f(r) Y_lm)² ,

as logarithms, each in units of its spread in the pool. Structures are taken one after the other: the one whose atoms
are on average farthest from the nearest chosen atom (farthest-point sampling), then one at random, and so on. Extremes
alone would leave out the ordinary. Of many structures it is done in portions, drawn at random.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from snnp.data import Frames
from snnp.harmonics import Harmonics
from snnp.neighbours import neighbour_list, pair_vectors

__all__ = ["choose", "describe"]

_CUTOFF, _N_GAUSSIANS, _DEGREE = 5.5, 8, 4  # Å
_BATCH_ATOMS = 2000
_MOST_FRAMES, _MOST_KNOWN = 500, 100  # at once: every choice looks at all atoms of the pool
_MOST_ENVIRONMENTS = 24  # of a chosen structure: more of the same cell say little more


def describe(frames: Frames) -> NDArray[np.float32]:
    """[N, D] descriptors of all atoms."""
    parts, first = [], 0
    while first < len(frames):
        last = first + 1
        while last < len(frames) and frames.starts[last + 1] - frames.starts[first] <= _BATCH_ATOMS:
            last += 1
        parts.append(_describe(frames[first:last]))
        first = last
    return np.concatenate(parts)


def _describe(frames: Frames) -> NDArray[np.float32]:
    structure = frames.structure()
    pairs = neighbour_list(structure, _CUTOFF)
    vectors = pair_vectors(structure, pairs)
    distance = vectors.norm(dim=1).clamp_min(1e-6)
    fade = 0.5 * (1.0 + torch.cos(torch.pi * distance / _CUTOFF))
    centres = torch.linspace(1.0, _CUTOFF - 0.5, _N_GAUSSIANS, dtype=torch.float64)
    width = float(centres[1] - centres[0])
    radial = fade[:, None] * torch.exp(-((distance[:, None] - centres) ** 2) / (2.0 * width**2))
    element = structure.numbers.double().sqrt()[pairs.j, None]
    waves = fade[:, None] * Harmonics(_DEGREE).double()(vectors / distance[:, None])
    n = structure.n_atoms
    sums = torch.zeros(n, 2 * _N_GAUSSIANS + waves.shape[1], dtype=torch.float64)
    sums.index_add_(0, pairs.i, torch.cat([radial, radial * element, waves], dim=1))
    moments, power, first = sums[:, 2 * _N_GAUSSIANS :].square(), [], 1
    for degree in range(1, _DEGREE + 1):
        power.append(moments[:, first : first + 2 * degree + 1].sum(dim=1, keepdim=True))
        first += 2 * degree + 1
    own = structure.numbers.double().sqrt()[:, None]
    found = torch.cat([torch.log1p(torch.cat([sums[:, : 2 * _N_GAUSSIANS], *power], dim=1)), own], dim=1)
    return found.float().numpy()


def choose(
    frames: Frames, number: int, shares: Mapping[str, float], known: Frames | None = None, seed: int = 0
) -> Frames:
    """At most `number` of the frames, every other one by farthest-point sampling within its kind.

    Arguments:
        frames: the pool, with groups.
        number: how many.
        shares: kind -> share of the number; kinds that it does not name are taken whole, before all others.
        known: frames that are labelled already.
        seed: of those that are drawn.
    """
    if len(frames) <= number:
        return frames
    if (parts := -(-len(frames) // _MOST_FRAMES)) > 1:
        order = np.random.default_rng([seed, 6]).permutation(len(frames))
        found: list[Frames] = []
        for k in range(parts):
            rows, asked = np.sort(order[k::parts]), number * (k + 1) // parts - number * k // parts
            found.append(choose(frames.take(rows), asked, shares, _drawn(known, seed + k), seed + k))
        return Frames.concatenate(found)
    groups = np.array([group or "" for group in frames.groups])
    features = describe(frames)
    seen = describe(known) if known is not None and len(known) else features[:0]
    scale = 1.0 / np.maximum(features.std(axis=0), 1e-3)
    sampler = _Sampler(frames, features * scale)
    sampler.see(seen * scale)
    chosen = np.flatnonzero(~np.isin(groups, list(shares))).tolist()[:number]
    for row in chosen:
        sampler.take(row)
    quota = _quotas(groups, shares, number - len(chosen))
    rng = np.random.default_rng([seed, 2])
    while any(quota.values()):
        kind = max(quota, key=lambda name: quota[name])
        of_kind = (groups == kind) & ~sampler.taken
        row = sampler.farthest(of_kind) if quota[kind] % 2 else int(rng.choice(np.flatnonzero(of_kind)))
        sampler.take(row)
        chosen.append(row)
        quota[kind] -= 1
    return frames.take(sorted(chosen))


def _drawn(known: Frames | None, seed: int) -> Frames | None:
    """Some of those that are known, if they are many."""
    if known is None or len(known) <= _MOST_KNOWN:
        return known
    return known.take(np.sort(np.random.default_rng([seed, 7]).permutation(len(known))[:_MOST_KNOWN]))


def _quotas(groups: NDArray[np.str_], shares: Mapping[str, float], number: int) -> dict[str, int]:
    """How many of each kind; what one kind cannot fill goes to the others."""
    there = {kind: int((groups == kind).sum()) for kind in shares}
    quota = dict.fromkeys(there, 0)
    for _ in range(number):
        open_kinds = [kind for kind in quota if quota[kind] < there[kind]]
        if not open_kinds:
            break
        quota[min(open_kinds, key=lambda kind: (quota[kind] + 1) / max(shares[kind], 1e-6))] += 1
    return quota


class _Sampler:
    """Squared distance of every atom of the pool to the nearest one that was seen."""

    def __init__(self, frames: Frames, features: NDArray[np.float32]) -> None:
        self.frames, self.features = frames, features
        self.squares = np.square(features).sum(axis=1)
        self.distance = np.full(len(features), np.float32(1e6))
        self.taken = np.zeros(len(frames), dtype=bool)

    def see(self, environments: NDArray[np.float32]) -> None:
        """Atoms [n, D] are known from now on."""
        for first in range(0, len(environments), _MOST_ENVIRONMENTS):
            each = environments[first : first + _MOST_ENVIRONMENTS]
            # The atoms of the pool side by side, so that the smallest of few rows is found at the speed of memory.
            to_each = (-2.0 * each) @ self.features.T
            to_each += np.square(each).sum(axis=1)[:, None]
            np.minimum(self.distance, to_each.min(axis=0) + self.squares, out=self.distance)

    def take(self, row: int) -> None:
        """Choose a frame."""
        self.taken[row] = True
        atoms = np.arange(self.frames.starts[row], self.frames.starts[row + 1])
        self.see(self.features[atoms[:: max(1, len(atoms) // _MOST_ENVIRONMENTS)]])

    def farthest(self, allowed: NDArray[np.bool_]) -> int:
        """The frame whose atoms are on average farthest."""
        mean = self.frames.per_frame(np.sqrt(np.maximum(self.distance, 0.0))) / self.frames.counts
        return int(np.argmax(np.where(allowed, mean, -1.0)))
