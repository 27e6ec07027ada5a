"""`snnp publish`: a run, a model folder or parquet files to a repository on the Hub, in one commit.

What nobody stated, what no licence allows and what the doctor finds errors in is refused.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from snnp import hub
from snnp.analysis.card import card_markdown
from snnp.analysis.curve_page import draw_page, stated_errors
from snnp.data.description import Description, describe_parts, finish, parse_description
from snnp.data.read import dataset_files, load_dataset
from snnp.data.storage.parquet import ParquetSource
from snnp.doctor import Report, examine_data, examine_model
from snnp.errors import HubError, InputError
from snnp.files import scratch_folder, write_atomically
from snnp.hub.client import hub_library
from snnp.hub.manifest import check_inside, fingerprint
from snnp.hub.names import check_repository, parse_reference
from snnp.models import SplineNNP
from snnp.models.formats import UNITS, stated
from snnp.models.potential import Potential
from snnp.models.store import load_model, model_folder, save_model
from snnp.text import one_line

__all__ = ["card_header", "licence_id", "missing_statements", "prepare_model", "publish_dataset", "publish_model"]

# Licences by the names that the Hub has for them (https://huggingface.co/docs/hub/repositories-licenses).
_LICENCES = (
    *("mit", "apache-2.0", "bsd-2-clause", "bsd-3-clause", "mpl-2.0", "lgpl-3.0", "gpl-2.0", "gpl-3.0", "agpl-3.0"),
    *("cc0-1.0", "cc-by-4.0", "cc-by-3.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0", "odc-by", "unlicense"),
)
_MOST_EXAMINED = 2000  # frames of a split that the doctor looks at: less than a minute
_STATEMENTS = ("title", "summary", "origin", "licence", "licence_note", "citation", "conversions", "splits", "notes")
_FILTERS = "filters.png"
_PARITY = {"parity_energy.png": "Energies", "parity_forces.png": "Forces"}
_PICTURES = {**_PARITY, _FILTERS: "Everything it has learned"}
_TASK = "graph-ml"  # the Hub's task for models of atoms and bonds
_METRICS = {
    "energy_mae_mev_per_atom": ("mae", "energy MAE (meV/atom)"),
    "energy_rmse_mev_per_atom": ("rmse", "energy RMSE (meV/atom)"),
    "force_mae_ev_per_angstrom": ("mae", "force MAE (eV/Å)"),
    "force_rmse_ev_per_angstrom": ("rmse", "force RMSE (eV/Å)"),
    "stress_mae_gpa": ("mae", "stress MAE (GPa)"),
}


def licence_id(text: Any) -> str | None:
    """The Hub's name of the first licence that a text names; None if it names none.

    Example:
        >>> licence_id("BSD-3-Clause (data set)")
        'bsd-3-clause'
    """
    words = str(text or "").lower().replace(" ", "-")
    matches = {name: re.search(rf"(?<![a-z0-9]){re.escape(name)}(?![a-z0-9])", words) for name in _LICENCES}
    found = [(match.start(), -len(name), name) for name, match in matches.items() if match]
    return min(found)[2] if found else None


def _errors_of(report: Report) -> str:
    """What the doctor holds against publishing; empty if nothing."""
    return "; ".join(f"{finding.check}: {finding.message}" for finding in report.errors)


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
    """Examine a model, render its card, and upload it in one commit; arguments of `snnp.hub.publish`, and:

    Arguments:
        source: bundled name, model folder or run folder.
        about: statements that replace those of the model's metadata (licence, dataset, level_of_theory, ...).
        folder: where the files are put together; by default a temporary folder that is removed in the end.
        show: called with the files and the doctor's report before anything is uploaded.

    Raises `HubError` if something that users must know is not stated, the doctor finds errors, or the Hub refuses;
    `InputError` for an unfit name, or a folder that is not empty.
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
        report = examine_model(model, subject=str(source), pictures=False)
        if found := _errors_of(report):
            raise HubError(f"{source} cannot be published, the doctor finds: {found}. See 'snnp doctor model'.")
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

    Arguments as for `publish_model`; returns the model as it was written. The error names all that is not stated.
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
    copied = {"recipe.yaml": origin / "recipe.yaml"}
    if run is not None:
        copied = {"recipe.yaml": run / "config.yaml", **{each: run / each for each in _PARITY}}
    for target, file in copied.items():
        if file.is_file():
            check_inside(file.parent, file.name)
            shutil.copyfile(file, folder / target)
    if isinstance(model, SplineNNP):
        draw_page(model, folder / _FILTERS, title=name)
    card = card_header(name, model) + "\n" + card_markdown(repository, model)
    gallery = [f"![{title}]({each})" for each, title in _PICTURES.items() if (folder / each).is_file()]
    card += "\n## Pictures\n\n" + "\n\n".join(gallery) + "\n" if gallery else ""
    write_atomically(folder / "README.md", card.encode())
    hub.write_manifest(folder, hub.make_manifest(folder, "model"))
    return model


