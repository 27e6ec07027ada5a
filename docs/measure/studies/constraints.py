"""What constraints of the network change: errors, how filters read, and what is said of compressed crystals.

python docs/measure/studies/constraints.py          # what is missing, then page and picture; 4 CPU minutes
python docs/measure/studies/constraints.py --page   # page and picture of what is there

Silicon and copper of mlearn, five readouts, three seeds each, all else alike. Without the short-range repulsion and the
compressed structures that training adds by default: what is seen beyond the data is the network's own.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase.build import bulk
from matplotlib.axes import Axes
from numpy.typing import NDArray
from pages import averaged, between_marks, save, written

from snnp.analysis.curves import all_groups
from snnp.data import Frames, read_frames
from snnp.data.write import xyz_lines
from snnp.explain import Anatomy, spline_model
from snnp.files import write_atomically
from snnp.models import load_model
from snnp.models.potential import Potential
from snnp.report import COLOURS, new_figure, save_figure
from snnp.training import evaluate, load_config, train

Array = NDArray[np.float64]

STUDY = Path(__file__).resolve().parents[2] / "studies" / Path(__file__).stem
RUNS = STUDY.parents[2] / "runs" / Path(__file__).stem
DATA = Path(os.path.expandvars("$SNNP_DATA")) / "mlearn"
CRYSTALS = {"Si": ("diamond", 5.469), "Cu": ("fcc", 3.621)}  # and a (Å) of the reference method
SEEDS, EPOCHS, FRAMES = (0, 1, 2), 40, 120
READOUTS: dict[str, dict[str, Any]] = {
    "default (silu, skip)": {"network": {"hidden": [32, 32]}},
    "softplus, no skip": {"network": {"hidden": [32, 32], "activation": "softplus"}, "skip": False},
}
# With softplus, a monotone network is convex as well: monotone alone needs tanh.
READOUTS |= {
    name: {"network": {"hidden": [32, 32], "activation": activation, "constraint": name}, "skip": False}
    for name, activation in (("monotone", "tanh"), ("convex", "softplus"), ("monotone-convex", "softplus"))
}
FORM: dict[str, Any] = {
    "radial": {"n_filters": 12, "cutoff": 5.0, "intervals": 14},
    "angular": {"n_filters": 16, "cutoff": 5.0, "intervals": 12, "degree": 4},
}
ERRORS = {"energy_mae_mev_per_atom": 1, "force_mae_ev_per_angstrom": 4}  # and the digits of the table
VOLUMES = np.linspace(1.1, 0.3, 41)  # V / V0
SHOWN = ("default (silu, skip)", "monotone-convex")  # whose filters are drawn


def frames_of(element: str, seed: int) -> Frames:
    """Training frames, drawn by the seed."""
    frames = Frames.of(read_frames(DATA / f"{element}_train.xyz"))
    return frames.take(np.sort(np.random.default_rng(seed).permutation(len(frames))[:FRAMES]))


def compressed(model: Potential, element: str) -> list[float]:
    """eV per atom of the crystal at `VOLUMES`."""
    lattice, a = CRYSTALS[element]
    cells = [bulk(element, lattice, a=a * volume ** (1 / 3), cubic=True) for volume in VOLUMES]
    return [float(model.compute(cell, forces=False).energies.mean()) for cell in cells]


def measure(element: str, readout: str, seed: int) -> dict[str, Any]:
    """Train, and all that is asked."""
    chosen = frames_of(element, seed)
    folder = RUNS / f"{element}-{readout.split(' ')[0].strip(',')}-{seed}"
    file = folder.with_suffix(".xyz")
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, "".join(xyz_lines(chosen)).encode())
    tree = {
        "data": {"train": str(file), "valid": 0.0},
        "model": FORM | READOUTS[readout],
        "loss": {"energy_weight": 30, "energy_weight_end": 300},
        "optimiser": {"epochs": EPOCHS, "learning_rate": 0.01, "batch_atoms": 216},
        **{"ranges": "given", "compression": None, "threads": 1, "validate_every": 1000, "seed": seed},
    }
    began = time.process_time()
    train(load_config(tree), folder, overwrite=True)
    model = load_model(folder / "last")
    total = evaluate(model, read_frames(DATA / f"{element}_test.xyz"), model_name="", data_name="").total.to_dict()
    anatomy = Anatomy(spline_model(model, readout), chosen.take(np.arange(0, len(chosen), 4)))
    parts = {name: 1e3 * float(values.std()) for name, values in anatomy.parts.items() if name != "typical"}
    found = {"errors": {key: total[key] for key in ERRORS}, "turned": anatomy.turned, "parts": parts}
    found |= {"linear": anatomy.linear_share["best"], "compressed": compressed(model, element)}
    shown = _worth(anatomy) if readout in SHOWN and seed == SEEDS[0] else None
    return found | {"filters": shown, "cpu_seconds": round(time.process_time() - began, 1)}


def _worth(anatomy: Anatomy) -> dict[str, Any]:
    """The three radial filters that contribute most, as eV per neighbour: mean, 5th and 95th percentile over atoms."""
    x = torch.linspace(1.8, anatomy.model.cutoff, 120, dtype=torch.float64)
    n = anatomy.model.config.radial.n_filters
    with torch.no_grad():
        values = all_groups(anatomy.model.rho, x)[0].numpy()
    gradient, curves = anatomy.gradient.numpy(), []
    for k in np.argsort(-anatomy.contribution[:n])[:3]:
        low, high = np.percentile(gradient[:, k], (5.0, 95.0))
        curves.append([(h * values[k]).round(5).tolist() for h in (gradient[:, k].mean(), low, high)])
    return {"r": x.numpy().round(3).tolist(), "curves": curves}


def begins_to_fall(energies: list[float]) -> float | None:
    """V / V0 below which further compression lowers the energy; None where it does not."""
    inner = VOLUMES <= 0.9
    falling = np.flatnonzero(np.diff(np.array(energies)[inner]) < 0.0)
    return float(VOLUMES[inner][falling[0]]) if len(falling) else None


def table(found: dict[str, Any]) -> str:
    """Markdown: mean and deviation over seeds."""
    lines = [
        "| element | readout | seeds | energy MAE (meV/atom) | force MAE (eV/Å) | pulls the other way | network (meV) "
        "| linear | energy falls when compressed beyond V/V0 |",
        "|---|---|--:|--:|--:|--:|--:|--:|---|",
    ]
    for element in CRYSTALS:
        for readout in READOUTS:
            runs = [found["results"].get(f"{element}, {readout}, {seed}") for seed in SEEDS]
            runs = [run for run in runs if run]
            if not runs:
                continue
            cells = [str(len(runs))]
            for key, digits in ERRORS.items():
                values = [run["errors"][key] for run in runs]
                cells.append(averaged(values, digits))
            cells.append(f"{100 * np.mean([run['turned'] for run in runs]):.1f} %")
            cells.append(f"{np.mean([run['parts']['network'] for run in runs]):.0f}")
            cells.append(f"{100 * np.mean([run['linear'] for run in runs]):.1f} %")
            falls = [begins_to_fall(run["compressed"]) for run in runs]
            cells.append(", ".join("never" if each is None else f"{each:.2f}" for each in falls))
            lines.append(f"| {element} | {readout} | {' | '.join(cells)} |")
    return "\n".join(lines)


def picture(found: dict[str, Any]) -> None:
    """Energies of compressed crystals, and the same filters' worth in all surroundings."""
    drawn = new_figure(12.0, 6.4)
    for panels, element in zip(drawn.subplots(2, 3), CRYSTALS, strict=True):
        for readout, colour, style in zip(READOUTS, COLOURS, ("-", "--", "-.", ":", (0, (5, 1))), strict=False):
            for seed in SEEDS:
                run = found["results"].get(f"{element}, {readout}, {seed}")
                if run:
                    energy = np.array(run["compressed"]) - np.interp(1.0, VOLUMES[::-1], run["compressed"][::-1])
                    label = readout if seed == SEEDS[0] else None
                    panels[0].plot(VOLUMES, energy, ls=style, color=colour, lw=1.2, label=label)
        panels[0].set(xlabel="V / V0", ylabel="eV/atom", title=f"{element}: crystal, compressed")
        panels[0].set_yscale("symlog", linthresh=1.0)
        panels[0].legend(frameon=False, fontsize=7)
        for panel, readout in zip(panels[1:], SHOWN, strict=True):
            _draw_worth(panel, found["results"].get(f"{element}, {readout}, {SEEDS[0]}"), f"{element}: {readout}")
    save_figure(drawn, STUDY.with_suffix(".png"))


