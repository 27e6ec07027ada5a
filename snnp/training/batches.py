"""Prepared data: geometry, labels and reference energies of all frames, computed once and cut into batches by rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from snnp.data import Frame
from snnp.models.potential import Potential, sum_forces, sum_stress
from snnp.models.spline.model import Geometry, SplineNNP
from snnp.neighbours import neighbour_list, pair_vectors
from snnp.structure import Structure
from snnp.training.backends.compiled import NativeGeometry, cut_native, make_native, trains_natively
from snnp.training.backends.pairs import Pairs, cut_pairs, make_pairs
from snnp.training.backends.sums import cut_sums, make_sums

__all__ = ["AnyGeometry", "Batch", "PreparedData", "prepare"]

AnyGeometry = NativeGeometry | Geometry | Pairs


@dataclass(frozen=True)
class Batch:
    """Frames ready for a training step: n atoms of B frames.

    `geometry` of the atoms (indices local to the batch): stored pairs for the compiled kernel or sums for torch (both
    of an s-NNP), or pairs for any family. `owner` [n]
    frame of each atom, `counts` [B] atoms per frame, `volume` [B] Å³ (1 where a frame is not fully periodic). Labels
    have E0 and the fixed repulsion taken off: `energy` [B], `forces` [n, 3], `stress` [B, 3, 3]; what a
    frame lacks is NaN. `tolerance` [B] is the error of the energy in eV/atom that costs nothing.
    """

    geometry: AnyGeometry
    owner: Tensor
    counts: Tensor
    volume: Tensor
    energy: Tensor
    forces: Tensor
    stress: Tensor
    tolerance: Tensor


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
        return Batch(
            geometry=self._cut(chosen, rows, owner),
            owner=owner,
            counts=counts,
            volume=everything.volume[chosen],
            energy=everything.energy[chosen],
            forces=everything.forces[rows],
            stress=everything.stress[chosen],
            tolerance=everything.tolerance[chosen],
        )

    def _cut(self, frames: Tensor, rows: Tensor, owner: Tensor) -> AnyGeometry:
        geometry = self.everything.geometry
        if isinstance(geometry, NativeGeometry):
            return cut_native(geometry, rows, frames, self.starts, owner)
        local = torch.empty(int(self.starts[-1]), dtype=torch.int64, device=rows.device)
        local[rows] = torch.arange(len(rows), device=rows.device)
        if isinstance(geometry, Pairs):
            return cut_pairs(geometry, frames, rows, local, owner)
        return cut_sums(geometry, rows, local)

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


def _labels(model: Potential, frames: Sequence[Frame], structure: Structure) -> tuple[Tensor, Tensor, Tensor]:
    """Energies [B] (E0 and repulsion taken off), forces [n, 3], stress [B, 3, 3] in float64; NaN where missing."""
    nan = float("nan")
    reference = torch.tensor([model.reference_energies[s] for s in model.elements], dtype=torch.float64)
    known = reference[model.species(structure)]
    energy = torch.tensor([nan if f.energy is None else f.energy for f in frames], dtype=torch.float64)
    forces = torch.from_numpy(
        np.concatenate([np.full((f.structure.n_atoms, 3), nan) if f.forces is None else f.forces for f in frames])
    )
    stress = torch.from_numpy(np.stack([np.full((3, 3), nan) if f.stress is None else f.stress for f in frames]))
    stress[~structure.pbc.all(dim=1)] = nan
    if model.repulsion is not None:
        lists = neighbour_list(structure, model.repulsion.outer)
        energies, pairs = model.repulsion_energies(structure, pair_vectors(structure, lists), lists)
        known = known + energies
        forces = forces - sum_forces(pairs, structure.n_atoms)
        stress = stress - sum_stress(pairs, structure)
    return energy.index_add(0, structure.structure_of_atom, -known), forces, stress


@torch.no_grad()
def prepare(
    model: Potential,
    frames: Sequence[Frame],
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    *,
    displacement: float | None = None,
    tolerance: Sequence[float] | None = None,
) -> PreparedData:
    """Compute everything that training needs of the frames, in float64, and store it as `dtype`.

    Arguments:
        model: fixes cutoffs, grids, E0 and repulsion; its parameters are not used. It must be in float64 on the CPU.
        frames: labelled structures.
        displacement: Å by which directional training changes the vectors of pairs; None: geometry stays as it is.
            An s-NNP then trains on the compiled kernel, or on sums over neighbours, any other family on pairs.
        tolerance: eV/atom per frame, see `Batch`; none by default.
    """
    structure = Structure.concatenate([frame.structure for frame in frames])
    periodic = structure.pbc.all(dim=1)
    volume = torch.where(periodic, structure.volume(), torch.ones_like(structure.volume()))
    geometry: AnyGeometry
    if isinstance(model, SplineNNP) and displacement is None and trains_natively(model, dtype, device):
        geometry = make_native(model, structure, dtype)
    elif isinstance(model, SplineNNP) and displacement is None:
        geometry = make_sums(model, [frame.structure for frame in frames], dtype, device)
    else:
        geometry = make_pairs(structure, model.cutoff, displacement or 0.0).to(dtype, device)
    labels = _labels(model, frames, structure)
    counts = structure.atoms_per_structure
    owner, counts_there = structure.structure_of_atom.to(device), counts.to(device)
    allowed = torch.zeros_like(volume) if tolerance is None else torch.tensor(tolerance, dtype=torch.float64)
    floats = (value.to(dtype=dtype, device=device) for value in (volume, *labels, allowed))
    return PreparedData(Batch(geometry, owner, counts_there, *floats), np.concatenate([[0], np.cumsum(counts.numpy())]))
