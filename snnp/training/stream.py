"""Training on a dataset larger than memory: its frames pass by, some row groups at a time, and few of them are kept.

What has to know the whole training part (E0, elements, ranges, checks, compressed structures, the scale of features,
its errors in the end) is told by a sample that one pass collects: frames drawn by the seed, all isolated atoms, and of
each element the frame of lowest energy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from snnp.data import Dataset, Frames, Split
from snnp.data.reference import are_isolated_atoms
from snnp.errors import DataError
from snnp.models.potential import Potential
from snnp.training.backends import Backend, Batch
from snnp.training.batches import grouped, prepare

__all__ = ["StreamedBatches", "divide_dataset"]

_SAMPLE_ATOMS = 100_000
_PIECE_ATOMS = 20_000
"""Prepared at once: neighbours take some hundred times the memory of the frames."""
_ROW_GROUPS = 4
"""Shuffled together."""

Inside = Callable[[Frames], np.ndarray]
"""[B] bool, which frames are within the limits of the data."""


def divide_dataset(dataset: Dataset, valid: float, test: float, seed: int, inside: Inside) -> tuple[Split, Dataset]:
    """Draw the rows of each part by the seed; returns the parts, of `train` a sample, and all rows of `train`.

    Arguments:
        valid, test: each a fraction of the frames, or a whole number of them.
        inside: limits of single frames.

    Raises:
        DataError: if nothing would be left to train on.
    """
    total, random = len(dataset), np.random.default_rng([seed, 3])
    n_valid, n_test = (int(part) if part >= 1 else max(1, round(part * total)) if part else 0 for part in (valid, test))
    if n_valid + n_test >= total:
        raise DataError(f"{n_valid} validation and {n_test} test frames leave nothing of {total} to train on.")
    drawn = np.split(random.permutation(total), [n_valid, n_valid + n_test])
    held, train = [dataset[np.sort(rows)].frames() for rows in drawn[:2]], dataset[np.sort(drawn[2])]
    # Isolated atoms fix E0, and are no test of anything.
    alone = [are_isolated_atoms(frames) for frames in held]
    atoms = [frames.take(which) for frames, which in zip(held, alone, strict=True)]
    held = [frames.take(~which) for frames, which in zip(held, alone, strict=True)]
    return Split(Frames.concatenate([_sample(train, random, inside), *atoms]), *held), train


def _sample(dataset: Dataset, random: np.random.Generator, inside: Inside) -> Frames:
    parts, share = list[Frames](), 1.0
    lowest: dict[str, tuple[float, Frames]] = {}
    for k, frames in enumerate(dataset.chunks()):
        if k == 0:
            share = _SAMPLE_ATOMS / (float(frames.counts.mean()) * len(dataset))
        drawn = random.random(len(frames)) < share
        frames, drawn = frames.take(good := inside(frames)), drawn[good]
        alone = are_isolated_atoms(frames)
        parts.append(frames.take(drawn | alone))
        energy = np.where(alone | ~frames.has_energy, np.inf, frames.energy / frames.counts)
        for symbol, count in zip(frames.elements, frames.composition().T, strict=True):
            row = np.flatnonzero(count)[energy[count > 0].argmin()]
            if symbol not in lowest or energy[row] < lowest[symbol][0]:
                lowest[symbol] = float(energy[row]), frames.take([row])
    found = Frames.concatenate([*parts, *(frame for _, frame in lowest.values())])
    _, first = np.unique(np.array(found.sources), return_index=True)
    return found.take(np.sort(first)).checked()


@dataclass(frozen=True)
class StreamedBatches:
    """The training part of a dataset, as `Batches` are, but prepared piece by piece in every epoch.

    Arguments:
        model: fixes the form, in float64 on the CPU; none that is trained.
        dataset: the rows of the training part. inside: which of its frames are learned.
        others: frames that are learned beside them, a share with each piece; tolerance: of these, see `Batch`.
    """

    backend: Backend
    model: Potential
    dataset: Dataset
    inside: Inside
    others: Frames
    tolerance: np.ndarray

    def epoch(self, seed: Sequence[int], batch_atoms: int) -> Iterator[tuple[float, Batch]]:
        """See `Batches`."""
        done, total = 0, len(self.dataset)
        random = np.random.default_rng([*seed, 1])
        others = random.permutation(len(self.others))
        for frames in self.dataset.chunks(shuffle=seed, buffer=_ROW_GROUPS):
            for rows in grouped(frames.counts, range(len(frames)), max(_PIECE_ATOMS, 20 * batch_atoms)):
                piece, share = frames[rows[0] : rows[-1] + 1], len(rows) / total
                piece = piece.take(self.inside(piece)).checked()
                mine = others[len(others) * done // total : len(others) * (done + len(rows)) // total]
                learned = Frames.concatenate([piece, self.others.take(mine)])
                if len(learned):
                    tolerance = np.concatenate([np.zeros(len(piece)), self.tolerance[mine]])
                    prepared = prepare(self.backend, self.model, learned, tolerance)
                    groups = prepared.groups(random.permutation(len(learned)), batch_atoms)
                    for k, group in enumerate(groups):
                        yield done / total + share * k / len(groups), prepared.batch(group)
                done += len(rows)
