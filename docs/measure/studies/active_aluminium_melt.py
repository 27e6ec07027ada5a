"""Where students that began with nothing melt, and their liquid, beside a model of the same labeller and measurement.

python docs/measure/studies/active_aluminium_melt.py --runs runs/active_aluminium    # after active_aluminium.py

The first member of each seed's last committee of `active_aluminium.py`; coexistence and liquid as in `aluminium.py`, in
smaller boxes and shorter. Numbers of `snnp-al` are that study's. What is finished is not run again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import aluminium
import numpy as np
import torch
from active_aluminium_page import BUDGETS
from pages import averaged, between_marks, provenance, written

from snnp.files import write_atomically
from snnp.models import load_model

STUDY = Path(__file__).resolve().parents[2] / "studies" / Path(__file__).stem
PAGE = STUDY.with_name("active_aluminium.md")
SIZE, SEEDS = (4, 4, 10), (0, 1, 2)
FIRST, STEP, ENDS = (750.0, 900.0), 150.0, (300.0, 1200.0)  # K; farther where both slopes have one sign
aluminium.MELT, aluminium.SETTLE, aluminium.SLOPE = 4.0, 3.0, 12.0
aluminium.LIQUID |= {"repeat": 5, "melt_ps": 3.0, "settle_ps": 5.0, "sample_ps": 10.0}


def compute(models: dict[str, Path], found: dict[str, Any], save: Callable[[], None]) -> None:
    """What is missing of each model: the liquid, then slopes until two neighbours have other signs."""
    for name, path in models.items():
        model = load_model(path, dtype="float32")
        mine = found["models"].setdefault(name, {"slopes": {}})
        if "liquid" not in mine:
            mine["liquid"] = aluminium.liquid(model)
            save()
        while (kelvin := wanted(mine["slopes"])) is not None:
            mine["slopes"][f"{kelvin:g}"] = aluminium.slope(model, SIZE, kelvin, 0)
            print(name, kelvin, mine["slopes"][f"{kelvin:g}"], flush=True)
            save()


def wanted(slopes: dict[str, float]) -> float | None:
    """The next temperature; None where the melting point lies between two, or beyond what is looked at."""
    for kelvin in FIRST:
        if f"{kelvin:g}" not in slopes:
            return kelvin
    if melting(slopes) is not None:
        return None
    known = sorted(map(float, slopes))
    following = known[0] - STEP if min(slopes.values()) > 0.0 else known[-1] + STEP
    return following if ENDS[0] <= following <= ENDS[1] else None


def melting(slopes: dict[str, float]) -> float | None:
    """K, on the line between two neighbours, of which the crystal grows at the lower one and the melt at the other."""
    for low, high in pairwise(sorted(map(float, slopes))):
        below, above = slopes[f"{low:g}"], slopes[f"{high:g}"]
        if below < 0.0 < above:
            return low - below * (high - low) / (above - below)
    return None


def table(found: dict[str, Any]) -> str:
    """Markdown."""
    students = list(found["models"].values())
    guide = json.loads(aluminium.STUDY.with_suffix(".json").read_text())
    point, _ = aluminium.melting_point(guide["slopes"]["4,704 atoms"])
    kelvins = [kelvin for mine in students if (kelvin := melting(mine["slopes"])) is not None]
    lines = ["| | active, 120 labels | snnp-al | measured |", "|---|--:|--:|--:|"]
    said = f"{averaged(kelvins, 0)} ({len(kelvins)} of {len(students)} seeds)"
    lines.append(f"| melting by coexistence, K | {said} | {point:.0f} | {aluminium.MEASURED['melting']:.0f} |")
    groups = [[mine["liquid"] for mine in students], [guide["liquid"]]]
    for name in ("first", "minimum", "second"):
        cells = []
        for group in groups:
            seen = [aluminium.extremes(np.array(one["r"]), np.array(one["g"]))[name] for one in group]
            cells.append(
                f"{averaged([place for place, _ in seen], 2)} Å, {averaged([height for _, height in seen], 2)}"
            )
        there = "minimum" if name == "minimum" else f"{name} peak"
        measured = "{:.2f} Å, {:.2f}".format(*aluminium.MEASURED[name])
        lines.append(f"| liquid at 943 K, {there} of g(r) | {' | '.join(cells)} | {measured} |")
    cells = [averaged([one["density"] for one in group], 2) for group in groups]
    lines.append(f"| its density, g/cm³ | {' | '.join(cells)} | 2.37 |")
    command = f"`python docs/measure/studies/{Path(__file__).name}`"
    lines += ["", written(found, command)]
    return "\n".join(lines)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=STUDY.parents[2] / "runs" / "active_aluminium")
    parser.add_argument("--tables", action="store_true", help="the table from the JSON, compute nothing")
    asked = parser.parse_args()
    path = STUDY.with_suffix(".json")
    found: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {"models": {}}

    def save() -> None:
        found.update(provenance(("snnp", "torch", "numpy", "ase")))
        write_atomically(path, (json.dumps(found, indent=1) + "\n").encode())

    if not asked.tables:
        torch.set_num_threads(1)
        last = {f"seed {seed}": asked.runs / f"active-{seed}" / f"{BUDGETS[-1]}" / "0" / "best" for seed in SEEDS}
        compute(last, found, save)
    between_marks(PAGE, {"melting": table(found)})


if __name__ == "__main__":
    main()
