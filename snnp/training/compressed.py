r"""Beyond the data: compressed structures, so that a potential rises where nothing was computed.

What a network extrapolates under compression is as often a hole as a wall. Training therefore sees structures from
the data's edge inwards until nuclei repel each other, labelled by the pair potential that fits the data best,

    E = sum_i e_{z_i} + 1/2 sum_ij phi_{z_i z_j}(r_ij),

with phi a cubic spline fitted to energies, forces and stresses. From the innermost distance d that the data support, it
continues inwards with log(-phi') linear in r up to the screened nuclear repulsion (`snnp.models.repulsion`), which
begins at 0.6 of the shortest distance of the data. Labels have a tolerance: within it nothing is asked of the model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import torch
from ase import Atoms
from ase.build import bulk
from ase.data import covalent_radii
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from scipy import linalg, sparse

from snnp.data import Frame
from snnp.models.repulsion import Repulsion
from snnp.neighbours import neighbour_list, pair_vectors
from snnp.splines import bspline_weights
from snnp.structure import Structure

__all__ = [
    *("LEAST_TOLERANCE", "MOST_ELEMENTS", "CompressedFrame", "CompressionConfig", "PairWall"),
    *("compressed_frames", "fit_wall"),
]

Array = NDArray[np.float64]

_REACH = 5.0
"""Å, of the pair potential."""
_INTERVALS = 24
_FIT_ATOMS = 4000
"""Atoms of the frames that the pair potential is fitted to: hundreds of force components per coefficient."""
_FORCE_WEIGHT, _ENERGY_WEIGHT, _STRESS_WEIGHT = 0.1, 3.0, 3.0
_SMOOTHNESS = 1e-3
_NUCLEI = 0.6
"""Of the shortest distance: within it only nuclei act, as in the repulsion of the models."""
_FIRST = 0.95
"""Of the volume at the data's edge: where compressed structures begin."""
LEAST_TOLERANCE = 0.02
"""eV/atom."""
MOST_ELEMENTS = 25
"""The fit of all their pairs takes a minute and 1.4 GB; time grows with the sixth, memory with the fourth power."""
_MOST_KINDS, _MOST_SQUEEZED, _FEWEST_CRYSTALS = 6, 400, 40
_LEAST_WORK, _LEAST_SHARE = 0.5, 0.3
"""What compression costs at least: eV per atom and unit of -ln V, and a share of what that volume costs all around."""
_DENSE = 0.05
"""Share of the dense frames whose volumes lie below the data's edge: single ones far inside leave a gap behind them."""
_LATTICES = ("fcc", "bcc", "diamond", "sc")
_AXES = tuple(np.array(axis) / np.linalg.norm(axis) for axis in ([1, 0, 0], [1, 1, 0], [1, 1, 1]))


