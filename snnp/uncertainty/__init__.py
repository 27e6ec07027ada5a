"""How far to trust a prediction: the spread of a committee, the distance from the training data, their calibration."""

from snnp.uncertainty.calibration import Calibration, calibrate
from snnp.uncertainty.committee import Committee, Spread
from snnp.uncertainty.measures import CommitteeSpread, Doubt, FeatureDistance, Hierarchicality, Measure, measure_for

__all__ = [
    "Calibration",
    "Committee",
    "CommitteeSpread",
    "Doubt",
    "FeatureDistance",
    "Hierarchicality",
    "Measure",
    "Spread",
    "calibrate",
    "measure_for",
]
