"""The picture at the head of README and documentation: error of forces against cost, of teachers and their students.

    python docs/measure/pictures/accuracy_cost.py        # accuracy_cost.json -> docs/_static/accuracy-cost.png

The numbers were measured by the commands that stand beside them in the file; this script only draws them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from snnp.report import COLOURS, new_panels, plain_ticks, save_figure

HERE = Path(__file__).resolve().parent
TARGET = HERE.parents[1] / "_static" / "accuracy-cost.png"
STYLES = {"teacher": ("s", COLOURS[1]), "student": ("o", COLOURS[0]), "trained": ("^", COLOURS[2])}


def draw(numbers: dict[str, Any], target: Path = TARGET) -> None:
    """Each panel: arrows lead from teachers to their students."""
    drawn, panels = new_panels(len(numbers["panels"]), 4.8, 3.1, columns=2)
    for panel, each in zip(panels, numbers["panels"], strict=True):
        points = {point["name"]: point for point in each["points"]}
        places = {n: (p["us_per_atom"], p["force_mae_ev_per_angstrom"]) for n, p in points.items()}
        for name, point in points.items():
            marker, colour = STYLES[point["kind"]]
            panel.plot(*places[name], marker, color=colour, markersize=9)
            right = places[name][0] > 100.0
            # Near the axis the words stand above the point.
            low = places[name][1] < 0.3 * max(error for _, error in places.values())
            panel.annotate(
                f"{name}\n{places[name][0]:,g} µs/atom",
                places[name],
                textcoords="offset points",
                xytext=(-9 if right else 9, 9 if low else -9),
                ha="right" if right else "left",
                va="bottom" if low else "top",
                fontsize=9,
            )
            if "teacher" in point:
                style = {"arrowstyle": "->", "color": "#888888", "shrinkA": 9, "shrinkB": 9}
                panel.annotate("", places[name], xytext=places[point["teacher"]], arrowprops=style)
        costs, errors = zip(*places.values(), strict=True)
        panel.set(xscale="log", xlim=(min(costs) / 2.5, max(costs) * 3.5), ylim=(0.0, 1.25 * max(errors)))
        panel.set(xlabel=f"µs/atom ({numbers['machine']})", ylabel="force MAE (eV/Å)")
        panel.set_title(each["title"], fontsize=10, loc="left")
        plain_ticks(panel.xaxis, panel.yaxis)
    save_figure(drawn, target)


if __name__ == "__main__":
    draw(json.loads((HERE / "accuracy_cost.json").read_text(encoding="utf-8")))
