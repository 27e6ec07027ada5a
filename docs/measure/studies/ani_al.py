"""ANI-Al: crystal, defects, surfaces and liquid of the imported ensemble, and the spread of its networks.

python docs/measure/studies/ani_al.py            # compute: docs/studies/ani_al.json, .png, tables in ani_al.md
python docs/measure/studies/ani_al.py --tables   # picture and tables from docs/studies/ani_al.json

SNNP_DATA names the folder that holds ani-al-weights/.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms, units
from ase.build import bulk, fcc100, fcc110, fcc111
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import thermalize_momenta
from ase.optimize import FIRE
from matplotlib.figure import Figure
from pages import between_marks

from snnp.analysis.properties import REFERENCES, cubic_properties
from snnp.files import write_atomically
from snnp.models import Ensemble, Potential
from snnp.models.ani.import_neurochem import read_neurochem
from snnp.sampling.plots import RadialDistribution
from snnp.structure import Structure
from snnp_ase import SNNPCalculator

STUDY = Path(__file__).resolve().parents[2] / "studies" / Path(__file__).stem
DATA = Path(os.environ.get("SNNP_DATA", STUDY.parents[3] / "shared" / "data"))
PACKAGES = ("snnp", "torch", "numpy", "ase", "vesin")
J_PER_M2 = units.J / units.m**2
SURFACES: dict[str, tuple[Callable[..., Atoms], int]] = {"100": (fcc100, 11), "110": (fcc110, 15), "111": (fcc111, 9)}
TEMPERATURE = 1000.0  # K
# Density of the liquid (kg/m³): M. J. Assael et al., J. Phys. Chem. Ref. Data 35, 285 (2006), quoted from memory.
DENSITY = 2377.23 - 0.311 * (TEMPERATURE - 933.47)
STEP = 2.0  # fs
MELT, COOL, SETTLE, SAMPLE, EVERY = 600, 600, 100, 600, 5  # steps; the first two with one network
# From memory, not compared with the printed tables.
LITERATURE = {
    "vacancy_ev": "0.67 ± 0.03 (positron annihilation, from memory)",
    "surface_100": "1.14–1.18 (average of faces, L. Vitos et al. 1998, from memory)",
    "surface_110": "same",
    "surface_111": "same",
    "first_peak": "2.78–2.82 (X-ray and neutron diffraction, Y. Waseda 1980, from memory)",
    "coordination": "11–11.5 (same source, from memory)",
}


def relax(atoms: Atoms, model: Potential, tolerance: float = 2e-3) -> Atoms:
    """A copy whose atoms have come to rest, in the given cell."""
    atoms = atoms.copy()
    atoms.calc = SNNPCalculator(model, dtype="float64")
    if not FIRE(atoms, logfile=None).run(fmax=tolerance, steps=300):
        raise RuntimeError("the atoms did not come to rest within 300 steps")
    return atoms


def energies(model: Ensemble, atoms: Atoms) -> np.ndarray:
    """[M] eV, of each network."""
    structure = Structure.from_ase(atoms)
    return np.array([float(m.compute(structure, forces=False).energy[0]) for m in model.potentials])


def crystal(model: Ensemble) -> dict[str, dict[str, float]]:
    """Ensemble's lattice and elastic constants, with the standard deviation over its networks."""
    names = ("lattice_constant", "bulk_modulus", "c11", "c12", "c44")
    whole = cubic_properties(model, "Al")
    each = [cubic_properties(member, "Al") for member in model.potentials]
    return {n: {"value": getattr(whole, n), "spread": float(np.std([getattr(e, n) for e in each]))} for n in names}


