"""Structures: one immutable value that holds a batch of atoms, molecules or crystals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.data import chemical_symbols
from torch import Tensor

from snnp.errors import InputError
from snnp.process import make_forks_safe

__all__ = ["Structure", "StructureLike", "as_structure", "clip_to_reduced", "complete_cell", "reduce_cell"]

make_forks_safe()


@dataclass(frozen=True)
class Structure:
    """A batch of `B` structures with `N` atoms in all.

    Arguments:
        numbers: [N] int64, atomic numbers.
        positions: [N, 3] float, Å.
        cell: [B, 3, 3] float, Å, rows are lattice vectors; zero rows where a direction is not periodic are allowed.
        pbc: [B, 3] bool, periodic directions.
        structure_of_atom: [N] int64 in [0, B), non-decreasing.

    Raises `InputError` if the shapes do not agree.
    """

    numbers: Tensor
    positions: Tensor
    cell: Tensor
    pbc: Tensor
    structure_of_atom: Tensor

    def __post_init__(self) -> None:
        n, b = self.numbers.shape[0], self.cell.shape[0]
        expected = {"positions": (n, 3), "cell": (b, 3, 3), "pbc": (b, 3), "structure_of_atom": (n,)}
        for name, shape in expected.items():
            got = tuple(getattr(self, name).shape)
            if got != shape:
                raise InputError(f"Structure.{name} has shape {got}, expected {shape} for {n} atoms in {b} structures.")

    @property
    def n_atoms(self) -> int:
        """Number of atoms of all structures."""
        return self.numbers.shape[0]

    @property
    def n_structures(self) -> int:
        """Number of structures in the batch."""
        return self.cell.shape[0]

    @property
    def atoms_per_structure(self) -> Tensor:
        """[B] int64."""
        return torch.bincount(self.structure_of_atom, minlength=self.n_structures)

    @property
    def symbols(self) -> tuple[str, ...]:
        """Chemical symbols of the elements present, sorted by atomic number."""
        return tuple(chemical_symbols[z] for z in torch.unique(self.numbers).tolist())

    def volume(self) -> Tensor:
        """[B] volumes in Å³ (zero for cells with a zero row)."""
        return torch.linalg.det(self.cell).abs()

    def to(self, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> Structure:
        """Return a copy with positions and cell of another type, or everything on another device."""
        return Structure(
            numbers=self.numbers.to(device=device),
            positions=self.positions.to(dtype=dtype, device=device),
            cell=self.cell.to(dtype=dtype, device=device),
            pbc=self.pbc.to(device=device),
            structure_of_atom=self.structure_of_atom.to(device=device),
        )

    @staticmethod
    def from_ase(atoms: Atoms | Sequence[Atoms], dtype: torch.dtype = torch.float64) -> Structure:
        """Build a batch from one or more `ase.Atoms`."""
        frames = [atoms] if isinstance(atoms, Atoms) else list(atoms)
        counts = [len(frame) for frame in frames]

        def stack(rows: list[Any], shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
            return torch.as_tensor(np.concatenate(rows) if rows else np.zeros(shape), dtype=dtype)

        return Structure(
            numbers=stack([frame.numbers for frame in frames], (0,), torch.int64),
            positions=stack([frame.positions for frame in frames], (0, 3), dtype),
            cell=stack([frame.cell.array[None] for frame in frames], (0, 3, 3), dtype),
            pbc=stack([frame.pbc[None] for frame in frames], (0, 3), torch.bool),
            structure_of_atom=torch.arange(len(frames)).repeat_interleave(torch.tensor(counts, dtype=torch.int64)),
        )

    def to_ase(self) -> list[Atoms]:
        """Return one `ase.Atoms` per structure."""
        fields = self.numbers, self.positions, self.cell, self.pbc, self.structure_of_atom
        numbers, positions, cells, pbc, owner = (each.detach().cpu().numpy() for each in fields)
        return [
            Atoms(numbers[owner == b], positions[owner == b].astype(float), cell=cells[b].astype(float), pbc=pbc[b])
            for b in range(self.n_structures)
        ]

    @staticmethod
    def concatenate(structures: Sequence[Structure]) -> Structure:
        """Join batches into one, in order."""
        if not structures:
            return Structure.from_ase([])
        starts = np.cumsum([0] + [s.n_structures for s in structures[:-1]])
        owners = [s.structure_of_atom + int(start) for s, start in zip(structures, starts, strict=True)]
        fields = [(s.numbers, s.positions, s.cell, s.pbc) for s in structures]
        columns: list[tuple[Tensor, ...]] = [*zip(*fields, strict=True), tuple(owners)]
        return Structure(*(torch.cat(column) for column in columns))

    def check(self) -> None:
        """Raise `InputError` where nothing can be computed: NaN or infinity, a flat periodic cell, mixed-up atoms."""
        owner = self.structure_of_atom
        if self.n_atoms and not bool((owner.diff() >= 0).all() & (owner[0] >= 0) & (owner[-1] < self.n_structures)):
            raise InputError(
                f"structure_of_atom must not decrease and lie in [0, {self.n_structures}); "
                "order the atoms by structure, or build the batch with Structure.concatenate."
            )
        for name in ("positions", "cell"):
            finite = torch.isfinite(getattr(self, name))
            if not bool(finite.all()):
                bad = (~finite).nonzero()[0].tolist()
                raise InputError(
                    f"{name} must be finite numbers, but {name}{bad} is NaN or infinite; "
                    "check the file or the step that produced this structure."
                )
        directions = self.cell.double() / self.cell.double().norm(dim=-1, keepdim=True).clamp_min(1e-300)
        # The Gram determinant of the periodic directions: slabs and wires need no third vector, whichever axis is open.
        both = self.pbc[:, :, None] & self.pbc[:, None, :]
        gram = torch.where(both, directions @ directions.transpose(1, 2), torch.eye(3, device=both.device).double())
        flat = torch.linalg.det(gram) < 1e-12
        flat = flat | ((self.cell.norm(dim=-1) < 1e-6) & self.pbc).any(dim=1)
        if bool(flat.any()):
            b = int(flat.nonzero()[0])
            raise InputError(
                f"cell of structure {b} has no volume ({self.cell[b].tolist()} Å) although it is periodic; "
                "give three independent lattice vectors or set pbc=False."
            )


def complete_cell(cell: np.ndarray, pbc: np.ndarray, length: float) -> np.ndarray:
    """The cell [3, 3] with vectors of a length along open directions (not `pbc` [3]), normal to the periodic ones."""
    box = np.where(pbc[:, None], cell, 0.0)
    # The null space of the periodic vectors: rows of Vt beyond the rank are orthonormal and normal to all of them.
    box[~pbc] = np.linalg.svd(box)[2][int(pbc.sum()) :] * length
    return box


def reduce_cell(cell: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How a cell [3, 3], rows are its vectors, takes the form that OpenMM and the files of GROMACS and CHARMM expect.

    That form has a along x, b in the xy plane, and no vector longer along an earlier one than half of it.

    Returns:
        `steps` [3, 3], unimodular integers, and a proper `rotation` [3, 3]: the vectors `steps @ cell @ rotation` span
        the same lattice, rotated, and positions become `positions @ rotation`.
    """
    # Opposite vectors span the same lattice; a left-handed cell would need a reflection otherwise.
    steps = np.eye(3, dtype=int) * (1 if np.linalg.det(cell) > 0 else -1)
    q, r = np.linalg.qr((steps @ cell).T)
    signs = np.where(np.diag(r) < 0, -1.0, 1.0)
    rotation, box = q * signs, (r * signs[:, None]).T
    for row, column in ((2, 1), (2, 0), (1, 0)):
        # Exactly half, as in every primitive fcc cell, stays positive, whatever rounding says.
        count = math.ceil(box[row, column] / box[column, column] - 0.5 - 1e-9)
        box[row] -= count * box[column]
        steps[row] -= count * steps[column]
    return steps, rotation


def clip_to_reduced(box: np.ndarray) -> np.ndarray:
    """Remove rounding from a box that is reduced but for rounding: OpenMM compares without tolerance."""
    clipped = np.tril(box)
    for row, column in ((2, 1), (2, 0), (1, 0)):
        half = 0.5 * clipped[column, column]
        clipped[row, column] = np.clip(clipped[row, column], -half, half)
    return clipped


StructureLike = Structure | Atoms | Sequence[Atoms]
"""What can be computed: a batch, one `ase.Atoms`, or a sequence of them (which becomes one batch)."""


def as_structure(value: StructureLike) -> Structure:
    """The batch that a value stands for; an `InputError` names the type of anything else."""
    if isinstance(value, Structure):
        return value
    frames = [value] if isinstance(value, Atoms) else value
    if not isinstance(frames, Sequence) or not all(isinstance(frame, Atoms) for frame in frames):
        raise InputError(
            f"a structure is an snnp.Structure, an ase.Atoms or a list of these, not {type(value).__name__}; "
            "read a file with ase.io.read."
        )
    return Structure.from_ase(frames)
