"""Measuring: one process per case, all prepared first, then timed in turn, so that slow spells hit all alike."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import tempfile
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from peers.systems import build_system

from snnp.errors import InputError
from snnp.structure import Structure

__all__ = ["Case", "Failure", "Measurement", "Plan", "measure"]

_FOLDER = Path(__file__).parent / "adapters"
_PREPARE_SECONDS, _RUN_SECONDS = 600.0, 600.0  # a case that takes longer is given up
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")


@dataclass(frozen=True)
class Case:
    """One thing to measure.

    Arguments:
        program: the adapter's name, such as lammps; `own` is snnp.
        name: of the case within the program.
        structure: specification of its atoms (see `build_system`).
        n_atoms: about how many.
        python: interpreter of the environment in which the program is installed.
        options: what the adapter's `prepare` reads.
        threads: for OpenMP, BLAS, torch.
        environment: variables set for the process besides.
    """

    program: str
    name: str
    structure: str
    n_atoms: int
    python: str
    options: dict[str, Any] = field(default_factory=dict)
    threads: int = 1
    environment: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Measurement:
    """What a case took.

    Arguments:
        n_atoms: as built. wall, cpu: seconds per call of each repeat. n_calls: calls per repeat.
        mib_before, mib_peak: memory of the process before its model was made, and the most in the end.
        versions: of the packages. facts: what the adapter reports.
    """

    case: Case
    n_atoms: int
    wall: tuple[float, ...]
    cpu: tuple[float, ...]
    n_calls: int
    mib_before: float
    mib_peak: float
    versions: dict[str, str]
    facts: dict[str, Any]

    @property
    def wall_us_per_atom(self) -> float:
        """Median over the repeats."""
        return statistics.median(self.wall) / self.n_atoms * 1e6

    @property
    def cpu_us_per_atom(self) -> float:
        """Median over the repeats, all threads together: hardly disturbed by other work on the machine."""
        return statistics.median(self.cpu) / self.n_atoms * 1e6


@dataclass(frozen=True)
class Failure:
    """A case that could not be measured, and why, on one line."""

    case: Case
    reason: str


@dataclass(frozen=True)
class Plan:
    """How to measure: repeats of each case, and the seconds that each repeat should last."""

    repeats: int = 7
    seconds: float = 0.2

    def __post_init__(self) -> None:
        if self.repeats < 1 or not self.seconds > 0.0:
            raise InputError(f"repeats must be at least 1 and seconds positive, got {self.repeats} and {self.seconds}.")


Report = Callable[[int, int, str], None]
"""`report(done, total, note)`."""


def measure(cases: Sequence[Case], plan: Plan, report: Report) -> tuple[list[Measurement], list[Failure]]:
    """Prepare all cases, then time them in turn, repeat after repeat.

    A case that fails is left out of what follows; the others go on.

    Raises:
        InputError: for a structure that cannot be built.
    """
    failures: list[Failure] = []
    total = len(cases) * (1 + plan.repeats)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="snnp-benchmark-")))
        systems: dict[tuple[str, int], tuple[Path, Structure]] = {}
        running: list[_Process] = []
        for k, case in enumerate(cases):
            report(k, total, f"preparing {case.program}: {case.name}")
            key = (case.structure, case.n_atoms)
            if key not in systems:
                structure = build_system(*key)
                systems[key] = (folder / f"{len(systems)}.npz", structure)
                _write_system(structure, systems[key][0])
            try:
                process = stack.enter_context(_Process(case, systems[key], folder / f"{k}.json"))
                running.append(process)
            except _EndedError as error:
                failures.append(Failure(case, str(error)))
        for repeat in range(plan.repeats):
            for process in list(running):
                report(len(cases) * (1 + repeat) + running.index(process), total, f"repeat {repeat + 1}")
                try:
                    process.run(plan.seconds)
                except _EndedError as error:
                    failures.append(Failure(process.case, str(error)))
                    running.remove(process)
        return [process.result() for process in running], failures


def _write_system(structure: Structure, path: Path) -> None:
    """Write a structure as the arrays that adapters read."""
    np.savez(
        path,
        numbers=structure.numbers.numpy(),
        positions=structure.positions.numpy(),
        cells=structure.cell.numpy(),
        pbc=np.array(bool(structure.pbc.all())),
        structure_of_atom=structure.structure_of_atom.numpy(),
    )


class _EndedError(Exception):
    """A process that died, with its last words."""


class _Process:
    """A case in its own process, prepared on entry."""

    def __init__(self, case: Case, system: tuple[Path, Structure], job: Path) -> None:
        self.case, self._system, self._job = case, system, job
        self._wall: list[float] = []
        self._cpu: list[float] = []
        self._answer: dict[str, Any] = {}

    def __enter__(self) -> _Process:
        case = self.case
        request = {"case": case.options, "system": str(self._system[0]), "threads": case.threads}
        self._job.write_text(json.dumps(request), encoding="utf-8")
        environment = {**os.environ, **{name: str(case.threads) for name in _THREAD_VARIABLES}}
        # Threads that spin while they wait would be charged to whoever waits.
        environment |= {"OMP_WAIT_POLICY": "PASSIVE", **case.environment}
        self._errors = self._job.with_suffix(".err").open("w+", encoding="utf-8", errors="replace")
        adapter = Path(case.program) if case.program.endswith(".py") else _FOLDER / f"{case.program}.py"
        self._process = subprocess.Popen(
            [case.python, str(_FOLDER / "serve.py"), str(adapter.resolve()), str(self._job)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=environment,
            text=True,
        )
        try:
            self._ready = self._read(_PREPARE_SECONDS)
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._end()

    def _end(self) -> None:
        self._process.kill()
        self._process.communicate()
        self._errors.close()

    def _read(self, limit: float) -> dict[str, Any]:
        """The next answer.

        Raises:
            _EndedError: if the process ended, or took longer than `limit` seconds.
        """
        timer = threading.Timer(limit, self._process.kill)
        timer.start()
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        late = not timer.is_alive()
        timer.cancel()
        if line:
            answer: dict[str, Any] = json.loads(line)
            return answer
        self._process.wait()
        if late:
            raise _EndedError(f"gave no answer within {limit:g} s")
        self._errors.seek(0)
        words = [text.strip() for text in self._errors.read().splitlines() if text.strip()]
        raise _EndedError(f"exit status {self._process.returncode}: {words[-1] if words else 'no message'}")

    def run(self, seconds: float) -> None:
        """Time one repeat that lasts about `seconds`."""
        assert self._process.stdin is not None
        self.n_calls = max(round(seconds / self._ready["seconds_per_call"]), 1)
        try:
            self._process.stdin.write(f"{self.n_calls}\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # it has ended: reading tells why
        self._answer = self._read(_RUN_SECONDS)
        self._wall.append(self._answer["wall"] / self.n_calls)
        self._cpu.append(self._answer["cpu"] / self.n_calls)

    def result(self) -> Measurement:
        """What all repeats took."""
        ready = self._ready
        return Measurement(
            case=self.case,
            n_atoms=self._system[1].n_atoms,
            wall=tuple(self._wall),
            cpu=tuple(self._cpu),
            n_calls=self.n_calls,
            mib_before=ready["mib_before"],
            mib_peak=self._answer["mib_peak"],
            versions={"python": ready["python"], **ready["versions"]},
            facts=ready["facts"],
        )
