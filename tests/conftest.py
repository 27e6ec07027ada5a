"""Fixtures that every test file may use."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import hub_server

# Before anything imports huggingface_hub or matplotlib: no test asks the real Hub or knows its user's token and cache,
# and there is no display on a test machine.
os.environ.update(hub_server.environment())
os.environ.setdefault("MPLBACKEND", "Agg")

import numpy as np
import pytest
import torch

# Before anything imports triton: where there is no GPU its interpreter runs the kernels.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def repository() -> Path:
    """Root of the source tree."""
    return REPOSITORY


@pytest.fixture(scope="session")
def snnp_data() -> Path:
    """Folder of reference data sets, which are too large for the repository; `SNNP_DATA` names it."""
    folder = os.environ.get("SNNP_DATA")
    if folder is None:
        pytest.skip("SNNP_DATA is not set: it names the folder of the reference data (see datasets/README.md)")
    if not Path(folder).is_dir():
        pytest.skip(f"SNNP_DATA={folder} is no folder: it names that of the reference data (see datasets/README.md)")
    return Path(folder)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[hub_server.HubServer]:
    """An empty Hub on the loopback, an empty cache, and a user who may write to `org/...`."""
    from huggingface_hub import constants

    from snnp.hub import client

    cache = str(tmp_path / "hub-cache")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", cache)
    monkeypatch.setattr(constants, "HF_ASSETS_CACHE", str(tmp_path / "hub-assets"))
    monkeypatch.setenv("HF_HUB_CACHE", cache)  # for programs that a test starts
    monkeypatch.setenv("HF_ASSETS_CACHE", str(tmp_path / "hub-assets"))
    monkeypatch.setenv("HF_TOKEN", "hf_writer")
    monkeypatch.setattr(client, "_WAITS", (0.01, 0.02, 0.04))
    hub_server.HUB.clear()
    yield hub_server.HUB
    hub_server.HUB.clear()


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


@pytest.fixture
def without_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs whose pictures nobody looks at leave empty ones: three take longer than a small training."""
    for name in ("plot_parity", "plot_loss"):
        monkeypatch.setattr(f"snnp.training.evaluation.{name}", lambda path, *_: Path(path).write_bytes(b""))
