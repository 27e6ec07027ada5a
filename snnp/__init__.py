"""Readable spline-based neural network interatomic potentials.

    model = snnp.load_model("snnp-si")
    prediction = model.compute(atoms, stress=True)
    atoms.calc = snnp.SNNPCalculator(model)

The names below are loaded when they are first used, so that `import snnp` does not wait for torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from snnp.data import load_dataset
    from snnp.hub import load_model
    from snnp.models import Potential, Prediction, SplineNNP, SplineNNPConfig, list_models, save_model
    from snnp.structure import Structure

__all__ = ["Potential", "Prediction", "SNNPCalculator", "SplineNNP", "SplineNNPConfig", "Structure", "__version__"]
__all__ += ["list_models", "load_dataset", "load_model", "save_model"]

__version__ = "0.1.0"

# Where the names above live; those that are not here are in snnp.models.
_HOMES = {
    "SNNPCalculator": "snnp_ase",  # by name only: a plugin imports snnp, never the reverse
    "Structure": "snnp.structure",
    "load_dataset": "snnp.data",
    "load_model": "snnp.hub",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'snnp' has no attribute {name!r}")
    home = _HOMES.get(name, "snnp.models")
    try:
        return getattr(importlib.import_module(home), name)
    except ModuleNotFoundError as error:
        if error.name != home:
            raise
        from snnp.errors import MissingDependencyError

        raise MissingDependencyError(f"snnp.{name} needs {home}, which is not installed; reinstall snnp.") from None


def __dir__() -> list[str]:
    return sorted(__all__)