def _draw_worth(panel: Axes, run: dict[str, Any] | None, title: str) -> None:
    if not run:
        return
    for (mean, low, high), colour, style in zip(run["filters"]["curves"], COLOURS, ("-", "--", ":"), strict=False):
        panel.fill_between(run["filters"]["r"], low, high, color=colour, alpha=0.25, lw=0)
        panel.plot(run["filters"]["r"], mean, color=colour, ls=style, lw=1.5)
    panel.axhline(0.0, color="#66717e", lw=0.6)
    panel.set(xlabel="r (Å)", ylabel="h ρ(r) (eV)", title=title)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--page", action="store_true", help="train nothing")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    path = STUDY.with_suffix(".json")
    found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"results": {}}
    names = [(element, readout, seed) for seed in SEEDS for element in CRYSTALS for readout in READOUTS]
    for element, readout, seed in [] if asked.page else names:
        name = f"{element}, {readout}, {seed}"
        if name not in found["results"]:
            found["results"][name] = measure(element, readout, seed)
            told = {key: found["results"][name][key] for key in ("errors", "turned", "linear", "cpu_seconds")}
            print(name, told, flush=True)
            save(path, found, ("snnp", "torch", "numpy"), indent=None)
    picture(found)
    between_marks(STUDY.with_suffix(".md"), {"table": f"{table(found)}\n\n{written(found)}"})


if __name__ == "__main__":
    main()
