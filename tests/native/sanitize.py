"""Runs random cases through kernels built with a sanitizer, and compares the results with torch.

    python tests/native/sanitize.py address        reads and writes out of bounds, leaks, undefined behaviour
    python tests/native/sanitize.py thread         data races: two callers at once, three kernel threads each

A report of the sanitizer ends the driver with an error, which ends this program with its text. The build takes some
minutes and lies in build/sanitize-KIND; it is made again when a source is newer.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

import numpy as np
import torch

from snnp.kernels.build import build, library_name
from snnp.kernels.cpu.library import library

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(1, str(Path(__file__).parents[2] / "docs" / "measure"))
from cases import Case, build_driver, random_case, run_driver, write_case
from timings.without_kernels import switched_off
from training import read_results, write_training_case

__all__ = ["KINDS", "check", "check_training", "expected", "sanitized_driver"]

_ROOT = Path(__file__).resolve().parents[2]
_COMMON = ("-g", "-O1", "-fno-omit-frame-pointer", "-fno-sanitize-recover=all")
KINDS = {
    "address": (("-fsanitize=address,undefined", *_COMMON), (2, 2, 1)),
    "thread": (("-fsanitize=thread", *_COMMON), (2, 3, 2)),
}
"""Flags, and counts of calls, kernel threads and callers."""


def sanitized_driver(kind: str) -> Path:
    """Build library and driver where sources have changed; returns the driver."""
    folder = _ROOT / "build" / f"sanitize-{kind}"
    folder.mkdir(parents=True, exist_ok=True)
    target, (flags, _) = folder / library_name(), KINDS[kind]
    sources = [*(_ROOT / "snnp" / "kernels").rglob("*.cpp"), *(_ROOT / "snnp" / "kernels" / "src").glob("*.h")]
    if not target.is_file() or target.stat().st_mtime < max(path.stat().st_mtime for path in sources):
        began = time.time()
        build(target, flags)
        os.utime(target, (began, began))  # a source that changed meanwhile is newer
    return build_driver(folder, target, flags)


def expected(case: Case) -> tuple[np.ndarray, np.ndarray] | None:
    """Energies [N] and forces [N, 3] of the torch path; None for a case with weights, which torch has no name for."""
    if case.weights is not None:
        return None
    with switched_off():
        prediction = case.model.compute(case.structure)
    assert prediction.forces is not None
    return prediction.energies.numpy(), prediction.forces.double().numpy()


def check(driver: Path, seed: int, folder: Path, target: str, counts: tuple[int, int, int]) -> None:
    """Run one random case.

    Raises:
        RuntimeError: with the sanitizer's report.
        AssertionError: if the results differ from torch's.
    """
    case = random_case(seed)
    write_case(folder / "random.case", case)
    numbers, _ = run_driver(driver, folder / "random.case", target, counts=counts)
    reference = expected(case)
    if reference is None:
        return
    n = case.structure.n_atoms
    tolerance = 1e-9 if case.model.dtype == torch.float64 else 2e-4
    for got, wanted in ((numbers[:n], reference[0]), (numbers[n : 4 * n].reshape(n, 3), reference[1])):
        scale = 1.0 + np.abs(wanted).max(initial=0.0)
        np.testing.assert_allclose(got / scale, wanted / scale, atol=tolerance, err_msg=f"seed {seed}, {target}")


def check_training(driver: Path, seed: int, folder: Path, target: str, n_threads: int) -> None:
    """Record the passes of a training step with the installed kernels, and replay them.

    Raises:
        RuntimeError: with the sanitizer's report.
        AssertionError: if the results differ from the installed kernels'.
    """
    case = folder / "training.case"
    wanted = write_training_case(case, seed, n_threads)
    if wanted is None:
        return
    run_driver(driver, case, target)
    for got, array in zip(read_results(case.with_suffix(".result"), wanted), wanted, strict=True):
        scale = 1.0 + np.abs(array).max(initial=0.0)
        # Sums of random signs, in another order: the installed kernels are compiled with other optimisations.
        tolerance = 1e-9 if array.dtype == np.float64 and wanted[0].dtype == np.float64 else 1e-3
        np.testing.assert_allclose(got / scale, array / scale, atol=tolerance, err_msg=f"seed {seed}, {target}")


def main() -> int:
    """Build, run all cases on all instruction sets of this machine."""
    parser = argparse.ArgumentParser(description="Random cases under a sanitizer.")
    parser.add_argument("kind", choices=sorted(KINDS))
    parser.add_argument("--cases", type=int, default=60, help="how many random cases")
    parser.add_argument("--first", type=int, default=0, help="seed of the first")
    chosen = parser.parse_args()
    lib = library()
    if lib is None:
        print("the kernels are not built: run 'make setup'", file=sys.stderr)
        return 1
    targets = [name for name in ("avx512", "avx2", "portable") if lib.snnp_set_target(name.encode())]
    driver = sanitized_driver(chosen.kind)
    for seed in range(chosen.first, chosen.first + chosen.cases):
        for target in targets:
            check(driver, seed, driver.parent, target, KINDS[chosen.kind][1])
            lib.snnp_set_target(target.encode())  # recorded on the same: lanes beyond the last filter hold anything
            check_training(driver, seed, driver.parent, target, KINDS[chosen.kind][1][1])
        print(f"\r{seed - chosen.first + 1} of {chosen.cases} cases", end="", flush=True)
    print(f": nothing found by the {chosen.kind} sanitizer on {', '.join(targets)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
