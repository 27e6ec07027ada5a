"""Training of an s-NNP on the compiled kernel: pairs are stored, everything else is computed anew at every step.

Compiled code leads from the parameters to energies and forces, and back from the derivatives of a loss by these. What
lies between parameters and the kernel's tables is linear and written out here, so that no step records a graph.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from snnp.kernels.cpu.library import library
from snnp.kernels.cpu.training import StoredPairs, Tables, TrainingBatch, TrainingKernel, supports_training
from snnp.models.spline.model import SplineNNP
from snnp.neighbours import neighbour_list, pair_vectors
from snnp.splines import SplineSet
from snnp.structure import Structure

__all__ = [
    *("Derivatives", "NativeGeometry", "NativePrediction", "cut_native", "make_native", "native_backward"),
    *("kernel_threads_alone", "native_features", "predict_native", "trains_natively"),
]

Array = NDArray[Any]


@dataclass(frozen=True)
class _Maps:
    """How parameters become tables.

    Arguments:
        rho, f, embedding: [free, K] end conditions of splines. g: [free, L + 1] to Legendre coefficients.
        pairs: [C, C] int64, the group of g for neighbours in two channels.
    """

    rho: Array
    f: Array
    embedding: Array
    g: Array
    pairs: NDArray[np.int64]


@dataclass(frozen=True)
class _Engine:
    """The passes, the maps to their tables, and the threads of the passes."""

    kernel: TrainingKernel
    maps: _Maps
    n_threads: int


@dataclass(frozen=True)
class NativeGeometry:
    """Stored pairs of all atoms, and which atoms of them these are.

    `alone` [Z]: of which elements the energy of an atom alone is taken off. Where there are any, such an atom of each
    element stands behind the others, as one more structure: the kernel evaluates them and learns from them alike.
    """

    engine: _Engine
    batch: TrainingBatch
    alone: NDArray[np.bool_]

    @property
    def n_alone(self) -> int:
        """How many atoms alone stand behind the others."""
        return len(self.alone) if self.alone.any() else 0

    def chosen(self, rows: Array, shift: Array, owner: Array, n_structures: int) -> NativeGeometry:
        """Some atoms; arguments as in `TrainingBatch`."""
        n, n_alone, n_stored = len(rows), self.n_alone, len(self.batch.pairs.species)
        last = np.arange(n_stored - n_alone, n_stored)
        batch = TrainingBatch(
            self.batch.pairs,
            np.concatenate([rows, last]),
            np.concatenate([shift, last - np.arange(n, n + n_alone)]),
            np.concatenate([owner, np.full(n_alone, n_structures, np.int32)]),
            n_structures + (n_alone > 0),
        )
        return replace(self, batch=batch)


def trains_natively(model: SplineNNP, dtype: torch.dtype, device: torch.device | str) -> bool:
    """Whether the compiled passes cover this model here."""
    known = torch.device(device).type == "cpu" and dtype in (torch.float32, torch.float64)
    return known and library() is not None and type(model) is SplineNNP and supports_training(model.kernel_parameters())


def make_native(model: SplineNNP, structure: Structure, dtype: torch.dtype) -> NativeGeometry:
    """Pairs of all atoms, formed in float64 and stored as `dtype`.

    The passes will use as many threads as torch has now.
    """
    lists = neighbour_list(structure, model.cutoff)
    vectors = pair_vectors(structure, lists)
    species = model.species(structure)
    distance = vectors.norm(dim=1)
    kept = distance < model.cutoff
    i, j, vectors, distance = lists.i[kept], lists.j[kept], vectors[kept], distance[kept]
    real: Any = np.float32 if dtype == torch.float32 else np.float64
    plan = model.kernel_parameters()
    group = plan.radial_group[species[i].numpy(), species[j].numpy()]
    channel = species[j].numpy() if plan.n_channels > 1 else np.zeros(len(j), dtype=np.int64)
    order = torch.from_numpy(np.lexsort((distance.numpy(), channel, group, i.numpy())))
    alone = np.array([symbol in model.isolated_atoms for symbol in model.elements])
    lone = np.arange(len(alone) if alone.any() else 0)
    counts = np.concatenate([[0], torch.bincount(i, minlength=structure.n_atoms).numpy(), 0 * lone])
    columns = [*(vectors / distance[:, None]).T, distance]
    stored = StoredPairs(
        np.cumsum(counts).astype(np.int64),
        j[order].to(torch.int32).numpy(),
        np.concatenate([species.numpy(), lone]).astype(np.int32),
        *(column[order].to(dtype).contiguous().numpy() for column in columns),
    )
    everyone = np.arange(structure.n_atoms)
    owner = structure.structure_of_atom.to(torch.int32).numpy()
    batch = TrainingBatch(stored, everyone, 0 * everyone, owner, structure.n_structures)
    engine = _Engine(TrainingKernel(plan, real), _maps(model, plan.n_channels, real), torch.get_num_threads())
    return NativeGeometry(engine, batch, alone).chosen(everyone, 0 * everyone, owner, structure.n_structures)


def _ends(splines: SplineSet | None) -> Array:
    """[free, K] from free parameters to B-spline coefficients."""
    if splines is None:
        return np.zeros((0, 0))
    return splines.exact("map").cpu().numpy() if splines.ends != ("free", "free") else np.eye(splines.free.shape[2])


def _maps(model: SplineNNP, n_channels: int, real: Any) -> _Maps:
    projection = model.exact("projection").cpu().numpy()  # [L + 1, K]
    pairs = model.unordered.cpu().numpy() if n_channels > 1 else np.zeros((1, 1), dtype=np.int64)
    g = _ends(model.g)[:, : projection.shape[1]] @ projection.T
    rho, f, embedding = (_ends(splines).astype(real) for splines in (model.rho, model.f, model.readout.embedding))
    return _Maps(rho, f, embedding, g.astype(real), pairs)


@contextmanager
def kernel_threads_alone(geometry: object) -> Iterator[None]:
    """Give torch one thread where the compiled kernel does the work.

    What is left to torch is small, and its threads go on spinning for milliseconds after each matrix product, on the
    cores that the kernel's need.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1 if isinstance(geometry, NativeGeometry) else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def cut_native(
    geometry: NativeGeometry, rows: Tensor, frames: Tensor, starts: np.ndarray, owner: Tensor
) -> NativeGeometry:
    """The atoms `rows` [n] of `frames` [B]; nothing of the pairs is copied.

    Arguments:
        starts: [all frames + 1] first stored atom of each frame; owner: [n] new index of the structure of each atom.
    """
    first = starts[frames.numpy()]
    counts = starts[frames.numpy() + 1] - first
    local = np.cumsum(counts) - counts
    shift = np.repeat(first - local, counts)
    return geometry.chosen(rows.numpy(), shift, owner.to(torch.int32).numpy(), len(frames))


