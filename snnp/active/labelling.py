"""The stage that asks: structures of a round become labels, each asked for once, whatever happens meanwhile.

Before a structure is asked for the journal says so, and its folder is there; afterwards its label is in the store, then
in the journal, then the folder goes. Labels wait in their folders until a few of them were compared with what is known:
those of another unit never reach the store.

Executors are whatever takes a function with its arguments and gives a future: `concurrent.futures.Executor`. Threads of
this process serve one machine, since each of them waits for a process of its own; Parsl serves clusters and queues.
"""

from __future__ import annotations

import importlib
import math
import shutil
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from snnp.active.journal import Journal
from snnp.active.labellers import FAILURES, STRUCTURE, Labeller, Reply, close_processes, forget_answer
from snnp.active.settings import ExecutorSettings
from snnp.data import Frames
from snnp.data.consistency import suspicions
from snnp.data.write import write_frames
from snnp.distillation.label_store import LabelStore, structure_keys
from snnp.errors import ConfigError, DataError, MissingDependencyError
from snnp.models.potential import Potential
from snnp.units import ENERGY_UNITS

__all__ = ["Before", "Bench", "Stop", "carry_out", "executor_of", "label_frames", "wrong_units"]

_TOGETHER = (
    7  # labels that are compared with what is known at a time; so many begin a run, six of them displaced copies
)
_ALIKE, _ALIKE_ENERGIES = 0.6, 0.8  # cosines of forces and of energies, from which their sizes are compared
_SURE = 0.7  # between the quartiles of the logarithms of sizes
_MOST_KNOWN = 100
_FAR, _NEAR = math.log(4.0), 0.3  # logarithms of factors: beyond doubt, and from one that is named
_UNITS = {name: size for name, size in ENERGY_UNITS.items() if name in ("Hartree", "Rydberg", "kcal/mol", "kJ/mol")}
_SHOWN = 3


class Stop(Exception):  # noqa: N818 (no error: somebody asked for it, or a limit is reached)
    """The run ends here in good order; the text says why."""


@dataclass(frozen=True)
class Bench:
    """What labelling works with. `stop` says why it should end, or None; `report` is told (done, all, failed)."""

    folder: Path
    journal: Journal
    store: LabelStore
    labeller: Labeller
    executor: Executor
    workers: int
    stop: Callable[[], str | None]
    report: Callable[[int, int, int], None]


def carry_out(labeller: Labeller, folder: str) -> Reply:
    """Ask for one structure: what executors are given, here or on another machine of the same file system."""
    return labeller.ask(Path(folder))


def label_frames(bench: Bench, number: int, frames: Frames, before: Before | None = None) -> Frames:
    """Labels of all frames of round `number`; without those that failed for good.

    Arguments:
        before: what is known already, with which labels are compared.

    Raises:
        DataError: if too many fail, or the labels are in other units; what was labelled until then is kept.
        Stop: where it should end; what was on its way is waited for.
    """
    work = _Work(bench, number, frames, before)
    work.run()
    return bench.store.labelled(frames)


