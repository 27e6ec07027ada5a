"""Molecules displaced along the directions in which they are soft: a spring network stands for the unknown Hessian.

    H = sum_pairs k_ij u_ij (x) u_ij,   x = sum_n sqrt(kT / lambda_n) xi_n v_n,

with stiff springs along bonds, softer ones across angles and torsions, and weak ones between all other atoms.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.data import covalent_radii
from numpy.typing import NDArray
from scipy.sparse.csgraph import shortest_path

from snnp.data import Frames
from snnp.data.read import read_images
from snnp.distillation.crystals import frames_of
from snnp.errors import InputError, MissingDependencyError
from snnp.units import BOLTZMANN_EV_PER_K

__all__ = ["displaced", "read_molecules"]

_SPRINGS = {1: 30.0, 2: 8.0, 3: 0.6}  # eV/Å² by the number of bonds between two atoms
_LOOSE = 0.05
_BONDED = 1.25  # of the sum of covalent radii
_TEMPERATURES = (200.0, 2000.0)  # K


def read_molecules(names: Sequence[str]) -> list[Atoms]:
    """Molecules of files, and of SMILES (with RDKit), without periodicity.

    Raises:
        InputError: for a SMILES that does not parse or has no shape.
        MissingDependencyError: for SMILES without RDKit.
        DataError: for a file that is not understood.
    """
    images = [atoms for name in names for atoms in (read_images(name) if Path(name).exists() else [_embedded(name)])]
    found = []
    for atoms in images:
        bare = Atoms(atoms.numbers, atoms.positions)
        found.append(bare)
    return found


def _embedded(smiles: str) -> Atoms:
    try:
        chem: Any = importlib.import_module("rdkit.Chem")
        shapes: Any = importlib.import_module("rdkit.Chem.AllChem")
        importlib.import_module("rdkit.RDLogger").DisableLog("rdApp.*")
    except ImportError:
        raise MissingDependencyError(
            f"'{smiles}' is no file, and to read it as SMILES takes RDKit; install it with: pip install rdkit."
        ) from None
    molecule = chem.MolFromSmiles(smiles)
    if molecule is None:
        raise InputError(
            f"'{smiles}' is neither a file nor a SMILES that parses; check it, or name a file of molecules."
        )
    molecule = chem.AddHs(molecule)
    if shapes.EmbedMolecule(molecule, randomSeed=0) != 0:
        raise InputError(f"no shape was found for the molecule '{smiles}'; give it in a file.")
    shapes.MMFFOptimizeMolecule(molecule)
    numbers = [atom.GetAtomicNum() for atom in molecule.GetAtoms()]
    return Atoms(numbers, molecule.GetConformer().GetPositions())


def displaced(molecules: Sequence[Atoms], number: int, seed: int) -> Frames:
    """About `number` displaced copies, even over the molecules, at temperatures drawn between 200 and 2000 K."""
    rng, images = np.random.default_rng([seed, 4]), []
    for atoms in molecules:
        images.append(("molecule", atoms))
        values, vectors = np.linalg.eigh(_hessian(atoms))
        soft = values > 1e-6  # six of the directions are motions of the whole
        for _ in range(max(1, round(number / len(molecules))) - 1):
            kelvin = float(np.exp(rng.uniform(*np.log(_TEMPERATURES))))
            sizes = np.sqrt(BOLTZMANN_EV_PER_K * kelvin / values[soft]).clip(max=0.6)
            moved = atoms.copy()
            moved.positions += (vectors[:, soft] @ (sizes * rng.standard_normal(int(soft.sum())))).reshape(-1, 3)
            images.append(("molecule", moved))
    return frames_of(images, "pool")


def _hessian(atoms: Atoms) -> NDArray[np.float64]:
    """[3n, 3n] eV/Å² of the spring network."""
    n, radii = len(atoms), covalent_radii[atoms.numbers]
    vectors = atoms.positions[:, None] - atoms.positions
    distances = np.linalg.norm(vectors, axis=2)
    bonded = (distances < _BONDED * (radii[:, None] + radii)) & ~np.eye(n, dtype=bool)
    steps = shortest_path(bonded, unweighted=True)
    springs = np.full((n, n), _LOOSE)
    for number, stiffness in _SPRINGS.items():
        springs[steps == number] = stiffness
    units = vectors / np.where(distances > 0, distances, 1.0)[..., None]
    blocks = -springs[..., None, None] * units[..., :, None] * units[..., None, :]
    blocks[np.arange(n), np.arange(n)] = -blocks.sum(axis=1)
    return np.asarray(blocks.transpose(0, 2, 1, 3).reshape(3 * n, 3 * n))
