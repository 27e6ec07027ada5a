"""All structures of a file."""

from __future__ import annotations

from pathlib import Path

from ase import Atoms

from snnp.data.read import holds_xyz, read_images
from snnp.errors import DataError, InputError
from snnp.sampling.structures import build_structure

__all__ = ["build_structures"]

_OF_MANY = (".parquet", ".traj")  # formats that hold many structures, beside extended XYZ


def build_structures(spec: str | Path, *, file_format: str | None = None) -> list[Atoms]:
    """All structures of an extended XYZ, trajectory or parquet file; else the one that `build_structure` makes.

    `file.xyz@3` names one frame of a file, as there.

    Raises:
        InputError: for a missing or unreadable file, or a specification that is not understood.
    """
    path = Path(spec)
    is_read_here = path.is_file() and file_format is None and path.stat().st_size > 0
    if is_read_here and (path.suffix.lower() in _OF_MANY or holds_xyz(path)):
        try:
            frames = read_images(path)
        except DataError as error:
            raise InputError(f"cannot read a structure from '{path}': {error}") from error
        if len(frames) > 1:
            return frames
    return [build_structure(spec, file_format=file_format)]
