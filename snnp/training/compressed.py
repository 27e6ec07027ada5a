r"""Beyond the data: compressed structures, so that a potential rises where nothing was computed.

What a network extrapolates under compression is as often a hole as a wall. Training therefore sees structures from
the data's edge inwards until nuclei repel each other, labelled by the pair potential that fits the data best,

    E = sum_i e_{z_i} + 1/2 sum_ij phi_{z_i z_j}(r_ij),

with phi a cubic spline fitted to energies, forces and stresses. From the innermost distance d that the data support, it
continues inwards with log(-phi') linear in r up to the screened nuclear repulsion (`snnp.models.repulsion`), which
begins at 0.6 of the shortest distance of the data. The label is no energy but the work that further compression costs,
and within a factor of two of it nothing is asked of the model: an energy that rises everywhere has no hole.
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
from pydantic import BaseModel, Field
from scipy import linalg, sparse

from snnp.data import Frame
from snnp.models.repulsion import Repulsion
from snnp.neighbours import neighbour_list, pair_vectors
from snnp.splines import bspline_weights
from snnp.structure import Structure

__all__ = ["MOST_ELEMENTS", "CompressedFrame", "CompressionConfig", "PairWall", "compressed_frames", "fit_wall"]

Array = NDArray[np.float64]

_REACH = 5.0  # Å, of the pair potential
_INTERVALS = 24
_FIT_ATOMS = 4000
"""Atoms of the frames that the pair potential is fitted to: hundreds of force components per coefficient."""
_FORCE_WEIGHT, _ENERGY_WEIGHT, _STRESS_WEIGHT = 0.1, 3.0, 3.0
_SMOOTHNESS = 1e-3
_NUCLEI = 0.6  # of the shortest distance: within it only nuclei act, as in the repulsion of the models
_FIRST = 0.95  # of the volume at the data's edge: where compressed structures begin
MOST_ELEMENTS = 25
"""The fit of all their pairs takes a minute and 1.4 GB; time grows with the sixth, memory with the fourth power."""
_MOST_KINDS, _MOST_SQUEEZED, _FEWEST_CRYSTALS = 6, 400, 120
_ALL = np.eye(3) / 3.0
_TOUCHING, _CLOSEST = 0.9, 0.3  # of the sum of covalent radii: between which two atoms alone are pushed together
_LEAST_WORK, _LEAST_SHARE = 0.5, 0.3
"""What compression costs at least: eV per atom and unit of -ln V, and a share of what that volume costs all around."""
_DENSE = 0.05
"""Share of the dense frames whose volumes lie below the data's edge: single ones far inside leave a gap behind them."""
_LATTICES = ("fcc", "bcc", "diamond", "sc")
_AXES = tuple(np.array(axis) / np.linalg.norm(axis) for axis in ([1, 0, 0], [1, 1, 0], [1, 1, 1]))


class CompressionConfig(BaseModel, extra="forbid", frozen=True):
    """Compressed structures in training.

    `share`: atoms of squeezed frames, of those of the data. `volume`, `length`: how far they go, in fractions of the
    volume at the data's edge, along all directions or along one. `tolerance`: the share of its work of compression that
    a model may lack beside the wall, or the wall beside a model. `levels`: steps of crystals and dimers on their way.
    """

    share: float = Field(0.15, ge=0.0, le=1.0)
    volume: float = Field(0.15, gt=0.0, lt=0.9)
    length: float = Field(0.35, gt=0.0, lt=0.9)
    tolerance: float = Field(0.5, ge=0.0, lt=1.0)
    levels: int = Field(24, ge=2, le=100)


@dataclass(frozen=True)
class CompressedFrame:
    """A structure, and what it must cost to compress it further.

    `way` [3, 3]: the strain per unit of ln V, of trace one. `work`: -dE/dlnV along it, of the wall, eV per atom; a
    model's may lie between `least` and `most` times that.
    """

    frame: Frame
    way: Array
    work: float
    least: float
    most: float


@dataclass(frozen=True)
class _Curve:
    """phi' of one pair, linear on a grid of distances, nuclear within its first; the wall begins at `start`."""

    r: Array
    slopes: Array
    numbers: tuple[int, int]
    start: float

    def __call__(self, distance: Array) -> Array:
        outside = np.interp(distance, self.r, self.slopes, right=0.0)
        return np.where(distance < self.r[0], _nuclear(distance.clip(0.05, self.r[0]), self.numbers), outside)


