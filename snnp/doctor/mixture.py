"""Mixed levels of theory: energies that fall into two heaps though the structures do not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from snnp.doctor.consensus import Consensus, spread
from snnp.doctor.environments import nearest
from snnp.doctor.survey import Survey
from snnp.report import Finding

__all__ = ["Heaps", "check_mixture", "find_heaps"]

_LEAST_FRAMES = 30
_LEAST_SHARE = 0.02
_GAP = 4.0  # widths of the wider heap; one heap of thousands of normal deviates has gaps below one
_INTERLEAVED, _APART = 0.04, 0.2  # eV/atom, distance of heaps: of like structures, and of unlike ones
_IMPOSSIBLE = 20.0  # eV/atom; two atoms pushed together reach 5
_AS_NEAR, _MIXED = 1.5, 0.3
_CANDIDATES = 50


@dataclass(frozen=True)
class Heaps:
    """Two heaps of energies.

    Arguments:
        upper: [n] whether a frame belongs to the upper one; NaN energies belong to none.
        distance: eV/atom between their medians.
        mixed: share of the smaller heap that has a structure of the other heap about as near as one of its own.
    """

    upper: np.ndarray
    distance: float
    mixed: float


def find_heaps(residual: np.ndarray, fingerprint: np.ndarray) -> Heaps | None:
    """Split energies [n] (eV/atom, NaN where unknown) at the clearest gap; None where there is none.

    Arguments:
        fingerprint: [n, D] of the structures.
    """
    known = np.flatnonzero(np.isfinite(residual))
    if len(known) < _LEAST_FRAMES:
        return None
    order = known[np.argsort(residual[known])]
    values = residual[order]
    least = max(5, int(_LEAST_SHARE * len(values)))
    gaps = np.diff(values)
    gaps[: least - 1] = gaps[len(values) - least :] = 0.0
    best, where = 0.0, -1
    for k in np.argsort(-gaps)[:_CANDIDATES]:
        width = max(spread(values[: k + 1]), spread(values[k + 1 :]), 1e-4)
        if gaps[k] / width > best:
            best, where = float(gaps[k] / width), int(k)
    if best < _GAP:
        return None
    upper = np.zeros(len(residual), dtype=bool)
    upper[order[where + 1 :]] = True
    distance = float(np.median(values[where + 1 :]) - np.median(values[: where + 1]))
    mine = upper[known]
    smaller = mine if mine.sum() <= (~mine).sum() else ~mine
    few, many = fingerprint[known][smaller], fingerprint[known][~smaller]
    own, other = nearest(few, few, 2)[0][:, 1], nearest(few, many, 1)[0][:, 0]
    return Heaps(upper, distance, float((other < _AS_NEAR * own).mean()))


def check_mixture(survey: Survey, consensus: Consensus) -> Iterator[Finding]:
    """Two heaps of energies beyond composition and structure: mixed codes, functionals or zeros of energy."""
    heaps = find_heaps(consensus.residual, survey.fingerprint)
    if heaps is None:
        # Heaps so far apart spoil the model; no matter differs as much for the same composition.
        heaps = find_heaps(consensus.composition_residual, survey.fingerprint)
        if heaps is None or heaps.distance < _IMPOSSIBLE:
            return
    alike = heaps.mixed > _MIXED
    if heaps.distance < (_INTERLEAVED if alike else _APART):
        return
    known = np.isfinite(consensus.residual)
    upper, lower = known & heaps.upper, known & ~heaps.upper
    smaller = upper if upper.sum() <= lower.sum() else lower
    owners = _owners(survey, smaller, known & ~smaller)
    among = "among structures that are alike" if alike else "though these may be structures of another kind"
    yield Finding(
        "level of theory",
        "error" if alike else "warning",
        f"energies fall into two heaps {heaps.distance:.3g} eV/atom apart, {among}: "
        f"{int(smaller.sum()):,} and {int(known.sum() - smaller.sum()):,} frames{owners}",
        "Two codes, functionals, pseudopotentials, magnetic states or zeros of energy are mixed; their difference is "
        "no physics, but a model would try to learn it from the structures.",
        "Keep one level of theory per data set; or bring the zeros together with the energies of isolated atoms at "
        "each level, and say so on the card.",
        survey.names(smaller),
    )


def _owners(survey: Survey, smaller: np.ndarray, larger: np.ndarray) -> str:
    """What the frames of the smaller heap have in common and the others have not."""
    columns = {
        "file": [frame.source.rpartition("#")[0] for frame in survey.frames],
        "split": survey.split,
        "group": [frame.group or "" for frame in survey.frames],
    }
    for what, labels in columns.items():
        array = np.array(labels)
        inside, outside = set(array[smaller]), set(array[larger])
        if inside and "" not in inside and not inside & outside:
            return f"; the smaller heap is {what} {', '.join(sorted(inside)[:5])}"
    return ""
