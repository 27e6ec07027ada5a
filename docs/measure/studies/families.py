"""Families of potentials on the same data and splits: errors, size, cost, and time of training.

python docs/measure/studies/families.py          # train and measure what is missing, then picture and table
python docs/measure/studies/families.py --plot   # picture and table from docs/studies/families.json

The rows are in docs/studies/families.yaml; bundled models are taken as they are. A row that is finished is not trained
again; a row that was stopped resumes. Costs are measured anew, all models of a set in turn.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pages import between_marks, provenance, written

from snnp.files import write_atomically
from snnp.models import load_model
from snnp.models.potential import Potential
from snnp.neighbours import neighbour_list
from snnp.sampling.structures import build_structure
from snnp.structure import Structure
from snnp.training import load_config, resume, train
from snnp.training.problem import load_problem

STUDY = Path(__file__).resolve().parents[2] / "studies" / Path(__file__).stem
RUNS = STUDY.parents[2] / "runs" / "families"
PACKAGES = ("snnp", "torch", "numpy", "vesin", "ase")
SKIN, RATTLE, REPEATS = 0.5, 0.1, 15  # Å, Å
INK, GRID, FAINT = "#22303c", "#e3e8ec", "#8a97a3"
COLOURS = {"s-NNP": "#d1603d", "HIP-NN": "#4477aa", "HIP-NN-TS": "#2a9d8f", "ANI": "#8b5fbf"}

Found = dict[str, Any]


def train_row(recipe: Found, row: Found, folder: Path) -> Found:
    """Train (or finish) a row; its errors and the CPU minutes spent."""
    optimiser = {**recipe["optimiser"], "epochs": row["epochs"]}
    config = load_config({**recipe, "optimiser": optimiser, "model": row["form"], "threads": 1})
    began = time.process_time()
    result = resume(folder) if (folder / "config.yaml").exists() else train(config, folder)
    errors = {part: evaluation.total.to_dict() for part, evaluation in result.evaluations.items()}
    return {
        **{"minutes": round((time.process_time() - began) / 60.0, 1), "epochs": config.optimiser.epochs},
        **{"n_parameters": result.model.n_parameters, "errors": errors["test"]},
    }


def bundled_row(row: Found) -> Found:
    """What the file of a bundled model states; `cpu_minutes` replaces a time that was taken on a shared machine."""
    model = load_model(row["model"])
    training = model.metadata["training"]
    minutes = row.get("cpu_minutes", round(training["minutes"], 1))
    return {
        **{"name": row["model"], "minutes": minutes, "epochs": training["epochs"]},
        **{"n_parameters": model.n_parameters, "errors": model.metadata["metrics"]},
    }


def system(chosen: Found) -> Structure:
    """About a thousand atoms: a shaken crystal, or copies of the molecule of lowest energy."""
    if "crystal" in chosen["speed"]:
        atoms = build_structure(chosen["speed"]["crystal"])
        atoms.rattle(RATTLE, seed=0)
        return Structure.from_ase(atoms)
    frames = load_problem(load_config(chosen["recipe"])).split.train
    lowest = min((f for f in frames if f.energy is not None and f.n_atoms > 1), key=lambda frame: frame.energy or 0.0)
    return Structure.concatenate([lowest.structure] * chosen["speed"]["molecules"])


def measure(models: dict[str, Potential], structure: Structure) -> dict[str, float]:
    """Median CPU µs/atom of energy and forces, models in turn so that a busy machine is unfair to none."""
    lists = {name: neighbour_list(structure, model.cutoff + SKIN) for name, model in models.items()}
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for repeat in range(REPEATS + 2):
        for name, model in models.items():
            began = time.process_time()
            model.compute(structure, lists[name])
            if repeat >= 2:
                seconds[name].append(time.process_time() - began)
    return {name: 1e6 * statistics.median(values) / structure.n_atoms for name, values in seconds.items()}


def run(study: Found, runs: Path, found: Found, save: Callable[[], None]) -> None:
    """Train what is missing, then measure everything."""
    torch.set_num_threads(1)
    for kind, chosen in study["sets"].items():
        results = found["results"].setdefault(kind, {})
        models: dict[str, Potential] = {}
        for row, about in chosen["rows"].items():
            folder = runs / f"{kind}-{row}"
            if "model" in about:
                results[row] = bundled_row(about)
            elif row not in results:
                results[row] = train_row(chosen["recipe"], about, folder)
            models[row] = load_model(about.get("model", folder), dtype=torch.float32)
            print(kind, row, results[row]["minutes"], "min", flush=True)
            save()
        for row, speed in measure(models, system(chosen)).items():
            results[row]["us_per_atom"] = round(speed, 2)
        save()


def _in_order(study: Found, kind: str, rows: Found) -> list[tuple[str, Found]]:
    return [(row, rows[row]) for row in study["sets"][kind]["rows"]]


def _cost(values: list[float]) -> str:
    return f"*{'–'.join(f'{each:g}' for each in values)}*" if values else ""


def table(study: Found, found: Found) -> str:
    """Markdown: every row of every set, and published potentials in italics."""
    head = "| family | parameters | energy MAE (meV/atom) | force MAE (eV/Å) | µs/atom | epochs | training (min) |"
    lines = []
    for kind, rows in found["results"].items():
        lines += [f"### {study['sets'][kind]['label']}", "", head, "|---|" + "--:|" * 6]
        for row, result in _in_order(study, kind, rows):
            errors = result["errors"]
            name = f"{row} (`{result['name']}`)" if "name" in result else row
            cells = [name, f"{result['n_parameters']:,}", f"{errors['energy_mae_mev_per_atom']:.2f}"]
            cells += [f"{errors['force_mae_ev_per_angstrom']:.4f}", f"{result['us_per_atom']:.1f}"]
            lines.append(f"| {' | '.join([*cells, str(result['epochs'])])} | {result['minutes']:.0f} |")
        for name, values in study["references"][kind].items():
            errors = f"*{values['energy']:.2f}* | *{values['force']:.3f}*"
            lines.append(f"| *{name}* | | {errors} | {_cost(values.get('us_per_atom', []))} | | |")
        for name, cost in study["peers"][kind].items():
            lines.append(f"| *{name}* (cost only) | | | | {_cost([cost])} | | |")
        lines.append("")
    lines.append(written(found, "`python docs/measure/studies/families.py`"))
    return "\n".join(lines)


def _panel(axes: Axes, rows: Found, references: Found, peers: Found) -> None:
    """Force error against cost; what was measured elsewhere in grey."""
    for name, result in rows.items():
        x, y = result["us_per_atom"], result["errors"]["force_mae_ev_per_angstrom"]
        axes.plot(x, y, "o", ms=11, color=COLOURS[name], zorder=4)
        label = f"{name}\n{result['n_parameters']:,} parameters"
        left = name == "HIP-NN-TS"  # ANI is close to its right
        place, side = ((-9, 7), "right") if left else ((9, 7), "left")
        note = axes.annotate(label, (x, y), place, textcoords="offset points", fontsize=9, ha=side)
        note.set(color=COLOURS[name], zorder=5)
    for name, values in references.items():
        cost, force = values.get("us_per_atom"), values["force"]
        if cost is None:
            axes.axhline(force, color=FAINT, lw=0.9, ls=(0, (4, 3)), zorder=1)
            axes.annotate(
                f"{name} (error only)",
                (0.985, force),
                (0, 3),
                xycoords=("axes fraction", "data"),
                textcoords="offset points",
                ha="right",
                fontsize=8,
                color=FAINT,
            )
        else:
            axes.plot(cost, [force, force], "|-", color=FAINT, lw=2.5, ms=9, zorder=2)
            axes.annotate(name, (cost[0], force), (0, 6), textcoords="offset points", fontsize=8, color=FAINT)
    for name, cost in peers.items():
        axes.axvline(cost, color=FAINT, lw=0.9, ls=(0, (1, 2)), zorder=1)
        axes.annotate(
            f"{name} (cost only)",
            (cost, 0.985),
            (-3, 0),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            rotation=90,
            ha="right",
            va="top",
            fontsize=8,
            color=FAINT,
        )
    forces = [result["errors"]["force_mae_ev_per_angstrom"] for result in rows.values()]
    forces += [values["force"] for values in references.values()]
    costs = [result["us_per_atom"] for result in rows.values()]
    costs += [x for values in references.values() for x in values.get("us_per_atom", [])] + list(peers.values())
    axes.set(xscale="log", yscale="log", xlim=(0.6 * min(costs), 1.9 * max(costs)))
    axes.set_ylim(0.75 * min(forces), 1.45 * max(forces))


def picture(study: Found, found: Found, path: Path) -> None:
    """Error against cost, a panel for each set: down and left is better."""
    figure = Figure(figsize=(12.0, 5.6), dpi=140, layout="constrained", facecolor="white")
    panels = figure.subplots(1, len(found["results"]), squeeze=False)[0]
    for axes, (kind, rows) in zip(panels, found["results"].items(), strict=True):
        _panel(axes, rows, study["references"][kind], study["peers"][kind])
        axes.set_title(study["sets"][kind]["label"], loc="left", fontsize=10.5, color=INK)
        axes.set_xlabel("cost: energy and forces, µs/atom, one CPU core", fontsize=9.5, color=INK)
        axes.grid(True, which="major", color=GRID, lw=0.7, zorder=0)
        axes.spines[["top", "right"]].set_visible(False)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(lambda value, _: f"{value:g}")
            axis.set_minor_formatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "25" else "")
        axes.tick_params(which="both", labelsize=8.5, colors=INK)
    panels[0].set_ylabel("force MAE on test structures, eV/Å", fontsize=9.5, color=INK)
    title = "Four families, same data and splits (grey: measured before or published, not in this run)"
    figure.suptitle(title, x=0.01, ha="left", fontsize=13, color=INK)
    temporary = path.with_suffix(".tmp")
    figure.savefig(temporary, format="png")
    os.replace(temporary, path)


def write_page(study: Found, found: Found) -> None:
    """Picture, and the table between its marks in docs/studies/families.md."""
    picture(study, found, STUDY.with_suffix(".png"))
    between_marks(STUDY.with_suffix(".md"), {"table": table(study, found)})


def main() -> None:
    """Read the study, run what is missing, write picture and table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--plot", action="store_true", help="only draw picture and table from the JSON")
    parser.add_argument("--runs", type=Path, default=RUNS, help="folder of the training runs")
    arguments = parser.parse_args()
    study = yaml.safe_load(STUDY.with_suffix(".yaml").read_text())
    path = STUDY.with_suffix(".json")
    found: Found = json.loads(path.read_text()) if path.exists() else {"results": {}}

    def save() -> None:
        found.update(provenance(PACKAGES))
        write_atomically(path, (json.dumps(found, indent=1) + "\n").encode())

    if not arguments.plot:
        run(study, arguments.runs, found, save)
    write_page(study, found)


if __name__ == "__main__":
    main()
