"""Where trajectories start: atoms at random places and densities, and conformers of molecules.

Random places have no crystal in them. Atoms are thrown into a box of random shape, and pairs that are too close, images
included, are pushed apart until none is.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from ase import Atoms
from ase.data import atomic_numbers, covalent_radii
from ase.formula import Formula
from numpy.typing import NDArray

from snnp.distillation.assemblies import MoleculePool
from snnp.distillation.crystals import guessed_crystals
from snnp.errors import InputError
from snnp.neighbours import find_pairs, neighbour_list, pair_vectors
from snnp.structure import Structure
from snnp.units import AMU_PER_ANGSTROM3_IN_G_PER_CM3

__all__ = ["closeness", "compositions", "conformers", "density_of", "guessed_density", "place", "roomy"]

Random = np.random.Generator

_TRIES, _PUSHES = 10, 400
_ROOMY = 0.45  # fraction of the volume in spheres that touch, of which randomly packed ones find room with ease
_DENSEST = 0.58  # fraction of the volume in spheres that touch: randomly packed ones jam at 0.64
_MARGIN = 1.01  # of the distance, to which atoms are pushed
_STRETCH, _SHEAR = 0.25, 0.15  # of the box: standard deviation of the logarithm of its lengths; of the other components


def place(numbers: NDArray[np.int64], volume: float, closest: float, rng: Random) -> Atoms:
    """Atoms at random places of a periodic box of random shape.

    Arguments:
        numbers: [N] atomic numbers. volume: Å³, of the box.
        closest: of the sum of the covalent radii of a pair: no pair is closer, an atom and its own images included.

    Raises:
        InputError: where so many atoms so far from each other do not fit into the volume.
    """
    numbers = np.asarray(numbers, dtype=np.int64)
    radii = covalent_radii[numbers]
    filled = closest**3 * _filled(numbers, volume)
    if not filled < _DENSEST:
        raise InputError(
            f"{len(numbers)} atoms no closer than {closest:g} of their covalent radii fill {filled:.0%} of "
            f"{volume:.4g} Å³, and at most {_DENSEST:.0%} can be placed at random; lower the density, or closest."
        )
    for k in range(_TRIES):
        cell = _box(volume, 1.0 - k / (_TRIES - 1), rng)
        positions = _pushed_apart(rng.random((len(numbers), 3)) @ cell, cell, closest * radii, rng)
        if positions is not None:
            return Atoms(numbers, positions, cell=cell, pbc=True)
    raise InputError(
        f"{len(numbers)} atoms no closer than {closest:g} of their covalent radii found no place in {volume:.4g} Å³ "
        f"in {_TRIES} boxes; lower the density, or closest."
    )


def roomy(numbers: NDArray[np.int64], volume: float, closest: float) -> float:
    """The shortest distance (as in `place`) that is asked for, or less where so many atoms are dense in the volume."""
    return float(min(closest, (_ROOMY / _filled(numbers, volume)) ** (1.0 / 3.0)))


def _filled(numbers: NDArray[np.int64], volume: float) -> float:
    """Fraction of the volume in spheres of the covalent radii."""
    return float((4.0 / 3.0 * np.pi * covalent_radii[numbers] ** 3).sum()) / volume


def _box(volume: float, odd: float, rng: Random) -> NDArray[np.float64]:
    """[3, 3] Å; odd: 1 for the shapes that are tried first, 0 for a cube."""
    lengths = np.exp(odd * _STRETCH * np.clip(rng.standard_normal(3), -2.0, 2.0))
    skew = odd * _SHEAR * np.triu(np.clip(rng.standard_normal((3, 3)), -2.0, 2.0), 1)
    cell = np.diag(lengths) + skew
    return np.asarray(cell * (volume / np.linalg.det(cell)) ** (1.0 / 3.0))


def _pushed_apart(
    positions: NDArray[np.float64], cell: NDArray[np.float64], radii: NDArray[np.float64], rng: Random
) -> NDArray[np.float64] | None:
    """Positions in which no pair is closer than the sum of its radii, or None if they do not get there."""
    reach, pbc = 2.0 * float(radii.max()) * _MARGIN, np.ones(3, dtype=bool)
    for _ in range(_PUSHES):
        i, j, shift = find_pairs(positions, cell, pbc, reach)
        vectors = positions[j] - positions[i] + shift @ cell
        distances = np.linalg.norm(vectors, axis=1)
        wanted = radii[i] + radii[j]
        if (distances >= wanted).all():
            return positions
        if ((distances < wanted) & (i == j)).any():
            return None  # the box itself is too short
        overlap = np.clip(_MARGIN * wanted - distances, 0.0, None)
        apart = distances > 1e-6
        way = np.where(
            apart[:, None], vectors / np.where(apart, distances, 1.0)[:, None], rng.standard_normal((len(i), 3))
        )
        np.add.at(positions, i, -0.5 * overlap[:, None] * way)
    return None


def compositions(elements: Sequence[str], formula: str | None, n_atoms: int, rng: Random) -> NDArray[np.int64]:
    """[N] atomic numbers: formula units, as many as come to about `n_atoms`, or elements in a random proportion.

    Raises:
        InputError: for what is no element or formula, and where neither is named.
    """
    if formula is not None:
        try:
            counts = Formula(formula).count()
            unit = [atomic_numbers[symbol] for symbol, number in counts.items() for _ in range(number)]
        except (ValueError, KeyError):
            unit = []
        if not unit:
            raise InputError(f"formula {formula!r} is not understood; write NaCl or Al2O3, for example.")
        return np.array(unit * max(1, round(n_atoms / len(unit))), dtype=np.int64)
    wrong = [symbol for symbol in elements if symbol not in atomic_numbers or symbol == "X"]
    if wrong or not elements:
        said = f"{wrong[0]!r} is no chemical symbol" if wrong else "no elements were named"
        raise InputError(f"{said}; write elements: [Al, Cu], for example, or give structures to start from.")
    known = np.array([atomic_numbers[symbol] for symbol in elements], dtype=np.int64)
    shares = rng.dirichlet(np.ones(len(known))) if len(known) > 1 else np.ones(1)
    return np.sort(rng.choice(known, n_atoms, p=shares))


def guessed_density(atoms: Atoms) -> float:
    """g/cm³ of what has this composition: volumes of the elements' crystals, or of their covalent radii, added up."""
    volume = sum(
        number * guessed_crystals([symbol])[0].volume for symbol, number in atoms.symbols.formula.count().items()
    )
    return float(atoms.get_masses().sum()) / volume * AMU_PER_ANGSTROM3_IN_G_PER_CM3


