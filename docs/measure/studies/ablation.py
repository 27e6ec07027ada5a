"""What was bought by what: s-MEAM, more filters, a network, a skip, Legendre angles, trained by one recipe.

python docs/measure/studies/ablation.py          # train and measure what is missing, then picture and table
python docs/measure/studies/ablation.py --plot   # picture and table from docs/studies/ablation.json

The recipe is docs/studies/ablation.yaml. A row that is finished is not trained again; a row that was stopped resumes.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pages import between_marks, provenance, written

from snnp.files import write_atomically
from snnp.models.potential import Potential
from snnp.neighbours import neighbour_list
from snnp.sampling.structures import build_structure
from snnp.structure import Structure
from snnp.training import Progress, RunResult, TrainConfig, load_config, resume, train
from snnp.training.problem import build_model, load_problem, resolve

STUDY = Path(__file__).resolve().parents[2] / "studies" / Path(__file__).stem
RUNS = STUDY.parents[2] / "runs" / "ablation"
PACKAGES = ("snnp", "torch", "numpy", "vesin", "ase")
RATTLE = 0.05  # Å, so that no atom sits on a symmetric site
REPEATS = 25

INK, GRID, FAINT = "#22303c", "#e3e8ec", "#8a97a3"
KIND_COLOURS = {"classical": "#4477aa", "learned": "#d1603d", "faster": "#2a9d8f"}
X_LIMITS = (-0.5, 5.4)  # five rows, and room for the names of published errors


def _merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`base` with `changes`, group by group."""
    merged = dict(base)
    for key, value in changes.items():
        old = merged.get(key)
        merged[key] = _merge(old, value) if isinstance(value, dict) and isinstance(old, dict) else value
    return merged


def row_config(study: dict[str, Any], element: str, row: str) -> TrainConfig:
    """The training configuration of one row of the table."""
    tree = _merge(study["recipe"], {"model": study["rows"][row]["model"]})
    tree = _merge(tree, {"optimiser": {"epochs": study["epochs"][element]}})
    return load_config(yaml.safe_load(yaml.safe_dump(tree).replace("ELEMENT", element)))


def train_row(config: TrainConfig, folder: Path) -> dict[str, Any]:
    """Train (or finish) one row; parameters, errors, and the CPU seconds spent now."""

    def report(progress: Progress) -> None:
        if progress.message is None and progress.epoch % 20 == 0:
            errors = f"{progress.valid_energy_mae:.2f} meV/atom, {progress.valid_force_mae:.4f} eV/Å"
            print(f"{folder.name}: epoch {progress.epoch}/{progress.epochs}, valid {errors}", flush=True)

    started = time.process_time()
    finished: RunResult = resume(folder, report) if (folder / "config.yaml").exists() else train(config, folder, report)
    errors = {name: evaluation.total.to_dict() for name, evaluation in finished.evaluations.items()}
    return {
        "n_parameters": finished.model.n_parameters,
        "epochs": config.optimiser.epochs,
        "cpu_seconds": round(time.process_time() - started, 1),
        "errors": errors,
    }


def fresh_model(config: TrainConfig) -> Potential:
    """The model of a row before training: its speed does not depend on the values of its parameters."""
    problem = load_problem(config)
    return build_model(resolve(config, problem), problem).to(getattr(torch, config.dtype))


def measure_speeds(models: dict[str, Potential], crystal: str) -> dict[str, float]:
    """Median CPU µs/atom of energy and forces, models in turn so that a busy machine is unfair to none."""
    atoms = build_structure(crystal)
    atoms.rattle(RATTLE, seed=0)
    structure = Structure.from_ase(atoms, dtype=torch.float64)
    lists = {name: neighbour_list(structure, model.cutoff) for name, model in models.items()}
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for repeat in range(REPEATS + 2):
        for name, model in models.items():
            started = time.process_time()
            model.compute(structure, lists[name])
            if repeat >= 2:
                seconds[name].append(time.process_time() - started)
    return {name: 1e6 * statistics.median(values) / len(atoms) for name, values in seconds.items()}


