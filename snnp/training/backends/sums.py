"""Torch on the sums of an s-NNP: what no parameter changes is computed once, for all atoms, and cut by atoms.

Pair gradients are analytic and differentiable in the parameters, so a force loss needs one backward pass.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor

from snnp.models.gradients import Shell, sum_forces
from snnp.models.potential import Potential
from snnp.models.spline.model import Geometry, SplineNNP
from snnp.neighbours import neighbour_list, pair_vectors
from snnp.structure import Structure
from snnp.training.backends.backend import Backend, Batch, Predicted

__all__ = ["SumsBackend"]

_CHUNK_ATOMS = 512
"""Atoms whose geometry is formed at once in float64: few, so that little more than the result is ever held."""


@dataclass(frozen=True)
class SumsBackend(Backend):
    """Geometry of an s-NNP's atoms (`snnp.models.spline.model.Geometry`)."""

    dtype: torch.dtype
    device: torch.device

    def prepare(self, model: Potential, structure: Structure) -> Geometry:
        assert isinstance(model, SplineNNP)
        lists, species = neighbour_list(structure, model.cutoff), model.species(structure)
        vectors = pair_vectors(structure, lists)
        distance = vectors.norm(dim=1)
        radial, angular = (
            max(1, int(torch.bincount(lists.i[distance < reach], minlength=1).max()))
            for reach in (model.cutoff, model.config.angular_cutoff or model.cutoff)
        )
        parts = []
        for centre in torch.arange(structure.n_atoms).split(_CHUNK_ATOMS):
            # The list is sorted by centre: the pairs of some atoms in a row are a run of it.
            first, last = torch.searchsorted(lists.i, torch.stack([centre[0], centre[-1] + 1])).tolist()
            pairs = (lists.i[first:last] - centre[0], lists.j[first:last], vectors[first:last])
            part = model.geometry(pairs, species, centre, (radial, angular), reused=True)
            parts.append(_map(lambda t: t.to(self.device, self.dtype if t.is_floating_point() else None), part))
        return _map(lambda *tensors: torch.cat(tensors), *parts)

    def cut(self, geometry: Geometry, frames: Tensor, rows: Tensor, owner: Tensor) -> Geometry:
        local = torch.empty_like(geometry.species)
        local[rows] = torch.arange(len(rows), device=rows.device)
        found = _map(lambda tensor: tensor.index_select(0, rows), geometry)

        def relabel(shell: Shell) -> Shell:
            return replace(shell, centre=local[shell.centre], j=local[shell.j])

        radial = relabel(found.radial_shell)
        angular = radial if found.angular_shell is found.radial_shell else relabel(found.angular_shell)
        return replace(found, radial_shell=radial, angular_shell=angular)

    def predict(self, model: Potential, batch: Batch, *, forces: bool = True) -> Predicted:
        assert isinstance(model, SplineNNP)
        energies, gradients = model.evaluate(batch.geometry)
        energies = model.above_isolated(energies, batch.geometry.species)
        found = torch.zeros_like(batch.forces)
        strain = torch.zeros_like(batch.stress).flatten(1)
        for shell, gradient in gradients:
            found = found + sum_forces(shell.pair_gradients(gradient), len(found))
            # Sum over an atom's neighbours first: a product of small matrices instead of an outer product per pair.
            per_atom = (shell.unit * shell.distance[..., None]).transpose(1, 2) @ gradient
            strain = strain.index_add(0, batch.owner, per_atom.flatten(1))
        return Predicted.of(batch, energies, found, batch.symmetric(strain.unflatten(1, (3, 3))))

    def features(self, model: Potential, batch: Batch) -> Tensor:
        assert isinstance(model, SplineNNP)
        return model.features(batch.geometry)


def _map(function: Callable[..., Tensor], *values: Any) -> Any:
    """Apply a function to tensors at the same place of nested dataclasses; parts shared in the first stay shared."""
    done: dict[int, Any] = {}

    def visit(*nodes: Any) -> Any:
        first = nodes[0]
        if isinstance(first, Tensor):
            return function(*nodes)
        if not is_dataclass(first) or isinstance(first, type):
            return first
        if id(first) not in done:
            columns = {f.name: visit(*(getattr(node, f.name) for node in nodes)) for f in fields(first)}
            done[id(first)] = replace(first, **columns)
        return done[id(first)]

    return visit(*values)
