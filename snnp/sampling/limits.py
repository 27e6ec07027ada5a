"""What makes sense in a simulation: a lowest potential energy and a highest temperature."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from ase import Atoms

from snnp.errors import InputError
from snnp.models.potential import Potential
from snnp.sampling.settings import MDSettings
from snnp.sampling.snapshot import Sample
from snnp.units import BOLTZMANN_EV_PER_K

__all__ = ["Limits", "cure", "least_energy", "shorter_step"]

_LOWER, _SHARE = 1.0, 0.5
"""eV/atom below the training data, or that share of their lowest energy: less than any hole that matters, more than an
ordered crystal or another composition gains on what was seen."""
_HOTTER, _WARMER_K = 10.0, 2000.0
"""Times the temperature, and K beyond: a start far from rest gives off less, a fall into a hole more."""
_HOTTEST_K = 1e6
"""Above this no condensed matter or molecule is meant: the atoms are flying apart."""
_FEW = 10
"""Degrees of freedom; with fewer, temperatures fluctuate by more than their mean."""


@dataclass(frozen=True)
class Limits:
    """Of one run.

    Arguments:
        energy: eV, of all atoms, or None if nothing is known; see `least_energy`.
        temperature: K.
        n_atoms: how many.
        step: what a shorter time step would be; see `shorter_step`.
        cure: what to do about atoms that fly apart; see the function of that name.
    """

    energy: float | None
    temperature: float
    n_atoms: int
    step: str | None
    cure: str

    @classmethod
    def of(cls, atoms: Atoms, settings: MDSettings, n_freedom: int, energy: float | None) -> Limits:
        """Limits of a run that starts from `atoms` with momenta."""
        n_freedom = max(n_freedom, 1)
        given = 2.0 * float(atoms.get_kinetic_energy()) / (n_freedom * BOLTZMANN_EV_PER_K)
        asked = max(settings.temperature_k, settings.temperature_end_k or 0.0, given)
        hottest = _HOTTER * (1.0 + _FEW / n_freedom) * asked + _WARMER_K
        return cls(energy, hottest, len(atoms), shorter_step(atoms, settings.dt_fs), cure(atoms, settings))

    def check(self, sample: Sample, settings: MDSettings) -> None:
        """Raise `InputError` for a state that a sound run does not reach, with its likely cause and what to do."""
        finite = math.isfinite(sample.total_energy_ev)
        if not finite or sample.temperature_k >= _HOTTEST_K:
            seen = f"temperature is {sample.temperature_k:.3g} K" if finite else f"energy is {sample.total_energy_ev}"
            raise InputError(f"the simulation blew up: at step {sample.step} the {seen}. {self.cure}")
        low = self.energy is not None and sample.potential_energy_ev < self.energy
        if not low and sample.temperature_k <= self.temperature:
            return
        energy = sample.potential_energy_ev / self.n_atoms
        state = f"T = {sample.temperature_k:.4g} K, potential energy {energy:.4g} eV/atom"
        if low:
            assert self.energy is not None
            why = (
                f"the energy is below {self.energy / self.n_atoms:.4g} eV/atom, far below any that the model was "
                "trained on: the atoms have fallen into a hole of the model, as happens where they are compressed or "
                "come close to each other. 'snnp doctor model' shows where its holes are; take a model without, or "
                "stay at lower pressure and temperature"
            )
        else:
            why = (
                f"more than {self.temperature:.4g} K make no sense in this run: the atoms have fallen into a hole of "
                "the model ('snnp doctor model' shows whether it has any), or the start was far from rest (relax it "
                "first)"
            )
            why += f", or the time step is too long (take {self.step})" if self.step else ""
        kept = "" if settings.checkpoint is None else f" The last checkpoint before is in {settings.checkpoint}."
        raise InputError(f"the simulation blew up: at step {sample.step} ({state}) {why}.{kept}")


def shorter_step(atoms: Atoms, dt_fs: float) -> str | None:
    """The time step to take in place of one that is long for the lightest atom; None where it is short enough."""
    if np.any(atoms.numbers == 1):
        return f"0.5 fs, as there is hydrogen, instead of {dt_fs:g} fs" if dt_fs > 0.5 else None
    return None if dt_fs <= 1.0 else f"1 {'fs' if dt_fs <= 2.0 else 'to 2 fs'} instead of {dt_fs:g} fs"


def cure(atoms: Atoms, settings: MDSettings) -> str:
    """What to do about a run that blew up: a shorter step only where the step is long."""
    step = shorter_step(atoms, settings.dt_fs)
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
    stated = [model.metadata, *_dictionaries(model.metadata.get("members"))]
    values = [each.get("lowest_energy_ev_per_atom") for each in stated]
    known = [float(value) for value in values if isinstance(value, int | float) and math.isfinite(value)]
    if not known:
        return None
    lowest = min(known)
    symbols, counts = np.unique(atoms.get_chemical_symbols(), return_counts=True)
    zero = sum(model.reference_energies[s] * n for s, n in zip(symbols.tolist(), counts.tolist(), strict=True))
    return float(zero + len(atoms) * (lowest - max(_LOWER, _SHARE * abs(lowest))))


def _dictionaries(values: Any) -> list[dict[str, Any]]:
    return [each for each in values if isinstance(each, dict)] if isinstance(values, list) else []
