"""ANI-1x and ANI-1ccx: the published HDF5 file -> one parquet file for each level of theory.

Each group of `ani1x-release.h5` is one formula: `atomic_numbers` [n], `coordinates` [B, n, 3] in Å, energies [B] in
Hartree, forces [B, n, 3] in Hartree/Å; NaN where a conformer was not computed. The Hartree is 27.211386245988 eV.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from snnp.data.description import Description
from snnp.data.frames import Frames
from snnp.units import HARTREE_IN_EV

sys.path.append(str(Path(__file__).resolve().parents[1]))  # what all recipes share lies beside their folders
from recipes import Piece, hdf5, main, split_by

LEVELS = {
    "wb97x_dz": ("wb97x_dz.energy", "wb97x_dz.forces"),
    "wb97x_tz": ("wb97x_tz.energy", "wb97x_tz.forces"),
    "ccsdt_cbs": ("ccsd(t)_cbs.energy", None),
}
FILE = "ani1x-release.h5"


def make(raw: Path, description: Description) -> Iterator[Piece]:
    """All conformers of each level; a formula belongs to one split, so that no molecule is in two."""
    for part, names in LEVELS.items():
        for split in ("train", "valid", "test"):
            wanted = {"atomic_numbers", "coordinates", *filter(None, names)}
            for formula, arrays in hdf5(raw / FILE, wanted):
                if split_by(formula) == split and names[0] in arrays:
                    frames = conformers(formula, arrays, *names)
                    if len(frames):
                        yield Piece(part, split, frames)


def conformers(formula: str, arrays: dict[str, np.ndarray], energy: str, forces: str | None) -> Frames:
    """Those conformers of a formula that were computed at this level."""
    known = ~np.isnan(arrays[energy])
    if forces is not None:
        known &= ~np.isnan(arrays[forces]).any(axis=(1, 2))
    frames = Frames.conformers(
        arrays["atomic_numbers"],
        arrays["coordinates"][known],
        energy=arrays[energy][known] * HARTREE_IN_EV,
        forces=None if forces is None else arrays[forces][known].astype(np.float64) * HARTREE_IN_EV,
    )
    rows = np.flatnonzero(known).tolist()
    return frames.named([f"{formula}#{row}" for row in rows], [formula] * len(rows))


if __name__ == "__main__":
    main(make)
