"""What engines share, to sample the same: moves of thermostat and barostat, degrees of freedom, atoms that are held."""

from __future__ import annotations

import math
import re
from typing import Literal, NamedTuple

import numpy as np
from ase import Atoms
from ase.constraints import FixAtoms
from ase.data import atomic_numbers, chemical_symbols
from numpy.typing import NDArray

from snnp.errors import ConfigError, InputError, near_matches
from snnp.sampling.settings import MDSettings
from snnp.units import AMU_ANGSTROM2_PER_FS2_IN_EV, BOLTZMANN_EV_PER_K, GPA_IN_EV_PER_ANGSTROM3

__all__ = ["ASE_FS", "Bath", "Ensemble", "check_box", "conserves_momentum", "degrees_of_freedom", "held_atoms"]
__all__ += ["new_volume", "velocity_factor", "without_drift"]

Array = NDArray[np.float64]

ASE_FS = 1.0 / math.sqrt(AMU_ANGSTROM2_PER_FS2_IN_EV)
"""1 fs in ASE's unit of time, Å sqrt(amu/eV): in it momenta over masses are velocities without a factor."""
_EQUILIBRATION_FRICTION = 50.0
"""1/ps, of the Langevin dynamics during equilibration: kinetic and potential energy have their share within 0.1 ps."""
_HASTE, _FASTEST_FS = 10.0, 100.0
"""How much faster the barostat is during equilibration, unless its time is then shorter than this."""
_MOVES_PER_BAROSTAT_TIME = 100  # moves of the box in `barostat_time_fs`, where one costs an evaluation of its own


class Bath(NamedTuple):
    """What acts in a step: the thermostat, its rate, that of the barostat (`MDSettings.barostat_rate`), and kT (eV)."""

    kind: Literal["none", "langevin", "bussi"]
    friction_per_ps: float
    barostat_rate: float
    kt: float


