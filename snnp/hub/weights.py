"""A look at the header of a safetensors file before anything reads the whole: what it holds, and what it only claims.

A file is 8 bytes (length N of the header, little-endian), N bytes of JSON (`name -> dtype, shape, data_offsets`), and
the data (https://github.com/huggingface/safetensors#format).
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from snnp.errors import ModelFileError

__all__ = ["TensorEntry", "check_weights", "parse_header"]

_LENGTH_BYTES = 8
_MOST_HEADER_BYTES = 25_000_000  # as huggingface_hub has it
_BYTES_OF = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
_FOREIGN = {b"\x80": "a pickle", b"PK": "a zip archive, as torch.save writes", b"\x93NUMPY": "a NumPy file"}

_Size = Annotated[int, Field(ge=0, le=2**48, strict=True)]


class TensorEntry(BaseModel):
    """Type, shape and place of one tensor."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    dtype: str
    shape: tuple[_Size, ...] = Field(max_length=8)
    data_offsets: tuple[_Size, _Size]


_HEADER = TypeAdapter(dict[str, TensorEntry | dict[str, str]])


def parse_header(content: bytes, n_data_bytes: int, where: str = "model.safetensors") -> dict[str, TensorEntry]:
    """Read the JSON of a header.

    Arguments:
        content: the N bytes; anything at all.
        n_data_bytes: how many bytes follow it in the file.
        where: named in errors.

    Raises:
        ModelFileError: for anything but a header whose tensors fill the data, each with the bytes of its shape.
    """
    try:
        entries = _HEADER.validate_json(content)
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


def check_weights(path: str | Path) -> dict[str, TensorEntry]:
    """Check that a file is safetensors and no larger than what its header says, reading the header only.

    Raises:
        ModelFileError: names the file, and what it is instead.
    """
    path = Path(path)
    if not path.is_file():
        raise ModelFileError(f"{path.parent} is not complete: {path.name} is missing.")
    size = path.stat().st_size
    with path.open("rb") as handle:
        start = handle.read(_LENGTH_BYTES)
        length = int.from_bytes(start, "little")
        if size < _LENGTH_BYTES or length > min(size - _LENGTH_BYTES, _MOST_HEADER_BYTES):
            raise ModelFileError(f"{path} is no safetensors file: {_instead(start, length, size)}; do not use it.")
        header = handle.read(length)
    return parse_header(header, size - _LENGTH_BYTES - length, str(path))


def _instead(start: bytes, length: int, size: int) -> str:
    for magic, what in _FOREIGN.items():
        if start.startswith(magic):
            return f"it looks like {what}, which could run code when read"
    return f"it claims a header of {length:,} bytes in a file of {size:,}"