@dataclass
class _Work:
    bench: Bench
    number: int
    frames: Frames
    before: Before | None
    keys: list[str] = field(default_factory=list)
    unchecked: list[tuple[int, Reply]] = field(default_factory=list)
    failures: list[tuple[int, Reply]] = field(default_factory=list)
    done: int = 0

    def run(self) -> None:
        bench = self.bench
        self.keys = structure_keys(self.frames)
        waiting = deque(self._left())
        running: dict[Future[Reply], int] = {}
        try:
            while waiting or running or self.unchecked:
                why = bench.stop()
                while waiting and len(running) < bench.workers and why is None:
                    row = waiting.popleft()
                    running[self._ask(row)] = row
                for future in wait(running, 0.2, FIRST_COMPLETED).done if running else ():
                    row = running.pop(future)
                    self._take(row, future.result(), waiting)
                if self.unchecked and (len(self.unchecked) >= _TOGETHER or not (waiting or running) or why):
                    self._keep()
                if why is not None and not running:
                    raise Stop(why)
        finally:
            for future in running:
                future.cancel()
        if self.keys and not any(key in bench.store for key in self.keys):
            self._give_up(0.0)

    def _left(self) -> list[int]:
        """The rows that are still to be asked for, in order; others are counted."""
        bench, left, seen = self.bench, [], set[str]()
        known = {entry["key"] for entry in bench.journal.of("labelled")}
        failed = {entry["key"] for entry in self._failed() if entry["final"]}
        for row, key in enumerate(self.keys):
            if key in bench.store:
                if key not in known:  # killed between the store and the journal
                    bench.journal.write("labelled", round=self.number, key=key, source=self.frames.sources[row])
                    shutil.rmtree(self._folder(key), ignore_errors=True)
                self.done += 1
            elif key in failed:
                self.done += 1
            elif key not in seen:
                left.append(row)
            seen.add(key)
        return left

    def _failed(self) -> list[dict[str, object]]:
        """Failures of this round that count: those that ended a session are tried again, for somebody has looked."""
        entries = self.bench.journal.entries
        first = max((k for k, each in enumerate(entries) if each["event"] == "failure"), default=-1) + 1
        return [each for each in entries[first:] if each["event"] == "failed" and each["round"] == self.number]

    def _attempts(self, key: str) -> int:
        """How often this structure has failed in this round."""
        return sum(1 for _ in self.bench.journal.of("failed", round=self.number, key=key))

    def _folder(self, key: str) -> Path:
        return self.bench.folder / "jobs" / key

    def _ask(self, row: int) -> Future[Reply]:
        key, folder = self.keys[row], self._folder(self.keys[row])
        if not (folder / STRUCTURE).exists():
            asked = {"round": self.number, "key": key, "attempt": 1 + self._attempts(key)}
            if not any(self.bench.journal.of("asked", **asked)):
                said = {"source": self.frames.sources[row], "atoms": int(self.frames.counts[row])}
                self.bench.journal.write("asked", **asked, **said)
            one = self.frames[row : row + 1].named([self.frames.sources[row]])
            write_frames([("", one)], folder / STRUCTURE, "none", "snnp")
        return self.bench.executor.submit(carry_out, self.bench.labeller, str(folder.absolute()))

    def _take(self, row: int, reply: Reply, waiting: deque[int]) -> None:
        if reply.failure is None:
            self.unchecked.append((row, reply))
            return
        key, settings = self.keys[row], self.bench.labeller.settings
        attempt = 1 + self._attempts(key)
        tried = 1 + sum(each["key"] == key for each in self._failed())
        final = not FAILURES[reply.failure] or tried > settings.retries
        said = {"why": reply.failure, "reason": reply.reason, "seconds": round(reply.seconds, 3), "final": final}
        source = self.frames.sources[row]
        self.bench.journal.write("failed", round=self.number, key=key, source=source, attempt=attempt, **said)
        folder = self._folder(key)
        forget_answer(folder)
        (folder / STRUCTURE).unlink(missing_ok=True)
        if not final:
            waiting.appendleft(row)  # one that always fails is thus known soon
            return
        self.failures.append((row, reply))
        self._tell()
        allowed = max(2.0, settings.most_failures * len(self.frames))
        if sum(bool(each["final"]) for each in self._failed()) > allowed:
            self._give_up(settings.most_failures)

    def _tell(self) -> None:
        self.done += 1
        self.bench.report(self.done, len(self.frames), len(self.failures))

    def _give_up(self, allowed: float) -> None:
        counted = Counter(str(each["why"]) for each in self._failed() if each["final"])
        said = ", ".join(f"{n} {why}" for why, n in counted.most_common())
        listed = "; ".join(f"{self.frames.sources[row]}: {reply.reason}" for row, reply in self.failures[:_SHOWN])
        raise DataError(
            f"the labeller failed on {sum(counted.values())} of the {len(self.frames)} structures of round "
            f"{self.number} ({said}; allowed are {allowed:.0%}): {listed}. Look into {self.bench.folder / 'jobs'}, "
            "mend the labeller or raise labeller.most_failures, and resume: what it has labelled is kept, and what "
            "failed is asked for again."
        )

    def _keep(self) -> None:
        """Compare labels with what is known, and put them into the store."""
        frames = self._as_frames()
        check = self.bench.labeller.settings.check_units
        if check != "off" and (said := wrong_units(frames, self.before)) is not None:
            if check == "error":
                raise DataError(
                    f"round {self.number}: {said}. Nothing of it was taken; its answers are in "
                    f"{self.bench.folder / 'jobs'}. Let the labeller give eV and Å (labeller.units of a command), "
                    "remove that folder, and resume; or say labeller.check_units: warn if it is right as it is."
                )
            if not any(each.get("said") == said for each in self.bench.journal.of("warning", round=self.number)):
                self.bench.journal.write("warning", round=self.number, said=said)
        for row, reply in self.unchecked:
            key, one = self.keys[row], self.frames[row : row + 1]
            self.bench.store.add(key, one, reply.labels, reply.seconds)
            source, seconds = self.frames.sources[row], round(reply.seconds, 4)
            self.bench.journal.write("labelled", round=self.number, key=key, source=source, seconds=seconds)
            shutil.rmtree(self._folder(key), ignore_errors=True)
            self._tell()
        self.unchecked = []

    def _as_frames(self) -> Frames:
        """Those that are compared, with the labels of this round that are in the store."""
        rows = [row for row, _ in self.unchecked]
        labels = [reply.labels for _, reply in self.unchecked]
        new = replace(
            self.frames.take(rows),
            energy=np.array([float(each["energy"]) for each in labels]),
            forces=np.concatenate([each["forces"] for each in labels]),
            has_energy=np.ones(len(rows), dtype=bool),
            has_forces=np.ones(len(rows), dtype=bool),
        )
        kept = self.bench.store.labelled(self.frames)
        return Frames.concatenate([replace(each, extras=()) for each in (kept, new)])


