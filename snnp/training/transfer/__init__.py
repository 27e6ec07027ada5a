"""Training on what a model knows: from it, for other data and elements, and to the labels of a teacher."""

from snnp.training.transfer.start import Start
from snnp.training.transfer.teacher import atomic_zeros, frame_weights

__all__ = ["Start", "atomic_zeros", "frame_weights"]