def _parameters(model: SplineNNP) -> list[Tensor]:
    """What the tables are made of: rho, f, g, then weights, biases, linear and embedding as far as present."""
    readout = model.readout
    found: list[Tensor] = [model.rho.free, model.f.free, model.g.free]
    if readout.network is not None:
        found += [*readout.network.effective_weights(), *readout.network.biases]
    if readout.linear is not None:
        found.append(readout.linear)
    if readout.embedding is not None:
        found.append(readout.embedding.free)
    return found


@dataclass(frozen=True)
class _Parts:
    """The list of `_parameters` by name; `linear` and `embedding` hold one array or none."""

    splines: list[Array]
    weights: list[Array]
    biases: list[Array]
    linear: list[Array]
    embedding: list[Array]


def _named(values: list[Array], tables: Tables) -> _Parts:
    n = len(tables.weights)
    splines, weights, biases, rest = values[:3], values[3 : 3 + n], values[3 + n : 3 + 2 * n], values[3 + 2 * n :]
    embedding = rest[-1:] if tables.embedding.size else []
    return _Parts(splines, weights, biases, rest[: len(rest) - len(embedding)], embedding)


def _write(values: list[Array], maps: _Maps, tables: Tables) -> None:
    """Parameters to tables."""
    parts = _named(values, tables)
    if tables.rho.size:
        tables.rho[...] = (parts.splines[0] @ maps.rho).transpose(0, 2, 1)
    if tables.f.size:
        tables.f[...] = (parts.splines[1] @ maps.f).transpose(0, 2, 1)
        legendre = parts.splines[2] @ maps.g  # [groups, F, L + 1]
        tables.legendre[...] = legendre[maps.pairs].transpose(0, 1, 3, 2)
        tables.at_one[...] = legendre.sum(axis=-1)[maps.pairs.diagonal()]
    for table, weight in zip(tables.weights, parts.weights, strict=True):
        table[...] = weight.transpose(0, 2, 1)
    for table, bias in zip(tables.biases, parts.biases, strict=True):
        table[...] = bias
    for linear in parts.linear:
        tables.linear[...] = linear
    for free in parts.embedding:
        tables.embedding[...] = (free @ maps.embedding).transpose(0, 2, 1)


def _read(tables: Tables, maps: _Maps, like: list[Array]) -> list[Array]:
    """The gradient in the tables as that in the parameters: `_write` the other way round."""
    parts = _named(like, tables)
    found = [np.zeros_like(free) for free in parts.splines]
    if tables.rho.size:
        found[0] = tables.rho.transpose(0, 2, 1) @ maps.rho.T
    if tables.f.size:
        found[1] = tables.f.transpose(0, 2, 1) @ maps.f.T
        legendre = np.zeros((*found[2].shape[:2], maps.g.shape[1]), found[2].dtype)
        np.add.at(legendre, maps.pairs, tables.legendre.transpose(0, 1, 3, 2))
        np.add.at(legendre, maps.pairs.diagonal(), tables.at_one[..., None])
        found[2] = legendre @ maps.g.T
    found += [np.ascontiguousarray(table.transpose(0, 2, 1)) for table in tables.weights]
    found += [np.ascontiguousarray(table) for table in tables.biases]
    found += [np.ascontiguousarray(tables.linear) for _ in parts.linear]
    found += [tables.embedding.transpose(0, 2, 1) @ maps.embedding.T for _ in parts.embedding]
    return found


