"""One moment of a simulation and the numbers that follow from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from ase import Atoms

from snnp.units import BOLTZMANN_EV_PER_K, EV_PER_ANGSTROM3_IN_GPA

__all__ = ["Sample", "Snapshot", "columns", "energy_drift"]

_FEWEST_SAMPLES, _SHORTEST_NS = 8, 0.08e-3
"""Of the part that is fitted: a slope per nanosecond says nothing after a few vibrations."""


@dataclass(frozen=True)
class Snapshot:
    """The state of a simulation at one step.

    Arguments:
        atoms: positions (Å), momenta (ASE's units), cell (Å), periodicity; the receiver keeps it, so hand over a copy.
        potential_energy: eV.
        forces: [N, 3], eV/Å.
        stress: [3, 3], eV/Å³, ASE's sign, without the kinetic part; None where not every direction is periodic.
    """

    atoms: Atoms
    potential_energy: float
    forces: np.ndarray
    stress: np.ndarray | None


class Sample(NamedTuple):
    """One row of the log; the fields are its columns. NaN where a quantity does not exist."""

    step: int
    time_ps: float
    potential_energy_ev: float
    kinetic_energy_ev: float
    total_energy_ev: float
    temperature_k: float
    volume_a3: float
    pressure_gpa: float

    @staticmethod
    def of(snapshot: Snapshot, step: int, dt_fs: float, n_freedom: int) -> Sample:
        """Derive the row of a snapshot.

        The kinetic part of the pressure is N k T / V for the N atoms that move at the temperature of the row: where the
        total momentum is kept at zero, 2 K / (3 V) alone would lack the centre of mass, and <P> would miss the target.
        """
        kinetic = float(snapshot.atoms.get_kinetic_energy())
        n_moving = len(snapshot.atoms) - sum(len(c.get_indices()) for c in snapshot.atoms.constraints)
        volume = pressure = float("nan")
        if snapshot.stress is not None:
            volume = float(snapshot.atoms.get_volume())
            thermal = 2.0 * kinetic * n_moving / n_freedom / volume
            pressure = (thermal - float(np.trace(snapshot.stress)) / 3.0) * EV_PER_ANGSTROM3_IN_GPA
        return Sample(
            step=step,
            time_ps=step * dt_fs / 1000.0,
            potential_energy_ev=snapshot.potential_energy,
            kinetic_energy_ev=kinetic,
            total_energy_ev=snapshot.potential_energy + kinetic,
            temperature_k=2.0 * kinetic / (n_freedom * BOLTZMANN_EV_PER_K),
            volume_a3=volume,
            pressure_gpa=pressure,
        )


def columns(samples: Sequence[Sample]) -> dict[str, np.ndarray]:
    """The samples as one array per column of the log."""
    table = np.array(samples, dtype=float).reshape(-1, len(Sample._fields))
    return {name: table[:, k] for k, name in enumerate(Sample._fields)}


def energy_drift(column: dict[str, np.ndarray], n_atoms: int) -> float | None:
    """Slope of the total energy in meV/atom/ns by least squares; None for less than ten samples over 0.1 ps.

    The first fifth is left out: while a perfect crystal takes up potential energy, the bounded error of the time step
    grows to its level, which is no drift.
    """
    late = slice(len(column["step"]) // 5, None)
    times_ns, energies = column["time_ps"][late] / 1000.0, column["total_energy_ev"][late]
    if len(times_ns) < _FEWEST_SAMPLES or times_ns[-1] - times_ns[0] < _SHORTEST_NS:
        return None
    slope = np.polynomial.Polynomial.fit(times_ns, energies, 1).convert().coef[1]
    return float(slope) * 1000.0 / n_atoms
