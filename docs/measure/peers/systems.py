"""The structures that are measured: crystals and molecules, shaken, the same for all programs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from ase.build import molecule

from snnp.errors import InputError
from snnp.models.potential import Potential
from snnp.sampling import build_structure
from snnp.sampling.cost import is_crystal, sized, usual_crystal
from snnp.structure import Structure

__all__ = ["MOLECULES", "build_system", "system_of"]

MOLECULES = "molecules"
"""Specification of a batch of small molecules of H, C, N and O."""

_SPECIES = ("C6H6", "CH3CH2OH", "C5H5N", "CH3COCH3", "isobutane", "C4H4O", "CH3CONH2", "trans-butane")  # of ASE's G2
_MOST_MOLECULES = 64
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
    if specification == MOLECULES:
        structure, noise = _molecules(n_atoms), _NOISE_MOLECULES
    elif is_crystal(specification):
        structure, noise = Structure.from_ase(build_structure(sized(specification, n_atoms))), _NOISE_CRYSTAL
    else:
        structure, noise = Structure.from_ase(build_structure(specification)), 0.0
    shaken = noise * np.random.default_rng(_SEED).standard_normal((structure.n_atoms, 3))
    return replace(structure, positions=structure.positions + torch.from_numpy(shaken))


def _molecules(n_atoms: int) -> Structure:
    """As many of 64 molecules as `n_atoms` atoms make, but at least one."""
    molecules = [molecule(_SPECIES[k % len(_SPECIES)]) for k in range(_MOST_MOLECULES)]
    n_kept = int((np.cumsum([len(atoms) for atoms in molecules]) <= n_atoms).sum())
    return Structure.from_ase(molecules[: max(n_kept, 1)])


def system_of(model: Potential) -> str:
    """Specification of a structure that suits a model: molecules, or the crystal of its first metal or semiconductor.

    Raises:
        InputError: if no element of the model has a simple crystal.
    """
    return MOLECULES if {"H", "C", "N", "O"} <= set(model.elements) else usual_crystal(model)
