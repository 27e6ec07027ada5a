"""snnp potentials in ASE."""

from snnp_ase.calculator import SNNPCalculator

__all__ = ["SNNPCalculator"]