def density_of(atoms: Atoms) -> float:
    """g/cm³; NaN for what is not periodic in all directions."""
    if not atoms.pbc.all():
        return float("nan")
    return float(atoms.get_masses().sum() / atoms.get_volume()) * AMU_PER_ANGSTROM3_IN_G_PER_CM3


def closeness(structure: Structure) -> NDArray[np.float64]:
    """[B] the shortest distance between two atoms, images included, over the sum of their covalent radii; else inf."""
    radii = torch.from_numpy(covalent_radii)[structure.numbers]
    pairs = neighbour_list(structure, 2.0 * float(radii.max()))
    ratio = pair_vectors(structure, pairs).norm(dim=1) / (radii[pairs.i] + radii[pairs.j])
    found = torch.full((structure.n_structures,), torch.inf, dtype=ratio.dtype)
    return np.asarray(found.scatter_reduce(0, structure.structure_of_atom[pairs.i], ratio, "amin").numpy())


def conformers(names: Sequence[str], number: int, seed: int, apart: Sequence[str] = ()) -> list[Atoms]:
    """Molecules turned about their bonds and displaced along their soft directions, about `number` in all.

    Arguments:
        names, apart: as `snnp.distillation.assemblies.MoleculePool.of` takes them: files, SMILES, or g2.

    Raises:
        InputError: where nothing is left to start from.
    """
    pool = MoleculePool.of(names, apart)
    found = pool.structures("turned", number, np.random.default_rng([seed, 8]))
    if not found:
        raise InputError(f"{', '.join(names)}: no molecule is left to start from; name others, or fewer apart.")
    return found
