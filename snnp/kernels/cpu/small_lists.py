"""Neighbour lists of many small structures by compiled code (`src/small_cells.h`)."""

from __future__ import annotations

import ctypes
import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from snnp.kernels.cpu.library import addresses, library

__all__ = ["LocalRows", "find_small"]

Array = NDArray[np.float64]
Whole = NDArray[np.int64]
_pointer, _int = ctypes.c_void_p, ctypes.c_int64


class LocalRows(NamedTuple):
    """Lists of B structures, one behind the other; atoms and images of each are numbered from 0."""

    lengths: Whole  # [N] entries of each atom
    neighbour: NDArray[np.int32]  # [P]
    image: NDArray[np.int32]  # [P]
    shifts: Array  # [K, 3] the images in cells, those of each structure behind one another
    n_images: Whole  # [B]


class _Cells(ctypes.Structure):
    """`snnp_small_cells`."""

    _fields_ = [
        *[(name, _int) for name in ("n_structures", "capacity")],
        ("reach", ctypes.c_double),
        *[(name, _pointer) for name in ("sizes", "positions", "boxes", "inverses", "periodic")],
        *[(name, _pointer) for name in ("lengths", "neighbour", "image", "shifts", "n_images")],
    ]


def find_small(
    positions: Array, sizes: Whole, boxes: Array, inverses: Array, pbc: NDArray[np.bool_], reach: float
) -> LocalRows | None:
    """All pairs closer than `reach` (Å); None where the library is missing or does not number so many images.

    Arguments:
        positions: [N, 3] Å, finite; sizes: [B], none zero; boxes: [B, 3, 3] Å, rows independent, those of open
            directions normal to the others; inverses: theirs; pbc: [B, 3].
    """
    lib = library()
    if lib is None or not hasattr(lib, "snnp_find_small"):  # the latter in a library left over from other sources
        return None
    lib.snnp_find_small.argtypes, lib.snnp_find_small.restype = [ctypes.POINTER(_Cells)], _int
    positions, boxes, inverses = (np.ascontiguousarray(x, np.float64) for x in (positions, boxes, inverses))
    sizes, periodic = np.ascontiguousarray(sizes, np.int64), np.ascontiguousarray(pbc, np.uint8)
    lengths, n_images = np.empty(len(positions), np.int64), np.empty(len(sizes), np.int64)
    given = addresses(sizes, positions, boxes, inverses, periodic)
    capacity = _estimate(sizes, boxes, pbc, reach)
    while True:
        neighbour, image, shifts = np.empty(capacity, np.int32), np.empty(capacity, np.int32), np.empty((capacity, 3))
        out = addresses(lengths, neighbour, image, shifts, n_images)
        found = int(lib.snnp_find_small(ctypes.byref(_Cells(len(sizes), capacity, reach, *given, *out))))
        if found < 0:
            return None
        if found <= capacity:
            return LocalRows(lengths, neighbour[:found], image[:found], shifts[: int(n_images.sum())], n_images)
        capacity = found


def _estimate(sizes: Whole, boxes: Array, pbc: NDArray[np.bool_], reach: float) -> int:
    """Entries to make room for: what the density says in crystals, all pairs elsewhere."""
    density = sizes / np.abs(np.linalg.det(boxes))
    crystal = 1.2 * sizes * density * 4.0 / 3.0 * math.pi * reach**3
    return int(np.where(pbc.all(axis=1), crystal, sizes * sizes).sum()) + 1000