def defects(model: Ensemble, a: float) -> dict[str, dict[str, float]]:
    """Vacancy (eV) and surfaces (J/m²): relaxed with the ensemble, energies of every network on the same atoms."""
    per_atom = energies(model, bulk("Al", a=a))
    perfect = bulk("Al", a=a, cubic=True).repeat((4, 4, 4))
    vacancy = perfect.copy()
    del vacancy[0]
    vacancy = relax(vacancy, model)
    formation = energies(model, vacancy) - len(vacancy) * per_atom
    result = {"vacancy_ev": {"value": float(formation.mean()), "spread": float(formation.std())}}
    for name, (build, layers) in SURFACES.items():
        slab = relax(build("Al", (1, 1, layers), a=a, vacuum=10.0, periodic=True), model)
        area = 2.0 * np.linalg.norm(np.cross(slab.cell[0], slab.cell[1]))
        excess = (energies(model, slab) - len(slab) * per_atom) / area / J_PER_M2
        result[f"surface_{name}"] = {"value": float(excess.mean()), "spread": float(excess.std())}
    return result


def langevin(atoms: Atoms, temperature: float, friction: float, rng: np.random.Generator) -> Langevin:
    """Dynamics at a temperature (K) with a friction (1/fs)."""
    settings = {"temperature_K": temperature, "friction": friction / units.fs, "fixcm": False}
    return Langevin(atoms, STEP * units.fs, rng=rng, **settings)


def liquid(model: Ensemble) -> dict[str, Any]:
    """g(r) of 256 atoms at 1000 K; melted and cooled with one network, sampled with the ensemble."""
    atoms = bulk("Al", cubic=True).repeat((4, 4, 4))
    volume = atoms.get_masses().sum() * units._amu / DENSITY * 1e30
    atoms.set_cell(np.eye(3) * volume ** (1 / 3), scale_atoms=True)
    rng = np.random.default_rng(0)
    thermalize_momenta(atoms, 2500.0, rng=rng)
    model.force_spread = False  # only the mean moves the atoms
    started = time.process_time()
    curve = RadialDistribution(reach=8.0, width=0.05)
    temperatures, spreads = [], []
    phases = (
        (model.potentials[0], 2500.0, MELT),
        (model.potentials[0], TEMPERATURE, COOL),
        (model, TEMPERATURE, SETTLE),
    )
    for potential, temperature, steps in phases:
        atoms.calc = SNNPCalculator(potential)
        langevin(atoms, temperature, 0.02, rng).run(steps)
    dynamics = langevin(atoms, TEMPERATURE, 0.005, rng)
    for step in range(0, SAMPLE, EVERY):
        dynamics.run(EVERY)
        curve.add(atoms, step)
        temperatures.append(atoms.get_temperature())
        if step % 100 == 0:
            model.force_spread = True
            spread = model.compute(Structure.from_ase(atoms)).forces_std
            model.force_spread = False
            assert spread is not None
            spreads.append(float(spread.square().sum(dim=1).mean().sqrt()))
    g, r = curve.curves()["Al-Al"], curve.centres
    peak = int(g.argmax())
    near = slice(peak, int(np.searchsorted(r, 4.8)))
    minimum = peak + int(g[near].argmin())
    density = len(atoms) / atoms.get_volume()
    shell = slice(0, minimum + 1)
    top = np.polyfit(r[peak - 2 : peak + 3], g[peak - 2 : peak + 3], 2)
    return {
        "r": r.tolist(),
        "g": g.tolist(),
        "first_peak": float(-top[1] / (2 * top[0])),
        "first_peak_height": float(np.polyval(top, -top[1] / (2 * top[0]))),
        "first_minimum": float(r[minimum]),
        "coordination": float((4 * np.pi * density * r[shell] ** 2 * g[shell] * 0.05).sum()),
        "temperature": float(np.mean(temperatures)),
        "force_spread": float(np.mean(spreads)),
        "cpu_seconds": time.process_time() - started,
    }


def draw(result: dict[str, Any]) -> None:
    """The radial distribution function."""
    figure = Figure(figsize=(6.0, 3.6), layout="constrained")
    axes = figure.add_subplot()
    found = result["liquid"]
    axes.plot(found["r"], found["g"], color="#d1603d", lw=1.8)
    axes.axhline(1.0, color="#8a97a3", lw=0.8)
    axes.axvspan(2.78, 2.82, color="#4477aa", alpha=0.3, lw=0)
    axes.text(2.9, 0.25, "first peak in\nmeasurements", color="#4477aa", fontsize=8)
    axes.set(xlabel="r (Å)", ylabel="g(r)", xlim=(1.5, 8.0), ylim=(0.0, None))
    axes.set_title(f"Liquid aluminium at {TEMPERATURE:.0f} K, ANI-Al", loc="left", fontsize=10)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.savefig(STUDY.with_suffix(".png"), dpi=150)


