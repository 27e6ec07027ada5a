"""`snnp ls` and `snnp info`: which models there are, and all that is known about one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from snnp.cli.console import number, print_json, print_pairs, print_table, say
from snnp.cli.hub import print_remote
from snnp.cli.options import Json, Model, examples
from snnp.cli.tables import print_errors, print_properties
from snnp.errors import InputError

if TYPE_CHECKING:
    from snnp.models.potential import Potential

__all__ = ["INFO_EXAMPLES", "LS_EXAMPLES", "info_command", "list_command"]

LS_EXAMPLES = examples("snnp ls", "snnp ls --json", "snnp ls --remote", "snnp ls --remote --owner org")
INFO_EXAMPLES = examples("snnp info snnp-si", "snnp info runs/mine --json", "snnp info org/name@v1.0")


def list_command(
    remote: Annotated[bool, typer.Option("--remote", help="What is on the Hub instead: models and datasets.")] = False,
    owner: Annotated[str | None, typer.Option(metavar="ORG", help="Of this user or organisation on the Hub.")] = None,
    as_json: Json = False,
) -> None:
    """List the bundled models with their elements, sizes and test errors, or what is on the Hub."""
    from snnp.models.io import list_models

    if remote:
        print_remote(owner, as_json)
        return
    if owner is not None:
        raise InputError("--owner goes with --remote.")
    models = [_summary(name) for name in list_models()]
    if as_json:
        print_json(models)
        return
    columns = ["model", "elements", "parameters", "cutoff (Å)", "energy MAE (meV/atom)", "force MAE (eV/Å)", "µs/atom"]
    rows = [
        [
            model["name"],
            " ".join(model["elements"]),
            f"{model['n_parameters']:,}",
            f"{model['cutoff_angstrom']:g}",
            number(model["energy_mae_mev_per_atom"]),
            number(model["force_mae_ev_per_angstrom"]),
            number(model["us_per_atom"]),
        ]
        for model in models
    ]
    if not rows:
        say("No models are bundled with this installation; train one with 'snnp train', or reinstall snnp.")
        return
    print_table(columns, rows)
    say("Errors are on data that the model was not trained on; 'snnp info MODEL' says which.")


def info_command(model: Model, as_json: Json = False) -> None:
    """Show all that is known about a model: form, data, errors, checksum."""
    from snnp.models.formats import stated

    details = _details(model)
    if as_json:
        print_json(details)
        return
    metadata, config = details.pop("metadata"), details.pop("config")
    print_pairs(_flat(details), title=details["name"])
    print_pairs(_flat(config), title="\nForm")
    known = stated(metadata)
    errors, metrics, properties = (known.pop(key, {}) for key in ("errors", "metrics", "properties"))
    if known:
        print_pairs(_flat(known), title="\nProvenance")
    if metrics:
        parts = {"all": metrics, **metrics.get("groups", {}), **metrics.get("pure_elements", {})}
        print_errors(parts, title=f"\nErrors on {metrics.get('data', 'test data')}")
    elif errors:
        print_errors(errors, title="\nErrors")
    print_properties(properties.values())


def _summary(name: str) -> dict[str, Any]:
    from snnp.analysis.page import stated_errors
    from snnp.models.io import load_model

    model = load_model(name)
    part, errors = stated_errors(model.metadata)
    return {
        "name": name,
        "elements": list(model.elements),
        "n_parameters": model.n_parameters,
        "cutoff_angstrom": model.cutoff,
        "errors_on": part or None,
        "energy_mae_mev_per_atom": errors.get("energy_mae_mev_per_atom"),
        "force_mae_ev_per_angstrom": errors.get("force_mae_ev_per_angstrom"),
        "us_per_atom": model.metadata.get("speed", {}).get("us_per_atom"),
    }


def _details(name: str) -> dict[str, Any]:
    from snnp.analysis.properties import stated_properties
    from snnp.hub import load_model, resolve

    found = resolve(name)
    folder = found.folder
    model = load_model(found.pinned)
    stored = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    files = {path.name: _fingerprint(path) for path in (folder / "config.json", folder / "model.safetensors")}
    return {
        "name": name if name != str(folder) else folder.name,
        "source": found.source,
        "commit": found.commit,
        "class": type(model).__name__,
        "elements": list(model.elements),
        "cutoff_angstrom": model.cutoff,
        "n_parameters": model.n_parameters,
        "dtype": str(model.dtype).removeprefix("torch."),
        "computed_by": _computed_by(model),
        "reference_energies_ev": model.reference_energies,
        "isolated_atoms": list(model.isolated_atoms),
        "format_version": stored["format_version"],
        "folder": str(folder),
        "files": files,
        "config": stored["config"],
        "metadata": model.metadata | ({"properties": stated} if (stated := stated_properties(model)) else {}),
    }


def _computed_by(model: Potential) -> str:
    """What evaluates this model on the CPU of this machine."""
    from snnp.kernels.library import native_target

    return "torch" if model.native_kernel() is None else f"native kernel ({native_target()})"


def _fingerprint(path: Path) -> dict[str, Any]:
    content = path.read_bytes()
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested values as `a.b: text`, without those that are not set."""
    flat: dict[str, str] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{name}.")
        elif value is not None:
            flat[name] = _text(value)
    return flat


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list):
        return ", ".join(_text(item) for item in value)
    return str(value)
