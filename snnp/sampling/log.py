"""The CSV log of a run: one row per sample, flushed as it is written, cut back to the checkpoint on resuming."""

from __future__ import annotations

import csv
import math
import os
from pathlib import Path

from snnp.errors import InputError
from snnp.sampling.checkpoint import FileMark
from snnp.sampling.snapshot import Sample

__all__ = ["LogWriter", "cut_back", "read_log"]


def cut_back(path: Path, mark: FileMark) -> None:
    """Cut a file back to where it stood at a checkpoint.

    Raises:
        InputError: the file is missing or shorter than it was, so it is not the one of that run.
    """
    size = path.stat().st_size if path.is_file() else 0
    if size < mark.n_bytes:
        raise InputError(
            f"'{path}' holds {size} bytes but had {mark.n_bytes} at the checkpoint; "
            "put the file of the interrupted run back, or start a new run."
        )
    os.truncate(path, mark.n_bytes)


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
        if mark is None:
            self._file.write(",".join(Sample._fields) + "\n")
            self._file.flush()

    def write(self, sample: Sample) -> None:
        """Append one row."""
        cells = [str(sample.step), f"{sample.time_ps:.6f}"]
        cells += ["" if math.isnan(value) else f"{value:.8f}" for value in sample[2:]]
        self._file.write(",".join(cells) + "\n")
        self._file.flush()
        self._n_rows += 1

    def mark(self) -> FileMark:
        """Where the file stands now, safely on disk."""
        os.fsync(self._file.fileno())
        return FileMark(self._path.stat().st_size, self._n_rows)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_log(path: Path) -> list[Sample]:
    """Read a log back."""
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    if not rows or tuple(rows[0]) != Sample._fields:
        raise InputError(f"'{path}' is not a molecular dynamics log: expected the columns {', '.join(Sample._fields)}.")
    return [Sample(int(row[0]), *(float(cell) if cell else math.nan for cell in row[1:])) for row in rows[1:]]
