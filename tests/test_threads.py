"""One calculator, session, model, evaluator, list or operator for many threads; forks of a process that computed."""

from __future__ import annotations

import contextlib
import copy
import multiprocessing
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from ase.calculators.calculator import PropertyNotImplementedError, PropertyNotPresent
from timings.without_kernels import switched_off

from snnp import load_model
from snnp.errors import InputError
from snnp.kernels.cpu.call import ListKeeper
from snnp.kernels.cpu.library import library
from snnp.models import ANI, HIPNN, ANIConfig, Ensemble, HIPNNConfig, Potential, SplineNNP
from snnp.models.session import Session
from snnp.models.spline import special_cases
from snnp.models.spline.compiled import CpuEvaluator
from snnp.neighbours import VerletList, neighbour_list
from snnp.structure import Structure
from snnp_ase import SNNPCalculator
from snnp_openmm.evaluator import Evaluator
from snnp_openmm.source import ModelSource

SMALL: dict[str, Any] = {"n_radial": 3, "n_angular": 3, "cutoff": 4.0}
compiled = pytest.mark.skipif(library() is None, reason="no compiler built the kernels here, or SNNP_KERNELS=off")


def _ani(seed: int) -> ANI:
    return ANI(ANIConfig(elements=("Si",)), {"Si": -5.0}, seed=seed)


MODELS: dict[str, Callable[[], Potential]] = {
    "snnp": lambda: load_model("snnp-si"),
    "snnp in float64": lambda: load_model("snnp-si", dtype=torch.float64),
    "snnp with spline angles": lambda: SplineNNP(special_cases.s_nnp(("Si",), **SMALL, evaluator="spline")),
    "hipnn": lambda: HIPNN(HIPNNConfig(elements=("Si",), l_max=1, n_features=8, cutoff=4.0)),
    "ani": lambda: _ani(0),
    "ensemble of snnp": lambda: Ensemble([SplineNNP(special_cases.s_nnp(("Si",), **SMALL), seed=k) for k in (0, 1)]),
    "ensemble of ani": lambda: Ensemble([_ani(0), _ani(1)]),
}

FRAMES = [bulk("Si", cubic=True) * ((1, 1, 1), (2, 1, 1), (1, 1, 1), (2, 1, 1))[k % 4] for k in range(8)]
for _k, _frame in enumerate(FRAMES):
    _frame.rattle(0.08, seed=_k)
    if _k % 4 == 2:
        _frame.set_cell(_frame.cell * (1.0 + 0.004 * _k), scale_atoms=True)

Results = tuple[float, np.ndarray]


