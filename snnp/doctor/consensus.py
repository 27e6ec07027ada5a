"""Whether the labels of a data set agree with one another: a quick linear model as the common opinion.

The model (`snnp.doctor.linear`) is fitted robustly to energies and forces of some frames. Then every frame is
compared with it: direction and size of its forces, sign and size of its stress, and its energy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from snnp.doctor.linear import Block, Terms, linear_terms, robust_solution
from snnp.doctor.survey import Survey, batches
from snnp.structure import Structure

__all__ = ["Consensus", "consensus_of", "robust_composition", "spread"]

_FIT_ATOMS, _FIT_FRAMES = 4000, 500  # for forces, and as many again for energies
_CLOSEST, _MOST_PAIRS = 3, 15  # frames with the shortest distances of each pair of elements, which are fitted too
_LARGE = 0.8  # quantile of the frames' typical forces that sets the scale
_LEAST_FORCE = 0.01  # eV/Å; smaller ones are noise of the reference calculation
_TINY = 1e-12


@dataclass(frozen=True)
class Consensus:
    """How each of n frames compares with the common opinion; NaN where it cannot be compared.

    Arguments:
        force_correlation: [n] between its forces and those of the model; force_ratio: [n] |forces| over the model's,
            along them.
        stress_correlation, stress_ratio: [n] likewise.
        residual: [n] eV/atom, energy beyond composition and model.
        composition_residual: [n] eV/atom, energy beyond the composition alone.
        relative_misfit: of energies and forces together in one model, by the factor on forces that is tried; small
            where they belong together. Empty without energies or forces.
        varied: [n] whether at least three atoms have forces of different size: fewer agree or disagree by chance.
        comparable: [n] whether forces are large and varied enough to be compared.
    """

    force_correlation: np.ndarray
    force_ratio: np.ndarray
    stress_correlation: np.ndarray
    stress_ratio: np.ndarray
    residual: np.ndarray
    composition_residual: np.ndarray
    relative_misfit: dict[float, float]
    varied: np.ndarray
    comparable: np.ndarray


def spread(values: np.ndarray) -> float:
    """Standard deviation from the median absolute deviation, deaf to outliers; NaN for nothing."""
    values = values[np.isfinite(values)]
    return float(1.4826 * np.median(np.abs(values - np.median(values)))) if len(values) else float("nan")


def robust_composition(survey: Survey) -> np.ndarray:
    """[n] eV/atom: energies beyond what the composition explains, by least absolute deviations.

    NaN without an energy, and where no two atoms are within 5 Å: these lie far above bound matter by nature.
    """
    known = np.isfinite(survey.energy) & np.isfinite(survey.closest).any(axis=1)
    fractions = survey.counts / survey.n_atoms[:, None]
    target = np.where(known, survey.energy, 0.0) / survey.n_atoms
    result = np.full(len(target), np.nan)
    if not known.any():
        return result
    weight = known.astype(float)
    residual = target
    for _ in range(30):
        rows = fractions * np.sqrt(weight)[:, None]
        e0, *_ = np.linalg.lstsq(rows, target * np.sqrt(weight), rcond=1e-8)
        residual = target - fractions @ e0
        size = np.abs(residual)
        weight = known / (size + 1e-3 + 0.1 * np.median(size[known]))
    result[known] = (residual - np.median(residual[known]))[known]
    return result


def consensus_of(survey: Survey, factors: Mapping[float, str]) -> Consensus:
    """Fit the model and compare every frame with it.

    Arguments:
        factors: forces times each of these are tried against the energies.
    """
    beyond = robust_composition(survey)
    moving = _moving(survey)
    chosen = _choose(survey, moving)
    blocks, terms = _equations(survey, chosen, beyond, moving)
    nothing = torch.zeros(len(survey.elements) + terms.energy.shape[1], dtype=torch.float64)
    solution = robust_solution(blocks) if blocks else nothing
    # Forces are compared with what is common to forces alone: energies cannot spoil that.
    of_forces = robust_solution(blocks[-1:]) if moving.any() else nothing
    misfit = _misfits(blocks, factors) if len(blocks) == 2 else {}
    n = len(survey.frames)
    table = np.full((4, n), np.nan)
    model_energy = np.zeros(n)
    n_z = len(survey.elements)
    for place, structure in batches(survey.frames):
        part = linear_terms(structure, survey.elements)
        model_energy[place] = (part.energy @ solution[n_z:]).numpy()
        forces = (part.forces @ of_forces[n_z:]).numpy()
        strain = (part.strain @ solution[n_z:]).reshape(-1, 9).numpy()
        table[:, place] = _compare(survey, place, structure, forces, strain)
    fractions = survey.counts / survey.n_atoms[:, None]
    residual = beyond - model_energy / survey.n_atoms - fractions @ solution[:n_z].numpy()
    residual -= np.nanmedian(residual) if np.isfinite(residual).any() else 0.0
    fitted = np.zeros(n, dtype=bool)
    fitted[chosen] = True
    table[:2, ~_covered(survey, fitted & moving)] = np.nan
    varied = _varied(survey)
    usual = float(np.quantile(survey.force_rms[moving], _LARGE)) if moving.any() else 0.0
    comparable = np.isfinite(table[0]) & moving & (survey.force_rms > 0.3 * usual) & varied
    return Consensus(table[0], table[1], table[2], table[3], residual, beyond, misfit, varied, comparable)


def _moving(survey: Survey) -> np.ndarray:
    """[n] whether a frame has forces that are no noise: perfect crystals and relaxed structures have none."""
    rms = np.where(survey.has_forces, survey.force_rms, 0.0)
    if not (rms > 0).any():
        return np.zeros(len(rms), dtype=bool)
    moving: np.ndarray = rms > max(_LEAST_FORCE, 0.1 * float(np.quantile(rms[rms > 0], 0.75)))
    return moving


def _varied(survey: Survey) -> np.ndarray:
    """[n] whether at least three atoms have forces of different size."""
    result = np.zeros(len(survey.frames), dtype=bool)
    for k in np.flatnonzero(survey.has_forces & (survey.n_atoms > 2)):
        sizes = np.sort(np.linalg.norm(np.asarray(survey.frames[k].forces), axis=1))
        result[k] = int((np.diff(sizes) > 1e-2 * sizes[-1]).sum()) >= 2
    return result


def _choose(survey: Survey, moving: np.ndarray) -> np.ndarray:
    """Frames to fit: at random among those with forces, then among all."""
    order = np.random.default_rng(0).permutation(len(moving))

    def some(pool: np.ndarray) -> np.ndarray:
        enough = np.searchsorted(np.cumsum(survey.n_atoms[pool]), _FIT_ATOMS) + 1
        return pool[: min(int(enough), _FIT_FRAMES)]

    chosen = [some(order[moving[order]]), some(order)]
    if len(survey.pairs) <= _MOST_PAIRS:
        # The closest pairs of each kind: beyond what was fitted the model knows nothing.
        chosen.append(np.argsort(survey.closest, axis=0)[:_CLOSEST].ravel())
    return np.unique(np.concatenate(chosen))


def _covered(survey: Survey, fitted: np.ndarray) -> np.ndarray:
    """[n] whether all distances of a frame are at least those of the frames that were fitted."""
    shortest = survey.closest[fitted].min(axis=0) if fitted.any() else np.full(len(survey.pairs), np.inf)
    result: np.ndarray = np.all(survey.closest >= shortest - 1e-3, axis=1)
    return result


def _equations(survey: Survey, chosen: np.ndarray, beyond: np.ndarray, moving: np.ndarray) -> tuple[list[Block], Terms]:
    """Blocks of equations for energies per atom and for forces, whichever there are."""
    frames = [survey.frames[k] for k in chosen]
    terms = linear_terms(Structure.concatenate([frame.structure for frame in frames]), survey.elements)
    n_atoms = torch.from_numpy(survey.n_atoms[chosen]).double()
    fractions = torch.from_numpy(survey.counts[chosen]) / n_atoms[:, None]
    n, width = len(chosen), len(survey.elements) + terms.energy.shape[1]
    blocks: list[Block] = []
    known = np.isfinite(beyond[chosen])
    # With fewer equations than unknowns energies alone would be met by anything.
    if known.sum() > (10 if moving.any() else 2 * width):
        target = torch.from_numpy(np.where(known, beyond[chosen], 0.0))
        usual = max(spread(beyond[chosen]), _TINY)
        first = torch.from_numpy(known / (1.0 + (np.nan_to_num(beyond[chosen]) / (5.0 * usual)) ** 2))
        rows = torch.cat([fractions, terms.energy / n_atoms[:, None]], dim=1)
        blocks.append((rows, target, torch.arange(n), first))
    if moving.any():
        forces = [np.zeros((f.n_atoms, 3)) if f.forces is None else np.asarray(f.forces) for f in frames]
        rms = np.where(moving[chosen], np.nan_to_num(survey.force_rms[chosen]), 0.0)
        # Of the hotter frames: small forces near a minimum are beyond such a model, and of no use for signs.
        usual = float(np.quantile(rms[rms > 0], _LARGE))
        first = torch.from_numpy((rms > 0) / (1.0 + (rms / (2.0 * usual)) ** 2))
        owner = torch.arange(n).repeat_interleave(3 * torch.from_numpy(survey.n_atoms[chosen]))
        flat = terms.forces.reshape(len(owner), -1)
        rows = torch.cat([torch.zeros(len(owner), len(survey.elements), dtype=flat.dtype), flat], dim=1)
        blocks.append((rows, torch.from_numpy(np.concatenate(forces)).reshape(-1), owner, first))
    return blocks, terms


def _misfits(blocks: list[Block], factors: Mapping[float, str]) -> dict[float, float]:
    """Root of the mean over both blocks of the relative squared misfit, for forces times each factor."""
    result = {}
    energies, (rows, target, owner, first) = blocks
    for factor in (1.0, *factors):
        both = [energies, (rows, target * factor, owner, first)]
        solution = robust_solution(both, rounds=3)
        parts = []
        for each, wanted, frame, weight in both:
            # Medians: what a few frames do is another matter.
            off, size = (_per_frame(values, frame, weight) for values in (each @ solution - wanted, wanted))
            parts.append(float(off / size.clamp_min(_TINY)) ** 2)
        result[factor] = float(np.sqrt(np.mean(parts)))
    return result


def _per_frame(values: Tensor, frame: Tensor, weight: Tensor) -> Tensor:
    """Median over the frames that count of the mean size of their values."""
    total = torch.zeros_like(weight).index_add_(0, frame, values.abs())
    return (total / torch.bincount(frame, minlength=len(weight)).clamp_min(1))[weight > 0].median()


def _compare(survey: Survey, place: slice, structure: Structure, forces: np.ndarray, strain: np.ndarray) -> np.ndarray:
    """[4, B]: correlation and ratio of forces, then of stresses."""
    frames = survey.frames[place]
    table = np.full((4, len(frames)), np.nan)
    starts = np.concatenate([[0], np.cumsum([frame.n_atoms for frame in frames])])
    volumes = structure.volume().numpy()
    for k, frame in enumerate(frames):
        if frame.forces is not None and frame.n_atoms > 1:
            table[:2, k] = _agreement(np.asarray(frame.forces).ravel(), forces[starts[k] : starts[k + 1]].ravel())
        if frame.stress is not None and volumes[k] > 0:
            table[2:, k] = _agreement(np.asarray(frame.stress).ravel(), strain[k] / volumes[k])
    return table


def _agreement(given: np.ndarray, model: np.ndarray) -> tuple[float, float]:
    product, a, b = float(given @ model), float(given @ given), float(model @ model)
    if a < _TINY or b < _TINY:
        return float("nan"), float("nan")
    return product / np.sqrt(a * b), product / b
