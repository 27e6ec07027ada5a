"""Datasets: parquet in and out, views, batches in memory and from the file, conversion, training from either."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from typer.testing import CliRunner

import snnp
from snnp.cli.main import app
from snnp.data import Dataset, convert, load_dataset, read_frames
from snnp.data.frames import Frames
from snnp.data.storage.atoms import from_atoms, to_atoms
from snnp.data.write import parquet_writer
from snnp.errors import DataError, MissingDependencyError
from snnp.training import load_config
from snnp.training.problem import load_problem

sys.path.append(str(Path(__file__).resolve().parents[1] / "datasets"))
from recipes import hdf5

SIZES = [4, 9, 3, 4, 4, 9]


def images() -> list[Atoms]:
    """Copper with all labels, ethanol without forces, a molecule of gold in a wire without anything."""
    frames = []
    for k, size in enumerate(SIZES):
        if size == 4:
            atoms = bulk("Cu", cubic=True)
            atoms.rattle(0.05, seed=k)
            atoms.calc = EMT()
            atoms.get_potential_energy()
            atoms.get_stress()
        elif size == 9:
            atoms = molecule("CH3CH2OH")
            atoms.calc = SinglePointCalculator(atoms, energy=-1.0 - k / 3)
            atoms.info |= {"config_type": "free", "note": f"number {k}"}
        else:
            atoms = Atoms("Au3", positions=np.eye(3), cell=[5, 6, 7], pbc=(False, True, False))
        frames.append(atoms)
    return frames


def many(number: int) -> Frames:
    """Small molecules whose coordinates tell their rows."""
    positions = np.zeros((number, 3, 3))
    positions[:, :, 0] = np.arange(number)[:, None] + np.array([0.0, 0.2, 0.4])
    block = Frames.conformers(np.array([8, 1, 1]), positions, np.arange(number) * -1.0, positions * 0.5)
    return block.named([f"m#{k}" for k in range(number)])


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    path = tmp_path / "mixed.parquet"
    atoms = images()
    with parquet_writer(path, "EMT", "ASE") as writer:
        writer.add(from_atoms(atoms[:4], [f"mixed#{k}" for k in range(4)]), "train")
        writer.add(from_atoms(atoms[4:], [f"mixed#{k}" for k in range(4, 6)]), "test")
    return path


@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """1,000 frames in ten row groups."""
    monkeypatch.setattr("snnp.data.write._GROUP_ROWS", 100)
    path = tmp_path / "large.parquet"
    with parquet_writer(path, "none", "") as writer:
        writer.add(many(1000), "train")
    assert pq.read_metadata(path).num_row_groups == 10
    return path


def test_everything_comes_back(mixed: Path) -> None:
    dataset = load_dataset(mixed)
    assert dataset.splits == {"train": 4, "test": 2}
    assert (dataset.method, dataset.software, len(dataset)) == ("EMT", "ASE", 6)
    before = list(to_atoms(from_atoms(images(), [f"mixed#{k}" for k in range(6)])))
    for one, other in zip(before, dataset.to_ase(), strict=True):
        assert one == other  # numbers, positions, cell, pbc
        assert one.info == other.info
        results = [{} if atoms.calc is None else atoms.calc.results for atoms in (one, other)]
        assert set(results[0]) == set(results[1])
        for key, value in results[0].items():
            np.testing.assert_array_equal(value, results[1][key])
    frames = dataset.frames()
    assert [frame.n_atoms for frame in frames] == SIZES
    assert [frame.group for frame in frames] == [None, "free", None, None, None, "free"]
    assert [frame.energy is None for frame in frames] == [False, False, True, False, False, False]
    assert [frame.forces is None for frame in frames] == [False, True, True, False, False, True]
    assert frames[2].structure.pbc.tolist() == [[False, True, False]]


def test_the_file_is_what_colabfit_reads(mixed: Path) -> None:
    """Column names and types as in ColabFit's datasets on the Hub."""
    table = pq.read_table(mixed)
    assert table.schema.field("positions").type == pa.list_(pa.list_(pa.float64()))
    assert table.schema.field("atomic_numbers").type == pa.list_(pa.int32())
    row = table.slice(1, 1).to_pylist()[0]
    assert row["chemical_formula_hill"] == "C2H6O"
    assert (row["method"], row["software"], row["split"], row["nsites"]) == ("EMT", "ASE", "train", 9)
    assert row["labels"] == ["free"]
    assert row["atomic_forces"] is None
    assert json.loads(row["configuration_metadata"])["info"]["note"] == "number 1"
    assert pq.ParquetFile(mixed).metadata.row_group(0).column(0).compression == "ZSTD"
    assert json.loads(table.schema.metadata[b"snnp"])["units"]["energy"] == "eV"


