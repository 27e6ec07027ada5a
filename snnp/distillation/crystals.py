"""Crystals from element symbols alone, at the volumes that the teacher finds; what is made of them is in `defects`.

    first_scan(...)  ->  labels  ->  second_scan(...)  ->  labels  ->  crystals_from_scan(...)

Every prototype is scanned in volume with cells of one to eight atoms, crystals from files with their own; the minima
set all lengths, and `B V` of the lowest one a temperature (see `Crystal.temperature`), so that nothing need be known
of an element beforehand.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.build import bulk
from ase.data import atomic_numbers, covalent_radii, reference_states
from numpy.typing import NDArray

from snnp.data import Frame, Frames
from snnp.data.read import read_images
from snnp.distillation.settings import STRONGEST
from snnp.errors import InputError
from snnp.neighbours import shortest_distances
from snnp.structure import Structure
from snnp.units import BOLTZMANN_EV_PER_K

__all__ = [
    "Crystal",
    "above_the_lowest",
    "bearable",
    "crystals_from_scan",
    "energy_scale",
    "first_scan",
    "force_limit",
    "frames_of",
    "guessed_crystals",
    "leading",
    "melting",
    "scaled",
    "second_scan",
    "within_reach",
]

_COARSE = tuple(np.geomspace(0.5, 1.7, 9).tolist())
"""Volumes of the first scan, of the guess."""
_FINE = (0.94, 1.0, 1.06)
"""Volumes of the second scan, of the minimum of the first."""

_LATTICES = ("fcc", "bcc", "hcp", "diamond", "sc")
_COMPOUNDS = ("B1", "B2", "L1_2", "L1_0")
_SOFTER = 0.8  # of the work before: where it falls under compression, the teacher is not to be trusted
_SCALE = 6.0  # k T
_STRONGEST = 3.0  # of B times the spacing squared


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
    def named(self) -> bool:
        """Whether it came from a file: then it is what the potential is for."""
        return _is_named(self.name)

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


def _is_named(name: str) -> bool:
    return name.split()[0] not in (*_LATTICES, *_COMPOUNDS)


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


def scaled(atoms: Atoms, volume: float) -> Atoms:
    """Copy with `volume` Å³ per atom."""
    scaled = atoms.copy()
    scaled.set_cell(atoms.cell * (volume * len(atoms) / atoms.get_volume()) ** (1.0 / 3.0), scale_atoms=True)
    return scaled


def _prototypes(elements: Sequence[str], files: Sequence[str | Path] = ()) -> dict[str, Atoms]:
    """Conventional cells at guessed volumes, and those of the files."""
    found = _from_files(elements, files)
    for symbol in elements:
        if symbol not in atomic_numbers:
            raise InputError(f"{symbol!r} is no chemical symbol; write --elements Al Cu, for example.")
        for lattice in _LATTICES:
            # Cubic where it can be; c/a of hcp is the ideal one.
            cell = bulk(
                symbol, lattice, a=3.0, **({"cubic": True} if lattice != "hcp" else {"c": 3.0 * np.sqrt(8 / 3)})
            )
            found[f"{lattice} {symbol}"] = scaled(cell, _guessed_volume(symbol))
    for (a, b), compound in itertools.product(itertools.combinations(elements, 2), _COMPOUNDS):
        for first, second in ((a, b), (b, a)) if compound == "L1_2" else ((a, b),):
            atoms = _compound(compound, first, second)
            volume = np.mean([_guessed_volume(symbol) for symbol in atoms.get_chemical_symbols()])
            found[f"{compound} {atoms.get_chemical_formula('metal')}"] = scaled(atoms, float(volume))
    return found


def _from_files(elements: Sequence[str], files: Sequence[str | Path]) -> dict[str, Atoms]:
    found: dict[str, Atoms] = {}
    for path in map(Path, files):
        for number, atoms in enumerate(read_images(path)):
            where = path.name if not number else f"{path.name}, structure {number + 1}"
            if others := sorted(set(atoms.symbols) - set(elements)):
                raise InputError(
                    f"{where} has {', '.join(others)}, which --elements {' '.join(elements)} does not name."
                )
            if not atoms.pbc.all():
                raise InputError(
                    f"{where} is not periodic in three directions; crystals need a cell (CIF, POSCAR, ...)."
                )
            stem = re.sub(r"\W+", "-", path.stem) + (f"-{number + 1}" if number else "")
            name = f"{stem} {atoms.get_chemical_formula('metal')}"
            if not _is_named(name) or name in found:
                raise InputError(f"there is a crystal {name!r} already; give {path} another name.")
            found[name] = Atoms(atoms.numbers, cell=atoms.cell, scaled_positions=atoms.get_scaled_positions(), pbc=True)
    return found


def _compound(name: str, a: str, b: str) -> Atoms:
    if name == "B1":
        return bulk(a + b, "rocksalt", a=5.0, cubic=True)
    if name == "B2":
        return bulk(a + b, "cesiumchloride", a=3.0)
    cell = bulk(a, "fcc", a=4.0, cubic=True)
    cell.symbols[[0] if name == "L1_2" else [0, 3]] = b
    return cell


def first_scan(elements: Sequence[str], files: Sequence[str | Path] = ()) -> Frames:
    """Cells of all prototypes, and of the crystals in `files`, at many volumes, and the isolated atoms.

    Raises:
        InputError: for what is no chemical symbol, and for files that hold no crystals of these elements.
    """
    images = [
        (f"scan {name}", scaled(atoms, ratio * atoms.get_volume() / len(atoms)))
        for name, atoms in _prototypes(elements, files).items()
        for ratio in _COARSE
    ]
    atoms = [("isolated atom", Atoms(symbol)) for symbol in elements]
    return frames_of([*images, *atoms], "first")


def guessed_crystals(elements: Sequence[str], files: Sequence[str | Path] = ()) -> list[Crystal]:
    """Crystals at guessed volumes, to count what would be made of them."""
    return [Crystal(name, atoms, 0.0, 1.0) for name, atoms in _prototypes(elements, files).items()]


def second_scan(first: Frames) -> Frames:
    """Each prototype at three volumes around the minimum of the labelled first scan.

    Raises:
        InputError: if none has a minimum, or one from a file has none.
    """
    images = []
    for name, rows in _scans(first).items():
        volume, energy = _curve(first, rows)
        k = int(np.argmin(energy))
        if not 0 < k < len(rows) - 1:
            if _is_named(name):
                raise InputError(
                    f"the teacher's energy of {name} has no minimum between half and 1.7 times its volume."
                )
            continue  # no crystal there: it falls apart, or collapses
        center = np.exp(_vertex(np.log(volume[k - 1 : k + 2]), energy[k - 1 : k + 2])[0])
        cell = _atoms_of(first, rows[k])
        images += [(f"scan {name}", scaled(cell, ratio * center)) for ratio in _FINE]
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
        # Along one direction it begins at rest, however low the teacher thinks that the innermost is.
        least = len(rows) - 1 if name.startswith("[") else int(np.argmin(energy))
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
    return _SCALE * BOLTZMANN_EV_PER_K * melting(crystals)


def leading(crystals: Sequence[Crystal]) -> list[Crystal]:
    """Those that came from files, or else the two lowest: what a student is made for above all."""
    return [crystal for crystal in crystals if crystal.named] or list(crystals[:2])


def melting(crystals: Sequence[Crystal]) -> float:
    """K: the highest of the leading crystals."""
    return max(crystal.temperature for crystal in leading(crystals))


def force_limit(crystals: Sequence[Crystal]) -> float:
    """eV/Å, beyond which labels are neither learned nor compared: three times `B s²`, s the spacing, or `STRONGEST`.

    Larger ones come where atoms were drawn close, and from dynamics of a student that knows little yet. A squared error
    sees little else, and in crystals the wall under compression (decision 019) holds there anyway.
    """
    strongest = max((each.bulk_modulus * each.spacing**2 for each in leading(crystals)), default=np.inf)
    return float(min(_STRONGEST * strongest, STRONGEST))


def bearable(labelled: Frames, crystals: Sequence[Crystal]) -> Frames:
    """Those without forces beyond `force_limit`."""
    largest = np.maximum.reduceat(np.abs(labelled.forces).max(axis=1), np.cumsum([0, *labelled.counts[:-1]]))
    return labelled.take(~(largest > force_limit(crystals)))


def above_the_lowest(crystals: Sequence[Crystal]) -> NDArray[np.float64]:
    """eV/atom above the lowest crystal of the same elements, counted from the lowest crystals of the elements."""
    lowest: dict[str, float] = {}
    for each in sorted(crystals, key=lambda crystal: crystal.energy):
        if len(symbols := set(each.atoms.symbols)) == 1:
            lowest.setdefault(symbols.pop(), each.energy)
    formation = [each.energy - float(np.mean([lowest.get(s, 0.0) for s in each.atoms.symbols])) for each in crystals]
    systems = ["".join(sorted(set(each.atoms.symbols))) for each in crystals]
    least = {system: min(e for e, s in zip(formation, systems, strict=True) if s == system) for system in systems}
    return np.array([energy - least[system] for energy, system in zip(formation, systems, strict=True)])


def crystals_from_scan(second: Frames, first: Frames | None = None) -> list[Crystal]:
    """Crystals at their minima, those from files first, then by energy.

    The labelled first scan tells their least volumes.
    """
    found, least = [], _least_volumes(first) if first is not None else {}
    for name, rows in _scans(second).items():
        if len(rows) < len(_FINE):
            continue
        volume, energy = _curve(second, rows)
        where, depth, curvature = _vertex(np.log(volume), energy)
        if curvature > 0.0:
            v0 = float(np.exp(np.clip(where, np.log(volume[0]), np.log(volume[-1]))))
            # d²E/d(ln V)² = B V at the minimum.
            atoms = scaled(_atoms_of(second, rows[0]), v0)
            found.append(Crystal(name, atoms, depth, curvature / v0, least.get(name, 0.0)))
    if lost := [name for name in _scans(second) if _is_named(name) and name not in {each.name for each in found}]:
        raise InputError(
            f"the teacher has no minimum of energy for {', '.join(lost)}; leave it away, or look at its file."
        )
    if not found:
        raise InputError("no crystal of the teacher has a minimum of energy in volume; label more, or another teacher.")
    return sorted(found, key=lambda crystal: (not crystal.named, crystal.energy))


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
