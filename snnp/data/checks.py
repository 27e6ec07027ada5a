"""Plausibility of reference data: units and outliers cannot be known, but they can be suspected, frame by frame."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from snnp.data.frames import Frame
from snnp.data.reference import fit_reference_energies, is_isolated_atom
from snnp.neighbours import neighbour_list, pair_vectors
from snnp.report import Finding
from snnp.structure import Structure
from snnp.units import BOHR_IN_ANGSTROM, EV_PER_ANGSTROM3_IN_GPA, HARTREE_IN_EV

__all__ = ["check_frames"]

# Thresholds lie beyond what DFT data sets hold: warm dense aluminium, shock structures of phosphides and dissociating
# molecules pass.
_ENERGY_SPREAD = 5.0  # eV/atom away from the bulk of the data, for an outlier
_LARGEST_FORCE = 100.0  # eV/Å
_SMALL_TYPICAL_FORCE = 0.04  # eV/Å; hot crystals and molecules have 0.1 to 2, i.e. 0.002 to 0.04 Hartree/Bohr
_LARGE_TYPICAL_FORCE = 15.0  # eV/Å; 1 eV/Å is 23 kcal/mol/Å or 96 kJ/mol/Å
_SHORTEST, _FARTHEST = 0.5, 5.0  # Å; H2 has 0.74, the most open crystals 4 to 5
_LARGEST_STRESS = 2.0  # eV/Å³ (320 GPa)
_BATCH = 64


# Meaning by kind; the cure is the same for all.
_MEANINGS = {
    "energy_outlier": "A failed calculation, or another unit or zero of energy, spoils the fit of all others.",
    "large_force": "One frame with huge forces outweighs thousands of others in a force loss.",
    "typical_force": "Forces of the whole set are outside what matter shows, so their unit is in doubt.",
    "short_distance": "No matter has such distances: positions or cell are wrong, or it is a scan on purpose.",
    "long_distance": "Atoms that feel nothing teach nothing; positions or cell may be in another unit.",
    "large_stress": "Stresses beyond 300 GPa are rare; the unit or the sign convention is in doubt.",
}
_CURE = "Compare one of the frames with the output of the reference calculation and convert or remove it."


def _finding(kind: str, message: str, frames: tuple[str, ...] = ()) -> Finding:
    return Finding(kind, "warning", message, _MEANINGS[kind], _CURE, frames)


def check_frames(frames: Sequence[Frame]) -> list[Finding]:
    """Look for wrong units and damaged frames; an empty list means that nothing was suspicious.

    The checks are "energy_outlier", "large_force", "typical_force", "short_distance", "long_distance", "large_stress".

    Checked are energies per atom (after the least-squares part of the composition is taken out), force magnitudes, the
    shortest distance of each frame and stresses. NaN never gets this far: `Frame` refuses it.
    """
    return [*_check_energies(frames), *_check_forces(frames), *_check_distances(frames), *_check_stresses(frames)]


def _worst_first(frames: Sequence[Frame], badness: np.ndarray, bad: np.ndarray) -> tuple[str, ...]:
    order = [index for index in np.argsort(-badness) if bad[index]]
    return tuple(frames[index].source for index in order)


def _check_energies(frames: Sequence[Frame]) -> list[Finding]:
    # Isolated atoms lie far above bound matter by nature.
    frames = [frame for frame in frames if frame.energy is not None and not is_isolated_atom(frame)]
    if len(frames) < 3:
        return []
    # Two rounds: outliers of the first round would tilt the composition fit of the others.
    residual = _energy_residuals(frames, frames)
    kept = [frame for frame, r in zip(frames, residual, strict=True) if abs(r) < _ENERGY_SPREAD]
    residual = _energy_residuals(frames, kept or frames)
    bad = np.abs(residual) > _ENERGY_SPREAD
    if not bad.any():
        return []
    sources = _worst_first(frames, np.abs(residual), bad)
    message = (
        f"{len(sources)} frames have an energy per atom more than {_ENERGY_SPREAD} eV away from the rest "
        f"(up to {residual[np.abs(residual).argmax()]:+.1f} eV/atom): another unit or zero of energy, "
        "a failed calculation, or matter far from equilibrium"
    )
    return [_finding("energy_outlier", message, sources)]


def _energy_residuals(frames: Sequence[Frame], fitted: Sequence[Frame]) -> np.ndarray:
    """[n] energy per atom minus composition part minus median, eV."""
    e0 = fit_reference_energies(fitted, isolated=[]).energies
    residual = []
    for frame in frames:
        composition = sum(e0.get(symbol, 0.0) for symbol in frame.structure.to_ase()[0].symbols)
        residual.append((float(frame.energy or 0.0) - composition) / frame.n_atoms)
    values = np.array(residual)
    return values - np.median(values)


def _check_forces(frames: Sequence[Frame]) -> list[Finding]:
    frames = [frame for frame in frames if frame.forces is not None and frame.n_atoms > 1]
    if not frames:
        return []
    norms = [np.linalg.norm(np.asarray(frame.forces), axis=1) for frame in frames]
    findings = []
    largest = np.array([norm.max() for norm in norms])
    bad = largest > _LARGEST_FORCE
    if bad.any():
        message = f"{int(bad.sum())} frames have forces above {_LARGEST_FORCE:.0f} eV/Å (up to {largest.max():.0f})"
        findings.append(_finding("large_force", message, _worst_first(frames, largest, bad)))
    # Perfect crystals have zero forces by symmetry: they say nothing about the unit.
    moving = np.concatenate(norms)
    moving = moving[moving > 1e-6]
    typical = float(np.median(moving)) if moving.size else 1.0
    if typical < _SMALL_TYPICAL_FORCE:
        factor = HARTREE_IN_EV / BOHR_IN_ANGSTROM
        message = f"forces are small (median {typical:.2g} eV/Å): if they are in Hartree/Bohr, multiply by {factor:.2f}"
        findings.append(_finding("typical_force", message))
    elif typical > _LARGE_TYPICAL_FORCE:
        message = f"forces are large (median {typical:.3g} eV/Å): they may be in kcal/mol/Å or kJ/mol/Å, expected eV/Å"
        findings.append(_finding("typical_force", message))
    return findings


def _check_distances(frames: Sequence[Frame]) -> list[Finding]:
    if not frames:
        return []
    reach = np.array([_reach(frame.structure) for frame in frames])
    order, shortest = np.argsort(reach), np.empty(len(frames))
    for first in range(0, len(frames), _BATCH):
        rows = order[first : first + _BATCH]
        shortest[rows] = _shortest_distances([frames[row] for row in rows], float(reach[rows].max()))
    findings = []
    near = shortest < _SHORTEST
    if near.any():
        message = (
            f"{int(near.sum())} frames have atoms closer than {_SHORTEST} Å (down to {shortest.min():.2f} Å): "
            "positions may be in nm or fractional, or the cell is wrong"
        )
        findings.append(_finding("short_distance", message, _worst_first(frames, -shortest, near)))
    # Lone atoms and pairs may be far apart on purpose (isolated atoms, dissociation curves).
    far = (shortest > _FARTHEST) & np.array([frame.n_atoms > 2 for frame in frames])
    if far.any():
        message = f"{int(far.sum())} frames have no two atoms closer than {_FARTHEST} Å: positions in another unit?"
        findings.append(_finding("long_distance", message, _worst_first(frames, shortest, far)))
    return findings


def _reach(structure: Structure) -> float:
    """Å within which a crystal has a pair in any case; lengths in nm would have all too many within a fixed one."""
    if not structure.pbc.all():
        return _FARTHEST
    # Of all arrangements close packing keeps atoms the farthest apart: 1.12 of the edge of a cube that holds one.
    return min(_FARTHEST, 1.2 * float(structure.cell[0].det().abs() / structure.n_atoms) ** (1.0 / 3.0))


def _shortest_distances(frames: Sequence[Frame], reach: float) -> np.ndarray:
    """[n] shortest distance in each frame, Å; infinite where it exceeds `reach`."""
    structure = Structure.concatenate([frame.structure for frame in frames])
    pairs = neighbour_list(structure, reach)
    distances = pair_vectors(structure, pairs).norm(dim=1)
    owner = structure.structure_of_atom[pairs.i]
    result = torch.full((len(frames),), torch.inf, dtype=distances.dtype)
    return result.scatter_reduce(0, owner, distances, "amin").numpy()


def _check_stresses(frames: Sequence[Frame]) -> list[Finding]:
    frames = [frame for frame in frames if frame.stress is not None]
    largest = np.array([np.abs(np.asarray(frame.stress)).max() for frame in frames])
    bad = largest > _LARGEST_STRESS
    if not bad.any():
        return []
    limit = _LARGEST_STRESS * EV_PER_ANGSTROM3_IN_GPA
    message = (
        f"{int(bad.sum())} frames have stresses above {_LARGEST_STRESS} eV/Å³ ({limit:.0f} GPa), up to "
        f"{largest.max():.3g}: they may be in GPa or kbar, or virials in eV (name a key that holds 'virial')"
    )
    return [_finding("large_stress", message, _worst_first(frames, largest, bad))]