@dataclass(frozen=True)
class PairWall:
    """A pair potential that is right in the mean on the data, and repels like nuclei within them.

    `curves`: phi' in eV/Å per pair of atomic numbers (the smaller first).
    """

    curves: dict[tuple[int, int], _Curve]

    def work(self, structure: Structure, way: Array) -> float:
        """-dE/dlnV of one structure along a strain [3, 3] of trace one, eV per atom."""
        pair, distance, _, unit = _pairs(structure)
        stretch, total = np.einsum("pa,ab,pb->p", unit, way, unit) * distance, 0.0
        for key in {tuple(row) for row in pair.tolist()}:
            mine = (pair == key).all(axis=1)
            total -= 0.5 * float(self.curves[key](distance[mine]) @ stretch[mine])
        return total / structure.n_atoms


def _nuclear(r: Array, numbers: tuple[int, int]) -> Array:
    """Slope of the screened nuclear repulsion, not switched off, eV/Å."""
    zi, zj = torch.tensor(numbers, dtype=torch.float64)
    return np.asarray(2.0 * Repulsion(2.0 * _REACH, 3.0 * _REACH)(torch.from_numpy(r), zi, zj)[1].numpy())


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
    elements = sorted(set().union(*map(_elements, frames)))
    basis = _Basis.of(elements, found, frames)
    equations = [_equations(frame, pairs, basis) for frame, pairs in zip(frames, found, strict=True)]
    matrix, values = sparse.vstack([rows for rows, _ in equations]).tocsr(), np.concatenate([v for _, v in equations])
    smooth = np.sqrt(_SMOOTHNESS * len(values)) * basis.curvatures()
    normal = (matrix.T @ matrix + smooth.T @ smooth).toarray()
    # Rank-deficient where one composition leaves the zeros open: the solution of smallest norm.
    solution = linalg.lstsq(normal, matrix.T @ values, cond=1e-12, lapack_driver="gelsy", overwrite_a=True)[0]
    coefficients = solution[len(elements) :].reshape(-1, _INTERVALS)
    return PairWall({key: basis.curve(k, coefficients[k]) for k, key in enumerate(basis.keys)})


def _elements(frame: Frame) -> set[int]:
    return set(frame.structure.numbers.tolist())


def _sample(frames: Sequence[Frame], n_atoms: int, seed: int) -> list[Frame]:
    """Frames drawn until they hold `n_atoms`, and beyond that those with elements that none of them has."""
    chosen, total, seen = list[Frame](), 0, set[int]()
    for k in np.random.default_rng([seed, 1]).permutation(len(frames)):
        if total < n_atoms or not _elements(frames[k]) <= seen:
            chosen.append(frames[k])
            total, seen = total + frames[k].n_atoms, seen | _elements(frames[k])
    return chosen


