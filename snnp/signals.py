"""Ctrl-C and SIGTERM: the first asks a run to stop in good order, the second ends it at once."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

__all__ = ["Interrupted", "StopRequest", "stop_requests"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(KeyboardInterrupt):
    """A run that stopped because it was asked to.

    Arguments:
        signum: the signal; programs end with the code 128 + signum.
        where: how far the run was, and whether it can go on from there.
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
