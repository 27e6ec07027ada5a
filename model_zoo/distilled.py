"""Bundled models that a teacher made: a line of a recipe becomes a distillation, and what it found goes into the card.

    distil: {teacher: 7net-0, elements: [Pb]}

`teacher` is one of `TEACHERS`; all other keys are those of `snnp.distillation.DistilSettings`. The interpreter that has
the teacher is that of the environment variable SNNP_TEACHER_PYTHON, `reference` may name files below $SNNP_DATA.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.build import bulk, surface
from ase.calculators.calculator import Calculator, all_changes
from ase.data import atomic_names, atomic_numbers
from ase.optimize import FIRE
from trained import Order, Trained, distil_once, read_recipe

from snnp.analysis.properties import GROUND_STATES, ground_state
from snnp.data import Frames, load_dataset, read_frames
from snnp.data.write import parquet_writer
from snnp.distillation import DistilSettings
from snnp.distillation.crystals import frames_of
from snnp.distillation.teachers import Teacher, TeacherProcess
from snnp.errors import ConfigError
from snnp.models.potential import Potential
from snnp.models.store import load_model
from snnp.training import evaluate, load_config
from snnp.training.problem import Problem, load_problem
from snnp_ase import SNNPCalculator

__all__ = ["TEACHERS", "make"]

_SEVENNET = "sevenn.calculator:SevenNetCalculator"
TEACHERS: dict[str, dict[str, Any]] = {
    "7net-0": {
        "title": "SevenNet-0 (11 July 2024)",
        "settings": {"teachers": [_SEVENNET], "kwargs": {"model": "7net-0", "device": "cpu"}},
        "level_of_theory": "that of the teacher: PBE of the Materials Project (MPtrj)",
        "citation": "Y. Park et al., J. Chem. Theory Comput. 20, 4857 (2024), doi 10.1021/acs.jctc.4c00190",
    },
}
TEACHERS["7net-l3i5"] = TEACHERS["7net-0"] | {
    "title": "SevenNet-l3i5",
    "settings": {"teachers": [_SEVENNET], "kwargs": {"model": "7net-l3i5", "device": "cpu"}},
}

_USUAL: dict[str, Any] = {
    "budget": 700,
    "rounds": 3,
    "student": {
        "model": {
            "radial": {"n_filters": 16, "cutoff": 6.0},
            "angular": {"n_filters": 24, "cutoff": 6.0, "degree": 4},
            "network": {"hidden": [32, 32]},
        },
        "optimiser": {"epochs": 180},
        "compression": {"share": 1.0, "levels": 36},
    },
}
_REFERENCE_FRAMES = 40
_PLANES = {"fcc": ("111", "100", "110"), "bcc": ("110", "100", "111"), "diamond": ("111", "110"), "hcp": ("001", "100")}
_THICKNESS, _VACUUM = 16.0, 8.0  # Å
_SITES = {"fcc": 3, "bcc": 4, "diamond": 2}  # conventional cells along each edge, around a vacancy
_STEPS, _FORCE = 60, 0.02  # of a relaxation; eV/Å
_J_PER_M2 = 16.02177  # eV/Å²
_VACANCIES = {
    **{"Al": 0.67, "Cu": 1.28, "Ni": 1.79, "Ag": 1.11, "Au": 0.93, "Pd": 1.85, "Pt": 1.35, "W": 3.67, "Ta": 2.8},
    **{"Nb": 2.65, "Mg": 0.79, "Ti": 1.27},
}
"""eV, measured; as recalled from P. Ehrhart, Landolt-Börnstein III/25 (1991), and not compared with the tables."""
_SURFACES = {
    **{"Al": 1.14, "Cu": 1.79, "Ni": 2.38, "Ag": 1.25, "Au": 1.51, "Pd": 2.00, "Pt": 2.49, "W": 3.27, "Ta": 2.90},
    **{"Nb": 2.66, "Mg": 0.79, "Ti": 1.99, "Zr": 1.91, "Ca": 0.50},
}
"""J/m², measured, of no face in particular; as recalled from W. R. Tyson, W. A. Miller, Surf. Sci. 62, 267 (1977)."""


def make(order: Order) -> Trained:
    """The student of the teacher that the recipe names."""
    recipe = read_recipe(order.folder)
    if not isinstance(recipe["distil"], dict) or set(recipe) - {"distil", "metadata"}:
        raise ConfigError(
            f"{order.folder / 'recipe.yaml'}: distil must be a group such as {{teacher: 7net-0, elements: [Pb]}}, with "
            "nothing but metadata beside it."
        )
    settings = _settings(recipe, order.run)
    distil_once(settings, order.run, order.tell)
    run = order.run / "student"
    config, model = load_config(run / "config.yaml"), load_model(run / "best")
    problem = load_problem(config, run / "split.json")
    # Files of a run are nowhere else.
    learned = [str(path).removeprefix(f"{order.run}/") for path in model.metadata["training_data"]]
    model.metadata["training_data"] = learned
    said = "structures that the teacher labelled and the student did not learn"
    return Trained(
        model,
        run,
        config.device,
        problem,
        _about(recipe, model, len(problem.split.train) + len(problem.split.valid)),
        lambda: evaluate(model, _held_out(order.run, problem), data_name=said).to_dict(),
        lambda lengths: _beside_the_teacher(recipe, order.run, model, lengths),
    )


def _teacher(recipe: dict[str, Any]) -> dict[str, Any]:
    name = recipe["distil"].get("teacher")
    if name not in TEACHERS:
        raise ConfigError(f"distil.teacher must be one of {', '.join(TEACHERS)}, got {name!r}.")
    return TEACHERS[name]


def _settings(recipe: dict[str, Any], run: Path) -> DistilSettings:
    asked = {key: value for key, value in recipe["distil"].items() if key != "teacher"}
    if names := asked.pop("reference", ()):
        asked["reference"] = [str(_some(names, asked["elements"], run / "reference.parquet"))]
    tree = {"python": os.environ.get("SNNP_TEACHER_PYTHON")} | _USUAL | _teacher(recipe)["settings"]
    return DistilSettings(**tree | asked)


def _some(names: str | Sequence[str], elements: Sequence[str], path: Path) -> Path:
    """Frames of these elements alone, few enough for a slow teacher, written once."""
    if not path.exists():
        listed = [os.path.expandvars(name) for name in ([names] if isinstance(names, str) else names)]
        frames = Frames.of(read_frames(listed))
        others = [symbol not in elements for symbol in frames.elements]
        rows = np.flatnonzero(frames.composition()[:, others].sum(axis=1) == 0)
        drawn = np.random.default_rng(0).permutation(rows)[:_REFERENCE_FRAMES]
        path.parent.mkdir(parents=True, exist_ok=True)
        with parquet_writer(path, ", ".join(Path(name).parent.name for name in listed), "snnp") as writer:
            writer.add(frames.take(np.sort(drawn)), "train")
    return path


def _about(recipe: dict[str, Any], model: Potential, n_labels: int) -> dict[str, Any]:
    """What the card says of a distilled model, unless the recipe says otherwise."""
    teacher, names = _teacher(recipe), [atomic_names[atomic_numbers[s]].lower() for s in model.elements]
    return {
        "description": f"s-NNP for {' and '.join(names)}{', alone and together' * (len(names) > 1)}, distilled from "
        f"{teacher['title']}: solids, liquid, defects, surfaces",
        "dataset": f"{n_labels} structures made from the symbols of the elements, labelled by the teacher "
        f"{model.metadata['teacher']}",
        "licence": "MIT",
        "level_of_theory": teacher["level_of_theory"],
        "citation": f"the teacher: {teacher['citation']}",
        "limits": ["What its teacher does not know it does not know either: see the rows of the teacher"],
    } | recipe.get("metadata", {})


def _held_out(run: Path, problem: Problem) -> Frames:
    """Structures that the teacher labelled and the student did not learn, within the limits of what it learned."""
    chunks = [chunk.checked() for chunk in load_dataset(run / "labels.parquet").select("test").chunks()]
    frames = Frames.concatenate(chunks)
    return frames.take(problem.inside(frames))


class _Labels(Calculator):
    """A teacher at work for ASE's optimisers."""

    implemented_properties = ("energy", "forces")

    def __init__(self, process: TeacherProcess) -> None:
        super().__init__()
        self.process = process

    def calculate(
        self, atoms: Atoms | None = None, properties: Sequence[str] = ("energy",), changes: Sequence[str] = all_changes
    ) -> None:
        super().calculate(atoms, properties, changes)
        (answer,) = self.process.label(frames_of([("", self.atoms)], "defect"))
        if answer.error is not None:
            raise ConfigError(f"the teacher fails on a defect: {answer.error}")
        self.results = {"energy": float(answer.labels["energy"]), "forces": np.asarray(answer.labels["forces"])}


