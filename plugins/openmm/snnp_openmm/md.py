"""Molecular dynamics with OpenMM.

`nve` is velocity Verlet. The Langevin thermostat is OpenMM's LangevinMiddleIntegrator, after whose steps the momenta of
a snapshot lag its positions by half a step: temperatures from them are the accurate ones. `bussi` is an integrator of
our own.
`npt` moves the box every few steps, see `snnp.sampling.thermostats.Ensemble`: OpenMM's MonteCarloBarostat proposes
volumes that are not positive where they fluctuate much, and its steps cannot be resumed.

Runs go on the GPU where the model does, else on OpenMM's Reference platform: with all forces coming from the model, its
CPU platform only adds waiting for threads (0.1 to 0.2 ms per step). OPENMM_DEFAULT_PLATFORM chooses another.

Resuming is exact to the last bit on Reference: the checkpoint holds positions, velocities and box as OpenMM has them,
and there the random numbers begin anew from the run's seed and the step. On a GPU nothing is exact.
"""

from __future__ import annotations

import math
import os
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from ase import Atoms

from snnp.errors import InputError
from snnp.models.potential import Potential
from snnp.sampling.checkpoint import Checkpoint, EngineState
from snnp.sampling.run import MDResult, ModelLike, Report, run_engine
from snnp.sampling.settings import MDSettings
from snnp.sampling.snapshot import Snapshot
from snnp.sampling.thermostats import ASE_FS, Ensemble, degrees_of_freedom, held_atoms, without_drift
from snnp.units import EV_IN_KJ_PER_MOL, NM_IN_ANGSTROM
from snnp_openmm.evaluator import Evaluator
from snnp_openmm.force import check_python_force, python_force
from snnp_openmm.geometry import OpenMMGeometry, openmm, to_openmm
from snnp_openmm.source import ModelSource

__all__ = ["OpenMMDynamics", "choose_platform", "run_md", "velocity_verlet"]

_PS_IN_FS = 1000.0
_VELOCITY_UNIT = ASE_FS * _PS_IN_FS / NM_IN_ANGSTROM  # ASE's unit of velocity, sqrt(eV/amu), in nm/ps


