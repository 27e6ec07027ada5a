"""What is made of crystals: strained, rattled, squeezed, with defects, cut, melted, each kind with its share."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np
from ase import Atoms
from ase.build import make_supercell, surface
from ase.geometry import get_distances
from numpy.typing import NDArray

from snnp.data import Frames
from snnp.distillation.crystals import Crystal, above_the_lowest, frames_of, leading, scaled

__all__ = ["SHARES", "pool", "pressed", "supercell"]

Random = np.random.Generator

SHARES = {
    "elastic": 0.18,
    "strained": 0.12,
    "rattled": 0.14,
    "squeezed": 0.06,
    "vacancy": 0.10,
    "interstitial": 0.06,
    "surface": 0.12,
    "fault": 0.06,
    "cluster": 0.05,
    "random": 0.11,
}
"""Of the budget, by kind; elastic ones have few atoms and cost little.

Dimers, isolated atoms and the scans are few, and always taken.
"""

_PLANES = ((1, 0, 0), (1, 1, 0), (1, 1, 1), (2, 1, 0), (2, 1, 1))
_HEXAGONAL_PLANES = ((0, 0, 1), (1, 0, 0), (1, 1, 0), (1, 0, 1))
_DIRECTIONS = ((1, 0, 0), (1, 1, 0), (1, 1, 1))
_PRESSED = tuple(np.geomspace(0.5, 1.0, 10).tolist())  # V/V0 along one direction
_DIMER_LENGTHS = np.linspace(0.62, 2.1, 12)  # of the distance of neighbours in the densest crystal
_MOST_ATOMS = 64
_MOST_PUSHES = 60
_CLOSEST = (0.7, 0.85)  # of the spacing: no pair is closer where disorder is drawn, but where crystals are squeezed
_BOLTZMANN_WIDTH, _LEAST_WEIGHT = 0.15, 0.08  # eV/atom above the lowest crystal; what even the highest gets
_AT_REST = 0.05  # eV/atom above the lowest crystal: which of them are strained a little
_MARGIN = 1.08  # of the smallest volume that is trusted: deformed cells have closer pairs than perfect ones


def pool(crystals: Sequence[Crystal], number: int, seed: int) -> Frames:
    """About `number` structures of all kinds in the shares of `SHARES`, with dimers of all pairs of elements.

    Low crystals are used more often than high ones, and all others little where some were named; with several elements
    half of the structures are random solutions, or with named crystals an eighth.
    """
    rng = np.random.default_rng([seed, 1])
    above, least = above_the_lowest(crystals), np.full(len(crystals), _LEAST_WEIGHT)
    if crystals[0].named:
        others = [not each.named for each in crystals]
        above[others], least[others] = np.inf, _LEAST_WEIGHT / 4.0
    weights = (weights := np.exp(-above / _BOLTZMANN_WIDTH) + least) / weights.sum()
    at_rest = (at_rest := np.exp(-above / _AT_REST)) / at_rest.sum()
    elements = sorted({symbol for each in crystals for symbol in each.atoms.symbols})
    images = []
    for kind, share in SHARES.items():
        for _ in range(max(1, round(share * number))):
            crystal = crystals[int(rng.choice(len(crystals), p=at_rest if kind == "elastic" else weights))]
            if kind != "elastic":
                crystal = _in_solution(crystal, crystals, elements, rng)
            images.append((kind, _MAKERS[kind](crystal, rng)))
    spacing = min(each.spacing for each in crystals)
    for pair in itertools.combinations_with_replacement(elements, 2):
        images += [("dimer", Atoms(list(pair), [[0, 0, 0], [0, 0, r * spacing]])) for r in _DIMER_LENGTHS]
    return frames_of([each for each in images if len(each[1]) <= 2 * _MOST_ATOMS], "pool")


def pressed(crystals: Sequence[Crystal], most: int) -> Frames:
    """Crystals compressed along one direction, to half of the volume: those that lead, or with several elements the
    lowest of each and of each pair; `most` frames at most, and of each direction the whole way.

    Drawn structures leave gaps there, in which students had holes; these have few atoms, and `within_reach` tells how
    far the teacher is to be trusted.
    """
    above = above_the_lowest(crystals)
    lowest = {frozenset(each.atoms.symbols): each for each, high in zip(crystals, above, strict=True) if high == 0.0}
    chosen = leading(crystals) if crystals[0].named or len(lowest) == 1 else list(lowest.values())
    images = [
        (f"scan [{''.join(map(str, way))}] {each.name}", _along(each.atoms, np.array(way, dtype=float), ratio))
        for each in chosen
        for way in _DIRECTIONS
        for ratio in _PRESSED
    ]
    return frames_of(images, "pressed")[: most // len(_PRESSED) * len(_PRESSED)]


def _along(atoms: Atoms, way: NDArray[np.float64], ratio: float) -> Atoms:
    """With its volume times `ratio`, by compression along one direction."""
    found = atoms.copy()
    found.set_cell(found.cell.array @ (np.eye(3) - (1.0 - ratio) * np.outer(way, way) / (way @ way)), scale_atoms=True)
    return found


def _in_solution(crystal: Crystal, crystals: Sequence[Crystal], elements: Sequence[str], rng: Random) -> Crystal:
    """With several elements, so often: random elements on the sites of a supercell, at the mean volume."""
    if len(elements) == 1 or rng.random() < (0.875 if crystals[0].named else 0.5):
        return crystal
    atoms = supercell(crystal.atoms, 16)
    atoms.symbols[:] = rng.choice(elements, len(atoms), p=rng.dirichlet(np.ones(len(elements))))
    volumes = {
        symbol: min(
            (c for c in crystals if set(c.atoms.symbols) == {symbol}), key=lambda c: c.energy, default=crystal
        ).volume
        for symbol in elements
    }
    volume = (
        np.mean([volumes[symbol] for symbol in atoms.symbols])
        * crystal.volume
        / np.mean([volumes[symbol] for symbol in crystal.atoms.symbols])
    )
    least = crystal.least_volume * float(volume) / crystal.volume
    return Crystal(crystal.name, scaled(atoms, float(volume)), crystal.energy, crystal.bulk_modulus, least)


def supercell(atoms: Atoms, n_atoms: float) -> Atoms:
    """Repeated along its shorter vectors to about `n_atoms`."""
    repeats = np.ones(3, dtype=int)
    while len(atoms) * repeats.prod() < 0.7 * n_atoms:
        repeats[int(np.argmin(repeats * atoms.cell.lengths()))] += 1
    found: Atoms = atoms.repeat(repeats.tolist())
    return found


def _shaken(atoms: Atoms, amplitude: float, rng: Random) -> Atoms:
    """Gaussian displacements of `amplitude` times the spacing."""
    if len(atoms) > 1:
        distances = atoms.get_all_distances(mic=bool(atoms.pbc.any()))
        amplitude *= float(np.median(np.where(distances > 0.1, distances, np.inf).min(axis=1)))
    moved = atoms.copy()
    moved.positions += amplitude * rng.standard_normal(moved.positions.shape)
    return moved


def _deformed(atoms: Atoms, size: float, rng: Random) -> Atoms:
    """A random symmetric strain whose components have the standard deviation `size`."""
    strain = size * rng.standard_normal((3, 3))
    deformed = atoms.copy()
    deformed.set_cell(atoms.cell.array @ (np.eye(3) + 0.5 * (strain + strain.T)), scale_atoms=True)
    return deformed


def _elastic(crystal: Crystal, rng: Random) -> Atoms:
    """One of the six strains by half a per cent to two, beside smaller ones; every other time the atoms move a little.

    Elastic constants are differences of stresses of a few tenths of a GPa, which larger strains do not tell.
    """
    strain = 0.003 * rng.standard_normal((3, 3))
    strain[tuple(rng.integers(3, size=2))] += rng.choice((-1.0, 1.0)) * rng.uniform(0.005, 0.02)
    atoms = scaled(crystal.atoms, crystal.volume * rng.uniform(0.97, 1.03))
    atoms.set_cell(atoms.cell.array @ (np.eye(3) + 0.5 * (strain + strain.T)), scale_atoms=True)
    return _shaken(atoms, rng.uniform(0, 0.02) * rng.integers(2), rng)


def _strained(crystal: Crystal, rng: Random) -> Atoms:
    cell = scaled(crystal.atoms, crystal.volume * rng.uniform(0.85, 1.2))
    return _shaken(_deformed(supercell(cell, rng.uniform(1, 32)), rng.uniform(0, 0.08), rng), rng.uniform(0, 0.04), rng)


def _rattled(crystal: Crystal, rng: Random) -> Atoms:
    cell = scaled(crystal.atoms, crystal.volume * rng.uniform(0.88, 1.25))
    shaken = _shaken(supercell(cell, rng.uniform(16, 40)), rng.uniform(0.02, 0.14), rng)
    return _pushed_apart(shaken, rng.uniform(*_CLOSEST) * crystal.spacing)


def _squeezed(crystal: Crystal, rng: Random) -> Atoms:
    """Far from the minimum: from half of the volume, where the teacher reaches so far, to twice as much."""
    least = min(max(0.5, _MARGIN * crystal.least_volume / crystal.volume), 0.85)
    ratio = rng.uniform(least, 0.85) if rng.random() < 0.6 else rng.uniform(1.25, 2.0)
    cell = scaled(crystal.atoms, crystal.volume * ratio)
    if ratio < 1.0 and rng.random() < 0.5:  # along one direction, as in a shock
        way = rng.permutation(_DIRECTIONS[int(rng.integers(len(_DIRECTIONS)))]).astype(float)
        cell = _along(crystal.atoms, way, ratio)
    return _shaken(_deformed(supercell(cell, rng.uniform(4, 24)), 0.03, rng), rng.uniform(0, 0.06), rng)


def _vacancy(crystal: Crystal, rng: Random) -> Atoms:
    atoms = supercell(scaled(crystal.atoms, crystal.volume * rng.uniform(0.96, 1.06)), rng.uniform(24, 40))
    del atoms[rng.choice(len(atoms), int(rng.integers(1, 3)), replace=False).tolist()]
    return _shaken(atoms, rng.uniform(0, 0.06), rng)


def _interstitial(crystal: Crystal, rng: Random) -> Atoms:
    """One atom more, in one of the larger holes."""
    atoms = supercell(scaled(crystal.atoms, crystal.volume * rng.uniform(1.0, 1.1)), rng.uniform(20, 40))
    points = rng.random((60, 3)) @ atoms.cell.array
    nearest = get_distances(points, atoms.positions, cell=atoms.cell, pbc=True)[1].min(axis=1)
    point = points[rng.choice(np.argsort(nearest)[-10:])]
    atoms += Atoms([rng.choice(atoms.get_chemical_symbols())], [point])
    return _pushed_apart(_shaken(atoms, rng.uniform(0.01, 0.05), rng), rng.uniform(*_CLOSEST) * crystal.spacing)


def _slab(crystal: Crystal, rng: Random, vacuum: float | None) -> Atoms:
    """Layers of a low-index plane, repeated in the plane where that leaves it small."""
    planes = _HEXAGONAL_PLANES if crystal.lattice == "hcp" else _PLANES
    cell = scaled(crystal.atoms, crystal.volume * rng.uniform(0.97, 1.05))
    plane = planes[int(rng.integers(len(planes)))]
    layers = int(rng.integers(2, 5))
    while layers > 1 and layers * len(cell) * 2 > _MOST_ATOMS:
        layers -= 1
    slab = surface(cell, plane, layers, vacuum=vacuum, periodic=vacuum is None)
    if len(slab) * 2 <= _MOST_ATOMS:
        slab = make_supercell(slab, np.diag([2, 1, 1] if rng.random() < 0.5 else [1, 2, 1]))
    return slab


def _surface(crystal: Crystal, rng: Random) -> Atoms:
    slab = _slab(crystal, rng, 5.0)
    slab.pbc = True  # with stress: vacuum enough that images do not touch
    return _shaken(slab, rng.uniform(0, 0.06), rng)


def _fault(crystal: Crystal, rng: Random) -> Atoms:
    """Half of a crystal slides along a plane against the other; the third vector follows, so that one fault remains."""
    slab = _slab(crystal, rng, None)
    shift = rng.random(2) @ slab.cell.array[:2]
    height = np.round(slab.get_scaled_positions()[:, 2] % 1.0, 3) % 1.0
    levels = np.unique(height)
    upper = height > levels[len(levels) // 2 - 1] if len(levels) > 1 else np.ones(len(slab), dtype=bool)
    slab.positions[upper] += shift
    slab.set_cell(slab.cell.array + np.array([np.zeros(3), np.zeros(3), shift]))
    return _pushed_apart(_shaken(slab, rng.uniform(0.0, 0.05), rng), rng.uniform(*_CLOSEST) * crystal.spacing)


def _cluster(crystal: Crystal, rng: Random) -> Atoms:
    """Atoms around a point of the crystal, alone."""
    block = supercell(crystal.atoms, 120)
    center = block.cell.array.sum(axis=0) / 2 + rng.normal(0, 1.0, 3)
    nearest = np.argsort(np.linalg.norm(block.positions - center, axis=1))[: int(rng.integers(3, 25))]
    found = Atoms(block.numbers[nearest], rng.uniform(0.92, 1.08) * block.positions[nearest])
    return _pushed_apart(_shaken(found, rng.uniform(0.02, 0.12), rng), rng.uniform(*_CLOSEST) * crystal.spacing)


def _random(crystal: Crystal, rng: Random) -> Atoms:
    """Atoms at random places, pushed apart until they hardly overlap: a liquid's disorder without any dynamics."""
    cell = supercell(scaled(crystal.atoms, crystal.volume * rng.uniform(0.9, 1.35)), rng.uniform(16, 40))
    cell.set_scaled_positions(rng.random((len(cell), 3)))
    return _pushed_apart(cell, rng.uniform(0.75, 0.92) * crystal.spacing)


def _pushed_apart(atoms: Atoms, reach: float) -> Atoms:
    """Pairs closer than `reach` (Å) move away from each other, for some steps."""
    found = atoms.copy()
    for _ in range(_MOST_PUSHES):
        vectors, distances = get_distances(found.positions, cell=found.cell, pbc=found.pbc)
        np.fill_diagonal(distances, np.inf)
        overlap = np.clip(reach - distances, 0.0, None)
        if overlap.max() < 0.02 * reach:
            break
        found.positions -= 0.5 * (vectors * (overlap / np.maximum(distances, 1e-3))[..., None]).sum(axis=1)
    return found


_MAKERS: dict[str, Callable[[Crystal, Random], Atoms]] = {
    "elastic": _elastic,
    "strained": _strained,
    "rattled": _rattled,
    "squeezed": _squeezed,
    "vacancy": _vacancy,
    "interstitial": _interstitial,
    "surface": _surface,
    "fault": _fault,
    "cluster": _cluster,
    "random": _random,
}
