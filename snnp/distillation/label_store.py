"""Labels that are never computed twice: an append-only store on disk, and the worker processes that fill it.

`teacher.json` says whose labels these are; those of another teacher are refused. `labels.bin` holds one message (see
`snnp.distillation.worker`) for each labelled structure, in the order in which they came. A kill at any time leaves
whole messages and at most a part of one, which is dropped.
"""

from __future__ import annotations

import hashlib
import json
import os
import queue
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from snnp.data import Frames
from snnp.data.storage.contents import Extras, pack
from snnp.distillation.teachers import Answer, Identity, Teacher, TeacherProcess, WorkerDiedError
from snnp.distillation.worker import MAGIC, read_message, unpack
from snnp.distillation.worker import pack as pack_message
from snnp.errors import DataError, InputError
from snnp.files import hold, write_atomically

__all__ = ["Crew", "LabelProgress", "LabelStore", "Labelled", "Labelling", "label", "structure_keys"]

_FORMAT = "snnp-labels"
_SYNC_SECONDS = 1.0  # a power failure costs at most so much; a kill costs nothing
_CHUNK_FRAMES, _CHUNK_ATOMS = 64, 1000
_SHOWN = 3  # reasons of failures in an error

Arrays = dict[str, np.ndarray]


def structure_keys(frames: Frames) -> list[str]:
    """Hash of each frame's elements, positions and cell (to 1e-6 Å) and periodicity: what a label is a label of."""
    keys = []
    for row in range(len(frames)):
        one = frames[row : row + 1]
        # Zero is added because a rounded -1e-9 is -0.0, whose bytes are others.
        parts = [one.numbers, np.round(one.positions, 6) + 0.0, np.round(one.cell, 6) + 0.0, one.pbc]
        keys.append(hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest()[:32])
    return keys


class LabelStore:
    """The labels of one teacher in a folder; no other process may use it meanwhile.

    Arguments:
        folder: made if need be.
        identity: of the teacher.

    Raises:
        DataError: if it holds the labels of another teacher, or is no store.
        InputError: if another process has it open.
    """

    def __init__(self, folder: str | Path, identity: Identity) -> None:
        self.folder, self.identity = Path(folder), identity
        self.n_dropped = 0
        self._labels: dict[str, Arrays] = {}
        self._seconds: dict[str, float] = {}
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / "labels.bin"
        with ExitStack() as stack:
            stack.enter_context(hold([path]))
            self._check_teacher()
            self._read(path)
            self._file = stack.enter_context(path.open("ab", buffering=0))
            self._stack = stack.pop_all()
        self._synced = time.monotonic()

    def _check_teacher(self) -> None:
        path = self.folder / "teacher.json"
        if path.exists():
            try:
                known = json.loads(path.read_text(encoding="utf-8"))
                if known["format"] != _FORMAT:
                    raise ValueError(f"its format is {known['format']!r}")
                key, name = known["key"], known["name"]
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise DataError(f"{path} does not say whose labels these are ({error}); name another folder.") from None
            if key != self.identity.key:
                raise DataError(
                    f"{self.folder} holds labels of another teacher, {name}, not of {self.identity.name} (another "
                    "version or other weights count as another teacher); name another folder."
                )
        else:
            values = {"format": _FORMAT, "format_version": 1, **self.identity.json()}
            write_atomically(path, (json.dumps(values, indent=1, default=str) + "\n").encode())

    def _read(self, path: Path) -> None:
        """Take over what is whole, and cut off what a kill left behind the last whole message."""
        if not path.exists():
            return
        with path.open("rb") as stream:
            good = 0
            while good < path.stat().st_size:
                body = read_message(stream)
                if body is None:
                    self.n_dropped += 1
                    found = _next_message(stream, good + 1)
                    if found is None:
                        break
                    stream.seek(found)
                    continue
                header, arrays = unpack(body)
                self._labels[header["key"]], self._seconds[header["key"]] = arrays, header["seconds"]
                good = stream.tell()
        if good < path.stat().st_size:
            os.truncate(path, good)

    def __enter__(self) -> LabelStore:
        return self

    def __exit__(self, *_: object) -> None:
        os.fsync(self._file.fileno())
        self._stack.close()

    def __len__(self) -> int:
        return len(self._labels)

    def __contains__(self, key: str) -> bool:
        return key in self._labels

    def add(self, key: str, frame: Frames, labels: Arrays, seconds: float) -> None:
        """Append the labels of a single frame."""
        header: dict[str, Any] = {"key": key, "seconds": seconds, "group": frame.groups[0] if frame.groups else None}
        structure = {"numbers": frame.numbers.astype(np.int64), "positions": frame.positions}
        structure |= {"cell": frame.cell[0], "pbc": frame.pbc[0]}
        self._file.write(pack_message(header, {**labels, **{f"of_{k}": v for k, v in structure.items()}}))
        self._labels[key], self._seconds[key] = labels, seconds
        if time.monotonic() - self._synced > _SYNC_SECONDS:
            os.fsync(self._file.fileno())
            self._synced = time.monotonic()

    def labelled(self, frames: Frames) -> Frames:
        """Those of the frames that have labels, with them; deviations as extras."""
        keys = structure_keys(frames)
        rows = [row for row, key in enumerate(keys) if key in self._labels]
        chosen, labels = frames.take(rows), [self._labels[keys[row]] for row in rows]
        has_stress = np.array(["stress" in each for each in labels], dtype=bool)
        nothing = np.full((3, 3), np.nan)
        unknown = [np.full(n, np.nan) for n in chosen.counts]
        return replace(
            chosen,
            energy=np.array([float(each["energy"]) for each in labels]),
            forces=np.concatenate([np.zeros((0, 3)), *(each["forces"] for each in labels)]),
            stress=np.array([each.get("stress", nothing) for each in labels]).reshape(-1, 3, 3),
            energies=np.concatenate(
                [np.zeros(0), *(each.get("energies", rest) for each, rest in zip(labels, unknown, strict=True))]
            ),
            has_energies=np.array(["energies" in each for each in labels], dtype=bool),
            has_energy=np.ones(len(rows), dtype=bool),
            has_forces=np.ones(len(rows), dtype=bool),
            has_stress=has_stress & chosen.has_volume,
            groups=chosen.groups or [None] * len(rows),
            extras=[_extras(each, source) for each, source in zip(labels, chosen.sources, strict=True)],
        )

    def seconds_per_atom(self) -> float | None:
        """Of the labels in this store, median over structures of more than ten atoms (of all, if there are none)."""
        pairs = [(seconds, len(self._labels[key]["forces"])) for key, seconds in self._seconds.items()]
        large = [pair for pair in pairs if pair[1] > 10] or pairs
        return float(np.median([seconds / n for seconds, n in large])) if large else None


