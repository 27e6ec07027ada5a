"""Versions of `config.json`: reading any of them, and bringing old ones up to the present form. See docs/format.md."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

from snnp.errors import InputError, ModelFileError
from snnp.models.potential import Potential

__all__ = [
    "CONFIG_FILE",
    "FORMAT",
    "FORMAT_VERSION",
    "UNITS",
    "WEIGHTS_FILE",
    "check_sizes",
    "check_statements",
    "read_description",
]

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
FORMAT = "snnp-model"
FORMAT_VERSION = 3
UNITS = {"energy": "eV", "length": "angstrom"}
_TOLERANCE = 1e-6  # Å
_FREE = 10_000_000  # numbers that a model may hold without weights that bear it out: less than 100 MB


def read_description(text: str, where: str) -> dict[str, Any]:
    """Parse `config.json` of any version up to the present one, and return it in the present form.

    Raises:
        ModelFileError: for what is no JSON, no snnp model, or of a newer version.
    """
    path = f"{where}/{CONFIG_FILE}"
    try:
        description = json.loads(text)
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
    if not isinstance(cutoff, int | float) or not abs(cutoff - model.cutoff) <= _TOLERANCE:
        raise InputError(f"cutoff is {model.cutoff:g} Å, config.json says {cutoff!r}")


def check_sizes(config: Any, n_bytes: int) -> None:
    """Refuse hyperparameters that would take far more memory than the weights that come with them.

    Widths that stand together multiply, the layers of a list their neighbours; what exceeds the bytes of the weights
    by far is damaged or hostile, and building the model would end the program.

    Arguments:
        config: of any family, as it stands in the file.
        n_bytes: size of the weights.

    Raises:
        InputError: names the sizes.
    """
    inner = list(config.values()) if isinstance(config, dict) else config if isinstance(config, list) else []
    sizes = [size for size in map(_size, inner) if size > 1]
    total = math.prod(sizes) if isinstance(config, dict) else sum(a * b for a, b in pairwise([*sizes, 1]))
    if total > max(_FREE, n_bytes):
        raise InputError(
            f"sizes such as {max(sizes):.3g} in config are far more than the weights hold ({n_bytes:,} bytes)"
        )
    for part in inner:
        check_sizes(part, n_bytes)


def _size(value: Any) -> float:
    """What a value counts for as a width: whole numbers, and whatever would be taken for one."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return 0.0
    if isinstance(value, str):
        return float(value) if value.isascii() and value.isdigit() and len(value) < 300 else 0.0
    return float(min(abs(value), 10**300)) if isinstance(value, int) or value >= _FREE else 0.0