def _provenance(about: Mapping[str, Any], run: Path | None) -> dict[str, Any]:
    """Data, split, command and versions, as far as run and metadata know them."""
    known = dict(about.get("provenance", {}))
    files: list[dict[str, str]] = []
    for name in about.get("training_data", []):  # with checksums where they can be read now
        path = Path(os.path.expandvars(name))
        files.append({"name": _public_name(name), **({"sha256": fingerprint(path).sha256} if path.is_file() else {})})
    known.setdefault("datasets", about.get("datasets") or files)
    if run is not None:
        summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
        known.setdefault("command", "snnp train recipe.yaml")
        known.setdefault("versions", {"torch": summary["torch"]} if "torch" in summary else {})
        if (run / "split.json").is_file():
            known["split_sha256"] = hashlib.sha256((run / "split.json").read_bytes()).hexdigest()
    if built := about.get("built"):
        known |= {"command": built["command"], "versions": built["versions"]}
    return known


def _public_name(name: str) -> str:
    """Without the folders of this machine; those below an environment variable mean something elsewhere, too."""
    return name if "$" in name or not Path(name).is_absolute() else Path(name).name


def missing_statements(model: Potential, stored: Mapping[str, Any]) -> list[str]:
    """What a model does not state though everybody who uses it must know it, each with its cure; empty if all is there.

    `stored` is the content of its `config.json`.
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
            f"licence ({said}; --set licence=... with one of {', '.join(_LICENCES[:5])}, cc-by-4.0, ...)",
        ),
        (units == UNITS, f"units (config.json must say {UNITS}, it says {units}; save the model again)"),
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
    """The header of a card, with its `---` lines, for a model of that name (without its owner), from its metadata.

    Raises `MissingDependencyError` without huggingface_hub, which knows the form.
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


def publish_dataset(
    folder: str | Path,
    repository: str,
    *,
    private: bool = False,
    dry_run: bool = False,
    about: Mapping[str, Any] | None = None,
    accept_findings: bool = False,
) -> hub.Publication:
    """Examine a dataset, write its card and manifest, and upload them; arguments as for `publish_model`.

    `folder` is made by a recipe, or has parquet files from `snnp convert`. `about` are statements (title, summary,
    origin, licence, citation, ...), which replace those in its manifest. Raises `HubError` without a licence that
    allows it, if something is not stated, if the doctor finds errors, or if the Hub refuses.
    """
    check_repository(repository)
    folder = Path(folder)
    description = _describe(folder, repository.partition("/")[2], about)
    if not accept_findings:
        _examine(folder, description)
    finish(folder, description, keep_card=about is None)
    return hub.publish("dataset", folder, repository, private=private, dry_run=dry_run, message=description.title)


def _describe(folder: Path, name: str, about: Mapping[str, Any] | None) -> Description:
    """What is known about the dataset in a folder, and may be handed on: manifest, statements, counts of its files."""
    stated = dict(about or {})
    if unknown := sorted(set(stated) - set(_STATEMENTS)):
        raise InputError(f"{unknown[0]!r} is no statement about a dataset; there are: {', '.join(_STATEMENTS)}.")
    known: dict[str, Any] = {}
    if (folder / hub.MANIFEST_FILE).is_file():
        found = hub.read_manifest(folder, "dataset").about.get("dataset")
        known = dict(found) if isinstance(found, dict) else {}
    before = parse_description(known, str(folder)).parts if known else {}
    known.pop("parts", None)
    merged = {"name": name, "redistributable": True, **known, **stated}
    if missing := [key for key in ("title", "summary", "origin", "licence") if key not in merged]:
        raise HubError(
            f"{folder} does not state: {', '.join(missing)}; give each with --set, as in "
            "--set origin='own calculations' --set licence=cc-by-4.0."
        )
    if "licence" in stated:
        merged["licence"] = licence_id(stated["licence"])
        if merged["licence"] is None:
            raise HubError(
                f"{stated['licence']!r} is no licence that the Hub knows; give one of {', '.join(_LICENCES)}."
            )
    merged["parts"] = {key: part.model_dump() for key, part in describe_parts(folder, before).items()}
    description = parse_description(merged, str(folder))
    if (reason := description.why_not_redistributable()) is not None:
        raise HubError(
            f"{description.name} is not published: {reason}. Publish its recipe in place of the data; who has the raw "
            "files can build it."
        )
    for part, path in dataset_files(folder).items():
        if not description.parts[part].method.strip():
            raise HubError(f"{path} does not state its level of theory; convert it again with --method.")
        if not ParquetSource(path).states_units:
            raise HubError(f"{path} was not written by snnp, so its units are not stated; use 'snnp convert'.")
    return description


def _examine(folder: Path, description: Description) -> None:
    """Refuse what the doctor finds errors in; of large sets it sees frames at even distances."""
    for part in description.parts:
        dataset = load_dataset(folder, part=part)
        splits = {}
        for split in dataset.splits:
            rows = dataset.select(split) if split else dataset
            chosen = np.unique(np.linspace(0, len(rows) - 1, min(len(rows), _MOST_EXAMINED)).astype(np.int64))
            splits[split or "all"] = rows[chosen].frames()
        if not any(frames.has_energy.any() for frames in splits.values()):
            continue  # geometries only
        if found := _errors_of(examine_data(splits)):
            raise HubError(
                f"{description.name}, {part}: the doctor finds {found}. 'snnp doctor data' says more; mend it, or "
                "publish with --accept-findings and say on the card why."
            )
