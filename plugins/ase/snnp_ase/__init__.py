"""snnp potentials in ASE."""

from snnp_ase.calculator import SNNPCalculator
from snnp_ase.observer import UncertaintyObserver

__all__ = ["SNNPCalculator", "UncertaintyObserver"]
