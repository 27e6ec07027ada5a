"""How long molecules hold together: a run ends when a bond breaks (Fu et al., Forces are not enough, 2022)."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.data import covalent_radii

from snnp.data.read import read_images
from snnp.errors import InputError
from snnp.models.potential import Potential
from snnp.sampling import MDSettings, run_md

__all__ = ["survive"]

MOST_DEVIATION = 0.5  # Å
EVERY, REFERENCE = 100.0, 5.0  # fs between frames; ps that the means of bonds are taken over


def bonds(atoms: Atoms) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of atoms closer than 1.25 times the sum of their covalent radii."""
    radii = covalent_radii[atoms.numbers]
    near = atoms.get_all_distances(mic=bool(atoms.pbc.any())) < 1.25 * (radii[:, None] + radii)
    i, j = np.nonzero(np.triu(near, 1))
    return i, j


def survive(
    model: Potential, atoms: Atoms, settings: MDSettings, known: Sequence[Atoms] | None = None
) -> dict[str, Any]:
    """How long a run by the settings lasts (ps), the largest deviation of a bond (Å), and what ended it.

    It ends at the first frame in which a bond deviates by more than 0.5 Å from its mean, or when the engine stops it.
    The mean is that over the first 5 ps or, if given, over `known` frames of the same atoms; bonds that deviate so far
    in these, such as those of a proton between two oxygen atoms, are not looked at.
    """
    i, j = bonds(atoms)
    mean = None
    if known is not None:
        lengths = _lengths(known, i, j)
        firm = (np.abs(lengths - lengths.mean(axis=0)) < MOST_DEVIATION).all(axis=0)
        i, j, mean = i[firm], j[firm], lengths.mean(axis=0)[firm]
    # Most that break do so soon: the beginning is run alone first, which draws the same numbers.
    first = round(1000.0 * REFERENCE / settings.dt_fs)
    if first < settings.steps:
        begun = _survive(model, atoms, settings.model_copy(update={"steps": first}), i, j, mean)
        if begun["ended"] is not None:
            return begun
    return _survive(model, atoms, settings, i, j, mean)


def _lengths(frames: Sequence[Atoms], i: np.ndarray, j: np.ndarray) -> np.ndarray:
    """[frames, bonds]"""
    pairs = list(zip(i, j, strict=True))
    return np.array([[frame.get_distance(a, b, mic=bool(frame.pbc.any())) for a, b in pairs] for frame in frames])


def _survive(
    model: Potential, atoms: Atoms, settings: MDSettings, i: np.ndarray, j: np.ndarray, mean: np.ndarray | None
) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.extxyz"
        written = {"trajectory": path, "trajectory_interval": round(EVERY / settings.dt_fs)}
        try:
            run_md(model, atoms, settings.model_copy(update=written), engine="native")
            stopped = None
        except InputError as error:
            stopped = str(error)
        frames = read_images(path) if path.is_file() else []
    lengths = _lengths(frames, i, j)
    if len(lengths) == 0:
        return {"ps": 0.0, "deviation": None, "ended": stopped}
    if mean is None:
        mean = lengths[: round(1000.0 * REFERENCE / EVERY)].mean(axis=0)
    deviation = np.abs(lengths - mean)
    broken = np.flatnonzero((deviation > MOST_DEVIATION).any(axis=1))
    if len(broken):
        first = int(broken[0])
        k = int(deviation[first].argmax())
        pair = f"{atoms.symbols[i[k]]}-{atoms.symbols[j[k]]}"
        said = f"{pair} at {lengths[first, k]:.2f} Å, {mean[k]:.2f} Å in the mean"
        return {"ps": first * EVERY / 1000.0, "deviation": float(deviation.max()), "ended": said}
    lasted = (settings.steps * settings.dt_fs if stopped is None else (len(frames) - 1) * EVERY) / 1000.0
    return {"ps": lasted, "deviation": float(deviation.max()), "ended": stopped}
