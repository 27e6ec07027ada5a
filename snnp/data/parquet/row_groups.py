"""Parquet files as blocks, one row group at a time, through a memory map; and blocks in memory in the same clothes."""

from __future__ import annotations

import json
import logging
import mmap
from collections import OrderedDict
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from snnp.data.frames import Frames
from snnp.data.labels import look_alikes
from snnp.data.parquet.arrow import arrow, parquet
from snnp.data.parquet.columns import block_of, texts_of
from snnp.data.parquet.limits import check_chunks, check_footer, check_footer_size, check_pages
from snnp.data.parquet.writer import FORMAT_KEY
from snnp.errors import DataError

__all__ = ["MemorySource", "ParquetSource", "Source"]

_log = logging.getLogger(__name__)
_TEXTS = ("configuration_id", "labels", "configuration_metadata")
_NUMBERS = ("atomic_numbers", "positions", "cell", "pbc", "energy", "atomic_forces", "cauchy_stress")
_CONSTANTS = ("split", "method", "software")
_LABELS = {"energy": "energy", "forces": "atomic_forces", "stress": "cauchy_stress"}
_NEEDED = {"atomic_numbers", "positions"}
_KEPT = 4  # row groups that stay unpacked for the next question
_FORMAT_VERSION = 1
_THRIFT_BYTES = 200_000_000  # largest text or list in a footer


class MemorySource:
    """Blocks in memory.

    Arguments:
        blocks: with texts.
        name: of what was read.
        splits: split -> rows, or None.
        method, software: level of theory, "" where it is not known.
    """

    def __init__(
        self,
        blocks: Sequence[Frames],
        name: str,
        splits: dict[str, np.ndarray] | None = None,
        method: str = "",
        software: str = "",
    ) -> None:
        self._blocks, self._splits = list(blocks), splits
        self.name, self.method, self.software = name, method, software
        self.path: Path | None = None

    @property
    def sizes(self) -> np.ndarray:
        """[G] frames per group."""
        return np.array([len(block) for block in self._blocks], dtype=np.int64)

    def rows_of_splits(self) -> dict[str, np.ndarray]:
        """Split -> rows; {"": all rows} where there are none."""
        return {"": np.arange(int(self.sizes.sum()))} if self._splits is None else self._splits

    def chunk(self, group: int, texts: bool = True) -> Frames:
        """One group."""
        return self._blocks[group]


