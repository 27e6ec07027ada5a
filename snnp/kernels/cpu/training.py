"""Energies and forces of a batch, and the gradient of a loss in all parameters: the two compiled passes of a step."""

from __future__ import annotations

import ctypes
import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from snnp.kernels.cpu.call import supports
from snnp.kernels.cpu.library import MAX_LAYERS, Report, addresses, aligned_bytes, library, pack_parameters, refusal
from snnp.kernels.parameters import SplineParameters, spline_table

__all__ = ["StoredPairs", "Tables", "TrainingBatch", "TrainingKernel", "supports_training"]

Array = NDArray[Any]
_pointer, _int = ctypes.c_void_p, ctypes.c_int64
_FEATURES, _PREDICT, _LEARN = range(3)
# Words of the packed header (see `src/plan.h`) where its parts begin, and words of a layer.
_RHO, _F, _EMBEDDING, _ANGLES, _READOUT, _LAYERS, _LAYER_WORDS = 26, 34, 58, 66, 68, 77, 7
_N_OFFSETS = 7 + 2 * MAX_LAYERS


class _Batch(ctypes.Structure):
    _fields_ = [
        *[(name, _int) for name in ("n_atoms", "n_structures", "n_threads")],
        *[(name, _pointer) for name in ("rows", "shift", "owner", "first", "neighbour", "species", "x", "y", "z", "r")],
    ]


class _Arrays(ctypes.Structure):
    _names = ("rho", "f", "embedding", "e", "p", "s", "features", "energies", "forces", "virial", "gradient")
    _fields_ = [(name, _pointer) for name in _names]


def supports_training(parameters: SplineParameters) -> bool:
    """Whether the passes cover this form; a pair term and angles as splines are left to torch."""
    covered = parameters.f.n_filters == 0 or parameters.evaluator == "legendre"
    return supports(parameters) and parameters.phi is None and covered


class StoredPairs(NamedTuple):
    """All pairs of many atoms: neighbours of atom k are the entries `first[k] .. first[k + 1]`, those that share radial
    functions and channel side by side, and these by distance."""

    first: NDArray[np.int64]  # [N + 1]
    neighbour: NDArray[np.int32]  # [P] index among the stored atoms
    species: NDArray[np.int32]  # [N]
    x: Array  # [P] of one float type: unit vectors
    y: Array
    z: Array
    r: Array  # Å


@dataclass(frozen=True)
class TrainingBatch:
    """Some of the stored atoms; neighbours of a chosen atom must be chosen, too."""

    pairs: StoredPairs
    rows: NDArray[np.int64]  # [n] their indices
    shift: NDArray[np.int64]  # [n] stored minus local index
    owner: NDArray[np.int32]  # [n] structure of each
    n_structures: int


@dataclass(frozen=True)
class Tables:
    """Parameters, or the gradient of a loss in them, in the kernel's layouts; views without the padding."""

    rho: Array  # [G, K, F] B-spline coefficients
    f: Array  # [G, K, F]
    legendre: Array  # [C, C, L + 1, F] of g for neighbours in two channels
    at_one: Array  # [C, F] g(1)
    linear: Array  # [Z, D]
    embedding: Array  # [G, K, F]
    weights: tuple[Array, ...]  # per layer [copies, in, out]
    biases: tuple[Array, ...]  # per layer [copies, out]


