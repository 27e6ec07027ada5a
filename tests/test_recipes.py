"""Recipes: on the raw files where they are here, else on small files of the published layout that are written below.

The layouts of ANI-1x, ANI-Al, COMP6 and QM9 are those of their documentation; the published files themselves
(gigabytes) are not read by any test.
"""

from __future__ import annotations

import importlib.util
import io
import json
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import yaml
from ase.build import bulk, molecule

sys.path.append(str(Path(__file__).resolve().parents[1] / "datasets"))
import recipes
from recipes import build, from_xyz, hdf5, repulsion, split_by, table

from snnp.data import load_dataset, read_frames
from snnp.data.description import Description, card, header, parse_description, read_description
from snnp.data.frames import Frames
from snnp.data.storage.extxyz import read_xyz
from snnp.errors import DataError
from snnp.hub.manifest import read_manifest, verify_folder
from snnp.units import HARTREE_IN_EV

DATASETS = Path(__file__).resolve().parents[1] / "datasets"
SPECTRA = {"anderson-spectra"}  # curves and no structures: a recipe and a card, without a manifest
NAMES = sorted(path.parent.name for path in DATASETS.glob("*/manifest.json"))
BUNDLED = sorted({path.parent.name for path in DATASETS.glob("*/*.parquet")})
SMALL = ("3bpa", "al-icams", "comp6-s66x8", "qm9-100", "cc-reference", "ta-snap", "mlearn")  # seconds for all


