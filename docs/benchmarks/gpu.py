"""The GPU kernels: what they compile to (no GPU needed), and what they do on one.

    python docs/benchmarks/gpu.py compile [--model al|small|NAME] [--precision ieee|tf32x3]
    python docs/benchmarks/gpu.py run [--atoms 1000 32000 1000000 10000000] [--json FILE]

`compile` asks Triton for machine code of an H100/H200 and counts: registers, bytes spilled from them, instructions per
atom, and from these the time below which no such GPU can be. `run` needs a GPU: perturbed fcc Al, 8 radial and 16
three-body filters, L = 4, two layers of 32; steps of molecular dynamics in a captured graph at 300 K, their parts, the
torch path beside them, and errors against the CPU in float64.
"""

from __future__ import annotations

import argparse
import collections
import json
import re
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import triton
from ase import units
from ase.build import bulk
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from snnp.kernels import _gpu_atoms, _gpu_list, _gpu_network, gpu
from snnp.kernels.gpu_arrays import Atoms, Form, Rows, make_form, make_network, make_tables, make_work
from snnp.kernels.gpu_list import Grid, State
from snnp.kernels.gpu_md import Box, Clock, GpuDynamics, Integrator, System
from snnp.kernels.plan import SplinePlan
from snnp.models import SplineNNP, SplineNNPConfig, load_model, special_cases
from snnp.models.plan import make_plan
from snnp.neighbours import neighbour_list
from snnp.structure import Structure

SKIN = 0.5  # Å
PAIRS_PER_THREAD = 2  # passes over blocks of 32 for the 62 neighbours within 6.5 Å
ISSUE = 132 * 4 * 1.755e9  # instructions of warps per second: multiprocessors, schedulers, clock of an H100/H200
POINTERS = {torch.float32: "*fp32", torch.float64: "*fp64", torch.int32: "*i32", torch.int64: "*i64"}


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


# What the compiler makes of the kernels.


def signature(value: Any, path: tuple[int, ...], hints: dict[Any, Any]) -> Any:
    """Type of an argument in Triton's words; aligned pointers and sizes are noted in `hints`, as at run time."""
    if isinstance(value, torch.Tensor):
        hints[path] = [["tt.divisibility", 16]]
        return POINTERS[value.dtype]
    if isinstance(value, int):
        if value % 16 == 0:
            hints[path] = [["tt.divisibility", 16]]
        return "i32"
    return type(value)(*(signature(entry, (*path, k), hints) for k, entry in enumerate(value)))


def compile_kernel(kernel: Any, arguments: tuple[Any, ...], constants: tuple[Any, ...], n_warps: int) -> dict[str, Any]:
    """Registers, spills and instructions of a kernel on compute capability 9.0."""
    hints: dict[Any, Any] = {}
    names = kernel.arg_names[: len(arguments)]
    types = {name: signature(a, (k,), hints) for k, (name, a) in enumerate(zip(names, arguments, strict=True))}
    types |= dict.fromkeys(kernel.arg_names[len(arguments) :], "constexpr")
    fixed = {(len(arguments) + k,): value for k, value in enumerate(constants)}
    source = ASTSource(fn=kernel, signature=types, constexprs=fixed, attrs=hints)
    options = {"num_warps": n_warps, "num_stages": 1, "enable_fp_fusion": True}
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.TemporaryDirectory() as folder:
        binary = Path(folder) / "kernel.cubin"
        binary.write_bytes(compiled.asm["cubin"])
        usage = _output(tools / "cuobjdump", "-res-usage", binary)
        text = _output(tools / "nvdisasm", "-c", binary)
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    assert found is not None
    inside, outside, kinds = count_instructions(text)
    return {
        "kernel": kernel.__name__,
        "warps": n_warps,
        "registers": int(found[1]),
        "spilled bytes": int(found[2]),
        "in loop": inside,
        "outside": outside,
        "most": dict(kinds.most_common(6)),
    }


def _output(*command: Any) -> str:
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, check=True).stdout


def count_instructions(text: str) -> tuple[int, int, collections.Counter[str]]:
    """Instructions between a label and a jump back to it, and the others."""
    labels: dict[str, int] = {}
    code: list[str] = []
    for label, instruction in re.findall(r"^(\.L[^:]*):|/\*[0-9a-f]{4,5}\*/\s+(.*?);", text, re.MULTILINE):
        if label:
            labels[label] = len(code)
        elif not instruction.startswith("NOP"):
            code.append(instruction)
    inside: set[int] = set()
    for k, instruction in enumerate(code):
        jump = re.search(r"BRA.*?`\((\.L[^)]*)\)", instruction)
        if jump and labels.get(jump[1], len(code)) < k:
            inside |= set(range(labels[jump[1]], k + 1))
    kinds = collections.Counter(re.sub(r"^@!?U?P\d+\s+", "", line).split()[0].split(".")[0] for line in code)
    return len(inside), len(code) - len(inside), kinds


