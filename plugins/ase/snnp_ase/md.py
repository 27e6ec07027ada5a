"""Molecular dynamics with ASE's integrators.

`nve` is velocity Verlet; the Langevin thermostat is ASE's BAOAB splitting; `bussi` rescales the velocities after each
step of velocity Verlet. `npt` moves the box every few steps with `snnp.sampling.thermostats.box_move`.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.md.langevinbaoab import LangevinBAOAB
from ase.md.verlet import VelocityVerlet

from snnp.models.potential import Potential
from snnp.sampling.checkpoint import Checkpoint, EngineState
from snnp.sampling.run import MDResult, Report, run_engine
from snnp.sampling.settings import MDSettings
from snnp.sampling.snapshot import Snapshot
from snnp.sampling.thermostats import (
    bath,
    box_move,
    conserves_momentum,
    degrees_of_freedom,
    steps_per_move,
    velocity_factor,
    without_drift,
)
from snnp.units import AMU_ANGSTROM2_PER_FS2_IN_EV, BOLTZMANN_EV_PER_K
from snnp_ase.calculator import SNNPCalculator

__all__ = ["ASEDynamics", "run_md"]

_FS = 1.0 / math.sqrt(AMU_ANGSTROM2_PER_FS2_IN_EV)
"""1 fs in ASE's unit of time, Å sqrt(amu/eV)."""


class ASEDynamics:
    """An engine for `snnp.sampling.drive`.

    Arguments:
        potential: in the precision and on the device of the run.
        start: atoms with momenta, and the state of the thermostat where a run is resumed.
        settings: ensemble, time step, thermostat and barostat.
    """

    name = "ase"

    def __init__(self, potential: Potential, start: Checkpoint, settings: MDSettings) -> None:
        self._settings = settings
        self._calculator = SNNPCalculator(potential)
        self._periodic = bool(start.atoms.pbc.all())
        self._step, self._equilibration = start.step, start.equilibration
        self._n_freedom = degrees_of_freedom(start.atoms, settings)
        self._every = steps_per_move(settings)
        self._rng = np.random.default_rng([settings.seed, 1])  # not the stream of the initial velocities
        if "rng" in start.state.values:
            self._rng.bit_generator.state = start.state.values["rng"]
        self._atoms: Atoms = start.atoms.copy()
        self._atoms.calc = self._calculator
        self._dynamics = self._begin()

    def _begin(self) -> VelocityVerlet | LangevinBAOAB:
        """The integrator for the atoms as they are and the thermostat of this step."""
        dt, (kind, friction, _) = self._settings.dt_fs * _FS, bath(self._settings, self._step, self._equilibration)
        if kind != "langevin":
            return VelocityVerlet(self._atoms, dt)
        temperature = self._settings.temperature_at(self._step)
        return LangevinBAOAB(self._atoms, dt, rng=self._rng, temperature_K=temperature, T_tau=1000.0 / friction * _FS)

    def advance(self, n_steps: int) -> None:
        """Go on by some steps; the last one, and one before a move of the box, compute the stress with the forces."""
        npt = self._settings.ensemble == "npt"
        for k in range(n_steps):
            if npt and self._step % self._every == 0:
                self._move_box()
            if isinstance(self._dynamics, LangevinBAOAB) and self._settings.temperature_end_k is not None:
                self._dynamics.set_temperature(self._settings.temperature_at(self._step))
            moves_next = npt and (self._step + 1) % self._every == 0
            if self._periodic and (k == n_steps - 1 or moves_next):
                self._calculator.expect_stress()
            self._dynamics.step()
            self._rescale()
            self._step += 1
            if self._step == self._equilibration:
                self._end_equilibration()

    def _move_box(self) -> None:
        """A move of the barostat. BAOAB goes on with its old forces: they kick momenta, which do not know the box."""
        atoms = self._atoms
        move = box_move(
            atoms.cell.array,
            atoms.get_stress(voigt=False),
            self._settings,
            self._rng,
            n_atoms=len(atoms),
            step=self._step,
            equilibration=self._equilibration,
            every=self._every,
        )
        atoms.positions = atoms.positions @ move
        atoms.set_cell(atoms.cell.array @ move)

    def _rescale(self) -> None:
        kind, friction, _ = bath(self._settings, self._step, self._equilibration)
        if kind == "bussi":
            kt = BOLTZMANN_EV_PER_K * self._settings.temperature_at(self._step)
            keep = math.exp(-friction * 1e-3 * self._settings.dt_fs)
            factor = velocity_factor(self._atoms.get_kinetic_energy(), self._n_freedom, kt, keep, self._rng)
            self._atoms.set_momenta(factor * self._atoms.get_momenta())

    def _end_equilibration(self) -> None:
        if conserves_momentum(self._atoms, self._settings):
            self._atoms.set_momenta(without_drift(self._atoms.get_momenta(), self._atoms.get_masses()))
        self._dynamics = self._begin()

    def snapshot(self) -> Snapshot:
        """The state now."""
        atoms = self._atoms
        return Snapshot(
            atoms=atoms.copy(),
            potential_energy=float(atoms.get_potential_energy()),
            forces=atoms.get_forces(),
            stress=atoms.get_stress(voigt=False) if self._periodic else None,
        )

    def state(self) -> EngineState:
        """The random numbers; the running engine goes on from them as a resumed one would.

        The neighbour list and the integrator are rebuilt, so that both sum in the same order: the trajectories agree to
        the last bit.
        """
        self._calculator.reset()
        self._dynamics = self._begin()
        return EngineState(values={"rng": self._rng.bit_generator.state})


def run_md(
    model: str | Path | Potential, structure: Atoms, settings: MDSettings, report: Report | None = None
) -> MDResult:
    """Run molecular dynamics with ASE; see `snnp.sampling.run_md`."""
    return run_engine(ASEDynamics, ASEDynamics.name, model, structure, settings, report)
