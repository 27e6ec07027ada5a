"""A neighbour list that follows moving atoms and a changing cell, in the layout of the CPU kernel."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from snnp.errors import InputError
from snnp.kernels.library import library
from snnp.kernels.native import NativeList, pack_pairs
from snnp.neighbours import find_pairs
from snnp.structure import Structure

__all__ = ["ListKeeper"]

Array = NDArray[np.float64]


class ListKeeper:
    """Keeps a list of all pairs within the cutoff, built with a skin and rebuilt only when it might miss one.

    When the cell has changed from h0 to h, atoms are first moved with it, by `A = h0^-1 h`; s is the smallest singular
    value of A. Pairs that were farther apart than cutoff + skin are then farther than s (cutoff + skin), and an atom
    that has moved by d besides can bring two of them closer by 2 d. So the list holds while

        2 d <= s (cutoff + skin) - cutoff.

    Arguments:
        cutoff: Å. skin: Å, zero rebuilds whenever something moves.

    The attribute `n_builds` counts how often the list was built.
    """

    def __init__(self, cutoff: float, skin: float = 0.5) -> None:
        if not skin >= 0.0:
            raise InputError(f"skin must not be negative, got {skin} Å.")
        self.cutoff, self.skin, self.n_builds = float(cutoff), float(skin), 0
        self._list: NativeList | None = None
        self._images = np.zeros((0, 3))
        self._positions, self._built_cell, self._cell = np.zeros((0, 3)), np.zeros((3, 3)), np.zeros((3, 3))
        self._pbc: tuple[bool, ...] = ()

    def update(self, positions: Array, cell: Array, pbc: tuple[bool, bool, bool]) -> tuple[NativeList, Array]:
        """The list and the translations of its images (both the same objects while nothing about them changed).

        Arguments:
            positions: [N, 3] contiguous float64, Å. cell: [3, 3] Å.

        Raises:
            InputError: for positions that are not finite, or a flat periodic cell.
        """
        same_cell = bool((cell == self._cell).all())
        if self._list is None or pbc != self._pbc or not self._holds(positions, cell, same_cell):
            self._build(positions, cell, pbc)
        elif not same_cell:
            self._cell = cell.copy()
            self._images = self._list.images(self._cell[None])
        assert self._list is not None
        return self._list, self._images

    def _holds(self, positions: Array, cell: Array, same_cell: bool) -> bool:
        lib = library()
        assert lib is not None
        if positions.shape != self._positions.shape:
            return False
        same_as_built = same_cell and self._cell is self._built_cell
        allowed, address = self.skin, None
        if not same_as_built:
            if abs(np.linalg.det(self._built_cell)) < 1e-6:
                return False
            strain = np.ascontiguousarray(np.linalg.solve(self._built_cell, cell))
            allowed = float(np.linalg.svd(strain, compute_uv=False)[-1]) * (self.cutoff + self.skin) - self.cutoff
            address = strain.ctypes.data
        if not allowed >= 0.0:
            return False
        moved = lib.snnp_largest_move(len(positions), positions.ctypes.data, self._positions.ctypes.data, address)
        return bool(4.0 * moved <= allowed**2)  # False for NaN: building names the atom

    def _build(self, positions: Array, cell: Array, pbc: tuple[bool, bool, bool]) -> None:
        n = len(positions)
        owner, numbers = torch.zeros(n, dtype=torch.int64), torch.ones(n, dtype=torch.int64)
        where = torch.from_numpy(positions), torch.from_numpy(cell)[None], torch.tensor([pbc])
        Structure(numbers, *where, owner).check()
        reach = self.cutoff + self.skin
        empty = (np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros((0, 3), np.int32))
        pairs = find_pairs(positions, cell, np.array(pbc), reach, half=True) if n else empty
        self._list = pack_pairs((pairs[0], pairs[1], pairs[2]), n, reach, half=True)
        self._positions, self._pbc = positions.copy(), pbc
        self._cell = self._built_cell = cell.copy()
        self._images = self._list.images(self._cell[None])
        self.n_builds += 1
