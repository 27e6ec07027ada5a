"""COMP6: the published HDF5 files -> parquet; all of it is a test set.

Each file is one benchmark (ANI-MD, DrugBank, GDB07to09, GDB10to13, S66x8, Tripeptides), each group a molecule:
`species` [n], `coordinates` [B, n, 3] in Å, `energies` [B] in Hartree, `forces` [B, n, 3] in Hartree/Å. What is called
forces are gradients: along the rigid scans of S66x8 their integral is the energy, not minus the energy.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from snnp.data.description import Description
from snnp.data.frames import Frames
from snnp.errors import DataError
from snnp.units import HARTREE_IN_EV

sys.path.append(str(Path(__file__).resolve().parents[1]))  # what all recipes share lies beside their folders
from recipes import Piece, hdf5, main, numbers_of, repulsion

NAMES = {"species", "coordinates", "energies", "forces"}


def make(raw: Path, description: Description) -> Iterator[Piece]:
    """Every file in the folder and below."""
    files = sorted(raw.rglob("*.h5"))
    if not files:
        raise DataError(f"comp6: {raw} holds no .h5 files; fetch them from {description.origin}.")
    for file in files:
        chunks = [frames_of(name, file, arrays) for name, arrays in hdf5(file, NAMES) if "energies" in arrays]
        if any(each.has_forces.any() for each in chunks) and not repulsion(chunks) > 0.0:
            raise DataError(f"comp6: close atoms attract each other in {file.name}; it holds forces, not gradients.")
        yield from (Piece("wb97x_dz", "test", each) for each in chunks)


def frames_of(name: str, file: Path, arrays: dict[str, np.ndarray]) -> Frames:
    """The conformers of a molecule."""
    gradient = arrays.get("forces")
    made = Frames.conformers(
        numbers_of(arrays["species"]),
        arrays["coordinates"],
        energy=arrays["energies"] * HARTREE_IN_EV,
        forces=None if gradient is None else -gradient.astype(np.float64) * HARTREE_IN_EV,
    )
    benchmark = file.stem.partition("_")[0]
    return made.named([f"{file.stem}/{name}#{k}" for k in range(len(made))], [benchmark] * len(made))


if __name__ == "__main__":
    main(make)
