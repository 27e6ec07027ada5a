"""Many small structures at once beside ASE's calculator and optimisers in a loop, on one core and in one run.

    python docs/measure/timings/many.py --json docs/benchmarks/DATE-many.json --out docs/benchmarks/DATE-many.md

Both sides compute with the same model in the same precision (float64 for relaxations, the model's own otherwise), from
the same structures, to the same largest force. CPU time; models are loaded and lists and kernels tried before.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import ase
import numpy as np
import torch
from ase import Atoms
from ase.build import bulk, molecule
from ase.filters import FrechetCellFilter
from ase.md.verlet import VelocityVerlet
from ase.optimize import BFGS, FIRE
from ase.units import fs, kB

from snnp import SNNPCalculator, load_model
from snnp.kernels.cpu.library import instruction_set
from snnp.sampling import MDSettings, RelaxResult
from snnp.sampling.many import evaluate_many, relax_many, run_many

FMAX, MOST_STEPS, MD_STEPS = 0.01, 500, 200


def crystals(symbol: str, number: int, cubic: bool = True) -> list[Atoms]:
    """Cells of one crystal, strained by up to 3 %, atoms displaced by 0.15 Å."""
    rng, found = np.random.default_rng(0), []
    for k in range(number):
        atoms = bulk(symbol, cubic=cubic)
        atoms.set_cell(atoms.cell * rng.uniform(0.97, 1.03), scale_atoms=True)
        atoms.rattle(0.15, seed=k)
        found.append(atoms)
    return found


def molecules(name: str, number: int) -> list[Atoms]:
    """Copies of a molecule, atoms displaced by 0.05 Å."""
    found = []
    for k in range(number):
        atoms = molecule(name)
        atoms.rattle(0.05, seed=k)
        found.append(atoms)
    return found


def timed(action: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds of a call, and what it returned."""
    began = time.process_time()
    value = action()
    return time.process_time() - began, value


def relaxed_in_a_loop(model: Any, frames: list[Atoms], optimiser: Any, cell: bool) -> list[int]:
    """Steps that an optimiser of ASE takes, one structure after the other."""
    calculator, steps = SNNPCalculator(model), []
    for atoms in frames:
        moved = atoms.copy()
        moved.calc = calculator
        run = optimiser(FrechetCellFilter(moved) if cell else moved, logfile=None)
        run.run(fmax=FMAX, steps=MOST_STEPS)
        steps.append(run.nsteps)
    return steps


def relaxation(name: str, what: str, frames: list[Atoms], looped: int, cell: bool) -> dict[str, Any]:
    """Milliseconds per structure, and mean steps, of four ways."""
    model, some = load_model(name, dtype="float64"), frames[:looped]
    row: dict[str, Any] = {"model": name, "structures": what, "n": len(frames), "n_loop": looped, "cell": cell}
    for label, optimiser in (("ase_fire", FIRE), ("ase_bfgs", BFGS)):
        relaxed_in_a_loop(model, frames[:1], optimiser, cell)
        seconds, steps = timed(lambda chosen=optimiser: relaxed_in_a_loop(model, some, chosen, cell))
        row |= {f"{label}_ms": 1e3 * seconds / looped, f"{label}_steps": float(np.mean(steps))}
    for optimiser in ("fire", "lbfgs"):
        how = {"fmax": FMAX, "steps": MOST_STEPS, "cell": cell, "optimiser": optimiser}
        relax_many(model, frames[:2], **how)
        seconds, results = timed(lambda how=how: relax_many(model, frames, **how))
        good = [each for each in results if isinstance(each, RelaxResult) and each.converged]
        row |= {f"many_{optimiser}_ms": 1e3 * seconds / len(frames)}
        row |= {f"many_{optimiser}_steps": float(np.mean([each.steps for each in good]))}
        row |= {f"many_{optimiser}_not_relaxed": len(frames) - len(good)}
    return row


def dynamics(name: str, what: str, frames: list[Atoms], looped: int) -> dict[str, Any]:
    """Microseconds per structure and step of NVE at 300 K."""
    model, calculator = load_model(name), SNNPCalculator(name)

    def loop() -> None:
        for k, atoms in enumerate(frames[:looped]):
            moved = atoms.copy()
            moved.calc = calculator
            normal = np.random.default_rng(k).standard_normal((len(moved), 3))
            moved.set_momenta(normal * np.sqrt(300.0 * kB * moved.get_masses())[:, None])
            VelocityVerlet(moved, 1.0 * fs).run(MD_STEPS)

    settings = MDSettings(ensemble="nve", steps=MD_STEPS, log_interval=MD_STEPS)
    run_many(model, frames[:2], settings)
    alone, _ = timed(loop)
    together, runs = timed(lambda: run_many(model, frames, settings))
    row: dict[str, Any] = {"model": name, "structures": what, "n": len(frames), "n_loop": looped, "steps": MD_STEPS}
    row |= {"ase_us": 1e6 * alone / looped / MD_STEPS, "many_us": 1e6 * together / len(frames) / MD_STEPS}
    return {**row, "n_failed": sum(run.failure is not None for run in runs)}


