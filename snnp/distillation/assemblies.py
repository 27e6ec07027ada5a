"""Molecules together: pairs in contact, clusters and liquids; and the pool of structures made of molecules.

Two molecules come together from a random side in random orientations until the closest two of their atoms are at a
drawn fraction of their van der Waals distance: 0.7 is a hydrogen bond, less is compression. Liquids are small periodic
boxes, at a density from the volumes of atoms, in which molecules were thrown and then pushed apart as rigid bodies.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from ase import Atoms
from ase.data import covalent_radii, vdw_radii
from ase.geometry import get_distances
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from snnp.data import Frames
from snnp.distillation.crystals import frames_of
from snnp.distillation.molecules import displaced, graph_key, overlapping, read_molecules, turned

__all__ = ["MOLECULE_SHARES", "MoleculePool"]

MOLECULE_SHARES = {"molecule": 0.38, "turned": 0.17, "dimer": 0.27, "cluster": 0.08, "liquid": 0.10}
"""Of the structures made of molecules."""

_CONTACT = (0.5, 1.2)  # of the van der Waals distance, between two molecules
_LIQUID_CONTACT = 0.68
_MOST_IN_PAIR, _MOST_IN_CLUSTER, _IN_LIQUID = 40, 50, (24, 72)  # atoms
_SMALL = 16  # atoms, of what clusters and liquids are made of
_WATER_SHARE = 0.35  # of clusters and liquids that hold water, where water is among the molecules
_WATER = (1, 1, 8)
_VOLUMES = {
    1: 5.5,
    16: 27.0,
    17: 27.0,
}  # Å³ of an atom in a liquid; others as below. Water: 31 (30), benzene: 153 (148)
_VOLUME = 20.0
_DENSITIES = (0.75, 1.2)  # of that of the volumes
_PUSHES = 300
_HOTTEST_PART = 600.0  # K, of molecules in contact: what is new there is between them


@dataclass
class MoleculePool:
    """What is made of some molecules.

    Arguments:
        molecules: at rest, not periodic.
        apart: keys (`snnp.distillation.molecules.graph_key`) of what must not be made, such as the molecules and
            dimers of a test.
    """

    molecules: Sequence[Atoms]
    apart: frozenset[str] = frozenset()
    _keys: list[str] = field(init=False)

    @classmethod
    def of(cls, names: Sequence[str], apart: Sequence[str] = ()) -> MoleculePool:
        """Of molecules by name, without those that are named `apart` (see `read_molecules`)."""
        return cls(read_molecules(names), frozenset(map(graph_key, read_molecules(apart))))

    def __post_init__(self) -> None:
        self._keys = [graph_key(atoms) for atoms in self.molecules]
        small = [k for k, atoms in enumerate(self.molecules) if len(atoms) <= _SMALL]
        self._small = small or list(range(len(self.molecules)))
        weights = np.array([1.0 / len(self.molecules[k]) for k in self._small])
        self._weights = weights / weights.sum()
        self._waters = [k for k in small if tuple(sorted(self.molecules[k].numbers)) == _WATER]

    def frames(self, number: int, seed: int) -> Frames:
        """About `number` structures, of the kinds of `MOLECULE_SHARES` in these shares."""
        rng = np.random.default_rng([seed, 4])
        images = [("molecule", self.molecules[k]) for k in self._alone()]
        for kind, share in MOLECULE_SHARES.items():
            wanted = round(share * number)
            images += [(kind, atoms) for atoms in self.structures(kind, wanted, rng)]
        return frames_of(images, "pool")

    def structures(self, kind: str, number: int, rng: np.random.Generator) -> list[Atoms]:
        """About `number` of one kind, without those in which atoms overlap; none where nothing may be made."""
        if kind in ("molecule", "turned"):
            alone = self._alone()
            rows = np.resize(rng.permutation(alone), number).tolist() if alone else []
            made = [self._moved(k, rng, kind == "turned") for k in rows]
        else:
            make = {"dimer": self._dimer, "cluster": self._cluster, "liquid": self._liquid}[kind]
            made = [atoms for _ in range(number) if (atoms := make(rng)) is not None]
        return [atoms for atoms in made if not overlapping(atoms)]

    def _alone(self) -> list[int]:
        return [k for k, key in enumerate(self._keys) if key not in self.apart]

    def _moved(self, k: int, rng: np.random.Generator, turn: bool) -> Atoms:
        atoms = turned(self.molecules[k], rng) if turn else self.molecules[k]
        return displaced(atoms, rng, 600.0) if turn else displaced(atoms, rng)

    def _part(self, k: int, rng: np.random.Generator) -> Atoms:
        """A molecule in a random orientation about the origin."""
        atoms = displaced(self.molecules[k], rng, _HOTTEST_PART)
        atoms.positions -= atoms.positions.mean(axis=0)
        atoms.positions = Rotation.random(rng=rng).apply(atoms.positions)
        return atoms

    def _dimer(self, rng: np.random.Generator) -> Atoms | None:
        """Two molecules, each other time of the small ones."""
        sizes = [len(atoms) for atoms in self.molecules]
        for _ in range(20):
            pair = [self._drawn(rng), self._drawn(rng) if rng.random() < 0.5 else int(rng.integers(len(sizes)))]
            if sizes[pair[0]] + sizes[pair[1]] > max(_MOST_IN_PAIR, 2 * min(sizes)):
                continue
            atoms = self._joined([self._part(k, rng) for k in pair], rng)
            if not self.apart or self._key_of(pair) not in self.apart:
                return atoms
        return None

    def _key_of(self, pair: Sequence[int]) -> str:
        far = self.molecules[pair[1]].copy()
        far.positions += [100.0, 0.0, 0.0]
        return graph_key(self.molecules[pair[0]] + far)

    def _cluster(self, rng: np.random.Generator) -> Atoms:
        """Three to eight small molecules of one or two kinds."""
        kinds = self._kinds(rng)
        parts = [self._part(k, rng) for k in rng.choice(kinds, int(rng.integers(3, 9)))]
        while len(parts) > 3 and sum(map(len, parts)) > _MOST_IN_CLUSTER:
            parts.pop()
        return self._joined(parts, rng)

    def _joined(self, parts: Sequence[Atoms], rng: np.random.Generator) -> Atoms:
        """One after the other from a random side until it touches."""
        whole = parts[0]
        for part in parts[1:]:
            side = rng.standard_normal(3)
            side /= np.linalg.norm(side)
            low = _CONTACT[0] if len(parts) == 2 else _LIQUID_CONTACT - 0.06
            high = _CONTACT[1] if len(parts) == 2 else 0.9
            moved = part.copy()
            moved.positions += whole.positions.mean(axis=0)
            moved.positions += _touching(whole, moved, side, float(rng.uniform(low, high))) * side
            whole = whole + moved
        return whole

    def _liquid(self, rng: np.random.Generator) -> Atoms:
        """Small molecules of one or two kinds in a periodic box."""
        kinds, wanted = self._kinds(rng), int(rng.integers(*_IN_LIQUID))
        parts = [self._part(int(rng.choice(kinds)), rng)]
        while sum(map(len, parts)) < wanted:
            parts.append(self._part(int(rng.choice(kinds)), rng))
        volume = sum(_VOLUMES.get(int(z), _VOLUME) for part in parts for z in part.numbers) / rng.uniform(*_DENSITIES)
        box = volume ** (1.0 / 3.0)
        owner = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
        whole = parts[0]
        for part in parts[1:]:
            whole = whole + part
        whole.positions += rng.uniform(0.0, box, (len(parts), 3))[owner]
        whole.cell, whole.pbc = [box] * 3, True
        return _pushed_apart(whole, owner)

    def _kinds(self, rng: np.random.Generator) -> list[int]:
        """One or two of the small molecules."""
        kinds = [self._drawn(rng) for _ in range(int(rng.integers(1, 3)))]
        if self._waters and rng.random() < _WATER_SHARE:
            kinds[0] = self._waters[0]
        return kinds

    def _drawn(self, rng: np.random.Generator) -> int:
        return self._small[int(rng.choice(len(self._small), p=self._weights))]


def _reach(numbers: NDArray[np.int64]) -> NDArray[np.float64]:
    """[n, n] Å, van der Waals distances."""
    radii = np.where(np.isnan(vdw_radii[numbers]), covalent_radii[numbers] + 0.8, vdw_radii[numbers])
    return np.asarray(radii[:, None] + radii)


def _touching(one: Atoms, other: Atoms, side: NDArray[np.float64], contact: float) -> float:
    """Å, how far the other must be moved to the side so that its closest atom is at the `contact`.

    |d + s u| = R of each pair, a quadratic equation; the largest s of all is the first contact from far away.
    """
    vectors = other.positions[:, None] - one.positions
    n = len(one)
    reach = contact * _reach(np.concatenate([one.numbers, other.numbers]))[n:, :n]
    along = vectors @ side
    inside = along**2 - (vectors**2).sum(axis=2) + reach**2
    return float(np.where(inside >= 0.0, -along + np.sqrt(np.maximum(inside, 0.0)), -np.inf).max(initial=0.0))


def _pushed_apart(atoms: Atoms, owner: NDArray[np.int64]) -> Atoms:
    """Molecules that overlap move away from each other as rigid bodies, for some steps."""
    reach = _LIQUID_CONTACT * _reach(atoms.numbers)
    reach[owner[:, None] == owner] = 0.0
    first = np.flatnonzero(np.diff(owner, prepend=-1))
    for _ in range(_PUSHES):
        vectors, distances = get_distances(atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
        overlap = np.clip(reach - distances, 0.0, None)
        if overlap.max() < 0.05:
            break
        pushes = -(vectors * (overlap / np.maximum(distances, 1e-3))[..., None]).sum(axis=1)
        atoms.positions += 0.5 * np.add.reduceat(pushes, first)[owner]
    return atoms
