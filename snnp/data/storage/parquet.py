"""Parquet as `Frames`, one row group at a time, through a memory map; and frames in memory in the same clothes.

Nothing is taken on trust: every length is looked at (see `snnp.data.storage.parquet_checks`) before it is unpacked.
"""

from __future__ import annotations

import json
import logging
import mmap
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from snnp.data.frames import Frames
from snnp.data.labels import look_alikes
from snnp.data.storage.parquet_checks import check_chunks, check_footer, check_footer_size, check_pages
from snnp.errors import DataError, MissingDependencyError

__all__ = ["FORMAT_KEY", "MemorySource", "ParquetSource", "Source", "arrow", "parquet"]

FORMAT_KEY = b"snnp"
_log = logging.getLogger(__name__)
_TEXTS = ("configuration_id", "labels", "configuration_metadata")
_NUMBERS = ("atomic_numbers", "positions", "cell", "pbc", "energy", "atomic_forces", "cauchy_stress", "atomic_energies")
_CONSTANTS = ("split", "method", "software")
_LABELS = {"energy": "energy", "forces": "atomic_forces", "stress": "cauchy_stress"}
_DEPTHS = {
    **dict.fromkeys(("positions", "cell", "atomic_forces", "cauchy_stress"), 2),
    **dict.fromkeys(("atomic_numbers", "pbc", "labels", "atomic_energies"), 1),
}
_NEEDED = {"atomic_numbers", "positions"}
_KEPT = 4  # row groups that stay unpacked for the next question
_FORMAT_VERSION = 1
_THRIFT_BYTES = 200_000_000  # largest text or list in a footer


def arrow() -> ModuleType:
    """The module `pyarrow`, an optional dependency that is imported where it is needed."""
    try:
        import pyarrow
    except ImportError:
        raise MissingDependencyError("datasets need pyarrow; install it with: pip install 'snnp[data]'.") from None
    return pyarrow


def parquet() -> ModuleType:
    """The module `pyarrow.parquet`, likewise."""
    arrow()
    import pyarrow.parquet

    return pyarrow.parquet


@dataclass(frozen=True)
class MemorySource:
    """Frames in memory, in groups: what row groups are in a file.

    Where `whole` is given, [G] frames per group, `groups` are some of them, by number.
    """

    groups: Sequence[Frames] | Mapping[int, Frames]
    name: str
    splits: dict[str, np.ndarray] | None = None  # rows of each
    method: str = ""
    software: str = ""
    whole: np.ndarray | None = None
    path: None = None

    @cached_property
    def sizes(self) -> np.ndarray:
        """[G] frames per group."""
        if self.whole is not None:
            return self.whole
        return np.array([len(self.groups[k]) for k in range(len(self.groups))], dtype=np.int64)

    def rows_of_splits(self) -> dict[str, np.ndarray]:
        """Split -> rows; {"": all rows} where there are none."""
        return {"": np.arange(int(self.sizes.sum()))} if self.splits is None else self.splits

    def chunk(self, group: int, texts: bool = True) -> Frames:
        """One group."""
        return self.groups[group]


