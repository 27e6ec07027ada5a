"""Ethanol by GFN2-xTB: labels until a student is right and stable, by active learning and by random conformers.

python docs/measure/studies/active_molecule.py --python envs/tblite/bin/python    # what is missing, tables
python docs/measure/studies/active_molecule.py --tables                           # tables from the JSON

Committees of the same numbers of labels are held against frames of the labeller's dynamics at 500 K, and one of each
committee's members runs for 100 ps there. Labels are kept in the folder of the runs, finished points in the JSON.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from active_aluminium import Ask, Labelled, committee
from active_aluminium_page import said
from ase import Atoms, units
from ase.build import molecule
from ase.io import write
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import thermalize_momenta
from matplotlib.figure import Figure
from pages import averaged, between_marks, provenance

from snnp.active.placement import conformers
from snnp.active.trajectories import SamplingSettings, sample
from snnp.analysis.stability import watch_run
from snnp.data import Frames
from snnp.distillation.crystals import frames_of
from snnp.distillation.label_store import Crew, LabelStore, label
from snnp.distillation.teachers import Teacher
from snnp.files import write_atomically
from snnp.models import Ensemble, Potential
from snnp.sampling import MDSettings
from snnp.sampling.embedded import run_md
from snnp.structure import Structure
from snnp.units import KCAL_PER_MOL_IN_EV

STUDY = Path(__file__).resolve().parents[2] / "studies" / Path(__file__).stem
RUNS = STUDY.parents[2] / "runs" / "active_molecule"
MOLECULE, KELVIN, BUDGETS, STEPS = "CH3CH2OH", 500.0, (30, 60, 120), 500
WAYS = ("active", "random conformers")
STUDENT: dict[str, Any] = {
    "model": {
        "radial": {"n_filters": 12, "cutoff": 4.5},
        "angular": {"n_filters": 12, "cutoff": 4.5, "degree": 4},
        "network": {"hidden": [24, 24]},
    },
    "loss": {"energy_weight": 30.0, "energy_weight_end": 300.0},
    "validate_every": 10,
}


def conformations(number: int, seed: int, runs: Path) -> list[Atoms]:
    """The molecule turned about its bonds and displaced, at up to 600 K of a spring network."""
    path = runs / "molecule.xyz"
    write(path, molecule(MOLECULE))
    found: list[Atoms] = []
    while len(found) < number:
        found += conformers([str(path)], number, 100 * seed + len(found))
    return found[:number]


def tests(ask: Ask) -> Frames:
    """Frames of the labeller's own dynamics at 500 K."""
    atoms, rng = molecule(MOLECULE), np.random.default_rng(500)
    atoms.calc = Labelled(ask)
    thermalize_momenta(atoms, KELVIN, rng=rng)
    dynamics = Langevin(atoms, 0.5 * units.fs, temperature_K=KELVIN, friction=0.02 / units.fs, rng=rng)
    dynamics.run(400)
    images: list[tuple[str, Atoms]] = []
    for _ in range(100):
        dynamics.run(60)
        images.append(("500 K", Atoms(atoms.numbers, atoms.positions)))
    return ask(frames_of(images, "test"))


def harvest(
    members: Sequence[Potential], number: int, known: Frames, folder: Path, seed: int, runs: Path
) -> list[Atoms]:
    """What the committee disagrees about, from conformers; where that is too little, with limits that are halved."""
    found: list[Atoms] = []
    for k in range(5):
        limits = {
            "energy_limit": 0.01 * 0.5**k,
            "give_up": 4.0,
            "force_limit": 0.2 * 0.5**k,
            "largest_force_limit": 0.6 * 0.5**k,
        }
        how = SamplingSettings(
            system="molecule", trajectories=64, together=64, picoseconds=3.0, most_frames=number - len(found), **limits
        )
        starts = conformations(64, 50 + 10 * seed + k, runs)
        found += sample(members, how, starts, folder / f"sample-{k}", 1000 * seed + k, known=known).frames
        if len(found) >= number:
            break
    return [Atoms(each.numbers, each.positions) for each in found]


def errors(model: Potential, frames: Frames) -> dict[str, float]:
    """MAE of energies (kcal/mol, of the molecule) and of forces (kcal/mol/Å)."""
    found = model.compute(Structure.from_ase(list(frames.structure().to_ase())))
    assert found.forces is not None
    energy = np.abs(found.energy.double().numpy() - frames.energy).mean()
    force = np.abs(found.forces.double().numpy() - frames.forces).mean()
    return {"energy": float(energy / KCAL_PER_MOL_IN_EV), "force": float(force / KCAL_PER_MOL_IN_EV)}


def stable(model: Potential, seed: int) -> dict[str, Any]:
    """How long the molecule holds together at 500 K, of 100 ps, and how the run ended if it did earlier."""
    how = MDSettings(
        temperature_k=KELVIN, friction_per_ps=2.0, dt_fs=0.5, steps=200_000, seed=seed, log_interval=1000,
        trajectory_interval=1000,
    )  # fmt: skip
    run, _ = watch_run(model, molecule(MOLECULE), how, run_md)
    return {"picoseconds": run.picoseconds, "failure": run.failure}


