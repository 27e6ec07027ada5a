"""The report of a run."""

from __future__ import annotations

from pathlib import Path

from snnp.active.status import status_of
from snnp.distillation.label_store import LabelStore

__all__ = ["write"]


def write(folder: Path, store: LabelStore) -> None:
    """Write it."""
    status_of(folder)
