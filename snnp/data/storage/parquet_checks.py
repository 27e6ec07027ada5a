"""What a parquet file may be before anything of it is unpacked: files from elsewhere may be damaged or hostile.

A small file may claim terabytes: compressed zeros, runs of one value, counts that no data follow. The footer says how
many rows, values and bytes each column of a row group has, and is checked first; each page of a column says so once
more, and is checked against the footer before the column is read. All checks raise `DataError`, which names the file.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

from snnp.errors import DataError

__all__ = ["MOST_GROUP_BYTES", "check_chunks", "check_footer", "check_footer_size", "check_pages"]

MOST_GROUP_BYTES = 1 << 30  # of one row group, unpacked
_MOST_GROUP_ROWS = 1 << 20
_MOST_GROUPS = 200_000
_MOST_COLUMNS = 500
_MOST_FOOTER = 256_000_000  # bytes; five million structures have 2 MB
_WIDTH = {"BOOLEAN": 1, "INT32": 4, "INT64": 8, "INT96": 12, "FLOAT": 4, "DOUBLE": 8}


def check_footer_size(path: Path) -> None:
    """Refuse what is no parquet file, and a footer that is larger than the file or than any honest one."""
    size = path.stat().st_size
    if size == 0:
        raise DataError(f"{path} is empty; fetch or convert it again.")
    with path.open("rb") as stream:
        head = stream.read(4)
        stream.seek(max(size - 8, 0))
        tail = stream.read(8)
    if size < 12 or head != b"PAR1" or tail[4:] != b"PAR1":
        raise DataError(f"{path} is no parquet file, or it is cut short; fetch or convert it again.")
    footer = struct.unpack("<I", tail[:4])[0]
    if footer > min(size - 12, _MOST_FOOTER):
        raise DataError(f"{path} claims a footer of {footer:,} bytes; the file is damaged or hostile: do not use it.")


def check_chunks(path: Path, content: memoryview, metadata: Any) -> None:
    """Refuse a footer on which Arrow's library would end the whole process: it throws where Python cannot catch."""
    size = struct.unpack("<I", content[-8:-4])[0]
    leaves = [metadata.schema.column(k) for k in range(metadata.num_columns)]
    levels = [(leaf.max_repetition_level + 1, leaf.max_definition_level + 1) for leaf in leaves]
    try:
        groups = _Header(content, len(content) - 8 - size).struct().get(4) or []
        for group in groups:
            if len(group[1]) != len(leaves):
                raise ValueError(f"a row group has {len(group[1])} columns, the schema {len(leaves)}")
            for chunk, wanted in zip(group[1], levels, strict=True):
                if 8 in chunk or 9 in chunk:
                    raise ValueError("it is encrypted")
                counted = chunk[3].get(16) or {}
                if any(len(counted.get(k) or ()) not in (0, number) for k, number in zip((2, 3), wanted, strict=True)):
                    raise ValueError("counts of levels do not agree with the schema")
    except (ValueError, IndexError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} has a damaged or hostile footer, do not use the file ({error}).") from None


def check_footer(path: Path, metadata: Any, columns: set[str]) -> None:
    """Refuse row groups whose `columns`, which may be read, would unpack to more than a gigabyte."""
    refused = "the file is damaged, hostile, or not meant for this program"
    if metadata.num_row_groups > _MOST_GROUPS or metadata.num_columns > _MOST_COLUMNS:
        raise DataError(
            f"{path} has {metadata.num_row_groups:,} row groups of {metadata.num_columns:,} columns, more than "
            f"{_MOST_GROUPS:,} of {_MOST_COLUMNS}; {refused}."
        )
    for index in range(metadata.num_row_groups):
        group = metadata.row_group(index)
        if not 0 <= group.num_rows <= _MOST_GROUP_ROWS:
            raise DataError(
                f"{path} has {group.num_rows:,} rows in row group {index}, more than the {_MOST_GROUP_ROWS:,} allowed; "
                f"{refused}. Write it again with smaller row groups."
            )
        unpacked = 0
        for column in map(group.column, range(group.num_columns)):
            if column.path_in_schema.partition(".")[0] in columns:
                # What is stored as a run of one value, or in a dictionary, needs its whole width once it is read.
                unpacked += max(column.total_uncompressed_size, column.num_values * _WIDTH.get(column.physical_type, 4))
        if unpacked > MOST_GROUP_BYTES:
            raise DataError(
                f"{path} would unpack row group {index} to {unpacked:,} bytes, more than the {MOST_GROUP_BYTES:,} "
                f"allowed; {refused}. Write it again with smaller row groups."
            )


