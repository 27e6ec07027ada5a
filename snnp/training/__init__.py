"""Training to energies, forces and stresses, and evaluation against reference data."""

from snnp.training.config import DataConfig, LossConfig, OptimiserConfig, TrainConfig, load_config
from snnp.training.evaluation import evaluate
from snnp.training.loop import Progress
from snnp.training.run import RunResult, resume, train

__all__ = ["DataConfig", "LossConfig", "OptimiserConfig", "Progress", "RunResult", "TrainConfig", "evaluate"]
__all__ += ["load_config", "resume", "train"]
