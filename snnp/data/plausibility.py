"""Plausibility of reference data: units and outliers cannot be known, but they can be suspected, frame by frame."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from snnp.data.frames import Frame, Frames
from snnp.data.reference import are_isolated_atoms, energies_beyond_composition
from snnp.report import Finding
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
_BATCH = 64  # frames whose distances are looked at together

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


def check_frames(frames: Sequence[Frame]) -> list[Finding]:
    """Look for wrong units and damaged frames; an empty list means that nothing was suspicious.

    The checks are "energy_outlier" (energies per atom, beyond what the composition explains), "large_force",
    "typical_force", "short_distance" and "long_distance" (the shortest one of each frame), "large_stress". NaN never
    gets this far: `read_frames` refuses it.
    """
    frames = Frames.of(frames)
    if not frames:
        return []
    checks = (_check_energies, _check_forces, _check_distances, _check_stresses)
    return [finding for check in checks for finding in check(frames)]


def _beyond(kind: str, frames: Frames, size: np.ndarray, limit: float, message: str) -> Iterator[Finding]:
    """Frames of which a size [B] is beyond the limit, worst first."""
    bad = size > limit
    if bad.any():
        named = tuple(frames.sources[row] for row in np.argsort(-size) if bad[row])
        yield Finding(kind, "warning", f"{bad.sum()} frames have {message}", _MEANINGS[kind], _CURE, named)


def _check_energies(frames: Frames) -> Iterator[Finding]:
    # Isolated atoms lie far above bound matter by nature.
    frames = frames.take(frames.has_energy & ~are_isolated_atoms(frames))
    if len(frames) < 3:
        return
    residual = energies_beyond_composition(frames, frames.has_energy)
    message = (
        f"an energy per atom more than {_ENERGY_SPREAD} eV away from the rest (up to "
        f"{residual[np.abs(residual).argmax()]:+.1f} eV/atom): another unit or zero of energy, a failed calculation, "
        "or matter far from equilibrium"
    )
    yield from _beyond("energy_outlier", frames, np.abs(residual), _ENERGY_SPREAD, message)


def _check_forces(frames: Frames) -> Iterator[Finding]:
    frames = frames.take(frames.has_forces & (frames.counts > 1))
    if not frames:
        return
    norms = np.linalg.norm(frames.forces, axis=1)
    largest = frames.per_frame(norms, np.maximum)
    message = f"forces above {_LARGEST_FORCE:.0f} eV/Å (up to {largest.max():.0f})"
    yield from _beyond("large_force", frames, largest, _LARGEST_FORCE, message)
    # Perfect crystals have zero forces by symmetry: they say nothing about the unit.
    moving = norms[norms > 1e-6]
    typical = float(np.median(moving)) if moving.size else 1.0
    if typical < _SMALL_TYPICAL_FORCE:
        factor = HARTREE_IN_EV / BOHR_IN_ANGSTROM
        said = f"forces are small (median {typical:.2g} eV/Å): if they are in Hartree/Bohr, multiply by {factor:.2f}"
    elif typical > _LARGE_TYPICAL_FORCE:
        said = f"forces are large (median {typical:.3g} eV/Å): they may be in kcal/mol/Å or kJ/mol/Å, expected eV/Å"
    else:
        return
    yield Finding("typical_force", "warning", said, _MEANINGS["typical_force"], _CURE)


def _check_distances(frames: Frames) -> Iterator[Finding]:
    # Of all arrangements close packing keeps atoms the farthest apart: 1.12 of the edge of a cube that holds one.
    # Within that a crystal has a pair in any case; lengths in nm would have all too many within a fixed distance.
    reach = np.fmin(_FARTHEST, 1.2 * np.cbrt(frames.volume / frames.counts))
    order, shortest = np.argsort(reach), np.empty(len(frames))
    for rows in np.split(order, range(_BATCH, len(order), _BATCH)):
        shortest[rows] = frames.take(rows).shortest_distances(float(reach[rows].max()))
    message = (
        f"atoms closer than {_SHORTEST} Å (down to {shortest.min():.2f} Å): positions may be in nm or fractional, or "
        "the cell is wrong"
    )
    yield from _beyond("short_distance", frames, -shortest, -_SHORTEST, message)
    # Lone atoms and pairs may be far apart on purpose (isolated atoms, dissociation curves).
    apart = np.where(frames.counts > 2, shortest, 0.0)
    message = f"no two atoms closer than {_FARTHEST} Å: positions in another unit?"
    yield from _beyond("long_distance", frames, apart, _FARTHEST, message)


def _check_stresses(frames: Frames) -> Iterator[Finding]:
    largest = np.nan_to_num(np.abs(frames.stress).max(axis=(1, 2)))
    message = (
        f"stresses above {_LARGEST_STRESS} eV/Å³ ({_LARGEST_STRESS * EV_PER_ANGSTROM3_IN_GPA:.0f} GPa), up to "
        f"{largest.max():.3g}: they may be in GPa or kbar, or virials in eV (name a key that holds 'virial')"
    )
    yield from _beyond("large_stress", frames, largest, _LARGEST_STRESS, message)
