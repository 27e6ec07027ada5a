"""What ASE adds to a model: time per call of the calculator against the bare model call."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms

from snnp.errors import InputError
from snnp.models.potential import Potential
from snnp.models.session import Session
from snnp.models.store import load_model
from snnp_ase.calculator import SNNPCalculator

__all__ = ["measure_overhead"]

_WARM_UP = 3
_STEP = 1e-3  # Å, how far atoms move between calls: the list is kept, no result can be


def measure_overhead(model: str | Path | Potential, atoms: Atoms, steps: int = 100) -> dict[str, Any]:
    """Time energy and forces through the calculator and the bare model call at the same positions, in turn.

    Arguments:
        model: name, folder or potential.
        atoms: the structure; its own positions stay as they are.
        steps: calls to measure, after three to warm up.

    Returns:
        `n_atoms`, `steps`; medians `ase_us_per_atom` and `model_us_per_atom` per call; `overhead_us_per_call` and
        `overhead_percent`, the medians of what a call costs beyond the model.

    Raises:
        InputError: for fewer than one step.
    """
    if steps < 1:
        raise InputError(f"steps must be at least 1, got {steps}.")
    potential = load_model(model)
    atoms = atoms.copy()
    atoms.calc = SNNPCalculator(potential)
    session, cell, pbc = Session(potential), atoms.cell.array, atoms.pbc
    generator = np.random.default_rng(0)
    start = atoms.positions.copy()
    seconds = np.zeros((_WARM_UP + steps, 2))
    for k in range(_WARM_UP + steps):
        positions = start + _STEP * generator.standard_normal(start.shape)
        began = time.perf_counter()
        atoms.positions = positions
        atoms.get_forces()
        atoms.get_potential_energy()
        seconds[k, 0] = time.perf_counter() - began
        began = time.perf_counter()
        session.evaluate(atoms.numbers, positions, cell, pbc)
        seconds[k, 1] = time.perf_counter() - began
    through_ase, bare = seconds[_WARM_UP:].T
    return {
        "n_atoms": len(atoms),
        "steps": steps,
        "ase_us_per_atom": float(np.median(through_ase)) / len(atoms) * 1e6,
        "model_us_per_atom": float(np.median(bare)) / len(atoms) * 1e6,
        "overhead_us_per_call": float(np.median(through_ase - bare)) * 1e6,
        "overhead_percent": float(np.median(through_ase - bare) / np.median(bare)) * 100.0,
    }