@dataclass(frozen=True)
class _Basis:
    """What is fitted: a zero of energy per element, then the B-splines of each pair of elements.

    `elements` are atomic numbers, `keys` pairs of them, the smaller first. A pair's spline begins at `start` [keys]
    Å, its shortest distance in the data is `shortest` [keys] Å.
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
            touching = _TOUCHING * float(covalent_radii[a] + covalent_radii[b])  # where nothing is known of a pair
            # The innermost that the data support: two percent of what would be one neighbour per atom lie within.
            rank = max(4, (counts[a] + counts[b] * (a != b)) // 50)
            start[k] = own[rank] if len(own) > rank else min(touching, _REACH - 1.0)
            shortest[k] = own[0] if len(own) else touching
        return cls(elements, keys, start, shortest)

    @property
    def size(self) -> int:
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
        slopes = self(r, np.full(len(r), k))[1][:, columns] @ coefficients
        inner = min(_NUCLEI * self.shortest[k], 0.9 * self.start[k])
        nuclear = -_nuclear(np.array([inner, self.start[k]]), self.keys[k])
        # Where the fit does not repel at its own beginning, a tenth of the nuclear repulsion does.
        steep = max(-float(slopes[0]), 0.1 * float(nuclear[1]))
        within = np.linspace(inner, self.start[k], 200)
        wall = -np.exp(np.interp(within, [inner, self.start[k]], np.log([nuclear[0], steep])))
        return _Curve(np.concatenate([within, r[1:]]), np.concatenate([wall, slopes[1:]]), self.keys[k], self.start[k])


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
    """Structures beyond the edge of the training data, labelled by the wall.

    They are frames of the data, squeezed along all directions or one; crystals (fcc, bcc, diamond, simple cubic) of the
    same elements; and all pairs of elements alone, those that never meet in the data too.
    """
    kinds: dict[tuple[int, ...], list[Frame]] = {}
    for frame in frames:
        if frame.energy is not None and frame.n_atoms > 1:
            kinds.setdefault(tuple(sorted(_elements(frame))), []).append(frame)
    if not kinds:
        return []
    known = [_Kind.of(members) for members in kinds.values()]
    make = _Maker(wall, settings, np.random.default_rng([seed, 2]))
    # Large data are seen few times: what must not be forgotten grows with them.
    times = max(1, round(sum(len(kind.frames) for kind in known) / (10 * _MOST_SQUEEZED)))
    squeezed = make.squeezed(known, times * _MOST_SQUEEZED)
    return [*squeezed, *make.crystals(known), *(frame for _ in range(times) for frame in make.dimers())]


@dataclass(frozen=True)
class _Kind:
    """Frames of the same elements: all, those that are not mostly vacuum, the data's edge (Å³ per atom, infinite
    where some are not periodic), and what compression costs at least."""

    frames: tuple[Frame, ...]
    dense: tuple[Frame, ...]
    edge: float
    least: float

    @classmethod
    def of(cls, frames: Sequence[Frame]) -> _Kind:
        volumes = np.array([_per_atom(frame) for frame in frames])
        inner = volumes <= 1.05 * np.median(volumes)
        dense = [frame for frame, is_dense in zip(frames, inner, strict=True) if is_dense]
        edge = float(np.quantile(volumes[inner], _DENSE)) if np.isfinite(volumes).all() else np.inf
        energies = [(frame.energy or 0.0) / frame.n_atoms for frame in frames]
        # What is bound by a few meV is not pushed by an eV.
        return cls(tuple(frames), tuple(dense), edge, min(_LEAST_WORK, 10.0 * (max(energies) - min(energies))))


def _per_atom(frame: Frame) -> float:
    """Å³ per atom; infinite where the frame is not fully periodic."""
    return float(frame.structure.volume()[0]) / frame.n_atoms if bool(frame.structure.pbc.all()) else np.inf


def _direction(rng: np.random.Generator) -> Array:
    vector = rng.standard_normal(3)
    return np.asarray(vector / np.linalg.norm(vector))


def _deformed(structure: Structure, ratio: float, along: Array | None) -> Structure:
    """Volume times `ratio`, by lengths along all directions or along one."""
    one = ratio ** (1.0 / 3.0) * np.eye(3)
    strain = torch.from_numpy(one if along is None else np.eye(3) + (ratio - 1.0) * np.outer(along, along))
    return replace(structure, positions=structure.positions @ strain, cell=structure.cell @ strain)


@dataclass(frozen=True)
class _Maker:
    """What draws compressed structures and labels them."""

    wall: PairWall
    settings: CompressionConfig
    rng: np.random.Generator

    def labelled(
        self, base: Structure, ratio: float, along: Array | None, least: float, source: str
    ) -> CompressedFrame:
        """A structure at `ratio` of its volume.

        Pairs alone let open crystals slide into denser ones along some paths; here all compression costs something.
        """
        structure, way = _deformed(base, ratio, along), _ALL if along is None else np.outer(along, along)
        # Just beyond the data's edge the model may know better.
        work = max(self.wall.work(structure, way), least * min(1.0, -2.0 * float(np.log(ratio))), 1e-3)
        if along is not None:
            work = max(work, _LEAST_SHARE * self.wall.work(_deformed(base, ratio, None), _ALL))
        return self._asking(structure, way, work, source)

    def _asking(self, structure: Structure, way: Array, work: float, source: str) -> CompressedFrame:
        frame = Frame(structure, None, None, None, "compressed", f"compressed:{source}")
        least = 1.0 - self.settings.tolerance
        return CompressedFrame(frame, way, work, least, 1.0 / least)

    def squeezed(self, kinds: Sequence[_Kind], most: int) -> list[CompressedFrame]:
        """Frames of the data, so many at most, brought from their volume to one beyond the data's edge."""
        settings, rng = self.settings, self.rng
        found, total = list[CompressedFrame](), 0
        wanted = settings.share * sum(frame.n_atoms for kind in kinds for frame in kind.frames)
        weights = np.array([len(kind.frames) for kind in kinds]) / sum(len(kind.frames) for kind in kinds)
        while total < wanted and len(found) < most:
            kind = kinds[int(rng.choice(len(kinds), p=weights))]
            base = kind.dense[int(rng.integers(len(kind.dense)))]
            along = _direction(rng) if rng.random() < 0.5 else None
            # Even in the logarithm of the volume; one direction alone is not squeezed as far as all three.
            smallest = settings.volume if along is None else settings.length
            ratio = float(np.exp(rng.uniform(np.log(smallest), np.log(_FIRST))))
            if np.isfinite(kind.edge):
                ratio *= kind.edge / _per_atom(base)
            found.append(self.labelled(base.structure, ratio, along, kind.least, f"{base.source}:{len(found)}"))
            total += base.n_atoms
        return found

    def crystals(self, kinds: Sequence[_Kind]) -> list[CompressedFrame]:
        """Simple crystals of the elements of the frames, at fractions of the volume at the data's edge."""
        settings, rng = self.settings, self.rng
        found = list[tuple[Structure, float, Array | None, float, str]]()
        kinds = [kind for kind in kinds if np.isfinite(kind.edge)]
        # Of many combinations of elements, each crystal draws one.
        for n in range(min(len(kinds), _MOST_KINDS)):
            for lattice, along in product(_LATTICES, (None, *_AXES, _direction(rng))):
                kind = kinds[n if len(kinds) <= _MOST_KINDS else int(rng.integers(len(kinds)))]
                drawn = kind.frames[int(rng.integers(len(kind.frames)))].structure.numbers.numpy()
                crystal = Structure.from_ase(_crystal(lattice, kind.edge, rng.choice(drawn, 2)))
                smallest = settings.volume if along is None else settings.length
                # One at random in each of so many steps of ln V: no two paths leave the same gaps.
                steps = (np.arange(settings.levels) + rng.random(settings.levels)) / settings.levels
                for ratio in _FIRST * (smallest / _FIRST) ** steps:
                    found.append((crystal, float(ratio), along, kind.least, f"{lattice}:{len(found)}"))
        # Dense crystals have hundreds of neighbours per atom: of few data there are few of them, too.
        most = max(_FEWEST_CRYSTALS, 2 * sum(len(kind.frames) for kind in kinds))
        return [self.labelled(*found[k]) for k in sorted(rng.permutation(len(found))[:most])]

    def dimers(self) -> list[CompressedFrame]:
        """Two atoms alone, from where the wall takes over, or where they touch, inwards."""
        found = list[CompressedFrame]()
        for (a, b), curve in self.wall.curves.items():
            contact = float(covalent_radii[a] + covalent_radii[b])
            first = min(0.97 * curve.start, _TOUCHING * contact)
            for r in np.geomspace(first, _CLOSEST * contact, self.settings.levels):
                dimer = Structure.from_ase(Atoms([a, b], [[0.0, 0.0, 0.0], [float(r), 0.0, 0.0]]))
                found.append(self._asking(dimer, _ALL, self.wall.work(dimer, _ALL), f"dimer:{len(found)}"))
        return [found[k] for k in sorted(self.rng.permutation(len(found))[:_MOST_SQUEEZED])]


def _crystal(lattice: str, volume: float, numbers: NDArray[np.int64]) -> Atoms:
    """A primitive cell of one or two atoms, of these numbers, with `volume` Å³ per atom."""
    crystal = bulk("X", lattice, a=1.0)
    crystal.set_cell(crystal.cell * (volume * len(crystal) / crystal.get_volume()) ** (1.0 / 3.0), scale_atoms=True)
    crystal.numbers = numbers[: len(crystal)]
    return crystal
