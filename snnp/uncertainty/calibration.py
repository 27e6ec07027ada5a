r"""From disagreement to expected errors: a scale from held-out data, and how honest the intervals then are.

On one half of the held-out frames the scale is the one under which as many errors lie within the spread as within one
standard deviation of a normal distribution,

    c = the 68.3 % quantile of e / s,

for the three components of each force (s from the spread of the members, divided by sqrt 3) and for energies per atom.
The other half says how good that is: the coverage, i.e. which share of errors lies within the interval that should
hold a share p of them, for p from 0.05 to 0.95; the miscalibration area between the two curves (0 is perfect, 0.5 the
worst); and the rank correlation of spread and error, which no scale changes: is what is doubted most also most wrong?
Coverage after Kuleshov and others (2018), area after Tran and others, Mach. Learn.: Sci. Technol. 1, 025006 (2020).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from snnp.data import Frames
from snnp.errors import DataError
from snnp.models.ensemble import Ensemble

__all__ = [
    "FEWEST_FRAMES",
    "KEY",
    "LEVELS",
    "Calibration",
    "Quantity",
    "calibrate",
    "held_out_errors",
    "judged",
    "labelled",
    "scale_from",
    "scales_of",
]

Array = NDArray[np.float64]
KEY = "uncertainty"
"""Of the metadata of a model, under which its calibration stands."""
LEVELS = tuple(round(0.05 * k, 2) for k in range(1, 20))
FEWEST_FRAMES = 8
_ATOMS_AT_ONCE = 2000
_WITHIN = math.erf(math.sqrt(0.5))  # share of a normal distribution within one standard deviation
_TINY, _AGREED = 1e-12, 1e-5  # eV, eV/Å, and of the rms spread: members that agree to rounding say nothing


@dataclass(frozen=True)
class Quantity:
    """How honest the spread of one quantity is.

    Arguments:
        scale: what its spread is multiplied by. coverage, raw_coverage: observed share of errors within the intervals
            that should hold `LEVELS`, with the scale and without. area, raw_area: between that and the diagonal.
        rank_correlation: Spearman's, of spread and error. rmse: of the errors. expected: rms of the scaled spread, in
            the same unit. n: how many errors were looked at.
    """

    scale: float
    coverage: tuple[float, ...]
    raw_coverage: tuple[float, ...]
    area: float
    raw_area: float
    rank_correlation: float
    rmse: float
    expected: float
    n: int


@dataclass(frozen=True)
class Calibration:
    """Of forces (components, eV/Å) and energies (eV/atom), on held-out frames; `data` names them."""

    forces: Quantity
    energy: Quantity
    n_frames: int
    data: str

    def to_dict(self) -> dict[str, Any]:
        """JSON values, as metadata hold them."""
        return {**asdict(self), "levels": LEVELS}


def scales_of(metadata: Mapping[str, Any]) -> tuple[float, float] | None:
    """The scales of energies and forces that metadata state; None where the model was never calibrated."""
    stated = metadata.get(KEY)
    try:
        found = float(stated["energy"]["scale"]), float(stated["forces"]["scale"])  # type: ignore[index]
    except (KeyError, TypeError, ValueError):
        return None
    return found if all(np.isfinite(value) and value > 0.0 for value in found) else None


def held_out_errors(model: Ensemble, frames: Frames) -> tuple[list[Array], list[Array]]:
    """Of each frame: spread and error of force components [2, 3 N] in eV/Å, and of the energy [2, 1] in eV/atom."""
    forces: list[Array] = []
    energies: list[Array] = []
    for piece in frames.pieces(_ATOMS_AT_ONCE):
        some = frames[piece]
        found = model.compute(some.structure())
        assert found.forces is not None
        assert found.forces_std is not None
        assert found.energy_std is not None
        spread = np.sqrt(found.forces_std.double().square().sum(dim=1).numpy() / 3.0)
        error = np.abs(found.forces.double().numpy() - some.forces)
        starts = some.starts
        for b, n in enumerate(some.counts.tolist()):
            rows = slice(int(starts[b]), int(starts[b]) + n)
            forces.append(np.stack([np.repeat(spread[rows], 3), error[rows].ravel()]))
            apart = abs(float(found.energy[b]) - float(some.energy[b])) / n
            energies.append(np.array([[float(found.energy_std[b]) / n], [apart]]))
    return forces, energies


def labelled(frames: Frames) -> Frames:
    """Those that have an energy and all forces."""
    return frames.take(np.flatnonzero(frames.has_energy & np.isfinite(frames.per_frame(frames.forces.sum(axis=1)))))


def calibrate(model: Ensemble, frames: Frames, data: str = "", seed: int = 0) -> Calibration:
    """Fit the scales on one half of the frames, drawn by `seed`, and look at them on the other; the model stays as is.

    Arguments:
        frames: with energies and forces, which no member has learned from. data: what they are, for reports.

    Raises:
        DataError: for fewer than 8 frames, or frames without energies or forces.
    """
    usable = labelled(frames)
    if len(usable) < FEWEST_FRAMES:
        raise DataError(
            f"calibration needs at least {FEWEST_FRAMES} held-out frames with energies and forces, got {len(usable)}; "
            "give more, which no member was trained on."
        )
    forces, energies = held_out_errors(model, usable)
    order = np.random.default_rng(seed).permutation(len(usable))
    fit, look = order[: len(order) // 2], order[len(order) // 2 :]
    found = []
    for each in (forces, energies):
        fitted, seen = (np.concatenate([each[k] for k in rows], axis=1) for rows in (fit, look))
        found.append(judged(scale_from(fitted), seen))
    return Calibration(found[0], found[1], len(usable), data)


def scale_from(errors: Array) -> float:
    """By which spread must be multiplied to be an expected error; `errors`: spread and error [2, n]."""
    # Forces that symmetry makes zero differ by rounding, and one of them would outweigh all others.
    telling = errors[0] > max(_TINY, _AGREED * float(np.sqrt(np.mean(errors[0] ** 2))))
    # A quantile: in the mean of e²/s² a few cells whose forces all but vanish, and members agree, decide everything.
    scale = float(np.quantile(errors[1, telling] / errors[0, telling], _WITHIN)) if telling.any() else 1.0
    return scale or 1.0


def judged(scale: float, errors: Array) -> Quantity:
    """How honest the scaled spread is; `errors`: spread and error [2, n], which had no part in the scale."""
    spread, error = np.maximum(errors[0], _TINY), errors[1]
    normal = NormalDist()
    width = np.array([normal.inv_cdf(0.5 + 0.5 * level) for level in LEVELS])
    raw = tuple(float(np.mean(error <= w * spread)) for w in width)
    coverage = tuple(float(np.mean(error <= w * scale * spread)) for w in width)
    return Quantity(
        scale=scale,
        coverage=coverage,
        raw_coverage=raw,
        area=_area(coverage),
        raw_area=_area(raw),
        rank_correlation=rank_correlation(spread, error),
        rmse=float(np.sqrt(np.mean(error**2))),
        expected=float(scale * np.sqrt(np.mean(spread**2))),
        n=len(error),
    )


def _area(coverage: tuple[float, ...]) -> float:
    """Between observed and expected shares, both from 0 to 1."""
    expected = np.array([0.0, *LEVELS, 1.0])
    return float(np.trapezoid(np.abs(np.array([0.0, *coverage, 1.0]) - expected), expected))


def rank_correlation(a: Array, b: Array) -> float:
    """Spearman's, with mean ranks of ties; 0 where either does not vary."""
    ranks = [_ranks(values) for values in (a, b)]
    centred = [rank - rank.mean() for rank in ranks]
    size = float(np.sqrt((centred[0] ** 2).sum() * (centred[1] ** 2).sum()))
    return float((centred[0] * centred[1]).sum()) / size if size > 0.0 else 0.0


def _ranks(values: Array) -> Array:
    _, group, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks: Array = (last - 0.5 * (counts - 1))[group]
    return ranks
