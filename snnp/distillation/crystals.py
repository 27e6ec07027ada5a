"""Structures from element symbols alone: crystals and what is made of them, around volumes that the teacher finds.

    scan_frames(...)  ->  labels  ->  crystals_from_scan(...)     prototypes at the volumes where their energy is lowest
    pool(crystals, ...)                                           strained, rattled, with defects, cut, melted

Every prototype is scanned in volume with cells of one to four atoms; the minima set all lengths, and `B V` of the
lowest one a temperature (see `Crystal.temperature`), so that nothing need be known of an element beforehand.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from ase import Atoms
from ase.build import bulk, make_supercell, surface
from ase.data import atomic_numbers, covalent_radii, reference_states
from ase.geometry import get_distances
from numpy.typing import NDArray

from snnp.data import Frame, Frames
from snnp.errors import InputError
from snnp.neighbours import shortest_distances
from snnp.structure import Structure
from snnp.units import BOLTZMANN_EV_PER_K

__all__ = [
    "SHARES",
    "Crystal",
    "crystals_from_scan",
    "energy_scale",
    "first_scan",
    "frames_of",
    "guessed_crystals",
    "pool",
    "second_scan",
    "supercell",
    "within_reach",
]

Random = np.random.Generator

_COARSE = tuple(np.geomspace(0.5, 1.7, 9).tolist())
"""Volumes of the first scan, of the guess."""
_FINE = (0.94, 1.0, 1.06)
"""Volumes of the second scan, of the minimum of the first."""

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

_LATTICES = ("fcc", "bcc", "hcp", "diamond", "sc")
_COMPOUNDS = ("B1", "B2", "L1_2", "L1_0")
_PLANES = ((1, 0, 0), (1, 1, 0), (1, 1, 1), (2, 1, 0), (2, 1, 1))
_HEXAGONAL_PLANES = ((0, 0, 1), (1, 0, 0), (1, 1, 0), (1, 0, 1))
_DIRECTIONS = ((1, 0, 0), (1, 1, 0), (1, 1, 1))
_DIMER_LENGTHS = np.linspace(0.62, 2.1, 12)  # of the distance of neighbours in the densest crystal
_MOST_ATOMS = 64
_MOST_PUSHES = 60
_CLOSEST = (0.7, 0.85)  # of the spacing: no pair is closer where disorder is drawn, but where crystals are squeezed
_BOLTZMANN_WIDTH, _LEAST_WEIGHT = 0.15, 0.08  # eV/atom above the lowest crystal; what even the highest gets
_AT_REST = 0.05  # eV/atom above the lowest crystal: which of them are strained a little
_SOFTER = 0.8  # of the work before: where it falls under compression, the teacher is not to be trusted
_MARGIN = 1.08  # of the smallest volume that is trusted: deformed cells have closer pairs than perfect ones
_SCALE = 6.0  # k T


@dataclass(frozen=True)
class Crystal:
    """A crystal at the volume where the teacher's energy is lowest.

    Arguments:
        name: such as "fcc Cu" or "L1_2 AlCu3".
        atoms: its conventional cell.
        energy: eV per atom.
        bulk_modulus: eV/Å³.
        least_volume: Å³ per atom, down to which the teacher's work of compression rises.
    """

    name: str
    atoms: Atoms
    energy: float
    bulk_modulus: float
    least_volume: float = 0.0

    @property
    def lattice(self) -> str:
        """The first word of the name."""
        return self.name.split()[0]

    @property
    def volume(self) -> float:
        """Å³ per atom."""
        return float(self.atoms.get_volume()) / len(self.atoms)

    @property
    def spacing(self) -> float:
        """Å, between nearest neighbours."""
        return float(shortest_distances(Structure.from_ase(self.atoms), 2.0 * self.volume ** (1.0 / 3.0))[0])

    @property
    def temperature(self) -> float:
        """K, about that of melting: `k T = 0.011 B V`.

        Measured values of T_m give 0.0113 (Cu), 0.0102 (Al), 0.0117 (Ni), 0.0098 (Mo), 0.0104 (W), 0.0119 (Si),
        0.0098 (Ge) for the factor, 0.024 for Li.
        """
        return 0.011 * self.bulk_modulus * self.volume / BOLTZMANN_EV_PER_K


def frames_of(images: Iterable[tuple[str, Atoms]], name: str) -> Frames:
    """Frames without labels from (kind, atoms); their sources are "name/kind#number".

    Raises:
        InputError: if there are none.
    """
    listed = list(images)
    if not listed:
        raise InputError(f"{name}: there are no structures.")
    return Frames.of(
        Frame(Structure.from_ase(atoms), None, None, None, kind, f"{name}/{kind}#{k}")
        for k, (kind, atoms) in enumerate(listed)
    )


def _guessed_volume(symbol: str) -> float:
    """Å³ per atom: measured, where ASE knows it, else from the covalent radius."""
    number = atomic_numbers[symbol]
    state = reference_states[number] or {}
    if state.get("symmetry") in ("fcc", "bcc", "hcp", "diamond", "sc"):
        return float(bulk(symbol).get_volume()) / len(bulk(symbol))
    return 8.0 * float(covalent_radii[number]) ** 3


def _scaled(atoms: Atoms, volume: float) -> Atoms:
    """Copy with `volume` Å³ per atom."""
    scaled = atoms.copy()
    scaled.set_cell(atoms.cell * (volume * len(atoms) / atoms.get_volume()) ** (1.0 / 3.0), scale_atoms=True)
    return scaled


def _prototypes(elements: Sequence[str]) -> dict[str, Atoms]:
    """Conventional cells at guessed volumes."""
    found = {}
    for symbol in elements:
        if symbol not in atomic_numbers:
            raise InputError(f"{symbol!r} is no chemical symbol; write --elements Al Cu, for example.")
        for lattice in _LATTICES:
            # Cubic where it can be; c/a of hcp is the ideal one.
            cell = bulk(
                symbol, lattice, a=3.0, **({"cubic": True} if lattice != "hcp" else {"c": 3.0 * np.sqrt(8 / 3)})
            )
            found[f"{lattice} {symbol}"] = _scaled(cell, _guessed_volume(symbol))
    for (a, b), compound in itertools.product(itertools.combinations(elements, 2), _COMPOUNDS):
        for first, second in ((a, b), (b, a)) if compound == "L1_2" else ((a, b),):
            atoms = _compound(compound, first, second)
            volume = np.mean([_guessed_volume(symbol) for symbol in atoms.get_chemical_symbols()])
            found[f"{compound} {atoms.get_chemical_formula('metal')}"] = _scaled(atoms, float(volume))
    return found


def _compound(name: str, a: str, b: str) -> Atoms:
    if name == "B1":
        return bulk(a + b, "rocksalt", a=5.0, cubic=True)
    if name == "B2":
        return bulk(a + b, "cesiumchloride", a=3.0)
    cell = bulk(a, "fcc", a=4.0, cubic=True)
    cell.symbols[[0] if name == "L1_2" else [0, 3]] = b
    return cell


def first_scan(elements: Sequence[str]) -> Frames:
    """Primitive cells of all prototypes at many volumes, and the isolated atoms.

    Raises:
        InputError: for what is no chemical symbol.
    """
    images = [
        (f"scan {name}", _scaled(atoms, ratio * atoms.get_volume() / len(atoms)))
        for name, atoms in _prototypes(elements).items()
        for ratio in _COARSE
    ]
    atoms = [("isolated atom", Atoms(symbol)) for symbol in elements]
    return frames_of([*images, *atoms], "first")


def guessed_crystals(elements: Sequence[str]) -> list[Crystal]:
    """Crystals at guessed volumes, to count what would be made of them."""
    return [Crystal(name, atoms, 0.0, 1.0) for name, atoms in _prototypes(elements).items()]


def second_scan(first: Frames) -> Frames:
    """Each prototype at three volumes around the minimum of the labelled first scan.

    Raises:
        InputError: if none has a minimum.
    """
    images = []
    for name, rows in _scans(first).items():
        volume, energy = _curve(first, rows)
        k = int(np.argmin(energy))
        if not 0 < k < len(rows) - 1:
            continue  # no crystal there: it falls apart, or collapses
        center = np.exp(_vertex(np.log(volume[k - 1 : k + 2]), energy[k - 1 : k + 2])[0])
        cell = _atoms_of(first, rows[k])
        images += [(f"scan {name}", _scaled(cell, ratio * center)) for ratio in _FINE]
    if not images:
        raise InputError(
            f"the teacher has no minimum of energy for any crystal of {', '.join(first.elements)}; does it know these?"
        )
    return frames_of(images, "second")


def _least_volumes(first: Frames) -> dict[str, float]:
    """Å³ per atom by prototype, down to which the work of compression -dE/dlnV rises inwards.

    Universal potentials have seen little matter under high pressure; beyond, their energies level off or fall.
    """
    found = {}
    for name, rows in _scans(first).items():
        volume, energy = _curve(first, rows)
        work = -np.diff(energy) / np.diff(np.log(volume))
        least = int(np.argmin(energy))
        while least > 0 and (least >= len(work) or work[least - 1] > _SOFTER * max(work[least], 0.0)):
            least -= 1
        found[name] = float(volume[least])
    return found


def within_reach(first: Frames) -> Frames:
    """The first scan without what lies beyond the teacher's reach (see `Crystal.least_volume`)."""
    least, scans = _least_volumes(first), _scans(first)
    beyond = [row for name, rows in scans.items() for row in rows if _curve(first, [row])[0][0] < 0.999 * least[name]]
    return first.take(np.setdiff1d(np.arange(len(first)), beyond))