class Ensemble:
    """Thermostat and barostat of a run after `step` steps, with the random numbers that they take.

    Of the `atoms` number and constraints matter. With `costly_moves` a move of the box costs an evaluation of its own,
    and is made every few steps only.
    """

    def __init__(
        self, atoms: Atoms, settings: MDSettings, step: int = 0, equilibration: int = 0, costly_moves: bool = False
    ) -> None:
        self.settings, self.step, self.equilibration = settings, step, equilibration
        moves = settings.barostat_time_fs / (settings.dt_fs * _MOVES_PER_BAROSTAT_TIME)
        self.every = max(1, round(moves)) if costly_moves else 1
        self.rng = np.random.default_rng([settings.seed, 1])  # not the stream of the initial velocities
        self._n_atoms, self._n_freedom = len(atoms), degrees_of_freedom(atoms, settings)
        self.keeps_momentum = conserves_momentum(atoms, settings)

    @property
    def bath(self) -> Bath:
        """What acts in the present step: strong friction and a fast barostat during the equilibration."""
        settings = self.settings
        kt = BOLTZMANN_EV_PER_K * settings.temperature_at(self.step)
        if self.step < self.equilibration:
            friction = max(settings.friction_per_ps, _EQUILIBRATION_FRICTION)
            haste = min(_HASTE, max(settings.barostat_time_fs / _FASTEST_FS, 1.0))
            return Bath("langevin", friction, haste * settings.barostat_rate, kt)
        kind = "none" if settings.ensemble == "nve" else settings.thermostat
        return Bath(kind, settings.friction_per_ps, settings.barostat_rate, kt)

    @property
    def moves_box(self) -> bool:
        """Whether the present step begins with a move of the box."""
        return self.settings.ensemble == "npt" and self.step % self.every == 0

    def keep(self, friction_per_ps: float) -> float:
        """What friction leaves of a momentum in one step."""
        return math.exp(-friction_per_ps * 1e-3 * self.settings.dt_fs)

    def factor(self, kinetic: float) -> float:
        """By what `bussi` multiplies all velocities in the present step; kinetic: eV, without the total momentum's."""
        bath = self.bath
        return velocity_factor(kinetic, self._n_freedom, bath.kt, self.keep(bath.friction_per_ps), self.rng)

    def box_move(self, cell: Array, stress: Array) -> Array:
        """A move of the barostat: [3, 3], by which to multiply cell and positions (rows) from the right.

        Momenta stay: fractional coordinates, volume and momenta are the independent variables of the ensemble, and
        N kT / V is the kinetic part of the pressure that drives the volume. An anisotropic barostat moves one length at
        a time. cell: [3, 3] Å. stress: [3, 3] eV/Å³, of the potential energy, ASE's sign.
        """
        volume, bath = abs(float(np.linalg.det(cell))), self.bath
        pressure = self.settings.pressure_gpa * GPA_IN_EV_PER_ANGSTROM3
        rate = bath.barostat_rate * self.every
        if self.settings.barostat == "isotropic":
            slope = pressure + float(np.trace(stress)) / 3.0
            return np.cbrt(new_volume(volume, slope, self._n_atoms, bath.kt, rate, self.rng) / volume) * np.eye(3)
        axis = cell[self.step // self.every % 3]
        axis = axis / np.linalg.norm(axis)
        slope = pressure + float(axis @ stress @ axis)
        factor = new_volume(volume, slope, self._n_atoms, bath.kt, 3.0 * rate, self.rng) / volume
        return np.asarray(np.eye(3) + (factor - 1.0) * np.outer(axis, axis))


def velocity_factor(kinetic: float, n_freedom: int, kt: float, keep: float, rng: np.random.Generator) -> float:
    """By what stochastic velocity rescaling multiplies all velocities (Bussi, Donadio and Parrinello 2007, eq. A7).

    Exact for the `kinetic` energy (eV) of `n_freedom` degrees of freedom at `kt` (eV), whatever the time. keep:
    exp(-time / relaxation time). rng: gives one normal and one gamma number.
    """
    if not kinetic > 0.0:
        return 1.0
    ratio = (1.0 - keep) * kt / (2.0 * kinetic)
    normal, others = rng.standard_normal(), 2.0 * rng.standard_gamma(0.5 * (n_freedom - 1))
    return math.sqrt((math.sqrt(keep) + normal * math.sqrt(ratio)) ** 2 + ratio * others)


def new_volume(volume: float, slope: float, n_atoms: int, kt: float, rate: float, rng: np.random.Generator) -> float:
    """Volume after one move of stochastic cell rescaling.

    For the density V^N exp(-(U + P V) / kT) at fixed fractional coordinates, diffusion proportional to V gives

        dV = rate [(N + 1) kT - (P + dU/dV) V] dt + sqrt(2 kT rate V) dW,

    whose solution at a constant `slope` P + dU/dV (eV/Å³) is known: a scaled non-central chi-squared variable with
    2 N + 2 degrees of freedom. It is drawn exactly, so that no volume is negative and the ideal gas is exact with any
    time step. volume: Å³. kt: eV. rate: Å³/eV, with the time of the move in it. rng: one normal, one gamma number.
    """
    decay = rate * slope
    scale = 0.5 * kt * rate * (-math.expm1(-decay) / decay if decay != 0.0 else 1.0)
    centre = math.sqrt(volume * math.exp(-decay) / scale)
    others = 2.0 * rng.standard_gamma(n_atoms + 0.5)
    return scale * ((rng.standard_normal() + centre) ** 2 + others)


def check_box(structure: Atoms, settings: MDSettings, n_held: int) -> None:
    """Raises ConfigError where the barostat cannot act on the structure."""
    if settings.ensemble != "npt":
        return
    if not structure.pbc.all():
        raise ConfigError(f"'npt' needs a fully periodic structure, got pbc={structure.pbc.tolist()}; use 'nvt'.")
    if n_held:
        raise ConfigError(f"ensemble 'npt' would move the {n_held} fixed atoms with the cell; use 'nvt', or free them.")
    if settings.barostat == "anisotropic" and np.abs(structure.cell.angles() - 90.0).max() > 1e-4:
        raise ConfigError(
            "barostat 'anisotropic' changes the three lengths of a cell with right angles, got angles "
            f"{', '.join(f'{angle:.4g}' for angle in structure.cell.angles())}; use a rectangular cell, or 'isotropic'."
        )


def held_atoms(structure: Atoms, fix: str | None) -> NDArray[np.bool_]:
    """[N] which atoms stay where they are: those of FixAtoms constraints, and those that `fix` names.

    `fix` holds elements, numbers and ranges (both ends included, from 0), such as "Cu,0-15,20". Raises `InputError` for
    what the structure lacks, other constraints, or if no atom is left to move.
    """
    held = np.zeros(len(structure), dtype=bool)
    for constraint in structure.constraints:
        if not isinstance(constraint, FixAtoms):
            raise InputError(
                f"the structure has a constraint {type(constraint).__name__}, of which molecular dynamics here knows "
                "only FixAtoms (whole atoms held); remove it, or use the ASE calculator in a script of your own."
            )
        held[constraint.get_indices()] = True
    for part in [] if fix is None else fix.split(","):
        _hold(held, structure, part.strip())
    if held.all():
        raise InputError(f"all {len(structure)} atoms are fixed; leave some free to move.")
    return held


def _hold(held: NDArray[np.bool_], structure: Atoms, part: str) -> None:
    span = re.fullmatch(r"(\d{1,10})(?:-(\d{1,10}))?", part)
    if span is not None:
        first, last = int(span[1]), int(span[2] or span[1])
        if not first <= last < len(held):
            raise InputError(f"cannot fix '{part}': atoms are numbered from 0 to {len(held) - 1}.")
        held[first : last + 1] = True
        return
    if part not in chemical_symbols[1:]:
        hint = near_matches(part, chemical_symbols[1:])
        raise InputError(f"cannot fix '{part}': name elements, numbers or ranges such as Cu,0-15,20.{hint}")
    chosen = structure.numbers == atomic_numbers[part]
    if not chosen.any():
        raise InputError(f"cannot fix '{part}': the structure is {structure.get_chemical_formula()}.")
    held |= chosen


def conserves_momentum(atoms: Atoms, settings: MDSettings) -> bool:
    """Whether the run keeps the total momentum: Newton's equations and velocity rescaling do, unless atoms are held."""
    return (settings.ensemble == "nve" or settings.thermostat == "bussi") and not atoms.constraints and len(atoms) > 1


def degrees_of_freedom(atoms: Atoms, settings: MDSettings) -> int:
    """Number of momenta that share the kinetic energy: 3 for each free atom, less 3 where the total stays zero.

    Langevin friction acts on the centre of mass too. A single atom keeps its 3.
    """
    n_held = sum(len(constraint.get_indices()) for constraint in atoms.constraints)
    return 3 * (len(atoms) - n_held) - (3 if conserves_momentum(atoms, settings) else 0)


def without_drift(momenta: Array, masses: Array) -> Array:
    """Momenta [N, 3] without their total; masses: [N]."""
    return momenta - masses[:, None] / masses.sum() * momenta.sum(axis=0)
