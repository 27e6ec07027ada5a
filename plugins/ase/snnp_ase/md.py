"""Molecular dynamics with ASE's integrators.

`nve` is velocity Verlet; `nvt` is Langevin in the BAOAB splitting; `npt` adds the isotropic Langevin barostat of
Quigley and Probert (the shape of the cell is kept), all from ASE.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.md.langevinbaoab import LangevinBAOAB
from ase.md.verlet import VelocityVerlet

from snnp.models.potential import Potential
from snnp.sampling.checkpoint import Checkpoint, EngineState, starting_point
from snnp.sampling.limits import least_energy
from snnp.sampling.run import MDResult, Report, drive
from snnp.sampling.settings import MDSettings
from snnp.sampling.snapshot import Snapshot
from snnp.units import AMU_ANGSTROM2_PER_FS2_IN_EV, BOLTZMANN_EV_PER_K, GPA_IN_EV_PER_ANGSTROM3
from snnp_ase.calculator import SNNPCalculator

__all__ = ["ASEDynamics", "run_md"]

_FS = 1.0 / math.sqrt(AMU_ANGSTROM2_PER_FS2_IN_EV)
"""1 fs in ASE's unit of time, Å sqrt(amu/eV)."""

_BAROSTAT = ("p_eps", "force_eps")
"""Momentum of the cell and the force on it: what ASE's integrator carries from step to step besides the atoms."""


class ASEDynamics:
    """An engine for `snnp.sampling.drive`.

    Arguments:
        calculator: computes energies and forces.
        start: atoms with momenta, and the state of the thermostat where a run is resumed.
        settings: ensemble, time step, thermostat and barostat.
    """

    name = "ase"

    def __init__(self, calculator: SNNPCalculator, start: Checkpoint, settings: MDSettings) -> None:
        self._settings = settings
        self._calculator = calculator
        self._periodic = bool(start.atoms.pbc.all())
        self._rng = np.random.default_rng([settings.seed, 1])  # not the stream of the initial velocities
        self._atoms: Atoms = start.atoms.copy()
        self._atoms.calc = calculator
        self._dynamics = self._begin(start.state)

    def _begin(self, state: EngineState) -> VelocityVerlet | LangevinBAOAB:
        """The integrator for the atoms as they are, with the variables of a thermostat that has run before."""
        settings, dt = self._settings, self._settings.dt_fs * _FS
        if "rng" in state.values:
            self._rng.bit_generator.state = state.values["rng"]
        if settings.ensemble == "nve":
            return VelocityVerlet(self._atoms, dt)
        langevin = {"temperature_K": settings.temperature_k, "T_tau": 1000.0 / settings.friction_per_ps * _FS}
        if settings.ensemble == "nvt":
            return LangevinBAOAB(self._atoms, dt, rng=self._rng, **langevin)
        tau = settings.barostat_time_fs * _FS
        dynamics = LangevinBAOAB(
            self._atoms,
            dt,
            rng=self._rng,
            externalstress=-settings.pressure_gpa * GPA_IN_EV_PER_ANGSTROM3,
            hydrostatic=True,
            P_tau=tau,
            # Martyna, Tobias and Klein 1994: W = (N_f + 3) k T tau².
            P_mass=(3 * len(self._atoms) + 3) * BOLTZMANN_EV_PER_K * settings.temperature_k * tau**2,
            **langevin,
        )
        # ASE takes the force on the cell before the last half step of the velocities, so it cannot be recomputed.
        for name in _BAROSTAT:
            if name in state.values:
                setattr(dynamics, name, state.values[name])
        return dynamics

    def advance(self, n_steps: int) -> None:
        """Go on by some steps; the last one computes the stress along with the forces."""
        for k in range(n_steps):
            if k == n_steps - 1 and self._periodic:
                self._calculator.expect_stress()
            self._dynamics.step()

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
        """Random numbers and the barostat; the running engine goes on from them as a resumed one would.

        The neighbour list and the integrator are rebuilt, so that both sum in the same order: the trajectories agree to
        the last bit.
        """
        values: dict[str, Any] = {"rng": self._rng.bit_generator.state}
        if isinstance(self._dynamics, LangevinBAOAB) and self._settings.ensemble == "npt":
            values |= {name: float(getattr(self._dynamics, name)) for name in _BAROSTAT}
        state = EngineState(values=values)
        self._calculator.reset()
        self._dynamics = self._begin(state)
        return state


def run_md(
    model: str | Path | Potential, structure: Atoms, settings: MDSettings, report: Report | None = None
) -> MDResult:
    """Run molecular dynamics with ASE; see `snnp.sampling.run_md`.

    Raises:
        SnnpError: for a bad model, structure or checkpoint, or a simulation that blew up.
    """
    calculator = SNNPCalculator(model, device=settings.device, dtype=settings.dtype)
    start = starting_point(structure, settings, ASEDynamics.name)
    engine = ASEDynamics(calculator, start, settings)
    return drive(engine, start, settings, report, least_energy=least_energy(calculator.model, start.atoms))
