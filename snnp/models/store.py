"""Model folders: `config.json` and `model.safetensors`, written whole or not at all; nothing is ever unpickled."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ValidationError
from safetensors.torch import save

from snnp.errors import InputError, ModelFileError, first_fault, near_matches
from snnp.files import bundled_folders, write_atomically
from snnp.models import formats
from snnp.models.config import TensorShape
from snnp.models.ensemble import Ensemble, EnsembleConfig
from snnp.models.families import FAMILIES, family_of
from snnp.models.potential import Potential

__all__ = ["LARGEST_ENERGY", "as_dtype", "dump_model", "fingerprint", "list_models", "load_model", "model_folder"]
__all__ += ["parse_model", "save_model", "usable_device"]

_MOST_CONFIG, _MOST_WEIGHTS = 1 << 25, 1 << 31  # bytes; the largest published potentials have a tenth of them
LARGEST_ENERGY = 1e7  # eV; all electrons of the heaviest atom are bound by 1.5e6

# What goes wrong where a file holds something else than was expected, in whatever we call with it.
_MISFITS = (ArithmeticError, AttributeError, LookupError, MemoryError, RuntimeError, TypeError, ValueError)

_Planned = tuple[Iterator[TensorShape], Callable[[], Potential]]  # tensors that a model stores, and what builds it


def _plan(name: Any, tree: Any, energies: Any, isolated: Any) -> _Planned:
    """A model from what stands in a file: class, configuration, E0, and which of these are isolated atoms'."""
    family = family_of(name) if isinstance(name, str) else None
    if family is None and name != Ensemble.__name__:
        raise InputError(f"unknown class {name!r}; upgrade snnp")
    kind: type[BaseModel] = EnsembleConfig if family is None else family.config
    # From JSON, where strict means: lists for tuples, whole numbers for floats, and nothing else in place of another.
    config: Any = kind.model_validate_json(json.dumps(tree), strict=True)
    if (
        not isinstance(energies, dict)
        or set(energies) != set(config.elements)
        or not all(type(value) in (int, float) and abs(value) <= LARGEST_ENERGY for value in energies.values())
    ):
        known = ", ".join(config.elements)
        raise InputError(f"reference_energies must be one number of at most {LARGEST_ENERGY:g} eV for each of {known}")
    members = []
    for k, member in enumerate(() if family else config.members):
        if member.family == Ensemble.__name__:
            raise InputError(f"member {k} is of unknown class 'Ensemble': an ensemble holds no ensembles")
        members.append(_plan(member.family, member.config, member.reference_energies, member.isolated_atoms))

    def build() -> Potential:
        if family is None:
            ensemble = Ensemble([make() for _, make in members])
            if ensemble.reference_energies != energies:
                ensemble.reference_energies = energies
            return ensemble
        model: Potential = family.potential(config, energies)
        model.isolated_atoms = isolated
        return model

    if family is not None:
        return config.tensors(), build
    return ((f"members.{k}.{name}", shape) for k, (each, _) in enumerate(members) for name, shape in each), build


def _weights_of(model: Potential) -> bytes:
    return save({name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()})


def dump_model(model: Potential) -> tuple[str, bytes]:
    """The two files of a model folder: JSON text, and weights in the model's own float type."""
    name = type(model).__name__
    if name != Ensemble.__name__ and family_of(name) is None:
        known = ", ".join(family.potential.__name__ for family in FAMILIES.values())
        raise InputError(f"models of class {name} cannot be saved; {known}, Ensemble can.")
    weights = _weights_of(model)
    description = {
        "format": formats.FORMAT,
        "format_version": formats.FORMAT_VERSION,
        "class": name,
        "elements": list(model.elements),
        "cutoff": model.cutoff,
        "config": model.config.model_dump(mode="json"),
        "reference_energies": model.reference_energies,
        "isolated_atoms": list(model.isolated_atoms),
        "dtype": str(model.dtype).removeprefix("torch."),
        "units": formats.UNITS,
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
        "metadata": model.metadata,
    }
    return json.dumps(description, indent=2) + "\n", weights


def fingerprint(model: Potential) -> str:
    """A sha256 of what a model computes: form, E0 and weights, in its own float type; metadata do not count.

    Of models of any class, those that cannot be saved too.
    """
    config = getattr(model, "config", None)
    form = None if config is None else config.model_dump(mode="json")
    zero = (model.reference_energies, model.isolated_atoms)
    stated = json.dumps([type(model).__name__, model.elements, form, *zero, str(model.dtype)], sort_keys=True)
    return hashlib.sha256(stated.encode() + hashlib.sha256(_weights_of(model)).digest()).hexdigest()


def save_model(model: Potential, folder: str | Path) -> Path:
    """Write a model folder and return it; `OSError` if it cannot be written.

    Weights go first and the configuration, which holds their checksum, last: an interrupted save is noticed on loading.
    """
    text, weights = dump_model(model)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / formats.WEIGHTS_FILE, weights)
    write_atomically(folder / formats.CONFIG_FILE, text.encode())
    return folder


