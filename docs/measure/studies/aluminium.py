"""Aluminium from a universal teacher: where `snnp-al` melts, and its liquid, beside what was measured.

python docs/measure/studies/aluminium.py          # what is missing, then tables and picture
python docs/measure/studies/aluminium.py --plot   # from docs/studies/aluminium.json

Melting by coexistence: half of a long box is melted, then all of it runs at a temperature and no pressure; whether the
crystal grows is seen in the enthalpy, which falls or rises with the latent heat. Where its slope crosses zero is the
melting point. What is finished is not run again.
"""

from __future__ import annotations

import argparse
import csv
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.build import bulk
from pages import between_marks, provenance, written

from snnp.files import write_atomically
from snnp.models import load_model
from snnp.models.potential import Potential
from snnp.report import new_figure, save_figure
from snnp.sampling import MDSettings, run_md
from snnp.sampling.plots import RadialDistribution

STUDY = Path(__file__).resolve().parents[2] / "studies" / Path(__file__).stem
MODEL = "snnp-al"
SIZES = {"1,600 atoms": (5, 5, 16), "4,704 atoms": (7, 7, 24)}
TEMPERATURES = (720.0, 760.0, 800.0, 840.0, 880.0)  # K
SEEDS = (0, 1)
HOT = 2500.0  # K, of the half that is melted
DT, MELT, SETTLE, SLOPE = 2.0, 6.0, 5.0, 30.0  # fs; ps of melting, of settling, and that the slope is taken over
LIQUID = {"repeat": 8, "kelvin": 943.0, "melted_at": 2000.0, "melt_ps": 5.0, "settle_ps": 10.0, "sample_ps": 20.0}
MEASURED = {"melting": 933.47, "first": (2.80, 2.83), "minimum": (3.80, 0.56), "second": (5.15, 1.27)}
"""K; Å and height of g(r), X-ray diffraction at 943 K (as in hippynn's example of aluminium)."""


def steps(picoseconds: float) -> int:
    """Number of steps of that time."""
    return round(1000.0 * picoseconds / DT)


def run(model: Potential, atoms: Atoms, kelvin: float, picoseconds: float, **changes: Any) -> Atoms:
    """Atoms after Langevin dynamics at constant volume or, with ensemble npt, at no pressure."""
    settings = MDSettings(
        temperature_k=kelvin, steps=steps(picoseconds), dt_fs=DT, friction_per_ps=2.0, equilibrate=0, **changes
    )
    return run_md(model, atoms, settings, engine="native").final


def slope(model: Potential, size: tuple[int, int, int], kelvin: float, seed: int) -> float:
    """Of the potential energy of crystal and melt side by side, meV/atom/ps."""
    # Wide enough for a warm crystal, and in z for a melt beside it; the barostat does the rest.
    atoms = bulk("Al", cubic=True, a=4.13).repeat(size)
    atoms.set_cell(atoms.cell * np.array([1.0, 1.0, 1.03])[:, None], scale_atoms=True)
    order = np.argsort(atoms.positions[:, 2], kind="stable")
    atoms = atoms[order]
    last = len(atoms) // 2 - 1
    atoms = run(model, atoms, HOT, MELT, fix=f"0-{last}", seed=seed)
    atoms.set_constraint()
    constant = {"ensemble": "npt", "barostat": "anisotropic", "seed": seed, "new_velocities": True}
    atoms = run(model, atoms, kelvin, SETTLE, **constant)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.csv"
        run(model, atoms, kelvin, SLOPE, log=path, log_interval=50, **{**constant, "new_velocities": False})
        with path.open(encoding="utf-8") as file:
            rows = list(csv.DictReader(row for row in file if not row.startswith("#")))
    (time,) = [name for name in rows[0] if name.startswith("time")]
    (energy,) = [name for name in rows[0] if name.startswith("potential")]
    x, y = (np.array([float(row[name]) for row in rows]) for name in (time, energy))
    unit = 1e3 if time.endswith("fs") else 1.0
    return float(np.polyfit(x / unit, 1e3 * y / len(atoms), 1)[0])


def melting_point(slopes: dict[str, list[float]]) -> tuple[float, float]:
    """Where a line through all slopes crosses zero (K), and its standard error by the bootstrap over runs."""
    x = np.repeat([float(kelvin) for kelvin in slopes], [len(values) for values in slopes.values()])
    y = np.concatenate(list(slopes.values()))
    rng, found = np.random.default_rng(0), []
    for k in range(1000):
        chosen = slice(None) if k == 0 else rng.integers(len(x), size=len(x))
        if len(np.unique(x[chosen])) > 1:
            rise, at_zero = np.polyfit(x[chosen], y[chosen], 1)
            found.append(-at_zero / rise)
    return found[0], float(np.std(found[1:]))