def make_of(name: str) -> Any:
    """The function of a recipe."""
    spec = importlib.util.spec_from_file_location(f"recipe_{name}", DATASETS / name / "recipe.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, "make", from_xyz)


def build_small(name: str, raw: Path, out: Path) -> Description:
    return build(raw, out, DATASETS / name, make_of(name), check=False)


def test_every_folder_is_a_dataset() -> None:
    folders = {path.name for path in DATASETS.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders == set(NAMES) | SPECTRA
    needed = {"ani-1x", "ani-al", "comp6", "qm9", "mlearn", "al-icams", "li-al", "3bpa", "ethanol-rmd17"}
    assert needed <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_manifest_and_card(name: str) -> None:
    """The card is what the manifest says; who states no licence is not handed on."""
    description = read_description(DATASETS / name / "manifest.json")
    assert description.name == name
    text = (DATASETS / name / "README.md").read_text(encoding="utf-8")
    if name in BUNDLED:
        assert text == header(description) + "\n" + card(description, recipe=(DATASETS / name / "recipe.py").is_file())
    else:
        assert text == card(description)
        assert (DATASETS / name / "recipe.py").is_file()
    assert (description.why_not_redistributable() is None) == (description.licence is not None)
    head = yaml.safe_load(header(description).split("---\n")[1])
    assert head["license"] == (description.licence or "unknown")
    assert [one["config_name"] for one in head["configs"]] == list(description.parts)
    for part in description.parts.values():
        if part.frames is not None:
            assert sum(part.splits.values()) == part.frames


def test_table_of_all() -> None:
    lines = table([read_description(DATASETS / name / "manifest.json") for name in NAMES]).splitlines()
    parts = sum(len(read_description(DATASETS / name / "manifest.json").parts) for name in NAMES)
    assert len(lines) == parts + 2
    assert len({line.count("|") for line in lines}) == 1
    (row,) = [line for line in lines if line.startswith("| `mlearn`")]
    assert "1,513" in row
    assert "bsd-3-clause" in row
    assert all("(recipe only)" in line for line in lines if line.startswith("| `ani-al`"))


@pytest.mark.parametrize("name", SMALL)
def test_recipe_on_the_raw_files(name: str, snnp_data: Path, tmp_path: Path) -> None:
    """Checksums hold, counts are those of the manifest, and numbers are those of the raw files."""
    raw = snnp_data / name
    if not raw.is_dir():
        pytest.skip(f"no raw files of {name} at {raw}")
    made = build(raw, tmp_path / name, DATASETS / name, make_of(name))
    stated = read_description(DATASETS / name / "manifest.json")
    for part, about in made.parts.items():
        known = stated.parts[part]
        for key in ("frames", "atoms", "splits", "sizes", "elements", "energies", "forces", "stresses"):
            assert getattr(about, key) == getattr(known, key), key
        dataset = load_dataset(tmp_path / name, part=part)
        assert dataset.method == about.method
        for split, files in known.files.items():
            if not about.energies:
                continue
            ours, theirs = dataset.select(split).frames(), read_frames([raw / file for file in files])
            for one, other in list(zip(ours, theirs, strict=True))[:: max(len(theirs) // 20, 1)]:
                assert one.energy == other.energy
                np.testing.assert_array_equal(one.structure.positions, other.structure.positions)
                for key in ("forces", "stress"):
                    np.testing.assert_equal(getattr(one, key), getattr(other, key))
    verify_folder(tmp_path / name, read_manifest(tmp_path / name, "dataset"), quick=False)


def test_recipe_as_a_command(snnp_data: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(DATASETS / "3bpa" / "recipe.py"), str(snnp_data / "3bpa"), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert "901 frames" in done.stdout
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        *("README.md", "manifest.json", "recipe.py", "wb97x.parquet")
    ]
    failed = subprocess.run([*command[:2], str(tmp_path), "x"], capture_output=True, text=True, cwd=tmp_path)
    assert failed.returncode == 1
    assert failed.stderr.startswith("error: ")
    assert "is missing, which the recipe of 3bpa needs" in failed.stderr


def test_other_raw_files_are_refused(tmp_path: Path, snnp_data: Path) -> None:
    for path in (snnp_data / "3bpa").glob("*.xyz"):
        (tmp_path / path.name).write_bytes(path.read_bytes().replace(b"energy=-1", b"energy=-2", 1))
    with pytest.raises(DataError, match=r"has sha256 .*the recipe of 3bpa was made for"):
        build(tmp_path, tmp_path / "out", DATASETS / "3bpa", from_xyz)
    assert not (tmp_path / "out").exists()


def ani_1x(path: Path) -> dict[str, dict[str, np.ndarray]]:
    """A file with the layout of ani1x-release.h5: NaN where a level was not computed."""
    random = np.random.default_rng(3)
    groups = {}
    with h5py.File(path, "w") as file:
        for formula, numbers, b in (("H2O1", [8, 1, 1], 4), ("C1H4", [6, 1, 1, 1, 1], 3), ("O2", [8, 8], 2)):
            arrays: dict[str, np.ndarray] = {
                "atomic_numbers": np.array(numbers, dtype=np.uint8),
                "coordinates": random.normal(size=(b, len(numbers), 3)).astype(np.float32),
                "wb97x_dz.energy": random.normal(size=b) - 40,
                "wb97x_dz.forces": random.normal(size=(b, len(numbers), 3)).astype(np.float32),
                "wb97x_tz.energy": np.full(b, np.nan),
                "wb97x_tz.forces": np.full((b, len(numbers), 3), np.nan, dtype=np.float32),
                "ccsd(t)_cbs.energy": np.where(np.arange(b) % 2, np.nan, -41.0 - np.arange(b)),
                "wb97x_dz.cm5_charges": np.zeros((b, len(numbers))),
            }
            if formula == "H2O1":
                arrays["wb97x_tz.energy"][1], arrays["wb97x_tz.forces"][1] = -76.4, 0.25
            groups[formula] = arrays
            for name, array in arrays.items():
                file.create_dataset(f"{formula}/{name}", data=array)
    return groups


def test_ani_1x_from_its_layout(tmp_path: Path) -> None:
    groups = ani_1x(tmp_path / "ani1x-release.h5")
    made = build_small("ani-1x", tmp_path, tmp_path / "out")
    assert {name: part.frames for name, part in made.parts.items()} == {"wb97x_dz": 9, "wb97x_tz": 1, "ccsdt_cbs": 5}
    assert made.parts["ccsdt_cbs"].forces == 0
    for frame in load_dataset(tmp_path / "out", part="wb97x_dz"):
        formula, _, row = frame.source.partition("#")
        arrays = groups[formula]
        assert frame.group == formula
        assert frame.energy == arrays["wb97x_dz.energy"][int(row)] * HARTREE_IN_EV
        forces = arrays["wb97x_dz.forces"][int(row)].astype(np.float64) * HARTREE_IN_EV
        np.testing.assert_array_equal(frame.forces, forces)
        np.testing.assert_array_equal(frame.structure.positions, arrays["coordinates"][int(row)])
    energies = {frame.source: frame.energy for frame in load_dataset(tmp_path / "out", part="ccsdt_cbs")}
    assert energies["H2O1#2"] == -43.0 * HARTREE_IN_EV
    (only,) = load_dataset(tmp_path / "out", part="wb97x_tz")
    assert only.source == "H2O1#1"


def test_ani_al_from_its_layout(tmp_path: Path) -> None:
    """Gradients in Hartree/Å in an archive; with forces in their place the recipe refuses to go on."""
    crystal = bulk("Al", cubic=True) * (2, 1, 1)
    with h5py.File(tmp_path / "data-1.h5", "w") as file, h5py.File(tmp_path / "testset-0.h5", "w") as tests:
        for k in range(4):
            crystal.rattle(0.3, seed=k)
            target, names = (file, ("energy", "force")) if k < 3 else (tests, ("energies", "forces"))
            group = target.create_group(f"run/config{k}")
            group["species"] = np.array([b"Al"] * 8)
            group["coordinates"] = crystal.positions[None]
            group["cell"] = crystal.cell.array[None]
            group[names[0]] = np.array([-21.6 - k])
            group[names[1]] = -pushes(crystal)[None] / HARTREE_IN_EV
            group["fermi"] = np.array([0.2])
    with tarfile.open(tmp_path / "Al-data.tgz", "w:gz") as tar:
        tar.add(tmp_path / "data-1.h5", "data/data-1.h5")
    made = build_small("ani-al", tmp_path, tmp_path / "out")
    assert made.parts["pbe"].splits == {"train": 3, "test": 1}
    frame = load_dataset(tmp_path / "out", split="test")[0]
    assert frame.energy == -24.6 * HARTREE_IN_EV
    np.testing.assert_allclose(frame.forces, pushes(crystal), rtol=1e-12)
    assert frame.structure.pbc.all()
    with h5py.File(tmp_path / "testset-0.h5", "a") as tests:
        tests["run/config3/forces"][...] *= -1
    with pytest.raises(DataError, match="close atoms attract each other"):
        build_small("ani-al", tmp_path, tmp_path / "again")
    assert not list((tmp_path / "again").iterdir())


def pushes(atoms: Any) -> np.ndarray:
    """Forces of a repulsion 1/r^6 between periodic atoms, eV/Å: what the sign is judged by."""
    vectors = atoms.get_all_distances(mic=True, vector=True)
    lengths = np.linalg.norm(vectors, axis=2) + np.eye(len(atoms)) * 1e9
    return -(6e3 * vectors / lengths[:, :, None] ** 8).sum(axis=1)


def test_comp6_from_its_layout(tmp_path: Path, snnp_data: Path) -> None:
    """The dimers of S66x8, written as upstream has them, come back as the numbers that were converted before."""
    path = snnp_data / "comp6-s66x8" / "data.xyz"
    (block,) = read_xyz(path)
    frames = list(block.checked()[:16])
    with h5py.File(tmp_path / "s66x8_wb97x6-31gd.h5", "w") as file:
        for name, rows in (("mol00", range(8)), ("mol01", range(8, 16))):
            group = file.create_group(f"s66x8/{name}")
            group["species"] = np.array(
                [b"O" if z == 8 else b"C" if z == 6 else b"H" for z in frames[rows[0]].structure.numbers]
            )
            group["coordinates"] = np.stack([frames[k].structure.positions for k in rows])
            group["energies"] = np.array([frames[k].energy for k in rows]) / HARTREE_IN_EV
            group["forces"] = -np.stack([frames[k].forces for k in rows]) / HARTREE_IN_EV
    made = build_small("comp6", tmp_path, tmp_path / "out")
    assert made.parts["wb97x_dz"].splits == {"test": 16}
    for one, other in zip(load_dataset(tmp_path / "out"), frames, strict=True):
        assert one.group == "s66x8"
        assert one.energy == pytest.approx(other.energy, abs=1e-9)
        np.testing.assert_allclose(one.forces, other.forces, atol=1e-12)
        np.testing.assert_array_equal(one.structure.numbers, other.structure.numbers)


def test_qm9_from_its_layout(tmp_path: Path) -> None:
    water = molecule("H2O")
    lines = ["3", "gdb 3\t" + "\t".join(["1.5"] * 9 + ["0.021", "-76.404702", "-76.4", "-76.3", "-76.2", "6.0"])]
    lines += [f"{s}\t{x}\t{y}\t{z}\t-2.1*^-6" for s, (x, y, z) in zip("OHH", water.positions, strict=True)]
    text = "\n".join([*lines, "1600.5\t3700.1\t3800.2", "O\tO", "InChI=1S/H2O/h1H2\tInChI=1S/H2O/h1H2"])
    with tarfile.open(tmp_path / "dsgdb9nsd.xyz.tar.bz2", "w:bz2") as tar:
        for k in range(120):
            member = tarfile.TarInfo(f"dsgdb9nsd_{k:06d}.xyz")
            member.size = len(text)
            tar.addfile(member, io.BytesIO(text.encode()))
    made = build_small("qm9", tmp_path, tmp_path / "out")
    assert sum(made.parts["b3lyp"].splits.values()) == 120
    assert set(made.parts["b3lyp"].splits) == {"train", "valid", "test"}
    dataset = load_dataset(tmp_path / "out")
    atoms = dataset[:1].to_ase()[0]
    assert atoms.get_potential_energy() == -76.404702 * HARTREE_IN_EV
    assert atoms.info["zpve"] == 0.021 * HARTREE_IN_EV
    assert (atoms.info["alpha"], atoms.info["smiles"]) == (1.5, "O")
    np.testing.assert_array_equal(atoms.arrays["mulliken_charges"], [-2.1e-6] * 3)
    np.testing.assert_allclose(atoms.positions, water.positions, rtol=1e-15)


def test_splits_by_name_are_fixed() -> None:
    """A change here would move molecules from training to test sets that others have used."""
    drawn = [split_by(f"C{k}H{2 * k}") for k in range(2000)]
    assert {name: drawn.count(name) for name in sorted(set(drawn))} == {"test": 81, "train": 1809, "valid": 110}
    assert [split_by(name) for name in ("H2O1", "C1H4", "C6H6")] == ["train", "train", "train"]


def test_sign_of_forces_is_seen(snnp_data: Path) -> None:
    """Data of hot and compressed matter push close atoms apart, whatever the set."""
    for name in ("mlearn/Si_test.xyz", "3bpa/train_300K.xyz", "al-warm-dense/test.xyz"):
        if not (snnp_data / name).is_file():
            continue
        blocks = list(read_xyz(snnp_data / name))
        assert repulsion(blocks) > 0.5
        turned = [Frames.concatenate([block]) for block in blocks]
        for block in turned:
            block.forces[...] *= -1
        assert repulsion(turned) < -0.5


def test_descriptions_are_checked(tmp_path: Path) -> None:
    tree = json.loads((DATASETS / "al-icams" / "manifest.json").read_text())
    with pytest.raises(DataError, match="redistributable cannot be true without a licence"):
        parse_description({**tree, "redistributable": True}, "here")
    with pytest.raises(DataError, match="here: colour: Extra inputs"):
        parse_description({**tree, "colour": "red"}, "here")
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(DataError, match="cannot be read as a description"):
        read_description(tmp_path / "manifest.json")
    for about in (None, [1], "text", {"dataset": 1}):
        (tmp_path / "manifest.json").write_text(json.dumps({"format": "snnp-manifest", "about": about}))
        with pytest.raises(DataError, match=r"manifest.json: description: Input should be a valid dictionary"):
            read_description(tmp_path / "manifest.json")


# HDF5 that points elsewhere, or claims more than it holds.


def _external_storage(file: Any, folder: Path) -> None:
    (folder / "secret").write_bytes(bytes(80))
    file.create_dataset("A/energies", (10,), dtype="f8", external=[(str(folder / "secret"), 0, 80)])


def _virtual(file: Any, folder: Path) -> None:
    layout = h5py.VirtualLayout((10,), dtype="f8")
    layout[:] = h5py.VirtualSource(str(folder / "other.h5"), "energies", shape=(10,))
    file.create_virtual_dataset("A/energies", layout)


def _loop(file: Any, folder: Path) -> None:
    file.create_group("A")
    file["A/B"] = file["A"]


def _many_roads(file: Any, folder: Path) -> None:
    for k in range(8):
        file.create_group(f"A{k}")
    for k in range(7):
        file[f"A{k}/left"] = file[f"A{k + 1}"]
        file[f"A{k}/right"] = file[f"A{k + 1}"]


def _long_texts(file: Any, folder: Path) -> None:
    file.create_dataset("A/species", data=["H" * 1000] * 3)


HDF5: dict[str, Callable[[Any, Path], Any]] = {
    "external storage": _external_storage,
    "a virtual dataset": _virtual,
    "an external link": lambda file, folder: file.__setitem__("A", h5py.ExternalLink(str(folder / "o.h5"), "/")),
    "a soft link": lambda file, folder: file.__setitem__("A", h5py.SoftLink("/")),
    "a loop": _loop,
    "many roads to one group": _many_roads,
    "numbers that are nowhere": lambda file, folder: file.create_dataset(
        "A/energies", (1 << 34,), dtype="f8", chunks=(1 << 20,)
    ),
    "texts without end": _long_texts,
    "references": lambda file, folder: file.create_dataset("A/species", (3,), dtype=h5py.ref_dtype),
    "groups in groups": lambda file, folder: file.create_group("/".join("A" * 100)),
}


@pytest.mark.parametrize("name", HDF5)
def test_hostile_hdf5(name: str, tmp_path: Path) -> None:
    path = tmp_path / "raw.h5"
    with h5py.File(path, "w") as file:
        HDF5[name](file, tmp_path)
    with pytest.raises(DataError, match="damaged, hostile, or not meant for this program"):
        list(hdf5(path, {"energies", "species"}))


def test_hdf5_of_many_claims(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each group stays below the limit of one, all together do not."""
    monkeypatch.setattr(recipes, "MOST_GROUP_BYTES", 1 << 20)
    path = tmp_path / "raw.h5"
    with h5py.File(path, "w") as file:
        for k in range(4):
            file.create_dataset(f"A{k}/energies", (1 << 16,), dtype="f8", chunks=(1 << 14,))
    with pytest.raises(DataError, match="far more than the file holds"):
        list(hdf5(path, {"energies"}))


@pytest.mark.parametrize("n_bytes", [0, 1, 100, 1000])
def test_truncated_hdf5(n_bytes: int, tmp_path: Path) -> None:
    path = tmp_path / "raw.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("A/energies", data=np.zeros(1000))
    path.write_bytes(path.read_bytes()[:n_bytes])
    with pytest.raises(DataError, match=r"raw\.h5"):
        list(hdf5(path, {"energies"}))
