"""Features, forces and their parameter derivatives from compiled code: the four passes of a training step."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from snnp.errors import InputError
from snnp.kernels.library import Report, library, status_message
from snnp.kernels.pack import MAX_DEGREE, pack_plan
from snnp.kernels.plan import SplinePlan

__all__ = ["FeatureKernel", "StoredPairs", "TrainingBatch", "supports_training"]

Array = NDArray[Any]
_pointer, _int = ctypes.c_void_p, ctypes.c_int64
_FEATURES, _FORCES, _TANGENTS, _GRADIENTS = range(4)
# Words of the packed header (see pack.py) where tables begin.
_RHO, _F, _ANGLES, _FEATURE_STRIDE = 26, 36, 76, 79


class _Batch(ctypes.Structure):
    _fields_ = [
        *[(name, _int) for name in ("n_atoms", "n_structures", "n_threads")],
        *[(name, _pointer) for name in ("rows", "shift", "owner", "first", "neighbour", "species", "x", "y", "z", "r")],
    ]


class _Arrays(ctypes.Structure):
    _names = ("h", "g", "p", "s", "features", "moments", "features_dot", "moments_dot", "forces", "virial")
    _fields_ = [(name, _pointer) for name in (*_names, "rho", "f", "legendre", "at_one")]


def supports_training(plan: SplinePlan) -> bool:
    """Whether the passes cover this form; a pair term and angles as splines are left to torch."""
    moments = plan.f.n_filters == 0 or (plan.evaluator == "legendre" and plan.degree <= MAX_DEGREE)
    return moments and plan.phi is None


@dataclass(frozen=True)
class StoredPairs:
    """All pairs of many atoms: neighbours of atom k are the entries `first[k] .. first[k + 1]`.

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


