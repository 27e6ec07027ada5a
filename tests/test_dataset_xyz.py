"""Extended XYZ: the same as ASE reads, faster; written without loss; damaged files named."""

from __future__ import annotations

import gzip
import io
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, fcc111, molecule
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms, FixCartesian, FixedPlane
from hypothesis import given, settings
from hypothesis import strategies as st

from snnp.data import Keys, read_frames
from snnp.data.frames import Frames
from snnp.data.storage.atoms import from_atoms, to_atoms
from snnp.data.storage.extxyz import read_xyz
from snnp.data.storage.extxyz_comment import read_comment, write_pair
from snnp.data.write import xyz_lines
from snnp.errors import DataError


def assert_same(one: Atoms, other: Atoms) -> None:
    """Everything that two `Atoms` say, to the last digit."""
    for name in ("numbers", "positions", "pbc"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    np.testing.assert_array_equal(one.cell.array, other.cell.array)
    tables = [(one.info, other.info), (one.arrays, other.arrays)]
    tables.append(tuple({} if atoms.calc is None else atoms.calc.results for atoms in (one, other)))
    for first, second in tables:
        assert set(first) == set(second)
        for key, value in first.items():
            assert np.shape(value) == np.shape(second[key]), key
            if isinstance(value, np.ndarray) or isinstance(second[key], np.ndarray):
                np.testing.assert_array_equal(np.asarray(value), np.asarray(second[key]), err_msg=str(key))
            else:
                assert value == second[key] or value != value, key
    fixed = [[repr(c) for c in atoms.constraints if np.any(getattr(c, "mask", True))] for atoms in (one, other)]
    assert fixed[0] == fixed[1]  # ASE also fixes nothing of the atoms that are free


def zoo() -> list[Atoms]:
    """Crystal, slab and molecule; labels missing here and there, and everything that a frame may say."""
    crystal = bulk("Cu", cubic=True)
    crystal.rattle(0.1, seed=1)
    crystal.calc = EMT()
    crystal.get_potential_energy()
    crystal.get_stress()
    slab = fcc111("Al", (2, 2, 2), vacuum=6.0)
    slab.pbc = (True, True, False)
    slab.info.clear()
    slab.set_constraint(FixAtoms(indices=[0, 1]))
    slab.calc = SinglePointCalculator(slab, energy=-1.0 / 3.0, free_energy=0.1 + 0.2)
    slab.info |= {"config_type": "slab", "id": "007", "flag": True, "list": [1, 2], "nested": {"a": [1.5, None]}}
    wire = Atoms("CO", positions=[[0, 0, 0], [0, 0, 1.1]], cell=[0, 0, 4], pbc=(False, False, True))
    wire.set_constraint(FixCartesian(1, mask=[True, False, True]))
    wire.info |= {"vector": np.array([1.0, 2.0]), "one": np.array([3.0]), "matrix": np.eye(2), "text": 'a "b" = c, \\d'}
    free = molecule("CH3CH2OH")
    free.set_array("charge_guess", np.linspace(-1, 1, len(free)) / 3)
    free.set_array("role", np.array(["a", "b"] * 4 + ["c"]))
    free.set_array("spin", np.arange(len(free)))
    free.set_array("chosen", np.arange(len(free)) % 2 == 0)
    free.calc = SinglePointCalculator(free, energy=-4.0e-7, forces=np.arange(27).reshape(9, 3) / 7)
    free.info |= {"smiles": "C(C)O", "big": 12345678901234567890.0, "tiny": 5e-324, "no": None}
    return [crystal, slab, wire, free, Atoms("H")]


def test_atoms_survive_a_block() -> None:
    images = zoo()
    block = from_atoms(images, [f"zoo#{k}" for k in range(len(images))])
    assert block.has_energy.tolist() == [True, True, False, True, False]
    assert block.has_forces.tolist() == [True, False, False, True, False]
    for one, other in zip(images, to_atoms(block), strict=True):
        assert_same(_plain(one), other)


def _plain(atoms: Atoms) -> Atoms:
    """The same with results kept by a plain calculator."""
    copy = atoms.copy()
    if atoms.calc is not None:
        copy.calc = SinglePointCalculator(copy, **{k: v for k, v in atoms.calc.results.items() if v is not None})
    return copy


def test_atoms_survive_extended_xyz_as_ase_reads_it_and_as_we_do(tmp_path: Path) -> None:
    images = [_plain(atoms) for atoms in zoo()]
    path = tmp_path / "zoo.xyz"
    path.write_text("".join(xyz_lines(from_atoms(images, [f"zoo.xyz#{k}" for k in range(len(images))]))))
    ours = [atoms for block in read_xyz(path) for atoms in to_atoms(block)]
    theirs = ase.io.read(path, ":", format="extxyz")
    for image, our, their in zip(images, ours, theirs, strict=True):
        assert_same(our, their)
        assert_same(image, our)


VALUES = st.one_of(
    st.booleans(),
    st.integers(-(2**53), 2**53),
    st.floats(allow_nan=False),
    st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs", "Zl", "Zp")), min_size=1, max_size=12),
    st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=2, max_size=4).map(np.array),
)


