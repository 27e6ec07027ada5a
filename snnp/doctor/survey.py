r"""What the checks of data look at: every frame once, reduced to a few numbers and to fingerprints.

Each atom is described by moments of its neighbours within 4.5 Å,

    A_b,lm(i) = sum_j x(z_j) f_b(r_ij) Y_lm(r_ij / r),     d_b,l(i) = sum_m A_b,lm(i)²,

with a fixed number x(z) per element. The fingerprint of a structure is the mean over its atoms of fixed random
functions of `d` and of the element: however it is turned, mirrored, ordered, or cut into cells, it is the same.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from ase.data import chemical_symbols
from scipy.spatial import KDTree
from torch import Tensor

from snnp.data import Frame, Frames
from snnp.errors import DataError
from snnp.harmonics import Harmonics
from snnp.neighbours import Neighbours, neighbour_list, pair_vectors, unordered_pairs
from snnp.structure import Structure

__all__ = ["BATCH_ATOMS", "CUTOFF", "UNASSIGNED", "Survey", "describe", "nearest", "pair_kinds", "species_of", "survey"]

CUTOFF = 5.0
"""Å, within which two atoms are a pair."""
BATCH_ATOMS = 2000
"""Atoms that are looked at together."""
UNASSIGNED = "other"
"""Name of the split for files that belong to none, beside files that do: nothing leaks from or into it."""

_MAP_ATOMS = 6000
_LEAST_VOLUME = 0.3  # Å³; hydrogen in the centre of Jupiter has 1

_REACH = 4.5  # Å, of the fingerprints
_CENTRES, _WIDTH = (1.0, 1.7, 2.4, 3.1), 0.7  # Å, of the radial functions
_DEGREE = 2
_N_FUNCTIONS = 24


@dataclass(frozen=True)
class Survey:
    """All n frames of all splits, one after the other; forces are NaN where there are none."""

    frames: Frames
    split: np.ndarray  # [n] names
    elements: tuple[int, ...]  # Z atomic numbers
    pairs: list[tuple[int, int]]  # Q = Z (Z + 1) / 2
    counts: np.ndarray  # [n, Z] atoms per element
    closest: np.ndarray  # [n, Q] Å, shortest distance below 5 Å, else infinite
    force_rms: np.ndarray  # [n] eV/Å
    force_max: np.ndarray  # [n] eV/Å
    net_force: np.ndarray  # [n] eV/Å per atom
    torque: np.ndarray  # [n] of the largest possible, NaN where periodic
    asymmetry: np.ndarray  # [n] of the surroundings, largest over atoms; zero where symmetry forbids forces
    fingerprint: np.ndarray  # [n, D]
    atoms: tuple[np.ndarray, np.ndarray, np.ndarray]  # [M, d] descriptors of some, with their frames and elements

    @property
    def fractions(self) -> np.ndarray:
        return self.counts / self.frames.counts[:, None]

    @property
    def splits(self) -> list[str]:
        return list(dict.fromkeys(self.split.tolist()))

    @property
    def is_first(self) -> np.ndarray:
        """[n] whether a frame is of the split that is trained on."""
        return self.split == self.splits[0]

    @property
    def is_later(self) -> np.ndarray:
        """[n] whether a frame is of another split."""
        return ~self.is_first & (self.split != UNASSIGNED)

    def names(self, which: np.ndarray, badness: np.ndarray | None = None) -> tuple[str, ...]:
        """Sources of the frames in a mask [n] or index array, worst first where `badness` [n] says how bad they are."""
        index = np.flatnonzero(which) if which.dtype == bool else which
        order = slice(None) if badness is None else np.argsort(-badness[index], kind="stable")
        return tuple(self.frames.sources[k] for k in index[order].tolist())

    def pair_name(self, q: int) -> str:
        """Such as "C-H"."""
        return "-".join(chemical_symbols[z] for z in self.pairs[q])


def survey(frames_by_split: Mapping[str, Iterable[Frame]]) -> Survey:
    """Look at every frame once; refuses no frames, and one so dense that its neighbours would fill the memory."""
    parts = {name: Frames.of(given) for name, given in frames_by_split.items()}
    frames = Frames.concatenate(list(parts.values()))
    if not len(frames):
        raise DataError("there are no frames to examine; name a data set with at least one structure.")
    volume = frames.volume / frames.counts
    for k in np.flatnonzero(volume < _LEAST_VOLUME).tolist():
        raise DataError(
            f"{frames.sources[k]} has {volume[k]:.2g} Å³ per atom, less than any matter: its lengths are in nm, "
            "relative, or its cell is wrong; state the unit, such as --units length=nm, or remove the frame."
        )
    elements = tuple(np.unique(frames.numbers).tolist())
    pairs = list(itertools.combinations_with_replacement(elements, 2))
    closest, fingerprint, asymmetry, sampled = [], [], [], []
    chosen = np.random.default_rng(0)
    for place in frames.pieces(BATCH_ATOMS):
        structure = frames[place].structure()
        neighbours = neighbour_list(structure, CUTOFF)
        vectors = pair_vectors(structure, neighbours)
        owner, n_pairs = structure.structure_of_atom, len(pairs)
        kind = owner[neighbours.i] * n_pairs + pair_kinds(structure.numbers, neighbours, elements)
        near = torch.full((structure.n_structures * n_pairs,), torch.inf, dtype=vectors.dtype)
        near = near.scatter_reduce(0, kind, vectors.norm(dim=1), "amin")
        closest.append(near.reshape(-1, n_pairs).numpy())
        described, lopsided = _descriptors(structure, neighbours, vectors)
        worst = torch.zeros(structure.n_structures, dtype=lopsided.dtype)
        asymmetry.append(worst.scatter_reduce(0, owner, lopsided, "amax").numpy())
        fingerprint.append(_summaries(described, structure).numpy())
        kept = torch.from_numpy(chosen.random(structure.n_atoms) < _MAP_ATOMS / len(frames.numbers))
        sampled.append([part[kept].numpy() for part in (described, owner + place.start, structure.numbers)])
    return Survey(
        frames,
        np.repeat(list(parts), [len(part) for part in parts.values()]),
        elements,
        pairs,
        frames.composition(),
        np.concatenate(closest),
        **_force_statistics(frames),
        asymmetry=np.concatenate(asymmetry),
        fingerprint=np.concatenate(fingerprint),
        atoms=tuple(np.concatenate(columns) for columns in zip(*sampled, strict=True)),  # type: ignore[arg-type]
    )


def _force_statistics(frames: Frames) -> dict[str, np.ndarray]:
    n, norms = frames.counts, np.linalg.norm(frames.forces, axis=1)
    arm = frames.positions - np.repeat(frames.per_frame(frames.positions) / n[:, None], n, axis=0)
    turn = np.linalg.norm(frames.per_frame(np.cross(arm, frames.forces)), axis=1)
    # Against what the same forces could at most exert.
    most = frames.per_frame(np.linalg.norm(arm, axis=1) * norms)
    largest = frames.per_frame(norms, np.maximum)
    free = ~frames.pbc.any(axis=1) & (n > 1) & (largest > 0.0)
    return {
        "force_rms": np.sqrt(frames.per_frame(norms**2) / (3 * n)),
        "force_max": largest,
        "net_force": np.linalg.norm(frames.per_frame(frames.forces), axis=1) / n,
        "torque": np.where(free, turn / np.maximum(most, 1e-12), np.nan),
    }


def species_of(numbers: Tensor, elements: Sequence[int]) -> Tensor:
    """Place of each atomic number among the elements."""
    table = torch.zeros(max(elements) + 1, dtype=torch.int64)
    table[list(elements)] = torch.arange(len(elements))
    return table[numbers]


def pair_kinds(numbers: Tensor, neighbours: Neighbours, elements: Sequence[int]) -> Tensor:
    """[P] pair of elements, in the order of `combinations_with_replacement`."""
    species = species_of(numbers, elements)
    return unordered_pairs(len(elements))[species[neighbours.i], species[neighbours.j]]


@lru_cache
def _constants() -> tuple[Harmonics, Tensor, Tensor, Tensor, Tensor]:
    """Harmonics, element weights [Z], random matrix [d, D], element offsets [Z, D], and element marks [Z, 4]."""
    rng, n_elements, size = np.random.default_rng(20261121), len(chemical_symbols), len(_CENTRES) * (_DEGREE + 1)
    weights = torch.from_numpy(rng.uniform(0.5, 1.5, n_elements))
    matrix = torch.from_numpy(rng.normal(size=(size, _N_FUNCTIONS)) * (2.0 / np.sqrt(size)))
    offsets = torch.from_numpy(rng.uniform(-2.0, 2.0, (n_elements, _N_FUNCTIONS)))
    return Harmonics(_DEGREE).double(), weights, matrix, offsets, torch.from_numpy(rng.normal(size=(n_elements, 4)))


def _descriptors(structure: Structure, neighbours: Neighbours, vectors: Tensor) -> tuple[Tensor, Tensor]:
    """[N, d] descriptors of the atoms, and [N] how lopsided their surroundings are (zero in a centre of symmetry)."""
    harmonics, weights, *_ = _constants()
    r = vectors.norm(dim=1)
    near = r < _REACH
    i, r, vectors = neighbours.i[near], r[near][:, None], vectors[near]
    radial = torch.exp(-(((r - torch.tensor(_CENTRES)) / _WIDTH) ** 2)) * (1.0 - (r / _REACH) ** 2) ** 3
    radial = radial * weights[structure.numbers[neighbours.j[near]]][:, None]
    moments = torch.zeros(structure.n_atoms, len(_CENTRES), (_DEGREE + 1) ** 2, dtype=r.dtype)
    moments.index_add_(0, i, radial[:, :, None] * harmonics(vectors / r)[:, None, :])
    square = moments.square()
    degrees = [square[:, :, each**2 : (each + 1) ** 2].sum(dim=2) for each in range(_DEGREE + 1)]
    lopsided = degrees[1].sum(dim=1).sqrt() / (degrees[0].sum(dim=1).sqrt() + 1e-3)
    return torch.stack(degrees, dim=2).reshape(structure.n_atoms, -1), lopsided


def _summaries(described: Tensor, structure: Structure) -> Tensor:
    """[B, D] fingerprints from the atoms' descriptors: means of random functions, and the composition."""
    _, _, matrix, offsets, marks = _constants()
    # Logarithms: squares of moments span decades.
    functions = torch.sin(torch.log1p(described) @ matrix + offsets[structure.numbers])
    rows = torch.cat([functions, marks[structure.numbers]], dim=1)
    total = torch.zeros(structure.n_structures, rows.shape[1], dtype=rows.dtype)
    total.index_add_(0, structure.structure_of_atom, rows)
    return total / structure.atoms_per_structure.clamp_min(1)[:, None]


def describe(structure: Structure) -> tuple[Tensor, Tensor]:
    """Descriptors of the atoms [N, d] and fingerprints [B, D] of a batch."""
    neighbours = neighbour_list(structure, _REACH)
    described, _ = _descriptors(structure, neighbours, pair_vectors(structure, neighbours))
    return described, _summaries(described, structure)


def nearest(points: np.ndarray, others: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """[n, k] distances and indices of the k nearest of `others` [m, D] to each of `points` [n, D], nearest first."""
    away, index = KDTree(others).query(points, k=range(1, k + 1))
    return away, index
