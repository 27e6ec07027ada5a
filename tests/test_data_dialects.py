"""Every way in which programs write the same frame gives the same frame, or an error; to all that read files."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import logging
import lzma
from pathlib import Path

import ase.io
import numpy as np
import pytest
from typer.testing import CliRunner

from snnp.cli.main import app
from snnp.data import Frame, Keys, convert, load_dataset, read_frames
from snnp.data.storage import extxyz as reader
from snnp.data.storage.atoms import from_atoms
from snnp.doctor.examine import read_set
from snnp.errors import DataError
from snnp.sampling import build_structure

CELL = "5.43 0.0 0.0 0.1 5.43 0.0 0.0 0.0 5.43"
LATTICE = f'Lattice="{CELL}"'
PROPERTIES = "Properties=species:S:1:pos:R:3:forces:R:3"
ROWS = "Si 0.0 0.0 0.0 0.1 0.0 0.0\nSi 1.36 1.36 1.36 -0.1 0.0 0.0\n"


def _write(path: Path, *comments: str, between: str = "", rows: str = ROWS, end: str = "") -> Path:
    path.write_text(between.join(f"2\n{comment}\n{rows}" for comment in comments) + end, newline="")
    return path


def _frames_of_all_readers(path: Path, keys: Keys = Keys()) -> list[list[Frame]]:
    """By training and evaluation, by datasets in memory and converted, and by the doctor."""
    convert({"train": [path]}, path.with_suffix(".parquet"), method="PBE", keys=keys)
    (doctors,) = read_set([path], keys)[0].values()
    return [read_frames(path, keys), load_dataset(path.with_suffix(".parquet")).frames(), doctors]


def _check(frame: Frame, pbc: tuple[bool, bool, bool] = (True, True, True)) -> None:
    assert frame.energy == -10.5
    assert frame.structure.pbc.tolist() == [list(pbc)]
    assert frame.structure.cell[0].tolist() == [[5.43, 0, 0], [0.1, 5.43, 0], [0, 0, 5.43]]
    np.testing.assert_array_equal(frame.forces, [[0.1, 0, 0], [-0.1, 0, 0]])


COMMENTS = [
    f"{LATTICE} {PROPERTIES} energy=-10.5",
    f'{LATTICE} {PROPERTIES} energy="-10.5"',
    f"{LATTICE} {PROPERTIES} energy='-10.5' pbc='T T T'",
    f"{LATTICE} {PROPERTIES} energy={{-10.5}}",
    f"{LATTICE} {PROPERTIES} energy=[-10.5]",
    f"{LATTICE} {PROPERTIES} energy=[[-10.5]]",
    f"{LATTICE} {PROPERTIES} energy=_JSON\\ -10.5",
    f'{LATTICE} {PROPERTIES} energy="_JSON -10.5"',
    f'{LATTICE} {PROPERTIES} "energy"=-10.5',
    f"{LATTICE} {PROPERTIES} 'energy' = -10.5",
    f'Lattice = "{CELL}" {PROPERTIES} energy = -10.5 pbc = "T T T"',
    f'Lattice= "{CELL}" {PROPERTIES} energy= -10.5',
    f'Lattice ="{CELL}" {PROPERTIES} energy =-10.5',
    f"Lattice='{CELL}' Properties='species:S:1:pos:R:3:forces:R:3' energy=-1.05e1",
    f"Lattice={{{CELL}}} Properties = species:S:1:pos:R:3:forces:R:3 energy=-10.5",
    f"Lattice=[{CELL}] {PROPERTIES} energy=-10.5",
    f"Lattice=[[5.43, 0, 0], [0.1, 5.43, 0], [0, 0, 5.43]] {PROPERTIES} energy=-10.5",
    f'Lattice="_JSON [[5.43, 0, 0], [0.1, 5.43, 0], [0, 0, 5.43]]" {PROPERTIES} energy=-10.5',
    f'Lattice="{CELL.replace(" ", ", ")}" {PROPERTIES} energy=-10.5',
    f'LATTICE="{CELL}" properties=species:S:1:pos:R:3:forces:R:3 energy=-10.5',
    f'lattice="{CELL}" PROPERTIES=species:S:1:pos:R:3:forces:R:3 energy=-10.5',
    f"  \t{LATTICE}\t{PROPERTIES}   energy=-10.5  ",
    f"{LATTICE} {PROPERTIES} energy=-10.5 lattice=diamond note=don't smiles=[CH3]C[C@H](O)C path=a=b",
    f"{LATTICE} {PROPERTIES} total_energy=-10.5 note='where energy=3 is not it'",
    f'{LATTICE} {PROPERTIES} note="energy=3" other={{energy=4 [5]}} energy=-10.5',
    f"{LATTICE} {PROPERTIES} energy=-10.5 energy=-10.5",
]


@pytest.mark.parametrize("comment", COMMENTS)
def test_comment_lines_are_understood_by_all_readers(tmp_path: Path, comment: str) -> None:
    path = _write(tmp_path / "a.xyz", comment, f"{LATTICE} {PROPERTIES} energy=-10.5".replace("energy", "energy"))
    if "total_energy" in comment:
        path = _write(tmp_path / "a.xyz", comment)
    for frames in _frames_of_all_readers(path):
        for frame in frames:
            _check(frame)
    np.testing.assert_array_equal(build_structure(path).cell.array, frames[0].structure.cell[0])


STRESSES = [
    'stress="1 2 3 2 5 6 3 6 9"',
    'stress = "1 2 3 2 5 6 3 6 9"',
    "stress={1 2 3 2 5 6 3 6 9}",
    "stress=[1,2,3,2,5,6,3,6,9]",
    "stress=[[1, 2, 3], [2, 5, 6], [3, 6, 9]]",
    'stress="_JSON [[1, 2, 3], [2, 5, 6], [3, 6, 9]]"',
    'stress="1 5 9 6 3 2"',
    'REF_stress="1 5 9 6 3 2"',
    'castep_stress="1 2 3 2 5 6 3 6 9"',
    'stress_dft="1 2 3 2 5 6 3 6 9"',
]


@pytest.mark.parametrize("comment", STRESSES)
def test_stresses_in_all_forms(tmp_path: Path, comment: str) -> None:
    path = _write(tmp_path / "a.xyz", f"{LATTICE} {PROPERTIES} energy=-10.5 {comment}")
    for (frame,) in _frames_of_all_readers(path):
        np.testing.assert_array_equal(frame.stress, [[1, 2, 3], [2, 5, 6], [3, 6, 9]])


@pytest.mark.parametrize(
    "name", ["virial", "virials", "REF_virial", "REF_virials", "dft_virial", "Virial", "ref_virial"]
)
def test_virials_are_minus_stress_times_volume(tmp_path: Path, name: str) -> None:
    path = _write(tmp_path / "a.xyz", f'{LATTICE} {PROPERTIES} energy=-10.5 {name}="1 0 0 0 1 0 0 0 1"')
    for (frame,) in _frames_of_all_readers(path):
        np.testing.assert_allclose(frame.stress, -np.eye(3) / 5.43**3, atol=1e-16)


FLAGS = {
    (True, True, False): [
        *(
            'pbc="T T F"',
            "pbc=TTF",
            "pbc='T T F'",
            "pbc=[T,T,F]",
            "pbc=[T, T, F]",
            "pbc={T T F}",
            'pbc="true true false"',
        ),
        *(
            'pbc="True True False"',
            "pbc=[true, true, false]",
            'pbc="_JSON [true, true, false]"',
            'pbc="1 1 0"',
            "pbc=110",
        ),
        *('pbc="p p f"', "pbc=ppf", 'pbc="pp pp ff"', 'pbc="p p s"', 'pbc="p p fs"', 'PBC="T T F"', 'Pbc="t t f"'),
        *(
            'boundary="p p f"',
            "boundary=ppf",
            'periodic="T T F"',
            'Boundary = "p p m"',
            'pbc="T,T,F"',
            'pbc="yes yes no"',
        ),
        *('is_periodic="T T F"', 'pbcs="T T F"', 'bc="p p f"', 'box_pbc="T T F"'),
        'periodic_boundary_conditions="T T F"',
        *('pbc="T T F" boundary="p p f"', 'pbc="T T F" boundary=twin', 'pbc="T T F" periodic=T'),
    ],
    (False, False, False): [
        "pbc=FFF",
        'pbc="f f f"',
        "pbc=F",
        "pbc=false",
        "pbc=0",
        'pbc="0 0 0"',
        "pbc=fff",
        "pbc=000",
    ],
    (True, True, True): ["", "pbc=T", "pbc=true", 'pbc="T T T"', "pbc=TTT", "pbc=ppp", "pbc=1", "pbc=111", "pbc"],
}


@pytest.mark.parametrize(("pbc", "text"), [(pbc, text) for pbc, texts in FLAGS.items() for text in texts])
def test_boundaries_are_understood_by_all_readers(tmp_path: Path, pbc: tuple[bool, bool, bool], text: str) -> None:
    path = _write(tmp_path / "a.xyz", f"{LATTICE} {PROPERTIES} energy=-10.5 {text}")
    for (frame,) in _frames_of_all_readers(path):
        _check(frame, pbc)
    assert tuple(build_structure(path).pbc) == pbc


REFUSED = {
    'pbc="T T"': "pbc is 'T T'; expected three truth values",
    'pbc="T T T T"': "expected three truth values",
    'pbc="T T X"': "expected three truth values",
    "pbc=TF": "expected three truth values",
    "pbc=maybe": "expected three truth values",
    'pbc="2 0 0"': "expected three truth values",
    'pbc=""': "expected three truth values",
    "pbc=pp": "expected three truth values",
    "boundary=twin": "expected three truth values",
    'pbc="T T F" boundary="p p p"': "pbc and boundary do not agree",
    'pbc="T T F" periodic=F': "pbc and periodic do not agree",
    'pbc="T T F" PBC="T T T"': "pbc is given twice",
    'lattice="1 0 0 0 1 0 0 0 1"': "Lattice is given twice",
    "energy=-3": "energy is given twice",
    'REF_stress="1 2 3"': "stress (key 'REF_stress') has 3 numbers",
    "virial=[[1, 0], [0, 1]]": "stress (key 'virial') has 4 numbers",
    "virial=[[1, 0], [0]]": "stress (key 'virial') has",
    'virial="_JSON [[1, 0"': "virial is no JSON",
    "stress=large": "stress must be the nine numbers",
    "note='a": "has a ' that is not closed",
    "note={a": "has a { that is not closed",
    'note="a"b': 'text after a closing "',
    'note=a"b': "a quote inside a word",
    "note == b": "note has no value",
    "= b": "has a '=' without a name",
    "b =": "has a '=' without a value",
    "REF_stress= note=b": "REF_stress has no value",
}


@pytest.mark.parametrize(
    "cell",
    [
        *('cell="5 5 5"', 'latt="5 0 0 0 5 0 0 0 5"', 'cell_parameters="5 5 5 90 90 90"', 'lattice_vector="5 5 5"'),
        *('h_mat="5 0 0 0 5 0 0 0 5"', 'Tv_1="5 0 0"', "# CELL(abcABC): 5 5 5 90 90 90", "Lattice"),
    ],
)
def test_cells_of_other_names_are_not_lost(tmp_path: Path, cell: str) -> None:
    with pytest.raises(DataError, match=r"a\.xyz#0 \(line 1\).*Lattice"):
        read_frames(_write(tmp_path / "a.xyz", f"{PROPERTIES} energy=-10.5 {cell}"))


def test_columns_are_bounded(tmp_path: Path) -> None:
    wide = "".join(f":a{k}:R:1000" for k in range(20_000))  # 20 million columns in 300 kB
    with pytest.raises(DataError, match=r"a\.xyz#0 \(line 1\).*up to 10,000 columns"):
        read_frames(_write(tmp_path / "a.xyz", f"{PROPERTIES}{wide} energy=-10.5"))


@pytest.mark.parametrize("text", REFUSED)
def test_what_is_not_understood_is_refused_by_all_readers(tmp_path: Path, text: str) -> None:
    good = f"{LATTICE} {PROPERTIES} energy=-10.5"
    path = _write(tmp_path / "a.xyz", good, f"{good} {text}")
    for read in (read_frames, lambda path: list(load_dataset(path)), lambda path: read_set([path])):
        with pytest.raises(DataError) as caught:
            read(path)
        assert REFUSED[text] in str(caught.value)
        assert "a.xyz#1 (line 5)" in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("blank", ["", "\n", "\n\n\n", "  \n\t\n"])
@pytest.mark.parametrize("end", ["", "\n", "\n\n \n"])
def test_blank_lines_lose_no_frames(tmp_path: Path, newline: str, blank: str, end: str) -> None:
    comments = [f"{LATTICE} {PROPERTIES} energy={energy}" for energy in (-10.5, -10.4, -10.3)]
    path = _write(tmp_path / "a.xyz", *comments, between=blank, end=end)
    path.write_bytes(blank.encode() + path.read_bytes().replace(b"\n", newline.encode()))
    for frames in _frames_of_all_readers(path):
        assert [frame.energy for frame in frames] == [-10.5, -10.4, -10.3]
    assert build_structure(f"{path}@1").get_chemical_formula() == "Si2"
    path.write_bytes(path.read_bytes().rstrip() + b"\njunk\n")
    with pytest.raises(DataError, match="expected a number of atoms, found 'junk'"):
        read_frames(path)


@pytest.mark.parametrize(
    ("comment", "forces", "energy", "stress"),
    [
        ("dft_energy=1 dft_virial", "dft_force", 1, True),
        ("REF_energy=1 REF_virials", "REF_forces", 1, True),
        ("REF_energy=1 energy=2 REF_stress", "REF_force", 1, True),
        ("castep_energy=1 castep_virial", "castep_forces", 1, True),
        ("energy_ref=1 stress_ref", "forces_ref", 1, True),
        ("Energy=1 Stress", "Forces", 1, True),
        ("total_energy=1 VIRIAL", "FORCE", 1, True),
        ("free_energy=2 energy=1 stress", "force", 1, True),
        ("potential_energy=1 vasp-stress", "vasp.forces", 1, True),
        ("dftEnergy=1 kinetic_energy=3 energy_sigma=4 force_sigma=2 stress", "dftForces", 1, True),
        ("energy=1 energy_corrected=3 interaction_energy=4 monomer1_energy=2 virial_sigma", "forces", 1, False),
    ],
)
def test_usual_names_are_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, comment: str, forces: str, energy: float, stress: bool
) -> None:
    properties = PROPERTIES.replace("forces", forces)
    path = _write(tmp_path / "a.xyz", f'{LATTICE} {properties} config_type=x {comment}="1 0 0 0 1 0 0 0 1"')
    with caplog.at_level(logging.WARNING):
        for (frame,) in _frames_of_all_readers(path):
            assert (frame.energy, frame.group, frame.stress is not None) == (energy, "x", stress)
            np.testing.assert_array_equal(frame.forces, [[0.1, 0, 0], [-0.1, 0, 0]])
    assert not caplog.records


@pytest.mark.parametrize(
    ("comment", "columns", "said"),
    [
        (
            "energy=1",
            ":mace_forces:R:3",
            "no forces are read; mace_forces may hold them.*data.forces_key.*--forces-key",
        ),
        ("energy=1", ":gradient:R:3", "no forces are read; gradient may hold them"),
        ("energy=1", ":fx:R:1:fy:R:1:fz:R:1", "no forces are read; fx or fy or fz may hold them.*as one, forces:R:3"),
        ("energy=1", ":F:R:3", "no forces are read; F may hold them"),
        ("energy=1", ":frc:R:3", "no forces are read; frc may hold them"),
        ('energy=1 my_virial="1 0 0 0 1 0 0 0 1"', ":forces:R:3", "no stress are read; my_virial may hold.*stress_key"),
    ],
)
def test_what_looks_like_a_label_and_is_not_read_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, comment: str, columns: str, said: str
) -> None:
    path = _write(tmp_path / "a.xyz", f"{LATTICE} Properties=species:S:1:pos:R:3{columns} {comment}")
    read_frames(path)
    (record,) = caplog.records
    assert np.all([part in record.getMessage() for part in said.split(".*")])


def test_frames_that_lack_the_name_that_is_read_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = _write(tmp_path / "a.xyz", "REF_energy=1 energy=2", "energy=3", rows="Si 0 0 0\nSi 2 0 0\n")
    assert [frame.energy for frame in read_frames(path)] == [1.0, None]
    assert "1 of 2 frames have no REF_energy but energy, which is not read" in caplog.text


@pytest.mark.parametrize(
    ("comment", "columns", "names"),
    [
        ("energy=1 dft_energy=2", ":forces:R:3", "energy, dft_energy"),
        ("REF_energy=1 mp2_energy=2", ":forces:R:3", "REF_energy, mp2_energy"),
        ("pbe_energy=1 scan_energy=2", ":forces:R:3", "pbe_energy, scan_energy"),
        ("Energy=1 energy=2", ":forces:R:3", "Energy, energy"),
        ("energy=1", ":forces:R:3:dft_forces:R:3", "forces, dft_forces"),
        ("energy=1 virial=[[1,0,0],[0,1,0],[0,0,1]] dft_virial=T", ":forces:R:3", "virial, dft_virial"),
    ],
)
def test_several_candidates_are_refused_until_one_is_named(
    tmp_path: Path, comment: str, columns: str, names: str
) -> None:
    rows = ROWS.replace("0.0 0.0\n", "0.0 0.0 1 2 3\n") if ":dft" in columns else ROWS
    path = _write(tmp_path / "a.xyz", f"Properties=species:S:1:pos:R:3{columns} {comment}", rows=rows)
    with pytest.raises(DataError, match=rf"under several names \({names}\); say which is meant with data\.\w+_key"):
        read_frames(path)
    last = names.split(", ")[-1]
    if last != "dft_virial":
        assert len(read_frames(path, Keys(**{"energy" if "nergy" in last else "forces": last}))) == 1


def test_other_formats_have_the_same_names(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    atoms = build_structure("diamond:Si:1")
    atoms.info |= {"dft_energy": -2.0, "REF_virials": np.eye(3)}
    atoms.set_array("mace_forces", np.ones((8, 3)))
    frame = from_atoms([atoms], ["a#0"], extras=False).checked()[0]
    assert "mace_forces may hold them" in caplog.text
    ase.io.write(tmp_path / "a.traj", atoms)
    for each in (frame, *read_frames(tmp_path / "a.traj")):
        assert each.energy == -2.0
        np.testing.assert_allclose(each.stress, -np.eye(3) / atoms.get_volume())
    atoms.info["vasp_energy"] = -3.0
    ase.io.write(tmp_path / "a.traj", atoms)
    with pytest.raises(DataError, match="dft_energy, vasp_energy"):
        read_frames(tmp_path / "a.traj")


def test_extended_xyz_is_known_by_what_it_holds(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.dat", *[f"{LATTICE} {PROPERTIES} energy=-10.5"] * 2, between="\n\n")
    assert len(read_frames(path)) == 2


@pytest.mark.parametrize(("ending", "pack"), [(".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress)])
def test_packed_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str, pack: object) -> None:
    text = _write(tmp_path / "a.xyz", *[f"{LATTICE} {PROPERTIES} energy=-10.5"] * 3, between="\n").read_bytes()
    path = tmp_path / f"a.xyz{ending}"
    path.write_bytes(pack(text))  # type: ignore[operator]
    for frame in read_frames(path):
        _check(frame)
    monkeypatch.setattr(reader, "_MOST_UNPACKED", 1 << 20)
    path.write_bytes(pack(text + b"\n" * (1 << 24)))  # type: ignore[operator]
    with pytest.raises(DataError, match=r"unpacks to more than .* bytes, 200 times its size"):
        read_frames(path)
    path.write_bytes(pack(text)[:-9])  # type: ignore[operator]
    with pytest.raises(DataError, match="cannot be read"):
        read_frames(path)


def test_frames_larger_than_a_piece_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames and blank lines across the ends of pieces, whatever these are."""
    path = _write(tmp_path / "a.xyz", *[f"{LATTICE} {PROPERTIES} energy={k}" for k in range(7)], between="\n\n")
    whole = [frame.energy for frame in read_frames(path)]
    for size in (1, 7, 64, 200, 500):
        monkeypatch.setattr(reader, "_PIECE", size)
        assert [frame.energy for frame in read_frames(path)] == whole == list(range(7))


