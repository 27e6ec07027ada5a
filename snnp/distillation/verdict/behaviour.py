"""What the student does beside its teacher: crystals and compounds at rest, a whole and its parts, a liquid.

Each function adds tables, numbers for the bars and notes to a `Measured`. What cannot be measured is said in a note,
and leaves its bars unmeasured, that is, not reached.
"""

from __future__ import annotations

import copy
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from ase import Atoms, units
from numpy.typing import NDArray

from snnp.analysis.properties import CubicProperties, cubic_properties
from snnp.analysis.stability import stability_test, time_step_for
from snnp.distillation.crystals import Crystal, frames_of
from snnp.distillation.defects import supercell
from snnp.distillation.teachers import TeacherProcess, WorkerDiedError
from snnp.distillation.verdict.comparison import Measured, table
from snnp.errors import InputError
from snnp.models.potential import Potential, Prediction
from snnp.models.session import Session
from snnp.report import COLOURS, Figure, Finding, Table, new_panels, png
from snnp.sampling import MDSettings
from snnp.sampling.plots import RadialDistribution
from snnp.sampling.run import find_entry_point
from snnp.structure import Structure
from snnp.units import EV_PER_ANGSTROM3_IN_GPA

__all__ = ["HOT", "beside", "compounds_beside", "crystals_beside", "extensivity", "liquid_beside", "moving"]

HOT = 1.5
"""Times the temperature of the crystal: how hot the student runs, and the liquid is."""
_PICOSECONDS = 10.0
_CUBIC = ("fcc", "bcc", "diamond")
_PART_ATOMS = 12  # that are doubled
_FAR = 30.0  # Å between two parts that must not feel each other
_NOT_THE_SUM = 1.0  # meV/atom by which a teacher may miss the sum without a word
_VOLUMES = np.geomspace(0.88, 1.13, 9)  # of the teacher's: a student may be off by 4 % in length
_COMPOUNDS = 2  # of each pair of elements: those that form most readily
_LIQUID_ATOMS, _LIQUID_VOLUME = 60, 1.08  # of that of the crystal
_LIQUID_SECONDS = 600.0  # for the teacher's dynamics
_MOST_STEPS, _FEWEST_STEPS, _SETTLING = 2000, 200, 0.25
_EVERY = 5  # steps from one frame of the liquid to the next
_CHUNKS = 5  # of the student's run, each as long as the teacher's
_FRICTION = 5.0  # 1/ps

Array = NDArray[np.float64]


class _AsPotential:
    """A teacher where the properties of crystals expect a potential."""

    metadata: dict[str, Any] = {}  # noqa: RUF012 (never written)
    isolated_atoms = ()

    def __init__(self, process: TeacherProcess, elements: Sequence[str]) -> None:
        self.process, self.reference_energies = process, dict.fromkeys(elements, 0.0)

    def __deepcopy__(self, memory: dict[int, Any]) -> _AsPotential:
        return self

    def double(self) -> _AsPotential:
        """Teachers compute in the precision that they have."""
        return self

    def compute(self, structure: Structure, *, forces: bool = True, stress: bool = False) -> Prediction:
        """Energy, forces and stress of one crystal."""
        (labels,) = _labels(self.process, structure.to_ase())
        if "stress" not in labels:
            raise InputError("the teacher gives no stress.")
        energy, force, tensor = (torch.tensor(labels[name]) for name in ("energy", "forces", "stress"))
        return Prediction(energy[None], torch.zeros(len(force), dtype=torch.float64), force, tensor[None])


def _labels(process: TeacherProcess, images: Sequence[Atoms]) -> list[dict[str, np.ndarray]]:
    """The teacher's labels of all images; raises `InputError` with its own words where it fails."""
    frames = frames_of([("", atoms) for atoms in images], "report")
    try:
        answers = sorted(process.label(frames), key=lambda each: each.row)
    except WorkerDiedError as death:
        raise InputError(str(death)) from None
    if failed := [answer.error for answer in answers if answer.error is not None]:
        raise InputError(failed[0])
    return [answer.labels for answer in answers]


def _energies(student: Potential, process: TeacherProcess, images: Sequence[Atoms]) -> dict[str, Array]:
    """Total energies (eV) of all images by the teacher and by the student in double precision."""
    exact = copy.deepcopy(student).double()
    own = exact.compute(Structure.from_ase(list(images)), forces=False).energy.numpy()
    return {"teacher": np.array([float(each["energy"]) for each in _labels(process, images)]), "student": own}