@pytest.fixture(autouse=True)
def _switch_often() -> Iterator[None]:
    """Threads change places after every few instructions."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


@pytest.fixture(params=[*MODELS, "snnp through torch", "snnp with spline angles through torch"])
def model(request: pytest.FixtureRequest) -> Iterator[Potential]:
    name = request.param.removesuffix(" through torch")
    with contextlib.nullcontext() if name == request.param else switched_off():
        yield MODELS[name]()


def _alone(model: Potential, frames: Sequence[Atoms] = FRAMES) -> list[Results]:
    """What a session for each frame says, one after the other."""
    found = [Session(model).evaluate(a.numbers, a.positions, a.cell.array, a.pbc, stress=True) for a in frames]
    return [(one.energy, one.forces) for one in found]


def _together(job: Callable[[Atoms], Results], n_threads: int) -> list[list[Results]]:
    """All frames by threads that begin at the same moment and each at another frame."""
    barrier = threading.Barrier(n_threads)

    def work(first: int) -> list[Results]:
        barrier.wait()
        order = [(first + k) % len(FRAMES) for k in range(len(FRAMES))]
        seen = {k: job(FRAMES[k]) for k in order}
        return [seen[k] for k in range(len(FRAMES))]

    with ThreadPoolExecutor(n_threads) as pool:
        return [future.result() for future in [pool.submit(work, 5 * k) for k in range(n_threads)]]


def _check(job: Callable[[Atoms], Results], model: Potential, n_threads: int) -> None:
    expected = _alone(model)
    for found in _together(job, n_threads):
        for (energy, forces), (right, right_forces) in zip(found, expected, strict=True):
            assert energy == pytest.approx(right, abs=1e-4)
            np.testing.assert_allclose(forces, right_forces, atol=2e-5)


@pytest.mark.parametrize("n_threads", [2, 8])
def test_one_calculator(model: Potential, n_threads: int) -> None:
    calculator = SNNPCalculator(model)

    def job(frame: Atoms) -> Results:
        atoms = frame.copy()
        atoms.calc = calculator
        stress = atoms.get_stress()
        energy, forces = atoms.get_potential_energy(), atoms.get_forces()
        properties = atoms.get_properties(["energy", "stress"])
        assert properties["energy"] == pytest.approx(energy, abs=1e-4)
        np.testing.assert_allclose(properties["stress"], stress, atol=1e-6)
        return energy, forces

    _check(job, model, n_threads)


def test_one_session(model: Potential) -> None:
    session = Session(model)

    def job(atoms: Atoms) -> Results:
        found = session.evaluate(atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc)
        return found.energy, found.forces

    _check(job, model, 4)


def test_one_model(model: Potential) -> None:
    """Batches with lists of their own, and with a list that all threads share."""
    structures = [Structure.from_ase([atoms, atoms]) for atoms in FRAMES]
    shared = [neighbour_list(structure, model.cutoff) for structure in structures]

    def job(atoms: Atoms) -> Results:
        k = next(k for k, frame in enumerate(FRAMES) if frame is atoms)
        found = model.compute(structures[k], shared[k], stress=True)
        again = model.compute(structures[k], forces=True)
        assert found.forces is not None
        assert again.forces is not None
        torch.testing.assert_close(found.forces, again.forces, atol=2e-5, rtol=0.0)
        return float(found.energy[1]), found.forces[len(atoms) :].double().numpy()

    _check(job, model, 4)


def test_one_evaluator_for_openmm() -> None:
    model = load_model("snnp-si")
    atoms = FRAMES[0]
    evaluator = Evaluator(ModelSource(model), atoms.numbers, (True, True, True))
    moved = [atoms.positions + np.random.default_rng(k).normal(size=(8, 3)) * 0.05 for k in range(6)]
    frames = [Atoms("Si8", positions=p, cell=atoms.cell, pbc=True) for p in moved]
    expected = _alone(model, frames)

    def work(first: int) -> None:
        for k in [(first + k) % 6 for k in range(24)]:
            found = evaluator.evaluate(frames[k].positions, frames[k].cell.array, stress=k % 2 == 0)
            assert found.energy == pytest.approx(expected[k][0], abs=1e-4)
            np.testing.assert_allclose(found.forces, expected[k][1], atol=2e-5)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, range(6)))


@compiled
def test_the_operator() -> None:
    from snnp.kernels.cpu.operator import pack_tensor

    model = load_model("snnp-si", dtype=torch.float64)
    evaluator = model.evaluator()
    assert isinstance(evaluator, CpuEvaluator)
    packed = pack_tensor(evaluator.kernel)
    keeper, verlet = ListKeeper(model.cutoff), VerletList(model.cutoff)  # shared by all threads, too

    def job(atoms: Atoms) -> Results:
        rows, images = keeper.update(atoms.positions, atoms.cell.array, (True, True, True))
        columns = [torch.from_numpy(x) for x in (rows.first, rows.neighbour, rows.image, images)]
        positions = torch.from_numpy(atoms.positions).clone().requires_grad_()
        species = torch.zeros(len(atoms), dtype=torch.int32)
        energies, forces, _ = torch.ops.snnp.spline_nnp(packed, positions, species, *columns)
        energies.sum().backward()
        assert positions.grad is not None
        torch.testing.assert_close(-positions.grad, forces, atol=1e-10, rtol=0.0)
        structure = Structure.from_ase(atoms)
        again = model.compute(structure, verlet.update(structure)).forces
        torch.testing.assert_close(again, forces, atol=1e-10, rtol=0.0)
        return float(energies.detach().sum()), forces.detach().numpy()

    _check(job, model, 6)


@compiled
def test_parameters_that_change_while_they_are_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What another thread wrote meanwhile is packed at the next call, not lost."""
    model = SplineNNP(special_cases.s_nnp(("Si",), **SMALL), seed=0)
    real = SplineNNP.kernel_parameters

    def interrupted(packed: SplineNNP) -> Any:
        plan = real(packed)
        monkeypatch.undo()
        with torch.no_grad():
            model.rho.free.mul_(2.0)
        return plan

    monkeypatch.setattr(SplineNNP, "kernel_parameters", interrupted)
    model.compute(Structure.from_ase(FRAMES[0]))
    found = model.compute(Structure.from_ase(FRAMES[0])).energy
    with switched_off():
        expected = model.compute(Structure.from_ase(FRAMES[0])).energy
    torch.testing.assert_close(found, expected, atol=1e-9, rtol=0.0)


