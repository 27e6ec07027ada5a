"""The embedded engine: molecular dynamics on the evaluation itself, with whole-array steps and no calculator between.

`nve` is velocity Verlet. The thermostat acts between two half drifts: Langevin friction and noise are then the BAOAB
splitting (Leimkuhler and Matthews, Appl. Math. Res. Express 2013, 34). `npt` begins each step with a move of stochastic
cell rescaling (Bernetti and Bussi, J. Chem. Phys. 153, 114107 (2020)).

Where a GPU kernel covers the model, `snnp.kernels.gpu.dynamics` does the same on the device, in one captured graph per
step. The noise is another: Philox numbers that depend on seed, step and atom alone.
"""

from __future__ import annotations

import numpy as np
import torch
from ase import Atoms
from numpy.typing import NDArray
from torch import Tensor

from snnp.kernels.gpu.call import GpuKernel
from snnp.kernels.gpu.dynamics import GpuDynamics, Integrator, System
from snnp.models.potential import Potential
from snnp.models.session import Evaluation, Session
from snnp.sampling import thermostats
from snnp.sampling.checkpoint import Checkpoint, EngineState
from snnp.sampling.run import Engine, MDResult, ModelLike, Report, run_engine
from snnp.sampling.settings import MDSettings
from snnp.sampling.snapshot import Snapshot
from snnp.sampling.thermostats import ASE_FS, Ensemble, held_atoms, without_drift
from snnp.structure import Structure
from snnp.units import GPA_IN_EV_PER_ANGSTROM3

__all__ = ["NativeDynamics", "NativeGpuDynamics", "make_engine", "run_md"]

Array = NDArray[np.float64]


class NativeDynamics:
    """An engine for `snnp.sampling.drive`; `potential`: in the precision and on the device of the run."""

    name = "native"

    def __init__(self, potential: Potential, start: Checkpoint, settings: MDSettings) -> None:
        self._atoms = start.atoms.copy()
        self._periodic = bool(self._atoms.pbc.all())
        self._session = Session(potential)
        self._ensemble = Ensemble(start.atoms, settings, start.step, start.equilibration)
        if "rng" in start.state.values:
            self._ensemble.rng.bit_generator.state = start.state.values["rng"]
        self._positions: Array = self._atoms.positions.copy()
        self._momenta: Array = self._atoms.get_momenta()
        self._cell: Array = self._atoms.cell.array.copy()
        self._masses: Array = self._atoms.get_masses()[:, None]
        self._moves = ~held_atoms(start.atoms, None)[:, None]
        self._dt = settings.dt_fs * ASE_FS
        self._now = self._evaluate()

    def _evaluate(self) -> Evaluation:
        atoms = self._atoms
        return self._session.evaluate(atoms.numbers, self._positions, self._cell, atoms.pbc, stress=self._periodic)

    def advance(self, n_steps: int) -> None:
        half, drift, ensemble = 0.5 * self._dt * self._moves, self._dt / self._masses, self._ensemble
        for _ in range(n_steps):
            if ensemble.moves_box:  # with the stress of now; the forces, which only kick momenta, may wait for theirs
                assert self._now.stress is not None
                move = ensemble.box_move(self._cell, self._now.stress)
                self._cell, self._positions = self._cell @ move, self._positions @ move
            self._momenta += half * self._now.forces
            self._positions += 0.5 * drift * self._momenta
            self._thermostat()
            self._positions += 0.5 * drift * self._momenta
            self._now = self._evaluate()
            self._momenta += half * self._now.forces
            ensemble.step += 1
            if ensemble.step == ensemble.equilibration and ensemble.keeps_momentum:
                self._momenta = without_drift(self._momenta, self._masses[:, 0])

    def _thermostat(self) -> None:
        """Exact solution of friction and noise over one step."""
        ensemble, bath = self._ensemble, self._ensemble.bath
        if bath.kind == "langevin":
            keep = ensemble.keep(bath.friction_per_ps)
            noise = np.sqrt((1.0 - keep**2) * bath.kt * self._masses) * self._moves
            self._momenta *= keep
            self._momenta += noise * ensemble.rng.standard_normal(self._momenta.shape)
        elif bath.kind == "bussi":
            self._momenta *= ensemble.factor(0.5 * float((self._momenta**2 / self._masses).sum()))

    def snapshot(self) -> Snapshot:
        atoms = self._atoms.copy()
        atoms.set_cell(self._cell)
        atoms.positions = self._positions
        atoms.set_momenta(self._momenta)
        return Snapshot(atoms, self._now.energy, self._now.forces.copy(), self._now.stress)

    def state(self) -> EngineState:
        """The random numbers; the neighbour list is built anew, as in a resumed run, so that both agree to the bit."""
        self._session.forget()
        self._now = self._evaluate()
        return EngineState(values={"rng": self._ensemble.rng.bit_generator.state})


