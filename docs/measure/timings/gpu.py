"""The GPU kernels on a GPU: times, errors, memory, and a page of them. Runs unattended, in less than ten minutes.

    python docs/measure/timings/gpu.py [--atoms 1000 32000 1000000 10000000] [--minutes 9] [--page FILE]

Perturbed fcc Al at 300 K, 8 radial and 16 three-body filters, L = 4, two layers of 32: steps of molecular dynamics in a
captured graph, their parts, the torch path beside them, errors against the CPU in float64, and whole runs with a log.
Every case is a process of its own: one that fails or hangs costs its own row of the page, which is written anew after
every case, its numbers beside it as JSON. `--device cpu --atoms 4` with TRITON_INTERPRET=1 tries this script without a
GPU; its times mean nothing.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import triton
from ase import Atoms as AseAtoms
from ase import units
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution

from snnp.kernels.gpu import call as gpu
from snnp.kernels.gpu.call import Atoms
from snnp.kernels.gpu.dynamics import GpuDynamics, Integrator, System
from snnp.kernels.gpu.lists import image_vectors, rows_of
from snnp.models import SplineNNP, SplineNNPConfig, load_model
from snnp.models.spline import special_cases
from snnp.neighbours import neighbour_list
from snnp.sampling import MDSettings, drive, starting_point
from snnp.sampling.embedded import make_engine
from snnp.structure import Structure

ENSEMBLES = {
    "nve": Integrator(dt_fs=2.0),
    "nvt": Integrator(dt_fs=2.0, temperature_k=300.0, friction_per_ps=1.0),
    "npt": Integrator(dt_fs=2.0, temperature_k=300.0, friction_per_ps=1.0, barostat_rate=3e-3),
}


def al_model(name: str = "al") -> SplineNNP:
    """The model of the speed targets ("al"), a small one with everything in it ("small"), or a bundled one."""
    if name not in ("al", "small"):
        return cast(SplineNNP, load_model(name))
    sizes: dict[str, Any] = {"n_radial": 8, "n_angular": 16, "cutoff": 6.0, "hidden": (32, 32)}
    elements = ("Al",)
    if name == "small":
        elements, sizes = ("Al", "Ni"), {"n_radial": 4, "n_angular": 4, "cutoff": 4.0, "hidden": (8, 8)}
    config = special_cases.s_nnp(elements, **sizes).model_dump()
    config["repulsion"] = {"inner": 1.1, "outer": 1.9}
    if name == "small":
        config |= {"filters": "pair", "pair_term": True}
        config["angular"] |= {"degree": 1, "elements": "pair"}
        config["network"]["activation"] = "softplus"
    model = SplineNNP(SplineNNPConfig.model_validate(config))
    model.readout.std.fill_(30.0)  # what features of a crystal vary by: the forces are those of a metal
    return model


def al_crystal(n_atoms: int) -> AseAtoms:
    """Perturbed fcc Al of about so many atoms at 300 K."""
    repeats, a = max(round((n_atoms / 4) ** (1 / 3)), 1), 4.05
    corners = np.stack(np.meshgrid(*3 * [np.arange(repeats)], indexing="ij"), axis=-1).reshape(-1, 1, 3)
    basis = np.array([[0.0, 0.0, 0.0], [0.0, 0.5, 0.5], [0.5, 0.0, 0.5], [0.5, 0.5, 0.0]])
    positions = a * (corners + basis).reshape(-1, 3)
    positions += 0.1 * np.random.default_rng(0).standard_normal(positions.shape)
    crystal = AseAtoms(numbers=np.full(len(positions), 13), positions=positions, cell=3 * [a * repeats], pbc=True)
    MaxwellBoltzmannDistribution(crystal, temperature_K=300, rng=np.random.default_rng(0))
    return crystal


def wait(device: str) -> None:
    """Until the device is done."""
    if device == "cuda":
        torch.cuda.synchronize()


def seconds_per_call(call: Callable[[], Any], device: str, repeats: int = 20) -> float:
    """Median over repeats."""
    times = []
    for k in range(repeats + 3):
        wait(device)
        start = time.perf_counter()
        call()
        wait(device)
        if k >= 3 or device == "cpu":
            times.append(time.perf_counter() - start)
        if device == "cpu":
            break
    return statistics.median(times)


def begin(n_atoms: int, ensemble: str, device: str) -> tuple[gpu.GpuKernel, GpuDynamics]:
    """Dynamics of the crystal."""
    crystal = al_crystal(n_atoms)
    kernel = gpu.GpuKernel(al_model().kernel_parameters(), device)
    system = System(
        positions=torch.from_numpy(crystal.positions),
        species=torch.zeros(len(crystal)),
        masses=torch.from_numpy(crystal.get_masses()),
        cell=torch.from_numpy(crystal.cell.array),
        pbc=torch.from_numpy(crystal.pbc),
    )
    velocities = torch.from_numpy(crystal.get_velocities() * units.fs)
    return kernel, GpuDynamics(kernel, system, velocities, ENSEMBLES[ensemble])


def step_case(atoms: int, ensemble: str, device: str) -> dict[str, Any]:
    """Time of a step and of a new list, and memory."""
    _, dynamics = begin(atoms, ensemble, device)
    n = len(dynamics._species)
    # Some lists must be built on the way, which 20 steps do not promise; ten million atoms have no time for more.
    steps = 1 if device == "cpu" else max(40, min(1000, int(4e8 / n)))
    dynamics.advance(max(steps // 10, 1))
    built = dynamics.list.read().n_builds
    start = time.perf_counter()
    dynamics.advance(steps)
    step = (time.perf_counter() - start) / steps
    built = dynamics.list.read().n_builds - built

    def new_list() -> None:
        dynamics.list.flags[0] = 1
        dynamics.list.launch(dynamics._state)

    listing = seconds_per_call(new_list, device, 5)
    memory = torch.cuda.max_memory_allocated() / n if device == "cuda" else float("nan")
    return {
        "atoms": n,
        "ensemble": ensemble,
        "µs per step": 1e6 * step,
        "ns per atom and step": 1e9 * step / n,
        "million atom-steps/s": 1e-6 * n / step,
        "new list, ns per atom": 1e9 * listing / n,
        "steps per list": steps / max(built, 1),
        "bytes per atom": memory,
    }


def parts_case(atoms: int, device: str) -> dict[str, Any]:
    """Time of each kernel of an evaluation."""
    kernel, dynamics = begin(atoms, "nve", device)
    n, form, modules = len(dynamics._species), kernel.form, kernel._kernels
    at, rows, work = dynamics._atoms, dynamics.list.rows, dynamics._work
    one = {"num_warps": 1, "num_stages": 1, "enable_fp_fusion": True}
    blocks, four = (-(-n // form.atoms),), {**one, "num_warps": 4}
    calls: dict[str, Callable[[], Any]] = {
        "moments": lambda: modules.moments_kernel[(n,)](at, rows, kernel.tables, work, form, **one),
        "network": lambda: modules.network_kernel[blocks](n, at.species, kernel.network, work, form, **four),
        "gradients": lambda: modules.gradients_kernel[(n,)](at, rows, kernel.tables, work, form, **one),
        "forces": lambda: modules.forces_kernel[(n,)](rows, work, form, **one),
        "evaluation": lambda: kernel.launch(at, rows, work),
    }
    times = {f"{name}, ns per atom": 1e9 * seconds_per_call(call, device) / n for name, call in calls.items()}
    return {"atoms": n, **times}


def errors_case(atoms: int, device: str) -> dict[str, Any]:
    """Largest errors relative to the largest value, against the CPU in float64; the torch path's time beside ours."""
    model, structure = al_model().double(), Structure.from_ase(al_crystal(atoms))
    neighbours = neighbour_list(structure, model.cutoff)
    exact = model.compute(structure, neighbours, stress=True)
    single = SplineNNP(model.config)
    single.load_state_dict(model.state_dict())
    single = single.float().to(device)
    there, listed = structure.to(device=device), neighbours.to(device)
    kernel = gpu.GpuKernel(model.kernel_parameters(), device)
    rows, reach = rows_of((listed.i, listed.j, listed.shift), structure.n_atoms, there.structure_of_atom)
    species = torch.zeros(structure.n_atoms, dtype=torch.int32, device=device)
    at = Atoms(there.positions.contiguous(), species, image_vectors(reach, there.cell))
    energies, forces, virial = (each.cpu().double() for each in kernel.evaluate(at, rows, there.structure_of_atom))
    work = kernel.make_work(structure.n_atoms, rows.capacity)
    ours = seconds_per_call(lambda: kernel.launch(at, rows, work), device)
    with torch.no_grad():
        torch_path = seconds_per_call(lambda: single._energies_and_pair_gradients(there, listed), device, 5)
    assert exact.forces is not None
    assert exact.stress is not None
    got = {"energies": energies, "forces": forces, "stress": virial / structure.volume()[:, None, None]}
    want = {"energies": exact.energies, "forces": exact.forces, "stress": exact.stress}
    relative = {name: float((got[name] - want[name]).abs().max() / want[name].abs().max()) for name in want}
    return {"atoms": structure.n_atoms, **relative, "torch path / ours": torch_path / ours}


