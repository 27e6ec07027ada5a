"""Who is asked for labels, and how one structure is asked for: in a folder of its own, so that nothing depends on us.

    RUN/jobs/KEY/structure.extxyz      what is asked
    RUN/jobs/KEY/answer.bin            of a calculator: what it said, written by its own process
    RUN/jobs/KEY/labelled.extxyz       of a command: what it wrote; `exit`: its exit code; `output.log`: what it said

The process of a calculator, or the shell of a command, holds a lock in the folder as long as it works. A program that
was killed, and goes on, finds an answer there, waits for one that is on its way, or asks: never twice.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import signal
import socket
import subprocess
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np

from snnp.active.settings import LabellerSettings
from snnp.data import Frames, keys_of
from snnp.data.read import read_any
from snnp.data.storage.contents import unpack
from snnp.distillation.teachers import Identity, Teacher, TeacherProcess, WorkerDiedError
from snnp.distillation.worker import read_message
from snnp.distillation.worker import unpack as unpack_message
from snnp.errors import InputError, SnnpError

__all__ = ["FAILURES", "STRUCTURE", "Labeller", "Reply", "close_processes", "forget_answer"]

STRUCTURE, _ANSWER, _LABELLED, _EXIT, _LOG = (
    *("structure.extxyz", "answer.bin", "labelled.extxyz"),
    *("exit", "output.log"),
)
Failure = Literal["died", "too long", "error", "not converged", "not finite", "other atoms", "no label"]
FAILURES: dict[Failure, bool] = {
    "died": True,
    "too long": True,
    "error": True,
    "not converged": False,
    "not finite": False,
    "other atoms": False,
    "no label": False,
}
"""Why there is no label, and whether asking again may help: codes that say the same twice are not asked twice."""
_POLL = 0.1  # s
_MOVED = 0.01  # Å

_processes: dict[tuple[int, Labeller], TeacherProcess] = {}
"""Of calculators: each thread that labels has its own, kept from structure to structure."""


@dataclass(frozen=True)
class Reply:
    """What was said of a structure: labels in eV, eV/Å, eV/Å³, or why there are none."""

    seconds: float
    labels: dict[str, np.ndarray] = field(default_factory=dict)
    failure: Failure | None = None
    reason: str = ""


@dataclass(frozen=True)
class Labeller:
    """A labeller that may be sent to another process: what to ask, and where the loop was started.

    Arguments:
        text: its `LabellerSettings` as JSON. here: the folder that `{here}` stands for in commands.
        key: of its identity; a process that has become another one is refused. Empty: not known yet.
    """

    text: str
    here: str
    key: str = ""

    @classmethod
    def of(cls, settings: LabellerSettings) -> Labeller:
        """Of the settings, started in the present folder."""
        return cls(settings.model_dump_json(), os.getcwd())

    @property
    def settings(self) -> LabellerSettings:
        """What was asked for."""
        return LabellerSettings.model_validate_json(self.text)

    def identified(self) -> tuple[Labeller, Identity]:
        """It itself with its key, and who it is.

        Raises:
            InputError: if it does not start, or a file that it names is not there.
        """
        settings = self.settings
        if settings.command is None:
            identity = self._hired().identity
        else:
            hashes = {}
            for name in settings.files:
                path = Path(self.here, name)
                if not path.is_file():
                    raise InputError(f"labeller.files: {path} does not exist, or is no file; the command needs it.")
                hashes[hashlib.sha256(path.read_bytes()).hexdigest()] = path.name
            asked = ["command", {"command": settings.command, "units": settings.units}]
            identity = Identity([asked], {}, hashes)
        known = replace(self, key=identity.key)
        mine = (threading.get_ident(), self)
        if mine in _processes:
            _processes[threading.get_ident(), known] = _processes.pop(mine)
        return known, identity

    def ask(self, folder: Path) -> Reply:
        """What it says of the structure in a job's folder; an answer that is there, or on its way, is taken.

        Raises:
            InputError: if it does not start, or has become another one.
        """
        start = time.monotonic()
        (frame,) = read_any(folder / STRUCTURE, labelled=False)
        if self.settings.command is not None:
            reply = _asked_by_command(self, folder, frame)
        elif (folder / _ANSWER).exists():
            reply = _answer_kept(folder / _ANSWER)
        else:
            reply = self._asked_of_process(folder, frame)
        reply = replace(reply, seconds=reply.seconds or time.monotonic() - start)
        return _checked(reply, frame)

    def _hired(self) -> TeacherProcess:
        mine = (threading.get_ident(), self)
        if mine not in _processes:
            settings = self.settings
            names = [settings.calculator] if settings.calculator else list(settings.models)
            kwargs = settings.kwargs if settings.calculator else None
            process = Teacher.of(names, settings.python, kwargs).start(settings.threads)
            if self.key and process.identity.key != self.key:
                process.close()
                raise InputError(
                    f"the labeller {process.identity.name} is another one than before (another version or other "
                    "weights); mend its environment, or begin a new run."
                )
            _processes[mine] = process
        return _processes[mine]

    def _asked_of_process(self, folder: Path, frame: Frames) -> Reply:
        process, limit = self._hired(), self.settings.timeout
        overdue = threading.Event()

        def give_up() -> None:
            overdue.set()
            process.kill()
            _end_holder(folder / f"{_ANSWER}.lock")

        timer = threading.Timer(limit or 1e9, give_up)
        if limit is not None:
            timer.start()
        try:
            (answer,) = process.label(frame, keep=folder / _ANSWER)
        except WorkerDiedError as death:
            process.close()
            _processes.pop((threading.get_ident(), self), None)
            if overdue.is_set():
                return Reply(0.0, failure="too long", reason=f"no answer within {limit:g} s (labeller.timeout)")
            return Reply(0.0, failure="died", reason=str(death))
        finally:
            timer.cancel()
        return _reply(answer.error, answer.labels, answer.seconds)


def close_processes() -> None:
    """End the processes of all calculators."""
    while _processes:
        _processes.popitem()[1].close()


def forget_answer(folder: Path) -> None:
    """Make room for asking again."""
    for name in (_ANSWER, f"{_ANSWER}.lock", _LABELLED, _EXIT):
        (folder / name).unlink(missing_ok=True)


def _reply(error: str | None, labels: dict[str, np.ndarray], seconds: float) -> Reply:
    if error is None:
        return Reply(seconds, labels)
    unconverged = "converge" in error.lower() or "SCFError" in error
    return Reply(seconds, failure="not converged" if unconverged else "error", reason=error[:300])


def _answer_kept(path: Path) -> Reply:
    with path.open("rb") as stream:
        body = read_message(stream)
    if body is None:
        return Reply(0.0, failure="died", reason="what it had written is damaged")
    header, labels = unpack_message(body)
    return _reply(header["error"], labels, header["seconds"])


def _checked(reply: Reply, frame: Frames) -> Reply:
    """A reply that is a label, or says why not."""
    if reply.failure is not None:
        return reply
    n = int(frame.counts[0])
    shapes = {"energy": (), "forces": (n, 3), "stress": (3, 3), "energies": (n,), "forces_std": (n, 3)}
    for name in ("energy", "forces"):
        if name not in reply.labels:
            return replace(reply, failure="no label", reason=f"it gave no {name}, but energy and forces are needed")
    for name, value in reply.labels.items():
        if value.shape != shapes.get(name, value.shape):
            said = f"its {name} has shape {value.shape}, expected {shapes[name]} for {n} atoms"
            return replace(reply, failure="other atoms", reason=said)
        if not np.isfinite(value).all():
            return replace(reply, failure="not finite", reason=f"its {name} holds NaN or infinite numbers")
    return reply


# Commands.


def _asked_by_command(labeller: Labeller, folder: Path, frame: Frames) -> Reply:
    limit = labeller.settings.timeout or float("inf")
    path = folder / "lock"
    with path.open("a+") as lock:
        begun = time.time()
        while not _locked(lock.fileno()):  # by the shell of a program that was killed meanwhile
            with suppress(OSError):
                begun = path.stat().st_mtime
            if time.time() - begun > limit and (elsewhere := _end_holder(path)):
                reason = f"process {elsewhere} still holds it after {limit:g} s (labeller.timeout); end it there"
                return Reply(0.0, failure="too long", reason=reason)
            time.sleep(_POLL)
        if (folder / _EXIT).exists():
            return _read_labelled(folder, labeller, frame)
        if not _run_command(labeller, folder, lock.fileno()):
            return Reply(0.0, failure="too long", reason=f"no answer within {limit:g} s (labeller.timeout)")
    return _read_labelled(folder, labeller, frame)


def _locked(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _run_command(labeller: Labeller, folder: Path, lock: int) -> bool:
    """Run the shell, which inherits the lock; whether it ended within the time that it has."""
    settings = labeller.settings
    command = settings.command or ""
    for word, path in (("input", folder / STRUCTURE), ("output", folder / _LABELLED), ("here", Path(labeller.here))):
        command = command.replace(f"{{{word}}}", _quoted(path.absolute()))
    # The code is written by the shell itself, so that it is known even if nobody waits for it.
    script = f"(\n{command}\n)\necho $? > {_EXIT}.partial && mv {_EXIT}.partial {_EXIT}\n"
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(settings.threads))
    with (folder / _LOG).open("wb") as log:
        process = subprocess.Popen(
            ["/bin/sh", "-c", script],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**os.environ, **threads},
            start_new_session=True,
            pass_fds=(lock,),
        )
    os.truncate(lock, 0)
    os.write(lock, f"{process.pid} {socket.gethostname()}".encode())
    try:
        process.wait(settings.timeout)
    except subprocess.TimeoutExpired:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return False
    return True


def _quoted(path: Path) -> str:
    import shlex

    return shlex.quote(str(path))


def _end_holder(path: Path) -> str | None:
    """End the process, with its group, that holds a lock on this file and has written its number there; one of another
    machine, whose number means something else here, is left alone, and named."""
    with suppress(OSError, ValueError), path.open("a+") as lock:
        if not _locked(lock.fileno()):
            lock.seek(0)
            number, _, host = lock.read().partition(" ")
            if host != socket.gethostname():
                return f"{number} on {host or 'an unknown machine'}"
            os.killpg(int(number), signal.SIGKILL)
    return None


def _read_labelled(folder: Path, labeller: Labeller, frame: Frames) -> Reply:
    """What a command wrote, in our units, or why that is no label."""
    said = " ".join((folder / _LOG).read_text(errors="replace").split())[-200:] if (folder / _LOG).exists() else ""
    code = (folder / _EXIT).read_text().strip() if (folder / _EXIT).exists() else "of a kill"
    if code != "0":
        return _reply(f"the command ended with exit code {code}" + (f", saying: …{said}" if said else ""), {}, 0.0)
    if not (folder / _LABELLED).exists():
        return Reply(0.0, failure="no label", reason="the command ended well, but wrote nothing to {output}")
    try:
        found = list(read_any(folder / _LABELLED, keys_of(None, None, None, None, labeller.settings.units)))
        one = Frames.concatenate(found)
        info = unpack(one.extras[0] if one.extras else None, _LABELLED).info
    except SnnpError as error:
        return Reply(0.0, failure="no label", reason=f"what it wrote cannot be read: {error}")
    if len(one) != 1 or len(one.numbers) != len(frame.numbers) or (one.numbers != frame.numbers).any():
        said = f"{len(one)} structures of {one.counts.tolist()[:3]} atoms, expected one of {len(frame.numbers)}"
        return Reply(0.0, failure="other atoms", reason=f"it wrote {said} in the same order")
    if info.get("converged") in (False, "F", "False", 0):
        return Reply(0.0, failure="not converged", reason="it says converged=F")
    if (moved := _moved(one, frame)) is not None:
        said = f"it moved the {moved}; it must label them where they are"
        hint = " (positions and lattice, too, are in labeller.units)" if labeller.settings.units else ""
        return Reply(0.0, failure="other atoms", reason=f"{said}{hint}")
    labels = {"energy": one.energy[0]} if one.has_energy[0] else {}
    labels |= {"forces": one.forces} if one.has_forces[0] else {}
    labels |= {"stress": one.stress[0]} if one.has_stress[0] and frame.pbc.all() else {}
    return Reply(0.0, {name: np.asarray(value, dtype=np.float64) for name, value in labels.items()})


def _moved(one: Frames, frame: Frames) -> str | None:
    """What of a structure is not where it was; by whole lattice vectors is no move, and a lattice may be left out."""
    pbc = frame.pbc[0]
    if len(one.numbers) == 0:
        return None
    if pbc.any() and one.cell[0].any() and np.abs(one.cell[0] - frame.cell[0])[pbc].max() > _MOVED:
        return "lattice vectors"
    apart = one.positions - frame.positions
    lattice = frame.cell[0][pbc]
    if len(lattice):
        apart = apart - np.round(apart @ np.linalg.pinv(lattice)) @ lattice
    return "atoms" if not np.abs(apart).max() <= _MOVED else None
