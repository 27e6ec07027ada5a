"""Pictures of a benchmark: accuracy against cost with all costs below, and how cost grows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from snnp.report import new_figure, plain_ticks, save_figure, shortened

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
        path: the file, replaced atomically. document: of `peers.document.document`.
    """
    rows = sorted(document["rows"], key=lambda row: row["cpu_us_per_atom"])
    known = [row for row in rows if row.get("force_mae_ev_per_angstrom")]
    top = 4.6 if known else 0.0
    bottom = 1.2 + 0.19 * len(rows)
    figure = new_figure(8.5, top + bottom)
    if known:
        accuracy, costs = figure.subplots(2, 1, sharex=True, height_ratios=[top, bottom])
        _draw_accuracy(accuracy, known)
    else:
        costs = figure.subplots()
    _draw_costs(costs, rows)
    about = document["machine"]
    figure.suptitle(f"energy and forces, {about['cpu']}, {document['date']}", fontsize=10)
    if known:
        _label(accuracy, known)
    save_figure(figure, path)


def _draw_accuracy(panel: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    """Open symbols: errors published, measured on other test structures than ours."""
    for row in rows:
        own, (x, y) = row["accuracy"] != "published", (row["cpu_us_per_atom"], row["force_mae_ev_per_angstrom"])
        face = _colour(row) if own else "none"
        panel.plot(x, y, "o" if own else "s", color=_colour(row), markerfacecolor=face, markersize=5)
    panel.set_xscale("log")
    panel.set_yscale("log")
    errors = [row["force_mae_ev_per_angstrom"] for row in rows]
    panel.set_ylim(min(errors) / 1.3, 1.3 * max(errors))
    plain_ticks(panel.yaxis)
    panel.set_ylabel("force MAE (eV/Å)")
    panel.set_title(
        "filled: test set of the model; open: published, on the upstream test files (other structures)", fontsize=8
    )
    _clean(panel)


def _label(panel: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write the name of each case beside its symbol, where neither a symbol nor another name stands."""
    panel.figure.draw_without_rendering()  # so that the places on the page are known
    scale = 72.0 / panel.figure.dpi
    places = [
        scale * panel.transData.transform((row["cpu_us_per_atom"], row["force_mae_ev_per_angstrom"])) for row in rows
    ]
    taken = [(x - 4.0, x + 4.0, y - 3.0, y + 3.0) for x, y in places]
    for (x, y), row in zip(places, rows, strict=True):
        name = shortened(row["case"])
        width, best, least = 3.5 * len(name), (5.0, 0.0, "left"), math.inf
        for dy in (0.0, 6.0, -6.0, 12.0, -12.0, 18.0, -18.0):
            for dx, side in ((5.0, "left"), (-5.0, "right")):
                left = x + dx if side == "left" else x + dx - width
                box = (left, left + width, y + dy - 3.0, y + dy + 3.0)
                covered = sum(_overlap(box, other) for other in taken)
                if covered < least:
                    best, least = (dx, dy, side), covered
        dx, dy, side = best
        left = x + dx if side == "left" else x + dx - width
        taken.append((left, left + width, y + dy - 3.0, y + dy + 3.0))
        point = (row["cpu_us_per_atom"], row["force_mae_ev_per_angstrom"])
        how = {"textcoords": "offset points", "va": "center", "fontsize": 6, "color": _colour(row)}
        panel.annotate(name, point, xytext=(dx, dy), ha=side, **how)


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    """Area that two boxes (left, right, bottom, top) share."""
    return max(min(a[1], b[1]) - max(a[0], b[0]), 0.0) * max(min(a[3], b[3]) - max(a[2], b[2]), 0.0)


def _draw_costs(panel: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    for place, row in enumerate(rows):
        low, high = row["cpu_us_per_atom_range"]
        panel.plot([low, high], [place, place], color=_colour(row), linewidth=1.0)
        panel.plot(row["cpu_us_per_atom"], place, "o", color=_colour(row), markersize=4)
    panel.set_yticks(range(len(rows)), [shortened(f"{row['program']}: {row['case']}", 48) for row in rows], fontsize=6)
    panel.set_ylim(len(rows) - 0.5, -0.5)
    panel.set_xscale("log")
    # Room for labels on the left of the accuracies above.
    least, most = (row["cpu_us_per_atom_range"][k] for row, k in ((rows[0], 0), (rows[-1], 1)))
    panel.set_xlim(0.3 * least, 1.5 * most)
    plain_ticks(panel.xaxis, most=8)
    panel.set_xlabel("CPU time (µs per atom and call, median; line: all repeats)")
    panel.grid(axis="y", color=_GUIDE, linewidth=0.3)
    _clean(panel)


def draw_scaling(path: Path, document: Mapping[str, Any]) -> None:
    """Write a PNG with one panel per curve of `document["scaling"]`: cost per atom, and speed-up with threads."""
    curves: Mapping[str, Sequence[Mapping[str, Any]]] = document["scaling"]
    figure = new_figure(max(3.0 * len(curves) + 0.5, 5.5), 3.4)
    panels = figure.subplots(1, len(curves), squeeze=False)[0]
    for panel, (axis, points) in zip(panels, curves.items(), strict=True):
        x = [point["value"] for point in points]
        wall = [point["wall_us_per_atom"] for point in points]
        if axis == "threads":
            panel.plot(x, x, color=_GUIDE, linewidth=1.0, label="ideal")
            panel.plot(x, [wall[0] / each for each in wall], "o-", color=_PROGRAM_COLOURS["snnp"], label="wall time")
            panel.set_ylabel("times faster than one thread")
            panel.set_xticks(x)
            panel.set_ylim(bottom=0.0)
            panel.legend(fontsize=7, frameon=False)
        else:
            cpu = [point["cpu_us_per_atom"] for point in points]
            panel.plot(x, cpu, "o-", color=_PROGRAM_COLOURS["snnp"])
            panel.set_ylabel("CPU time (µs/atom)")
            panel.set_ylim(0.0, 1.15 * max(cpu))
            if axis != "degree":
                panel.set_xscale("log")
                panel.set_xlim(min(x) / 1.5, 1.5 * max(x))
                panel.set_xticks([], minor=True)
            panel.set_xticks(x, [f"{each:,}" for each in x])
        panel.set_xlabel(_LABELS[axis])
        _clean(panel)
    about = document["machine"]
    figure.suptitle(f"s-NNP 8+16 filters, L = 4, {about['cpu']}, {document['date']}", fontsize=10)
    save_figure(figure, path)


def _clean(panel: Any) -> None:
    panel.spines[["top", "right"]].set_visible(False)
    panel.tick_params(axis="both", which="both", labelsize=7)
