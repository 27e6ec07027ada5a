"""Small runs of active learning, for tests: copper by EMT, models and trajectories that take no time.

    python tests/active_runs.py FOLDER TIMES SEED command|calculator

kills a run so many times at random moments, with everything that it has started alive, and goes on with it each time.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.build import bulk

from snnp.active import ActiveProgress, ActiveResult, ActiveSettings, account, read_journal, run
from snnp.active.journal import NAME
from snnp.active.stages import Stages, WithFacts
from snnp.data import Frames
from snnp.data.write import write_frames
from snnp.models import SplineNNP, special_cases
from snnp.models.ensemble import Ensemble

EMT = "ase.calculators.emt:EMT"
SPRINGS = r"""awk '
    NR > 2 { e += $2*$2 + $3*$3 + $4*$4; line[NR] = $0; f[NR] = sprintf("%.15g %.15g %.15g", -2*$2, -2*$3, -2*$4) }
    NR == 1 { n = $1 }
    NR == 2 { comment = $0; sub(/Properties=[^ ]*/, "Properties=species:S:1:pos:R:3:forces:R:3", comment) }
    END { print n; print comment, "energy=" sprintf("%.15g", e); for (k = 3; k <= NR; k++) print line[k], f[k] }
' {input} > {output} && echo done"""
"""Every atom on a spring to the origin, by awk: a command that takes no time."""
SMALL: dict[str, Any] = {
    "optimiser": {"epochs": 3},
    "compression": None,
    "model": {"radial": {"n_filters": 3, "cutoff": 4.0, "intervals": 6}, "angular": {"n_filters": 0}, "network": None},
}
"""A training that takes a second."""


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
    folder.mkdir(exist_ok=True)
    write_frames([("", replace(known, extras=()))], folder / "labels.extxyz", "", "snnp")
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
    """Of a run by springs with 8 labels to begin with, and 4 in each round."""
    values: dict[str, Any] = {
        "elements": ["Cu"],
        "labeller": {"command": SPRINGS, "check_units": "off"},
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


def events(folder: Path, *kinds: str) -> list[dict[str, Any]]:
    """What the journal of a run says of these kinds."""
    return [entry for entry in read_journal(folder / NAME)[0] if entry["event"] in kinds]


LOGGED = """
import os, time
from ase.calculators.emt import EMT

class Logged(EMT):
    def calculate(self, atoms=None, properties=("energy",), system_changes=()):
        with open(os.environ["CALLS"], "a") as stream:
            stream.write(f"{atoms.positions.sum():.12f}\\n")
        time.sleep(0.01)
        super().calculate(atoms, properties, system_changes)
"""


def no_report(*_: Any) -> None:
    """Pictures take a second."""


def killed(folder: Path, times: int, seed: int, kind: str) -> int:
    """Kill a run so many times, then let it end; returns how many times it was killed."""
    calls = folder / "calls"
    os.environ["CALLS"] = str(calls)
    sys.path.insert(0, str(folder))
    (folder / "logged.py").write_text(LOGGED)
    os.chdir(folder)
    command = f"echo $(basename $(dirname {{input}})) >> {calls}; sleep 0.01; {SPRINGS}"
    labeller = {"command": command} if kind == "command" else {"calculator": "logged:Logged"}
    labeller["check_units"] = "off"
    account.write = no_report  # type: ignore[assignment]
    workers = {"kind": "processes", "workers": 2}
    asked = settings(labeller=labeller, executor=workers, limits={"labels": 60, "rounds": 8, "plateau_rounds": 0})
    rng, kills = random.Random(seed), 0
    while True:
        journal = folder / "run" / "journal.jsonl"
        begun = journal.exists() and journal.stat().st_size > 0
        child = os.fork()
        if child == 0:
            code = 1
            try:
                code = 0 if learn(None if begun else asked, folder / "run").finished else 2
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(code)
        if kills < times:
            time.sleep(rng.uniform(0.02, 0.25) if kind == "command" else rng.uniform(0.1, 0.9))
        ended = os.waitpid(child, 0 if kills >= times else os.WNOHANG)
        if ended != (0, 0):
            assert ended[1] == 0, f"ended with {ended[1]}"
            return kills
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        kills += 1


if __name__ == "__main__":
    print(killed(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]))
