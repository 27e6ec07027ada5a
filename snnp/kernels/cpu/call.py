"""Energies, forces and virials of an s-NNP from compiled code on the CPU, and the neighbour lists that it reads."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from snnp.errors import InputError
from snnp.kernels.cpu.library import MAX_DEGREE, MAX_LAYERS, Pairs, Report, System, addresses, library, refusal
from snnp.kernels.parameters import SplineParameters
from snnp.neighbours import find_pairs
from snnp.structure import Structure

__all__ = ["ListKeeper", "NeighbourRows", "PreparedCall", "pack_pairs", "supports"]

Array = NDArray[np.float64]
_Columns = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int32]]

_MOST_IMAGES = 32768  # numbered without looking which occur; atoms that diffused by ten cells stay below


@dataclass(frozen=True)
class NeighbourRows:
    """Neighbours in rows: entry e of atom i is atom `neighbour[e]` in the periodic image `image[e]`."""

    first: NDArray[np.int64]  # [N + 1] start of each row
    neighbour: NDArray[np.int32]  # [P]
    image: NDArray[np.int32]  # [P]
    shifts: Array  # [n_images, 3] lattice vectors of each image
    owner: NDArray[np.int64]  # [n_images] structure whose cell they mean

    def images(self, cell: Array) -> Array:
        """[n_images, 3] translations in Å for cells [B, 3, 3]."""
        if len(cell) == 1:
            return np.ascontiguousarray(self.shifts @ cell[0])
        if len(cell) == 0:  # no structures: a list that is empty, too
            return np.zeros_like(self.shifts)
        return np.ascontiguousarray(np.einsum("ka,kab->kb", self.shifts, cell[self.owner]))


def pack_pairs(
    pairs: _Columns, n_atoms: int, *, half: bool = False, structure: NDArray[np.int32] | None = None
) -> NeighbourRows:
    """Sort pairs (i [P], j [P], shift [P, 3]) into rows; a half list is entered in both directions."""
    lib = library()
    assert lib is not None
    i, j = (np.ascontiguousarray(column, dtype=np.int64) for column in pairs[:2])
    shift = np.ascontiguousarray(pairs[2], dtype=np.int32).reshape(-1, 3)
    reach = np.abs(shift).max(axis=0, initial=0).astype(np.int64)
    if float(np.prod(2.0 * reach + 1.0)) > _MOST_IMAGES:
        return _pack_by_sorting((i, j, shift), n_atoms, half, structure)
    n_entries = len(i) * (2 if half else 1)
    first = np.empty(n_atoms + 1, np.int64)
    neighbour, image = np.empty(n_entries, np.int32), np.empty(n_entries, np.int32)
    given, places = addresses(i, j, shift, structure), addresses(first, neighbour, image)
    call = Pairs(n_atoms, len(i), int(half), *given, (ctypes.c_int64 * 3)(*reach.tolist()), *places)
    lib.snnp_pack_list(ctypes.byref(call))
    axes = [np.arange(-r, r + 1, dtype=np.float64) for r in reach.tolist()]
    shifts = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
    n_structures = 1 if structure is None or not len(structure) else int(structure[-1]) + 1
    owner = np.repeat(np.arange(n_structures), len(shifts))
    return NeighbourRows(first, neighbour, image, np.tile(shifts, (n_structures, 1)), owner)


def _pack_by_sorting(pairs: _Columns, n_atoms: int, half: bool, structure: NDArray[np.int32] | None) -> NeighbourRows:
    """As `pack_pairs`, numbering only the images that occur, as atoms flung apart need it; slower."""
    i, j, shift = pairs
    if half:
        i, j, shift = np.concatenate([i, j]), np.concatenate([j, i]), np.concatenate([shift, -shift])
    order = np.argsort(i, kind="stable")
    owners = np.zeros(len(i), np.int64) if structure is None else structure[i[order]].astype(np.int64)
    found, image = np.unique(np.column_stack([owners, shift[order]]), axis=0, return_inverse=True)
    first = np.concatenate([[0], np.cumsum(np.bincount(i, minlength=n_atoms))]).astype(np.int64)
    columns = j[order].astype(np.int32), image.reshape(-1).astype(np.int32)
    return NeighbourRows(first, *columns, found[:, 1:].astype(np.float64), found[:, 0])


class _Kept(NamedTuple):
    """A list, atoms and cell as it was built, and the cell that `images` belong to; nothing in it changes."""

    list: NeighbourRows
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

    `cutoff` and `skin` in Å; a skin of zero rebuilds whenever something moves. Threads may share it: each call gets a
    list that is right for its own arguments. `n_builds` counts how often one was built.
    """

    def __init__(self, cutoff: float, skin: float = 0.5) -> None:
        if not skin >= 0.0:
            raise InputError(f"skin must not be negative, got {skin} Å.")
        self.cutoff, self.skin, self.n_builds = float(cutoff), float(skin), 0
        self._kept: _Kept | None = None

    def update(self, positions: Array, cell: Array, pbc: tuple[bool, bool, bool]) -> tuple[NeighbourRows, Array]:
        """The list and the translations of its images (both the same objects while nothing about them changed).

        Positions [N, 3], contiguous float64, and cell [3, 3] in Å; `InputError` where they are not finite or flat.
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
        allowed = self.skin
        strain: Array | None = None
        if not (same_cell and kept.cell is kept.built_cell):
            if abs(np.linalg.det(kept.built_cell)) < 1e-6:
                return False
            strain = np.ascontiguousarray(np.linalg.solve(kept.built_cell, cell))
            allowed = float(np.linalg.svd(strain, compute_uv=False)[-1]) * (self.cutoff + self.skin) - self.cutoff
        if not allowed >= 0.0:
            return False
        places = positions.ctypes.data, kept.positions.ctypes.data, None if strain is None else strain.ctypes.data
        moved = lib.snnp_largest_move(len(positions), *places)
        return bool(4.0 * moved <= allowed**2)  # False for NaN: building names the atom

    def _build(self, positions: Array, cell: Array, pbc: tuple[bool, bool, bool]) -> _Kept:
        n = len(positions)
        owner, numbers = torch.zeros(n, dtype=torch.int64), torch.ones(n, dtype=torch.int64)
        where = torch.from_numpy(positions), torch.from_numpy(cell)[None], torch.tensor([pbc])
        Structure(numbers, *where, owner).check()
        i, j, shift = np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros((0, 3), np.int32)
        if n:
            i, j, shift = find_pairs(positions, cell, np.array(pbc), self.cutoff + self.skin, half=True)
        packed, built_cell = pack_pairs((i, j, shift), n, half=True), cell.copy()
        self.n_builds += 1
        return _Kept(packed, packed.images(built_cell[None]), positions.copy(), built_cell, built_cell, pbc)


def supports(parameters: SplineParameters) -> bool:
    """Whether the compiled code covers this form (very deep networks and degrees above 8 are left to torch)."""
    shallow = len(parameters.readout.weights) <= MAX_LAYERS and parameters.n_elements < 256
    return shallow and (parameters.evaluator == "spline" or parameters.degree <= MAX_DEGREE)


class PreparedCall:
    """An evaluation of one system, prepared once: then only positions change, and small systems cost microseconds.

    It does not change once made, so any number of threads may call it at once.

    Arguments:
        packed: the model, from `pack_parameters`; starts at a multiple of 64, and is checked at every evaluation.
        species: [N] int32, indices of elements. neighbours: the list. images: `neighbours.images(cell)`.
        n_threads: parts of the work; results repeat to the bit for the same number.
        structure: [N] int32, which of `n_structures` each atom belongs to; None for one.
    """

    def __init__(
        self,
        packed: NDArray[np.uint8],
        species: NDArray[np.int32],
        neighbours: NeighbourRows,
        images: Array,
        n_threads: int = 1,
        structure: NDArray[np.int32] | None = None,
        n_structures: int = 1,
    ) -> None:
        lib = library()
        assert lib is not None
        self._evaluate = lib.snnp_evaluate
        self._kept = (packed, species, neighbours, images, structure)  # alive as long as the pointers are used
        self._block = (*addresses(packed), packed.nbytes)
        self._n_atoms, self._n_structures = species.shape[0], n_structures
        rows = neighbours.first, neighbours.neighbour, neighbours.image
        given = addresses(species, structure, *rows, images)
        system = System(self._n_atoms, n_structures, images.shape[0], None, *given, None, n_threads)
        self._system = bytes(system)

    def __call__(
        self, positions: Array, *, weights: Array | None = None, forces: bool = True
    ) -> tuple[Array, Array | None, Array]:
        """Energies [N] eV (with E0), forces [N, 3] eV/Å or None, virial [B, 3, 3] eV (sum of r_ij (x) dE/dr_ij).

        Arguments:
            positions: [N, 3] contiguous float64, Å.
            weights: [N] or None: forces and virial become those of `sum_i weights_i E_i`.

        Raises `InputError` for overlapping atoms or NaN positions.
        """
        # Each call has its own: ctypes gives up the interpreter's lock while the kernel runs.
        system, report = System.from_buffer_copy(self._system), Report()
        n = self._n_atoms
        energies, virial = np.empty(n), np.empty((self._n_structures, 3, 3))
        out = np.empty((n, 3)) if forces else None
        places = addresses(positions, weights, energies, out, virial)
        system.positions, system.weights, system.energies, system.forces, system.virial = places
        if self._evaluate(*self._block, ctypes.byref(system), ctypes.byref(report)):
            raise refusal(report)
        return energies, out, virial
