"""`snnp publish model`: from a run or a model folder to a repository on the Hub, in one commit."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from snnp import hub
from snnp.analysis.card import card_markdown
from snnp.analysis.curve_page import draw_page, stated_errors
from snnp.doctor import Report, examine_model
from snnp.errors import HubError, InputError
from snnp.files import scratch_folder, write_atomically
from snnp.hub.client import hub_library
from snnp.hub.manifest import check_inside, fingerprint
from snnp.hub.names import check_repository, parse_reference
from snnp.models import SplineNNP
from snnp.models.formats import stated
from snnp.models.potential import Potential
from snnp.models.store import load_model, model_folder, save_model
from snnp.publish.dataset_repository import LICENCES, errors_in_words, licence_id
from snnp.text import one_line

__all__ = ["card_header", "missing_statements", "prepare_model", "publish_model"]

_FILTERS = "filters.png"
_PARITY = {"parity_energy.png": "Energies", "parity_forces.png": "Forces"}
_PICTURES = {**_PARITY, _FILTERS: "Everything it has learned"}
_UNITS = {"energy": "eV", "length": "angstrom"}
_TASK = "graph-ml"  # the Hub's task for models of atoms and bonds
_METRICS = {
    "energy_mae_mev_per_atom": ("mae", "energy MAE (meV/atom)"),
    "energy_rmse_mev_per_atom": ("rmse", "energy RMSE (meV/atom)"),
    "force_mae_ev_per_angstrom": ("mae", "force MAE (eV/Å)"),
    "force_rmse_ev_per_angstrom": ("rmse", "force RMSE (eV/Å)"),
    "stress_mae_gpa": ("mae", "stress MAE (GPa)"),
}


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
        repository, private, dry_run: see `snnp.hub.publish`.
        about: statements that replace those of the model's metadata (licence, dataset, level_of_theory, ...).
        folder: where the files are put together; by default a temporary folder that is removed in the end.
        show: called with the files and the doctor's report before anything is uploaded.

    Returns:
        The files, and after an upload commit and address.

    Raises:
        HubError: if something that users must know is not stated, the doctor finds errors, or the Hub refuses.
        InputError: for an unfit name, or a folder that is not empty.
    """
    check_repository(repository)
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
    origin, folder, name = model_folder(source), Path(folder), repository.partition("/")[2]
    run = origin.parent if (origin.parent / "summary.json").is_file() else None
    model, stored = load_model(origin), json.loads((origin / "config.json").read_text(encoding="utf-8"))
    model.metadata = {**model.metadata, **(about or {})}
    if missing := missing_statements(model, stored):
        raise HubError(f"{source} cannot be published; it does not state: {'; '.join(missing)}.")
    provenance = _provenance(stated(model.metadata), run)
    if files := stated(model.metadata).get("training_data"):
        model.metadata["training_data"] = [_public_name(each) for each in files]
    model.metadata = {**model.metadata, "name": name, "provenance": provenance}
    folder.mkdir(parents=True, exist_ok=True)
    save_model(model, folder)
    gallery = [f"![{_PICTURES[each]}]({each})" for each in _pictures(model, run, folder, name)]
    card = card_header(name, model) + "\n" + card_markdown(repository, model)
    card += "\n## Pictures\n\n" + "\n\n".join(gallery) + "\n" if gallery else ""
    write_atomically(folder / "README.md", card.encode())
    recipe = origin / "recipe.yaml" if run is None else run / "config.yaml"
    if recipe.is_file():
        _copy(recipe, folder / "recipe.yaml")
    hub.write_manifest(folder, hub.make_manifest(folder, "model"))
    return model


def _provenance(about: Mapping[str, Any], run: Path | None) -> dict[str, Any]:
    """Data, split, command and versions, as far as run and metadata know them."""
    known = dict(about.get("provenance", {}))
    known.setdefault("datasets", about.get("datasets") or [_file(name) for name in about.get("training_data", [])])
    if run is not None:
        summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
        known.setdefault("command", "snnp train recipe.yaml")
        known.setdefault("versions", {"torch": summary["torch"]} if "torch" in summary else {})
        if (run / "split.json").is_file():
            known["split_sha256"] = hashlib.sha256((run / "split.json").read_bytes()).hexdigest()
    if built := about.get("built"):
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


