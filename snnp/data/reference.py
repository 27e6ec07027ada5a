"""Reference energies E0: the part of the energy that depends on the composition alone, taken out before training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from ase.data import atomic_numbers, chemical_symbols

from snnp.data.frames import Frame, elements_of
from snnp.errors import DataError
from snnp.neighbours import neighbour_list

__all__ = [
    "FROM_ISOLATED_ATOMS",
    "FROM_LEAST_SQUARES",
    "ReferenceEnergies",
    "fit_reference_energies",
    "is_isolated_atom",
]

FROM_ISOLATED_ATOMS = "isolated atoms"
FROM_LEAST_SQUARES = "least squares"

_ISOLATION_DISTANCE = 6.0
"""Å. A lone atom in a periodic box counts as isolated if its images are farther than this."""


@dataclass(frozen=True)
class ReferenceEnergies:
    """E0 per element and how each was found.

    Arguments:
        energies: symbol -> eV.
        provenance: symbol -> "isolated atoms" or "least squares".
    """

    energies: dict[str, float]
    provenance: dict[str, str]


def is_isolated_atom(frame: Frame) -> bool:
    """Whether the frame is one atom without images within 6 Å (a one-atom unit cell of a crystal is not)."""
    if frame.n_atoms != 1:
        return False
    return neighbour_list(frame.structure, _ISOLATION_DISTANCE).n_pairs == 0


def fit_reference_energies(frames: Sequence[Frame], isolated: Sequence[Frame] | None = None) -> ReferenceEnergies:
    """Find E0 for each element of `frames`: from isolated atoms where there are any, else by least squares.

    Least squares minimise `sum_s ((E_s - sum_z n_sz E0_z) / N_s)^2` over the elements without an isolated atom; where
    the compositions do not determine them (one stoichiometry only), the solution of smallest norm is taken.

    Arguments:
        frames: training structures; frames without an energy are ignored.
        isolated: single-atom frames; None looks for isolated atoms among `frames`. Where an element occurs more than
            once, the lowest energy (the ground state of the atom) counts.

    Raises:
        DataError: if nothing has an energy, or a frame of `isolated` is no isolated atom or has no energy.
    """
    labelled = [frame for frame in frames if frame.energy is not None]
    if not labelled:
        raise DataError("reference energies need at least one frame with an energy, got none.")
    atoms = [frame for frame in labelled if is_isolated_atom(frame)] if isolated is None else list(isolated)
    energies = _energies_of_atoms(atoms)
    elements = elements_of(frames)
    energies = {symbol: energies[symbol] for symbol in elements if symbol in energies}
    provenance = dict.fromkeys(energies, FROM_ISOLATED_ATOMS)
    open_elements = [symbol for symbol in elements if symbol not in energies]
    if open_elements:
        energies.update(_least_squares(labelled, open_elements, energies))
        provenance.update(dict.fromkeys(open_elements, FROM_LEAST_SQUARES))
    return ReferenceEnergies(
        energies={symbol: energies[symbol] for symbol in elements},
        provenance={symbol: provenance[symbol] for symbol in elements},
    )


def _energies_of_atoms(atoms: Sequence[Frame]) -> dict[str, float]:
    """Lowest energy per element among single-atom frames."""
    energies: dict[str, float] = {}
    for frame in atoms:
        if not is_isolated_atom(frame):
            raise DataError(
                f"{frame.source} was given as an isolated atom but holds {frame.n_atoms} atoms or has periodic images "
                f"within {_ISOLATION_DISTANCE} Å; give one atom alone in a large box."
            )
        if frame.energy is None:
            raise DataError(f"{frame.source} was given as an isolated atom but has no energy.")
        symbol = chemical_symbols[int(frame.structure.numbers[0])]
        energies[symbol] = min(frame.energy, energies.get(symbol, np.inf))
    return energies


def _least_squares(frames: Sequence[Frame], elements: Sequence[str], known: dict[str, float]) -> dict[str, float]:
    """E0 of `elements` that fit the energies per atom best, with those in `known` held fixed."""
    counts = np.stack(
        [np.bincount(frame.structure.numbers.numpy(), minlength=len(chemical_symbols)) for frame in frames]
    )
    fractions = counts / counts.sum(axis=1, keepdims=True)
    target = np.array([float(frame.energy or 0.0) for frame in frames]) / counts.sum(axis=1)
    for symbol, energy in known.items():
        target = target - fractions[:, atomic_numbers[symbol]] * energy
    columns = fractions[:, [atomic_numbers[symbol] for symbol in elements]]
    solution, *_ = np.linalg.lstsq(columns, target, rcond=1e-8)
    return dict(zip(elements, solution.tolist(), strict=True))
