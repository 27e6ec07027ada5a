"""Energies, forces and virials of an s-NNP from compiled code on the CPU."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from snnp.errors import InputError
from snnp.kernels.library import Pairs, Report, System, library, status_message
from snnp.kernels.pack import MAX_DEGREE, MAX_LAYERS, pack_plan
from snnp.kernels.plan import SplinePlan

__all__ = ["NativeKernel", "NativeList", "NativeResult", "image_vectors", "pack_pairs", "supports"]

Array = NDArray[np.float64]


def supports(plan: SplinePlan) -> bool:
    """Whether the compiled code covers this form (very deep networks and degrees above 12 are left to torch)."""
    n_layers = len(plan.readout.weights)
    return n_layers <= MAX_LAYERS and plan.degree <= MAX_DEGREE and plan.n_elements < 256


@dataclass(frozen=True)
class NativeList:
    """Neighbours in rows: entry e of atom i is atom `neighbour[e]` in the periodic image `image[e]`.

    Arguments:
        first: [N + 1] int64, start of each row. neighbour, image: [P] int32.
        reach: images -reach .. reach along each lattice vector are numbered, for every structure.
        cutoff: Å, within which the list is complete.
    """

    first: NDArray[np.int64]
    neighbour: NDArray[np.int32]
    image: NDArray[np.int32]
    reach: tuple[int, int, int]
    cutoff: float

    @property
    def n_pairs(self) -> int:
        """Number of entries."""
        return int(self.first[-1])


def pack_pairs(
    pairs: tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int32]],
    n_atoms: int,
    cutoff: float,
    *,
    half: bool = False,
    structure: NDArray[np.int32] | None = None,
) -> NativeList:
    """Sort pairs (i [P], j [P], shift [P, 3]) into rows; a half list is entered in both directions.

    Raises:
        InputError: for more than 2^31 periodic images.
    """
    lib = library()
    assert lib is not None
    i, j = (np.ascontiguousarray(column, dtype=np.int64) for column in pairs[:2])
    shift = np.ascontiguousarray(pairs[2], dtype=np.int32).reshape(-1, 3)
    reach = np.abs(shift).max(axis=0, initial=0).tolist()
    n_structures = 1 if structure is None or not len(structure) else int(structure[-1]) + 1
    if n_structures * np.prod([2.0 * r + 1.0 for r in reach]) > 2**31 - 1:
        raise InputError(f"{n_structures} structures with images up to {reach} are too many; wrap the positions.")
    n_entries = len(i) * (2 if half else 1)
    first = np.empty(n_atoms + 1, np.int64)
    neighbour, image = np.empty(n_entries, np.int32), np.empty(n_entries, np.int32)
    call = Pairs(n_atoms, len(i), int(half), i.ctypes.data, j.ctypes.data, shift.ctypes.data)
    call.structure = None if structure is None else structure.ctypes.data
    call.reach = (ctypes.c_int64 * 3)(*reach)
    call.first, call.neighbour, call.image = first.ctypes.data, neighbour.ctypes.data, image.ctypes.data
    lib.snnp_pack_list(ctypes.byref(call))
    return NativeList(first, neighbour, image, (reach[0], reach[1], reach[2]), cutoff)


def image_vectors(reach: tuple[int, int, int], cell: Array) -> Array:
    """[B * images, 3] translations in Å of all numbered images, for cells [B, 3, 3]."""
    axes = [np.arange(-r, r + 1, dtype=np.float64) for r in reach]
    shifts = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
    return np.ascontiguousarray((shifts @ cell).reshape(-1, 3))


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

    def evaluate(
        self,
        positions: Array,
        species: NDArray[np.int32],
        neighbours: NativeList,
        images: Array,
        *,
        structure: NDArray[np.int32] | None = None,
        n_structures: int = 1,
        weights: Array | None = None,
        forces: bool = True,
        n_threads: int = 1,
    ) -> NativeResult:
        """One evaluation; arrays must be contiguous and of the types given.

        Arguments:
            positions: [N, 3] Å. species: [N] indices of elements. images: from `image_vectors`.
            structure: [N] of each atom, None for one structure.
            weights: [N] or None: forces and virial become those of `sum_i weights_i E_i`.

        Raises:
            InputError: for overlapping atoms or NaN positions.
        """
        lib = library()
        assert lib is not None
        n = positions.shape[0]
        energies = np.empty(n)
        out = np.empty((n, 3)) if forces else None
        virial = np.empty((n_structures, 3, 3))
        system = System(n, n_structures, images.shape[0], positions.ctypes.data, species.ctypes.data)
        system.structure = None if structure is None else structure.ctypes.data
        system.first, system.neighbour = neighbours.first.ctypes.data, neighbours.neighbour.ctypes.data
        system.image, system.images = neighbours.image.ctypes.data, images.ctypes.data
        system.weights = None if weights is None else weights.ctypes.data
        system.n_threads, system.energies = n_threads, energies.ctypes.data
        system.forces = None if out is None else out.ctypes.data
        system.virial = virial.ctypes.data
        report = Report()
        if lib.snnp_evaluate(self.packed.ctypes.data, self.packed.nbytes, ctypes.byref(system), ctypes.byref(report)):
            raise InputError(status_message(report))
        return NativeResult(energies, out, virial)
