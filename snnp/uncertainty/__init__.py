"""How far to trust a prediction: the spread of a committee, the distance from the training data, their calibration."""

from snnp.uncertainty.committee import Committee, Spread

__all__ = ["Committee", "Spread"]
