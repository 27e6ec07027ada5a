"""How long molecules hold together: a run ends when a bond breaks (Fu et al., Forces are not enough, 2022)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from ase import Atoms
from ase.data import covalent_radii
from ase.geometry import find_mic

from snnp.models.potential import Potential
from snnp.sampling import MDSettings
from snnp.sampling.many import ManyRun, run_many

__all__ = ["survive"]

MOST_DEVIATION = 0.5  # Å
EVERY, REFERENCE = 100.0, 5.0  # fs between frames; ps that the means of bonds are taken over
_NOT_YET: dict[str, Any] = {"ended": None}


def bonds(atoms: Atoms) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of atoms closer than 1.25 times the sum of their covalent radii."""
    radii = covalent_radii[atoms.numbers]
    near = atoms.get_all_distances(mic=bool(atoms.pbc.any())) < 1.25 * (radii[:, None] + radii)
    i, j = np.nonzero(np.triu(near, 1))
    return i, j


def survive(
    model: Potential, structures: Sequence[Atoms], settings: MDSettings, known: Sequence[Atoms] | None = None
) -> list[dict[str, Any]]:
    """How long runs by the settings last (ps), the largest deviation of a bond (Å), and what ended each.

    One ends at the first frame in which a bond deviates by more than 0.5 Å from its mean, or when the engine stops it.
    The mean is that over the first 5 ps or, if given, over `known` frames of the same atoms; bonds that deviate so far
    in these, such as those of a proton between two oxygen atoms, are not looked at. All run together; number k has the
    random numbers of seed `settings.seed + k`.
    """
    # Most that break do so soon: the beginning is run alone first, which draws the same numbers.
    first = round(1000.0 * REFERENCE / settings.dt_fs)
    begun = [_NOT_YET] * len(structures)
    if first < settings.steps:
        begun = _survive(model, structures, settings.model_copy(update={"steps": first}), known)
    if all(run["ended"] is not None for run in begun):
        return begun
    whole = _survive(model, structures, settings, known)
    return [now if now["ended"] is not None else later for now, later in zip(begun, whole, strict=True)]


def _lengths(frames: Sequence[Atoms], i: np.ndarray, j: np.ndarray) -> np.ndarray:
    """[frames, bonds]"""
    vectors = (frame.positions[j] - frame.positions[i] for frame in frames)
    return np.array([find_mic(v, frame.cell, frame.pbc)[1] for v, frame in zip(vectors, frames, strict=True)])


def _survive(
    model: Potential, structures: Sequence[Atoms], settings: MDSettings, known: Sequence[Atoms] | None
) -> list[dict[str, Any]]:
    interval = round(EVERY / settings.dt_fs)
    runs = run_many(
        model,
        structures,
        settings.model_copy(update={"trajectory_interval": interval, "log_interval": interval}),
        frames=True,
    )
    return [_judge(atoms, run, settings, known) for atoms, run in zip(structures, runs, strict=True)]


def _judge(atoms: Atoms, run: ManyRun, settings: MDSettings, known: Sequence[Atoms] | None) -> dict[str, Any]:
    if not run.frames:
        return {"ps": 0.0, "deviation": None, "ended": run.failure}
    i, j = bonds(atoms)
    if known is None:
        lengths = _lengths(run.frames, i, j)
        mean = lengths[: round(1000.0 * REFERENCE / EVERY)].mean(axis=0)
    else:
        usual = _lengths(known, i, j)
        firm = (np.abs(usual - usual.mean(axis=0)) < MOST_DEVIATION).all(axis=0)
        i, j, mean = i[firm], j[firm], usual.mean(axis=0)[firm]
        lengths = _lengths(run.frames, i, j)
    deviation = np.abs(lengths - mean)
    broken = np.flatnonzero((deviation > MOST_DEVIATION).any(axis=1))
    if len(broken):
        first = int(broken[0])
        k = int(deviation[first].argmax())
        pair = f"{atoms.symbols[i[k]]}-{atoms.symbols[j[k]]}"
        said = f"{pair} at {lengths[first, k]:.2f} Å, {mean[k]:.2f} Å in the mean"
        return {"ps": first * EVERY / 1000.0, "deviation": float(deviation.max()), "ended": said}
    steps = settings.steps * settings.dt_fs
    lasted = (steps if run.failure is None else (len(run.frames) - 1) * EVERY) / 1000.0
    return {"ps": lasted, "deviation": float(deviation.max()), "ended": run.failure}
