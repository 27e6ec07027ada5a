"""QM9: the published archive of text files -> parquet.

Each file of `dsgdb9nsd.xyz.tar.bz2` is a molecule: number of atoms; "gdb", index and fifteen properties; one line per
atom with symbol, coordinates in Å and Mulliken charge; frequencies; SMILES; InChI. Numbers may read 1.2*^-5 for 1.2e-5.
"""

from __future__ import annotations

import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from ase import Atoms

from snnp.data.description import Description
from snnp.data.frames import Frames
from snnp.data.storage.atoms import from_atoms
from snnp.errors import DataError
from snnp.units import HARTREE_IN_EV

sys.path.append(str(Path(__file__).resolve().parents[1]))  # what all recipes share lies beside their folders
from recipes import Piece, main, split_by

ARCHIVE = "dsgdb9nsd.xyz.tar.bz2"
PROPERTIES = ("A", "B", "C", "mu", "alpha", "homo", "lumo", "gap", "r2", "zpve", "U0", "U", "H", "G", "Cv")
IN_HARTREE = ("homo", "lumo", "gap", "zpve", "U0", "U", "H", "G")
TOGETHER = 2048  # molecules at once


def make(raw: Path, description: Description) -> Iterator[Piece]:
    """All molecules, split by a hash of their names; one pass over the archive."""
    waiting: dict[str, list[Atoms]] = {"train": [], "valid": [], "test": []}
    with tarfile.open(raw / ARCHIVE, "r|bz2") as tar:
        for member in tar:
            content = tar.extractfile(member) if member.isfile() and member.name.endswith(".xyz") else None
            if content is None:
                continue
            name = Path(member.name).stem
            split = split_by(name)
            waiting[split].append(molecule(content.read().decode("ascii"), name))
            if len(waiting[split]) == TOGETHER:
                yield Piece("b3lyp", split, frames_of(waiting[split]))
                waiting[split] = []
    yield from (Piece("b3lyp", split, frames_of(rest)) for split, rest in waiting.items() if rest)


def molecule(text: str, name: str) -> Atoms:
    """One file: `energy` is U0 in eV; energies of orbitals and thermodynamics are in eV, the rest as published."""
    lines = text.replace("*^", "e").splitlines()
    try:
        n = int(lines[0])
        values = [float(word) for word in lines[1].split()[-len(PROPERTIES) :]]
        rows = [line.split() for line in lines[2 : 2 + n]]
        atoms = Atoms([row[0] for row in rows], positions=[[float(word) for word in row[1:4]] for row in rows])
        charges = np.array([float(row[4]) for row in rows])
        smiles = lines[3 + n].split()
    except (ValueError, IndexError):
        raise DataError(f"qm9: {name} is not laid out as the files of QM9 are; fetch the archive again.") from None
    info = dict(zip(PROPERTIES, values, strict=True))
    info |= {key: info[key] * HARTREE_IN_EV for key in IN_HARTREE}
    atoms.info = {"energy": info["U0"], **info, "smiles": smiles[-1], "qm9_id": name}
    atoms.set_array("mulliken_charges", charges)
    return atoms


def frames_of(molecules: list[Atoms]) -> Frames:
    """Some molecules as frames."""
    return from_atoms(molecules, [atoms.info["qm9_id"] for atoms in molecules])


if __name__ == "__main__":
    main(make)
