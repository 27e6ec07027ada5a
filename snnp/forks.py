"""Forks of a process in which torch has computed: its OpenMP threads are given back before.

A child has only the thread that forked, but OpenMP would still wait there, for ever, for the ones that the parent had.
Given back, they are made anew where they are needed next, in the parent and in the child (measured: 0.3 ms per fork).
"""

from __future__ import annotations

import ctypes
import os
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

__all__ = ["prepare"]

_PAUSE_HARD = 2  # omp_pause_hard of OpenMP 5.0
_released = False


@lru_cache(maxsize=1)
def _omp_pause() -> Any:
    """`omp_pause_resource_all` of the OpenMP library that torch uses, whichever that is; None where it has none."""
    suffix = ".dylib" if sys.platform == "darwin" else ".so"
    try:
        # Looked up in the library of torch that uses it: another OpenMP may be loaded, too.
        return ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / f"libtorch_cpu{suffix}")).omp_pause_resource_all
    except (OSError, AttributeError):
        return None


def _release_threads() -> None:
    global _released
    pause = _omp_pause()
    _released = pause is not None and pause(_PAUSE_HARD) == 0


def _compute_alone() -> None:
    # What could not be given back is never waited for by a child that uses one thread.
    if not _released:
        torch.set_num_threads(1)


@lru_cache(maxsize=1)
def prepare() -> None:
    """Let forks of this process be safe for torch, from now on."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(before=_release_threads, after_in_child=_compute_alone)
