"""Several models that share all but their readout: one encoding of the neighbours, many heads."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from snnp.kernels.cpu.call import NeighbourRows
from snnp.kernels.cpu.library import Report, System, addresses, aligned_bytes, library, pack_parameters, refusal
from snnp.kernels.parameters import SplineParameters

__all__ = ["PackedHeads", "PreparedHeads", "pack_heads"]

Array = NDArray[np.float64]


class _Heads(ctypes.Structure):
    """`snnp_heads`."""

    _fields_ = [
        ("n_heads", ctypes.c_int64),
        *[(name, ctypes.c_void_p) for name in ("plans", "bytes", "energies", "forces", "joint")],
        ("joint_bytes", ctypes.c_int64),
        *[(name, ctypes.c_void_p) for name in ("outputs", "offsets")],
    ]


@dataclass(frozen=True)
class PackedHeads:
    """Models that share all functions, packed; heads of at most one hidden layer also as one network.

    Arguments:
        plans: each model. joint: their mean, or None. outputs, offsets: from its readout to the heads.
    """

    plans: tuple[NDArray[np.uint8], ...]
    joint: NDArray[np.uint8] | None = None
    outputs: NDArray[np.uint8] | None = None
    offsets: Array | None = None


def pack_heads(
    parameters: Sequence[SplineParameters],
    plans: Sequence[NDArray[np.uint8]],
    dtype: type[np.float32] | type[np.float64],
) -> PackedHeads:
    """Join the readouts of packed models where they are shallow: M heads of 16 hidden units are one network of 16 M."""
    readouts = [each.readout for each in parameters]
    shallow = all(len(r.weights) in (0, 2) and r.embedding is None for r in readouts)
    if not shallow or not any(r.weights for r in readouts) or len({r.activation for r in readouts if r.weights}) > 1:
        return PackedHeads(tuple(plans))
    first, n_heads, n_elements = readouts[0], len(readouts), parameters[0].n_elements
    n_copies = max(r.n_copies for r in readouts)
    scales = [first.std / r.std for r in readouts]  # x of a head is scale * x of the first + shift
    shifts = [(first.mean - r.mean) / r.std for r in readouts]
    deep = [(m, r) for m, r in enumerate(readouts) if r.weights]

    def copies(values: Array) -> Array:
        return np.broadcast_to(values, (n_copies, *values.shape[1:]))

    inner = np.concatenate([copies(r.weights[0] * scales[m]) for m, r in deep], axis=1)  # [C, H, D]
    biases = np.concatenate([copies(r.biases[0] + r.weights[0] @ shifts[m]) for m, r in deep], axis=1)
    last = np.zeros((n_copies, n_heads, inner.shape[1]))
    begin = 0
    for m, r in deep:
        end = begin + r.weights[1].shape[2]
        last[:, m, begin:end] = copies(r.weights[1])[:, 0]
        begin = end
    linear = np.stack([r.linear * scales[m] for m, r in enumerate(readouts)], axis=1)  # [Z, M, D]
    offsets = np.stack([p.reference + p.readout.linear @ shift for p, shift in zip(parameters, shifts, strict=True)], 1)
    for m, r in deep:
        offsets[:, m] += np.broadcast_to(r.biases[1][:, 0], n_elements)
    joint = replace(
        first,
        weights=(inner, last.mean(axis=1, keepdims=True)),
        biases=(biases, np.zeros((n_copies, 1))),
        activation=deep[0][1].activation,
        linear=linear.mean(axis=1),
    )
    whole = replace(parameters[0], readout=joint, reference=offsets.mean(axis=1))
    outputs = np.concatenate([linear, np.broadcast_to(last, (n_elements, *last.shape[1:]))], axis=2).transpose(0, 2, 1)
    lanes = 64 // np.dtype(dtype).itemsize
    padded = np.pad(outputs, [(0, 0), (0, 0), (0, -n_heads % lanes)]).astype(dtype)
    block = aligned_bytes(padded.nbytes)
    block[:] = np.frombuffer(padded.tobytes(), np.uint8)
    return PackedHeads(tuple(plans), pack_parameters(whole, dtype), block, np.ascontiguousarray(offsets))


class PreparedHeads:
    """As `PreparedCall`, of M heads: their energies, the forces of their mean, and the forces of each if asked for.

    Arguments:
        packed: the models; all functions are taken from the first.
        species: [N] int32, indices of elements. neighbours: the list. images: `neighbours.images(cell)`.
        n_threads: parts of the work; results repeat to the bit for the same number.
        structure: [N] int32, which of `n_structures` each atom belongs to; None for one.
    """

    def __init__(
        self,
        packed: PackedHeads,
        species: NDArray[np.int32],
        neighbours: NeighbourRows,
        images: Array,
        n_threads: int = 1,
        structure: NDArray[np.int32] | None = None,
        n_structures: int = 1,
    ) -> None:
        lib = library()
        assert lib is not None
        self._evaluate = lib.snnp_evaluate_heads
        self._plans = np.array(addresses(*packed.plans), dtype=np.uint64)
        self._bytes = np.array([block.nbytes for block in packed.plans], dtype=np.int64)
        self._kept = (packed, species, neighbours, images, structure)  # alive as long as pointers are used
        joint = packed.joint
        self._joint = (*addresses(joint), 0 if joint is None else joint.nbytes)
        self._joint += tuple(addresses(packed.outputs, packed.offsets))
        self._n_atoms, self._n_structures = species.shape[0], n_structures
        rows = neighbours.first, neighbours.neighbour, neighbours.image
        given = addresses(species, structure, *rows, images)
        self._system = bytes(System(self._n_atoms, n_structures, images.shape[0], None, *given, None, n_threads))

    def __call__(
        self, positions: Array, *, forces: bool = True, each: bool = False
    ) -> tuple[Array, Array | None, Array, Array | None]:
        """Energies [M, N] eV with E0; forces [N, 3] or None and virial [B, 3, 3] of the mean; forces [M, N, 3] or None.

        Arguments:
            positions: [N, 3] contiguous float64, Å. each: whether the forces of every head are wanted, at the price of
                a way back through the functions for each.

        Raises:
            InputError: for overlapping atoms or NaN positions.
        """
        n, m = self._n_atoms, len(self._plans)
        system, report = System.from_buffer_copy(self._system), Report()
        energies, mean, virial = np.empty((m, n)), np.empty(n), np.empty((self._n_structures, 3, 3))
        out, apart = np.empty((n, 3)) if forces or each else None, np.empty((m, n, 3)) if each else None
        system.positions, system.energies, system.forces, system.virial = addresses(positions, mean, out, virial)
        heads = _Heads(m, *addresses(self._plans, self._bytes, energies, apart), *self._joint)
        if self._evaluate(ctypes.byref(heads), ctypes.byref(system), ctypes.byref(report)):
            raise refusal(report)
        return energies, out, virial, apart