class NativeGpuDynamics:
    """An engine for `snnp.sampling.drive`; its device is the kernel's. `species` [N] index the model's elements."""

    name = "native"

    def __init__(self, kernel: GpuKernel, species: Tensor, start: Checkpoint, settings: MDSettings) -> None:
        self._kernel, self._species, self._settings, self._start = kernel, species, settings, start
        self._dynamics = self._begin(start.atoms, start.step)

    def _begin(self, atoms: Atoms, step: int) -> GpuDynamics:
        arrays = atoms.positions, atoms.get_masses(), atoms.cell.array, atoms.pbc, held_atoms(atoms, None)
        names = ("positions", "masses", "cell", "pbc", "held")
        system = System(species=self._species, **dict(zip(names, map(torch.from_numpy, arrays), strict=True)))
        velocities = torch.from_numpy(atoms.get_velocities() * ASE_FS)
        return GpuDynamics(self._kernel, system, velocities, self._integrator(atoms, step), step=step)

    def advance(self, n_steps: int) -> None:
        equilibration = self._start.equilibration
        left = equilibration - self._dynamics.step
        if 0 < left <= n_steps:
            self._dynamics.advance(left)
            atoms = self.snapshot().atoms
            if thermostats.conserves_momentum(atoms, self._settings):
                atoms.set_momenta(without_drift(atoms.get_momenta(), atoms.get_masses()))
            del self._dynamics  # its memory is needed
            self._dynamics = self._begin(atoms, equilibration)
            n_steps -= left
        self._dynamics.advance(n_steps)

    def snapshot(self) -> Snapshot:
        seen, atoms = self._dynamics.observe(), self._start.atoms.copy()
        atoms.set_cell(seen.cell.cpu().numpy())
        atoms.positions = seen.positions.cpu().numpy()
        atoms.set_velocities(seen.velocities.cpu().numpy() / ASE_FS)
        stress = seen.virial.cpu().numpy() / atoms.get_volume() if bool(atoms.pbc.all()) else None
        return Snapshot(atoms, float(seen.energies.sum()), seen.forces.cpu().double().numpy(), stress)

    def state(self) -> EngineState:
        """Begin anew, as a resumed run does, so that both agree to the bit; those of the CPU are handed on, unused."""
        atoms, step = self.snapshot().atoms, self._dynamics.step
        del self._dynamics  # its memory is needed
        self._dynamics = self._begin(atoms, step)
        return self._start.state

    def _integrator(self, atoms: Atoms, step: int) -> Integrator:
        """How to go on from a step, up to the end of the equilibration or of the run."""
        settings = self._settings
        bath = Ensemble(atoms, settings, step, self._start.equilibration).bath
        return Integrator(
            dt_fs=settings.dt_fs,
            temperature_k=settings.temperature_k,
            heating_k=settings.temperature_at(1) - settings.temperature_k,
            friction_per_ps=0.0 if bath.kind == "none" else bath.friction_per_ps,
            n_freedom=thermostats.degrees_of_freedom(atoms, settings) if bath.kind == "bussi" else 0,
            seed=settings.seed,
            barostat_rate=bath.barostat_rate if settings.ensemble == "npt" else 0.0,
            pressure=settings.pressure_gpa * GPA_IN_EV_PER_ANGSTROM3,
        )


def make_engine(
    potential: Potential, kernel: object, start: Checkpoint, settings: MDSettings
) -> NativeDynamics | NativeGpuDynamics:
    """The engine for a potential: on the device of its GPU kernel if it has one, else step by step from the host."""
    # The barostat on the device knows one scale.
    if not isinstance(kernel, GpuKernel) or (settings.ensemble == "npt" and settings.barostat == "anisotropic"):
        return NativeDynamics(potential, start, settings)
    species = potential.species(Structure.from_ase(start.atoms).to(device=potential.device))
    return NativeGpuDynamics(kernel, species, start, settings)


def run_md(model: ModelLike, structure: Atoms, settings: MDSettings, report: Report | None = None) -> MDResult:
    """Run molecular dynamics with the embedded engine; see `snnp.sampling.run_md`."""

    def make(potential: Potential, start: Checkpoint, settings: MDSettings) -> Engine:
        evaluator = potential.evaluator()
        return make_engine(potential, None if evaluator is None else evaluator.kernel, start, settings)

    return run_engine(make, NativeDynamics.name, model, structure, settings, report)
