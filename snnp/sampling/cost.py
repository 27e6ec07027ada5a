"""What energy and forces cost: structures that suit a model, and the time of calls on them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.build import molecule
from ase.data import atomic_numbers, reference_states
from numpy.typing import NDArray

from snnp.errors import InputError
from snnp.models.potential import Potential
from snnp.models.session import Session
from snnp.neighbours import VerletList
from snnp.sampling.run import run_md
from snnp.sampling.settings import MDSettings
from snnp.sampling.structures import build_structure
from snnp.structure import Structure

__all__ = [
    "MOLECULES",
    "Cost",
    "build_system",
    "measure_cost",
    "measure_engine",
    "repeated_call",
    "system_of",
]

MOLECULES = "molecules"
"""Specification of a batch of small molecules of H, C, N and O."""

_SPECIES = ("C6H6", "CH3CH2OH", "C5H5N", "CH3COCH3", "isobutane", "C4H4O", "CH3CONH2", "trans-butane")  # of ASE's G2
_MOST_MOLECULES = 64
_ATOMS_PER_CELL = {"fcc": 4, "bcc": 2, "hcp": 4, "diamond": 8, "sc": 1}
_NOISE_CRYSTAL, _NOISE_MOLECULES = 0.1, 0.05  # Å, as at room temperature
_SEED = 0
_STEP = 1e-4  # Å, how far atoms move between calls: the list is kept, no result can be
_SECONDS = 0.2  # that one repeat should last
_RUNS = 3  # of an engine


@dataclass(frozen=True)
class Cost:
    """Medians over the repeats, in µs per atom; CPU time is that of all threads together."""

    n_atoms: int
    cpu_us_per_atom: float
    wall_us_per_atom: float


def measure_cost(model: Potential, structure: Structure, repeats: int) -> Cost:
    """Time energy and forces of atoms that move a little from call to call, after a call to warm up.

    Raises:
        InputError: for fewer than one repeat, and for what the model refuses.
    """
    if repeats < 1:
        raise InputError(f"repeats must be at least 1, got {repeats}.")
    call, positions = repeated_call(model, structure), structure.positions.cpu().numpy()
    moved = [positions + _STEP * np.random.default_rng(k).standard_normal(positions.shape) for k in range(2)]
    call(positions)
    began = time.perf_counter()
    call(moved[0])
    n_calls = max(round(_SECONDS / max(time.perf_counter() - began, 1e-7)), 1)
    clocks = []
    for _ in range(repeats):
        wall, cpu = time.perf_counter(), time.process_time()
        for k in range(n_calls):
            call(moved[k % 2])
        clocks.append((time.process_time() - cpu, time.perf_counter() - wall))
    cpu, wall = (1e6 * statistics.median(times) / (n_calls * structure.n_atoms) for times in zip(*clocks, strict=True))
    return Cost(structure.n_atoms, cpu, wall)


def measure_engine(model: Potential, atoms: Atoms, engine: str, steps: int = 100) -> dict[str, Any]:
    """What an engine adds to the model: short runs at constant energy from 300 K, and bare calls along them, in turn.

    Both begin without a neighbour list, keep it with the same skin, and see the same atoms move as far.

    Arguments:
        steps: of 1 fs in each of three runs.

    Returns:
        `n_atoms`, `steps`; medians `ENGINE_us_per_atom` and `model_us_per_atom` per step; `overhead_us_per_step` and
        `overhead_percent`, the medians of what a step costs beyond the model call.

    Raises:
        InputError: for fewer than one step, an unknown engine, and what it refuses.
    """
    if steps < 1:
        raise InputError(f"steps must be at least 1, got {steps}.")
    settings = MDSettings(
        ensemble="nve",
        steps=steps,
        log_interval=steps,
        dtype="float64" if model.dtype == torch.float64 else "float32",
    )
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


def repeated_call(
    model: Potential, structure: Structure
) -> Callable[[NDArray[np.float64]], tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """The energies [B] and forces [N, 3] of a batch as a function of positions [N, 3] alone; the list is kept."""
    if structure.n_structures == 1:
        session, numbers = Session(model), structure.numbers.numpy()
        cell, pbc = structure.cell[0].numpy(), structure.pbc[0].numpy()

        def of_one(moved: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
            result = session.evaluate(numbers, moved, cell, pbc)
            return np.array([result.energy]), result.forces

        return of_one
    verlet, batch = VerletList(model.cutoff), structure.to(device=model.device)

    def of_batch(moved: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        now = replace(batch, positions=torch.from_numpy(moved).to(model.device))
        prediction = model.compute(now, verlet.update(now))
        assert prediction.forces is not None
        return prediction.energy.cpu().numpy(), prediction.forces.cpu().numpy()

    return of_batch


def build_system(specification: str, n_atoms: int) -> Structure:
    """Build about `n_atoms` atoms of a crystal (`fcc:Al:a=4.05`) or of molecules; what has a size keeps it.

    A crystal with its size (`fcc:Al:4x4x4`) and a file do not ask for `n_atoms`.

    Displacements are drawn with a fixed seed: 0.1 Å in crystals, 0.05 Å in molecules, none in a file's structure.

    Raises:
        InputError: for fewer than one atom, or a specification that `build_structure` does not understand.
    """
    if n_atoms < 1:
        raise InputError(f"the number of atoms must be at least 1, got {n_atoms}.")
    lattice = specification.partition(":")[0]
    if specification == MOLECULES:
        structure, noise = _molecules(n_atoms), _NOISE_MOLECULES
    elif lattice in _ATOMS_PER_CELL and not Path(specification).is_file():
        structure, noise = Structure.from_ase(build_structure(_sized(specification, n_atoms))), _NOISE_CRYSTAL
    else:
        structure, noise = Structure.from_ase(build_structure(specification)), 0.0
    shaken = noise * np.random.default_rng(_SEED).standard_normal((structure.n_atoms, 3))
    return replace(structure, positions=structure.positions + torch.from_numpy(shaken))


def _sized(crystal: str, n_atoms: int) -> str:
    """A crystal's specification with the size that gives about `n_atoms`, unless it has one."""
    lattice, _, rest = crystal.partition(":")
    element, *options = rest.split(":")
    if options and options[0][:1].isdigit():
        return crystal
    repeats = max(round((n_atoms / _ATOMS_PER_CELL[lattice]) ** (1.0 / 3.0)), 1)
    return ":".join([lattice, element, str(repeats), *options])


def _molecules(n_atoms: int) -> Structure:
    """As many of 64 molecules as `n_atoms` atoms make, but at least one."""
    molecules = [molecule(_SPECIES[k % len(_SPECIES)]) for k in range(_MOST_MOLECULES)]
    n_kept = int((np.cumsum([len(atoms) for atoms in molecules]) <= n_atoms).sum())
    return Structure.from_ase(molecules[: max(n_kept, 1)])


def system_of(model: Potential) -> str:
    """Specification of a structure that suits a model: molecules, or the crystal of its first metal or semiconductor.

    Raises:
        InputError: if no element of the model has a cubic crystal.
    """
    if {"H", "C", "N", "O"} <= set(model.elements):
        return MOLECULES
    for symbol in model.elements:
        state = reference_states[atomic_numbers[symbol]]
        if state is not None and state["symmetry"] in ("fcc", "bcc", "diamond"):
            return f"{state['symmetry']}:{symbol}:a={state['a']:g}"
    raise InputError(
        f"none of {', '.join(model.elements)} has a cubic crystal to measure with; name a structure with --structure."
    )