def command_case(atoms: int, device: str) -> dict[str, Any]:
    """A run as the command does it, with a log and checkpoints, after one that compiles."""
    model, crystal = al_model(), al_crystal(atoms)
    kernel = gpu.GpuKernel(model.float().to(device).kernel_parameters(), device)
    unit = 1 if device == "cpu" else max(100, min(10000, int(2e8 / len(crystal))))
    steps = 2 * unit
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(2):
            settings = MDSettings(
                steps=steps,
                dt_fs=2.0,
                log=Path(folder) / "log.csv",
                log_interval=unit,
                checkpoint=Path(folder) / "run.npz",
                checkpoint_interval=unit,
            )
            start = starting_point(crystal, settings, "native")
            result = drive(make_engine(model, kernel, start, settings), start, settings)
    each = 1e6 * result.seconds / steps
    return {"atoms": len(crystal), "steps per log and checkpoint": unit, "µs per step, files included": each}


def machine_case(device: str) -> dict[str, Any]:
    """What it ran on."""
    name = torch.cuda.get_device_name() if device == "cuda" else "Triton's interpreter"
    versions = {"torch": torch.__version__, "triton": triton.__version__, "Python": platform.python_version()}
    return {"device": name, **versions}


CASES: dict[str, Callable[..., dict[str, Any]]] = {
    "machine": machine_case,
    "errors": errors_case,
    "step": step_case,
    "parts": parts_case,
    "command": command_case,
}
TITLES = {
    "machine": "Machine",
    "errors": "Largest error against the CPU in float64, relative to the largest value",
    "step": "A step of molecular dynamics in a captured graph",
    "parts": "The kernels of an evaluation",
    "command": "Whole runs (`snnp md --engine native --device cuda`)",
}