def _relaxed(atoms: Atoms, calculator: Calculator) -> float:
    atoms = atoms.copy()
    atoms.calc = calculator
    FIRE(atoms, logfile=None).run(fmax=_FORCE, steps=_STEPS)
    return float(atoms.get_potential_energy())


def _defects(symbol: str, a: float, calculator: Calculator) -> dict[str, float]:
    """Energy of a vacancy (eV) and of surfaces (J/m²), relaxed in a fixed cell."""
    lattice = str(ground_state(symbol))
    kind = {"orthorhombic": True} if lattice == "hcp" else {"cubic": True}
    cell = bulk(symbol, lattice, a=a, **kind)
    block = cell.repeat((4, 2, 3) if lattice == "hcp" else _SITES[lattice])
    cell.calc = calculator
    per_atom = cell.get_potential_energy() / len(cell)
    del block[0]
    found = {"vacancy": _relaxed(block, calculator) - len(block) * per_atom}
    primitive = bulk(symbol, "hcp", a=a) if lattice == "hcp" else cell
    for plane in _PLANES[lattice]:
        layers = 1
        while np.ptp(surface(primitive, [int(k) for k in plane], layers).positions[:, 2]) < _THICKNESS:
            layers += 1
        slab = surface(primitive, [int(k) for k in plane], layers, vacuum=_VACUUM)
        slab.pbc = True
        area = float(np.linalg.norm(np.cross(*slab.cell.array[:2])))
        found[f"({plane})"] = (_relaxed(slab, calculator) - len(slab) * per_atom) / (2.0 * area) * _J_PER_M2
    return found


