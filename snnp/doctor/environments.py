r"""Fingerprints of structures that do not depend on how they are written.

Each atom is described by moments of its neighbours within 4.5 Å,

    A_b,lm(i) = sum_j x(z_j) f_b(r_ij) Y_lm(r_ij / r),     d_b,l(i) = sum_m A_b,lm(i)²,

with a fixed number x(z) per element. The fingerprint of a structure is the mean over its atoms of fixed random
functions of `d` and of the element. It is the same for the same structure under rotation and mirroring, another order
of atoms, another choice of lattice vectors or supercell, and atoms moved by lattice vectors.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from ase.data import chemical_symbols
from torch import Tensor

from snnp.harmonics import Harmonics
from snnp.neighbours import Neighbours, neighbour_list, pair_vectors
from snnp.structure import Structure

__all__ = ["REACH", "describe", "descriptors", "distances", "nearest", "summaries"]

REACH = 4.5
"""Å."""

_CENTRES, _WIDTH = (1.0, 1.7, 2.4, 3.1), 0.7  # Å, of the radial functions
_DEGREE = 2
_N_FUNCTIONS = 24
_CHUNK = 512
_LARGEST_NUMBER = len(chemical_symbols)


@lru_cache
def _constants() -> tuple[Harmonics, Tensor, Tensor, Tensor, Tensor]:
    """Harmonics, element weights [Z], random matrix [d, D], element offsets [Z, D], and element marks [Z, 4]."""
    rng = np.random.default_rng(20261121)
    size = len(_CENTRES) * (_DEGREE + 1)
    arrays = (
        rng.uniform(0.5, 1.5, _LARGEST_NUMBER),
        rng.normal(size=(size, _N_FUNCTIONS)) * (2.0 / np.sqrt(size)),
        rng.uniform(-2.0, 2.0, (_LARGEST_NUMBER, _N_FUNCTIONS)),
        rng.normal(size=(_LARGEST_NUMBER, 4)),
    )
    weights, matrix, offsets, marks = (torch.from_numpy(array) for array in arrays)
    return Harmonics(_DEGREE).double(), weights, matrix, offsets, marks


def descriptors(structure: Structure, neighbours: Neighbours, vectors: Tensor) -> tuple[Tensor, Tensor]:
    """[N, d] descriptors of the atoms, and [N] how lopsided their surroundings are (zero in a centre of symmetry).

    Arguments:
        structure: in float64; neighbours: a list that reaches at least `REACH`; vectors: [P, 3] its pair vectors.
    """
    harmonics, weights, *_ = _constants()
    r = vectors.norm(dim=1)
    near = r < REACH
    i, r, vectors = neighbours.i[near], r[near], vectors[near]
    x = r[:, None] / REACH
    radial = torch.exp(-(((r[:, None] - torch.tensor(_CENTRES)) / _WIDTH) ** 2)) * (1.0 - x**2) ** 3
    radial = radial * weights[structure.numbers[neighbours.j[near]]][:, None]
    angular = harmonics(vectors / r[:, None])
    n_filters, n_moments = len(_CENTRES), (_DEGREE + 1) ** 2
    moments = torch.zeros(structure.n_atoms, n_filters, n_moments, dtype=r.dtype)
    moments.index_add_(0, i, radial[:, :, None] * angular[:, None, :])
    square = moments.square()
    degrees = [square[:, :, each**2 : (each + 1) ** 2].sum(dim=2) for each in range(_DEGREE + 1)]
    lopsided = degrees[1].sum(dim=1).sqrt() / (degrees[0].sum(dim=1).sqrt() + 1e-3)
    return torch.stack(degrees, dim=2).reshape(structure.n_atoms, -1), lopsided


def summaries(described: Tensor, structure: Structure) -> Tensor:
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
    neighbours = neighbour_list(structure, REACH)
    described, _ = descriptors(structure, neighbours, pair_vectors(structure, neighbours))
    return described, summaries(described, structure)


def distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """[n, m] distances between points [n, D] and [m, D], exact where they are tiny."""
    mode = "donot_use_mm_for_euclid_dist"
    result: np.ndarray = torch.cdist(torch.from_numpy(a), torch.from_numpy(b), compute_mode=mode).numpy()
    return result


def nearest(points: np.ndarray, others: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """[n, k] distances and indices of the k nearest of `others` [m, D] to each of `points` [n, D], nearest first."""
    parts = []
    for start in range(0, len(points), _CHUNK):
        table = torch.from_numpy(distances(points[start : start + _CHUNK], others))
        parts.append(table.topk(k, dim=1, largest=False))
    return np.concatenate([p.values.numpy() for p in parts]), np.concatenate([p.indices.numpy() for p in parts])
