"""Relaxation with ASE's optimisers."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import Any

import numpy as np
from ase import Atoms
from ase.filters import FrechetCellFilter
from ase.optimize import FIRE

from snnp.errors import InputError
from snnp.sampling.run import ModelLike, RelaxProgress, RelaxResult
from snnp.units import EV_PER_ANGSTROM3_IN_GPA, GPA_IN_EV_PER_ANGSTROM3
from snnp_ase.calculator import SNNPCalculator

__all__ = ["relax"]


def relax(
    model: ModelLike,
    atoms: Atoms,
    fmax: float = 0.01,
    cell: bool = False,
    steps: int = 500,
    report: Callable[[RelaxProgress], None] | None = None,
    pressure_gpa: float = 0.0,
) -> RelaxResult:
    """Relax with FIRE in float64, the cell through `FrechetCellFilter`; see `snnp.sampling.relax`."""
    if not fmax > 0.0:
        raise InputError(f"fmax must be positive, got {fmax} eV/Å.")
    if len(atoms) == 0:
        raise InputError("the structure holds no atoms; relaxation needs at least one.")
    if not math.isfinite(pressure_gpa) or (pressure_gpa and not cell):
        raise InputError(f"a pressure of {pressure_gpa} GPa acts on the cell: give a finite one, and relax the cell.")
    periodic = bool(atoms.pbc.all())
    if cell and not periodic:
        raise InputError(
            f"relaxing the cell needs a fully periodic structure, got pbc={atoms.pbc.tolist()}; relax positions alone."
        )
    relaxed: Atoms = atoms.copy()
    relaxed.calc = SNNPCalculator(model, dtype="float64")
    initial = float(relaxed.get_potential_energy())
    # FIRE never climbs; ASE's L-BFGS stops on saddle points where the start lies in a region of negative curvature.
    pressure = pressure_gpa * GPA_IN_EV_PER_ANGSTROM3
    target: Any = FrechetCellFilter(relaxed, scalar_pressure=pressure) if cell else relaxed
    optimiser = FIRE(target, logfile=os.devnull)

    def now() -> RelaxProgress:
        largest = float(np.linalg.norm(relaxed.get_forces(), axis=1).max())
        return RelaxProgress(optimiser.nsteps, float(relaxed.get_potential_energy()), largest)

    if report is not None:
        optimiser.attach(lambda: report(now()))
    try:
        converged = optimiser.run(fmax=fmax, steps=steps)
    except InputError as error:
        # The structure was good at the start, so what is wrong now is the relaxation's doing.
        raise InputError(
            f"the structure collapsed or flew apart after {optimiser.nsteps} steps of relaxation ({error}) Take a "
            "pressure nearer to zero, or check the model and the start."
        ) from error
    end, stress = now(), None
    if periodic:
        beyond = relaxed.get_stress(voigt=False) + pressure * np.eye(3)
        stress = float(np.abs(beyond).max()) * EV_PER_ANGSTROM3_IN_GPA
    relaxed.calc = None
    at_end = end.energy_ev, initial, end.max_force_ev_per_angstrom
    return RelaxResult(relaxed, bool(converged), end.step, *at_end, stress, pressure_gpa)
