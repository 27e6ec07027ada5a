"""Many structures at once: lists, evaluations, relaxations and dynamics are those of each structure by itself."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from ase.constraints import FixAtoms, FixBondLength
from ase.filters import FrechetCellFilter
from ase.optimize import FIRE
from strained import silicon
from timings.without_kernels import switched_off

from snnp.errors import ConfigError, InputError, MissingDependencyError
from snnp.kernels.cpu.library import library
from snnp.models import Potential
from snnp.models.session import Evaluation, Session
from snnp.neighbours import neighbour_list
from snnp.sampling import MDSettings, RelaxResult, relax, run_md
from snnp.sampling.many import Crowd, Failed, evaluate_many, relax_many, run_many, torchsim_model
from snnp.sampling.many.small_cells import Batch, SmallCellLists, UnfitError
from snnp.structure import Structure
from snnp_ase import SNNPCalculator

MODELS = ["snnp-si", "hipnn-si", "snnp-shared6"]


def wild(n: int) -> list[Atoms]:
    """Structures of all periodicities: skewed cells smaller than the cutoff, atoms far outside of them."""
    rng, found = np.random.default_rng(7), []
    for k in range(n):
        size, pbc = int(rng.integers(1, 9)), True if k % 3 else (rng.random(3) < 0.6)
        cell = np.eye(3) * rng.uniform(2.5, 8.0) + rng.normal(0.0, 0.7, (3, 3))
        found.append(Atoms("Si" * size, rng.uniform(-20.0, 20.0, (size, 3)), cell=cell, pbc=pbc))
    return [*found, bulk("Si", cubic=True) * (3, 3, 3), molecule("SiH4"), Atoms("Si", cell=[3, 3, 3], pbc=True)]


def batch_of(frames: list[Atoms]) -> Batch:
    all_of = Structure.from_ase(frames)
    arrays = all_of.positions, all_of.atoms_per_structure, all_of.cell, all_of.pbc
    return Batch(*(tensor.numpy() for tensor in arrays))


@pytest.fixture(params=["compiled", "numpy"])
def search(request: pytest.FixtureRequest) -> Iterator[str]:
    """Lists are found by compiled code where there is some, and in numpy."""
    if request.param == "compiled" and not hasattr(library(), "snnp_find_small"):
        pytest.skip("the library was not built")
    with nullcontext() if request.param == "compiled" else switched_off():
        yield request.param


# Lists.


def test_lists_hold_the_pairs_that_vesin_finds(search: str) -> None:
    frames = wild(60)
    rows = SmallCellLists(5.0, 0.5).update(batch_of(frames))
    expected = neighbour_list(Structure.from_ase(frames), 5.5)
    i = np.repeat(np.arange(len(rows.first) - 1), np.diff(rows.first))
    ours = np.column_stack([i, rows.neighbour, rows.shifts[rows.image]]).astype(int)
    theirs = np.column_stack([expected.i, expected.j, expected.shift])
    assert sorted(map(tuple, ours.tolist())) == sorted(map(tuple, theirs.tolist()))
    owner = Structure.from_ase(frames).structure_of_atom.numpy()
    np.testing.assert_array_equal(rows.owner[rows.image], owner[i])


def test_images_far_apart_are_numbered_too(search: str) -> None:
    """Atoms that have wandered hundreds of cells from each other, as in a gas."""
    far = [Atoms("Si2", [[0, 0, 0], [901.0, 602.0, -750.0]], cell=np.eye(3) * 3.0, pbc=True)] * 3
    rows = SmallCellLists(5.0, 0.5).update(batch_of(far))
    assert len(rows.neighbour) == neighbour_list(Structure.from_ase(far), 5.5).n_pairs


@pytest.mark.parametrize("moves_cell", [False, True])
def test_lists_follow_what_moves(moves_cell: bool) -> None:
    """Whatever is within the cutoff is in the list, although most lists are kept from step to step."""
    frames, lists, rng = silicon(12), SmallCellLists(5.0, 0.6), np.random.default_rng(0)
    for _ in range(25):
        batch = batch_of(frames)
        rows = lists.update(batch)
        i = np.repeat(np.arange(len(batch.positions)), np.diff(rows.first))
        vectors = batch.positions[rows.neighbour] - batch.positions[i] + rows.images(batch.cells)[rows.image]
        within = int((np.linalg.norm(vectors, axis=1) < 5.0).sum())
        assert within == neighbour_list(Structure.from_ase(frames), 5.0).n_pairs
        for atoms in frames:
            if moves_cell:
                atoms.set_cell(atoms.cell @ (np.eye(3) + rng.normal(0.0, 0.004, (3, 3))), scale_atoms=True)
            atoms.positions += rng.normal(0.0, 0.04, atoms.positions.shape)
    assert 12 < lists.n_builds < 12 * 20


def test_structures_that_cannot_be_searched_are_named() -> None:
    flat = Atoms("Si2", [[0, 0, 0], [2, 0, 0]], cell=[[3, 0, 0], [6, 0, 0], [0, 0, 3]], pbc=True)
    far = Atoms("Si2", [[0, 0, 0], [1e12, 0, 0]])
    dense = Atoms("Si", cell=[0.01, 0.01, 0.01], pbc=True)
    with pytest.raises(UnfitError) as caught:
        SmallCellLists(5.0, 0.5).update(batch_of([bulk("Si"), flat, far, bulk("Si"), dense]))
    reasons = caught.value.reasons
    assert list(reasons) == [1, 2, 4]
    assert "no volume" in reasons[1]
    assert "reach too far" in reasons[2]
    assert "denser than any matter" in reasons[4]


# Evaluation.


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_evaluations_are_those_of_each_alone(name: str, dtype: str) -> None:
    frames = [*silicon(), molecule("SiH4")[:1], bulk("Si") * (1, 1, 3)]
    frames[-1].pbc = [True, True, False]
    bound = 1e-9 if dtype == "float64" else 2e-4
    from snnp import load_model

    session = Session(load_model(name, dtype=dtype))
    for atoms, found in zip(frames, evaluate_many(name, frames, dtype=dtype), strict=True):
        assert isinstance(found, Evaluation)
        alone = session.evaluate(atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc, stress=True)
        assert found.energy == pytest.approx(alone.energy, abs=bound)
        np.testing.assert_allclose(found.forces, alone.forces, atol=bound)
        assert (found.stress is None) == (alone.stress is None)
        if found.stress is not None and alone.stress is not None:
            np.testing.assert_allclose(found.stress, alone.stress, atol=bound)


def test_evaluating_nothing_gives_nothing() -> None:
    assert evaluate_many("snnp-si", []) == []
    assert relax_many("snnp-si", []) == []
    assert run_many("snnp-si", [], MDSettings()) == []


@pytest.mark.parametrize("name", ["snnp-si", "hipnn-si"])
def test_what_is_wrong_with_one_is_said_of_that_one(name: str) -> None:
    good, twice, broken = bulk("Si", cubic=True), bulk("Si"), bulk("Si")
    twice.positions[1] = twice.positions[0] + 0.01
    broken.positions[1, 2] = np.nan
    bent = bulk("Si")
    bent.cell[0, 0] = np.inf
    frames = [good, twice, Atoms(), broken, bulk("Cu"), good, bent]
    found = evaluate_many(name, frames)
    assert [isinstance(one, Failed) for one in found] == [False, True, True, True, True, False, True]
    assert [one.index for one in found if isinstance(one, Failed)] == [1, 2, 3, 4, 6]
    reasons = [one.reason for one in found if isinstance(one, Failed)]
    for reason, said in zip(reasons, ["overlap", "no atoms", "NaN", "Cu", "NaN or infinite"], strict=True):
        assert said in reason


class _Holes(Potential):
    """Gives NaN for structures of three atoms."""

    def __init__(self) -> None:
        super().__init__(("Si",), {}, 3.0)
        self.one = torch.nn.Parameter(torch.ones(1, dtype=torch.float64))

    def atomic_energies(self, structure: Structure, vectors: torch.Tensor, neighbours: Any) -> torch.Tensor:
        sizes = structure.atoms_per_structure[structure.structure_of_atom]
        return torch.where(sizes == 3, torch.nan, 1.0) * self.one


def test_an_energy_that_is_nan_fails_its_structure() -> None:
    frames = [Atoms("Si" * n, [[5.0 * k, 0, 0] for k in range(n)]) for n in (2, 3, 4)]
    found = evaluate_many(_Holes(), frames)
    assert [isinstance(one, Failed) for one in found] == [False, True, False]
    assert isinstance(found[1], Failed)
    assert "NaN" in found[1].reason


# Relaxation.


@pytest.mark.parametrize("name", ["snnp-si", "hipnn-si"])
@pytest.mark.parametrize("cell, pressure", [(False, 0.0), (True, 0.0), (True, 5.0)])
def test_relaxations_end_where_each_ends_alone(name: str, cell: bool, pressure: float) -> None:
    frames = silicon(3 if name.startswith("hipnn") else 6)
    how = {"fmax": 0.01, "cell": cell, "pressure_gpa": pressure}
    for atoms, found in zip(frames, relax_many(name, frames, **how), strict=True):  # type: ignore[arg-type]
        alone = relax(name, atoms, **how)  # type: ignore[arg-type]
        assert isinstance(found, RelaxResult)
        assert (found.steps, found.converged) == (alone.steps, alone.converged)
        assert found.energy_ev == pytest.approx(alone.energy_ev, abs=1e-10)
        assert found.initial_energy_ev == pytest.approx(alone.initial_energy_ev, abs=1e-10)
        assert found.max_force_ev_per_angstrom == pytest.approx(alone.max_force_ev_per_angstrom, abs=1e-9)
        assert found.max_stress_gpa == pytest.approx(alone.max_stress_gpa, abs=1e-7)
        np.testing.assert_allclose(found.atoms.positions, alone.atoms.positions, atol=1e-9)
        np.testing.assert_allclose(found.atoms.cell, alone.atoms.cell, atol=1e-9)


def test_relaxation_knows_molecules_and_fixed_atoms() -> None:
    ethanol, held = molecule("CH3CH2OH"), molecule("CH3CH2OH")
    held.set_constraint(FixAtoms([0, 1]))
    for atoms, found in zip([ethanol, held], relax_many("snnp-organic", [ethanol, held]), strict=True):
        alone = relax("snnp-organic", atoms)
        assert isinstance(found, RelaxResult)
        assert found.steps == alone.steps
        assert found.max_stress_gpa is None
        np.testing.assert_allclose(found.atoms.positions, alone.atoms.positions, atol=1e-9)
    np.testing.assert_array_equal(found.atoms.positions[:2], held.positions[:2])


@pytest.mark.parametrize("pressure", [0.0, 5.0])
def test_atoms_that_are_held_move_with_the_cell(pressure: float) -> None:
    """As in ASE's filter: at the same place in the cell, and the force on them does not count."""
    frames = silicon(4)
    for atoms in frames[::2]:
        atoms.set_constraint(FixAtoms([0] if len(atoms) == 2 else [0, 3]))
    how = {"fmax": 0.01, "cell": True, "pressure_gpa": pressure}
    for start, found in zip(frames, relax_many("snnp-si", frames, **how), strict=True):  # type: ignore[arg-type]
        alone = relax("snnp-si", start, **how)  # type: ignore[arg-type]
        assert isinstance(found, RelaxResult)
        assert (found.steps, found.converged) == (alone.steps, True)
        assert found.energy_ev == pytest.approx(alone.energy_ev, abs=1e-9)
        assert found.max_force_ev_per_angstrom == pytest.approx(alone.max_force_ev_per_angstrom, abs=1e-8)
        np.testing.assert_allclose(found.atoms.positions, alone.atoms.positions, atol=1e-8)
        np.testing.assert_allclose(found.atoms.cell, alone.atoms.cell, atol=1e-8)
        for constraint in start.constraints:
            kept = constraint.index
            places = [atoms.get_scaled_positions(wrap=False)[kept] for atoms in (found.atoms, start)]
            np.testing.assert_allclose(*places, atol=1e-12)
        assert np.abs(found.atoms.cell.array - start.cell.array).max() > 1e-3


