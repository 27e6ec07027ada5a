"""Stability: whether a potential survives molecular dynamics, and how well the energy is conserved.

A run has blown up if the temperature leaves its target far behind, atoms fuse, a bond of a molecule breaks, or numbers
stop being finite.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
from ase import Atoms
from ase.build import bulk
from ase.data import covalent_radii
from ase.geometry import find_mic
from ase.md.velocitydistribution import Stationary

from snnp.analysis.properties import GROUND_STATES, ground_state
from snnp.errors import InputError
from snnp.models.potential import Potential
from snnp.neighbours import shortest_distances
from snnp.sampling.run import MDProgress, MDResult, Report
from snnp.sampling.settings import MDSettings
from snnp.sampling.snapshot import Sample, columns
from snnp.structure import Structure

__all__ = ["MDEngine", "StabilityRun", "crystal", "stability_test", "time_step_for", "watch_run"]

MDEngine = Callable[[Potential, Atoms, MDSettings, Report | None], MDResult]
"""What the entry points `snnp.md_engines` give."""

_HOTTEST = 3.0  # times the target: equipartition after a step into an unphysical hole goes far beyond, noise never does
_FUSED = 0.6  # of the shortest distance at the start; thermal motion up to the melting point stays above 0.7
_BONDED, _BROKEN = 1.25, 1.75  # of the sum of covalent radii; of the length of the bond at the start
_BLOCKS = 20  # of the fit of the drift: longer than the correlation of the energy, enough for an error bar
_FRAMES = 400  # looked at for distances
_SAMPLE_FS = 20.0


@dataclass(frozen=True)
class StabilityRun:
    """What was seen in one run."""

    ensemble: str  # "nve" or "nvt" (Langevin)
    target_k: float  # of the thermostat; for "nve" where it was equilibrated
    picoseconds: float  # reached
    dt_fs: float
    dtype: str
    n_atoms: int
    failure: str | None  # why the run counts as blown up
    mean_temperature_k: float | None  # over the second half
    max_temperature_k: float | None
    shortest_distance_angstrom: float  # between any two atoms at any time looked at
    rms_displacement_angstrom: float | None  # from the sites of the crystal, over the second half; None for molecules
    drift_mev_per_atom_per_ns: float | None  # slope of the total energy; None but for "nve"
    drift_error: float | None  # its standard error

    @property
    def survived(self) -> bool:
        return self.failure is None

    def to_dict(self) -> dict[str, Any]:
        return {"survived": self.survived, **asdict(self)}


def crystal(element: str, lattice_constant: float, n_atoms: int = 100) -> Atoms:
    """The ground-state crystal of an element, conventional constant in Å, as a nearly cubic supercell.

    It has at least 0.9 `n_atoms` atoms. Refuses elements without a known ground state that is cubic or hcp.
    """
    lattice = ground_state(element)
    if element not in GROUND_STATES and lattice != "hcp":
        known = ", ".join(GROUND_STATES)
        raise InputError(f"no cubic or hcp ground state of {element!r} is known; there are {known}, and the hcp ones.")
    cell = bulk(element, lattice, a=lattice_constant, **{"orthorhombic" if lattice == "hcp" else "cubic": True})
    repeats = np.ones(3, dtype=int)
    while len(cell) * repeats.prod() < 0.9 * n_atoms:
        repeats[int(np.argmin(repeats * cell.cell.lengths().round(6)))] += 1
    atoms: Atoms = cell.repeat(repeats.tolist())
    return atoms


def time_step_for(atoms: Atoms) -> float:
    """A time step in fs that resolves the fastest vibration: 0.5 with hydrogen, 1 with light atoms, else 2."""
    lightest = float(atoms.get_masses().min())
    return 0.5 if lightest < 2.5 else 1.0 if lightest < 20.0 else 2.0


def stability_test(
    model: Potential, atoms: Atoms, settings: MDSettings, engine: MDEngine, *, hot_k: float, equilibration_ps: float = 2
) -> dict[str, StabilityRun]:
    """Equilibrate and run at constant energy ("nve"), then run hot with a thermostat ("langevin", at `hot_k`, K).

    The `atoms` are at rest. The `settings` say the temperature of the run at constant energy, steps of each of the two
    runs, time step, precision and seed. If equilibration already fails, "nve" reports that.
    """
    plain = settings.model_copy(update={"equilibrate": 0, "friction_per_ps": 1.0, "ensemble": "nvt"})
    # A strong thermostat: what counts is that the potential energy has its share when the run begins.
    steps = max(1, round(1000.0 * equilibration_ps / settings.dt_fs))
    warm_up = plain.model_copy(update={"steps": steps, "friction_per_ps": 5.0})
    nve, warm = watch_run(model, atoms, warm_up, engine)
    if warm is not None:
        Stationary(warm, preserve_temperature=True)
        nve, _ = watch_run(model, warm, plain.model_copy(update={"ensemble": "nve"}), engine, sites=atoms)
    langevin, _ = watch_run(model, atoms, plain.model_copy(update={"temperature_k": hot_k}), engine)
    return {"nve": nve, "langevin": langevin}


def watch_run(
    model: Potential,
    atoms: Atoms,
    settings: MDSettings,
    engine: MDEngine,
    *,
    sites: Atoms | None = None,
    report: Report | None = None,
) -> tuple[StabilityRun, Atoms | None]:
    """Run molecular dynamics under supervision, without the files that the settings name.

    Displacements are from the `sites` of a crystal, by default `atoms`. Returns what was seen, and the final atoms with
    momenta (None if the run blew up); refuses what cannot be computed even before it moves.
    """
    model.compute(Structure.from_ase(atoms))  # what is wrong with the input must not count as a blown-up run
    result, failure, samples, frames = _watched(model, atoms, settings, engine, report)
    distances = [float(shortest_distances(Structure.from_ase(frame), model.cutoff)) for frame in (atoms, *frames)]
    if min(distances) < _FUSED * distances[0]:
        failure = failure or f"two atoms came as close as {min(distances):.2f} Å (at the start {distances[0]:.2f} Å)"
    failure = failure or _broken_bond(frames, atoms)
    temperature = columns(samples)["temperature_k"]
    slope, error = _drift(samples, len(atoms)) if settings.ensemble == "nve" and failure is None else (None, None)
    run = StabilityRun(
        ensemble=settings.ensemble,
        target_k=settings.temperature_k,
        picoseconds=samples[-1].time_ps if samples else 0.0,
        dt_fs=settings.dt_fs,
        dtype=settings.dtype,
        n_atoms=len(atoms),
        failure=failure,
        mean_temperature_k=float(temperature[len(temperature) // 2 :].mean()) if samples else None,
        max_temperature_k=float(temperature.max()) if samples else None,
        shortest_distance_angstrom=min(distances),
        rms_displacement_angstrom=_rms_displacement(frames, sites or atoms),
        drift_mev_per_atom_per_ns=slope,
        drift_error=error,
    )
    return run, None if result is None or failure else result.final


def _watched(
    model: Potential, atoms: Atoms, settings: MDSettings, engine: MDEngine, report: Report | None
) -> tuple[MDResult | None, str | None, list[Sample], list[Atoms]]:
    """The result, or why there is none, with the samples and frames up to there."""
    samples: list[Sample] = []

    def look(progress: MDProgress) -> None:
        samples.append(progress.sample)
        if report is not None:
            report(progress)
        if progress.sample.temperature_k > _HOTTEST * settings.temperature_k:
            raise InputError(f"the temperature rose to {progress.sample.temperature_k:.3g} K")

    failure, result = None, None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "frames.extxyz"
        often = max(1, round(_SAMPLE_FS / settings.dt_fs))
        update = {
            "trajectory": path,
            "trajectory_interval": max(often, settings.steps // _FRAMES),
            "log_interval": max(1, min(often, settings.steps // (2 * _BLOCKS))),
            **dict.fromkeys(("log", "plot", "checkpoint")),
        }
        try:
            result = engine(model, atoms, settings.model_copy(update=update), look)
        except InputError as error:
            if not path.is_file():  # it never began
                raise
            failure = str(error)
        return result, failure, samples, list(ase.io.iread(path))


def _broken_bond(frames: Sequence[Atoms], start: Atoms) -> str | None:
    if start.pbc.any():
        return None
    lengths = start.get_all_distances()
    radii = covalent_radii[start.numbers]
    bonded = np.triu(lengths < _BONDED * (radii[:, None] + radii[None, :]), k=1)
    for frame in frames:
        stretch = np.where(bonded, frame.get_all_distances() / np.where(bonded, lengths, 1.0), 0.0)
        if stretch.max(initial=0.0) > _BROKEN:
            i, j = np.unravel_index(int(stretch.argmax()), stretch.shape)
            return f"the bond {start.symbols[i]}{i}-{start.symbols[j]}{j} broke"
    return None


def _rms_displacement(frames: Sequence[Atoms], sites: Atoms) -> float | None:
    """Å, from the sites of a crystal over the second half, without the drift of the whole."""
    if not sites.pbc.all():
        return None
    squares = []
    for frame in frames[len(frames) // 2 :]:
        displacement, _ = find_mic(frame.positions - sites.positions, sites.cell)
        squares.append(np.square(displacement - displacement.mean(axis=0)).sum(axis=1).mean())
    return float(np.sqrt(np.mean(squares)))


def _drift(samples: Sequence[Sample], n_atoms: int) -> tuple[float | None, float | None]:
    """Slope of the total energy in meV/atom/ns and its standard error: a line through the means of blocks."""
    column = columns(samples)
    if len(samples) < _BLOCKS:
        return None, None
    names = ("time_ps", "total_energy_ev")
    means = [np.array([block.mean() for block in np.array_split(column[name], _BLOCKS)]) for name in names]
    nanoseconds, energies = means[0] / 1000.0, means[1] * 1000.0 / n_atoms
    # Centred, so that the conditioning does not depend on the zero of energy.
    fit, covariance = np.polyfit(nanoseconds - nanoseconds.mean(), energies - energies.mean(), 1, cov=True)
    return float(fit[0]), float(np.sqrt(covariance[0, 0]))
