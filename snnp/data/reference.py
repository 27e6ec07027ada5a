"""Reference energies E0: the part of the energy that depends on the composition alone, taken out before training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from snnp.data.frames import Frame, Frames
from snnp.errors import DataError
from snnp.neighbours import neighbour_list

__all__ = ["FROM_ISOLATED_ATOMS", "FROM_LEAST_SQUARES", "ReferenceEnergies", "are_isolated_atoms"]
__all__ += ["energies_beyond_composition", "fit_reference_energies"]

FROM_ISOLATED_ATOMS = "isolated atoms"
FROM_LEAST_SQUARES = "least squares"

_ISOLATION_DISTANCE = 6.0  # Å. A lone atom in a periodic box counts as isolated if its images are farther than this.


@dataclass(frozen=True)
class ReferenceEnergies:
    """E0 per element (symbol -> eV), and how each was found (symbol -> "isolated atoms" or "least squares")."""

    energies: dict[str, float]
    provenance: dict[str, str]


def are_isolated_atoms(frames: Sequence[Frame]) -> np.ndarray:
    """[B] bool, which frames are one atom without images within 6 Å (a one-atom unit cell of a crystal is not)."""
    frames = Frames.of(frames)
    isolated: np.ndarray = frames.counts == 1
    if isolated.any():
        pairs = neighbour_list(frames.take(isolated).structure(), _ISOLATION_DISTANCE)
        isolated[isolated] = np.bincount(pairs.i.numpy(), minlength=int(isolated.sum())) == 0
    return isolated


def fit_reference_energies(frames: Sequence[Frame], isolated: Sequence[Frame] | None = None) -> ReferenceEnergies:
    """Find E0 for each element of `frames`: from isolated atoms where there are any, else by least squares.

    Least squares minimise `sum_s ((E_s - sum_z n_sz E0_z) / N_s)^2` over the elements without an isolated atom; where
    the compositions do not determine them (one stoichiometry only), the solution of smallest norm is taken.

    Arguments:
        frames: training structures; frames without an energy are ignored, but there must be one that has it.
        isolated: single-atom frames with energies, of which the lowest counts (the ground state of the atom); None
            looks for isolated atoms among `frames`.
    """
    frames = Frames.of(frames)
    if not frames.has_energy.any():
        raise DataError("reference energies need at least one frame with an energy, got none.")
    labelled = frames.take(frames.has_energy)
    atoms = labelled.take(are_isolated_atoms(labelled)) if isolated is None else Frames.of(isolated)
    known: dict[str, float] = {}
    for frame, alone in zip(atoms, are_isolated_atoms(atoms), strict=True):
        if not alone:
            raise DataError(
                f"{frame.source} was given as an isolated atom but holds {frame.n_atoms} atoms or has periodic images "
                f"within {_ISOLATION_DISTANCE} Å; give one atom alone in a large box."
            )
        if frame.energy is None:
            raise DataError(f"{frame.source} was given as an isolated atom but has no energy.")
        symbol = frame.structure.symbols[0]
        known[symbol] = min(frame.energy, known.get(symbol, np.inf))
    free = [symbol not in known for symbol in frames.elements]
    energies = np.array([known.get(symbol, 0.0) for symbol in frames.elements])
    if any(free):
        fractions = frames.composition()[frames.has_energy] / labelled.counts[:, None]
        target = labelled.energy / labelled.counts - fractions @ energies
        energies[free], *_ = np.linalg.lstsq(fractions[:, free], target, rcond=1e-8)
    found = [FROM_LEAST_SQUARES if each else FROM_ISOLATED_ATOMS for each in free]
    return ReferenceEnergies(
        energies=dict(zip(frames.elements, energies.tolist(), strict=True)),
        provenance=dict(zip(frames.elements, found, strict=True)),
    )


def energies_beyond_composition(frames: Frames, chosen: np.ndarray) -> np.ndarray:
    """[B] eV/atom: energies beyond what the composition explains, by least absolute deviations and with median zero.

    `chosen` [B] are frames with an energy that count; others get NaN.
    """
    target, fractions = np.where(chosen, frames.energy, 0.0) / frames.counts, frames.composition()
    fractions, weight = fractions / frames.counts[:, None], chosen.astype(float)
    result, residual = np.full(len(frames), np.nan), target
    if not chosen.any():
        return result
    for _ in range(30):
        root = np.sqrt(weight)
        e0, *_ = np.linalg.lstsq(fractions * root[:, None], target * root, rcond=1e-8)
        residual = target - fractions @ e0
        size = np.abs(residual)
        weight = chosen / (size + 1e-3 + 0.1 * np.median(size[chosen]))
    result[chosen] = residual[chosen] - np.median(residual[chosen])
    return result
