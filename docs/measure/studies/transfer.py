"""How many frames do shared filters save? Learning curves of an element that the filters never saw.

python docs/measure/studies/transfer.py             # what is missing, then the page; about 10 CPU minutes
python docs/measure/studies/transfer.py --page      # the page and the picture of what is there

For each element left out and each seed, a model with shared filters is trained on 60 frames of each of the other five
elements of the mlearn set. From it, and from nothing, models learn 5, 10, 20, 50, and all training frames of the
element left out, with the same number of steps each: with frozen filters, with all parameters free, and from nothing.
All are held against the test file of the element once; nothing is chosen by it.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pages import between_marks, save, written

from snnp.data import Frames, read_frames
from snnp.data.write import xyz_lines
from snnp.files import write_atomically
from snnp.models import load_model
from snnp.report import COLOURS, new_panels, plain_ticks, save_figure
from snnp.training import evaluate, load_config, train

STUDY = Path(__file__).resolve().parents[2] / "studies" / Path(__file__).stem
RUNS = STUDY.parents[2] / "runs" / "transfer"
DATA = Path(os.path.expandvars("$SNNP_DATA")) / "mlearn"
ELEMENTS = ("Ni", "Cu", "Li", "Mo", "Si", "Ge")
LEFT_OUT = ("Ge", "Mo")
SIZES = (5, 10, 20, 50, 0)  # 0: all
SEEDS = (0, 1, 2)
STEPS, BATCH_ATOMS = 800, 128
BASE_FRAMES, BASE_EPOCHS = 60, 40  # of each of the five elements
METHODS = {"from nothing": {}, "filters frozen": {"freeze": "filters"}, "all parameters free": {"freeze": "none"}}
_FORM = {
    "filters": "shared",
    "radial": {"n_filters": 12, "cutoff": 5.0, "intervals": 14},
    "angular": {"n_filters": 16, "cutoff": 5.0, "intervals": 12, "degree": 4},
    "network": {"hidden": [32, 32]},
}
_COMMON: dict[str, Any] = {
    "loss": {"energy_weight": 30, "energy_weight_end": 300},
    "compression": None,
    "threads": 1,
    "validate_every": 1000,
}


@dataclass(frozen=True)
class Case:
    """One training: on so many frames (0: all) of the element left out, by a method, with a seed."""

    element: str
    size: int
    method: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.element}, {self.size or 'all'}, {self.method}, {self.seed}"


def cases(elements: Sequence[str]) -> Iterator[Case]:
    """Seed by seed, so that an interruption leaves whole curves."""
    for element in elements:
        for seed in SEEDS:
            yield from (Case(element, size, method, seed) for size in SIZES for method in METHODS)


def some_frames(element: str, size: int, seed: int) -> Frames:
    """So many training frames (0: all), drawn by the seed; fewer are among more."""
    frames = Frames.of(read_frames(DATA / f"{element}_train.xyz"))
    order = np.random.default_rng(seed).permutation(len(frames))
    return frames.take(np.sort(order[: size or len(frames)]))


def write(frames: Frames, path: Path) -> str:
    """Write extended XYZ; returns the name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, "".join(xyz_lines(frames)).encode())
    return str(path)


def base(element: str, seed: int) -> Path:
    """A model with shared filters that has seen all elements but one; trained where it is not there."""
    folder = RUNS / f"without-{element}-{seed}"
    if not (folder / "summary.json").is_file():
        others = [some_frames(each, BASE_FRAMES, seed) for each in ELEMENTS if each != element]
        chosen = write(Frames.concatenate(others), folder.with_suffix(".xyz"))
        tree = {"data": {"train": chosen, "valid": 0.03}, "model": _FORM, "seed": seed, **_COMMON}
        tree["optimiser"] = {"epochs": BASE_EPOCHS, "learning_rate": 0.01, "batch_atoms": 216}
        train(load_config(tree), folder, overwrite=True)
    return folder / "best"


def measure(case: Case) -> dict[str, Any]:
    """Train, and give the errors on the test file of the element."""
    chosen = some_frames(case.element, case.size, case.seed)
    folder = RUNS / case.name.replace(", ", "-").replace(" ", "-")
    file = write(chosen, folder / "chosen.xyz")
    per_epoch = max(1, round(len(chosen.numbers) / BATCH_ATOMS))
    optimiser = {"epochs": max(2, round(STEPS / per_epoch)), "learning_rate": 0.01, "batch_atoms": BATCH_ATOMS}
    tree = {"data": {"train": file, "valid": 0.0, "check_units": "off"}, "seed": case.seed}
    tree |= {"model": _FORM, "optimiser": optimiser, **_COMMON}
    if METHODS[case.method]:
        tree |= {"start": str(base(case.element, case.seed)), **METHODS[case.method]}
    began = time.process_time()
    result = train(load_config(tree), folder / "run", overwrite=True)
    test = read_frames(DATA / f"{case.element}_test.xyz")
    total = evaluate(load_model(result.folder / "last"), test, model_name="", data_name="").total.to_dict()
    errors = {key: total[key] for key in ("energy_mae_mev_per_atom", "force_mae_ev_per_angstrom")}
    return {"frames": len(chosen), **errors, "cpu_seconds": round(time.process_time() - began, 1)}


