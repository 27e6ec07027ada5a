"""Neighbour lists of many small structures at once, kept with a skin; each is rebuilt only when it needs to be.

For atoms i and j of one structure and steps s_0, s_1 along the first two lattice vectors, the images of j lie on a line
along the third vector c, and those within the reach R are known in closed form: with v = r_j - r_i + s_0 a + s_1 b,

    |s_2 - t| <= sqrt((R² - v² + t² c²) / c²),    t = -(v . c) / c².

So nothing is searched and next to nothing is thrown away, however small or skewed the cells are. A call for each
structure costs several times as much (docs/many.md).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from snnp.errors import InputError
from snnp.kernels.cpu.call import NeighbourRows
from snnp.kernels.cpu.small_lists import LocalRows, find_small
from snnp.neighbours import find_pairs
from snnp.structure import Structure

__all__ = ["Batch", "SmallCellLists", "UnfitError"]

Array = NDArray[np.float64]
Whole = NDArray[np.int64]

_SMALL = 64  # atoms: larger structures are searched one by one
_DENSE, _FAR = 5_000, 1e6  # neighbours of an atom, Å: beyond these the careful search says what is wrong, if anything
_SOON = 0.5  # of the way to its next rebuild: what has gone farther is rebuilt together with those that must be
_SPARSE = 4  # times as many numbers as entries may be counted through to number the images


class UnfitError(InputError):
    """Structures for which no list can be made; `reasons` by their number in the batch."""

    def __init__(self, reasons: dict[int, str]) -> None:
        super().__init__("; ".join(f"structure {b}: {reason}" for b, reason in reasons.items()))
        self.reasons = reasons


@dataclass(frozen=True)
class Batch:
    """Structures as arrays, one behind the other: positions [N, 3] Å, sizes [B], cells [B, 3, 3] Å, pbc [B, 3].

    No structure is empty, and open directions may have zero rows.
    """

    positions: Array
    sizes: Whole
    cells: Array
    pbc: NDArray[np.bool_]

    @property
    def starts(self) -> Whole:
        """[B] first atom of each structure."""
        return np.cumsum(self.sizes) - self.sizes

    def take(self, chosen: NDArray[np.bool_]) -> Batch:
        """The chosen structures [B]."""
        atoms = np.repeat(chosen, self.sizes)
        return Batch(self.positions[atoms], self.sizes[chosen], self.cells[chosen], self.pbc[chosen])


_Piece = tuple[NDArray[np.generic], ...]


def _pieces(rows: LocalRows, sizes: Whole) -> list[_Piece]:
    """The lists of each structure by itself, as views."""
    atoms = np.concatenate([[0], np.cumsum(sizes)])
    entries = np.concatenate([[0], np.cumsum(rows.lengths)])[atoms]
    images = np.concatenate([[0], np.cumsum(rows.n_images)])
    bounds = zip(pairwise(atoms.tolist()), pairwise(entries.tolist()), pairwise(images.tolist()), strict=True)
    return [
        (rows.lengths[a:b], rows.neighbour[c:d], rows.image[c:d], rows.shifts[e:f]) for (a, b), (c, d), (e, f) in bounds
    ]


def _joined(pieces: list[_Piece]) -> LocalRows:
    if not pieces:
        none = np.zeros(0, np.int64)
        return LocalRows(none, none.astype(np.int32), none.astype(np.int32), np.zeros((0, 3)), none)
    columns: list[Any] = [np.concatenate(column) for column in zip(*pieces, strict=True)]
    lengths, neighbour, image, shifts = columns
    return LocalRows(lengths, neighbour, image, shifts, np.array([len(piece[3]) for piece in pieces]))


def _boxes(batch: Batch) -> Array:
    """[B, 3, 3] cells whose open directions are replaced by vectors normal to the periodic ones."""
    boxes = np.where(batch.pbc[:, :, None], batch.cells, 0.0)
    boxes[~batch.pbc.any(axis=1)] = np.eye(3)
    for b in np.flatnonzero(batch.pbc.any(axis=1) & ~batch.pbc.all(axis=1)):
        boxes[b][~batch.pbc[b]] = np.linalg.svd(boxes[b])[2][int(batch.pbc[b].sum()) :]
    return boxes


def _check(batch: Batch, boxes: Array, reach: float) -> None:
    """Raise `UnfitError` for structures that cannot be searched."""
    lengths = np.linalg.norm(boxes, axis=2)
    volume = np.abs(np.linalg.det(boxes))
    sound = (volume > 1e-6 * lengths.prod(axis=1)) & (lengths > 1e-6).all(axis=1)
    flat = np.asarray(np.logical_not(sound), dtype=bool).reshape(-1)
    farthest = np.maximum.reduceat(np.abs(batch.positions).max(axis=1), batch.starts)
    crowded = batch.pbc.all(axis=1) & (batch.sizes * 4.0 / 3.0 * math.pi * reach**3 > _DENSE * volume)
    reasons = {}
    for b in np.flatnonzero(flat | ~(farthest < _FAR) | crowded).tolist():
        chosen = np.arange(len(batch.sizes)) == b
        one = batch.take(chosen)
        try:
            _structure(one).check()
            find_pairs(one.positions, one.cells[0], one.pbc[0], reach)
            if flat[b]:
                raise InputError(f"its cell of {volume[b]:.3g} Å³ is too flat; check its units (Å expected).")
        except InputError as error:
            reasons[b] = str(error)
    if reasons:
        raise UnfitError(reasons)


def _structure(batch: Batch) -> Structure:
    owner = torch.repeat_interleave(torch.from_numpy(batch.sizes))
    positions, cells, pbc = (
        torch.from_numpy(np.ascontiguousarray(x)) for x in (batch.positions, batch.cells, batch.pbc)
    )
    return Structure(torch.ones(len(owner), dtype=torch.int64), positions, cells, pbc, owner)


def _spread(counts: Whole) -> tuple[Whole, Whole]:
    """For counts [n]: which of them each of their sum stands for, and how many of the same stand before it."""
    which = np.repeat(np.arange(len(counts)), counts)
    return which, np.arange(len(which)) - np.repeat(np.cumsum(counts) - counts, counts)


def _search(batch: Batch, boxes: Array, reach: float) -> LocalRows:
    """All pairs of small structures; see the head of this module."""
    starts, owner = batch.starts, np.repeat(np.arange(len(batch.sizes)), batch.sizes)
    inverse: Array = np.linalg.inv(boxes).astype(np.float64)
    if (compiled := find_small(batch.positions, batch.sizes, boxes, inverse, batch.pbc, reach)) is not None:
        return compiled
    fractional = np.einsum("na,nab->nb", batch.positions, inverse[owner])
    widths = np.where(batch.pbc, reach * np.linalg.norm(inverse, axis=1), 0.0)  # in cells
    i, j = _spread(batch.sizes[owner])
    j += starts[owner[i]]
    # Lines: steps along the first two vectors.
    offset, width = (fractional[i] - fractional[j])[:, :2], widths[owner[i], :2]
    open_ones = ~batch.pbc[owner[i], :2]
    low = np.where(open_ones, 0.0, np.ceil(offset - width)).astype(np.int64)
    high = np.where(open_ones, 0.0, np.floor(offset + width)).astype(np.int64)
    counts = np.maximum(high - low + 1, 0)
    pair, number = _spread(counts.prod(axis=1))
    first, second = np.divmod(number, counts[pair, 1])
    first += low[pair, 0]
    second += low[pair, 1]
    b = owner[i[pair]]
    vector = (batch.positions[j] - batch.positions[i])[pair]
    vector += first[:, None] * boxes[b, 0] + second[:, None] * boxes[b, 1]
    # Points on them, of which there are none where the square is negative.
    along = boxes[b, 2]
    length2 = (along * along).sum(axis=1)
    middle = -(vector * along).sum(axis=1) / length2
    within, closed = (reach**2 - (vector * vector).sum(axis=1)) / length2, batch.pbc[b, 2]
    middle = np.where(closed, middle, 0.0)
    near = within + middle**2 >= 0.0
    half = np.where(closed, np.sqrt(np.maximum(within + middle**2, 0.0)), 0.0)
    third = np.ceil(middle - half).astype(np.int64)
    n_points = np.where(near, np.floor(middle + half).astype(np.int64) - third + 1, 0)
    n_points = np.maximum(n_points, 0)
    line, number = _spread(n_points)
    itself = (i == j)[pair] & (first == 0) & (second == 0)
    points = number + third[line]
    others = ~(itself[line] & (points == 0))
    line, points = line[others], points[others]
    lengths = np.bincount(i[pair[line]], minlength=len(owner))
    local = (j - starts[owner[i]]).astype(np.int32)[pair[line]]
    steps = np.column_stack([first[line], second[line], points])
    return LocalRows(lengths, local, *_number_images(steps, b[line], len(batch.sizes)))


def _number_images(steps: Whole, owner: Whole, n_structures: int) -> tuple[NDArray[np.int32], Array, Whole]:
    """Numbers [P] of the images that occur, within each structure; their shifts [K, 3], and how many it has [B]."""
    reach = np.zeros((n_structures, 3), np.int64)
    occurs = np.flatnonzero(np.bincount(owner, minlength=n_structures))
    begins = np.searchsorted(owner, occurs)
    if len(begins):
        reach[occurs] = np.maximum.reduceat(np.abs(steps), begins)
    sizes = 2 * reach + 1
    ends = np.cumsum(sizes.prod(axis=1))
    bases, size, centred = ends - sizes.prod(axis=1), sizes[owner], steps + reach[owner]
    key = bases[owner] + (centred[:, 0] * size[:, 1] + centred[:, 1]) * size[:, 2] + centred[:, 2]
    total = int(ends[-1]) if n_structures else 0
    if total <= _SPARSE * len(key) + 1_000_000:
        used = np.zeros(total, bool)
        used[key] = True
        found, number = np.flatnonzero(used), (np.cumsum(used) - 1)[key]
    else:  # atoms that have wandered far from each other
        found, number = np.unique(key, return_inverse=True)
    whose = np.searchsorted(ends, found, side="right")
    n_images = np.bincount(whose, minlength=n_structures)
    rest, last = np.divmod(found - bases[whose], sizes[whose, 2])
    shifts = np.column_stack([*np.divmod(rest, sizes[whose, 1]), last]) - reach[whose]
    before = np.cumsum(n_images) - n_images
    return (number - before[owner]).astype(np.int32), shifts.astype(np.float64), n_images


def _search_large(batch: Batch, reach: float) -> LocalRows:
    """One structure, through vesin."""
    i, j, shift = find_pairs(batch.positions, batch.cells[0], batch.pbc[0], reach)
    lengths = np.bincount(i, minlength=len(batch.positions))
    return LocalRows(
        lengths, j.astype(np.int32), *_number_images(shift.astype(np.int64), np.zeros(len(i), np.int64), 1)
    )


def find_rows(batch: Batch, reach: float) -> LocalRows:
    """Lists of all pairs closer than `reach` (Å). Raises `UnfitError`."""
    boxes = _boxes(batch)
    _check(batch, boxes, reach)
    small = batch.sizes <= _SMALL
    if small.all():
        return _search(batch, boxes, reach)
    few = batch.take(small)
    pieces = iter(_pieces(_search(few, boxes[small], reach), few.sizes) if small.any() else [])
    order = np.arange(len(small))
    found = [
        next(pieces) if small[b] else _pieces(_search_large(batch.take(order == b), reach), batch.sizes[b : b + 1])[0]
        for b in order
    ]
    return _joined(found)


class SmallCellLists:
    """Lists of all pairs within the cutoff for structures that move a little from call to call.

    A list holds while no atom can have come closer unseen: with the strain A of the cell since it was built and s, a
    lower bound of its smallest singular value, while 2 d <= s (cutoff + skin) - cutoff for the largest move d beside
    the strain (as in `snnp.kernels.cpu.call.ListKeeper`; here s = 1 - |A - 1|).

    Arguments:
        cutoff, skin: Å. n_builds counts the lists that were built.
    """

    def __init__(self, cutoff: float, skin: float) -> None:
        self.cutoff, self.skin, self.n_builds = float(cutoff), float(skin), 0
        self._built: Batch | None = None
        self._pieces: list[_Piece] = []
        self._whole: NeighbourRows | None = None

    def update(self, batch: Batch) -> NeighbourRows:
        """The lists of all structures as one; the same object while none was rebuilt. Raises `UnfitError`."""
        stale, built = np.ones(len(batch.sizes), bool), self._built
        if built is not None:
            used = self._used(built, batch)
            stale = ~(used <= 1.0)
            if stale.any():
                stale |= used > _SOON
        if stale.any():
            chosen = batch.take(stale)
            try:
                rows = find_rows(chosen, self.cutoff + self.skin)
            except UnfitError as error:
                numbers = np.flatnonzero(stale).tolist()
                raise UnfitError({numbers[b]: reason for b, reason in error.reasons.items()}) from None
            self._replace(batch, stale, _pieces(rows, chosen.sizes))
        if self._whole is None:
            self._whole = self._assemble(batch.sizes)
        return self._whole

    def keep(self, kept: NDArray[np.bool_]) -> None:
        """Forget all structures but those [B]."""
        if self._built is not None:
            self._built, self._whole = self._built.take(kept), None
            self._pieces = [self._pieces[b] for b in np.flatnonzero(kept)]

    def _used(self, built: Batch, batch: Batch) -> Array:
        """[B] how much of what a list allows is used up; more than 1, or NaN, where it does not hold."""
        allowed, reference = np.full(len(batch.sizes), self.skin), built.positions
        if not np.array_equal(built.cells, batch.cells):
            strain = np.linalg.solve(_boxes(built), np.where(batch.pbc[:, :, None], batch.cells, _boxes(built)))
            smallest = 1.0 - np.linalg.norm(strain - np.eye(3), axis=(1, 2))
            allowed = smallest * (self.cutoff + self.skin) - self.cutoff
            reference = np.einsum("na,nab->nb", reference, np.repeat(strain, batch.sizes, axis=0))
        moved = ((batch.positions - reference) ** 2).sum(axis=1)
        farthest = 2.0 * np.sqrt(np.maximum.reduceat(moved, batch.starts))
        return np.where(allowed > 0.0, farthest / np.where(allowed > 0.0, allowed, 1.0), np.inf)

    def _replace(self, batch: Batch, stale: NDArray[np.bool_], pieces: list[_Piece]) -> None:
        self.n_builds += len(pieces)
        self._whole = None
        # Of a part of a larger array, a view would keep the whole of it.
        new = iter([tuple(array.copy() for array in piece) for piece in pieces] if not stale.all() else pieces)
        if self._built is None or stale.all():
            self._built, self._pieces = (
                Batch(batch.positions.copy(), batch.sizes, batch.cells.copy(), batch.pbc),
                list(new),
            )
            return
        positions, cells, atoms = self._built.positions.copy(), self._built.cells.copy(), np.repeat(stale, batch.sizes)
        positions[atoms], cells[stale] = batch.positions[atoms], batch.cells[stale]
        self._built = Batch(positions, batch.sizes, cells, batch.pbc)
        for b in np.flatnonzero(stale).tolist():
            self._pieces[b] = next(new)

    def _assemble(self, sizes: Whole) -> NeighbourRows:
        rows = _joined(self._pieces)
        first = np.concatenate([[0], np.cumsum(rows.lengths)])
        atoms, images = np.cumsum(sizes) - sizes, np.cumsum(rows.n_images) - rows.n_images
        entries = np.diff(first[np.concatenate([[0], np.cumsum(sizes)])])
        neighbour = rows.neighbour + np.repeat(atoms.astype(np.int32), entries)
        image = rows.image + np.repeat(images.astype(np.int32), entries)
        return NeighbourRows(first, neighbour, image, rows.shifts, np.repeat(np.arange(len(sizes)), rows.n_images))
