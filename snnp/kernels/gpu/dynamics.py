"""Molecular dynamics on the GPU: positions, lists, forces and thermostat stay there, one captured graph per time step.

Velocity Verlet, or Langevin dynamics or velocity rescaling in the order BAOAB, or these with stochastic cell rescaling.
The host looks at the device once per call of `advance`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from snnp.errors import InputError
from snnp.kernels.gpu.call import Atoms, GpuKernel, full_virial, on_device, refuse_overlaps
from snnp.kernels.gpu.lists import CellList, State, image_vectors
from snnp.units import AMU_ANGSTROM2_PER_FS2_IN_EV, BOLTZMANN_EV_PER_K

__all__ = ["Box", "Clock", "GpuDynamics", "Integrator", "Observation", "System"]

_BLOCK = 128
_SHRINKING = 0.03  # part of its lengths by which a box under a barostat may shrink before its grid is made anew
_LAUNCH: dict[str, Any] = {"num_warps": 4, "num_stages": 1, "enable_fp_fusion": True}


@dataclass(frozen=True)
class System:
    """What moves: positions [N, 3] Å, species [N] indices of elements, masses [N] amu, cell [3, 3] Å, pbc [3]; held [N]
    whether an atom stays where it is (its velocity must be zero)."""

    positions: Tensor
    species: Tensor
    masses: Tensor
    cell: Tensor
    pbc: Tensor
    held: Tensor | None = None


@dataclass(frozen=True)
class Integrator:
    """How it moves.

    Arguments:
        dt_fs: time step, fs.
        temperature_k, friction_per_ps: of the thermostat; without friction the energy is conserved.
        heating_k: what each step adds to the temperature, K; `temperature_k` is that of step 0.
        n_freedom: degrees of freedom, for rescaling of velocities in place of Langevin friction (0).
        seed: of the thermostat's noise, and the barostat's.
        skin: Å, added to the cutoff when a list is built.
        barostat_rate: Å³/eV, of ln V in one step per pressure, for stochastic cell rescaling of a periodic box at the
            thermostat's temperature; without a rate the box stays. pressure: eV/Å³.
    """

    dt_fs: float
    temperature_k: float = 0.0
    friction_per_ps: float = 0.0
    heating_k: float = 0.0
    n_freedom: int = 0
    seed: int = 0
    skin: float = 0.5
    barostat_rate: float = 0.0
    pressure: float = 0.0

    @property
    def thermostat(self) -> int:
        """Which one, as the kernels number them: 0 none, 1 Langevin, 2 rescaling of velocities."""
        return 0 if self.friction_per_ps == 0.0 else 2 if self.n_freedom else 1


class Clock(NamedTuple):
    """What a step reads and writes beside the atoms."""

    # Time step, what is kept of the old velocity (Langevin) or kinetic energy (rescaling), squared limit of moves, k T
    # at step 0, its growth per step, factor of the velocities, half of the degrees of freedom but one.
    numbers: Tensor
    seed: Tensor  # [1]
    step: Tensor  # [1]
    flags: Tensor  # [4] of the list
    scale: Tensor  # [4] of the list
    sums: Tensor  # [blocks] of the virial's trace or twice the kinetic energy, eV


class Box(NamedTuple):
    """A box under a barostat."""

    # Volume at scale 1 in Å³, target pressure, rate; reach of the list and cutoff, Å; number of atoms plus a half.
    numbers: Tensor
    scale: Tensor  # [4] of the list
    cell: Tensor  # [9] at scale 1
    inverse: Tensor  # [9]
    start: Tensor  # [I, 3] images at scale 1
    images: Tensor  # [I, 3] at the present scale, for the evaluation
    n_images: int  # 3 I


@dataclass(frozen=True)
class Observation:
    """The system at one time."""

    positions: Tensor  # [N, 3] Å, true paths
    cell: Tensor  # [3, 3] Å
    velocities: Tensor  # [N, 3] Å/fs
    forces: Tensor  # [N, 3] eV/Å
    energies: Tensor  # [N] eV
    virial: Tensor  # [3, 3] eV, sum of r_ij (x) dE/dr_ij


class GpuDynamics:
    """Dynamics of one structure on the device of a kernel.

    It starts from `system` with `velocities` [N, 3] Å/fs at the number `step`, on which the thermostat's noise depends.

    Raises `InputError` for overlapping atoms, positions that are not finite, a flat cell, or a barostat without a
    periodic one.
    """

    def __init__(
        self, kernel: GpuKernel, system: System, velocities: Tensor, integrator: Integrator, *, step: int = 0
    ) -> None:
        # Imported here: the rest of the package works without Triton.
        from snnp.kernels.gpu import _list

        if integrator.barostat_rate and not bool(system.pbc.all()):
            raise InputError(f"a barostat needs a fully periodic structure, got pbc={system.pbc.tolist()}.")
        self._kernels, self.kernel, self.integrator = _list, kernel, integrator
        device = kernel.device
        self._state = _state(system, velocities, integrator, device)
        self._species = system.species.to(device=device, dtype=torch.int32)
        self._start_cell = system.cell.to(device=device, dtype=torch.float64)
        margin = _SHRINKING if integrator.barostat_rate else 0.0
        reach = kernel.cutoff + integrator.skin
        self.list = CellList(self._state.positions, system.cell, system.pbc, reach, margin=margin)
        dt, decay = integrator.dt_fs, math.exp(-integrator.friction_per_ps * 1e-3 * integrator.dt_fs)
        heat = [BOLTZMANN_EV_PER_K * each for each in (integrator.temperature_k, integrator.heating_k)]
        numbers = [dt, decay, (0.5 * integrator.skin) ** 2, *heat, 1.0, 0.5 * (integrator.n_freedom - 1)]
        self._clock = Clock(
            numbers=torch.tensor(numbers, dtype=torch.float64, device=device),
            seed=torch.tensor([integrator.seed << 32], dtype=torch.int64, device=device),
            step=torch.tensor([step], dtype=torch.int64, device=device),
            flags=self.list.flags,
            scale=self.list.scale,
            sums=torch.zeros(-(-len(self._species) // _BLOCK), dtype=torch.float64, device=device),
        )
        self._prepare()

    @property
    def step(self) -> int:
        """Number of the present step. Waits for the device."""
        return int(self._clock.step)

    def _prepare(self) -> None:
        """Work arrays that fit the list, energies and forces at the present positions, and the graph of a step."""
        # What there was is dropped first: at ten million atoms there is no room for both.
        self._graph: torch.cuda.CUDAGraph | None = None
        self.__dict__.pop("_work", None)
        with on_device(self.kernel.device):
            self.list.build(self._state)
            self._work = self.kernel.make_work(self._species.shape[0], self.list.rows.capacity)
            start = image_vectors(self.list.images, self._start_cell[None])
            self._atoms = Atoms(self._state.positions, self._species, start * self.list.scale[0])
            self._box = self._make_box(start)
            self.kernel.launch(self._atoms, self.list.rows, self._work)
            refuse_overlaps(self._atoms, self.list.rows, self._work)
            if self.kernel.device.type == "cuda":
                self._try_step()
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph):
                    self._launch_step()
                self._graph = graph

    def _make_box(self, start: Tensor) -> Box | None:
        pressure, rate, n = self.integrator.pressure, self.integrator.barostat_rate, len(self._species)
        if not rate:
            return None
        volume = float(torch.linalg.det(self._start_cell).abs())
        values = [volume, pressure, rate, self.list.reach, self.kernel.cutoff, n + 0.5]
        numbers = torch.tensor(values, dtype=torch.float64, device=self.kernel.device)
        return Box(numbers, self.list.scale, *self.list.box, start, self._atoms.images, start.numel())

    def _try_step(self) -> None:
        """One step that is taken back: kernels must be compiled before they are captured."""
        before = [tensor.clone() for tensor in self._moving()]
        self._launch_step()
        self._restore(before)
        # Energies and virial, which are not kept, belong to that step, and the list perhaps too. Arrays must stay.
        self.list.refresh(self._state)
        self.kernel.launch(self._atoms, self.list.rows, self._work)

    def _launch_step(self) -> None:
        """The ten kernels of a step; a barostat takes two more, rescaling of velocities three."""
        state, work, clock, kernels = self._state, self._work, self._clock, self._kernels
        n, thermostat = self._species.shape[0], self.integrator.thermostat
        blocks, one = (-(-n // _BLOCK),), {**_LAUNCH, "num_warps": 1}
        if self._box is not None:
            # One warp: its threads read the old scale before they store the new one.
            kernels.sum_kernel[blocks](state, work, clock, n, False, _BLOCK, **_LAUNCH)
            kernels.barostat_kernel[(1,)](self._box, self.list.grid, clock, blocks[0], 1024, **one)
        kernels.advance_kernel[blocks](state, work, clock, n, thermostat, self._box is not None, _BLOCK, **_LAUNCH)
        if thermostat == 2:
            kernels.sum_kernel[blocks](state, work, clock, n, True, _BLOCK, **_LAUNCH)
            kernels.rescale_kernel[(1,)](clock, blocks[0], 1024, **one)
            kernels.finish_kernel[blocks](state, clock, n, _BLOCK, **_LAUNCH)
        self.list.launch(state)
        self.kernel.launch(self._atoms, self.list.rows, work)
        kernels.kick_kernel[(-(-3 * n // _BLOCK),)](state, work, clock, 3 * n, _BLOCK, **_LAUNCH)

    def _moving(self) -> tuple[Tensor, ...]:
        """What a step changes and the next one starts from, beside the forces and what follows from the scale."""
        state = self._state
        return state.positions, state.wraps, state.anchors, state.velocities, self._clock.step, self._clock.scale

    def _restore(self, kept: list[Tensor]) -> None:
        for tensor, value in zip(self._moving(), kept, strict=True):
            tensor.copy_(value)
        cell, inverse = self.list.box
        self.list.grid.cell.copy_(cell * self.list.scale[0])
        self.list.grid.inverse.copy_(inverse / self.list.scale[0])
        if self._box is not None:
            self._atoms.images.copy_(self._box.start * self.list.scale[0])

    def advance(self, n_steps: int) -> None:
        """Go on by some steps; waits for the device once, at the end. `InputError` if atoms overlap or fly apart."""
        before = [tensor.clone() for tensor in self._moving()]
        self._run(n_steps)
        # Too little room for a list: that part is computed again with more.
        while self.list.is_short(seen := self.list.read()):
            self._restore(before)
            self.list.grow(self._state, seen)
            self._prepare()
            self._run(n_steps)
        refuse_overlaps(self._atoms, self.list.rows, self._work)

    def _run(self, n_steps: int) -> None:
        with on_device(self.kernel.device):
            for _ in range(n_steps):
                if self._graph is None:
                    self._launch_step()
                else:
                    self._graph.replay()

    def observe(self) -> Observation:
        """The system now; copies, so that it can go on meanwhile."""
        state, work, cell = self._state, self._work, self._start_cell * self.list.scale[0]
        return Observation(
            positions=state.positions + state.wraps.double() @ cell,
            cell=cell,
            velocities=state.velocities.clone(),
            forces=work.forces.clone(),
            energies=work.energies.double() + self.kernel.reference[self._species.long()],
            virial=full_virial(work.virial.double().sum(dim=0)),
        )


def _state(system: System, velocities: Tensor, integrator: Integrator, device: torch.device) -> State:
    def real(values: Tensor) -> Tensor:
        return values.to(device=device, dtype=torch.float64).clone().contiguous()

    positions, inertia = real(system.positions), real(system.masses) * AMU_ANGSTROM2_PER_FS2_IN_EV
    decay = math.exp(-2.0 * integrator.friction_per_ps * 1e-3 * integrator.dt_fs)
    moves = torch.ones_like(inertia) if system.held is None else real(~system.held)
    return State(
        positions=positions,
        wraps=torch.zeros(positions.shape, dtype=torch.int32, device=device),
        anchors=positions.clone(),
        velocities=real(velocities),
        kick=0.5 * integrator.dt_fs / inertia * moves,
        spread=((1.0 - decay) / inertia).sqrt() * moves,
    )
