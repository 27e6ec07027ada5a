"""One moment of a simulation: the numbers that follow from it, and whether they make sense."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from ase import Atoms

from snnp.errors import InputError
from snnp.models.potential import Potential
from snnp.sampling.settings import MDSettings
from snnp.units import BOLTZMANN_EV_PER_K, EV_PER_ANGSTROM3_IN_GPA

__all__ = ["Limits", "Sample", "Snapshot", "columns", "cure", "energy_drift", "least_energy"]

_FEWEST_SAMPLES, _SHORTEST_NS = 8, 0.08e-3
"""Of the part that is fitted: a slope per nanosecond says nothing after a few vibrations."""
_LOWER, _SHARE = 1.0, 0.5
"""eV/atom below the training data, or that share of their lowest energy: less than any hole that matters, more than an
ordered crystal or another composition gains on what was seen."""
_HOTTER, _WARMER_K = 10.0, 2000.0
"""Times the temperature, and K beyond: a start far from rest gives off less, a fall into a hole more."""
_HOTTEST_K = 1e6  # above this no condensed matter or molecule is meant: the atoms are flying apart
_FEW = 10  # degrees of freedom; with fewer, temperatures fluctuate by more than their mean


@dataclass(frozen=True)
class Snapshot:
    """The state of a simulation at one step."""

    atoms: Atoms  # Å, with momenta in ASE's units; the receiver keeps it, so hand over a copy
    potential_energy: float  # eV
    forces: np.ndarray  # [N, 3] eV/Å
    stress: np.ndarray | None  # [3, 3] eV/Å³, ASE's sign, without the kinetic part; None unless fully periodic
    uncertainty: float = math.nan  # of the atom that is least certain, where the run watches it


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
    uncertainty: float = math.nan  # the last: logs of runs that do not watch it end before

    @staticmethod
    def of(snapshot: Snapshot, step: int, time_fs: float, n_freedom: int) -> Sample:
        # The kinetic part of the pressure is N k T / V for the N atoms that move at the temperature of the row: where
        # the total momentum is zero, 2 K / (3 V) alone would lack the centre of mass, and <P> would miss the target.
        kinetic = float(snapshot.atoms.get_kinetic_energy())
        n_moving = len(snapshot.atoms) - sum(len(c.get_indices()) for c in snapshot.atoms.constraints)
        volume = pressure = float("nan")
        if snapshot.stress is not None:
            volume = float(snapshot.atoms.get_volume())
            thermal = 2.0 * kinetic * n_moving / n_freedom / volume
            pressure = (thermal - float(np.trace(snapshot.stress)) / 3.0) * EV_PER_ANGSTROM3_IN_GPA
        return Sample(
            step=step,
            time_ps=time_fs / 1000.0,
            potential_energy_ev=snapshot.potential_energy,
            kinetic_energy_ev=kinetic,
            total_energy_ev=snapshot.potential_energy + kinetic,
            temperature_k=2.0 * kinetic / (n_freedom * BOLTZMANN_EV_PER_K),
            volume_a3=volume,
            pressure_gpa=pressure,
            uncertainty=snapshot.uncertainty,
        )


def columns(samples: Sequence[Sample]) -> dict[str, np.ndarray]:
    """The samples as one array per column of the log."""
    table = np.array(samples, dtype=float).reshape(-1, len(Sample._fields))
    return {name: table[:, k] for k, name in enumerate(Sample._fields)}


def energy_drift(column: dict[str, np.ndarray], n_atoms: int) -> float | None:
    """Slope of the total energy in meV/atom/ns by least squares; None for less than ten samples over 0.1 ps.

    The first fifth is left out: there the bounded error of the time step grows to its level, which is no drift.
    """
    late = slice(len(column["step"]) // 5, None)
    times_ns, energies = column["time_ps"][late] / 1000.0, column["total_energy_ev"][late]
    if len(times_ns) < _FEWEST_SAMPLES or times_ns[-1] - times_ns[0] < _SHORTEST_NS:
        return None
    slope = np.polynomial.Polynomial.fit(times_ns, energies, 1).convert().coef[1]
    return float(slope) * 1000.0 / n_atoms


class Limits:
    """What makes sense in a run that starts from `atoms` with momenta; energy: eV, the lowest of all atoms, or None."""

    def __init__(self, atoms: Atoms, settings: MDSettings, n_freedom: int, energy: float | None) -> None:
        self._atoms, self._settings, self._energy, n_freedom = atoms, settings, energy, max(n_freedom, 1)
        given = 2.0 * float(atoms.get_kinetic_energy()) / (n_freedom * BOLTZMANN_EV_PER_K)
        asked = max(settings.temperature_k, settings.temperature_end_k or 0.0, given)
        self._temperature = _HOTTER * (1.0 + _FEW / n_freedom) * asked + _WARMER_K

    def check(self, sample: Sample) -> None:
        """Raise `InputError` for a state that a sound run does not reach, with its likely cause and what to do."""
        settings, n_atoms, lowest = self._settings, len(self._atoms), self._energy
        finite = math.isfinite(sample.total_energy_ev)
        if not finite or sample.temperature_k >= _HOTTEST_K:
            seen = f"temperature is {sample.temperature_k:.3g} K" if finite else f"energy is {sample.total_energy_ev}"
            hint = cure(self._atoms, settings)
            raise InputError(f"the simulation blew up: at step {sample.step} the {seen}. {hint}")
        state = f"T = {sample.temperature_k:.4g} K, potential energy {sample.potential_energy_ev / n_atoms:.4g} eV/atom"
        if lowest is not None and sample.potential_energy_ev < lowest:
            why = (
                f"the energy is below {lowest / n_atoms:.4g} eV/atom, far below any that the model was "
                "trained on: the atoms have fallen into a hole of the model, as happens where they are compressed or "
                "come close to each other. 'snnp doctor model' shows where its holes are; take a model without, or "
                "stay at lower pressure and temperature"
            )
        elif sample.temperature_k > self._temperature:
            why = (
                f"more than {self._temperature:.4g} K make no sense in this run: the atoms have fallen into a hole of "
                "the model ('snnp doctor model' shows whether it has any), or the start was far from rest (relax it "
                "first)"
            )
            step = _shorter_step(self._atoms, settings.dt_fs)
            why += f", or the time step is too long (take {step})" if step else ""
        else:
            return
        kept = "" if settings.checkpoint is None else f" The last checkpoint before is in {settings.checkpoint}."
        raise InputError(f"the simulation blew up: at step {sample.step} ({state}) {why}.{kept}")


def _shorter_step(atoms: Atoms, dt_fs: float) -> str | None:
    """The time step to take in place of one that is long for the lightest atom; None where it is short enough."""
    if np.any(atoms.numbers == 1):
        return f"0.5 fs, as there is hydrogen, instead of {dt_fs:g} fs" if dt_fs > 0.5 else None
    return None if dt_fs <= 1.0 else f"1 {'fs' if dt_fs <= 2.0 else 'to 2 fs'} instead of {dt_fs:g} fs"


def cure(atoms: Atoms, settings: MDSettings) -> str:
    """What to do about a run that blew up: a shorter step only where the step is long."""
    step = _shorter_step(atoms, settings.dt_fs)
    if step is not None:
        return f"Use a time step of {step}, relax the structure first, or check the model."
    return (
        f"A time step of {settings.dt_fs:g} fs is short enough: suspect the structure (relax it first, look for atoms "
        "that are too close) or the model (is it trained for such structures and temperatures?)."
    )


def least_energy(model: Potential, atoms: Atoms) -> float | None:
    """eV: what the potential energy of these atoms does not fall below in states like the training data.

    None for a model that does not state the lowest energy per atom of its training data (beyond E0).
    """
    members = model.metadata.get("members")
    stated = [model.metadata, *(members if isinstance(members, list) else [])]
    values = [each.get("lowest_energy_ev_per_atom") for each in stated if isinstance(each, dict)]
    known = [float(value) for value in values if isinstance(value, int | float) and math.isfinite(value)]
    if not known:
        return None
    symbols, counts = np.unique(atoms.get_chemical_symbols(), return_counts=True)  # a formula takes 17 s per million
    zero = sum(model.reference_energies[s] * n for s, n in zip(symbols.tolist(), counts.tolist(), strict=True))
    return float(zero + len(atoms) * (min(known) - max(_LOWER, _SHARE * abs(min(known)))))
