"""Engines by name, and what they share: the loop of a run, its files, checkpoints, progress and result.

An engine is a plugin's function `run_md(model, structure, settings, report)`, registered as `snnp.md_engines`; it calls
`run_engine`. Relaxation is found alike.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from ase import Atoms

from snnp.errors import InputError, MissingDependencyError, near_matches
from snnp.files import hold, refuse_existing
from snnp.hub import load_model
from snnp.models.potential import Potential
from snnp.process import Interrupted, stop_requests
from snnp.sampling.checkpoint import Checkpoint, EngineState, FileMark, starting_point, write_checkpoint
from snnp.sampling.plots import RadialDistribution, plot_run
from snnp.sampling.settings import MDSettings
from snnp.sampling.snapshot import Limits, Sample, Snapshot, columns, cure, energy_drift, least_energy
from snnp.sampling.thermostats import degrees_of_freedom
from snnp.sampling.trajectory import LogWriter, TrajectoryWriter, check_mark, open_trajectory, read_log, topology_beside

__all__ = ["Engine", "MDProgress", "MDResult", "ModelLike", "RelaxProgress", "RelaxResult", "Report"]
__all__ += ["drive", "find_entry_point", "output_files", "relax", "run_engine", "run_md"]

_RDF_SAMPLES = 40
_PATIENCE = 2_000_000  # steps times atoms, at most a hundred steps, after which a run looks whether it is asked to stop
_FEWEST_SAMPLES = 10  # for a standard deviation: that of two or three says nothing


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


ModelLike = str | Path | Potential
"""Name, folder or potential."""
Report = Callable[[MDProgress], None]


@dataclass(frozen=True)
class MDResult:
    """What a run gave: from `first_step` to `last_step` in this call, in `seconds`, files included.

    Means are over the samples of the log, also that before resuming, but for the `equilibration`, its first steps: no
    temperature under a ramp, no deviation of fewer than ten samples, a drift (see `energy_drift`) in `nve` alone,
    pressure and volume where the structure is periodic. `final` are the atoms at the end, with momenta; `files` what
    was written, by name (`trajectory`, `log`, `plot`, `checkpoint`, `topology`).
    """

    engine: str
    ensemble: str
    n_atoms: int
    first_step: int
    last_step: int
    seconds: float
    ns_per_day: float | None
    equilibration: int
    mean_temperature_k: float | None
    temperature_std_k: float | None
    drift_mev_per_atom_per_ns: float | None
    mean_pressure_gpa: float | None
    mean_volume_a3: float | None
    final: Atoms
    files: dict[str, Path]
    stopped: str = ""  # by what the run watches, if it ended before its last step

    @property
    def steps(self) -> int:
        return self.last_step - self.first_step

    def to_json(self) -> dict[str, Any]:
        """The result as JSON values, without the atoms."""
        values = {name: value for name, value in asdict(self).items() if name != "final"}
        return {**values, "steps": self.steps, "files": {name: str(path) for name, path in self.files.items()}}


@dataclass(frozen=True)
class RelaxProgress:
    """Where a relaxation stands: step, energy (eV) and largest force on an atom (eV/Å)."""

    step: int
    energy_ev: float
    max_force_ev_per_angstrom: float


@dataclass(frozen=True)
class RelaxResult:
    """What a relaxation gave; all but `initial_energy_ev` is at the end.

    `converged` says whether all forces (and the stress, if the cell was relaxed) fell below the threshold;
    `max_stress_gpa` is the largest component beyond the pressure on the cell, None where not fully periodic.
    """

    atoms: Atoms
    converged: bool
    steps: int
    energy_ev: float
    initial_energy_ev: float
    max_force_ev_per_angstrom: float
    max_stress_gpa: float | None
    pressure_gpa: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """The result as JSON values, with the cell and the volume in place of the atoms."""
        values, atoms = {name: value for name, value in vars(self).items() if name != "atoms"}, self.atoms
        cell = atoms.cell.array.tolist() if atoms.pbc.any() else None
        volume = float(atoms.get_volume()) if atoms.pbc.all() else None
        return {**values, "n_atoms": len(atoms), "cell_angstrom": cell, "volume_a3": volume}


def run_md(
    model: ModelLike, structure: Atoms, settings: MDSettings, *, engine: str = "ase", report: Report | None = None
) -> MDResult:
    """Run molecular dynamics from a structure, which stays as it is; `report` is called at every sample.

    `engine` is "ase", "openmm", "native" or "lammps". Raises `InputError` for an unknown engine, a bad structure, or a
    simulation that blew up, `MissingDependencyError` where the engine's package is not installed.
    """
    if settings.ranks is not None and engine != "lammps":
        raise InputError(f"engine '{engine}' is one process; ranks ({settings.ranks}) are for engine 'lammps'.")
    result: MDResult = find_entry_point("snnp.md_engines", engine)(model, structure, settings, report)
    return result


def relax(
    model: ModelLike,
    atoms: Atoms,
    *,
    fmax: float = 0.01,
    cell: bool = False,
    steps: int = 500,
    pressure_gpa: float = 0.0,
    report: Callable[[RelaxProgress], None] | None = None,
) -> RelaxResult:
    """Relax positions, and the cell if asked, with FIRE in float64, in at most so many steps; `atoms` stay as they are.

    Arguments:
        fmax: eV/Å, largest force at which the structure counts as relaxed.
        pressure_gpa: hydrostatic pressure on the cell; the enthalpy E + P V takes the place of the energy.
        report: called after every step.

    Raises `InputError` for a bad structure or one that collapses, an `fmax` that is not positive, `cell` without full
    periodicity, or a pressure that is not finite or without `cell`.
    """
    relaxer = find_entry_point("snnp.relaxers", "ase")
    result: RelaxResult = relaxer(model, atoms, fmax, cell, steps, report, pressure_gpa)
    return result


def find_entry_point(group: str, name: str) -> Any:
    """What a plugin registered as `name`; `InputError` if none did, `MissingDependencyError` if it lacks a package."""
    found = {entry.name: entry for entry in entry_points(group=group)}
    if name not in found:
        known = ", ".join(sorted(found)) or "none; reinstall snnp"
        raise InputError(f"no engine '{name}'; there are: {known}.{near_matches(name, found)}")
    try:
        return found[name].load()
    except MissingDependencyError:
        raise
    except ImportError as error:
        cure = "pip install 'snnp[openmm]'" if name == "openmm" else f"install '{error.name or name}'"
        raise MissingDependencyError(f"engine '{name}' cannot be imported ({error}); {cure}.") from error


def run_engine(
    make: Callable[[Potential, Checkpoint, MDSettings], Engine],
    name: str,
    model: ModelLike,
    structure: Atoms,
    settings: MDSettings,
    report: Report | None = None,
    *,
    device: str | None = None,
) -> MDResult:
    """What `run_md` of every engine does: load the model, find the starting point, make the engine, drive it.

    `make` gives the engine of that `name` for a potential in the precision and on the device of the settings; `device`
    is where the model runs if they do not say. Raises what `snnp.hub.load_model`, `starting_point` and `drive` raise.
    """
    potential = load_model(model, dtype=settings.dtype, device=settings.device or device)
    start = starting_point(structure, settings, name, potential)
    engine = make(potential, start, settings)
    if settings.watch is not None:
        from snnp.sampling.watch import watched

        engine = watched(engine, potential, settings, start.step)
    return drive(engine, start, settings, report, least_energy=least_energy(potential, start.atoms))


def drive(
    engine: Engine,
    start: Checkpoint,
    settings: MDSettings,
    report: Report | None = None,
    *,
    least_energy: float | None = None,
) -> MDResult:
    """Run an engine from its starting point to `settings.steps`, writing what the settings ask for.

    Raises `InputError` where the run blows up (see `Limits`; `least_energy`: eV of all atoms, None if nothing is
    known), or an output is held by another run, exists and must not be replaced, or is not that of the run to resume;
    `OSError`, which names the output that cannot be written; `Interrupted` at Ctrl-C or SIGTERM, after a checkpoint.
    """
    began = time.perf_counter()
    with ExitStack() as stack:
        recorder = _Recorder(start, settings, engine.name, stack, least_energy)
        request = stack.enter_context(stop_requests())
        step, patience = start.step, max(1, min(100, _PATIENCE // len(start.atoms)))
        if not settings.resume:
            recorder.record(engine, step)
        while step < settings.steps:
            stop = recorder.next_stop(step)
            while step < stop and request.signum is None:
                reached = min(stop, step + patience)
                try:
                    engine.advance(reached - step)
                except InputError as error:
                    # The structure was good at the start, so bad positions now are the run's doing.
                    raise InputError(
                        f"the simulation blew up between steps {step} and {reached} ({error}) "
                        f"{cure(start.atoms, settings)}"
                    ) from error
                step = reached
            progress = recorder.record(engine, step) if step == stop else None
            if request.signum is not None and step < settings.steps:
                raise Interrupted(request.signum, recorder.save(engine, step))
            if report is not None and progress is not None:
                elapsed = time.perf_counter() - began
                speed = _ns_per_day(step - start.step, settings.dt_fs, elapsed) or 0.0
                report(MDProgress(step, settings.steps, speed, progress))
            if stopped := getattr(engine, "over", ""):
                recorder.save(engine, step)
                return replace(recorder.result(step, time.perf_counter() - began), stopped=stopped)
        return recorder.result(step, time.perf_counter() - began)


def _ns_per_day(steps: int, dt_fs: float, seconds: float) -> float | None:
    return steps * dt_fs * 1e-6 / seconds * 86400.0 if steps > 0 and seconds > 0.0 else None


class _Recorder:
    """Writes trajectory, log and checkpoints when they are due, and gathers what the result needs."""

    def __init__(
        self, start: Checkpoint, settings: MDSettings, engine: str, stack: ExitStack, least_energy: float | None
    ) -> None:
        self._start, self._settings, self._engine = start, settings, engine
        self._n_freedom, self._rdf = degrees_of_freedom(start.atoms, settings), RadialDistribution()
        self._samples: list[Sample] = []
        self._limits = Limits(start.atoms, settings, self._n_freedom, least_energy)
        self._final = start.atoms
        self._saved: int | None = None  # the step of the last checkpoint
        self._files, marks = output_files(settings), start.files
        for path in self._files.values():
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                reason = f"cannot create the folder '{path.parent}' for '{path.name}': {error.strerror}."
                raise InputError(reason) from error
        stack.enter_context(hold(self._files.values()))
        if not settings.overwrite:
            own = _own_files(self._files, start) if settings.resume else set()
            new = [path for name, path in self._files.items() if name not in own]
            refuse_existing(new, "choose another name, or ask for overwriting")
        for name in marks.keys() & self._files.keys():
            check_mark(self._files[name], marks[name])  # of all, before any is cut
        self._log: LogWriter | None = None
        if settings.log is not None:
            self._log = LogWriter(settings.log, marks.get("log"), watched=settings.watch is not None)
            stack.callback(self._log.close)
            self._samples = read_log(settings.log) if "log" in marks else []
        self._trajectory: TrajectoryWriter | None = None
        if settings.trajectory is not None:
            mark, interval = marks.get("trajectory"), settings.trajectory_interval
            next_step = (start.step // interval + 1) * interval if settings.resume else 0
            self._trajectory = open_trajectory(settings.trajectory, start.atoms, settings, mark, next_step)
            stack.callback(self._trajectory.close)

    def next_stop(self, step: int) -> int:
        settings = self._settings
        written = [name for name in ("trajectory", "checkpoint") if getattr(settings, name) is not None]
        intervals = [getattr(settings, f"{name}_interval") for name in ("log", *written)]
        return min([settings.steps, *((step // interval + 1) * interval for interval in intervals)])

    def record(self, engine: Engine, step: int) -> Sample | None:
        """Write what is due at this step; returns the sample where one was taken."""
        settings = self._settings
        snapshot = engine.snapshot()
        time_fs = self._start.record.time_fs(step, settings.dt_fs)
        sample = Sample.of(snapshot, step, time_fs, self._n_freedom)
        self._limits.check(sample)
        self._final = snapshot.atoms
        if self._trajectory is not None and step % settings.trajectory_interval == 0:
            self._trajectory.write(snapshot, step, time_fs)
        sampled = step % settings.log_interval == 0
        if sampled:
            self._samples.append(sample)
            if self._log is not None:
                self._log.write(sample)
            # The second half of the run, thinned: the first half may still remember the perfect crystal.
            late = step >= max(settings.steps // 2, self._start.equilibration)
            if settings.plot and late and step - self._rdf.last_step >= settings.steps // (2 * _RDF_SAMPLES):
                self._rdf.add(snapshot.atoms, step)
        if settings.checkpoint is not None and (step % settings.checkpoint_interval == 0 or step == settings.steps):
            self._write_checkpoint(engine, snapshot, step, settings.checkpoint)
        return sample if sampled else None

    def save(self, engine: Engine, step: int) -> str:
        """Write a checkpoint although none is due; says how far the run is, and from where it can go on."""
        path, where = self._settings.checkpoint, f"stopped at step {step} of {self._settings.steps}"
        if path is None:
            return f"{where}, without a checkpoint to go on from"
        if self._saved != step:
            self._write_checkpoint(engine, engine.snapshot(), step, path)
        return f"{where}; the state is in '{path}'"

    def _write_checkpoint(self, engine: Engine, snapshot: Snapshot, step: int, path: Path) -> None:
        marks, record = self._marks(), replace(self._start.record, plan=self._settings.plan())
        state, settings = engine.state(), self._start.settings
        write_checkpoint(path, Checkpoint(self._engine, step, snapshot.atoms, state, settings, marks, record))
        self._saved = step

    def _marks(self) -> dict[str, FileMark]:
        writers = {"trajectory": self._trajectory, "log": self._log}
        return {name: writer.mark() for name, writer in writers.items() if writer is not None}

    def result(self, step: int, seconds: float) -> MDResult:
        settings, final = self._settings, self._final
        self._marks()  # a full disk may show only when files are brought there
        if settings.plot is not None:
            plot_run(settings.plot, self._samples, self._rdf, settings, final, self._start.equilibration)
        column = columns([sample for sample in self._samples if sample.step >= self._start.equilibration])
        temperature = column["temperature_k"] if settings.temperature_end_k is None else column["temperature_k"][:0]
        return MDResult(
            engine=self._engine,
            ensemble=settings.ensemble,
            n_atoms=len(final),
            first_step=self._start.step,
            last_step=step,
            seconds=seconds,
            ns_per_day=_ns_per_day(step - self._start.step, settings.dt_fs, seconds),
            equilibration=self._start.equilibration,
            mean_temperature_k=_mean_or_none(temperature),
            temperature_std_k=float(temperature.std()) if len(temperature) >= _FEWEST_SAMPLES else None,
            drift_mev_per_atom_per_ns=energy_drift(column, len(final)) if settings.ensemble == "nve" else None,
            mean_pressure_gpa=_mean_or_none(column["pressure_gpa"]),
            mean_volume_a3=_mean_or_none(column["volume_a3"]),
            final=final,
            files={name: path for name, path in self._files.items() if name != "harvest" or path.is_file()},
        )


def output_files(settings: MDSettings) -> dict[str, Path]:
    """The files that a run writes, by name, that of the topology beside a binary trajectory among them."""
    files = settings.outputs
    return files | {"topology": topology_beside(files["trajectory"])} if settings.binary else files


def _own_files(outputs: dict[str, Path], start: Checkpoint) -> set[str]:
    """Names of those outputs that a resumed run has written before."""
    own = {*start.files, "checkpoint", "harvest", *(["topology"] if "trajectory" in start.files else [])}
    plot = outputs.get("plot")
    return own | ({"plot"} if plot is not None and start.record.plan.get("plot", plot.name) == plot.name else set())


def _mean_or_none(values: np.ndarray) -> float | None:
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else None