class FeatureKernel:
    """The passes for one form of model; the coefficients are set anew before every step.

    Arguments:
        plan: the form; its coefficients are only where the passes start. dtype: np.float32 or np.float64.

    Attributes:
        rho, f: [G, K, 4, stride], views of the tables; rho_slopes: [G, F, K, 4]; legendre: [C, C, L + 1, stride];
            at_one: [C, stride]. feature_stride: numbers in a row of features.
    """

    def __init__(self, plan: SplinePlan, dtype: type[np.float32] | type[np.float64]) -> None:
        self.dtype, self.n_features = dtype, plan.readout.mean.shape[0]
        self._packed = pack_plan(plan, dtype)
        words = self._packed[: (_FEATURE_STRIDE + 1) * 8].view(np.int64)
        self.feature_stride = int(words[_FEATURE_STRIDE])
        self._inverse = plan.rho.inverse_spacing[:, None, None, None]
        self.rho, self.f = self._table(words[_RHO : _RHO + 10]), self._table(words[_F : _F + 10])
        n_groups, n_segments, n_filters = (int(k) for k in words[_RHO : _RHO + 3])
        stride = int(words[_RHO + 9])
        slopes = self._view(int(words[_RHO + 8]), (n_groups, n_filters, stride))[..., : 4 * n_segments]
        self.rho_slopes = slopes.reshape(n_groups, n_filters, n_segments, 4) if n_filters else slopes
        self._channels, self._harmonics = plan.n_channels, (plan.degree + 1) ** 2
        angular = plan.f.n_filters > 0
        shape = (plan.n_channels, plan.n_channels, plan.degree + 1, self.f.shape[3]) if angular else (0, 0, 0, 0)
        self.legendre = self._view(int(words[_ANGLES]), shape)
        self.at_one = self._view(int(words[_ANGLES + 1]), (shape[0], shape[3]))

    def _view(self, offset: int, shape: tuple[int, ...]) -> Array:
        count = int(np.prod(shape))
        return self._packed[offset : offset + count * np.dtype(self.dtype).itemsize].view(self.dtype).reshape(shape)

    def _table(self, words: NDArray[np.int64]) -> Array:
        n_groups, n_segments, _, stride = (int(k) for k in words[:4])
        return self._view(int(words[7]), (n_groups, n_segments, 4, stride))

    def set_tables(self, rho: Array, f: Array, legendre: Array, at_one: Array) -> None:
        """Copy the coefficients in, in the shapes of the attributes."""
        for view, values in ((self.rho, rho), (self.f, f), (self.legendre, legendre), (self.at_one, at_one)):
            view[...] = values
        if self.rho.size:
            c = self.rho[..., : self.rho_slopes.shape[1]] * self._inverse.astype(self.dtype)
            for power in (1, 2, 3):
                self.rho_slopes[..., power - 1] = power * c[:, :, power].transpose(0, 2, 1)

    def padded(self, values: Array) -> Array:
        """Rows [n, feature_stride] of `values` [n, D] with zeros behind them, as the passes take g and h."""
        rows = _aligned((len(values), self.feature_stride), self.dtype)
        rows[:, : self.n_features] = values
        rows[:, self.n_features :] = 0
        return rows

    def _moments_shape(self, n_atoms: int) -> tuple[int, ...]:
        return (n_atoms, self._channels * self._harmonics * self.f.shape[3])

    def features(self, batch: TrainingBatch, n_threads: int) -> tuple[Array, Array]:
        """Features [n, feature_stride] (zero beyond D) and the moments for the other passes."""
        n = len(batch.rows)
        features = np.zeros((n, self.feature_stride), self.dtype)
        moments = _aligned(self._moments_shape(n), self.dtype)
        self._run(_FEATURES, batch, n_threads, features=features, moments=moments)
        return features, moments

    def forces(self, batch: TrainingBatch, moments: Array, h: Array, n_threads: int) -> tuple[Array, Array]:
        """Forces [n, 3] and virials [B, 3, 3] (sum of r (x) dE/dr) in float64, from h = dE/dG [n, feature_stride]."""
        forces, virial = np.empty((len(batch.rows), 3)), np.empty((batch.n_structures, 3, 3))
        self._run(_FORCES, batch, n_threads, moments=moments, h=h, forces=forces, virial=virial)
        return forces, virial

    def tangents(self, batch: TrainingBatch, moments: Array, p: Array, s: Array, n_threads: int) -> tuple[Array, Array]:
        """dL/dh [n, feature_stride] from p = dL/dF [n, 3], s = dL/dvirial [B, 3, 3] (float64), and moments."""
        features = np.zeros((len(batch.rows), self.feature_stride), self.dtype)
        dot = _aligned(moments.shape, self.dtype)
        self._run(_TANGENTS, batch, n_threads, moments=moments, p=p, s=s, features_dot=features, moments_dot=dot)
        return features, dot

    def gradients(self, batch: TrainingBatch, n_threads: int, **arrays: Array) -> tuple[Array, Array, Array, Array]:
        """dL/d(rho, f, legendre, at_one) from moments, g = dL/dG and, with forces, moments_dot, h, p, s."""
        out = {name: np.zeros(getattr(self, name).shape, self.dtype) for name in ("rho", "f", "legendre", "at_one")}
        self._run(_GRADIENTS, batch, n_threads, **arrays, **out)
        return out["rho"], out["f"], out["legendre"], out["at_one"]

    def _run(self, task: int, batch: TrainingBatch, n_threads: int, **arrays: Array) -> None:
        lib = library()
        assert lib is not None
        pairs = batch.pairs
        columns: list[Array] = [batch.rows, batch.shift, batch.owner, pairs.first, pairs.neighbour, pairs.species]
        columns += [pairs.x, pairs.y, pairs.z, pairs.r]
        call = _Batch(len(batch.rows), batch.n_structures, n_threads, *(_address(column) for column in columns))
        passed = _Arrays(**{name: _address(array) for name, array in arrays.items()})
        report = Report()
        plan = (_address(self._packed), self._packed.nbytes)
        if lib.snnp_train(task, *plan, ctypes.byref(call), ctypes.byref(passed), ctypes.byref(report)):
            raise InputError(status_message(report))


def _aligned(shape: tuple[int, ...], dtype: type) -> Array:
    """An empty array that starts at a multiple of 64 bytes, as whole vectors must."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    memory = np.empty(size + 64, np.uint8)
    start = -_address(memory) % 64
    return memory[start : start + size].view(dtype).reshape(shape)


def _address(array: Array) -> int:
    assert array.flags.c_contiguous
    return int(array.__array_interface__["data"][0])
