"""Students with and without a teacher's atomic energies, on the labels of DFT and on those of the teacher.

python docs/measure/studies/teacher_student.py          # train what is missing, then tables
python docs/measure/studies/teacher_student.py --plot   # tables from docs/studies/teacher_student.json

The settings are in docs/studies/teacher_student.yaml. Of silicon, weights of atomic energies are chosen on held-out
parts of the training file; the test file is looked at once, by the students of those weights. Of acetylacetone every
weight is shown on parts of the training file that neither teacher nor students learned, and test files are not opened.
What is finished is not trained again.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from families import measure
from pages import between_marks, provenance, written

from snnp import load_model
from snnp.data import Frames, read_frames, split_frames
from snnp.data.write import parquet_writer
from snnp.files import write_atomically
from snnp.models.potential import Potential
from snnp.report import fixed
from snnp.structure import Structure
from snnp.training import evaluate, load_config, resume, train

STUDY = Path(__file__).resolve().parents[2] / "studies" / Path(__file__).stem
RUNS = STUDY.parents[2] / "runs" / "teacher_student"
PACKAGES = ("snnp", "torch", "numpy")
LABELS = {"dft": "DFT", "teacher": "teacher"}
ERRORS = ("energy_mae_mev_per_atom", "force_mae_ev_per_angstrom", "atomic_energy_mae_mev")

Found = dict[str, Any]


class Study:
    """One set: its settings, its data, what was found, and where it is kept."""

    def __init__(self, name: str, runs: Path) -> None:
        read = yaml.safe_load(STUDY.with_suffix(".yaml").read_text())
        self.name, self.runs = name, runs / name
        self.settings: Found = {"held_out": read["held_out"], "seeds": read["seeds"], **read["sets"][name]}
        self.found: Found = _found().get(name, {"runs": {}})

    def save(self) -> None:
        """Write docs/studies/teacher_student.json."""
        content = {**_found(), self.name: self.found}
        write_atomically(STUDY.with_suffix(".json"), (json.dumps(content, indent=1) + "\n").encode())

    def frames(self, name: str) -> Frames:
        """The file of that name with labels of DFT."""
        return Frames.of(read_frames(os.path.expandvars(self.settings[name])))

    def parts(self, seed: int) -> tuple[Frames, Frames]:
        """What is learned of the training file and what is held out, drawn by the seed."""
        split = split_frames(self.frames("train"), valid=0.0, test=self.settings["held_out"], seed=seed)
        return Frames.of(split.train), Frames.of(split.test)

    def teacher(self, seed: int) -> Potential:
        """The bundled model, or one that learned what students of that seed learn; trained where new."""
        asked = self.settings["teacher"]
        if isinstance(asked, str):
            return load_model(asked)
        name, parts = f"teacher-{seed}", self.parts(seed)
        if name in self.found["runs"] and (self.runs / name / "best").exists():
            return load_model(self.runs / name / "best")
        model, about = self.learn(name, {**asked, "seed": seed}, parts[0])
        row = {"stage": "blind", "size": "teacher", "labels": "dft", "weight": 0.0, "seed": seed, **about}
        self.keep(name, row, model, parts[1])
        return model

    def learn(self, name: str, recipe: Found, frames: Frames) -> tuple[Potential, Found]:
        """Train (or finish) a model on the frames; its size and the CPU seconds spent."""
        folder, data = self.runs / name, self.runs / f"{name}.parquet"
        folder.parent.mkdir(parents=True, exist_ok=True)
        with parquet_writer(data, name, "snnp") as writer:
            writer.add(frames, "train")
        config = {**recipe, "data": {**recipe.get("data", {}), "train": [f"{data}:train"], "valid": 0.05}}
        began = time.process_time()
        made = resume(folder) if (folder / "config.yaml").exists() else train(load_config(config), folder)
        seconds = round(time.process_time() - began, 1)
        return made.model, {"n_parameters": made.model.n_parameters, "cpu_seconds": seconds}

    def keep(self, name: str, row: Found, model: Potential, frames: Frames) -> Found:
        """Add errors on the frames and, where the set has one, on its hotter file, and save."""
        errors = evaluate(model, frames).to_dict()
        row |= {key: errors[key] for key in ERRORS if key in errors}
        if "outside" in self.settings:
            errors = evaluate(model, self.frames("outside")).to_dict()
            row["outside"] = {key: errors[key] for key in ERRORS[:2]}
        self.found["runs"][name] = row
        self.found |= {"command": "python docs/measure/studies/teacher_student.py", **provenance(PACKAGES)}
        self.save()
        print(self.name, name, row, flush=True)
        return row

    def student(
        self, stage: str, size: str, labels: str, weight: float, seed: int, parts: tuple[Frames, Frames]
    ) -> Found:
        """Errors against DFT on the second of the `parts` of a student that learned the first; trained where new."""
        name = f"{stage}-{size.replace('/', '-')}-{labels}-{weight:g}-{seed}"
        if name in self.found["runs"]:
            return self.found["runs"][name]
        teacher = self.teacher(seed)
        learned, kept = _taught(teacher, parts[0], of_dft=labels == "dft"), _taught(teacher, parts[1])
        recipe = json.loads(json.dumps(self.settings["recipe"]))
        radial, angular, width = self.settings["students"][size]
        recipe["model"]["radial"]["n_filters"], recipe["model"]["angular"]["n_filters"] = radial, angular
        recipe["model"]["network"] = {"hidden": [width]}
        recipe["loss"]["atomic_energy_weight"] = weight
        recipe["optimiser"]["epochs"] = self.settings["epochs"]
        model, about = self.learn(name, {**recipe, "seed": seed}, learned)
        row = {"stage": stage, "size": size, "labels": labels, "weight": weight, "seed": seed, **about}
        return self.keep(name, row, model, kept)

    def chosen(self) -> float:
        """The weight of atomic energies with the lowest mean force error on held-out parts."""
        set_, score = self.settings, {}
        for weight in set_["weights"]:
            rows = [
                self.student("chosen", set_["chosen_at"], "dft", weight, seed, self.parts(seed))
                for seed in set_["seeds"]
            ]
            score[weight] = statistics.mean(row["force_mae_ev_per_angstrom"] for row in rows)
        return min((weight for weight in score if weight > 0.0), key=score.__getitem__)

    def run(self) -> None:
        """All that is missing."""
        seeds = self.settings["seeds"]
        if "test" in self.settings:
            best = self.chosen()
            parts = (self.frames("train"), self.frames("test"))
            teacher = self.teacher(0)
            errors = evaluate(teacher, parts[1]).to_dict()
            self.found["teacher"] = {"n_parameters": teacher.n_parameters, **{key: errors[key] for key in ERRORS[:2]}}
            self.found["weight"] = best
            for labels, sizes in self.settings["learned"].items():
                for size, weight, seed in product(sizes, (0.0, best), seeds):
                    self.student("final", size, labels, weight, seed, parts)
        else:
            for about in self.settings["learned"]:
                for size, weight, seed in product(about["students"], about["weights"], seeds):
                    self.student("blind", size, about["labels"], weight, seed, self.parts(seed))
        self.costs()

    def costs(self) -> None:
        """CPU µs/atom of teacher and students, on about a thousand atoms; of those that are in the folder of runs."""
        models = {"teacher": load_model(self.settings["teacher"])} if "test" in self.settings else {}
        for name, row in self.found["runs"].items():
            if row["size"] not in models and (self.runs / name / "best").exists():
                models[row["size"]] = load_model(self.runs / name / "best")
        if models.keys() - self.found.get("us_per_atom", {}).keys():
            structure = self.frames("train")[0].structure
            copies = Structure.concatenate([structure] * max(1, round(1000 / structure.n_atoms)))
            self.found["us_per_atom"] = {size: round(each, 2) for size, each in measure(models, copies).items()}
            self.found["measured"] = provenance(())["date"]
        self.save()


def _found() -> Found:
    path = STUDY.with_suffix(".json")
    return json.loads(path.read_text()) if path.exists() else {}


def _taught(teacher: Potential, frames: Frames, of_dft: bool = True) -> Frames:
    """The same frames with the teacher's energies of atoms, and where they are not `of_dft` with all its labels."""
    said = teacher.compute(frames.structure())
    known = np.ones(len(frames), dtype=bool)
    frames = replace(frames, energies=said.energies.double().numpy(), has_energies=known)
    if of_dft:
        return frames
    assert said.forces is not None
    return replace(frames, energy=said.energy.double().numpy(), forces=said.forces.double().numpy())


