"""Distillation: from any teacher to a fast student.

    settings = DistilSettings(teachers=["ase.calculators.emt:EMT"], elements=["Cu"])
    result = distil(settings, "runs/copper")
    result.accepted, result.model

The names are loaded when they are first used: the command line reads `DistilSettings` and must not wait for torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from snnp.distillation.label_store import Crew, Labelling, LabelStore, label
    from snnp.distillation.run import DistilProgress, DistilResult, Plan, distil, plan
    from snnp.distillation.settings import Bars, DistilSettings
    from snnp.distillation.teachers import Identity, Models, Teacher

__all__ = [
    "Bars",
    "Crew",
    "DistilProgress",
    "DistilResult",
    "DistilSettings",
    "Identity",
    "LabelStore",
    "Labelling",
    "Models",
    "Plan",
    "Teacher",
    "distil",
    "label",
    "plan",
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        for home in ("settings", "teachers", "label_store", "run"):
            module = importlib.import_module(f"snnp.distillation.{home}")
            if hasattr(module, name):
                return getattr(module, name)
    raise AttributeError(f"module 'snnp.distillation' has no attribute {name!r}")
