"""What the checks of data look at: every frame once, reduced to a few numbers."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from ase.data import chemical_symbols
from torch import Tensor

from snnp.data import Frame
from snnp.doctor.environments import descriptors, summaries
from snnp.doctor.linear import CUTOFF
from snnp.errors import DataError
from snnp.neighbours import Neighbours, neighbour_list, pair_vectors
from snnp.structure import Structure

__all__ = ["UNASSIGNED", "Survey", "batches", "survey"]

UNASSIGNED = "other"
"""Name of the split for files that belong to none, beside files that do: nothing leaks from or into it."""

_BATCH_ATOMS = 2000
_MAP_ATOMS = 6000
_LEAST_VOLUME = 0.3  # Å³; hydrogen in the centre of Jupiter has 1


@dataclass(frozen=True)
class Survey:
    """All n frames with Z elements and Q = Z (Z + 1) / 2 pairs of elements.

    Arguments:
        frames: of all splits, one after the other; split: [n] name of each one's.
        elements: atomic numbers; pairs: [Q] of them.
        counts: [n, Z] atoms per element.
        energy: [n] eV, NaN where missing.
        closest: [n, Q] Å, shortest distance below 5 Å, else infinite.
        force_rms, force_max: [n] eV/Å; net_force: [n] eV/Å per atom; torque: [n] relative, NaN where periodic; all NaN
            without forces.
        asymmetry: [n] of the surroundings, largest over atoms; zero where all forces vanish by symmetry.
        fingerprint: [n, D], see `snnp.doctor.environments`.
        atoms: [M, d] descriptors of some atoms, with the frame and atomic number of each [M].
    """

    frames: list[Frame]
    split: list[str]
    elements: tuple[int, ...]
    pairs: list[tuple[int, int]]
    counts: np.ndarray
    energy: np.ndarray
    closest: np.ndarray
    force_rms: np.ndarray
    force_max: np.ndarray
    net_force: np.ndarray
    torque: np.ndarray
    asymmetry: np.ndarray
    fingerprint: np.ndarray
    atoms: tuple[np.ndarray, np.ndarray, np.ndarray]

    @property
    def n_atoms(self) -> np.ndarray:
        """[n] atoms per frame."""
        total: np.ndarray = self.counts.sum(axis=1)
        return total

    @property
    def splits(self) -> list[str]:
        """Names, in the order in which they were given."""
        return list(dict.fromkeys(self.split))

    @property
    def has_forces(self) -> np.ndarray:
        """[n] whether a frame has forces."""
        return np.isfinite(self.force_rms)

    def names(self, which: np.ndarray, badness: np.ndarray | None = None) -> tuple[str, ...]:
        """Sources of the frames in a mask [n] or index array, worst first where `badness` [n] says how bad they are."""
        index = np.flatnonzero(which) if which.dtype == bool else which
        if badness is not None:
            index = index[np.argsort(-badness[index], kind="stable")]
        return tuple(self.frames[k].source for k in index)

    def pair_name(self, q: int) -> str:
        """Such as "C-H"."""
        return "-".join(chemical_symbols[z] for z in self.pairs[q])


def batches(frames: Sequence[Frame]) -> Iterator[tuple[slice, Structure]]:
    """Runs of frames with about 2,000 atoms each, with their place."""
    start, atoms = 0, 0
    for stop, frame in enumerate(frames, 1):
        atoms += frame.n_atoms
        if atoms >= _BATCH_ATOMS or stop == len(frames):
            yield slice(start, stop), Structure.concatenate([each.structure for each in frames[start:stop]])
            start, atoms = stop, 0


def survey(frames_by_split: Mapping[str, Iterable[Frame]]) -> Survey:
    """Look at every frame once.

    Raises:
        DataError: if there are no frames, or one so dense that its neighbours would fill the memory.
    """
    frames, split = [], []
    for name, given in frames_by_split.items():
        part = list(given)
        frames += part
        split += [name] * len(part)
    if not frames:
        raise DataError("there are no frames to examine; name a data set with at least one structure.")
    for frame in frames:
        volume = float(frame.structure.cell[0].det().abs() / frame.n_atoms) if frame.structure.pbc.all() else np.inf
        if volume < _LEAST_VOLUME:
            raise DataError(
                f"{frame.source} has {volume:.2g} Å³ per atom, less than any matter: its lengths are in nm, relative, "
                "or its cell is wrong; state the unit, such as --units length=nm, or remove the frame."
            )
    elements = tuple(sorted({z for frame in frames for z in frame.structure.numbers.tolist()}))
    pairs = list(itertools.combinations_with_replacement(elements, 2))
    n = len(frames)
    closest, fingerprint = np.full((n, len(pairs)), np.inf), []
    asymmetry, sampled = np.zeros(n), []
    total = sum(frame.n_atoms for frame in frames)
    chosen = np.random.default_rng(0)
    for place, structure in batches(frames):
        neighbours = neighbour_list(structure, CUTOFF)
        vectors = pair_vectors(structure, neighbours)
        closest[place] = _closest(structure, neighbours, vectors, elements)
        described, lopsided = descriptors(structure, neighbours, vectors)
        owner = structure.structure_of_atom
        worst = torch.zeros(structure.n_structures, dtype=lopsided.dtype)
        asymmetry[place] = worst.scatter_reduce(0, owner, lopsided, "amax").numpy()
        fingerprint.append(summaries(described, structure).numpy())
        kept = torch.from_numpy(chosen.random(structure.n_atoms) < _MAP_ATOMS / total)
        sampled.append([part[kept].numpy() for part in (described, owner + place.start, structure.numbers)])
    return Survey(
        frames=frames,
        split=split,
        elements=elements,
        pairs=pairs,
        counts=np.array([[int((f.structure.numbers == z).sum()) for z in elements] for f in frames]),
        energy=np.array([np.nan if f.energy is None else f.energy for f in frames]),
        closest=closest,
        **_force_statistics(frames),
        asymmetry=asymmetry,
        fingerprint=np.concatenate(fingerprint),
        atoms=tuple(np.concatenate(parts) for parts in zip(*sampled, strict=True)),  # type: ignore[arg-type]
    )


def _closest(structure: Structure, neighbours: Neighbours, vectors: Tensor, elements: tuple[int, ...]) -> np.ndarray:
    """[B, Q] shortest distance per pair of elements."""
    z = len(elements)
    species = torch.zeros(max(elements) + 1, dtype=torch.int64)
    species[list(elements)] = torch.arange(z)
    a, b = species[structure.numbers[neighbours.i]], species[structure.numbers[neighbours.j]]
    low, high = torch.minimum(a, b), torch.maximum(a, b)
    kind = low * z - low * (low - 1) // 2 + high - low  # the order of combinations_with_replacement
    n_kinds = z * (z + 1) // 2
    owner = structure.structure_of_atom[neighbours.i]
    found = torch.full((structure.n_structures * n_kinds,), torch.inf, dtype=vectors.dtype)
    found = found.scatter_reduce(0, owner * n_kinds + kind, vectors.norm(dim=1), "amin")
    return found.reshape(-1, n_kinds).numpy()


def _force_statistics(frames: Sequence[Frame]) -> dict[str, np.ndarray]:
    table = np.full((len(frames), 4), np.nan)
    for k, frame in enumerate(frames):
        if frame.forces is None:
            continue
        forces = np.asarray(frame.forces)
        norms = np.linalg.norm(forces, axis=1)
        table[k, :3] = np.sqrt(np.square(forces).mean()), norms.max(), np.linalg.norm(forces.mean(axis=0))
        if not bool(frame.structure.pbc.any()) and frame.n_atoms > 1 and norms.max() > 0.0:
            arm = frame.structure.positions.numpy()
            arm = arm - arm.mean(axis=0)
            # Against what the same forces could at most exert.
            most = (np.linalg.norm(arm, axis=1) * norms).sum()
            table[k, 3] = np.linalg.norm(np.cross(arm, forces).sum(axis=0)) / max(most, 1e-12)
    return dict(zip(("force_rms", "force_max", "net_force", "torque"), table.T, strict=True))