def wrong_units(frames: Frames, before: Before | None) -> str | None:
    """What is wrong with the units of labels, in words; None where nothing is.

    The copies with which a run begins say whether energies and forces belong together (see `snnp.data.consistency`). A
    committee that has learned labels says whether new ones are like those: it may be bad, but is so for both alike.
    """
    if before is None:
        if len(frames) < _TOGETHER:
            return None
        # Those that begin a run: copies of the first structure, displaced by little.
        first = frames.take(frames.counts == frames.counts[0])[:_TOGETHER]
        found = [each for each in suspicions({"the labels": first}) if each.certain and each.quantity != "stress"]
        return str(found[0].message) if found else None
    then, now = before.factors, _factors(frames, before.committee)
    for what in ("forces", "energies"):
        if what in then and what in now and (said := _named(now[what] / then[what], what)) is not None:
            return said
    return None


@dataclass(frozen=True)
class Before:
    """A committee, and labels that it has learned: what new ones are compared with."""

    committee: Potential
    known: Frames

    @cached_property
    def factors(self) -> dict[str, float]:
        """Of the labels that are known beside what the committee says of them."""
        return _factors(self.known[-_MOST_KNOWN:], self.committee)


def _factors(frames: Frames, committee: Potential) -> dict[str, float]:
    """By what labels are larger than predictions: forces that point the same way, differences of energies per atom."""
    predicted, found = committee.compute(frames.structure()), dict[str, float]()
    assert predicted.forces is not None
    forces = predicted.forces.detach().double().cpu().numpy()
    pairs = (frames.forces, forces), (frames.forces, frames.forces), (forces, forces)
    dot, theirs, ours = (frames.per_frame((a * b).sum(axis=1)) for a, b in pairs)
    alike = dot > _ALIKE * np.sqrt(theirs * ours)
    logs = 0.5 * np.log(theirs[alike] / np.maximum(ours[alike], 1e-30)) if alike.any() else np.zeros(0)
    # A committee that has learned next to nothing says anything, and then says nothing about units.
    if len(logs) >= max(2, 0.3 * len(frames)) and np.ptp(np.quantile(logs, [0.25, 0.75])) < _SURE:
        found["forces"] = float(np.exp(np.median(logs)))
    energies = predicted.energy.detach().double().cpu().numpy()
    theirs, ours = (each / frames.counts - np.mean(each / frames.counts) for each in (frames.energy, energies))
    sizes = float(np.linalg.norm(theirs)), float(np.linalg.norm(ours))
    if len(frames) >= 4 and float(theirs @ ours) > _ALIKE_ENERGIES * sizes[0] * sizes[1] > 0.0:
        found["energies"] = sizes[0] / sizes[1]
    return found


