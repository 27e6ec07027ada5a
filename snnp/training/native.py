"""Training of an s-NNP on the compiled kernel: pairs are stored, everything else is computed anew at every step.

Two operators with hand-written derivatives stand between parameters and loss: coefficients of splines to features, and
dE/dfeatures to forces. The readout between them is torch's. The derivative of the forces in the coefficients needs what
only the end of the backward pass knows, dL/dfeatures; so both operators share a record, and the first one computes it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from snnp.kernels.library import library
from snnp.kernels.plan import spline_table
from snnp.kernels.training import FeatureKernel, StoredPairs, TrainingBatch, supports_training
from snnp.models.plan import make_plan
from snnp.models.shells import make_shell
from snnp.models.spline_nnp import SplineNNP
from snnp.neighbours import neighbour_list, pair_vectors
from snnp.splines import SplineSet
from snnp.structure import Structure
from snnp.training.sums import Repulsion, repulsion_of

__all__ = ["NativeGeometry", "cut_native", "make_native", "native_features", "predict_native", "trains_natively"]


@dataclass(frozen=True)
class NativeGeometry:
    """Stored pairs of all atoms, and which atoms of them these are.

    Arguments:
        kernel: the passes. maps: [G, K * 4, free] per set of radial splines, parameters to polynomials.
        batch: the chosen atoms. species: [n] int64.
    """

    kernel: FeatureKernel
    maps: tuple[Tensor, Tensor]
    batch: TrainingBatch
    species: Tensor


def trains_natively(model: SplineNNP, dtype: torch.dtype, device: torch.device | str) -> bool:
    """Whether the compiled passes cover this model here."""
    known = torch.device(device).type == "cpu" and dtype in (torch.float32, torch.float64)
    return known and library() is not None and type(model) is SplineNNP and supports_training(make_plan(model))


def make_native(model: SplineNNP, structure: Structure, dtype: torch.dtype) -> tuple[NativeGeometry, Repulsion]:
    """Pairs of all atoms in float64, stored as `dtype`, and the repulsion; see `snnp.training.sums.make_sums`."""
    lists = neighbour_list(structure, model.cutoff)
    vectors = pair_vectors(structure, lists)
    species = model.species(structure)
    distance = vectors.norm(dim=1)
    kept = distance < model.cutoff
    i, j, vectors, distance = lists.i[kept], lists.j[kept], vectors[kept], distance[kept]
    first = np.concatenate([[0], np.cumsum(torch.bincount(i, minlength=structure.n_atoms).numpy())]).astype(np.int64)
    columns = [*(vectors / distance[:, None]).T, distance]
    stored = StoredPairs(
        first,
        j.to(torch.int32).numpy(),
        species.to(torch.int32).numpy(),
        *(column.to(dtype).contiguous().numpy() for column in columns),
    )
    everyone = np.arange(structure.n_atoms)
    owner = structure.structure_of_atom.to(torch.int32).numpy()
    batch = TrainingBatch(stored, everyone, np.zeros_like(everyone), owner, structure.n_structures)
    kernel = FeatureKernel(make_plan(model), np.float32 if dtype == torch.float32 else np.float64)
    maps = (_polynomials(model.rho).to(dtype), _polynomials(model.f).to(dtype))
    # The repulsion reaches a few neighbours only; shells of those are small.
    reach = model.config.repulsion.outer if model.config.repulsion else 0.5
    shell = make_shell((i, j, vectors), species, torch.arange(structure.n_atoms), reach)
    return NativeGeometry(kernel, maps, batch, species), repulsion_of(model, shell, structure)


def _polynomials(splines: SplineSet) -> Tensor:
    """[G, K * 4, free]: the table of polynomials that each free parameter stands for (float64)."""
    lower = np.array([grid.lower for grid in splines.grids])
    spacing = np.array([grid.spacing for grid in splines.grids])
    n_intervals = np.array([grid.n_intervals for grid in splines.grids])
    free_to_full = splines.exact("map").cpu()
    n_full = free_to_full.shape[1]
    each = np.broadcast_to(np.eye(n_full), (len(lower), n_full, n_full))
    table = torch.from_numpy(spline_table(lower, spacing, n_intervals, each).coefficients)
    return table.flatten(1, 2) @ (free_to_full.T if splines.ends != ("free", "free") else torch.eye(n_full).double())


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
    batch = replace(
        geometry.batch,
        rows=rows.numpy(),
        shift=np.repeat(first - local, counts),
        owner=owner.to(torch.int32).numpy(),
        n_structures=len(frames),
    )
    return replace(geometry, batch=batch, species=geometry.species[rows])


def _tables(model: SplineNNP, geometry: NativeGeometry) -> tuple[Tensor, ...]:
    """The model's coefficients in the layouts of the kernel's tables; differentiable."""
    tables = []
    for splines, change, view in zip(
        (model.rho, model.f), geometry.maps, (geometry.kernel.rho, geometry.kernel.f), strict=True
    ):
        if view.size == 0:
            tables.append(change.new_zeros(view.shape))
            continue
        rows = (change @ splines.free.transpose(1, 2)).unflatten(1, (-1, 4))
        tables.append(functional.pad(rows, (0, view.shape[-1] - rows.shape[-1])))
    if geometry.kernel.legendre.size == 0:
        shapes = geometry.kernel.legendre.shape, geometry.kernel.at_one.shape
        return (*tables, *(tables[0].new_zeros(shape) for shape in shapes))
    legendre = model.g.coefficients() @ model.projection.T  # [groups, F, L + 1]
    at_one = legendre.sum(dim=-1)
    if geometry.kernel.legendre.shape[0] > 1:
        pairs = model.unordered
        angles, at_one = legendre[pairs], at_one[pairs.diagonal()]
    else:
        angles = legendre[:1, None]
    padding = (0, geometry.kernel.at_one.shape[-1] - at_one.shape[-1])
    return (*tables, functional.pad(angles.transpose(2, 3), padding), functional.pad(at_one, padding))


@dataclass
class _Record:
    """What the two operators of one evaluation share; `force` holds p, s, h and A' once the forces were asked for."""

    kernel: FeatureKernel
    batch: TrainingBatch
    moments: np.ndarray = field(default_factory=lambda: np.zeros(0))
    h: np.ndarray = field(default_factory=lambda: np.zeros(0))
    force: dict[str, np.ndarray] = field(default_factory=dict)


