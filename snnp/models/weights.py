"""A look at the header of safetensors before anything reads the whole: what is there, and what is only claimed.

A file is 8 bytes (length N of the header, little-endian), N bytes of JSON (`name -> dtype, shape, data_offsets`), and
the data (https://github.com/huggingface/safetensors#format).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from snnp.errors import ModelFileError

__all__ = ["TensorEntry", "check_form", "check_numbers", "read_header", "read_weights"]

_LENGTH_BYTES = 8
_MOST_HEADER_BYTES = 4_000_000  # forty thousand tensors; an ensemble of eight ANI networks has 45 kB
_BYTES_OF = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
_TYPES = {"float32": "F32", "float64": "F64"}
_FOREIGN = {b"\x80": "a pickle", b"PK": "a zip archive, as torch.save writes", b"\x93NUMPY": "a NumPy file"}
_LARGEST = 1e9  # of any weight: products of four layers stay below the largest float32
_DIVISORS = (".std", ".mu")  # what the names of weights end in by which something is divided
_SMALLEST = 1e-10

_Size = Annotated[int, Field(ge=0, le=2**48, strict=True)]


class TensorEntry(BaseModel):
    """Type, shape and place of one tensor."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    dtype: str
    shape: tuple[_Size, ...] = Field(max_length=8)
    data_offsets: tuple[_Size, _Size]


_HEADER = TypeAdapter(dict[str, TensorEntry | dict[str, str]])


def read_header(content: bytes, where: str = "model.safetensors") -> dict[str, TensorEntry]:
    """The tensors that a file claims to hold.

    Arguments:
        content: of the file; anything at all.
        where: named in errors.

    Raises:
        ModelFileError: for anything but a header whose tensors fill the rest of the file, each with the bytes of its
            shape.
    """
    length = int.from_bytes(content[:_LENGTH_BYTES], "little")
    n_data_bytes = len(content) - _LENGTH_BYTES - length
    if len(content) < _LENGTH_BYTES or n_data_bytes < 0 or length > _MOST_HEADER_BYTES:
        raise ModelFileError(f"{where} is no safetensors file: {_instead(content, length)}; do not use it.")
    try:
        entries = _HEADER.validate_json(content[_LENGTH_BYTES : _LENGTH_BYTES + length])
    except ValidationError as error:
        raise ModelFileError(
            f"{where} is no safetensors file: its header is not valid ({error.errors()[0]['msg']}); fetch it again."
        ) from None
    tensors = {name: entry for name, entry in entries.items() if isinstance(entry, TensorEntry)}
    if len(tensors) != len(entries) - ("__metadata__" in entries) or "__metadata__" in tensors:
        raise ModelFileError(f"{where} is no safetensors file: entries of its header are no tensors; fetch it again.")
    end = 0
    for name, entry in sorted(tensors.items(), key=lambda item: item[1].data_offsets):
        first, last = entry.data_offsets
        size = math.prod(entry.shape) * _BYTES_OF.get(entry.dtype, 0)
        if entry.dtype not in _BYTES_OF or first != end or last - first != size:
            raise ModelFileError(
                f"{where}: tensor {name[:60]!r} claims type {entry.dtype[:10]!r}, shape {list(entry.shape)} and bytes "
                f"{first} to {last}, which do not fit together; fetch it again, and do not use it if it stays so."
            )
        end = last
    if end != n_data_bytes:
        raise ModelFileError(
            f"{where} holds {n_data_bytes:,} bytes of data, its header claims {end:,}; fetch it again."
        )
    return tensors


def _instead(content: bytes, length: int) -> str:
    for magic, what in _FOREIGN.items():
        if content.startswith(magic):
            return f"it looks like {what}, which could run code when read"
    return f"it claims a header of {length:,} bytes in a file of {len(content):,}"


def check_form(
    header: Mapping[str, TensorEntry], wanted: Iterable[tuple[str, tuple[int, ...]]], dtype: str, where: str
) -> None:
    """Compare the tensors of a file with those of the form that a configuration states, before any is allocated.

    Arguments:
        header: of the file.
        wanted: names and shapes, one after the other; it is read no farther than the file follows.
        dtype: "float32" or "float64".
        where: named in errors.

    Raises:
        ModelFileError: names the first tensor that is missing, left over, or of another shape or type.
    """
    names = set(header)
    for name, shape in wanted:
        if name not in names:
            raise ModelFileError(f"{where} lacks {name}, which the configuration asks for; fetch or save it again.")
        names.discard(name)
        entry = header[name]
        if entry.shape != shape or entry.dtype != _TYPES[dtype]:
            raise ModelFileError(
                f"{where}: {name} has shape {list(entry.shape)} and type {entry.dtype}, the configuration asks for "
                f"{list(shape)} and {_TYPES[dtype]}; fetch or save it again."
            )
    if names:
        raise ModelFileError(f"{where} holds {min(names)[:60]!r}, for which the configuration has no place.")


def read_weights(content: bytes, where: str = "model.safetensors") -> dict[str, Tensor]:
    """The tensors of a file whose header was found sound.

    Raises:
        ModelFileError: if they cannot be read after all.
    """
    try:
        return load(content)
    except (SafetensorError, RuntimeError, ValueError) as error:
        raise ModelFileError(f"{where} cannot be read ({' '.join(str(error).split())}); fetch it again.") from None


def check_numbers(state: Mapping[str, Tensor], where: str) -> None:
    """Refuse weights with which energies would be NaN or infinite, far from the cause.

    Raises:
        ModelFileError: names the tensor.
    """
    for name, tensor in state.items():
        size = tensor.abs()
        if not bool((size <= _LARGEST).all()):  # false for NaN, too
            raise ModelFileError(f"{where}: {name} holds NaN, infinity or numbers beyond {_LARGEST:g}; do not use it.")
        if name.endswith(_DIVISORS) and bool((size < _SMALLEST).any()):
            raise ModelFileError(f"{where}: {name} holds zeros, by which energies are divided; do not use it.")
