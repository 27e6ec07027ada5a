"""What heads on shared filters cost, and what their spread is worth: numbers and picture of `docs/uncertainty.md`.

python docs/measure/studies/uncertainty.py                 # heads of snnp-si (minutes), then tables and picture
python docs/measure/studies/uncertainty.py --runs FOLDER   # where the heads are, or are to be

Heads learn a fifth less than the training frames of mlearn's silicon, which calibrates them; its test frames are looked
at once (SNNP_DATA). A timing is the best of several calls, taken in turn, of one thread with its neighbour list kept.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
import yaml
from ase import Atoms
from ase.build import bulk
from pages import between_marks, provenance

from snnp.data import read_frames
from snnp.models import Ensemble, load_model
from snnp.models.session import Session
from snnp.models.spline.model import SplineNNP
from snnp.training import load_config
from snnp.training.evaluation import evaluate
from snnp.uncertainty import Committee
from snnp.uncertainty.bootstrap import HIDDEN, N_HEADS, new_head, train_heads
from snnp.uncertainty.calibration import KEY, held_out_errors, judged
from snnp.uncertainty.statements import plot_coverage

DOCS = Path(__file__).resolve().parents[2]
SYSTEMS = {
    "snnp-si": (bulk("Si", cubic=True), 4),
    "snnp-al": (bulk("Al", cubic=True), 5),
    "snnp-cu": (bulk("Cu", cubic=True), 5),
}
EPOCHS, REPEATS = 60, 40


def shaken(cell: Atoms, times: int) -> Atoms:
    """A supercell, displaced by 0.1 Å."""
    atoms = cell.repeat(times)
    atoms.positions += 0.1 * np.random.default_rng(0).standard_normal(atoms.positions.shape)
    return atoms


def best_of_each(calls: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Seconds of CPU time, the least of several, one after the other in turn."""
    best = dict.fromkeys(calls, np.inf)
    for _ in range(REPEATS):
        for name, call in calls.items():
            begin = time.process_time()
            call()
            best[name] = min(best[name], time.process_time() - begin)
    return best


def costs() -> str:
    """The bundled model beside eight heads on its filters; what a readout has learned changes no time."""
    lines = ["| µs per atom and step | one model | 8 heads: energies of all, mean forces | and forces of every head |"]
    lines.append("|---|---|---|---|")
    for name, (cell, times) in SYSTEMS.items():
        model, atoms = load_model(name), shaken(cell, times)
        start = load_model(name, dtype="float64")
        assert isinstance(start, SplineNNP)
        heads = Ensemble([new_head(start, HIDDEN, seed).to(torch.float32) for seed in range(N_HEADS)])
        committee, session = Committee(heads), Session(model)
        system = (atoms.numbers.astype(np.int64), atoms.positions, atoms.cell.array, atoms.pbc)
        found = best_of_each(
            {
                "one": partial(session.evaluate, *system),
                "mean": partial(committee.evaluate, *system, force_spread=False),
                "each": partial(committee.evaluate, *system),
            }
        )
        one, mean, each = (1e6 * found[key] / len(atoms) for key in ("one", "mean", "each"))
        cells = (f"{one:.2f}", f"{mean:.2f} ({mean / one:.2f} times)", f"{each:.1f} ({each / one:.1f} times)")
        lines.append(f"| {name}, {len(atoms)} atoms | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def heads_of_silicon(runs: Path) -> Ensemble:
    """Trained where they are not, and calibrated."""
    recipe = yaml.safe_load((DOCS.parent / "model_zoo" / "snnp-si" / "recipe.yaml").read_text())
    for key in ("model", "self"):
        recipe.pop(key, None)
    recipe["data"] = {"train": recipe["data"]["train"], "valid": 0.2}
    recipe |= {"start": "snnp-si", "freeze": "filters"}
    return train_heads(load_config(recipe, [f"optimiser.epochs={EPOCHS}"]), runs, say=print)


def worth(runs: Path) -> str:
    """Errors and honesty on held-out and on test frames; draws the picture."""
    heads = heads_of_silicon(runs)
    test = read_frames([Path(os.environ["SNNP_DATA"]) / "mlearn" / "Si_test.xyz"])
    held = heads.metadata[KEY]
    names = ("forces", "energy")
    seen = dict(zip(names, (np.concatenate(each, axis=1) for each in held_out_errors(heads, test)), strict=True))
    tested = {name: judged(held[name]["scale"], seen[name]) for name in names}
    both = {name: (held[name], vars(tested[name])) for name in names}
    lines = [
        "| silicon | scale | area before | after | 50 % hold | 90 % hold | rank correlation | RMS error | errors |"
    ]
    lines.append("|---|" + "--:|" * 8)
    for name, unit in (("forces", "eV/Å"), ("energy", "eV/atom")):
        for where, found in zip(("held-out frames, other half", "test frames"), both[name], strict=True):
            numbers = (found["scale"], found["raw_area"], found["area"], found["coverage"][9], found["coverage"][17])
            cells = ("{:.1f}|{:.2f}|{:.2f}|{:.0%}|{:.0%}".format(*numbers)).split("|")
            cells += [f"{found['rank_correlation']:.2f}", f"{found['rmse']:.3g} {unit}", f"{found['n']:,}"]
            lines.append(f"| {name}, {where} | " + " | ".join(cells) + " |")
    errors = []
    for model in (heads, load_model("snnp-si")):
        total = evaluate(model, test, model_name="", data_name="").total.to_dict()
        errors.append("{energy_mae_mev_per_atom:.1f} meV/atom and {force_mae_ev_per_angstrom:.3f} eV/Å".format(**total))
    sets = [("Held-out frames, other half", held), ("Test frames, never used", {"forces": both["forces"][1]})]
    plot_coverage(DOCS / "_static" / "uncertainty-coverage.png", sets)
    lines += ["", f"Test errors (MAE) of the mean: {errors[0]}; of the bundled model: {errors[1]}."]
    return "\n".join(lines)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=DOCS.parent / "runs" / "uncertainty")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    about = provenance(("snnp", "torch", "numpy"))
    versions = ", ".join(f"{name} {number}" for name, number in about["versions"].items())
    said = f"`python docs/measure/studies/uncertainty.py`, {about['date']}; {about['machine']}; {versions}."
    between_marks(DOCS / "uncertainty.md", {"costs": f"{costs()}\n\n{said}", "worth": f"{worth(asked.runs)}\n\n{said}"})


if __name__ == "__main__":
    main()
