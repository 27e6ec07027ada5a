"""The embedded engine on a GPU, or in Triton's interpreter: it is the CPU's, files and resumed runs included."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from ase.io import read
from scipy import stats

pytest.importorskip("triton", reason="Triton has no wheels for this platform")

import triton_interpreter  # noqa: F401  before a kernel runs

from snnp.errors import InputError
from snnp.kernels.gpu.call import GpuKernel
from snnp.kernels.gpu.dynamics import Box, Clock
from snnp.kernels.gpu.lists import CellList, State
from snnp.models import SplineNNP, SplineNNPConfig
from snnp.models.spline import special_cases
from snnp.neighbours import neighbour_list
from snnp.sampling import Checkpoint, MDSettings, drive, run_md, starting_point
from snnp.sampling.embedded import NativeDynamics, NativeGpuDynamics, make_engine
from snnp.sampling.thermostats import new_volume, velocity_factor
from snnp.structure import Structure
from snnp.units import AMU_ANGSTROM2_PER_FS2_IN_EV

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
on_gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(not CUDA, reason="no CUDA device: torch.cuda.is_available() is False"),
]


@pytest.fixture(scope="module")
def model() -> SplineNNP:
    """Radial filters and a network: the interpreter takes its time."""
    base = special_cases.s_nnp(("Al", "Ni"), n_radial=3, n_angular=0, cutoff=3.2, hidden=(4,)).model_dump()
    config = SplineNNPConfig.model_validate({**base, "pair_term": True, "repulsion": {"inner": 1.1, "outer": 2.2}})
    model = SplineNNP(config, {"Al": -3.0, "Ni": -5.0})
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, dtype=parameter.dtype, generator=generator))
    return model


@pytest.fixture
def crystal() -> Atoms:
    """Four atoms in a cell that is smaller than the cutoff, skewed, and away from the origin."""
    atoms = bulk("Al", cubic=True, a=4.05)
    atoms.symbols[1] = "Ni"
    cell = atoms.cell.array.copy()
    cell[2, 0] = 0.4
    atoms.set_cell(cell, scale_atoms=True)
    atoms.rattle(0.05, seed=1)
    atoms.positions += [9.0, -5.0, 1.0]
    return atoms


@pytest.fixture
def fragment() -> Atoms:
    """Three atoms on the face of a periodic box: many empty cells, which cost the interpreter nothing."""
    return Atoms("AlNiAl", positions=[[0.2, 3.9, 0.1], [7.8, 4.2, 2.5], [1.9, 4.0, 7.0]], cell=[8.0] * 3, pbc=True)


def _kernel(model: SplineNNP) -> GpuKernel:
    return GpuKernel(model.kernel_parameters(), DEVICE, torch.float32 if CUDA else torch.float64)


def _engine(model: SplineNNP, start: Checkpoint, settings: MDSettings) -> NativeGpuDynamics:
    engine = make_engine(model, _kernel(model), start, settings)
    assert isinstance(engine, NativeGpuDynamics)
    return engine


def _both(model: SplineNNP, atoms: Atoms, settings: MDSettings) -> tuple[NativeGpuDynamics, NativeDynamics]:
    start = starting_point(atoms, settings, NativeDynamics.name)
    return _engine(model, start, settings), NativeDynamics(model, start, settings)


def _assert_equal(ours: NativeGpuDynamics, theirs: NativeDynamics, tolerance: float) -> None:
    a, b = ours.snapshot(), theirs.snapshot()
    for found, wanted in (
        (a.atoms.positions, b.atoms.positions),
        (a.atoms.get_momenta(), b.atoms.get_momenta()),
        (a.atoms.cell.array, b.atoms.cell.array),
        (a.potential_energy, b.potential_energy),
        (a.forces, b.forces),
        (a.stress, b.stress),
    ):
        assert found is not None
        assert wanted is not None
        assert np.abs(found - wanted).max() < tolerance


TOLERANCE = 1e-3 if CUDA else 1e-9


def test_nve_is_the_cpus(model: SplineNNP, crystal: Atoms) -> None:
    """Atoms so hot that lists are built on the way."""
    settings = MDSettings(ensemble="nve", dt_fs=4.0, temperature_k=9000.0, seed=3)
    ours, theirs = _both(model, crystal, settings)
    _assert_equal(ours, theirs, TOLERANCE)
    built = ours._dynamics.list.read().n_builds
    for _ in range(2):
        ours.advance(3)
        theirs.advance(3)
        _assert_equal(ours, theirs, TOLERANCE)
    assert ours._dynamics.list.read().n_builds > built


@pytest.mark.parametrize("pressure, shrinks, thermostat", [(180.0, True, "langevin"), (-40.0, False, "bussi")])
def test_npt_without_heat_is_the_cpus(
    pressure: float, shrinks: bool, thermostat: str, model: SplineNNP, crystal: Atoms
) -> None:
    """So cold that no noise is left: friction and barostat alone; a box that shrinks asks for another grid."""
    settings = MDSettings(
        ensemble="npt",
        thermostat=thermostat,
        dt_fs=2.0,
        temperature_k=1e-20,
        pressure_gpa=pressure,
        barostat_time_fs=100.0,
        friction_per_ps=20.0,
        equilibrate=0,
    )
    ours, theirs = _both(model, crystal, settings)
    least, volume = ours._dynamics.list._least, crystal.get_volume()
    ours.advance(5)
    theirs.advance(5)
    _assert_equal(ours, theirs, TOLERANCE)
    change = ours.snapshot().atoms.get_volume() / volume - 1.0
    assert change < -0.09 if shrinks else change > 0.03
    assert (ours._dynamics.list._least < least) == shrinks


def test_a_box_too_small_for_its_grid_gets_another(fragment: Atoms) -> None:
    cell, pbc = torch.from_numpy(fragment.cell.array), torch.from_numpy(fragment.pbc)
    positions = torch.from_numpy(fragment.positions).to(DEVICE)
    cells, zeros = CellList(positions, cell, pbc, 3.7, margin=0.03), torch.zeros_like(positions)
    assert cells.grid.sizes.tolist() == [2, 2, 2]
    state = State(0.9 * positions, zeros.int(), zeros.clone(), zeros, zeros[:, 0], zeros[:, 0])
    cells.scale[0] = 0.9
    cells.scale[3] = 0.9
    assert cells.is_short(cells.read())
    cells.grow(state, cells.read())
    assert not cells.is_short(cells.read())
    assert cells.grid.sizes.tolist() == [1, 1, 1]
    cells.build(state)
    fragment.set_cell(0.9 * fragment.cell, scale_atoms=True)
    wanted = neighbour_list(Structure.from_ase(fragment), 3.7)
    assert cells.rows.length.tolist() == torch.bincount(wanted.i).tolist()
    cells.scale[3] = 1e-3
    with pytest.raises(InputError, match="collapsed"):
        cells.grow(state, cells.read())


@pytest.mark.parametrize("n_atoms", [1, 300])
def test_a_barostat_draws_volumes_as_the_cpus(n_atoms: int) -> None:
    """From one volume and virial: the distribution of the exact solution, of which the CPU draws too."""
    from snnp.kernels.gpu import _list as _gpu_list

    volume, kt, rate, target, n = 64.0, 0.05, 20.0, 0.004, 300
    atom = torch.zeros(1, 3, dtype=torch.float64, device=DEVICE)
    cell = 4.0 * torch.eye(3, dtype=torch.float64)
    cells = CellList(atom, cell, torch.ones(3, dtype=torch.bool), 3.0)
    cell, inverse = cells.box
    numbers = torch.tensor([volume, target, rate, 3.0, 2.5, n_atoms + 0.5], dtype=torch.float64, device=DEVICE)
    start = torch.arange(81, dtype=torch.float64, device=DEVICE).view(27, 3)
    box = Box(numbers, cells.scale, cell, inverse, start, start.clone(), 81)
    clock_numbers = torch.tensor([0.0, 0.0, 0.0, kt, 0.0, 1.0, 0.0], dtype=torch.float64, device=DEVICE)
    drawn = []
    for step in range(n):
        cells.scale.fill_(1.0)
        key = torch.tensor([5 << 32], device=DEVICE), torch.tensor([step], device=DEVICE)
        sums = torch.tensor([0.3, 0.2], dtype=torch.float64, device=DEVICE)
        clock = Clock(clock_numbers, *key, cells.flags, cells.scale, sums)
        _gpu_list.barostat_kernel[(1,)](box, cells.grid, clock, 2, 1024, num_warps=1)
        drawn.append(volume * float(cells.scale[0]) ** 3)
    decay = rate * (target + 0.5 / (3.0 * volume))
    unit = -0.5 * kt * rate * np.expm1(-decay) / decay
    exact = stats.ncx2(2 * n_atoms + 2, volume * np.exp(-decay) / unit, scale=unit)
    assert stats.kstest(drawn, exact.cdf).pvalue > 1e-3
    rng, slope = np.random.default_rng(1), target + 0.5 / (3.0 * volume)
    host = [new_volume(volume, slope, n_atoms, kt, rate, rng) for _ in range(5000)]
    assert stats.kstest(host, exact.cdf).pvalue > 1e-3
    # Everything follows from the scale: cell, inverse, images, and how far atoms may go.
    scale = cells.scale[0]
    assert torch.allclose(cells.grid.cell, cell * scale)
    assert torch.allclose(cells.grid.inverse, inverse / scale)
    assert torch.allclose(box.images, start * scale)
    room = 0.5 * (3.0 * float(scale) - 2.5)
    assert float(clock_numbers[2]) == pytest.approx(room**2 if room > 0.0 else -1.0)


@pytest.mark.parametrize("n_freedom", [3, 900])
def test_rescaled_velocities_have_the_kinetic_energy_of_the_cpus(n_freedom: int) -> None:
    from snnp.kernels.gpu import _list as _gpu_list

    kt, keep, twice, n = 0.05, 0.6, 0.07 * n_freedom, 300
    empty = torch.zeros(4, dtype=torch.int32, device=DEVICE)
    sums = torch.tensor([0.4 * twice, 0.6 * twice], dtype=torch.float64, device=DEVICE)
    drawn = []
    for step in range(n):
        values = [1.0, keep, 0.0, kt, 0.0, 1.0, 0.5 * (n_freedom - 1)]
        numbers = torch.tensor(values, dtype=torch.float64, device=DEVICE)
        key = torch.tensor([5 << 32], device=DEVICE), torch.tensor([step], device=DEVICE)
        _gpu_list.rescale_kernel[(1,)](Clock(numbers, *key, empty, sums, sums), 2, 1024, num_warps=1)
        drawn.append(float(numbers[5]) ** 2 * twice)
    # The kinetic energy after some time is a non-central chi-squared variable, whatever it was before.
    unit = (1.0 - keep) * kt
    exact = stats.ncx2(n_freedom, keep * twice / unit, scale=unit)
    assert stats.kstest(drawn, exact.cdf).pvalue > 1e-3
    rng = np.random.default_rng(1)
    host = [velocity_factor(0.5 * twice, n_freedom, kt, keep, rng) ** 2 * twice for _ in range(5000)]
    assert stats.kstest(host, exact.cdf).pvalue > 1e-3


def test_atoms_follow_the_box(model: SplineNNP, crystal: Atoms) -> None:
    """At rest positions and anchors scale, velocities stay; what has moved too far asks for a list."""
    from snnp.kernels.gpu import _list as _gpu_list

    settings = MDSettings(ensemble="npt", equilibrate=0)
    dynamics = _engine(model, starting_point(crystal, settings, "native"), settings)._dynamics
    state, work, clock = dynamics._state, dynamics._work, dynamics._clock
    work.forces.zero_()
    state.velocities.zero_()
    state.anchors.add_(0.1)
    clock.scale[2] = 0.9
    before = state.positions.clone(), state.anchors.clone()
    for limit, asks in ((0.0242, 1), (0.0244, 0)):  # around 3 x 0.09²
        clock.flags.zero_()
        clock.numbers[2] = limit
        state.positions.copy_(before[0])
        state.anchors.copy_(before[1])
        _gpu_list.advance_kernel[(1,)](state, work, clock, 4, 0, True, 128)
        assert int(clock.flags[0]) == asks
        assert torch.equal(state.positions, 0.9 * before[0])
        assert torch.equal(state.anchors, 0.9 * before[1])
        assert not state.velocities.any()


@pytest.mark.parametrize(
    "asked",
    [
        {"ensemble": "nve"},
        {"thermostat": "bussi", "fix": "1", "equilibrate": 1},
        {"ensemble": "npt", "temperature_end_k": 300.0},
    ],
)
def test_a_resumed_run_is_the_uninterrupted_run(
    asked: dict[str, Any], model: SplineNNP, fragment: Atoms, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(name: str, steps: int, *, resume: bool = False, kill: bool = False) -> Atoms:
        settings = MDSettings(
            **asked,
            temperature_k=900.0,
            dt_fs=2.0,
            steps=steps,
            seed=7,
            checkpoint=tmp_path / f"{name}.npz",
            checkpoint_interval=2,
            log=tmp_path / f"{name}.csv",
            log_interval=1,
            trajectory=tmp_path / f"{name}.xyz",
            trajectory_interval=2,
            resume=resume,
        )
        start = starting_point(fragment, settings, "native")
        engine = _engine(model, start, settings)
        if kill:
            monkeypatch.setattr(engine, "advance", _killed_at(2, engine))
            with pytest.raises(KeyboardInterrupt):
                drive(engine, start, settings)
            return fragment
        return drive(engine, start, settings).final

    whole = run("whole", 4)
    run("parts", 4, kill=True)
    resumed = run("parts", 4, resume=True)
    assert np.array_equal(whole.positions, resumed.positions)
    assert np.array_equal(whole.get_momenta(), resumed.get_momenta())
    assert np.array_equal(whole.cell.array, resumed.cell.array)
    for suffix in ("csv", "xyz"):
        assert (tmp_path / f"whole.{suffix}").read_text() == (tmp_path / f"parts.{suffix}").read_text()
    frames = read(tmp_path / "whole.xyz", index=":")
    assert len(frames) == 3
    moved = np.abs(frames[-1].positions - fragment.positions).max()
    assert 0.001 < moved < 1.0  # paths, not wrapped into the cell


def _killed_at(step: int, engine: NativeGpuDynamics) -> Callable[[int], None]:
    advance = engine.advance

    def until(n_steps: int) -> None:
        if engine._dynamics.step >= step:
            raise KeyboardInterrupt
        advance(n_steps)

    return until


@pytest.mark.parametrize("ensemble", ["nvt", "npt"])
def test_the_step_that_compiles_leaves_no_trace(ensemble: str, model: SplineNNP, fragment: Atoms) -> None:
    settings = MDSettings(ensemble=ensemble, temperature_k=900.0, dt_fs=30.0, seed=7)
    engine = _engine(model, starting_point(fragment, settings, "native"), settings)
    before = engine.snapshot()
    engine._dynamics._try_step()
    after = engine.snapshot()
    assert np.array_equal(before.atoms.positions, after.atoms.positions)
    assert np.array_equal(before.atoms.get_momenta(), after.atoms.get_momenta())
    assert np.array_equal(before.forces, after.forces)
    assert before.potential_energy == after.potential_energy
    assert np.array_equal(before.stress, after.stress)
    assert engine._dynamics.step == 0


def test_colliding_atoms_are_named(model: SplineNNP) -> None:
    atoms = Atoms("AlAl", positions=[[1.0, 1.0, 1.0], [4.0, 1.0, 1.0]], cell=[12.0] * 3, pbc=True)
    # 1.5 Å in the one step: they meet in the middle.
    atoms.set_velocities(0.15 * np.sqrt(AMU_ANGSTROM2_PER_FS2_IN_EV) * np.array([[1.0, 0.0, 0.0], [-1.0, 0.0, 0.0]]))
    settings = MDSettings(ensemble="nve", dt_fs=10.0, steps=1)
    start = starting_point(atoms, settings, "native")
    with pytest.raises(InputError, match=r"blew up between steps 0 and 1 \(atoms [01] and [01] overlap"):
        drive(_engine(model, start, settings), start, settings)


def test_atoms_in_one_place_are_refused() -> None:
    n, pbc = 5000, torch.ones(3, dtype=torch.bool)
    positions = torch.full((n, 3), 2.0, dtype=torch.float64, device=DEVICE)
    with pytest.raises(InputError, match=r"10\d\d\d atoms lie within 4.0 Å"):
        CellList(positions, 5.04 * torch.eye(3), pbc, 4.0)
    cells = CellList(positions, 40.0 * torch.eye(3), pbc, 4.0)
    cells.flags[1] = n
    zeros = torch.zeros(n, 3, dtype=torch.float64, device=DEVICE)
    state = State(positions, zeros.int(), zeros, zeros, zeros[:, 0], zeros[:, 0])
    assert cells.is_short(cells.read())
    with pytest.raises(InputError, match=r"5000 atoms lie within 4\.0 Å"):
        cells.grow(state, cells.read())


def test_other_models_take_the_host_path(model: SplineNNP, crystal: Atoms) -> None:
    settings = MDSettings()
    start = starting_point(crystal, settings, "native")
    evaluator = model.evaluator()
    kernel = None if evaluator is None else evaluator.kernel
    assert isinstance(make_engine(model, kernel, start, settings), NativeDynamics)


# On a GPU, through the command's own entrance.


def _run(structure: Atoms, **values: Any) -> Any:
    return run_md("snnp-al", structure, MDSettings(**values), engine="native")


@pytest.fixture
def aluminium() -> Atoms:
    return bulk("Al", cubic=True, a=4.05) * (4, 4, 4)


class TestOnAGpu:
    pytestmark = on_gpu

    def test_the_trajectory_is_the_cpus(self, aluminium: Atoms) -> None:
        asked = {"ensemble": "nve", "steps": 100, "dt_fs": 2.0, "temperature_k": 600.0}
        ours, theirs = _run(aluminium, device="cuda", **asked), _run(aluminium, dtype="float64", **asked)
        assert np.abs(ours.final.positions - theirs.final.positions).max() < 1e-3

    def test_ensembles(self, aluminium: Atoms) -> None:
        common = {"device": "cuda", "steps": 6000, "dt_fs": 3.0, "temperature_k": 400.0, "friction_per_ps": 10.0}
        nvt = _run(aluminium, ensemble="nvt", **common)
        assert nvt.mean_temperature_k == pytest.approx(400.0, rel=0.03)
        npt = _run(aluminium, ensemble="npt", pressure_gpa=2.0, barostat_time_fs=200.0, **common)
        assert npt.mean_pressure_gpa == pytest.approx(2.0, abs=0.2)

    @pytest.mark.parametrize("ensemble", ["nve", "nvt", "npt"])
    def test_resumed_to_the_bit(self, ensemble: str, aluminium: Atoms, tmp_path: Path) -> None:
        common = {"device": "cuda", "ensemble": ensemble, "checkpoint_interval": 50}
        whole = _run(aluminium, steps=100, checkpoint=tmp_path / "whole.npz", **common)
        _run(aluminium, steps=50, checkpoint=tmp_path / "parts.npz", **common)
        resumed = _run(aluminium, steps=100, checkpoint=tmp_path / "parts.npz", resume=True, **common)
        assert np.array_equal(whole.final.positions, resumed.final.positions)

    def test_float64_takes_the_host_path(self, aluminium: Atoms) -> None:
        asked = {"ensemble": "nve", "steps": 10, "dtype": "float64"}
        ours, theirs = _run(aluminium, device="cuda", **asked), _run(aluminium, **asked)
        assert np.abs(ours.final.positions - theirs.final.positions).max() < 1e-9
