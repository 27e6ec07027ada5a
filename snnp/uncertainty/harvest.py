"""Structures beyond a limit, in a file that `snnp active` and `snnp distill` read."""

from __future__ import annotations

import io
import logging
from pathlib import Path

from ase import Atoms
from ase.io import read
from ase.io.extxyz import write_extxyz

from snnp.errors import InputError
from snnp.files import write_atomically
from snnp.text import one_line
from snnp.uncertainty.measures import Doubt, Measure

__all__ = ["Harvest"]

logger = logging.getLogger(__name__)

_MOST = 500  # of one run: more are alike, and selection takes its time


class Harvest:
    """The file, which is whole after every structure.

    Arguments:
        path: an extended XYZ file, written anew. before: of a run that goes on: its step, up to which the file's
            structures stay.

    Raises:
        InputError: for a file that is to be gone on with and is damaged.
    """

    def __init__(self, path: str | Path, before: int | None = None) -> None:
        self.path = Path(path)
        self._frames = [] if before is None else self._kept(before)
        self._full = False

    def __len__(self) -> int:
        return len(self._frames)

    def _kept(self, step: int) -> list[Atoms]:
        """What an interrupted run harvested up to its checkpoint; the file is cut back to it."""
        if not self.path.is_file():
            return []
        try:
            frames = [atoms for atoms in read(self.path, ":") if int(atoms.info["step"]) <= step]
        except Exception as error:  # whatever ASE's reader meets
            raise InputError(
                f"the structures that were harvested before cannot be read from {self.path} ({one_line(error)}); move "
                "it elsewhere, and the run goes on with a new one."
            ) from None
        if frames:
            _write(self.path, frames)
        else:
            self.path.unlink()
        return frames

    def begin(self) -> None:
        """Remove what another run left in the file, which would pass for this one's as long as nothing is added."""
        if not self._frames and self.path.is_file():
            self.path.unlink()

    def add(self, atoms: Atoms, doubt: Doubt, step: int, measure: Measure) -> None:
        """Add a structure, without energies: those of the model are no labels. 500 are enough."""
        if len(self._frames) >= _MOST:
            if not self._full:
                logger.warning("%s holds %d frames, which is enough: raise the limit.", self.path, _MOST)
            self._full = True
            return
        bare = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
        bare.arrays["uncertainty"] = doubt.atoms
        bare.info = {"step": step, "spread": round(doubt.structure, 6), "reason": measure.name.replace(" ", "-")}
        self._frames.append(bare)
        _write(self.path, self._frames)


def _write(path: Path, frames: list[Atoms]) -> None:
    text = io.StringIO()
    write_extxyz(text, frames, write_results=False)
    write_atomically(path, text.getvalue().encode())