class CompressionConfig(BaseModel):
    """Compressed structures in training.

    `share`: their atoms, of those of the data. `volume`, `length`: how far they go, in fractions of the volume at the
    data's edge, along all directions or along one. `tolerance`: of their energy above the data's.
    `levels`: steps of each crystal on its way inwards.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    share: float = Field(0.15, ge=0.0, le=1.0)
    volume: float = Field(0.15, gt=0.0, lt=0.9)
    length: float = Field(0.35, gt=0.0, lt=0.9)
    tolerance: float = Field(0.05, ge=0.0)
    levels: int = Field(12, ge=2, le=100)


@dataclass(frozen=True)
class CompressedFrame:
    """A structure with the energy of the wall, and by how much (eV/atom) a model may differ from it at no cost."""

    frame: Frame
    tolerance: float


@dataclass(frozen=True)
class _Curve:
    """phi of one pair of elements: its values on a grid of distances, linear between, nuclear within the first."""

    r: Array
    phi: Array
    numbers: tuple[int, int]

    def __call__(self, distance: Array) -> Array:
        shift = self.phi[0] - _nuclear(self.r[:1], self.numbers)[0]
        inside = _nuclear(np.clip(distance, 0.05, self.r[0]), self.numbers)[0] + shift
        return np.where(distance < self.r[0], inside, np.interp(distance, self.r, self.phi, right=0.0))


@dataclass(frozen=True)
class PairWall:
    """A pair potential that is right in the mean on the data, and repels like nuclei within them.

    Arguments:
        zeros: eV per atomic number; curves: phi per pair of atomic numbers (the smaller first).
        error: eV/atom, its root-mean-square error on the energies of the data.
    """

    zeros: dict[int, float]
    curves: dict[tuple[int, int], _Curve]
    error: float

    def energy(self, structure: Structure) -> float:
        """eV, of one structure."""
        pair, distance, _, _ = _pairs(structure)
        total = sum(self.zeros[number] for number in structure.numbers.tolist())
        for key in {tuple(row) for row in pair.tolist()}:
            mine = (pair == key).all(axis=1)
            total += 0.5 * float(self.curves[key](distance[mine]).sum())
        return total


def _nuclear(r: Array, numbers: tuple[int, int]) -> tuple[Array, Array]:
    """Screened nuclear repulsion, not switched off, and its slope, eV and eV/Å."""
    zi, zj = torch.tensor(numbers, dtype=torch.float64)
    halves = Repulsion(2.0 * _REACH, 3.0 * _REACH)(torch.from_numpy(r), zi, zj)
    return 2.0 * halves[0].numpy(), 2.0 * halves[1].numpy()


_Found = tuple[NDArray[np.int64], Array, NDArray[np.int64], Array]


def _pairs(structure: Structure) -> _Found:
    """Atomic numbers [P, 2] (sorted), distances [P], centres [P] and unit vectors [P, 3] of all directed pairs."""
    lists = neighbour_list(structure, _REACH)
    vectors = pair_vectors(structure, lists).double().numpy()
    distance = np.linalg.norm(vectors, axis=1)
    z, i = structure.numbers.numpy(), lists.i.numpy()
    return np.sort(np.stack([z[i], z[lists.j.numpy()]], axis=1), axis=1), distance, i, vectors / distance[:, None]


def fit_wall(frames: Sequence[Frame], seed: int = 0) -> PairWall:
    """The pair potential that fits energies, forces and stresses of the frames best (a sample of them, where many)."""
    frames = _sample([frame for frame in frames if frame.energy is not None], _FIT_ATOMS, seed)
    found = [_pairs(frame.structure) for frame in frames]
    elements = sorted({z for frame in frames for z in frame.structure.numbers.tolist()})
    basis = _Basis.of(elements, found, frames)
    equations = [_equations(frame, pairs, basis) for frame, pairs in zip(frames, found, strict=True)]
    matrix, values = sparse.vstack([rows for rows, _ in equations]).tocsr(), np.concatenate([v for _, v in equations])
    smooth = np.sqrt(_SMOOTHNESS * len(values)) * basis.curvatures()
    normal = (matrix.T @ matrix + smooth.T @ smooth).toarray()
    # Rank-deficient where one composition leaves the zeros open: the solution of smallest norm.
    solution = linalg.lstsq(normal, matrix.T @ values, cond=1e-12, lapack_driver="gelsy", overwrite_a=True)[0]
    coefficients = solution[len(elements) :].reshape(-1, _INTERVALS)
    curves = {key: basis.curve(k, coefficients[k]) for k, key in enumerate(basis.keys)}
    wall = PairWall(dict(zip(elements, solution[: len(elements)].tolist(), strict=True)), curves, 0.0)
    errors = [(wall.energy(f.structure) - (f.energy or 0.0)) / f.n_atoms for f in frames]
    return replace(wall, error=float(np.sqrt(np.mean(np.square(errors)))))


def _sample(frames: Sequence[Frame], n_atoms: int, seed: int) -> list[Frame]:
    """Frames drawn until they hold `n_atoms`, and beyond that those with elements that none of them has."""
    chosen: list[Frame] = []
    total, seen = 0, set[int]()
    for k in np.random.default_rng([seed, 1]).permutation(len(frames)):
        elements = set(frames[k].structure.numbers.tolist())
        if total < n_atoms or not elements <= seen:
            chosen.append(frames[k])
            total, seen = total + frames[k].n_atoms, seen | elements
    return chosen


@dataclass(frozen=True)
class _Basis:
    """What is fitted: a zero of energy per element, then the B-splines of each pair of elements.

    Arguments:
        elements: atomic numbers; keys: pairs of them, the smaller first.
        start: [keys] Å, where the spline of a pair begins; shortest: [keys] Å, its shortest distance in the data.
    """

    elements: list[int]
    keys: list[tuple[int, int]]
    start: Array
    shortest: Array

    @classmethod
    def of(cls, elements: list[int], found: Sequence[_Found], frames: Sequence[Frame]) -> _Basis:
        keys = [(a, b) for k, a in enumerate(elements) for b in elements[k:]]
        distances = np.concatenate([distance for _, distance, _, _ in found])
        index = np.concatenate([_index(pair, elements) for pair, _, _, _ in found])
        counts = Counter(z for frame in frames for z in frame.structure.numbers.tolist())
        start, shortest = np.empty(len(keys)), np.empty(len(keys))
        for k, (a, b) in enumerate(keys):
            own = np.sort(distances[index == k])
            touching = 0.9 * float(covalent_radii[a] + covalent_radii[b])  # where nothing is known of a pair
            # The innermost that the data support: two percent of what would be one neighbour per atom lie within.
            rank = max(4, (counts[a] + counts[b] * (a != b)) // 50)
            start[k] = own[rank] if len(own) > rank else min(touching, _REACH - 1.0)
            shortest[k] = own[0] if len(own) else touching
        return cls(elements, keys, start, shortest)

    @property
    def size(self) -> int:
        """Number of unknowns."""
        return len(self.elements) + len(self.keys) * _INTERVALS

    def __call__(self, distance: Array, index: NDArray[np.int64]) -> tuple[sparse.csr_matrix, sparse.csr_matrix]:
        """Values and slopes [P, size] of the B-splines at the distances [P] of the pairs of elements `index` [P].

        The last three of a pair, which do not vanish at the reach, are left out; within `start` all go on as tangents.
        """
        start = torch.from_numpy(self.start[index])
        spacing = (_REACH - start) / _INTERVALS
        first, *made = bspline_weights(torch.from_numpy(distance), start, spacing, torch.tensor(_INTERVALS))
        local = (first[:, None] + torch.arange(4)).numpy().ravel()
        row, kept = np.repeat(np.arange(len(distance)), 4), local < _INTERVALS
        column = len(self.elements) + np.repeat(index, 4) * _INTERVALS + local
        place, shape = (row[kept], column[kept]), (len(distance), self.size)
        values, slopes = (sparse.csr_matrix((each.numpy().ravel()[kept], place), shape=shape) for each in made)
        return values, slopes

    def curvatures(self) -> sparse.csr_matrix:
        """Second differences of the coefficients of each pair of elements."""
        one = np.diff(np.eye(_INTERVALS), n=2, axis=0)
        curves = sparse.kron(sparse.eye(len(self.keys)), one)
        return sparse.hstack([sparse.csr_matrix((curves.shape[0], len(self.elements))), curves]).tocsr()

    def curve(self, k: int, coefficients: Array) -> _Curve:
        """The spline of a pair of elements, with its wall within `start`."""
        r = np.linspace(self.start[k], _REACH, 400)
        columns = slice(len(self.elements) + k * _INTERVALS, len(self.elements) + (k + 1) * _INTERVALS)
        phi, slopes = (each[:, columns] @ coefficients for each in self(r, np.full(len(r), k)))
        inner = min(_NUCLEI * self.shortest[k], 0.9 * self.start[k])
        nuclear = -_nuclear(np.array([inner, self.start[k]]), self.keys[k])[1]
        # Where the fit does not repel at its own beginning, a tenth of the nuclear repulsion does.
        steep = max(-float(slopes[0]), 0.1 * float(nuclear[1]))
        within = np.linspace(inner, self.start[k], 200)
        slope = -np.exp(np.interp(within, [inner, self.start[k]], np.log([nuclear[0], steep])))
        rise = np.concatenate([[0.0], np.cumsum(0.5 * (slope[1:] + slope[:-1]) * np.diff(within))])
        inside = (rise - rise[-1] + phi[0])[:-1]
        return _Curve(np.concatenate([within[:-1], r]), np.concatenate([inside, phi]), self.keys[k])


def _index(pair: NDArray[np.int64], elements: list[int]) -> NDArray[np.int64]:
    """[P] number of each pair of elements [P, 2] (the smaller first) in the order of `_Basis.keys`."""
    low, high = np.searchsorted(elements, pair).T
    return np.asarray(low * len(elements) - low * (low - 1) // 2 + (high - low))


def _equations(frame: Frame, pairs: _Found, basis: _Basis) -> tuple[sparse.csr_matrix, Array]:
    """Weighted rows and right sides: energy per atom, diagonal of the stress times the volume per atom, forces."""
    pair, distance, i, unit = pairs
    n, count = frame.n_atoms, np.arange(len(distance))
    values, slopes = basis(distance, _index(pair, basis.elements))
    composition = np.zeros(basis.size)
    np.add.at(composition, np.searchsorted(basis.elements, frame.structure.numbers.numpy()), 1.0)
    energy_row = (composition + 0.5 * np.asarray(values.sum(axis=0)).ravel()) / n
    rows = [sparse.csr_matrix(_ENERGY_WEIGHT * energy_row)]
    right = [np.array([_ENERGY_WEIGHT * (frame.energy or 0.0) / n])]
    if frame.stress is not None:
        volume = float(frame.structure.volume()[0])
        rows.append(sparse.csr_matrix((_STRESS_WEIGHT * 0.5 / n * unit**2 * distance[:, None]).T @ slopes))
        right.append(_STRESS_WEIGHT * np.diag(frame.stress) * volume / n)
    if frame.forces is not None:
        gather = [sparse.csr_matrix((unit[:, c], (3 * i + c, count)), (3 * n, len(count))) for c in range(3)]
        rows.append(_FORCE_WEIGHT * (gather[0] + gather[1] + gather[2]) @ slopes)
        right.append(_FORCE_WEIGHT * frame.forces.ravel())
    return sparse.vstack(rows).tocsr(), np.concatenate(right)


def compressed_frames(
    frames: Sequence[Frame], wall: PairWall, settings: CompressionConfig, seed: int
) -> list[CompressedFrame]:
    """Structures beyond the data's edge, labelled by the wall.

    Frames of the data, squeezed along all directions or one, take the difference of the wall's energies from their own
    energy; crystals (fcc, bcc, diamond, simple cubic) of the same elements have the wall's energy as it is.

    Arguments:
        frames: training data. seed: of what is drawn.
    """
    kinds: dict[tuple[int, ...], list[Frame]] = {}
    for frame in frames:
        if frame.energy is not None and frame.n_atoms > 1:
            kinds.setdefault(tuple(sorted(set(frame.structure.numbers.tolist()))), []).append(frame)
    if not kinds:
        return []
    known = [_Kind.of(members) for members in kinds.values()]
    rng = np.random.default_rng([seed, 2])
    return [*_squeezed(known, wall, settings, rng), *_crystals(known, wall, settings, rng)]


@dataclass(frozen=True)
class _Kind:
    """Frames of the same elements: all, those that are not mostly vacuum, the data's edge (Å³ per atom, infinite where
    some are not periodic), the lowest energy (eV/atom), and the least tolerance (eV/atom)."""

    frames: tuple[Frame, ...]
    dense: tuple[Frame, ...]
    edge: float
    lowest: float
    tolerance: float

    @classmethod
    def of(cls, frames: Sequence[Frame]) -> _Kind:
        volumes = np.array([_per_atom(frame) for frame in frames])
        dense = [frame for frame, volume in zip(frames, volumes, strict=True) if volume <= 1.05 * np.median(volumes)]
        energies = [(frame.energy or 0.0) / frame.n_atoms for frame in frames]
        # What is bound by a few meV needs a tolerance of less.
        least = max(min(LEAST_TOLERANCE, 0.2 * (max(energies) - min(energies))), 1e-4)
        inner = [_per_atom(frame) for frame in dense]
        edge = float(np.quantile(inner, _DENSE)) if np.isfinite(volumes).all() else np.inf
        return cls(tuple(frames), tuple(dense), edge, min(energies), least)


def _per_atom(frame: Frame) -> float:
    """Å³ per atom; infinite where the frame is not fully periodic."""
    return float(frame.structure.volume()[0]) / frame.n_atoms if bool(frame.structure.pbc.all()) else np.inf


def _squeezed(
    kinds: Sequence[_Kind], wall: PairWall, settings: CompressionConfig, rng: np.random.Generator
) -> list[CompressedFrame]:
    """Frames of the data brought from their volume to one beyond the data's edge."""
    wanted = settings.share * sum(frame.n_atoms for kind in kinds for frame in kind.frames)
    weights = np.array([len(kind.frames) for kind in kinds]) / sum(len(kind.frames) for kind in kinds)
    found: list[CompressedFrame] = []
    total = 0
    while total < wanted and len(found) < _MOST_SQUEEZED:
        kind = kinds[int(rng.choice(len(kinds), p=weights))]
        base = kind.dense[int(rng.integers(len(kind.dense)))]
        along = _direction(rng) if rng.random() < 0.5 else None
        # Even in the logarithm of the volume; one direction alone is not squeezed as far as all three.
        smallest = settings.volume if along is None else settings.length
        ratio = float(np.exp(rng.uniform(np.log(smallest), np.log(_FIRST))))
        if np.isfinite(kind.edge):
            ratio *= kind.edge / _per_atom(base)
        structure = _deformed(base.structure, ratio, along)
        rise = _rise(base.structure, wall, np.geomspace(1.0, ratio, settings.levels)[1:], along)[-1]
        tolerance = kind.tolerance + settings.tolerance * abs(rise) / base.n_atoms
        source = f"compressed:{base.source}:{len(found)}"
        frame = Frame(structure, (base.energy or 0.0) + rise, None, None, "compressed", source)
        found.append(CompressedFrame(frame, tolerance))
        total += base.n_atoms
    return found