class OpenMMDynamics:
    """An engine for `snnp.sampling.drive`; `potential`: in the precision and on the device of the run."""

    name = "openmm"

    def __init__(self, potential: Potential, start: Checkpoint, settings: MDSettings) -> None:
        self._settings, self._atoms = settings, start.atoms
        self._ensemble = Ensemble(start.atoms, settings, start.step, start.equilibration, costly_moves=True)
        self._geometry, velocities = _begin(start)
        self._evaluator = Evaluator(ModelSource(potential), start.atoms.numbers, self._geometry.pbc)
        self._has_stress = all(self._geometry.pbc)
        self._system = openmm().System()
        for mass in np.where(held_atoms(start.atoms, None), 0.0, start.atoms.get_masses()).tolist():
            self._system.addParticle(mass)  # OpenMM holds what has no mass
        if self._geometry.box is not None:
            self._system.setDefaultPeriodicBoxVectors(*self._geometry.box)
        self._system.addForce(python_force(self._evaluator))
        self._platform = choose_platform(potential.device)
        self._context = self._make_context()
        self._place(self._geometry.positions, velocities, self._geometry.box)

    def _make_context(self) -> Any:
        """A context whose random numbers follow from the run's seed and the step, as do those of the barostat."""
        mm, settings, dt = openmm(), self._settings, self._settings.dt_fs / _PS_IN_FS
        step, bath = self._ensemble.step, self._ensemble.bath
        self._ensemble.rng = np.random.default_rng([settings.seed, step, 1])
        if bath.kind == "langevin":
            integrator = mm.LangevinMiddleIntegrator(settings.temperature_at(step), bath.friction_per_ps, dt)
        else:
            integrator = velocity_verlet(dt, bath.friction_per_ps if bath.kind == "bussi" else None)
        seed = int(np.random.SeedSequence([settings.seed, step, 0]).generate_state(1)[0])
        integrator.setRandomNumberSeed(1 + seed % (2**31 - 2))  # zero would mean a random one
        context = mm.Context(self._system, integrator, self._platform)
        if bath.kind == "bussi":
            _count_freedom(integrator, self._atoms, degrees_of_freedom(self._atoms, settings))
            self._heat(integrator)
        return context

    def _heat(self, integrator: Any) -> None:
        bath = self._ensemble.bath
        if bath.kind == "langevin":
            integrator.setTemperature(self._settings.temperature_at(self._ensemble.step))
        elif bath.kind == "bussi":
            integrator.setGlobalVariableByName("kT", bath.kt * EV_IN_KJ_PER_MOL)

    def _place(self, positions: np.ndarray, velocities: np.ndarray | None, box: np.ndarray | None) -> None:
        """Set positions (nm), velocities (nm/ps; None leaves them) and box (nm)."""
        if box is not None:
            self._context.setPeriodicBoxVectors(*box)
        self._context.setPositions(positions)
        if velocities is not None:
            self._context.setVelocities(velocities)

    def _now(self) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray | None]:
        """OpenMM's state, its positions (nm), velocities (nm/ps), and box (nm)."""
        state = self._context.getState(positions=True, velocities=True)
        box = None if self._geometry.box is None else np.array(state.getPeriodicBoxVectors()._value)
        return state, state.getPositions(asNumpy=True)._value, state.getVelocities(asNumpy=True)._value, box

    def advance(self, n_steps: int) -> None:
        ensemble, ramp = self._ensemble, self._settings.temperature_end_k is not None
        end = ensemble.step + n_steps
        while ensemble.step < end:
            stop = min(end, ensemble.equilibration) if ensemble.step < ensemble.equilibration else end
            if ensemble.moves_box:
                self._move_box()
            if self._settings.ensemble == "npt":
                stop = min(stop, (ensemble.step // ensemble.every + 1) * ensemble.every)
            if ramp:
                self._heat(self._context.getIntegrator())
                stop = ensemble.step + 1
            self._integrate(stop - ensemble.step)
            ensemble.step = stop
            if stop == ensemble.equilibration:
                self._end_equilibration()

    def _integrate(self, n_steps: int) -> None:
        integrator, kind = self._context.getIntegrator(), self._ensemble.bath.kind
        try:
            if kind != "langevin" and self._has_stress:
                # These end with the forces at the new positions: the last step can bring the stress along.
                integrator.step(n_steps - 1)
                self._evaluator.expect_stress()
                integrator.step(1)
            else:
                integrator.step(n_steps)
        except openmm().OpenMMException as error:
            if self._evaluator.error is not None:
                raise self._evaluator.error from None
            if str(error) == "<NULL>":
                # Ctrl-C that Python noticed on its way into the evaluator, before anything there could keep it.
                raise KeyboardInterrupt from None
            raise InputError(f"OpenMM stopped the run: {error}") from error

    def _move_box(self) -> None:
        """A move of the barostat, with a stress that it computes at the present positions."""
        state, positions, _, box = self._now()
        stress = self._evaluator.evaluate_state(state, stress=True).stress
        assert box is not None
        assert stress is not None
        move = self._ensemble.box_move(box * NM_IN_ANGSTROM, stress)
        self._place(positions @ move, None, box @ move)

    def _end_equilibration(self) -> None:
        _, positions, velocities, box = self._now()
        if self._ensemble.keeps_momentum:
            masses = self._atoms.get_masses()
            velocities = without_drift(velocities * masses[:, None], masses) / masses[:, None]
        self._context = self._make_context()
        self._place(positions, velocities, box)

    def snapshot(self) -> Snapshot:
        """The state now, in the axes of the structure that the run began with."""
        geometry, atoms = self._geometry, self._atoms.copy()
        state, positions, velocities, box = self._now()
        result = self._evaluator.evaluate_state(state, stress=self._has_stress)
        if box is not None:
            atoms.set_cell(geometry.cell_of(box, self._atoms.cell.array))
        atoms.set_positions(geometry.rotate_back(positions) * NM_IN_ANGSTROM)
        atoms.set_velocities(geometry.rotate_back(velocities) / _VELOCITY_UNIT)
        stress = None if result.stress is None else geometry.rotation @ result.stress @ geometry.rotation.T
        return Snapshot(atoms, result.energy, geometry.rotate_back(result.forces), stress)

    def state(self) -> EngineState:
        """OpenMM's numbers as they are; this run goes on from them as a resumed one would."""
        geometry = self._geometry
        _, positions, velocities, box = self._now()
        arrays = {"positions": positions, "velocities": velocities, "rotation": geometry.rotation}
        arrays |= {"steps": geometry.steps} | ({} if box is None else {"box": box})
        self._evaluator.forget()
        if self._settings.ensemble != "nve" and self._platform.getName() in ("Reference", "CPU"):
            self._context = self._make_context()
        # Also where the context stays: forces that it remembers were summed with the old neighbour list.
        self._place(positions, velocities, box)
        return EngineState(arrays)


def run_md(model: ModelLike, structure: Atoms, settings: MDSettings, report: Report | None = None) -> MDResult:
    """As `snnp.sampling.run_md`, with OpenMM; `MissingDependencyError` where that is missing or older than 8.6."""
    check_python_force()
    device = "cuda" if not isinstance(model, Potential) and torch.cuda.is_available() else None
    return run_engine(OpenMMDynamics, OpenMMDynamics.name, model, structure, settings, report, device=device)


def velocity_verlet(dt_ps: float, friction_per_ps: float | None = None) -> Any:
    """An `openmm.CustomIntegrator` for velocity Verlet with a step in ps; with friction, its velocities are rescaled.

    OpenMM's own is leapfrog: its velocities lie half a step before its positions. Stochastic rescaling stands between
    half drifts, see `snnp.sampling.thermostats.velocity_factor`; the gamma variable is a sum of squared normal numbers
    over the degrees of freedom with `counts` = 1.
    """
    integrator = openmm().CustomIntegrator(dt_ps)
    integrator.addComputePerDof("v", "v + 0.5*dt*f/m")
    if friction_per_ps is None:
        integrator.addComputePerDof("x", "x + dt*v")
    else:
        for name in ("keep", "kT", "twice", "ratio", "others", "factor"):
            integrator.addGlobalVariable(name, math.exp(-friction_per_ps * dt_ps) if name == "keep" else 0.0)
        for name in ("counts", "noise"):
            integrator.addPerDofVariable(name, 0.0)
        integrator.addComputePerDof("x", "x + 0.5*dt*v")
        integrator.addComputeSum("twice", "m*v*v")
        integrator.addComputePerDof("noise", "counts*gaussian")
        integrator.addComputeSum("others", "noise*noise")
        integrator.addComputeGlobal("ratio", "(1 - keep)*kT/twice")
        integrator.addComputeGlobal("factor", "sqrt((sqrt(keep) + gaussian*sqrt(ratio))^2 + ratio*others)")
        integrator.addComputePerDof("v", "factor*v")
        integrator.addComputePerDof("x", "x + 0.5*dt*v")
    integrator.addComputePerDof("v", "v + 0.5*dt*f/m")
    return integrator


def _count_freedom(integrator: Any, atoms: Atoms, n_freedom: int) -> None:
    """All degrees of freedom but one, which has a normal number of its own, count for the gamma variable."""
    counts = np.zeros((len(atoms), 3))
    counts.reshape(-1)[3 * np.flatnonzero(~held_atoms(atoms, None))[:, None] + np.arange(3)] = 1.0
    counts.reshape(-1)[np.flatnonzero(counts)[n_freedom - 1 :]] = 0.0
    integrator.setPerDofVariableByName("counts", [tuple(row) for row in counts.tolist()])


def _begin(start: Checkpoint) -> tuple[OpenMMGeometry, np.ndarray]:
    """Geometry and velocities (nm/ps) at the start: from the atoms, or as OpenMM had them at the checkpoint."""
    geometry = to_openmm(start.atoms)
    arrays = start.state.arrays
    if not arrays:
        return geometry, start.atoms.get_velocities() @ geometry.rotation * _VELOCITY_UNIT
    if missing := [name for name in ("positions", "velocities", "rotation", "steps") if name not in arrays]:
        raise InputError(f"the checkpoint lacks OpenMM's {missing[0]}; put a good one back, or start again.")
    geometry = replace(geometry, positions=arrays["positions"], box=arrays.get("box"))
    return replace(geometry, rotation=arrays["rotation"], steps=arrays["steps"]), arrays["velocities"]


def choose_platform(device: torch.device) -> Any:
    """The platform named by OPENMM_DEFAULT_PLATFORM, else CUDA for a model on a GPU, else Reference."""
    mm = openmm()
    names = {mm.Platform.getPlatform(k).getName() for k in range(mm.Platform.getNumPlatforms())}
    default = "CUDA" if device.type == "cuda" and "CUDA" in names else "Reference"
    wanted = os.environ.get("OPENMM_DEFAULT_PLATFORM", default)
    if wanted not in names:
        raise InputError(f"OPENMM_DEFAULT_PLATFORM is {wanted!r}, but OpenMM offers {', '.join(sorted(names))}.")
    return mm.Platform.getPlatformByName(wanted)
