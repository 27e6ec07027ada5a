"""Sums: the geometry of an s-NNP's atoms, computed once, joined from chunks and cut by atoms."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from snnp.models.shells import Shell
from snnp.models.spline.model import Geometry, SplineNNP
from snnp.neighbours import Neighbours, neighbour_list, pair_vectors
from snnp.structure import Structure

__all__ = ["cut_sums", "make_sums"]

T = TypeVar("T")

_CHUNK_STRUCTURES = 16
"""Structures whose geometry is formed at once in float64: few, so that little more than the result is ever held."""


def make_sums(
    model: SplineNNP, structures: Sequence[Structure], dtype: torch.dtype, device: torch.device | str
) -> Geometry:
    """Geometry of all atoms, computed in float64 and stored as `dtype`.

    Arguments:
        model: in float64 on the CPU; fixes cutoffs and grids, its parameters are not used.
        structures: at least one.
    """
    chunks = [
        Structure.concatenate(structures[k : k + _CHUNK_STRUCTURES])
        for k in range(0, len(structures), _CHUNK_STRUCTURES)
    ]
    lists = [neighbour_list(chunk, model.cutoff) for chunk in chunks]
    n_columns = _largest_shells(lists, chunks, (model.cutoff, model.config.angular_cutoff or model.cutoff))
    parts, n_atoms = [], 0
    for chunk, neighbours in zip(chunks, lists, strict=True):
        pairs = (neighbours.i, neighbours.j, pair_vectors(chunk, neighbours))
        geometry = model.geometry(pairs, model.species(chunk), torch.arange(chunk.n_atoms), n_columns, reused=True)
        cast = _map_tensors(geometry, lambda t: t.to(dtype=dtype if t.is_floating_point() else None, device=device))
        parts.append(_relabelled(cast, lambda index, offset=n_atoms: index + offset))  # type: ignore[misc]
        n_atoms += chunk.n_atoms
    return _concatenate(parts)


def cut_sums(geometry: Geometry, rows: Tensor, local: Tensor) -> Geometry:
    """Geometry of the atoms `rows` [n], with indices that count within them: `local` [N] is the new index of each."""
    return _relabelled(_map_tensors(geometry, lambda tensor: tensor.index_select(0, rows)), lambda index: local[index])


def _largest_shells(
    lists: Sequence[Neighbours], structures: Sequence[Structure], reach: tuple[float, float]
) -> tuple[int, int]:
    """Largest number of neighbours within each of two distances."""
    widest = [1, 1]
    for neighbours, structure in zip(lists, structures, strict=True):
        distance = pair_vectors(structure, neighbours).norm(dim=1)
        for k in range(2):
            counts = torch.bincount(neighbours.i[distance < reach[k]], minlength=1)
            widest[k] = max(widest[k], int(counts.max()))
    return widest[0], widest[1]


def _relabelled(geometry: Geometry, new: Callable[[Tensor], Tensor]) -> Geometry:
    def relabel(shell: Shell) -> Shell:
        return replace(shell, centre=new(shell.centre), j=new(shell.j))

    radial = relabel(geometry.radial_shell)
    angular = radial if geometry.angular_shell is geometry.radial_shell else relabel(geometry.angular_shell)
    return replace(geometry, radial_shell=radial, angular_shell=angular)


def _map_tensors(value: T, function: Callable[[Tensor], Tensor]) -> T:
    """Apply a function to every tensor of a nested dataclass; shared parts stay shared."""
    done: dict[int, Any] = {}

    def visit(node: Any) -> Any:
        if isinstance(node, Tensor):
            return function(node)
        if not is_dataclass(node) or isinstance(node, type):
            return node
        if id(node) not in done:
            done[id(node)] = replace(node, **{f.name: visit(getattr(node, f.name)) for f in fields(node)})
        return done[id(node)]

    return visit(value)


def _concatenate(parts: Sequence[T]) -> T:
    """Join nested dataclasses of tensors along the first axis; parts shared within the first stay shared."""
    done: dict[int, Any] = {}

    def visit(nodes: Sequence[Any]) -> Any:
        first = nodes[0]
        if isinstance(first, Tensor):
            return torch.cat(list(nodes))
        if first is None:
            return None
        if id(first) not in done:
            columns = {f.name: visit([getattr(node, f.name) for node in nodes]) for f in fields(first)}
            done[id(first)] = replace(first, **columns)
        return done[id(first)]

    return visit(parts)
