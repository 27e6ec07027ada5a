"""The picture of the OpenMM tutorial: alanine dipeptide in water, by a force field and by snnp-organic.

    OMP_NUM_THREADS=1 python docs/measure/pictures/mixed.py --run     # minutes: simulates, writes mixed.json
    python docs/measure/pictures/mixed.py                             # mixed.json -> docs/_static/mixed.png

Both start from the same atoms and run 30 ps at 300 K with steps of 1 fs; the first 2 ps are left out.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from snnp.report import COLOURS, new_panels, save_figure

HERE = Path(__file__).resolve().parent
DATA, TARGET = HERE / "mixed.json", HERE.parents[1] / "_static" / "mixed.png"
N_WATERS, N_STEPS, BEGIN, EVERY = 400, 30_000, 2_000, 50
SIZES = {"H": 40, "C": 130, "N": 130, "O": 130}
TINTS = {"H": "#d9d9d9", "C": "#555555", "N": COLOURS[0], "O": COLOURS[1]}


def simulate() -> dict[str, Any]:
    """Angles phi and psi (degrees) of both, and the last frame (Å) of the mixed one."""
    import openmm
    import openmmml
    from openmm import app

    sys.path.append(str(HERE.parent))
    from peptides import ALANINE_DIPEPTIDE, dissolve

    solution = dissolve(ALANINE_DIPEPTIDE, n_waters=N_WATERS)
    classical = solution.classical()
    potential = openmmml.MLPotential("snnp", model="snnp-organic")
    mixed = potential.createMixedSystem(solution.topology, classical, range(solution.n_solute))
    names = {(a.residue.name, a.name): a.index for a in solution.topology.atoms() if a.index < solution.n_solute}
    backbone = [names["ACE", "C"], *(names["ALA", name] for name in ("N", "CA", "C")), names["NME", "N"]]
    found: dict[str, Any] = {"angles": {}}
    for label, system in (("amber14", classical), ("snnp-organic", mixed)):
        integrator = openmm.LangevinMiddleIntegrator(300.0, 1.0, 0.001)
        cpu = openmm.Platform.getPlatformByName("CPU")
        simulation = app.Simulation(solution.topology, system, integrator, cpu, {"Threads": "1"})
        simulation.context.setPositions(solution.positions)
        simulation.minimizeEnergy(maxIterations=200)
        simulation.context.setVelocitiesToTemperature(300.0, 1)
        simulation.step(BEGIN)
        rows = []
        for _ in range((N_STEPS - BEGIN) // EVERY):
            simulation.step(EVERY)
            state = simulation.context.getState(positions=True, enforcePeriodicBox=True)
            positions = 10.0 * state.getPositions(asNumpy=True)._value
            points = positions[backbone]
            rows.append([round(dihedral(points[k : k + 4]), 1) for k in (0, 1)])
        found["angles"][label] = rows
    edge = 10.0 * state.getPeriodicBoxVectors(asNumpy=True)._value[0, 0]
    moved = positions - positions[: solution.n_solute].mean(axis=0)
    oxygens = solution.n_solute + 3 * np.arange(N_WATERS)
    shift = -edge * np.rint(moved[oxygens] / edge)
    moved[solution.n_solute :] += np.repeat(shift, 3, axis=0)
    near = np.linalg.norm(moved[oxygens], axis=1) < 8.0
    kept = [*range(solution.n_solute), *(oxygens[near][:, None] + np.arange(3)).flatten().tolist()]
    symbols = [atom.element.symbol for atom in solution.topology.atoms()]
    found["symbols"] = [symbols[k] for k in kept]
    found["positions"] = moved[kept].round(2).tolist()
    found["n_solute"] = solution.n_solute
    return found


def dihedral(points: np.ndarray) -> float:
    """Degrees, of four points [4, 3]."""
    one, two, three = np.diff(points, axis=0)
    first, second = np.cross(one, two), np.cross(two, three)
    return float(np.degrees(np.arctan2(np.linalg.norm(two) * one @ second, first @ second)))


def draw(numbers: dict[str, Any], target: Path = TARGET) -> None:
    """Left the molecule in its water; right where its two backbone angles were."""
    figure, (scene, map_) = new_panels(2, 4.8, 4.4, columns=2)
    positions, symbols, n = np.array(numbers["positions"]), numbers["symbols"], numbers["n_solute"]
    # Looked at along the direction in which the molecule is thinnest.
    axes = np.linalg.svd(positions[:n] - positions[:n].mean(axis=0))[2]
    flat = positions @ axes.T
    bonds(scene, flat[n:], symbols[n:], colour="#9ecae1", width=1.6)
    bonds(scene, flat[:n], symbols[:n], colour="#333333", width=3.0)
    for symbol, tint in TINTS.items():
        mine = [k for k in range(n) if symbols[k] == symbol]
        scene.scatter(*flat[mine, :2].T, s=SIZES[symbol], c=tint, edgecolors="#333333", linewidths=0.6, zorder=3)
    scene.set(xlim=(-8.5, 8.5), ylim=(-8.5, 8.5), aspect="equal")
    scene.set_axis_off()
    scene.set_title("snnp-organic in TIP3P water, waters nearer than 8 Å", fontsize=10, loc="left")
    for (label, rows), colour, marker in zip(numbers["angles"].items(), COLOURS, "so", strict=False):
        phi, psi = np.array(rows).T
        map_.plot(phi, psi, marker, color=colour, markersize=3, alpha=0.6, linestyle="none", label=label)
    ticks = np.arange(-180, 181, 90)
    map_.set(xlim=(-180, 180), ylim=(-180, 180), xticks=ticks, yticks=ticks, xlabel="φ (°)", ylabel="ψ (°)")
    map_.set_title("backbone angles, 28 ps each from one start", fontsize=10, loc="left")
    map_.legend(loc="upper right", fontsize=9)
    save_figure(figure, target)


def bonds(panel: Any, positions: np.ndarray, symbols: list[str], colour: str, width: float) -> None:
    """Lines between atoms that are bonded, which their distance tells."""
    for k, one in enumerate(positions):
        away = np.linalg.norm(positions[k + 1 :] - one, axis=1)
        for other in k + 1 + np.flatnonzero(away < 1.7):
            hydrogens = (symbols[k] == "H") + (symbols[other] == "H")
            if hydrogens == 0 or (hydrogens == 1 and away[other - k - 1] < 1.25):
                panel.plot(*zip(one[:2], positions[other][:2], strict=True), color=colour, linewidth=width, zorder=2)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--run", action="store_true", help="simulate first")
    if parser.parse_args().run:
        DATA.write_text(json.dumps(simulate()) + "\n", encoding="utf-8")
    draw(json.loads(DATA.read_text(encoding="utf-8")))
