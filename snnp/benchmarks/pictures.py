"""Pictures of a benchmark: accuracy against cost with all costs below, and how cost grows."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from snnp.files import write_atomically

__all__ = ["draw_comparison", "draw_scaling"]

_PROGRAM_COLOURS = {
    "snnp": "#c8553d",
    "lammps": "#1f5f8b",
    "hippynn": "#5a8f3c",
    "torchani": "#8a5fa8",
    "mace": "#b8860b",
    "nep": "#3f8f8f",
}
_OTHER_COLOUR, _GUIDE = "#777777", "#bbbbbb"
_LABEL_HEIGHT, _LABEL_WIDTH = 0.03, 0.35  # of a label: part of the range of errors, and decades of cost
_LABELS = {
    "atoms": "atoms",
    "filters": "three-body filters",
    "degree": "degree L",
    "threads": "threads",
}


def _colour(row: Mapping[str, Any]) -> str:
    return _PROGRAM_COLOURS.get(row["program"], _OTHER_COLOUR)


def draw_comparison(path: Path, document: Mapping[str, Any]) -> None:
    """Write a PNG: force error against cost where errors are known (log-log), and below it the cost of every case.

    Arguments:
        path: the file, replaced atomically. document: of `snnp.benchmarks.report.document`.
    """
    from matplotlib.figure import Figure

    rows = sorted(document["rows"], key=lambda row: row["cpu_us_per_atom"])
    known = [row for row in rows if row.get("force_mae_ev_per_angstrom")]
    top = 4.6 if known else 0.0
    bottom = 0.9 + 0.19 * len(rows)
    figure = Figure(figsize=(8.5, top + bottom), layout="constrained", dpi=150)
    if known:
        accuracy, costs = figure.subplots(2, 1, sharex=True, height_ratios=[top, bottom])
        _draw_accuracy(accuracy, known)
    else:
        costs = figure.subplots()
    _draw_costs(costs, rows)
    about = document["machine"]
    figure.suptitle(f"energy and forces, {about['cpu']}, {document['date']}", fontsize=10)
    _save(figure, path)


def _label_heights(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Where the label of each case stands (eV/Å): beside its symbol, or above the label that is there already."""
    errors = [math.log10(row["force_mae_ev_per_angstrom"]) for row in rows]
    apart = _LABEL_HEIGHT * (max(errors) - min(errors))
    heights: dict[str, float] = {}
    taken: list[tuple[str, float, float]] = []
    for error, row in sorted(zip(errors, rows, strict=True), key=lambda pair: pair[0]):
        cost, height = math.log10(row["cpu_us_per_atom"]), error
        for kind, other, there in sorted(taken, key=lambda label: label[2]):
            if kind == row["accuracy"] and abs(other - cost) < _LABEL_WIDTH and abs(there - height) < apart:
                height = there + apart
        taken.append((row["accuracy"], cost, height))
        heights[row["case"]] = 10.0**height
    return heights


def _draw_accuracy(panel: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    """Open symbols: errors published, measured on other test structures than ours."""
    heights = _label_heights(rows)
    for row in rows:
        own, (x, y) = row["accuracy"] != "published", (row["cpu_us_per_atom"], row["force_mae_ev_per_angstrom"])
        face = _colour(row) if own else "none"
        panel.plot(x, y, "o" if own else "s", color=_colour(row), markerfacecolor=face, markersize=5)
        place = {"xytext": (-5, 0), "ha": "right"} if own else {"xytext": (5, 0), "ha": "left"}
        place = {**place, "va": "center", "textcoords": "offset points"}
        panel.annotate(row["case"], (x, heights[row["case"]]), **place, fontsize=6, color=_colour(row))
    panel.set_xscale("log")
    panel.set_yscale("log")
    panel.margins(y=0.1)
    panel.set_ylabel("force MAE (eV/Å)")
    panel.set_title(
        "filled: test set of the model; open: published, on the upstream test files (other structures)", fontsize=8
    )
    _clean(panel)


def _draw_costs(panel: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    for place, row in enumerate(rows):
        low, high = row["cpu_us_per_atom_range"]
        panel.plot([low, high], [place, place], color=_colour(row), linewidth=1.0)
        panel.plot(row["cpu_us_per_atom"], place, "o", color=_colour(row), markersize=4)
    panel.set_yticks(range(len(rows)), [f"{row['program']}: {row['case']}" for row in rows], fontsize=6)
    panel.set_ylim(len(rows) - 0.5, -0.5)
    panel.set_xscale("log")
    # Room for labels on the left of the accuracies above.
    least, most = (row["cpu_us_per_atom_range"][k] for row, k in ((rows[0], 0), (rows[-1], 1)))
    panel.set_xlim(0.3 * least, 1.5 * most)
    panel.set_xlabel("CPU time (µs per atom and call, median; line: all repeats)")
    panel.grid(axis="y", color=_GUIDE, linewidth=0.3)
    _clean(panel)


def draw_scaling(path: Path, document: Mapping[str, Any]) -> None:
    """Write a PNG with one panel per curve of `document["scaling"]`: cost per atom, and speed-up with threads."""
    from matplotlib.figure import Figure

    curves: Mapping[str, Sequence[Mapping[str, Any]]] = document["scaling"]
    figure = Figure(figsize=(3.0 * len(curves) + 0.5, 3.2), layout="constrained", dpi=150)
    panels = figure.subplots(1, len(curves), squeeze=False)[0]
    for panel, (axis, points) in zip(panels, curves.items(), strict=True):
        x = [point["value"] for point in points]
        wall = [point["wall_us_per_atom"] for point in points]
        if axis == "threads":
            panel.plot(x, x, color=_GUIDE, linewidth=1.0, label="ideal")
            panel.plot(x, [wall[0] / each for each in wall], "o-", color=_PROGRAM_COLOURS["snnp"], label="wall time")
            panel.set_ylabel("times faster than one thread")
            panel.set_xticks(x)
            panel.legend(fontsize=7, frameon=False)
        else:
            cpu = [point["cpu_us_per_atom"] for point in points]
            panel.plot(x, cpu, "o-", color=_PROGRAM_COLOURS["snnp"])
            panel.set_ylabel("CPU time (µs/atom)")
            panel.set_ylim(0.0, 1.15 * max(cpu))
            if axis == "atoms":
                panel.set_xscale("log")
            else:
                panel.set_xticks(x)
        panel.set_xlabel(_LABELS[axis])
        _clean(panel)
    about = document["machine"]
    figure.suptitle(f"s-NNP 8+16 filters, L = 4, {about['cpu']}, {document['date']}", fontsize=10)
    _save(figure, path)


def _clean(panel: Any) -> None:
    panel.spines[["top", "right"]].set_visible(False)
    panel.tick_params(axis="both", which="both", labelsize=7)


def _save(figure: Any, path: Path) -> None:
    content = io.BytesIO()
    figure.savefig(content, format=path.suffix.removeprefix(".") or "png")
    write_atomically(path, content.getvalue())
