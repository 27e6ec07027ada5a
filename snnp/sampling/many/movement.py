"""Molecular dynamics of many structures by one call, each with the trajectory that the embedded engine gives it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.stress import full_3x3_to_voigt_6_stress
from numpy.typing import NDArray

from snnp.errors import ConfigError, InputError, SnnpError
from snnp.hub import load_model
from snnp.models.potential import Potential
from snnp.sampling.checkpoint import Checkpoint, starting_point
from snnp.sampling.many.crowd import Crowd, Found
from snnp.sampling.run import ModelLike
from snnp.sampling.settings import MDSettings
from snnp.sampling.snapshot import Limits, Sample, cure, least_energy
from snnp.sampling.thermostats import ASE_FS, Ensemble, degrees_of_freedom, held_atoms, without_drift
from snnp.units import BOLTZMANN_EV_PER_K, EV_PER_ANGSTROM3_IN_GPA

__all__ = ["ManyRun", "run_many"]

Array = NDArray[np.float64]
_BLOCK = (
    32  # steps whose random numbers are drawn at once: the stream is the same, and the call costs more than they do
)


@dataclass
class ManyRun:
    """One of many runs.

    `final` are the atoms at the last good sample, with momenta, after `steps` steps; `samples` the rows of the log;
    `frames` those of the trajectory, with energy, forces and stress, if they were asked for; `failure` says what ended
    the run early, or why it never began.
    """

    final: Atoms
    steps: int = 0
    samples: list[Sample] = field(default_factory=list)
    frames: list[Atoms] = field(default_factory=list)
    failure: str | None = None


def run_many(
    model: ModelLike,
    structures: Sequence[Atoms],
    settings: MDSettings,
    *,
    frames: bool = False,
    report: Callable[[int, int], None] | None = None,
) -> list[ManyRun]:
    """Run molecular dynamics of many structures together; they stay as they are, and no files are written.

    Structure number k has the velocities and the noise of seed `settings.seed + k`. One that blows up ends alone.

    Arguments:
        settings: of each run; samples are taken every `log_interval` steps.
        frames: whether to keep a frame every `trajectory_interval` steps.
        report: called at every sample with the step and how many runs go on.

    Raises:
        ConfigError: for settings that name files, or ask to resume.
    """
    if settings.outputs or settings.resume:
        named = ", ".join(settings.outputs) or "resume"
        raise ConfigError(f"many runs write and resume no files, but the settings name {named}; take frames=True.")
    potential = load_model(model, dtype=settings.dtype, device=settings.device)
    runs = [ManyRun(atoms.copy()) for atoms in structures]
    starts: list[Checkpoint] = []
    fit: list[int] = []
    for k, atoms in enumerate(structures):
        try:
            own = settings.model_copy(update={"seed": (settings.seed + k) % 2**31})
            starts.append(starting_point(atoms, own, "native"))
            potential.check_elements(atoms.numbers)
            fit.append(k)
        except SnnpError as error:
            del starts[len(fit) :]
            runs[k].failure = str(error)
    _Movement(potential, starts, [runs[k] for k in fit], settings).go(frames, report or (lambda step, going: None))
    return runs


class _Movement:
    """The state of all runs that go on; `starts` and `runs` are those of the crowd's input."""

    def __init__(
        self, potential: Potential, starts: list[Checkpoint], runs: list[ManyRun], settings: MDSettings
    ) -> None:
        self._crowd = crowd = Crowd(potential, [start.atoms for start in starts])
        self._starts, self._runs, self._settings = starts, runs, settings
        self._limits: list[Limits] = []
        self._ensembles: list[Ensemble] = []
        for start in starts:
            own = settings.model_copy(update={"seed": start.settings["seed"]})
            atoms, freedom = start.atoms, degrees_of_freedom(start.atoms, settings)
            self._limits.append(Limits(atoms, settings, freedom, least_energy(potential, atoms)))
            self._ensembles.append(Ensemble(atoms, own, 0, start.equilibration))
        here = [starts[k].atoms for k in crowd.index.tolist()]
        empty = np.zeros((0, 3))
        crowd.atoms |= {
            "momenta": np.concatenate([empty, *(atoms.get_momenta() for atoms in here)]),
            "masses": np.concatenate([empty[:, :1], *(atoms.get_masses()[:, None] for atoms in here)]),
            "moves": np.concatenate([empty[:, :1], *(~held_atoms(atoms, None)[:, None] for atoms in here)]),
        }
        crowd.each["freedom"] = np.array([degrees_of_freedom(atoms, settings) for atoms in here], dtype=float)

    def go(self, frames: bool, report: Callable[[int, int], None]) -> None:
        settings, crowd = self._settings, self._crowd
        found = self._evaluate(0)
        for step in range(settings.steps + 1):
            last = step == settings.steps
            wanted = frames and step % settings.trajectory_interval == 0
            if last or wanted or step % settings.log_interval == 0:
                found = self._record(step, found, wanted)
                report(step, len(crowd))
            if last or not len(crowd):
                break
            found = self._step(step, found)

    def _evaluate(self, step: int) -> Found:
        before = set(self._crowd.failed)
        found = self._crowd.evaluate()
        for k in set(self._crowd.failed) - before:
            reason = self._crowd.failed[k]
            if step:
                hint = cure(self._starts[k].atoms, self._settings)
                reason = f"the simulation blew up at step {step} ({reason}) {hint}"
            self._runs[k].failure = reason
        return found

    def _step(self, step: int, found: Found) -> Found:
        """As `snnp.sampling.embedded.NativeDynamics.advance` moves one."""
        crowd, dt = self._crowd, self._settings.dt_fs * ASE_FS
        ensembles = [self._ensembles[k] for k in crowd.index.tolist()]
        if self._settings.ensemble == "npt":
            self._move_boxes(ensembles, found)
        atoms = crowd.atoms
        half, drift = 0.5 * dt * atoms["moves"], dt / atoms["masses"]
        momenta = atoms["momenta"] + half * found.forces
        positions = atoms["positions"] + 0.5 * drift * momenta
        momenta = self._thermostat(step, ensembles, momenta)
        atoms["positions"], atoms["momenta"] = positions + 0.5 * drift * momenta, momenta
        found = self._evaluate(step + 1)
        atoms = crowd.atoms
        atoms["momenta"] = atoms["momenta"] + 0.5 * dt * atoms["moves"] * found.forces
        for k in crowd.index.tolist():
            self._ensembles[k].step = step + 1
        self._end_of_equilibration(step + 1)
        return found

    def _move_boxes(self, ensembles: list[Ensemble], found: Found) -> None:
        cells = self._crowd.each["cells"]
        moves = np.array([e.box_move(cells[b], found.stress[b]) for b, e in enumerate(ensembles)]).reshape(-1, 3, 3)
        positions = self._crowd.atoms["positions"]
        self._crowd.each["cells"] = cells @ moves
        self._crowd.atoms["positions"] = np.einsum("na,nab->nb", positions, moves[self._crowd.owner])

    def _thermostat(self, step: int, ensembles: list[Ensemble], momenta: Array) -> Array:
        crowd = self._crowd
        # All have the same settings: what acts differs by how long they equilibrate alone.
        baths = {e.equilibration: e for e in ensembles}
        known = {length: (e.bath, e.keep(e.bath.friction_per_ps)) for length, e in baths.items()}
        acting = [known[e.equilibration] for e in ensembles]
        langevin = np.array([bath.kind == "langevin" for bath, _ in acting], dtype=bool)
        if langevin.any():
            keep = np.array([keep for _, keep in acting])[:, None][crowd.owner]
            kt = np.array([bath.kt for bath, _ in acting])[:, None][crowd.owner]
            size = np.sqrt((1.0 - keep**2) * kt * crowd.atoms["masses"]) * crowd.atoms["moves"]
            changed = momenta * keep + size * self._normal(step, ensembles, langevin)
            momenta = np.where(langevin[crowd.owner, None], changed, momenta)
        bussi = [bath.kind == "bussi" for bath, _ in acting]
        if any(bussi):
            kinetic = 0.5 * crowd.sums((momenta**2 / crowd.atoms["masses"]).sum(axis=1))
            factors = [e.factor(float(kinetic[b])) if bussi[b] else 1.0 for b, e in enumerate(ensembles)]
            momenta = np.array(factors)[:, None][crowd.owner] * momenta
        return momenta

    def _normal(self, step: int, ensembles: list[Ensemble], langevin: NDArray[np.bool_]) -> Array:
        """[N, 3] the next numbers of each structure's own stream."""
        crowd = self._crowd
        if self._settings.ensemble == "npt" or not langevin.all():
            parts = [
                e.rng.standard_normal((size, 3)) if uses else np.zeros((size, 3))
                for e, size, uses in zip(ensembles, crowd.sizes.tolist(), langevin.tolist(), strict=True)
            ]
            return np.concatenate(parts)
        block = f"noise{step % _BLOCK}"
        if step % _BLOCK == 0 or block not in crowd.atoms:
            ends = [e.equilibration for e in ensembles if e.equilibration > step]
            last = self._settings.steps
            if self._settings.thermostat != "langevin":
                last = min([last, *ends])
            n = min(_BLOCK - step % _BLOCK, last - step)
            drawn = [e.rng.standard_normal((n, s, 3)) for e, s in zip(ensembles, crowd.sizes.tolist(), strict=True)]
            together = np.concatenate(drawn, axis=1)
            # Kept with the crowd, so that those of structures that leave go along.
            crowd.atoms |= {f"noise{(step + k) % _BLOCK}": together[k] for k in range(n)}
        return np.asarray(crowd.atoms.pop(block))

    def _end_of_equilibration(self, step: int) -> None:
        crowd = self._crowd
        for b, k in enumerate(crowd.index.tolist()):
            ensemble = self._ensembles[k]
            if step == ensemble.equilibration and ensemble.keeps_momentum:
                own = slice(int(crowd.starts[b]), int(crowd.starts[b] + crowd.sizes[b]))
                crowd.atoms["momenta"][own] = without_drift(crowd.atoms["momenta"][own], crowd.atoms["masses"][own, 0])

    def _record(self, step: int, found: Found, wanted: bool) -> Found:
        """Take samples and frames; those whose state makes no sense leave, and their numbers with them."""
        crowd, settings = self._crowd, self._settings
        kinetic = 0.5 * crowd.sums((crowd.atoms["momenta"] ** 2 / crowd.atoms["masses"]).sum(axis=1))
        periodic = crowd.each["pbc"].all(axis=1)
        volume = np.where(periodic, np.abs(np.linalg.det(crowd.each["cells"])), np.nan)
        moving = crowd.sums(crowd.atoms["moves"][:, 0].astype(float))
        thermal = 2.0 * kinetic * moving / crowd.each["freedom"] / volume
        pressure = (thermal - np.trace(found.stress, axis1=1, axis2=2) / 3.0) * EV_PER_ANGSTROM3_IN_GPA
        temperature = 2.0 * kinetic / (crowd.each["freedom"] * BOLTZMANN_EV_PER_K)
        reasons = {}
        for b, k in enumerate(crowd.index.tolist()):
            numbers = found.energy[b], kinetic[b], found.energy[b] + kinetic[b], temperature[b], volume[b], pressure[b]
            sample = Sample(step, step * settings.dt_fs / 1000.0, *map(float, numbers))
            try:
                self._limits[k].check(sample)
            except InputError as error:
                reasons[b] = self._runs[k].failure = str(error)
                continue
            run = self._runs[k]
            run.steps = step
            if step % settings.log_interval == 0:
                run.samples.append(sample)
            if wanted or step == settings.steps or step % settings.log_interval == 0:
                atoms = self._snapshot(b, k)
                run.final = atoms
                if wanted:
                    run.frames.append(self._labelled(atoms, b, found))
        if not reasons:
            return found
        kept = ~np.isin(np.arange(len(crowd)), list(reasons))
        rows = np.repeat(kept, crowd.sizes)
        crowd.fail(reasons)
        return Found(found.energy[kept], found.energies[rows], found.forces[rows], found.stress[kept])

    def _snapshot(self, b: int, k: int) -> Atoms:
        crowd = self._crowd
        own = slice(int(crowd.starts[b]), int(crowd.starts[b] + crowd.sizes[b]))
        atoms: Atoms = self._starts[k].atoms.copy()
        atoms.set_cell(crowd.each["cells"][b])
        atoms.arrays["positions"][:] = crowd.atoms["positions"][own]
        atoms.arrays["momenta"] = crowd.atoms["momenta"][own].copy()
        return atoms

    def _labelled(self, atoms: Atoms, b: int, found: Found) -> Atoms:
        own = slice(int(self._crowd.starts[b]), int(self._crowd.starts[b] + self._crowd.sizes[b]))
        values = {"energy": float(found.energy[b]), "forces": found.forces[own].copy()}
        if atoms.pbc.all():
            values["stress"] = full_3x3_to_voigt_6_stress(found.stress[b])
        frame = atoms.copy()
        frame.calc = SinglePointCalculator(frame, **values)
        return frame
