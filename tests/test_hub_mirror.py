"""Mirrors: what a machine with internet puts into a plain folder, a machine without it uses, with the same checks."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_server import HubServer
from huggingface_hub import constants

from snnp import hub as snnp_hub
from snnp.errors import HubError, InputError
from snnp.hub import add_to_mirror, load_model, publish, resolve
from snnp.models import SplineNNP, save_model
from snnp.models.spline import special_cases

CARD = b"---\nlicense: mit\n---\n"


@pytest.fixture
def commit(hub: HubServer, tmp_path: Path) -> str:
    """A model, published as org/copper with the tag v1."""
    model = SplineNNP(special_cases.linear(("Cu",), n_radial=2, n_angular=2, cutoff=4.0), {"Cu": -3.5}, seed=1)
    folder = save_model(model, tmp_path / "made")
    (folder / "README.md").write_bytes(CARD)
    snnp_hub.write_manifest(folder, snnp_hub.make_manifest(folder, "model"))
    done = publish("model", folder, "org/copper").commit
    assert done is not None
    hub.repositories["model", "org/copper"].tags["v1"] = done
    return done


@pytest.fixture
def mirror(tmp_path: Path, commit: str) -> Path:
    """The mirror of org/copper: its branch main and its tag v1."""
    for name in ("org/copper", "org/copper@v1"):
        assert add_to_mirror(tmp_path / "mirror", name)[1] == commit
    return tmp_path / "mirror"


@pytest.fixture
def island(hub: HubServer, mirror: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A machine without internet and without a cache, with the mirror."""
    shutil.rmtree(constants.HF_HUB_CACHE)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("SNNP_MIRROR", str(mirror))
    hub.requests.clear()
    yield hub
    assert hub.requests == []
    assert not Path(constants.HF_HUB_CACHE).exists()


@pytest.mark.parametrize("name", ["org/copper", "org/copper@main", "org/copper@v1"])
def test_models_load_from_the_mirror(island: HubServer, commit: str, name: str) -> None:
    loaded = load_model(name)
    assert loaded.metadata["loaded_from"]["source"] == "mirror"
    assert loaded.metadata["loaded_from"]["commit"] == commit
    assert load_model(f"org/copper@{commit}").elements == loaded.elements


def test_mirror_is_a_plain_folder(mirror: Path, commit: str) -> None:
    assert {path.relative_to(mirror).as_posix() for path in mirror.rglob("*") if path.is_file()} == {
        *(f"models/org/copper/refs/{name}" for name in ("main", "v1")),
        *(f"models/org/copper/{commit}/{name}" for name in ("README.md", "config.json", "manifest.json")),
        f"models/org/copper/{commit}/model.safetensors",
    }
    assert not any(path.is_symlink() for path in mirror.rglob("*"))


def test_mirror_can_be_moved_and_read_only(island: HubServer, mirror: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moved = mirror.rename(mirror.with_name("elsewhere"))
    monkeypatch.setenv("SNNP_MIRROR", str(moved))
    for path in (moved, *moved.rglob("*")):
        path.chmod(path.stat().st_mode & ~(stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH))
    assert load_model("org/copper").elements == ("Cu",)
    for path in (moved, *moved.rglob("*")):
        path.chmod(path.stat().st_mode | stat.S_IWUSR)


def test_damaged_mirror_is_noticed_and_mended(
    hub: HubServer, mirror: Path, commit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SNNP_MIRROR", str(mirror))
    weights = mirror / "models" / "org" / "copper" / commit / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(bytes(content))
    with pytest.raises(HubError, match=r"model\.safetensors has sha256 .*mirror it again with 'snnp mirror") as caught:
        resolve("org/copper")
    assert "Nothing was deleted" in str(caught.value)
    add_to_mirror(mirror, "org/copper")
    assert resolve("org/copper").source == "mirror"
    aside = [path for path in weights.parent.parent.iterdir() if path.name.endswith(".damaged")]
    assert [bytes(content)] == [(path / "model.safetensors").read_bytes() for path in aside]


def test_what_the_mirror_lacks_is_said(island: HubServer, mirror: Path) -> None:
    for name in ("org/other", "org/copper@v2"):
        with pytest.raises(HubError, match="HF_HUB_OFFLINE is set") as caught:
            resolve(name)
        assert f"the mirror {mirror} does not hold it" in str(caught.value)


def test_hub_is_asked_for_what_the_mirror_lacks(
    hub: HubServer, mirror: Path, commit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SNNP_MIRROR", str(mirror))
    hub.repositories["model", "org/copper"].tags["v2"] = commit
    assert resolve("org/copper").source == "mirror"
    assert resolve("org/copper@v2").source == "hub"
    assert resolve("org/copper", force=True).source == "hub"


@pytest.mark.parametrize("content", ["../../../../etc", "", "x" * 5000, "\0"])
def test_hostile_refs_lead_nowhere(island: HubServer, mirror: Path, content: str) -> None:
    (mirror / "models" / "org" / "copper" / "refs" / "main").write_text(content)
    with pytest.raises(HubError, match="does not hold it"):
        resolve("org/copper")


def test_mirror_that_is_no_folder(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SNNP_MIRROR", str(tmp_path / "nothing"))
    with pytest.raises(InputError, match=r"SNNP_MIRROR names .* which is no folder"):
        resolve("org/copper")
    assert resolve("snnp-si").source == "bundled"


@pytest.mark.parametrize("name", ["snnp-si", "./folder", "org/a/b"])
def test_only_repositories_are_mirrored(hub: HubServer, tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="is no name of the form org/name"):
        add_to_mirror(tmp_path / "mirror", name)
    assert not (tmp_path / "mirror").exists()
    assert "SNNP_MIRROR" in os.environ


@pytest.mark.parametrize("name", ["README.md", "model.safetensors"])
def test_links_in_a_mirror_are_refused(island: HubServer, mirror: Path, commit: str, tmp_path: Path, name: str) -> None:
    """A mirror holds files; what lies elsewhere with the same bytes today may be something else tomorrow."""
    path = mirror / "models" / "org" / "copper" / commit / name
    (tmp_path / "elsewhere").write_bytes(path.read_bytes())
    path.unlink()
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(HubError, match="is a link"):
        resolve("org/copper")


def test_links_out_of_the_cache_are_not_mirrored(hub: HubServer, commit: str, tmp_path: Path) -> None:
    folder = resolve("org/copper").folder
    (tmp_path / "elsewhere").write_bytes((folder / "README.md").read_bytes())
    (folder / "README.md").unlink()
    (folder / "README.md").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(HubError, match="leads out of"):
        add_to_mirror(tmp_path / "other", "org/copper")
    assert not list((tmp_path / "other").rglob("README.md"))
