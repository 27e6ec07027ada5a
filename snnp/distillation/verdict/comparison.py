"""The numbers of a verdict: errors against teacher and reference, worst frames, cost, and the bars."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms

from snnp.data import Frames
from snnp.data.storage.contents import unpack
from snnp.distillation.crystals import frames_of
from snnp.distillation.defects import supercell
from snnp.distillation.settings import Bars
from snnp.distillation.teachers import Teacher, TeacherProcess, WorkerDiedError
from snnp.models.potential import Potential
from snnp.neighbours import shortest_distances
from snnp.report import Figure, Finding, Table, colours, new_figure, new_panels, plain_ticks, png, tidy
from snnp.sampling.cost import measure_cost
from snnp.training.evaluation import Comparison, Evaluation, evaluate

__all__ = [
    "Measured",
    "against_baseline",
    "against_reference",
    "against_teacher",
    "judge",
    "kind_of",
    "memory",
    "speed",
    "table",
]

_NO_FORCE = 1e-3  # eV/Å
_SPEED_ATOMS, _SPEED_REPEATS = 700, 3
_WORST, _DRAWN = 10, 3  # frames in the table, and in the picture
_MOST_KINDS = 12  # in colour


@dataclass
class Measured:
    """Tables and pictures for people, and the numbers that bars are compared with."""

    tables: list[Table] = field(default_factory=list)
    numbers: dict[str, float] = field(default_factory=dict)
    notes: list[Finding] = field(default_factory=list)
    pictures: list[Figure] = field(default_factory=list)


def table(title: str, records: Sequence[Mapping[str, Any]]) -> Table:
    """One row for each of several records with the same names."""
    return Table(list(records[0]), [list(each.values()) for each in records], title)


def kind_of(group: str | None) -> str:
    """The kind of structure: the scans of all crystals are one, since each has few volumes."""
    return "scan" if group is not None and group.startswith("scan ") else group or ""


def against_teacher(found: Measured, student: Potential, held_out: Frames) -> None:
    """Errors on structures that were labelled and not learned, by kind."""
    held_out = replace(held_out, groups=[kind_of(group) for group in held_out.groups])
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
    _beside_the_spread(found, evaluation, held_out)
    if len(evaluation.forces.frame):
        found.pictures.append(_parity(evaluation, held_out))
        _worst(found, evaluation, held_out)


def _worst(found: Measured, evaluation: Evaluation, held_out: Frames) -> None:
    """The frames whose forces are learned worst, in a table and drawn."""
    forces = evaluation.forces
    error = np.bincount(forces.frame, np.square(forces.model - forces.reference), len(held_out))
    error = np.sqrt(error / np.maximum(3 * held_out.counts, 1))
    largest = np.zeros(len(held_out))
    np.maximum.at(largest, forces.frame, np.abs(forces.reference))
    chosen = np.argsort(-error)[:_WORST]
    images = [held_out[row].structure.to_ase()[0] for row in chosen.tolist()]
    energy = dict(zip(evaluation.energies.frame.tolist(), evaluation.energies.model - evaluation.energies.reference,
                      strict=True))  # fmt: skip
    rows = [
        {
            "": held_out.sources[row],
            "formula": atoms.get_chemical_formula(),
            "force RMSE (eV/Å)": float(error[row]),
            "largest force of the teacher (eV/Å)": float(largest[row]),
            "energy error (meV/atom)": 1000.0 * float(energy[row]) if row in energy else None,
            "shortest distance (Å)": float(shortest_distances(held_out[row].structure, 6.0)[0]),
        }
        for row, atoms in zip(chosen.tolist(), images, strict=True)
    ]
    found.tables.append(table("The worst frames", rows))
    found.pictures.append(_draw_worst(rows[:_DRAWN], images[:_DRAWN]))


def _draw_worst(rows: Sequence[Mapping[str, Any]], images: Sequence[Atoms]) -> Figure:
    from ase.visualize.plot import plot_atoms

    drawn, panels = new_panels(len(rows), 3.2, 3.0, columns=3)
    for panel, row, atoms in zip(panels, rows, images, strict=True):
        plot_atoms(atoms, panel, rotation="-70x,15y", show_unit_cell=2 if atoms.pbc.any() else 0)
        panel.set_axis_off()
        panel.set_title(f"{row['']}: {row['force RMSE (eV/Å)']:.3g} eV/Å", fontsize=8)
    return Figure("The worst frames", "Of those held out; numbers are in the table.", png(drawn))


def _parity(evaluation: Evaluation, held_out: Frames) -> Figure:
    """Forces of the student over those of the teacher, by kind."""
    forces = evaluation.forces
    groups = np.array([group or "structures" for group in held_out.groups])[forces.frame]
    names = sorted(set(groups), key=lambda name: -int((groups == name).sum()))
    groups = np.where(np.isin(groups, names[:_MOST_KINDS]), groups, "others")
    names = [*names[:_MOST_KINDS], *(["others"] if len(names) > _MOST_KINDS else [])]
    drawn = new_figure(8.5, 3.8)
    left, right = drawn.subplots(1, 2)
    for name, colour in zip(names, colours(len(names)), strict=True):
        mine = groups == name
        x, y = forces.reference[mine], forces.model[mine]
        left.scatter(x, y, s=3, color=colour, linewidths=0, label=name, rasterized=True)
        right.scatter(np.maximum(np.abs(x), 1e-2), np.maximum(np.abs(y - x), 1e-4), s=3, color=colour, linewidths=0)
    ends = np.array([forces.reference.min(), forces.reference.max()])
    left.plot(ends, ends, color="black", linewidth=0.6)
    left.set(xlabel="teacher (eV/Å)", ylabel="student (eV/Å)")
    right.set(xscale="log", yscale="log", xlabel="force of the teacher (eV/Å)", ylabel="error of the student (eV/Å)")
    plain_ticks(left.xaxis, left.yaxis, right.xaxis, right.yaxis)
    tidy(left, right)
    drawn.legend(loc="outside right center", frameon=False, fontsize=8, markerscale=4)
    return Figure(
        "Forces, structures held out", "Every component of every force, by the kind of structure.", png(drawn)
    )


def _beside_the_spread(found: Measured, evaluation: Evaluation, held_out: Frames) -> None:
    """Errors beside the standard deviations of the teachers, where labels are the mean of several."""
    texts = held_out.extras or [None] * len(held_out)
    spread = [
        unpack(text, source).arrays.get("forces_std") for text, source in zip(texts, held_out.sources, strict=True)
    ]
    known = np.array([each is not None for each in spread], dtype=bool)
    if not known.any():
        return
    squares = np.array([np.nan if each is None else float(np.square(each).mean()) for each in spread])
    forces = evaluation.forces
    errors = np.bincount(forces.frame, np.square(forces.model - forces.reference), len(held_out)) / (
        3 * held_out.counts
    )
    groups, rows = np.array([group or "" for group in held_out.groups]), []
    for name in ["all", *sorted(set(groups.tolist()) - {""})]:
        mine = known & ((groups == name) | (name == "all"))
        if not mine.any():
            continue
        n = held_out.counts[mine]
        ours, theirs = (float(np.sqrt((n * each[mine]).sum() / n.sum())) for each in (errors, squares))
        rows.append((name, int(mine.sum()), ours, theirs, ours / theirs if theirs > 0 else None))
    columns = ("", "structures", "student's force RMSE (eV/Å)", "spread of the teachers (eV/Å)", "ratio")
    found.tables.append(Table(columns, rows, "Student beside the spread of its teachers"))


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


def against_baseline(found: Measured, student: Potential, baseline: Potential, reference: Frames) -> None:
    """The student and an equal one that had no teacher, on reference data."""
    named = {"student": student, "without a teacher": baseline}
    errors = {name: evaluate(model, reference).total.to_dict() for name, model in named.items()}
    columns = {"energy MAE (meV/atom)": "energy_mae_mev_per_atom", "force MAE (eV/Å)": "force_mae_ev_per_angstrom"}
    rows = [{"": name, **{head: each[key] for head, key in columns.items()}} for name, each in errors.items()]
    found.tables.append(table("What the teacher is worth, on reference data", rows))
    ours, theirs = (each["force_mae_ev_per_angstrom"] for each in errors.values())
    if theirs:
        found.numbers["baseline_force_ratio"] = ours / theirs


def _aligned_error(composition: np.ndarray, difference: np.ndarray) -> float | None:
    """MAE in meV/atom of energies per atom once their zeros, one per element, are brought together by least squares."""
    if len(difference) == 0:
        return None
    zeros = np.linalg.lstsq(composition, difference, rcond=1e-8)[0]
    return float(1000.0 * np.abs(difference - composition @ zeros).mean())


def speed(found: Measured, student: Potential, atoms: Atoms, teacher_seconds: float | None) -> None:
    """µs per atom of wall time, for energy and forces: the student in repeated calls, the teacher as it labelled."""
    atoms = supercell(atoms, _SPEED_ATOMS) if atoms.pbc.all() else atoms
    own = measure_cost(student, atoms, _SPEED_REPEATS)["wall_us_per_atom"]
    their = None if teacher_seconds is None else 1e6 * teacher_seconds
    rows = [("student", own, len(atoms)), ("teacher, while labelling", their, None)]
    found.tables.append(Table(("", "µs/atom", "atoms"), rows, "Speed"))
    if their is not None:
        found.numbers["speedup"] = their / own


def memory(found: Measured, student: str | Path, atoms: Atoms, process: TeacherProcess) -> None:
    """Largest resident memory (MB) of a process with Python, its libraries and the model that labels these atoms.

    Arguments:
        student: its folder.
        process: of the teacher, which may have labelled other structures before.
    """
    frames, rows = frames_of([("", atoms)], "report"), []
    with Teacher.of([student]).start() as own:
        for name, each in (("student", own), ("teacher", process)):
            try:
                (answer,) = each.label(frames)
            except WorkerDiedError as death:
                found.notes.append(Finding("memory", "warning", f"no memory of the {name}: {death}"))
                continue
            peak = None if answer.peak_bytes is None else answer.peak_bytes / 1e6
            rows.append((name, peak))
            if name == "student" and peak is not None:
                found.numbers["memory"] = peak
    columns = ("", "MB at most")
    found.tables.append(Table(columns, rows, f"Memory of a process, energy and forces of {len(atoms)} atoms"))


_BETTER_ABOVE = {"force_cosine", "speedup", "hot_md", "rdf_overlap"}
_UNITS = {
    **dict.fromkeys(("force_mae", "force_rmse"), " eV/Å"),
    **dict.fromkeys(("formation_energy", "extensivity"), " meV/atom"),
    "nve_drift": " meV/atom/ns",
    "memory": " MB",
}


def judge(found: Measured, bars: Bars) -> tuple[list[Finding], list[str], Table, str]:
    """Bars that are not reached, or were not measured, as errors; the names of those that are; all numbers; a line."""
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
    wanted_of, rows = bars.model_dump(), []
    for name, value in wanted_of.items():
        if name in found.numbers or value:
            state = "no" if any(each.check == name for each in failed) else "yes" if name in passed else "not asked"
            words = (
                None if not value else "yes" if value is True else f"{'≥' if name in _BETTER_ABOVE else '≤'} {value:g}"
            )
            rows.append((name + _UNITS.get(name, "").replace(" ", ", ", 1), found.numbers.get(name), words, state))
    n, warnings = len(failed) + len(passed), sum(note.severity == "warning" for note in found.notes)
    answer = f"not accepted: {len(failed)} of {n} bars not reached" if failed else f"accepted: all {n} bars reached"
    answer += f"; {warnings} warnings" if warnings else ""
    return failed, passed, Table(("", "measured", "wanted", "reached"), rows, "Bars"), answer
