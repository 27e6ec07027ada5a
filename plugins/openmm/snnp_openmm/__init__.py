"""OpenMM plugin: snnp potentials as OpenMM forces.

Everything is imported on first use. openmmml loads `snnp_openmm.mlpotential` whenever it is imported, so importing this
package must stay cheap and must not fail where torch or snnp cannot be imported.
"""

from __future__ import annotations

import importlib
from typing import Any

__all__ = ["create_force", "create_system", "measure_overhead", "run_md", "to_openmm"]

_HOMES = {
    "create_force": "snnp_openmm.force",
    "create_system": "snnp_openmm.force",
    "measure_overhead": "snnp_openmm.benchmark",
    "run_md": "snnp_openmm.md",
    "to_openmm": "snnp_openmm.geometry",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'snnp_openmm' has no attribute {name!r}; it offers {', '.join(__all__)}.")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
