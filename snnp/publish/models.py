"""`snnp publish model`: from a run or a model folder to a repository on the Hub, in one commit."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from snnp import hub
from snnp.analysis.card import card_markdown
from snnp.analysis.curve_page import draw_page
from snnp.doctor import Report, examine_model
from snnp.errors import HubError, InputError
from snnp.files import scratch_folder, write_atomically
from snnp.hub.manifest import check_inside, fingerprint
from snnp.hub.names import parse_reference
from snnp.models import SplineNNP
from snnp.models.formats import stated
from snnp.models.potential import Potential
from snnp.models.store import load_model, model_folder, save_model
from snnp.publish.header import card_header
from snnp.publish.requirements import missing_statements

__all__ = ["prepare_model", "publish_model"]

_RUN_FILES = ("parity_energy.png", "parity_forces.png")
_FILTERS = "filters.png"


@dataclass(frozen=True)
class _Source:
    """A model with what its `config.json` says, and the run that it came from, if any."""

    model: Potential
    stored: dict[str, Any]
    folder: Path
    run: Path | None


def publish_model(
    source: str | Path,
    repository: str,
    *,
    private: bool = False,
    dry_run: bool = False,
    about: Mapping[str, Any] | None = None,
    folder: str | Path | None = None,
    show: Callable[[hub.Publication, Report], None] | None = None,
) -> hub.Publication:
    """Examine a model, render its card, and upload it in one commit.

    Arguments:
        source: bundled name, model folder or run folder.
        repository: `org/name`.
        private: whether a new repository is visible to its owner only.
        dry_run: do everything but the upload.
        about: statements that replace those of the model's metadata (licence, dataset, level_of_theory, ...).
        folder: where the files are put together; by default a temporary folder that is removed in the end.
        show: called with the files and the doctor's report before anything is uploaded.

    Returns:
        The files, and after an upload commit and address.

    Raises:
        HubError: if something that users must know is not stated, the doctor finds errors, or the Hub refuses.
        InputError: for an unfit name, or a folder that is not empty.
    """
    if parse_reference(repository) is None or "@" in repository:
        raise InputError(f"{repository!r} is no name of a repository; give org/name.")
    kept = Path(folder) if folder is not None else None
    if kept is not None and kept.is_dir() and any(kept.iterdir()):
        raise InputError(f"{kept} is not empty; name a new folder.")
    parent, name = (Path(tempfile.gettempdir()), "snnp-publish") if kept is None else (kept.parent, kept.name)
    parent.mkdir(parents=True, exist_ok=True)
    with scratch_folder(parent, name) as place:
        model = prepare_model(source, repository, place, about)
        if kept is not None:
            place.chmod(0o755)
            place = place.rename(kept)
        report = _examine(model, str(source))
        plan = hub.publish("model", place, repository, dry_run=True)
        if show is not None:
            show(plan, report)
        if dry_run:
            return plan
        message = f"{repository.partition('/')[2]}: {type(model).__name__} for {', '.join(model.elements)}"
        return hub.publish("model", place, repository, private=private, message=message)


def prepare_model(
    source: str | Path, repository: str, folder: str | Path, about: Mapping[str, Any] | None = None
) -> Potential:
    """Write all files of a repository into a folder: weights, configuration, card, pictures, recipe, manifest.

    Arguments as for `publish_model`; returns the model as it was written.

    Raises:
        HubError: names everything that is not stated.
    """
    found = _read(source)
    model, folder, name = found.model, Path(folder), repository.partition("/")[2]
    model.metadata = {**model.metadata, **(about or {})}
    if missing := missing_statements(model, found.stored):
        raise HubError(f"{source} cannot be published; it does not state: {'; '.join(missing)}.")
    provenance = _provenance(found)
    if files := stated(model.metadata).get("training_data"):
        model.metadata["training_data"] = [_public_name(each) for each in files]
    model.metadata = {**model.metadata, "name": name, "provenance": provenance}
    folder.mkdir(parents=True, exist_ok=True)
    save_model(model, folder)
    pictures = _pictures(found, folder, name)
    card = card_header(name, model) + "\n" + card_markdown(repository, model) + _gallery(pictures)
    write_atomically(folder / "README.md", card.encode())
    recipe = found.run / "config.yaml" if found.run is not None else found.folder / "recipe.yaml"
    if recipe.is_file():
        _copy(recipe, folder / "recipe.yaml")
    hub.write_manifest(folder, hub.make_manifest(folder, "model"))
    return model


def _read(source: str | Path) -> _Source:
    folder = model_folder(source)
    stored = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    run = folder.parent if (folder.parent / "summary.json").is_file() else None
    return _Source(load_model(folder), stored, folder, run)


def _provenance(found: _Source) -> dict[str, Any]:
    """Data, split, command and versions, as far as run and metadata know them."""
    about, run = stated(found.model.metadata), found.run
    built = about.get("built", {})
    known = dict(about.get("provenance", {}))
    known.setdefault("datasets", about.get("datasets") or [_file(name) for name in about.get("training_data", [])])
    if run is not None:
        summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
        known.setdefault("command", "snnp train recipe.yaml")
        known.setdefault("versions", {"torch": summary["torch"]} if "torch" in summary else {})
        if (run / "split.json").is_file():
            known["split_sha256"] = hashlib.sha256((run / "split.json").read_bytes()).hexdigest()
    if built:
        known |= {"command": built["command"], "versions": built["versions"]}
    return known


def _file(name: str) -> dict[str, str]:
    """A training file by its name, with its checksum where it can be read now."""
    path = Path(os.path.expandvars(name))
    checksum = {"sha256": fingerprint(path).sha256} if path.is_file() else {}
    return {"name": _public_name(name), **checksum}


def _public_name(name: str) -> str:
    """Without the folders of this machine; those below an environment variable mean something elsewhere, too."""
    return name if "$" in name or not Path(name).is_absolute() else Path(name).name


def _pictures(found: _Source, folder: Path, name: str) -> list[str]:
    """Parity plots of the run, and the functions of a spline model."""
    names = []
    for each in _RUN_FILES:
        if found.run is not None and (found.run / each).is_file():
            _copy(found.run / each, folder / each)
            names.append(each)
    if isinstance(found.model, SplineNNP):
        draw_page(found.model, folder / _FILTERS, title=name)
        names.append(_FILTERS)
    return names


def _copy(source: Path, target: Path) -> None:
    check_inside(source.parent, source.name)
    shutil.copyfile(source, target)


def _gallery(names: list[str]) -> str:
    titles = {"parity_energy.png": "Energies", "parity_forces.png": "Forces", _FILTERS: "Everything it has learned"}
    lines = [f"![{titles[name]}]({name})" for name in names]
    return "\n## Pictures\n\n" + "\n\n".join(lines) + "\n" if lines else ""


def _examine(model: Potential, name: str) -> Report:
    """Refuse what the doctor finds errors in."""
    report = examine_model(model, subject=name, pictures=False)
    if report.errors:
        found = "; ".join(f"{finding.check}: {finding.message}" for finding in report.errors)
        raise HubError(f"{name} cannot be published, the doctor finds: {found}. 'snnp doctor model {name}' says more.")
    return report