def curve(
    way: str, seed: int, ask: Ask, test: Frames, runs: Path, curves: dict[str, Any], save: Callable[[], None]
) -> None:
    """One learning curve; both ways begin with the same frames, and so with the same committee."""
    done = curves.setdefault(way, {}).setdefault(str(seed), {})
    chosen = conformations(BUDGETS[-1] if way != "active" else BUDGETS[0], seed, runs)
    known: Frames | None = None
    members: list[Potential] = []
    for before, budget in pairwise((0, *BUDGETS)):
        started = time.perf_counter()
        folder = runs / f"{way.replace(' ', '-')}-{seed}" / f"{budget}" if known is not None else runs / f"start-{seed}"
        if way == "active" and known is not None:
            chosen += harvest(members, budget - len(known), known, folder, seed, runs)
        new = ask(frames_of([("", atoms) for atoms in chosen[before:budget]], f"{way}-{budget}"))
        first = known is None
        known = new if known is None else Frames.concatenate([known, new])
        members = committee(known, folder, seed, STUDENT, STEPS)
        other = next(
            (runs_of[str(seed)] for runs_of in curves.values() if str(budget) in runs_of.get(str(seed), {})), {}
        )
        if first and other:
            done.setdefault(str(budget), other[str(budget)])
        if str(budget) not in done:
            point = {"labels": len(known), **errors(Ensemble(members), test), "run": stable(members[0], seed)}
            done[str(budget)] = {**point, "seconds": round(time.perf_counter() - started, 1)}
        save()
        print(way, seed, budget, done[str(budget)], flush=True)


def compute(python: str, seeds: int, runs: Path) -> None:
    """Every point that the JSON lacks."""
    torch.set_num_threads(1)
    path = STUDY.with_suffix(".json")
    result: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {"curves": {}}
    runs.mkdir(parents=True, exist_ok=True)
    teacher = Teacher.of(["tblite.ase:TBLite"], python=python, kwargs={"method": "GFN2-xTB", "verbosity": 0})
    with Crew(teacher) as crew, LabelStore(runs / "labels", crew.identity) as store:

        def ask(frames: Frames) -> Frames:
            return label(frames, crew, store).frames

        def save() -> None:
            result.update(provenance(("snnp", "torch", "numpy", "ase")), labeller=crew.identity.name)
            result["seconds_per_label"] = 9 * (store.seconds_per_atom() or 0.0)
            write_atomically(path, (json.dumps(result, indent=1) + "\n").encode())

        test = tests(ask)
        result["test"] = {
            "frames": len(test),
            "spread_of_energy": float(np.std(test.energy) / KCAL_PER_MOL_IN_EV),
            "mean_force": float(np.abs(test.forces).mean() / KCAL_PER_MOL_IN_EV),
        }
        print(result["test"], flush=True)
        for seed in range(seeds):
            for way in WAYS:
                if len(result["curves"].get(way, {}).get(str(seed), {})) < len(BUDGETS):
                    curve(way, seed, ask, test, runs, result["curves"], save)


def points(result: dict[str, Any], way: str, budget: int) -> list[dict[str, Any]]:
    """One for each seed."""
    return [run[str(budget)] for run in result["curves"].get(way, {}).values() if str(budget) in run]


def table(result: dict[str, Any]) -> str:
    """Markdown."""
    lines = [
        "| | labels | seeds | energy MAE, kcal/mol | force MAE, kcal/mol/Å | held for 100 ps at 500 K |",
        "|---|--:|--:|--:|--:|---|",
    ]
    for way in WAYS:
        for budget in BUDGETS:
            if found := points(result, way, budget):
                held = sum(each["run"]["failure"] is None for each in found)
                values = [averaged([each[name] for each in found], 2) for name in ("energy", "force")]
                lines.append(f"| {way} | {budget} | {len(found)} | {' | '.join(values)} | {held} of {len(found)} |")
    return "\n".join([*lines, "", said(result, "active_molecule.py")])


def draw(result: dict[str, Any], path: Path) -> None:
    """Errors and lengths of runs against labels; a dot for each seed (or run), lines through their means."""
    figure = Figure(figsize=(11.0, 3.8), layout="constrained")
    panels = figure.subplots(1, 3)
    kinds = ("energy", "force", "picoseconds")
    labels = ("energy MAE (kcal/mol)", "force MAE (kcal/mol/Å)", "held at 500 K (ps, of 100)")
    for panel, kind, label_of in zip(panels, kinds, labels, strict=True):
        for way, colour, shift in zip(WAYS, ("#d1603d", "#8a97a3"), (0.97, 1.03), strict=True):
            means = []
            for budget in BUDGETS:
                found = points(result, way, budget)
                each = [{**point, **point["run"]}[kind] for point in found]
                means.append(float(np.mean(each)))
                panel.plot([budget * shift] * len(each), each, ls="", marker="o", ms=4, color=colour, alpha=0.5)
            panel.plot([b * shift for b in BUDGETS], means, color=colour, lw=2, marker="o", ms=5, label=way)
        panel.set(xscale="log", xticks=BUDGETS, xticklabels=list(map(str, BUDGETS)), xlabel="labels", ylabel=label_of)
        panel.minorticks_off()
        panel.set_ylim(bottom=0.0)
        for side in ("top", "right"):
            panel.spines[side].set_visible(False)
    panels[0].axhline(1.0, color="0.5", lw=0.8, ls="--")
    panels[0].legend(frameon=False)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default=shutil.which("python"), help="interpreter that has tblite")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--runs", type=Path, default=RUNS)
    parser.add_argument("--tables", action="store_true", help="tables from the JSON, compute nothing")
    asked = parser.parse_args()
    if not asked.tables:
        compute(asked.python, asked.seeds, asked.runs)
    result = json.loads(STUDY.with_suffix(".json").read_text())
    between_marks(STUDY.with_suffix(".md"), {"table": table(result)})
    draw(result, STUDY.with_suffix(".png"))


if __name__ == "__main__":
    main()