class ParquetSource:
    """A parquet file of ColabFit's columns, ours or another's, checked before anything of it is unpacked."""

    def __init__(self, path: str | Path) -> None:
        pa = arrow()
        self.path = Path(path)
        self.name = self.path.name
        if not self.path.is_file():
            raise DataError(f"{path} does not exist, or is no file.")
        check_footer_size(self.path)
        with self.path.open("rb") as stream:
            self._map = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        self._content = memoryview(self._map)
        try:
            limits = {"thrift_string_size_limit": _THRIFT_BYTES, "thrift_container_size_limit": _THRIFT_BYTES // 10}
            metadata = parquet().ParquetFile(pa.BufferReader(self._map), **limits).metadata
            check_chunks(self.path, self._content, metadata)
            check_footer(self.path, metadata, {*_TEXTS, *_NUMBERS, *_CONSTANTS})
            leaves = [metadata.schema.column(k) for k in range(metadata.num_columns)]
            self._leaves = [leaf.path for leaf in leaves]
            # Texts stay in dictionaries: one that a million rows share is unpacked once.
            texts = [leaf.path for leaf in leaves if leaf.physical_type == "BYTE_ARRAY"]
            kept = [path for path in texts if path.partition(".")[0] in (*_TEXTS, *_CONSTANTS)]
            self._file = parquet().ParquetFile(pa.BufferReader(self._map), read_dictionary=kept, metadata=metadata)
            self._schema = self._file.schema_arrow
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise DataError(f"{path} cannot be read as parquet: {_line(error)}.") from None
        self.states_units = FORMAT_KEY in (self._schema.metadata or {})
        self._check_schema()
        self._checked: set[tuple[int, str]] = set()
        self._kept: OrderedDict[tuple[int, bool], Frames] = OrderedDict()
        self.method, self.software = (self._only(name) for name in ("method", "software"))

    def _check_schema(self) -> None:
        pa = arrow()
        if self.states_units:
            try:
                version = json.loads(self._schema.metadata[FORMAT_KEY])["format_version"]
            except (ValueError, TypeError, KeyError, RecursionError):
                raise DataError(f"{self.path}: the description of the format is damaged; fetch it again.") from None
            if not isinstance(version, int) or version > _FORMAT_VERSION:
                raise DataError(
                    f"{self.path} has format version {version}, this snnp reads up to {_FORMAT_VERSION}; upgrade with "
                    "'pip install --upgrade snnp'."
                )
        if missing := _NEEDED - set(self._schema.names):
            raise DataError(
                f"{self.path} has no column {sorted(missing)[0]}, so it is no set of structures; it has: "
                f"{', '.join(self._schema.names[:20])}."
            )
        for quantity, column in _LABELS.items():
            similar = look_alikes(quantity, set(self._schema.names) - {*_TEXTS, *_NUMBERS, *_CONSTANTS})
            if column not in self._schema.names and similar:
                _log.warning(
                    "%s: no %s are read; the column %s may hold them: if so, rename it to %s.",
                    *(self.path, quantity, " or ".join(similar), column),
                )
        lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
        numbers = (pa.types.is_floating, pa.types.is_integer, pa.types.is_boolean, pa.types.is_null)
        for name in set(self._schema.names) & {*_NUMBERS, *_TEXTS, *_CONSTANTS}:
            kind, depth = self._schema.field(name).type, _DEPTHS.get(name, 0)
            while depth and any(is_list(kind) for is_list in lists):
                kind, depth = kind.value_type, depth - 1
            wanted = ("numbers", "lists of numbers", "lists of lists of numbers")[_DEPTHS.get(name, 0)]
            fits = not depth and any(is_number(kind) for is_number in numbers)
            if name not in _NUMBERS:
                fits, wanted = not pa.types.is_nested(kind), "texts"
            if not fits:
                raise DataError(f"{self.path}: {name} is {self._schema.field(name).type}, expected {wanted}.")

    def _only(self, name: str) -> str:
        """The one value of a column that is constant; levels of theory cannot be compared, so two are refused."""
        if name not in self._schema.names:
            return ""
        values = {word for group in range(len(self.sizes)) for word in self._words(group, name)[0]}
        if name == "method" and len(values) > 1:
            raise DataError(
                f"{self.path} mixes levels of theory ({', '.join(sorted(values)[:4])}), whose energies cannot be "
                "compared; write one file for each."
            )
        return ", ".join(sorted(values))

    @cached_property
    def sizes(self) -> np.ndarray:
        """[G] frames per row group."""
        metadata = self._file.metadata
        return np.array([metadata.row_group(g).num_rows for g in range(metadata.num_row_groups)], dtype=np.int64)

    def rows_of_splits(self) -> dict[str, np.ndarray]:
        """Split -> rows; {"": all rows} for a file without splits."""
        if "split" not in self._schema.names:
            return {"": np.arange(int(self.sizes.sum()))}
        rows: dict[str, list[np.ndarray]] = {}
        for group, first in enumerate(np.cumsum(self.sizes) - self.sizes):
            names, codes = self._words(group, "split")
            for code, name in enumerate(names):
                rows.setdefault(name, []).append(first + np.flatnonzero(codes == code))
        return {split: np.concatenate(parts) for split, parts in rows.items()}

    def _words(self, group: int, name: str) -> tuple[list[str], np.ndarray]:
        """`_texts_of` a column in a row group; without a look at it where its statistics tell of one text."""
        column = self._file.metadata.row_group(group).column(self._leaves.index(name))
        with suppress(UnicodeDecodeError):
            known = column.statistics if column.physical_type == "BYTE_ARRAY" else None
            if known is not None and known.has_min_max and known.min == known.max and not known.null_count:
                return [str(known.min)], np.zeros(int(self.sizes[group]), dtype=np.int64)
        return _texts_of(self._read(group, [name])[name])

    def chunk(self, group: int, texts: bool = True) -> Frames:
        """One row group; the last few stay in memory."""
        key = (group, texts)
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        names = [name for name in (*_NUMBERS, *(_TEXTS if texts else ())) if name in self._schema.names]
        frames = _frames_of(self._read(group, names), f"{self.path}, row group {group}")
        # The pages of the row group may leave this process: they would count as its memory.
        metadata = self._file.metadata.row_group(group)
        columns = [metadata.column(k) for k in range(metadata.num_columns)]
        first = min(column.data_page_offset for column in columns) // mmap.PAGESIZE * mmap.PAGESIZE
        last = max(column.data_page_offset + column.total_compressed_size for column in columns)
        if hasattr(mmap, "MADV_DONTNEED") and 0 <= first < min(last, len(self._map)):
            self._map.madvise(mmap.MADV_DONTNEED, first, min(last, len(self._map)) - first)
        if texts:
            first = int(self.sizes[:group].sum())
            sources = frames.sources or [f"{self.name}#{first + k}" for k in range(len(frames))]
            frames = frames.named(sources, frames.groups or None, frames.extras or None)
        self._kept[key] = frames
        if len(self._kept) > _KEPT:
            self._kept.popitem(last=False)
        return frames

    def _read(self, group: int, names: list[str]) -> Any:
        """Columns of a row group, after a look at their pages."""
        metadata = self._file.metadata.row_group(group)
        for number in range(metadata.num_columns):
            column = metadata.column(number)
            name = column.path_in_schema.partition(".")[0]
            if name in names and (group, column.path_in_schema) not in self._checked:
                check_pages(self.path, self._content, column)
                self._checked.add((group, column.path_in_schema))
        try:
            return self._file.read_row_group(group, columns=names, use_threads=False)
        except (arrow().ArrowException, OSError) as error:
            raise DataError(f"{self.path}, row group {group}, cannot be read: {_line(error)}.") from None


Source = MemorySource | ParquetSource


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300].rstrip(".")