def run(study: dict[str, Any], runs: Path) -> None:
    """Fill docs/studies/ablation.json."""
    torch.set_num_threads(1)
    path = STUDY.with_suffix(".json")
    found = json.loads(path.read_text()) if path.exists() else {"results": {}}
    results = found["results"]

    def save() -> None:
        found["command"] = "python docs/measure/studies/ablation.py"
        found.update(provenance(PACKAGES))
        write_atomically(path, (json.dumps(found, indent=1) + "\n").encode())

    for element in study["epochs"]:
        for row in study["rows"]:
            if row not in results.setdefault(element, {}):
                results[element][row] = train_row(row_config(study, element, row), runs / f"{element}-{row}")
                save()
    for element, crystal in study["crystals"].items():
        models = {row: fresh_model(row_config(study, element, row)) for row in study["rows"]}
        for row, speed in measure_speeds(models, crystal).items():
            results[element][row]["us_per_atom"] = round(speed, 2)
        save()


def table(study: dict[str, Any], found: dict[str, Any]) -> str:
    """Markdown: one table per element, and where the numbers come from."""
    lines = []
    for element, rows in found["results"].items():
        lines += [
            f"### {element}",
            "",
            "| model | parameters | test: meV/atom | eV/Å | training: meV/atom | eV/Å | µs/atom | training, CPU s |",
            "|---|--:|--:|--:|--:|--:|--:|--:|",
        ]
        for row, result in rows.items():
            errors = [
                f"{result['errors'][part][key]:.{digits}f}"
                for part in ("test", "train")
                for key, digits in (("energy_mae_mev_per_atom", 2), ("force_mae_ev_per_angstrom", 4))
            ]
            cells = [study["rows"][row]["label"], f"{result['n_parameters']:,}", *errors]
            lines.append(f"| {' | '.join(cells)} | {result['us_per_atom']:.0f} | {result['cpu_seconds']:.0f} |")
        for name, (energy, force) in study["references"][element].items():
            lines.append(f"| *{' '.join(name.split())}* | | *{energy:.2f}* | *{force:.3f}* | | | | |")
        lines.append("")
    lines.append(written(found, f"`{found['command']}`"))
    return "\n".join(lines)


def _stairs(axes: Axes, study: dict[str, Any], rows: dict[str, Any], key: str, references: dict[str, float]) -> None:
    """One error of every row as a staircase, with the change at each step and published errors as lines."""
    values = [result["errors"]["test"][key] for result in rows.values()]
    colours = [KIND_COLOURS[study["rows"][row]["kind"]] for row in rows]
    digits = 2 if "mev" in key else 3
    for k, (value, colour) in enumerate(zip(values, colours, strict=True)):
        axes.plot([k - 0.27, k + 0.27], [value, value], color=colour, lw=5, solid_capstyle="round", zorder=3)
        label = axes.annotate(f"{value:.{digits}f}", (k, value), (0, 7), textcoords="offset points", ha="center")
        label.set(color=colour, fontsize=11, fontweight="bold", zorder=4)
        label.set_bbox({"boxstyle": "square,pad=0.1", "fc": "white", "ec": "none", "alpha": 0.8})
        if k:
            before = values[k - 1]
            axes.plot([k - 0.5, k - 0.5], [before, value], color=FAINT, lw=1.0, zorder=2)
            change = f"{100.0 * (value / before - 1.0):+.0f} %".replace("-", "−")
            middle = (before * value) ** 0.5
            note = axes.annotate(change, (k - 0.5, middle), ha="center", va="center", fontsize=8.5, color=INK, zorder=5)
            note.set_bbox({"boxstyle": "round,pad=0.25", "fc": "white", "ec": GRID})
    for name, value in references.items():
        axes.axhline(value, color=FAINT, lw=0.9, ls=(0, (4, 3)), zorder=1)
        place = (len(rows) - 0.38, value)
        axes.annotate(name, place, va="center", fontsize=8.5, color=FAINT, bbox={"fc": "white", "ec": "none"})
    everything = [*values, *references.values()]
    axes.set(yscale="log", ylim=(0.72 * min(everything), 1.5 * max(everything)), xlim=X_LIMITS)
    axes.grid(True, axis="y", which="both", color=GRID, lw=0.6)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_minor_formatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "235" else "")
    axes.tick_params(which="both", length=0, labelsize=8.5, colors=INK)
    axes.tick_params(labelbottom=False)


