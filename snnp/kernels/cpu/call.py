"""Energies, forces and virials of an s-NNP from compiled code on the CPU."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from snnp.errors import InputError
from snnp.kernels.cpu.library import Pairs, Report, System, library, status_message
from snnp.kernels.cpu.pack import HEADER_BYTES, MAX_DEGREE, MAX_LAYERS, pack_plan
from snnp.kernels.parameters import SplinePlan

__all__ = ["NativeKernel", "NativeList", "NativeResult", "PreparedCall", "pack_pairs", "supports"]

Array = NDArray[np.float64]

_MOST_IMAGES = 32768
"""Images numbered without looking which occur; atoms that diffused by ten cells stay below."""


def supports(plan: SplinePlan) -> bool:
    """Whether the compiled code covers this form (very deep networks and degrees above 8 are left to torch)."""
    shallow = len(plan.readout.weights) <= MAX_LAYERS and plan.n_elements < 256
    return shallow and (plan.evaluator == "spline" or plan.degree <= MAX_DEGREE)


@dataclass(frozen=True)
class NativeList:
    """Neighbours in rows: entry e of atom i is atom `neighbour[e]` in the periodic image `image[e]`.

    Arguments:
        first: [N + 1] int64, start of each row. neighbour, image: [P] int32.
        shifts: [n_images, 3] float64, lattice vectors of each image; owner: [n_images] structure whose cell they mean.
        cutoff: Å, within which the list is complete.
    """

    first: NDArray[np.int64]
    neighbour: NDArray[np.int32]
    image: NDArray[np.int32]
    shifts: Array
    owner: NDArray[np.int64]
    cutoff: float

    @property
    def n_pairs(self) -> int:
        """Number of entries."""
        return int(self.first[-1])

    def images(self, cell: Array) -> Array:
        """[n_images, 3] translations in Å for cells [B, 3, 3]."""
        if len(cell) == 1:
            return np.ascontiguousarray(self.shifts @ cell[0])
        if len(cell) == 0:  # no structures: a list that is empty, too
            return np.zeros_like(self.shifts)
        return np.ascontiguousarray(np.einsum("ka,kab->kb", self.shifts, cell[self.owner]))


def pack_pairs(
    pairs: tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int32]],
    n_atoms: int,
    cutoff: float,
    *,
    half: bool = False,
    structure: NDArray[np.int32] | None = None,
) -> NativeList:
    """Sort pairs (i [P], j [P], shift [P, 3]) into rows; a half list is entered in both directions."""
    lib = library()
    assert lib is not None
    i, j = (np.ascontiguousarray(column, dtype=np.int64) for column in pairs[:2])
    shift = np.ascontiguousarray(pairs[2], dtype=np.int32).reshape(-1, 3)
    n_structures = 1 if structure is None or not len(structure) else int(structure[-1]) + 1
    shifts, owner = _number_images(shift, n_structures)
    if shifts is None:
        return _pack_by_sorting((i, j, shift), n_atoms, cutoff, half, structure)
    n_entries = len(i) * (2 if half else 1)
    first = np.empty(n_atoms + 1, np.int64)
    neighbour, image = np.empty(n_entries, np.int32), np.empty(n_entries, np.int32)
    call = Pairs(n_atoms, len(i), int(half), _address(i), _address(j), _address(shift))
    call.structure = None if structure is None else _address(structure)
    call.reach = (ctypes.c_int64 * 3)(*(-shifts[0]).astype(int).tolist())
    call.first, call.neighbour, call.image = _address(first), _address(neighbour), _address(image)
    lib.snnp_pack_list(ctypes.byref(call))
    return NativeList(first, neighbour, image, shifts, owner, cutoff)


def _number_images(shift: NDArray[np.int32], n_structures: int) -> tuple[Array | None, NDArray[np.int64]]:
    """All shifts -reach .. reach for every structure, or None where there would be very many (atoms flung apart)."""
    reach = np.abs(shift).max(axis=0, initial=0)
    count = float(np.prod(2.0 * reach + 1.0))
    if count > _MOST_IMAGES:
        return None, np.zeros(0, np.int64)
    axes = [np.arange(-r, r + 1, dtype=np.float64) for r in reach.tolist()]
    shifts = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
    return np.tile(shifts, (n_structures, 1)), np.repeat(np.arange(n_structures), len(shifts))


def _pack_by_sorting(
    pairs: tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int32]],
    n_atoms: int,
    cutoff: float,
    half: bool,
    structure: NDArray[np.int32] | None,
) -> NativeList:
    """As `pack_pairs`, numbering only the images that occur; slower."""
    i, j, shift = pairs
    if half:
        i, j, shift = np.concatenate([i, j]), np.concatenate([j, i]), np.concatenate([shift, -shift])
    order = np.argsort(i, kind="stable")
    owners = np.zeros(len(i), np.int64) if structure is None else structure[i[order]].astype(np.int64)
    rows = np.column_stack([owners, shift[order]])
    found, image = np.unique(rows, axis=0, return_inverse=True)
    first = np.concatenate([[0], np.cumsum(np.bincount(i, minlength=n_atoms))])
    columns = first.astype(np.int64), j[order].astype(np.int32), image.reshape(-1).astype(np.int32)
    return NativeList(*columns, found[:, 1:].astype(np.float64), found[:, 0], cutoff)


@dataclass(frozen=True)
class NativeResult:
    """energies [N] eV (with E0), forces [N, 3] eV/Å or None, virial [B, 3, 3] eV (sum of r_ij (x) dE/dr_ij)."""

    energies: Array
    forces: Array | None
    virial: Array


class NativeKernel:
    """A packed model, ready to be evaluated.

    Arguments:
        plan: the model. dtype: np.float32 or np.float64, in which distances, moments and the network are computed;
            positions enter and sums of energies, forces and virials leave in float64.
    """

    def __init__(self, plan: SplinePlan, dtype: type[np.float32] | type[np.float64] = np.float32) -> None:
        self.cutoff = plan.cutoff
        self.n_elements = plan.n_elements
        self.packed = pack_plan(plan, dtype)

    @classmethod
    def from_packed(cls, packed: NDArray[np.uint8]) -> NativeKernel:
        """A kernel from the bytes of another, which must start at a multiple of 64; checked at every evaluation.

        Raises:
            InputError: if they are too few to be a packed model.
        """
        if packed.nbytes < HEADER_BYTES:
            raise InputError(f"a packed model has at least {HEADER_BYTES} bytes, got {packed.nbytes}.")
        kernel = cls.__new__(cls)
        kernel.packed = packed
        kernel.n_elements = int(packed[32:40].view(np.int64)[0])
        kernel.cutoff = float(packed[64:72].view(np.float64)[0])
        return kernel


class PreparedCall:
    """An evaluation of one system, prepared once: then only positions change, and small systems cost microseconds.

    It does not change once made, so any number of threads may call it at once.

    Arguments:
        kernel: the model. species: [N] int32, indices of elements.
        neighbours: the list. images: `neighbours.images(cell)`.
        n_threads: parts of the work; results repeat to the bit for the same number.
        structure: [N] int32, structure of each atom, or None for one.
        n_structures: how many there are.
    """

    def __init__(
        self,
        kernel: NativeKernel,
        species: NDArray[np.int32],
        neighbours: NativeList,
        images: Array,
        n_threads: int = 1,
        structure: NDArray[np.int32] | None = None,
        n_structures: int = 1,
    ) -> None:
        lib = library()
        assert lib is not None
        self._evaluate = lib.snnp_evaluate
        self._kept = (kernel, species, neighbours, images, structure)  # alive as long as the pointers are used
        self._plan = (_address(kernel.packed), kernel.packed.nbytes)
        self._n_atoms, self._n_structures = species.shape[0], n_structures
        system = System(self._n_atoms, n_structures, images.shape[0], None, _address(species), None)
        system.structure = None if structure is None else _address(structure)
        system.first, system.neighbour = _address(neighbours.first), _address(neighbours.neighbour)
        system.image, system.images, system.n_threads = _address(neighbours.image), _address(images), n_threads
        self._system = bytes(system)

    def __call__(self, positions: Array, *, weights: Array | None = None, forces: bool = True) -> NativeResult:
        """Evaluate at positions [N, 3] (contiguous float64, Å).

        Arguments:
            weights: [N] or None: forces and virial become those of `sum_i weights_i E_i`.

        Raises:
            InputError: for overlapping atoms or NaN positions.
        """
        # Each call has its own: ctypes gives up the interpreter's lock while the kernel runs.
        system, report = System.from_buffer_copy(self._system), Report()
        n = self._n_atoms
        energies, virial = np.empty(n), np.empty((self._n_structures, 3, 3))
        out = np.empty((n, 3)) if forces else None
        system.positions, system.energies, system.virial = _address(positions), _address(energies), _address(virial)
        system.forces = None if out is None else _address(out)
        system.weights = None if weights is None else _address(weights)
        if self._evaluate(*self._plan, ctypes.byref(system), ctypes.byref(report)):
            raise InputError(status_message(report))
        return NativeResult(energies, out, virial)


def _address(array: NDArray[Any]) -> int:
    # Several times faster than `array.ctypes.data`.
    return int(array.__array_interface__["data"][0])
