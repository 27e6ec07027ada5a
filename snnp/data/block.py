"""Blocks: many frames as a few arrays, the form in which datasets are stored, read and handed on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from snnp.data.frames import Frame
from snnp.errors import DataError, InputError
from snnp.structure import Structure

__all__ = ["Block"]


@dataclass(frozen=True)
class Block:
    """B frames with N atoms in all, with labels where there are any.

    Arguments:
        counts: [B] int64, atoms per frame.
        numbers: [N] int32, atomic numbers.
        positions: [N, 3] Å.
        cell: [B, 3, 3] Å, rows are lattice vectors; zeros where there is none.
        pbc: [B, 3] bool.
        energy: [B] eV; NaN where `has_energy` is False.
        forces: [N, 3] eV/Å; NaN where `has_forces` is False.
        stress: [B, 3, 3] eV/Å³ in ASE's sign; NaN where `has_stress` is False.
        has_energy, has_forces, has_stress: [B] bool, what is known of each frame.
        ids: configuration ids, such as "train.xyz#17"; empty where text was not read.
        groups: kind of each frame, or None; empty likewise.
        extras: JSON of everything else that a frame says (see `snnp.data.extras`), or None; empty likewise.

    Raises:
        DataError: if the shapes do not agree.
    """

    counts: np.ndarray
    numbers: np.ndarray
    positions: np.ndarray
    cell: np.ndarray
    pbc: np.ndarray
    energy: np.ndarray
    forces: np.ndarray
    stress: np.ndarray
    has_energy: np.ndarray
    has_forces: np.ndarray
    has_stress: np.ndarray
    ids: Sequence[str] = ()
    groups: Sequence[str | None] = ()
    extras: Sequence[str | None] = ()

    def __post_init__(self) -> None:
        b, n = len(self.counts), int(self.counts.sum())
        expected = {"numbers": (n,), "positions": (n, 3), "cell": (b, 3, 3), "pbc": (b, 3), "energy": (b,)}
        expected |= {"forces": (n, 3), "stress": (b, 3, 3)}
        expected |= dict.fromkeys(("has_energy", "has_forces", "has_stress"), (b,))
        for name, shape in expected.items():
            if getattr(self, name).shape != shape:
                raise DataError(
                    f"{name} of a block has shape {getattr(self, name).shape}, expected {shape} for {n} atoms in {b} "
                    "frames; the file is damaged or was not written by this program."
                )

    def __len__(self) -> int:
        return len(self.counts)

    @property
    def starts(self) -> np.ndarray:
        """[B + 1] int64, the first atom of each frame."""
        return np.concatenate([[0], np.cumsum(self.counts)])

    @staticmethod
    def conformers(
        numbers: np.ndarray,
        positions: np.ndarray,
        energy: np.ndarray | None = None,
        forces: np.ndarray | None = None,
        cell: np.ndarray | None = None,
    ) -> Block:
        """Frames of the same atoms, all with the same labels.

        Arguments:
            numbers: [n] atomic numbers.
            positions: [B, n, 3] Å.
            energy: [B] eV.
            forces: [B, n, 3] eV/Å.
            cell: [B, 3, 3] Å of periodic frames; None: free molecules.
        """
        b, n = positions.shape[:2]
        nothing = np.full((b * n, 3), np.nan)
        return Block(
            counts=np.full(b, n, dtype=np.int64),
            numbers=np.tile(np.asarray(numbers, dtype=np.int32), b),
            positions=np.asarray(positions, dtype=np.float64).reshape(-1, 3),
            cell=np.zeros((b, 3, 3)) if cell is None else np.asarray(cell, dtype=np.float64),
            pbc=np.full((b, 3), cell is not None),
            energy=np.full(b, np.nan) if energy is None else np.asarray(energy, dtype=np.float64),
            forces=nothing if forces is None else np.asarray(forces, dtype=np.float64).reshape(-1, 3),
            stress=np.full((b, 3, 3), np.nan),
            has_energy=np.full(b, energy is not None),
            has_forces=np.full(b, forces is not None),
            has_stress=np.zeros(b, dtype=bool),
        )

    def named(
        self, ids: Sequence[str], groups: Sequence[str | None] | None = None, extras: Sequence[str | None] | None = None
    ) -> Block:
        """The same frames with texts."""
        nothing = [None] * len(self)
        return replace(self, ids=ids, groups=nothing if groups is None else groups, extras=extras or nothing)

    def take(self, rows: np.ndarray) -> Block:
        """The frames of these rows, in this order."""
        atoms = _spans(self.starts[rows], self.counts[rows])
        per_frame = ("counts", "cell", "pbc", "energy", "stress", "has_energy", "has_forces", "has_stress")
        chosen: dict[str, Any] = {name: getattr(self, name)[rows] for name in per_frame}
        chosen |= {name: getattr(self, name)[atoms] for name in ("numbers", "positions", "forces")}
        for name in ("ids", "groups", "extras"):
            values = getattr(self, name)
            chosen[name] = [values[row] for row in rows] if len(values) else ()
        return Block(**chosen)

    def slice(self, first: int, last: int) -> Block:
        """Frames `first` to `last` (not included), without copies of the arrays."""
        starts = self.starts
        atoms = slice(int(starts[first]), int(starts[last]))
        per_atom = ("numbers", "positions", "forces")
        chosen: dict[str, Any] = {
            name: getattr(self, name)[atoms if name in per_atom else slice(first, last)]
            for name in self.__dataclass_fields__
        }
        return Block(**chosen)

    @staticmethod
    def concatenate(blocks: Sequence[Block]) -> Block:
        """Join blocks in order; texts are kept where all blocks have them."""
        if len(blocks) == 1:
            return blocks[0]
        texts = ("ids", "groups", "extras")
        arrays = [name for name in Block.__dataclass_fields__ if name not in texts]
        whole = all(len(block.ids) == len(block) for block in blocks)
        joined: dict[str, Any] = {name: np.concatenate([getattr(block, name) for block in blocks]) for name in arrays}
        joined |= {name: [v for block in blocks for v in getattr(block, name)] if whole else () for name in texts}
        return Block(**joined)

    def structure(self, dtype: torch.dtype = torch.float64) -> Structure:
        """All frames as one batch."""
        owner = np.repeat(np.arange(len(self)), self.counts)
        return Structure(
            numbers=torch.from_numpy(self.numbers.astype(np.int64)),
            positions=_tensor(self.positions).to(dtype),
            cell=_tensor(self.cell).to(dtype),
            pbc=_tensor(self.pbc),
            structure_of_atom=torch.from_numpy(owner),
        )

    def frame(self, row: int) -> Frame:
        """One frame with its labels; the stress of a frame that is not fully periodic is left out: it has no volume.

        Raises:
            DataError: for NaN, or a structure that nothing can be computed of; names the frame.
        """
        one = self.slice(row, row + 1)
        source = one.ids[0] if one.ids else f"#{row}"
        structure = one.structure()
        try:
            structure.check()
        except InputError as error:
            raise DataError(f"{source}: {error}") from error
        stress = 0.5 * (one.stress[0] + one.stress[0].T) if one.has_stress[0] and one.pbc.all() else None
        return Frame(
            structure=structure,
            energy=float(one.energy[0]) if one.has_energy[0] else None,
            forces=one.forces.copy() if one.has_forces[0] else None,
            stress=stress,
            group=one.groups[0] if one.groups else None,
            source=source,
        )


def _tensor(values: np.ndarray) -> torch.Tensor:
    """Shares memory where it can: what lies in a file cannot be written to, which torch insists on."""
    return torch.from_numpy(np.require(values, requirements=["C", "W"]))


def _spans(starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """[starts[0], starts[0] + 1, ..., starts[1], ...]: the atoms of frames that begin at `starts`."""
    if len(counts) == 0:
        return np.zeros(0, dtype=np.int64)
    first = np.cumsum(counts) - counts
    return np.repeat(starts - first, counts) + np.arange(int(counts.sum()))
