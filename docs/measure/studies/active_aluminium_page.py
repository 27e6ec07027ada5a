"""How the study of aluminium from nothing is shown: learning curves, and tables of errors, properties and costs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from pages import averaged, written

BUDGETS = (30, 60, 120)
GROUPS = ("fcc", "bcc", "hcp", "sc", "diamond", "vacancy", "surface", "stacking fault", "liquid")
COLOURS = {"active": "#d1603d", "random placements": "#8a97a3", "rattled fcc": "#4477aa", "plain MD": "#4d8b57"}
NAMES = {"active": "active learning, nonequilibrium"}


def numbers(result: dict[str, Any], way: str, budget: int, group: str, what: str) -> list[float]:
    """One for each seed."""
    runs = result["curves"].get(way, {}).values()
    return [run[str(budget)]["groups"][group][what] for run in runs if str(budget) in run]


def draw(result: dict[str, Any], path: Path) -> None:
    """Learning curves: errors of forces by group, and energies beside fcc."""
    figure = Figure(figsize=(11.0, 9.4), layout="constrained")
    axes = figure.subplots(3, 3, sharey=True)
    ticks = (0.01, 0.03, 0.1, 0.3)
    for panel, group in zip(axes.flat, GROUPS, strict=True):
        for way, colour in COLOURS.items():
            points = [(b, found) for b in BUDGETS if (found := numbers(result, way, b, group, "force"))]
            if not points:
                continue
            x = [b for b, _ in points]
            panel.plot(
                x, [np.mean(v) for _, v in points], color=colour, lw=2, marker="o", ms=4, label=NAMES.get(way, way)
            )
            for b, found in points:
                panel.plot([b] * len(found), found, ls="", marker="o", ms=3, color=colour, alpha=0.4)
        panel.set(xscale="log", yscale="log", xticks=BUDGETS, xticklabels=list(map(str, BUDGETS)))
        panel.set(ylim=(0.006, 0.3), yticks=ticks, yticklabels=list(map(str, ticks)))
        panel.minorticks_off()
        panel.grid(axis="y", color="#e4e8ec", lw=0.8)
        seen = {"fcc": " (shown to rattled fcc and plain MD)", "liquid": " (shown to plain MD)"}.get(group, "")
        panel.set_title(f"{group}{seen}", loc="left", fontsize=10)
        for side in ("top", "right"):
            panel.spines[side].set_visible(False)
    for panel in axes[-1]:
        panel.set_xlabel("labels")
    for panel in axes[:, 0]:
        panel.set_ylabel("force MAE (eV/Å)")
    handles, names = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=4, frameon=False)
    figure.savefig(path, dpi=110)


def errors_table(result: dict[str, Any]) -> str:
    """At the largest number of labels."""
    ways = [way for way in COLOURS if numbers(result, way, BUDGETS[-1], "fcc", "force")]
    lines = ["| | " + " | ".join(ways) + " |", "|---|" + "--:|" * len(ways)]
    counts = {way: len(numbers(result, way, BUDGETS[-1], "fcc", "force")) for way in ways}
    lines.append("| seeds | " + " | ".join(str(counts[way]) for way in ways) + " |")
    for what, unit, digits in (("force", "force, eV/Å", 3), ("above_fcc", "energy beside fcc, meV/atom", 1)):
        for group in GROUPS:
            cells = [averaged(numbers(result, way, BUDGETS[-1], group, what), digits) for way in ways]
            lines.append(f"| {group} ({unit}) | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", said(result)])


EXPERIMENT = {"a": "4.05", "C11": "107", "C12": "61", "C44": "28", "vacancy": "0.67", "fault": "120–170"}
UNITS = {"a": "lattice constant, Å", "vacancy": "vacancy, eV", "fault": "stacking fault, mJ/m²"}


def properties_table(result: dict[str, Any]) -> str:
    """Of the last committees, beside the labeller."""
    of = {
        way: [run[str(BUDGETS[-1])]["properties"] for run in runs.values() if str(BUDGETS[-1]) in run]
        for way, runs in result["curves"].items()
    }
    ways = [way for way in COLOURS if of.get(way)]
    lines = ["| | labeller | " + " | ".join(ways) + " | experiment |", "|---|" + "--:|" * (len(ways) + 2)]
    for name, value in result["labeller_properties"].items():
        unit, digits = _form(name)
        cells = [averaged([each[name] for each in of[way]], digits) for way in ways]
        lines.append(f"| {unit} | {value:.{digits}f} | " + " | ".join(cells) + f" | {EXPERIMENT.get(name, '')} |")
    return "\n".join(lines)


def _form(name: str) -> tuple[str, int]:
    """What a property is called, with its unit, and its digits."""
    digits = {"a": 3, "vacancy": 2, "fault": 0}.get(name, 2 if name.startswith("surface") else 0)
    return UNITS.get(name, f"{name}, {'J/m²' if name.startswith('surface') else 'GPa'}"), digits


def ani_table(result: dict[str, Any], other: dict[str, Any]) -> str:
    """Active learning at the largest number of labels, by two labellers."""
    lines = ["| force MAE, eV/Å | 7net-l3i5 | ANI-Al |", "|---|--:|--:|"]
    seeds = [len(numbers(each, "active", BUDGETS[-1], "fcc", "force")) for each in (result, other)]
    lines.append(f"| seeds | {seeds[0]} | {seeds[1]} |")
    for group in GROUPS:
        cells = [averaged(numbers(each, "active", BUDGETS[-1], group, "force"), 3) for each in (result, other)]
        lines.append(f"| {group} | {' | '.join(cells)} |")
    point = other["curves"]["active"]["0"][str(BUDGETS[-1])]["properties"]
    lines += ["", "| | ANI-Al | its student |", "|---|--:|--:|"]
    for name, value in other["labeller_properties"].items():
        unit, digits = _form(name)
        lines.append(f"| {unit} | {value:.{digits}f} | {point[name]:.{digits}f} |")
    return "\n".join([*lines, "", said(other, "active_aluminium.py --ani")])


def cost_table(result: dict[str, Any]) -> str:
    """Seconds of a curve."""
    lines = ["| | labels | atoms labelled | sampling, s | labels, s | training, s |", "|---|" + "--:|" * 5]
    for way in COLOURS:
        runs = [run for run in result["curves"].get(way, {}).values() if len(run) == len(BUDGETS)]
        if runs:
            sums = [
                [sum(p["seconds"][k] for p in run.values()) for run in runs] for k in ("sampling", "labels", "training")
            ]
            last = [run[str(BUDGETS[-1])] for run in runs]
            counts = [averaged([point[k] for point in last], 0) for k in ("labels", "atoms")]
            lines.append(f"| {way} | " + " | ".join([*counts, *(averaged(each, 0) for each in sums)]) + " |")
    return "\n".join(lines)


def said(result: dict[str, Any], command: str = "active_aluminium.py") -> str:
    """Provenance."""
    return written(result, f"`python docs/measure/studies/{command}`", f"labels by {result['labeller']}")
