"""Prepared data: geometry, labels and reference energies of all frames, computed once and cut into batches by rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from snnp.data import Frame
from snnp.models.potential import sum_forces
from snnp.models.shells import Shell
from snnp.models.spline_nnp import Geometry, SplineNNP
from snnp.neighbours import Neighbours, neighbour_list, pair_vectors
from snnp.structure import Structure

__all__ = ["Batch", "PreparedData", "prepare"]

T = TypeVar("T")


@dataclass(frozen=True)
class Batch:
    """Frames ready for a training step: n atoms of B frames.

    `geometry` of the atoms (indices local to the batch), `owner` [n] frame of each atom, `counts` [B] atoms per frame,
    `volume` [B] Å³ (1 where a frame is not fully periodic). Labels have E0 and the repulsion taken off: `energy` [B],
    `forces` [n, 3], `stress` [B, 3, 3]; what a frame lacks is NaN.
    """

    geometry: Geometry
    owner: Tensor
    counts: Tensor
    volume: Tensor
    energy: Tensor
    forces: Tensor
    stress: Tensor


@dataclass(frozen=True)
class PreparedData:
    """All frames in one set of arrays; `starts` [B + 1] are the rows of each frame."""

    everything: Batch
    starts: np.ndarray

    @property
    def n_frames(self) -> int:
        """Number of frames."""
        return len(self.starts) - 1

    def batch(self, frames: Sequence[int]) -> Batch:
        """Cut out some frames."""
        chosen = torch.as_tensor(np.asarray(frames, dtype=np.int64))
        spans = [np.arange(self.starts[b], self.starts[b + 1]) for b in frames]
        rows = torch.from_numpy(np.concatenate(spans))
        everything = self.everything
        device = everything.energy.device
        chosen, rows = chosen.to(device), rows.to(device)
        counts = everything.counts[chosen]
        owner = torch.repeat_interleave(torch.arange(len(frames), device=device), counts)
        local = torch.empty(int(self.starts[-1]), dtype=torch.int64, device=device)
        local[rows] = torch.arange(len(rows), device=device)
        return Batch(
            geometry=_rows(everything.geometry, rows, local),
            owner=owner,
            counts=counts,
            volume=everything.volume[chosen],
            energy=everything.energy[chosen],
            forces=everything.forces[rows],
            stress=everything.stress[chosen],
        )

    def batches(self, order: np.ndarray, batch_atoms: int) -> list[list[int]]:
        """Group frames in the given order so that each batch holds at most `batch_atoms` atoms (at least one frame)."""
        groups: list[list[int]] = [[]]
        filled = 0
        for frame in order.tolist():
            size = int(self.starts[frame + 1] - self.starts[frame])
            if groups[-1] and filled + size > batch_atoms:
                groups.append([])
                filled = 0
            groups[-1].append(frame)
            filled += size
        return groups


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


def _rows(geometry: Geometry, rows: Tensor, local: Tensor) -> Geometry:
    """Geometry of some atoms, with indices that count within them."""
    cut = _map_tensors(geometry, lambda tensor: tensor.index_select(0, rows))

    def relabel(shell: Shell) -> Shell:
        return replace(shell, centre=local[shell.centre], j=local[shell.j])

    radial = relabel(cut.radial_shell)
    angular = radial if cut.angular_shell is cut.radial_shell else relabel(cut.angular_shell)
    return replace(cut, radial_shell=radial, angular_shell=angular)


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


def _chunk_labels(frames: Sequence[Frame], structure: Structure, baseline: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Energies [B] (E0 and repulsion `baseline` [n] taken off), forces [n, 3], stress [B, 3, 3]; NaN where missing."""
    nan = float("nan")
    energy = torch.tensor([nan if f.energy is None else f.energy for f in frames], dtype=torch.float64)
    energy = energy.index_add(0, structure.structure_of_atom, -baseline)
    forces = [np.full((f.structure.n_atoms, 3), nan) if f.forces is None else f.forces for f in frames]
    stress = [np.full((3, 3), nan) if f.stress is None else f.stress for f in frames]
    return energy, torch.from_numpy(np.concatenate(forces)), torch.from_numpy(np.stack(stress))


