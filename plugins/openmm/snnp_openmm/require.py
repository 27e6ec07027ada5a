"""OpenMM is an optional dependency: imported where it is used, with an error that names the extra."""

from __future__ import annotations

from typing import Any

from snnp.errors import MissingDependencyError

__all__ = ["check_python_force", "openmm", "openmm_app"]

_FIRST_WITH_SUBSETS = (8, 6)
_CURE = "pip install 'snnp[openmm]' brings a version that works"


def openmm() -> Any:
    """Return the module `openmm`.

    Raises:
        MissingDependencyError: if it cannot be imported.
    """
    try:
        import openmm as module
    except ImportError as error:
        raise MissingDependencyError(f"OpenMM is needed but cannot be imported ({error}); {_CURE}.") from error
    return module


def openmm_app() -> Any:
    """Return the module `openmm.app`; raises as `openmm` does."""
    openmm()
    import openmm.app as module

    return module


def check_python_force() -> None:
    """Check that OpenMM has `PythonForce` with subsets of particles.

    Raises:
        MissingDependencyError: if OpenMM is missing or older than 8.6.
    """
    version = openmm().__version__
    if tuple(int(part) for part in version.split(".")[:2]) < _FIRST_WITH_SUBSETS:
        raise MissingDependencyError(f"OpenMM {version} is too old, PythonForce needs 8.6 or newer; {_CURE}.")