def plan_cases(sizes: list[int], device: str) -> list[tuple[str, dict[str, Any]]]:
    """What to measure, the most wanted first."""
    middle = sorted(sizes)[len(sizes) // 2]
    cases: list[tuple[str, dict[str, Any]]] = [("machine", {}), ("errors", {"atoms": min(4000, middle)})]
    cases += [("step", {"atoms": n, "ensemble": "nve"}) for n in sizes]
    cases += [("parts", {"atoms": middle})]
    cases += [("step", {"atoms": middle, "ensemble": name}) for name in ("nvt", "npt")]
    cases += [("command", {"atoms": n}) for n in (sizes[0], middle)]
    return [(name, {**arguments, "device": device}) for name, arguments in cases]


def try_case(name: str, arguments: dict[str, Any], seconds: float) -> dict[str, Any]:
    """Run a case in a process of its own; what went wrong if it did."""
    command = [sys.executable, __file__, "--case", json.dumps([name, arguments])]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=seconds)
    except subprocess.TimeoutExpired:
        return {**arguments, "failed": f"not done after {seconds:.0f} s"}
    if done.returncode == 0:
        return cast("dict[str, Any]", json.loads(done.stdout.splitlines()[-1]))
    lines = [line for line in done.stderr.splitlines() if line.strip()] or [f"exit status {done.returncode}"]
    print(done.stderr, file=sys.stderr)
    return {**arguments, "failed": lines[-1]}


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = [names, ["---"] * len(names)]
    for row in rows:
        cells = (row.get(name, "") for name in names)
        lines.append([f"{cell:.4g}" if isinstance(cell, float) else str(cell).replace("|", "/") for cell in cells])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def write_page(page: Path, found: dict[str, list[dict[str, Any]]]) -> None:
    """The page and its numbers, as far as they are known."""
    today = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    parts = [
        f"# The GPU kernels, {today}",
        "`python docs/measure/timings/gpu.py " + " ".join(sys.argv[1:]).strip() + "`",
    ]
    parts += [f"## {TITLES[name]}\n\n{table(rows)}" for name, rows in found.items()]
    page.write_text("\n\n".join(parts) + "\n")
    page.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n")


def run(sizes: list[int], device: str, minutes: float, page: Path) -> bool:
    """Measure everything for which there is time; whether all of it worked."""
    end, found, good = time.monotonic() + 60.0 * minutes, dict[str, list[dict[str, Any]]](), True
    for name, arguments in plan_cases(sizes, device):
        left = end - time.monotonic()
        row = try_case(name, arguments, min(left, 180.0)) if left > 5.0 else {**arguments, "failed": "no time left"}
        print(name, {key: f"{value:.4g}" if isinstance(value, float) else value for key, value in row.items()})
        found.setdefault(name, []).append(row)
        good = good and "failed" not in row
        write_page(page, found)
    return good


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--atoms", type=int, nargs="+", default=[1000, 32000, 1000000, 10000000])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--page", type=Path)
    parser.add_argument("--case", help="JSON: run one case here and print its numbers")
    options = parser.parse_args()
    if options.case:
        name, arguments = json.loads(options.case)
        print(json.dumps(CASES[name](**arguments)))
        return 0
    today = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    page = options.page or Path(__file__).resolve().parents[2] / "benchmarks" / f"{today}-gpu.md"
    return 0 if run(options.atoms, options.device, options.minutes, page) else 1


if __name__ == "__main__":
    sys.exit(main())