def beside(
    found: Measured,
    student: Potential,
    case: Sequence[Crystal] | Atoms,
    process: TeacherProcess,
    *,
    seed: int,
    liquid: bool,
) -> None:
    """What takes more of the teacher than its labels: for crystals all of this module, for other atoms extensivity."""
    if isinstance(case, Atoms):
        extensivity(found, student, case, process, seed)
        return
    crystals_beside(found, student, case, process)
    compounds_beside(found, student, case, process)
    if liquid:
        liquid_beside(found, student, case, process, seed)
    extensivity(found, student, supercell(case[0].atoms, _PART_ATOMS), process, seed)


def crystals_beside(found: Measured, student: Potential, crystals: Sequence[Crystal], process: TeacherProcess) -> None:
    """Lattice and elastic constants of the lowest cubic crystal of each element, of student and teacher."""
    teacher = cast("Potential", _AsPotential(process, student.elements))
    rows, lattice, elastic = [], [], []
    for element in student.elements:
        pure = [c for c in crystals if set(c.atoms.symbols) == {element} and c.lattice in _CUBIC]
        if not pure:
            continue
        guess = float(pure[0].atoms.cell.lengths()[0])
        both: list[CubicProperties] = []
        for name, model in (("teacher", teacher), ("student", student)):
            try:
                both.append(cubic_properties(model, element, pure[0].lattice, guess=guess))
            except InputError as error:
                said = f"{pure[0].name}: no properties from the {name}: {error}"
                found.notes.append(Finding("crystals", "warning", said))
                break
            rows.append(
                {
                    "": f"{pure[0].name}, {name}",
                    "a (Å)": both[-1].lattice_constant,
                    "B (GPa)": both[-1].bulk_modulus,
                    "C11 (GPa)": both[-1].c11,
                    "C12 (GPa)": both[-1].c12,
                    "C44 (GPa)": both[-1].c44,
                }
            )
        if len(both) == 2:
            of_teacher, of_student = both
            lattice.append(abs(of_student.lattice_constant / of_teacher.lattice_constant - 1.0))
            for constant in ("c11", "c12", "c44"):
                difference = getattr(of_student, constant) - getattr(of_teacher, constant)
                elastic.append(abs(difference) / of_teacher.bulk_modulus)
        else:
            lattice, elastic = [*lattice, np.inf], [*elastic, np.inf]
    if rows:
        found.tables.append(table("Crystals at rest", rows))
        found.numbers |= {"lattice_constant": max(lattice), "elastic": max(elastic)}


@dataclass(frozen=True)
class _Rest:
    """A crystal at the volume where its energy is lowest: Å³/atom, eV/atom, GPa."""

    volume: float
    energy: float
    bulk_modulus: float


def _at_rest(volumes: Array, energies: Array) -> _Rest:
    """Minimum of a polynomial in the logarithm of the volume; NaN where there is none within the volumes."""
    x = np.log(volumes)
    curve = np.polynomial.Polynomial.fit(x, energies, 4)
    lowest = [
        float(root.real)
        for root in curve.deriv().roots()
        if abs(root.imag) < 1e-9 and x[0] <= root.real <= x[-1] and curve.deriv(2)(root.real) > 0
    ]
    if not lowest:
        return _Rest(np.nan, np.nan, np.nan)
    volume = float(np.exp(lowest[0]))
    # d²E/d(ln V)² = B V at the minimum.
    stiffness = float(curve.deriv(2)(lowest[0])) / volume * EV_PER_ANGSTROM3_IN_GPA
    return _Rest(volume, float(curve(lowest[0])), stiffness)


