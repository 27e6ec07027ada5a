"""What Triton makes of the GPU kernels for an H100/H200; no GPU is needed.

    python docs/measure/timings/gpu_compile.py [--model al|small|NAME]

Registers, bytes spilled from them, instructions per atom, and from these the time below which no such GPU can be.
"""

from __future__ import annotations

import argparse
import collections
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch
import triton
from gpu import al_model
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from snnp.kernels.gpu import _atoms as _gpu_atoms
from snnp.kernels.gpu import _list as _gpu_list
from snnp.kernels.gpu.call import Atoms, GpuKernel
from snnp.kernels.gpu.dynamics import Box, Clock
from snnp.kernels.gpu.lists import Grid, Rows, State
from snnp.models import SplineNNP

PAIRS_PER_THREAD = 2  # passes over blocks of 32 for the 62 neighbours within 6.5 Å
ISSUE = 132 * 4 * 1.755e9  # instructions of warps per second: multiprocessors, schedulers, clock of an H100/H200
POINTERS = {torch.float32: "*fp32", torch.float64: "*fp64", torch.int32: "*i32", torch.int64: "*i64"}


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


def _arguments(model: GpuKernel) -> dict[str, tuple[Any, ...]]:
    """Arguments of the kernels by name; only types and alignment matter."""
    numbers, whole = torch.zeros(32, dtype=torch.float64), torch.zeros(32, dtype=torch.int32)
    long = torch.zeros(1, dtype=torch.int64)
    atoms, rows = Atoms(numbers, whole, numbers), Rows(whole, whole, whole, whole, 80)
    tables, network, work, n = model.tables, model.network, model.make_work(1, 80), 1000003
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
        "finish_kernel": (state, clock, n),
        "rescale_kernel": (clock, n),
        "sum_kernel": (state, work, clock, n),
        "kick_kernel": (state, work, clock, n),
    }


def compile_all(model: SplineNNP) -> None:
    """Compile every kernel and print what came out."""
    evaluation = GpuKernel(model.kernel_parameters(), "cpu")
    form = evaluation.form
    constants: dict[str, tuple[Any, ...]] = {"sort_kernel": (32,), "search_kernel": (32,), "reverse_kernel": (32,)}
    constants |= {"advance_kernel": (1, True, 128), "sum_kernel": (True, 128)}
    constants |= {"barostat_kernel": (1024,), "rescale_kernel": (1024,)}
    warps = {"network_kernel": 4, "advance_kernel": 4, "finish_kernel": 4, "kick_kernel": 4, "sum_kernel": 4}
    print(f"triton {triton.__version__}, compute capability 9.0")
    print(f"{'kernel':18} warps registers spilled  in loop  outside  per atom  most frequent")
    total = 0.0
    for name, arguments in _arguments(evaluation).items():
        module = next(m for m in (_gpu_atoms, _gpu_list) if hasattr(m, name))
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


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="al", help="al, small, or the name of a bundled model")
    options = parser.parse_args()
    compile_all(al_model(options.model))


if __name__ == "__main__":
    main()
