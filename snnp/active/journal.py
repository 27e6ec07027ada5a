"""The journal of a run: what was decided, begun, finished and failed, in the order in which it happened.

A line is a JSON object, a tab, and eight hexadecimal digits: the CRC-32 of the line, begun with that of the line
before. A line that was changed, lost or put in is thus found. Lines are only ever added, each with one write that
reaches the disk before what it announces is begun. What a kill leaves is whole lines and at most a part of the last
one, which is cut off with a word.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from snnp.errors import DataError
from snnp.files import naming
from snnp.report import jsonable

__all__ = ["NAME", "Entry", "Journal", "read_journal"]

NAME = "journal.jsonl"
Entry = dict[str, Any]
"""`event`, `time` (UTC, ISO 8601), and what else belongs to it."""


def read_journal(path: Path) -> tuple[list[Entry], int, str]:
    """The entries of a journal, how many bytes they take, and what stands behind them, which is a torn line or nothing.

    Raises:
        DataError: where a line before the last one is damaged, with its number.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path.parent} holds no run of active learning (no {NAME}); name its folder.") from None
    entries, good, checksum = list[Entry](), 0, 0
    lines = data.split(b"\n")
    for number, line in enumerate(lines[:-1], start=1):
        found = _entry(line, checksum)
        if found is None:
            if number == len(lines) - 1 and not lines[-1]:  # the last one: written in part, then filled with anything
                break
            raise DataError(
                f"{path}, line {number}: its checksum is wrong, so it was changed or a line before it is missing; put "
                f"back a copy of the file, or cut it off before line {number}: labels are in the folder labels, and "
                "what the lost lines said is done again without asking for them."
            )
        entries.append(found)
        checksum, good = int(line[-8:], 16), good + len(line) + 1
    return entries, good, data[good:].decode(errors="replace")


def _entry(line: bytes, before: int) -> Entry | None:
    """The entry of a line; None where its checksum is another one."""
    text, tab, digits = line.rpartition(b"\t")
    try:
        if not tab or int(digits, 16) != zlib.crc32(text, before):
            return None
        entry = json.loads(text)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) and "event" in entry else None


class Journal:
    """A journal that is written; the one who writes holds its lock (see `snnp.files.hold`).

    Arguments:
        path: begun if it is not there; a torn last line is cut off, and that is noted.

    Raises:
        DataError: as `read_journal` says.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        torn = ""
        self.entries: list[Entry] = []
        self._size, self._checksum = 0, 0
        if path.exists():
            self.entries, self._size, torn = read_journal(path)
            with naming(path):
                os.truncate(path, self._size)
            if self.entries:
                with path.open("rb") as stream:
                    stream.seek(self._size - 9)
                    self._checksum = int(stream.read(8), 16)
        with naming(path):
            self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        if torn:
            self.write("torn", said=torn[:200])

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._file)

    def write(self, event: str, **values: Any) -> Entry:
        """Add a line; it is on the disk when this returns.

        Raises:
            OSError: with the name of the journal; nothing of the line is left then.
        """
        entry: Entry = jsonable(
            {"event": event, "time": datetime.now(UTC).isoformat(timespec="milliseconds"), **values}
        )
        text = json.dumps(entry, ensure_ascii=False, allow_nan=False).encode()
        checksum = zlib.crc32(text, self._checksum)
        line = text + b"\t%08x\n" % checksum
        with naming(self.path):
            try:
                written = 0
                while written < len(line):
                    written += os.write(self._file, line[written:])
                os.fsync(self._file)
            except OSError:
                with suppress(OSError):
                    os.ftruncate(self._file, self._size)
                raise
        self._size, self._checksum = self._size + len(line), checksum
        self.entries.append(entry)
        return entry

    def of(self, event: str, **wanted: Any) -> Iterator[Entry]:
        """The entries of this kind with these values, oldest first."""
        for entry in self.entries:
            if entry["event"] == event and all(entry.get(name) == value for name, value in wanted.items()):
                yield entry
