"""Readable spline-based neural network interatomic potentials.

    model = snnp.load_model("snnp-si")
    prediction = model.compute(snnp.Structure.from_ase(atoms), stress=True)

The names below are loaded when they are first used, so that `import snnp` does not wait for torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from snnp.models import Potential, Prediction, SplineNNP, SplineNNPConfig, list_models, load_model, save_model
    from snnp.structure import Structure

__all__ = [
    "Potential",
    "Prediction",
    "SplineNNP",
    "SplineNNPConfig",
    "Structure",
    "__version__",
    "list_models",
    "load_model",
    "save_model",
]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'snnp' has no attribute {name!r}")
    module = importlib.import_module("snnp.structure" if name == "Structure" else "snnp.models")
    return getattr(module, name)


def __dir__() -> list[str]:
    return sorted(__all__)