@settings(max_examples=300, deadline=None)
@given(value=VALUES)
def test_any_value_of_a_comment_reads_back(value: Any) -> None:
    known = read_comment(f"{write_pair('key', value)} other=1", "here", {})
    assert known["other"] == 1
    if isinstance(value, np.ndarray):
        np.testing.assert_array_equal(known["key"], value)
    else:
        assert type(known["key"]) is type(value)
        assert known["key"] == value


FORMS = [
    'Lattice="4 0 0 0 4 0 0 0 4" Properties=species:S:1:pos:R:3 energy=-1.5',
    "Properties=species:S:1:pos:R:3 energy=-1.5 pbc=T",
    "energy=-1.5 'quoted key'=3 {braces}=[1 2 3]",
    'energy=-1.5 alone other="a b" list=1,2,3 json="_JSON [[1, 2], [3, 4]]" uid=12',
    "energy=-1.5 stress=\"1 2 3 4 5 6 7 8 9\" mixed='T F T' name=T2",
    "energy=-1 count=99999999999999999999 f=1e5 inf=-inf n=007 pi=3,14",
    'energy=-1.5 note="a \\"b\\" c" path=a=b=c',
]


@pytest.mark.parametrize("comment", FORMS)
def test_comment_lines_mean_what_they_mean_to_ase(tmp_path: Path, comment: str) -> None:
    path = tmp_path / "a.xyz"
    path.write_text(f"2\n{comment}\nH 0 0 0\nhe\t1.0  0 +2e-1\n\n\n")
    (block,) = read_xyz(path)
    (ours,) = to_atoms(block)
    assert_same(ours, ase.io.read(path, format="extxyz"))


def test_every_column_type(tmp_path: Path) -> None:
    path = tmp_path / "a.xyz"
    row = "1.5 2 3 {} 7 T some 1 2 3"
    path.write_text(
        "2\nProperties=pos:R:3:species:S:1:tags:I:1:on:L:1:word:S:1:forces:R:3 energy=1\n"
        + "\n".join(row.format(symbol) for symbol in ("Cu", "O"))
    )
    (block,) = read_xyz(path)
    assert_same(next(to_atoms(block)), ase.io.read(path, format="extxyz"))
    assert block.forces.tolist() == [[1, 2, 3]] * 2


@pytest.mark.parametrize("packed", [False, True])
def test_reads_what_read_frames_reads(tmp_path: Path, packed: bool) -> None:
    images = [_plain(atoms) for atoms in zoo()[:2]] * 3
    text = io.StringIO()
    ase.io.write(text, images, format="extxyz")
    path = tmp_path / ("a.xyz.gz" if packed else "a.xyz")
    path.write_bytes(gzip.compress(text.getvalue().encode()) if packed else text.getvalue().encode())
    frames = [frame for block in read_xyz(path) for frame in block.checked()]
    for ours, theirs in zip(frames, read_frames(path), strict=True):
        assert (ours.source, ours.energy, ours.group) == (theirs.source, theirs.energy, theirs.group)
        np.testing.assert_array_equal(ours.structure.positions, theirs.structure.positions)
        for name in ("forces", "stress"):
            np.testing.assert_equal(getattr(ours, name), getattr(theirs, name))


def test_unusual_names_and_virials(tmp_path: Path) -> None:
    path = tmp_path / "a.xyz"
    path.write_text(
        '1\nLattice="2 0 0 0 2 0 0 0 2" Properties=species:S:1:pos:R:3:my_f:R:3 my_e=-2.5 energy=7 '
        'REF_virial="8 0 0 0 8 0 0 0 16" config_type=hot\nCu 0 0 0 1 2 3\n'
    )
    (block,) = read_xyz(path, Keys(energy="my_e", forces="my_f"))
    frame = block.checked()[0]
    assert (frame.energy, frame.group) == (-2.5, "hot")
    np.testing.assert_array_equal(frame.forces, [[1, 2, 3]])
    np.testing.assert_allclose(frame.stress, -np.diag([1.0, 1.0, 2.0]))
    assert_same(next(to_atoms(block)), ase.io.read(path, format="extxyz"))  # under the names that they had
    (usual,) = read_xyz(path)
    assert usual.checked()[0].energy == 7
    with pytest.raises(DataError, match="no key 'dft'"):
        next(read_xyz(path, Keys(energy="dft")))


