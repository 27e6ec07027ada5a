"""What a data set holds, what is missing, what occurs twice, and what is both trained on and tested on.

Of structures with equal fingerprints atoms are matched, and the distances to their neighbours compared, in Å.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache

import numpy as np
import torch
from ase.data import chemical_symbols, covalent_radii
from scipy.spatial.distance import cdist

from snnp.data import Frame
from snnp.doctor.survey import CUTOFF, UNASSIGNED, Survey, describe, nearest
from snnp.neighbours import neighbour_list, pair_vectors
from snnp.report import Finding, Table

__all__ = ["Clusters", "check_coverage", "check_distances", "check_duplicates", "check_leakage", "find_clusters"]
__all__ += ["tables"]

_FEW = 10  # frames
_TOO_CLOSE = 0.55  # of the sum of covalent radii
_MARGIN = 0.05  # Å
_SAME = 1e-3  # Å, largest difference of a distance: files keep three to eight decimals
_NEAR = 0.02  # Å; successive steps of molecular dynamics differ by about that
_SHELLS = 2.1  # times the cube root of the volume per atom
_SAMPLE = 48
_CONFLICT = 0.005  # eV/atom
_KEPT = 1000  # frames whose distances are remembered
_MOST_CANDIDATES = 400  # of near duplicates, closest first


def tables(survey: Survey) -> list[Table]:
    """Splits with their labels, elements, and pairs: the frames that have them within 5 Å, and how close they come."""
    splits = []
    for name in survey.splits:
        part = survey.frames.take(survey.split == name)
        known = (part.has_energy, part.has_forces, part.has_stress, part.pbc.any(axis=1))
        splits.append((name, len(part), len(part.numbers), *(int(each.sum()) for each in known), len(set(part.groups))))
    elements = [
        (chemical_symbols[z], int(counts.sum()), int((counts > 0).sum()))
        for z, counts in zip(survey.elements, survey.counts.T, strict=True)
    ]
    pairs: list[tuple[str, int, float | None, float | None]] = []
    for q, column in enumerate(survey.closest.T):
        values = column[np.isfinite(column)]
        shortest = (float(values.min()), float(np.median(values))) if len(values) else (None, None)
        pairs.append((survey.pair_name(q), len(values), *shortest))
    labels = ("with_energy", "with_forces", "with_stress")
    return [
        Table(("split", "frames", "atoms", *labels, "periodic", "groups"), splits, "Splits"),
        Table(("element", "atoms", "frames"), elements, "Elements"),
        Table(("pair", "frames", "shortest_angstrom", "median_shortest_angstrom"), pairs, "Pairs of elements"),
    ]


def check_distances(survey: Survey) -> Iterator[Finding]:
    """Atoms closer than chemistry has them."""
    bad, said = np.zeros(len(survey.frames), dtype=bool), []
    for q, (a, b) in enumerate(survey.pairs):
        limit = _TOO_CLOSE * (covalent_radii[a] + covalent_radii[b])
        near = survey.closest[:, q] < limit
        if near.any():
            bad |= near
            said.append(f"{survey.pair_name(q)} {survey.closest[:, q].min():.2f} Å")
    if said:
        yield Finding(
            "distances",
            "warning",
            f"{int(bad.sum()):,} frames have atoms far closer than bonds are: {', '.join(said[:8])}",
            "Compressed matter, collisions and repulsion curves look like this, and so do damaged positions or cells.",
            "Keep them if they are meant: they teach repulsion. If not, look at the cell and the units of positions.",
            survey.names(bad, -survey.closest.min(axis=1)),
        )


def check_coverage(survey: Survey) -> Iterator[Finding]:
    """Elements and pairs that are missing or rare, or that only later splits have."""
    occurs = [(survey.pair_name(q), int(n)) for q, n in enumerate(np.isfinite(survey.closest).sum(axis=0))]
    missing = [name for name, n in occurs if n == 0]
    rare = [f"{name} ({n})" for name, n in occurs if 0 < n < min(_FEW, len(survey.frames))]
    if missing or rare:
        parts = [f"never within {CUTOFF:g} Å: {_some(missing)}"] if missing else []
        parts += [f"in fewer than {_FEW} frames: {_some(rare)}"] if rare else []
        yield Finding(
            "coverage",
            "note",
            f"pairs of elements {'; '.join(parts)}",
            "What a model says about these pairs is extrapolation.",
            "Add structures in which they are neighbours, or state on the card that the model is not for them.",
        )
    first, later = survey.is_first, survey.is_later
    if not later.any():
        return
    new = (survey.counts[later].sum(axis=0) > 0) & (survey.counts[first].sum(axis=0) == 0)
    if new.any():
        frames = (survey.counts[:, new].sum(axis=1) > 0) & later
        symbols = [chemical_symbols[z] for z, missing in zip(survey.elements, new, strict=True) if missing]
        splits = np.unique(survey.split[frames]).tolist()
        yield Finding(
            "coverage",
            "error",
            f"{', '.join(symbols)} occurs in {_some(splits)} but not in {survey.splits[0]}",
            "A model trained on the first split does not know the element and refuses these structures.",
            "Split again so that every element is trained on, or take these frames out.",
            survey.names(frames),
        )
    shortest = survey.closest[first].min(axis=0)
    beyond = (survey.closest < shortest - _MARGIN) & later[:, None] & np.isfinite(shortest)
    if beyond.any():
        frames = beyond.any(axis=1)
        pairs = [survey.pair_name(int(q)) for q in np.flatnonzero(beyond.any(axis=0))]
        yield Finding(
            "coverage",
            "note",
            f"{int(frames.sum()):,} frames of other splits have {_some(pairs)} distances shorter than any of "
            f"{survey.splits[0]}",
            "There a model must extrapolate into the repulsion, so errors on these frames will be large.",
            "Move the most compressed structures to the training split, or keep them as a hard test and say so.",
            survey.names(frames),
        )


def _some(names: list[str]) -> str:
    return ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")


Clusters = tuple[list[list[int]], float]
"""Groups of frames (indices) that are the same structure, and the change of a fingerprint per Å."""


class _View:
    """A frame as it is compared: numbers [N], descriptors [N, d], sorted distances of each atom and of all, spacing."""

    def __init__(self, frame: Frame) -> None:
        structure = frame.structure
        self.numbers, self.described = structure.numbers.numpy(), describe(structure)[0].log1p().numpy()
        # Cube root of the volume per atom, Å; zero for what is not a crystal.
        volume = float(structure.volume()[0]) if bool(structure.pbc.all()) else 0.0
        self.spacing = (volume / structure.n_atoms) ** (1.0 / 3.0)
        # Beyond the third shell of close packing: nearer neighbours are the same in fcc and hcp.
        self.reach = max(CUTOFF, _SHELLS * self.spacing)
        if bool(structure.pbc.any()):
            neighbours = neighbour_list(structure, self.reach)
            lengths = pair_vectors(structure, neighbours).norm(dim=1).numpy()
            counts = torch.bincount(neighbours.i, minlength=structure.n_atoms).numpy()
            self.lists = [np.sort(each) for each in np.split(lengths, np.cumsum(counts)[:-1])]
        else:  # to all atoms of a molecule
            self.lists = list(np.sort(cdist(structure.positions.numpy(), structure.positions.numpy()))[:, 1:])
        self.all = np.sort(np.concatenate(self.lists))


def _compare(a: _View, b: _View, enough: float) -> float:
    """Å: largest difference between the distances of matched atoms, however written; infinite if they are not alike.

    Anything above `enough` if it is above.
    """
    # Atoms too far apart to be neighbours still have a density.
    worst, reach = abs(a.spacing - b.spacing), min(a.reach, b.reach)
    if len(a.all) == len(b.all):
        # No way of matching can be better than all distances in order.
        worst = max(worst, float(np.abs(a.all - b.all).max(initial=0.0)))
    if worst > enough:
        return worst
    for z in np.union1d(a.numbers, b.numbers):
        ia, ib = np.flatnonzero(a.numbers == z), np.flatnonzero(b.numbers == z)
        if len(ia) * len(b.numbers) != len(ib) * len(a.numbers):
            return np.inf
        table = cdist(a.described[ia], b.described[ib])
        # Both ways: every kind of atom of each must occur in the other.
        matches = [(p, ib[q]) for p, q in zip(ia, table.argmin(axis=1), strict=True)]
        matches += [(ia[p], q) for q, p in zip(ib, table.argmin(axis=0), strict=True)]
        worst = max(worst, *(_gap(a.lists[p], b.lists[q], reach) for p, q in matches))
    return worst


def _gap(first: np.ndarray, second: np.ndarray, reach: float) -> float:
    n = min(len(first), len(second))
    surplus = np.concatenate([first[n:], second[n:]])
    # Neighbours at the very end of the reach may be in one list only.
    if len(surplus) and surplus.min() < reach - 0.05:
        return np.inf
    return float(np.abs(first[:n] - second[:n]).max(initial=0.0))


def find_clusters(survey: Survey) -> Clusters:
    """Frames that are the same structure to 0.001 Å."""
    rng, step, changes = np.random.default_rng(0), 1e-3, []
    for k in rng.permutation(len(survey.frames))[:_SAMPLE]:
        structure = survey.frames[k].structure
        moved = structure.positions + step * torch.from_numpy(rng.normal(size=tuple(structure.positions.shape)))
        after = describe(replace(structure, positions=moved))[1].numpy()[0]
        changes.append(float(np.linalg.norm(after - survey.fingerprint[k])) / step)
    sensitivity = max(float(np.median(changes)), 1e-3)
    prints, radius = survey.fingerprint, 3.0 * sensitivity * _SAME
    line = prints @ np.random.default_rng(1).normal(size=prints.shape[1]) / np.sqrt(prints.shape[1])
    reach = radius * 5.0 / np.sqrt(prints.shape[1]) + 1e-12  # a projection of a difference is rarely longer
    view = lru_cache(maxsize=_KEPT)(lambda k: _View(survey.frames[k]))
    members: list[list[int]] = []
    start = 0
    for k in np.argsort(line).tolist():
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
    return [sorted(each) for each in members if len(each) > 1], sensitivity


def check_duplicates(survey: Survey, clusters: Clusters) -> Iterator[Finding]:
    """Structures that occur more than once, with the same or with contradicting labels."""
    surplus = [k for each in clusters[0] for k in each[1:]]
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
    known = [np.array([k for k in each if told[k]], dtype=int) for each in clusters[0]]
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
    members, sensitivity = clusters
    for each in members:
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
    first, others = np.flatnonzero(survey.is_first), np.flatnonzero(survey.is_later & (survey.frames.counts > 1))
    away, partner = nearest(survey.fingerprint[others], survey.fingerprint[first], 1)
    close = np.flatnonzero(away[:, 0] < sensitivity * _NEAR)
    close = close[np.argsort(away[close, 0])][:_MOST_CANDIDATES]
    pairs = [(int(others[k]), int(first[partner[k, 0]])) for k in close]
    views = ((k, _View(survey.frames[k]), _View(survey.frames[other])) for k, other in pairs if k not in known)
    near = [k for k, one, other in views if _compare(one, other, _NEAR) < _NEAR]
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
