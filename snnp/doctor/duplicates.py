"""Structures that occur twice, however they are written, and structures that are both trained on and tested on.

Candidates have equal fingerprints (`snnp.doctor.survey`); then atoms are matched and the sorted distances to
their neighbours compared, which gives a difference in Å.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch

from snnp.data import Frame
from snnp.doctor.survey import CUTOFF, UNASSIGNED, Survey, describe, distances, nearest
from snnp.neighbours import neighbour_list, pair_vectors
from snnp.report import Finding
from snnp.structure import Structure

__all__ = ["Clusters", "check_duplicates", "check_leakage", "difference", "find_clusters"]

_SAME = 1e-3  # Å, largest difference of a distance: files keep three to eight decimals
_NEAR = 0.02  # Å; successive steps of molecular dynamics differ by about that
_SAMPLE = 48
_CONFLICT = 0.005  # eV/atom
_KEPT = 1000  # frames whose distances are remembered
_MOST_CANDIDATES = 400  # of near duplicates, closest first


@dataclass(frozen=True)
class Clusters:
    """Groups of frames (indices) that are the same structure; `sensitivity`: change of a fingerprint per Å."""

    members: list[list[int]]
    sensitivity: float


class _View:
    """A frame as it is compared: numbers [N], descriptors [N, d], sorted distances of each atom and of all, spacing."""

    def __init__(self, frame: Frame) -> None:
        structure = frame.structure
        self.numbers = structure.numbers.numpy()
        self.described = describe(structure)[0].log1p().numpy()
        self.lists = _distances(structure)
        self.all = np.sort(np.concatenate(self.lists))
        # Cube root of the volume per atom, Å; zero for what is not a crystal.
        volume = float(structure.volume()[0]) if bool(structure.pbc.all()) else 0.0
        self.spacing = (volume / structure.n_atoms) ** (1.0 / 3.0)


def _distances(structure: Structure) -> list[np.ndarray]:
    """Sorted distances (Å) of each atom to its neighbours; to all atoms in a molecule."""
    if not bool(structure.pbc.any()):
        positions = structure.positions.numpy()
        full = np.sort(np.linalg.norm(positions[:, None] - positions, axis=2))
        return list(full[:, 1:])
    neighbours = neighbour_list(structure, CUTOFF)
    lengths = pair_vectors(structure, neighbours).norm(dim=1).numpy()
    counts = torch.bincount(neighbours.i, minlength=structure.n_atoms).numpy()
    return [np.sort(each) for each in np.split(lengths, np.cumsum(counts)[:-1])]


def difference(a: Frame, b: Frame) -> float:
    """Å: largest difference between the distances of matched atoms; infinite if the structures are not alike.

    The order of atoms, orientation, choice of cell and images do not matter; mirror images count as the same.
    """
    return _compare(_View(a), _View(b), np.inf)


def _compare(a: _View, b: _View, enough: float) -> float:
    """The difference of two frames, or anything above `enough` if it is above."""
    # Atoms too far apart to be neighbours still have a density.
    worst = abs(a.spacing - b.spacing)
    if len(a.all) == len(b.all):
        # No way of matching can be better than all distances in order.
        worst = max(worst, float(np.abs(a.all - b.all).max(initial=0.0)))
    if worst > enough:
        return worst
    for z in np.union1d(a.numbers, b.numbers):
        ia, ib = np.flatnonzero(a.numbers == z), np.flatnonzero(b.numbers == z)
        if len(ia) * len(b.numbers) != len(ib) * len(a.numbers):
            return np.inf
        table = distances(a.described[ia], b.described[ib])
        # Both ways: every kind of atom of each must occur in the other.
        matches = [(p, ib[q]) for p, q in zip(ia, table.argmin(axis=1), strict=True)]
        matches += [(ia[p], q) for q, p in zip(ib, table.argmin(axis=0), strict=True)]
        worst = max(worst, *(_gap(a.lists[p], b.lists[q]) for p, q in matches))
    return worst


def _gap(first: np.ndarray, second: np.ndarray) -> float:
    n = min(len(first), len(second))
    surplus = np.concatenate([first[n:], second[n:]])
    # Neighbours at the very end of the reach may be in one list only.
    if len(surplus) and surplus.min() < CUTOFF - 0.05:
        return np.inf
    return float(np.abs(first[:n] - second[:n]).max(initial=0.0))


def _sensitivity(survey: Survey) -> float:
    """Change of fingerprints per Å of random displacement, the usual one."""
    rng, step, changes = np.random.default_rng(0), 1e-3, []
    for k in rng.permutation(len(survey.frames))[:_SAMPLE]:
        structure = survey.frames[k].structure
        moved = structure.positions + step * torch.from_numpy(rng.normal(size=tuple(structure.positions.shape)))
        _, after = describe(replace(structure, positions=moved))
        changes.append(float(np.linalg.norm(after.numpy()[0] - survey.fingerprint[k])) / step)
    return max(float(np.median(changes)), 1e-3)


def find_clusters(survey: Survey) -> Clusters:
    """Frames that are the same structure to 0.001 Å."""
    sensitivity = _sensitivity(survey)
    prints, radius = survey.fingerprint, 3.0 * sensitivity * _SAME
    line = prints @ np.random.default_rng(1).normal(size=prints.shape[1]) / np.sqrt(prints.shape[1])
    order = np.argsort(line)
    reach = radius * 5.0 / np.sqrt(prints.shape[1]) + 1e-12  # a projection of a difference is rarely longer
    view = lru_cache(maxsize=_KEPT)(lambda k: _View(survey.frames[k]))
    members: list[list[int]] = []
    start = 0
    for k in order.tolist():
        while start < len(members) and line[members[start][0]] < line[k] - reach:
            start += 1
        within = members[start:]
        off = np.linalg.norm(prints[[each[0] for each in within]] - prints[k], axis=1) if within else np.zeros(0)
        for each in (within[place] for place in np.flatnonzero(off < radius)):
            if _compare(view(each[0]), view(k), _SAME) < _SAME:
                each.append(k)
                break
        else:
            members.append([k])
    return Clusters([sorted(each) for each in members if len(each) > 1], sensitivity)


def check_duplicates(survey: Survey, clusters: Clusters) -> Iterator[Finding]:
    """Structures that occur more than once, with the same or with contradicting labels."""
    surplus = [k for each in clusters.members for k in each[1:]]
    if surplus:
        yield Finding(
            "duplicates",
            "warning",
            f"{len(surplus):,} of {len(survey.frames):,} frames repeat a structure of another frame "
            "(also when rotated, mirrored, reordered, or in another cell)",
            "They add no information, weigh what they repeat more heavily, and make error bars look smaller.",
            "Keep one of each.",
            survey.names(np.array(sorted(surplus))),
        )
    energy = survey.frames.energy / survey.frames.counts
    told = np.isfinite(energy) & (survey.frames.counts > 1)
    known = [np.array([k for k in each if told[k]], dtype=int) for each in clusters.members]
    conflicting = [each for each in known if len(each) and np.ptp(energy[each]) > _CONFLICT]
    if conflicting:
        worst = max(float(np.ptp(energy[each])) for each in conflicting)
        yield Finding(
            "contradictions",
            "error",
            f"{len(conflicting):,} structures occur with different energies (up to {worst:.3g} eV/atom apart)",
            "One structure has one energy: levels of theory are mixed, units differ, or a calculation failed.",
            "Recompute these structures at one level and remove the wrong frames.",
            survey.names(np.concatenate(conflicting)),
        )


def check_leakage(survey: Survey, clusters: Clusters) -> Iterator[Finding]:
    """Structures that are in more than one split, and test structures that hardly differ from training structures."""
    splits = [name for name in survey.splits if name != UNASSIGNED]
    if len(splits) < 2:
        return
    leaks: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for each in clusters.members:
        names = tuple(name for name in splits if name in survey.split[each])
        if len(names) > 1 and survey.frames.counts[each[0]] > 1:  # atoms alone fix E0 in every split
            leaks[names] += [k for k in each if survey.split[k] in names[1:]]
    for names, frames in leaks.items():
        yield Finding(
            "leakage",
            "error",
            f"{len(frames):,} frames of {' and '.join(names[1:])} repeat structures of {names[0]}",
            "Errors on them are errors on training data and say nothing about new structures.",
            f"Remove them from {' and '.join(names[1:])}, or split again with all copies in one part.",
            survey.names(np.array(sorted(frames))),
        )
    known = {k for frames in leaks.values() for k in frames}
    near = [k for k in _near_duplicates(survey, clusters.sensitivity) if k not in known]
    if near:
        yield Finding(
            "near duplicates",
            "warning",
            f"{len(near):,} frames of other splits differ by less than {_NEAR} Å from one of {splits[0]}",
            "Neighbouring steps of one trajectory, or small displacements of one crystal: the test is easier than new "
            "structures would be.",
            "Split by trajectory or by parent structure, not frame by frame.",
            survey.names(np.array(near)),
        )


def _near_duplicates(survey: Survey, sensitivity: float) -> list[int]:
    """Frames of later splits within 0.02 Å of one of the first split, closest fingerprints first."""
    first, others = np.flatnonzero(survey.is_first), np.flatnonzero(survey.is_later & (survey.frames.counts > 1))
    if not len(others):
        return []
    far, partner = (each[:, 0] for each in nearest(survey.fingerprint[others], survey.fingerprint[first], 1))
    close = np.flatnonzero(far < sensitivity * _NEAR)
    close = close[np.argsort(far[close])][:_MOST_CANDIDATES]
    views = ((k, _View(survey.frames[others[k]]), _View(survey.frames[first[partner[k]]])) for k in close)
    return [int(others[k]) for k, one, other in views if _compare(one, other, _NEAR) < _NEAR]
