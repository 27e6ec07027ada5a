"""What energy and forces cost: structures that suit a model, the time of calls on them, and what an engine adds."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.build import molecule
from ase.data import atomic_numbers, reference_states

from snnp.errors import InputError
from snnp.models.potential import Potential
from snnp.models.session import Session
from snnp.sampling.run import run_md
from snnp.sampling.settings import MDSettings
from snnp.sampling.structures import build_structure

__all__ = ["is_crystal", "measure_cost", "measure_engine", "sized", "usual_atoms", "usual_crystal"]

_ATOMS_PER_CELL = {"fcc": 4, "bcc": 2, "hcp": 4, "diamond": 8, "sc": 1}
_STEP = 1e-4  # Å, how far atoms move between calls: the list is kept, no result can be
_SECONDS = 0.2  # that one repeat should last
_NOISE = 0.1  # Å, in crystals, as at room temperature
_RUNS = 3  # of an engine


def measure_cost(model: Potential, atoms: Atoms, repeats: int) -> dict[str, Any]:
    """Time energy and forces of atoms that move a little from call to call; `InputError` for less than one repeat.

    Returns `n_atoms`; `cpu_us_per_atom` (all threads together) and `wall_us_per_atom`, medians over the repeats.
    """
    if repeats < 1:
        raise InputError(f"repeats must be at least 1, got {repeats}.")
    session, cell, generator = Session(model), atoms.cell.array, np.random.default_rng(0)
    moved = [atoms.positions + _STEP * generator.standard_normal(atoms.positions.shape) for _ in range(2)]

    def clock(n_calls: int) -> tuple[float, float]:
        wall, cpu = time.perf_counter(), time.process_time()
        for k in range(n_calls):
            session.evaluate(atoms.numbers, moved[k % 2], cell, atoms.pbc)
        return time.process_time() - cpu, time.perf_counter() - wall

    clock(1)  # the first call builds the list
    n_calls = max(round(_SECONDS / max(clock(1)[1], 1e-7)), 1)
    per_atom = 1e6 / (n_calls * len(atoms))
    cpu, wall = (per_atom * np.median([clock(n_calls) for _ in range(repeats)], axis=0)).tolist()
    return {"n_atoms": len(atoms), "cpu_us_per_atom": cpu, "wall_us_per_atom": wall}


def measure_engine(model: Potential, atoms: Atoms, engine: str, steps: int = 100) -> dict[str, Any]:
    """What an engine adds to the model: short runs at constant energy from 300 K, and bare calls along them, in turn.

    Both begin without a neighbour list, keep it with the same skin, and see the same atoms move as far.
    Returns `n_atoms`, `steps` (of 1 fs, in each of three runs), and medians: `ENGINE_us_per_atom` and
    `model_us_per_atom` per step, `overhead_us_per_step` and `overhead_percent` of what a step costs beyond the call.
    """
    if steps < 1:
        raise InputError(f"steps must be at least 1, got {steps}.")
    dtype = "float64" if model.dtype == torch.float64 else "float32"
    settings = MDSettings(ensemble="nve", steps=steps, log_interval=steps, dtype=dtype)
    seconds = np.zeros((_RUNS + 1, 2))
    for k in range(_RUNS + 1):
        result = run_md(model, atoms, settings, engine=engine)
        session, cell = Session(model), atoms.cell.array
        path = np.linspace(atoms.positions, result.final.positions, steps + 1)
        began = time.perf_counter()
        for positions in path:
            session.evaluate(atoms.numbers, positions, cell, atoms.pbc)
        seconds[k] = result.seconds / steps, (time.perf_counter() - began) / steps
    with_engine, bare = seconds[1:].T  # the first warms up
    return {
        "n_atoms": len(atoms),
        "steps": steps,
        f"{engine}_us_per_atom": float(np.median(with_engine)) / len(atoms) * 1e6,
        "model_us_per_atom": float(np.median(bare)) / len(atoms) * 1e6,
        "overhead_us_per_step": float(np.median(with_engine - bare)) * 1e6,
        "overhead_percent": float(np.median((with_engine - bare) / bare)) * 100.0,
    }


def usual_atoms(model: Potential, specification: str | None, n_atoms: int) -> tuple[str, Atoms]:
    """Atoms to measure with, about `n_atoms` unless specified, and their name: molecules, or a shaken crystal."""
    if n_atoms < 1:
        raise InputError(f"the number of atoms must be at least 1, got {n_atoms}.")
    if specification is None and {"H", "C", "N", "O"} <= set(model.elements):
        return "molecules", molecule("CH3CONH2", vacuum=5.0).repeat((max(n_atoms // 9, 1), 1, 1))
    text = specification or usual_crystal(model)
    atoms = build_structure(sized(text, n_atoms))
    if is_crystal(text):
        atoms.positions += _NOISE * np.random.default_rng(0).standard_normal(atoms.positions.shape)
    return text, atoms


def is_crystal(specification: str) -> bool:
    """Whether a specification is that of a crystal; what exists on the disk is a file."""
    return specification.partition(":")[0] in _ATOMS_PER_CELL and not Path(specification).is_file()


def sized(specification: str, n_atoms: int) -> str:
    """A crystal's specification with the size that gives about `n_atoms`, unless it has one; others as they are."""
    lattice, _, rest = specification.partition(":")
    element, *options = rest.split(":")
    if not is_crystal(specification) or (options and options[0][:1].isdigit()):
        return specification
    repeats = max(round((n_atoms / _ATOMS_PER_CELL[lattice]) ** (1.0 / 3.0)), 1)
    return ":".join([lattice, element, str(repeats), *options])


def usual_crystal(model: Potential) -> str:
    """Specification, without a size, of the crystal of a model's first metal or semiconductor; `InputError` if none."""
    for symbol in model.elements:
        state: dict[str, Any] = reference_states[atomic_numbers[symbol]] or {}
        if state.get("symmetry") in ("fcc", "bcc", "diamond"):
            return f"{state['symmetry']}:{symbol}:a={state['a']:g}"
        if state.get("symmetry") == "hcp":
            return f"hcp:{symbol}:a={state['a']:g}:c={state['a'] * state['c/a']:g}"
    raise InputError(
        f"none of {', '.join(model.elements)} has a simple crystal to measure with; name a structure with --structure."
    )
