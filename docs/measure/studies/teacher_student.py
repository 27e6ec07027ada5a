"""Students of silicon with and without a teacher's atomic energies, on the labels of DFT and on those of the teacher.

python docs/measure/studies/teacher_student.py          # train what is missing, then tables
python docs/measure/studies/teacher_student.py --plot   # tables from docs/studies/teacher_student.json

The settings are in docs/studies/teacher_student.yaml. Weights of atomic energies are chosen on held-out parts of the
training file; the test file is looked at once, by the students of those weights. What is finished is not trained again.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from pages import between_marks, provenance, written

from snnp import load_model
from snnp.data import Frames, read_frames, split_frames
from snnp.data.write import parquet_writer
from snnp.files import write_atomically
from snnp.report import fixed
from snnp.training import evaluate, load_config, resume, train

STUDY = Path(__file__).resolve().parents[2] / "studies" / Path(__file__).stem
RUNS = STUDY.parents[2] / "runs" / "teacher_student"
PACKAGES = ("snnp", "torch", "numpy")
LABELS = {"dft": "DFT", "teacher": "teacher"}
ERRORS = ("energy_mae_mev_per_atom", "force_mae_ev_per_angstrom", "atomic_energy_mae_mev")

Found = dict[str, Any]


class Study:
    """Settings, data, what was found, and where it is kept."""

    def __init__(self, runs: Path) -> None:
        self.settings = yaml.safe_load(STUDY.with_suffix(".yaml").read_text())
        self.runs = runs
        path = STUDY.with_suffix(".json")
        self.found: Found = json.loads(path.read_text()) if path.exists() else {"runs": {}}
        self.teacher = load_model(self.settings["teacher"])

    def save(self) -> None:
        """Write docs/studies/teacher_student.json."""
        self.found |= {"command": "python docs/measure/studies/teacher_student.py", **provenance(PACKAGES)}
        write_atomically(STUDY.with_suffix(".json"), (json.dumps(self.found, indent=1) + "\n").encode())

    def frames(self, name: str) -> Frames:
        """The file of that name with labels of DFT, and the atomic energies of the teacher."""
        frames = Frames.of(read_frames(os.path.expandvars(self.settings[name])))
        said = self.teacher.compute(frames.structure(), stress=True)
        known = np.ones(len(frames), dtype=bool)
        return replace(frames, energies=said.energies.double().numpy(), has_energies=known)

    def of_teacher(self, frames: Frames) -> Frames:
        """The same frames with energies and forces of the teacher."""
        said = self.teacher.compute(frames.structure())
        assert said.forces is not None
        return replace(frames, energy=said.energy.double().numpy(), forces=said.forces.double().numpy())

    def student(self, stage: str, size: str, labels: str, weight: float, seed: int, parts: Sequence[Frames]) -> Found:
        """Errors against DFT on the second of the `parts` of a student that learned the first; trained where new."""
        name = f"{stage}-{size.replace('/', '-')}-{labels}-{weight:g}-{seed}"
        if name in self.found["runs"]:
            return self.found["runs"][name]
        learned = parts[0] if labels == "dft" else self.of_teacher(parts[0])
        folder = self.runs / name
        folder.parent.mkdir(parents=True, exist_ok=True)
        with parquet_writer(self.runs / f"{name}.parquet", labels, "snnp") as writer:
            writer.add(learned, "train")
        radial, angular, width = self.settings["students"][size]
        recipe = json.loads(json.dumps(self.settings["recipe"]))
        recipe["model"]["radial"]["n_filters"], recipe["model"]["angular"]["n_filters"] = radial, angular
        recipe["model"]["network"] = {"hidden": [width]}
        recipe["loss"]["atomic_energy_weight"] = weight
        recipe["optimiser"]["epochs"] = self.settings["epochs"]
        recipe |= {"data": {"train": [f"{self.runs / name}.parquet:train"], "valid": 0.05}, "seed": seed}
        began = time.process_time()
        made = resume(folder) if (folder / "config.yaml").exists() else train(load_config(recipe), folder)
        errors = evaluate(made.model, parts[1]).to_dict()
        self.found["runs"][name] = {
            **{"stage": stage, "size": size, "labels": labels, "weight": weight, "seed": seed},
            **{"n_parameters": made.model.n_parameters, "cpu_seconds": round(time.process_time() - began, 1)},
            **{key: errors[key] for key in ERRORS},
        }
        self.save()
        print(name, self.found["runs"][name], flush=True)
        return self.found["runs"][name]

    def chosen(self) -> float:
        """The weight of atomic energies with the lowest mean force error on held-out parts."""
        set_, whole, score = self.settings, self.frames("train"), {}
        for weight in set_["weights"]:
            rows = []
            for seed in set_["seeds"]:
                split = split_frames(whole, valid=0.0, test=set_["held_out"], seed=seed)
                parts = (Frames.of(split.train), Frames.of(split.test))
                rows.append(self.student("chosen", set_["chosen_at"], "dft", weight, seed, parts))
            score[weight] = statistics.mean(row["force_mae_ev_per_angstrom"] for row in rows)
        return min((weight for weight in score if weight > 0.0), key=score.__getitem__)

    def run(self) -> None:
        """All that is missing."""
        torch.set_num_threads(1)
        best = self.chosen()
        parts = (self.frames("train"), self.frames("test"))
        errors = evaluate(self.teacher, parts[1]).to_dict()
        self.found["teacher"] = {"n_parameters": self.teacher.n_parameters, **{key: errors[key] for key in ERRORS}}
        self.found["weight"] = best
        for labels, sizes in self.settings["learned"].items():
            for size, weight, seed in product(sizes, (0.0, best), self.settings["seeds"]):
                self.student("final", size, labels, weight, seed, parts)
        self.save()


def spread(rows: Sequence[Found], key: str, digits: int) -> str:
    """Mean and standard deviation over the seeds; of a single one no deviation."""
    values = [row[key] for row in rows]
    mean = fixed(statistics.mean(values), digits)
    return f"{mean} ± {fixed(statistics.stdev(values), digits)}" if len(values) > 1 else f"{mean} (one seed)"


def table(found: Found, stage: str, heading: Callable[[Found], str]) -> str:
    """Markdown: one row for each student, with mean and spread over the seeds.

    Seeds differ more than students do, so each force error is also divided by that of the same seed without a teacher.
    """
    lines = [
        "| student | labels | weight | energy MAE (meV/atom) | force MAE (eV/Å) | force MAE over that of weight 0 | "
        "atomic energies: MAE to the teacher's (meV) | CPU s |",
        "|---|---|--:|--:|--:|--:|--:|--:|",
    ]
    groups: dict[tuple[Any, ...], list[Found]] = {}
    for row in found["runs"].values():
        if row["stage"] == stage:
            groups.setdefault((row["size"], row["labels"], row["weight"]), []).append(row)
    for (size, labels, weight), rows in groups.items():
        plain = {row["seed"]: row[ERRORS[1]] for row in groups.get((size, labels, 0.0), [])}
        ratios = [{"ratio": row[ERRORS[1]] / plain[row["seed"]]} for row in rows if row["seed"] in plain]
        cells = [
            heading(rows[0]),
            LABELS[labels],
            f"{weight:g}",
            spread(rows, ERRORS[0], 2),
            spread(rows, ERRORS[1], 4),
        ]
        cells += [spread(ratios, "ratio", 3) if weight and ratios else "", spread(rows, ERRORS[2], 1)]
        lines.append(f"| {' | '.join(cells)} | {statistics.mean(row['cpu_seconds'] for row in rows):.0f} |")
    return "\n".join(lines)


def write_page(found: Found) -> None:
    """Both tables between their marks in docs/studies/teacher_student.md."""
    origin = written(found, f"`{found['command']}`")
    teacher = "The teacher itself: {} meV/atom, {} eV/Å.".format(
        *(fixed(found["teacher"][key], digits) for key, digits in zip(ERRORS, (2, 4), strict=False))
    )

    def heading(row: Found) -> str:
        return f"{row['size']} ({row['n_parameters']:,} parameters)"

    tables = {"held-out": table(found, "chosen", heading), "test": f"{table(found, 'final', heading)}\n\n{teacher}"}
    between_marks(STUDY.with_suffix(".md"), {name: f"{content}\n\n{origin}" for name, content in tables.items()})


def main() -> None:
    """Run what is missing, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--plot", action="store_true", help="only write the tables from the JSON")
    parser.add_argument("--runs", type=Path, default=RUNS, help="folder of the training runs")
    arguments = parser.parse_args()
    study = Study(arguments.runs)
    if not arguments.plot:
        study.run()
    write_page(study.found)


if __name__ == "__main__":
    main()