def _curve(found: dict[str, Any], element: str, method: str, key: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Frames [n], and mean and standard deviation [n] over seeds."""
    rows = []
    for size in SIZES:
        mine = [found.get(Case(element, size, method, seed).name) for seed in SEEDS]
        known = [each for each in mine if each]
        if known:
            values = [each[key] for each in known]
            rows.append((known[0]["frames"], np.mean(values), np.std(values, ddof=1) if len(values) > 1 else np.nan))
    columns = np.array(rows).T if rows else np.zeros((3, 0))
    return columns[0], columns[1], columns[2]


def needed(found: dict[str, Any], element: str, key: str) -> list[tuple[int, float]]:
    """For each size: frames, and how many training from nothing needs to be as good as with frozen filters.

    On its curve, log-log between sizes; infinite where all frames do not suffice.
    """
    x, y, _ = _curve(found, element, "from nothing", key)
    frames, errors, _ = _curve(found, element, "filters frozen", key)
    falling = np.minimum.accumulate(y)
    return [
        (
            int(n),
            np.inf if error < falling[-1] else float(np.exp(np.interp(-np.log(error), -np.log(falling), np.log(x)))),
        )
        for n, error in zip(frames, errors, strict=True)
    ]


def table(found: dict[str, Any], elements: Sequence[str]) -> str:
    """Markdown: mean and standard deviation over seeds."""
    lines = [
        "| left out | frames | method | seeds | energy MAE (meV/atom) | force MAE (eV/Å) |",
        "|---|--:|---|--:|--:|--:|",
    ]
    for element in elements:
        for k, _ in enumerate(SIZES):
            for method in METHODS:
                cells = []
                n = 0
                for key, digits in (("energy_mae_mev_per_atom", 1), ("force_mae_ev_per_angstrom", 4)):
                    frames, mean, spread = _curve(found, element, method, key)
                    if k < len(frames):
                        n = int(frames[k])
                        more = "" if np.isnan(spread[k]) else f" ± {spread[k]:.{digits}f}"
                        cells.append(f"{mean[k]:.{digits}f}{more}")
                if cells:
                    seeds = sum(Case(element, SIZES[k], method, seed).name in found for seed in SEEDS)
                    lines.append(f"| {element} | {n} | {method} | {seeds} | {' | '.join(cells)} |")
    return "\n".join(lines)


def picture(found: dict[str, Any], elements: Sequence[str]) -> None:
    """Learning curves: a row for each element, energies and forces."""
    drawn, panels = new_panels(2 * len(elements), 3.9, 3.0, columns=2)
    keys = {"energy_mae_mev_per_atom": "energy MAE (meV/atom)", "force_mae_ev_per_angstrom": "force MAE (eV/Å)"}
    for k, panel in enumerate(panels):
        element, key = elements[k // 2], list(keys)[k % 2]
        for (method, colour), style, mark in zip(
            zip(METHODS, COLOURS, strict=False), ("--", "-", ":"), ("o", "s", "^"), strict=True
        ):
            x, y, spread = _curve(found, element, method, key)
            panel.errorbar(
                x,
                y,
                np.nan_to_num(spread),
                color=colour,
                ls=style,
                marker=mark,
                ms=4.5,
                lw=1.5,
                capsize=2,
                label=method,
            )
        panel.set(xscale="log", yscale="log", xlabel=f"frames of {element}", ylabel=keys[key])
        panel.set_title(f"{element}: filters have seen the other five", fontsize=9)
        plain_ticks(panel.xaxis, panel.yaxis)
    panels[0].legend(frameon=False, fontsize=8)
    save_figure(drawn, STUDY.with_suffix(".png"))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--elements", nargs="+", default=list(LEFT_OUT), choices=ELEMENTS)
    parser.add_argument("--page", action="store_true", help="train nothing")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    path = STUDY.with_suffix(".json")
    found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"results": {}}
    for case in [] if asked.page else cases(asked.elements):
        if case.name not in found["results"]:
            found["results"][case.name] = measure(case)
            print(case.name, found["results"][case.name], flush=True)
            save(path, found, ("snnp", "torch", "numpy"))
    elements = [each for each in ELEMENTS if any(name.startswith(f"{each}, ") for name in found["results"])]
    picture(found["results"], elements)
    for element in elements:
        for key in ("energy_mae_mev_per_atom", "force_mae_ev_per_angstrom"):
            print(element, key, [(n, round(each, 1)) for n, each in needed(found["results"], element, key)])
    seconds = sum(each["cpu_seconds"] for each in found["results"].values())
    words = written(found, more=f"{seconds / 60:.0f} CPU minutes")
    if STUDY.with_suffix(".md").is_file():
        between_marks(STUDY.with_suffix(".md"), {"table": f"{table(found['results'], elements)}\n\n{words}"})


if __name__ == "__main__":
    main()