def _next_message(stream: Any, start: int) -> int | None:
    """Where the next whole message after damage begins."""
    stream.seek(start)
    rest, at = stream.read(), -1
    while (at := rest.find(MAGIC, at + 1)) >= 0:
        stream.seek(start + at)
        if read_message(stream) is not None:
            return int(start + at)
    return None


def _extras(labels: Arrays, source: str) -> str | None:
    arrays: Arrays = {name: labels[name] for name in ("forces_std",) if name in labels}
    info = {"energy_std": float(labels["energy_std"])} if "energy_std" in labels else {}
    return pack(Extras(info, arrays), source)


@dataclass(frozen=True)
class LabelProgress:
    """Frames labelled, of how many, failed so far, and the seconds that are left by the speed of those before."""

    done: int
    total: int
    failed: int
    seconds_left: float | None


class Crew:
    """The processes of one teacher, kept between calls of `label`: some take ten seconds to start.

    Raises:
        InputError: if the teacher does not start.
    """

    def __init__(self, teacher: Teacher, threads: int = 1) -> None:
        self.teacher, self.threads = teacher, threads
        self._idle = [teacher.start(threads)]
        self.identity = self._idle[0].identity

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, *_: object) -> None:
        while self._idle:
            self._idle.pop().close()

    def hire(self) -> TeacherProcess:
        """One that waits for work, or a new one.

        Raises:
            InputError: if its interpreter has become another one.
        """
        try:
            return self._idle.pop()
        except IndexError:
            process = self.teacher.start(self.threads)
        if process.identity.key != self.identity.key:
            process.close()
            raise InputError(f"the teacher is now {process.identity.name}, it was {self.identity.name}; start anew.")
        return process

    def dismiss(self, process: TeacherProcess) -> None:
        """It has done its work, and waits for more."""
        self._idle.append(process)

    @contextmanager
    def at_work(self) -> Iterator[TeacherProcess]:
        """One that waits for more afterwards."""
        process = self.hire()
        try:
            yield process
        finally:
            self.dismiss(process)


@dataclass(frozen=True)
class Labelling:
    """How labels are computed.

    Arguments:
        workers: processes at the same time.
        most_failures: fraction of failed frames beyond which it is given up.
        report: is told of every frame.
    """

    workers: int = 1
    most_failures: float = 0.1
    report: Callable[[LabelProgress], None] = lambda progress: None


@dataclass(frozen=True)
class Labelled:
    """Frames with labels, in the order in which they were given, and (source, reason) of those that failed."""

    frames: Frames
    failures: tuple[tuple[str, str], ...]