def _direction(rng: np.random.Generator) -> Array:
    vector = rng.standard_normal(3)
    return np.asarray(vector / np.linalg.norm(vector))


def _deformed(structure: Structure, ratio: float, along: Array | None) -> Structure:
    """Volume times `ratio`, by lengths along all directions or along one."""
    gradient = ratio ** (1.0 / 3.0) * np.eye(3) if along is None else np.eye(3) + (ratio - 1.0) * np.outer(along, along)
    strain = torch.from_numpy(gradient)
    return replace(structure, positions=structure.positions @ strain, cell=structure.cell @ strain)


def _rise(structure: Structure, wall: PairWall, ratios: Array, along: Array | None) -> Array:
    """[n] eV, by how much the wall's energy is above that of the structure at each of the falling `ratios`.

    Pairs alone let open crystals slide into denser ones along some paths; here every step of compression costs energy.
    """

    def steps(direction: Array | None) -> Array:
        energies = (wall.energy(_deformed(structure, float(r), direction)) for r in ratios)
        return np.diff([wall.energy(structure), *energies])

    least = _LEAST_WORK * structure.n_atoms * -np.diff(np.log([1.0, *ratios]))
    if along is not None:
        least = np.maximum(least, _LEAST_SHARE * steps(None))
    return np.cumsum(np.maximum(steps(along), least))