class _Features(torch.autograd.Function):
    """Tables -> features [n, D]."""

    @staticmethod
    def forward(ctx: Any, record: _Record, *tables: Tensor) -> Tensor:
        ctx.record = record
        record.kernel.set_tables(*(table.detach().numpy() for table in tables))
        features, record.moments = record.kernel.features(record.batch, torch.get_num_threads())
        return torch.from_numpy(features)[:, : record.kernel.n_features]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        record: _Record = ctx.record
        arrays = {"moments": record.moments, "g": record.kernel.padded(gradient.detach().numpy()), **record.force}
        found = record.kernel.gradients(record.batch, torch.get_num_threads(), **arrays)
        return None, *(torch.from_numpy(table) for table in found)


class _Forces(torch.autograd.Function):
    """h = dE/dfeatures [n, D] -> forces [n, 3], virials [B, 3, 3]; takes features to come before them backward."""

    @staticmethod
    def forward(ctx: Any, record: _Record, h: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        ctx.record, ctx.like = record, features
        record.h = record.kernel.padded(h.detach().numpy())
        forces, virial = record.kernel.forces(record.batch, record.moments, record.h, torch.get_num_threads())
        return torch.from_numpy(forces).to(h.dtype), torch.from_numpy(virial).to(h.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, force: Tensor, virial: Tensor) -> tuple[Any, ...]:
        record: _Record = ctx.record
        p, s = (value.double().contiguous().numpy() for value in (force, virial))
        n_threads = torch.get_num_threads()
        tangents, moments = record.kernel.tangents(record.batch, record.moments, p, s, n_threads)
        record.force = {"h": record.h, "moments_dot": moments, "p": p, "s": s}
        return None, torch.from_numpy(tangents)[:, : record.kernel.n_features], torch.zeros_like(ctx.like)


def native_features(model: SplineNNP, geometry: NativeGeometry) -> Tensor:
    """[n, D] features of the chosen atoms; differentiable in the parameters."""
    record = _Record(geometry.kernel, geometry.batch)
    return _Features.apply(record, *_tables(model, geometry))


def predict_native(model: SplineNNP, geometry: NativeGeometry) -> tuple[Tensor, Tensor, Tensor]:
    """Energies [n] (without E0 and repulsion), forces [n, 3], and sums of r (x) dE/dr [B, 3, 3]; differentiable."""
    record = _Record(geometry.kernel, geometry.batch)
    features = _Features.apply(record, *_tables(model, geometry))
    energies, h = model.readout(features, geometry.species)
    forces, virial = _Forces.apply(record, h, features)
    return energies, forces, virial
