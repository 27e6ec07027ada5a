"""Reading reference data: usual names, named keys, other formats, and what bad files get."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write

from snnp.data import Frame, Keys, Units, read_frames
from snnp.data.write import xyz_lines
from snnp.errors import DataError
from snnp.structure import Structure


def _copper(rattle: float = 0.05) -> Atoms:
    atoms = bulk("Cu", cubic=True)
    atoms.rattle(rattle, seed=1)
    deform = np.array([[1.01, 0.02, 0], [0, 0.99, 0.01], [0, 0, 1.02]])
    atoms.set_cell(atoms.cell.array @ deform, scale_atoms=True)
    return atoms


@pytest.fixture
def computed() -> Atoms:
    """Copper with energy, forces and stress of a real calculator."""
    atoms = _copper()
    atoms.calc = EMT()
    atoms.get_potential_energy()
    atoms.get_stress()
    return atoms


def _extxyz(path: Path, comment: str, columns: str = "", rows: tuple[str, ...] = ("",)) -> Path:
    lines = [f"Si {k}.5 0 0 {row}" for k, row in enumerate(rows)]
    path.write_text("\n".join([str(len(rows)), f"Properties=species:S:1:pos:R:3{columns} {comment}", *lines]) + "\n")
    return path


def test_extended_xyz_round_trip(tmp_path: Path, computed: Atoms) -> None:
    computed.info["config_type"] = "rattled"
    write(tmp_path / "cu.xyz", [computed, computed], format="extxyz")
    frames = read_frames(tmp_path / "cu.xyz")
    assert [frame.source for frame in frames] == ["cu.xyz#0", "cu.xyz#1"]
    frame = frames[1]
    assert frame.energy == pytest.approx(computed.get_potential_energy())
    np.testing.assert_allclose(frame.forces, computed.get_forces(), atol=1e-7)
    np.testing.assert_allclose(frame.stress, computed.get_stress(voigt=False), atol=1e-7)
    assert frame.group == "rattled"
    assert frame.structure.positions.dtype == torch.float64
    np.testing.assert_allclose(frame.structure.cell[0], computed.cell.array, atol=1e-7)


@pytest.mark.parametrize("name", ["cu.traj", "cu.json", "cu.extxyz.gz", "cu.db"])
def test_other_formats_read_the_same(tmp_path: Path, computed: Atoms, name: str) -> None:
    if name.endswith(".gz"):
        write(tmp_path / "plain.xyz", computed, format="extxyz")
        with gzip.open(tmp_path / name, "wb") as stream:
            stream.write((tmp_path / "plain.xyz").read_bytes())
    else:
        write(tmp_path / name, computed)
    (frame,) = read_frames(tmp_path / name)
    assert frame.energy == pytest.approx(computed.get_potential_energy())
    np.testing.assert_allclose(frame.forces, computed.get_forces(), atol=1e-7)
    np.testing.assert_allclose(frame.stress, computed.get_stress(voigt=False), atol=1e-7)


@pytest.mark.parametrize("energy", ["REF_energy", "energy", "dft_energy", "DFT_energy", "Energy", "free_energy"])
@pytest.mark.parametrize("forces", ["REF_forces", "forces", "dft_forces", "force"])
def test_usual_names(tmp_path: Path, energy: str, forces: str) -> None:
    path = _extxyz(tmp_path / "a.xyz", f"{energy}=-3.25 tag=fine", f":{forces}:R:3", ("0 0 1", "0 0 -1"))
    (frame,) = read_frames(path)
    assert frame.energy == -3.25
    assert frame.forces is not None
    assert frame.forces.tolist() == [[0, 0, 1], [0, 0, -1]]
    assert frame.group == "fine"


def test_reference_names_win_and_are_not_mixed(tmp_path: Path) -> None:
    one = _extxyz(tmp_path / "a.xyz", "energy=1 REF_energy=2 group=g config_type=c").read_text()
    two = _extxyz(tmp_path / "b.xyz", "energy=1").read_text()
    (tmp_path / "both.xyz").write_text(one + two)
    first, second = read_frames(tmp_path / "both.xyz")
    assert (first.energy, first.group) == (2.0, "c")
    assert second.energy is None, "an energy of another name may be of another level of theory"


def test_named_keys(tmp_path: Path) -> None:
    path = _extxyz(tmp_path / "a.xyz", "energy=1 mp2_energy=2 kind=x", ":forces:R:3:mp2_forces:R:3", ("1 1 1 2 2 2",))
    (frame,) = read_frames(path, Keys(energy="mp2_energy", forces="mp2_forces", group="kind"))
    assert (frame.energy, frame.group) == (2.0, "x")
    assert frame.forces is not None
    assert frame.forces.tolist() == [[2, 2, 2]]


def test_virial_is_minus_stress_times_volume(tmp_path: Path, computed: Atoms) -> None:
    stress = computed.get_stress(voigt=False)
    computed.info["virial"] = -stress * computed.get_volume()
    computed.info["REF_energy"] = -1.0
    computed.calc = None
    write(tmp_path / "cu.xyz", computed, format="extxyz")
    (frame,) = read_frames(tmp_path / "cu.xyz")
    np.testing.assert_allclose(frame.stress, stress, atol=1e-7)


def test_labels_of_a_frame_may_be_changed_without_changing_the_set(tmp_path: Path, computed: Atoms) -> None:
    write(tmp_path / "data.xyz", computed)
    frames = read_frames(tmp_path / "data.xyz")
    for label in (frames[0].forces, frames[0].stress):
        assert label is not None
        label *= 2.0
    np.testing.assert_allclose(frames[0].forces, computed.get_forces(), atol=1e-7)
    np.testing.assert_allclose(frames.forces, computed.get_forces(), atol=1e-7)
    np.testing.assert_allclose(frames.stress[0], computed.get_stress(voigt=False), atol=1e-7)


def test_six_stress_numbers_are_voigt(tmp_path: Path, computed: Atoms) -> None:
    computed.info["my_stress"] = computed.get_stress()
    write(tmp_path / "cu.xyz", computed, format="extxyz")
    (frame,) = read_frames(tmp_path / "cu.xyz", Keys(stress="my_stress"))
    np.testing.assert_allclose(frame.stress, computed.get_stress(voigt=False), atol=1e-7)


def test_missing_forces_and_open_boundaries(tmp_path: Path, computed: Atoms) -> None:
    lone = Atoms("Cu", positions=[[0, 0, 0]])
    lone.calc = SinglePointCalculator(lone, energy=-0.5, stress=np.zeros(6))
    write(tmp_path / "cu.xyz", [computed, lone], format="extxyz")
    with_forces, without = read_frames(tmp_path / "cu.xyz")
    assert with_forces.forces is not None
    assert without.forces is None
    assert without.stress is None, "a structure without a volume has no stress"


def test_several_files_have_distinct_sources(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        _extxyz(tmp_path / name / "train.xyz", "energy=1")
    paths = [tmp_path / "one" / "train.xyz", tmp_path / "two" / "train.xyz"]
    assert [frame.source for frame in read_frames(paths)] == ["one/train.xyz#0", "two/train.xyz#0"]
    with pytest.raises(DataError, match="listed twice"):
        read_frames([paths[0], paths[0]])


def test_elements_are_sorted_by_atomic_number(tmp_path: Path) -> None:
    atoms = molecule("CH3CH2OH")
    atoms.info["energy"] = -1.0
    write(tmp_path / "a.xyz", atoms, format="extxyz")
    assert read_frames(tmp_path / "a.xyz").elements == ("H", "C", "O")


def test_missing_file_names_its_neighbour(tmp_path: Path) -> None:
    _extxyz(tmp_path / "train.xyz", "energy=1")
    with pytest.raises(DataError, match=r"trian\.xyz does not exist\. Did you mean 'train\.xyz'\?"):
        read_frames(tmp_path / "trian.xyz")
    with pytest.raises(DataError, match="is a folder"):
        read_frames(tmp_path)
    with pytest.raises(DataError, match="no data file was given"):
        read_frames([])


@pytest.mark.parametrize("name", ["empty.xyz", "empty.traj"])
def test_empty_file(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    with pytest.raises(DataError, match=rf"{name} is empty"):
        read_frames(tmp_path / name)


@pytest.mark.parametrize(
    "content",
    ["3\nenergy=1\nSi 0 0 0\n", "hello\nworld\n", '1\nvirial="1 2" energy=1\nSi 0 0 0\n', "1\nenergy=1\nXx a b c\n"],
)
def test_damaged_extended_xyz(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.xyz").write_text(content)
    with pytest.raises(DataError, match=r"a\.xyz#0 \(line \d\): \S+"):
        read_frames(tmp_path / "a.xyz")


@pytest.mark.parametrize("name", ["a.xyz.gz", "a.traj", "a.json", "a.nonsense"])
def test_damaged_other_formats(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\x00\x01 not what the name says")
    with pytest.raises(DataError, match=rf"{name} cannot be read"):
        read_frames(tmp_path / name)


def test_truncated_gzip(tmp_path: Path, computed: Atoms) -> None:
    write(tmp_path / "plain.xyz", [computed] * 50, format="extxyz")
    packed = gzip.compress((tmp_path / "plain.xyz").read_bytes())
    (tmp_path / "a.xyz.gz").write_bytes(packed[: len(packed) // 2])
    with pytest.raises(DataError, match="cannot be read"):
        read_frames(tmp_path / "a.xyz.gz")


def test_no_energies_lists_the_keys(tmp_path: Path) -> None:
    path = _extxyz(tmp_path / "a.xyz", "E_pot=1 label=x", ":forces:R:3", ("0 0 0",))
    with pytest.raises(DataError, match=r"holds no energies under a usual name.*it has: E_pot, forces, label"):
        read_frames(path)


@pytest.mark.parametrize("quantity", ["energy", "forces", "stress", "group"])
def test_absent_named_key_gives_near_matches(tmp_path: Path, quantity: str) -> None:
    path = _extxyz(
        tmp_path / "a.xyz", "energy=1 my_stress=0 my_group=0 my_energy=2", ":my_forces:R:3", ("0 0 0", "0 0 0")
    )
    wrong = f"mi_{quantity}"
    with pytest.raises(DataError, match=rf"no key '{wrong}' for {quantity}; it has: .* Did you mean .*'my_{quantity}'"):
        read_frames(path, Keys(**{quantity: wrong}))


def test_single_atoms_need_no_forces_key(tmp_path: Path) -> None:
    path = _extxyz(tmp_path / "atoms.xyz", "REF_energy=1")
    assert read_frames(path, Keys(energy="REF_energy", forces="REF_forces"))[0].forces is None


@pytest.mark.parametrize(
    ("comment", "columns", "row", "message"),
    [
        ("energy=nan", "", "", "energy holds NaN"),
        ("energy=1", ":forces:R:3", "nan 0 0", "forces holds NaN"),
        ("energy=1", ":forces:R:2", "0 0", r"forces .column 'forces'. have 2 columns of type float64, expected three"),
        ('REF_energy="1 2"', "", "", "energy .key 'REF_energy'. has 2 numbers"),
        ("REF_energy=none", "", "", "energy .key 'REF_energy'. is not numeric: 'none'"),
        (
            'energy=1 Lattice="5 0 0 0 5 0 0 0 5" REF_stress="1 2 3 4"',
            "",
            "",
            "stress .key 'REF_stress'. has 4 numbers",
        ),
        ('energy=1 Lattice="5 0 0 0 5 0 0 0 5" REF_stress="1 2 3 4 5 nan"', "", "", "stress holds NaN"),
        ('energy=1 Lattice="5 0 0 0 5 0 5 5 0"', "", "", "cell of structure 0 has no volume"),
    ],
)
def test_bad_values_name_the_frame(tmp_path: Path, comment: str, columns: str, row: str, message: str) -> None:
    path = _extxyz(tmp_path / "a.xyz", comment, columns, (row,))
    with pytest.raises(DataError, match=rf"a\.xyz#0( \(line 1\))?: .*{message}"):
        read_frames(path)


def test_nan_position(tmp_path: Path) -> None:
    (tmp_path / "a.xyz").write_text("1\nenergy=1\nSi nan 0 0\n")
    with pytest.raises(DataError, match=r"a\.xyz#0: positions must be finite"):
        read_frames(tmp_path / "a.xyz")


def test_frame_refuses_what_is_no_structure() -> None:
    empty = Structure.from_ase(Atoms())
    with pytest.raises(DataError, match="one structure with atoms"):
        Frame(empty, 0.0, None, None, None, "x#0")


def test_five_thousand_frames_are_all_read(tmp_path: Path) -> None:
    one = _extxyz(tmp_path / "one.xyz", "energy=-1", ":forces:R:3", ("0 0 1",) * 4).read_text()
    (tmp_path / "many.xyz").write_text(one * 5000)
    frames = read_frames(tmp_path / "many.xyz")
    assert len(frames) == 5000
    assert frames[4999].source == "many.xyz#4999"


def test_energies_of_atoms_are_kept(tmp_path: Path, computed: Atoms) -> None:
    """Under ASE's name, in any unit; a frame may lack them."""
    of_atoms, plain = computed.get_potential_energies(), _copper(0.1)
    plain.calc = SinglePointCalculator(plain, energy=-1.0, forces=np.zeros((4, 3)))
    write(tmp_path / "cu.xyz", [computed, plain], format="extxyz")
    frames = read_frames(tmp_path / "cu.xyz")
    np.testing.assert_allclose(frames[0].energies, of_atoms, atol=1e-7)
    assert frames[1].energies is None
    (tmp_path / "again.xyz").write_text("".join(xyz_lines(frames)))
    np.testing.assert_array_equal(read_frames(tmp_path / "again.xyz").energies, frames.energies)
    larger = read_frames(tmp_path / "cu.xyz", Keys(units=Units("kcal/mol")))
    assert larger.energies[0] / frames.energies[0] == pytest.approx(larger.energy[0] / frames.energy[0])
    bad = _extxyz(tmp_path / "bad.xyz", "energy=-1.0", ":energies:R:2", ("1 2", "3 4"))
    with pytest.raises(DataError, match=r"bad.xyz#0 .*energies.* are not one number for each atom"):
        read_frames(bad)