BROKEN = {
    "2\nProperties=species:S:1:pos:R:3 energy=1\nH 0 0 0\n": "#0 (line 1): the file ends in the middle",
    "1\nenergy=1\nH 0 0\n": "#0 (line 3): a line of atoms has 3 columns, expected 4 (symbols, positions)",
    "1\nenergy=1\nH 0 0 0 1.5\n": "a line of atoms has 5 columns, expected 4 (symbols, positions): 'H 0 0 0 1.5'",
    "1\nenergy=1\nH 0 0 0\n\n1\nenergy=1\nH 0 0 zero\n": "#1 (line 7): 'zero' does not fit the column positions",
    "1\nenergy=1\nH 0 0 1_0\n": "'1_0' does not fit the column positions",
    "1\nenergy=1\nXq 0 0 0\n": "#0 (line 3): 'Xq' does not fit the column symbols",
    "1\nenergy=1\nH 0 0 0\nx\n": "#1 (line 4): expected a number of atoms, found 'x'",
    "1\nenergy=1\nH 0 0 0\n0\n\n": "#1 (line 4): expected a number of atoms, found '0'",
    "2\nenergy=1\nH 0 0 0\n\nH 0 0 1\n": "#1 (line 5): expected a number of atoms, found 'H 0 0 1'",
    "2\nenergy=1\nH 0 0 0\n\n\n": "#0 (line 4): a line of atoms has 0 columns",
    "-3\nenergy=1\n": "#0 (line 1): expected a number of atoms",
    "999999999\nenergy=1\nH 0 0 0\n": "999,999,999 atoms are announced",
    "5000\nenergy=1\nH 0 0 0\n": "5,000 atoms are announced, more than a file of 22 bytes can hold",
    "": "is empty",
    "\n\n \r\n": "is empty",
    "1\nenergy=abc\nH 0 0 0\n": "energy (key 'energy') is not numeric: 'abc'",
    "1\nenergy=1 energy=2\nH 0 0 0\n": "energy is given twice",
    "1\nenergy=\nH 0 0 0\n": "a '=' without a value",
    "1\nnote= energy=1\nH 0 0 0\n": "note has no value",
    "1\nnote='it energy=1\nH 0 0 0\n": "has a ' that is not closed",
    '1\nenergy=1 stress="1 2 3"\nH 0 0 0\n': "stress must be the nine numbers",
    "1\nProperties=species:S:1:pos:Q:3 energy=1\nH 0 0 0\n": "is not a list of name:type:columns",
    "1\nProperties=species:S:1:pos:R:3:forces:R:3:forces:R:3 energy=1\nH 0 0 0 1 1 1 2 2 2\n": "column forces twice",
    "1\nProperties=species:S:1 energy=1\nH\n": "no species or no three coordinates",
    "1\nProperties=species:S:1:pos:R:2 energy=1\nH 0 0\n": "no species or no three coordinates",
    "1\nProperties=species:S:1:Z:I:1:pos:R:3 energy=1\nH 2 0 0 0\n": "species and Z name different elements",
    '1\nenergy=1 cell="4 0 0 0 4 0 0 0 4"\nH 0 0 0\n': "which extended XYZ calls Lattice",
    "1\n# CELL(abcABC): 4 4 4 90 90 90\nH 0 0 0\n": "the cell is not in the form Lattice=",
    "1\nproperties=3\nH 0 0 0\n": "holds no energies under a usual name",
}


@pytest.mark.parametrize("text", BROKEN)
def test_damaged_files_are_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "bad.xyz"
    path.write_text(text)
    with pytest.raises(DataError) as caught:
        list(read_xyz(path))
    assert "bad.xyz" in str(caught.value)
    assert BROKEN[text] in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_a_dataset_cannot_hold_is_named() -> None:
    atoms = molecule("H2O")
    atoms.calc = SinglePointCalculator(atoms, energy=0.0)
    atoms.info["thing"] = object()
    with pytest.raises(DataError, match=r"a#0: info\['thing'\] is of type object"):
        from_atoms([atoms], ["a#0"])
    del atoms.info["thing"]
    atoms.info["energy"] = 1.0
    with pytest.raises(DataError, match="two values of energy"):
        from_atoms([atoms], ["a#0"])
    del atoms.info["energy"]
    atoms.set_constraint(FixedPlane(0, (0, 0, 1)))
    with pytest.raises(DataError, match="constraint FixedPlane"):
        from_atoms([atoms], ["a#0"])


def test_blocks_are_cut_and_joined() -> None:
    images = [_plain(atoms) for atoms in zoo()]
    block = from_atoms(images, [f"z#{k}" for k in range(len(images))])
    rows = np.array([3, 0, 3])
    taken = block.take(rows)
    assert taken.sources == ["z#3", "z#0", "z#3"]
    parts = Frames.concatenate([block[int(row) : int(row) + 1] for row in rows])
    for one, two, row in zip(to_atoms(taken), to_atoms(parts), rows, strict=True):
        assert_same(one, two)
        assert_same(one, images[row])


def test_shared_data_mean_the_same_to_ase(snnp_data: Path) -> None:
    for name in ("mlearn/Cu_test.xyz", "3bpa/isolated_atoms.xyz", "al-icams/al_test.xyz"):
        path = snnp_data / name
        ours = [atoms for block in read_xyz(path) for atoms in to_atoms(block)]
        theirs = ase.io.read(path, ":", format="extxyz")
        written = io.StringIO("".join(line for block in read_xyz(path) for line in xyz_lines(block)))
        again = ase.io.read(written, ":", format="extxyz")
        for our, their, third in zip(ours, theirs, again, strict=True):
            assert_same(our, their)
            assert_same(our, third)
