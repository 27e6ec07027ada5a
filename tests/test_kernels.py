"""The native kernel against torch, finite differences and itself: forms, elements, cells, threads, bad input."""

from __future__ import annotations

import ctypes
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from timings.without_kernels import switched_off

from snnp import Structure, load_model
from snnp.errors import InputError
from snnp.kernels import build
from snnp.kernels.build import find_compiler
from snnp.kernels.cpu import library as library_module
from snnp.kernels.cpu.call import ListKeeper, PreparedCall, pack_pairs, supports
from snnp.kernels.cpu.library import (
    LIBRARY_FILE,
    SWITCH,
    TARGETS,
    Report,
    instruction_set,
    library,
    pack_parameters,
)
from snnp.models.config import RepulsionConfig
from snnp.models.session import Session
from snnp.models.spline.config import AngularConfig, EmbeddingConfig, NetworkConfig, RadialConfig, SplineNNPConfig
from snnp.models.spline.model import SplineNNP
from snnp.neighbours import Neighbours, neighbour_list

needs_library = pytest.mark.skipif(library() is None, reason="no compiler built the kernels here, or SNNP_KERNELS=off")

FORMS = {
    "moments": {},
    "filters of pairs": {"filters": "pair", "angular": AngularConfig(n_filters=17, degree=3)},
    "angles of pairs": {"filters": "shared", "angular": AngularConfig(n_filters=5, degree=6, elements="pair")},
    "short angular reach": {"angular": AngularConfig(n_filters=8, degree=2, cutoff=3.9)},
    "degree 0": {"angular": AngularConfig(degree=0), "network": None},
    "degree 8": {"angular": AngularConfig(n_filters=40, degree=8)},
    "many knots": {
        "radial": RadialConfig(n_filters=33, intervals=40),
        "angular": AngularConfig(n_filters=48, degree=1, intervals=36),
    },
    "few knots": {"radial": RadialConfig(n_filters=1, intervals=4), "angular": AngularConfig(degree=5, intervals=4)},
    "degree 9, left to torch": {"angular": AngularConfig(n_filters=4, degree=9)},
    "angular only": {"radial": RadialConfig(n_filters=0)},
    "radial only, one embedding": {
        "angular": AngularConfig(n_filters=0),
        "embedding": EmbeddingConfig(of="sum"),
        "pair_term": True,
    },
    "few spline angles": {"angular": AngularConfig(n_filters=3, evaluator="spline", cutoff=4.2), "pair_term": True},
    "spline angles only": {
        "radial": RadialConfig(n_filters=0),
        "angular": AngularConfig(n_filters=3, evaluator="spline"),
    },
    "many spline angles": {"angular": AngularConfig(n_filters=18, evaluator="spline", elements="pair")},
    "softplus, embeddings": {
        "network": NetworkConfig(hidden=(20,), activation="softplus", elements="shared"),
        "embedding": EmbeddingConfig(),
    },
    "tanh, repulsion": {
        "network": NetworkConfig(hidden=(7, 9, 11), activation="tanh"),
        "skip": False,
        "repulsion": RepulsionConfig(inner=2.0, outer=3.0),
    },
}
ELEMENTS = ("Cu", "Mo", "Si")


