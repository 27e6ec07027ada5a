"""The CSV log of a run: one row per sample, flushed as it is written, cut back to the checkpoint on resuming."""

from __future__ import annotations

import csv
import hashlib
import math
import os
from contextlib import suppress
from pathlib import Path

from snnp.errors import InputError
from snnp.files import naming
from snnp.sampling.checkpoint import FileMark
from snnp.sampling.snapshot import Sample

__all__ = ["LogWriter", "check_mark", "cut_back", "mark_file", "read_log", "size_of"]


_TAIL = 64
"""Bytes before a mark whose checksum tells files apart: shorter than a frame, longer than what all have in common."""


def size_of(path: Path) -> int:
    """Bytes of an ordinary file; 0 of others, such as /dev/null."""
    return path.stat().st_size if path.is_file() else 0


def mark_file(path: Path, n_bytes: int, n_frames: int) -> FileMark:
    """How far a file was written, once all of that is safely on disk.

    Raises:
        InputError: the file does not hold these bytes.
        OSError: names the file; the disk may be full only now.
    """
    if path.exists() and not path.is_file():
        return FileMark(0, n_frames)
    if size_of(path) != n_bytes:
        raise InputError(
            f"'{path}' holds {size_of(path)} bytes although {n_bytes} were written; "
            "another program has changed it while the run went on."
        )
    with naming(path), open(path, "rb+") as file:
        os.fsync(file.fileno())
    return FileMark(n_bytes, n_frames, _tail(path, n_bytes))


def _tail(path: Path, n_bytes: int) -> str:
    with open(path, "rb") as file:
        file.seek(max(0, n_bytes - _TAIL))
        return hashlib.sha256(file.read(min(_TAIL, n_bytes))).hexdigest()[:16]


def cut_back(path: Path, mark: FileMark) -> None:
    """Cut a file back to where it stood at a checkpoint; raises as `check_mark` does."""
    check_mark(path, mark)
    if path.is_file():
        os.truncate(path, mark.n_bytes)


def check_mark(path: Path, mark: FileMark) -> None:
    """See that a file is the one that stood at a mark.

    Raises:
        InputError: the file is missing, shorter than it was, or another one, so it is not that of the run.
    """
    if path.exists() and not path.is_file():
        return
    if size_of(path) < mark.n_bytes:
        raise InputError(
            f"'{path}' holds {size_of(path)} bytes but had {mark.n_bytes} at the checkpoint; "
            "put the file of the interrupted run back, or start a new run."
        )
    if mark.tail and mark.tail != _tail(path, mark.n_bytes):
        raise InputError(
            f"'{path}' is not the file that the run wrote: it differs before byte {mark.n_bytes}, where the checkpoint "
            "was taken; put the file of the interrupted run back, or start a new run."
        )


class LogWriter:
    """Writes samples to a CSV file whose columns are the fields of `Sample`; empty where a quantity does not exist.

    Arguments:
        path: the file; replaced unless resuming.
        mark: where the file stood at the checkpoint to resume from, or None for a new file.
    """

    def __init__(self, path: Path, mark: FileMark | None = None) -> None:
        if mark is not None:
            cut_back(path, mark)
        self._file = open(path, "w" if mark is None else "a", newline="", encoding="utf-8")  # noqa: SIM115
        self._path = path
        self._n_rows = 0 if mark is None else mark.n_frames
        self._n_bytes = 0 if mark is None else mark.n_bytes
        if mark is None:
            try:
                self._append(",".join(Sample._fields))
            except OSError:
                with suppress(OSError):
                    self.close()
                raise

    def write(self, sample: Sample) -> None:
        """Append one row."""
        cells = [str(sample.step), f"{sample.time_ps:.6f}"]
        cells += ["" if math.isnan(value) else f"{value:.8f}" for value in sample[2:]]
        self._append(",".join(cells))
        self._n_rows += 1

    def _append(self, line: str) -> None:
        with naming(self._path):
            self._file.write(line + "\n")
            self._file.flush()
        self._n_bytes += len(line) + 1

    def mark(self) -> FileMark:
        """Where the file stands now, safely on disk."""
        return mark_file(self._path, self._n_bytes, self._n_rows)

    def close(self) -> None:
        """Close the file."""
        with naming(self._path):  # after a full disk it tries once more to write
            self._file.close()


def read_log(path: Path) -> list[Sample]:
    """Read a log back."""
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    if not rows or tuple(rows[0]) != Sample._fields:
        raise InputError(f"'{path}' is not a molecular dynamics log: expected the columns {', '.join(Sample._fields)}.")
    return [Sample(int(row[0]), *(float(cell) if cell else math.nan for cell in row[1:])) for row in rows[1:]]