def spread(rows: Sequence[Found], key: str, digits: int) -> str:
    """Mean and standard deviation over the seeds; of a single one no deviation, of none nothing."""
    values = [row[key] for row in rows if key in row]
    if not values:
        return ""
    mean = fixed(statistics.mean(values), digits)
    return f"{mean} ± {fixed(statistics.stdev(values), digits)}" if len(values) > 1 else f"{mean} (one seed)"


def table(found: Found, stage: str) -> str:
    """Markdown: one row for each student, with mean and spread over the seeds.

    Seeds differ more than students do, so each force error is also divided by that of the same seed without a teacher
    and, where there is a teacher for each seed, by that teacher's.
    """
    groups: dict[tuple[Any, ...], list[Found]] = {}
    for row in found["runs"].values():
        if row["stage"] == stage:
            groups.setdefault((row["size"], row["labels"], row["weight"]), []).append(row)
    lines = []
    for (size, labels, weight), rows in groups.items():
        plain = groups.get((size, labels, 0.0), []) if weight else []
        above = groups.get(("teacher", "dft", 0.0), []) if size != "teacher" else []
        cost = found.get("us_per_atom", {}).get(size)
        cells = {
            "student": f"{size} ({rows[0]['n_parameters']:,} parameters)",
            "labels": LABELS[labels],
            "weight": "" if size == "teacher" else f"{weight:g}",
            "energy MAE (meV/atom)": spread(rows, ERRORS[0], 2),
            "force MAE (eV/Å)": spread(rows, ERRORS[1], 4),
            "force MAE over that of weight 0": over(rows, plain),
            "force MAE over the teacher's": over(rows, above),
            "hotter: energy MAE": outside(rows, ERRORS[0], 2),
            "hotter: force MAE": outside(rows, ERRORS[1], 4),
            "atomic energies: MAE to the teacher's (meV)": spread(rows, ERRORS[2], 1),
            "µs/atom": f"{cost:.1f}" if cost else "",
            "CPU s": f"{statistics.mean(row['cpu_seconds'] for row in rows):.0f}",
        }
        lines.append(cells)
    shown = [key for key in lines[0] if any(cells[key] for cells in lines)]
    text = [f"| {' | '.join(shown)} |", "|---|---|" + "--:|" * (len(shown) - 2)]
    return "\n".join([*text, *(f"| {' | '.join(cells[key] for key in shown)} |" for cells in lines)])