def energy_scale(crystals: Sequence[Crystal]) -> float:
    """eV/atom above the lowest crystal from where on a student's errors weigh less: six times k T of about melting."""
    return _SCALE * BOLTZMANN_EV_PER_K * max(crystal.temperature for crystal in crystals[:2])


def crystals_from_scan(second: Frames, first: Frames | None = None) -> list[Crystal]:
    """Crystals at their minima, the lowest in energy first; the labelled first scan tells their least volumes."""
    found, least = [], _least_volumes(first) if first is not None else {}
    for name, rows in _scans(second).items():
        if len(rows) < len(_FINE):
            continue
        volume, energy = _curve(second, rows)
        where, depth, curvature = _vertex(np.log(volume), energy)
        if curvature > 0.0:
            v0 = float(np.exp(np.clip(where, np.log(volume[0]), np.log(volume[-1]))))
            # d²E/d(ln V)² = B V at the minimum.
            atoms = _scaled(_atoms_of(second, rows[0]), v0)
            found.append(Crystal(name, atoms, depth, curvature / v0, least.get(name, 0.0)))
    if not found:
        raise InputError("no crystal of the teacher has a minimum of energy in volume; label more, or another teacher.")
    return sorted(found, key=lambda crystal: crystal.energy)


def _scans(frames: Frames) -> dict[str, list[int]]:
    rows: dict[str, list[int]] = {}
    for row, kind in enumerate(frames.groups):
        if kind is not None and kind.startswith("scan "):
            rows.setdefault(kind.removeprefix("scan "), []).append(row)
    return rows


