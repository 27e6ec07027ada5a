"""The structures that are measured: crystals and molecules, shaken, the same for all programs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from ase.build import molecule
from ase.data import atomic_numbers, reference_states

from snnp.errors import InputError
from snnp.models.potential import Potential
from snnp.sampling import build_structure
from snnp.structure import Structure

__all__ = ["MOLECULES", "build_system", "system_of", "write_system"]

MOLECULES = "molecules"
"""Specification of a batch of small molecules of H, C, N and O."""

_SPECIES = ("C6H6", "CH3CH2OH", "C5H5N", "CH3COCH3", "isobutane", "C4H4O", "CH3CONH2", "trans-butane")  # of ASE's G2
_MOST_MOLECULES = 64
_ATOMS_PER_CELL = {"fcc": 4, "bcc": 2, "hcp": 4, "diamond": 8, "sc": 1}
_NOISE_CRYSTAL, _NOISE_MOLECULES = 0.1, 0.05  # Å, as at room temperature
_SEED = 0


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


def write_system(structure: Structure, path: Path) -> None:
    """Write a structure as the arrays that adapters read."""
    np.savez(
        path,
        numbers=structure.numbers.numpy(),
        positions=structure.positions.numpy(),
        cells=structure.cell.numpy(),
        pbc=np.array(bool(structure.pbc.all())),
        structure_of_atom=structure.structure_of_atom.numpy(),
    )