def _written(model: SplineNNP, geometry: NativeGeometry) -> tuple[TrainingKernel, list[Tensor]]:
    """The kernel with the model's present parameters in its tables, and these parameters."""
    kernel, parameters = geometry.engine.kernel, _parameters(model)
    kernel.set_scale(model.readout.mean.numpy(), model.readout.std.numpy())
    _write([value.detach().numpy() for value in parameters], geometry.engine.maps, kernel.tables)
    return kernel, parameters


def native_features(model: SplineNNP, geometry: NativeGeometry) -> Tensor:
    """[n, D] features of the chosen atoms."""
    features = _written(model, geometry)[0].features(geometry.batch, geometry.engine.n_threads)
    return torch.from_numpy(features[: len(features) - geometry.n_alone])


@dataclass(frozen=True)
class NativePrediction:
    """What the kernel says of the chosen atoms, in float64.

    Arguments:
        energies: [n], without E0 and repulsion, and less those of the atoms alone (see `Potential.above_isolated`).
        forces: [n, 3] and virial: [B, 3, 3], the sum of r (x) dE/dr; None where they were not asked for.
    """

    energies: Tensor
    forces: Tensor | None
    virial: Tensor | None


def predict_native(model: SplineNNP, geometry: NativeGeometry, *, forces: bool = True) -> NativePrediction:
    """Evaluate the chosen atoms."""
    return _predict(_written(model, geometry)[0], geometry, forces)


def _species(geometry: NativeGeometry) -> Array:
    """[n] of the chosen atoms, without those alone."""
    batch = geometry.batch
    return batch.pairs.species[batch.rows[: len(batch.rows) - geometry.n_alone]]


def _predict(kernel: TrainingKernel, geometry: NativeGeometry, forces: bool) -> NativePrediction:
    batch, n_threads = geometry.batch, geometry.engine.n_threads
    arrays: tuple[Array, ...] = kernel.predict(batch, n_threads) if forces else (kernel.energies(batch, n_threads),)
    if geometry.n_alone:
        energies, *rest = arrays
        n = len(energies) - geometry.n_alone
        alone = np.where(geometry.alone, energies[n:], 0.0)
        # Forces [n, 3] and virials [B, 3, 3].
        arrays = (energies[:n] - alone[_species(geometry)], *(a[:k] for a, k in zip(rest, (n, -1), strict=False)))
    found = [torch.from_numpy(array) for array in arrays]
    return NativePrediction(*found) if forces else NativePrediction(found[0], None, None)


Derivatives = tuple[Tensor, Tensor | None, Tensor | None]
"""Of a loss by energies [n], forces [n, 3] and virials [B, 3, 3]; None for zeros."""


def native_backward(
    model: SplineNNP,
    geometry: NativeGeometry,
    derive: Callable[[NativePrediction], Derivatives],
    *,
    forces: bool = True,
) -> None:
    """Evaluate the chosen atoms, and add the gradient of a loss to the parameters' `grad`.

    Arguments:
        derive: is shown the prediction, and returns the derivatives of the loss by it.
        forces: whether forces and virials are part of the prediction.
    """
    kernel, parameters = _written(model, geometry)
    batch, derivatives = geometry.batch, derive(_predict(kernel, geometry, forces))
    e, p, s = (None if value is None else value.double().contiguous().numpy() for value in derivatives)
    assert e is not None
    if n_alone := geometry.n_alone:
        to_alone = np.bincount(_species(geometry), weights=e, minlength=n_alone)
        e = np.concatenate([e, -to_alone * geometry.alone])
        p = None if p is None else np.concatenate([p, np.zeros((n_alone, 3))])
        s = None if s is None else np.concatenate([s, np.zeros((1, 3, 3))])
    if p is not None or s is not None:
        p = np.zeros((len(batch.rows), 3)) if p is None else p
        s = np.zeros((batch.n_structures, 3, 3)) if s is None else s
    found = kernel.learn(batch, geometry.engine.n_threads, e, p, s)
    gradients = _read(found, geometry.engine.maps, [value.detach().numpy() for value in parameters])
    for parameter, gradient in zip(parameters, map(torch.from_numpy, gradients), strict=True):
        if not parameter.requires_grad:
            continue
        if parameter.is_leaf:
            parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
        else:  # a weight with a constraint, made of the parameter
            parameter.backward(gradient)
