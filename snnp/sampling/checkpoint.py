"""Checkpoints: everything a run needs to go on as if it had never stopped. NPZ and JSON, nothing is unpickled."""

from __future__ import annotations

import io
import json
import logging
import math
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
from ase import Atoms
from ase.constraints import FixAtoms
from ase.data import chemical_symbols
from pydantic import BeforeValidator, FiniteFloat, TypeAdapter, ValidationError

from snnp.errors import ConfigError, InputError
from snnp.files import write_atomically
from snnp.models.potential import Potential
from snnp.models.store import fingerprint
from snnp.sampling.settings import MDSettings
from snnp.sampling.thermostats import check_box, held_atoms, without_drift
from snnp.units import BOLTZMANN_EV_PER_K

__all__ = ["Checkpoint", "EngineState", "FileMark", "RunRecord", "brings_momenta", "read_checkpoint", "starting_point"]
__all__ += ["write_checkpoint"]

_log = logging.getLogger(__name__)
_FORMAT, _VERSION = "snnp-md-checkpoint", 1
_UNCHANGEABLE = ("ensemble", "thermostat", "fix", "dtype")
"""Settings that a checkpoint's own numbers depend on: degrees of freedom, and which momenta are zero, among them."""


@dataclass(frozen=True)
class EngineState:
    """What an engine needs beyond the atoms to go on exactly: arrays, and values that JSON can hold."""

    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)


class FileMark(NamedTuple):
    """How far a file had been written: bytes, frames or rows, and a checksum of the last bytes, by which to know it."""

    n_bytes: int
    n_frames: int
    tail: str = ""