def parse_model(text: str, weights: bytes, where: str = "model") -> Potential:
    """Build a model from the two files of its folder; a `ModelFileError` names the file and what is wrong with it."""
    description = formats.read_description(text, where)
    file = f"{where}/{formats.WEIGHTS_FILE}"
    if not weights:
        raise ModelFileError(f"{file} is empty; fetch or save the model again.")
    digest = hashlib.sha256(weights).hexdigest()
    if digest != description.get("weights_sha256"):
        raise ModelFileError(
            f"{file} is damaged: its sha256 is {digest[:12]}…, {formats.CONFIG_FILE} expects "
            f"{str(description.get('weights_sha256'))[:12]}…; fetch or save the model again."
        )
    try:
        if (said := description["dtype"]) not in ("float32", "float64"):
            raise InputError(f"dtype must be float32 or float64, {formats.CONFIG_FILE} says {said!r}")
        dtype = getattr(torch, said)
        parts = (description.get(key) for key in ("class", "config", "reference_energies", "isolated_atoms"))
        tensors, build = _plan(*parts)
        state = formats.read_weights(weights, file, tensors, dtype)
        # Only now, when every size in the configuration is borne out by weights that are there, a model is made.
        model = build()
        model.to(dtype)
        model.load_state_dict(state)
        formats.check_statements(description, model)
    except ModelFileError:
        raise
    except ValidationError as error:
        _, key, reason, _ = first_fault(error)
        raise ModelFileError(f"{where}/{formats.CONFIG_FILE}: config key {key!r}: {reason}.") from None
    except _MISFITS as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ModelFileError(f"{where} does not hold a working model ({reason}); fetch or save it again.") from None
    metadata = description.get("metadata", {})
    model.metadata = metadata if isinstance(metadata, dict) else {}
    return model.eval()


def _bundled() -> dict[str, Path]:
    return bundled_folders("model_zoo", formats.CONFIG_FILE)


def list_models() -> list[str]:
    """Names of the bundled models."""
    return sorted(_bundled())


def model_folder(name_or_path: str | Path) -> Path:
    """The folder of a bundled model or of a path; a `ModelFileError` lists near matches where there is neither."""
    bundled = _bundled()
    if str(name_or_path) in bundled:
        return bundled[str(name_or_path)]
    path = Path(name_or_path)
    if path.is_file() and path.name == formats.CONFIG_FILE:
        path = path.parent
    for candidate in (path, path / "best"):
        if (candidate / formats.CONFIG_FILE).is_file():
            return candidate
    if path.is_dir():
        raise ModelFileError(
            f"{path} holds no {formats.CONFIG_FILE}; give a model folder or a run folder written by snnp train."
        )
    hint = near_matches(str(name_or_path), bundled) or f" Bundled models: {', '.join(sorted(bundled)) or 'none'}."
    raise ModelFileError(f"there is no model named {str(name_or_path)!r} and no folder of that name.{hint}")


def usable_device(name: torch.device | str) -> torch.device:
    """The device of that name; `InputError` if there is none, or if this PyTorch cannot use it."""
    try:
        return torch.empty(0, device=name).device
    except (AssertionError, NotImplementedError, RuntimeError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise InputError(
            f"device {str(name)!r} cannot be used here ({reason}); use cpu, or install a PyTorch that supports it."
        ) from None


def as_dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    """`torch.float32` or `torch.float64` from itself or its name; None stays None; `InputError` for anything else."""
    known = {"float32": torch.float32, "float64": torch.float64}
    found = known.get(dtype) if isinstance(dtype, str) else dtype
    if dtype is None or found in known.values():
        return found
    names = "torch.float32 or torch.float64" if found else "'float32' or 'float64'"
    raise InputError(f"dtype must be {names}, got {found or repr(dtype)}.")


def load_model(
    source: str | Path | Potential, *, dtype: torch.dtype | str | None = None, device: torch.device | str | None = None
) -> Potential:
    """As `snnp.hub.load_model`, of what lies on this disk: bundled models by name, and model folders by path."""
    dtype = as_dtype(dtype)
    device = None if device is None else usable_device(device)
    if isinstance(source, Potential):
        model = source
    else:
        folder = model_folder(source)
        text = formats.read_text(folder / formats.CONFIG_FILE, _MOST_CONFIG, "fetch or save the model again")
        model = parse_model(text, formats.read_bounded(folder / formats.WEIGHTS_FILE, _MOST_WEIGHTS), str(folder))
    if dtype not in (None, model.dtype) or (device is not None and device != model.device):
        # A copy: the caller's model stays as it is.
        model = copy.deepcopy(model).to(dtype=dtype, device=device)
        formats.check_numbers(model.state_dict(), str(source if isinstance(source, str | Path) else "the model"))
    return model
