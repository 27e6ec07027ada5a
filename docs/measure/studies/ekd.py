"""Teachers that know energies alone, and a student that learns these and the forces the teachers agree on (EKD).

python docs/measure/studies/ekd.py          # train, run and measure what is missing, then tables and picture
python docs/measure/studies/ekd.py --plot   # tables and picture from docs/studies/ekd.json

Matin et al., arXiv 2503.14293. The settings are in docs/studies/ekd.yaml. Students are made by `snnp distill` with
method ekd; beside them stand the teachers and an equal model of true forces. What is finished is not done again.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from ase import Atoms
from broken_bonds import survive
from pages import averaged, between_marks, save, written

from snnp.data import Frames, read_frames, split_frames
from snnp.data.write import parquet_writer
from snnp.distillation import Bars, DistilSettings
from snnp.models import load_model
from snnp.models.ensemble import Ensemble
from snnp.models.potential import Potential
from snnp.report import COLOURS, new_panels, save_figure
from snnp.sampling import MDSettings
from snnp.training import evaluate, load_config

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "model_zoo"))
from trained import bring_to_end, distil_once

STUDY = Path(__file__).resolve().parents[2] / "studies" / Path(__file__).stem
RUNS = STUDY.parents[2] / "runs" / "ekd"
KINDS = {
    "teacher": "a teacher: energies alone",
    "mean": "the teachers' mean",
    "ekd": "EKD student",
    "forces": "a student of the true forces",
}
MOVED = ("teacher", "ekd", "forces")

Found = dict[str, Any]
tell = partial(print, flush=True)


class Study:
    """Settings, what was found, and where it is kept."""

    def __init__(self, runs: Path) -> None:
        self.settings = yaml.safe_load(STUDY.with_suffix(".yaml").read_text())
        self.runs, path = runs, STUDY.with_suffix(".json")
        self.found: Found = json.loads(path.read_text()) if path.exists() else {"errors": {}, "lasted": {}}

    def add(self, what: str, key: str, value: Any) -> None:
        """Add it to docs/studies/ekd.json, which another run of this command may write to meanwhile."""
        path = STUDY.with_suffix(".json")
        if path.exists():
            self.found = json.loads(path.read_text())
        self.found[what][key] = value
        save(path, self.found, ("snnp", "torch", "numpy"))
        tell(key, value)

    def run(self, only: Sequence[str]) -> None:
        """All that is missing, or that of some sets and seeds: models, their errors, then how long their runs last."""
        torch.set_num_threads(1)
        every = [f"{name}-{seed}" for name in self.settings["sets"] for seed in self.settings["seeds"]]
        if unknown := set(only) - set(every):
            raise SystemExit(f"{', '.join(sorted(unknown))} is not a set and seed of this study: {', '.join(every)}.")
        for key in only or every:
            name, seed = key.rsplit("-", 1)
            kinds = [kind for kind in KINDS if kind != "forces" or self.settings["sets"][name].get("forces", True)]
            moved = [kind for kind in MOVED if kind in kinds and f"{key}-{kind}" not in self.found["lasted"]]
            if key in self.found["errors"] and not moved:
                continue
            models = self.models(name, int(seed), moved if key in self.found["errors"] else kinds)
            if key not in self.found["errors"]:
                self.add("errors", key, self.errors(name, int(seed), models))
            for kind in moved:
                self.add("lasted", f"{key}-{kind}", self.lasted(name, int(seed), models[kind]))

    def parts(self, name: str, seed: int) -> tuple[Frames, Frames, Frames]:
        """What is learned, what is kept of the same frames, and those that are hotter or higher."""
        about = self.settings["sets"][name]
        whole = read_frames(os.path.expandvars(about["learned"]))
        if "highest" in about:
            whole = whole.take(_above(whole) < about["highest"])
        if "lowest" in about:
            rank = np.argsort(np.argsort(whole.energy)) / len(whole)
            whole, outside = whole.take(rank < about["lowest"]), whole.take(rank >= about["lowest"])
        elif "most_atoms" in about:
            small = whole.counts <= about["most_atoms"]
            whole, outside = whole.take(small), whole.take(~small)
        else:
            outside = read_frames(os.path.expandvars(about["outside"]))
        split = split_frames(whole, valid=0.0, test=self.settings["held_out"], seed=seed)
        return Frames.of(split.train), Frames.of(split.test), Frames.of(outside)

    def models(self, name: str, seed: int, kinds: Collection[str]) -> dict[str, Potential]:
        """Those of the kinds, trained where they are not; the first teacher stands for all."""
        folder, learned = self.runs / f"{name}-{seed}", self.parts(name, seed)[0]
        none = np.zeros(len(learned), dtype=bool)
        hidden = replace(learned, forces=np.full_like(learned.forces, np.nan), has_forces=none)
        atoms = self.settings["sets"][name].get("isolated_atoms")
        lone = [Frames.of(read_frames(os.path.expandvars(atoms)))] if atoms else []
        for label, frames in {"energies": hidden, "forces": learned}.items():
            if (label == "energies" or "forces" in kinds) and not (path := folder / f"{label}.parquet").exists():
                folder.mkdir(parents=True, exist_ok=True)
                with parquet_writer(path, name, "snnp") as writer:
                    for each in (*lone, frames):
                        writer.add(each, "train")
        made: dict[str, Potential] = {}
        if "forces" in kinds:
            self.learn(folder / "forces.parquet", folder / "forces", 10 * seed)
            made["forces"] = load_model(folder / "forces" / "best")
        if set(kinds) == {"forces"}:
            return made
        teachers = [folder / f"teacher-{k}" for k in range(self.settings["teachers"])]
        for k, teacher in enumerate(teachers):
            self.learn(folder / "energies.parquet", teacher, 10 * seed + k)
        known = [load_model(teacher / "best") for teacher in teachers]
        made |= {"teacher": known[0], "mean": Ensemble(known)}
        if "ekd" in kinds:
            self.distil(folder, teachers, len(learned) + sum(map(len, lone)), 10 * seed)
            made["ekd"] = load_model(folder / "ekd" / "student" / "best")
        return made

    def distil(self, folder: Path, teachers: Sequence[Path], budget: int, seed: int) -> None:
        """Make the student of the teachers by `snnp distill`, unless that is done."""
        recipe = {key: value for key, value in self.settings["recipe"].items() if key != "threads"}
        asked = DistilSettings(
            teachers=tuple(map(str, teachers)),
            data=(str(folder / "energies.parquet"),),
            method="ekd",
            budget=budget,
            rounds=0,
            held_out=0.02,
            seed=seed,
            student=recipe,
            bars=Bars(force_cosine=None, hot_md=False),
        )
        distil_once(asked, folder / "ekd", tell)

    def learn(self, data: Path, run: Path, seed: int) -> None:
        """Train by the recipe on the file, unless that is done."""
        about = {"train": [str(data)], "valid": 0.05}
        bring_to_end(load_config({**self.settings["recipe"], "data": about, "seed": seed}), run, tell)

    def errors(self, name: str, seed: int, models: dict[str, Potential]) -> Found:
        """MAE of energy (meV/atom) and forces (eV/Å) of each kind, inside and outside; of teachers, in the mean."""
        found: Found = {}
        for where, frames in zip(("inside", "outside"), self.parts(name, seed)[1:], strict=True):
            ensemble = models["mean"]
            assert isinstance(ensemble, Ensemble)
            alone = [_errors(model, frames) for model in ensemble.members]
            found[where] = {kind: _errors(model, frames) for kind, model in models.items() if kind != "teacher"}
            found[where]["teacher"] = [
                None if None in each else statistics.mean(each) for each in zip(*alone, strict=True)
            ]
        return found

    def lasted(self, name: str, seed: int, model: Potential) -> list[float]:
        """How long each run lasts (ps): as many of each molecule, in the order of formulas, from its first frames."""
        about, learned = self.settings["runs"], self.parts(name, seed)[0]
        settings = MDSettings(
            temperature_k=about["kelvin"], friction_per_ps=2.0, dt_fs=0.5, steps=round(2000.0 * about["picoseconds"])
        )
        low = learned.take(_above(learned) < self.settings["sets"][name].get("begin", np.inf))
        known: dict[str, list[Atoms]] = {}
        for frame in low:
            atoms = frame.structure.to_ase()[0]
            known.setdefault(atoms.get_chemical_formula(), []).append(atoms)
        number = about["number"] // len(known)
        groups = (survive(model, frames[:number], settings, frames) for _, frames in sorted(known.items()))
        return [run["ps"] for runs in groups for run in runs]


def _above(frames: Frames) -> np.ndarray:
    """[B] eV, the energy above the lowest of the same composition."""
    _, same = np.unique(frames.composition(), axis=0, return_inverse=True)
    lowest = np.full(same.max() + 1, np.inf)
    np.minimum.at(lowest, same, frames.energy)
    above: np.ndarray = frames.energy - lowest[same]
    return above


def _errors(model: Potential, frames: Frames) -> list[float | None]:
    total = evaluate(model, frames, model_name="", data_name="").total.to_dict()
    return [total["energy_mae_mev_per_atom"], total["force_mae_ev_per_angstrom"]]


def errors_table(found: Found, sets: Iterable[str]) -> str:
    """Markdown: mean and standard deviation over seeds."""
    lines = [
        "| set | model | inside: energy MAE (meV/atom) | force MAE (eV/Å) | outside: energy MAE | force MAE |",
        "|---|---|--:|--:|--:|--:|",
    ]
    for name in sets:
        if not (rows := [row for key, row in found["errors"].items() if key.rsplit("-", 1)[0] == name]):
            continue
        for kind, said in KINDS.items():
            cells = []
            for where in ("inside", "outside"):
                for k, digits in enumerate((2, 4)):
                    values = [row[where].get(kind, (None, None))[k] for row in rows]
                    known = [value for value in values if value is not None]
                    cells.append(averaged(known, digits) or "–")
            if set(cells) != {"–"}:
                lines.append(f"| {name} | {said} | {' | '.join(cells)} |")
    return "\n".join(lines)


def lasted_by(found: Found, sets: dict[str, Any]) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """Each molecule, and how long runs of each kind of model last (ps). [seeds, runs]"""
    for name, about in sets.items():
        molecules = about.get("molecules", [name])
        lasted = {
            kind: [runs for key, runs in sorted(found["lasted"].items()) if key.rsplit("-", 2)[::2] == [name, kind]]
            for kind in MOVED
        }
        for k, molecule in enumerate(molecules):
            parts = {kind: np.split(np.array(runs), len(molecules), 1)[k] for kind, runs in lasted.items() if runs}
            if parts:
                yield molecule, parts


def hold(lasted: np.ndarray, moments: np.ndarray) -> np.ndarray:
    """The fraction of runs that last to each moment, and the 95 % interval of the bootstrap. [3, moments]"""
    drawn = np.random.default_rng(0).choice(lasted.ravel(), (2000, lasted.size))
    low, high = np.percentile([(drawn >= moment).mean(axis=1) for moment in moments], (2.5, 97.5), axis=1)
    return np.stack([[(lasted >= moment).mean() for moment in moments], low, high])


def runs_table(found: Found, sets: dict[str, Any], picoseconds: float) -> str:
    """Markdown: the fraction of runs that last, with the 95 % interval of the bootstrap, the median, and each seed."""
    moments = picoseconds * np.array([0.1, 0.3, 1.0])
    head = " | ".join(f"{moment:g} ps" for moment in moments)
    lines = [
        f"| molecule | model | runs | half last | hold for {head} | of each seed |",
        f"|---|---|--:|--:|{'--:|' * len(moments)}--:|",
    ]
    for molecule, kinds in lasted_by(found, sets):
        for kind, lasted in kinds.items():
            cells = [f"{share:.2f} ({low:.2f}–{high:.2f})" for share, low, high in hold(lasted, moments).T]
            seeds = ", ".join(str(number) for number in (lasted >= picoseconds).sum(axis=1))
            about = f"{molecule} | {KINDS[kind]} | {lasted.size} | {np.median(lasted):.1f} ps"
            lines.append(f"| {about} | {' | '.join(cells)} | {seeds} |")
    return "\n".join(lines)


def picture(found: Found, sets: dict[str, Any], picoseconds: float) -> None:
    """Survival curves with the bands of the bootstrap."""
    molecules = list(lasted_by(found, sets))
    drawn, panels = new_panels(len(molecules), 3.2, 2.8, columns=3)
    moments = np.geomspace(0.1, picoseconds, 80)
    for panel, (molecule, kinds) in zip(panels, molecules, strict=True):
        for kind, colour, style in zip(MOVED, COLOURS, (":", "-", "--"), strict=False):
            if kind in kinds:
                share, low, high = hold(kinds[kind], moments)
                panel.fill_between(moments, low, high, color=colour, alpha=0.2, lw=0, step="post")
                panel.plot(moments, share, color=colour, ls=style, label=KINDS[kind], drawstyle="steps-post")
        panel.set(xscale="log", title=molecule, ylim=(-0.03, 1.03))
        panel.xaxis.set_major_formatter("{x:g}")
    drawn.supxlabel("time (ps)", fontsize=10)
    drawn.supylabel("fraction of runs that hold", fontsize=10)
    drawn.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=len(MOVED), frameon=False)
    save_figure(drawn, STUDY.with_suffix(".png"))


def main() -> None:
    """Run what is missing, and write tables and picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--plot", action="store_true", help="only write tables and picture from the JSON")
    parser.add_argument("--only", nargs="+", default=(), metavar="SET-SEED", help="such as acac-0; else all")
    parser.add_argument("--runs", type=Path, default=RUNS, help="folder of the training runs")
    asked = parser.parse_args()
    study = Study(asked.runs)
    if not asked.plot:
        study.run(asked.only)
    found, sets = study.found, study.settings["sets"]
    origin = written(found, "`python docs/measure/studies/ekd.py`")
    tables = {
        "errors": errors_table(found, sets),
        "runs": runs_table(found, sets, study.settings["runs"]["picoseconds"]),
    }
    picture(found, sets, study.settings["runs"]["picoseconds"])
    between_marks(STUDY.with_suffix(".md"), {name: f"{text}\n\n{origin}" for name, text in tables.items()})


if __name__ == "__main__":
    main()
