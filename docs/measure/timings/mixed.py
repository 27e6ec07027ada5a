"""Molecular mechanics alone beside ML/MM: the same peptides in the same water, by OpenMM's CPU platform.

    OMP_NUM_THREADS=1 python docs/measure/timings/mixed.py [--repeats 20] [--setups 4] [--json FILE]

The solute is described by amber14, or by snnp-organic; water is TIP3P, PME at 0.9 nm, 1 fs. Both simulations advance in
turn, a fraction of a second each: on one thread, and for the larger case on the platform and threads that OpenMM takes
by itself. Both are set up several times, because two simulations of the same system can differ by a tenth, by where
their arrays come to lie. The table holds medians of process CPU time, all threads together, and quartiles of the ratio
turn by turn: what other work on the machine does to both.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any

import openmm
import openmmml
import torch
from openmm import app, unit

sys.path.append(str(Path(__file__).resolve().parents[1]))

from peptides import NMA, TWO_ALANINES, dissolve

CASES = {
    "12 atoms in 329 waters": (NMA, 329, True),
    "32 atoms in 990 waters": (TWO_ALANINES, 990, True),
    "32 atoms in 990 waters, OpenMM's choice": (TWO_ALANINES, 990, False),
}  # the solute, waters, whether on one thread
STEP_PS = 0.001


def simulations(pdb: str, n_waters: int, on_one_thread: bool) -> dict[str, Any]:
    """Of one solute, minimised and warm: by its force field, and by the model."""
    solution = dissolve(pdb, n_waters=n_waters)
    pme: dict[str, Any] = {"nonbondedMethod": app.PME, "nonbondedCutoff": 0.9 * unit.nanometer, "rigidWater": True}
    classical = solution.forcefield.createSystem(solution.topology, constraints=app.HBonds, **pme)
    potential = openmmml.MLPotential("snnp", model="snnp-organic")
    mixed = potential.createMixedSystem(solution.topology, classical, range(solution.n_solute))
    made = {}
    for name, system in (("MM", classical), ("ML/MM", mixed)):
        integrator = openmm.LangevinMiddleIntegrator(300.0, 1.0, STEP_PS)
        where = (openmm.Platform.getPlatformByName("CPU"), {"Threads": "1"}) if on_one_thread else ()
        made[name] = app.Simulation(solution.topology, system, integrator, *where)
        made[name].context.setPositions(solution.positions)
        made[name].minimizeEnergy(maxIterations=100)
        made[name].context.setVelocitiesToTemperature(300.0, 1)
        made[name].step(50)
    return made


def measure(pdb: str, n_waters: int, on_one_thread: bool, repeats: int, setups: int) -> dict[str, Any]:
    """CPU and wall ms per step of both, in turn."""
    cpu: dict[str, list[float]] = {"MM": [], "ML/MM": []}
    wall: dict[str, list[float]] = {"MM": [], "ML/MM": []}
    n_steps = 40 if n_waters < 500 else 15
    for setup in range(setups):
        made = simulations(pdb, n_waters, on_one_thread)
        for _ in range(repeats):
            for name in list(made) if setup % 2 else list(reversed(made)):
                began, clock = time.process_time(), time.perf_counter()
                made[name].step(n_steps)
                cpu[name].append(1e3 * (time.process_time() - began) / n_steps)
                wall[name].append(1e3 * (time.perf_counter() - clock) / n_steps)
    ratios = [mm / mixed for mm, mixed in zip(cpu["MM"], cpu["ML/MM"], strict=True)]
    used = made["MM"].context.getPlatform()
    threads = used.getPropertyValue(made["MM"].context, "Threads") if used.getName() == "CPU" else ""
    found: dict[str, Any] = {
        "platform": f"{used.getName()} {threads}".strip(),
        "more_cpu_time": statistics.median(cpu["ML/MM"]) / statistics.median(cpu["MM"]) - 1.0,
        "speed_of_mm": statistics.median(cpu["MM"]) / statistics.median(cpu["ML/MM"]),
        "speed_of_mm_by_turn": statistics.quantiles(ratios, n=4),
    }
    for name in made:
        found[name] = {
            "cpu_ms_per_step": statistics.median(cpu[name]),
            "wall_ms_per_step": statistics.median(wall[name]),
            "ns_per_day_of_cpu_time": 86_400.0 * STEP_PS / statistics.median(cpu[name]),
        }
    return found


def main() -> None:
    """Measure all cases, print them and, with `--json`, write them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--setups", type=int, default=4)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    cases = {name: measure(*case, asked.repeats, asked.setups) for name, case in CASES.items()}
    print("| | platform, threads | MM, ns/day | ML/MM, ns/day | of MM's speed (quartiles by turn) |")
    print("|---|---|---|---|---|")
    for name, found in cases.items():
        mm, mixed = (found[kind]["ns_per_day_of_cpu_time"] for kind in ("MM", "ML/MM"))
        low, _, high = found["speed_of_mm_by_turn"]
        share = f"{100 * found['speed_of_mm']:.0f} % ({low:.2f}-{high:.2f})"
        print(f"| {name} | {found['platform']} | {mm:.1f} | {mixed:.1f} | {share} |")
    versions = {"openmm": openmm.__version__, "torch": torch.__version__, "python": platform.python_version()}
    record = {
        "command": f"OMP_NUM_THREADS=1 python docs/measure/timings/mixed.py {' '.join(sys.argv[1:])}",
        "date": date.today().isoformat(),
        "processor": processor(),
        "load_average": os.getloadavg()[0],
        "versions": versions,
        "model": "snnp-organic",
        "step_fs": 1e3 * STEP_PS,
        "cases": cases,
    }
    if asked.json is not None:
        asked.json.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def processor() -> str:
    """As the machine names it."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


if __name__ == "__main__":
    main()
