"""Aluminium from nothing: what nonequilibrium active learning finds, label for label, against other structures.

python docs/measure/studies/active_aluminium.py --python envs/sevenn/bin/python    # what is missing, picture, tables
python docs/measure/studies/active_aluminium.py --ani                              # once, labelled by ANI-Al
python docs/measure/studies/active_aluminium.py --tables                           # picture and tables from the JSON

Four ways to spend the same number of labels of a universal potential, which stands in for DFT; their committees are
held against crystals, defects and a liquid, of which active learning and random placements have seen none. Labels are
kept in the folder of the runs, and every point that is finished in the JSON: the command goes on where it was stopped.
SNNP_DATA names the folder that holds ani-al-weights/, for --ani.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from active_aluminium_page import BUDGETS, GROUPS, ani_table, cost_table, draw, errors_table, properties_table
from ase import Atoms, units
from ase.build import bulk, fcc100, fcc110, fcc111
from ase.calculators.calculator import Calculator, all_changes
from ase.optimize import FIRE
from ase.stress import full_3x3_to_voigt_6_stress
from pages import between_marks, provenance

from snnp.active.placement import density_of
from snnp.active.trajectories import SamplingSettings, placements, sample
from snnp.data import Frames
from snnp.data.read import read_images
from snnp.data.write import write_frames
from snnp.distillation.crystals import (
    Crystal,
    crystals_from_scan,
    first_scan,
    frames_of,
    second_scan,
    within_reach,
)
from snnp.distillation.defects import supercell
from snnp.distillation.label_store import Crew, LabelStore, label
from snnp.distillation.teachers import Teacher
from snnp.files import write_atomically
from snnp.models import Ensemble, Potential, load_model, save_model
from snnp.sampling import MDSettings
from snnp.sampling.many.movement import run_many
from snnp.structure import Structure
from snnp.training import load_config, train
from snnp_ase import SNNPCalculator

STUDY = Path(__file__).resolve().parents[2] / "studies" / Path(__file__).stem
RUNS = STUDY.parents[2] / "runs" / "active_aluminium"
MEMBERS, STEPS = 3, 600
N_ATOMS = (8, 20)
DRIVER = "snnp-al"  # moves the atoms of the liquid and of plain dynamics, whose frames are labelled
STUDENT: dict[str, Any] = {
    "model": {
        "radial": {"n_filters": 12, "cutoff": 5.5},
        "angular": {"n_filters": 12, "cutoff": 5.5, "degree": 4},
        "network": {"hidden": [24, 24]},
    },
    "loss": {"energy_weight": 30.0, "energy_weight_end": 300.0, "stress_weight": 300.0, "energy_scale": 1.0},
    "compression": {"share": 0.5, "levels": 36},
    "validate_every": 10,
}
BATCH_ATOMS = 100
Ask = Callable[[Frames], Frames]
Draw = Callable[["Case", int, int], list[Atoms]]


class Case:
    """What the ways to choose structures may use: the crystal (fcc), who labels, and where runs lie."""

    def __init__(self, crystals: Sequence[Crystal], ask: Ask, runs: Path) -> None:
        self.crystals = {each.lattice: each for each in crystals}
        self.ask, self.runs = ask, runs

    @property
    def fcc(self) -> float:
        """Å, lattice constant."""
        return float(4.0 * self.crystals["fcc"].volume) ** (1.0 / 3.0)


# Structures to learn from


def settings(**changes: Any) -> SamplingSettings:
    """Of placements and trajectories; the usual ones of a metal, with small cells."""
    return SamplingSettings(elements=("Al",), n_atoms=N_ATOMS, trajectories=48, together=48, **changes)


def at_random(case: Case, number: int, seed: int) -> list[Atoms]:
    """Random placements, as active learning begins."""
    return placements(settings(), number, seed)


def rattled(case: Case, number: int, seed: int) -> list[Atoms]:
    """The fcc crystal, compressed and stretched, strained, with displaced atoms."""
    rng, found = np.random.default_rng([seed, 21]), []
    for _ in range(number):
        atoms = supercell(bulk("Al", a=case.fcc, cubic=bool(rng.integers(2))), rng.uniform(*N_ATOMS))
        strain = 0.03 * rng.standard_normal((3, 3))
        scale = rng.uniform(0.85, 1.2) ** (1.0 / 3.0)
        atoms.set_cell(scale * atoms.cell.array @ (np.eye(3) + 0.5 * (strain + strain.T)), scale_atoms=True)
        atoms.positions += (
            rng.uniform(0.02, 0.14) * case.fcc / np.sqrt(2.0) * rng.standard_normal(atoms.positions.shape)
        )
        found.append(atoms)
    return found


def moved(starts: Sequence[Atoms], kelvin: float, picoseconds: float, frames: int, seed: int) -> list[list[Atoms]]:
    """Frames of plain dynamics at a constant temperature, run by run."""
    steps = round(picoseconds * 500)
    how = MDSettings(
        temperature_k=kelvin,
        friction_per_ps=5.0,
        dt_fs=2.0,
        steps=steps,
        seed=seed,
        log_interval=steps,
        trajectory_interval=steps // frames,
    )
    return [run.frames[1:] for run in run_many(load_model(DRIVER), starts, how, frames=True)]


def plain_dynamics(case: Case, number: int, seed: int) -> list[Atoms]:
    """Dynamics of the fcc crystal at temperatures up to twice that of melting, at about their densities."""
    found: list[Atoms] = []
    for k, kelvin in enumerate((300.0, 600.0, 900.0, 1300.0, 2000.0)):
        a = case.fcc * (1.0 + 2.5e-5 * kelvin)
        starts = [bulk("Al", a=a) * each for each in ((2, 2, 2), (3, 2, 2), (3, 3, 2))]
        starts.append(bulk("Al", a=a, cubic=True) * (2, 2, 1))
        found += [atoms for run in moved(starts, kelvin, 4.0, 8, 100 * seed + 10 * k) for atoms in run]
    order = np.random.default_rng([seed, 22]).permutation(len(found))
    assert len(found) >= number
    return [Atoms(found[k].numbers, found[k].positions, cell=found[k].cell, pbc=True) for k in order[:number]]


FIXED: dict[str, Draw] = {"plain MD": plain_dynamics, "rattled fcc": rattled, "random placements": at_random}


def harvest(members: Sequence[Potential], number: int, known: Frames, folder: Path, seed: int) -> list[Atoms]:
    """What the committee disagrees about; where that is too little, with limits that are halved."""
    found: list[Atoms] = []
    for k in range(4):
        scale = 0.5**k
        limits = {"energy_limit": 0.02 * scale, "force_limit": 0.2 * scale, "largest_force_limit": 0.6 * scale}
        how = settings(picoseconds=4.0, give_up=4.0, most_frames=number - len(found), **limits)
        found += sample(members, how, [], folder / f"sample-{k}", 1000 * seed + k, known=known).frames
        if len(found) >= number:
            break
    return [Atoms(each.numbers, each.positions, cell=each.cell, pbc=True) for each in found]


# Structures to be judged by


def tests(case: Case) -> Frames:
    """Crystals at and around their volumes at rest and rattled, defects of fcc, and the liquid."""
    rng, images = np.random.default_rng(7), list[tuple[str, Atoms]]()

    def shaken(atoms: Atoms, size: float) -> Atoms:
        copy = atoms.copy()
        copy.positions += size * rng.standard_normal(copy.positions.shape)
        return copy

    for name, crystal in case.crystals.items():
        for ratio in (0.94, 1.0, 1.06):
            atoms = crystal.atoms.copy()
            atoms.set_cell(atoms.cell * ratio ** (1.0 / 3.0), scale_atoms=True)
            images.append((name, atoms))
        images += [(name, shaken(supercell(crystal.atoms, 9), size)) for size in (0.05, 0.1, 0.15)]
    vacancy = bulk("Al", a=case.fcc) * (3, 3, 3)
    del vacancy[0]
    images += [("vacancy", shaken(vacancy, size)) for size in (0.0, 0.05, 0.1)]
    for build, size in ((fcc111, (1, 1, 6)), (fcc100, (1, 1, 7)), (fcc110, (1, 1, 9))):
        slab = build("Al", size, a=case.fcc, vacuum=5.0, periodic=True)
        images += [("surface", slab), ("surface", shaken(slab * (2, 1, 1), 0.08))]
    crystal = fcc111("Al", (1, 1, 9), a=case.fcc, periodic=True)
    crystal.set_cell([*crystal.cell.array[:2], [0, 0, 9 * case.fcc / np.sqrt(3.0)]])
    partial = (crystal.cell.array[0] + crystal.cell.array[1]) / 3.0
    for part in (0.5, 1.0):  # of the way to the intrinsic fault
        fault = crystal.copy()
        fault.set_cell([*crystal.cell.array[:2], crystal.cell.array[2] + part * partial])
        images += [("stacking fault", fault), ("stacking fault", shaken(fault * (2, 1, 1), 0.08))]
    box = bulk("Al", a=case.fcc, cubic=True) * (2, 2, 2)
    box.set_cell(box.cell * (density_of(box) / 2.37) ** (1.0 / 3.0), scale_atoms=True)  # g/cm³, at melting
    (melt,) = moved([box], 3000.0, 2.0, 1, 5)
    for kelvin in (943.0, 1500.0):
        (run,) = moved([Atoms(melt[-1])], kelvin, 6.0, 6, 6)
        images += [("liquid", Atoms(each.numbers, each.positions, cell=each.cell, pbc=True)) for each in run[2:]]
    return frames_of(images, "test")


def errors(model: Potential, frames: Frames) -> dict[str, dict[str, float]]:
    """By group: mean absolute errors of energy (meV/atom), also beside fcc at rest, and of forces (eV/Å)."""
    found = model.compute(Structure.from_ase(list(frames.structure().to_ase())))
    assert found.forces is not None
    energy = 1000.0 * (found.energy.double().numpy() - frames.energy) / frames.counts
    force = frames.per_frame(np.abs(found.forces.double().numpy() - frames.forces).mean(axis=1)) / frames.counts
    groups = np.array(frames.groups)
    rest = energy[np.flatnonzero(groups == "fcc")[1]]
    rows = {name: np.flatnonzero(groups == name) for name in GROUPS}
    return {
        name: {
            "energy": float(np.abs(energy[own]).mean()),
            "above_fcc": float(np.abs(energy[own] - rest).mean()),
            "force": float(np.average(force[own], weights=frames.counts[own])),
        }
        for name, own in rows.items()
    }


# Properties of the last committees


class Labelled(Calculator):
    """The labeller as a calculator."""

    implemented_properties = ("energy", "forces", "stress")

    def __init__(self, ask: Ask) -> None:
        super().__init__()
        self._ask = ask

    def calculate(
        self, atoms: Atoms | None = None, properties: Sequence[str] = (), system_changes: Sequence[str] = all_changes
    ) -> None:
        super().calculate(atoms, properties, system_changes)
        assert atoms is not None
        bare = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
        one = self._ask(frames_of([("asked", bare)], "asked"))
        self.results = {"energy": float(one.energy[0]), "forces": one.forces}
        if one.has_stress[0]:
            self.results["stress"] = full_3x3_to_voigt_6_stress(one.stress[0])


def properties(calculator: Calculator, guess: float) -> dict[str, float]:
    """Of fcc: lattice constant, elastic constants (GPa), vacancy (eV, of 31 atoms), surfaces (J/m²), fault (mJ/m²)."""

    def at(atoms: Atoms) -> Atoms:
        atoms.calc = calculator
        return atoms

    def relaxed(atoms: Atoms) -> float:
        FIRE(at(atoms), logfile=None).run(fmax=0.02, steps=60)
        return float(atoms.get_potential_energy())

    sizes = guess * np.linspace(0.97, 1.03, 7)
    energy = [at(bulk("Al", a=a)).get_potential_energy() for a in sizes]
    fit = np.polynomial.Polynomial.fit(sizes, energy, 4)
    fine = np.linspace(sizes[0], sizes[-1], 6001)
    a = float(fine[np.argmin(fit(fine))])
    per_atom = float(fit(a))
    found = {"a": a}
    for name, (row, column), read in (("C11", (0, 0), 0), ("C12", (0, 0), 1), ("C44", (1, 2), 3)):
        slopes = []
        for size in (-0.005, 0.005):
            strain = np.eye(3)
            strain[row, column] += size
            atoms = bulk("Al", a=a)
            atoms.set_cell(atoms.cell.array @ (0.5 * (strain + strain.T)), scale_atoms=True)
            slopes.append(at(atoms).get_stress()[read])
        found[name] = float(slopes[1] - slopes[0]) / 0.01 / units.GPa
    vacancy = bulk("Al", a=a, cubic=True) * (2, 2, 2)
    del vacancy[0]
    found["vacancy"] = relaxed(vacancy) - 31 * per_atom
    for name, build, layers in (("111", fcc111, 6), ("100", fcc100, 7), ("110", fcc110, 9)):
        slab = build("Al", (1, 1, layers), a=a, vacuum=6.0, periodic=True)
        area = 2.0 * np.linalg.norm(np.cross(slab.cell[0], slab.cell[1]))
        found[f"surface {name}"] = (relaxed(slab) - layers * per_atom) / area / (units.J / units.m**2)
    stack = fcc111("Al", (1, 1, 9), a=a, periodic=True)
    stack.set_cell([*stack.cell.array[:2], [0, 0, 9 * a / np.sqrt(3.0)]])
    area = float(np.linalg.norm(np.cross(stack.cell[0], stack.cell[1])))
    stack.set_cell([*stack.cell.array[:2], stack.cell.array[2] + (stack.cell.array[0] + stack.cell.array[1]) / 3.0])
    fault = float(at(stack).get_potential_energy()) - 9 * per_atom
    found["fault"] = 1000.0 * fault / area / (units.J / units.m**2)
    return found


# The runs


def committee(
    frames: Frames, folder: Path, seed: int, student: dict[str, Any] = STUDENT, steps: int = STEPS
) -> list[Potential]:
    """Models of the frames, each with its own seed and part held out; those of an earlier call if they are there."""
    folder.mkdir(parents=True, exist_ok=True)
    members = []
    for k in range(MEMBERS):
        if not (folder / f"{k}" / "summary.json").is_file():
            write_frames([("train", frames)], folder / "train.extxyz", "labelled", "study")
            epochs = max(10, round(steps * BATCH_ATOMS / int(frames.counts.sum())))
            limits = {"max_force": 30.0, "check_units": "off"}
            config = load_config(
                {
                    **student,
                    "data": {"train": [str(folder / "train.extxyz")], "valid": 0.1, **limits},
                    "optimiser": {"epochs": epochs, "batch_atoms": BATCH_ATOMS},
                    "seed": 10 * seed + k,
                    "threads": 1,
                }
            )
            train(config, folder / f"{k}", overwrite=True)
        members.append(load_model(folder / f"{k}" / "best"))
    return members


def curve(case: Case, way: str, seed: int, test: Frames, done: dict[str, Any], save: Callable[[], None]) -> None:
    """One learning curve: labels, committee, errors, for each budget."""
    folder = case.runs / f"{way.replace(' ', '-')}-{seed}"
    fixed = FIXED[way](case, BUDGETS[-1], seed) if way in FIXED else []
    chosen = fixed or at_random(case, BUDGETS[0], seed)
    known: Frames | None = None
    members: list[Potential] = []
    for before, budget in pairwise((0, *BUDGETS)):
        started = time.perf_counter()
        if way not in FIXED and known is not None:
            chosen += harvest(members, budget - len(known), known, folder / f"{budget}", seed)
        sampled = time.perf_counter()
        new = case.ask(frames_of([("", atoms) for atoms in chosen[before:budget]], f"{way}-{budget}"))
        known = new if known is None else Frames.concatenate([known, new])
        labelled = time.perf_counter()
        members = committee(known, folder / f"{budget}", seed)
        point: dict[str, Any] = {"labels": len(known), "atoms": int(known.counts.sum())}
        point["seconds"] = {
            "sampling": round(sampled - started, 1),
            "labels": round(labelled - sampled, 1),
            "training": round(time.perf_counter() - labelled, 1),
        }
        if str(budget) not in done:
            point["groups"] = errors(Ensemble(members), test)
            if budget == BUDGETS[-1]:
                point["properties"] = properties(SNNPCalculator(Ensemble(members)), case.fcc)
            done[str(budget)] = point
            save()
        print(way, seed, budget, len(known), point["seconds"], flush=True)


def ani_al(runs: Path) -> Teacher:
    """ANI-Al as the labeller, as a model of ours in the folder of the runs."""
    from snnp.models.ani.import_neurochem import read_neurochem

    save_model(read_neurochem(Path(os.environ["SNNP_DATA"]) / "ani-al-weights"), runs / "ani-al")
    return Teacher.of([str(runs / "ani-al")])


def compute(teacher: Teacher, seeds: int, ways: Sequence[str], runs: Path, path: Path) -> None:
    """Every point that the JSON lacks."""
    torch.set_num_threads(1)
    result: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {"curves": {}}
    with Crew(teacher) as crew, LabelStore(runs / "labels", crew.identity) as store:

        def ask(frames: Frames) -> Frames:
            return label(frames, crew, store).frames

        def save() -> None:
            if path.is_file():  # points that another process has found meanwhile
                for way, runs_of in json.loads(path.read_text())["curves"].items():
                    for seed, points in runs_of.items():
                        own = result["curves"].setdefault(way, {}).setdefault(seed, {})
                        own |= {budget: point for budget, point in points.items() if budget not in own}
            result.update(
                provenance(("snnp", "torch", "numpy", "ase")), labeller=crew.identity.name.replace(f"{runs}/", "")
            )
            result["seconds_per_atom"] = store.seconds_per_atom()
            write_atomically(path, (json.dumps(result, indent=1) + "\n").encode())

        first = within_reach(ask(first_scan(["Al"])))
        case = Case(crystals_from_scan(ask(second_scan(first)), first), ask, runs)
        if "diamond" not in case.crystals:  # beyond the volumes of the scan
            sizes = np.linspace(5.6, 6.6, 6)
            cells = ask(frames_of([("", bulk("Al", "diamond", a=a, cubic=True)) for a in sizes], "diamond"))
            a = float(sizes[int(np.argmin(cells.energy))])
            energy = float(cells.energy.min()) / 8
            case.crystals["diamond"] = Crystal("diamond Al", bulk("Al", "diamond", a=a, cubic=True), energy, 1.0)
        result["crystals"] = {each.lattice: [each.volume, each.energy] for each in case.crystals.values()}
        if not (runs / "test.extxyz").is_file():
            write_frames([("test", tests(case))], runs / "test.extxyz", "", "study")
        images = read_images(runs / "test.extxyz")
        test = ask(frames_of([(str(each.info["config_type"]), each) for each in images], "test"))
        result["test"] = {name: sum(group == name for group in test.groups) for name in GROUPS}
        if "labeller_properties" not in result:
            result["labeller_properties"] = properties(Labelled(ask), case.fcc)
            save()
        print("test", result["test"], result["labeller_properties"], flush=True)
        for seed in range(seeds):
            for way in ways:
                done = result["curves"].setdefault(way, {}).setdefault(str(seed), {})
                if len(done) < len(BUDGETS):
                    curve(case, way, seed, test, done, save)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default=shutil.which("python"), help="interpreter that has SevenNet")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--ways", nargs="+", choices=("active", *FIXED), default=("active", *FIXED))
    parser.add_argument("--runs", type=Path, default=RUNS, help="a folder for each process, where there are several")
    parser.add_argument("--ani", action="store_true", help="one seed of active learning with ANI-Al as the labeller")
    parser.add_argument("--tables", action="store_true", help="picture and tables from the JSON, compute nothing")
    asked = parser.parse_args()
    asked.runs.mkdir(parents=True, exist_ok=True)
    ani_json = STUDY.with_name(f"{STUDY.name}_ani.json")
    if asked.ani:
        compute(ani_al(asked.runs), 1, ("active",), asked.runs, ani_json)
    elif not asked.tables:
        name, kwargs = "sevenn.calculator:SevenNetCalculator", {"model": "7net-l3i5"}
        teacher = Teacher.of([name], python=asked.python, kwargs=kwargs)
        compute(teacher, asked.seeds, asked.ways, asked.runs, STUDY.with_suffix(".json"))
    result, other = (json.loads(path.read_text()) for path in (STUDY.with_suffix(".json"), ani_json))
    draw(result, STUDY.with_suffix(".png"))
    tables = {"errors": errors_table, "properties": properties_table, "cost": cost_table}
    written = {name: table(result) for name, table in tables.items()}
    between_marks(STUDY.with_suffix(".md"), {**written, "ani": ani_table(result, other)})


if __name__ == "__main__":
    main()
