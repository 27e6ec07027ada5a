"""Model folders: `config.json` and `model.safetensors`, written whole or not at all; nothing is ever unpickled."""

from __future__ import annotations

import copy
import hashlib
import importlib.util
import json
import math
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save

from snnp.errors import InputError, ModelFileError, SnnpError, near_matches
from snnp.models.ani import ANI, ANIConfig
from snnp.models.config import SplineNNPConfig
from snnp.models.ensemble import Ensemble, EnsembleConfig
from snnp.models.formats import (
    CONFIG_FILE,
    FORMAT,
    FORMAT_VERSION,
    UNITS,
    WEIGHTS_FILE,
    check_sizes,
    check_statements,
    read_description,
)
from snnp.models.hipnn import HIPNN
from snnp.models.hipnn_config import HIPNNConfig
from snnp.models.potential import Potential
from snnp.models.spline_nnp import SplineNNP

__all__ = [
    "FORMAT_VERSION",
    "dump_model",
    "list_models",
    "load_model",
    "model_folder",
    "parse_model",
    "save_model",
    "usable_device",
    "write_atomically",
]


@dataclass(frozen=True)
class _Family:
    """A class of potentials that files may hold: how to read its configuration, and to build it with its E0."""

    potential: type[Potential]
    config: type[BaseModel]
    build: Callable[[Any, dict[str, float]], Potential]


def _build_ensemble(config: EnsembleConfig, reference_energies: dict[str, float]) -> Ensemble:
    members = []
    for member in config.members:
        if member.family not in _FAMILIES or member.family == "Ensemble":
            raise InputError(f"a member of unknown class {member.family!r}; upgrade snnp")
        family = _FAMILIES[member.family]
        inner = family.config.model_validate(member.config)
        members.append(family.build(inner, _reference_energies(member.reference_energies, _elements(inner))))
        members[-1].isolated_atoms = member.isolated_atoms
    ensemble = Ensemble(members)
    if ensemble.reference_energies != reference_energies:
        ensemble.reference_energies = reference_energies
    return ensemble


# What a file may name, written out: nothing is ever imported because a file says so. A new family adds one line.
_FAMILIES: dict[str, _Family] = {
    "SplineNNP": _Family(SplineNNP, SplineNNPConfig, SplineNNP),
    "HIPNN": _Family(HIPNN, HIPNNConfig, HIPNN),
    "ANI": _Family(ANI, ANIConfig, ANI),
    "Ensemble": _Family(Ensemble, EnsembleConfig, _build_ensemble),
}


def _elements(config: BaseModel) -> tuple[str, ...]:
    """The elements that a configuration names; every family's has them."""
    return tuple(getattr(config, "elements"))  # noqa: B009  pydantic's base class does not declare them


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file under a temporary name and rename it: readers see the old content or the new, never a part."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as handle:
            handle.write(content)
            handle.flush()
            os.fsync(handle.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def dump_model(model: Potential) -> tuple[str, bytes]:
    """The two files of a model folder: JSON text, and weights in the model's own float type."""
    name = type(model).__name__
    family = _FAMILIES.get(name)
    if family is None or not isinstance(model, family.potential):
        raise InputError(f"models of class {name} cannot be saved; {', '.join(_FAMILIES)} can.")
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    weights = save(state)
    description = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "class": name,
        "elements": list(model.elements),
        "cutoff": model.cutoff,
        "config": model.config.model_dump(mode="json"),
        "reference_energies": model.reference_energies,
        "isolated_atoms": list(model.isolated_atoms),
        "dtype": str(model.dtype).removeprefix("torch."),
        "units": UNITS,
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
        "metadata": model.metadata,
    }
    return json.dumps(description, indent=2) + "\n", weights


def save_model(model: Potential, folder: str | Path) -> Path:
    """Write a model folder and return it.

    Weights go first and the configuration, which holds their checksum, last: an interrupted save is noticed on loading.

    Raises:
        OSError: if the folder cannot be written.
    """
    text, weights = dump_model(model)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / WEIGHTS_FILE, weights)
    write_atomically(folder / CONFIG_FILE, text.encode())
    return folder


def parse_model(text: str, weights: bytes, where: str = "model") -> Potential:
    """Build a model from the two files of its folder; see `dump_model`.

    Raises:
        ModelFileError: names the file and what is wrong with it.
    """
    description = read_description(text, where)
    if description.get("class") not in list(_FAMILIES):  # a list: what a file holds may not be hashable
        raise ModelFileError(f"{where} holds a model of unknown class {description.get('class')!r}; upgrade snnp.")
    digest = hashlib.sha256(weights).hexdigest()
    if digest != description.get("weights_sha256"):
        raise ModelFileError(
            f"{where}/{WEIGHTS_FILE} is damaged: its sha256 is {digest[:12]}…, {CONFIG_FILE} expects "
            f"{str(description.get('weights_sha256'))[:12]}…; fetch or save the model again."
        )
    try:
        check_sizes(description["config"], len(weights))
        family = _FAMILIES[description["class"]]
        config = family.config.model_validate(description["config"])
        energies = _reference_energies(description["reference_energies"], _elements(config))
        model = family.build(config, energies)
        if not isinstance(model, Ensemble):  # its members say it themselves
            model.isolated_atoms = description["isolated_atoms"]
        model.to(getattr(torch, description["dtype"]))
        state = load(weights)
        model.load_state_dict(state)
        _check_finite(state)
        check_statements(description, model)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise ModelFileError(f"{where}/{CONFIG_FILE}: config key {key!r}: {first['msg']}.") from None
    except (
        KeyError,
        TypeError,
        ValueError,
        AttributeError,
        MemoryError,
        RuntimeError,
        SafetensorError,
        SnnpError,
    ) as error:
        reason = " ".join(str(error).split())
        raise ModelFileError(f"{where} does not hold a working model ({reason}); fetch or save it again.") from None
    metadata = description.get("metadata", {})
    model.metadata = metadata if isinstance(metadata, dict) else {}
    return model.eval()