@pytest.mark.parametrize("cell", [False, True])
def test_lbfgs_ends_in_the_same_minima_in_fewer_steps(cell: bool) -> None:
    frames = silicon(9)
    fire = relax_many("snnp-si", frames, cell=cell, fmax=1e-4, steps=2000)
    ours = relax_many("snnp-si", frames, cell=cell, fmax=1e-4, optimiser="lbfgs")
    alone = [relax_many("snnp-si", [atoms], cell=cell, fmax=1e-4, optimiser="lbfgs")[0] for atoms in frames]
    for slow, fast, by_itself in zip(fire, ours, alone, strict=True):
        assert isinstance(slow, RelaxResult)
        assert isinstance(fast, RelaxResult)
        assert isinstance(by_itself, RelaxResult)
        assert fast.converged
        assert fast.steps < 0.5 * slow.steps
        assert fast.energy_ev == pytest.approx(slow.energy_ev, abs=1e-6)
        assert by_itself.steps == fast.steps
        assert by_itself.energy_ev == pytest.approx(fast.energy_ev, abs=1e-10)
        np.testing.assert_allclose(by_itself.atoms.positions, fast.atoms.positions, atol=1e-8)


def test_lbfgs_leaves_a_region_of_negative_curvature_downhill() -> None:
    """From near the top of a barrier (a bond twice too long) it goes down, and ends in a minimum, not on a saddle."""
    atoms = bulk("Si", cubic=True)
    atoms.rattle(0.4, seed=3)
    (found,) = relax_many("snnp-si", [atoms], optimiser="lbfgs", fmax=1e-3, steps=1000)
    assert isinstance(found, RelaxResult)
    assert found.converged
    shaken = found.atoms.copy()
    shaken.rattle(0.02, seed=1)
    shaken.calc = SNNPCalculator("snnp-si", dtype="float64")
    assert shaken.get_potential_energy() > found.energy_ev


