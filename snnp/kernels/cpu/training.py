"""Energies and forces of a batch, and the gradient of a loss in all parameters: the two compiled passes of a step."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from snnp.errors import InputError
from snnp.kernels.cpu.call import supports
from snnp.kernels.cpu.library import Report, library, status_message
from snnp.kernels.cpu.pack import MAX_LAYERS, pack_plan
from snnp.kernels.parameters import SplinePlan, spline_table

__all__ = ["StoredPairs", "Tables", "TrainingBatch", "TrainingKernel", "supports_training"]

Array = NDArray[Any]
_pointer, _int = ctypes.c_void_p, ctypes.c_int64
_FEATURES, _PREDICT, _LEARN = range(3)
# Words of the packed header (see pack.py) where its parts begin, and words of a layer.
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


def supports_training(plan: SplinePlan) -> bool:
    """Whether the passes cover this form; a pair term and angles as splines are left to torch."""
    return supports(plan) and plan.phi is None and (plan.f.n_filters == 0 or plan.evaluator == "legendre")


@dataclass(frozen=True)
class StoredPairs:
    """All pairs of many atoms: neighbours of atom k are the entries `first[k] .. first[k + 1]`, those that share radial
    functions and channel side by side, and these by distance.

    Arguments:
        first: [N + 1] int64. neighbour: [P] int32, index among the stored atoms. species: [N] int32.
        x, y, z, r: [P] of one float type, unit vectors and distances in Å.
    """

    first: NDArray[np.int64]
    neighbour: NDArray[np.int32]
    species: NDArray[np.int32]
    x: Array
    y: Array
    z: Array
    r: Array

    @property
    def columns(self) -> tuple[Array, ...]:
        """The arrays in the order of `snnp_batch`."""
        return self.first, self.neighbour, self.species, self.x, self.y, self.z, self.r


@dataclass(frozen=True)
class TrainingBatch:
    """Some of the stored atoms: `rows` [n] int64 their indices, `shift` [n] int64 stored minus local index, `owner` [n]
    int32 the structure of each among `n_structures`. Neighbours of a chosen atom must be chosen, too.
    """

    pairs: StoredPairs
    rows: NDArray[np.int64]
    shift: NDArray[np.int64]
    owner: NDArray[np.int32]
    n_structures: int


@dataclass(frozen=True)
class Tables:
    """Parameters, or the gradient of a loss in them, in the kernel's layouts; views without the padding.

    Arguments:
        rho, f, embedding: [G, K, F] B-spline coefficients.
        legendre: [C, C, L + 1, F] of g for neighbours in two channels; at_one: [C, F], its value at 1.
        linear: [Z, D]. weights: per layer [copies, in, out]; biases: [copies, out].
    """

    rho: Array
    f: Array
    embedding: Array
    legendre: Array
    at_one: Array
    linear: Array
    weights: tuple[Array, ...]
    biases: tuple[Array, ...]


class TrainingKernel:
    """The passes for one form of model.

    Arguments:
        plan: the form. dtype: np.float32 or np.float64.

    Attributes:
        tables: the parameters; they must be written before a pass, in a copy of the kernel, too.
    """

    def __init__(self, plan: SplinePlan, dtype: type[np.float32] | type[np.float64]) -> None:
        lib = library()
        assert lib is not None
        self.dtype, self.n_features, self._plan = dtype, plan.readout.mean.shape[0], plan
        self._packed = pack_plan(plan, dtype)
        words = self._packed[: (_LAYERS + MAX_LAYERS * _LAYER_WORDS) * 8].view(np.int64)
        self._words = [int(word) for word in words]
        self.feature_stride = self._words[_READOUT + 1]
        offsets = np.zeros(_N_OFFSETS, np.int64)
        refused = lib.snnp_gradient_layout(_address(self._packed), self._packed.nbytes, _address(offsets))
        assert not refused
        self._offsets = [int(offset) for offset in offsets]
        self._rows = {k: _aligned(self._rows_shape(k), dtype) for k in (_RHO, _F, _EMBEDDING)}
        for rows in self._rows.values():
            rows[...] = 0
        self._transposed = [self._in_plan(self._layer(k)[5], self._transposed_shape(k)) for k in self._each_layer]
        n_groups, n_segments, _, stride = self._words[_EMBEDDING : _EMBEDDING + 4]
        self._embedding = self._in_plan(self._words[_EMBEDDING + 7], (n_groups, n_segments, 4, stride))
        self.tables = self._views_of_plan()

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies are made anew: views of another's memory, and its alignment, would be lost."""
        return TrainingKernel, (self._plan, self.dtype)

    # Layouts.

    @property
    def _each_layer(self) -> range:
        return range(len(self._plan.readout.weights))

    def _layer(self, k: int) -> list[int]:
        """n_in, n_out, in_stride, out_stride, and where the forward and backward matrices and the bias begin."""
        return self._words[_LAYERS + k * _LAYER_WORDS :][:_LAYER_WORDS]

    def _layer_shapes(self, k: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        n_in, _, _, out_stride, *_ = self._layer(k)
        copies = self._plan.readout.weights[k].shape[0]
        return (copies, n_in, out_stride), (copies, out_stride)

    def _transposed_shape(self, k: int) -> tuple[int, ...]:
        _, n_out, in_stride, *_ = self._layer(k)
        return (self._plan.readout.weights[k].shape[0], n_out, in_stride)

    def _rows_shape(self, table: int) -> tuple[int, ...]:
        n_groups, n_segments, _, stride = self._words[table : table + 4]
        return (n_groups, n_segments + 1, stride)

    def _angular_shapes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        channels, stride = self._plan.n_channels, self._words[_F + 3]
        channels *= int(stride > 0)
        return (channels, channels, self._plan.degree + 1, stride), (channels, stride)

    def _in_plan(self, offset: int, shape: tuple[int, ...]) -> Array:
        count = int(np.prod(shape))
        return self._packed[offset : offset + count * np.dtype(self.dtype).itemsize].view(self.dtype).reshape(shape)

    def _trim(self, parts: dict[str, Any]) -> Tables:
        """Views without padding of arrays in the kernel's layouts."""
        plan, n = self._plan, self.n_features
        n_f, layers = plan.f.n_filters, [self._layer(k)[1] for k in self._each_layer]
        embedding = plan.readout.embedding
        return Tables(
            rho=parts["rho"][..., : plan.rho.n_filters],
            f=parts["f"][..., :n_f],
            embedding=parts["embedding"][..., : embedding.n_filters if embedding else 0],
            legendre=parts["legendre"][..., :n_f],
            at_one=parts["at_one"][..., :n_f],
            linear=parts["linear"][..., :n],
            weights=tuple(array[..., :width] for array, width in zip(parts["weights"], layers, strict=True)),
            biases=tuple(array[..., :width] for array, width in zip(parts["biases"], layers, strict=True)),
        )

    def _views_of_plan(self) -> Tables:
        words, (legendre, at_one) = self._words, self._angular_shapes()
        return self._trim(
            {
                "rho": self._rows[_RHO],
                "f": self._rows[_F],
                "embedding": self._rows[_EMBEDDING],
                "legendre": self._in_plan(words[_ANGLES], legendre),
                "at_one": self._in_plan(words[_ANGLES + 1], at_one),
                "linear": self._in_plan(words[_READOUT + 4], (self._plan.n_elements, self.feature_stride)),
                "weights": [self._in_plan(self._layer(k)[4], self._layer_shapes(k)[0]) for k in self._each_layer],
                "biases": [self._in_plan(self._layer(k)[6], self._layer_shapes(k)[1]) for k in self._each_layer],
            }
        )

    def _views_of_gradient(self, gradient: Array) -> Tables:
        def part(k: int, shape: tuple[int, ...]) -> Array:
            return gradient[self._offsets[k] : self._offsets[k + 1]].reshape(shape)

        legendre, at_one = self._angular_shapes()
        return self._trim(
            {
                "rho": part(0, self._rows_shape(_RHO)),
                "f": part(1, self._rows_shape(_F)),
                "legendre": part(2, legendre),
                "at_one": part(3, at_one),
                "linear": part(4, (self._plan.n_elements, self.feature_stride)),
                "embedding": part(5, self._rows_shape(_EMBEDDING)),
                "weights": [part(6 + 2 * k, self._layer_shapes(k)[0]) for k in self._each_layer],
                "biases": [part(7 + 2 * k, self._layer_shapes(k)[1]) for k in self._each_layer],
            }
        )

    # Parameters.

    def set_scale(self, mean: Array, std: Array) -> None:
        """Mean and deviation [D] by which features are standardised."""
        shape = (self.n_features,)
        self._in_plan(self._words[_READOUT + 2], shape)[...] = mean
        self._in_plan(self._words[_READOUT + 3], shape)[...] = 1.0 / std.astype(np.float64)

    # Passes.

    def features(self, batch: TrainingBatch, n_threads: int) -> Array:
        """Features [n, D]."""
        features = np.zeros((len(batch.rows), self.feature_stride), self.dtype)
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

        Arguments:
            e: dL/dE [n]; p: dL/dF [n, 3]; s: dL/dvirial [B, 3, 3]; float64. p and s are None for energies alone.
        """
        gradient = _aligned((self._offsets[-1],), self.dtype)
        forces = {} if p is None or s is None else {"p": p, "s": s}
        self._run(_LEARN, batch, n_threads, e=e, gradient=gradient, **forces)
        return self._views_of_gradient(gradient)

    def _run(self, task: int, batch: TrainingBatch, n_threads: int, **arrays: Array) -> None:
        lib = library()
        assert lib is not None
        self._complete()
        columns: list[Array] = [batch.rows, batch.shift, batch.owner, *batch.pairs.columns]
        call = _Batch(len(batch.rows), batch.n_structures, n_threads, *(_address(column) for column in columns))
        rows = {"rho": self._rows[_RHO], "f": self._rows[_F], "embedding": self._rows[_EMBEDDING]}
        passed = _Arrays(**{name: _address(array) for name, array in (rows | arrays).items()})
        report = Report()
        plan = (_address(self._packed), self._packed.nbytes)
        if lib.snnp_train(task, *plan, ctypes.byref(call), ctypes.byref(passed), ctypes.byref(report)):
            raise InputError(status_message(report))

    def _complete(self) -> None:
        """Second copies: weights as the way back reads them, and an embedding's polynomials."""
        for target, weight in zip(self._transposed, self.tables.weights, strict=True):
            target[..., : weight.shape[1]] = weight.transpose(0, 2, 1)
        if (embedding := self._plan.readout.embedding) is not None:
            rows = self.tables.embedding.transpose(0, 2, 1)
            spacing, counts = 1.0 / embedding.inverse_spacing, embedding.n_intervals.astype(np.int64)
            self._embedding[..., : rows.shape[1]] = spline_table(embedding.lower, spacing, counts, rows).coefficients


def _aligned(shape: tuple[int, ...], dtype: type) -> Array:
    """An empty array that starts at a multiple of 64 bytes, as whole vectors must."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    memory = np.empty(size + 64, np.uint8)
    start = -_address(memory) % 64
    return memory[start : start + size].view(dtype).reshape(shape)


def _address(array: Array) -> int:
    assert array.flags.c_contiguous
    return int(array.__array_interface__["data"][0])
