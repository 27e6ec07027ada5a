"""What the native kernel does beyond single evaluations: small systems, lists in dynamics, a million atoms, training.

    python docs/measure/timings/kernel.py [--million] [--out docs/benchmarks/DATE-kernel.md]

CPU time of one thread unless it says otherwise; the best of several repeats, so that other work on the machine counts
little. Training needs the mlearn set (SNNP_DATA).
"""

from __future__ import annotations

import argparse
import math
import os
import platform
import resource
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from datetime import date
from functools import partial
from pathlib import Path

import numpy as np
import torch
from ase import Atoms
from ase.build import bulk
from without_kernels import switched_off

from snnp import load_model
from snnp.data import read_frames
from snnp.kernels.cpu.library import instruction_set
from snnp.models.session import Session
from snnp.models.spline.model import SplineNNP
from snnp.sampling import MDSettings, starting_point
from snnp.sampling.embedded import NativeDynamics
from snnp.training.backends import Backend, Batch, choose_backend
from snnp.training.batches import Batches, prepare
from snnp.training.config import LossConfig
from snnp.training.loop import Loss
from snnp.training.problem import features_of
from snnp_ase import SNNPCalculator


def shaken(atoms: Atoms) -> Atoms:
    """Displaced by 0.1 Å."""
    atoms.positions += 0.1 * np.random.default_rng(0).standard_normal(atoms.positions.shape)
    return atoms


def best_of_each(
    functions: Sequence[Callable[[], object]], repeats: int, clock: Callable[[], float] = time.process_time
) -> list[float]:
    """Seconds of the fastest call of each function: ten calls of one, then of the next.

    So slow spells of the machine hit all of them, and caches are those of a loop.
    """
    fastest = [math.inf] * len(functions)
    for first in range(0, repeats, 10):
        for k, function in enumerate(functions):
            function()
            for _ in range(min(10, repeats - first)):
                began = clock()
                function()
                fastest[k] = min(fastest[k], clock() - began)
    return fastest


def best(function: Callable[[], object], repeats: int, clock: Callable[[], float] = time.process_time) -> float:
    """Seconds of the fastest of some calls, after one that is not counted."""
    return best_of_each([function], repeats, clock)[0]


def small_systems() -> list[str]:
    """Wall time per call of the ASE calculator at new positions, beside that of as many atoms of a large crystal."""

    def call_us(copies: int | tuple[int, int, int]) -> tuple[int, float]:
        atoms = shaken(bulk("Si", cubic=True) * copies)
        atoms.calc = SNNPCalculator("snnp-si")
        step = np.zeros_like(atoms.positions)
        step[0, 0] = 1e-6
        calls = 100 if len(atoms) < 1000 else 1

        def call() -> None:
            for _ in range(calls):
                atoms.positions = atoms.positions + step
                atoms.get_forces()

        return len(atoms), best(call, 15, time.perf_counter) * 1e6 / calls

    n, many = call_us(8)
    lines = [f"| atoms | µs per call | of it beyond {many / n:.2f} µs per atom, as at {n:,} atoms |", "|---|---|---|"]
    for copies in ((1, 1, 1), (2, 1, 1), (2, 2, 2), (3, 3, 2)):
        n_atoms, taken = call_us(copies)
        lines.append(f"| {n_atoms} | {taken:.0f} | {taken - many / n * n_atoms:.0f} |")
    return lines


def lists_in_dynamics() -> list[str]:
    """How often the list of 4,000 aluminium atoms is built in nve at 300 K, and its share of a step."""
    atoms = bulk("Al", cubic=True, a=4.05) * (10, 10, 10)
    settings = MDSettings(ensemble="nve", temperature_k=600.0, dt_fs=2.0, steps=1)
    dynamics = NativeDynamics(load_model("snnp-al"), starting_point(atoms, settings, "native"), settings)
    dynamics.advance(150)
    session, steps = dynamics._session, 150
    builds = session.n_neighbour_builds
    began = time.process_time()
    dynamics.advance(steps)
    step = (time.process_time() - began) / steps
    builds = session.n_neighbour_builds - builds
    arguments = (atoms.numbers, dynamics._positions, dynamics._cell, atoms.pbc)
    kept = best(lambda: session.evaluate(*arguments), 10)

    def with_list() -> None:
        session.forget()
        session.evaluate(*arguments)

    build = best(with_list, 5) - kept
    per_atom, share = 1e6 / len(atoms), 100.0 * builds * build / (steps * step)
    return [
        f"{step * per_atom:.2f} µs per atom and step (snnp-al, 24 three-body filters), {builds} lists in {steps} steps",
        f"of 2 fs; a list takes {build * per_atom:.1f} µs per atom, {share:.0f} % of the time.",
    ]