def _frames_of(table: Any, where: str) -> Frames:
    """The frames of an Arrow table with ColabFit's columns; those that are missing are unknown."""
    counts, numbers, _ = _lists(table["atomic_numbers"], where)
    threes, shape = np.full(len(counts), 3), (len(counts), 3, 3)
    if counts.min(initial=1) < 1:
        raise DataError(f"{where}: a frame has no atoms; the file is damaged.")
    if len(numbers) and not (numbers.min() >= 1 and numbers.max() <= 118):
        raise DataError(f"{where}: atomic_numbers run from {numbers.min():g} to {numbers.max():g}, expected 1 to 118.")
    if (numbers % 1).any():
        raise DataError(f"{where}: atomic_numbers are no whole numbers; the file is damaged.")
    sites, positions, known = _vectors(table, "positions", where)
    if not known.all() or not np.array_equal(sites, counts):
        raise DataError(f"{where}: positions and atomic_numbers have different lengths; the file is damaged.")
    forces, has_forces = _optional(table, "atomic_forces", counts, where)
    energies, has_energies = _optional(table, "atomic_energies", counts, where)
    cell, has_cell = _optional(table, "cell", threes, where)
    stress, has_stress = _optional(table, "cauchy_stress", threes, where)
    energy, has_energy = np.full(len(counts), np.nan), np.zeros(len(counts), dtype=bool)
    if "energy" in table.column_names:
        column = table["energy"].cast(arrow().float64())
        energy, has_energy = column.to_numpy(), column.is_valid().to_numpy()
    pbc = np.zeros((len(counts), 3), dtype=bool)
    if _has(table, "pbc"):
        lengths, values, _ = _lists(table["pbc"], where)
        if not (lengths == 3).all():
            raise DataError(f"{where}: pbc has not three truth values for each frame; the file is damaged.")
        pbc = values.reshape(-1, 3) > 0.5
    return Frames(
        counts=counts,
        numbers=numbers.astype(np.int32),
        positions=positions,
        cell=np.where(has_cell[:, None, None], cell.reshape(shape), 0.0),
        pbc=pbc,
        energy=energy,
        forces=forces,
        stress=stress.reshape(shape),
        energies=energies,
        has_energy=has_energy,
        has_forces=has_forces,
        has_stress=has_stress,
        has_energies=has_energies,
        **_texts(table),
    )


