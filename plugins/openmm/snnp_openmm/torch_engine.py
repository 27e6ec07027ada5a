"""The engine "torch": OpenMM's TorchForce runs a potential as a TorchScript module, without Python between steps.

Its releases work in one combination only, which no environment for `PythonForce` can hold: the extra `openmm-torch` is
for an environment of its own. Source: https://github.com/openmm/openmm-torch, and trials of 2026-11.
"""
# No `from __future__ import annotations` here: TorchScript needs the annotations themselves.

import importlib.metadata
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from snnp.errors import MissingDependencyError
from snnp.models.export import scripted_module, without_deprecation
from snnp.models.potential import Potential
from snnp_openmm.geometry import openmm

__all__ = ["NEEDS", "check_torch_engine", "installed", "torch_force"]

NEEDS = {"openmmtorch": "1.5", "torch": "2.9", "openmm": "8.4"}
"""Releases that work together; others end in a segmentation fault or fail at the first Context (tried 2026-11)."""


_loaded_again: set[str] = set()


def installed(*names: str) -> dict[str, str]:
    """Versions of packages, "missing" where there is none."""
    found = dict.fromkeys(names, "missing")
    for name in names:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def check_torch_engine() -> None:
    """Raise `MissingDependencyError` where openmm-torch is missing, or in a combination that crashes."""
    found = installed(*NEEDS)
    if all(f"{found[name]}.".startswith(f"{release}.") for name, release in NEEDS.items()):
        return
    need = ", ".join(f"{name} {release}.x" for name, release in NEEDS.items())
    have = ", ".join(f"{name} {version}" for name, version in found.items())
    raise MissingDependencyError(
        f"engine 'torch' needs {need} together (other combinations crash); found {have}. Use engine='python', which "
        "gives the same numbers, or in an environment of its own: pip install 'snnp[openmm-torch]'."
    )


def torch_force(model: Potential, numbers: np.ndarray, periodic: bool, indices: Sequence[int] | None = None) -> Any:
    """An `openmmtorch.TorchForce` for atomic numbers [N] of all particles, or of those at `indices`."""
    # In this order: torch (by snnp), openmm, openmmtorch; another one crashes.
    mm = openmm()
    import openmmtorch

    _load_again(mm)
    force = openmmtorch.TorchForce(compiled_module(model, numbers, periodic, indices))
    force.setName("snnp")
    force.setOutputsForces(True)
    force.setUsesPeriodicBoundaryConditions(periodic)
    return force


def _load_again(mm: Any) -> None:
    """Load what OpenMM could not load where it was imported before torch, whose libraries it needs."""
    registered = {mm.Platform.getPlatform(k).getName() for k in range(mm.Platform.getNumPlatforms())}
    for failure in mm.Platform.getPluginLoadFailures():
        path = failure.removeprefix("Error loading library ").partition(": ")[0]
        platform = Path(path).stem.removeprefix("libOpenMMTorch")
        if platform in registered and path not in _loaded_again:
            mm.Platform.loadPluginLibrary(path)
            _loaded_again.add(path)


def compiled_module(
    model: Potential, numbers: np.ndarray, periodic: bool, indices: Sequence[int] | None = None
) -> torch.jit.ScriptModule:
    """What TorchForce calls: `module(positions)` or, if periodic, `module(positions, boxvectors)` of all particles.

    It returns energy (kJ/mol) and forces (kJ/mol/nm) of all particles; those that are not at `indices` feel none.
    """
    whole = scripted_module(model, numbers=numbers.tolist(), periodic=periodic, forces=True)
    if indices is None:
        return whole
    kind = _SomeInABox if periodic else _Some
    with without_deprecation():
        compiled: torch.jit.ScriptModule = torch.jit.script(kind(whole, torch.tensor(list(indices))))
    return compiled


class _Some(nn.Module):
    atoms: Tensor

    def __init__(self, module: nn.Module, atoms: Tensor) -> None:
        super().__init__()
        self.module = module
        self.register_buffer("atoms", atoms)

    def forward(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        energy, forces = self.module(positions[self.atoms])
        return energy, torch.zeros_like(positions).index_copy(0, self.atoms, forces)


class _SomeInABox(nn.Module):
    atoms: Tensor

    def __init__(self, module: nn.Module, atoms: Tensor) -> None:
        super().__init__()
        self.module = module
        self.register_buffer("atoms", atoms)

    def forward(self, positions: Tensor, boxvectors: Tensor) -> tuple[Tensor, Tensor]:
        energy, forces = self.module(positions[self.atoms], boxvectors)
        return energy, torch.zeros_like(positions).index_copy(0, self.atoms, forces)
