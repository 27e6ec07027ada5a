"""The way in for every file of structures: extended XYZ, parquet, or whatever ASE reads."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from pathlib import Path

import ase.io
from ase import Atoms
from ase.io.formats import UnknownFileTypeError, filetype

from snnp.data.atoms import from_atoms, to_atoms
from snnp.data.extxyz.reader import PACKED, read_plain, read_xyz
from snnp.data.frames import Frames
from snnp.data.labels import Keys, Units, in_usual_units
from snnp.data.parquet.row_groups import ParquetSource
from snnp.errors import DataError, near_matches

__all__ = ["XYZ", "holds_xyz", "is_xyz", "labels_of", "read_any", "read_atoms", "read_images"]

XYZ = (".xyz", ".extxyz")
_GUESSED = ("extxyz", "xyz")  # what ASE would read as extended XYZ
_STATED = re.compile(rb"\b(?:properties|lattice)\s*=", re.IGNORECASE)

# What ASE's readers raise on files that are damaged, cut short or of another format.
_READ_ERRORS = (
    *(OSError, EOFError, ValueError, KeyError, IndexError, TypeError, AttributeError, AssertionError),
    *(RuntimeError, StopIteration, UnknownFileTypeError, zlib.error, ImportError, ZeroDivisionError, SyntaxError),
)


def is_xyz(path: Path) -> bool:
    """Whether a name stands for extended XYZ, packed or not."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    return suffixes[-1:] in ([".xyz"], [".extxyz"]) or (
        len(suffixes) > 1 and suffixes[-1] in PACKED and suffixes[-2] in XYZ
    )


def holds_xyz(path: Path) -> bool:
    """Whether a file is extended XYZ, by its name or by what it holds: ASE's own reader is never asked for that."""
    if is_xyz(path):
        return True
    try:
        with path.open("rb") as stream:
            head = stream.read(1 << 16).lstrip().split(b"\n")
        stated = len(head) > 1 and head[0].strip().isdigit() and _STATED.search(head[1]) is not None
        return stated or filetype(str(path)) in _GUESSED
    except _READ_ERRORS:
        return False


def read_any(
    path: str | Path, keys: Keys = Keys(), label: str | None = None, *, labelled: bool = True, extras: bool = True
) -> Iterator[Frames]:
    """Blocks of a file: parquet, extended XYZ, or whatever ASE reads.

    Arguments as for `read_xyz`.

    Raises:
        DataError: for a file that is missing, empty, unreadable or without energies, and for what is not understood.
    """
    path = Path(path)
    _check_file(path)
    if path.suffix.lower() == ".parquet":
        source = ParquetSource(path)
        if keys.units != Units() and source.stated_format is not None:
            raise DataError(f"{path} states its units, eV and Å; leave --units away.")
        names = dict.fromkeys(("energy", "forces", "stress", "group"))
        yield from (in_usual_units(source.chunk(group), keys.units, names) for group in range(len(source.sizes)))
    elif holds_xyz(path):
        yield from read_xyz(path, keys, label, labelled=labelled, extras=extras)
    else:
        images = _images(path)
        name = label or path.name
        ids = [f"{name}#{k}" for k in range(len(images))]
        yield from_atoms(images, ids, keys, labelled=labelled, extras=extras)


def read_atoms(path: str | Path, index: int = -1) -> Atoms:
    """One structure of extended XYZ, with what belongs to its atoms (momenta, constraints) but without results.

    Arguments:
        path: for which `holds_xyz` is True.
        index: of the frame; the last by default.

    Raises:
        DataError: for a file that is empty or not understood, or has no such frame.
    """
    _check_file(Path(path))
    (block,) = read_plain(path, index)
    (found,) = to_atoms(block)
    return found


def read_images(path: str | Path) -> list[Atoms]:
    """All structures of a file of any format; their labels, if there are any, are not asked for.

    Raises:
        DataError: for a file that is missing, empty, unreadable or not understood.
    """
    path = Path(path)
    _check_file(path)
    if path.suffix.lower() != ".parquet" and not holds_xyz(path):
        return _images(path)
    blocks = read_any(path) if path.suffix.lower() == ".parquet" else read_plain(path)
    return [atoms for block in blocks for atoms in to_atoms(block)]


def labels_of(files: list[Path]) -> list[str]:
    """Shortest trailing part of each path that tells the files apart.

    Raises:
        DataError: for a file that is listed twice.
    """
    for depth in range(1, max(len(file.parts) for file in files) + 1):
        labels = ["/".join(file.parts[-depth:]) for file in files]
        if len(set(labels)) == len(labels):
            return labels
    twice = next(str(file) for file in files if files.count(file) > 1)
    raise DataError(f"{twice} is listed twice; name each data file once.")


def _check_file(path: Path) -> None:
    if not path.is_file():
        siblings = [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []
        what = "is a folder, not a data file" if path.is_dir() else "does not exist"
        raise DataError(f"{path} {what}.{near_matches(path.name, siblings)}")
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty; expected at least one structure.")


def _images(path: Path) -> list[Atoms]:
    """All images of a file, as ASE reads them."""
    try:
        images = list(ase.io.read(path, index=":"))
    except _READ_ERRORS as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{path} cannot be read as a file of structures: {reason}.") from error
    if not images:
        raise DataError(f"{path} is empty; expected at least one structure.")
    return images
