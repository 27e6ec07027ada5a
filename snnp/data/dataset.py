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
from functools import cached_property
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

    `energy` is [B] eV in float64, `forces` [N, 3] eV/Å, `stress` [B, 3, 3] eV/Å³, NaN where a frame has none, and
    stress also where it is not fully periodic; `rows` [B] says which rows of the dataset these are.
    """

    structure: Structure
    energy: Tensor
    forces: Tensor
    stress: Tensor
    rows: Tensor


class Dataset:
    """A view on the frames of a source, in any order; slices are views again.

    Arguments:
        source: a `ParquetSource`, or frames in memory; `name` is that of the file, `method` the level of theory and
            `software` the program that computed the labels, "" where the file does not say.
        rows: [n] int64, rows of the source.
        split: name of the split that these rows are, or None.
    """

    def __init__(self, source: Source, rows: np.ndarray, split: str | None = None) -> None:
        self._source, self._rows, self.split = source, rows, split
        self.name, self.method, self.software = source.name, source.method, source.software
        self._starts = np.concatenate([[0], np.cumsum(source.sizes)])

    @cached_property
    def _groups(self) -> np.ndarray:
        """[n] which group of the source each row lies in."""
        groups: np.ndarray = np.searchsorted(self._starts, self._rows, side="right") - 1
        return groups

    def __len__(self) -> int:
        return len(self._rows)

    def __repr__(self) -> str:
        split = "" if self.split is None else f", split={self.split!r}"
        return f"Dataset({self._source.name!r}, {len(self):,} frames{split}, method={self.method!r})"

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
            group = int(self._groups[index])
            row = int(self._rows[index] - self._starts[group])
            return self._source.chunk(group)[row : row + 1].checked()[0]
        if not isinstance(index, slice):
            index = np.asarray(index, dtype=None if len(index) else np.int64)
        return Dataset(self._source, self._rows[index], self.split)

    def __iter__(self) -> Iterator[Frame]:
        for frames in self.chunks():
            yield from frames.checked()

    def select(self, split: str) -> Dataset:
        """The frames of a split; the error lists the splits that there are."""
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

        `shuffle` is a seed, or several numbers that make one; None: in order. `buffer`: groups shuffled together.
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
        """Batches of frames, read as they are needed; refuses NaN or infinite coordinates.

        Arguments:
            size: most frames in one.
            max_atoms: most atoms in one, except where a single frame has more; None: any number.
            shuffle: seed; the same seed gives the same batches, in memory or from a file. None: in order.
            dtype: of positions, cells and forces.
            buffer: row groups that are shuffled together (their order is shuffled, too), of which two copies are kept.
        """
        if size < 1 or buffer < 1 or (max_atoms is not None and max_atoms < 1):
            raise DataError(f"size={size}, buffer={buffer} and max_atoms={max_atoms} must be at least 1.")
        for frames, rows in self._pieces(shuffle, buffer, texts=False):
            for piece in frames.pieces(max_atoms or np.inf, size):
                batch = frames[piece]
                structure = batch.structure(dtype)
                structure.check()
                stress = 0.5 * (batch.stress + batch.stress.transpose(0, 2, 1))
                stress[~batch.has_volume] = np.nan
                yield Batch(
                    structure=structure,
                    energy=torch.from_numpy(np.array(batch.energy)),
                    forces=torch.from_numpy(np.array(batch.forces)).to(dtype),
                    stress=torch.from_numpy(stress).to(dtype),
                    rows=torch.from_numpy(rows[piece].astype(np.int64)),
                )

    def _pieces(
        self, seed: int | Sequence[int] | None, buffer: int, texts: bool = True
    ) -> Iterator[tuple[Frames, np.ndarray]]:
        """Frames in order, or in an order for training, with the rows of this dataset that they are."""
        order = np.arange(len(self)) if seed is None else np.argsort(self._groups, kind="stable")
        runs = np.split(order, np.flatnonzero(np.diff(self._groups[order])) + 1) if len(self) else []
        if seed is None:
            yield from ((self._cut(rows, texts), rows) for rows in runs)
            return
        random = np.random.default_rng(seed)
        shuffled = random.permutation(len(runs))
        for start in range(0, len(runs), buffer):
            mine = [runs[k] for k in shuffled[start : start + buffer]]
            joined, rows = Frames.concatenate([self._cut(rows, texts) for rows in mine]), np.concatenate(mine)
            permutation = random.permutation(len(rows))
            yield joined.take(permutation), rows[permutation]

    def _cut(self, rows: np.ndarray, texts: bool) -> Frames:
        """The frames of rows that lie in one group; without a copy where they are consecutive."""
        group = int(self._groups[rows[0]])
        frames, rows = self._source.chunk(group, texts), self._rows[rows] - self._starts[group]
        if rows[-1] - rows[0] == len(rows) - 1 and (np.diff(rows) == 1).all():
            return frames[int(rows[0]) : int(rows[-1]) + 1]
        return frames.take(rows)

    def frames(self) -> Frames:
        """All frames in memory, fit for training; refuses what `Frames.checked` does."""
        return Frames.concatenate([frames.checked() for frames in self.chunks()])

    def in_memory(self) -> Dataset:
        """The same frames in the same groups, all unpacked: batches are the same, and come faster."""
        source = self._source
        groups = {group: source.chunk(group) for group in np.unique(self._groups).tolist()}
        about = (self.name, source.rows_of_splits(), self.method, self.software, source.sizes)
        return Dataset(MemorySource(groups, *about), self._rows, self.split)

    def to_ase(self) -> list[Atoms]:
        """All frames as `ase.Atoms`, with everything that they say."""
        return [atoms for frames in self.chunks() for atoms in to_atoms(frames)]

    def to_hf(self) -> Any:
        """These rows of a file, not of frames in memory, as a `datasets.Dataset` of Hugging Face, with all columns."""
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
        """Write all frames as extended XYZ (.xyz, .extxyz) or parquet (.parquet); nothing is lost."""
        pieces = ((self.split or "train", frames) for frames in self.chunks())
        write_frames(pieces, path, self.method or "unknown", self.software)
        return Path(path)
