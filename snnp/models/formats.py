"""Versions of `config.json`: reading any of them, and bringing old ones up to the present form. See docs/format.md."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import BaseModel, TypeAdapter, ValidationError

from snnp.errors import InputError, ModelFileError
from snnp.models.potential import Potential

__all__ = [
    "CONFIG_FILE",
    "FORMAT",
    "FORMAT_VERSION",
    "UNITS",
    "WEIGHTS_FILE",
    "check_statements",
    "read_description",
    "stated",
]

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
FORMAT = "snnp-model"
FORMAT_VERSION = 3
UNITS = {"energy": "eV", "length": "angstrom"}
_TOLERANCE = 1e-6  # Å
_MOST_CHARACTERS = 8_000_000  # of config.json; those of the bundled models have less than a hundredth of it
_DEEPEST = 32  # lists in lists; beyond some hundreds programs that walk through them end

_Rows = dict[str, dict[str, Any]]


class _Reference(BaseModel):
    source: str


class _Crystal(BaseModel):
    structure: str
    element: str
    references: dict[str, _Reference]


class _Metrics(BaseModel):
    data: str = ""
    groups: _Rows = {}
    pure_elements: _Rows = {}
    elements: _Rows = {}


_GROUP = TypeAdapter[Any](dict[str, Any])
_TEXTS = TypeAdapter[Any](list[str])
_FORMS: dict[str, TypeAdapter[Any]] = {
    **dict.fromkeys(("built", "loaded_from", "provenance", "speed", "training", "training_range"), _GROUP),
    **dict.fromkeys(("limits", "training_data"), _TEXTS),
    **dict.fromkeys(("errors", "stability"), TypeAdapter(_Rows)),
    **dict.fromkeys(("compression", "datasets"), TypeAdapter(list[dict[str, Any]])),
    "metrics": TypeAdapter(_Metrics),
    "properties": TypeAdapter(dict[str, _Crystal]),
    "reference_energies_from": TypeAdapter(dict[str, str]),
}


def read_description(text: str, where: str) -> dict[str, Any]:
    """Parse `config.json` of any version up to the present one, and return it in the present form.

    Raises:
        ModelFileError: for what is no JSON, no snnp model, or of a newer version.
    """
    path = f"{where}/{CONFIG_FILE}"
    if not text.strip():
        raise ModelFileError(f"{path} is empty; fetch or save the model again.")
    if len(text) > _MOST_CHARACTERS:
        raise ModelFileError(f"{path} has {len(text):,} characters, more than the {_MOST_CHARACTERS:,} allowed.")
    try:
        description = json.loads(text, object_pairs_hook=_without_doubles)
        _check_values(description)
    except (ValueError, RecursionError) as error:  # JSON that is wrong, holds endless numbers, or is nested too deeply
        raise ModelFileError(f"{path} is not valid JSON ({error}); fetch or save the model again.") from None
    if not isinstance(description, dict) or description.get("format") != FORMAT:
        raise ModelFileError(f'{path} is not an snnp model (no \'"format": "{FORMAT}"\' in it).')
    version = description.get("format_version")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise ModelFileError(f"{path} has no valid format_version (got {version!r}).")
    if version > FORMAT_VERSION:
        raise ModelFileError(
            f"{where} has format version {version}, this snnp reads up to {FORMAT_VERSION}; "
            "upgrade with 'pip install --upgrade snnp'."
        )
    for old in range(version, FORMAT_VERSION):
        description = _UPGRADES[old](description)
    return description


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, unless a key stands there twice: programs differ in which of the two they believe."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)[:60]!r} stands there twice")
    return found


def _check_values(tree: Any) -> None:
    """Raise `ValueError` for nesting, whole numbers and characters that programs trip over."""
    level = [tree]
    for _ in range(_DEEPEST):
        inner = []
        for value in level:
            if isinstance(value, dict):
                inner += [*value, *value.values()]
            elif isinstance(value, list):
                inner += value
            elif isinstance(value, int) and abs(value) > 2**63:
                raise ValueError("a whole number beyond 2^63")
            elif isinstance(value, str) and not value.isascii():
                value.encode()  # fails for halves of characters
        if not inner:
            return
        level = inner
    raise ValueError(f"lists and objects nested more than {_DEEPEST} deep")


def _from_version_1(old: dict[str, Any]) -> dict[str, Any]:
    """Version 2 states elements and cutoff beside the class, for readers that do not know it, and must state units."""
    config = old.get("config")
    elements = config.get("elements") if isinstance(config, dict) else None
    return {"units": UNITS, **old, "elements": elements, "cutoff": None, "format_version": 2}


def _from_version_2(old: dict[str, Any]) -> dict[str, Any]:
    """Version 3 names the elements whose E0 an isolated atom has exactly; before, no model took care of that."""
    return {**old, "isolated_atoms": [], "format_version": 3}


_UPGRADES: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {1: _from_version_1, 2: _from_version_2}


def check_statements(description: dict[str, Any], model: Potential) -> None:
    """Compare what `config.json` states for other readers with the model that it describes.

    Raises:
        InputError: names the statement that does not hold.
    """
    if description.get("units") != UNITS:
        raise InputError(f"units must be {UNITS}, config.json says {description.get('units')!r}")
    elements = description.get("elements")
    if not isinstance(elements, list) or tuple(elements) != model.elements:
        raise InputError(f"elements are {', '.join(model.elements)}, config.json says {elements!r}")
    if description.get("isolated_atoms") != list(model.isolated_atoms):
        isolated = ", ".join(model.isolated_atoms) or "none"
        raise InputError(f"isolated_atoms are {isolated}, config.json says {description.get('isolated_atoms')!r}")
    cutoff = description.get("cutoff")
    if cutoff is None and "cutoff" in description:  # an old file, which did not state it
        return
    if isinstance(cutoff, bool) or not isinstance(cutoff, int | float) or not abs(cutoff - model.cutoff) <= _TOLERANCE:
        raise InputError(f"cutoff is {model.cutoff:g} Å, config.json says {cutoff!r}")


def stated(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """What the metadata of a model state in the form that docs/format.md gives; keys of another form are left out.

    Metadata are free: programs that read a key go through this, so that what a file holds instead cannot stop them.
    """
    return {key: value for key, value in metadata.items() if key not in _FORMS or _fits(value, _FORMS[key])}


def _fits(value: Any, form: TypeAdapter[Any]) -> bool:
    try:
        form.validate_python(value, strict=True)
    except ValidationError:
        return False
    return True
