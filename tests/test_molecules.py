"""Structures made of molecules for distillation: displaced, turned about bonds, in pairs, clusters and liquids."""

from __future__ import annotations

from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from ase.data import vdw_radii
from ase.optimize import BFGS

from snnp import SNNPCalculator, load_model
from snnp.data import Frame, Frames
from snnp.data.write import parquet_writer
from snnp.distillation import DistilSettings
from snnp.distillation.assemblies import MOLECULE_SHARES, MoleculePool
from snnp.distillation.exploration import explore, molecule_starts
from snnp.distillation.molecules import displaced, graph_key, read_molecules, turned
from snnp.errors import InputError, MissingDependencyError, TrainingError
from snnp.structure import Structure
from snnp.training import load_config
from snnp.training.problem import load_problem

WATER, ETHANOL, BUTANE = molecule("H2O"), molecule("CH3CH2OH"), molecule("trans-butane")
needs_rdkit = pytest.mark.skipif(find_spec("rdkit") is None, reason="RDKit is not installed: pip install rdkit")


def _apart(one: Atoms, other: Atoms) -> Atoms:
    far = other.copy()
    far.positions += [0.0, 50.0, 0.0]
    return one + far


def test_molecules_move_along_soft_directions() -> None:
    rng = np.random.default_rng(0)
    moved = [displaced(ETHANOL, rng) for _ in range(40)]
    lengths = [atoms.get_distance(0, 1) for atoms in moved]
    assert 0.01 < np.std(lengths) < 0.25
    assert np.std([atoms.get_distance(2, 6) for atoms in moved]) > np.std(lengths)


def test_bonds_turn_and_nothing_else_changes() -> None:
    rng = np.random.default_rng(1)
    found = [turned(BUTANE, rng) for _ in range(20)]
    bonds = BUTANE.get_all_distances() < 1.7
    for atoms in found:
        np.testing.assert_allclose(atoms.get_all_distances()[bonds], BUTANE.get_all_distances()[bonds], atol=1e-9)
        assert graph_key(atoms) == graph_key(BUTANE)
    carbons = [k for k, z in enumerate(BUTANE.numbers) if z == 6]
    ends = [max(atoms.get_distance(a, b) for a in carbons for b in carbons) for atoms in found]
    assert max(ends) - min(ends) > 0.3  # trans and gauche
    np.testing.assert_array_equal(turned(WATER, rng).positions, WATER.positions)


def test_a_graph_is_the_same_however_it_lies_and_its_molecules_are_told_apart() -> None:
    other = ETHANOL[[8, 3, 1, 0, 7, 2, 6, 5, 4]]
    other.rotate(40, "x")
    assert graph_key(other) == graph_key(ETHANOL)
    assert graph_key(ETHANOL) != graph_key(molecule("CH3OCH3"))
    assert graph_key(_apart(WATER, ETHANOL)) == graph_key(_apart(ETHANOL, WATER)) != graph_key(ETHANOL)


def test_a_pool_has_all_kinds_and_not_what_is_kept_apart() -> None:
    apart = frozenset([graph_key(ETHANOL), graph_key(_apart(WATER, WATER))])
    pool = MoleculePool([WATER, ETHANOL, BUTANE], apart)
    frames = pool.frames(120, seed=3)
    assert set(Counter(frames.groups)) == set(MOLECULE_SHARES)
    np.testing.assert_array_equal(frames.positions, pool.frames(120, seed=3).positions)
    for frame in frames:
        (atoms,) = frame.structure.to_ase()
        if frame.group in ("molecule", "turned"):
            assert atoms.get_chemical_formula() != "C2H6O"
        if frame.group == "dimer":
            assert atoms.get_chemical_formula() != "H4O2"
        assert atoms.pbc.all() == (frame.group == "liquid")
    assert set(MoleculePool([WATER], apart).structures("dimer", 5, np.random.default_rng(0))) == set()


def test_pairs_touch_and_liquids_are_dense_without_overlap() -> None:
    rng = np.random.default_rng(5)
    closest = []
    for atoms in MoleculePool([WATER]).structures("dimer", 40, rng):
        reach = vdw_radii[atoms.numbers][:3, None] + vdw_radii[atoms.numbers][3:]
        closest.append((atoms.get_all_distances()[:3, 3:] / reach).min())
    assert 0.4 < min(closest) < 0.6
    assert 1.1 < max(closest) < 1.3
    for atoms in MoleculePool([WATER]).structures("liquid", 5, rng):
        grams = atoms.get_masses().sum() / atoms.get_volume() * 1.66054
        assert 0.6 < grams < 1.3
        oxygens = atoms[atoms.numbers == 8].get_all_distances(mic=True)
        assert oxygens[oxygens > 0].min() > 1.8


def test_runs_begin_with_all_kinds() -> None:
    starts = molecule_starts(MoleculePool([WATER, BUTANE]), 250, seed=0)
    assert {kind for kind, _, _ in starts} == {"md turned", "md dimer", "md cluster", "md liquid"}
    assert 15 <= len(starts) <= 25
    assert all(100.0 <= kelvin <= 1500.0 for _, _, kelvin in starts)


def test_why_no_run_gave_a_frame() -> None:
    """Not every run that ends early blew up: here the student does not know the element."""
    with pytest.raises(TrainingError, match=r"1 blew up; the last: this model knows Si but the structure holds H"):
        explore(load_model("snnp-si"), [("md turned", molecule("H2"), 300.0)], 0, "round")