def _count(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{value!r} is not a number of steps or bytes")
    return value


Count = Annotated[int, BeforeValidator(_count)]


@dataclass(frozen=True)
class RunRecord:
    """What a run was asked for, beside the settings that define it."""

    model: str  # name, empty where it is not known
    model_sha256: str  # `snnp.models.store.fingerprint`
    plan: dict[str, Any]  # `MDSettings.plan()`
    clock: tuple[Count, FiniteFloat]  # a step, and the time in fs then: later ones follow from the time step
    changes: list[dict[str, Any]]  # on resuming: "step", "setting", "before", "now"

    @classmethod
    def empty(cls) -> RunRecord:
        """That of early checkpoints, which held none."""
        return cls("", "", {}, (0, 0.0), [])

    def time_fs(self, step: int, dt_fs: float) -> float:
        return self.clock[1] + (step - self.clock[0]) * dt_fs


@dataclass(frozen=True)
class Checkpoint:
    """The state of a run by an engine after `step` steps."""

    engine: str
    step: int
    atoms: Atoms  # Å, with momenta in ASE's units, and a FixAtoms constraint of held ones
    state: EngineState  # the engine's own variables; empty at the start of a fresh run
    settings: dict[str, Any]  # `MDSettings.defining()` of the run, with the number of its equilibration steps
    files: dict[str, FileMark]  # how far "trajectory" and "log" had been written
    record: RunRecord = field(default_factory=RunRecord.empty)

    @property
    def equilibration(self) -> int:
        """Number of the run's first steps that are equilibration."""
        return self.settings.get("equilibrate") or 0


def starting_point(
    structure: Atoms, settings: MDSettings, engine: str, potential: Potential | None = None
) -> Checkpoint:
    """Where a run begins: the checkpoint if `settings.resume`, else the structure with initial velocities.

    Velocities are drawn from the Maxwell-Boltzmann distribution at `settings.temperature_k`, without a total momentum,
    unless the structure brings momenta of its own and no `settings.new_velocities` are asked for.

    Raises `InputError` for a structure that is empty or constrained, or a checkpoint that is missing, damaged, or of
    another structure, model (where a `potential` is given) or engine; `ConfigError` for settings other than the
    checkpoint's, or `npt` without a periodic cell.
    """
    if len(structure) == 0:
        raise InputError("the structure holds no atoms; molecular dynamics needs at least one.")
    held = held_atoms(structure, settings.fix)
    check_box(structure, settings, int(held.sum()))
    model = ("", "") if potential is None else (potential.name, fingerprint(potential))
    record = RunRecord(*model, settings.plan(), (0, 0.0), [])
    if settings.resume:
        assert settings.checkpoint is not None
        before = read_checkpoint(settings.checkpoint)
        _check_same_run(before, structure, settings, engine)
        _check_same_model(before, record, settings)
        checkpoint = _continued(before, record, settings)
        if (wrong := np.flatnonzero(held_atoms(checkpoint.atoms, None) != held)).size:
            was, now = ("free", "fixed") if held[wrong[0]] else ("fixed", "free")
            raise InputError(
                f"atom {wrong[0]} is {was} in the checkpoint '{settings.checkpoint}' but {now} in the structure; "
                "resume with the same structure, constraints included."
            )
        return checkpoint
    atoms = Atoms(structure.numbers, structure.positions, cell=structure.cell, pbc=structure.pbc)
    atoms.set_masses(structure.get_masses())
    atoms.set_constraint(FixAtoms(mask=held) if held.any() else None)
    brought = brings_momenta(structure) and not settings.new_velocities
    # Those of held atoms stay zero.
    atoms.set_momenta(structure.get_momenta() if brought else _thermal_momenta(atoms, settings))
    defining = {**settings.defining(), "equilibrate": settings.equilibration(drawn=not brought)}
    return Checkpoint(engine, 0, atoms, EngineState(), defining, {}, record)


def brings_momenta(structure: Atoms) -> bool:
    """Whether a structure holds momenta that are not all zero."""
    return bool(structure.has("momenta") and np.any(structure.get_momenta()))


def _thermal_momenta(atoms: Atoms, settings: MDSettings) -> np.ndarray:
    """[N, 3] momenta in ASE's units, sqrt(amu eV); without a total momentum where there is more than one atom."""
    masses = atoms.get_masses()
    normal = np.random.default_rng(settings.seed).standard_normal((len(masses), 3))
    momenta = normal * np.sqrt(masses * BOLTZMANN_EV_PER_K * settings.temperature_k)[:, None]
    return without_drift(momenta, masses) if len(masses) > 1 and not atoms.constraints else momenta


@dataclass(frozen=True)
class _Header:
    """What a checkpoint file holds as JSON, its format aside."""

    engine: str
    step: Count
    settings: dict[str, Any]
    values: dict[str, Any]
    files: dict[str, tuple[Count, Count]]
    tails: dict[str, str] = field(default_factory=dict)
    record: RunRecord = field(default_factory=RunRecord.empty)


def write_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint; a kill leaves the old one or the new one, never a part."""
    atoms = checkpoint.atoms
    files = {name: (mark.n_bytes, mark.n_frames) for name, mark in checkpoint.files.items()}
    tails = {name: mark.tail for name, mark in checkpoint.files.items()}
    values = checkpoint.state.values
    header = _Header(checkpoint.engine, checkpoint.step, checkpoint.settings, values, files, tails, checkpoint.record)
    content = io.BytesIO()
    np.savez(
        content,
        allow_pickle=False,
        header=np.array(json.dumps({"format": _FORMAT, "format_version": _VERSION, **asdict(header)})),
        numbers=atoms.numbers,
        masses=atoms.get_masses(),
        positions=atoms.positions,
        momenta=atoms.get_momenta(),
        cell=atoms.cell.array,
        pbc=atoms.pbc,
        held=held_atoms(atoms, None),
        **{f"state.{name}": array for name, array in checkpoint.state.arrays.items()},
    )
    write_atomically(path, content.getvalue())


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint; `InputError` if it is missing, damaged, none, newer, or holds numbers that are not finite."""
    if not path.is_file():
        raise InputError(
            f"no checkpoint '{path}' to resume from; run once without resume (with --overwrite, where files of a run "
            "that was killed before its first are in the way), or name the right file."
        )
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        stored = json.loads(str(arrays.pop("header")))
        if stored["format"] == _FORMAT and stored["format_version"] <= _VERSION:
            header, atoms = TypeAdapter(_Header).validate_python(stored), _read_atoms(arrays)
            own = {name.removeprefix("state."): array for name, array in arrays.items() if name.startswith("state.")}
            state = EngineState(own, header.values)
            _check_state(state, len(atoms))
            settings = {**header.settings, "dt_fs": float(header.settings["dt_fs"])}
            files = {name: FileMark(*written, header.tails.get(name, "")) for name, written in header.files.items()}
            found = Checkpoint(header.engine, header.step, atoms, state, settings, files, header.record)
            _count(found.equilibration)
            return found
    except Exception as error:  # numpy and zipfile raise whatever they trip over in damaged archives
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else " ".join(str(error).split())
        raise InputError(
            f"'{path}' is not a readable checkpoint ({reason}); put a good one back, or start again without resume."
        ) from error
    raise InputError(
        f"'{path}' is {stored['format']} version {stored['format_version']}, expected {_FORMAT} "
        f"up to version {_VERSION}; update snnp or name the right file."
    )


def _finite(name: str, array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    if array.shape != shape or array.dtype.kind not in "fi":
        raise ValueError(f"{name} has shape {array.shape} and type {array.dtype}, expected numbers of shape {shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} holds NaN or infinity: the run had blown up when it was written")
    return array


def _read_atoms(arrays: dict[str, np.ndarray]) -> Atoms:
    numbers = arrays["numbers"]
    n = len(numbers)
    if n == 0 or numbers.dtype.kind not in "iu" or numbers.min() < 1 or numbers.max() >= len(chemical_symbols):
        raise ValueError("numbers are not atomic numbers")
    shapes = {"positions": (n, 3), "momenta": (n, 3), "masses": (n,), "cell": (3, 3)}
    values = {name: _finite(name, arrays[name], shape) for name, shape in shapes.items()}
    if values["masses"].min() <= 0.0 or arrays["pbc"].shape != (3,):
        raise ValueError("masses are not positive, or periodicity is not of three directions")
    held = arrays.get("held", np.zeros(n, dtype=bool))  # early versions held none
    if held.shape != (n,) or held.dtype != bool:
        raise ValueError("held does not say of each atom whether it stays where it is")
    atoms = Atoms(numbers, values["positions"], cell=values["cell"], pbc=arrays["pbc"], masses=values["masses"])
    atoms.set_constraint(FixAtoms(mask=held) if held.any() else None)
    atoms.set_momenta(values["momenta"])
    return atoms


def _check_state(state: EngineState, n_atoms: int) -> None:
    """What the engines take over unseen: arrays of the atoms or of the cell, numbers, and random numbers."""
    shapes = {"positions": (n_atoms, 3), "velocities": (n_atoms, 3), "rotation": (3, 3), "steps": (3, 3), "box": (3, 3)}
    for name, array in state.arrays.items():
        _finite(name, array, shapes.get(name, array.shape))
    for name, value in state.values.items():
        if name == "rng":
            np.random.default_rng().bit_generator.state = value
        elif isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{name} is {value}: the run had blown up when it was written")


def _check_same_run(checkpoint: Checkpoint, structure: Atoms, settings: MDSettings, engine: str) -> None:
    where, before, same = f"the checkpoint '{settings.checkpoint}'", checkpoint.atoms, "resume with the same structure"
    if checkpoint.engine != engine:
        raise InputError(
            f"{where} was written by engine '{checkpoint.engine}', not '{engine}'; "
            f"resume with engine '{checkpoint.engine}'."
        )
    if not np.array_equal(before.numbers, structure.numbers):
        order = " in another order" if sorted(before.numbers) == sorted(structure.numbers) else ""
        formula, now = before.get_chemical_formula(), structure.get_chemical_formula()
        raise InputError(f"{where} holds {formula}, the structure is {now}{order}; {same}.")
    if not np.array_equal(before.pbc, structure.pbc):
        pbc, now = before.pbc.tolist(), structure.pbc.tolist()
        raise InputError(f"{where} is periodic along {pbc}, the structure along {now}; {same}.")
    if not np.allclose(before.get_masses(), structure.get_masses(), rtol=1e-6):
        raise InputError(f"{where} has other masses than the structure; {same}.")
    if settings.ensemble != "npt" and not np.allclose(before.cell.array, structure.cell.array, rtol=0.0, atol=1e-6):
        was, now = (", ".join(f"{value:.4f}" for value in each.cell.cellpar()) for each in (before, structure))
        raise InputError(f"{where} has the cell [{was}] (Å, degrees), the structure [{now}] (Å, degrees); {same}.")
    if checkpoint.step > settings.steps:
        raise ConfigError(
            f"{where} is at step {checkpoint.step}, beyond the last step {settings.steps} that is asked for; "
            "steps counts from the very beginning: ask for more."
        )


def _check_same_model(checkpoint: Checkpoint, now: RunRecord, settings: MDSettings) -> None:
    before = checkpoint.record
    if not now.model_sha256:
        return
    if not before.model_sha256:
        _log.warning("'%s' does not say which model it was run with; see that it is the same.", settings.checkpoint)
        return
    same_dtype = checkpoint.settings.get("dtype") == settings.dtype  # else the settings say what differs
    if same_dtype and before.model_sha256 != now.model_sha256:
        then, instead = (
            f"model '{each.model or 'without a name'}' (sha256 {each.model_sha256[:12]}…)" for each in (before, now)
        )
        raise InputError(
            f"the checkpoint '{settings.checkpoint}' was run with {then}, not with {instead}; "
            "resume with that model, or start a new run."
        )


def _continued(checkpoint: Checkpoint, now: RunRecord, settings: MDSettings) -> Checkpoint:
    """The checkpoint under the settings of now; changes are refused, or recorded where they are asked for."""
    changes, defining = [], settings.defining()
    if defining["equilibrate"] is None:
        defining["equilibrate"] = checkpoint.equilibration
    # What early versions did not store they did as the defaults say, but without equilibration.
    known = {"equilibrate": 0, **checkpoint.record.plan, **checkpoint.settings}
    for name, value in defining.items():
        value = json.loads(json.dumps(value))
        before = known.get(name, MDSettings.model_fields[name].default)
        if before == value:
            continue
        if not settings.accept_changes or name in _UNCHANGEABLE:
            cure = "keep it, or start a new run"
            cure += "" if name in _UNCHANGEABLE else ", or ask for the change with accept_changes (--accept-changes)"
            raise ConfigError(f"{name} is {value!r} but the run to resume had {before!r}; {cure}.")
        changes.append({"step": checkpoint.step, "setting": name, "before": before, "now": value})
    record = replace(checkpoint.record, model=now.model, model_sha256=now.model_sha256)
    files = dict(checkpoint.files)
    for name in ("trajectory", "log"):
        before, path = record.plan.get(name), getattr(settings, name)
        if settings.accept_changes and before is not None and path is not None and before != path.name:
            files.pop(name, None)  # the rest goes into a new file
    if changes:
        dt_before = checkpoint.settings.get("dt_fs", settings.dt_fs)
        clock = (checkpoint.step, record.time_fs(checkpoint.step, float(dt_before)))
        record = replace(record, clock=clock, changes=[*record.changes, *changes])
        changed = {change["setting"] for change in changes}
        if "trajectory" in files and settings.binary and changed & {"dt_fs", "trajectory_interval"}:
            raise ConfigError(
                f"'{settings.trajectory}' holds one time step and one interval, which are to change; give the rest of "
                "the run another trajectory and name the checkpoint (--trajectory, --checkpoint)."
            )
    return replace(checkpoint, settings=defining, files=files, record=record)