def test_one_that_collapses_does_not_hold_up_the_others() -> None:
    good = bulk("Si", cubic=True)
    good.rattle(0.05, seed=0)
    bad = good.copy()
    bad.positions[1] = bad.positions[0]
    slab = good.copy()
    slab.pbc = [True, True, False]
    held = good.copy()
    held.set_constraint(FixBondLength(0, 1))
    beyond = good.copy()
    beyond.set_constraint(FixAtoms([0, 8]))
    before = good.copy()
    before.set_constraint(FixAtoms([-9, 2]))
    frames = [good, bad, slab, held, beyond, before, good]
    found = relax_many("snnp-si", frames, cell=True)
    assert [isinstance(one, Failed) for one in found] == [False, True, True, True, True, True, False]
    reasons = [one.reason for one in found if isinstance(one, Failed)]
    assert "overlap" in reasons[0]
    assert "periodic" in reasons[1]
    assert "constraint FixBondLengths, and many at once know FixAtoms alone" in reasons[2]
    assert "FixAtoms names atom 8, and its atoms are numbered 0 to 7" in reasons[3]
    assert "FixAtoms names atom -9, and its atoms are numbered 0 to 7" in reasons[4]


class _Well(Potential):
    """Pulls atoms together with 1 / r, and gives NaN below 1 Å; a spring holds pairs apart that begin beyond 2.5 Å."""

    def __init__(self) -> None:
        super().__init__(("Si",), {}, 4.0)
        self.one = torch.nn.Parameter(torch.ones(1, dtype=torch.float64))

    def atomic_energies(self, structure: Structure, vectors: torch.Tensor, neighbours: Any) -> torch.Tensor:
        r = vectors.norm(dim=1)
        near = torch.where(r < 1.0, torch.full_like(r, torch.nan), -1.0 / r)
        pairs = torch.where(r > 2.5, (r - 3.0) ** 2, near)
        return torch.zeros(structure.n_atoms, dtype=torch.float64).index_add(0, neighbours.i, self.one * pairs)


