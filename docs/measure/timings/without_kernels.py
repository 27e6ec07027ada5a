"""The compiled library switched off for a while, to compare with torch in tests and timings."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from snnp.kernels.cpu.library import SWITCH, library

__all__ = ["switched_off"]


@contextmanager
def switched_off() -> Iterator[None]:
    """Within this block the library counts as absent, for all threads."""
    before = os.environ.get(SWITCH)
    os.environ[SWITCH] = "off"
    library.cache_clear()
    try:
        yield
    finally:
        del os.environ[SWITCH]
        if before is not None:
            os.environ[SWITCH] = before
        library.cache_clear()