def liquid(model: Potential) -> dict[str, Any]:
    """Radial distribution at 943 K and no pressure, and its density (g/cm³)."""
    atoms = bulk("Al", cubic=True, a=4.3).repeat(LIQUID["repeat"])
    atoms = run(model, atoms, LIQUID["melted_at"], LIQUID["melt_ps"])
    atoms = run(model, atoms, LIQUID["kelvin"], LIQUID["settle_ps"], ensemble="npt", new_velocities=True)
    radial, volumes = RadialDistribution(), []
    parts = 100
    for k in range(parts):
        atoms = run(model, atoms, LIQUID["kelvin"], LIQUID["sample_ps"] / parts, ensemble="npt", seed=k)
        radial.add(atoms, k)
        volumes.append(atoms.get_volume())
    density = 1.66054 * atoms.get_masses().sum() / float(np.mean(volumes))
    return {"r": radial.centres.tolist(), "g": radial.curves()["Al-Al"].tolist(), "density": density}


def extremes(r: np.ndarray, g: np.ndarray) -> dict[str, tuple[float, float]]:
    """First peak, minimum and second peak of g(r): place (Å) and height, each by a parabola through seven points."""
    found, start = {}, 2.0
    for name, end, sign in (("first", 3.4, 1.0), ("minimum", 4.6, -1.0), ("second", 6.2, 1.0)):
        inside = np.flatnonzero((r > start) & (r < end))
        k = int(inside[np.argmax(sign * g[inside])])
        a, b, c = np.polyfit(r[k - 3 : k + 4] - r[k], g[k - 3 : k + 4], 2)
        place = -b / (2.0 * a)
        found[name] = (float(r[k] + place), float(c + b * place + a * place**2))
        start = found[name][0] + 0.2
    return found


def table(found: dict[str, Any]) -> str:
    """Markdown: model beside measurement."""
    lines = ["| | snnp-al | measured |", "|---|--:|--:|"]
    for name, slopes in found["slopes"].items():
        kelvin, error = melting_point(slopes)
        lines.append(f"| melting point, {name} (K) | {kelvin:.0f} ± {error:.0f} | {MEASURED['melting']:.0f} |")
    if "liquid" in found:
        r, g = np.array(found["liquid"]["r"]), np.array(found["liquid"]["g"])
        for name, (place, height) in extremes(r, g).items():
            there = "minimum" if name == "minimum" else f"{name} peak"
            said = "{:.2f} Å, {:.2f}".format(*MEASURED[name])
            lines.append(f"| liquid at 943 K, {there} of g(r) | {place:.2f} Å, {height:.2f} | {said} |")
        lines.append(f"| its density (g/cm³) | {found['liquid']['density']:.2f} | 2.37 |")
    lines += ["", written(found)]
    return "\n".join(lines)


def draw(found: dict[str, Any]) -> None:
    """Slopes over temperature, and the radial distribution with what was measured."""
    figure = new_figure(9.0, 3.4)
    left, right = figure.subplots(1, 2)
    for (name, slopes), marker in zip(found["slopes"].items(), "os", strict=False):
        x = np.repeat([float(kelvin) for kelvin in slopes], [len(values) for values in slopes.values()])
        left.plot(x, np.concatenate(list(slopes.values())), marker, label=name, markersize=4)
    left.axhline(0.0, color="#888888", linewidth=0.8)
    left.axvline(MEASURED["melting"], color="#888888", linewidth=0.8, linestyle=":", label="measured")
    left.set(xlabel="temperature (K)", ylabel="slope of the energy (meV/atom/ps)", title="the melt grows above zero")
    left.legend(frameon=False, fontsize=8)
    if "liquid" in found:
        right.plot(found["liquid"]["r"], found["liquid"]["g"], label="snnp-al, 943 K")
        points = [MEASURED[name] for name in ("first", "minimum", "second")]
        right.plot(*zip(*points, strict=True), "x", color="#c8553d", label="X-ray diffraction")
        right.set(xlabel="r (Å)", ylabel="g(r)", xlim=(1.8, 8.0))
        right.legend(frameon=False, fontsize=8)
    save_figure(figure, STUDY.with_suffix(".png"))


def main() -> None:
    """Run what is missing, and write tables and picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plot", action="store_true", help="only tables and picture, from the JSON")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    path, model = STUDY.with_suffix(".json"), load_model(MODEL)
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"slopes": {}}

    def save() -> None:
        found.update(provenance(("snnp", "torch", "numpy", "ase")))
        write_atomically(path, (json.dumps(found, indent=1) + "\n").encode())

    if not asked.plot and "liquid" not in found:
        found["liquid"] = liquid(model)
        save()
    for name, size in {} if asked.plot else SIZES.items():
        for seed in SEEDS:
            for kelvin in TEMPERATURES:
                slopes = found["slopes"].setdefault(name, {}).setdefault(f"{kelvin:g}", [])
                if len(slopes) <= seed:
                    slopes.append(slope(model, size, kelvin, seed))
                    print(name, kelvin, seed, slopes[-1], flush=True)
                    save()
    between_marks(STUDY.with_suffix(".md"), {"table": table(found)})
    draw(found)


if __name__ == "__main__":
    main()