def _has(table: Any, name: str) -> bool:
    return name in table.column_names and not arrow().types.is_null(table[name].type)


def _texts_of(column: Any) -> tuple[list[str], np.ndarray]:
    """The different texts of a column, and [B] which of them each row has; null is ""."""
    pa = arrow()
    if not pa.types.is_dictionary(column.type):
        column = column.dictionary_encode()
    merged = column.unify_dictionaries() if isinstance(column, pa.ChunkedArray) else pa.chunked_array([column])
    try:
        known = merged.chunk(0).dictionary.to_pylist() if merged.num_chunks else []
    except UnicodeDecodeError:
        raise DataError("a column of texts is not in UTF-8; the file is damaged.") from None
    words = [*("" if word is None else str(word) for word in known), ""]  # the last of them for null
    codes = [chunk.indices.cast(pa.int64()).fill_null(-1).to_numpy(zero_copy_only=False) for chunk in merged.chunks]
    code = np.concatenate([np.zeros(0, dtype=np.int64), *codes])
    used = np.unique(code)
    if not ((used >= -1) & (used < len(known))).all():
        raise DataError("a column of texts refers to texts that it does not have; the file is damaged.")
    return [words[k] for k in used], np.searchsorted(used, code)


def _lists(column: Any, where: str) -> tuple[np.ndarray, Any, np.ndarray]:
    """Length of each list (0 for null), all values, as float64 where they are numbers, and which are not null."""
    pa = arrow()
    import pyarrow.compute as compute

    whole = column.combine_chunks()
    if isinstance(whole, pa.ChunkedArray):
        raise DataError(f"{where}: a column is too large for one row group; write the file with smaller ones.")
    lengths = compute.list_value_length(whole).fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
    values = whole.flatten()
    if any(is_kind(values.type) for is_kind in (pa.types.is_floating, pa.types.is_integer, pa.types.is_boolean)):
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
    """[sum of counts, 3] vectors, or [sum of counts] numbers of atoms, with NaN where a frame has none; which have."""
    numbers = name == "atomic_energies"
    filled = np.full((int(counts.sum()), 3)[: 1 if numbers else 2], np.nan)
    known = np.zeros(len(counts), dtype=bool)
    if _has(table, name):
        lengths, values, _ = _lists(table[name], where) if numbers else _vectors(table, name, where)
        known = lengths > 0
        if not np.array_equal(lengths[known], counts[known]):
            each = "number" if numbers else "vector"
            raise DataError(f"{where}: {name} has not one {each} for each of {counts.sum():,}; the file is damaged.")
        if known.all():
            return values, known
        filled[np.repeat(known, counts)] = values
    return filled, known


def _texts(table: Any) -> dict[str, list[Any]]:
    """Sources, groups and extras, where the table has them."""
    found: dict[str, list[Any]] = {}
    for name, key in (("configuration_id", "sources"), ("configuration_metadata", "extras")):
        if name in table.column_names:
            words, codes = _texts_of(table[name])
            found[key] = [words[code] or None for code in codes]
    if None in found.get("sources", []):
        del found["sources"]
    if "labels" in table.column_names and arrow().types.is_list(table["labels"].type):
        lengths, values, _ = _lists(table["labels"], "labels")
        words, codes = _texts_of(arrow().chunked_array([values]))
        firsts = np.cumsum(lengths) - lengths
        found["groups"] = [words[codes[at]] if size else None for at, size in zip(firsts, lengths, strict=True)]
    return found
