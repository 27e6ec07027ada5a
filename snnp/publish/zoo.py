"""`snnp publish zoo`: every bundled model, and every dataset that may be handed on, under one name, in one go."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from snnp import hub
from snnp.data.description import read_description
from snnp.errors import HubError, InputError
from snnp.files import bundled_folders
from snnp.hub.names import check_repository
from snnp.models.store import list_models, load_model
from snnp.publish import licence_id, publish_dataset, publish_model

__all__ = ["ZooItem", "publish_zoo"]


@dataclass(frozen=True)
class ZooItem:
    """A model or dataset: its repository, what was or would be uploaded, or why it is not."""

    kind: Literal["model", "dataset"]
    name: str
    repository: str
    licence: str | None
    files: dict[str, int]
    refused: str | None = None
    commit: str | None = None
    address: str | None = None

    @property
    def n_bytes(self) -> int:
        """Of all files together."""
        return sum(self.files.values())


def publish_zoo(
    owner: str,
    *,
    private: bool = False,
    dry_run: bool = False,
    accept_findings: bool = False,
    report: Callable[[ZooItem, int], None] = lambda item, total: None,
) -> list[ZooItem]:
    """Publish all that is bundled as `owner/NAME`; what may not be handed on, or lacks something, is left out.

    Arguments:
        owner: organisation or user on the Hub.
        private, dry_run: see `snnp.hub.publish`.
        accept_findings: publish datasets in spite of errors that the doctor finds.
        report: is told of each when it is done, and how many there are.

    Raises:
        HubError: if the Hub refuses an upload; what was uploaded before stays, and the command may be repeated.
        InputError: for an unfit name.
    """
    if "/" in owner:
        raise InputError(f"{owner!r} is the name of a repository; give that of an organisation or user alone.")
    check_repository(f"{owner}/snnp")
    datasets = bundled_folders("datasets", hub.MANIFEST_FILE)
    tasks = [partial(_model, name, owner, private, dry_run) for name in list_models()]
    tasks += [partial(_dataset, datasets[name], owner, private, dry_run, accept_findings) for name in sorted(datasets)]
    done = []
    for task in tasks:
        done.append(task())
        report(done[-1], len(tasks))
    return done


def _model(name: str, owner: str, private: bool, dry_run: bool) -> ZooItem:
    repository, allowed = f"{owner}/{name}", list[hub.Publication]()
    licence = licence_id(load_model(name).metadata.get("licence"))
    try:
        made = publish_model(
            name, repository, private=private, dry_run=dry_run, show=lambda plan, report: allowed.append(plan)
        )
    except HubError as error:
        if allowed:  # the Hub's refusal, not ours
            raise
        return ZooItem("model", name, repository, licence, {}, str(error))
    return ZooItem("model", name, repository, licence, made.files, None, made.commit, made.address)


def _dataset(folder: Path, owner: str, private: bool, dry_run: bool, accept_findings: bool) -> ZooItem:
    description, name = read_description(folder / hub.MANIFEST_FILE), folder.name
    repository = f"{owner}/{name}"
    refused = description.why_not_redistributable()
    if refused is None and name not in hub.bundled_datasets():
        refused = f"its data are not bundled: build it with datasets/{name}/recipe.py, then 'snnp publish dataset'"
    if refused is not None:
        return ZooItem("dataset", name, repository, description.licence, {}, refused)
    with tempfile.TemporaryDirectory() as place:  # card and manifest are written, which an installation must not be
        copy = Path(place) / name
        shutil.copytree(folder, copy)
        try:
            made = publish_dataset(copy, repository, dry_run=True, accept_findings=accept_findings)
        except HubError as error:
            return ZooItem("dataset", name, repository, description.licence, {}, str(error))
        if not dry_run:
            made = hub.publish("dataset", copy, repository, private=private, message=description.title)
    return ZooItem("dataset", name, repository, description.licence, made.files, None, made.commit, made.address)
