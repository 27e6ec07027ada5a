"""OpenMM plugin: snnp potentials as OpenMM forces.

Everything is imported on first use: openmmml loads this package with itself, with or without torch.
"""

from __future__ import annotations

import importlib
import warnings
from functools import partial
from typing import Any

__all__ = ["UncertaintyReporter", "create_force", "create_system", "run_md", "to_openmm"]

_HOMES = {"create_force": "force", "create_system": "force", "run_md": "md", "to_openmm": "geometry"}
_HOMES["UncertaintyReporter"] = "reporter"


def __getattr__(name: str) -> Any:
    if name == "measure_overhead":
        warnings.warn("measure_overhead is snnp.sampling.cost.measure_engine now", DeprecationWarning, stacklevel=2)
        return partial(importlib.import_module("snnp.sampling.cost").measure_engine, engine="openmm")
    if name not in _HOMES:
        raise AttributeError(f"module 'snnp_openmm' has no attribute {name!r}; it offers {', '.join(__all__)}.")
    return getattr(importlib.import_module(f"snnp_openmm.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
