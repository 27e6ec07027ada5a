"""What curves of our own differ by: radial distributions of aluminium, phonons of crystals, the filters of all models.

python docs/measure/studies/own_curves.py                  # what is missing, autoencoders, then page and pictures
python docs/measure/studies/own_curves.py --only phonons   # one family; the others stay as they were
python docs/measure/studies/own_curves.py --page           # the page of what is there

`snnp-al`, 108 atoms, three volumes, 20 temperatures each for crystal and liquid, 3 ps at constant volume, of which the
last two count. What moved by more than 0.8 Å (root mean square over the last two picoseconds) is liquid, whatever it
began as. Filters are those of `filters.py`, phonons those of `phonons.py`. Each family goes through the autoencoder
with three seeds.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.build import bulk
from ase.geometry import find_mic
from ase.io import read
from filters import filters
from pages import between_marks, provenance, written
from phonons import SUPERCELLS, densities

from snnp.discovery.autoencoder import VAESettings
from snnp.discovery.curve_family import CurveFamily, Discovery, discover_curves, read_family, spearman
from snnp.discovery.latent_pictures import report_on
from snnp.files import replacing, write_atomically
from snnp.models import load_model
from snnp.report import COLOURS, jsonable, new_panels, png
from snnp.sampling import MDSettings, run_md
from snnp.sampling.plots import RadialDistribution

STUDY = Path(__file__).resolve().parents[2] / "studies" / Path(__file__).stem
RUNS = STUDY.parents[2] / "runs" / Path(__file__).stem
SEEDS, FAMILIES = (0, 1, 2), ("rdf", "phonons", "filters")
LATTICES = (3.97, 4.05, 4.15)  # Å, of the crystal with the same volume for each atom
SOLID, LIQUID = np.linspace(100.0, 1050.0, 20), np.linspace(700.0, 2600.0, 20)  # K
STEPS, APART, DT_FS = 1500, 500, 2.0
REACH, FROM = 7.5, 1.5  # Å
MOLTEN = 0.8  # Å


def simulate(start: Atoms, temperature: float, seed: int) -> tuple[np.ndarray, np.ndarray, float, Atoms]:
    """Points and g(r) of the last part of a run, the root mean square displacement (Å) in it, the atoms at its end."""
    path = RUNS / "now.extxyz"
    settings = MDSettings(
        **{"temperature_k": temperature, "steps": STEPS, "dt_fs": DT_FS, "friction_per_ps": 5.0, "seed": seed},
        **{"trajectory": path, "trajectory_interval": 25, "equilibrate": 0, "new_velocities": True},
    )
    final = run_md(load_model("snnp-al"), start, settings, engine="native").final
    frames: Any = read(path, index=":")
    frames = frames[APART // 25 :]
    distribution = RadialDistribution(REACH, 0.1)
    for step, frame in enumerate(frames):
        distribution.add(frame, step)
    moved = find_mic(frames[-1].positions - frames[0].positions, start.cell)[0]
    moved = moved - moved.mean(axis=0)
    taken = distribution.centres > FROM
    curve = distribution.curves()["Al-Al"][taken]
    return distribution.centres[taken], curve, float(np.sqrt((moved**2).sum(axis=1).mean())), final


def distributions() -> CurveFamily:
    """All runs, from the file of an earlier call if there is one."""
    path = RUNS / "rdf.npz"
    if path.is_file():
        return read_family(path)
    RUNS.mkdir(parents=True, exist_ok=True)
    curves, known, x = [], [], np.empty(0)
    for lattice in LATTICES:
        crystal = bulk("Al", cubic=True, a=lattice).repeat((3, 3, 3))
        molten = simulate(crystal, 3500.0, 0)[3]
        starts = [(crystal, t) for t in SOLID] + [(molten, t) for t in LIQUID]
        for seed, (start, temperature) in enumerate(starts):
            x, curve, moved, _ = simulate(start, float(temperature), seed)
            curves.append(curve)
            known.append((temperature, lattice**3 / 4.0, float(moved > MOLTEN), moved))
        print(f"a = {lattice} Å: {len(curves)} curves", flush=True)
    names = ["temperature", "volume", "liquid", "moved"]
    with replacing(path) as temporary:
        np.savez(temporary, curves=np.array(curves), x=x, parameters=np.array(known), names=names)
    return read_family(path)


def all_filters() -> CurveFamily:
    """Radial filters of all bundled s-NNPs, and what is easily said of each."""
    x = np.linspace(0.15, 1.0, 120)
    curves, known = filters(x)
    named = dict(zip(("cutoff", "r_peak", "peak/cutoff", "sign changes"), known.T, strict=True))
    width = np.abs(curves).sum(axis=1) * (x[1] - x[0])
    return CurveFamily(x, curves, named | {"area": width}, "filters")


def apart(found: Discovery, k: int) -> dict[str, float]:
    """Spearman's correlations of a variable; of radial distributions for crystals and liquids by themselves.

    Of phonons the correlation with the volume is the mean of those within each crystal; besides, the share of the
    variance that is within crystals, which is what volume does.
    """
    known, values = found.family.parameters, found.encoded.mean[:, k]
    if "crystal" in known:
        said = {name: spearman(values, known[name]) for name in (*SUPERCELLS, "spread", "rms")}
        mine = [known["crystal"] == each for each in np.unique(known["crystal"])]
        along = [spearman(values[each], known["volume"][each]) for each in mine if each.sum() > 2]
        within = sum(values[each].var() * each.sum() for each in mine) / (values.var() * len(values))
        return said | {"volume, in a crystal": float(np.mean(along)), "varies within crystals": float(within)}
    if "liquid" not in known:
        return {name: spearman(values, known[name]) for name in ("peak/cutoff", "area", "sign changes", "cutoff")}
    said = {"liquid": spearman(values, known["liquid"])}
    for phase, mine in (("crystals", known["liquid"] == 0.0), ("liquids", known["liquid"] == 1.0)):
        for name in ("temperature", "volume"):
            said[f"{name}, {phase}"] = spearman(values[mine], known[name][mine])
    return said


def measure(family: CurveFamily) -> tuple[dict[str, Any], Discovery]:
    """Active variables for all seeds, and what the first seed found."""
    rows, first = [], None
    for seed in SEEDS:
        found = discover_curves(family, VAESettings(seed=seed))
        first = first or found
        variables = [
            {"variable": f"z{k + 1}", "nats": float(found.encoded.nats[k]), **apart(found, k)} for k in found.active
        ]
        rows.append({"seed": seed, "kept": found.kept, "variables": variables})
        print(json.dumps(jsonable(rows[-1]), ensure_ascii=False), flush=True)
    assert first is not None
    return {"curves": len(family.curves), "runs": rows}, first


def draw_rdf(found: Discovery) -> bytes:
    """The two variables that tell most, by phase and temperature, and by volume."""
    known, mean = found.family.parameters, found.encoded.mean
    first, second = (*found.active, *found.active)[:2]
    figure, panels = new_panels(2, 4.6, 3.6)
    for panel, name in zip(panels, ("temperature", "volume"), strict=True):
        for phase, mark in ((0.0, "s"), (1.0, "o")):
            mine = known["liquid"] == phase
            look: Any = {"c": known[name][mine], "cmap": "cividis", "s": 16, "linewidths": 0.4, "edgecolors": "#22303c"}
            drawn = panel.scatter(
                mean[mine, first],
                mean[mine, second],
                marker=mark,
                vmin=known[name].min(),
                vmax=known[name].max(),
                label=("crystal", "liquid")[int(phase)],
                **look,
            )
        figure.colorbar(drawn, ax=panel, label={"temperature": "temperature (K)", "volume": "volume (Å³/atom)"}[name])
        panel.set(xlabel=f"z{first + 1}", ylabel=f"z{second + 1}")
    panels[0].legend(frameon=False, fontsize=8)
    return png(figure)


def draw_filters(found: Discovery) -> bytes:
    """Variables against where a filter has its peak."""
    known, mean = found.family.parameters, found.encoded.mean
    figure, panels = new_panels(min(len(found.active), 6), 3.2, 2.6, columns=3)
    for panel, k in zip(panels, found.active, strict=False):
        panel.plot(known["peak/cutoff"], mean[:, k], ".", ms=3, color=COLOURS[0], mec="none", alpha=0.5)
        panel.set(xlabel="peak / cutoff", ylabel=f"z{k + 1}")
    return png(figure)


def draw_phonons(found: Discovery, labels: list[str]) -> bytes:
    """The variables that tell most against each other: a line for each crystal, from small to large volume."""
    known, mean = found.family.parameters, found.encoded.mean
    pairs = [(found.active[0], k) for k in found.active[1:3]] or [(found.active[0],) * 2]
    figure, panels = new_panels(len(pairs), 4.8, 4.2)
    marks = dict(zip(SUPERCELLS, ("o", "s", "^", "D"), strict=True))
    for panel, (first, second) in zip(panels, pairs, strict=True):
        for n, label in enumerate(labels):
            mine = np.flatnonzero(known["crystal"] == n)
            if not len(mine):
                continue
            kind = next(name for name in SUPERCELLS if known[name][mine[0]])
            colour, x, y = COLOURS[list(SUPERCELLS).index(kind)], mean[mine, first], mean[mine, second]
            panel.plot(x, y, "-", lw=0.8, color=colour)
            panel.plot(x[-1], y[-1], marks[kind], ms=5, color=colour, mec="#22303c", mew=0.4)
            panel.annotate(label.split()[1], (x[-1], y[-1]), fontsize=7, xytext=(3, 3), textcoords="offset points")
        for kind, mark in marks.items():
            panel.plot([], [], mark, color=COLOURS[list(marks).index(kind)], mec="#22303c", mew=0.4, label=kind)
        panel.set(xlabel=f"z{first + 1}", ylabel=f"z{second + 1}")
    panels[0].legend(frameon=False, fontsize=8)
    return png(figure)


def table(result: dict[str, Any]) -> str:
    """Markdown."""
    names = [name for name in result["runs"][0]["variables"][0] if name not in ("variable", "nats")]
    lines = [
        f"| seed | variance kept | variable | nats | {' | '.join(names)} |",
        "|--:|--:|---|--:|" + "--:|" * len(names),
    ]
    for run in result["runs"]:
        for n, each in enumerate(run["variables"]):
            numbers = " | ".join("" if each[name] is None else f"{each[name]:.2f}" for name in names)
            begin = f"| {run['seed']} | {run['kept']:.3f} " if n == 0 else "| | "
            lines.append(f"{begin}| {each['variable']} | {each['nats']:.2f} | {numbers} |")
    return "\n".join(lines)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--page", action="store_true", help="compute nothing")
    parser.add_argument("--only", choices=FAMILIES, help="one family; what is known of the others stays")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    path = STUDY.with_suffix(".json")
    known: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    wanted = (asked.only,) if asked.only else FAMILIES
    for name in () if asked.page else wanted:
        if name == "phonons":
            family, labels = densities(RUNS / "phonons.npz")
        else:
            family, labels = (distributions() if name == "rdf" else all_filters()), []
        known[name], first = measure(family)
        shown = {figure.title: figure.png for figure in report_on(first).pictures}
        drawn = draw_phonons(first, labels) if labels else (draw_rdf if name == "rdf" else draw_filters)(first)
        for kind, picture in {name: drawn, f"{name}_traversals": shown["What each variable does to a curve"]}.items():
            write_atomically(path.with_name(f"{STUDY.name}_{kind}.png"), picture)
        known |= provenance(("snnp", "torch", "numpy", "ase", "scikit-learn"))
        write_atomically(path, (json.dumps(jsonable(known), indent=1, ensure_ascii=False) + "\n").encode())
    tables = {name: f"{known[name]['curves']:,} curves.\n\n{table(known[name])}" for name in FAMILIES}
    between_marks(STUDY.with_suffix(".md"), tables | {"versions": written(known)})


if __name__ == "__main__":
    main()
