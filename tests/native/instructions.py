"""Counts the instructions of the kernels with valgrind, and compares them with those kept in docs/benchmarks.

    python tests/native/instructions.py            fails where a case takes over 10 % more than the reference
    python tests/native/instructions.py --update   makes the present counts the reference

Counts are the same from run to run and on every machine, unlike times; they belong to a compiler, whose name is kept
with them. valgrind knows AVX2 but not AVX-512.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from snnp.files import write_atomically
from snnp.kernels.build import find_compiler
from snnp.kernels.cpu.library import LIBRARY_FILE
from snnp.models import SplineNNP

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "docs" / "measure"))
from cases import Case, build_driver, run_driver, write_case
from peers.reference import REFERENCE_SYSTEM, ReferenceForm
from peers.systems import build_system

__all__ = ["ALLOWED", "CASES", "REFERENCE", "compiler_name", "count_instructions", "grown"]

REFERENCE = Path(__file__).resolve().parents[2] / "docs" / "benchmarks" / "instructions.json"
ALLOWED = 1.10
_N_ATOMS = 108
_VALGRIND = ("valgrind", "--tool=callgrind", "--toggle-collect=snnp_evaluate", "--callgrind-out-file=/dev/null")

CASES = {
    "legendre float32 avx2": ("legendre", torch.float32, "avx2"),
    "legendre float64 avx2": ("legendre", torch.float64, "avx2"),
    "legendre float32 portable": ("legendre", torch.float32, "portable"),
    "spline float32 avx2": ("spline", torch.float32, "avx2"),
}
"""Evaluator, float type, instruction set; the model is the reference of the speed targets, on 108 Al atoms."""


def compiler_name() -> str | None:
    """First line of the compiler's `--version`, or None without a compiler."""
    compiler = find_compiler()
    if compiler is None:
        return None
    return subprocess.run([*compiler, "--version"], capture_output=True, text=True, check=True).stdout.splitlines()[0]


def count_instructions(folder: Path, names: list[str] | None = None) -> dict[str, float]:
    """Instructions per atom of one evaluation (energy, forces, virial) for each case."""
    driver = build_driver(folder, LIBRARY_FILE)
    structure = build_system(REFERENCE_SYSTEM, _N_ATOMS)
    counts = {}
    for name in names or list(CASES):
        evaluator, dtype, target = CASES[name]
        config = ReferenceForm().config()
        angular = config.angular.model_copy(update={"evaluator": evaluator})
        model = SplineNNP(config.model_copy(update={"angular": angular})).to(dtype)
        case = folder / "instructions.case"
        write_case(case, Case(model, structure, half=True))
        _, words = run_driver(driver, case, target, before=_VALGRIND)
        found = re.search(r"Collected : (\d+)", words)
        if found is None:
            raise RuntimeError(f"valgrind did not say how much it collected:\n{words}")
        counts[name] = int(found[1]) / structure.n_atoms
    return counts


def grown(counts: dict[str, float], reference: dict[str, float]) -> list[str]:
    """Cases that take more than `ALLOWED` times the reference, as lines to print."""
    return [
        f"{name}: {count:,.0f} instructions per atom, {count / reference[name] - 1.0:+.1%} over the reference"
        for name, count in counts.items()
        if count > ALLOWED * reference[name]
    ]


def main() -> int:
    """Count, compare, report."""
    parser = argparse.ArgumentParser(description="Instructions of the kernels, counted by valgrind.")
    parser.add_argument("--update", action="store_true", help="make the present counts the reference")
    update = parser.parse_args().update
    if shutil.which("valgrind") is None or compiler_name() is None or not LIBRARY_FILE.is_file():
        print("not counted: valgrind, a C++ compiler and the built kernels are needed", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as folder:
        counts = count_instructions(Path(folder))
    kept = json.loads(REFERENCE.read_text(encoding="utf-8")) if REFERENCE.is_file() else {"counts": {}}
    for name, count in counts.items():
        before = kept["counts"].get(name, np.nan)
        print(
            f"{name:28s} {count:12,.0f} instructions per atom, reference {before:12,.0f} ({count / before - 1.0:+.1%})"
        )
    if update:
        document = {"compiler": compiler_name(), "counts": {name: round(count) for name, count in counts.items()}}
        write_atomically(REFERENCE, (json.dumps(document, indent=1) + "\n").encode())
        return 0
    if kept.get("compiler") != compiler_name():
        print(f"the reference belongs to '{kept.get('compiler')}', this is '{compiler_name()}': not compared")
        return 0
    lines = grown(counts, kept["counts"])
    print("\n".join(lines) or "no case has grown by more than 10 %")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
