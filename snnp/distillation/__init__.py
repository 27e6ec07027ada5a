"""Distillation: from any teacher to a fast student.

settings = DistilSettings(teachers=["ase.calculators.emt:EMT"], elements=["Cu"])
result = distil(settings, "runs/copper")
result.accepted, result.model
"""

from snnp.distillation.distil import DistilProgress, DistilResult, Plan, distil, plan
from snnp.distillation.labels import Labelling, LabelStore, label
from snnp.distillation.settings import Bars, DistilSettings
from snnp.distillation.teachers import Identity, Models, Teacher

__all__ = [
    "Bars",
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
