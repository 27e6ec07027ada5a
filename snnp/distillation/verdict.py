"""What was lost: the student beside its teacher, and whether it reaches the bars that were set before."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
from ase import Atoms

from snnp.analysis.properties import CubicProperties, cubic_properties
from snnp.analysis.stability import stability_test, time_step_for
from snnp.data import Frames
from snnp.distillation.crystals import Crystal, frames_of, supercell
from snnp.distillation.settings import Bars
from snnp.distillation.teachers import TeacherProcess
from snnp.errors import InputError
from snnp.models.potential import Potential, Prediction
from snnp.report import Finding, Table
from snnp.sampling import MDSettings
from snnp.sampling.cost import measure_cost
from snnp.sampling.run import find_entry_point
from snnp.structure import Structure
from snnp.training.evaluation import Comparison, Evaluation, evaluate

__all__ = [
    "HOT",
    "Measured",
    "against_reference",
    "against_teacher",
    "crystals_beside",
    "judge",
    "moving",
    "speed",
    "table",
]

_PICOSECONDS = 10.0
HOT = 1.5
"""Times the temperature of the crystal: how hot the student runs."""
_NO_FORCE = 1e-3  # eV/Å
_CUBIC = ("fcc", "bcc", "diamond")
_SPEED_ATOMS, _SPEED_REPEATS = 700, 3


@dataclass
class Measured:
    """Tables for people, and the numbers that bars are compared with."""

    tables: list[Table] = field(default_factory=list)
    numbers: dict[str, float] = field(default_factory=dict)
    notes: list[Finding] = field(default_factory=list)


def table(title: str, records: Sequence[Mapping[str, Any]]) -> Table:
    """One row for each of several records with the same names."""
    return Table(list(records[0]), [list(each.values()) for each in records], title)


def against_teacher(found: Measured, student: Potential, held_out: Frames) -> None:
    """Errors on structures that were labelled and not learned, by kind."""
    evaluation = evaluate(student, held_out, model_name="student", data_name="held out")
    total = evaluation.total
    if total.forces is not None:
        found.numbers |= {"force_mae": total.forces.mae, "force_rmse": total.forces.rmse}
        found.numbers["force_cosine"] = _cosine(evaluation.forces.model, evaluation.forces.reference)
    kinds = {"all": total, **evaluation.groups}
    groups = np.array([group or "" for group in held_out.groups])[evaluation.forces.frame]
    rows = [
        _row(name, evaluation, errors.to_dict(), (groups == name) | (name == "all")) for name, errors in kinds.items()
    ]
    found.tables.append(table("Student against teacher, structures held out", rows))


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    """Of the angle between two vectors; NaN where one is rounding, as forces are in perfect crystals."""
    lengths = np.linalg.norm(a), np.linalg.norm(b)
    return float(a @ b / (lengths[0] * lengths[1])) if min(lengths) > _NO_FORCE else math.nan


def _row(name: str, evaluation: Evaluation, errors: dict[str, Any], mine: np.ndarray) -> dict[str, Any]:
    return {
        "": name,
        "structures": errors["n_structures"],
        "energy MAE (meV/atom)": errors["energy_mae_mev_per_atom"],
        "force MAE (eV/Å)": errors["force_mae_ev_per_angstrom"],
        "force RMSE (eV/Å)": errors["force_rmse_ev_per_angstrom"],
        "force cosine": _cosine(evaluation.forces.model[mine], evaluation.forces.reference[mine]),
        "stress MAE (GPa)": errors["stress_mae_gpa"],
    }


def against_reference(found: Measured, student: Potential, reference: Frames, labelled: Frames) -> None:
    """Student and teacher on reference data: forces as they are, energies after a constant per element is fitted.

    Arguments:
        reference: with the labels of the reference.
        labelled: the same structures, in the same order, with the teacher's labels.
    """
    own = evaluate(student, reference, model_name="student", data_name="reference")
    known, rows = np.repeat(reference.has_forces, reference.counts), own.energies.frame
    predictions = {
        "student": (own.energies.model, own.forces.model),
        "teacher": (labelled.energy[rows] / labelled.counts[rows], labelled.forces[known].ravel()),
    }
    composition = reference.composition()[rows] / reference.counts[rows, None]
    records: list[dict[str, Any]] = []
    for name, (energies, forces) in predictions.items():
        errors = Comparison(own.forces.reference, forces, own.forces.frame, own.forces.number).errors()
        records.append(
            {
                "": name,
                "structures": len(reference),
                "atoms": int(reference.counts.sum()),
                "energy MAE (meV/atom)": _aligned_error(composition, energies - own.energies.reference),
                "force MAE (eV/Å)": errors and errors.mae,
                "force RMSE (eV/Å)": errors and errors.rmse,
                "force cosine": errors and _cosine(forces, own.forces.reference),
            }
        )
    found.tables.append(table("Student and teacher against reference data", records))
    ours, theirs = (record["force MAE (eV/Å)"] for record in records)
    if theirs:
        found.numbers["reference_force_ratio"] = ours / theirs


def _aligned_error(composition: np.ndarray, difference: np.ndarray) -> float | None:
    """MAE in meV/atom of energies per atom once their zeros, one per element, are brought together by least squares."""
    if len(difference) == 0:
        return None
    zeros = np.linalg.lstsq(composition, difference, rcond=1e-8)[0]
    return float(1000.0 * np.abs(difference - composition @ zeros).mean())


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
        (atoms,) = structure.to_ase()
        (answer,) = self.process.label(frames_of([("", atoms)], "crystal"))
        if answer.error is not None or "stress" not in answer.labels:
            raise InputError(answer.error or "the teacher gives no stress.")
        energy, force, tensor = (torch.tensor(answer.labels[name]) for name in ("energy", "forces", "stress"))
        return Prediction(energy[None], torch.zeros(len(atoms), dtype=torch.float64), force, tensor[None])


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
            lattice, elastic = [np.inf], [np.inf]
    if rows:
        found.tables.append(table("Crystals at rest", rows))
        found.numbers |= {"lattice_constant": max(lattice), "elastic": max(elastic)}


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


def speed(found: Measured, student: Potential, atoms: Atoms, teacher_seconds: float | None) -> None:
    """µs per atom of wall time, for energy and forces: the student in repeated calls, the teacher as it labelled."""
    atoms = supercell(atoms, _SPEED_ATOMS) if atoms.pbc.all() else atoms
    own = measure_cost(student, atoms, _SPEED_REPEATS)["wall_us_per_atom"]
    their = None if teacher_seconds is None else 1e6 * teacher_seconds
    rows = [("student", own, len(atoms)), ("teacher, while labelling", their, None)]
    found.tables.append(Table(("", "µs/atom", "atoms"), rows, "Speed"))
    if their is not None:
        found.numbers["speedup"] = their / own


_BETTER_ABOVE = {"force_cosine", "speedup", "hot_md"}
_UNITS = {"force_mae": " eV/Å", "force_rmse": " eV/Å", "nve_drift": " meV/atom/ns"}


def judge(found: Measured, bars: Bars) -> tuple[list[Finding], list[str]]:
    """Bars that are not reached, or were not measured, as errors; and the names of those that are."""
    failed, passed = [], []
    for name, wanted in bars.model_dump().items():
        if wanted is None or wanted is False:
            continue
        value, above, unit = found.numbers.get(name), name in _BETTER_ABOVE, _UNITS.get(name, "")
        if value is None:
            message = f"{name} was to be {'at least' if above else 'at most'} {wanted:g}{unit}, and was not measured"
            cure = "give what it is measured on, or take the bar away"
            failed.append(Finding(name, "error", message, "Nothing is known of it; the student is not accepted.", cure))
        elif (value >= wanted) if above else (value <= wanted):
            passed.append(name)  # NaN is not reached
        else:
            said = f"{value:.3g}{unit}, was to be {'at least' if above else 'at most'} {float(wanted):g}{unit}"
            failed.append(
                Finding(
                    name,
                    "error",
                    f"{name} is {said}",
                    "The student does not follow its teacher this far.",
                    "raise the budget or the rounds, or choose a larger student",
                )
            )
    return failed, passed