@pytest.mark.parametrize("optimiser", ["fire", "lbfgs"])
def test_one_that_collapses_on_the_way_says_so(optimiser: str) -> None:
    pairs = [Atoms("Si2", [[0, 0, 0], [r, 0, 0]]) for r in (3.2, 2.0, 2.9)]
    found = relax_many(_Well(), pairs, optimiser=optimiser)
    assert [isinstance(one, Failed) for one in found] == [False, True, False]
    assert isinstance(found[1], Failed)
    assert found[1].reason.startswith("the structure collapsed or flew apart after")
    assert isinstance(found[0], RelaxResult)
    assert found[0].atoms.get_distance(0, 1) == pytest.approx(3.0, abs=0.01)


def test_what_is_asked_of_all_is_checked_at_once() -> None:
    frames = [bulk("Si")]
    with pytest.raises(InputError, match="fmax must be positive"):
        relax_many("snnp-si", frames, fmax=0.0)
    with pytest.raises(InputError, match="acts on the cell"):
        relax_many("snnp-si", frames, pressure_gpa=1.0)
    with pytest.raises(InputError, match=r"no optimiser 'fier'.*Did you mean 'fire'"):
        relax_many("snnp-si", frames, optimiser="fier")
    with pytest.raises(InputError, match="steps must not be negative"):
        relax_many("snnp-si", frames, steps=-1)


