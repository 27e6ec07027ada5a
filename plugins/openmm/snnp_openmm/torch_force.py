"""The engine "torch": a TorchScript export of a potential inside openmm-torch's TorchForce."""

from __future__ import annotations

import importlib.metadata
from typing import Any

import numpy as np

from snnp.errors import MissingDependencyError
from snnp.models.export import scripted_module
from snnp.models.potential import Potential
from snnp_openmm.require import openmm

__all__ = ["check_torch_engine", "create_torch_force"]

_WORKING = {"openmmtorch": "1.5", "torch": "2.9", "openmm": "8.4"}
"""Releases that work together; others end in a segmentation fault or fail at the first Context (tried 2026-11)."""


def check_torch_engine() -> None:
    """Refuse where openmm-torch is missing, or in a combination that crashes.

    Raises:
        MissingDependencyError: names what was found and what is needed.
    """
    found = {}
    for name in _WORKING:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "missing"
    if all(f"{found[name]}.".startswith(f"{release}.") for name, release in _WORKING.items()):
        return
    need = ", ".join(f"{name} {release}.x" for name, release in _WORKING.items())
    have = ", ".join(f"{name} {version}" for name, version in found.items())
    raise MissingDependencyError(
        f"engine 'torch' needs {need} together (other combinations crash); found {have}. "
        "Use engine='python', which gives the same numbers, or an environment with those versions."
    )


def create_torch_force(model: Potential, numbers: np.ndarray, periodic: bool) -> Any:
    """An `openmmtorch.TorchForce` that computes a potential for all particles, [N] atomic numbers, forces included.

    Raises:
        MissingDependencyError: see `check_torch_engine`.
        InputError: the potential cannot be exported.
    """
    check_torch_engine()
    # In this order: torch (by snnp), openmm, openmmtorch; another one crashes.
    openmm()
    import openmmtorch

    force = openmmtorch.TorchForce(scripted_module(model, numbers=numbers.tolist(), periodic=periodic, forces=True))
    force.setName("snnp")
    force.setOutputsForces(True)
    force.setUsesPeriodicBoundaryConditions(periodic)
    return force
