"""What OpenMM adds to a model: time per step against the bare model call."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms

from snnp.errors import InputError
from snnp.models.potential import Potential
from snnp.models.store import load_model
from snnp.neighbours import VerletList
from snnp.structure import Structure
from snnp.units import NM_IN_ANGSTROM
from snnp_openmm.force import create_system
from snnp_openmm.geometry import to_openmm
from snnp_openmm.md import choose_platform, velocity_verlet
from snnp_openmm.require import openmm

__all__ = ["measure_overhead"]

_WARM_UP = 3
_DT_PS, _TEMPERATURE_K, _SEED = 0.001, 300.0, 1


def measure_overhead(model: str | Path | Potential, atoms: Atoms, steps: int = 100) -> dict[str, Any]:
    """Time steps of velocity Verlet in OpenMM and the bare model call at the same positions, in turn.

    Both keep a neighbour list of the same skin, so they rebuild it at the same steps; taking turns step by step lets
    other work on the machine slow both alike.

    Arguments:
        model: name, folder or potential.
        atoms: the structure; its atoms get velocities for 300 K.
        steps: steps of 1 fs to measure, after three to warm up.

    Returns:
        `n_atoms`, `steps`, `platform`; medians `openmm_us_per_atom` and `model_us_per_atom` per step; and
        `overhead_percent`, the median of what a step costs beyond the model call.

    Raises:
        InputError: for fewer than one step, and for what `create_system` refuses.
    """
    if steps < 1:
        raise InputError(f"steps must be at least 1, got {steps}.")
    potential = load_model(model)
    geometry = to_openmm(atoms)
    platform = choose_platform(potential.device)
    system = create_system(model, geometry.topology)
    context = openmm().Context(system, velocity_verlet(_DT_PS), platform)
    context.setPositions(geometry.positions)
    context.setVelocitiesToTemperature(_TEMPERATURE_K, _SEED)
    neighbours = VerletList(potential.cutoff)
    seconds = np.zeros((_WARM_UP + steps, 2))
    for k in range(_WARM_UP + steps):
        began = time.perf_counter()
        context.getIntegrator().step(1)
        seconds[k, 0] = time.perf_counter() - began
        structure = _structure(context, geometry.box, atoms)
        began = time.perf_counter()
        potential.compute(structure, neighbours.update(structure))
        seconds[k, 1] = time.perf_counter() - began
    with_openmm, bare = seconds[_WARM_UP:].T
    return {
        "n_atoms": len(atoms),
        "steps": steps,
        "platform": platform.getName(),
        "openmm_us_per_atom": float(np.median(with_openmm)) / len(atoms) * 1e6,
        "model_us_per_atom": float(np.median(bare)) / len(atoms) * 1e6,
        "overhead_percent": float(np.median(with_openmm - bare) / np.median(bare)) * 100.0,
    }


def _structure(context: Any, box: np.ndarray | None, atoms: Atoms) -> Structure:
    """The structure as it stands in a context, in OpenMM's axes."""
    positions = context.getState(positions=True).getPositions(asNumpy=True)._value * NM_IN_ANGSTROM
    cell = np.zeros((3, 3)) if box is None else box * NM_IN_ANGSTROM
    return Structure.from_ase(Atoms(atoms.numbers, positions, cell=cell, pbc=atoms.pbc))
