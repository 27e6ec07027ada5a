"""Molecules: of files, SMILES, or a set; displaced along the directions in which they are soft, and turned about bonds.

A spring network stands for the unknown Hessian,

    H = sum_pairs k_ij u_ij (x) u_ij,   x = sum_n sqrt(kT / lambda_n) xi_n v_n,

with stiff springs along bonds, softer ones across angles and torsions, and weak ones between all other atoms.
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.build import molecule
from ase.collections import g2
from ase.data import covalent_radii
from numpy.typing import NDArray
from scipy.sparse.csgraph import connected_components, shortest_path
from scipy.spatial.transform import Rotation

from snnp.data.read import read_images
from snnp.errors import InputError, MissingDependencyError
from snnp.units import BOLTZMANN_EV_PER_K

__all__ = ["displaced", "graph_key", "overlapping", "read_molecules", "turned"]

Random = np.random.Generator

_G2 = "g2"
_LISTS = (".smi", ".smiles")
_SPRINGS = {1: 30.0, 2: 8.0, 3: 0.6}  # eV/Å² by the number of bonds between two atoms
_LOOSE = 0.05
_BONDED = 1.25  # of the sum of covalent radii
_COLDEST, _HOTTEST = 50.0, 2000.0  # K
_MOST_TURNS = 3  # bonds turned at the same time
_OVERLAP = 0.7  # of the sum of covalent radii
_CLASH = 1.2  # of the sum of covalent radii, that atoms far apart in the graph must keep


def read_molecules(names: Sequence[str]) -> list[Atoms]:
    """Molecules without periodicity, by any of these names:

    a file of structures; a list of SMILES (*.smi: one in a line, what follows it is ignored); a SMILES; or g2, the
    closed-shell molecules of ASE's set of that name. SMILES are embedded with RDKit, every time in the same shape.

    Raises:
        InputError: for a SMILES that does not parse or has no shape.
        MissingDependencyError: for SMILES without RDKit.
        DataError: for a file that is not understood.
    """
    images = [atoms for name in names for atoms in _named(name)]
    return [Atoms(atoms.numbers, atoms.positions) for atoms in images]


def _named(name: str) -> Iterator[Atoms]:
    path = Path(name).expanduser()
    if name == _G2:
        found = (molecule(each) for each in g2.names)
        yield from (atoms for atoms in found if len(atoms) > 1 and not atoms.get_initial_magnetic_moments().any())
    elif path.suffix in _LISTS and path.is_file():
        lines = path.read_text(encoding="utf-8").splitlines()
        yield from (_embedded(line.split()[0]) for line in lines if line.strip() and not line.startswith("#"))
    elif path.exists():
        yield from read_images(name)
    else:
        yield _embedded(name)


def _embedded(smiles: str) -> Atoms:
    """The molecule of a SMILES, or several, side by side far from each other, where it has dots."""
    whole = Atoms()
    for part in smiles.split("."):
        shape = _shape(part)
        shape.positions[:, 0] += (whole.positions[:, 0].max() if len(whole) else 0.0) - shape.positions[:, 0].min() + 10
        whole += shape
    return whole


def _shape(smiles: str) -> Atoms:
    try:
        chem: Any = importlib.import_module("rdkit.Chem")
        shapes: Any = importlib.import_module("rdkit.Chem.AllChem")
        importlib.import_module("rdkit.RDLogger").DisableLog("rdApp.*")
    except ImportError:
        raise MissingDependencyError(
            f"'{smiles}' is no file, and to read it as SMILES takes RDKit; install it with: pip install rdkit."
        ) from None
    parsed = chem.MolFromSmiles(smiles)
    if parsed is None:
        raise InputError(
            f"'{smiles}' is neither a file nor a SMILES that parses; check it, or name a file of molecules."
        )
    parsed = chem.AddHs(parsed)
    if shapes.EmbedMolecule(parsed, randomSeed=0) != 0:
        raise InputError(f"no shape was found for the molecule '{smiles}'; give it in a file.")
    if shapes.MMFFHasAllMoleculeParams(parsed):
        shapes.MMFFOptimizeMolecule(parsed)
    else:
        shapes.UFFOptimizeMolecule(parsed)
    numbers = [atom.GetAtomicNum() for atom in parsed.GetAtoms()]
    return Atoms(numbers, parsed.GetConformer().GetPositions())


def displaced(atoms: Atoms, rng: Random, hottest: float = _HOTTEST) -> Atoms:
    """A copy displaced along its soft directions, as at a temperature drawn between 50 K and the `hottest`."""
    values, vectors = np.linalg.eigh(_hessian(atoms))
    soft = values > 1e-6  # six of the directions are motions of the whole
    kelvin = float(np.exp(rng.uniform(np.log(_COLDEST), np.log(hottest))))
    sizes = np.sqrt(BOLTZMANN_EV_PER_K * kelvin / values[soft]).clip(max=0.6)
    moved = atoms.copy()
    moved.positions += (vectors[:, soft] @ (sizes * rng.standard_normal(int(soft.sum())))).reshape(-1, 3)
    return moved


def turned(atoms: Atoms, rng: Random) -> Atoms:
    """A copy with up to three bonds, those that are in no ring, turned by any angle; without clashes if some try has
    none, and as it was if there is no such bond."""
    bonded = _bonded(atoms)
    axes = _axes(bonded)
    found = atoms.copy()
    for _ in range(10 if axes else 0):
        moved = atoms.copy()
        for k in rng.permutation(len(axes))[: int(rng.integers(1, _MOST_TURNS + 1))]:
            a, b, side = axes[k]
            axis = moved.positions[b] - moved.positions[a]
            turn = Rotation.from_rotvec(rng.uniform(-np.pi, np.pi) * axis / np.linalg.norm(axis))
            moved.positions[side] = turn.apply(moved.positions[side] - moved.positions[b]) + moved.positions[b]
        if not _clashes(moved, bonded):
            return moved
    return found


def graph_key(atoms: Atoms) -> str:
    """Hash of the molecules in a structure: which elements are bonded to which, molecule by molecule.

    Bonds are pairs closer than 1.25 times their covalent radii. Neighbourhoods are refined as often as there are atoms
    (Weisfeiler and Leman), which tells apart all but a few graphs that no two molecules here have.
    """
    bonded = _bonded(atoms)
    labels = [str(z) for z in atoms.numbers]
    for _ in range(len(atoms)):
        around = [sorted(labels[j] for j in np.flatnonzero(row)) for row in bonded]
        labels = [_hash([own, *near]) for own, near in zip(labels, around, strict=True)]
    number, owner = connected_components(bonded)
    molecules = (_hash(sorted(labels[k] for k in np.flatnonzero(owner == n))) for n in range(number))
    return _hash(sorted(molecules))


def overlapping(atoms: Atoms) -> bool:
    """Whether two atoms are closer than 0.7 of their covalent radii: forces there are beyond 30 eV/Å mostly."""
    radii = covalent_radii[atoms.numbers]
    distances = atoms.get_all_distances(mic=bool(atoms.pbc.any())) + np.diag(np.full(len(atoms), np.inf))
    return bool((distances < _OVERLAP * (radii[:, None] + radii)).any())


def _hash(texts: Sequence[str]) -> str:
    return hashlib.sha256(" ".join(texts).encode()).hexdigest()[:16]


def _bonded(atoms: Atoms) -> NDArray[np.bool_]:
    radii = covalent_radii[atoms.numbers]
    distances = atoms.get_all_distances()
    return np.asarray((distances < _BONDED * (radii[:, None] + radii)) & ~np.eye(len(atoms), dtype=bool))


def _axes(bonded: NDArray[np.bool_]) -> list[tuple[int, int, NDArray[np.bool_]]]:
    """Bonds a-b that hold two parts together, each of more than one atom, and the part [n] of b, the smaller one."""
    found = []
    for a, b in np.argwhere(np.triu(bonded)).tolist():
        if bonded[a].sum() < 2 or bonded[b].sum() < 2:
            continue
        cut = bonded.copy()
        cut[a, b] = cut[b, a] = False
        owner = connected_components(cut)[1]
        if owner[a] != owner[b]:
            a, b = (a, b) if (owner == owner[b]).sum() <= (owner == owner[a]).sum() else (b, a)
            found.append((a, b, np.asarray(owner == owner[b])))
    return found


def _clashes(atoms: Atoms, bonded: NDArray[np.bool_]) -> bool:
    """Whether atoms that are three bonds apart or more have come close."""
    radii = covalent_radii[atoms.numbers]
    far = shortest_path(bonded, unweighted=True) > 2
    return bool((far & (atoms.get_all_distances() < _CLASH * (radii[:, None] + radii))).any())


def _hessian(atoms: Atoms) -> NDArray[np.float64]:
    """[3n, 3n] eV/Å² of the spring network."""
    n = len(atoms)
    vectors = atoms.positions[:, None] - atoms.positions
    distances = np.linalg.norm(vectors, axis=2)
    steps = shortest_path(_bonded(atoms), unweighted=True)
    springs = np.full((n, n), _LOOSE)
    for number, stiffness in _SPRINGS.items():
        springs[steps == number] = stiffness
    units = vectors / np.where(distances > 0, distances, 1.0)[..., None]
    blocks = -springs[..., None, None] * units[..., :, None] * units[..., None, :]
    blocks[np.arange(n), np.arange(n)] = -blocks.sum(axis=1)
    return np.asarray(blocks.transpose(0, 2, 1, 3).reshape(3 * n, 3 * n))
