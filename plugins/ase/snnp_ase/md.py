"""Molecular dynamics with ASE's integrators.

`nve` is velocity Verlet; the Langevin thermostat is ASE's BAOAB splitting; `bussi` rescales the velocities after each
step of velocity Verlet. `npt` moves the box every few steps, see `snnp.sampling.thermostats.Ensemble`.
"""

from __future__ import annotations

from ase import Atoms
from ase.md.langevinbaoab import LangevinBAOAB
from ase.md.verlet import VelocityVerlet

from snnp.models.potential import Potential
from snnp.sampling.checkpoint import Checkpoint, EngineState
from snnp.sampling.run import MDResult, ModelLike, Report, run_engine
from snnp.sampling.settings import MDSettings
from snnp.sampling.snapshot import Snapshot
from snnp.sampling.thermostats import ASE_FS, Ensemble, without_drift
from snnp_ase.calculator import SNNPCalculator

__all__ = ["ASEDynamics", "run_md"]


class ASEDynamics:
    """An engine for `snnp.sampling.drive`; `potential`: in the precision and on the device of the run."""

    name = "ase"

    def __init__(self, potential: Potential, start: Checkpoint, settings: MDSettings) -> None:
        self._settings = settings
        self._calculator = SNNPCalculator(potential)
        self._periodic = bool(start.atoms.pbc.all())
        self._ensemble = Ensemble(start.atoms, settings, start.step, start.equilibration, costly_moves=True)
        if "rng" in start.state.values:
            self._ensemble.rng.bit_generator.state = start.state.values["rng"]
        self._atoms: Atoms = start.atoms.copy()
        self._atoms.calc = self._calculator
        self._dynamics = self._begin()

    def _begin(self) -> VelocityVerlet | LangevinBAOAB:
        """The integrator for the atoms as they are and the thermostat of this step."""
        dt, bath = self._settings.dt_fs * ASE_FS, self._ensemble.bath
        if bath.kind != "langevin":
            return VelocityVerlet(self._atoms, dt)
        temperature, time = self._settings.temperature_at(self._ensemble.step), 1000.0 / bath.friction_per_ps * ASE_FS
        return LangevinBAOAB(self._atoms, dt, rng=self._ensemble.rng, temperature_K=temperature, T_tau=time)

    def advance(self, n_steps: int) -> None:
        """Go on by some steps; the last one, and one before a move of the box, compute the stress with the forces."""
        atoms, ensemble = self._atoms, self._ensemble
        for left in reversed(range(n_steps)):
            if ensemble.moves_box:
                # BAOAB goes on with its old forces: they kick momenta, which do not know the box.
                move = ensemble.box_move(atoms.cell.array, atoms.get_stress(voigt=False))
                atoms.positions = atoms.positions @ move
                atoms.set_cell(atoms.cell.array @ move)
            if isinstance(self._dynamics, LangevinBAOAB) and self._settings.temperature_end_k is not None:
                self._dynamics.set_temperature(self._settings.temperature_at(ensemble.step))
            moves_next = self._settings.ensemble == "npt" and (ensemble.step + 1) % ensemble.every == 0
            if self._periodic and (left == 0 or moves_next):
                self._calculator.expect_stress()
            self._dynamics.step()
            if ensemble.bath.kind == "bussi":
                atoms.set_momenta(ensemble.factor(atoms.get_kinetic_energy()) * atoms.get_momenta())
            ensemble.step += 1
            if ensemble.step == ensemble.equilibration:
                if ensemble.keeps_momentum:
                    atoms.set_momenta(without_drift(atoms.get_momenta(), atoms.get_masses()))
                self._dynamics = self._begin()

    def snapshot(self) -> Snapshot:
        atoms = self._atoms
        stress = atoms.get_stress(voigt=False) if self._periodic else None
        return Snapshot(atoms.copy(), float(atoms.get_potential_energy()), atoms.get_forces(), stress)

    def state(self) -> EngineState:
        """The random numbers; list and integrator begin anew, as in a resumed run, so that both agree to the bit."""
        self._calculator.reset()
        self._dynamics = self._begin()
        return EngineState(values={"rng": self._ensemble.rng.bit_generator.state})


def run_md(model: ModelLike, structure: Atoms, settings: MDSettings, report: Report | None = None) -> MDResult:
    """Run molecular dynamics with ASE; see `snnp.sampling.run_md`."""
    return run_engine(ASEDynamics, ASEDynamics.name, model, structure, settings, report)