def test_finished_ones_leave_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    evaluate = Crowd.evaluate
    monkeypatch.setattr(Crowd, "evaluate", lambda crowd: (sizes.append(len(crowd)), evaluate(crowd))[1])
    frames, seen = silicon(12), []
    relax_many("snnp-si", frames, report=lambda done, total: seen.append((done, total)))
    assert sizes[0] == 12
    assert sizes[-1] < 6
    assert sizes == sorted(sizes, reverse=True)
    assert seen[-1] == (12, 12)


def test_the_coordinates_are_those_of_ase_to_rounding() -> None:
    """A few steps of ASE's FIRE with its filter, compared step by step with ours far from the minimum."""
    atoms = silicon(3, size=0.2)[1]
    moved = atoms.copy()
    moved.calc = SNNPCalculator("snnp-si", dtype="float64")
    FIRE(FrechetCellFilter(moved, scalar_pressure=0.01), logfile=None).run(fmax=1e-9, steps=12)
    (found,) = relax_many("snnp-si", [atoms], cell=True, pressure_gpa=0.01 * 160.21766208, fmax=1e-9, steps=12)
    assert isinstance(found, RelaxResult)
    np.testing.assert_allclose(found.atoms.positions, moved.positions, atol=1e-10)
    np.testing.assert_allclose(found.atoms.cell, moved.cell, atol=1e-10)


# Dynamics.