def _named(factor: float, what: str) -> str | None:
    """The unit that a factor beside the labels of before stands for."""
    if not factor > 0.0 or abs(math.log(factor)) < _FAR:
        return None
    known = {f"as if they were in {unit} (factor {1.0 / size:.5g})": 1.0 / size for unit, size in _UNITS.items()}
    known |= {f"as if eV were taken for {unit} (factor {size:.5g})": size for unit, size in _UNITS.items()}
    near = {text: abs(math.log(factor / value)) for text, value in known.items()}
    meant = sorted((text for text in near if near[text] < _NEAR), key=lambda text: near[text])[:2]
    if not meant:
        return None
    by = "forces that point the same way" if what == "forces" else "how far they differ"
    return (
        f"the {what} are {factor:.3g} times as large as those of the labels of before, {' or '.join(meant)} (by {by})"
    )


# Where it is computed.


@contextmanager
def executor_of(settings: ExecutorSettings, folder: Path) -> Iterator[Executor]:
    """The executor that settings ask for; what waits in it when the block ends is not begun.

    Arguments:
        folder: for what Parsl writes, where its configuration names no other place.

    Raises:
        MissingDependencyError: for Parsl where it is not installed. ConfigError: for its configuration.
    """
    if settings.kind != "parsl":
        pool = ThreadPoolExecutor(settings.workers, thread_name_prefix="label")
        try:
            yield pool
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            close_processes()
            pool.shutdown()
        return
    with _parsl(settings, folder) as executor:
        yield executor


@contextmanager
def _parsl(settings: ExecutorSettings, folder: Path) -> Iterator[Executor]:
    try:
        import parsl
        from parsl.concurrent import ParslPoolExecutor
    except ImportError:
        raise MissingDependencyError(
            "executor.kind parsl needs the package parsl; install it with: pip install 'snnp[parsl]'."
        ) from None
    made = _config(settings.config) if settings.config else None
    if made is None:
        threads = parsl.ThreadPoolExecutor(max_threads=settings.workers)
        made = parsl.Config(executors=[threads], run_dir=str(folder / "parsl"), initialize_logging=False)
    try:
        pool = ParslPoolExecutor(made)
    except Exception as error:  # whatever its executors and providers raise
        parsl.clear()
        raise ConfigError(
            f"Parsl does not start with executor.config {settings.config or 'of threads'} ({type(error).__name__}: "
            f"{error}); try that configuration alone, with the environment activated whose bin holds Parsl's programs."
        ) from error
    with pool:
        try:
            yield pool
        finally:
            close_processes()


def _config(name: str) -> Any:
    """The `parsl.Config` that `module:callable` returns."""
    module, colon, made = name.partition(":")
    try:
        if not colon:
            raise ValueError("no colon")
        return getattr(importlib.import_module(module), made)()
    except Exception as error:  # whatever a configuration raises
        raise ConfigError(
            f"executor.config {name!r} cannot be used ({type(error).__name__}: {error}); expected module:callable that "
            "returns a parsl.Config, in a folder of PYTHONPATH."
        ) from error
