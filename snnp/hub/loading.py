"""Models by any name: `snnp.load_model`."""

from __future__ import annotations

from pathlib import Path

import torch

from snnp.hub.resolver import Resolved, resolve
from snnp.models import store as io
from snnp.models.potential import Potential

__all__ = ["load_model", "load_pinned"]


def load_model(
    source: str | Path | Potential,
    *,
    revision: str | None = None,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
) -> Potential:
    """Load a model: bundled, from a folder or run, from a mirror, or from the Hub; a `Potential` passes through.

    Models from a mirror or the Hub carry their name and commit hash in `metadata["loaded_from"]`.

    Arguments:
        source: `snnp-si`, `runs/mine`, `org/name`, `org/name@v1.0`; see `resolve`.
        revision: branch, tag or commit hash.
        dtype: torch.float32 or torch.float64, or the name; None keeps the stored type.
        device: where to put it; None keeps it on the CPU.

    Raises:
        HubError: for a repository that is missing, out of reach or damaged.
        ModelFileError: for a missing, damaged, unknown or too new model.
        InputError: for an unfit name, or a type that is not float32 or float64.
    """
    if isinstance(source, Potential):
        return io.load_model(source, dtype=dtype, device=device)
    return _load(resolve(source, "model", revision), dtype, device)


def load_pinned(
    name: str | Path, *, dtype: torch.dtype | str | None = None, device: torch.device | str | None = None
) -> tuple[Potential, str]:
    """Load a model as `load_model` does; return it with the name to report, `org/name@commit` if it has a commit."""
    found = resolve(name, "model")
    return _load(found, dtype, device), found.pinned


def _load(found: Resolved, dtype: torch.dtype | str | None, device: torch.device | str | None) -> Potential:
    model = io.load_model(found.folder, dtype=dtype, device=device)
    model.name = found.pinned
    if found.commit is not None:
        model.metadata = {**model.metadata, "loaded_from": found.record()}
    return model