def _repulsive_labels(model: SplineNNP, geometry: Geometry, structure: Structure) -> tuple[Tensor, Tensor, Tensor]:
    """Repulsion of a chunk: energies [n], forces [n, 3], stress times volume [B, 3, 3]."""
    energies, gradients = model.repulsion(geometry.radial_shell, structure.numbers)
    pairs = geometry.radial_shell.pair_gradients(gradients)
    outer = pairs.vectors[:, :, None] * pairs.gradients[:, None, :]
    virial = torch.zeros(structure.n_structures, 3, 3, dtype=outer.dtype)
    virial.index_add_(0, structure.structure_of_atom[pairs.i], outer)
    return energies, sum_forces(pairs, structure.n_atoms), virial


def _prepare_chunk(
    model: SplineNNP, frames: Sequence[Frame], structure: Structure, lists: Neighbours, n_columns: tuple[int, int]
) -> Batch:
    """Geometry and labels of some frames in float64."""
    species = model.species(structure)
    pairs = (lists.i, lists.j, pair_vectors(structure, lists))
    geometry = model.geometry(pairs, species, torch.arange(structure.n_atoms), n_columns, reused=True)
    repulsion, forces0, virial0 = _repulsive_labels(model, geometry, structure)
    reference = torch.tensor([model.reference_energies[s] for s in model.elements], dtype=torch.float64)
    energy, forces, stress = _chunk_labels(frames, structure, reference[species] + repulsion)
    periodic = structure.pbc.all(dim=1)
    volume = torch.where(periodic, structure.volume(), torch.ones_like(structure.volume()))
    stress[~periodic] = float("nan")
    return Batch(
        geometry=geometry,
        owner=structure.structure_of_atom,
        counts=structure.atoms_per_structure,
        volume=volume,
        energy=energy,
        forces=forces - forces0,
        stress=stress - virial0 / volume[:, None, None],
    )


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


@torch.no_grad()
def prepare(
    model: SplineNNP, frames: Sequence[Frame], dtype: torch.dtype, device: torch.device | str = "cpu"
) -> PreparedData:
    """Compute everything that training needs of the frames, in float64, and store it as `dtype`.

    Arguments:
        model: fixes cutoffs, grids, E0 and repulsion; its parameters are not used. It must be in float64 on the CPU.
        frames: labelled structures.
    """
    chunks = [frames[k : k + 16] for k in range(0, len(frames), 16)]
    structures = [Structure.concatenate([f.structure for f in chunk]) for chunk in chunks]
    lists = [neighbour_list(structure, model.cutoff) for structure in structures]
    n_columns = _largest_shells(lists, structures, (model.cutoff, model.config.angular_cutoff or model.cutoff))
    parts, atoms, n_frames = [], 0, 0
    for chunk, structure, neighbours in zip(chunks, structures, lists, strict=True):
        part = _prepare_chunk(model, chunk, structure, neighbours, n_columns)
        part = _map_tensors(part, lambda t: t.to(dtype=dtype if t.is_floating_point() else None, device=device))
        part = replace(part, geometry=_shift_indices(part.geometry, atoms), owner=part.owner + n_frames)
        parts.append(part)
        atoms, n_frames = atoms + structure.n_atoms, n_frames + len(chunk)
    everything = _concatenate(parts)
    starts = np.concatenate([[0], np.cumsum(everything.counts.cpu().numpy())])
    return PreparedData(everything, starts)


def _shift_indices(geometry: Geometry, offset: int) -> Geometry:
    def shift(shell: Shell) -> Shell:
        return replace(shell, centre=shell.centre + offset, j=shell.j + offset)

    radial = shift(geometry.radial_shell)
    angular = radial if geometry.angular_shell is geometry.radial_shell else shift(geometry.angular_shell)
    return replace(geometry, radial_shell=radial, angular_shell=angular)