def _arguments(plan: SplinePlan, form: Form) -> dict[str, tuple[Any, ...]]:
    """Arguments of the kernels by name; only types and alignment matter."""
    cpu, real = torch.device("cpu"), torch.float32
    numbers, whole = torch.zeros(32, dtype=torch.float64), torch.zeros(32, dtype=torch.int32)
    long = torch.zeros(1, dtype=torch.int64)
    atoms, rows = Atoms(numbers, whole, numbers), Rows(whole, whole, whole, whole, 80)
    tables, network = make_tables(plan, form, cpu, real), make_network(plan, form, cpu, real)
    work, n = make_work(form, 1, 80, cpu, real), 1000003
    state, clock = (
        State(numbers, whole, numbers, numbers, numbers, numbers),
        Clock(numbers, long, long, whole, numbers, numbers),
    )
    grid = Grid(numbers, numbers, numbers, whole, whole, whole, whole, numbers, whole, whole, whole, 32)
    box = Box(numbers, numbers, numbers, numbers, numbers, numbers, 81)
    return {
        "moments_kernel": (atoms, rows, tables, work),
        "network_kernel": (n, whole, network, work),
        "gradients_kernel": (atoms, rows, tables, work),
        "forces_kernel": (rows, work),
        "bin_kernel": (state, grid, whole, n),
        "sort_kernel": (grid, whole, n),
        "search_kernel": (state, grid, rows, whole, n),
        "reverse_kernel": (grid, rows, whole, n, n),
        "advance_kernel": (state, work, clock, n),
        "barostat_kernel": (box, grid, clock, n),
        "scale_kernel": (state, box, clock, n),
        "kick_kernel": (state, work, clock, n),
    }


def compile_all(model: SplineNNP, precision: str) -> None:
    """Compile every kernel and print what came out."""
    plan = make_plan(model)
    form = make_form(plan, precision, block=32, atoms=32)
    constants: dict[str, tuple[Any, ...]] = {"sort_kernel": (32,), "search_kernel": (32,), "reverse_kernel": (32,)}
    constants |= {"advance_kernel": (True, True, 128), "barostat_kernel": (1024,)}
    warps = {"network_kernel": 4, "advance_kernel": 4, "scale_kernel": 4, "kick_kernel": 4}
    print(f"triton {triton.__version__}, compute capability 9.0, precision {precision}")
    print(f"{'kernel':18} warps registers spilled  in loop  outside  per atom  most frequent")
    total = 0.0
    for name, arguments in _arguments(plan, form).items():
        module = next(m for m in (_gpu_atoms, _gpu_network, _gpu_list) if hasattr(m, name))
        kernel, atomwise = getattr(module, name), module is not _gpu_list
        fixed = (form,) if atomwise else constants.get(name, (128,))
        row = compile_kernel(kernel, arguments, fixed, warps.get(name, 1))
        each = ""
        if atomwise:
            atoms_per_program = form.atoms if name == "network_kernel" else 1
            work = row["warps"] * (PAIRS_PER_THREAD * row["in loop"] + row["outside"]) / atoms_per_program
            total += work
            each = f"{work:.0f}"
        counts = [row[key] for key in ("warps", "registers", "spilled bytes", "in loop", "outside")]
        print(
            f"{name:18} {counts[0]:5} {counts[1]:9} {counts[2]:7} {counts[3]:8} {counts[4]:8} {each:>9}  {row['most']}"
        )
    floor = 1e9 * total / ISSUE
    print(f"one evaluation: {total:.0f} instructions of a warp per atom, {floor:.1f} ns at {ISSUE:.3g} per second")


# What they do on a GPU.


def al_crystal(n_atoms: int) -> Any:
    """Perturbed fcc Al of about so many atoms at 300 K."""
    repeats = max(round((n_atoms / 4) ** (1 / 3)), 1)
    crystal = bulk("Al", "fcc", a=4.05, cubic=True) * (repeats, repeats, repeats)
    crystal.rattle(0.1, seed=0)
    MaxwellBoltzmannDistribution(crystal, temperature_K=300, rng=np.random.default_rng(0))
    return crystal


def seconds_per_call(call: Callable[[], Any], repeats: int = 20) -> float:
    """Median over repeats, by the device's clock."""
    times = []
    for _ in range(repeats + 3):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        end.synchronize()
        times.append(1e-3 * start.elapsed_time(end))
    return statistics.median(times[3:])


