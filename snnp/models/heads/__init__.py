"""Several s-NNPs by one call: where they share their filters, neighbours are encoded once."""

from snnp.models.heads.joint import HeadsEvaluator, JointEvaluator, JointStepper, MembersEvaluator
from snnp.models.heads.shared_filters import SharedFilters

__all__ = ["HeadsEvaluator", "JointEvaluator", "JointStepper", "MembersEvaluator", "SharedFilters"]
