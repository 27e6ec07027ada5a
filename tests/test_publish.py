"""Publishing a model: what it must state, its card, its pictures and provenance, and the one commit in the end."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
import yaml
from ase.build import bulk
from ase.calculators.lj import LennardJones
from ase.calculators.singlepoint import SinglePointCalculator
from hub_server import HubServer
from huggingface_hub import ModelCard
from typer.testing import CliRunner

from snnp import training
from snnp.cli.main import app
from snnp.errors import HubError, InputError
from snnp.hub import load_model, make_manifest, publish
from snnp.models import SplineNNP, save_model
from snnp.models.spline import special_cases
from snnp.publish import card_header, licence_id, prepare_model, publish_model
from snnp.structure import Structure

ABOUT = {
    "description": "argon for tests",
    "dataset": "Lennard-Jones crystals",
    "licence": "CC-BY-4.0",
    "level_of_theory": "Lennard-Jones",
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short training run on shaken argon crystals, with a test set."""
    folder = tmp_path_factory.mktemp("publish")
    frames = []
    for seed in range(20):
        atoms = bulk("Ar", a=5.3, cubic=True)
        atoms.set_cell(atoms.cell * np.random.default_rng(seed).uniform(0.95, 1.1), scale_atoms=True)
        atoms.rattle(0.1, seed=seed)
        atoms.calc = LennardJones(sigma=3.4, epsilon=0.0104, rc=6.0, smooth=True)
        results = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces()}
        atoms.calc = SinglePointCalculator(atoms, **results)
        frames.append(atoms)
    ase.io.write(folder / "train.xyz", frames[:16])
    ase.io.write(folder / "test.xyz", frames[16:])
    config = {
        "data": {"train": [str(folder / "train.xyz")], "valid": 0.2, "test": str(folder / "test.xyz")},
        "model": {
            "radial": {"n_filters": 6, "cutoff": 6.0, "intervals": 10},
            "angular": {"n_filters": 0},
            "network": None,
        },
        "optimiser": {"epochs": 4, "learning_rate": 0.05},
        "threads": 1,
        "metadata": ABOUT,
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    training.train(training.load_config(folder / "config.yaml"), folder / "run")
    return folder / "run"


@pytest.fixture(scope="module")
def prepared(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of its repository."""
    folder = tmp_path_factory.mktemp("prepared") / "files"
    prepare_model(run, "org/argon", folder)
    return folder


def test_repository_holds_what_the_format_says(prepared: Path) -> None:
    pictures = {"filters.png", "parity_energy.png", "parity_forces.png"}
    texts = {"README.md", "config.json", "manifest.json", "model.safetensors", "recipe.yaml"}
    assert {path.name for path in prepared.iterdir()} == texts | pictures
    card = (prepared / "README.md").read_text()
    assert all(f"]({name})" in card for name in pictures)
    assert "| test | 4 | " in card
    assert "Command: `snnp train recipe.yaml`." in card


def test_header_of_the_card(prepared: Path) -> None:
    data = ModelCard((prepared / "README.md").read_text()).data
    assert (data.license, data.library_name, data.pipeline_tag) == ("cc-by-4.0", "snnp", "graph-ml")
    assert {"snnp", "interatomic-potential", "Ar"} <= set(data.tags)
    about = load_model(prepared).metadata
    values = {each.metric_name: each.metric_value for each in data.eval_results}
    errors = about["errors"]["test"]
    assert values["energy MAE (meV/atom)"] == pytest.approx(errors["energy_mae_mev_per_atom"], abs=1e-5)
    assert values["force RMSE (eV/Å)"] == pytest.approx(errors["force_rmse_ev_per_angstrom"], abs=1e-5)
    assert {each.dataset_split for each in data.eval_results} == {"test"}


def test_provenance(prepared: Path, run: Path) -> None:
    known = load_model(prepared).metadata["provenance"]
    assert known["split_sha256"] == hashlib.sha256((run / "split.json").read_bytes()).hexdigest()
    data = run.parent / "train.xyz"
    assert known["datasets"] == [{"name": "train.xyz", "sha256": hashlib.sha256(data.read_bytes()).hexdigest()}]
    assert known["command"] == "snnp train recipe.yaml"
    assert "torch" in known["versions"]
    assert training.load_config(prepared / "recipe.yaml").metadata == ABOUT
    for name in ("README.md", "config.json"):
        assert str(run.parent) not in (prepared / name).read_text(), "paths of a machine are nobody's business"


def test_header_names_data_sets_and_base_model_on_the_hub() -> None:
    model = SplineNNP(special_cases.eam(("Cu",)))
    model.metadata = {
        "licence": "MIT",
        "provenance": {"datasets": [{"name": "org/data", "commit": "a" * 40}, {"name": "local.xyz"}]},
        "loaded_from": {"name": "org/teacher", "commit": "b" * 40},
    }
    header = yaml.safe_load(card_header("student", model).split("---\n")[1])
    assert header["datasets"] == ["org/data"]
    assert header["base_model"] == "org/teacher"
    assert "model-index" not in header


# What must be stated.


@pytest.mark.parametrize(
    "text, name",
    [
        ("MIT", "mit"),
        ("BSD-3-Clause (data set)", "bsd-3-clause"),
        ("CC BY 4.0", "cc-by-4.0"),
        ("CC-BY-SA-4.0", "cc-by-sa-4.0"),
        ("weights MIT, data CC0-1.0", "mit"),
        ("none stated upstream (both data sets)", None),
        ("permitted", None),
        ("", None),
        (None, None),
        (3, None),
    ],
)
def test_licences(text: Any, name: str | None) -> None:
    assert licence_id(text) == name


@pytest.fixture
def silent(tmp_path: Path) -> Path:
    """A model that states nothing."""
    return save_model(SplineNNP(special_cases.eam(("Cu",)), {"Cu": -3.5}, seed=1), tmp_path / "silent")


STATEMENTS: dict[str, Any] = {
    "licence": "mit",
    "reference_energies_from": {"Cu": "isolated atoms"},
    "dataset": "a set",
    "training_data": ["a.xyz"],
    "level_of_theory": "PBE",
}


def test_everything_that_is_missing_is_named_at_once(hub: HubServer, silent: Path) -> None:
    with pytest.raises(HubError) as caught:
        publish_model(silent, "org/silent")
    for words in ("licence (none is stated", "E0 (", "dataset provenance (the data set's name", "level of theory"):
        assert words in str(caught.value)
    assert hub.requests == []


@pytest.mark.parametrize(
    "key, words",
    [
        ("licence", "licence (none is stated"),
        ("reference_energies_from", "E0 ("),
        ("dataset", "dataset provenance (the data set's name"),
        ("training_data", "dataset provenance (files or data sets"),
        ("level_of_theory", "level of theory"),
    ],
)
def test_each_statement_is_needed(hub: HubServer, silent: Path, key: str, words: str) -> None:
    about = {name: value for name, value in STATEMENTS.items() if name != key}
    with pytest.raises(HubError) as caught:
        publish_model(silent, "org/silent", about=about)
    assert words in str(caught.value)
    assert str(caught.value).count("--set") == 1
    assert hub.repositories == {}


def test_units_are_needed(hub: HubServer, silent: Path) -> None:
    stored = json.loads((silent / "config.json").read_text())
    del stored["units"]
    (silent / "config.json").write_text(json.dumps({**stored, "format_version": 1}))
    with pytest.raises(HubError, match="does not state: units"):
        publish_model(silent, "org/silent", about=STATEMENTS)


def test_model_without_a_known_licence_is_refused(hub: HubServer, tmp_path: Path) -> None:
    model = load_model("snnp-al")
    model.metadata["licence"] = "none stated upstream (both data sets)"
    save_model(model, tmp_path / "al")
    with pytest.raises(HubError, match=r"'none stated upstream .*' is none that the Hub knows"):
        publish_model(tmp_path / "al", "org/al")


@pytest.mark.parametrize("name", ["snnp-cu", "snnp-3bpa", "snnp-shared6"])
def test_cards_of_bundled_models(name: str, tmp_path: Path) -> None:
    model = prepare_model(name, f"org/{name}", tmp_path / name)
    card = (tmp_path / name / "README.md").read_text()
    data = ModelCard(card).data
    assert data.license in ("bsd-3-clause", "mit")
    assert len(data.eval_results) >= 4
    assert f'SNNPCalculator("org/{name}")' in card
    assert model.metadata["provenance"]["command"] == f"python model_zoo/build.py {name}"


# The command.


def _run(*words: Any) -> Any:
    return CliRunner().invoke(app, ["publish", "model", *(str(word) for word in words)])


@pytest.fixture
def _no_compression(monkeypatch: pytest.MonkeyPatch) -> None:
    """A potential of a few epochs has holes, of which the tests of the doctor take care."""
    monkeypatch.setattr("snnp.doctor.examine.compression_scan", lambda *_: [])


@pytest.mark.usefixtures("_no_compression")
def test_dry_run_shows_everything_and_uploads_nothing(hub: HubServer, run: Path, tmp_path: Path) -> None:
    result = _run(run, "org/argon", "--dry-run", "--folder", tmp_path / "look", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert set(found["files"]) == {path.name for path in (tmp_path / "look").iterdir()}
    assert found["commit"] is None
    assert hub.requests == []


@pytest.mark.usefixtures("_no_compression")
def test_publication_on_the_command_line(hub: HubServer, run: Path) -> None:
    result = _run(run, "org/argon", "--private", "--set", "licence=mit", "--set", "limits=[nobody uses it]")
    assert result.exit_code == 0, result.output
    loaded = load_model("org/argon")
    crystal = Structure.from_ase(bulk("Ar", a=5.3, cubic=True))
    assert float(loaded.compute(crystal).energy) == float(load_model(run).compute(crystal).energy)
    commit = str(loaded.metadata["loaded_from"]["commit"])
    history = hub.repositories["model", "org/argon"].commits
    assert [(oid, message) for oid, message, _ in history[1:]] == [(commit, "argon: SplineNNP for Ar")]
    assert "model.safetensors" in result.stdout
    assert commit in result.stdout
    assert hub.repositories["model", "org/argon"].private
    found = hub.repositories["model", "org/argon"].files("main")
    assert found is not None
    card = found[1]["README.md"].decode()
    assert "license: mit" in card
    assert "- nobody uses it." in card


def test_what_the_doctor_finds_is_refused(hub: HubServer, tmp_path: Path) -> None:
    """Random weights and no repulsion: crystals of this model collapse."""
    config = special_cases.linear(("Cu",), n_radial=4, n_angular=2, cutoff=4.0)
    model = SplineNNP(config, {"Cu": -3.5}, seed=1)
    model.metadata = STATEMENTS
    with pytest.raises(
        HubError, match=r"cannot be published, the doctor finds: .*came as close as.*'snnp doctor model"
    ):
        publish_model(save_model(model, tmp_path / "rough"), "org/rough")
    assert hub.requests == []


@pytest.mark.parametrize("text", ["licence", "=mit", "a b=c", "key=[1, 2"])
def test_statements_that_are_none(silent: Path, text: str) -> None:
    result = _run(silent, "org/silent", "--set", text)
    assert result.exit_code == 1
    assert "--set" in result.stderr


def test_folder_that_is_taken(silent: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not empty"):
        publish_model(silent, "org/silent", folder=tmp_path)
    for name in ("silent", "org/silent@main", "org/a/b"):
        with pytest.raises(InputError, match="is no name of a repository"):
            publish_model(silent, name)


# Nothing that lies elsewhere is handed on, and nothing that is no statement.


def _plant(kind: str, path: Path, secret: Path) -> None:
    path.unlink(missing_ok=True)
    if kind == "link":
        path.symlink_to(secret)
    elif kind == "relative link":
        path.symlink_to(os.path.relpath(secret, path.parent))
    elif kind == "dangling link":
        path.symlink_to(secret / "nowhere")
    elif kind == "linked folder":
        path.symlink_to(secret.parent)
    else:
        os.mkfifo(path)


@pytest.mark.parametrize("kind", ["link", "relative link", "dangling link", "linked folder", "pipe"])
@pytest.mark.parametrize("name", ["notes.txt", "README.md"])
def test_links_do_not_lead_out_of_the_folder(
    hub: HubServer, prepared: Path, tmp_path: Path, kind: str, name: str
) -> None:
    folder, secret = tmp_path / "f", tmp_path / "elsewhere" / "secret.txt"
    shutil.copytree(prepared, folder)
    secret.parent.mkdir()
    secret.write_bytes((folder / "README.md").read_bytes())  # the same bytes, so that no checksum shows it
    _plant(kind, folder / name, secret)
    with pytest.raises(HubError, match=r"is a link|is no plain file"):
        make_manifest(folder, "model")
    if name == "README.md":  # which the manifest of the folder lists
        with pytest.raises(HubError, match=r"is a link|is no plain file"):
            publish("model", folder, "org/argon")
    assert not hub.repositories


@pytest.mark.parametrize("name", ["parity_energy.png", "config.yaml"])
def test_links_in_a_run_are_not_followed(run: Path, tmp_path: Path, name: str) -> None:
    copied = tmp_path / "run"
    shutil.copytree(run, copied)
    (tmp_path / "secret").write_text("secret")
    _plant("link", copied / name, tmp_path / "secret")
    with pytest.raises(HubError, match="is a link"):
        prepare_model(copied, "org/argon", tmp_path / "out")


@pytest.mark.parametrize("key", ["licence", "dataset", "level_of_theory"])
def test_statements_are_single_lines(run: Path, tmp_path: Path, key: str) -> None:
    for text in ("mit\nlicense: evil", "mit\x1b[2J", "mit\u202e"):
        with pytest.raises(HubError, match=rf"{key} \(must be one line"):
            prepare_model(run, "org/argon", tmp_path / "out", {key: text})


@pytest.mark.parametrize("text", ["made=2026-01-01", "a=2026-13-45", "a={1: &b [*b]}", "a=!!set {x}", "a=.inf"])
def test_statements_that_are_no_json(text: str) -> None:
    result = CliRunner().invoke(app, ["publish", "model", "snnp-si", "org/x", "--dry-run", "--set", text])
    assert result.exit_code == 1
    assert "--set" in result.stderr
