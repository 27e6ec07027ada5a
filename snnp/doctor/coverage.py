"""What a data set holds, per pair of elements and split, and what is missing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from ase.data import chemical_symbols, covalent_radii

from snnp.doctor.survey import CUTOFF, Survey
from snnp.report import Finding

__all__ = ["check_coverage", "check_distances", "element_table", "pair_table", "split_table"]

_FEW = 10  # frames
_TOO_CLOSE = 0.55  # of the sum of covalent radii
_MARGIN = 0.05  # Å


def split_table(survey: Survey) -> list[dict[str, Any]]:
    """One row per split: frames, atoms, labels."""
    rows = []
    for name in survey.splits:
        frames = survey.frames.take(survey.split == name)
        rows.append(
            {
                "split": name,
                "frames": len(frames),
                "atoms": len(frames.numbers),
                "with_energy": int(frames.has_energy.sum()),
                "with_forces": int(frames.has_forces.sum()),
                "with_stress": int(frames.has_stress.sum()),
                "periodic": int(frames.pbc.any(axis=1).sum()),
                "groups": len(set(frames.groups)),
            }
        )
    return rows


def element_table(survey: Survey) -> list[dict[str, Any]]:
    """One row per element: atoms and frames."""
    return [
        {"element": chemical_symbols[z], "atoms": int(counts.sum()), "frames": int((counts > 0).sum())}
        for z, counts in zip(survey.elements, survey.counts.T, strict=True)
    ]


def pair_table(survey: Survey) -> list[dict[str, Any]]:
    """One row per pair of elements: frames in which it occurs within 5 Å, and the shortest distances."""
    rows = []
    for q, column in enumerate(survey.closest.T):
        values = column[np.isfinite(column)]
        shortest = (float(values.min()), float(np.median(values))) if len(values) else (None, None)
        row = {"pair": survey.pair_name(q), "frames": len(values)}
        rows.append({**row, "shortest_angstrom": shortest[0], "median_shortest_angstrom": shortest[1]})
    return rows


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
    table = pair_table(survey)
    missing = [row["pair"] for row in table if row["frames"] == 0]
    rare = [f"{row['pair']} ({row['frames']})" for row in table if 0 < row["frames"] < min(_FEW, len(survey.frames))]
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
