"""The two files of a model: `config.json` of any version, and the safetensors file of its weights. See docs/format.md.

A safetensors file is 8 bytes (length N of the header, little-endian), N bytes of JSON (`name -> dtype, shape,
data_offsets`), and the data (https://github.com/huggingface/safetensors#format).

What cannot be used raises `ModelFileError`, which names the file, what is wrong with it, and the cure.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from snnp.errors import InputError, ModelFileError
from snnp.models.config import TensorShape
from snnp.models.potential import Potential
from snnp.text import nested

__all__ = ["CONFIG_FILE", "FORMAT", "FORMAT_VERSION", "UNITS", "WEIGHTS_FILE", "check_numbers", "check_statements"]
__all__ += ["read_bounded", "read_description", "read_text", "read_weights", "stated"]

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
    **dict.fromkeys(("accuracy", "limits", "training_data"), _TEXTS),
    **dict.fromkeys(("errors", "stability"), TypeAdapter(_Rows)),
    **dict.fromkeys(("compression", "datasets"), TypeAdapter(list[dict[str, Any]])),
    "metrics": TypeAdapter(_Metrics),
    "properties": TypeAdapter(dict[str, _Crystal]),
    "reference_energies_from": TypeAdapter(dict[str, str]),
}

_LENGTH_BYTES = 8
_MOST_HEADER_BYTES = 4_000_000  # forty thousand tensors; an ensemble of eight ANI networks has 45 kB
_FOREIGN = {b"\x80": "a pickle", b"PK": "a zip archive, as torch.save writes", b"\x93NUMPY": "a NumPy file"}
_LARGEST = 1e9  # of any weight: products of four layers stay below the largest float32
_DIVISORS = (".std", ".mu")  # what the names of weights end in by which something is divided
_SMALLEST = 1e-10


def read_bounded(path: Path, most: int) -> bytes:
    """The content of a plain file of at most `most` bytes."""
    try:
        size = path.stat().st_size
    except OSError:
        raise ModelFileError(f"{path.parent} is not complete: {path.name} is missing.") from None
    if not path.is_file():
        raise ModelFileError(f"{path} is no plain file; fetch or save the model again.")
    if size > most:
        raise ModelFileError(f"{path} has {size:,} bytes, more than the {most:,} that it may have; do not use it.")
    with path.open("rb") as stream:
        return stream.read(most)


def read_text(path: str | Path, most: int, cure: str, encoding: str = "utf-8") -> str:
    """The text of a plain file of at most `most` bytes; errors end with the `cure`."""
    path = Path(path)
    if not path.is_file():
        raise ModelFileError(f"{path} is no file; {cure}.")
    try:
        text = read_bounded(path, most).decode(encoding)
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read ({error.strerror}); {cure}.") from None
    except UnicodeDecodeError:
        raise ModelFileError(f"{path} is not a text file; {cure}.") from None
    if not text.strip():
        raise ModelFileError(f"{path} is empty; {cure}.")
    return text


def read_description(text: str, where: str) -> dict[str, Any]:
    """Parse `config.json` of any version up to the present one, and return it in the present form."""
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
    if version < 2:  # states elements and cutoff beside the class, for readers that do not know it, and units
        config = description.get("config")
        elements = config.get("elements") if isinstance(config, dict) else None
        description = {"units": UNITS, **description, "elements": elements, "cutoff": None}
    if version < 3:  # names the elements whose E0 an isolated atom has exactly; before, no model took care of that
        description["isolated_atoms"] = []
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
    for value in nested(tree, _DEEPEST, _MOST_CHARACTERS):
        if isinstance(value, int) and abs(value) > 2**63:
            raise ValueError("a whole number beyond 2^63")
        if isinstance(value, str) and not value.isascii():
            value.encode()  # fails for halves of characters


def check_statements(description: dict[str, Any], model: Potential) -> None:
    """Compare what `config.json` states for other readers with the model that it describes.

    Raises `InputError`, which names the statement that does not hold.
    """
    if description.get("units") != UNITS:
        raise InputError(f"units must be {UNITS}, config.json says {description.get('units')!r}")
    for key, symbols in (("elements", model.elements), ("isolated_atoms", model.isolated_atoms)):
        if (said := description.get(key)) != list(symbols):
            raise InputError(f"{key} are {', '.join(symbols) or 'none'}, config.json says {said!r}")
    cutoff = description.get("cutoff")
    if cutoff is None and "cutoff" in description:  # an old file, which did not state it
        return
    if isinstance(cutoff, bool) or not isinstance(cutoff, int | float) or not abs(cutoff - model.cutoff) <= _TOLERANCE:
        raise InputError(f"cutoff is {model.cutoff:g} Å, config.json says {cutoff!r}")


def stated(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """What the metadata of a model state in the form that docs/format.md gives; keys of another form are left out.

    Metadata are free: programs that read a key go through this, so that what a file holds instead cannot stop them.
    """

    def fits(value: Any, form: TypeAdapter[Any]) -> bool:
        try:
            form.validate_python(value, strict=True)
        except ValidationError:
            return False
        return True

    return {key: value for key, value in metadata.items() if key not in _FORMS or fits(value, _FORMS[key])}


def read_weights(
    content: bytes, where: str, form: Iterable[TensorShape] | None = None, dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    """The tensors of a file, which may be anything at all; no more is allocated than it has bytes. Errors name `where`.

    Arguments:
        form: names and shapes that it must hold, one after the other; read no farther than the file follows.
        dtype: of all tensors of a form.
    """
    length = int.from_bytes(content[:_LENGTH_BYTES], "little")
    if len(content) < _LENGTH_BYTES or length > min(len(content) - _LENGTH_BYTES, _MOST_HEADER_BYTES):
        instead = f"it claims a header of {length:,} bytes in a file of {len(content):,}"
        for magic, what in _FOREIGN.items():
            if content.startswith(magic):
                instead = f"it looks like {what}, which could run code when read"
        raise ModelFileError(f"{where} is no safetensors file: {instead}; do not use it.")
    try:
        state = load(content)
    except (AssertionError, LookupError, OverflowError, RuntimeError, SafetensorError, TypeError, ValueError) as error:
        raise ModelFileError(
            f"{where} is no safetensors file: its header is not valid or does not fit its data "
            f"({' '.join(str(error)[:200].split())}); fetch it again, and do not use it if it stays so."
        ) from None
    if form is None:
        return state
    names = set(state)
    for name, shape in form:
        if name not in names:
            raise ModelFileError(f"{where} lacks {name}, which the configuration asks for; fetch or save it again.")
        names.discard(name)
        if state[name].shape != shape or state[name].dtype != dtype:
            raise ModelFileError(
                f"{where}: {name} has shape {list(state[name].shape[:9])} and type {state[name].dtype}, the "
                f"configuration asks for {list(shape)} and {dtype}; fetch or save it again."
            )
    if names:
        raise ModelFileError(f"{where} holds {min(names)[:60]!r}, for which the configuration has no place.")
    check_numbers(state, where)
    return state


def check_numbers(state: Mapping[str, Tensor], where: str) -> None:
    """Refuse weights with which energies would be NaN or infinite, far from the cause."""
    for name, tensor in state.items():
        size = tensor.abs()
        if not bool((size <= _LARGEST).all()):  # false for NaN, too
            raise ModelFileError(f"{where}: {name} holds NaN, infinity or numbers beyond {_LARGEST:g}; do not use it.")
        if name.endswith(_DIVISORS) and bool((size < _SMALLEST).any()):
            raise ModelFileError(f"{where}: {name} holds zeros, by which energies are divided; do not use it.")
