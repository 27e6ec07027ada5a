"""A LAMMPS program that waits for commands: lines go to its first rank, answers come back behind a known word."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
import weakref
from collections import deque
from contextlib import suppress
from pathlib import Path

from snnp.errors import InputError, MissingDependencyError
from snnp_lammps.installation import environment, find_installation

__all__ = ["Conversation"]

_ANSWER = "snnp-answer"
_KEPT = 40  # lines, of which an error is one
_PATIENCE = 20.0  # s, for the program to end by itself


class Conversation:
    """A running LAMMPS.

    Arguments:
        plugin: folder of the pair style. ranks: of MPI.

    Raises:
        MissingDependencyError: without LAMMPS, or for several ranks without its launcher.
    """

    def __init__(self, plugin: Path, ranks: int = 1) -> None:
        lammps = find_installation()
        command = [str(lammps.program), "-log", "none", "-nocite", "-nonbuf"]
        if ranks > 1:
            if lammps.launcher is None:
                raise MissingDependencyError("several ranks need mpiexec of LAMMPS's own MPI; pip install mpich.")
            command = [str(lammps.launcher), "-n", str(ranks), *command]
        self.folder = Path(tempfile.mkdtemp(prefix="snnp-lammps-"))
        self._last: deque[str] = deque(maxlen=_KEPT)
        # In a session of its own: Ctrl-C is for us, who write a checkpoint and then end it.
        self._process = subprocess.Popen(
            command,
            cwd=self.folder,
            env=environment(LAMMPS_PLUGIN_PATH=str(plugin.resolve()), OMP_NUM_THREADS="1", **_patience(ranks)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.close = weakref.finalize(self, _end, self._process, self.folder)

    def ask(self, commands: list[str], expression: str = "") -> list[str]:
        """Carry out commands, and return the words of an expression, such as "$(pe:%.17g)", then.

        Raises:
            InputError: with LAMMPS's own words, where it stopped.
        """
        lines = [*commands, f'print "{_ANSWER} {expression}"']
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write("\n".join(lines) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise InputError(self._reason()) from None
        for line in self._process.stdout:
            if line.startswith(_ANSWER):
                return line.split()[1:]
            self._last.append(line.strip())
        raise InputError(self._reason())

    def _reason(self) -> str:
        errors = [line for line in self._last if "ERROR" in line] or [line for line in self._last if line][-1:]
        said = re.sub(r" \(\S+:\d+\)$", "", errors[-1]) if errors else "nothing"
        return f"LAMMPS stopped: {said}"


def _patience(ranks: int) -> dict[str, str]:
    """Ranks of MPICH wait with all their might; where processors are fewer, that keeps the others from working."""
    few = ranks < (os.cpu_count() or 1)
    names = "MPIR_CVAR_CH4_PROGRESS_THROTTLE", "MPIR_CVAR_CH4_PROGRESS_THROTTLE_NO_PROGRESS_COUNT"
    return {} if few else dict(zip(names, ("1", "32"), strict=True))


def _end(process: subprocess.Popen[str], folder: Path) -> None:
    """LAMMPS ends at the end of its input; where it does not, it is ended."""
    if process.stdin is not None:
        with suppress(BrokenPipeError):
            process.stdin.close()
    try:
        process.wait(_PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdout is not None:
        process.stdout.close()
    shutil.rmtree(folder, ignore_errors=True)
