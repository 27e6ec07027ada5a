"""An eye on a simulation's uncertainty, whatever the engine: a column of the log, a colour of the atoms, and a limit.

A watched engine is the engine itself; where the run looks at it (for a row of the log, a frame, a checkpoint), the
uncertainty of each atom is found by one more evaluation, so the price falls with `log_interval`.
"""

from __future__ import annotations

import io
import logging
from dataclasses import replace
from pathlib import Path

from ase import Atoms
from ase.io import read
from ase.io.extxyz import write_extxyz

from snnp.errors import InputError
from snnp.files import write_atomically
from snnp.models.potential import Potential
from snnp.sampling.checkpoint import EngineState
from snnp.sampling.run import Engine
from snnp.sampling.settings import MDSettings
from snnp.sampling.snapshot import Snapshot
from snnp.uncertainty import Measure, measure_for

__all__ = ["WatchedEngine", "watched"]

logger = logging.getLogger(__name__)

_MOST_HARVESTED = 500  # of one run: more are alike, and selection takes its time


class WatchedEngine:
    """An engine whose snapshots bear the uncertainty of their atoms, and which ends or harvests beyond a limit.

    Attributes:
        over: what was seen beyond the limit, where that ends the run; empty while nothing was.
    """

    def __init__(self, engine: Engine, measure: Measure, settings: MDSettings, step: int) -> None:
        self.name, self._engine, self._measure, self._settings = engine.name, engine, measure, settings
        self._step, self._known, self.over = step, (-1, 0.0), ""
        self._began = step
        self._harvested: list[Atoms] = _harvest_before(settings.harvest, step) if settings.resume else []

    def advance(self, n_steps: int) -> None:
        """As the engine."""
        self._engine.advance(n_steps)
        self._step += n_steps

    def state(self) -> EngineState:
        """As the engine."""
        return self._engine.state()

    def snapshot(self) -> Snapshot:
        """As the engine's, with an array `uncertainty` [N] of the atoms, and the largest as its own."""
        found = self._engine.snapshot()
        doubt = self._measure(found.atoms)
        found.atoms.arrays["uncertainty"] = doubt.atoms
        seen = doubt.structure
        if self._known[0] != self._step:
            self._known = self._step, seen
            self._look(found, seen)
        return replace(found, uncertainty=seen)

    def _look(self, found: Snapshot, seen: float) -> None:
        limit, settings = self._settings.limit, self._settings
        if limit is None or not seen > limit:  # NaN is no reason either: the run's own checks name it
            return
        said = f"{self._measure.name} {seen:.4g} {self._measure.unit}".rstrip() + f", more than {limit:g}"
        if settings.on_limit == "stop":
            if self._step == self._began and not settings.resume:
                raise InputError(
                    f"the start is beyond the limit already ({said}): nothing would run. Raise limit, or relax the "
                    "structure first."
                )
            self.over = said
        elif settings.on_limit == "harvest" and settings.harvest is not None:
            self._harvest(found, seen, settings.harvest)

    def _harvest(self, found: Snapshot, seen: float, path: Path) -> None:
        """Add the structure to the file, without energies: those of the model are no labels."""
        if len(self._harvested) >= _MOST_HARVESTED:
            if len(self._harvested) == _MOST_HARVESTED:
                logger.warning("%s holds %d frames, which is enough: raise the limit.", path, _MOST_HARVESTED)
                self._harvested.append(Atoms())
            return
        atoms = Atoms(found.atoms.numbers, found.atoms.positions, cell=found.atoms.cell, pbc=found.atoms.pbc)
        atoms.arrays["uncertainty"] = found.atoms.arrays["uncertainty"]
        atoms.info = {"step": self._step, "spread": round(seen, 6), "reason": self._measure.name.replace(" ", "-")}
        self._harvested.append(atoms)
        _write(path, self._harvested)


def _write(path: Path, frames: list[Atoms]) -> None:
    text = io.StringIO()
    write_extxyz(text, frames, write_results=False)
    write_atomically(path, text.getvalue().encode())


def _harvest_before(path: Path | None, step: int) -> list[Atoms]:
    """What an interrupted run harvested up to its checkpoint; the file is cut back to it."""
    if path is None or not path.is_file():
        return []
    frames = [atoms for atoms in read(path, ":") if int(atoms.info.get("step", 0)) <= step]
    if frames:
        _write(path, frames)
    else:
        path.unlink()
    return frames


def watched(engine: Engine, potential: Potential, settings: MDSettings, step: int) -> Engine:
    """The engine under the eye that the settings ask for; itself where they ask for none.

    Raises:
        InputError: where the potential knows nothing of its uncertainty.
    """
    if settings.watch is None:
        return engine
    measure = measure_for(potential)
    if settings.limit is not None and not measure.calibrated:
        logger.warning(
            "the %s of %s was never calibrated: the limit is compared with it as it is, not with an expected error.",
            *(measure.name, potential.name or "this model"),
        )
    return WatchedEngine(engine, measure, settings, step)