def _costs(axes: Axes, study: dict[str, Any], rows: dict[str, Any]) -> None:
    """Time per atom of every row, with the number of parameters below its name."""
    speeds = [result["us_per_atom"] for result in rows.values()]
    colours = [KIND_COLOURS[study["rows"][row]["kind"]] for row in rows]
    bars = axes.bar(range(len(rows)), speeds, width=0.62, color=colours, alpha=0.85, zorder=3)
    axes.bar_label(bars, fmt="%.0f", padding=2, fontsize=9.5, color=INK)
    names = [f"{study['rows'][row]['label']}\n{result['n_parameters']:,} par." for row, result in rows.items()]
    axes.set_xticks(range(len(rows)), names, fontsize=8.5)
    axes.set(ylim=(0, 1.28 * max(speeds)), xlim=X_LIMITS)
    axes.grid(True, axis="y", color=GRID, lw=0.6, zorder=0)
    axes.tick_params(length=0, labelsize=8.5, colors=INK)


def picture(study: dict[str, Any], found: dict[str, Any], path: Path) -> None:
    """Force error, energy error and cost, a column for each element."""
    results = found["results"]
    figure = Figure(figsize=(13.0, 8.4), dpi=140, layout="constrained", facecolor="white")
    panels = figure.subplots(3, len(results), height_ratios=(3.2, 3.2, 1.7), squeeze=False)
    for column, (element, rows) in enumerate(results.items()):
        published = study["references"][element]
        top, middle, bottom = panels[:, column]
        energies = {name: values[0] for name, values in published.items()}
        forces = {name: values[1] for name, values in published.items()}
        _stairs(top, study, rows, "force_mae_ev_per_angstrom", forces)
        _stairs(middle, study, rows, "energy_mae_mev_per_atom", energies)
        _costs(bottom, study, rows)
        top.set_title(study["names"][element], loc="left", fontsize=13, color=INK, fontweight="bold")
    for axes, label in zip(panels[:, 0], ("force MAE, eV/Å", "energy MAE, meV/atom", "cost, µs/atom"), strict=True):
        axes.set_ylabel(label, fontsize=10, color=INK)
    for axes in figure.axes:
        axes.spines[:].set_visible(False)
    figure.suptitle(study["title"], x=0.012, ha="left", fontsize=15, color=INK)
    temporary = path.with_suffix(".tmp")
    figure.savefig(temporary, format="png")
    os.replace(temporary, path)


def write_page(study: dict[str, Any], found: dict[str, Any]) -> None:
    """Picture, and the table between its marks in docs/studies/ablation.md."""
    picture(study, found, STUDY.with_suffix(".png"))
    between_marks(STUDY.with_suffix(".md"), {"table": table(study, found)})


def main() -> None:
    """Read the study, run what is missing, write picture and table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--plot", action="store_true", help="only draw picture and table from the JSON")
    parser.add_argument("--runs", type=Path, default=RUNS, help="folder of the training runs")
    arguments = parser.parse_args()
    study = yaml.safe_load(STUDY.with_suffix(".yaml").read_text())
    if not arguments.plot:
        run(study, arguments.runs)
    write_page(study, json.loads(STUDY.with_suffix(".json").read_text()))


if __name__ == "__main__":
    main()