def _pictures(model: Potential, run: Path | None, folder: Path, name: str) -> list[str]:
    """Parity plots of the run, and the functions of a spline model."""
    names = []
    for each in _PARITY:
        if run is not None and (run / each).is_file():
            _copy(run / each, folder / each)
            names.append(each)
    if isinstance(model, SplineNNP):
        draw_page(model, folder / _FILTERS, title=name)
        names.append(_FILTERS)
    return names


def _copy(source: Path, target: Path) -> None:
    check_inside(source.parent, source.name)
    shutil.copyfile(source, target)


def _examine(model: Potential, name: str) -> Report:
    """Refuse what the doctor finds errors in."""
    report = examine_model(model, subject=name, pictures=False)
    if found := errors_in_words(report):
        raise HubError(f"{name} cannot be published, the doctor finds: {found}. 'snnp doctor model {name}' says more.")
    return report


def missing_statements(model: Potential, stored: Mapping[str, Any]) -> list[str]:
    """What a model does not state though everybody who uses it must know it, each with its cure; empty if all is there.

    Arguments:
        model: with its metadata.
        stored: content of its `config.json`.
    """
    about, units = stated(model.metadata), stored.get("units")
    texts = {key: str(about.get(key) or "").strip() for key in ("licence", "dataset", "level_of_theory")}
    zeros = set(about.get("reference_energies_from") or ()) >= set(model.elements)
    said = f"{about['licence']!r} is none that the Hub knows" if about.get("licence") else "none is stated"
    asked = (
        *(
            (text == one_line(about.get(key) or ""), f"{key} (must be one line of plain text; --set {key}='...')")
            for key, text in texts.items()
        ),
        (
            licence_id(about.get("licence")),
            f"licence ({said}; --set licence=... with one of {', '.join(LICENCES[:5])}, cc-by-4.0, ...)",
        ),
        (units == _UNITS, f"units (config.json must say {_UNITS}, it says {units}; save the model again)"),
        (
            zeros,
            "E0 (where the energies of the separate elements come from, for each; "
            f"--set 'reference_energies_from={{{model.elements[0]}: isolated atoms}}')",
        ),
        (texts["dataset"], "dataset provenance (the data set's name; --set dataset='...')"),
        (
            about.get("training_data") or about.get("datasets"),
            "dataset provenance (files or data sets it was trained on; --set 'training_data=[...]')",
        ),
        (texts["level_of_theory"], "level of theory (of the reference energies; --set level_of_theory='...')"),
    )
    return [words for known, words in asked if not known]


def card_header(name: str, model: Potential) -> str:
    """The header, with its `---` lines.

    Arguments:
        name: of the model, without its owner.
        model: with its metadata; licence, data sets, base model and errors are taken from there.

    Raises:
        MissingDependencyError: without huggingface_hub, which knows the form.
    """
    library, about = hub_library(), stated(model.metadata)
    known = about.get("provenance", {}).get("datasets") or about.get("datasets") or []
    on_hub = sorted({str(one["name"]) for one in known if isinstance(one, Mapping) and one.get("commit")})
    base = about.get("base_model") or about.get("loaded_from", {}).get("name")
    part, errors = stated_errors(about)
    results = [
        library.EvalResult(
            task_type=_TASK,
            task_name="energies and forces of atoms",
            dataset_type=(on_hub or ["other"])[0],
            dataset_name=one_line(about.get("dataset", "held-out data")),
            dataset_split=part,
            metric_type=kind,
            metric_name=label,
            metric_value=round(errors[key], 5),
        )
        for key, (kind, label) in _METRICS.items()
        if isinstance(errors.get(key), float)
    ]
    data = library.ModelCardData(
        license=licence_id(about.get("licence")),
        library_name="snnp",
        pipeline_tag=_TASK,
        tags=["snnp", "interatomic-potential", "molecular-dynamics", "chemistry", "materials-science", *model.elements],
        datasets=on_hub or None,
        base_model=base if isinstance(base, str) and parse_reference(base) is not None else None,
        model_name=name if results else None,
        eval_results=results or None,
    )
    return f"---\n{data.to_yaml().strip()}\n---\n"
