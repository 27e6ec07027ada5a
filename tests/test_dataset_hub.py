"""Datasets on the Hub of the loopback: published, fetched, checked, opened, trained on; refused where they must be."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ase.build import bulk
from ase.calculators.emt import EMT
from hub_server import Fault, HubServer
from typer.testing import CliRunner

import snnp
from snnp.cli.main import app
from snnp.data import Dataset, convert, dataset_records, read_frames
from snnp.data.storage.atoms import from_atoms
from snnp.data.storage.parquet import MemorySource
from snnp.errors import DataError, HubError, InputError
from snnp.hub import add_to_mirror, make_manifest, write_manifest
from snnp.publish import publish_dataset
from snnp.training import load_config
from snnp.training.problem import build_model, load_problem

ABOUT = {"title": "Copper", "summary": "Rattled crystals.", "origin": "EMT of ASE", "licence": "CC-BY-4.0"}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with twelve crystals in two splits."""
    folder = tmp_path_factory.mktemp("made")
    images = []
    for k in range(12):
        atoms = bulk("Cu", cubic=True)
        atoms.rattle(0.02 + 0.01 * k, seed=k)
        atoms.calc = EMT()
        atoms.get_potential_energy()
        images.append(atoms)
    for name, part in (("a", images[:8]), ("b", images[8:])):
        block = from_atoms(part, [f"{name}#{k}" for k in range(len(part))])
        Dataset(MemorySource([block], name), np.arange(len(block))).write(folder / f"{name}.xyz")
    files = {"train": [folder / "a.xyz"], "test": [folder / "b.xyz"]}
    convert(files, folder / "emt.parquet", method="EMT", software="ASE")
    for name in ("a.xyz", "b.xyz"):
        (folder / name).unlink()
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    copy = tmp_path / "copper"
    copy.mkdir()
    (copy / "emt.parquet").write_bytes((made / "emt.parquet").read_bytes())
    return copy


