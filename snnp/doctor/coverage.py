"""What a data set holds, per pair of elements and split, and what is missing."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from ase.data import chemical_symbols, covalent_radii

from snnp.doctor.survey import CUTOFF, Survey
from snnp.report import Finding, Table

__all__ = ["check_coverage", "check_distances", "tables"]

_FEW = 10  # frames
_TOO_CLOSE = 0.55  # of the sum of covalent radii
_MARGIN = 0.05  # Å


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