def _crystals(
    kinds: Sequence[_Kind], wall: PairWall, settings: CompressionConfig, rng: np.random.Generator
) -> list[CompressedFrame]:
    """Simple crystals of the elements of the frames, at fractions of the volume at the data's edge."""
    kinds = [kind for kind in kinds if np.isfinite(kind.edge)]
    found: list[CompressedFrame] = []
    # Of many combinations of elements, each crystal draws one.
    for n in range(min(len(kinds), _MOST_KINDS)):
        for lattice, along in product(_LATTICES, (None, *_AXES, _direction(rng))):
            kind = kinds[n if len(kinds) <= _MOST_KINDS else int(rng.integers(len(kinds)))]
            drawn = kind.frames[int(rng.integers(len(kind.frames)))].structure.numbers.numpy()
            crystal = Structure.from_ase(_crystal(lattice, kind.edge, rng.choice(drawn, 2)))
            ratios = np.geomspace(_FIRST, settings.volume if along is None else settings.length, settings.levels)
            rises = _rise(crystal, wall, ratios, along)
            for ratio, energy in zip(ratios, rises + wall.energy(crystal), strict=True):
                above = max(energy / crystal.n_atoms - kind.lowest, 0.0)
                # How far the pair potential is off matters near the data, where the potential knows better.
                tolerance = kind.tolerance + wall.error * float(np.exp(-above)) + settings.tolerance * above
                structure, source = _deformed(crystal, float(ratio), along), f"compressed:{lattice}:{len(found)}"
                frame = Frame(structure, float(energy), None, None, "compressed", source)
                found.append(CompressedFrame(frame, tolerance))
    # Dense crystals have hundreds of neighbours per atom: of few data there are few of them, too.
    most = max(_FEWEST_CRYSTALS, 2 * sum(len(kind.frames) for kind in kinds))
    return [found[k] for k in sorted(rng.permutation(len(found))[:most])]


def _crystal(lattice: str, volume: float, numbers: NDArray[np.int64]) -> Atoms:
    """A primitive cell of one or two atoms, of these numbers, with `volume` Å³ per atom."""
    crystal = bulk("X", lattice, a=1.0)
    crystal.set_cell(crystal.cell * (volume * len(crystal) / crystal.get_volume()) ** (1.0 / 3.0), scale_atoms=True)
    crystal.numbers = numbers[: len(crystal)]
    return crystal
