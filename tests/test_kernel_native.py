"""The kernels without Python: the driver's results, and the count of instructions that CI watches."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from timings.without_kernels import switched_off

from snnp.kernels.cpu.library import LIBRARY_FILE, MAX_DEGREE, library

NATIVE = Path(__file__).parent / "native"


def _load(name: str) -> ModuleType:
    """A module of `tests/native`, which is no package."""
    spec = importlib.util.spec_from_file_location(name, NATIVE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


cases = _load("cases")
training = _load("training")
instructions = _load("instructions")

pytestmark = [
    pytest.mark.skipif(not LIBRARY_FILE.is_file(), reason="the kernels are not built (no C++ compiler)"),
    pytest.mark.skipif(instructions.compiler_name() is None, reason="the driver needs a C++ compiler"),
]


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return cases.build_driver(tmp_path_factory.mktemp("driver"), LIBRARY_FILE)


@pytest.mark.parametrize("seed", range(12))
def test_driver_agrees_with_torch(seed: int, driver: Path, tmp_path: Path) -> None:
    """Two callers at once, each with two threads and two calls, on models and atoms of random form."""
    case = cases.random_case(seed)
    cases.write_case(tmp_path / "case", case)
    lib = library()
    assert lib is not None
    numbers, _ = cases.run_driver(driver, tmp_path / "case", lib.snnp_target().decode(), counts=(2, 2, 2))
    n = case.structure.n_atoms
    assert numbers.shape == (4 * n + 9 * case.structure.n_structures,)
    if case.weights is not None:
        return  # forces of a weighted sum of energies, which torch has no name for
    with switched_off():
        expected = case.model.compute(case.structure)
    tolerance = 1e-9 if case.model.dtype == torch.float64 else 2e-4
    scale = 1.0 + expected.forces.abs().max().item() if n else 1.0
    np.testing.assert_allclose(numbers[:n] / scale, expected.energies.numpy() / scale, atol=tolerance)
    np.testing.assert_allclose(numbers[n : 4 * n].reshape(n, 3) / scale, expected.forces / scale, atol=tolerance)


@pytest.mark.parametrize("seed", [0, 2, 4, 5, 10])
def test_replayed_training_is_what_was_recorded(seed: int, driver: Path, tmp_path: Path) -> None:
    """The same library, instructions and threads: equal to the last bit."""
    lib = library()
    assert lib is not None
    recorded = training.write_training_case(tmp_path / "case", seed, 2)
    assert recorded is not None  # these seeds draw models that the passes cover
    cases.run_driver(driver, tmp_path / "case", lib.snnp_target().decode())
    replayed = training.read_results(tmp_path / "case.result", recorded)
    assert len(replayed) == 6
    for got, wanted in zip(replayed, recorded, strict=True):
        np.testing.assert_array_equal(got, wanted)
    assert max(np.abs(array).max(initial=0.0) for array in replayed) > 0.0


def test_random_cases_are_of_all_kinds() -> None:
    """What the sanitizers see: both evaluators and types, batches, open sides, no atoms, weights, half lists."""
    drawn = [cases.random_case(seed) for seed in range(60)]
    assert {case.model.config.angular.evaluator for case in drawn} == {"legendre", "spline"}
    assert {case.model.dtype for case in drawn} == {torch.float32, torch.float64}
    assert {case.structure.n_structures for case in drawn} == {1, 2, 3}
    assert {case.half for case in drawn} == {case.weights is None for case in drawn} == {True, False}
    assert {case.model.config.angular.degree for case in drawn} == set(range(MAX_DEGREE + 1))
    assert min(case.structure.n_atoms for case in drawn) == 0
    assert max(case.structure.n_atoms for case in drawn) > 64  # more than one part per thread


def test_driver_refuses_a_damaged_case(driver: Path, tmp_path: Path) -> None:
    cases.write_case(tmp_path / "case", cases.random_case(0))
    content = (tmp_path / "case").read_bytes()
    (tmp_path / "short").write_bytes(content[: len(content) // 2])
    with pytest.raises(RuntimeError, match="too short"):
        cases.run_driver(driver, tmp_path / "short", "portable")
    (tmp_path / "plan").write_bytes(content[:8] + bytes(64) + content[72:])
    with pytest.raises(RuntimeError, match="status 1"):
        cases.run_driver(driver, tmp_path / "plan", "portable")


def test_growth_is_noticed() -> None:
    reference = {"a": 1000.0, "b": 1000.0}
    assert instructions.grown({"a": 1099.0, "b": 500.0}, reference) == []
    (line,) = instructions.grown({"a": 1101.0, "b": 1000.0}, reference)
    assert "a: 1,101 instructions per atom, +10.1%" in line


@pytest.mark.skipif(shutil.which("valgrind") is None, reason="valgrind is not installed")
def test_instructions_have_not_grown(tmp_path: Path) -> None:
    kept = json.loads(instructions.REFERENCE.read_text())
    assert set(kept["counts"]) == set(instructions.CASES)
    if kept["compiler"] != instructions.compiler_name():
        pytest.skip(f"the reference was counted with {kept['compiler']}, this is {instructions.compiler_name()}")
    name = "legendre float32 avx2"
    assert instructions.grown(instructions.count_instructions(tmp_path, [name]), kept["counts"]) == []
