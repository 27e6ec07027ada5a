"""What was lost: the student beside its teacher, and whether it reaches the bars that were set before."""

from snnp.distillation.verdict.behaviour import (
    HOT,
    beside,
    compounds_beside,
    crystals_beside,
    extensivity,
    liquid_beside,
    moving,
)
from snnp.distillation.verdict.comparison import (
    Measured,
    against_baseline,
    against_reference,
    against_teacher,
    judge,
    kind_of,
    memory,
    speed,
    table,
)

__all__ = [
    "HOT",
    "Measured",
    "against_baseline",
    "against_reference",
    "against_teacher",
    "beside",
    "compounds_beside",
    "crystals_beside",
    "extensivity",
    "judge",
    "kind_of",
    "liquid_beside",
    "memory",
    "moving",
    "speed",
    "table",
]
