"""Publishing all that is bundled: what would be uploaded, what is not allowed and why, and the upload itself."""

from __future__ import annotations

from typing import Any

import pytest
from cli_runs import run_json, run_snnp
from hub_server import Fault, HubServer

from snnp.errors import HubError, InputError
from snnp.hub import Publication, load_model
from snnp.publish import publish_model, zoo
from snnp.publish.zoo import publish_zoo


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> None:
    """A zoo of two models, so that the doctor need not look at all; the licence of one is none that the Hub knows."""

    def publish(name: str, repository: str, **how: Any) -> Publication:
        return publish_model(name, repository, about={"licence": "ask us"} if name == "snnp-al" else None, **how)

    monkeypatch.setattr(zoo, "list_models", lambda: ["snnp-al", "snnp-cu"])
    monkeypatch.setattr(zoo, "publish_model", publish)


def test_a_dry_run_lists_everything(hub: HubServer, two: None) -> None:
    found = {each["name"]: each for each in run_json("publish", "zoo", "org", "--dry-run")}
    assert hub.requests == []
    copper = found["snnp-cu"]
    assert copper["repository"] == "org/snnp-cu"
    assert copper["refused"] is None
    assert {"README.md", "config.json", "model.safetensors", "manifest.json"} <= set(copper["files"])
    assert copper["bytes"] == sum(copper["files"].values())
    assert "licence" in found["snnp-al"]["refused"]
    assert "upstream states no licence" in found["ani-al"]["refused"]
    assert "datasets/mlearn/recipe.py" in found["mlearn"]["refused"]
    for name in zoo.hub.bundled_datasets():
        assert found[name]["refused"] is None
        assert any(file.endswith(".parquet") for file in found[name]["files"])


def test_it_is_published(hub: HubServer, two: None, monkeypatch: pytest.MonkeyPatch) -> None:
    bundled = {"aluminium-7net": zoo.hub.bundled_datasets()["aluminium-7net"]}  # the larger takes the doctor longer
    monkeypatch.setattr(zoo.hub, "bundled_datasets", lambda: bundled)
    text = run_snnp("publish", "zoo", "org").output
    assert "org/snnp-cu" in text
    assert "not published" in text
    assert load_model("org/snnp-cu").elements == ("Cu",)
    assert {"snnp-cu", "aluminium-7net"} <= {name.partition("/")[2] for _, name in hub.repositories}


def test_the_refusal_of_the_hub_is_no_missing_licence(hub: HubServer, two: None) -> None:
    hub.faults.append(Fault("POST", "/api/repos/create", status=403))
    with pytest.raises(HubError, match="403"):
        publish_zoo("org")


@pytest.mark.parametrize("owner", ["org/name", "-", ""])
def test_names_that_are_no_owner(owner: str) -> None:
    with pytest.raises(InputError):
        publish_zoo(owner, dry_run=True)