@pytest.fixture(params=TARGETS)
def target(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every instruction set that this machine has."""
    lib, before = library(), instruction_set()
    assert lib is not None
    assert before is not None
    if not lib.snnp_set_target(request.param.encode()):
        pytest.skip(f"this machine has no {request.param}")
    yield request.param
    lib.snnp_set_target(before.encode())


def model_of(name: str, seed: int = 1) -> SplineNNP:
    """A form with random parameters of order one."""
    model = SplineNNP(SplineNNPConfig(elements=ELEMENTS, **FORMS[name]), {"Cu": -3.0}, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    return model


def alloy(n: int = 2, noise: float = 0.1, seed: int = 0) -> Atoms:
    rng = np.random.default_rng(seed)
    atoms = bulk("Cu", "fcc", a=3.6, cubic=True).repeat(n)
    atoms.set_chemical_symbols(rng.choice(ELEMENTS, len(atoms)))
    atoms.positions += rng.normal(0.0, noise, atoms.positions.shape)
    return atoms


def systems() -> list[Atoms]:
    """Periodic, skewed and smaller than the cutoff, open, flat, an atom alone, a pair at the cutoff, nothing."""
    skewed = bulk("Si", "diamond", a=5.4)
    skewed.set_cell(skewed.cell.array @ [[1.0, 0.1, 0.0], [0.0, 0.9, 0.2], [0.0, 0.0, 1.1]], scale_atoms=True)
    skewed.positions[0] += 0.1
    slab = alloy(2, seed=3)
    slab.pbc = [True, True, False]
    slab.cell[2] = 0.0
    cluster = alloy(1, seed=4)
    cluster.pbc = False
    return [
        *(alloy(), skewed, slab, cluster, Atoms("Mo", [[1.0, 2.0, 3.0]])),
        Atoms("CuSi", [[0.0, 0.0, 0.0], [5.0, 0.0, 0.0]]),
        Atoms("SiSi", [[0.0, 0.0, 0.0], [0.0, 4.9999999, 0.0]]),
        Atoms(),
    ]


def test_a_compiler_means_a_library() -> None:
    """Where the kernels can be built they must have been, for all targets: no test below may skip unnoticed."""
    if find_compiler() is not None:
        assert LIBRARY_FILE.is_file(), "run python -m snnp.kernels.build"
        lib, before = library(), instruction_set()
        if lib is not None and before is not None:
            assert lib.snnp_set_target(b"portable"), "run python -m snnp.kernels.build"
            lib.snnp_set_target(before.encode())


@needs_library
@pytest.mark.skipif(find_compiler() is None, reason="no compiler")
def test_own_instruction_set_is_the_one_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SWITCH, raising=False)
    compiler = find_compiler()
    assert compiler is not None
    (own,) = build._targets(compiler, own=True)
    code = "from snnp.kernels.cpu.library import instruction_set; print(instruction_set())"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == own[0]


@pytest.mark.skipif(find_compiler() is None, reason="no compiler")
def test_library_for_other_machines_counts_as_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `--own` leaves it in a folder that machines of several kinds share."""
    monkeypatch.setattr(build, "_targets", lambda compiler, own: ())
    monkeypatch.setattr(library_module, "LIBRARY_FILE", build.build(tmp_path / "lib" / "libsnnp_kernels.so"))
    assert library_module.LIBRARY_FILE.is_file()
    assert library_module.library.__wrapped__() is None


@needs_library
def test_switch_names_what_is_there() -> None:
    environment = {**os.environ, SWITCH: "sse9"}
    code = "from snnp.kernels.cpu.library import library; library()"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment).stderr
    assert "use off, " in said
    assert "portable, or leave it unset" in said


@needs_library
@pytest.mark.parametrize("form", FORMS)
def test_kernel_is_torch(form: str, target: str) -> None:
    model = model_of(form)
    assert supports(model.kernel_parameters()) == (form != "degree 9, left to torch")
    structure = Structure.from_ase(systems())
    with switched_off():
        assert model.evaluator() is None
        expected = model.compute(structure, stress=True)
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        model.to(dtype)
        found = model.compute(structure, stress=True)
        for name in ("energies", "forces", "stress"):
            a, b = getattr(expected, name), getattr(found, name).double()
            assert float((a - b).abs().max()) <= tolerance * float(a.abs().max()), name
        model.to(torch.float64)
        model.load_state_dict(model_of(form).state_dict())


