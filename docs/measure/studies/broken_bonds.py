"""How long molecules hold together: a run ends when a bond breaks (Fu et al., Forces are not enough, 2022)."""

from __future__ import annotations

import tempfile
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


def survive(model: Potential, atoms: Atoms, settings: MDSettings) -> dict[str, Any]:
    """How long a run by the settings lasts (ps), the largest deviation of a bond (Å), and what ended it.

    It ends at the first frame in which a bond deviates by more than 0.5 Å from its mean over the first 5 ps, or when
    the engine stops it. Most that break do so in these 5 ps: they are run alone first, which draws the same numbers.
    """
    first = round(1000.0 * REFERENCE / settings.dt_fs)
    if first < settings.steps:
        begun = _survive(model, atoms, settings.model_copy(update={"steps": first}))
        if begun["ended"] is not None:
            return begun
    return _survive(model, atoms, settings)


def _survive(model: Potential, atoms: Atoms, settings: MDSettings) -> dict[str, Any]:
    i, j = bonds(atoms)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.extxyz"
        written = {"trajectory": path, "trajectory_interval": round(EVERY / settings.dt_fs)}
        try:
            run_md(model, atoms, settings.model_copy(update=written), engine="native")
            stopped = None
        except InputError as error:
            stopped = str(error)
        frames = read_images(path) if path.is_file() else []
    lengths = np.array(
        [[frame.get_distance(a, b, mic=bool(frame.pbc.any())) for a, b in zip(i, j, strict=True)] for frame in frames]
    )
    if len(lengths) == 0:
        return {"ps": 0.0, "deviation": None, "ended": stopped}
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