def test_smiles_need_rdkit_and_must_parse() -> None:
    with pytest.raises((InputError, MissingDependencyError), match="C\\(C"):
        read_molecules(["C(C"])


def test_molecules_have_names(tmp_path: Path) -> None:
    named = read_molecules(["g2"])
    assert 80 < len(named) < 162
    assert "H2O" in {atoms.get_chemical_formula() for atoms in named}
    assert "CH3" not in {atoms.get_chemical_formula() for atoms in named}  # a radical


@needs_rdkit
def test_lists_of_smiles_and_pairs_with_a_dot(tmp_path: Path) -> None:
    path = tmp_path / "few.smi"
    path.write_text("# some\nO water\n\nCCO ethanol\n")
    water, ethanol = read_molecules([str(path)])
    assert graph_key(water) == graph_key(WATER)
    assert graph_key(ethanol) == graph_key(ETHANOL)
    assert graph_key(read_molecules(["O.CCO"])[0]) == graph_key(_apart(WATER, ETHANOL))
    path.write_text("O\nC(C\n")
    with pytest.raises(InputError, match="C\\(C"):
        read_molecules([str(path)])


def test_the_labels_of_the_organic_student_can_be_asked_for() -> None:
    folder = Path(__file__).parent.parent / "model_zoo" / "snnp-organic"
    settings = DistilSettings.load(folder / "distil.yaml")
    assert [Path(name).name for name in (*settings.molecules, *settings.apart)] == ["molecules.smi", "apart.smi"]
    student, recipe = settings.training(Path("labels.parquet")), load_config(folder / "recipe.yaml")
    assert student.model == recipe.model


def test_molecules_of_all_elements_are_learned(tmp_path: Path) -> None:
    """Total energies of a teacher are hundreds of eV per atom apart, where elements differ."""
    images = {"HCl": -12540.0, "CH4": -1102.0, "H2O": -2079.0, "LiH": -220.0}  # eV, about
    frames = []
    for name, energy in images.items():
        for k in range(8):
            atoms = molecule(name)
            atoms.positions[0, 0] += 0.01 * k
            structure, forces = Structure.from_ase(atoms), np.zeros((len(atoms), 3))
            frames.append(Frame(structure, energy + 0.01 * k, forces, None, "molecule", f"{name}#{k}"))
    with parquet_writer(tmp_path / "labels.parquet", "none", "snnp") as writer:
        labels = Frames.of(frames)
        writer.add(labels.named(labels.sources, labels.groups), "train")
    settings = DistilSettings(teachers=["any"], molecules=["g2"], student={"compression": None})
    split = load_problem(settings.training(tmp_path / "labels.parquet")).split
    assert len(split.train) + len(split.valid) == len(frames)


@needs_rdkit
def test_the_organic_list_holds_no_molecule_of_a_test() -> None:
    """Those that make dimers and liquids are kept apart alone by their keys; others are not there at all."""
    folder = Path(__file__).parent.parent / "model_zoo" / "snnp-organic"
    lines = (folder / "molecules.smi").read_text().splitlines()
    chem = pytest.importorskip("rdkit.Chem")
    known = {chem.CanonSmiles(line.split()[0], 0) for line in lines if not line.startswith("#")}
    assert len(known) > 1400
    for smiles in ("Nc1ncccc1OCc1ccccc1", "O=c1cccccc1O", "O=CC=CO"):
        assert chem.CanonSmiles(smiles, 0) not in known


def test_the_bundled_student_knows_molecules_that_it_was_not_shown() -> None:
    """Geometries of other methods are near its minima, and isomers are in their order."""
    potential = load_model("snnp-organic")
    known = [atoms for atoms in read_molecules(["g2"]) if set(atoms.symbols) <= set(potential.elements)]
    assert len(known) > 60
    largest = []
    for atoms in known:
        forces = potential.compute(atoms).forces
        assert forces is not None
        largest.append(float(forces.abs().max()))
    assert np.median(largest) < 1.0
    atoms = molecule("H2O")
    atoms.calc = SNNPCalculator("snnp-organic")
    assert BFGS(atoms, logfile=None).run(fmax=0.01, steps=100)
    assert atoms.get_distance(0, 1) == pytest.approx(0.96, abs=0.02)
    assert atoms.get_angle(1, 0, 2) == pytest.approx(104.5, abs=4.0)
    energy = {name: float(potential.compute(molecule(name)).energy) for name in ("CH3CH2OH", "CH3OCH3")}
    assert energy["CH3OCH3"] - energy["CH3CH2OH"] == pytest.approx(0.308, abs=0.04)  # eV, of ANI-2x


def test_runs_count_until_atoms_fuse(monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes after belongs to the student's mistake: carbon at 1.0 Å is no bond any more."""
    frames = [molecule("C2H6") for _ in range(3)]
    frames[1].set_distance(0, 1, 1.0)
    monkeypatch.setattr("snnp.distillation.exploration._run", lambda *_: (frames, "it blew up"))
    student = load_model("snnp-3bpa")
    found, broken = explore(student, [("md turned", molecule("C2H6"), 300.0)], 0, "round")
    assert (len(found), broken) == (1, 1)
    found, broken = explore(student, [("md strained", molecule("C2H6"), 300.0)], 0, "round")
    assert len(found) == 3, "crystals are pressed on purpose"