def compounds_beside(found: Measured, student: Potential, crystals: Sequence[Crystal], process: TeacherProcess) -> None:
    """Volume, energy of formation and bulk modulus of the compounds that form most readily, of student and teacher.

    All cells keep their shape (L1_0 and hcp their ideal one), so that atoms have nothing to relax. The energy of
    formation counts from the lowest crystals of the elements, as the teacher has them.
    """
    pure: dict[str, Crystal] = {}
    for crystal in crystals:  # the lowest first
        if len(symbols := set(crystal.atoms.symbols)) == 1:
            pure.setdefault(symbols.pop(), crystal)
    chosen = _lowest_compounds(crystals, pure)
    if not chosen:
        return
    listed = [*pure.values(), *chosen]
    images = [_with_volume(crystal.atoms, ratio) for crystal in listed for ratio in _VOLUMES]
    counts = np.array([len(atoms) for atoms in images])
    volumes = np.array([atoms.get_volume() for atoms in images]) / counts
    shape = len(listed), len(_VOLUMES)
    try:
        energies = _energies(student, process, images)
    except InputError as error:
        found.notes.append(Finding("compounds", "warning", f"the compounds have no energies: {error}"))
        return
    rest = {
        name: [_at_rest(*pair) for pair in zip(volumes.reshape(shape), (each / counts).reshape(shape), strict=True)]
        for name, each in energies.items()
    }
    rows, formed = [], dict[str, list[float]](teacher=[], student=[])
    for k, crystal in enumerate(chosen, start=len(pure)):
        parts = [list(pure).index(symbol) for symbol in crystal.atoms.symbols]
        for name, each in rest.items():
            formed[name].append(1000.0 * (each[k].energy - float(np.mean([each[part].energy for part in parts]))))
            rows.append(
                {
                    "": f"{crystal.name}, {name}",
                    "a (Å)": (each[k].volume * len(crystal.atoms)) ** (1.0 / 3.0),
                    "energy of formation (meV/atom)": formed[name][-1],
                    "B (GPa)": each[k].bulk_modulus,
                }
            )
    found.tables.append(table("Compounds at rest", rows))
    theirs, ours = (each[len(pure) :] for each in (rest["teacher"], rest["student"]))
    pairs = list(zip(theirs, ours, strict=True))
    lattice = max(abs((b.volume / a.volume) ** (1.0 / 3.0) - 1.0) for a, b in pairs)
    found.numbers["lattice_constant"] = _worse(found.numbers.get("lattice_constant", 0.0), lattice)
    found.numbers["bulk_modulus"] = _worse(*(abs(b.bulk_modulus / a.bulk_modulus - 1.0) for a, b in pairs))
    found.numbers["formation_energy"] = _worse(*np.abs(np.subtract(formed["student"], formed["teacher"])).tolist())


def _worse(*values: float) -> float:
    """The largest; infinite where one is not a number."""
    return float(np.nan_to_num(np.array(values), nan=np.inf).max())


def _lowest_compounds(crystals: Sequence[Crystal], pure: dict[str, Crystal]) -> list[Crystal]:
    chosen = []
    for pair in itertools.combinations(sorted(pure), 2):
        both = [crystal for crystal in crystals if set(crystal.atoms.symbols) == set(pair)]
        both.sort(key=lambda each: each.energy - float(np.mean([pure[symbol].energy for symbol in each.atoms.symbols])))
        chosen += both[:_COMPOUNDS]
    return chosen


def _with_volume(atoms: Atoms, ratio: float) -> Atoms:
    scaled: Atoms = atoms.copy()
    scaled.set_cell(atoms.cell * ratio ** (1.0 / 3.0), scale_atoms=True)
    return scaled


def extensivity(found: Measured, student: Potential, atoms: Atoms, process: TeacherProcess, seed: int) -> None:
    """A doubled cell has twice the energy, and two parts far from each other the sum of theirs.

    Arguments:
        atoms: a crystal or molecule; it is shaken, so that symmetry hides nothing.
    """
    shaken: Atoms = atoms.copy()
    shaken.positions += 0.05 * np.random.default_rng([seed, 5]).standard_normal(shaken.positions.shape)
    cases: dict[str, tuple[Atoms, Atoms]] = {}
    if shaken.pbc.all():
        repeats = np.ones(3, dtype=int)
        repeats[int(np.argmin(shaken.cell.lengths()))] = 2
        cases["a cell, doubled"] = shaken, shaken.repeat(repeats.tolist())
    part = Atoms(shaken.numbers, shaken.positions)
    other: Atoms = part.copy()
    other.positions += [float(np.ptp(part.positions[:, 0])) + _FAR, 0.0, 0.0]
    cases[f"two parts, {_FAR:g} Å apart"] = part, part + other
    rows, worst = [], {"teacher": 0.0, "student": 0.0}
    for name, (one, two) in cases.items():
        try:
            energies = _energies(student, process, [one, two])
        except InputError as error:
            found.notes.append(Finding("extensivity", "warning", f"{name}: no energies: {error}"))
            return
        off = {who: 1000.0 * float(each[1] - 2.0 * each[0]) / len(two) for who, each in energies.items()}
        worst = {who: max(worst[who], abs(off[who])) for who in worst}
        rows.append({"": name, "atoms": len(two), **{f"{who} (meV/atom)": each for who, each in off.items()}})
    found.tables.append(table("The whole less the sum of its parts", rows))
    found.numbers["extensivity"] = worst["student"]
    if worst["teacher"] > _NOT_THE_SUM:
        said = f"the teacher's own energies are not those of the parts: {worst['teacher']:.3g} meV/atom are missing"
        found.notes.append(Finding("extensivity", "warning", said, "Its labels depend on the size of the cell."))


