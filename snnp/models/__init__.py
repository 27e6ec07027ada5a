"""Potentials: the contract, the s-NNP, and how models are stored."""

from snnp.models.ani.model import ANI, ANIConfig
from snnp.models.config import RepulsionConfig
from snnp.models.ensemble import Ensemble, EnsembleConfig
from snnp.models.hipnn.config import HIPNNConfig
from snnp.models.hipnn.model import HIPNN
from snnp.models.potential import Potential, Prediction
from snnp.models.spline import special_cases
from snnp.models.spline.config import AngularConfig, EmbeddingConfig, NetworkConfig, RadialConfig, SplineNNPConfig
from snnp.models.spline.model import SplineNNP
from snnp.models.store import list_models, load_model, save_model

__all__ = ["ANI", "HIPNN", "ANIConfig", "AngularConfig", "EmbeddingConfig", "Ensemble", "EnsembleConfig", "HIPNNConfig"]
__all__ += ["NetworkConfig", "Potential", "Prediction", "RadialConfig", "RepulsionConfig", "SplineNNP"]
__all__ += ["SplineNNPConfig", "list_models", "load_model", "save_model", "special_cases"]
