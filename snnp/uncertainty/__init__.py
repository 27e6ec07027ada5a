"""How far to trust a prediction: the spread of a committee, the distance from the training data, their calibration."""

from snnp.uncertainty.calibration import Calibration, calibrate
from snnp.uncertainty.committee import Committee, Spread
from snnp.uncertainty.harvest import Harvest
from snnp.uncertainty.measures import CommitteeSpread, Doubt, FeatureDistance, Hierarchicality, Measure, measure_for
from snnp.uncertainty.observer import TooUncertainError, Watch

__all__ = [
    "Calibration",
    "Committee",
    "CommitteeSpread",
    "Doubt",
    "FeatureDistance",
    "Harvest",
    "Hierarchicality",
    "Measure",
    "Spread",
    "TooUncertainError",
    "Watch",
    "calibrate",
    "measure_for",
]
