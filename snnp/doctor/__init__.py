"""The doctor: what is wrong with a data set or a model, what it means, and how to mend it."""

from snnp.doctor.data.examine import DATA_CHECKS, examine_data
from snnp.doctor.model.examine import MODEL_CHECKS, examine_model
from snnp.doctor.report import Finding, Picture, Report

__all__ = ["DATA_CHECKS", "MODEL_CHECKS", "Finding", "Picture", "Report", "examine_data", "examine_model"]
