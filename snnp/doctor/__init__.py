"""The doctor: what is wrong with a data set or a model, what it means, and how to mend it."""

from snnp.doctor.examine import DATA_CHECKS, MODEL_CHECKS, examine_data, examine_model
from snnp.report import Finding, Report

__all__ = ["DATA_CHECKS", "MODEL_CHECKS", "Finding", "Report", "examine_data", "examine_model"]
