"""Relaxing structures to their nearest minimum, through the optimiser that a plugin registers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ase import Atoms

from snnp.models.potential import Potential
from snnp.sampling.run import find_entry_point

__all__ = ["RelaxProgress", "RelaxResult", "relax"]


@dataclass(frozen=True)
class RelaxProgress:
    """Where a relaxation stands: step, energy (eV) and largest force on an atom (eV/Å)."""

    step: int
    energy_ev: float
    max_force_ev_per_angstrom: float


@dataclass(frozen=True)
class RelaxResult:
    """What a relaxation gave.

    Arguments:
        atoms: the relaxed structure.
        converged: whether all forces (and the stress, if the cell was relaxed) fell below the threshold.
        steps: optimiser steps done.
        energy_ev, initial_energy_ev: at the end and at the start.
        max_force_ev_per_angstrom: largest force on an atom at the end.
        max_stress_gpa: largest component of the stress at the end, beyond that of the pressure; None where not fully
            periodic.
        pressure_gpa: under which the cell was relaxed.
    """

    atoms: Atoms
    converged: bool
    steps: int
    energy_ev: float
    initial_energy_ev: float
    max_force_ev_per_angstrom: float
    max_stress_gpa: float | None
    pressure_gpa: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """The result as JSON values, with the cell and the volume in place of the atoms."""
        values = {name: value for name, value in vars(self).items() if name != "atoms"}
        periodic = bool(self.atoms.pbc.all())
        return {
            **values,
            "n_atoms": len(self.atoms),
            "cell_angstrom": self.atoms.cell.array.tolist() if self.atoms.pbc.any() else None,
            "volume_a3": float(self.atoms.get_volume()) if periodic else None,
        }


def relax(
    model: str | Path | Potential,
    atoms: Atoms,
    *,
    fmax: float = 0.01,
    cell: bool = False,
    steps: int = 500,
    pressure_gpa: float = 0.0,
    report: Callable[[RelaxProgress], None] | None = None,
) -> RelaxResult:
    """Relax positions, and the cell if asked, with FIRE in float64.

    Arguments:
        model: name, folder or potential.
        atoms: the structure; unchanged.
        fmax: eV/Å, largest force at which the structure counts as relaxed.
        cell: relax the cell too (needs a fully periodic structure).
        steps: at most so many.
        pressure_gpa: hydrostatic pressure on the cell; the enthalpy E + P V takes the place of the energy.
        report: called after every step.

    Raises:
        InputError: for a bad structure, `cell` without full periodicity, or a pressure without `cell`.
    """
    relaxer = find_entry_point("snnp.relaxers", "ase")
    result: RelaxResult = relaxer(model, atoms, fmax, cell, steps, report, pressure_gpa)
    return result