@needs_library
@pytest.mark.parametrize("n_elements", [1, 2, 4, 5])
def test_neighbours_of_several_elements(n_elements: int, target: str) -> None:
    """Enough pairs and filters that B-splines pay, up to four kinds of neighbours; beyond, each pair is on its own."""
    elements = ("Cu", "Mo", "Si", "Al", "Ni")[:n_elements]
    rng, atoms = np.random.default_rng(0), bulk("Cu", "fcc", a=3.6, cubic=True).repeat(2)
    atoms.set_chemical_symbols(rng.choice(elements, len(atoms)))
    atoms.positions += rng.normal(0.0, 0.1, atoms.positions.shape)
    structure = Structure.from_ase(atoms)
    for degree, n_filters in ((2, 40), (5, 16)):
        angular = AngularConfig(n_filters=n_filters, degree=degree, cutoff=5.5)
        radial = RadialConfig(cutoff=5.5)
        model = SplineNNP(SplineNNPConfig(elements=elements, filters="pair", radial=radial, angular=angular), seed=1)
        with switched_off():
            expected = model.compute(structure, stress=True)
        for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
            found = model.to(dtype).compute(structure, stress=True)
            for name in ("energies", "forces", "stress"):
                a, b = getattr(expected, name), getattr(found, name).double()
                assert float((a - b).abs().max()) <= tolerance * float(a.abs().max()), (target, name)


@needs_library
def test_forces_are_the_derivative() -> None:
    model, atoms = model_of("moments"), alloy(1, noise=0.2)
    forces = model.compute(Structure.from_ase(atoms)).forces
    assert forces is not None
    for atom, axis in ((0, 0), (1, 2), (3, 1)):
        energies = []
        for step in (1e-4, -1e-4):
            moved = atoms.copy()
            moved.positions[atom, axis] += step
            energies.append(float(model.compute(Structure.from_ase(moved)).energy))
        assert float(forces[atom, axis]) == pytest.approx(-(energies[0] - energies[1]) / 2e-4, rel=1e-6, abs=1e-6)


@needs_library
def test_more_than_two_hundred_neighbours() -> None:
    config = SplineNNPConfig(elements=("Cu",), radial=RadialConfig(cutoff=9.0), angular=AngularConfig(cutoff=9.0))
    model = SplineNNP(config, seed=2)
    structure = Structure.from_ase(bulk("Cu", cubic=True).repeat(2))
    assert neighbour_list(structure, 9.0).n_pairs > 200 * structure.n_atoms
    with switched_off():
        expected = model.compute(structure)
    found = model.compute(structure)
    assert torch.allclose(expected.energies, found.energies, atol=1e-11, rtol=0.0)


@needs_library
def test_weights_per_atom() -> None:
    """Forces of sum_i w_i E_i, which a derivative of single energies needs."""
    model, structure = model_of("few spline angles"), Structure.from_ase(alloy())
    weights = torch.linspace(-1.0, 2.0, structure.n_atoms, dtype=torch.float64)
    positions = structure.positions.clone().requires_grad_()
    neighbours = neighbour_list(structure, model.cutoff)
    vectors = positions[neighbours.j] - positions[neighbours.i] + neighbours.shift.double() @ structure.cell[0]
    (model.interaction_energies(structure, vectors, neighbours) * weights).sum().backward()
    packed = pack_pairs((neighbours.i.numpy(), neighbours.j.numpy(), neighbours.shift.int().numpy()), 32)
    species = model.species(structure).int().numpy()
    images = packed.images(structure.cell.numpy())
    block = pack_parameters(model.kernel_parameters(), np.float64)
    _, forces, _ = PreparedCall(block, species, packed, images)(structure.positions.numpy(), weights=weights.numpy())
    assert positions.grad is not None
    assert np.allclose(forces, -positions.grad.numpy(), atol=1e-11)