def tables(result: dict[str, Any]) -> str:
    """Markdown."""
    experiment = REFERENCES["Al"]["experiment"]
    rows = [("lattice constant (Å)", "lattice_constant", 3, f"{experiment['lattice_constant_angstrom']} (300 K)")]
    names = {"c11": "C11 (GPa)", "c12": "C12 (GPa)", "c44": "C44 (GPa)", "bulk_modulus": "bulk modulus (GPa)"}
    rows += [(name, key, 1, f"{experiment[f'{key}_gpa']:.1f} (300 K)") for key, name in names.items()]
    rows.append(("vacancy formation (eV)", "vacancy_ev", 3, LITERATURE["vacancy_ev"]))
    rows += [(f"surface ({n}) (J/m²)", f"surface_{n}", 3, LITERATURE[f"surface_{n}"]) for n in SURFACES]
    found = result["crystal"] | result["defects"]
    lines = ["| | ensemble | spread of networks | experiment |", "|---|---|---|---|"]
    for name, key, digits, literature in rows:
        value = found[key]
        lines.append(f"| {name} | {value['value']:.{digits}f} | {value['spread']:.{digits}f} | {literature} |")
    melt = result["liquid"]
    lines += [
        f"| liquid, first peak of g(r) (Å) | {melt['first_peak']:.2f} | | {LITERATURE['first_peak']} |",
        f"| height of the first peak | {melt['first_peak_height']:.2f} | | |",
        f"| neighbours up to the minimum at {melt['first_minimum']:.2f} Å | {melt['coordination']:.1f} | | "
        f"{LITERATURE['coordination']} |",
        f"| force spread in the liquid (eV/Å, norm) | {melt['force_spread']:.3f} | | |",
    ]
    about = result["about"]
    versions = ", ".join(f"{name} {number}" for name, number in about["versions"].items())
    lines += [
        "",
        f"`python docs/measure/studies/ani_al.py`, {about['date']}, {about['machine']}; {versions}. The liquid took "
        f"{melt['cpu_seconds']:.0f} s of CPU time; mean temperature {melt['temperature']:.0f} K.",
    ]
    return "\n".join(lines)


def write_tables(result: dict[str, Any]) -> None:
    """Put the tables between the marks in the page."""
    between_marks(STUDY.with_suffix(".md"), {"tables": tables(result)})


def main() -> None:
    """Compute and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", action="store_true", help="picture and tables from the JSON file, compute nothing")
    parser.add_argument("--date", default="2026-11-21", help="of the measurement")
    arguments = parser.parse_args()
    if not arguments.tables:
        torch.set_num_threads(1)
        single = read_neurochem(DATA / "ani-al-weights")
        assert isinstance(single, Ensemble)
        machine = f"AMD EPYC, 2 cores (one used), Python {platform.python_version()}"
        about = {"date": arguments.date, "machine": machine, "versions": {name: version(name) for name in PACKAGES}}
        about["files_sha256"] = single.metadata["source"]["files_sha256"]
        double = read_neurochem(DATA / "ani-al-weights").double()
        assert isinstance(double, Ensemble)
        result: dict[str, Any] = {"about": about, "crystal": crystal(double)}
        result["defects"] = defects(double, result["crystal"]["lattice_constant"]["value"])
        print(json.dumps(result, indent=1), flush=True)
        result["liquid"] = liquid(single)
        write_atomically(STUDY.with_suffix(".json"), (json.dumps(result, indent=1) + "\n").encode())
    result = json.loads(STUDY.with_suffix(".json").read_text())
    draw(result)
    write_tables(result)


if __name__ == "__main__":
    main()