def _reference_energies(energies: Any, elements: tuple[str, ...]) -> dict[str, float]:
    """E0 of exactly the model's elements; raises `InputError` for anything else."""
    if (
        not isinstance(energies, dict)
        or set(energies) != set(elements)
        or not all(isinstance(value, int | float) and math.isfinite(value) for value in energies.values())
    ):
        raise InputError(f"reference_energies must be one finite number for each of {', '.join(elements)}")
    return dict(energies)


def _check_finite(state: dict[str, torch.Tensor]) -> None:
    """Raise `InputError` for weights that are NaN or infinite: every energy would be, far from the cause."""
    for name, tensor in state.items():
        if not bool(torch.isfinite(tensor).all()):
            raise InputError(f"{name} in {WEIGHTS_FILE} holds NaN or infinity")


def _zoo_roots() -> list[Path]:
    """Where bundled models may lie: installed package data, or the repository's own folder."""
    beside = Path(__file__).resolve().parents[2] / "model_zoo"
    spec = importlib.util.find_spec("snnp_model_zoo")
    installed = [] if spec is None else [Path(entry) for entry in spec.submodule_search_locations or ()]
    return [root for root in (*installed, beside) if root.is_dir()]


def _bundled() -> dict[str, Path]:
    found: dict[str, Path] = {}
    for root in _zoo_roots():
        for path in sorted(root.iterdir()):
            if (path / CONFIG_FILE).is_file():
                found.setdefault(path.name, path)
    return found


def list_models() -> list[str]:
    """Names of the bundled models."""
    return sorted(_bundled())


def model_folder(name_or_path: str | Path) -> Path:
    """The folder of a bundled model or of a path.

    Raises:
        ModelFileError: if there is neither; lists near matches.
    """
    bundled = _bundled()
    if str(name_or_path) in bundled:
        return bundled[str(name_or_path)]
    path = Path(name_or_path)
    if path.is_file() and path.name == CONFIG_FILE:
        path = path.parent
    for candidate in (path, path / "best"):
        if (candidate / CONFIG_FILE).is_file():
            return candidate
    if path.is_dir():
        raise ModelFileError(
            f"{path} holds no {CONFIG_FILE}; give a model folder or a run folder written by snnp train."
        )
    hint = near_matches(str(name_or_path), bundled) or f" Bundled models: {', '.join(sorted(bundled)) or 'none'}."
    raise ModelFileError(f"there is no model named {str(name_or_path)!r} and no folder of that name.{hint}")


def usable_device(name: torch.device | str) -> torch.device:
    """The device of that name.

    Raises:
        InputError: if there is none, or if this PyTorch cannot use it.
    """
    try:
        return torch.empty(0, device=name).device
    except (AssertionError, NotImplementedError, RuntimeError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise InputError(
            f"device {str(name)!r} cannot be used here ({reason}); use cpu, or install a PyTorch that supports it."
        ) from None


def load_model(
    source: str | Path | Potential,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Potential:
    """Load a bundled model by name, or a model folder by path; a `Potential` passes through.

    Arguments:
        dtype: torch.float32 or torch.float64; None keeps the stored type.
        device: where to put it; None keeps it on the CPU.

    Raises:
        ModelFileError: for a missing, damaged, unknown or too new model.
        InputError: for a type that is not float32 or float64, or a device that cannot be used.
    """
    if dtype not in (None, torch.float32, torch.float64):
        raise InputError(f"dtype must be torch.float32 or torch.float64, got {dtype}.")
    device = None if device is None else usable_device(device)
    if isinstance(source, Potential):
        model = source
    else:
        folder = model_folder(source)
        try:
            text, weights = (folder / CONFIG_FILE).read_text(), (folder / WEIGHTS_FILE).read_bytes()
        except FileNotFoundError as error:
            raise ModelFileError(f"{folder} is not complete: {Path(str(error.filename)).name} is missing.") from None
        except UnicodeDecodeError:
            raise ModelFileError(f"{folder / CONFIG_FILE} is not a text file; fetch or save the model again.") from None
        model = parse_model(text, weights, str(folder))
    if dtype not in (None, model.dtype) or (device is not None and device != model.device):
        # A copy: the caller's model stays as it is.
        model = copy.deepcopy(model).to(dtype=dtype, device=device)
    return model
