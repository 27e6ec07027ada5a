"""Datasets: frames in a parquet file, looked at one by one, in slices, or in shuffled batches; never loaded whole.

    dataset = load_dataset("org/name", split="train")
    frame = dataset[3]                        # a Frame
    part = dataset[100:200]                   # a Dataset again: nothing is copied
    batches = dataset.batches(64, shuffle=0)  # each with structure, energy, forces, stress

What is not enough can be handed on: `to_ase()`, `to_hf()`, `write("train.xyz")`.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import torch
from torch import Tensor

from snnp.data.frames import Frame, Frames
from snnp.data.storage.atoms import to_atoms
from snnp.data.storage.parquet import MemorySource, Source
from snnp.data.write import write_frames
from snnp.errors import DataError, MissingDependencyError, near_matches
from snnp.structure import Structure

if TYPE_CHECKING:
    from ase import Atoms

__all__ = ["Batch", "Dataset"]

_BUFFER = 16  # row groups that are shuffled together: 131,072 small molecules


@dataclass(frozen=True)
class Batch:
    """B frames with N atoms in all, for a training step.

    Arguments:
        structure: the frames as one batch.
        energy: [B] float64 eV; NaN where a frame has none, likewise below.
        forces: [N, 3] eV/Å.
        stress: [B, 3, 3] eV/Å³; NaN also where a frame is not fully periodic.
        rows: [B] int64, which rows of the dataset these are.
    """

    structure: Structure
    energy: Tensor
    forces: Tensor
    stress: Tensor
    rows: Tensor


class Dataset:
    """A view on the frames of a source, in any order; slices are views again.

    Arguments:
        source: a `ParquetSource`, or blocks in memory.
        rows: [n] int64, rows of the source.
        split: name of the split that these rows are, or None.
    """

    def __init__(self, source: Source, rows: np.ndarray, split: str | None = None) -> None:
        self._source, self._rows, self.split = source, rows, split
        self._starts = np.concatenate([[0], np.cumsum(source.sizes)])

    def __len__(self) -> int:
        return len(self._rows)

    def __repr__(self) -> str:
        split = "" if self.split is None else f", split={self.split!r}"
        return f"Dataset({self._source.name!r}, {len(self):,} frames{split}, method={self.method!r})"

    @property
    def name(self) -> str:
        """Name of the file, or of what was read."""
        return self._source.name

    @property
    def method(self) -> str:
        """Level of theory; "" if the file does not say."""
        return self._source.method

    @property
    def software(self) -> str:
        """Program that computed the labels; "" if the file does not say."""
        return self._source.software

    @property
    def splits(self) -> dict[str, int]:
        """Frames of each split of the whole source; {"": all} where it has none."""
        return {name: len(rows) for name, rows in self._source.rows_of_splits().items()}

    @overload
    def __getitem__(self, index: int) -> Frame: ...

    @overload
    def __getitem__(self, index: slice | Sequence[int] | np.ndarray) -> Dataset: ...

    def __getitem__(self, index: int | slice | Sequence[int] | np.ndarray) -> Frame | Dataset:
        """A frame, or a view on a slice, on a list of rows, or on those where a mask is True."""
        if isinstance(index, int | np.integer):
            if not -len(self) <= index < len(self):
                raise IndexError(f"{self.name} has {len(self):,} frames, there is none at {index}")
            row = int(self._rows[index])
            group = int(np.searchsorted(self._starts, row, side="right")) - 1
            first = row - int(self._starts[group])
            return self._source.chunk(group)[first : first + 1].checked()[0]
        chosen = index if isinstance(index, slice) else np.asarray(index)
        if isinstance(chosen, np.ndarray) and chosen.size == 0:
            chosen = chosen.astype(np.int64)
        return Dataset(self._source, self._rows[chosen], self.split)

    def __iter__(self) -> Iterator[Frame]:
        for frames in self.chunks():
            yield from frames.checked()

    def select(self, split: str) -> Dataset:
        """The frames of a split.

        Raises:
            DataError: lists the splits that there are.
        """
        known = self._source.rows_of_splits()
        if split not in known:
            listing = ", ".join(f"{name} ({len(rows):,})" for name, rows in known.items() if name) or "none"
            raise DataError(f"{self.name} has no split {split!r}; it has: {listing}.{near_matches(split, known)}")
        rows = known[split]
        if len(self) != self._starts[-1]:
            rows = self._rows[np.isin(self._rows, rows)]
        return Dataset(self._source, rows, split)

    def chunks(self, shuffle: int | Sequence[int] | None = None, *, buffer: int = _BUFFER) -> Iterator[Frames]:
        """All frames as the file has them, some row groups at a time: for training `chunk.checked()`.

        Arguments:
            shuffle: seed, or several numbers that make one, such as seed and epoch; None: in order.
            buffer: row groups that are shuffled together.
        """
        return (frames for frames, _ in self._pieces(shuffle, buffer))

    def batches(
        self,
        size: int = 64,
        *,
        max_atoms: int | None = None,
        shuffle: int | None = None,
        dtype: torch.dtype = torch.float64,
        buffer: int = _BUFFER,
    ) -> Iterator[Batch]:
        """Batches of frames, read as they are needed.

        Arguments:
            size: most frames in one.
            max_atoms: most atoms in one, except where a single frame has more; None: any number.
            shuffle: seed; the same seed gives the same batches, in memory or from a file. None: in order.
            dtype: of positions, cells and forces.
            buffer: row groups that are shuffled together (their order is shuffled, too). What memory is needed grows
                with it: two copies of so many row groups.

        Raises:
            DataError: for NaN or infinite coordinates.
        """
        if size < 1 or buffer < 1 or (max_atoms is not None and max_atoms < 1):
            raise DataError(f"size={size}, buffer={buffer} and max_atoms={max_atoms} must be at least 1.")
        for frames, rows in self._pieces(shuffle, buffer, texts=False):
            for first, last in _cuts(frames.counts, size, max_atoms):
                yield _batch(frames[first:last], rows[first:last], dtype)

    def _pieces(
        self, seed: int | Sequence[int] | None, buffer: int, texts: bool = True
    ) -> Iterator[tuple[Frames, np.ndarray]]:
        """Frames in order, or in an order for training, with the rows that they are."""
        groups = np.searchsorted(self._starts, self._rows, side="right") - 1
        if seed is None:
            cuts = [0, *(np.flatnonzero(np.diff(groups)) + 1).tolist(), len(groups)]
            for first, last in pairwise(cuts if len(groups) else []):
                group = int(groups[first])
                frames = _cut(self._source.chunk(group, texts), self._rows[first:last] - self._starts[group])
                yield frames, np.arange(first, last)
            return
        random = np.random.default_rng(seed)
        order = np.argsort(groups, kind="stable")
        used, firsts = np.unique(groups[order], return_index=True)
        lasts = np.append(firsts[1:], len(order))
        shuffled = random.permutation(len(used))
        for start in range(0, len(shuffled), buffer):
            members = shuffled[start : start + buffer]
            mine = [order[firsts[k] : lasts[k]] for k in members]
            parts = [
                _cut(self._source.chunk(int(used[k]), texts), self._rows[rows] - self._starts[used[k]])
                for k, rows in zip(members, mine, strict=True)
            ]
            joined, rows = Frames.concatenate(parts), np.concatenate(mine)
            permutation = random.permutation(len(rows))
            yield joined.take(permutation), rows[permutation]

    def frames(self) -> Frames:
        """All frames in memory, fit for training.

        Raises:
            DataError: for NaN, or a structure that nothing can be computed of; names the frame.
        """
        return Frames.concatenate([frames.checked() for frames in self.chunks()])

    def in_memory(self) -> Dataset:
        """The same frames in the same groups, all unpacked: batches are the same, and come faster."""
        groups = np.searchsorted(self._starts, self._rows, side="right") - 1
        kept = np.unique(groups).tolist()
        blocks = [self._source.chunk(group) for group in kept]
        starts = np.concatenate([[0], np.cumsum([len(block) for block in blocks])])

        def moved(rows: np.ndarray) -> np.ndarray:
            group = np.searchsorted(self._starts, rows, side="right") - 1
            inside = np.isin(group, kept)
            return rows[inside] - self._starts[group[inside]] + starts[np.searchsorted(kept, group[inside])]

        splits = {split: moved(rows) for split, rows in self._source.rows_of_splits().items()}
        source = MemorySource(blocks, self.name, splits, self.method, self.software)
        return Dataset(source, moved(self._rows), self.split)

    def to_ase(self) -> list[Atoms]:
        """All frames as `ase.Atoms`, with everything that they say."""
        return [atoms for frames in self.chunks() for atoms in to_atoms(frames)]

    def to_hf(self) -> Any:
        """These rows as a `datasets.Dataset` of Hugging Face, with all columns of the file.

        Raises:
            MissingDependencyError: without the package `datasets`.
            DataError: for frames in memory; write them into a file first.
        """
        try:
            library: Any = importlib.import_module("datasets")
        except ImportError:
            library = None
        if not hasattr(library, "Dataset"):  # a folder of that name, beside which Python was started, has none
            raise MissingDependencyError(
                "the Hugging Face library is needed for this; install it with: pip install 'snnp[datasets]'."
            )
        if self._source.path is None:
            raise DataError("frames in memory have no columns to hand over; write('file.parquet') and load that.")
        whole = library.Dataset.from_parquet(str(self._source.path))
        return whole if np.array_equal(self._rows, np.arange(len(whole))) else whole.select(self._rows.tolist())

    def write(self, path: str | Path) -> Path:
        """Write all frames as extended XYZ (.xyz, .extxyz) or parquet (.parquet); nothing is lost.

        Raises:
            DataError: for another ending.
        """
        pieces = ((self.split or "train", frames) for frames in self.chunks())
        write_frames(pieces, path, self.method or "unknown", self.software)
        return Path(path)


def _cut(block: Frames, rows: np.ndarray) -> Frames:
    """Rows of a block; without a copy where they are consecutive."""
    if len(rows) and rows[-1] - rows[0] == len(rows) - 1 and (np.diff(rows) == 1).all():
        return block[int(rows[0]) : int(rows[-1]) + 1]
    return block.take(rows)


def _cuts(counts: np.ndarray, size: int, max_atoms: int | None) -> Iterator[tuple[int, int]]:
    """Where batches begin and end."""
    if max_atoms is None:
        yield from ((first, min(first + size, len(counts))) for first in range(0, len(counts), size))
        return
    first = atoms = 0
    for row, count in enumerate(counts.tolist()):
        if row > first and (row - first == size or atoms + count > max_atoms):
            yield first, row
            first, atoms = row, 0
        atoms += count
    if first < len(counts):
        yield first, len(counts)


def _batch(block: Frames, rows: np.ndarray, dtype: torch.dtype) -> Batch:
    structure = block.structure(dtype)
    structure.check()
    stress = 0.5 * (block.stress + block.stress.transpose(0, 2, 1))
    stress[~block.pbc.all(axis=1)] = np.nan
    return Batch(
        structure=structure,
        energy=torch.from_numpy(np.array(block.energy)),
        forces=torch.from_numpy(np.array(block.forces)).to(dtype),
        stress=torch.from_numpy(stress).to(dtype),
        rows=torch.from_numpy(np.asarray(rows, dtype=np.int64)),
    )