def test_long_comments_take_time_in_proportion() -> None:
    """Regular expressions that backtrack would need hours for these, and meet the time limit of all tests."""
    for piece in ("a", "a=", "a ", '"', "[", "{", "=", " = ", "\\", "a='", "a=[", "_", "energy", "= b "):
        comment, values = f"energy=1 {piece * 400_000}", {"energy": 1}
        with contextlib.suppress(DataError):
            values = reader.read_comment(comment, "here", {})
        assert values["energy"] == 1


def test_without_arrow_the_same_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _write(tmp_path / "a.xyz", f"{LATTICE} {PROPERTIES} energy=-10.5")
    monkeypatch.setattr(reader, "_parse_quickly", lambda run: None)
    (frame,) = read_frames(path)
    _check(frame)


def test_start_structures_of_plain_xyz_may_hold_remarks(tmp_path: Path) -> None:
    path = tmp_path / "a.xyz"
    path.write_text("1\nit's water, E: -76.4\nO 0 0 0 0.5 first\n\n2\nanother\nO 0 0 0\nH 0 0 1\n")
    assert build_structure(path).get_chemical_formula() == "HO"
    assert build_structure(f"{path}@0").info == {"comment": "it's water, E: -76.4"}
    with pytest.raises(DataError, match="6 columns, expected 4 "):
        read_frames(path, Keys(energy="comment"))


