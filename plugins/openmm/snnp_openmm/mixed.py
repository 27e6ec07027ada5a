"""What a mixed system needs besides the potential's force."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from snnp_openmm.geometry import openmm

__all__ = ["molecule_bonds"]


def molecule_bonds(topology: Any, atoms: Iterable[int]) -> Any | None:
    """A force without strength along the topology's bonds among `atoms`; None if there are no such bonds.

    A mixed system has lost the classical bonds of its molecule. By bonds OpenMM knows what a molecule is: without them
    barostats would scale the distances inside of it, and positions asked for with `enforcePeriodicBox` would be wrapped
    atom by atom.
    """
    members = set(atoms)
    pairs = [(one.index, other.index) for one, other in topology.bonds() if {one.index, other.index} <= members]
    if not pairs:
        return None
    force = openmm().HarmonicBondForce()
    force.setName("snnp molecule")
    for one, other in pairs:
        force.addBond(one, other, 0.1, 0.0)
    return force
