"""A process and its surroundings: signals that ask a run to stop, and forks of a process in which torch has computed.

Signals: the first Ctrl-C or SIGTERM asks a run to stop in good order, the second ends it at once.

Forks: OpenMP's threads are given back before. A child has only the thread that forked, but OpenMP would still wait
there, for ever, for the ones that the parent had. Given back, they are made anew where they are needed next, in the
parent and in the child (measured: 0.3 ms per fork).
"""

from __future__ import annotations

import ctypes
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import FrameType
from typing import Any

__all__ = ["Interrupted", "StopRequest", "make_forks_safe", "stop_requests"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_PAUSE_HARD = 2  # omp_pause_hard of OpenMP 5.0


class Interrupted(KeyboardInterrupt):
    """A run that stopped because it was asked to, by a signal: programs end with the code 128 + signum.

    `where`: how far the run was, and whether it can go on from there.
    """

    def __init__(self, signum: int, where: str) -> None:
        super().__init__(where)
        self.signum = signum
        self.where = where


@dataclass
class StopRequest:
    """The signal that came, or None so far."""

    signum: int | None = None
    came: float = math.inf

    def overdue(self, seconds: float) -> bool:
        """Whether it came so long ago."""
        return time.monotonic() - self.came > seconds


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Note Ctrl-C and SIGTERM during the block in place of what they did before, which the second one does again.

    Signals that are ignored stay so; outside of the main thread nothing changes, as Python handles signals there alone.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {each: signal.getsignal(each) for each in _SIGNALS}
    before = {each: handler for each, handler in before.items() if handler not in (signal.SIG_IGN, None)}

    def restore() -> None:
        for each, handler in before.items():
            signal.signal(each, handler)

    def note(signum: int, frame: FrameType | None) -> None:
        request.signum, request.came = signum, time.monotonic()
        restore()

    for each in before:
        signal.signal(each, note)
    try:
        yield request
    finally:
        restore()


@lru_cache(maxsize=1)
def _omp_pause() -> Any:
    """`omp_pause_resource_all` of the OpenMP library that torch uses, whichever that is; None where it has none."""
    import torch

    suffix = ".dylib" if sys.platform == "darwin" else ".so"
    try:
        # Looked up in the library of torch that uses it: another OpenMP may be loaded, too.
        return ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / f"libtorch_cpu{suffix}")).omp_pause_resource_all
    except (OSError, AttributeError):
        return None


@lru_cache(maxsize=1)
def make_forks_safe() -> None:
    """Let forks of this process be safe for torch, from now on."""
    released = False

    def release_threads() -> None:
        nonlocal released
        pause = _omp_pause()
        released = pause is not None and pause(_PAUSE_HARD) == 0

    def compute_alone() -> None:
        # What could not be given back is never waited for by a child that uses one thread.
        if not released:
            import torch

            torch.set_num_threads(1)

    if hasattr(os, "register_at_fork"):
        os.register_at_fork(before=release_threads, after_in_child=compute_alone)
