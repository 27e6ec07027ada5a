"""Molecular dynamics and relaxation: settings, structures, files and results shared by the engines.

The names below are loaded when they are first used: the command line reads `MDSettings`, and must not wait for torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from snnp.sampling.checkpoint import Checkpoint, starting_point
    from snnp.sampling.run import MDProgress, MDResult, RelaxProgress, RelaxResult, drive, relax, run_md
    from snnp.sampling.settings import MDSettings
    from snnp.sampling.snapshot import Sample
    from snnp.sampling.structures import build_structure, structure_files

__all__ = ["Checkpoint", "MDProgress", "MDResult", "MDSettings", "RelaxProgress", "RelaxResult", "Sample"]
__all__ += ["build_structure", "drive", "relax", "run_md", "starting_point", "structure_files"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        for home in ("settings", "structures", "run"):  # the light ones first; `run` has all that is left
            module = importlib.import_module(f"snnp.sampling.{home}")
            if hasattr(module, name):
                return getattr(module, name)
    raise AttributeError(f"module 'snnp.sampling' has no attribute {name!r}")
