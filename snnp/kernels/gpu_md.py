"""Molecular dynamics on the GPU: positions, lists, forces and thermostat stay there, one captured graph per time step.

Velocity Verlet, or Langevin dynamics in the order BAOAB. The host looks at the device once per call of `advance`.
"""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from snnp.errors import InputError
from snnp.kernels.gpu import GpuKernel, full_virial, image_vectors, overlap_message
from snnp.kernels.gpu_arrays import Atoms
from snnp.kernels.gpu_list import CellList, State
from snnp.units import AMU_ANGSTROM2_PER_FS2_IN_EV, BOLTZMANN_EV_PER_K

__all__ = ["Clock", "GpuDynamics", "Integrator", "Observation", "System"]

_BLOCK = 128
_LAUNCH: dict[str, Any] = {"num_warps": 4, "num_stages": 1, "enable_fp_fusion": True}


@dataclass(frozen=True)
class System:
    """What moves: positions [N, 3] Å, species [N] (of the plan), masses [N] amu, cell [3, 3] Å, pbc [3]."""

    positions: Tensor
    species: Tensor
    masses: Tensor
    cell: Tensor
    pbc: Tensor


@dataclass(frozen=True)
class Integrator:
    """How it moves.

    Arguments:
        dt_fs: time step, fs.
        temperature_k, friction_per_ps: of the thermostat; without friction the energy is conserved.
        seed: of the thermostat's noise.
        skin: Å, added to the cutoff when a list is built.
    """

    dt_fs: float
    temperature_k: float = 0.0
    friction_per_ps: float = 0.0
    seed: int = 0
    skin: float = 0.5


class Clock(NamedTuple):
    """numbers [3]: time step, factor of the old velocity, squared limit of displacements; seed, step [1]; flags [4]."""

    numbers: Tensor
    seed: Tensor
    step: Tensor
    flags: Tensor


@dataclass(frozen=True)
class Observation:
    """The system at one time: positions [N, 3] Å (true paths), velocities [N, 3] Å/fs, forces [N, 3] eV/Å, energies [N]
    eV, virial [3, 3] eV (sum of r_ij (x) dE/dr_ij)."""

    positions: Tensor
    velocities: Tensor
    forces: Tensor
    energies: Tensor
    virial: Tensor


