"""Training of an s-NNP on the compiled kernel: pairs are stored, everything else is computed anew at every step.

Compiled code leads from the parameters to energies and forces, and back from the derivatives of a loss by these. What
lies between parameters and the kernel's tables is linear and written out here, so that no step records a graph.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from snnp.kernels.cpu.library import library
from snnp.kernels.cpu.training import StoredPairs, Tables, TrainingBatch, TrainingKernel, supports_training
from snnp.models.potential import Potential
from snnp.models.spline.model import SplineNNP
from snnp.neighbours import neighbour_list, pair_vectors
from snnp.splines import SplineSet
from snnp.structure import Structure
from snnp.training.backends.backend import Backend, Batch, Loss, Predicted

__all__ = ["CompiledBackend"]

Array = NDArray[Any]


class CompiledBackend(Backend):
    """The passes for one form of model, with as many threads as torch has now.

    Geometries are of `snnp.kernels.cpu.training.TrainingBatch`. Where the energies of atoms alone are taken off (see
    `Potential.above_isolated`), such an atom of each element stands behind the others, as one more structure: the
    kernel evaluates them and learns from them alike.
    """

    def __init__(self, model: SplineNNP, dtype: torch.dtype) -> None:
        self.dtype, self.device = dtype, torch.device("cpu")
        form = model.kernel_parameters()
        real: Any = np.float32 if dtype == torch.float32 else np.float64
        self.n_threads = torch.get_num_threads()
        self.kernel = TrainingKernel(form, real)
        self._maps = _Maps.of(model, form.n_channels, real)
        self._radial_group, self._n_channels = form.radial_group, form.n_channels
        # [Z], of which elements the energy of an atom alone is taken off.
        self._isolated = np.array([symbol in model.isolated_atoms for symbol in model.elements])
        self._n_alone = len(self._isolated) if self._isolated.any() else 0

    @staticmethod
    def covers(model: SplineNNP, dtype: torch.dtype, device: torch.device | str) -> bool:
        if library() is None or torch.device(device).type != "cpu" or dtype not in (torch.float32, torch.float64):
            return False
        return type(model) is SplineNNP and supports_training(model.kernel_parameters())

    def prepare(self, model: Potential, structure: Structure) -> TrainingBatch:
        lists = neighbour_list(structure, model.cutoff)
        vectors = pair_vectors(structure, lists)
        species = model.species(structure)
        distance = vectors.norm(dim=1)
        kept = distance < model.cutoff
        i, j, vectors, distance = lists.i[kept], lists.j[kept], vectors[kept], distance[kept]
        group = self._radial_group[species[i].numpy(), species[j].numpy()]
        channel = species[j].numpy() if self._n_channels > 1 else np.zeros(len(j), dtype=np.int64)
        order = torch.from_numpy(np.lexsort((distance.numpy(), channel, group, i.numpy())))
        lone = np.arange(self._n_alone)
        counts = np.concatenate([[0], torch.bincount(i, minlength=structure.n_atoms).numpy(), 0 * lone])
        columns = [*(vectors / distance[:, None]).T, distance]
        stored = StoredPairs(
            np.cumsum(counts).astype(np.int64),
            j[order].to(torch.int32).numpy(),
            np.concatenate([species.numpy(), lone]).astype(np.int32),
            *(column[order].to(self.dtype).contiguous().numpy() for column in columns),
        )
        everyone, owner = np.arange(structure.n_atoms), structure.structure_of_atom.numpy()
        return self._choose(stored, everyone, owner, structure.n_structures)

    def cut(self, geometry: TrainingBatch, frames: Tensor, rows: Tensor, owner: Tensor) -> TrainingBatch:
        """Nothing of the pairs is copied."""
        return self._choose(geometry.pairs, rows.numpy(), owner.numpy(), len(frames))

    def _choose(self, pairs: StoredPairs, rows: Array, owner: Array, n_structures: int) -> TrainingBatch:
        n_stored = len(pairs.species)
        alone = np.arange(n_stored - self._n_alone, n_stored)
        rows = np.concatenate([rows, alone])
        owner = np.concatenate([owner, np.full(self._n_alone, n_structures)]).astype(np.int32)
        return TrainingBatch(pairs, rows, rows - np.arange(len(rows)), owner, n_structures + (self._n_alone > 0))

    def predict(self, model: Potential, batch: Batch, *, forces: bool = True) -> Predicted:
        self.write(model)
        return self._predict(batch, forces)

    def _predict(self, batch: Batch, forces: bool) -> Predicted:
        geometry: TrainingBatch = batch.geometry
        n = len(batch.owner)
        found = self.kernel.predict(geometry, self.n_threads) if forces else None
        energies = self.kernel.energies(geometry, self.n_threads) if found is None else found[0]
        if self._n_alone:
            alone = np.where(self._isolated, energies[n:], 0.0)
            energies = energies[:n] - alone[self._species(geometry, n)]
        of_atoms = torch.from_numpy(energies)
        if found is None:
            return Predicted.of(batch, of_atoms)
        virial = torch.from_numpy(found[2][: len(batch.counts)]).to(self.dtype)
        return Predicted.of(batch, of_atoms, torch.from_numpy(found[1][:n]).to(self.dtype), batch.symmetric(virial))

    def backward(self, model: Potential, batch: Batch, loss: Loss, *, forces: bool = True) -> Tensor:
        parameters = self.write(model)
        found = loss(self._predict(batch, forces), batch)
        geometry: TrainingBatch = batch.geometry
        n, behind = len(batch.owner), len(geometry.rows) - len(batch.owner)
        e, p, s = _double(found.to_energies), None, None
        if behind:
            to_alone = np.bincount(self._species(geometry, n), weights=e, minlength=behind)
            e = np.concatenate([e, -to_alone * self._isolated])
        if found.to_forces is not None or found.to_stress is not None:
            p, s = np.zeros((len(geometry.rows), 3)), np.zeros((geometry.n_structures, 3, 3))
            if found.to_forces is not None:
                p[:n] = _double(found.to_forces)
            if found.to_stress is not None:
                s[: len(batch.counts)] = _double(batch.symmetric(found.to_stress))
        tables = self.kernel.learn(geometry, self.n_threads, e, p, s)
        for name, gradients in _read(tables, self._maps, _arrays(parameters)).items():
            for parameter, gradient in zip(parameters[name], map(torch.from_numpy, gradients), strict=True):
                if not parameter.requires_grad:
                    continue
                if parameter.is_leaf:
                    parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
                else:  # a weight with a constraint, made of the parameter
                    parameter.backward(gradient)
        return found.value

    def features(self, model: Potential, batch: Batch) -> Tensor:
        self.write(model)
        return torch.from_numpy(self.kernel.features(batch.geometry, self.n_threads)[: len(batch.owner)])

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Give torch one thread.

        What is left to torch is small, and its threads go on spinning for milliseconds after each matrix product, on
        the cores that the kernel's need.
        """
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(before)

    @staticmethod
    def _species(geometry: TrainingBatch, n: int) -> Array:
        return geometry.pairs.species[geometry.rows[:n]]

    def write(self, model: Potential) -> dict[str, list[Tensor]]:
        """Put the model's present parameters into the kernel's tables, and return them."""
        assert isinstance(model, SplineNNP)
        parameters = _parameters(model)
        self.kernel.set_scale(model.readout.mean.numpy(), model.readout.std.numpy())
        _write(_arrays(parameters), self._maps, self.kernel.tables)
        return parameters


