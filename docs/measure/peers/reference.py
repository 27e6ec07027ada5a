"""The s-NNP whose speed the targets name, and its variations, with random weights: cost does not depend on values."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from snnp.models.spline.config import AngularConfig, NetworkConfig, RadialConfig, SplineNNPConfig
from snnp.models.spline.model import SplineNNP
from snnp.models.store import save_model

__all__ = ["REFERENCE_SYSTEM", "ReferenceForm", "reference_model"]

REFERENCE_SYSTEM = "fcc:Al:a=4.05"


@dataclass(frozen=True)
class ReferenceForm:
    """Filters, degree and cutoff (Å) of a model for Al with two hidden layers of 32."""

    n_radial: int = 8
    n_angular: int = 16
    degree: int = 4
    cutoff: float = 6.0

    @property
    def name(self) -> str:
        """Such as `8+16, L = 4`."""
        return f"{self.n_radial}+{self.n_angular}, L = {self.degree}"

    def config(self) -> SplineNNPConfig:
        """The form as a configuration."""
        return SplineNNPConfig(
            elements=("Al",),
            radial=RadialConfig(n_filters=self.n_radial, cutoff=self.cutoff),
            angular=AngularConfig(n_filters=self.n_angular, cutoff=self.cutoff, degree=self.degree),
            network=NetworkConfig(hidden=(32, 32)),
        )


def reference_model(form: ReferenceForm, folder: Path) -> Path:
    """Write a model of this form into a folder and return it."""
    return save_model(SplineNNP(form.config()), folder)