def label(frames: Frames, crew: Crew, store: LabelStore, settings: Labelling = Labelling()) -> Labelled:
    """Labels of all frames: from the store, else from the teacher.

    Frames that failed are tried again when they are next asked for.

    Raises:
        DataError: if more than the allowed fraction fails; what was labelled until then stays in the store.
        InputError: if the teacher does not start, or its interpreter has become another one.
    """
    keys = structure_keys(frames)
    wanted = {key: row for row, key in enumerate(keys) if key not in store}
    rows = sorted(wanted.values())
    failures: list[tuple[str, str]] = []
    start, done, atoms = time.monotonic(), 0, 0
    with closing(_ask(frames, rows, crew, settings)) as answers:
        for answer in answers:
            row, one = answer.row, frames[answer.row : answer.row + 1]
            if (error := answer.error or _fault(answer.labels, one)) is None:
                store.add(keys[row], one, answer.labels, answer.seconds)
            else:
                failures.append((frames.sources[row], error))
            done, atoms = done + 1, atoms + int(frames.counts[row])
            left = (time.monotonic() - start) * (int(frames.counts[rows].sum()) - atoms) / atoms
            settings.report(LabelProgress(done, len(rows), len(failures), left))
            if len(failures) > settings.most_failures * len(rows):
                listed = "; ".join(f"{source}: {reason}" for source, reason in failures[:_SHOWN])
                raise DataError(
                    f"the teacher failed on {len(failures)} of {done} structures (allowed are "
                    f"{settings.most_failures:.0%} of {len(rows)}): {listed}; mend the teacher, or raise "
                    "most_failures. What it has labelled is kept."
                )
    return Labelled(store.labelled(frames), tuple(failures))


def _fault(labels: Arrays, frame: Frames) -> str | None:
    """What is wrong with labels."""
    n = int(frame.counts[0])
    shapes = {"energy": (), "forces": (n, 3), "stress": (3, 3), "energies": (n,), "forces_std": (n, 3)}
    for name in ("energy", "forces"):
        if name not in labels:
            return f"it has no {name}"
    for name, value in labels.items():
        if value.shape != shapes.get(name, value.shape):
            return f"its {name} has shape {value.shape}, expected {shapes[name]}"
        if not np.isfinite(value).all():
            return f"its {name} holds NaN or infinite numbers"
    return None


def _chunks(frames: Frames, rows: list[int], workers: int) -> Iterator[list[int]]:
    most, chunk, atoms = max(1, min(_CHUNK_FRAMES, len(rows) // (4 * workers))), list[int](), 0
    for row in rows:
        if chunk and (len(chunk) == most or atoms + frames.counts[row] > _CHUNK_ATOMS):
            yield chunk
            chunk, atoms = [], 0
        chunk.append(row)
        atoms += int(frames.counts[row])
    if chunk:
        yield chunk


def _ask(frames: Frames, rows: list[int], crew: Crew, settings: Labelling) -> Generator[Answer]:
    """The answer for each row as it comes, from several processes; each is held by a thread that waits for it."""
    waiting: queue.SimpleQueue[list[int]] = queue.SimpleQueue()
    answers: queue.SimpleQueue[Answer | Exception] = queue.SimpleQueue()
    stop = threading.Event()
    for chunk in _chunks(frames, rows, settings.workers):
        waiting.put(chunk)
    running: list[TeacherProcess] = []

    def work() -> None:
        process: TeacherProcess | None = None
        try:
            while not stop.is_set():
                try:
                    chunk = waiting.get_nowait()
                except queue.Empty:
                    break
                if process is None:
                    running.append(process := crew.hire())
                process = _label_chunk(process, frames, chunk, answers, waiting)
            if process is not None:
                process.close() if stop.is_set() else crew.dismiss(process)
        except Exception as error:
            answers.put(error)

    # No more processes than chunks. What a dead one owes is asked of whoever is free, at last of its own thread.
    threads = [threading.Thread(target=work, daemon=True) for _ in range(min(settings.workers, waiting.qsize()))]
    try:
        for thread in threads:
            thread.start()
        for _ in rows:
            answer = answers.get()
            if isinstance(answer, Exception):
                raise answer
            yield answer
    except BaseException:
        stop.set()
        for process in running:
            process.close()
        raise
    finally:
        for thread in threads:
            thread.join()


def _label_chunk(
    process: TeacherProcess,
    frames: Frames,
    chunk: list[int],
    answers: queue.SimpleQueue[Answer | Exception],
    waiting: queue.SimpleQueue[list[int]],
) -> TeacherProcess | None:
    """Pass answers on; of a process that died the frame it was at is found by asking for the others one by one."""
    open_rows = list(chunk)
    try:
        for answer in process.label(frames.take(chunk)):
            open_rows.remove(chunk[answer.row])
            answers.put(replace(answer, row=chunk[answer.row]))
    except WorkerDiedError as death:
        process.close()
        if len(chunk) == 1:
            answers.put(Answer(chunk[0], 0.0, {}, str(death)))
        else:
            for row in open_rows:
                waiting.put([row])
        return None
    return process
