"""What all molecular dynamics engines share: the loop, files, checkpoints, progress and the result."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from ase import Atoms

from snnp.errors import InputError, MissingDependencyError, near_matches
from snnp.models.potential import Potential
from snnp.sampling.checkpoint import Checkpoint, EngineState, write_checkpoint
from snnp.sampling.limits import Limits
from snnp.sampling.log import LogWriter, read_log
from snnp.sampling.plots import plot_run
from snnp.sampling.rdf import RadialDistribution
from snnp.sampling.settings import MDSettings
from snnp.sampling.snapshot import Sample, Snapshot, columns, degrees_of_freedom, energy_drift
from snnp.sampling.trajectory import TrajectoryWriter, open_trajectory

__all__ = ["Engine", "MDProgress", "MDResult", "Report", "available_engines", "drive", "find_entry_point", "run_md"]

_EXTRA_OF_ENGINE = {"openmm": "openmm"}
_HOTTEST_K = 1e6
"""Above this no condensed matter or molecule is meant: the atoms are flying apart."""
_RDF_SAMPLES = 40


class Engine(Protocol):
    """What `drive` needs of an engine; it is built at the starting point and knows its step size and ensemble."""

    name: str

    def advance(self, n_steps: int) -> None:
        """Go on by some steps."""

    def snapshot(self) -> Snapshot:
        """The state now; positions, momenta and forces at the same time."""

    def state(self) -> EngineState:
        """What a checkpoint must hold beyond the atoms. May reset caches, so that a resumed run goes on alike."""


@dataclass(frozen=True)
class MDProgress:
    """Where a run stands; handed to the `report` callback at every sample of the log."""

    step: int
    n_steps: int
    ns_per_day: float
    sample: Sample


Report = Callable[[MDProgress], None]


@dataclass(frozen=True)
class MDResult:
    """What a run gave.

    Arguments:
        engine, ensemble: as asked for.
        n_atoms: number of atoms.
        first_step, last_step: steps at which this call began and ended.
        seconds, ns_per_day: wall time of this call's steps, files included, and the speed that follows.
        mean_temperature_k: mean over the samples of the log (resumed runs: of the whole log).
        temperature_std_k: their standard deviation.
        drift_mev_per_atom_per_ns: see `energy_drift`; None unless `nve`.
        mean_pressure_gpa, mean_volume_a3: None where the structure is not periodic.
        final: the atoms at the end, with momenta.
        files: what was written, by name (`trajectory`, `log`, `plot`, `checkpoint`, `topology`).
    """

    engine: str
    ensemble: str
    n_atoms: int
    first_step: int
    last_step: int
    seconds: float
    ns_per_day: float
    mean_temperature_k: float
    temperature_std_k: float
    drift_mev_per_atom_per_ns: float | None
    mean_pressure_gpa: float | None
    mean_volume_a3: float | None
    final: Atoms
    files: dict[str, Path]

    @property
    def steps(self) -> int:
        """Number of steps done by this call."""
        return self.last_step - self.first_step

    def to_json(self) -> dict[str, Any]:
        """The result as JSON values, without the atoms."""
        values = {name: value for name, value in asdict(self).items() if name != "final"}
        return {**values, "steps": self.steps, "files": {name: str(path) for name, path in self.files.items()}}


def run_md(
    model: str | Path | Potential,
    structure: Atoms,
    settings: MDSettings,
    *,
    engine: str = "ase",
    report: Report | None = None,
) -> MDResult:
    """Run molecular dynamics with an engine found by name.

    Arguments:
        model: name, folder or potential.
        structure: the atoms to start from; unchanged.
        settings: what to run.
        engine: `"ase"`, `"openmm"` or `"native"`.
        report: called at every sample.

    Raises:
        InputError: for an unknown engine, a bad structure, or a simulation that blew up.
        MissingDependencyError: the engine's package is not installed.
    """
    result: MDResult = find_entry_point("snnp.md_engines", engine)(model, structure, settings, report)
    return result


def available_engines() -> list[str]:
    """Names of the registered molecular dynamics engines."""
    return sorted({entry.name for entry in entry_points(group="snnp.md_engines")})


def find_entry_point(group: str, name: str) -> Any:
    """Load what a plugin registered as `name` in an entry-point group.

    Raises:
        InputError: nothing of that name is registered.
        MissingDependencyError: it is, but a package it needs is missing.
    """
    found = {entry.name: entry for entry in entry_points(group=group)}
    if name not in found:
        known = ", ".join(sorted(found)) or "none; reinstall snnp"
        raise InputError(f"no engine '{name}'; there are: {known}.{near_matches(name, found)}")
    try:
        return found[name].load()
    except MissingDependencyError:
        raise
    except ImportError as error:
        extra = _EXTRA_OF_ENGINE.get(name)
        cure = f"pip install 'snnp[{extra}]'" if extra else f"install '{error.name or name}'"
        raise MissingDependencyError(f"engine '{name}' cannot be imported ({error}); {cure}.") from error


def drive(
    engine: Engine,
    start: Checkpoint,
    settings: MDSettings,
    report: Report | None = None,
    *,
    least_energy: float | None = None,
) -> MDResult:
    """Run an engine from its starting point to `settings.steps`, writing what the settings ask for.

    Arguments:
        least_energy: eV, see the function of that name; None if nothing is known.

    Raises:
        InputError: the energy is not a number or falls below `least_energy`, or the temperature leaves all sense (the
            run has blown up; see `snnp.sampling.limits`), or an output cannot be written.
    """
    began = time.perf_counter()
    with ExitStack() as stack:
        recorder = _Recorder(start, settings, engine.name, stack, least_energy)
        step = start.step
        if step == 0:
            recorder.record(engine, step)
        while step < settings.steps:
            stop = recorder.next_stop(step)
            _advance(engine, step, stop, settings)
            step = stop
            progress = recorder.record(engine, step)
            if report is not None and progress is not None:
                elapsed = time.perf_counter() - began
                report(
                    MDProgress(step, settings.steps, _ns_per_day(step - start.step, settings.dt_fs, elapsed), progress)
                )
    seconds = time.perf_counter() - began
    return recorder.result(step, seconds)


def _advance(engine: Engine, step: int, stop: int, settings: MDSettings) -> None:
    try:
        engine.advance(stop - step)
    except InputError as error:
        # The structure was good at the start, so bad positions now are the run's doing.
        raise InputError(
            f"the simulation blew up between steps {step} and {stop} ({error}) {_cure(settings)}"
        ) from error


def _cure(settings: MDSettings) -> str:
    return (
        f"Use a time step below {settings.dt_fs:g} fs, relax the structure first, "
        "or a model trained for these conditions."
    )


def _ns_per_day(steps: int, dt_fs: float, seconds: float) -> float:
    return steps * dt_fs * 1e-6 / seconds * 86400.0 if seconds > 0.0 else 0.0


class _Recorder:
    """Writes trajectory, log and checkpoints when they are due, and gathers what the result needs."""

    def __init__(
        self, start: Checkpoint, settings: MDSettings, engine: str, stack: ExitStack, least_energy: float | None
    ) -> None:
        self._start, self._settings, self._engine = start, settings, engine
        self._n_freedom = degrees_of_freedom(len(start.atoms), settings.ensemble)
        self._samples: list[Sample] = []
        self._rdf = RadialDistribution()
        self._limits = Limits.of(start.atoms, settings, self._n_freedom, least_energy)
        self._final = start.atoms
        self._files: dict[str, Path] = {}
        self._log: LogWriter | None = None
        self._trajectory: TrajectoryWriter | None = None
        for path in (settings.trajectory, settings.log, settings.plot, settings.checkpoint):
            if path is not None:
                _make_parent(path)
        if settings.log is not None:
            mark = start.files.get("log")
            self._log = LogWriter(settings.log, mark)
            stack.callback(self._log.close)
            self._files["log"] = settings.log
            if mark is not None:
                self._samples = read_log(settings.log)
        if settings.trajectory is not None:
            interval = settings.trajectory_interval
            next_step = 0 if start.step == 0 else (start.step // interval + 1) * interval
            mark = start.files.get("trajectory")
            self._trajectory = open_trajectory(settings.trajectory, start.atoms, settings, mark, next_step)
            stack.callback(self._trajectory.close)
            self._files |= {"trajectory": settings.trajectory, **self._trajectory.companions}

    def next_stop(self, step: int) -> int:
        """The next step at which something is due."""
        settings = self._settings
        intervals = [settings.log_interval]
        if settings.trajectory is not None:
            intervals.append(settings.trajectory_interval)
        if settings.checkpoint is not None:
            intervals.append(settings.checkpoint_interval)
        return min([settings.steps, *((step // interval + 1) * interval for interval in intervals)])

    def record(self, engine: Engine, step: int) -> Sample | None:
        """Write what is due at this step; returns the sample where one was taken."""
        settings = self._settings
        snapshot = engine.snapshot()
        sample = Sample.of(snapshot, step, settings.dt_fs, self._n_freedom)
        _check_alive(sample, settings)
        self._final = snapshot.atoms
        self._limits.check(sample, settings)
        if self._trajectory is not None and step % settings.trajectory_interval == 0:
            self._trajectory.write(snapshot, step)
        sampled = step % settings.log_interval == 0
        if sampled:
            self._samples.append(sample)
            if self._log is not None:
                self._log.write(sample)
            self._add_to_rdf(snapshot, step)
        if settings.checkpoint is not None and (step % settings.checkpoint_interval == 0 or step == settings.steps):
            self._write_checkpoint(engine, snapshot, step, settings.checkpoint)
        return sample if sampled else None

    def _add_to_rdf(self, snapshot: Snapshot, step: int) -> None:
        # The second half of the run, thinned: the first half may still remember the perfect crystal.
        if self._settings.plot is None or step < self._settings.steps // 2:
            return
        if step - self._rdf.last_step >= self._settings.steps // (2 * _RDF_SAMPLES):
            self._rdf.add(snapshot.atoms, step)

    def _write_checkpoint(self, engine: Engine, snapshot: Snapshot, step: int, path: Path) -> None:
        writers = {"trajectory": self._trajectory, "log": self._log}
        marks = {name: writer.mark() for name, writer in writers.items() if writer is not None}
        state = engine.state()
        write_checkpoint(path, Checkpoint(self._engine, step, snapshot.atoms, state, self._settings.defining(), marks))
        self._files["checkpoint"] = path

    def result(self, step: int, seconds: float) -> MDResult:
        """Make the picture and sum up."""
        settings, final = self._settings, self._final
        if settings.plot is not None:
            plot_run(settings.plot, self._samples, self._rdf, settings, final)
            self._files["plot"] = settings.plot
        column = columns(self._samples)
        return MDResult(
            engine=self._engine,
            ensemble=settings.ensemble,
            n_atoms=len(final),
            first_step=self._start.step,
            last_step=step,
            seconds=seconds,
            ns_per_day=_ns_per_day(step - self._start.step, settings.dt_fs, seconds),
            mean_temperature_k=float(column["temperature_k"].mean()),
            temperature_std_k=float(column["temperature_k"].std()),
            drift_mev_per_atom_per_ns=energy_drift(column, len(final)) if settings.ensemble == "nve" else None,
            mean_pressure_gpa=_mean_or_none(column["pressure_gpa"]),
            mean_volume_a3=_mean_or_none(column["volume_a3"]),
            final=final,
            files=dict(self._files),
        )


def _make_parent(path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot create the folder '{path.parent}' for '{path.name}': {error.strerror}.") from error


def _check_alive(sample: Sample, settings: MDSettings) -> None:
    finite = math.isfinite(sample.total_energy_ev)
    if finite and sample.temperature_k < _HOTTEST_K:
        return
    seen = f"temperature is {sample.temperature_k:.3g} K" if finite else f"energy is {sample.total_energy_ev}"
    raise InputError(f"the simulation blew up: at step {sample.step} the {seen}. {_cure(settings)}")


def _mean_or_none(values: np.ndarray) -> float | None:
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else None