def over(rows: Sequence[Found], others: Sequence[Found]) -> str:
    """Force errors of rows divided by those of others, seed by seed."""
    known = {row["seed"]: row[ERRORS[1]] for row in others}
    return spread([{"ratio": r[ERRORS[1]] / known[r["seed"]]} for r in rows if r["seed"] in known], "ratio", 3)


def outside(rows: Sequence[Found], key: str, digits: int) -> str:
    """Errors on the hotter file; nothing where the set has none."""
    return spread([row["outside"] for row in rows if "outside" in row], key, digits)


def write_page(studies: Mapping[str, Study]) -> None:
    """All tables between their marks in docs/studies/teacher_student.md."""
    contents = {}
    for name, study in studies.items():
        found = study.found
        measured = f"µs/atom measured on {found['measured']}" if "measured" in found else ""
        origin = written(found, f"`{found['command']}`", measured)
        if "teacher" in found:
            teacher = "The teacher itself: {} meV/atom, {} eV/Å{}.".format(
                *(fixed(found["teacher"][key], digits) for key, digits in zip(ERRORS, (2, 4), strict=False)),
                f", {found['us_per_atom']['teacher']:.1f} µs/atom" if "us_per_atom" in found else "",
            )
            contents["held-out"] = f"{table(found, 'chosen')}\n\n{origin}"
            contents["test"] = f"{table(found, 'final')}\n\n{teacher}\n\n{origin}"
        else:
            contents[name] = f"{table(found, 'blind')}\n\n{origin}"
    between_marks(STUDY.with_suffix(".md"), contents)


def main() -> None:
    """Run what is missing, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--plot", action="store_true", help="only write the tables from the JSON")
    parser.add_argument("--runs", type=Path, default=RUNS, help="folder of the training runs")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    read = yaml.safe_load(STUDY.with_suffix(".yaml").read_text())
    studies = {name: Study(name, arguments.runs) for name in read["sets"]}
    if not arguments.plot:
        for study in studies.values():
            study.run()
    write_page(studies)


if __name__ == "__main__":
    main()
