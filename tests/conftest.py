"""Fixtures that every test file may use."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("MPLBACKEND", "Agg")  # before anything imports matplotlib: no display on a test machine

import numpy as np
import pytest
import torch

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def repository() -> Path:
    """Root of the source tree."""
    return REPOSITORY


@pytest.fixture(scope="session")
def snnp_data() -> Path:
    """Folder of reference data sets, which are too large for the repository; `SNNP_DATA` names it."""
    folder = Path(os.environ.get("SNNP_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no reference data at {folder}: set SNNP_DATA (see datasets/mlearn/README.md)")
    return folder


@pytest.fixture(autouse=True, scope="session")
def _interrupts_arrive() -> Iterator[None]:
    """Ctrl-C raises: a background job of a shell starts with SIGINT ignored, and tests of interruption would hang."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(autouse=True)
def _same_numbers_every_time() -> Iterator[None]:
    """One thread and fixed seeds; whatever a test sets is undone."""
    threads = torch.get_num_threads()
    dtype = torch.get_default_dtype()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002  libraries such as ASE draw from the global generator
    yield
    torch.set_default_dtype(dtype)
    torch.set_num_threads(threads)
