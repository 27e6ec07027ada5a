"""The embedded engine on a GPU: `snnp.kernels.gpu.dynamics` between the files of a run.

Positions, lists, forces, thermostat and barostat stay on the device, in one captured graph per step; the host looks at
them when something is to be written. The equations are those of `snnp.sampling.embedded`, the noise is another: Philox
numbers that depend on seed, step and atom alone.
"""

from __future__ import annotations

import math

import torch
from ase import Atoms
from torch import Tensor

from snnp.kernels.gpu.call import GpuKernel
from snnp.kernels.gpu.dynamics import Barostat, GpuDynamics, Integrator, System
from snnp.sampling.checkpoint import Checkpoint, EngineState
from snnp.sampling.settings import MDSettings
from snnp.sampling.snapshot import Snapshot
from snnp.sampling.thermostats import bath, conserves_momentum, degrees_of_freedom, held_atoms, without_drift
from snnp.units import AMU_ANGSTROM2_PER_FS2_IN_EV, GPA_IN_EV_PER_ANGSTROM3

__all__ = ["NativeGpuDynamics"]

_PER_FS = math.sqrt(AMU_ANGSTROM2_PER_FS2_IN_EV)
"""1 Å/fs in ASE's unit of velocity, sqrt(eV/amu)."""


class NativeGpuDynamics:
    """An engine for `snnp.sampling.drive`; its device is the kernel's.

    Arguments:
        kernel: the model on its device; the CPU under Triton's interpreter.
        species: [N] index of each atom's element in the model.
        start: atoms with momenta, at step `start.step`.
        settings: ensemble, time step, thermostat and barostat.

    Raises:
        InputError: for overlapping atoms, positions that are not finite, or a flat cell.
    """

    name = "native"

    def __init__(self, kernel: GpuKernel, species: Tensor, start: Checkpoint, settings: MDSettings) -> None:
        self._kernel, self._species, self._settings, self._start = kernel, species, settings, start
        self._dynamics = self._begin(start.atoms, start.step)

    def _begin(self, atoms: Atoms, step: int) -> GpuDynamics:
        system = System(
            positions=torch.from_numpy(atoms.positions),
            species=self._species,
            masses=torch.from_numpy(atoms.get_masses()),
            cell=torch.from_numpy(atoms.cell.array),
            pbc=torch.from_numpy(atoms.pbc),
            held=torch.from_numpy(held_atoms(atoms, None)),
        )
        velocities = torch.from_numpy(atoms.get_velocities() / _PER_FS)
        return GpuDynamics(self._kernel, system, velocities, self._integrator(atoms, step), step=step)

    def advance(self, n_steps: int) -> None:
        """Go on by some steps.

        Raises:
            InputError: if atoms have come too close or flown apart.
        """
        equilibration = self._start.equilibration
        left = equilibration - self._dynamics.step if equilibration else 0
        if not 0 < left <= n_steps:
            self._dynamics.advance(n_steps)
            return
        self._dynamics.advance(left)
        atoms = self.snapshot().atoms
        if conserves_momentum(atoms, self._settings):
            atoms.set_momenta(without_drift(atoms.get_momenta(), atoms.get_masses()))
        del self._dynamics  # its memory is needed
        self._dynamics = self._begin(atoms, equilibration)
        self._dynamics.advance(n_steps - left)

    def snapshot(self) -> Snapshot:
        """The state now."""
        seen, atoms = self._dynamics.observe(), self._start.atoms.copy()
        atoms.set_cell(seen.cell.cpu().numpy())
        atoms.positions = seen.positions.cpu().numpy()
        atoms.set_velocities(seen.velocities.cpu().numpy() * _PER_FS)
        stress = seen.virial.cpu().numpy() / atoms.get_volume() if bool(atoms.pbc.all()) else None
        return Snapshot(atoms, float(seen.energies.sum()), seen.forces.cpu().double().numpy(), stress)

    def state(self) -> EngineState:
        """Begin anew at the present atoms, as a resumed run does, so that both agree to the bit.

        The noise needs no state. Random numbers of a run that began on the CPU are handed on, unused.
        """
        atoms, step = self.snapshot().atoms, self._dynamics.step
        del self._dynamics  # its memory is needed
        self._dynamics = self._begin(atoms, step)
        return self._start.state

    def _integrator(self, atoms: Atoms, step: int) -> Integrator:
        """How to go on from a step, up to the end of the equilibration or of the run."""
        settings, barostat = self._settings, None
        kind, friction, rate = bath(settings, step, self._start.equilibration)
        if settings.ensemble == "npt":
            barostat = Barostat(settings.pressure_gpa * GPA_IN_EV_PER_ANGSTROM3, rate)
        return Integrator(
            dt_fs=settings.dt_fs,
            temperature_k=settings.temperature_k,
            heating_k=settings.temperature_at(1) - settings.temperature_k,
            friction_per_ps=0.0 if kind == "none" else friction,
            n_freedom=degrees_of_freedom(atoms, settings) if kind == "bussi" else 0,
            seed=settings.seed,
            barostat=barostat,
        )