def _arrays(parameters: dict[str, list[Tensor]]) -> dict[str, list[Array]]:
    return {name: [value.detach().numpy() for value in values] for name, values in parameters.items()}


def _double(value: Tensor) -> Array:
    return value.double().contiguous().numpy()


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

    @classmethod
    def of(cls, model: SplineNNP, n_channels: int, real: Any) -> _Maps:
        projection = model.exact("projection").cpu().numpy()  # [L + 1, K]
        pairs = model.unordered.cpu().numpy() if n_channels > 1 else np.zeros((1, 1), dtype=np.int64)
        g = _ends(model.g)[:, : projection.shape[1]] @ projection.T
        rho, f, embedding = (_ends(splines).astype(real) for splines in (model.rho, model.f, model.readout.embedding))
        return cls(rho, f, embedding, g.astype(real), pairs)


def _ends(splines: SplineSet | None) -> Array:
    """[free, K] from free parameters to B-spline coefficients."""
    if splines is None:
        return np.zeros((0, 0))
    return np.eye(splines.free.shape[2]) if splines.map is None else splines.exact("map").cpu().numpy()


def _parameters(model: SplineNNP) -> dict[str, list[Tensor]]:
    """What the tables are made of: one tensor of each kind, one per layer, or none."""
    readout, network = model.readout, model.readout.network
    return {
        "rho": [model.rho.free],
        "f": [model.f.free],
        "g": [model.g.free],
        "weights": [] if network is None else [*network.effective_weights()],
        "biases": [] if network is None else [*network.biases],
        "linear": [] if readout.linear is None else [readout.linear],
        "embedding": [] if readout.embedding is None else [readout.embedding.free],
    }


def _write(values: dict[str, list[Array]], maps: _Maps, tables: Tables) -> None:
    if tables.rho.size:
        tables.rho[...] = (values["rho"][0] @ maps.rho).transpose(0, 2, 1)
    if tables.f.size:
        tables.f[...] = (values["f"][0] @ maps.f).transpose(0, 2, 1)
        legendre = values["g"][0] @ maps.g  # [groups, F, L + 1]
        tables.legendre[...] = legendre[maps.pairs].transpose(0, 1, 3, 2)
        tables.at_one[...] = legendre.sum(axis=-1)[maps.pairs.diagonal()]
    for table, weight in zip(tables.weights, values["weights"], strict=True):
        table[...] = weight.transpose(0, 2, 1)
    for table, bias in zip(tables.biases, values["biases"], strict=True):
        table[...] = bias
    for linear in values["linear"]:
        tables.linear[...] = linear
    for free in values["embedding"]:
        tables.embedding[...] = (free @ maps.embedding).transpose(0, 2, 1)


def _read(tables: Tables, maps: _Maps, like: dict[str, list[Array]]) -> dict[str, list[Array]]:
    """The gradient in the tables as that in the parameters: `_write` the other way round."""
    found = {name: [np.zeros_like(value) for value in values] for name, values in like.items()}
    if tables.rho.size:
        found["rho"] = [tables.rho.transpose(0, 2, 1) @ maps.rho.T]
    if tables.f.size:
        found["f"] = [tables.f.transpose(0, 2, 1) @ maps.f.T]
        legendre = np.zeros((*found["g"][0].shape[:2], maps.g.shape[1]), found["g"][0].dtype)
        np.add.at(legendre, maps.pairs, tables.legendre.transpose(0, 1, 3, 2))
        np.add.at(legendre, maps.pairs.diagonal(), tables.at_one[..., None])
        found["g"] = [legendre @ maps.g.T]
    found["weights"] = [np.ascontiguousarray(table.transpose(0, 2, 1)) for table in tables.weights]
    found["biases"] = [np.ascontiguousarray(table) for table in tables.biases]
    found["linear"] = [np.ascontiguousarray(tables.linear) for _ in like["linear"]]
    found["embedding"] = [tables.embedding.transpose(0, 2, 1) @ maps.embedding.T for _ in like["embedding"]]
    return found