def test_files_of_others_are_read(tmp_path: Path) -> None:
    """No split, no texts, 32-bit numbers, a whole file as one group: what other programs write."""
    path = tmp_path / "other.parquet"
    columns = {
        "atomic_numbers": [[1, 1], [2]],
        "positions": [[[0.0, 0, 0], [0, 0, 0.75]], [[1.0, 2, 3]]],
        "energy": pa.array([-1.5, None], pa.float32()),
        "cell": [None, [[3.0, 0, 0], [0, 3, 0], [0, 0, 3]]],
        "pbc": [[False] * 3, [True] * 3],
        "atomic_forces": [None, [[0.0, 0, 1]]],
        "configuration_metadata": ['{"temperature": 300}', None],
        "band_gap": [1.0, 2.0],
    }
    pq.write_table(pa.table(columns), path)
    dataset = load_dataset(path)
    assert dataset.splits == {"": 2}
    assert [frame.source for frame in dataset] == ["other.parquet#0", "other.parquet#1"]
    first, second = dataset.to_ase()
    assert (first.get_potential_energy(), first.info) == (-1.5, {"temperature": 300})
    np.testing.assert_array_equal(second.get_forces(), [[0, 0, 1]])
    assert second.cell.lengths().tolist() == [3, 3, 3]


def test_views(large: Path) -> None:
    dataset = load_dataset(large)
    energies = lambda view: [frame.energy for frame in view]  # noqa: E731
    assert dataset[-1].energy == -999.0
    assert energies(dataset[95:105]) == [-k for k in range(95, 105)]
    assert energies(dataset[::-300]) == [-999, -699, -399, -99]
    assert energies(dataset[[500, 3, 501, 3]]) == [-500, -3, -501, -3]
    assert energies(dataset[10:20][[1, 2]][::-1]) == [-12, -11]
    assert len(dataset[np.arange(1000) % 2 == 0]) == 500
    assert len(dataset[[]]) == 0
    assert list(dataset[5:5].batches()) == []
    assert [frame.source for frame in dataset[150:152]] == ["m#150", "m#151"]
    with pytest.raises(IndexError, match="has 1,000 frames, there is none at 1000"):
        dataset[1000]


@pytest.mark.parametrize("options", [{}, {"shuffle": 3, "buffer": 3}, {"shuffle": 4, "max_atoms": 50}])
def test_streaming_and_memory_give_the_same_batches(large: Path, options: dict[str, int]) -> None:
    dataset = load_dataset(large)[17:911]
    streamed = list(dataset.batches(32, **options))
    kept = list(dataset.in_memory().batches(32, **options))
    assert len(streamed) == len(kept)
    for one, other in zip(streamed, kept, strict=True):
        for name in ("energy", "forces", "stress", "rows"):
            torch.testing.assert_close(getattr(one, name), getattr(other, name), rtol=0, atol=0, equal_nan=True)
        assert torch.equal(one.structure.positions, other.structure.positions)
    rows = torch.cat([batch.rows for batch in streamed])
    assert sorted(rows.tolist()) == list(range(894))
    assert torch.equal(torch.cat([batch.energy for batch in streamed]), -(rows + 17.0))
    if "shuffle" in options:
        assert not torch.equal(rows, rows.sort().values)
        other = torch.cat([batch.rows for batch in dataset.batches(32, **{**options, "shuffle": 9})])
        assert not torch.equal(rows, other)
    if "max_atoms" in options:
        assert max(batch.structure.n_atoms for batch in streamed) <= 50


def test_batches_mark_what_is_missing(mixed: Path) -> None:
    (batch, rest) = load_dataset(mixed).batches(4, dtype=torch.float32)
    assert batch.structure.positions.dtype == torch.float32
    assert batch.structure.atoms_per_structure.tolist() == SIZES[:4]
    assert torch.isnan(batch.energy).tolist() == [False, False, True, False]
    assert torch.isnan(batch.forces).all(dim=1).tolist() == [False] * 4 + [True] * 12 + [False] * 4
    assert torch.isnan(batch.stress).all(dim=(1, 2)).tolist() == [False, True, True, False]
    assert rest.rows.tolist() == [4, 5]