def million_atoms() -> list[str]:
    """Cost and memory of 1,000,188 atoms."""
    atoms = shaken(bulk("Al", cubic=True, a=4.05) * (63, 63, 63))
    session = Session(load_model("snnp-al"), skin=0.5)
    arguments = (atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc)
    seconds = best(lambda: session.evaluate(*arguments), 2)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    small = shaken(bulk("Al", cubic=True, a=4.05) * (10, 10, 10))
    session = Session(load_model("snnp-al"), skin=0.5)
    arguments = (small.numbers, small.positions, small.cell.array, small.pbc)
    few = best(lambda: session.evaluate(*arguments), 10)
    return [
        f"{seconds / len(atoms) * 1e6:.2f} µs per atom at {len(atoms):,} atoms, "
        f"{few / len(small) * 1e6:.2f} at {len(small):,}; peak memory {peak:.1f} GB, list included (skin 0.5 Å)."
    ]


def two_threads() -> list[str]:
    """Wall time on one and on two threads, the best of 15 calls."""
    lines = ["| atoms | one thread µs/atom | two threads µs/atom | ratio |", "|---|---|---|---|"]
    for copies in (10, 20):
        atoms = shaken(bulk("Al", cubic=True, a=4.05) * (copies, copies, copies))
        arguments = (atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc)

        def call(threads: int, session: Session, arguments: tuple[np.ndarray, ...]) -> None:
            torch.set_num_threads(threads)
            session.evaluate(*arguments)

        functions = [partial(call, n, Session(load_model("snnp-al"), skin=0.5), arguments) for n in (1, 2)]
        taken = [seconds / len(atoms) * 1e6 for seconds in best_of_each(functions, 30, time.perf_counter)]
        lines.append(f"| {len(atoms):,} | {taken[0]:.2f} | {taken[1]:.2f} | {taken[0] / taken[1]:.2f} |")
    torch.set_num_threads(1)
    return lines


def prepared(element: str, frames: int) -> tuple[SplineNNP, Batches]:
    """An untrained model of the zoo's form for an element, with data."""
    form = load_model(f"snnp-{element.lower()}")
    assert isinstance(form, SplineNNP)
    model = SplineNNP(form.config, form.reference_energies, seed=1)
    folder = Path(os.environ["SNNP_DATA"])
    found = read_frames(folder / "mlearn" / f"{element}_train.xyz")[:frames]
    data = prepare(choose_backend(model, torch.float32), model, found)
    model.to(torch.float32)
    model.standardise(lambda: features_of(model, data))
    return model, data


def training() -> list[str]:
    """Loss and gradients of a batch (the optimiser's own time left out), beside torch on sums over neighbours."""
    lines = ["| model | atoms | threads | kernel ms | torch ms | ratio |", "|---|---|---|---|---|---|"]
    for element, frames, atoms in (("Si", 120, 256), ("Cu", 60, 256), ("Cu", 60, 1024)):
        for threads in (1, 2):
            torch.set_num_threads(threads)
            steps = []
            for native in (True, False):
                with nullcontext() if native else switched_off():
                    model, data = prepared(element, frames)
                batch = data.batch(data.groups(np.arange(data.n_frames), atoms)[0])

                def step(model: SplineNNP = model, backend: Backend = data.backend, batch: Batch = batch) -> None:
                    model.zero_grad()
                    backend.backward(model, batch, Loss(LossConfig(), 1.0, 1.0, 0.0))

                steps.append(step)
            clock = time.process_time if threads == 1 else time.perf_counter
            taken = [1e3 * seconds for seconds in best_of_each(steps, 150, clock)]
            n = batch.owner.shape[0]
            ratio = taken[1] / taken[0]
            columns = (f"snnp-{element.lower()}", n, threads, f"{taken[0]:.2f}", f"{taken[1]:.2f}", f"{ratio:.1f}")
            lines.append("| " + " | ".join(str(column) for column in columns) + " |")
    torch.set_num_threads(1)
    return lines


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--million", action="store_true", help="also a million atoms (3 GB)")
    parser.add_argument("--out", type=Path, help="write a page")
    options = parser.parse_args()
    torch.set_num_threads(1)
    parts = {"Small systems through ASE": small_systems(), "Neighbour lists in molecular dynamics": lists_in_dynamics()}
    parts["Two threads"] = two_threads()
    parts["Training"] = training()
    if options.million:
        parts["A million atoms"] = million_atoms()
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    command = f"python docs/measure/timings/kernel.py{' --million' if options.million else ''}"
    text = [f"# The native kernel at work, {date.today()}", "", f"`{command}`: AMD EPYC, {os.cpu_count()} cores,"]
    python, torch_version = platform.python_version(), torch.__version__
    text += [f"{instruction_set()}, Python {python}, torch {torch_version}, load {load}. float32, one"]
    text += ["thread and CPU time; rows of two threads and calls through ASE are wall time.", ""]
    for title, lines in parts.items():
        text += [f"## {title}", "", *lines, ""]
    print("\n".join(text))
    if options.out:
        options.out.write_text("\n".join(text), encoding="utf-8")


if __name__ == "__main__":
    main()
