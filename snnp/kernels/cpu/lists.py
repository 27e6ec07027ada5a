"""A neighbour list that follows moving atoms and a changing cell, in the layout of the CPU kernel."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from snnp.errors import InputError
from snnp.kernels.cpu.call import NativeList, pack_pairs
from snnp.kernels.cpu.library import library
from snnp.neighbours import find_pairs
from snnp.structure import Structure

__all__ = ["ListKeeper"]

Array = NDArray[np.float64]


class _Kept(NamedTuple):
    """A list, atoms and cell as it was built, and the cell that `images` belong to; nothing in it changes."""

    list: NativeList
    images: Array
    positions: Array
    built_cell: Array
    cell: Array
    pbc: tuple[bool, bool, bool]


class ListKeeper:
    """Keeps a list of all pairs within the cutoff, built with a skin and rebuilt only when it might miss one.

    When the cell has changed from h0 to h, atoms are first moved with it, by `A = h0^-1 h`; s is the smallest singular
    value of A. Pairs that were farther apart than cutoff + skin are then farther than s (cutoff + skin), and an atom
    that has moved by d besides can bring two of them closer by 2 d. So the list holds while

        2 d <= s (cutoff + skin) - cutoff.

    Arguments:
        cutoff: Å. skin: Å, zero rebuilds whenever something moves.

    Threads may share it: each call gets a list that is right for its own arguments. The attribute `n_builds` counts how
    often the list was built.
    """

    def __init__(self, cutoff: float, skin: float = 0.5) -> None:
        if not skin >= 0.0:
            raise InputError(f"skin must not be negative, got {skin} Å.")
        self.cutoff, self.skin, self.n_builds = float(cutoff), float(skin), 0
        self._kept: _Kept | None = None

    def update(self, positions: Array, cell: Array, pbc: tuple[bool, bool, bool]) -> tuple[NativeList, Array]:
        """The list and the translations of its images (both the same objects while nothing about them changed).

        Arguments:
            positions: [N, 3] contiguous float64, Å. cell: [3, 3] Å.

        Raises:
            InputError: for positions that are not finite, or a flat periodic cell.
        """
        kept = self._kept  # read once: another thread may replace it meanwhile
        same_cell = kept is not None and bool((cell == kept.cell).all())
        if kept is None or pbc != kept.pbc or not self._holds(kept, positions, cell, same_cell):
            self._kept = kept = self._build(positions, cell, pbc)
        elif not same_cell:
            now = cell.copy()
            self._kept = kept = kept._replace(cell=now, images=kept.list.images(now[None]))
        return kept.list, kept.images

    def _holds(self, kept: _Kept, positions: Array, cell: Array, same_cell: bool) -> bool:
        lib = library()
        assert lib is not None
        if positions.shape != kept.positions.shape:
            return False
        same_as_built = same_cell and kept.cell is kept.built_cell
        allowed, address = self.skin, None
        if not same_as_built:
            if abs(np.linalg.det(kept.built_cell)) < 1e-6:
                return False
            strain = np.ascontiguousarray(np.linalg.solve(kept.built_cell, cell))
            allowed = float(np.linalg.svd(strain, compute_uv=False)[-1]) * (self.cutoff + self.skin) - self.cutoff
            address = strain.ctypes.data
        if not allowed >= 0.0:
            return False
        moved = lib.snnp_largest_move(len(positions), positions.ctypes.data, kept.positions.ctypes.data, address)
        return bool(4.0 * moved <= allowed**2)  # False for NaN: building names the atom

    def _build(self, positions: Array, cell: Array, pbc: tuple[bool, bool, bool]) -> _Kept:
        n = len(positions)
        owner, numbers = torch.zeros(n, dtype=torch.int64), torch.ones(n, dtype=torch.int64)
        where = torch.from_numpy(positions), torch.from_numpy(cell)[None], torch.tensor([pbc])
        Structure(numbers, *where, owner).check()
        reach = self.cutoff + self.skin
        empty = (np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros((0, 3), np.int32))
        pairs = find_pairs(positions, cell, np.array(pbc), reach, half=True) if n else empty
        packed, built_cell = pack_pairs((pairs[0], pairs[1], pairs[2]), n, reach, half=True), cell.copy()
        self.n_builds += 1
        return _Kept(packed, packed.images(built_cell[None]), positions.copy(), built_cell, built_cell, pbc)
