"""OpenMM and openmm-torch are optional: imported where they are used, with an error that names what is needed."""

from __future__ import annotations

import importlib.metadata
from contextlib import suppress
from typing import Any

from snnp.errors import MissingDependencyError

__all__ = ["check_python_force", "check_torch_engine", "openmm", "openmm_app"]

_FIRST_WITH_SUBSETS = (8, 6)
_CURE = "pip install 'snnp[openmm]' brings a version that works"
_WORKING = {"openmmtorch": "1.5", "torch": "2.9", "openmm": "8.4"}
"""Releases that work together; others end in a segmentation fault or fail at the first Context (tried 2026-11)."""


def openmm() -> Any:
    """The module `openmm`; raises `MissingDependencyError` where it cannot be imported."""
    try:
        import openmm as module
    except ImportError as error:
        raise MissingDependencyError(f"OpenMM is needed but cannot be imported ({error}); {_CURE}.") from error
    return module


def openmm_app() -> Any:
    """The module `openmm.app`; raises as `openmm` does."""
    openmm()
    import openmm.app as module

    return module


def check_python_force() -> None:
    """Raise `MissingDependencyError` unless OpenMM has `PythonForce` with subsets of particles (8.6)."""
    version = openmm().__version__
    if tuple(int(part) for part in version.split(".")[:2]) < _FIRST_WITH_SUBSETS:
        raise MissingDependencyError(f"OpenMM {version} is too old, PythonForce needs 8.6 or newer; {_CURE}.")


def check_torch_engine() -> None:
    """Raise `MissingDependencyError` where openmm-torch is missing, or in a combination that crashes."""
    found = dict.fromkeys(_WORKING, "missing")
    for name in _WORKING:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    if all(f"{found[name]}.".startswith(f"{release}.") for name, release in _WORKING.items()):
        return
    need = ", ".join(f"{name} {release}.x" for name, release in _WORKING.items())
    have = ", ".join(f"{name} {version}" for name, version in found.items())
    raise MissingDependencyError(
        f"engine 'torch' needs {need} together (other combinations crash); found {have}. "
        "Use engine='python', which gives the same numbers, or an environment with those versions."
    )