def test_momenta_and_constraints_of_a_start_structure_are_kept(tmp_path: Path) -> None:
    atoms = build_structure("fcc:Cu:1")
    atoms.set_momenta(np.arange(12.0).reshape(4, 3))
    ase.io.write(tmp_path / "a.xyz", atoms)
    np.testing.assert_allclose(build_structure(tmp_path / "a.xyz").get_momenta(), atoms.get_momenta())


def test_describe_reads_extended_xyz(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.xyz", *[f"{LATTICE} {PROPERTIES} energy=-10.5"] * 2, between="\n\n")
    done = CliRunner().invoke(app, ["describe", str(path), "--json"])
    assert done.exit_code == 0, done.output
    assert '"frames": 2' in done.stdout


def test_ase_reads_the_same_where_it_understands(tmp_path: Path) -> None:
    for comment in COMMENTS:
        path = _write(tmp_path / "a.xyz", comment)
        try:
            theirs = ase.io.read(io.StringIO(path.read_text()), format="extxyz")
            energy = theirs.get_potential_energy()
            assert isinstance(energy, float)
            assert theirs.cell.rank == 3
        except Exception:
            continue  # what ASE does not understand, or takes for something else
        (frame,) = read_frames(path)
        assert frame.energy == energy
        np.testing.assert_array_equal(frame.structure.cell[0], theirs.cell.array)
        np.testing.assert_array_equal(frame.structure.positions, theirs.positions)
