"""Small runs of active learning, for tests: copper by EMT, models and trajectories that take no time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.build import bulk

from snnp.active import ActiveProgress, ActiveResult, ActiveSettings, run
from snnp.active.stages import Stages, WithFacts
from snnp.data import Frames
from snnp.models import SplineNNP, special_cases
from snnp.models.ensemble import Ensemble

EMT = "ase.calculators.emt:EMT"


def copper(number: int, *seed: int, rattle: float = 0.2) -> list[Atoms]:
    """Cells of four atoms, strained and shaken."""
    rng, found = np.random.default_rng(seed), []
    for _ in range(number):
        atoms = bulk("Cu", cubic=True)
        atoms.set_cell(atoms.cell * rng.uniform(0.95, 1.1), scale_atoms=True)
        atoms.positions += rng.normal(0.0, rattle, (4, 3))
        found.append(atoms)
    return found


def place(settings: ActiveSettings, number: int) -> list[Atoms]:
    """Structures to begin with."""
    return copper(number, settings.seed)


def untrained(
    settings: ActiveSettings, known: Frames, folder: Path, report: Callable[[int, int, int], None]
) -> WithFacts:
    """A committee that has learned nothing."""
    members = [SplineNNP(special_cases.eam(settings.elements), seed=k) for k in range(settings.members)]
    return WithFacts(Ensemble(members), {"frames": len(known)})


def shaken(
    settings: ActiveSettings,
    committee: Ensemble,
    known: Frames,
    folder: Path,
    number: int,
    report: Callable[[int, int, int], None],
) -> WithFacts:
    """Frames without trajectories."""
    return WithFacts(copper(12, settings.seed, number), {"trajectories": 12})


FAST = Stages(place, untrained, shaken)


def settings(**changed: Any) -> ActiveSettings:
    """Of a run with 8 labels to begin with, and 4 in each round."""
    values: dict[str, Any] = {
        "elements": ["Cu"],
        "labeller": {"calculator": EMT},
        "start": {"number": 8},
        "members": 2,
        "per_round": 4,
        "probe": {"number": 2},
        "limits": {"labels": 40, "rounds": 2},
    }
    return ActiveSettings(**{**values, **changed})


def learn(
    asked: ActiveSettings | None, folder: Path, report: Callable[[ActiveProgress], None] = lambda now: None
) -> ActiveResult:
    """Run it, quickly."""
    return run(asked, folder, report, work=FAST)
