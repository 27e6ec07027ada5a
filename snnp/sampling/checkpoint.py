"""Checkpoints: everything a run needs to go on as if it had never stopped. NPZ and JSON, nothing is unpickled."""

from __future__ import annotations

import io
import json
import zipfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms

from snnp.errors import ConfigError, InputError
from snnp.models.io import write_atomically
from snnp.sampling.settings import MDSettings
from snnp.units import BOLTZMANN_EV_PER_K

__all__ = ["Checkpoint", "EngineState", "FileMark", "read_checkpoint", "starting_point", "write_checkpoint"]

_FORMAT = "snnp-md-checkpoint"
_VERSION = 1
# What numpy and zipfile raise for damaged archives, encrypted and oddly packed ones, and arrays larger than memory.
_MISFITS = (
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)


@dataclass(frozen=True)
class EngineState:
    """What an engine needs beyond the atoms to go on exactly: arrays, and values that JSON can hold."""

    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class FileMark:
    """How far a file had been written: its size in bytes and its number of frames or rows."""

    n_bytes: int
    n_frames: int


@dataclass(frozen=True)
class Checkpoint:
    """The state of a run after `step` steps.

    Arguments:
        engine: name of the engine that wrote it.
        step: number of steps done.
        atoms: positions (Å), momenta (ASE's units), cell (Å), periodicity.
        state: the engine's own variables; empty at the start of a fresh run.
        settings: `MDSettings.defining()` of the run.
        files: how far the trajectory and the log had been written, by `"trajectory"` and `"log"`.
    """

    engine: str
    step: int
    atoms: Atoms
    state: EngineState
    settings: dict[str, Any]
    files: dict[str, FileMark]


def starting_point(structure: Atoms, settings: MDSettings, engine: str) -> Checkpoint:
    """Where a run begins: the checkpoint if `settings.resume`, else the structure with initial velocities.

    Velocities are drawn from the Maxwell-Boltzmann distribution at `settings.temperature_k`, and the total momentum is
    taken out, unless the structure brings momenta of its own.

    Raises:
        InputError: the structure is empty or constrained, or the checkpoint is missing, damaged, or of another
            structure or engine.
        ConfigError: the settings are not those the checkpoint was written with, or `npt` without a periodic cell.
    """
    if len(structure) == 0:
        raise InputError("the structure holds no atoms; molecular dynamics needs at least one.")
    if structure.constraints:
        kinds = ", ".join(type(constraint).__name__ for constraint in structure.constraints)
        raise InputError(
            f"the structure has constraints ({kinds}), which molecular dynamics here does not keep; "
            "remove them, or use the ASE calculator in a script of your own."
        )
    if settings.ensemble == "npt" and not structure.pbc.all():
        raise ConfigError(
            f"ensemble 'npt' needs a fully periodic structure, got pbc={structure.pbc.tolist()}; use 'nvt'."
        )
    if settings.resume:
        assert settings.checkpoint is not None
        checkpoint = read_checkpoint(settings.checkpoint)
        _check_same_run(checkpoint, structure, settings, engine)
        return checkpoint
    atoms = Atoms(structure.numbers, structure.positions, cell=structure.cell, pbc=structure.pbc)
    atoms.set_masses(structure.get_masses())
    brought = structure.has("momenta") and np.any(structure.get_momenta())
    atoms.set_momenta(structure.get_momenta() if brought else _thermal_momenta(atoms.get_masses(), settings))
    return Checkpoint(engine, 0, atoms, EngineState(), settings.defining(), {})


def _thermal_momenta(masses: np.ndarray, settings: MDSettings) -> np.ndarray:
    """[N, 3] momenta in ASE's units, sqrt(amu eV); without a total momentum where there is more than one atom."""
    normal = np.random.default_rng(settings.seed).standard_normal((len(masses), 3))
    momenta = normal * np.sqrt(masses * BOLTZMANN_EV_PER_K * settings.temperature_k)[:, None]
    if len(masses) > 1:
        momenta -= masses[:, None] / masses.sum() * momenta.sum(axis=0)
    return momenta


def write_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint; a kill leaves the old one or the new one, never a part."""
    atoms = checkpoint.atoms
    header = {
        "format": _FORMAT,
        "format_version": _VERSION,
        "engine": checkpoint.engine,
        "step": checkpoint.step,
        "settings": checkpoint.settings,
        "values": checkpoint.state.values,
        "files": {name: [mark.n_bytes, mark.n_frames] for name, mark in checkpoint.files.items()},
    }
    arrays = {f"state.{name}": array for name, array in checkpoint.state.arrays.items()}
    content = io.BytesIO()
    np.savez(
        content,
        allow_pickle=False,
        header=np.array(json.dumps(header)),
        numbers=atoms.numbers,
        masses=atoms.get_masses(),
        positions=atoms.positions,
        momenta=atoms.get_momenta(),
        cell=atoms.cell.array,
        pbc=atoms.pbc,
        **arrays,
    )
    write_atomically(path, content.getvalue())


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        InputError: the file is missing, damaged, not a checkpoint, or of a newer version.
    """
    if not path.is_file():
        raise InputError(f"no checkpoint '{path}' to resume from; run once without resume, or name the right file.")
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        header = json.loads(str(arrays.pop("header")))
        if header["format"] != _FORMAT or header["format_version"] > _VERSION:
            raise InputError(
                f"'{path}' is {header['format']} version {header['format_version']}, expected {_FORMAT} "
                f"up to version {_VERSION}; update snnp or name the right file."
            )
        atoms = Atoms(numbers=arrays["numbers"], positions=arrays["positions"], cell=arrays["cell"], pbc=arrays["pbc"])
        atoms.set_masses(arrays["masses"])
        atoms.set_momenta(arrays["momenta"])
        own = {name.removeprefix("state."): array for name, array in arrays.items() if name.startswith("state.")}
        return Checkpoint(
            engine=header["engine"],
            step=header["step"],
            atoms=atoms,
            state=EngineState(own, header["values"]),
            settings=header["settings"],
            files={name: FileMark(*mark) for name, mark in header["files"].items()},
        )
    except InputError:
        raise
    except (*_MISFITS, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"'{path}' is not a readable checkpoint ({error}); start again without resume.") from error


def _check_same_run(checkpoint: Checkpoint, structure: Atoms, settings: MDSettings, engine: str) -> None:
    if checkpoint.engine != engine:
        raise InputError(
            f"the checkpoint '{settings.checkpoint}' was written by engine '{checkpoint.engine}', not '{engine}'; "
            f"resume with engine '{checkpoint.engine}'."
        )
    if not np.array_equal(checkpoint.atoms.numbers, structure.numbers):
        raise InputError(
            f"the checkpoint '{settings.checkpoint}' holds {checkpoint.atoms.get_chemical_formula()}, the structure is "
            f"{structure.get_chemical_formula()}; resume with the same structure."
        )
    for name, now in settings.defining().items():
        before = checkpoint.settings.get(name)
        if before != now:
            raise ConfigError(f"{name} is {now!r} but the run to resume had {before!r}; keep it, or start a new run.")
