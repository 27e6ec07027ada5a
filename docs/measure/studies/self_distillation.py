"""Several equal models into one: what their mean knows better, and how much of it one model can hold.

python docs/measure/studies/self_distillation.py --recipe model_zoo/snnp-si/recipe.yaml    # what is missing, table

Members are the recipe trained with seeds 1, 2, ...; students are distilled from all of them by `snnp distill` with
method self and seeds 0, 1, ... Both are held against the test data of the recipe once, when all are trained.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pages import between_marks, save, written

from snnp.data import Frames, read_frames
from snnp.models import load_model
from snnp.models.ensemble import Ensemble
from snnp.models.potential import Potential
from snnp.training import evaluate

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "model_zoo"))
import several

STUDY = Path(__file__).resolve().parents[2] / "studies" / Path(__file__).stem
RUNS = STUDY.parents[2] / "runs" / "self"

Errors = tuple[float, float]
"""MAE of energy (meV/atom) and force (eV/Å)."""


def errors(model: Potential, frames: Frames) -> Errors:
    """Of energy (meV/atom) and force (eV/Å), on average."""
    total = evaluate(model, frames, model_name="", data_name="").total.to_dict()
    return total["energy_mae_mev_per_atom"], total["force_mae_ev_per_angstrom"]


def measure(recipe: dict[str, Any], teachers: Sequence[Path], pupils: Sequence[Path]) -> dict[str, list[Errors]]:
    """Errors on the test data of the recipe, of all models alone and of the members' mean."""
    frames = Frames.of(read_frames([os.path.expandvars(recipe["data"]["test"])]))
    alone, learned = ([load_model(folder / "best") for folder in folders] for folders in (teachers, pupils))
    return {
        "one member": [errors(model, frames) for model in alone],
        "mean of all members": [errors(Ensemble(alone), frames)],
        "one student": [errors(model, frames) for model in learned],
    }


def table(found: dict[str, Any]) -> str:
    """Markdown: mean and standard deviation over seeds, of every set."""
    lines = ["| | seeds | energy MAE (meV/atom) | force MAE (eV/Å) |", "|---|--:|--:|--:|"]
    for name, rows in found["results"].items():
        lines.append(f"| **{name}** | | | |")
        for label, values in rows.items():
            mean, spread = np.mean(values, axis=0), np.std(values, axis=0, ddof=1) if len(values) > 1 else (None, None)
            cells = [
                f"{value:.{digits}f}" + ("" if sigma is None else f" ± {sigma:.{digits}f}")
                for value, sigma, digits in zip(mean, spread, (2, 4), strict=True)
            ]
            lines.append(f"| {label} | {len(values)} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", written(found)])


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", type=Path, required=True, help="with the key self (model_zoo/several.py)")
    parser.add_argument("--students", type=int, default=3)
    parser.add_argument("--runs", type=Path, default=RUNS)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    recipe, name = several.recipe_of(asked.recipe.parent), asked.recipe.parent.name
    tell = partial(print, flush=True)
    teachers = several.train_members(recipe, asked.runs / name, tell)
    pupils = [
        several.student_of(recipe, teachers, asked.runs / name / f"student-{seed}", tell, seed)
        for seed in range(asked.students)
    ]
    path = STUDY.with_suffix(".json")
    found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"results": {}}
    found["results"][name] = measure(recipe, teachers, pupils)
    save(path, found, ("snnp", "torch", "numpy"))
    between_marks(STUDY.with_suffix(".md"), {"table": table(found)})


if __name__ == "__main__":
    main()
