"""The GPU kernels give the numbers of the CPU in float64: on a GPU, or in Triton's interpreter where there is none."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.build import bulk, molecule
from ase.md.verlet import VelocityVerlet

pytest.importorskip("triton", reason="Triton has no wheels for this platform")

import triton_interpreter  # noqa: F401  before a kernel runs
from timings.without_kernels import switched_off

from snnp.errors import InputError
from snnp.kernels.gpu import call as gpu
from snnp.kernels.gpu.call import GpuKernel, supports
from snnp.kernels.gpu.dynamics import Clock, GpuDynamics, Integrator, System
from snnp.kernels.gpu.lists import CellList, State, rows_of
from snnp.models import SplineNNP, SplineNNPConfig, load_model
from snnp.models.spline import special_cases
from snnp.models.spline.compiled import GpuEvaluator
from snnp.neighbours import Neighbours, neighbour_list, pair_vectors
from snnp.structure import Structure
from snnp.units import AMU_ANGSTROM2_PER_FS2_IN_EV, BOLTZMANN_EV_PER_K

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
ELEMENTS = ("Si", "C", "H")


def _config(**changes: Any) -> SplineNNPConfig:
    base = special_cases.s_nnp(ELEMENTS, n_radial=3, n_angular=5, cutoff=3.4, hidden=(6, 4)).model_dump()
    for key, value in changes.items():
        base[key] = {**base[key], **value} if isinstance(base.get(key), dict) and value is not None else value
    return SplineNNPConfig.model_validate(base)


EVERYTHING = {
    "filters": "pair",
    "pair_term": True,
    "repulsion": {"inner": 0.8, "outer": 1.6},
    "angular": {"elements": "pair", "cutoff": 3.0, "degree": 3},
}
FORMS: dict[str, SplineNNPConfig] = {
    "shared filters, degree 1": _config(filters="shared", angular={"degree": 1}),
    "degree 6, tanh": _config(angular={"degree": 6}, network={"activation": "tanh"}),
    "everything, softplus": _config(**EVERYTHING, network={"activation": "softplus", "hidden": (5, 5, 3)}),
    "one network for all": _config(network={"elements": "shared"}, skip=False),
    "without network": _config(network=None),
    "without angles": _config(angular={"n_filters": 0}),
    "without radial filters": _config(radial={"n_filters": 0}),
}


def _model(config: SplineNNPConfig) -> SplineNNP:
    model = SplineNNP(config, {"Si": -1.0})
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, dtype=parameter.dtype, generator=generator))
        model.readout.mean.add_(0.3)
        model.readout.std.mul_(1.7)
    return model


def _shaken(atoms: Atoms, size: float = 0.08) -> Atoms:
    moved = atoms.copy()
    moved.positions += size * np.random.default_rng(3).standard_normal(moved.positions.shape)
    return moved


def _batch() -> Structure:
    """A crystal smaller than the cutoff, a molecule, a lonely atom."""
    crystal = _shaken(bulk("SiC", "zincblende", 4.36))
    return Structure.from_ase([crystal, _shaken(molecule("SiH4"), 0.04), Atoms("C", positions=[[1.0, 2.0, 3.0]])])


def _compare(model: SplineNNP, structure: Structure, dtype: torch.dtype, tolerance: float, **options: Any) -> None:
    # A list with a skin, so that there are pairs beyond the cutoff.
    neighbours = neighbour_list(structure, model.cutoff + 0.5)
    with switched_off():
        expected = model.compute(structure, neighbours, stress=True)
    kernel = GpuKernel(model.kernel_parameters(), DEVICE, dtype, **options)
    species = model.species(structure).to(DEVICE)
    found = GpuEvaluator(kernel).evaluate(structure.to(device=DEVICE), species, neighbours, forces=True)
    assert found.forces is not None
    assert found.virial is not None
    assert expected.forces is not None
    assert expected.stress is not None
    volume = structure.volume()[:, None, None]
    periodic = structure.pbc.all(dim=1)
    stress = (found.virial.cpu() / volume)[periodic]
    pairs = ((found.energies, expected.energies), (found.forces, expected.forces), (stress, expected.stress[periodic]))
    for got, want in pairs:
        assert float((got.cpu().double() - want).abs().max() / want.abs().max()) < tolerance


@pytest.mark.parametrize("name", FORMS)
def test_every_form_equals_the_cpu_in_float64(name: str) -> None:
    _compare(_model(FORMS[name]), _batch(), torch.float64, 1e-12)


def test_float32_is_exact_to_1e_5() -> None:
    _compare(load_model("snnp-si"), Structure.from_ase(_shaken(bulk("Si"))), torch.float32, 1e-5)
    _compare(_model(FORMS["everything, softplus"]), _batch(), torch.float32, 1e-5)


def test_many_neighbours_fill_several_blocks() -> None:
    dense = Structure.from_ase(_shaken(bulk("Si", a=4.4)))
    config = special_cases.s_nnp(("Si",), n_radial=2, n_angular=2, cutoff=6.0, hidden=(4,))
    assert neighbour_list(dense, 6.0).n_pairs > 140
    _compare(_model(config), dense, torch.float64, 1e-12)


def test_what_is_not_covered_is_left_to_torch() -> None:
    assert supports(_model(FORMS["everything, softplus"]).kernel_parameters())
    assert not supports(_model(_config(angular={"evaluator": "spline"})).kernel_parameters())
    assert not supports(_model(_config(embedding={})).kernel_parameters())
    assert not supports(_model(_config(network={"hidden": (200,)})).kernel_parameters())


def test_without_a_compiler_triton_cannot_start_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", "")
    assert not gpu._has_compiler()
    monkeypatch.setenv("CC", sys.executable)
    assert gpu._has_compiler() == (Path(sysconfig.get_path("include")) / "Python.h").is_file()


def _evaluate(structure: Structure, neighbours: Neighbours) -> None:
    model = _model(FORMS["without network"])
    kernel = GpuKernel(model.kernel_parameters(), DEVICE)
    GpuEvaluator(kernel).evaluate(
        structure.to(device=DEVICE), model.species(structure).to(DEVICE), neighbours, forces=True
    )


@pytest.mark.parametrize("where", [[0.0, 0.0, 0.05], [0.0, 0.0, 0.0], [0.0, float("nan"), 1.0]])
@pytest.mark.parametrize("rows_at_once", [1, 2**17])
def test_overlaps_and_nan_are_refused(where: list[float], rows_at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "_ROWS_AT_ONCE", rows_at_once)
    atoms = Atoms("C3", positions=[[0.0, 0.0, 0.0], [0.0, 0.0, 1.3], [2.0, 0.0, 0.0]])
    neighbours = neighbour_list(Structure.from_ase(atoms), 3.4)
    atoms.positions[1] = where
    with pytest.raises(InputError, match=r"atoms 0 and 1 overlap|atoms 1 and 0 overlap"):
        _evaluate(Structure.from_ase(atoms), neighbours)


def test_half_lists_are_refused() -> None:
    structure = Structure.from_ase(molecule("CH4"))
    full = neighbour_list(structure, 3.4)
    half = full.i < full.j
    pairs = (full.i[half], full.j[half], full.shift[half])
    with pytest.raises(InputError, match="without j -> i"):
        rows_of(pairs, structure.n_atoms, structure.structure_of_atom)


# Lists.


def _state(positions: torch.Tensor) -> State:
    n = positions.shape[0]
    zeros = torch.zeros(n, 3, dtype=torch.float64, device=DEVICE)
    none = torch.zeros(n, dtype=torch.float64, device=DEVICE)
    return State(positions.clone(), zeros.int(), zeros.clone(), zeros.clone(), none, none)


def _open_slab() -> Atoms:
    slab = bulk("Si")
    slab.pbc = [True, True, False]
    return slab


SYSTEMS: dict[str, tuple[Callable[[], Atoms], float]] = {
    "cell smaller than the cutoff, atoms outside it": (lambda: bulk("Si"), 3.2),
    "slab": (_open_slab, 3.2),
    "molecule": (lambda: molecule("CH3OH"), 1.2),
}


@pytest.mark.parametrize("name", SYSTEMS)
def test_cell_list_finds_the_pairs_of_vesin(name: str) -> None:
    make, reach = SYSTEMS[name]
    atoms = _shaken(make())
    atoms.positions += [7.0, -9.0, 3.0]
    structure = Structure.from_ase(atoms)
    expected = neighbour_list(structure, reach)
    state = _state(structure.positions.to(DEVICE))
    cells = CellList(state.positions, structure.cell[0], structure.pbc[0], reach)
    cells.build(state)
    rows, cell = cells.rows, cells.grid.cell.view(3, 3)
    paths = state.positions + state.wraps.double() @ cell
    assert torch.allclose(paths.cpu(), structure.positions, atol=1e-12)
    # Vectors of all pairs, sorted: the same set.
    images = torch.cartesian_prod(*(torch.arange(-r, r + 1, dtype=torch.float64) for r in cells.images)).to(DEVICE)
    listed = torch.arange(rows.capacity, device=DEVICE) < rows.length[:, None]
    i, column = listed.nonzero().T
    j, image = rows.neighbour[i, column].long(), rows.image[i, column].long()
    vectors = (state.positions[j] - state.positions[i] + images[image] @ cell).cpu()
    wanted = pair_vectors(structure, expected)
    found = torch.cat([i.cpu()[:, None], j.cpu()[:, None], vectors.round(decimals=8)], dim=1)
    known = torch.cat([expected.i[:, None], expected.j[:, None], wanted.round(decimals=8)], dim=1)
    assert found.shape[0] > 0
    assert sorted(map(tuple, found.tolist())) == sorted(map(tuple, known.tolist()))
    # The reverse of the reverse of a pair is the pair, seen from the other side.
    back = rows.reverse[i, column].long()
    assert torch.equal(rows.neighbour.flatten()[back].long(), i)
    assert torch.equal(rows.reverse.flatten()[back].long(), i * rows.capacity + column)


def test_a_cell_list_makes_room() -> None:
    positions = torch.from_numpy(molecule("CH4").positions).to(DEVICE)
    state = _state(positions)
    cells = CellList(positions, torch.zeros(3, 3), torch.zeros(3, dtype=torch.bool), 3.0)
    cells.grid = cells._make_grid(2)
    cells.rows = cells._make_rows(1)
    cells.build(state)
    assert cells.rows.length.tolist() == [4] * 5
    cells.rows = cells._make_rows(3)
    cells.flags[0] = 1
    cells.launch(state)
    assert cells.is_short(cells.read())
    cells.grow(state, cells.read())
    assert not cells.is_short(cells.read())
    assert cells.rows.capacity >= 4


def test_positions_that_are_not_numbers_do_no_harm() -> None:
    """They lie in some cell, without neighbours: the host finds them in energies or overlaps."""
    positions = torch.tensor([[0.1, 0.0, 0.0], [0.2, float("nan"), 0.0], [1.2, 0.0, 0.0]], dtype=torch.float64)
    state = _state(positions.to(DEVICE))
    cells = CellList(state.positions.nan_to_num(), 8.0 * torch.eye(3), torch.ones(3, dtype=torch.bool), 2.0)
    cells.build(state)
    assert cells.rows.length.tolist() == [1, 0, 1]
    assert cells.grid.filled.tolist() == [0] * len(cells.grid.filled)  # emptied for the next list


@pytest.mark.parametrize("positions", [[[0.0, 0.0, float("inf")]], [[0.0, 0.0, 0.0]]])
def test_a_cell_list_refuses_what_has_no_volume(positions: list[list[float]]) -> None:
    periodic = torch.ones(3, dtype=torch.bool)
    with pytest.raises(InputError, match=r"NaN or infinite|flat"):
        CellList(torch.tensor(positions, dtype=torch.float64), torch.zeros(3, 3), periodic, 3.0)


# Dynamics.


def _dynamics(atoms: Atoms, model: SplineNNP, integrator: Integrator) -> GpuDynamics:
    structure = Structure.from_ase(atoms)
    system = System(
        positions=structure.positions,
        species=model.species(structure),
        masses=torch.from_numpy(atoms.get_masses()),
        cell=structure.cell[0],
        pbc=structure.pbc[0],
    )
    velocities = torch.from_numpy(atoms.get_velocities() * units.fs)
    dtype = torch.float32 if CUDA else torch.float64
    return GpuDynamics(GpuKernel(model.kernel_parameters(), DEVICE, dtype), system, velocities, integrator)


def _moving() -> Atoms:
    """A hot fragment on the face of a periodic box, with atoms to either side."""
    cluster = Atoms("SiCH", positions=[[0.2, 3.9, 0.1], [7.8, 4.2, 1.7], [0.9, 4.0, 3.0]], cell=[8.0] * 3, pbc=True)
    velocities = 0.05 * np.random.default_rng(4).standard_normal((3, 3))  # Å/fs
    cluster.set_velocities(velocities / units.fs)
    return cluster


def test_velocity_verlet_is_that_of_ase() -> None:
    ase_plugin = pytest.importorskip("snnp_ase")
    model = _model(FORMS["without network"])
    atoms = _moving()
    steps = 100 if CUDA else 6
    # So thin a skin, and such fast atoms, that lists are built on the way.
    dynamics = _dynamics(atoms, model, Integrator(dt_fs=1.0, skin=0.3))
    built = dynamics.list.read().n_builds
    atoms.calc = ase_plugin.SNNPCalculator(model)
    verlet = VelocityVerlet(atoms, timestep=1.0 * units.fs)
    for _ in range(2):
        dynamics.advance(steps // 2)
        verlet.run(steps // 2)
        seen = dynamics.observe()
        tolerance = 1e-3 if CUDA else 1e-6  # ASE's units are those of CODATA 2014
        assert np.allclose(seen.positions.cpu(), atoms.positions, atol=tolerance)
        assert np.allclose(seen.velocities.cpu(), atoms.get_velocities() * units.fs, atol=tolerance)
        assert float(seen.energies.sum()) == pytest.approx(atoms.get_potential_energy(), abs=tolerance)
    assert dynamics.step == steps
    assert dynamics.list.read().n_builds > built


def test_steps_on_a_cramped_list_are_repeated() -> None:
    model = _model(FORMS["without network"])
    roomy, cramped = (_dynamics(_moving(), model, Integrator(dt_fs=1.0, skin=0.1)) for _ in range(2))
    cramped.list.rows = cramped.list._make_rows(1)
    cramped._work = cramped.kernel.make_work(3, 1)._replace(forces=cramped._work.forces)
    if CUDA:
        cramped._graph = None  # launches of its own: the captured ones know the roomy list
    for dynamics in (roomy, cramped):
        dynamics.advance(3)
    assert cramped.list.rows.capacity > 1
    assert cramped.step == roomy.step == 3
    a, b = cramped.observe(), roomy.observe()
    assert torch.allclose(a.positions, b.positions, atol=1e-6 if CUDA else 1e-12)
    assert torch.allclose(a.virial, b.virial, atol=1e-3 if CUDA else 1e-9)


def _drawn(step: int, n: int) -> torch.Tensor:
    """Velocities [n, 3] after a thermostat that forgets everything, at rest and without forces before."""
    from snnp.kernels.gpu import _list as _gpu_list

    model = _model(FORMS["without network"])
    work = GpuKernel(model.kernel_parameters(), DEVICE, torch.float64).make_work(n, 1)
    work.forces.zero_()
    state = _state(torch.zeros(n, 3, dtype=torch.float64, device=DEVICE))
    state = state._replace(spread=torch.full((n,), 2.0, dtype=torch.float64, device=DEVICE))
    clock = Clock(
        numbers=torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0, 1.0, 0.0], dtype=torch.float64, device=DEVICE),
        seed=torch.tensor([5 << 32], device=DEVICE),
        step=torch.tensor([step], device=DEVICE),
        flags=torch.zeros(4, dtype=torch.int32, device=DEVICE),
        scale=torch.ones(4, dtype=torch.float64, device=DEVICE),
        sums=torch.zeros(-(-n // 128), dtype=torch.float64, device=DEVICE),
    )
    _gpu_list.advance_kernel[(-(-n // 128),)](state, work, clock, n, 1, False, 128)
    assert bool(clock.flags[0])  # such steps ask for a new list
    return state.velocities.cpu()


def test_noise_of_the_thermostat_is_normal_and_belongs_to_its_step() -> None:
    n = 1500
    first, again, other = _drawn(3, n), _drawn(3, n), _drawn(4, n)
    assert torch.equal(first, again)
    for drawn in (first, other):
        z = drawn.flatten() / 2.0
        # Four standard deviations of mean, variance and fourth moment.
        assert abs(float(z.mean())) < 4.0 / len(z) ** 0.5
        assert float(z.square().mean()) == pytest.approx(1.0, abs=4.0 * (2.0 / len(z)) ** 0.5)
        assert float((z**4).mean()) == pytest.approx(3.0, abs=4.0 * (96.0 / len(z)) ** 0.5)
    assert abs(float((first * other).mean())) < 4.0 * 4.0 / first.numel() ** 0.5


def test_the_thermostat_heats() -> None:
    model = _model(FORMS["without network"])
    atoms = Atoms("Si8", positions=9.0 * np.indices((2, 2, 2)).reshape(3, -1).T)  # free particles
    dynamics = _dynamics(atoms, model, Integrator(dt_fs=1.0, temperature_k=600.0, friction_per_ps=2e3, seed=1))
    dynamics.advance(1)
    inertia = 28.085 * AMU_ANGSTROM2_PER_FS2_IN_EV
    kick = dynamics.observe().velocities.cpu()
    decay = np.exp(-2.0)  # friction times time step: 2
    expected = (BOLTZMANN_EV_PER_K * 600.0 / inertia * (1.0 - decay**2)) ** 0.5
    assert 0.5 * expected < float(kick.square().mean()) ** 0.5 < 1.6 * expected


# Without a GPU kernels can still be compiled for one.


def test_kernels_compile_for_a_gpu(repository: Path, tmp_path: Path) -> None:
    """The interpreter accepts more than the compiler does, so the compiler is asked too."""
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "docs/measure/timings/gpu_compile.py", "--model", "small"]
    done = subprocess.run(command, cwd=repository, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for kernel in ("moments_kernel", "network_kernel", "gradients_kernel", "search_kernel", "barostat_kernel"):
        assert kernel in done.stdout
