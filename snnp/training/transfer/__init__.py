"""Training that goes on from a model: for other data, another zero of energy, elements that its filters never saw."""

from snnp.training.transfer.start import Start

__all__ = ["Start"]
