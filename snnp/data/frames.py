"""Frames: reference structures with energies, forces and stresses, from the file to the batch of a training step.

frames = read_frames("train.xyz")          a `Frames`: few arrays, however many frames
frames[3], for frame in frames             a `Frame` at a time
frames[100:200], frames.take(rows)         `Frames` again
frames.structure(), frames.energy, ...     all of them as one batch
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, overload

import numpy as np
import torch
from ase.data import chemical_symbols

from snnp.errors import DataError, InputError
from snnp.neighbours import shortest_distances
from snnp.structure import Structure

__all__ = ["Frame", "Frames"]

_Rows = np.ndarray | Sequence[np.ndarray]
_PER_ATOM = ("numbers", "positions", "forces", "energies")
_TEXTS = ("sources", "groups", "extras")
_LABELS: dict[str, tuple[int, ...]] = {"energy": (), "forces": (3,), "stress": (3, 3), "energies": ()}
"""With the shape of what belongs to a frame, or to an atom of it."""


@dataclass(frozen=True)
class Frame:
    """One reference structure of N atoms in float64 with what is known about it; refuses wrong shapes and NaN.

    Arguments:
        energy: eV, or None; forces: [N, 3] eV/Å, or None; stress: [3, 3] eV/Å³, `dE/dstrain / V`, or None.
        group: kind of structure (`config_type`), or None.
        source: where it came from, as in "train.xyz#17"; unique within one data set.
        energies: [N] eV of each atom, as a teacher divides the energy, or None.
    """

    structure: Structure
    energy: float | None
    forces: np.ndarray | None
    stress: np.ndarray | None
    group: str | None
    source: str
    energies: np.ndarray | None = None

    def __post_init__(self) -> None:
        n = self.structure.n_atoms
        if self.structure.n_structures != 1 or n == 0:
            raise DataError(f"{self.source}: a frame holds one structure with atoms, got {n} atoms.")
        for name, shape in {"energy": (), "forces": (n, 3), "stress": (3, 3), "energies": (n,)}.items():
            value = getattr(self, name)
            if value is not None and np.shape(value) != shape:
                raise DataError(f"{self.source}: {name} has shape {np.shape(value)}, expected {shape} for {n} atoms.")
            if value is not None and not np.isfinite(value).all():
                raise DataError(f"{self.source}: {_NOT_FINITE.format(name)}")

    @property
    def n_atoms(self) -> int:
        """Number of atoms N."""
        return self.structure.n_atoms


_NOT_FINITE = "{} holds NaN or infinite numbers; remove or recompute this frame."


@dataclass(frozen=True, eq=False)
class Frames(Sequence[Frame]):
    """B frames with N atoms in all, with labels where there are any; refuses shapes that do not agree.

    What a file holds is kept as it is, damage included; `checked` gives what can be learned from.

    Arguments:
        counts: [B] int64, atoms per frame; numbers: [N] int32, atomic numbers; positions: [N, 3] Å.
        cell: [B, 3, 3] Å, rows are lattice vectors; zeros where there is none.
        pbc: [B, 3] bool.
        energy: [B] eV; NaN where `has_energy` is False.
        forces: [N, 3] eV/Å; NaN where `has_forces` is False.
        stress: [B, 3, 3] eV/Å³ in ASE's sign; NaN where `has_stress` is False.
        energies: [N] eV of each atom, as a teacher divides the energy; NaN where `has_energies` is False.
        has_energy, has_forces, has_stress, has_energies: [B] bool, what is known of each frame.
        sources: such as "train.xyz#17"; empty where text was not read.
        groups: kind of each frame, or None; empty likewise.
        extras: JSON of everything else that a frame says (see `snnp.data.storage.contents`), or None; empty likewise.
    """

    counts: np.ndarray
    numbers: np.ndarray
    positions: np.ndarray
    cell: np.ndarray
    pbc: np.ndarray
    energy: np.ndarray
    forces: np.ndarray
    stress: np.ndarray
    energies: np.ndarray
    has_energy: np.ndarray
    has_forces: np.ndarray
    has_stress: np.ndarray
    has_energies: np.ndarray
    sources: Sequence[str] = ()
    groups: Sequence[str | None] = ()
    extras: Sequence[str | None] = ()

    def __post_init__(self) -> None:
        b, n = len(self.counts), int(self.counts.sum())
        expected = {"numbers": (n,), "positions": (n, 3), "cell": (b, 3, 3), "pbc": (b, 3), "energy": (b,)}
        expected |= {"forces": (n, 3), "stress": (b, 3, 3), "energies": (n,)}
        expected |= {f"has_{name}": (b,) for name in _LABELS}
        for name, shape in expected.items():
            if getattr(self, name).shape != shape:
                raise DataError(
                    f"{name} of frames has shape {getattr(self, name).shape}, expected {shape} for {n} atoms in {b} "
                    "frames; the file is damaged or was not written by this program."
                )

    @staticmethod
    def of(frames: Iterable[Frame]) -> Frames:
        """Single frames put together; `Frames` pass through."""
        if isinstance(frames, Frames):
            return frames
        rows = list(frames)
        structures = [row.structure for row in rows]
        labels: dict[str, list[Any]] = {name: [getattr(row, name) for row in rows] for name in _LABELS}
        return Frames.join(
            numbers=[structure.numbers.numpy() for structure in structures],
            positions=[structure.positions.numpy() for structure in structures],
            cell=[structure.cell[0].numpy() for structure in structures],
            pbc=[structure.pbc[0].numpy() for structure in structures],
            **labels,
            sources=[row.source for row in rows],
            groups=[row.group for row in rows],
        )

    @staticmethod
    def join(*, numbers: _Rows, positions: _Rows, cell: _Rows, pbc: _Rows, **given: Any) -> Frames:
        """Frames of the values of each: atoms and cells, labels (None where one is not known), and texts."""
        counts, columns = [len(each) for each in numbers], dict[str, Any]()
        for name, shape in _LABELS.items():
            values = given.pop(name, None)
            values = [None] * len(counts) if values is None else values
            columns[f"has_{name}"] = np.array([each is not None for each in values], dtype=bool)
            if name in _PER_ATOM:
                rows = [np.full((n, *shape), np.nan) if e is None else e for n, e in zip(counts, values, strict=True)]
                columns[name] = np.concatenate([np.zeros((0, *shape)), *rows]).astype(np.float64)
            else:
                nothing = np.full(shape, np.nan) if shape else np.nan
                rows = [nothing if each is None else each for each in values]
                columns[name] = np.array(rows, dtype=np.float64).reshape(-1, *shape)
        return Frames(
            counts=np.array(counts, dtype=np.int64),
            numbers=np.concatenate([np.zeros(0, np.int32), *numbers]).astype(np.int32),
            positions=np.concatenate([np.zeros((0, 3)), *positions]),
            cell=np.array(cell, dtype=np.float64).reshape(-1, 3, 3),
            pbc=np.array(pbc, dtype=bool).reshape(-1, 3),
            **columns,
            **given,
        )

    @staticmethod
    def conformers(
        numbers: np.ndarray,
        positions: np.ndarray,
        energy: np.ndarray | None = None,
        forces: np.ndarray | None = None,
        cell: np.ndarray | None = None,
    ) -> Frames:
        """Frames of the same atoms: numbers [n], positions [B, n, 3] Å, energy [B] eV, forces [B, n, 3] eV/Å.

        `cell` is [B, 3, 3] Å of periodic frames; None: free molecules.
        """
        return Frames.join(
            numbers=[numbers] * len(positions),
            positions=positions,
            cell=np.zeros((len(positions), 3, 3)) if cell is None else cell,
            pbc=np.full((len(positions), 3), cell is not None),
            energy=energy,
            forces=forces,
        )

    def named(
        self,
        sources: Sequence[str],
        groups: Sequence[str | None] | None = None,
        extras: Sequence[str | None] | None = None,
    ) -> Frames:
        """The same frames with texts."""
        nothing = [None] * len(self)
        return replace(self, sources=sources, groups=nothing if groups is None else groups, extras=extras or nothing)

    @staticmethod
    def concatenate(parts: Sequence[Frames]) -> Frames:
        """Join frames in order; texts are kept where all parts have them."""
        if len(parts) == 1:
            return parts[0]
        if not parts:
            return Frames.of([])
        joined: dict[str, Any] = {}
        for name in Frames.__dataclass_fields__:
            columns = [getattr(part, name) for part in parts]
            if name not in _TEXTS:
                joined[name] = np.concatenate(columns)
            elif all(len(column) == len(part) for column, part in zip(columns, parts, strict=True)):
                joined[name] = [text for column in columns for text in column]
        return Frames(**joined)

    def __len__(self) -> int:
        return len(self.counts)

    @overload
    def __getitem__(self, index: int) -> Frame: ...

    @overload
    def __getitem__(self, index: slice) -> Frames: ...

    def __getitem__(self, index: int | slice) -> Frame | Frames:
        """One frame; or those of a slice, without copies of the arrays."""
        if not isinstance(index, slice):
            row = range(len(self))[index]
            one = self[row : row + 1]
            return Frame(
                structure=one.structure(),
                energy=float(one.energy[0]) if one.has_energy[0] else None,
                forces=one.forces.copy() if one.has_forces[0] else None,
                stress=one.stress[0].copy() if one.has_stress[0] else None,
                group=one.groups[0] if one.groups else None,
                source=one.sources[0] if one.sources else f"#{row}",
                energies=one.energies.copy() if one.has_energies[0] else None,
            )
        first, last, step = index.indices(len(self))
        if step != 1:
            return self.take(np.arange(len(self))[index])
        frames = slice(first, max(first, last))
        atoms = slice(int(self.starts[frames.start]), int(self.starts[frames.stop]))
        names = Frames.__dataclass_fields__
        return Frames(**{name: getattr(self, name)[atoms if name in _PER_ATOM else frames] for name in names})

    def take(self, rows: np.ndarray | Sequence[int]) -> Frames:
        """The frames of these rows, in this order, or those where a mask is True."""
        rows = np.asarray(rows)
        rows = np.flatnonzero(rows) if rows.dtype == bool else rows.astype(np.int64)
        counts = self.counts[rows]
        atoms = np.repeat(self.starts[rows] - np.cumsum(counts) + counts, counts) + np.arange(int(counts.sum()))
        chosen: dict[str, Any] = {}
        for name in Frames.__dataclass_fields__:
            values = getattr(self, name)
            if name in _TEXTS:
                chosen[name] = [values[row] for row in rows.tolist()] if len(values) else ()
            else:
                chosen[name] = values[atoms if name in _PER_ATOM else rows]
        return Frames(**chosen)

    @cached_property
    def starts(self) -> np.ndarray:
        """[B + 1] int64, the first atom of each frame."""
        return np.concatenate([[0], np.cumsum(self.counts)])

    @property
    def owner(self) -> np.ndarray:
        """[N] int64, the frame of each atom."""
        return np.repeat(np.arange(len(self)), self.counts)

    @property
    def has_volume(self) -> np.ndarray:
        """[B] bool, which frames are periodic in all directions; others have no stress."""
        periodic: np.ndarray = np.all(self.pbc, axis=1)
        return periodic

    @property
    def volume(self) -> np.ndarray:
        """[B] Å³, of the cell; NaN where `has_volume` is False."""
        return np.where(self.has_volume, np.abs(np.linalg.det(self.cell)), np.nan)

    @property
    def elements(self) -> tuple[str, ...]:
        """Chemical symbols that occur, sorted by atomic number."""
        return tuple(chemical_symbols[z] for z in np.unique(self.numbers).tolist())

    def composition(self) -> np.ndarray:
        """[B, Z] int64, atoms of each of the Z `elements` in each frame."""
        found, column = np.unique(self.numbers, return_inverse=True)
        places = self.owner * len(found) + column
        return np.bincount(places, minlength=len(self) * len(found)).reshape(len(self), len(found))

    def per_frame(self, values: np.ndarray, join: np.ufunc = np.add) -> np.ndarray:
        """[B, ...] of values [N, ...] of the atoms: their sum, or what `join` makes of them."""
        joined: np.ndarray = join.reduceat(values, self.starts[:-1])
        return joined

    def pieces(self, most_atoms: float, most_frames: int | None = None) -> Iterator[slice]:
        """Runs of successive frames, as many together as hold at most so many atoms (at least one)."""
        first = 0
        while first < len(self):
            last = int(np.searchsorted(self.starts, self.starts[first] + most_atoms, side="right")) - 1
            last = max(min(last, first + (most_frames or last)), first + 1)
            yield slice(first, last)
            first = last

    def shortest_distances(self, reach: float) -> np.ndarray:
        """[B] Å, between any two atoms of each frame closer than `reach`; infinite if none are."""
        parts = [shortest_distances(self[rows].structure(), reach).numpy() for rows in self.pieces(10_000)]
        return np.concatenate([np.zeros(0), *parts])

    def structure(self, dtype: torch.dtype = torch.float64) -> Structure:
        """All frames as one batch."""
        return Structure(
            numbers=torch.from_numpy(self.numbers.astype(np.int64)),
            positions=_tensor(self.positions).to(dtype),
            cell=_tensor(self.cell).to(dtype),
            pbc=_tensor(self.pbc),
            structure_of_atom=torch.from_numpy(self.owner),
        )

    def checked(self, broken: list[str] | None = None) -> Frames:
        """What can be learned from: stresses are symmetric, and left out where a frame has no volume.

        Refused are NaN and structures that nothing can be computed of, with an error that names the frame; where
        `broken` is given it gets a line for each of them, and the others are returned.
        """
        bad = []
        for row, text in self._faults():
            if broken is None:
                raise DataError(text)
            bad.append(row)
            broken.append(text)
        good = self.take(np.delete(np.arange(len(self)), bad)) if bad else self
        known = good.has_stress & good.has_volume
        stress = 0.5 * (good.stress + good.stress.transpose(0, 2, 1))
        return replace(good, stress=np.where(known[:, None, None], stress, np.nan), has_stress=known)

    def _faults(self) -> Iterator[tuple[int, str]]:
        """Row of each frame that must be refused, and why; all are looked at together, the bad ones found by halves."""
        try:
            self.structure().check()
            known = {"energy": self.has_energy, "forces": np.repeat(self.has_forces, self.counts)}
            known["stress"] = self.has_stress & self.has_volume
            known["energies"] = np.repeat(self.has_energies, self.counts)
            for name, where in known.items():
                if not np.isfinite(getattr(self, name)[where]).all():
                    raise DataError(_NOT_FINITE.format(name))
        except (DataError, InputError) as error:
            if len(self) == 1:
                yield 0, f"{self.sources[0] if self.sources else '#0'}: {error}"
                return
            half = len(self) // 2
            yield from self[:half]._faults()
            yield from ((half + row, text) for row, text in self[half:]._faults())


def _tensor(values: np.ndarray) -> torch.Tensor:
    """Shares memory where it can: what lies in a file cannot be written to, which torch insists on."""
    return torch.from_numpy(np.require(values, requirements=["C", "W"]))