@needs_library
def test_threads_change_nothing_but_rounding_and_repeat_exactly() -> None:
    model, structure = load_model("snnp-al"), Structure.from_ase(bulk("Al", cubic=True).repeat(5))
    structure = replace(structure, positions=structure.positions + 0.1 * torch.randn_like(structure.positions))
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 3, 3):
            torch.set_num_threads(threads)
            results.append(model.compute(structure, stress=True))
    finally:
        torch.set_num_threads(before)
    one, three, again = (r.forces for r in results)
    assert one is not None
    assert three is not None
    assert again is not None
    assert torch.equal(three, again)
    assert float((one - three).abs().max()) < 1e-6


@needs_library
def test_parameters_may_change_between_calls() -> None:
    model, structure = model_of("moments"), Structure.from_ase(alloy())
    first = model.compute(structure).energy
    with torch.no_grad():
        model.rho.free.mul_(1.1)
    second = model.compute(structure).energy
    model.reference_energies = {"Cu": 1.0, "Mo": 0.0, "Si": 0.0}
    third = model.compute(structure).energy
    with switched_off():
        expected = model.compute(structure).energy
    assert len({float(first), float(second), float(third)}) == 3
    assert torch.allclose(third, expected)


@needs_library
def test_a_list_follows_strain_and_motion() -> None:
    """A session that keeps its list gives what a fresh one gives, through drift, strain, and wrapped atoms."""
    rng = np.random.default_rng(0)
    model, atoms = model_of("moments"), alloy(2)
    session = Session(model, skin=0.6)
    for step in range(40):
        atoms.positions += rng.normal(0.0, 0.01, atoms.positions.shape)
        strain = np.eye(3) + 1e-3 * rng.normal(size=(3, 3))
        atoms.set_cell(atoms.cell.array @ strain, scale_atoms=True)
        if step == 20:
            atoms.positions[0] += atoms.cell.array[1]
        arguments = (atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc)
        kept, fresh = (
            session.evaluate(*arguments, stress=True),
            Session(model, skin=0.0).evaluate(*arguments, stress=True),
        )
        assert np.allclose(kept.forces, fresh.forces, atol=1e-10)
        assert kept.stress is not None
        assert fresh.stress is not None
        assert np.allclose(kept.stress, fresh.stress, atol=1e-12)
    assert 2 <= session.n_neighbour_builds <= 15


@needs_library
def test_atoms_flung_apart_need_no_memory() -> None:
    """Shifts by thousands of cells are numbered as they occur."""
    model, atoms = model_of("moments"), alloy(1)
    moved = atoms.copy()
    moved.positions += np.array([[9000, 0, 0], [0, -7000, 0], [0, 0, 8000], [1, 2, 3]]) @ atoms.cell.array
    a, b = (model.compute(Structure.from_ase(x)).forces for x in (atoms, moved))
    assert a is not None
    assert b is not None
    assert torch.allclose(a, b, atol=1e-8)


@needs_library
def test_bad_input_is_named() -> None:
    model = model_of("moments")
    overlapping = Atoms("CuCu", [[0.0, 0.0, 0.0], [0.0, 0.0, 0.05]])
    with pytest.raises(InputError, match=r"atoms 0 and 1 overlap \(0.050 Å apart\)"):
        model.compute(Structure.from_ase(overlapping))
    structure = Structure.from_ase(alloy(1))
    neighbours = neighbour_list(structure, model.cutoff)
    broken = replace(structure, positions=structure.positions.clone())
    broken.positions[2, 1] = float("nan")
    with pytest.raises(InputError, match="overlap"):
        model.compute(broken, neighbours)
    with pytest.raises(InputError, match="NaN or infinite"):
        Session(model).evaluate(structure.numbers.numpy(), broken.positions.numpy(), np.eye(3) * 9, np.ones(3, bool))