def test_hand_over_to_hugging_face(mixed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    whole = load_dataset(mixed).to_hf()
    assert whole.num_rows == 6
    part = load_dataset(mixed, split="test").to_hf()
    assert part["configuration_id"][:] == ["mixed#4", "mixed#5"]
    np.testing.assert_array_equal(part[0]["positions"], load_dataset(mixed)[4].structure.positions)
    with pytest.raises(DataError, match=r"write\('file.parquet'\)"):
        load_dataset(mixed).in_memory().to_hf()


def test_extended_xyz_to_parquet_and_back(mixed: Path, tmp_path: Path) -> None:
    written = load_dataset(mixed).write(tmp_path / "a.xyz")
    assert convert({"train": [written]}, tmp_path / "b.parquet", method="EMT") == 6
    load_dataset(tmp_path / "b.parquet").write(tmp_path / "c.xyz")
    assert (tmp_path / "c.xyz").read_bytes() == written.read_bytes()
    assert [f.source for f in load_dataset(tmp_path / "b.parquet")] == [f"a.xyz#{k}" for k in range(6)]


def test_several_files_and_processes_give_the_same(tmp_path: Path) -> None:
    for name, rows in (("a", (0, 30)), ("b", (30, 50))):
        (tmp_path / name).mkdir()
        view_of(many(50)[slice(*rows)]).write(tmp_path / name / "x.xyz")
    files = {"train": [tmp_path / "a" / "x.xyz"], "test": [tmp_path / "b" / "x.xyz"]}
    for workers in (1, 2):
        convert(files, tmp_path / f"{workers}.parquet", method="none", workers=workers)
    one, two = (load_dataset(tmp_path / f"{workers}.parquet") for workers in (1, 2))
    assert one.splits == two.splits == {"train": 30, "test": 20}
    assert [f.source for f in one] == [f.source for f in two]
    assert one[0].source == "a/x.xyz#0"
    assert [f.energy for f in one] == [f.energy for f in two] == [-k for k in range(50)]


def view_of(block: Frames) -> Dataset:
    from snnp.data.storage.parquet import MemorySource

    return Dataset(MemorySource([block], "here"), np.arange(len(block)))


def test_training_takes_either_and_gets_the_same(tmp_path: Path, mixed: Path) -> None:
    """The same frames, split and E0 from extended XYZ as from parquet; and the splits of the dataset by themselves."""
    frames = [atoms for atoms in images() if len(atoms) == 4] * 4
    for k, atoms in enumerate(frames):
        atoms = frames[k] = atoms.copy()
        atoms.rattle(0.05, seed=k)
        atoms.calc = EMT()
        atoms.get_potential_energy()
    view_of(from_atoms(frames, [f"cu.xyz#{k}" for k in range(12)])).write(tmp_path / "cu.xyz")
    convert({"train": [tmp_path / "cu.xyz"]}, tmp_path / "cu.parquet", method="EMT")
    problems = [
        load_problem(load_config({"data": {"train": [str(tmp_path / name)], "valid": 0.3}, "seed": 5}))
        for name in ("cu.xyz", "cu.parquet")
    ]
    for part in ("train", "valid"):
        one, other = (getattr(problem.split, part) for problem in problems)
        assert [frame.source for frame in one] == [frame.source for frame in other]
        for first, second in zip(one, other, strict=True):
            assert first.energy == second.energy
            np.testing.assert_array_equal(first.forces, second.forces)
    assert problems[0].reference.energies == problems[1].reference.energies
    folder = load_config({"data": {"train": [str(mixed)], "test": [str(mixed)], "valid": [f"{mixed}:test"]}})
    split = load_problem(folder).split
    assert [frame.source for frame in split.test] == ["test:mixed#4", "test:mixed#5"]
    assert len(split.train) == 3 + 1  # the frame without labels is kept, as from a file


def test_read_frames_takes_mixtures(mixed: Path, tmp_path: Path) -> None:
    load_dataset(mixed, split="test").write(tmp_path / "more.xyz")
    frames = read_frames([f"{mixed}:train", tmp_path / "more.xyz"])
    assert len(frames) == 6
    assert len({frame.source for frame in frames}) == 6
    assert len(read_frames(mixed, split="test")) == 2
    assert len(read_frames(mixed, split="valid")) == 6  # which it does not have
    from snnp.data import Keys

    with pytest.raises(DataError, match="columns have fixed names"):
        read_frames(mixed, Keys(energy="mine"))


def test_folders_with_several_levels(tmp_path: Path, mixed: Path) -> None:
    (tmp_path / "set").mkdir()
    for name in ("dft", "ccsdt"):
        (tmp_path / "set" / f"{name}.parquet").write_bytes(mixed.read_bytes())
    with pytest.raises(DataError, match=r"several levels of theory, name one with part=\.\.\.: ccsdt, dft"):
        snnp.load_dataset(tmp_path / "set")
    with pytest.raises(DataError, match=r"no part 'dftt'; it has: ccsdt, dft\. Did you mean 'dft'"):
        snnp.load_dataset(tmp_path / "set", part="dftt")
    assert len(snnp.load_dataset(tmp_path / "set", split="test", part="dft")) == 2
    assert len(read_frames(f"{tmp_path / 'set'}:ccsdt/test")) == 2
    with pytest.raises(DataError, match=r"no split 'tests'; it has: train \(4\), test \(2\). Did you mean 'test'"):
        snnp.load_dataset(mixed, split="tests")


def test_levels_of_theory_are_not_mixed(mixed: Path, tmp_path: Path) -> None:
    table = pq.read_table(mixed)
    methods = pa.array(["EMT"] * 3 + ["DFT"] * 3)
    mixture = table.set_column(table.schema.get_field_index("method"), "method", methods)
    pq.write_table(mixture, tmp_path / "bad.parquet")
    with pytest.raises(DataError, match=r"mixes levels of theory \(DFT, EMT\)"):
        load_dataset(tmp_path / "bad.parquet")


def test_splits_may_be_interleaved(large: Path, tmp_path: Path) -> None:
    table = pq.read_table(large)
    names = pa.array(["train" if k % 3 else "test" for k in range(1000)])
    pq.write_table(table.set_column(1, "split", names), tmp_path / "woven.parquet", row_group_size=300)
    dataset = load_dataset(tmp_path / "woven.parquet", split="test")
    assert [frame.energy for frame in dataset[:3]] == [0, -3, -6]
    assert load_dataset(tmp_path / "woven.parquet").splits == {"test": 334, "train": 666}
    assert len(load_dataset(tmp_path / "woven.parquet")[:30].select("test")) == 10


def test_writing_is_whole_or_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"

    def write(*blocks: Frames, fail: bool = False) -> None:
        with parquet_writer(path, "x", "") as writer:
            for block in blocks:
                writer.add(block, "train")
            if fail:
                raise RuntimeError("half-way")

    with pytest.raises(RuntimeError, match="half-way"):
        write(many(10), fail=True)
    with pytest.raises(DataError, match="two frames have the id 'm#0'"):
        write(many(3), many(2))
    with pytest.raises(DataError, match="no frames to write"):
        write()
    with pytest.raises(DataError, match="needs its level of theory"), parquet_writer(path, " ", ""):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("missing, extra", [("pyarrow", "data"), ("datasets", "datasets"), ("h5py", "data")])
def test_missing_packages_are_named(mixed: Path, monkeypatch: pytest.MonkeyPatch, missing: str, extra: str) -> None:
    dataset = load_dataset(mixed)
    monkeypatch.setitem(sys.modules, missing, None)
    actions = {
        "pyarrow": lambda: load_dataset(mixed),
        "datasets": dataset.to_hf,
        "h5py": lambda: list(hdf5(mixed, {"energy"})),
    }
    with pytest.raises(MissingDependencyError, match=rf"pip install 'snnp\[{extra}\]'"):
        actions[missing]()


def test_commands(tmp_path: Path, mixed: Path) -> None:
    runner = CliRunner()
    source = load_dataset(mixed).write(tmp_path / "in.xyz")
    out = tmp_path / "out.parquet"
    words = ["convert", str(source), f"test={source}", str(out), "--method", "EMT"]
    assert "listed twice" in runner.invoke(app, words).output
    done = runner.invoke(app, ["convert", f"test={source}", str(out), "--method", "EMT", "--json"])
    assert json.loads(done.stdout)["frames"] == 6
    told = json.loads(runner.invoke(app, ["describe", str(out), "--json"]).stdout)["parts"]["out"]
    assert told["splits"] == {"test": 6}
    assert (told["energies"], told["forces"], told["stresses"]) == (5, 3, 3)
    assert (told["sizes"], told["elements"]) == ([3, 9], ["H", "C", "O", "Cu", "Au"])
    assert "level of theory" in runner.invoke(app, ["convert", str(source), str(tmp_path / "b.parquet")]).output
    assert "no ending that is known" in runner.invoke(app, ["convert", str(source), str(tmp_path / "a.cif")]).output
