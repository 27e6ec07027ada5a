"""Bundled models that are not trained but read: published networks, which a recipe names with their checksum."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ase import Atoms
from ase.build import molecule

from snnp.errors import ConfigError
from snnp.models.ani.import_neurochem import read_neurochem
from snnp.models.potential import Potential

__all__ = ["measured_on", "read"]


def read(recipe: dict[str, Any]) -> Potential:
    """The networks with what the recipe says of them.

    Raises:
        ConfigError: for other networks than those that the recipe names.
    """
    origin = {key: value for key, value in recipe["neurochem"].items() if key not in ("folder", "molecule")}
    place, expected = Path(os.path.expandvars(recipe["neurochem"]["folder"])), origin.pop("files_sha256")
    model = read_neurochem(place)
    source = model.metadata["source"]
    if source["files_sha256"] != expected:
        raise ConfigError(
            f"{place} holds other networks than recipe.yaml names (sha256 {source['files_sha256'][:12]}…, expected "
            f"{expected[:12]}…); take commit {origin['commit']} of {origin['repository']}."
        )
    about = dict(recipe["metadata"])
    about["reference_energies_from"] = dict.fromkeys(model.elements, about["reference_energies_from"])
    model.metadata = about | {"source": source | origin}
    return model


def measured_on(recipe: dict[str, Any]) -> Atoms:
    """The molecule that dynamics and speed are measured on."""
    atoms: Atoms = molecule(recipe["neurochem"]["molecule"])
    return atoms