def measure(model: SplineNNP, n_atoms: int, precision: str) -> dict[str, Any]:
    """Time of a step and of its parts for one size."""
    crystal = al_crystal(n_atoms)
    structure = Structure.from_ase(crystal)
    n = structure.n_atoms
    kernel = gpu.GpuKernel(make_plan(model), "cuda", precision=precision)
    torch.cuda.reset_peak_memory_stats()
    masses = torch.from_numpy(crystal.get_masses())
    system = System(structure.positions, torch.zeros(n), masses, structure.cell[0], structure.pbc[0])
    velocities = torch.from_numpy(crystal.get_velocities() * units.fs)
    dynamics = GpuDynamics(kernel, system, velocities, Integrator(dt_fs=2.0, skin=SKIN))
    dynamics.advance(50)
    built, steps = dynamics.list.read().n_builds, 200
    start = time.perf_counter()
    dynamics.advance(steps)
    step = (time.perf_counter() - start) / steps
    built = dynamics.list.read().n_builds - built
    evaluation = seconds_per_call(lambda: kernel.launch(dynamics._atoms, dynamics.list.rows, dynamics._work))

    def new_list() -> None:
        dynamics.list.flags[0] = 1
        dynamics.list.launch(dynamics._state)

    listing = seconds_per_call(new_list, 5)
    return {
        "atoms": n,
        "precision": precision,
        "step_us": 1e6 * step,
        "ns_per_atom_step": 1e9 * step / n,
        "million_atom_steps_per_s": 1e-6 * n / step,
        "evaluation_ns_per_atom": 1e9 * evaluation / n,
        "list_ns_per_atom": 1e9 * listing / n,
        "steps_per_list": steps / max(built, 1),
        "bytes_per_atom": torch.cuda.max_memory_allocated() / n,
    }


def errors(model: SplineNNP, precision: str) -> dict[str, Any]:
    """Largest errors relative to the largest value, against the CPU in float64; the torch path's time beside ours."""
    structure = Structure.from_ase(al_crystal(4000))
    neighbours = neighbour_list(structure, model.cutoff)
    exact = model.double().compute(structure, neighbours, stress=True)
    single = SplineNNP(model.config)
    single.load_state_dict(model.state_dict())
    single = single.float().to("cuda")
    on_device, listed = structure.to(device="cuda"), neighbours.to("cuda")
    kernel = gpu.GpuKernel(make_plan(model), "cuda", precision=precision)
    rows, reach = gpu.rows_of((listed.i, listed.j, listed.shift), structure.n_atoms, on_device.structure_of_atom)
    species = torch.zeros(structure.n_atoms, dtype=torch.int32, device="cuda")
    atoms = Atoms(on_device.positions.contiguous(), species, gpu.image_vectors(reach, on_device.cell))
    found = kernel.evaluate(atoms, rows, on_device.structure_of_atom)
    work = kernel.make_work(structure.n_atoms, rows.capacity)
    ours = seconds_per_call(lambda: kernel.launch(atoms, rows, work))
    with torch.no_grad():
        torch_path = seconds_per_call(lambda: single._energies_and_pair_gradients(on_device, listed), 5)
    assert exact.forces is not None
    largest = {"energies": exact.energies, "forces": exact.forces}
    got = {"energies": found.energies.cpu(), "forces": found.forces.cpu().double()}
    return {
        "precision": precision,
        **{name: float((got[name] - want).abs().max() / want.abs().max()) for name, want in largest.items()},
        "times_torch_path": torch_path / ours,
    }


def run(sizes: list[int], output: Path | None) -> None:
    """Measure everything, print tables, write JSON."""
    model, precisions = al_model(), ("ieee", "tf32x3")
    machine = {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__, "triton": triton.__version__}
    print(machine)
    accuracy = [errors(model, precision) for precision in precisions]
    for entry in accuracy:
        print({key: f"{value:.3g}" if isinstance(value, float) else value for key, value in entry.items()})
    speed = []
    for n_atoms in sizes:
        for precision in precisions:
            speed.append(measure(model, n_atoms, precision))
            print({key: f"{value:.4g}" if isinstance(value, float) else value for key, value in speed[-1].items()})
    if output is not None:
        output.write_text(json.dumps({"machine": machine, "accuracy": accuracy, "speed": speed}, indent=1) + "\n")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    compiling = commands.add_parser("compile")
    compiling.add_argument("--model", default="al", help="al, small, or the name of a bundled model")
    compiling.add_argument("--precision", choices=("ieee", "tf32x3"), default="ieee")
    running = commands.add_parser("run")
    running.add_argument("--atoms", type=int, nargs="+", default=[1000, 32000, 1000000, 10000000])
    running.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.command == "compile":
        compile_all(al_model(options.model), options.precision)
    else:
        run(options.atoms, options.json)


if __name__ == "__main__":
    main()
