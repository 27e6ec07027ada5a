"""The real client of the Hub against a server on the loopback: publish, pull, and all that goes wrong between."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from ase.build import bulk
from hub_server import Fault, HubServer
from huggingface_hub import constants

from snnp import hub as snnp_hub
from snnp.errors import HubError, InputError, ModelFileError
from snnp.hub import load_model, publish, resolve
from snnp.hub.names import Kind
from snnp.models import SplineNNP, save_model
from snnp.models.spline import special_cases
from snnp.structure import Structure

CARD = b"---\nlicense: mit\ntags:\n- snnp\n---\n# A model\n"
SNNP = str(Path(sys.executable).with_name("snnp"))
CRYSTAL = Structure.from_ase(bulk("Cu", cubic=True) * (2, 1, 1))


@pytest.fixture(scope="module")
def model() -> SplineNNP:
    made = SplineNNP(
        special_cases.s_nnp(("Cu",), n_radial=2, n_angular=2, cutoff=4.0, hidden=(4,)), {"Cu": -3.5}, seed=1
    )
    made.metadata = {"licence": "MIT", "dataset": "none"}
    return made


@pytest.fixture
def folder(model: SplineNNP, tmp_path: Path) -> Path:
    """A model folder with card and manifest."""
    made = save_model(model, tmp_path / "made")
    (made / "README.md").write_bytes(CARD)
    snnp_hub.write_manifest(made, snnp_hub.make_manifest(made, "model"))
    return made


@pytest.fixture
def commit(hub: HubServer, folder: Path) -> str:
    """The same, published as org/copper."""
    done = publish("model", folder, "org/copper")
    assert done.commit is not None
    hub.requests.clear()
    return done.commit


def _refused(name: str, kind: Kind = "model") -> str:
    """The message of the error, which is one line."""
    with pytest.raises(HubError) as caught:
        resolve(name, kind)
    message = str(caught.value)
    assert "\n" not in message
    return message


def _cache() -> Path:
    return Path(constants.HF_HUB_CACHE)


def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


# The straight way.


def test_published_and_pulled_model_gives_the_same_numbers(hub: HubServer, model: SplineNNP, commit: str) -> None:
    loaded = load_model("org/copper")
    ours, theirs = model.compute(CRYSTAL, stress=True), loaded.compute(CRYSTAL, stress=True)
    assert float(ours.energy) == float(theirs.energy)
    for name in ("forces", "stress"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))
    assert loaded.metadata["loaded_from"] == {
        "name": "org/copper",
        "source": "hub",
        "revision": "main",
        "commit": commit,
    }
    assert loaded.metadata["licence"] == "MIT"


def test_publication_is_one_commit(hub: HubServer, commit: str) -> None:
    history = hub.repositories["model", "org/copper"].commits
    assert [message for _, message, _ in history] == ["initial commit", "Publish model with snnp"]
    assert history[-1][0] == commit
    assert set(history[-1][2]) == {".gitattributes", "README.md", "config.json", "manifest.json", "model.safetensors"}


def test_next_publication_removes_what_it_no_longer_holds_and_nothing_else(
    hub: HubServer, folder: Path, commit: str
) -> None:
    repository = hub.repositories["model", "org/copper"]
    found = repository.files("main")
    assert found is not None
    repository.commit({**found[1], "notes-of-the-user.txt": b"keep"}, "by hand")
    (folder / "training.txt").write_text("new")
    (folder / "README.md").write_bytes(CARD + b"changed\n")
    snnp_hub.write_manifest(folder, snnp_hub.make_manifest(folder, "model"))
    publish("model", folder, "org/copper")
    (folder / "training.txt").unlink()
    snnp_hub.write_manifest(folder, snnp_hub.make_manifest(folder, "model"))
    last = publish("model", folder, "org/copper").commit
    found = repository.files(str(last))
    assert found is not None
    assert found[1]["notes-of-the-user.txt"] == b"keep"
    assert "training.txt" not in found[1]
    assert found[1]["README.md"].endswith(b"changed\n")
    assert len(repository.commits) == 5


def test_second_load_asks_for_the_commit_only_and_a_pinned_one_for_nothing(hub: HubServer, commit: str) -> None:
    load_model("org/copper")
    hub.requests.clear()
    load_model("org/copper")
    assert [(r.method, r.path) for r in hub.requests] == [("GET", "/api/models/org/copper")]
    hub.requests.clear()
    assert load_model(f"org/copper@{commit}").metadata["loaded_from"]["commit"] == commit
    assert hub.requests == []


def test_branches_tags_and_old_commits(hub: HubServer, folder: Path, commit: str) -> None:
    hub.repositories["model", "org/copper"].tags["v1.0"] = commit
    (folder / "README.md").write_bytes(CARD + b"second\n")
    snnp_hub.write_manifest(folder, snnp_hub.make_manifest(folder, "model"))
    second = publish("model", folder, "org/copper").commit
    assert resolve("org/copper").commit == second
    for name in ("org/copper@v1.0", f"org/copper@{commit}"):
        found = resolve(name)
        assert found.commit == commit
        assert (found.folder / "README.md").read_bytes() == CARD
        assert found.pinned == f"org/copper@{commit}"
    assert resolve("org/copper", revision="v1.0").commit == commit


def test_files_that_the_manifest_does_not_list_are_not_fetched(hub: HubServer, commit: str) -> None:
    repository = hub.repositories["model", "org/copper"]
    found = repository.files("main")
    assert found is not None
    repository.commit({**found[1], "pytorch_model.bin": b"\x80\x04."}, "by hand")
    folder = resolve("org/copper").folder
    assert not (folder / "pytorch_model.bin").exists()
    assert hub.seen("GET", "pytorch_model") == []


def test_datasets_have_their_own_names(hub: HubServer, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "train.parquet").write_bytes(b"PAR1 and so on" * 100)
    (data / "README.md").write_bytes(CARD)
    snnp_hub.write_manifest(data, snnp_hub.make_manifest(data, "dataset", about={"n_frames": 3}))
    commit = publish("dataset", data, "org/frames").commit
    found = resolve("org/frames", "dataset")
    assert found.commit == commit
    assert (found.folder / "train.parquet").read_bytes() == (data / "train.parquet").read_bytes()
    assert snnp_hub.read_manifest(found.folder, "dataset").about == {"n_frames": 3}
    assert "There is a dataset of that name" in _refused("org/frames")


def test_dry_run_asks_nothing(hub: HubServer, folder: Path) -> None:
    plan = publish("model", folder, "org/copper", dry_run=True)
    assert plan.commit is None
    assert plan.files["model.safetensors"] == (folder / "model.safetensors").stat().st_size
    assert hub.requests == []


def test_listing(hub: HubServer, commit: str) -> None:
    hub.add_commit("model", "other/thing", {"README.md": b"no tag"})
    hub.add_commit("model", "other/potential", {"README.md": CARD})
    names = {each.name: each for each in snnp_hub.list_repositories("model")}
    assert set(names) == {"org/copper", "other/potential"}
    assert names["org/copper"].commit == commit
    assert [each.name for each in snnp_hub.list_repositories("model", owner="org")] == ["org/copper"]


# Names that are none.


def test_missing_repository_says_what_is_near(hub: HubServer, commit: str) -> None:
    message = _refused("org/coper")
    assert "there is no model 'org/coper'" in message
    assert "Did you mean 'org/copper'?" in message


def test_path_with_a_typing_error_says_which_folder_is_near(
    hub: HubServer, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    shutil.copytree(folder, tmp_path / "runs" / "mine")
    assert resolve("runs/mine").source == "folder"
    message = _refused("runs/mime")
    assert "there is no file or folder 'runs/mime'. Did you mean 'runs/mine'" in message


def test_a_path_that_is_not_there_is_no_name_on_the_hub(
    hub: HubServer, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    before = len(hub.requests)
    assert _refused("runs/mine").startswith("there is no file or folder 'runs/mine'.")
    assert len(hub.requests) == before
    assert "there is no model 'runs/mine'" in _refused("runs/mine@main")  # which says that the Hub is meant
    assert _refused("nowhere/mine").startswith("there is no file or folder 'nowhere/mine'. As the name of ")
    for name in ("runs/mine@v1", "runs/a@b c", "user@host.org"):
        shutil.copytree(folder, tmp_path / name)
        assert (resolve(name).source, resolve(name).name) == ("folder", name)


def test_missing_revision_says_what_there_is(hub: HubServer, commit: str) -> None:
    assert "no revision 'mian'. Did you mean 'main'?" in _refused("org/copper@mian")
    assert "no revision 'v9'. It has main." in _refused("org/copper@v9")
    assert "Commit hashes must be given in full." in _refused(f"org/copper@{commit[:7]}")
    assert "no revision" in _refused(f"org/copper@{'0' * 40}")


@pytest.mark.parametrize("name", ["org/a@", "org/a@../x", "org/a@-x", "org/a@x y", "org/a@" + "x" * 300])
def test_revisions_that_are_none(hub: HubServer, name: str) -> None:
    with pytest.raises(InputError, match="is no revision"):
        resolve(name)
    assert hub.requests == []


@pytest.mark.parametrize(
    "name", ["../x", "org/../x", "a/b/c", "org/na--me", "org/ñ", "-o/x", "org/.x", "/org/x", "org/"]
)
def test_names_that_are_none_are_not_asked_for(hub: HubServer, name: str) -> None:
    with pytest.raises(ModelFileError, match=r"there is no model named|holds no config\.json"):
        resolve(name)
    assert hub.requests == []


def test_bundled_models_have_no_revisions(hub: HubServer) -> None:
    assert resolve("snnp-si").source == "bundled"
    with pytest.raises(InputError, match="has no revisions"):
        resolve("snnp-si", revision="main")
    with pytest.raises(InputError, match="one revision and revision='b' another"):
        resolve("org/x@a", revision="b")


def test_repository_of_somebody_else(hub: HubServer) -> None:
    hub.add_commit("model", "org/bert", {"config.json": b"{}", "model.safetensors": b"x"})
    assert "has no manifest.json, so it is no model published by snnp" in _refused("org/bert")


# Tokens.


def test_wrong_token(hub: HubServer, commit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_expired")
    message = _refused("org/copper")
    assert "does not accept your token (401)" in message
    assert "hf_expired" not in message


def test_wrong_token_when_publishing(hub: HubServer, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_expired")
    with pytest.raises(HubError, match=r"does not accept your token \(401\)"):
        publish("model", folder, "org/copper")
    monkeypatch.setenv("HF_TOKEN", "hf_reader")
    with pytest.raises(HubError, match=r"your token may not write to org/copper \(403\)"):
        publish("model", folder, "org/copper")
    assert hub.repositories == {}


def test_private_repositories_need_their_owner(hub: HubServer, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish("model", folder, "org/secret", private=True)
    assert hub.repositories["model", "org/secret"].private
    monkeypatch.setenv("HF_TOKEN", "hf_reader")
    assert "that you may read" in _refused("org/secret")
    monkeypatch.setenv("HF_TOKEN", "")
    assert "log in with 'hf auth login'" in _refused("org/secret")
    monkeypatch.setenv("HF_TOKEN", "hf_writer")
    assert resolve("org/secret").commit is not None


# Bad days of the server.


@pytest.mark.parametrize("path", [r"^/api/models/org/copper$", r"/tree/", r"/resolve/.*manifest", r"^/store/"])
def test_two_errors_of_the_server_are_overcome(hub: HubServer, commit: str, path: str) -> None:
    fault = Fault("GET", path, times=2, status=500)
    hub.faults.append(fault)
    assert resolve("org/copper").commit == commit
    assert fault.times == 0


def test_server_that_stays_broken(hub: HubServer, commit: str) -> None:
    hub.faults.append(Fault("GET", r"^/api/models/org/copper$", times=99, status=503))
    message = _refused("org/copper")
    assert "answered 503" in message
    assert "snnp mirror" in message


def test_broken_connection_is_resumed_where_it_broke(
    hub: HubServer, commit: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 64)  # what is smaller than a chunk is not kept
    hub.faults.append(Fault("GET", r"^/store/", drop_after=640))
    found = resolve("org/copper")
    assert (found.folder / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    first, second = hub.seen("GET", "^/store/")
    assert first.headers.get("Range") is None
    assert second.headers["Range"] == "bytes=640-"


def test_pull_that_was_killed_goes_on_with_what_is_missing(hub: HubServer, commit: str) -> None:
    hub.faults.append(Fault("GET", r"^/store/", wait=30.0))
    with subprocess.Popen([SNNP, "pull", "org/copper"], env=os.environ) as process:
        deadline = time.monotonic() + 60.0
        while not (hub.seen("GET", r"^/store/") and hub.seen("GET", r"/resolve/.*README")):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        time.sleep(0.3)  # the small files are written
        process.send_signal(signal.SIGKILL)
    hub.requests.clear()
    hub.faults.clear()
    assert resolve("org/copper").commit == commit
    assert [r.path.rpartition("/")[2] for r in hub.seen("GET", "/resolve/")] == []
    assert len(hub.seen("GET", "^/store/")) == 1


def test_two_processes_at_once(hub: HubServer, commit: str) -> None:
    hub.faults.append(Fault("GET", r"^/store/", times=2, wait=0.5))
    command = [SNNP, "pull", "org/copper", "--json"]
    with (
        subprocess.Popen(command, env=os.environ, stdout=subprocess.PIPE) as one,
        subprocess.Popen(command, env=os.environ, stdout=subprocess.PIPE) as two,
    ):
        answers = [json.loads(process.communicate(timeout=60)[0]) for process in (one, two)]
    assert [one.returncode, two.returncode] == [0, 0]
    assert answers[0] == answers[1]
    assert answers[0][0]["commit"] == commit
    hub.requests.clear()
    assert str(resolve("org/copper").folder) == answers[0][0]["folder"]
    assert len(hub.requests) == 1


def test_upload_that_fails_leaves_everything_as_it_was(hub: HubServer, folder: Path, commit: str) -> None:
    (folder / "README.md").write_bytes(CARD + b"second\n")
    snnp_hub.write_manifest(folder, snnp_hub.make_manifest(folder, "model"))
    hub.faults.append(Fault("POST", r"/commit/", times=99, status=500))
    with pytest.raises(HubError, match="answered 500"):
        publish("model", folder, "org/copper")
    hub.faults.clear()
    assert resolve("org/copper").commit == commit


def test_upload_gets_through_two_errors(hub: HubServer, folder: Path) -> None:
    faults = [Fault("POST", r"/commit/", times=2, status=500), Fault("POST", r"/objects/batch", times=1, status=502)]
    hub.faults.extend(faults)
    done = publish("model", folder, "org/copper")
    assert [fault.times for fault in faults] == [0, 0]
    assert resolve("org/copper").commit == done.commit
    assert len(hub.repositories["model", "org/copper"].commits) == 2


def test_somebody_else_publishes_meanwhile(hub: HubServer, folder: Path, commit: str) -> None:
    (folder / "README.md").write_bytes(CARD + b"second\n")
    snnp_hub.write_manifest(folder, snnp_hub.make_manifest(folder, "model"))
    hub.faults.append(Fault("POST", r"/commit/", status=412))
    with pytest.raises(HubError, match="was changed by someone else meanwhile"):
        publish("model", folder, "org/copper")


# Offline.


def test_offline_from_the_cache(hub: HubServer, commit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    load_model("org/copper")
    _offline(monkeypatch)
    hub.requests.clear()
    assert load_model("org/copper").metadata["loaded_from"]["commit"] == commit
    assert load_model(f"org/copper@{commit}").elements == ("Cu",)
    assert hub.requests == []


def test_offline_without_it(hub: HubServer, commit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _offline(monkeypatch)
    message = _refused("org/copper")
    assert "HF_HUB_OFFLINE is set" in message
    assert "run 'snnp pull org/copper' where there is internet" in message
    assert hub.requests == []


def test_offline_with_a_part_of_it(hub: HubServer, commit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = resolve("org/copper")
    (found.folder / "model.safetensors").unlink()
    _offline(monkeypatch)
    assert "not (or not wholly) in the cache" in _refused("org/copper")


def test_unreachable_server_and_a_full_cache(hub: HubServer, commit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    load_model("org/copper")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    assert load_model("org/copper").metadata["loaded_from"]["commit"] == commit
    message = _refused("org/other")
    assert "http://127.0.0.1:9 cannot be reached" in message


# Damage.


def _flip(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


@pytest.mark.parametrize("path, name", [(r"^/store/", "model.safetensors"), (r"/resolve/.*config", "config.json")])
def test_file_that_was_tampered_with_on_its_way(hub: HubServer, commit: str, path: str, name: str) -> None:
    hub.faults.append(Fault("GET", path, change=_flip))
    message = _refused("org/copper")
    assert f"{name} has sha256" in message
    assert "Nothing was deleted" in message
    assert "snnp pull --force org/copper" in message
    assert sum(1 for path in _cache().rglob("*") if path.is_file() and path.name == name) == 1
    assert name in _refused("org/copper"), "a file that failed must not pass the second time"
    assert resolve("org/copper", force=True).commit == commit
    assert load_model("org/copper").elements == ("Cu",)


def test_file_that_was_changed_in_the_cache(hub: HubServer, commit: str) -> None:
    path = resolve("org/copper").folder / "config.json"
    path.write_text(path.read_text() + " ")
    assert "config.json has" in _refused("org/copper")
    assert path.read_text().endswith(" ")


def test_file_that_the_repository_lacks(hub: HubServer, commit: str) -> None:
    repository = hub.repositories["model", "org/copper"]
    found = repository.files("main")
    assert found is not None
    repository.commit({k: v for k, v in found[1].items() if k != "model.safetensors"}, "by hand")
    assert "model.safetensors is missing, which manifest.json lists" in _refused("org/copper")


def test_large_files_are_read_once(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And again when they were touched."""
    from snnp.hub import manifest as manifests

    monkeypatch.setattr(manifests, "_LARGE", 1000)
    data = tmp_path / "data"
    data.mkdir()
    (data / "train.parquet").write_bytes(b"PAR1" * 1000)
    (data / "README.md").write_bytes(CARD)
    manifest = snnp_hub.make_manifest(data, "dataset")
    manifests.verify_folder(data, manifest)
    stamp = manifests._stamp(data / "train.parquet", manifest.files["train.parquet"].sha256)
    assert stamp is not None
    assert stamp.is_file()
    (data / "train.parquet").write_bytes(b"PAR2" * 1000)
    with pytest.raises(HubError, match=r"train\.parquet has sha256"):
        manifests.verify_folder(data, manifest)
