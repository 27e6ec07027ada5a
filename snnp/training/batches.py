"""Batches of prepared frames: all prepared once and held, or a dataset larger than memory piece by piece."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from snnp.data import Dataset, Frame, Frames
from snnp.models.gradients import sum_forces, sum_stress
from snnp.models.potential import Potential
from snnp.neighbours import neighbour_list, pair_vectors
from snnp.structure import Structure
from snnp.training.backends import Backend, Batch
from snnp.training.compressed import CompressedFrame
from snnp.training.transfer import frame_weights

__all__ = ["Batches", "Inside", "StreamedBatches", "grouped", "prepare"]

_PIECE_ATOMS = 20_000  # of a stream, prepared at once: neighbours take some hundred times the memory of the frames
_ROW_GROUPS = 4  # shuffled together

_OF_FRAMES = ("counts", "volume", "energy", "stress", "weight", "push", "limits")

Inside = Callable[[Frames], np.ndarray]
"""[B] bool, which frames are within the limits of the data."""


@dataclass(frozen=True)
class Batches:
    """All frames as one batch; `starts` [B + 1] are the rows of each frame."""

    backend: Backend
    everything: Batch
    starts: np.ndarray

    @property
    def n_frames(self) -> int:
        return len(self.starts) - 1

    def batch(self, frames: Sequence[int] | np.ndarray) -> Batch:
        everything, device = self.everything, self.backend.device
        spans = [np.arange(self.starts[b], self.starts[b + 1]) for b in frames]
        rows = torch.from_numpy(np.concatenate(spans)).to(device)
        chosen = torch.as_tensor(np.asarray(frames, dtype=np.int64)).to(device)
        owner = torch.repeat_interleave(torch.arange(len(frames), device=device), everything.counts[chosen])
        cut = {name: getattr(everything, name)[rows] for name in ("forces", "energies")}
        cut |= {name: getattr(everything, name)[chosen] for name in _OF_FRAMES}
        sources = [everything.sources[frame] for frame in frames] if everything.sources else ()
        return Batch(self.backend.cut(everything.geometry, chosen, rows, owner), owner, **cut, sources=sources)

    def epoch(self, seed: Sequence[int], batch_atoms: int) -> Iterator[tuple[float, Batch]]:
        """Batches of all frames, in an order that depends on the seed only, and the share of them that lies before."""
        groups = self.groups(np.random.default_rng(seed).permutation(self.n_frames), batch_atoms)
        return ((k / len(groups), self.batch(group)) for k, group in enumerate(groups))

    def groups(self, order: Iterable[int], batch_atoms: int) -> list[list[int]]:
        """Frames in the given order, so many together that they hold at most `batch_atoms` atoms (at least one).

        Compressed ones are among themselves, evenly spread: steps on the data are the same with and without them.
        """
        order, counts = np.asarray(order), np.diff(self.starts)
        beyond = self.everything.push.any(dim=2).any(dim=1).cpu().numpy()[order]
        if not beyond.any():
            return grouped(counts, order, batch_atoms)
        parts = [grouped(counts, order[where], batch_atoms) for where in (~beyond, beyond)]
        placed = [((k + 0.5) / len(part), group) for part in parts for k, group in enumerate(part)]
        return [group for _, group in sorted(placed)]


@dataclass(frozen=True)
class StreamedBatches:
    """The training part of a dataset that is never held whole: prepared piece by piece, anew in every epoch.

    Arguments:
        model: fixes the form, in float64 on the CPU; none that is trained.
        dataset: the rows of the training part. inside: which of its frames are learned.
        compressed: structures that are learned beside them, a share with each piece. energy_scale, zeros: see
            `prepare`.
    """

    backend: Backend
    model: Potential
    dataset: Dataset
    inside: Inside
    compressed: Sequence[CompressedFrame]
    energy_scale: float | None = None
    zeros: Mapping[str, float] | None = None

    def epoch(self, seed: Sequence[int], batch_atoms: int) -> Iterator[tuple[float, Batch]]:
        done, total = 0, len(self.dataset)
        random = np.random.default_rng([*seed, 1])
        others = random.permutation(len(self.compressed))
        for frames in self.dataset.chunks(shuffle=seed, buffer=_ROW_GROUPS):
            for rows in frames.pieces(max(_PIECE_ATOMS, 20 * batch_atoms)):
                n = rows.stop - rows.start
                piece, share = frames[rows].checked(), n / total
                piece = piece.take(self.inside(piece))
                mine = others[len(others) * done // total : len(others) * (done + n) // total]
                if len(piece) + len(mine):
                    beyond = [self.compressed[k] for k in mine]
                    prepared = prepare(self.backend, self.model, piece, beyond, self.energy_scale, self.zeros)
                    groups = prepared.groups(random.permutation(prepared.n_frames), batch_atoms)
                    for k, group in enumerate(groups):
                        yield done / total + share * k / len(groups), prepared.batch(group)
                done += n


def grouped(counts: np.ndarray, order: Iterable[int], most: int) -> list[list[int]]:
    """Frames in the given order, so many together that of their `counts` [B] of atoms there are at most `most`."""
    sizes, groups, filled = counts.tolist(), list[list[int]](), most
    for frame in order:
        filled += sizes[frame]
        if filled > most or not groups:
            groups.append([])
            filled = sizes[frame]
        groups[-1].append(int(frame))
    return groups


@torch.no_grad()
def prepare(
    backend: Backend,
    model: Potential,
    frames: Sequence[Frame],
    compressed: Sequence[CompressedFrame] = (),
    energy_scale: float | None = None,
    zeros: Mapping[str, float] | None = None,
) -> Batches:
    """Compute everything that training needs of the frames, in float64, and store it in the backend's type.

    Arguments:
        backend: made for the form of the model.
        model: fixes cutoffs, grids, E0 and repulsion; its parameters are not used. It must be in float64 on the CPU.
        frames: labelled structures.
        compressed: structures beyond the data, which come after the frames.
        energy_scale: of `frame_weights`, in eV/atom; None weighs all frames alike.
        zeros: eV per element, taken off the labels of atomic energies; by default the model's E0.
    """
    frames = Frames.of(frames)
    weight = torch.from_numpy(np.append(frame_weights(model, frames, energy_scale), np.ones(len(compressed))))
    if compressed:
        frames = Frames.concatenate([frames, Frames.of(each.frame for each in compressed)])
    structure = frames.structure()
    volume = torch.where(structure.pbc.all(dim=1), structure.volume(), 1.0)
    geometry = backend.prepare(model, structure)
    numbers = {"volume": volume, "weight": weight, **_labels(model, frames, structure, zeros or {})}
    numbers |= _works(model, structure, volume, compressed)
    columns = {name: value.to(backend.device, backend.dtype) for name, value in numbers.items()}
    columns["counts"] = structure.atoms_per_structure.to(backend.device)
    owner = structure.structure_of_atom.to(backend.device)
    return Batches(backend, Batch(geometry, owner, **columns, sources=frames.sources), frames.starts)


def _labels(model: Potential, frames: Frames, structure: Structure, zeros: Mapping[str, float]) -> dict[str, Tensor]:
    """Those of `Batch` in float64: E0 (of atoms: their `zeros`) and repulsion are taken off."""
    kinds = (model.reference_energies, {**model.reference_energies, **zeros})
    of_elements = torch.tensor([[kind[s] for s in model.elements] for kind in kinds], dtype=torch.float64)
    known, zero = of_elements[:, model.species(structure)]
    energies = torch.from_numpy(frames.energies.copy()) - zero
    energy, forces = torch.from_numpy(frames.energy.copy()), torch.from_numpy(frames.forces.copy())
    stress = torch.from_numpy(np.where(frames.has_volume[:, None, None], frames.stress, np.nan))
    if model.repulsion is not None:
        lists = neighbour_list(structure, model.repulsion.outer)
        of_atoms, pairs = model.repulsion_energies(structure, pair_vectors(structure, lists), lists)
        known, energies = known + of_atoms, energies - of_atoms
        forces = forces - sum_forces(pairs, structure.n_atoms)
        stress = stress - sum_stress(pairs, structure)
    energy = energy.index_add(0, structure.structure_of_atom, -known)
    return {"energy": energy, "forces": forces, "stress": stress, "energies": energies}


def _works(
    model: Potential, structure: Structure, volume: Tensor, compressed: Sequence[CompressedFrame]
) -> dict[str, Tensor]:
    """`push` and `limits` (the repulsion's work taken off) of a batch whose last structures are the compressed ones."""
    push = torch.zeros(structure.n_structures, 3, 3, dtype=torch.float64)
    limits = torch.tensor([-torch.inf, torch.inf], dtype=torch.float64).repeat(structure.n_structures, 1)
    for k, each in enumerate(compressed, structure.n_structures - len(compressed)):
        push[k] = torch.from_numpy(-each.way) * volume[k] / (each.frame.n_atoms * each.work)
        limits[k] = torch.tensor([each.least, each.most])
    if model.repulsion is not None and compressed:
        lists = neighbour_list(structure, model.repulsion.outer)
        pairs = model.repulsion_energies(structure, pair_vectors(structure, lists), lists)[1]
        owner = structure.structure_of_atom[pairs.i]
        of_pair = torch.einsum("pa,pab,pb->p", pairs.vectors, push[owner], pairs.gradients) / volume[owner]
        limits = limits.index_add(0, owner, -of_pair[:, None].expand(-1, 2))
    return {"push": push, "limits": limits}