class GpuDynamics:
    """Dynamics of one structure on the device of a kernel.

    Arguments:
        kernel: the model on its device.
        system: the start. velocities: [N, 3] Å/fs.
        integrator: how to go on.
        step: number of the start, on which the thermostat's noise depends.

    Raises:
        InputError: for overlapping atoms, positions that are not finite, or a flat cell.
    """

    def __init__(
        self, kernel: GpuKernel, system: System, velocities: Tensor, integrator: Integrator, *, step: int = 0
    ) -> None:
        # Imported here: the rest of the package works without Triton.
        from snnp.kernels import _gpu_list

        self._kernels, self.kernel, self.integrator = _gpu_list, kernel, integrator
        device = kernel.device
        self._state = _state(system, velocities, integrator, device)
        self._species = system.species.to(device=device, dtype=torch.int32)
        self.cell = system.cell.to(device=device, dtype=torch.float64)
        self.list = CellList(self._state.positions, system.cell, system.pbc, kernel.cutoff + integrator.skin)
        decay = math.exp(-integrator.friction_per_ps * 1e-3 * integrator.dt_fs)
        numbers = [integrator.dt_fs, decay, (0.5 * integrator.skin) ** 2]
        self._clock = Clock(
            numbers=torch.tensor(numbers, dtype=torch.float64, device=device),
            seed=torch.tensor([integrator.seed << 32], dtype=torch.int64, device=device),
            step=torch.tensor([step], dtype=torch.int64, device=device),
            flags=self.list.flags,
        )
        self._graph: torch.cuda.CUDAGraph | None = None
        self._prepare()

    @property
    def step(self) -> int:
        """Number of the present step. Waits for the device."""
        return int(self._clock.step)

    def _prepare(self) -> None:
        """A new list at the present positions, work arrays that fit it, forces, and the graph of a step."""
        with _on(self.kernel.device):
            self.list.build(self._state)
            self._atoms = Atoms(
                self._state.positions,
                self._species,
                image_vectors(self.list.images, self.list.grid.cell.view(1, 3, 3)),
            )
            self._work = self.kernel.make_work(self._species.shape[0], self.list.rows.capacity)
            self.kernel.launch(self._atoms, self.list.rows, self._work)
            self._refuse_overlaps()
            self._graph = self._capture() if self.kernel.device.type == "cuda" else None

    def _launch_step(self) -> None:
        state, forces, kernels = self._state, self._work.forces, self._kernels
        n, blocks = self._species.shape[0], (-(-self._species.shape[0] // _BLOCK),)
        thermostat = self.integrator.friction_per_ps > 0.0
        kernels.advance_kernel[blocks](state, forces, self._clock, n, thermostat, _BLOCK, **_LAUNCH)
        self.list.launch(state)
        self.kernel.launch(self._atoms, self.list.rows, self._work)
        kernels.kick_kernel[(-(-3 * n // _BLOCK),)](state, forces, self._clock, 3 * n, _BLOCK, **_LAUNCH)

    def _capture(self) -> torch.cuda.CUDAGraph:
        """The launches of one step. The step that compiles the kernels is taken back."""
        before = self._kept()
        self._launch_step()
        self._restore(before)
        # That step may have built a list at its end.
        self.list.flags[0] = 1
        torch.cuda.synchronize(self.kernel.device)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._launch_step()
        return graph

    def _kept(self) -> list[Tensor]:
        """What a step changes and the next one starts from."""
        moving = (self._state.positions, self._state.wraps, self._state.anchors, self._state.velocities)
        return [tensor.clone() for tensor in (*moving, self._clock.step, self._work.forces)]

    def _restore(self, kept: list[Tensor]) -> None:
        moving = (self._state.positions, self._state.wraps, self._state.anchors, self._state.velocities)
        for tensor, value in zip((*moving, self._clock.step, self._work.forces), kept, strict=True):
            tensor.copy_(value)

    def advance(self, n_steps: int) -> None:
        """Go on by some steps; waits for the device once, at the end.

        Raises:
            InputError: if atoms overlap or fly apart.
        """
        before = self._kept()
        self._run(n_steps)
        # Too little room for a list: that part is computed again with more.
        while self.list.grow():
            self._restore(before)
            self._prepare()
            self._run(n_steps)
        self._refuse_overlaps()

    def _run(self, n_steps: int) -> None:
        with _on(self.kernel.device):
            for _ in range(n_steps):
                if self._graph is None:
                    self._launch_step()
                else:
                    self._graph.replay()

    def _refuse_overlaps(self) -> None:
        if int(self._work.status):
            raise InputError(overlap_message(self._atoms, self.list.rows))

    def observe(self) -> Observation:
        """The system now; copies, so that it can go on meanwhile."""
        species = self._species.long()
        cell = self.list.grid.cell.view(3, 3)
        return Observation(
            positions=self._state.positions + self._state.wraps.double() @ cell,
            velocities=self._state.velocities.clone(),
            forces=self._work.forces.clone(),
            energies=self._work.energies.double() + self.kernel.reference[species],
            virial=full_virial(self._work.virial.double().sum(dim=0)),
        )


def _state(system: System, velocities: Tensor, integrator: Integrator, device: torch.device) -> State:
    def real(values: Tensor) -> Tensor:
        return values.to(device=device, dtype=torch.float64).clone().contiguous()

    positions, inertia = real(system.positions), real(system.masses) * AMU_ANGSTROM2_PER_FS2_IN_EV
    spread = (BOLTZMANN_EV_PER_K * integrator.temperature_k / inertia).sqrt()
    decay = math.exp(-2.0 * integrator.friction_per_ps * 1e-3 * integrator.dt_fs)
    return State(
        positions=positions,
        wraps=torch.zeros(positions.shape, dtype=torch.int32, device=device),
        anchors=positions.clone(),
        velocities=real(velocities),
        kick=0.5 * integrator.dt_fs / inertia,
        spread=spread * math.sqrt(1.0 - decay),
    )


def _on(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