def test_published_and_opened_by_name(hub: HubServer, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = publish_dataset(folder, "org/copper", dry_run=True, about=ABOUT)
    assert set(plan.files) == {"README.md", "emt.parquet", "manifest.json"}
    assert plan.commit is None
    done = publish_dataset(folder, "org/copper")  # the manifest now holds the statements
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert "license: cc-by-4.0" in text
    assert "| `emt` | 12 | 4 | Cu | energies, forces, stresses | train 8, test 4 |" in text
    dataset = snnp.load_dataset("org/copper", split="train")
    assert (len(dataset), dataset.method) == (8, "EMT")
    local = snnp.load_dataset(folder)
    for one, other in zip(snnp.load_dataset(f"org/copper@{done.commit}"), local, strict=True):
        assert one.energy == other.energy
        np.testing.assert_array_equal(one.forces, other.forces)
    assert len(read_frames("org/copper:test")) == 4
    assert len(read_frames(f"org/copper@{done.commit}:emt/test")) == 4
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert len(snnp.load_dataset("org/copper")) == 12


def test_a_run_knows_the_commit_of_its_data(hub: HubServer, folder: Path) -> None:
    commit = publish_dataset(folder, "org/copper", about=ABOUT, accept_findings=True).commit
    tree = {"data": {"train": ["org/copper"], "test": ["org/copper"], "valid": 0.25}}
    config = load_config({**tree, "model": {"elements": ["Cu"]}})
    problem = load_problem(config)
    assert (len(problem.split.train) + len(problem.split.valid), len(problem.split.test)) == (8, 4)
    (record,) = build_model(config, problem).metadata["datasets"]
    assert (record["name"], record["commit"]) == ("org/copper", commit)
    assert dataset_records(["train.xyz", str(folder)]) == []


def test_mirrors_hold_datasets(hub: HubServer, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish_dataset(folder, "org/copper", about=ABOUT, accept_findings=True)
    add_to_mirror(tmp_path / "mirror", "org/copper", "dataset")
    hub.clear()
    monkeypatch.setenv("SNNP_MIRROR", str(tmp_path / "mirror"))
    assert len(snnp.load_dataset("org/copper", split="test")) == 4


def test_what_must_not_or_cannot_be_published(hub: HubServer, folder: Path) -> None:
    def refused(match: str, **about: str | None) -> None:
        with pytest.raises(HubError, match=match):
            publish_dataset(folder, "org/x", about=about)

    refused("does not state: title, summary, origin, licence")
    refused("does not state: origin", title="T", summary="S", licence="mit")
    refused("'free' is no licence that the Hub knows", **{**ABOUT, "licence": "free"})
    with pytest.raises(InputError, match="'colour' is no statement"):
        publish_dataset(folder, "org/x", about={"colour": "red"})
    with pytest.raises(InputError, match="no name of a repository"):
        publish_dataset(folder, "org/x@v1", about=ABOUT)
    publish_dataset(folder, "org/x", about=ABOUT, dry_run=True)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["about"]["dataset"] |= {"licence": None, "redistributable": False}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(HubError, match="upstream states no licence, so nobody may hand the data on"):
        publish_dataset(folder, "org/x")
    (folder / "manifest.json").unlink()
    table = pq.read_table(folder / "emt.parquet")
    pq.write_table(table.replace_schema_metadata(None), folder / "emt.parquet")
    refused("its units are not stated", **ABOUT)
    assert not [request for request in hub.requests if request.method == "POST"]


def test_the_doctor_looks_before(hub: HubServer, folder: Path) -> None:
    """The same frames in train and test."""
    table = pq.read_table(folder / "emt.parquet")
    columns = {name: table[name].combine_chunks() for name in table.column_names}
    columns["split"] = pa.array(["test"] * 12)
    columns["configuration_id"] = pa.array([f"again#{k}" for k in range(12)])
    both = pa.concat_tables([table, pa.table(columns, schema=table.schema)])
    pq.write_table(both, folder / "emt.parquet")
    with pytest.raises(HubError, match="the doctor finds leakage"):
        publish_dataset(folder, "org/x", about=ABOUT)
    assert publish_dataset(folder, "org/x", about=ABOUT, accept_findings=True).commit is not None


def test_a_bomb_on_the_hub(hub: HubServer, tmp_path: Path) -> None:
    """Checksums fit, for its owner made them; it is refused all the same, and nothing of it is unpacked."""
    rows = 1_100_000
    zeros = np.zeros(rows, dtype=np.int32)
    columns = {"atomic_numbers": pa.array([[1]]).take(zeros), "positions": pa.array([[[0.0, 0, 0]]]).take(zeros)}
    bad = tmp_path / "bad"
    bad.mkdir()
    pq.write_table(pa.table(columns), bad / "data.parquet", compression="zstd", row_group_size=rows)
    (bad / "README.md").write_text("---\nlicense: mit\n---\n")
    write_manifest(bad, make_manifest(bad, "dataset"))
    hub.add_commit("dataset", "org/bad", {path.name: path.read_bytes() for path in bad.iterdir()})
    with pytest.raises(DataError, match="rows in row group 0, more than"):
        snnp.load_dataset("org/bad")


def test_a_tampered_file(hub: HubServer, folder: Path) -> None:
    publish_dataset(folder, "org/copper", about=ABOUT, accept_findings=True)
    hub.faults.append(Fault("GET", "^/store/", change=lambda body: b"PAR2" + body[4:]))
    with pytest.raises(HubError, match=r"emt\.parquet has sha256"):
        snnp.load_dataset("org/copper")


def test_commands(hub: HubServer, folder: Path) -> None:
    runner = CliRunner()
    words = ["publish", "dataset", str(folder), "org/copper", "--accept-findings"]
    words += [word for key, value in ABOUT.items() for word in ("--set", f"{key}={value}")]
    done = runner.invoke(app, [*words, "--json"])
    commit = json.loads(done.stdout)["commit"]
    told = json.loads(runner.invoke(app, ["describe", "org/copper", "--json"]).stdout)
    assert told["commit"] == commit
    assert (told["licence"], told["parts"]["emt"]["splits"]) == ("cc-by-4.0", {"train": 8, "test": 4})
    assert "Rattled crystals" in runner.invoke(app, ["describe", "org/copper"]).stdout
    missing = runner.invoke(app, ["describe", "org/coper"])
    assert missing.exit_code == 1
