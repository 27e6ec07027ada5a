"""The commands of the Hub, and every other command with a name on the Hub."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import ase.io
import pytest
from ase.build import bulk
from hub_server import Fault, HubServer
from typer.testing import CliRunner, Result

from snnp import hub as snnp_hub
from snnp.cli.main import app
from snnp.hub import load_model, publish
from snnp.models import SplineNNP, save_model
from snnp.models.spline import special_cases

CARD = b"---\nlicense: mit\ntags:\n- snnp\n---\n"


@pytest.fixture
def commit(hub: HubServer, tmp_path: Path) -> str:
    """A model, published as org/copper."""
    model = SplineNNP(special_cases.linear(("Cu",), n_radial=2, n_angular=2, cutoff=4.0), {"Cu": -3.5}, seed=1)
    folder = save_model(model, tmp_path / "made")
    (folder / "README.md").write_bytes(CARD)
    snnp_hub.write_manifest(folder, snnp_hub.make_manifest(folder, "model"))
    done = publish("model", folder, "org/copper").commit
    assert done is not None
    return done


def _run(*words: Any) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def _json(*words: Any) -> Any:
    result = _run(*words, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_pull(hub: HubServer, commit: str) -> None:
    (found,) = _json("pull", "org/copper")
    assert found["commit"] == commit
    assert (Path(found["folder"]) / "model.safetensors").is_file()
    assert found["bytes"] == sum(path.stat().st_size for path in Path(found["folder"]).iterdir())
    shown = _run("pull", f"org/copper@{commit}", "--force")
    assert shown.exit_code == 0
    assert commit in shown.stdout


def test_mirror(hub: HubServer, commit: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (found,) = _json("mirror", tmp_path / "mirror", "org/copper")
    assert found["commit"] == commit
    shown = _run("mirror", tmp_path / "mirror", "org/copper")
    assert f"SNNP_MIRROR={tmp_path / 'mirror'}" in shown.stderr
    monkeypatch.setenv("SNNP_MIRROR", str(tmp_path / "mirror"))
    assert _json("info", "org/copper")["source"] == "mirror"


def test_info_shows_the_commit(hub: HubServer, commit: str) -> None:
    found = _json("info", "org/copper")
    assert (found["source"], found["commit"], found["elements"]) == ("hub", commit, ["Cu"])
    assert commit in _run("info", "org/copper").stdout


def test_remote_listing(hub: HubServer, commit: str) -> None:
    assert [(each["name"], each["commit"]) for each in _json("ls", "--remote")] == [("org/copper", commit)]
    assert "org/copper" in _run("ls", "--remote", "--owner", "org").stdout
    assert "nothing with the tag 'snnp' of nobody" in _run("ls", "--remote", "--owner", "nobody").stderr
    assert _run("ls", "--owner", "org").exit_code == 1


def test_commands_report_what_they_used(hub: HubServer, commit: str, tmp_path: Path) -> None:
    """Records of runs name the commit, whatever the user typed."""
    from ase.calculators.singlepoint import SinglePointCalculator

    atoms = bulk("Cu", cubic=True)
    atoms.calc = SinglePointCalculator(atoms, energy=-14.0, forces=0.0 * atoms.positions)
    ase.io.write(tmp_path / "one.xyz", atoms)
    pinned = f"org/copper@{commit}"
    assert _json("evaluate", "org/copper", tmp_path / "one.xyz")["model"] == pinned
    assert _json("relax", "org/copper", "fcc:Cu:2x2x2", "--steps", 3)["model"] == pinned
    outputs = ["--trajectory", tmp_path / "md.xyz", "--log", tmp_path / "md.csv", "--plot", tmp_path / "md.png"]
    outputs += ["--checkpoint", tmp_path / "md.npz"]
    found = _json("md", "org/copper", "fcc:Cu:2x2x2", "--steps", 2, "--engine", "ase", *outputs)
    assert found["model"] == pinned


def test_plugins_take_names_on_the_hub(hub: HubServer, commit: str) -> None:
    from snnp_ase import SNNPCalculator
    from snnp_openmm.source import ModelSource

    atoms = bulk("Cu", cubic=True)
    atoms.calc = SNNPCalculator("org/copper")
    energy = atoms.get_potential_energy()
    source = ModelSource("org/copper")
    assert f"org/copper@{commit}".encode() in pickle.dumps(source)
    hub.requests.clear()
    again = pickle.loads(pickle.dumps(source))
    assert again.model.metadata["loaded_from"]["commit"] == commit
    assert hub.requests == []
    atoms.calc = SNNPCalculator(again.model)
    assert atoms.get_potential_energy() == energy


def test_errors_are_one_line(hub: HubServer, commit: str) -> None:
    for words in (["pull", "org/coper"], ["md", "org/coper", "fcc:Cu:2x2x2"], ["pull", "org/copper@mian"]):
        result = _run(*words)
        assert result.exit_code == 1
        assert result.stderr.startswith("error: ")
        assert len(result.stderr.strip().splitlines()) == 1
        assert "Did you mean" in result.stderr


def test_model_of_the_hub_keeps_its_origin_when_saved(hub: HubServer, commit: str, tmp_path: Path) -> None:
    save_model(load_model("org/copper"), tmp_path / "kept")
    assert load_model(tmp_path / "kept").metadata["loaded_from"]["commit"] == commit


# What stands in the place of a Hub, and tokens that are none.

PAGES = {
    "a login page": (b"<!DOCTYPE html><title>Log in\x1b[2J</title>", 200),
    "other JSON": (b'{"a": 1}', 200),
    "a list": (b"[1]", 200),
    "nothing": (b"", 200),
    "a page instead of an error": (b"<html>\x1b[31m", 404),
}


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize("words", [["pull", "org/copper"], ["ls", "--remote"], ["describe", "org/set"]])
def test_a_page_in_place_of_the_hub(hub: HubServer, name: str, words: list[str]) -> None:
    body, status = PAGES[name]
    hub.faults.append(Fault("GET", ".", times=1000, status=status, change=lambda _: body))
    done = _run(*words)
    assert done.exit_code == 1
    assert done.stderr.count("\n") == 1
    assert "unexpected" not in done.stderr
    assert "\x1b" not in done.stderr


@pytest.mark.parametrize("token", ["hf_geheim und mehr", "hf_gehéim", "hf_geheim\x01", "hf_geheim\tx", "geheim" * 2000])
def test_junk_for_a_token(hub: HubServer, monkeypatch: pytest.MonkeyPatch, token: str) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    for words in (["pull", "org/copper"], ["ls", "--remote"]):
        done = _run(*words)
        assert done.exit_code == 1
        assert done.stderr.count("\n") == 1
        assert "set HF_TOKEN again" in done.stderr
        assert "geh" not in done.output
    assert hub.requests == []