def _beside_the_teacher(
    recipe: dict[str, Any], run: Path, model: Potential, lengths: Mapping[str, float]
) -> dict[str, Any]:
    """Crystals and defects of pure elements by student and teacher: rows of properties, and lines for the card.

    Arguments:
        run: folder of the distillation, whose report has crystals and reference data.
        lengths: lattice constants of the student by symbol, Å.
    """
    settings, facts = _settings(recipe, run), json.loads((run / "report.json").read_text(encoding="utf-8"))["facts"]
    rows = {symbol: row for symbol in lengths if (row := _crystal_of_teacher(recipe, symbol, facts))}
    lines, numbers = [*_against_reference(recipe, facts), *_compounds(facts)], dict[str, Any]()
    with Teacher.of(settings.teachers, settings.python, settings.kwargs).start(1) as process:
        for symbol, length in lengths.items():
            theirs = rows.get(symbol, {}).get("lattice_constant_angstrom", length)
            own = _defects(symbol, length, SNNPCalculator(model))
            their = _defects(symbol, theirs, _Labels(process))
            numbers[symbol] = {"student": own, "teacher": their}
            lines += _in_words(symbol, own, their)
    return {"references": rows, "accuracy": lines, "defects": numbers}


def _crystal_of_teacher(recipe: dict[str, Any], symbol: str, facts: dict[str, Any]) -> dict[str, Any]:
    """The row of the report as values for the card; empty where the ground state is not cubic."""
    name = f"{GROUND_STATES.get(symbol)} {symbol}, teacher"
    for row in facts.get("Crystals at rest", []):
        if row[""] == name:
            constants = {f"{key.lower()}_gpa": row[f"{key} (GPa)"] for key in ("C11", "C12", "C44")}
            return {
                "source": f"{_teacher(recipe)['title']}, by the same measurement",
                "lattice_constant_angstrom": row["a (Å)"],
                "cohesive_energy_ev_per_atom": None,
                "bulk_modulus_gpa": row["B (GPa)"],
                **constants,
            }
    return {}


def _against_reference(recipe: dict[str, Any], facts: dict[str, Any]) -> list[str]:
    rows = {row[""]: row for row in facts.get("Student and teacher against reference data", [])}
    if not rows:
        return []
    student, teacher = (rows[name]["force MAE (eV/Å)"] for name in ("student", "teacher"))
    names = recipe["distil"]["reference"]
    which = " and ".join(Path(name).parent.name for name in ([names] if isinstance(names, str) else names))
    return [
        f"Against DFT ({rows['student']['structures']} frames of {which}, of which none was learned): force MAE "
        f"{student:.3f} eV/Å, the teacher's {teacher:.3f}"
    ]


def _compounds(facts: dict[str, Any]) -> list[str]:
    """What the report says of compounds at rest, where there are some."""
    rows = {row[""]: row for row in facts.get("Compounds at rest", [])}
    units = {"a (Å)": "a {:.3f} ({:.3f}) Å", "energy of formation (meV/atom)": "formation {:.1f} ({:.1f}) meV/atom"}
    units["B (GPa)"] = "B {:.0f} ({:.0f}) GPa"
    lines = []
    for name in [key.removesuffix(", student") for key in rows if key.endswith(", student")]:
        own, their = rows[f"{name}, student"], rows[f"{name}, teacher"]
        said = ", ".join(text.format(own[key], their[key]) for key, text in units.items())
        lines.append(f"{name} at rest (in brackets the teacher's; a is the cube root of the cell's volume): {said}")
    return lines


def _in_words(symbol: str, own: dict[str, float], their: dict[str, float]) -> list[str]:
    measured = f"; measured {_VACANCIES[symbol]:g}" if symbol in _VACANCIES else ""
    vacancy = f"{symbol}, vacancy (relaxed): {own['vacancy']:.2f} eV, the teacher {their['vacancy']:.2f}{measured}"
    planes = [name for name in own if name != "vacancy"]
    faces = ", ".join(f"{name} {own[name]:.2f} ({their[name]:.2f})" for name in planes)
    measured = f"; measured, of no face in particular, {_SURFACES[symbol]:g}" if symbol in _SURFACES else ""
    return [vacancy, f"{symbol}, surfaces (relaxed; in brackets the teacher's): {faces} J/m²{measured}"]