@needs_library
def test_a_list_that_points_outside_is_refused() -> None:
    lib, report = library(), Report()
    assert lib is not None
    first, image = np.array([0, 1, 2]), np.zeros(2, np.int32)
    for neighbour, expected in (([1, 0], 0), ([1, 2], 4), ([-1, 0], 4)):
        columns = first.ctypes.data, np.array(neighbour, np.int32).ctypes.data, image.ctypes.data
        assert lib.snnp_check_list(2, 1, *columns, ctypes.byref(report)) == expected


@needs_library
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 1100), st.integers(0, 255)), min_size=1, max_size=6))
def test_a_damaged_plan_is_refused_or_harmless(changes: list[tuple[int, int]]) -> None:
    """Changed bytes of the header are found, or leave everything that is read inside the block."""
    model, structure = model_of("tanh, repulsion"), Structure.from_ase(alloy(1))
    block = pack_parameters(model.kernel_parameters(), np.float64)
    for place, value in changes:
        block[place % len(block)] = value
    packed = ListKeeper(model.cutoff).update(structure.positions.numpy(), structure.cell[0].numpy(), (True, True, True))
    species = model.species(structure).int().numpy()
    said = ""
    try:
        PreparedCall(block, species, *packed)(structure.positions.numpy())
    except InputError as error:
        said = str(error)
    assert not said or "damaged" in said or "overlap" in said or "memory" in said


@needs_library
def test_memory_does_not_grow() -> None:
    """Ten thousand calls with two threads; the first calls fill the allocator's pools."""
    model, atoms = load_model("snnp-si"), bulk("Si", cubic=True).repeat(2)
    session = Session(model)
    arguments = (atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc)
    for _ in range(100):
        session.evaluate(*arguments)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(10_000):
        session.evaluate(*arguments)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 4096  # KiB


@needs_library
@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(0, 40),
    seed=st.integers(0, 10_000),
    pbc=st.tuples(st.booleans(), st.booleans(), st.booleans()),
    degree=st.integers(0, 6),
    filters=st.integers(1, 35),
)
def test_random_systems(n: int, seed: int, pbc: tuple[bool, bool, bool], degree: int, filters: int) -> None:
    rng = np.random.default_rng(seed)
    config = SplineNNPConfig(
        elements=ELEMENTS,
        radial=RadialConfig(n_filters=filters),
        angular=AngularConfig(n_filters=filters, degree=degree, cutoff=float(rng.uniform(3.0, 5.0))),
    )
    model = SplineNNP(config, seed=seed)
    cell = np.eye(3) * rng.uniform(3.0, 9.0, 3) + rng.normal(0.0, 0.5, (3, 3))
    points = rng.uniform(0.0, 1.0, (n, 3)) @ cell
    atoms = Atoms(rng.choice(ELEMENTS, n), points, cell=cell, pbc=pbc)
    structure = Structure.from_ase(atoms)
    neighbours = neighbour_list(structure, model.cutoff + 0.4)
    close = _closest(structure, neighbours)
    if close < 0.12:
        return
    with switched_off():
        expected = model.compute(structure, neighbours, stress=True)
    found = model.compute(structure, neighbours, stress=True)
    for name in ("energies", "forces", "stress"):
        a, b = getattr(expected, name), getattr(found, name)
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-9 * max(1.0, float(a.abs().max()) if a.numel() else 0.0)), name


def _closest(structure: Structure, neighbours: Neighbours) -> float:
    shift = neighbours.shift.double() @ structure.cell[0]
    vectors = structure.positions[neighbours.j] - structure.positions[neighbours.i] + shift
    return float(vectors.norm(dim=1).min()) if len(vectors) else 9.0


@needs_library
def test_molecules_in_one_batch() -> None:
    model = load_model("snnp-3bpa", dtype=torch.float64)
    structure = Structure.from_ase([molecule(name) for name in ("H2O", "CH4", "CH3CONH2")])
    with switched_off():
        expected = model.compute(structure)
    found = model.compute(structure)
    assert torch.allclose(expected.energy, found.energy, atol=1e-10)