class ParquetSource:
    """A parquet file, checked before anything of it is unpacked.

    Arguments:
        path: of the file; written by `ParquetWriter`, or any other with ColabFit's columns.

    Raises:
        DataError: for a file that is missing, damaged, hostile, newer, or without the columns.
        MissingDependencyError: without pyarrow.
    """

    def __init__(self, path: str | Path) -> None:
        pa = arrow()
        self.path: Path | None = Path(path)
        self._path = Path(path)
        self.name = self._path.name
        if not self._path.is_file():
            raise DataError(f"{path} does not exist, or is no file.")
        check_footer_size(self._path)
        with self._path.open("rb") as stream:
            self._map = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        self._content = memoryview(self._map)
        try:
            limits = {"thrift_string_size_limit": _THRIFT_BYTES, "thrift_container_size_limit": _THRIFT_BYTES // 10}
            metadata = parquet().ParquetFile(pa.BufferReader(self._map), **limits).metadata
            check_chunks(self._path, self._content, metadata)
            check_footer(self._path, metadata, {*_TEXTS, *_NUMBERS, *_CONSTANTS})
            leaves = [metadata.schema.column(k) for k in range(metadata.num_columns)]
            # Texts stay in dictionaries: one that a million rows share is unpacked once.
            texts = [
                leaf.path
                for leaf in leaves
                if leaf.path.partition(".")[0] in (*_TEXTS, *_CONSTANTS) and leaf.physical_type == "BYTE_ARRAY"
            ]
            self._file = parquet().ParquetFile(pa.BufferReader(self._map), read_dictionary=texts, metadata=metadata)
            self._schema = self._file.schema_arrow
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise DataError(f"{path} cannot be read as parquet: {_line(error)}.") from None
        self._check_schema()
        self._checked: set[tuple[int, str]] = set()
        self._kept: OrderedDict[tuple[int, bool], Frames] = OrderedDict()
        self.method, self.software = (self._only(name) for name in ("method", "software"))

    def _check_schema(self) -> None:
        pa = arrow()
        said = (self._schema.metadata or {}).get(FORMAT_KEY)
        if said is not None:
            try:
                version = json.loads(said)["format_version"]
            except (ValueError, TypeError, KeyError, RecursionError):
                raise DataError(f"{self._path}: the description of the format is damaged; fetch it again.") from None
            if not isinstance(version, int) or version > _FORMAT_VERSION:
                raise DataError(
                    f"{self._path} has format version {version}, this snnp reads up to {_FORMAT_VERSION}; upgrade with "
                    "'pip install --upgrade snnp'."
                )
        if missing := _NEEDED - set(self._schema.names):
            raise DataError(
                f"{self._path} has no column {sorted(missing)[0]}, so it is no set of structures; it has: "
                f"{', '.join(self._schema.names[:20])}."
            )
        for quantity, column in _LABELS.items():
            similar = look_alikes(quantity, set(self._schema.names) - {*_TEXTS, *_NUMBERS, *_CONSTANTS})
            if column not in self._schema.names and similar:
                _log.warning(
                    "%s: no %s are read; the column %s may hold them: if so, rename it to %s.",
                    *(self._path, quantity, " or ".join(similar), column),
                )
        depths = {"positions": 2, "cell": 2, "atomic_forces": 2, "cauchy_stress": 2, "atomic_numbers": 1, "pbc": 1}
        lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
        for name in set(self._schema.names) & set(_NUMBERS):
            kind, depth = self._schema.field(name).type, depths.get(name, 0)
            while depth and any(is_list(kind) for is_list in lists):
                kind, depth = kind.value_type, depth - 1
            number = pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind)
            if depth or not (number or pa.types.is_null(kind)):
                wanted = {0: "numbers", 1: "lists of numbers", 2: "lists of lists of numbers"}[depths.get(name, 0)]
                raise DataError(f"{self._path}: {name} is {self._schema.field(name).type}, expected {wanted}.")

    def _only(self, name: str) -> str:
        """The one value of a column that is constant.

        Two levels of theory in one file are refused: their energies cannot be compared.
        """
        if name not in self._schema.names:
            return ""
        values: set[str] = set()
        for group in range(self._file.metadata.num_row_groups):
            known = self._single_value(group, name)
            values |= {known} if known is not None else set(texts_of(self._read(group, [name])[name])[0])
        if name == "method" and len(values) > 1:
            raise DataError(
                f"{self._path} mixes levels of theory ({', '.join(sorted(values)[:4])}), whose energies cannot be "
                "compared; write one file for each."
            )
        return ", ".join(sorted(values))

    @property
    def stated_format(self) -> dict[str, Any] | None:
        """What the file says of its format and units; None if another program wrote it."""
        said = (self._schema.metadata or {}).get(FORMAT_KEY)
        return None if said is None else dict(json.loads(said))

    @cached_property
    def sizes(self) -> np.ndarray:
        """[G] frames per row group."""
        metadata = self._file.metadata
        return np.array([metadata.row_group(g).num_rows for g in range(metadata.num_row_groups)], dtype=np.int64)

    def rows_of_splits(self) -> dict[str, np.ndarray]:
        """Split -> rows; {"": all rows} for a file without splits."""
        starts = np.concatenate([[0], np.cumsum(self.sizes)])
        if "split" not in self._schema.names:
            return {"": np.arange(starts[-1])}
        rows: dict[str, list[np.ndarray]] = {}
        for group, first in enumerate(starts[:-1]):
            split = self._single_value(group, "split")
            if split is not None:
                rows.setdefault(split, []).append(np.arange(first, starts[group + 1]))
                continue
            names, codes = texts_of(self._read(group, ["split"])["split"])
            for code, name in enumerate(names):
                rows.setdefault(name, []).append(first + np.flatnonzero(codes == code))
        return {split: np.concatenate(parts) for split, parts in rows.items()}

    def _single_value(self, group: int, name: str) -> str | None:
        """The one text of a column in a row group, from its statistics; None if they do not say, or there are more."""
        try:
            column = self._file.metadata.row_group(group).column(self._column_index[name])
            known = column.statistics if column.physical_type == "BYTE_ARRAY" else None
            if known is None or not known.has_min_max or known.min != known.max or known.null_count:
                return None
            return str(known.min)
        except UnicodeDecodeError:
            return None

    @cached_property
    def _column_index(self) -> dict[str, int]:
        group = self._file.metadata.row_group(0)
        return {group.column(k).path_in_schema: k for k in range(group.num_columns)}

    def chunk(self, group: int, texts: bool = True) -> Frames:
        """One row group; the last few stay in memory."""
        key = (group, texts)
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        names = [name for name in (*_NUMBERS, *(_TEXTS if texts else ())) if name in self._schema.names]
        block = block_of(self._read(group, names), f"{self._path}, row group {group}")
        self._let_go(group)
        if texts:
            first = int(self.sizes[:group].sum())
            ids = block.sources or [f"{self.name}#{first + k}" for k in range(len(block))]
            block = block.named(ids, block.groups or None, block.extras or None)
        self._kept[key] = block
        if len(self._kept) > _KEPT:
            self._kept.popitem(last=False)
        return block

    def _let_go(self, group: int) -> None:
        """Tell the system that the pages of a row group may leave this process: they would count as its memory."""
        metadata = self._file.metadata.row_group(group)
        columns = [metadata.column(k) for k in range(metadata.num_columns)]
        first = min(column.data_page_offset for column in columns) // mmap.PAGESIZE * mmap.PAGESIZE
        last = max(column.data_page_offset + column.total_compressed_size for column in columns)
        if hasattr(mmap, "MADV_DONTNEED") and 0 <= first < min(last, len(self._map)):
            self._map.madvise(mmap.MADV_DONTNEED, first, min(last, len(self._map)) - first)

    def _read(self, group: int, names: list[str]) -> Any:
        """Columns of a row group, after a look at their pages."""
        metadata = self._file.metadata.row_group(group)
        for number in range(metadata.num_columns):
            column = metadata.column(number)
            name = column.path_in_schema.partition(".")[0]
            if name in names and (group, column.path_in_schema) not in self._checked:
                check_pages(self._path, self._content, column)
                self._checked.add((group, column.path_in_schema))
        try:
            return self._file.read_row_group(group, columns=names, use_threads=False)
        except (arrow().ArrowException, OSError) as error:
            raise DataError(f"{self._path}, row group {group}, cannot be read: {_line(error)}.") from None


Source = MemorySource | ParquetSource


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300].rstrip(".")
