"""Potentials: the contract, the s-NNP, and how models are stored."""

from snnp.models import special_cases
from snnp.models.ani import ANI, ANIConfig
from snnp.models.config import (
    AngularConfig,
    EmbeddingConfig,
    NetworkConfig,
    RadialConfig,
    RepulsionConfig,
    SplineNNPConfig,
)
from snnp.models.ensemble import Ensemble, EnsembleConfig
from snnp.models.hipnn import HIPNN
from snnp.models.hipnn_config import HIPNNConfig
from snnp.models.io import list_models, load_model, save_model
from snnp.models.potential import Potential, Prediction
from snnp.models.spline_nnp import SplineNNP

__all__ = [
    "ANI",
    "HIPNN",
    "ANIConfig",
    "AngularConfig",
    "EmbeddingConfig",
    "Ensemble",
    "EnsembleConfig",
    "HIPNNConfig",
    "NetworkConfig",
    "Potential",
    "Prediction",
    "RadialConfig",
    "RepulsionConfig",
    "SplineNNP",
    "SplineNNPConfig",
    "list_models",
    "load_model",
    "save_model",
    "special_cases",
]