def _curve(frames: Frames, rows: list[int]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Volume (Å³) and energy (eV) per atom."""
    count = frames.counts[rows]
    return np.abs(np.linalg.det(frames.cell[rows])) / count, frames.energy[rows] / count


def _vertex(x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[float, float, float]:
    """Where a parabola is lowest, its value there, and its second derivative."""
    a, b, c = np.polyfit(x - x.mean(), y, 2)
    if a <= 0.0:
        return float(x.mean()), float(y.mean()), 0.0
    return float(x.mean() - b / (2.0 * a)), float(c - b * b / (4.0 * a)), float(2.0 * a)


def _atoms_of(frames: Frames, row: int) -> Atoms:
    return frames[row].structure.to_ase()[0]


def pool(crystals: Sequence[Crystal], number: int, seed: int) -> Frames:
    """About `number` structures of all kinds in the shares of `SHARES`, with dimers of all pairs of elements.

    Low crystals are used more often than high ones; with several elements half of the structures are random solutions.
    """
    rng = np.random.default_rng([seed, 1])
    above = np.array([each.energy - crystals[0].energy for each in crystals])
    weights = (weights := np.exp(-above / _BOLTZMANN_WIDTH) + _LEAST_WEIGHT) / weights.sum()
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


def _in_solution(crystal: Crystal, crystals: Sequence[Crystal], elements: Sequence[str], rng: Random) -> Crystal:
    """With several elements, every other time: random elements on the sites of a supercell, at the mean volume."""
    if len(elements) == 1 or rng.random() < 0.5:
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
    return Crystal(crystal.name, _scaled(atoms, float(volume)), crystal.energy, crystal.bulk_modulus, least)


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
    atoms = _scaled(crystal.atoms, crystal.volume * rng.uniform(0.97, 1.03))
    atoms.set_cell(atoms.cell.array @ (np.eye(3) + 0.5 * (strain + strain.T)), scale_atoms=True)
    return _shaken(atoms, rng.uniform(0, 0.02) * rng.integers(2), rng)


def _strained(crystal: Crystal, rng: Random) -> Atoms:
    cell = _scaled(crystal.atoms, crystal.volume * rng.uniform(0.85, 1.2))
    return _shaken(_deformed(supercell(cell, rng.uniform(1, 32)), rng.uniform(0, 0.08), rng), rng.uniform(0, 0.04), rng)


def _rattled(crystal: Crystal, rng: Random) -> Atoms:
    cell = _scaled(crystal.atoms, crystal.volume * rng.uniform(0.88, 1.25))
    shaken = _shaken(supercell(cell, rng.uniform(16, 40)), rng.uniform(0.02, 0.14), rng)
    return _pushed_apart(shaken, rng.uniform(*_CLOSEST) * crystal.spacing)


def _squeezed(crystal: Crystal, rng: Random) -> Atoms:
    """Far from the minimum: from half of the volume, where the teacher reaches so far, to twice as much."""
    least = min(max(0.5, _MARGIN * crystal.least_volume / crystal.volume), 0.85)
    ratio = rng.uniform(least, 0.85) if rng.random() < 0.6 else rng.uniform(1.25, 2.0)
    cell = _scaled(crystal.atoms, crystal.volume * ratio)
    if ratio < 1.0 and rng.random() < 0.5:  # along one direction, as in a shock
        way = rng.permutation(_DIRECTIONS[int(rng.integers(len(_DIRECTIONS)))]).astype(float)
        along = (1.0 - ratio) * np.outer(way, way) / (way @ way)
        cell = crystal.atoms.copy()
        cell.set_cell(cell.cell.array @ (np.eye(3) - along), scale_atoms=True)
    return _shaken(_deformed(supercell(cell, rng.uniform(4, 24)), 0.03, rng), rng.uniform(0, 0.06), rng)


def _vacancy(crystal: Crystal, rng: Random) -> Atoms:
    atoms = supercell(_scaled(crystal.atoms, crystal.volume * rng.uniform(0.96, 1.06)), rng.uniform(24, 40))
    del atoms[rng.choice(len(atoms), int(rng.integers(1, 3)), replace=False).tolist()]
    return _shaken(atoms, rng.uniform(0, 0.06), rng)


def _interstitial(crystal: Crystal, rng: Random) -> Atoms:
    """One atom more, in one of the larger holes."""
    atoms = supercell(_scaled(crystal.atoms, crystal.volume * rng.uniform(1.0, 1.1)), rng.uniform(20, 40))
    points = rng.random((60, 3)) @ atoms.cell.array
    nearest = get_distances(points, atoms.positions, cell=atoms.cell, pbc=True)[1].min(axis=1)
    point = points[rng.choice(np.argsort(nearest)[-10:])]
    atoms += Atoms([rng.choice(atoms.get_chemical_symbols())], [point])
    return _pushed_apart(_shaken(atoms, rng.uniform(0.01, 0.05), rng), rng.uniform(*_CLOSEST) * crystal.spacing)


def _slab(crystal: Crystal, rng: Random, vacuum: float | None) -> Atoms:
    """Layers of a low-index plane, repeated in the plane where that leaves it small."""
    planes = _HEXAGONAL_PLANES if crystal.lattice == "hcp" else _PLANES
    cell = _scaled(crystal.atoms, crystal.volume * rng.uniform(0.97, 1.05))
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
    cell = supercell(_scaled(crystal.atoms, crystal.volume * rng.uniform(0.9, 1.35)), rng.uniform(16, 40))
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
