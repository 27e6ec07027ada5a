"""ANI-Al: the published archive of HDF5 files -> parquet.

`Al-data.tgz` holds the training set: groups with `species`, `coordinates` [1, n, 3] and `cell` [1, 3, 3] in Å, `energy`
in Hartree and `force` in Hartree/Å. The files `testset*.h5` of the repository hold the test set, with `energies` and
`forces`. The arrays of forces are gradients: hippynn, which trains on them, takes them with that sign. The recipe looks
at the data themselves and refuses to go on where atoms that are close would attract each other.
"""

from __future__ import annotations

import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from snnp.data.description import Description
from snnp.data.frames import Frames
from snnp.errors import DataError
from snnp.units import HARTREE_IN_EV

sys.path.append(str(Path(__file__).resolve().parents[1]))  # what all recipes share lies beside their folders
from recipes import Piece, hdf5, main, numbers_of, repulsion

ARCHIVE = "Al-data.tgz"
NAMES = {"species", "coordinates", "cell", "energy", "energies", "force", "forces"}
PART = "pbe"


def make(raw: Path, description: Description) -> Iterator[Piece]:
    """The training set out of the archive, then the test set beside it."""
    with tempfile.TemporaryDirectory() as temporary:
        yield from pieces(unpack(raw / ARCHIVE, Path(temporary)), "train")
    yield from pieces(sorted(raw.rglob("testset*.h5")), "test")


def unpack(archive: Path, folder: Path) -> list[Path]:
    """The HDF5 files of an archive, under their last names."""
    with tarfile.open(archive) as tar:
        for member in tar:
            name = Path(member.name).name
            content = tar.extractfile(member) if member.isfile() and name.endswith(".h5") else None
            if content is not None:
                (folder / name).write_bytes(content.read())
    return sorted(folder.glob("*.h5"))


def pieces(files: list[Path], split: str) -> Iterator[Piece]:
    """All frames of some files."""
    if not files:
        raise DataError(f"ani-al: no HDF5 files were found for the split {split}; look into the raw folder.")
    chunks = [frames_of(name.replace("/", "-"), file, arrays) for file in files for name, arrays in hdf5(file, NAMES)]
    if not repulsion(chunks) > 0.0:
        raise DataError(
            f"ani-al, {split}: with the published sign turned round, close atoms attract each other; the files hold "
            "forces, not gradients: change the recipe."
        )
    yield from (Piece(PART, split, each) for each in chunks)


def frames_of(name: str, file: Path, arrays: dict[str, np.ndarray]) -> Frames:
    """The frames of a group."""
    energy = np.atleast_1d(arrays.get("energy", arrays.get("energies")))
    gradient = arrays.get("force", arrays.get("forces"))
    assert gradient is not None
    shape = (len(energy), -1, 3)
    made = Frames.conformers(
        numbers_of(arrays["species"]),
        arrays["coordinates"].reshape(shape),
        energy=energy * HARTREE_IN_EV,
        forces=-gradient.reshape(shape) * HARTREE_IN_EV,
        cell=arrays["cell"].reshape(-1, 3, 3),
    )
    return made.named([f"{file.stem}/{name}#{k}" for k in range(len(made))])


if __name__ == "__main__":
    main(make)