def liquid_beside(
    found: Measured, student: Potential, crystals: Sequence[Crystal], process: TeacherProcess, seed: int
) -> None:
    """Overlap of the radial distributions of a small liquid, run by the teacher and by the student.

        overlap = 1 - sum |g_student - g_teacher| / sum (g_student + g_teacher),     r < 2.5 spacings

    for each pair of elements; the lowest one counts. The student melts a crystal and brings it to temperature; from
    there both run the same Langevin dynamics in the same cell, the teacher as long as ten minutes allow (at most 2,000
    steps, a quarter of which is left out), the student five times as long. How much a run of the teacher's length can
    agree with a long one at all is what the student's own five parts say: their mean overlap with the others, and its
    standard deviation, which is the statistical error.
    """
    rng = np.random.default_rng([seed, 6])
    atoms, kelvin, spacing = _liquid_cell(crystals, rng)
    run = _Langevin(atoms, kelvin, time_step_for(atoms), rng)
    session = Session(student)

    def of_student(positions: Array) -> Array:
        return session.evaluate(atoms.numbers, positions, atoms.cell.array, atoms.pbc).forces

    def of_teacher(positions: Array) -> Array:
        image = atoms.copy()
        image.positions = positions
        return np.asarray(_labels(process, [image])[0]["forces"])

    try:
        steps = _affordable(of_teacher, atoms)
        if steps < _FEWEST_STEPS:
            said = f"{_LIQUID_SECONDS:g} s allow {steps} steps of the teacher, fewer than {_FEWEST_STEPS}"
            found.notes.append(Finding("liquid", "warning", f"the liquid was not compared: {said}."))
            return
        for factor in (2.0, 1.0):
            for _ in run.frames(of_student, steps, factor):
                pass
        start, settling = run.copy(), round(_SETTLING * steps)
        parts = [[*run.frames(of_student, steps - settling)] for _ in range(_CHUNKS)]
        theirs = [*start.frames(of_teacher, steps)][settling // _EVERY :]
    except InputError as error:
        found.notes.append(Finding("liquid", "warning", f"the liquid was not compared: a run ended early: {error}"))
        return
    _compare_liquids(found, atoms, parts, theirs, 2.5 * spacing, f"{kelvin:.0f} K, {steps:,} steps of {run.dt:g} fs")


def _affordable(forces: Callable[[Array], Array], atoms: Atoms) -> int:
    """Steps of the teacher, by the time of one after the first."""
    forces(atoms.positions)
    began = time.perf_counter()
    forces(atoms.positions)
    return int(min(_MOST_STEPS, _LIQUID_SECONDS / max(time.perf_counter() - began, 1e-6)))


def _liquid_cell(crystals: Sequence[Crystal], rng: np.random.Generator) -> tuple[Atoms, float, float]:
    """The lowest crystal, expanded, with equal numbers of all elements; its temperature (K) and spacing (Å)."""
    lowest = crystals[0]
    elements = sorted({symbol for each in crystals for symbol in each.atoms.symbols})
    atoms = supercell(lowest.atoms, _LIQUID_ATOMS)
    pure = [next((c for c in crystals if set(c.atoms.symbols) == {e}), lowest) for e in elements]
    volume = float(np.mean([each.volume for each in pure]))
    if len(elements) > 1:
        atoms.symbols[:] = rng.permutation([elements[k % len(elements)] for k in range(len(atoms))])
    atoms = _with_volume(atoms, _LIQUID_VOLUME * volume / lowest.volume)
    return atoms, HOT * max(each.temperature for each in pure), max(each.spacing for each in pure)


class _Langevin:
    """BAOAB dynamics (Leimkuhler and Matthews 2013) with any function of the positions for the forces."""

    def __init__(self, atoms: Atoms, kelvin: float, dt: float, rng: np.random.Generator) -> None:
        self.atoms, self.kelvin, self.dt, self.rng = atoms, kelvin, dt, rng
        self.positions, self.masses = atoms.positions.copy(), atoms.get_masses()[:, None]
        self.velocities = np.sqrt(units.kB * kelvin / self.masses) * rng.standard_normal(self.positions.shape)

    def copy(self) -> _Langevin:
        """From here on by itself, with other noise."""
        twin = _Langevin(self.atoms, self.kelvin, self.dt, self.rng.spawn(1)[0])
        twin.positions, twin.velocities = self.positions.copy(), self.velocities.copy()
        return twin

    def frames(self, forces: Callable[[Array], Array], steps: int, hotter: float = 1.0) -> Iterator[Atoms]:
        """Every fifth of so many steps, at so many times the temperature."""
        dt, kt = self.dt * units.fs, units.kB * self.kelvin * hotter
        keep = np.exp(-_FRICTION * 1e-3 * self.dt)
        noise = np.sqrt((1.0 - keep**2) * kt / self.masses)
        force = forces(self.positions)
        for step in range(steps):
            self.velocities += 0.5 * dt * force / self.masses
            self.positions += 0.5 * dt * self.velocities
            self.velocities = keep * self.velocities + noise * self.rng.standard_normal(self.positions.shape)
            self.positions += 0.5 * dt * self.velocities
            force = forces(self.positions)
            self.velocities += 0.5 * dt * force / self.masses
            if not np.isfinite(self.positions).all():
                raise InputError("atoms have flown apart.")
            if step % _EVERY == 0:
                frame: Atoms = self.atoms.copy()
                frame.positions = self.positions
                yield frame


def _compare_liquids(
    found: Measured, atoms: Atoms, parts: list[list[Atoms]], theirs: list[Atoms], reach: float, how: str
) -> None:
    curves, teacher = [_radial(part, reach) for part in parts], _radial(theirs, reach)
    rows, lowest = [], (2.0, 0.0, 0.0)
    for pair in teacher:
        own = np.array([each[pair] for each in curves])
        others = (own.sum(axis=0) - own) / (len(own) - 1)
        itself = np.array([_overlap(a, b) for a, b in zip(own, others, strict=True)])
        overlap = _overlap(teacher[pair], own.mean(axis=0))
        lowest = min(lowest, (overlap, float(itself.mean()), float(itself.std(ddof=1))))
        rows.append((pair, overlap, float(itself.mean()), float(itself.std(ddof=1))))
    columns = ("", "overlap", "of the student with itself", "standard deviation of that")
    found.tables.append(Table(columns, rows, f"Radial distribution of the liquid, {len(atoms)} atoms, {how}"))
    found.numbers["rdf_overlap"] = lowest[0]
    found.pictures.append(_draw_liquid(teacher, curves, reach))


def _radial(frames: Sequence[Atoms], reach: float) -> dict[str, Array]:
    distribution = RadialDistribution(reach, 0.1)
    for step, frame in enumerate(frames):
        distribution.add(frame, step)
    return distribution.curves()


def _overlap(a: Array, b: Array) -> float:
    return float(1.0 - np.abs(a - b).sum() / max(float((a + b).sum()), 1e-12))


def _draw_liquid(teacher: dict[str, Array], curves: list[dict[str, Array]], reach: float) -> Figure:
    drawn, panels = new_panels(len(teacher), 4.5, 2.8, columns=2)
    for panel, (pair, curve) in zip(panels, teacher.items(), strict=True):
        r = (np.arange(len(curve)) + 0.5) * reach / len(curve)
        own = np.array([each[pair] for each in curves])
        panel.fill_between(r, own.min(axis=0), own.max(axis=0), color=COLOURS[0], alpha=0.25, linewidth=0)
        panel.plot(r, own.mean(axis=0), color=COLOURS[0], label="student")
        panel.plot(r, curve, color=COLOURS[1], label="teacher")
        panel.set(xlabel="distance (Å)", ylabel=f"g(r), {pair}", ylim=(0.0, None))
    panels[0].legend(frameon=False, fontsize=8)
    caption = (
        "From the same liquid on; the band holds the parts of the student's run that are as long as the teacher's."
    )
    return Figure("The liquid", caption, png(drawn))


def moving(found: Measured, student: Potential, atoms: Atoms, hot_k: float, seed: int) -> None:
    """Drift of the energy at constant energy, and whether a hot run survives."""
    dt = time_step_for(atoms)
    settings = MDSettings(temperature_k=min(300.0, hot_k), steps=round(1000.0 * _PICOSECONDS / dt), dt_fs=dt, seed=seed)
    runs = stability_test(student, atoms, settings, find_entry_point("snnp.md_engines", "native"), hot_k=hot_k)
    rows = [
        {
            "": f"{name}, {run.target_k:.0f} K",
            "ps": run.picoseconds,
            "atoms": run.n_atoms,
            "survived": "yes" if run.survived else f"no: {run.failure}",
            "drift (meV/atom/ns)": run.drift_mev_per_atom_per_ns,
        }
        for name, run in runs.items()
    ]
    found.tables.append(table("Dynamics of the student", rows))
    if runs["nve"].drift_mev_per_atom_per_ns is not None:
        found.numbers["nve_drift"] = abs(runs["nve"].drift_mev_per_atom_per_ns)
    found.numbers["hot_md"] = float(runs["langevin"].survived)
