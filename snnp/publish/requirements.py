"""What a model must state before it may be published: licence, units, E0, and where its data come from."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from snnp.models.formats import stated
from snnp.models.potential import Potential
from snnp.text import one_line

__all__ = ["LICENCES", "licence_id", "missing_statements"]

# Licences by the names that the Hub has for them (https://huggingface.co/docs/hub/repositories-licenses).
LICENCES = (
    *("mit", "apache-2.0", "bsd-2-clause", "bsd-3-clause", "mpl-2.0", "lgpl-3.0", "gpl-2.0", "gpl-3.0", "agpl-3.0"),
    *("cc0-1.0", "cc-by-4.0", "cc-by-3.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0", "odc-by", "unlicense"),
)
_UNITS = {"energy": "eV", "length": "angstrom"}


def licence_id(text: Any) -> str | None:
    """The Hub's name of the first licence that a text names; None if it names none.

    Example:
        >>> licence_id("BSD-3-Clause (data set)")
        'bsd-3-clause'
    """
    words = str(text or "").lower().replace(" ", "-")
    found = [(match.start(), -len(name), name) for name in LICENCES if (match := _find(name, words))]
    return min(found)[2] if found else None


def _find(name: str, words: str) -> re.Match[str] | None:
    return re.search(rf"(?<![a-z0-9]){re.escape(name)}(?![a-z0-9])", words)


def missing_statements(model: Potential, stored: Mapping[str, Any]) -> list[str]:
    """What a model does not state though everybody who uses it must know it, each with its cure; empty if all is there.

    Arguments:
        model: with its metadata.
        stored: content of its `config.json`.
    """
    about = stated(model.metadata)
    missing = [
        f"{key} (must be one line of plain text; --set {key}='...')"
        for key in ("licence", "dataset", "level_of_theory")
        if str(about.get(key) or "").strip() != one_line(about.get(key) or "")
    ]
    if licence_id(about.get("licence")) is None:
        said = f"{about['licence']!r} is none that the Hub knows" if about.get("licence") else "none is stated"
        missing.append(f"licence ({said}; --set licence=... with one of {', '.join(LICENCES[:5])}, cc-by-4.0, ...)")
    if stored.get("units") != _UNITS:
        missing.append(f"units (config.json must say {_UNITS}, it says {stored.get('units')}; save the model again)")
    if not set(about.get("reference_energies_from") or ()) >= set(model.elements):
        missing.append(
            "E0 (where the energies of the separate elements come from, for each; "
            f"--set 'reference_energies_from={{{model.elements[0]}: isolated atoms}}')"
        )
    if not str(about.get("dataset") or "").strip():
        missing.append("dataset provenance (the data set's name; --set dataset='...')")
    if not (about.get("training_data") or about.get("datasets")):
        missing.append("dataset provenance (files or data sets it was trained on; --set 'training_data=[...]')")
    if not str(about.get("level_of_theory") or "").strip():
        missing.append("level of theory (of the reference energies; --set level_of_theory='...')")
    return missing