def check_pages(path: Path, content: memoryview, column: Any) -> None:
    """Refuse a column of a row group whose pages hold more than the footer says, or cannot be followed."""
    start = column.data_page_offset
    if column.has_dictionary_page and column.dictionary_page_offset:  # 0 where a writer has left it out
        start = min(start, column.dictionary_page_offset)
    end = start + column.total_compressed_size
    unpacked = values = 0
    try:
        if not 4 <= start <= end <= len(content):
            raise ValueError("it lies outside the file")
        while start < end:
            page = _Header(content, start)
            fields = page.struct()
            counts = (fields.get(5) or fields.get(8) or {1: 0})[1]
            if min(fields[2], fields[3], counts) < 0:
                raise ValueError("a negative size")
            start, unpacked, values = page.place + fields[3], unpacked + fields[2], values + counts
            if unpacked > column.total_uncompressed_size or values > column.num_values:
                raise ValueError(
                    f"its pages hold more than the {column.num_values:,} values in {column.total_uncompressed_size:,} "
                    "bytes that the footer says"
                )
    except (ValueError, IndexError, KeyError, TypeError) as error:
        raise DataError(
            f"{path}: the column {column.path_in_schema} is damaged or hostile, do not use the file ({error})."
        ) from None


class _Header:
    """Reads the header of a page or a footer, which are structs in Thrift's compact protocol.

    Source: https://parquet.apache.org/docs/file-format/metadata/ and parquet.thrift there: PageHeader has 1 type,
    2 uncompressed_page_size, 3 compressed_page_size, 5 data_page_header, 7 dictionary_page_header and
    8 data_page_header_v2, each of which has 1 num_values. FileMetaData has 4 row_groups, each with 1 columns, each with
    3 meta_data, 8 and 9 of encryption; meta_data has 16 size_statistics with 2 and 3, how often each level occurs.
    """

    def __init__(self, content: memoryview, place: int) -> None:
        self._content, self.place = content, place

    def _byte(self) -> int:
        self.place += 1
        return self._content[self.place - 1]

    def _varint(self) -> int:
        value = shift = 0
        while shift < 70:
            byte = self._byte()
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7
        raise ValueError("a number without end")

    def struct(self, depth: int = 0) -> dict[int, Any]:
        """Number -> value of its fields; texts are None."""
        if depth > 8:
            raise ValueError("structs inside structs")
        fields: dict[int, Any] = {}
        field = 0
        while (head := self._byte()) != 0:
            step, kind = head >> 4, head & 0x0F
            field = field + step if step else self._signed()
            fields[field] = self._value(kind, depth)
        return fields

    def _signed(self) -> int:
        value = self._varint()
        return (value >> 1) ^ -(value & 1)

    def _value(self, kind: int, depth: int) -> Any:
        """One value: 1, 2 are truth values, 3 to 6 integers, 7 a double, 8 bytes, 9 and 10 lists, 12 a struct."""
        if kind in (1, 2):
            return kind == 1
        if kind == 3:
            return self._byte()
        if kind in (4, 5, 6):
            return self._signed()
        if kind in (7, 8):
            size = 8 if kind == 7 else self._varint()
            self.place += size
            return None
        if kind in (9, 10):
            head = self._byte()
            size = self._varint() if head >> 4 == 15 else head >> 4
            if size > len(self._content) - self.place:  # an item takes a byte at least
                raise ValueError("a list too long")
            return [self._value(head & 0x0F, depth + 1) for _ in range(size)]
        if kind == 12:
            return self.struct(depth + 1)
        raise ValueError("no page header")