@compiled
def test_reference_energies_set_twice() -> None:
    """The kernel follows E0, also where its tensor lies at the address of one that is gone."""
    model = load_model("snnp-si")
    structure = Structure.from_ase(FRAMES[0])
    for k in range(50):
        model.reference_energies = {"Si": float(k)}
        first = float(model.compute(structure).energy)
        model.reference_energies = {"Si": -1e6}
        model.reference_energies = {"Si": k + 1.0}
        assert float(model.compute(structure).energy) == pytest.approx(first + 8.0, abs=1e-6)


def test_results_of_a_calculator_belong_to_its_atoms() -> None:
    calculator = SNNPCalculator("snnp-si")
    with pytest.raises(InputError, match="no atoms"):
        calculator.get_property("energy")
    atoms = FRAMES[0].copy()
    atoms.calc = calculator
    energy = atoms.get_potential_energy()
    assert calculator.atoms == atoms
    assert calculator.results["energy"] == energy == calculator.get_property("energy")
    atoms.positions[0] += 0.1
    assert calculator.get_property("energy", atoms, allow_calculation=False) is None
    assert calculator.results == {}
    atoms.positions[1] = atoms.positions[0]
    with pytest.raises(InputError, match="overlap"):
        atoms.get_potential_energy()
    assert calculator.results == {}
    assert calculator.calculation_required(FRAMES[0], ["energy"])
    with pytest.raises(PropertyNotImplementedError):
        calculator.get_property("dipole", FRAMES[0])
    open_ended = Atoms("Si2", [(0, 0, 0), (0, 0, 2.3)])
    with pytest.raises(PropertyNotPresent):
        calculator.calculate_properties(open_ended, ["energy", "stress"])
    with pytest.raises(ValueError, match="No such property"):
        calculator.calculate_properties(open_ended, ["enthalpy"])
    for twin in (copy.deepcopy(calculator), pickle.loads(pickle.dumps(calculator))):
        assert twin.atoms == open_ended
        assert twin.results["energy"] == calculator.results["energy"]


def test_a_session_is_pickled_without_its_memory() -> None:
    session = Session(load_model("snnp-si"), skin=0.7)
    arguments = FRAMES[1].numbers, FRAMES[1].positions, FRAMES[1].cell.array, FRAMES[1].pbc
    energy = session.evaluate(*arguments).energy
    for twin in (copy.deepcopy(session), pickle.loads(pickle.dumps(session))):
        assert twin.skin == 0.7
        assert twin.n_neighbour_builds == 0
        assert twin.evaluate(*arguments).energy == pytest.approx(energy, abs=1e-5)


FORKS = """
import multiprocessing, sys
import numpy as np, torch
torch.set_num_threads(2)
sys.path[:0] = sys.argv[1:]
from test_threads import FRAMES, MODELS, SNNPCalculator, Session, Structure, bulk

big = bulk("Si", cubic=True) * (3, 3, 2)  # enough for two threads, of torch and of the kernels
big.rattle(0.05, seed=1)

def energy(calculator):
    atoms = big.copy()
    atoms.calc = calculator
    return atoms.get_potential_energy() + float(np.abs(atoms.get_forces()).sum())

def in_child(k):
    torch.set_num_threads(k)
    own = [energy(SNNPCalculator(make())) for make in MODELS.values()]
    return [energy(c) for c in calculators], own, [float(m.compute(Structure.from_ase(big)).energy) for m in models]

models = [make() for make in MODELS.values()]
calculators = [SNNPCalculator(model) for model in models]
expected = in_child(2)
x = torch.randn(600, 600, requires_grad=True)
(x @ x).sum().backward()
with multiprocessing.get_context("fork").Pool(2) as pool:
    found = pool.map_async(in_child, [1, 2]).get(100)
for one in [*found, in_child(2)]:
    for a, b in zip(one, expected):
        np.testing.assert_allclose(a, b, rtol=1e-5)
print("the same")
"""


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="this system cannot fork")
def test_forked_processes_compute() -> None:
    """Every family, inherited and new, with one thread and two, after torch and the kernels have used theirs."""
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "PYTHONWARNINGS": "ignore"}
    here = os.path.dirname(__file__)
    command = [sys.executable, "-c", FORKS, here, os.path.join(here, "..", "docs", "measure")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=200)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[-2] == "the same"
