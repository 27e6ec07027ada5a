"""`snnp publish dataset`: parquet files to a repository on the Hub, unless their licence or the doctor forbids it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from snnp import hub
from snnp.data.description import Description, describe_parts, parse_description
from snnp.data.read import dataset_files, load_dataset
from snnp.data.recipes import finish
from snnp.data.storage.parquet import ParquetSource
from snnp.errors import HubError, InputError
from snnp.hub.names import check_repository
from snnp.report import Report

__all__ = ["describe_folder", "errors_in_words", "licence_id", "publish_dataset"]

# Licences by the names that the Hub has for them (https://huggingface.co/docs/hub/repositories-licenses).
LICENCES = (
    *("mit", "apache-2.0", "bsd-2-clause", "bsd-3-clause", "mpl-2.0", "lgpl-3.0", "gpl-2.0", "gpl-3.0", "agpl-3.0"),
    *("cc0-1.0", "cc-by-4.0", "cc-by-3.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0", "odc-by", "unlicense"),
)
_MOST_EXAMINED = 2000  # frames of a split that the doctor looks at: less than a minute
_STATEMENTS = ("title", "summary", "origin", "licence", "licence_note", "citation", "conversions", "splits", "notes")


def licence_id(text: Any) -> str | None:
    """The Hub's name of the first licence that a text names; None if it names none.

    Example:
        >>> licence_id("BSD-3-Clause (data set)")
        'bsd-3-clause'
    """
    words = str(text or "").lower().replace(" ", "-")
    matches = {name: re.search(rf"(?<![a-z0-9]){re.escape(name)}(?![a-z0-9])", words) for name in LICENCES}
    found = [(match.start(), -len(name), name) for name, match in matches.items() if match]
    return min(found)[2] if found else None


def errors_in_words(report: Report) -> str:
    """What the doctor holds against publishing; empty if nothing."""
    return "; ".join(f"{finding.check}: {finding.message}" for finding in report.errors)


def publish_dataset(
    folder: str | Path,
    repository: str,
    *,
    private: bool = False,
    dry_run: bool = False,
    about: Mapping[str, Any] | None = None,
    accept_findings: bool = False,
) -> hub.Publication:
    """Examine a dataset, write its card and manifest, and upload them with the parquet files in one commit.

    Arguments:
        folder: made by a recipe, or with parquet files from `snnp convert`.
        repository, private, dry_run: see `snnp.hub.publish`.
        about: statements: title, summary, origin, licence, citation, ...; they replace those in the folder's manifest.
        accept_findings: publish in spite of errors that the doctor finds.

    Raises:
        HubError: without a licence that allows it, if something is not stated, if the doctor finds errors, or if the
            Hub refuses.
    """
    check_repository(repository)
    folder = Path(folder)
    description = describe_folder(folder, repository.partition("/")[2], about)
    _check(folder, description)
    if not accept_findings:
        _examine(folder, description)
    finish(folder, description, keep_card=about is None)
    return hub.publish("dataset", folder, repository, private=private, dry_run=dry_run, message=description.title)


def describe_folder(folder: Path, name: str, about: Mapping[str, Any] | None = None) -> Description:
    """What is known about the dataset in a folder: its manifest, with statements, and counts of its files.

    Raises:
        HubError: names what is not stated.
        InputError: for a statement that there is none of.
    """
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
                f"{stated['licence']!r} is no licence that the Hub knows; give one of {', '.join(LICENCES)}."
            )
    merged["parts"] = {key: part.model_dump() for key, part in describe_parts(folder, before).items()}
    return parse_description(merged, str(folder))


def _check(folder: Path, description: Description) -> None:
    """Refuse what must not be handed on, and files whose units nobody states."""
    reason = description.why_not_redistributable()
    if reason is not None:
        raise HubError(
            f"{description.name} is not published: {reason}. Publish its recipe in place of the data; who has the raw "
            "files can build it."
        )
    for part, path in dataset_files(folder).items():
        source = ParquetSource(path)
        if not description.parts[part].method.strip():
            raise HubError(f"{path} does not state its level of theory; convert it again with --method.")
        if not source.states_units:
            raise HubError(
                f"{path} was not written by snnp, so its units are not stated; convert it with 'snnp convert'."
            )


def _examine(folder: Path, description: Description) -> None:
    """Refuse what the doctor finds errors in; of large sets it sees frames at even distances."""
    from snnp.doctor import examine_data

    for part in description.parts:
        dataset = load_dataset(folder, part=part)
        splits = {}
        for split in dataset.splits:
            rows = dataset.select(split) if split else dataset
            chosen = np.unique(np.linspace(0, len(rows) - 1, min(len(rows), _MOST_EXAMINED)).astype(np.int64))
            splits[split or "all"] = rows[chosen].frames()
        if not any(frames.has_energy.any() for frames in splits.values()):
            continue  # geometries only
        if found := errors_in_words(examine_data(splits)):
            raise HubError(
                f"{description.name}, {part}: the doctor finds {found}. 'snnp doctor data' says more; mend it, or "
                "publish with --accept-findings and say on the card why."
            )
