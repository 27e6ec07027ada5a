"""Do energies, forces and stresses belong together, and are they in eV and Å? Asked of neighbouring frames in seconds.

Between two frames of the same atoms the energy changes by the work of forces and stress (exact where it is quadratic):

    E_b - E_a = k_F * -sum_i (F_a + F_b)_i / 2 . dx_i + k_S * V (S_a + S_b) / 2 : strain

In one system of units k_F = k_S = 1; another factor is that of a unit, or of a sign, and is named. Where all labels are
in the same wrong unit the factors are 1: then total energies of all electrons are compared with those of atoms, and the
stiffness of matter with what is known.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from snnp.data.frames import Frame, Frames
from snnp.units import BOHR_IN_ANGSTROM, ENERGY_UNITS, HARTREE_IN_EV, NM_IN_ANGSTROM, PRESSURE_UNITS

__all__ = ["Relation", "Slope", "Suspicion", "by_file", "relation_of", "rows_by_file", "suspicions"]

_MOST_WORK = 20_000_000  # numbers in the differences of all pairs of one group
_MOST_FRAMES = 300  # of one group
_MOST_GROUPS = 20
_MOST_FILES = 12
_RUN = 4  # frames that are taken together, because a trajectory's neighbours are close
_PARTNERS = 2
_STRAIN_LENGTH = 3.0  # Å: a strain moves neighbours by this times itself
_LEAST_STRAIN = 1e-5
_NEIGHBOURS = 0.75  # Å: cells farther apart (a strain of 25 %), as of random structures, are no neighbours
_REPEATS = 40  # of the bootstrap
_LEAST_PAIRS = 6
_TRUSTED = 0.6  # of the changes of energy explained; sets that need forgiveness reach 0.3 to 0.5 by chance
_TINY = 1e-12
_DRASTIC, _TRUSTED_DRASTIC = 1.2, 0.45  # of a factor that is so far from 1 (its logarithm) less is asked
_OFF_FORCES, _OFF_STRESS = 0.4, 0.7  # of the logarithm; sound sets have 0.2 for forces and 0.5 for stresses at most
_NEAR_FORCES, _NEAR_STRESS = 0.15, 0.5  # likewise, from the factor that is named
# eV/Å²; sound sets have 0.1 to 22, of methane. Below: with short and stiff bonds, without them.
_MOST_STIFF, _MOST_STIFF_METAL, _USUAL_STIFF = 80.0, 30.0, (1.0, 25.0)
_SHORT_BONDS = (1, 5, 6, 7, 8, 9)
_LIKE = 0.03  # relative; how well energies per atom of one composition agree between files
_ALL_ELECTRONS = 0.03  # relative; how far sums of atoms are from molecules
_HEAVIEST = 36  # beyond krypton relativity counts
_LIGHT = {1: -0.5, 2: -2.9037, 3: -7.4781, 4: -14.6674}  # Hartree, non-relativistic atoms


class Slope(NamedTuple):
    """Changes of energy over works, between so many pairs of frames.

    `factor` is 1 where both are in the same units, `error` the standard deviation of its logarithm, and `explained` the
    share of the changes of energy that the works explain.
    """

    factor: float
    error: float
    explained: float
    pairs: int


class Relation(NamedTuple):
    """What neighbouring frames say of the works of forces at constant cell, and of stresses; None and NaN for nothing.

    `virial` is that of stresses taken for virials, `-stress * V`, which some files call stress; `stiffness` is the
    usual change of forces by displacement in eV/Å².
    """

    forces: Slope | None
    stress: Slope | None
    virial: Slope | None
    stiffness: float


class _Pairs(NamedTuple):
    """[P] of P pairs of frames: change of energy, work of forces, of stresses, volume, stiffness, distance in Å."""

    energy: np.ndarray
    of_forces: np.ndarray
    of_stress: np.ndarray
    volume: np.ndarray
    stiffness: np.ndarray
    distance: np.ndarray


def relation_of(frames: Sequence[Frame]) -> Relation:
    """Compare changes of energy with the work of forces and stress between neighbouring frames; seconds at most."""
    frames = Frames.of(frames)
    groups: dict[bytes, list[int]] = defaultdict(list)
    told = frames.has_energy & (frames.counts > 1) & (frames.has_forces | frames.has_stress)
    for row in np.flatnonzero(told).tolist():
        numbers = frames.numbers[frames.starts[row] : frames.starts[row + 1]]
        groups[numbers.tobytes() + frames.pbc[row].tobytes()].append(row)
    still: list[_Pairs] = []
    strained: list[_Pairs] = []
    for rows in sorted(groups.values(), key=len, reverse=True)[:_MOST_GROUPS]:
        most = int(np.clip(np.sqrt(_MOST_WORK / (3 * int(frames.counts[rows[0]]))), 2 * _RUN, _MOST_FRAMES))
        if len(rows) > most:  # runs of consecutive frames, spread evenly
            starts = np.linspace(0, len(rows) - _RUN, most // _RUN).astype(int)
            rows = [rows[k] for k in np.unique(starts[:, None] + np.arange(_RUN))]
        for pairs in _pairs(frames.take(rows)) if len(rows) > 1 else ():
            (strained if pairs.of_stress.any() else still).append(pairs)
    one = _joined(still)
    forces = None if one is None else _slope(one.energy, one.of_forces)
    stiffness = np.array([]) if one is None else one.stiffness[np.isfinite(one.stiffness)]
    two, stress, virial = _joined(strained), None, None
    if two is not None:
        # What forces do beside a strain is taken off, with the factor that they have.
        factor = forces.factor if forces is not None and forces.explained > _TRUSTED_DRASTIC else 1.0
        rest = two.energy - factor * np.nan_to_num(two.of_forces)
        stress, virial = _slope(rest, two.of_stress), _slope(rest, -two.of_stress / two.volume)
        if forces is None or (forces.explained < _TRUSTED and stress is not None and stress.explained < _TRUSTED):
            forces = _joint(two) or forces
    return Relation(forces, stress, virial, float(np.median(stiffness)) if len(stiffness) >= 4 else float("nan"))


def _joined(found: list[_Pairs]) -> _Pairs | None:
    """The nearer half of all pairs: the farther apart, the less is the energy quadratic."""
    if not found:
        return None
    columns = [np.concatenate(column) for column in zip(*found, strict=True)]
    near = columns[-1] <= np.median(columns[-1])
    return _Pairs(*(column[near] for column in columns))


def _pairs(group: Frames) -> Iterator[_Pairs]:
    """Each frame with the nearest others."""
    positions, forces = (values.reshape(len(group), -1, 3) for values in (group.positions, group.forces))
    energy, stress = group.energy, group.stress
    # Where nothing repeats a cell is only room, which differs where it was fitted around the atoms.
    cells = group.cell * group.pbc[:, :, None]
    periodic = bool(group.pbc[0].all())
    if not group.pbc.any():  # free molecules are centred, and turned onto the first one
        positions = positions - positions.mean(axis=1, keepdims=True)
        u, _, v = np.linalg.svd(np.einsum("bni,nj->bij", positions, positions[0]))
        u[:, :, 2] *= np.sign(np.linalg.det(u) * np.linalg.det(v))[:, None]
        positions, forces = positions @ (u @ v), forces @ (u @ v)
    for a in range(len(group)):
        moves, strains = _moves(a, positions, cells, periodic)
        distance = np.sqrt((moves**2).sum(axis=2).mean(axis=1) + _STRAIN_LENGTH**2 * (strains**2).sum(axis=(1, 2)))
        usable = np.isfinite(distance) & (distance > 1e-6)
        strained = np.abs(strains).max(axis=(1, 2)) > _LEAST_STRAIN
        for kind in (usable & ~strained, usable & strained & (distance < _NEIGHBOURS)):
            near = np.flatnonzero(kind)
            near = near[np.argsort(distance[near])[:_PARTNERS]]
            volume = 0.5 * (abs(np.linalg.det(cells[a])) + np.abs(np.linalg.det(cells[near])))
            of_forces = -0.5 * ((forces[a] + forces[near]) * moves[near]).sum(axis=(1, 2))
            of_stress = 0.5 * volume * ((stress[a] + stress[near]) * strains[near]).sum(axis=(1, 2))
            if not kind[strained].any():
                of_stress = np.zeros(len(near))
            good = np.isfinite(of_stress if kind[strained].any() else of_forces)
            change = ((forces[a] - forces[near]) * moves[near]).sum(axis=(1, 2))
            stiffness = change / np.maximum((moves[near] ** 2).sum(axis=(1, 2)), _TINY)
            if good.any():
                columns = (energy[near] - energy[a], of_forces, of_stress, volume, stiffness, distance[near])
                yield _Pairs(*(column[good] for column in columns))


def _moves(a: int, positions: np.ndarray, cells: np.ndarray, periodic: bool) -> tuple[np.ndarray, np.ndarray]:
    """[n, N, 3] displacements from frame `a` at constant cell, without their mean, and [n, 3, 3] strains."""
    if not periodic:
        moves = positions - positions[a]
        strains = np.zeros((len(positions), 3, 3))
        strains[np.abs(cells - cells[a]).max(axis=(1, 2)) > 1e-6] = np.inf  # no volume, no stress
        return moves - moves.mean(axis=1, keepdims=True), strains
    middle = 0.5 * (cells + cells[a])
    scaled = positions @ np.linalg.inv(cells)
    step = scaled - scaled[a]
    step -= np.round(step)
    # A common shift may take some atoms across the border of the cell.
    step -= step.mean(axis=1, keepdims=True)
    return step @ middle, np.linalg.inv(middle) @ (cells - cells[a])


def _slope(changes: np.ndarray, works: np.ndarray) -> Slope | None:
    """The factor of least absolute deviations: the median of the ratios, weighted by the work."""
    telling = np.isfinite(works) & (np.abs(works) > 0.0)
    changes, works = changes[telling], works[telling]
    size = float(np.abs(changes).sum())
    if len(works) < _LEAST_PAIRS or size == 0.0:
        return None
    order = np.argsort(changes / works)
    ratios, weights = (changes / works)[order], np.abs(works)[order]
    factor = _middle(ratios, weights)
    random = np.random.default_rng(0)
    # A bootstrap: how often each pair is drawn.
    draws = random.multinomial(len(ratios), np.full(len(ratios), 1.0 / len(ratios)), size=_REPEATS)
    others = np.array([_middle(ratios, weights * times) for times in draws])
    off = np.where(others * factor > 0.0, np.abs(np.log(np.maximum(np.abs(others / factor), _TINY))), 5.0)
    explained = 1.0 - float(np.abs(changes - factor * works).sum()) / size
    return Slope(factor, float(1.4826 * np.median(off)), explained, len(works))


def _middle(ratios: np.ndarray, weights: np.ndarray) -> float:
    total = np.cumsum(weights)
    return float(ratios[min(int(np.searchsorted(total, 0.5 * total[-1])), len(ratios) - 1)]) or _TINY


def _joint(pairs: _Pairs) -> Slope | None:
    """The factor of forces where every pair differs in its cell too: forces and stresses fitted at once."""
    works = np.stack([pairs.of_forces, pairs.of_stress], axis=1)
    good = np.isfinite(works).all(axis=1) & (np.abs(works).min(axis=1) > 0.0)
    works, changes = works[good], pairs.energy[good]
    if len(works) < 2 * _LEAST_PAIRS:
        return None
    rows = works / np.abs(works).mean(axis=0)
    weights = np.ones(len(rows))
    solution = np.zeros(2)
    for _ in range(20):
        root = np.sqrt(weights)
        solution, *_ = np.linalg.lstsq(rows * root[:, None], changes * root, rcond=1e-10)
        weights = 1.0 / (np.abs(changes - rows @ solution) + 1e-3 * np.abs(changes).mean() + _TINY)
    rest = changes - rows[:, 1] * solution[1]
    # Where the forces do a small part of the work they say little.
    return _slope(rest, works[:, 0]) if np.abs(rest).sum() > 0.2 * np.abs(changes).sum() else None


class Suspicion(NamedTuple):
    """Labels of one file ("forces", "stress" or "energy") that do not fit, by a factor: what was seen, and the cure."""

    file: str
    quantity: str
    message: str
    cure: str
    certain: bool  # a sound file could not look like this
    factor: float

    def __str__(self) -> str:
        return f"{self.file}: {self.message}; {self.cure}"


class _Meaning(NamedTuple):
    """What a factor means, the units to state, what forces are to be multiplied by, and how unusual it is."""

    factor: float
    text: str
    units: str
    forces: float = 1.0
    unusual: float = 0.0


_ENERGIES = {name: 1.0 / ENERGY_UNITS[name] for name in ("kcal/mol", "kJ/mol", "Hartree", "Ry", "meV")}
_UNUSUAL = {"Ry": 0.05, "meV": 0.05, "eV": 0.1}
_FORCES = {
    **{f"{name}/angstrom": value for name, value in _ENERGIES.items()},
    "kJ/mol/nm": _ENERGIES["kJ/mol"] * NM_IN_ANGSTROM,
    "Hartree/bohr": _ENERGIES["Hartree"] * BOHR_IN_ANGSTROM,
    "Ry/bohr": _ENERGIES["Ry"] * BOHR_IN_ANGSTROM,
    "eV/bohr": BOHR_IN_ANGSTROM,
    "eV/nm": NM_IN_ANGSTROM,
}
"""What one eV, and one eV/Å, is in other units."""


def _meanings_of_forces() -> Iterator[_Meaning]:
    yield _Meaning(-1.0, "forces are gradients: they have the opposite sign", "forces: -eV/angstrom")
    for name, size in _FORCES.items():
        factor, unusual = 1.0 / size, _UNUSUAL.get(name.split("/")[0], 0.0)
        yield _Meaning(factor, f"forces are in {name}", f"forces: {name}", factor, unusual)
        said = f"forces are gradients in {name} (minus the forces)"
        yield _Meaning(-factor, said, f"forces: -{name}", factor, unusual)
    for name, size in _ENERGIES.items():
        said = f"energies are in {name} and forces in eV/Å"
        yield _Meaning(size, said, f"energy: {name}, forces: eV/angstrom", 1.0, _UNUSUAL.get(name, 0.0))
    both = "energies are in Hartree and forces in Hartree/bohr"
    yield _Meaning(1.0 / BOHR_IN_ANGSTROM, both, "energy: Hartree, forces: Hartree/bohr", 1.0 / _FORCES["Hartree/bohr"])
    yield _Meaning(BOHR_IN_ANGSTROM, "positions are in bohr", "length: bohr, forces: eV/angstrom")
    yield _Meaning(1.0 / NM_IN_ANGSTROM, "positions are in nm", "length: nm, forces: eV/angstrom")


def _meanings_of_stress() -> Iterator[_Meaning]:
    yield _Meaning(-1.0, "stresses have the opposite sign", "stress: -eV/angstrom^3")
    for name in ("GPa", "kbar", "bar"):
        size, said = PRESSURE_UNITS[name], f"stresses are in {name}"
        yield _Meaning(size, said, f"stress: {name}")
        yield _Meaning(-size, f"{said} with the opposite sign", f"stress: -{name}")
    for name, size in _ENERGIES.items():
        said = f"energies are in {name} and stresses in eV/Å³"
        yield _Meaning(size, said, f"energy: {name}, stress: eV/angstrom^3", 1.0, 0.1)


def _nearest(slope: Slope, known: Iterable[_Meaning], near: float, stiffness: float = float("nan")) -> list[_Meaning]:
    """The meanings that fit, best first: by the factor, by how usual they are, and by the stiffness that they leave."""
    tolerance = max(near, min(3.0 * slope.error, 0.4))
    fitting = []
    for meaning in known:
        if slope.factor * meaning.factor > 0.0 and (off := abs(np.log(slope.factor / meaning.factor))) < tolerance:
            left = np.log(max(stiffness * meaning.forces, _TINY) / np.clip(stiffness * meaning.forces, *_USUAL_STIFF))
            fitting.append((off + meaning.unusual + 0.1 * np.nan_to_num(abs(left)), meaning))
    return [meaning for _, meaning in sorted(fitting, key=lambda each: each[0])]


def rows_by_file(frames: Frames) -> dict[str, np.ndarray]:
    """Rows of the frames of each file that the sources name."""
    files: dict[str, list[int]] = defaultdict(list)
    for row, source in enumerate(frames.sources):
        files[source.rpartition("#")[0] if "#" in source else "data"].append(row)
    return {name: np.array(rows) for name, rows in files.items()}


def by_file(frames: Sequence[Frame]) -> dict[str, Frames]:
    """Frames by the file that their sources name."""
    frames = Frames.of(frames)
    return {name: frames.take(rows) for name, rows in rows_by_file(frames).items()}


def suspicions(files: Mapping[str, Sequence[Frame]]) -> list[Suspicion]:
    """Look for labels in wrong units, in each file (name -> frames; of very many the largest) and beside each other."""
    largest = sorted(files, key=lambda name: len(files[name]), reverse=True)[:_MOST_FILES]
    known = {name: Frames.of(frames) for name, frames in files.items() if name in largest}
    found = [each for name, frames in known.items() for each in _of_one(name, frames)]
    blamed = {each.file for each in found if each.certain}
    return found + list(_beside({name: known[name] for name in largest if name not in blamed}))


def _of_one(file: str, frames: Frames) -> Iterator[Suspicion]:
    relation = relation_of(frames)
    electrons = _all_electrons(frames)
    unit = next((name for name, size in _ENERGIES.items() if abs(electrons / size - 1.0) < _ALL_ELECTRONS), None)
    wrong = relation.forces is not None and _is_off(relation.forces, _OFF_FORCES)
    if relation.forces is not None and wrong:
        meanings = _nearest(relation.forces, _meanings_of_forces(), _NEAR_FORCES, relation.stiffness)
        if abs(electrons - 1.0) < _ALL_ELECTRONS:  # energies are all right
            meanings = [meaning for meaning in meanings if "energies" not in meaning.text] or meanings
        yield _suspicion(file, "forces", relation.forces, meanings, "forces times displacements")
    elif unit is not None and electrons > 1.0:  # smaller ones may be energies of the valence electrons alone
        said = f"total energies are {electrons:.4g} times those of all electrons of the atoms in eV: they are in {unit}"
        said += "" if relation.forces is None else ", and forces fit to them"
        yield Suspicion(file, "energy", said, _statement(f"energy: {unit}"), True, electrons)
    else:
        limit = _MOST_STIFF if np.isin(frames.numbers, _SHORT_BONDS).any() else _MOST_STIFF_METAL
        if relation.stiffness > limit:  # than any matter is: all labels are in a unit that makes large numbers
            said = f"forces change by {relation.stiffness:.3g} eV/Å for each Å, known matter has less than {limit:.0f}"
            cure = f"if all labels are in kcal/mol, {_statement('energy: kcal/mol')}; likewise kJ/mol"
            yield Suspicion(file, "energy", said, cure, False, relation.stiffness / limit)
    stress = relation.stress
    if stress is None or not _is_off(stress, _OFF_STRESS):
        return
    meanings = _nearest(stress, _meanings_of_stress(), _NEAR_STRESS)
    virial = relation.virial
    if virial is not None and virial.factor > 0.0 and abs(np.log(virial.factor)) < _OFF_STRESS:
        said = "stresses are virials (minus stress times volume): give the key a name that holds 'virial'"
        meanings.insert(0 if virial.explained >= stress.explained else len(meanings), _Meaning(1.0, said, ""))
    if meanings or not wrong:  # wrong energies or positions have been named
        yield _suspicion(file, "stress", stress, meanings, "stresses times strains")


def _is_off(slope: Slope, limit: float) -> bool:
    """Whether a factor is not 1, beyond doubt."""
    size = np.inf if slope.factor < 0.0 else abs(np.log(slope.factor))
    asked = _TRUSTED_DRASTIC if size > _DRASTIC else _TRUSTED
    return slope.explained > asked and size > max(limit, 4.0 * slope.error)


def _statement(units: str) -> str:
    return f"state it with data.units: {{{units}}}, or --units '{units.replace(': ', '=').replace(', ', ',')}'"


def _suspicion(file: str, quantity: str, slope: Slope, meanings: Sequence[_Meaning], what: str) -> Suspicion:
    seen = f"energies change by {slope.factor:.4g} times {what} between {slope.pairs} pairs of neighbouring frames"
    if not meanings:
        seen += ", which is the factor of no unit known here: the labels do not belong together"
        return Suspicion(file, quantity, seen, "compare a frame with its calculation", False, slope.factor)
    said = ", or ".join(dict.fromkeys(meaning.text for meaning in meanings[:3]))
    cure = _statement(meanings[0].units) if meanings[0].units else "rename it"
    known = f" (known factor {meanings[0].factor:.4g})" if meanings[0].units else ""
    return Suspicion(file, quantity, f"{seen}{known}: {said}", cure, True, slope.factor)


def _beside(files: Mapping[str, Frames]) -> Iterator[Suspicion]:
    """Files whose energies and forces are those of another file, for the same compositions, times a unit."""
    sizes = {name: _sizes(frames) for name, frames in files.items()}
    for (name, mine), (other, theirs) in itertools.permutations(sizes.items(), 2):
        shared = [(mine[formula], theirs[formula]) for formula in mine if formula in theirs]
        ratios = [(a[0] / b[0], a[1] / b[1]) for a, b in shared if min(abs(a[0]), abs(b[0])) > 1e-3 and b[1] > 0.0]
        if not ratios:
            continue
        energy, force = np.median(np.array(ratios), axis=0)
        for unit, size in _ENERGIES.items():
            if abs(energy / size - 1.0) < _LIKE and (not np.isfinite(force) or abs(np.log(force / size)) < _OFF_STRESS):
                said = f"energies of the same compositions are {energy:.4g} times those of {other}: they are in {unit}"
                yield Suspicion(name, "energy", said, _statement(f"energy: {unit}"), bool(np.isfinite(force)), energy)
                return


def _sizes(frames: Frames) -> dict[tuple[tuple[str, int], ...], tuple[float, float]]:
    """Composition -> usual energy per atom and usual force; NaN for what is missing."""
    force = np.sqrt(frames.per_frame(np.square(frames.forces).sum(axis=1)) / (3 * frames.counts))
    values = np.stack([frames.energy / frames.counts, force], axis=1)
    counts = frames.composition()
    counts = counts // np.gcd.reduce(counts, axis=1, keepdims=True)
    found: dict[tuple[tuple[str, int], ...], list[np.ndarray]] = defaultdict(list)
    for row in np.flatnonzero(frames.has_energy & (frames.counts > 1)):
        formula = tuple((symbol, n) for symbol, n in zip(frames.elements, counts[row].tolist(), strict=True) if n)
        found[formula].append(values[row])
    return {formula: tuple(np.median(np.array(each), axis=0).tolist()) for formula, each in found.items()}


def _all_electrons(frames: Frames) -> float:
    """Total energies over those of the atoms with all electrons, in eV; NaN where they are not of that kind.

    Atoms: Englert and Schwinger, Phys. Rev. A 32, 26 (1985), right to 1 % beyond beryllium.
    """
    frames = frames.take(np.arange(0, len(frames), max(len(frames) // 200, 1)))
    z = np.arange(119, dtype=np.float64)
    atoms = -0.7687 * z ** (7 / 3) + 0.5 * z**2 - 0.2699 * z ** (5 / 3)
    atoms[list(_LIGHT)] = list(_LIGHT.values())
    heaviest = frames.per_frame(frames.numbers, np.maximum)
    told = frames.has_energy & (heaviest > 2) & (heaviest <= _HEAVIEST)
    ratios = (frames.energy / (HARTREE_IN_EV * frames.per_frame(atoms[frames.numbers])))[told]
    if len(ratios) < _LEAST_PAIRS or np.ptp(np.quantile(ratios, [0.1, 0.9])) > 0.1 * abs(float(np.median(ratios))):
        return float("nan")
    return float(np.median(ratios))