def evaluation(name: str, what: str, frames: list[Atoms], looped: int) -> dict[str, Any]:
    """Microseconds per structure of energy, forces and stress of structures that were never seen before."""
    model, calculator = load_model(name), SNNPCalculator(name)

    def loop() -> None:
        for atoms in frames[:looped]:
            calculator.get_property("energy", atoms)
            calculator.get_property("forces", atoms)

    loop()
    evaluate_many(model, frames[:2])
    alone, _ = timed(loop)
    together, _ = timed(lambda: evaluate_many(model, frames))
    row: dict[str, Any] = {"model": name, "structures": what, "n": len(frames), "n_loop": looped}
    return {**row, "ase_us": 1e6 * alone / looped, "many_us": 1e6 * together / len(frames)}


def page(found: dict[str, Any]) -> str:
    """The results as Markdown."""
    lines = [f"# Many small structures at once, {found['date']}", "", f"`{found['command']}`: {found['machine']},"]
    lines += [f"{found['kernel']}, one thread, CPU time, load {found['load']}; {found['versions']}.", ""]
    lines += [
        "ASE's calculator in a loop over a part of the structures (`loop`) beside one call for all of them, in one"
    ]
    lines += [
        f"run. Relaxations end at {FMAX} eV/Å, in float64 on both sides; ms per structure, steps in brackets.",
        "",
    ]
    lines += ["| structures | many, loop | cell | ASE FIRE | ASE BFGS | many, fire | many, lbfgs | fire / FIRE |"]
    lines[-1] += " lbfgs / FIRE | lbfgs / BFGS |"
    lines += ["|" + "---|" * 10]
    for row in found["relaxation"]:
        cells = [
            f"{row['structures']} ({row['model']})",
            f"{row['n']}, {row['n_loop']}",
            "yes" if row["cell"] else "no",
        ]
        ways = ("ase_fire", "ase_bfgs", "many_fire", "many_lbfgs")
        cells += [f"{row[f'{way}_ms']:.3g} ({row[f'{way}_steps']:.1f})" for way in ways]
        cells += [f"{row['ase_fire_ms'] / row['many_fire_ms']:.1f}", f"{row['ase_fire_ms'] / row['many_lbfgs_ms']:.1f}"]
        cells += [f"{row['ase_bfgs_ms'] / row['many_lbfgs_ms']:.1f}"]
        lines += ["| " + " | ".join(cells) + " |"]
    late = sum(row[f"many_{name}_not_relaxed"] for row in found["relaxation"] for name in ("fire", "lbfgs"))
    lines += ["", f"Of all these {late} were not relaxed after {MOST_STEPS} steps.", ""]
    for title, key, unit in (
        (f"Dynamics: NVE, {MD_STEPS} steps of 1 fs from 300 K", "dynamics", "µs per structure and step"),
        (
            "Evaluations of structures never seen before: lists, energy, forces, stress",
            "evaluation",
            "µs per structure",
        ),
    ):
        lines += [
            f"## {title}",
            "",
            f"| structures | many, loop | ASE, {unit} | many | ratio |",
            "|---|---|---|---|---|",
        ]
        for row in found[key]:
            cells = [f"{row['structures']} ({row['model']})", f"{row['n']}, {row['n_loop']}", f"{row['ase_us']:.3g}"]
            cells += [f"{row['many_us']:.3g}", f"{row['ase_us'] / row['many_us']:.1f}"]
            lines += ["| " + " | ".join(cells) + " |"]
        lines += [""]
    return "\n".join(lines)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the numbers")
    parser.add_argument("--out", type=Path, help="write a page")
    parser.add_argument("-n", type=int, default=1000, help="structures in a batch")
    options = parser.parse_args()
    torch.set_num_threads(1)
    n, few = options.n, max(1, options.n // 20)
    copper, silicon, ethanol = crystals("Cu", n), crystals("Si", n), molecules("CH3CH2OH", n)
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    found: dict[str, Any] = {
        "command": f"python docs/measure/timings/many.py{'' if n == 1000 else f' -n {n}'}",
        "date": date.today().isoformat(),
        "machine": f"AMD EPYC, {os.cpu_count()} cores",
        "kernel": instruction_set() or "torch alone",
        "load": load,
        "versions": f"Python {platform.python_version()}, torch {torch.__version__}, ASE {ase.__version__}",
        "relaxation": [
            relaxation("snnp-cu", "Cu, 4 atoms", copper, few, False),
            relaxation("snnp-si", "Si, 8 atoms", silicon, few, False),
            relaxation("snnp-organic", "ethanol", ethanol, few, False),
            relaxation("hipnn-si", "Si, 8 atoms", silicon[: n // 10], max(1, few // 10), False),
            relaxation("snnp-cu", "Cu, 4 atoms", copper, max(1, few // 5), True),
            relaxation("snnp-si", "Si, 2 atoms", crystals("Si", n, cubic=False), max(1, few // 5), True),
            relaxation("snnp-si", "Si, 8 atoms", silicon, max(1, few // 5), True),
        ],
        "dynamics": [
            dynamics("snnp-cu", "Cu, 4 atoms", copper, few // 2),
            dynamics("snnp-si", "Si, 2 atoms", crystals("Si", n, cubic=False), few // 2),
            dynamics("snnp-si", "Si, 8 atoms", silicon, few // 2),
        ],
        "evaluation": [
            evaluation("snnp-cu", "Cu, 4 atoms", copper, 2 * few),
            evaluation("snnp-si", "Si, 8 atoms", silicon, 2 * few),
        ],
    }
    text = page(found)
    print(text)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if options.out:
        options.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
