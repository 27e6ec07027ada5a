"""An eye on a simulation's uncertainty, whatever the engine: a column of the log, a colour of the atoms, and a limit.

A watched engine is the engine itself; where the run looks at it (for a row of the log, a frame, a checkpoint), the
uncertainty of each atom is found by one more evaluation, so the price falls with `log_interval`.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

from snnp.data import Frames
from snnp.data.read import read_any
from snnp.errors import InputError
from snnp.models.ensemble import Ensemble
from snnp.models.potential import Potential
from snnp.models.spline.model import SplineNNP
from snnp.sampling.checkpoint import EngineState
from snnp.sampling.run import Engine
from snnp.sampling.settings import MDSettings
from snnp.sampling.snapshot import Snapshot
from snnp.uncertainty import Doubt, FeatureDistance, Harvest, Measure, measure_for

__all__ = ["WatchedEngine", "watched"]

logger = logging.getLogger(__name__)


class WatchedEngine:
    """An engine whose snapshots bear the uncertainty of their atoms, and which ends or harvests beyond a limit.

    Attributes:
        over: what was seen beyond the limit, where that ends the run; empty while nothing was.
    """

    def __init__(self, engine: Engine, measure: Measure, settings: MDSettings, step: int) -> None:
        self.name, self._engine, self._measure, self._settings = engine.name, engine, measure, settings
        self._step, self._known, self.over = step, (-1, 0.0), ""
        self._began = step
        before = step if settings.resume else None
        self._harvest = None if settings.harvest is None else Harvest(settings.harvest, before)

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
            self._look(found, doubt)
        return replace(found, uncertainty=seen)

    def _look(self, found: Snapshot, doubt: Doubt) -> None:
        limit, settings, seen = self._settings.limit, self._settings, doubt.structure
        if self._harvest is not None:
            self._harvest.begin()  # not before: the run has refused by now what it may not replace
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
        elif self._harvest is not None:
            self._harvest.add(found.atoms, doubt, self._step, self._measure)


def watched(engine: Engine, potential: Potential, settings: MDSettings, step: int) -> Engine:
    """The engine under the eye that the settings ask for; itself where they ask for none.

    Raises:
        InputError: where the potential knows nothing of its uncertainty, or has no features to measure a distance in;
            for a file of training structures that is not there.
        DataError: for one that is not understood.
    """
    if settings.watch is None:
        return engine
    measure = measure_for(potential) if settings.watch == "uncertainty" else _distance(potential, settings.watch)
    if settings.limit is not None and settings.watch == "uncertainty" and not measure.calibrated:
        logger.warning(
            "the %s of %s was never calibrated: the limit is compared with it as it is, not with an expected error.",
            *(measure.name, potential.name or "this model"),
        )
    return WatchedEngine(engine, measure, settings, step)


def _distance(potential: Potential, name: str) -> Measure:
    """From the structures of a file, in the features of an s-NNP, or of an ensemble's first member."""
    if not Path(name).is_file():
        raise InputError(
            f"watch: {name!r} is no file; say uncertainty, or name a file of the structures that the model learned."
        )
    one = potential.potentials[0] if isinstance(potential, Ensemble) else potential
    if not isinstance(one, SplineNNP):
        raise InputError(
            f"watch: distances are measured in the features of an s-NNP, and this is {type(one).__name__}."
        )
    return FeatureDistance(one, Frames.concatenate(list(read_any(name, labelled=False))))
