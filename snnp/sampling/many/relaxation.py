"""Relaxation of many structures by one call: each ends where it would end by itself, and then leaves the batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from ase import Atoms
from ase.constraints import FixAtoms

from snnp.errors import InputError, near_matches
from snnp.hub import load_model
from snnp.sampling.many.coordinates import Coordinates, Vector
from snnp.sampling.many.crowd import Crowd, Failed, Found
from snnp.sampling.many.optimisers import OPTIMISERS, Optimiser
from snnp.sampling.run import ModelLike, RelaxResult
from snnp.units import EV_PER_ANGSTROM3_IN_GPA, GPA_IN_EV_PER_ANGSTROM3

__all__ = ["relax_many"]

_EMPTY_SHARE = 0.1  # of a batch: so many are finished before it is packed anew


def relax_many(
    model: ModelLike,
    structures: Sequence[Atoms],
    *,
    fmax: float = 0.01,
    cell: bool = False,
    steps: int = 500,
    pressure_gpa: float = 0.0,
    optimiser: str = "fire",
    report: Callable[[int, int], None] | None = None,
) -> list[RelaxResult | Failed]:
    """Relax positions, and cells if asked, of many structures together, in float64; they stay as they are.

    Atoms held by ASE's `FixAtoms` stay where they are or, where cells move, at their place in the cell.

    Arguments:
        fmax: eV/Å, largest force at which a structure counts as relaxed.
        steps: at most so many for each.
        pressure_gpa: hydrostatic pressure on the cells; enthalpies E + P V take the place of energies.
        optimiser: "fire", whose results are those of `snnp.sampling.relax`, or "lbfgs", which is faster.
        report: called after every step with how many structures are done, and how many there are.

    Returns:
        In the order of the structures a result for each, or why there is none.

    Raises:
        InputError: for an `fmax` that is not positive, a pressure that is not finite or without `cell`, or an unknown
            optimiser. What is wrong with a single structure fails that one alone.
    """
    _check(fmax, cell, steps, pressure_gpa, optimiser)
    potential = load_model(model, dtype="float64")
    unfit = {k: why for k, atoms in enumerate(structures) if (why := _unfit(atoms, cell)) is not None}
    fit = [k for k in range(len(structures)) if k not in unfit]
    crowd = Crowd(potential, [structures[k] for k in fit])
    held = [_held(structures[fit[k]]) for k in crowd.index.tolist()]
    free = ~np.concatenate(held) if held else np.zeros(0, bool)
    run = _Relaxation(crowd, Coordinates(crowd, cell, pressure_gpa * GPA_IN_EV_PER_ANGSTROM3, free), optimiser, fmax)
    run.go(steps, report or (lambda done, total: None))
    found: list[RelaxResult | Failed] = [Failed(k, unfit.get(k, "")) for k in range(len(structures))]
    for k, why in crowd.failed.items():
        found[fit[k]] = Failed(fit[k], why)
    for k, result in run.results(structures, fit, pressure_gpa):
        found[k] = result
    return found


def _check(fmax: float, cell: bool, steps: int, pressure_gpa: float, optimiser: str) -> None:
    if not fmax > 0.0:
        raise InputError(f"fmax must be positive, got {fmax} eV/Å.")
    if steps < 0:
        raise InputError(f"steps must not be negative, got {steps}.")
    if not math.isfinite(pressure_gpa) or (pressure_gpa and not cell):
        raise InputError(
            f"a pressure of {pressure_gpa} GPa acts on the cell: give a finite number, and relax the cell."
        )
    if optimiser not in OPTIMISERS:
        hint = near_matches(optimiser, OPTIMISERS)
        raise InputError(f"no optimiser '{optimiser}'; there are: {', '.join(OPTIMISERS)}.{hint}")


def _unfit(atoms: Atoms, cell: bool) -> str | None:
    if cell and not atoms.pbc.all():
        return (
            f"relaxing the cell needs a fully periodic structure, got pbc={atoms.pbc.tolist()}; relax positions alone."
        )
    others = [type(c).__name__ for c in atoms.constraints if not isinstance(c, FixAtoms)]
    if others:
        return (
            f"it has a constraint {others[0]}, and many at once know FixAtoms alone; remove it, or relax it by itself."
        )
    for constraint in atoms.constraints:
        if beyond := [k for k in constraint.get_indices() if not -len(atoms) <= k < len(atoms)]:
            return f"FixAtoms names atom {beyond[0]}, and its atoms are numbered 0 to {len(atoms) - 1}."
    return None


def _held(atoms: Atoms) -> np.ndarray:
    held = np.zeros(len(atoms), bool)
    for constraint in atoms.constraints:
        held[constraint.get_indices()] = True
    return held


class _Relaxation:
    """The loop, and what is known of those that have left."""

    def __init__(self, crowd: Crowd, coordinates: Coordinates, optimiser: str, fmax: float) -> None:
        self._crowd, self._at, self._fmax = crowd, coordinates, fmax
        self._optimiser: Optimiser = OPTIMISERS[optimiser](coordinates)
        n = len(crowd)
        crowd.each |= {"initial": np.full(n, np.nan), "done": np.zeros(n, bool)}
        self._ends: dict[int, tuple[bool, int, float, float, float, np.ndarray, np.ndarray, np.ndarray]] = {}

    def go(self, steps: int, report: Callable[[int, int], None]) -> None:
        crowd, total = self._crowd, len(self._crowd) + len(self._crowd.failed)
        for step in range(steps + 1):
            before = set(crowd.failed)
            found = crowd.evaluate()
            if step:
                self._blame(set(crowd.failed) - before, step)
            if not len(crowd):
                break
            if step == 0:
                crowd.each["initial"] = found.energy
            forces = self._at.forces(found)
            finished = ~crowd.each["done"] & (self._at.largest(forces) < self._fmax)
            self._finish(finished, found, step, converged=True)
            crowd.each["done"] = crowd.each["done"] | finished
            report(len(self._ends) + len(crowd.failed), total)
            if step == steps:
                self._finish(~crowd.each["done"], found, step, converged=False)
            if step == steps or crowd.each["done"].all():
                break
            self._optimiser.step(found, self._stopped(forces))
            if crowd.each["done"].mean() >= _EMPTY_SHARE:
                crowd.keep(~crowd.each["done"])

    def _stopped(self, forces: Vector) -> Vector:
        """No forces on those that are finished and have not left yet: their lists would be rebuilt for nothing."""
        done = self._crowd.each["done"]
        return self._at.combine(((~done).astype(float), forces)) if done.any() else forces

    def _blame(self, failed: set[int], step: int) -> None:
        """Those that failed were good at the start: it is the relaxation's doing. Those that had ended did not fail."""
        for k in failed:
            if k in self._ends:
                del self._crowd.failed[k]
                continue
            self._crowd.failed[k] = (
                f"the structure collapsed or flew apart after {step} steps of relaxation ({self._crowd.failed[k]}) "
                "Take a pressure nearer to zero, or check the model and the start."
            )

    def _finish(self, chosen: np.ndarray, found: Found, step: int, *, converged: bool) -> None:
        crowd = self._crowd
        norms = np.sqrt(crowd.largest((np.where(crowd.atoms["free"], found.forces, 0.0) ** 2).sum(axis=1)))
        for b in np.flatnonzero(chosen).tolist():
            own = slice(int(crowd.starts[b]), int(crowd.starts[b] + crowd.sizes[b]))
            numbers = float(found.energy[b]), float(crowd.each["initial"][b]), float(norms[b])
            arrays = crowd.atoms["positions"][own].copy(), crowd.each["cells"][b].copy(), found.stress[b].copy()
            self._ends[int(crowd.index[b])] = (converged, step, *numbers, *arrays)

    def results(
        self, structures: Sequence[Atoms], fit: list[int], pressure_gpa: float
    ) -> list[tuple[int, RelaxResult]]:
        """The result of each that ended, with its number in the input."""
        found = []
        for k, (converged, step, energy, initial, force, positions, cell, stress) in self._ends.items():
            atoms = structures[fit[k]].copy()
            atoms.calc = None
            atoms.set_cell(cell)
            atoms.arrays["positions"][:] = positions  # past constraints: held atoms have not moved
            largest = None
            if atoms.pbc.all():
                beyond = stress + pressure_gpa * GPA_IN_EV_PER_ANGSTROM3 * np.eye(3)
                largest = float(np.abs(beyond).max()) * EV_PER_ANGSTROM3_IN_GPA
            result = RelaxResult(atoms, converged, step, energy, initial, force, largest, pressure_gpa)
            found.append((fit[k], result))
        return found
