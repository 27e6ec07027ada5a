r"""Whether the labels of a data set agree with one another: a quick linear model as the common opinion.

    E = sum_i E0[z_i] + 1/2 sum_ij sum_k c_{z_i z_j,k} B_k(r_ij)
        + sum_i sum_m (a_{z_i,m} sqrt(rho_m) + b_{z_i,m} rho_m²),
    rho_m(i) = sum_j exp(-r_ij / decay_m) w(r_ij),

with bumps `B_k` in log r: pairs and an embedding of the density, as in a Finnis-Sinclair potential. It is no potential
for use, but a fit takes a second and its forces point the right way (correlation with DFT forces 0.9 to 1). Fitted
robustly to some frames, it is compared with all: those with another sign, unit or zero of energy stand out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from ase.data import covalent_radii
from torch import Tensor

from snnp.data.reference import energies_beyond_composition
from snnp.doctor.survey import BATCH_ATOMS, CUTOFF, Survey, pair_kinds, species_of
from snnp.neighbours import neighbour_list, pair_vectors
from snnp.structure import Structure

__all__ = ["Consensus", "consensus_of", "spread"]

_CENTRES = np.geomspace(0.75, 5.2, 15)  # Å, of the bumps
_WIDTH = 0.13  # of the bumps, in log r: a little less than their distance
_DECAYS = (0.4, 0.8, 1.6)  # Å
_MOST_ELEMENTS = 5  # beyond it pairs share one set of bumps, at distances scaled by covalent radii
_TYPICAL_BOND = 2.6  # Å, to which they are scaled
_RIDGE = 1e-6
_ROUNDS = 8  # of reweighting

_FIT_ATOMS, _FIT_FRAMES = 4000, 500  # for forces, and as many again for energies
_CLOSEST, _MOST_PAIRS = 3, 15  # frames with the shortest distances of each pair of elements, which are fitted too
_LARGE = 0.8  # quantile of the frames' typical forces that sets the scale
_LEAST_FORCE = 0.01  # eV/Å; smaller ones are noise of the reference calculation
_TINY = 1e-12


@dataclass(frozen=True)
class Consensus:
    """How each of n frames compares with the common opinion; [n], NaN where it cannot be compared.

    `relative_misfit` is that of energies and forces together in one model, by the factor on forces that is tried; small
    where they belong together, empty without energies or forces.
    """

    force_correlation: np.ndarray  # between its forces and those of the model
    force_ratio: np.ndarray  # |forces| over those of the model, along them
    stress_correlation: np.ndarray
    stress_ratio: np.ndarray
    residual: np.ndarray  # eV/atom, energy beyond composition and model
    composition_residual: np.ndarray  # eV/atom
    relative_misfit: dict[float, float]
    varied: np.ndarray  # at least three atoms have forces of different size: fewer agree or disagree by chance
    comparable: np.ndarray  # forces are large and varied enough


def _ended(value: Tensor, rate: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
    """Functions brought to zero at the cutoff, and their slopes; `rate` is the slope over the value as they come."""
    end = (1.0 - (r / CUTOFF) ** 2).clamp_min(0.0)
    return value * end**3, value * end**2 * (rate * end - 6.0 * r / CUTOFF**2)


def _linear_terms(structure: Structure, elements: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """In what the energy is linear: energies [B, F] without E0, forces [N, 3, F], strain derivatives [B, 9, F]."""
    neighbours = neighbour_list(structure, CUTOFF)
    i, j = neighbours.i, neighbours.j
    vectors = pair_vectors(structure, neighbours)
    r = vectors.norm(dim=1, keepdim=True)
    owner, n = structure.structure_of_atom, len(elements)
    kind, n_kinds, factor = pair_kinds(structure.numbers, neighbours, elements), n * (n + 1) // 2, torch.ones_like(r)
    if n > _MOST_ELEMENTS:
        radii = torch.from_numpy(covalent_radii)[structure.numbers]
        kind, n_kinds, factor = torch.zeros_like(i), 1, _TYPICAL_BOND / (radii[i] + radii[j])[:, None]
    scaled = r * factor
    off = (scaled.log() - torch.from_numpy(np.log(_CENTRES))) / _WIDTH
    value, slope = _ended(torch.exp(-0.5 * off**2), -off / (_WIDTH * scaled), scaled)
    pair_energy = torch.zeros(structure.n_structures * n_kinds, value.shape[1], dtype=r.dtype)
    pair_energy.index_add_(0, owner[i] * n_kinds + kind, 0.5 * value)
    pairs = _gradients(structure, (i, j, vectors), (kind, n_kinds), 0.5 * slope * factor)

    # One at a typical bond, so that all have like sizes.
    decays = torch.tensor(_DECAYS, dtype=r.dtype)
    part, part_slope = _ended(torch.exp((_TYPICAL_BOND - r) / decays), -1.0 / decays, r)
    density = torch.zeros(structure.n_atoms, part.shape[1], dtype=r.dtype).index_add_(0, i, part)
    root = (density + 1e-3).sqrt()  # its slope stays finite where there is no neighbour
    outer = torch.cat([0.5 / root, 0.02 * density], dim=1)
    species = species_of(structure.numbers, elements)
    embedded_energy = torch.zeros(structure.n_structures * n, outer.shape[1], dtype=r.dtype)
    embedded_energy.index_add_(0, owner * n + species, torch.cat([root, 0.01 * density**2], dim=1))
    embedded = _gradients(structure, (i, j, vectors), (species[i], n), outer[i] * part_slope.repeat(1, 2))

    energy = torch.cat([each.reshape(structure.n_structures, -1) for each in (pair_energy, embedded_energy)], dim=1)
    forces, strain = (torch.cat(each, dim=2) for each in zip(pairs, embedded, strict=True))
    return energy, forces, strain


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


class _Block(NamedTuple):
    """Equations: rows [R, F], target [R], frame of each row [R], first weight of each frame [n] (zero: left out)."""

    rows: Tensor
    target: Tensor
    frame: Tensor
    weight: Tensor

    def mean(self, values: Tensor) -> Tensor:
        total = torch.zeros_like(self.weight).index_add_(0, self.frame, values)
        return total / torch.bincount(self.frame, minlength=len(total)).clamp_min(1)

    def usual(self, values: Tensor) -> Tensor:
        """Median over the frames that count of the mean size of their values [R]."""
        return self.mean(values.abs())[self.weight > 0].median().clamp_min(_TINY)

    def reweighted(self, solution: Tensor) -> Tensor:
        residual = (self.mean((self.rows @ solution - self.target).square()) * self.weight).sqrt()
        usual = residual[self.weight > 0].median().clamp_min(_TINY)
        return self.weight / (1.0 + (residual / (2.0 * usual)) ** 2) ** 2


def _robust_solution(blocks: Sequence[_Block], rounds: int = _ROUNDS) -> Tensor:
    """[F] ridge solution; each block has the same say, whatever its unit, and frames far off count ever less in it."""
    sizes = [b.rows.square().mean(dim=0) / b.target.square().mean().clamp_min(_TINY) for b in blocks]
    scale = torch.stack(sizes).sum(dim=0).sqrt().clamp_min(_TINY)
    weights = [block.weight for block in blocks]
    solution = torch.zeros_like(scale)
    for _ in range(rounds):
        normal, right = torch.zeros(len(scale), len(scale), dtype=scale.dtype), torch.zeros_like(scale)
        for block, weight in zip(blocks, weights, strict=True):
            each = (weight / torch.bincount(block.frame, minlength=len(weight)).clamp_min(1))[block.frame]
            each = each / (each * block.target.square()).sum().clamp_min(_TINY)
            scaled = block.rows / scale
            normal += scaled.T @ (scaled * each[:, None])
            right += scaled.T @ (block.target * each)
        ridge = _RIDGE * normal.diagonal().mean().clamp_min(_TINY)
        solution = torch.linalg.solve(normal + ridge * torch.eye(len(normal), dtype=normal.dtype), right) / scale
        weights = [block.reweighted(solution) for block in blocks]
    return solution


def spread(values: np.ndarray) -> float:
    """Standard deviation from the median absolute deviation, deaf to outliers; NaN for nothing."""
    values = values[np.isfinite(values)]
    return float(1.4826 * np.median(np.abs(values - np.median(values)))) if len(values) else float("nan")


def consensus_of(survey: Survey, factors: Mapping[float, str]) -> Consensus:
    """Fit the model and compare every frame with it; forces times each factor are tried against the energies."""
    # Atoms without neighbours lie far above bound matter by nature.
    bound = np.isfinite(survey.closest).any(axis=1)
    beyond = energies_beyond_composition(survey.frames, np.isfinite(survey.frames.energy) & bound)
    # Forces that are no noise: perfect crystals and relaxed structures have none.
    rms = np.nan_to_num(survey.force_rms)
    moving = rms > (max(_LEAST_FORCE, 0.1 * float(np.quantile(rms[rms > 0], 0.75))) if rms.any() else np.inf)
    chosen = _choose(survey, moving)
    blocks, width = _equations(survey, chosen, beyond, moving)
    nothing = torch.zeros(width, dtype=torch.float64)
    solution = _robust_solution(blocks) if blocks else nothing
    # Forces are compared with what is common to forces alone: energies cannot spoil that.
    of_forces = _robust_solution(blocks[-1:]) if moving.any() else nothing
    n, n_z = len(survey.frames), len(survey.elements)
    energy, forces, strain = np.zeros(n), np.zeros_like(survey.frames.forces), np.zeros((n, 9))
    for place in survey.frames.pieces(BATCH_ATOMS):
        energies, gradients, strains = _linear_terms(survey.frames[place].structure(), survey.elements)
        atoms = slice(*survey.frames.starts[[place.start, place.stop]])
        energy[place] = (energies @ solution[n_z:]).numpy()
        forces[atoms] = (gradients @ of_forces[n_z:]).numpy()
        strain[place] = (strains @ solution[n_z:]).numpy()
    residual = beyond - energy / survey.frames.counts - survey.fractions @ solution[:n_z].numpy()
    residual -= np.nanmedian(residual) if np.isfinite(residual).any() else 0.0
    fitted = np.isin(np.arange(n), chosen) & moving
    # Nothing is known of distances shorter than those of the frames that were fitted.
    shortest = survey.closest[fitted].min(axis=0) if fitted.any() else np.inf
    covered = np.all(survey.closest >= shortest - 1e-3, axis=1)
    correlation, ratio = _agreement(survey.frames.forces, forces, survey.frames.per_frame)
    correlation, ratio = np.where(covered, correlation, np.nan), np.where(covered, ratio, np.nan)
    of_stress = _agreement(survey.frames.stress.reshape(n, 9), strain / survey.frames.volume[:, None], np.asarray)
    varied, norms, starts = np.zeros(n, dtype=bool), np.linalg.norm(survey.frames.forces, axis=1), survey.frames.starts
    for k in np.flatnonzero(survey.frames.has_forces & (survey.frames.counts > 2)):
        sizes = np.sort(norms[starts[k] : starts[k + 1]])
        varied[k] = int((np.diff(sizes) > 1e-2 * sizes[-1]).sum()) >= 2
    usual = float(np.quantile(survey.force_rms[moving], _LARGE)) if moving.any() else 0.0
    comparable = np.isfinite(correlation) & moving & (survey.force_rms > 0.3 * usual) & varied
    misfit = _misfits(blocks, factors) if len(blocks) == 2 else {}
    return Consensus(correlation, ratio, *of_stress, residual, beyond, misfit, varied, comparable)


def _choose(survey: Survey, moving: np.ndarray) -> np.ndarray:
    """Frames to fit: at random among those with forces, then among all."""
    order = np.random.default_rng(0).permutation(len(moving))

    def some(pool: np.ndarray) -> np.ndarray:
        enough = np.searchsorted(np.cumsum(survey.frames.counts[pool]), _FIT_ATOMS) + 1
        return pool[: min(int(enough), _FIT_FRAMES)]

    chosen = [some(order[moving[order]]), some(order)]
    if len(survey.pairs) <= _MOST_PAIRS:
        # The closest pairs of each kind: beyond what was fitted the model knows nothing.
        chosen.append(np.argsort(survey.closest, axis=0)[:_CLOSEST].ravel())
    return np.unique(np.concatenate(chosen))


def _equations(survey: Survey, chosen: np.ndarray, beyond: np.ndarray, moving: np.ndarray) -> tuple[list[_Block], int]:
    """Equations for energies per atom and for forces, whichever there are, and the number of unknowns."""
    frames = survey.frames.take(chosen)
    energy_terms, force_terms, _ = _linear_terms(frames.structure(), survey.elements)
    n_atoms, beyond, moving = torch.from_numpy(survey.frames.counts[chosen]), beyond[chosen], moving[chosen]
    n, n_z = len(chosen), len(survey.elements)
    width, known = n_z + energy_terms.shape[1], np.isfinite(beyond)
    blocks: list[_Block] = []
    # With fewer equations than unknowns energies alone would be met by anything.
    if known.sum() > (10 if moving.any() else 2 * width):
        energies = np.nan_to_num(beyond)
        usual = max(spread(beyond), _TINY)
        first = torch.from_numpy(known / (1.0 + (energies / (5.0 * usual)) ** 2))
        rows = torch.cat([torch.from_numpy(survey.fractions[chosen]), energy_terms / n_atoms[:, None]], dim=1)
        blocks.append(_Block(rows, torch.from_numpy(energies), torch.arange(n), first))
    if moving.any():
        rms = np.where(moving, np.nan_to_num(survey.force_rms[chosen]), 0.0)
        # Of the hotter frames: small forces near a minimum are beyond such a model, and of no use for signs.
        usual = float(np.quantile(rms[rms > 0], _LARGE))
        first = torch.from_numpy((rms > 0) / (1.0 + (rms / (2.0 * usual)) ** 2))
        rows = torch.nn.functional.pad(force_terms.reshape(-1, width - n_z), (n_z, 0))
        target = torch.from_numpy(np.nan_to_num(frames.forces)).reshape(-1)
        blocks.append(_Block(rows, target, torch.arange(n).repeat_interleave(3 * n_atoms), first))
    return blocks, width


def _misfits(blocks: list[_Block], factors: Mapping[float, str]) -> dict[float, float]:
    """Root of the mean over both blocks of the relative squared misfit, for forces times each factor."""
    result = {}
    energies, forces = blocks
    for factor in (1.0, *factors):
        both = [energies, forces._replace(target=forces.target * factor)]
        solution = _robust_solution(both, rounds=3)
        # Medians: what a few frames do is another matter.
        parts = [float(b.usual(b.rows @ solution - b.target) / b.usual(b.target)) ** 2 for b in both]
        result[factor] = float(np.sqrt(np.mean(parts)))
    return result


def _agreement(
    given: np.ndarray, model: np.ndarray, total: Callable[[np.ndarray], np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """[n] correlation of rows, and size over that of the model; `total` adds the rows of each frame."""
    product, a, b = (total((x * y).sum(axis=1)) for x, y in ((given, model), (given, given), (model, model)))
    known = (a > _TINY) & (b > _TINY)
    a, b = np.where(known, a, np.nan), np.where(known, b, np.nan)
    return product / np.sqrt(a * b), product / b
