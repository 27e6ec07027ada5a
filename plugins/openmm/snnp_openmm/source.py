"""Where a force's model comes from, in a form that is small and safe to write into an OpenMM XML file."""

from __future__ import annotations

import copy
import hashlib
from pathlib import Path
from typing import Any

import torch

from snnp.errors import InputError, ModelFileError
from snnp.hub import load_model, resolve
from snnp.models.potential import Potential
from snnp.models.store import as_dtype, dump_model, parse_model

__all__ = ["ModelSource"]


class ModelSource:
    """A model by name, by folder, or a potential in memory, which is copied.

    Pickled, a bundled name stays the name, a name on the Hub becomes `org/name@commit`, a folder its absolute path, all
    with the checksum of the weights, which must be the same when it is read again; a potential becomes the text and
    bytes of its model folder. No torch object is pickled. `dtype` and `device` are by default the model's own (the CPU
    for one from a file). `weights_sha256` is the checksum to expect, None for any; `model` is the potential.

    Raises `HubError`, `ModelFileError` for a model that is missing, damaged or has other weights, `InputError` if
    `model` is none of the three, `dtype` is unknown, or torch cannot use `device`.
    """

    def __init__(
        self,
        model: str | Path | Potential,
        dtype: torch.dtype | str | None = None,
        device: torch.device | str | None = None,
        weights_sha256: str | None = None,
    ) -> None:
        if not isinstance(model, str | Path | Potential):
            raise InputError(f"model must be a name, a folder, or a Potential, got {type(model).__name__}.")
        self._dtype, self._device = as_dtype(dtype), None if device is None else str(device)
        self._name: str | None = None
        self._digest: str | None = None
        found = None if isinstance(model, Potential) else resolve(model)
        own = copy.deepcopy(model) if found is None else found.pinned
        self.model = load_model(own, dtype=self._dtype, device=self._device).eval()
        if found is not None:
            self._name = str(found.folder.resolve()) if found.source == "folder" else found.pinned
            self._digest = hashlib.sha256((found.folder / "model.safetensors").read_bytes()).hexdigest()
        if weights_sha256 not in (None, self._digest):
            raise ModelFileError(
                f"model '{model}' has other weights than when this force was saved; "
                "bring the old model back, or create the force again."
            )

    def __reduce__(self) -> tuple[Any, ...]:
        if self._name is None:
            return _restore, (*dump_model(self.model), self._device)
        dtype = None if self._dtype is None else str(self._dtype).removeprefix("torch.")
        return ModelSource, (self._name, dtype, self._device, self._digest)


def _restore(text: str, weights: bytes, device: str | None) -> ModelSource:
    return ModelSource(parse_model(text, weights, "the model inside the OpenMM force"), None, device)
