"""s-NNPs that share their filters: the neighbours are encoded once, and every member reads the same features."""

from snnp.models.heads.shared_filters import HeadsEvaluator, HeadsStepper, SharedFilters

__all__ = ["HeadsEvaluator", "HeadsStepper", "SharedFilters"]