class TrainingKernel:
    """The passes for one form of model.

    `tables` are the parameters; they must be written before a pass, in a copy of the kernel, too.
    """

    def __init__(self, parameters: SplineParameters, dtype: type[np.float32] | type[np.float64]) -> None:
        lib = library()
        assert lib is not None
        self._parameters, self.dtype, self._packed = parameters, dtype, pack_parameters(parameters, dtype)
        words = self._packed[: (_LAYERS + MAX_LAYERS * _LAYER_WORDS) * 8].view(np.int64).tolist()
        offsets = np.zeros(_N_OFFSETS, np.int64)
        self._block = (*addresses(self._packed), self._packed.nbytes)
        refused = lib.snnp_gradient_layout(*self._block, *addresses(offsets))
        assert not refused
        self._offsets: list[int] = offsets.tolist()
        n_layers, copies = len(parameters.readout.weights), parameters.readout.n_copies
        # Of each layer n_in, n_out, in_stride, out_stride, and where both matrices and the bias begin.
        layers = [words[_LAYERS + k * _LAYER_WORDS :][:_LAYER_WORDS] for k in range(n_layers)]
        self._shapes, self._widths = self._layout(words, layers)
        rows = {"rho": self._shapes[0], "f": self._shapes[1], "embedding": self._shapes[5]}
        self._rows = {name: self._zeros(shape) for name, shape in rows.items()}
        places = [words[_ANGLES], words[_ANGLES + 1], words[_READOUT + 4]]
        shared = [self._in_block(place, shape) for place, shape in zip(places, self._shapes[2:5], strict=True)]
        arrays = [self._rows["rho"], self._rows["f"], *shared, self._rows["embedding"]]
        places = [place for layer in layers for place in (layer[4], layer[6])]
        arrays += [self._in_block(place, shape) for place, shape in zip(places, self._shapes[6:], strict=True)]
        self.tables = self._trimmed(arrays)
        # Second copies: weights as the way back reads them, and an embedding's polynomials.
        self._transposed = [self._in_block(layer[5], (copies, layer[1], layer[2])) for layer in layers]
        n_groups, n_segments, _, stride = words[_EMBEDDING : _EMBEDDING + 4]
        self._embedding = self._in_block(words[_EMBEDDING + 7], (n_groups, n_segments, 4, stride))
        self.n_features = words[_READOUT]
        self._mean, self._inverse_std = (self._in_block(words[_READOUT + k], (self.n_features,)) for k in (2, 3))

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies are made anew: views of another's memory, and its alignment, would be lost."""
        return TrainingKernel, (self._parameters, self.dtype)

    def _layout(self, words: list[int], layers: list[list[int]]) -> tuple[list[tuple[int, ...]], list[int]]:
        """Shapes with padding, and last axes without, of the parts of a gradient: those of `Tables`, layer by layer."""
        form = self._parameters
        n_f, stride = form.f.n_filters, words[_F + 3]
        channels = form.n_channels if stride else 0

        def rows(table: int) -> tuple[int, ...]:
            n_groups, n_segments, _, stride = words[table : table + 4]
            return n_groups, n_segments + 1, stride

        angular = (channels, channels, form.degree + 1, stride), (channels, stride)
        shapes = [rows(_RHO), rows(_F), *angular, (form.n_elements, words[_READOUT + 1]), rows(_EMBEDDING)]
        embedding = form.readout.embedding
        widths = [form.rho.n_filters, n_f, n_f, n_f, words[_READOUT], embedding.n_filters if embedding else 0]
        for n_in, n_out, _, out_stride, *_ in layers:
            shapes += [(form.readout.n_copies, n_in, out_stride), (form.readout.n_copies, out_stride)]
            widths += [n_out, n_out]
        return shapes, widths

    def _zeros(self, shape: tuple[int, ...]) -> Array:
        return aligned_bytes(math.prod(shape) * np.dtype(self.dtype).itemsize).view(self.dtype).reshape(shape)

    def _in_block(self, offset: int, shape: tuple[int, ...]) -> Array:
        size = math.prod(shape) * np.dtype(self.dtype).itemsize
        return self._packed[offset : offset + size].view(self.dtype).reshape(shape)

    def _trimmed(self, arrays: list[Array]) -> Tables:
        """Views without padding of arrays in the order and layouts of a gradient."""
        views = [array[..., :width] for array, width in zip(arrays, self._widths, strict=True)]
        rho, f, legendre, at_one, linear, embedding, *layers = views
        return Tables(rho, f, legendre, at_one, linear, embedding, tuple(layers[::2]), tuple(layers[1::2]))

    def set_scale(self, mean: Array, std: Array) -> None:
        """Mean and deviation [D] by which features are standardised."""
        self._mean[...] = mean
        self._inverse_std[...] = 1.0 / std.astype(np.float64)

    def features(self, batch: TrainingBatch, n_threads: int) -> Array:
        """Features [n, D]."""
        features = np.zeros((len(batch.rows), self._shapes[4][1]), self.dtype)
        self._run(_FEATURES, batch, n_threads, features=features)
        return features[:, : self.n_features]

    def energies(self, batch: TrainingBatch, n_threads: int) -> Array:
        """Energies [n] without E0 and repulsion, in float64."""
        energies = np.empty(len(batch.rows))
        self._run(_PREDICT, batch, n_threads, energies=energies)
        return energies

    def predict(self, batch: TrainingBatch, n_threads: int) -> tuple[Array, Array, Array]:
        """Energies [n] without E0 and repulsion, forces [n, 3], virials [B, 3, 3] (sum of r (x) dE/dr), in float64."""
        n = len(batch.rows)
        energies, forces, virial = np.empty(n), np.empty((n, 3)), np.empty((batch.n_structures, 3, 3))
        self._run(_PREDICT, batch, n_threads, energies=energies, forces=forces, virial=virial)
        return energies, forces, virial

    def learn(self, batch: TrainingBatch, n_threads: int, e: Array, p: Array | None, s: Array | None) -> Tables:
        """Gradient of a loss L in all parameters.

        `e`: dL/dE [n]; `p`: dL/dF [n, 3]; `s`: dL/dvirial [B, 3, 3]; float64. p and s are None for energies alone.
        """
        gradient = self._zeros((self._offsets[-1],))
        forces = {} if p is None or s is None else {"p": p, "s": s}
        self._run(_LEARN, batch, n_threads, e=e, gradient=gradient, **forces)
        starts = zip(self._offsets, self._offsets[1:], self._shapes, strict=False)
        return self._trimmed([gradient[start:stop].reshape(shape) for start, stop, shape in starts])

    def _run(self, task: int, batch: TrainingBatch, n_threads: int, **arrays: Array) -> None:
        lib = library()
        assert lib is not None
        # The second copies.
        for target, weight in zip(self._transposed, self.tables.weights, strict=True):
            target[..., : weight.shape[1]] = weight.transpose(0, 2, 1)
        if (embedding := self._parameters.readout.embedding) is not None:
            rows = self.tables.embedding.transpose(0, 2, 1)
            spacing, counts = 1.0 / embedding.inverse_spacing, embedding.n_intervals.astype(np.int64)
            self._embedding[..., : rows.shape[1]] = spline_table(embedding.lower, spacing, counts, rows).coefficients
        columns: list[Array] = [batch.rows, batch.shift, batch.owner, *batch.pairs]
        passed = self._rows | arrays
        assert all(array.flags.c_contiguous for array in (*columns, *passed.values()))
        call = _Batch(len(batch.rows), batch.n_structures, n_threads, *addresses(*columns))
        places = _Arrays(**dict(zip(passed, addresses(*passed.values()), strict=True)))
        report = Report()
        if lib.snnp_train(task, *self._block, ctypes.byref(call), ctypes.byref(places), ctypes.byref(report)):
            raise refusal(report)
