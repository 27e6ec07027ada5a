"""Output files of the commands: checked before the work, written whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from snnp.errors import InputError

if TYPE_CHECKING:
    from ase import Atoms

__all__ = ["prepare_output", "write_structure"]


def prepare_output(path: Path) -> None:
    """Make the folder of an output file and see that it can be written, before hours of work depend on it.

    Raises:
        OSError: if it cannot.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        raise IsADirectoryError(21, "is a folder", str(path))
    if not os.access(path.parent, os.W_OK):
        raise PermissionError(13, "the folder is not writable", str(path.parent))


def write_structure(path: Path, atoms: Atoms) -> None:
    """Write a structure in the format that the name stands for.

    Raises:
        InputError: if ASE knows no format of that name.
    """
    import ase.io
    from ase.io.formats import UnknownFileTypeError

    # The name keeps its ending, from which ASE tells the format.
    temporary = path.with_name(f".partial-{path.name}")
    try:
        ase.io.write(temporary, atoms)
    except UnknownFileTypeError:
        raise InputError(
            f"'{path}' has no ending that ASE can write; use .extxyz, .cif or .vasp, for example."
        ) from None
    os.replace(temporary, path)