@pytest.mark.parametrize(
    "settings",
    [
        {"ensemble": "nve"},
        {},
        {"thermostat": "bussi", "equilibrate": 11},
        {"ensemble": "npt", "pressure_gpa": 1.0},
        {"temperature_end_k": 900.0, "fix": "0"},
    ],
)
def test_trajectories_are_those_of_each_alone(settings: dict[str, Any]) -> None:
    frames = silicon(4, size=0.02)
    if settings.get("ensemble") == "npt":
        frames = [atoms for atoms in frames if len(atoms) > 2]
    asked = MDSettings(steps=70, dtype="float64", log_interval=10, trajectory_interval=35, seed=3, **settings)
    runs = run_many("snnp-si", frames, asked, frames=True)
    for k, (atoms, run) in enumerate(zip(frames, runs, strict=True)):
        alone = run_md("snnp-si", atoms, asked.model_copy(update={"seed": 3 + k}), engine="native")
        assert run.failure is None
        assert (run.steps, len(run.samples), len(run.frames)) == (70, 8, 3)
        np.testing.assert_allclose(run.final.positions, alone.final.positions, atol=1e-9)
        np.testing.assert_allclose(run.final.get_momenta(), alone.final.get_momenta(), atol=1e-8)
        np.testing.assert_allclose(run.final.cell, alone.final.cell, atol=1e-9)
        late = [sample.temperature_k for sample in run.samples if sample.step >= alone.equilibration]
        if alone.mean_temperature_k is not None:
            assert np.mean(late) == pytest.approx(alone.mean_temperature_k, abs=1e-5)
        assert run.frames[-1].get_potential_energy() == pytest.approx(run.samples[-1].potential_energy_ev)


def test_dynamics_by_torch_are_those_of_each_alone() -> None:
    frames, asked = silicon(2, size=0.02), MDSettings(steps=10, dtype="float64")
    for k, run in enumerate(run_many("hipnn-si", frames, asked)):
        alone = run_md("hipnn-si", frames[k], asked.model_copy(update={"seed": k}), engine="native")
        np.testing.assert_allclose(run.final.positions, alone.final.positions, atol=1e-9)


def test_a_run_that_blows_up_ends_alone() -> None:
    frames = silicon(3, size=0.02)
    frames[1].set_momenta(
        np.full((len(frames[1]), 3), 500.0) * np.array([1, -1, 1]) * np.arange(len(frames[1]))[:, None]
    )
    close = bulk("Si")
    close.positions[1] = close.positions[0] + 0.01
    runs = run_many("snnp-si", [*frames, close, Atoms(), bulk("Cu")], MDSettings(steps=40, ensemble="nve"))
    assert [run.failure is None for run in runs] == [True, False, True, False, False, False]
    for run, said in zip([runs[1], *runs[3:]], ["blew up", "overlap", "no atoms", "Cu"], strict=True):
        assert said in str(run.failure)
    assert runs[0].steps == 40
    alone = run_md("snnp-si", frames[2], MDSettings(steps=40, ensemble="nve", seed=2), engine="native")
    np.testing.assert_allclose(runs[2].final.positions, alone.final.positions, atol=1e-4)  # float32


def test_many_runs_write_no_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="name log; take frames=True"):
        run_many("snnp-si", [bulk("Si")], MDSettings(log=tmp_path / "log.csv"))


# TorchSim.


def test_torchsim_gets_what_one_call_gives() -> None:
    torch_sim = pytest.importorskip("torch_sim", reason="TorchSim needs Python 3.12: pip install torch-sim-atomistic")
    frames, model = silicon(3), torchsim_model("snnp-si", dtype="float64")
    found = model(torch_sim.io.atoms_to_state(frames, device=model.device, dtype=model.dtype))
    expected = [one for one in evaluate_many("snnp-si", frames, dtype="float64") if isinstance(one, Evaluation)]
    np.testing.assert_allclose(found["energy"], [one.energy for one in expected], atol=1e-10)
    np.testing.assert_allclose(found["forces"], np.concatenate([one.forces for one in expected]), atol=1e-10)


def test_torchsim_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_sim", None)
    with pytest.raises(MissingDependencyError, match="pip install torch-sim-atomistic"):
        torchsim_model("snnp-si")
