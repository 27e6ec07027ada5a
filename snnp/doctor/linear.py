r"""A quick linear model of any data set, to see which frames contradict the rest.

    E = sum_i E0[z_i] + 1/2 sum_ij sum_k c_{z_i z_j,k} B_k(r_ij)
        + sum_i sum_m (a_{z_i,m} sqrt(rho_m) + b_{z_i,m} rho_m²),
    rho_m(i) = sum_j exp(-r_ij / decay_m) w(r_ij),

with bumps `B_k` in log r: pairs and an embedding of the density, as in a Finnis-Sinclair potential. It is no potential
for use, but a fit takes a second and its forces point the right way (correlation with DFT forces 0.9 to 1 in metals,
molecules, liquids and alloys), so that frames with another sign, unit or zero of energy stand out.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from ase.data import covalent_radii
from torch import Tensor

from snnp.neighbours import neighbour_list, pair_vectors
from snnp.structure import Structure

__all__ = ["CUTOFF", "Block", "Terms", "linear_terms", "robust_solution"]

CUTOFF = 5.0
"""Å."""

_CENTRES = np.geomspace(0.75, 5.2, 15)  # Å, of the bumps
_WIDTH = 0.13  # of the bumps, in log r: a little less than their distance
_DECAYS = (0.4, 0.8, 1.6)  # Å
_MOST_ELEMENTS = 5  # beyond it pairs share one set of bumps, at distances scaled by covalent radii
_TYPICAL_BOND = 2.6  # Å, to which they are scaled
_RIDGE = 1e-6
_ROUNDS = 8  # of reweighting
_TINY = 1e-12

Block = tuple[Tensor, Tensor, Tensor, Tensor]
"""Rows [R, F], target [R], frame of each row [R], weight of each frame [n]."""


@dataclass(frozen=True)
class Terms:
    """The model's terms for B structures with N atoms.

    Arguments:
        energy: [B, F], in what the energy is linear, without E0.
        forces: [N, 3, F], minus their derivatives by positions.
        strain: [B, 9, F], their derivatives by strain.
    """

    energy: Tensor
    forces: Tensor
    strain: Tensor


def _ended(value: Tensor, slope: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
    """Functions and derivatives brought to zero at the cutoff."""
    x = (r / CUTOFF).clamp(max=1.0)
    end, end_slope = (1.0 - x**2) ** 3, -6.0 * x * (1.0 - x**2) ** 2 / CUTOFF
    return value * end, slope * end + value * end_slope


def _bumps(r: Tensor) -> tuple[Tensor, Tensor]:
    """[P, K] values and derivatives of the bumps."""
    off = (r.log()[:, None] - torch.from_numpy(np.log(_CENTRES))) / _WIDTH
    value = torch.exp(-0.5 * off**2)
    return _ended(value, -value * off / (_WIDTH * r[:, None]), r[:, None])


def _densities(r: Tensor) -> tuple[Tensor, Tensor]:
    """[P, M] contributions to densities and their derivatives; one at a typical bond, so that all have like sizes."""
    decays = torch.tensor(_DECAYS, dtype=r.dtype)
    value = torch.exp((_TYPICAL_BOND - r[:, None]) / decays)
    return _ended(value, -value / decays, r[:, None])


def _species(numbers: Tensor, elements: Sequence[int]) -> Tensor:
    table = torch.zeros(max(elements) + 1, dtype=torch.int64)
    table[list(elements)] = torch.arange(len(elements))
    return table[numbers]


def _pair_kinds(numbers: Tensor, i: Tensor, j: Tensor, elements: Sequence[int]) -> tuple[Tensor, Tensor, int]:
    """Kind of each pair [P], factor of its distance [P], and how many kinds there are."""
    if len(elements) > _MOST_ELEMENTS:
        radii = torch.from_numpy(covalent_radii)[numbers]
        return torch.zeros_like(i), _TYPICAL_BOND / (radii[i] + radii[j]), 1
    n = len(elements)
    table = torch.zeros(n, n, dtype=torch.int64)
    for kind, (a, b) in enumerate(itertools.combinations_with_replacement(range(n), 2)):
        table[a, b] = table[b, a] = kind
    species = _species(numbers, elements)
    return table[species[i], species[j]], torch.ones(len(i), dtype=torch.float64), n * (n + 1) // 2


def linear_terms(structure: Structure, elements: Sequence[int]) -> Terms:
    """The terms of the model for a batch of structures in float64 with atoms of `elements` (atomic numbers)."""
    neighbours = neighbour_list(structure, CUTOFF)
    i, j = neighbours.i, neighbours.j
    vectors = pair_vectors(structure, neighbours)
    r = vectors.norm(dim=1)
    owner = structure.structure_of_atom

    kind, factor, n_kinds = _pair_kinds(structure.numbers, i, j, elements)
    value, slope = _bumps(r * factor)
    pair_energy = torch.zeros(structure.n_structures * n_kinds, value.shape[1], dtype=r.dtype)
    pair_energy.index_add_(0, owner[i] * n_kinds + kind, 0.5 * value)
    pairs = _gradients(structure, (i, j, vectors), (kind, n_kinds), 0.5 * slope * factor[:, None])

    part, part_slope = _densities(r)
    density = torch.zeros(structure.n_atoms, part.shape[1], dtype=r.dtype).index_add_(0, i, part)
    root = (density + 1e-3).sqrt()  # its slope stays finite where there is no neighbour
    outer = torch.cat([0.5 / root, 0.02 * density], dim=1)
    species, n = _species(structure.numbers, elements), len(elements)
    embedded_energy = torch.zeros(structure.n_structures * n, outer.shape[1], dtype=r.dtype)
    embedded_energy.index_add_(0, owner * n + species, torch.cat([root, 0.01 * density**2], dim=1))
    slopes = outer[i] * part_slope.repeat(1, 2)
    embedded = _gradients(structure, (i, j, vectors), (species[i], n), slopes)

    both = [each.reshape(structure.n_structures, -1) for each in (pair_energy, embedded_energy)]
    forces, strain = (torch.cat(each, dim=2) for each in zip(pairs, embedded, strict=True))
    return Terms(torch.cat(both, dim=1), forces, strain)


def _gradients(
    structure: Structure, pairs: tuple[Tensor, Tensor, Tensor], kinds: tuple[Tensor, int], slopes: Tensor
) -> tuple[Tensor, Tensor]:
    """Forces [N, 3, n_kinds * K] and strain derivatives [B, 9, n_kinds * K] from the slopes [P, K] of pairs."""
    (i, j, vectors), (kind, n_kinds), k = pairs, kinds, slopes.shape[1]
    gradient = slopes[:, :, None] * (vectors / vectors.norm(dim=1, keepdim=True))[:, None, :]
    forces = torch.zeros(structure.n_atoms * n_kinds, k, 3, dtype=slopes.dtype)
    forces.index_add_(0, i * n_kinds + kind, gradient).index_add_(0, j * n_kinds + kind, -gradient)
    strain = torch.zeros(structure.n_structures * n_kinds, k, 9, dtype=slopes.dtype)
    outer = (gradient[:, :, :, None] * vectors[:, None, None, :]).reshape(-1, k, 9)
    strain.index_add_(0, structure.structure_of_atom[i] * n_kinds + kind, outer)
    return (
        forces.reshape(structure.n_atoms, n_kinds * k, 3).transpose(1, 2),
        strain.reshape(structure.n_structures, n_kinds * k, 9).transpose(1, 2),
    )


def robust_solution(blocks: Sequence[Block], rounds: int = _ROUNDS) -> Tensor:
    """[F] ridge solution of several blocks of equations; frames far off in a block count ever less in it.

    Arguments:
        blocks: rows [R, F], target [R], frame of each row [R], and weights [n] of the frames to begin with (zero leaves
            a frame out). Each block has the same say, whatever its size and unit.
        rounds: of reweighting.
    """
    scale = sum(rows.square().mean(dim=0) / target.square().mean().clamp_min(_TINY) for rows, target, _, _ in blocks)
    assert isinstance(scale, Tensor)
    scale = scale.sqrt().clamp_min(_TINY)
    weights = [first for _, _, _, first in blocks]
    solution = torch.zeros_like(scale)
    for _ in range(rounds):
        normal, right = torch.zeros(len(scale), len(scale), dtype=scale.dtype), torch.zeros_like(scale)
        for (rows, target, owner, first), weight in zip(blocks, weights, strict=True):
            each = (weight / torch.bincount(owner, minlength=len(first)).clamp_min(1))[owner]
            each = each / (each * target.square()).sum().clamp_min(_TINY)
            scaled = rows / scale
            normal += scaled.T @ (scaled * each[:, None])
            right += scaled.T @ (target * each)
        ridge = _RIDGE * normal.diagonal().mean().clamp_min(_TINY)
        solution = torch.linalg.solve(normal + ridge * torch.eye(len(normal), dtype=normal.dtype), right) / scale
        weights = [_reweighted(block, solution) for block in blocks]
    return solution


def _reweighted(block: Block, solution: Tensor) -> Tensor:
    rows, target, owner, first = block
    square = torch.zeros_like(first).index_add_(0, owner, (rows @ solution - target).square())
    residual = (square / torch.bincount(owner, minlength=len(first)).clamp_min(1) * first).sqrt()
    usual = residual[first > 0].median().clamp_min(_TINY)
    return first / (1.0 + (residual / (2.0 * usual)) ** 2) ** 2
