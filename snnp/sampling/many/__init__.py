"""Many small structures at once: evaluated, relaxed and moved as one batch, each with the result it has by itself."""

from snnp.sampling.many.crowd import Crowd, Failed, evaluate_many
from snnp.sampling.many.inputs import build_structures
from snnp.sampling.many.movement import ManyRun, run_many
from snnp.sampling.many.relaxation import relax_many
from snnp.sampling.many.torchsim import torchsim_model

__all__ = ["Crowd", "Failed", "ManyRun", "build_structures", "evaluate_many", "relax_many", "run_many"]
__all__ += ["torchsim_model"]
