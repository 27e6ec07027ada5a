"""Columns of a parquet file as the arrays of a block: every length is looked at, nothing is taken on trust."""

from __future__ import annotations

from typing import Any

import numpy as np

from snnp.data.frames import Frames
from snnp.data.parquet.arrow import arrow
from snnp.errors import DataError

__all__ = ["block_of", "texts_of"]

_MOST_NUMBER = 118


def block_of(table: Any, where: str) -> Frames:
    """The frames of an Arrow table with ColabFit's columns; those that are missing are unknown.

    Arguments:
        table: `atomic_numbers` and `positions` at least.
        where: file and row group, named in errors.

    Raises:
        DataError: if lengths do not agree, or atomic numbers are none.
    """
    counts, numbers, _ = _lists(table["atomic_numbers"], where)
    b, n = len(counts), len(numbers)
    if counts.min(initial=1) < 1:
        raise DataError(f"{where}: a frame has no atoms; the file is damaged.")
    if n and not (numbers.min() >= 1 and numbers.max() <= _MOST_NUMBER):
        raise DataError(f"{where}: atomic_numbers run from {numbers.min():g} to {numbers.max():g}, expected 1 to 118.")
    if (numbers % 1).any():
        raise DataError(f"{where}: atomic_numbers are no whole numbers; the file is damaged.")
    sites, positions, known = _vectors(table, "positions", where)
    if not known.all() or not np.array_equal(sites, counts):
        raise DataError(f"{where}: positions and atomic_numbers have different lengths; the file is damaged.")
    forces, has_forces = _optional(table, "atomic_forces", counts, where)
    cell, has_cell = _optional(table, "cell", np.full(b, 3), where)
    stress, has_stress = _optional(table, "cauchy_stress", np.full(b, 3), where)
    energy, has_energy = _energies(table, b)
    return Frames(
        counts=counts,
        numbers=numbers.astype(np.int32),
        positions=positions,
        cell=np.where(has_cell[:, None, None], cell.reshape(b, 3, 3), 0.0),
        pbc=_periodic(table, b, where),
        energy=energy,
        forces=forces,
        stress=stress.reshape(b, 3, 3),
        has_energy=has_energy,
        has_forces=has_forces,
        has_stress=has_stress,
        **_texts(table, b),
    )


def texts_of(column: Any) -> tuple[list[str], np.ndarray]:
    """The different texts of a column, and [B] which of them each row has; null is "".

    Raises:
        DataError: if they are no texts.
    """
    pa = arrow()
    if not pa.types.is_dictionary(column.type):
        column = column.dictionary_encode()
    merged = column.unify_dictionaries() if isinstance(column, pa.ChunkedArray) else pa.chunked_array([column])
    try:
        words: list[str] = ["" if word is None else str(word) for word in _words(merged)]
    except UnicodeDecodeError:
        raise DataError("a column of texts is not in UTF-8; the file is damaged.") from None
    codes = [np.nan_to_num(c.indices.to_numpy(zero_copy_only=False).astype(np.float64), nan=-1) for c in merged.chunks]
    code = np.concatenate(codes).astype(np.int64) if codes else np.zeros(0, dtype=np.int64)
    if (code < 0).any():
        code = np.where(code < 0, len(words), code)
        words.append("")
    used = np.unique(code)
    return [words[k] for k in used], np.searchsorted(used, code)


def _words(column: Any) -> list[Any]:
    return column.chunk(0).dictionary.to_pylist() if column.num_chunks else []


def _lists(column: Any, where: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Length of each list (0 for null), all values in one array of float64, and which are not null."""
    pa = arrow()
    import pyarrow.compute as compute

    whole = column.combine_chunks()
    if isinstance(whole, pa.ChunkedArray):
        raise DataError(f"{where}: a column is too large for one row group; write the file with smaller ones.")
    lengths = compute.list_value_length(whole).fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
    values = whole.flatten()
    if not pa.types.is_nested(values.type):
        values = values.cast(pa.float64()).to_numpy(zero_copy_only=False)
    return lengths, values, whole.is_valid().to_numpy(zero_copy_only=False)


def _vectors(table: Any, name: str, where: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Vectors per frame, all of them as [n, 3], and which frames have them."""
    lengths, inner, known = _lists(table[name], where)
    sizes, values, whole = _lists(arrow().chunked_array([inner]), where)
    if not whole.all() or not (sizes == 3).all():
        raise DataError(f"{where}: {name} holds vectors that do not have three numbers; the file is damaged.")
    return lengths, values.reshape(-1, 3), known


def _optional(table: Any, name: str, counts: np.ndarray, where: str) -> tuple[np.ndarray, np.ndarray]:
    """[sum of counts, 3] with NaN where a frame has none, and which frames have them."""
    if name not in table.column_names or arrow().types.is_null(table[name].type):
        return np.full((int(counts.sum()), 3), np.nan), np.zeros(len(counts), dtype=bool)
    lengths, values, _ = _vectors(table, name, where)
    known = lengths > 0
    if not np.array_equal(lengths[known], counts[known]):
        raise DataError(f"{where}: {name} has not one vector for each of {counts.sum():,}; the file is damaged.")
    if known.all():
        return values, known
    filled = np.full((int(counts.sum()), 3), np.nan)
    filled[np.repeat(known, counts)] = values
    return filled, known


def _energies(table: Any, b: int) -> tuple[np.ndarray, np.ndarray]:
    if "energy" not in table.column_names:
        return np.full(b, np.nan), np.zeros(b, dtype=bool)
    column = table["energy"].cast(arrow().float64())
    return column.to_numpy(), column.is_valid().to_numpy()


def _periodic(table: Any, b: int, where: str) -> np.ndarray:
    if "pbc" not in table.column_names or arrow().types.is_null(table["pbc"].type):
        return np.zeros((b, 3), dtype=bool)
    lengths, values, _ = _lists(table["pbc"], where)
    if not (lengths == 3).all():
        raise DataError(f"{where}: pbc has not three truth values for each frame; the file is damaged.")
    return values.reshape(b, 3) > 0.5


def _texts(table: Any, b: int) -> dict[str, list[Any]]:
    """Ids, groups and extras, where the table has them."""
    found: dict[str, list[Any]] = {}
    for name, key in (("configuration_id", "sources"), ("configuration_metadata", "extras")):
        if name in table.column_names:
            words, codes = texts_of(table[name])
            found[key] = [words[code] or None for code in codes]
    if None in found.get("sources", []):
        del found["sources"]
    if "labels" in table.column_names and arrow().types.is_list(table["labels"].type):
        column = table["labels"].combine_chunks()
        words, codes = texts_of(arrow().chunked_array([column.flatten()]))
        import pyarrow.compute as compute

        lengths = compute.list_value_length(column).fill_null(0).to_numpy(zero_copy_only=False)
        firsts = np.cumsum(lengths) - lengths
        found["groups"] = [words[codes[at]] if size else None for at, size in zip(firsts, lengths, strict=True)]
    return found
