"""From files of structures to parquet and back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from snnp.data.atoms import xyz_lines
from snnp.data.files import XYZ, labels_of, read_any
from snnp.data.frames import Frames
from snnp.data.labels import Keys
from snnp.data.parquet.writer import ParquetWriter
from snnp.errors import DataError
from snnp.files import replacing

__all__ = ["convert", "write_frames"]


def convert(
    files: Mapping[str, Sequence[str | Path]],
    target: str | Path,
    *,
    method: str = "",
    software: str = "",
    keys: Keys = Keys(),
    labelled: bool = True,
    workers: int = 1,
) -> int:
    """Write one file from several.

    Arguments:
        files: split -> files of that split.
        target: .parquet, or .xyz, .extxyz.
        method: level of theory; parquet must have it.
        software: program that computed the labels.
        keys: names and units of the labels in the files, where they are unusual.
        labelled: whether there must be energies.
        workers: files that are read at the same time, each in a process of its own.

    Returns:
        The number of frames.

    Raises:
        DataError: names the file that cannot be read.
    """
    target = Path(target)
    listed = [(split, Path(file)) for split, group in files.items() for file in group]
    if not listed:
        raise DataError("no file was given to convert; name at least one.")
    labels = labels_of([file for _, file in listed])
    jobs = [(file, keys, label, labelled) for (_, file), label in zip(listed, labels, strict=True)]
    found = _read_all(jobs, workers)
    if target.suffix.lower() == ".parquet":
        with ParquetWriter(target, method, software) as writer:
            for (split, _), blocks in zip(listed, found, strict=True):
                for block in blocks:
                    writer.add(block, split)
            rows = writer
        return rows.rows
    counts: list[int] = []
    every = (block for blocks in found for block in blocks)
    write_frames(_counted(every, counts), target, "train", method, software)
    return sum(counts)


def _counted(blocks: Iterable[Frames], counts: list[int]) -> Iterator[Frames]:
    for block in blocks:
        counts.append(len(block))
        yield block


_Job = tuple[Path, Keys, str, bool]


def _read_all(jobs: list[_Job], workers: int) -> Iterator[Iterable[Frames]]:
    """The blocks of each file in order."""
    if workers <= 1 or len(jobs) == 1:
        for path, keys, label, labelled in jobs:
            yield read_any(path, keys, label, labelled=labelled)
        return
    with ProcessPoolExecutor(min(workers, len(jobs))) as pool:
        yield from pool.map(_read_one, jobs)


def _read_one(job: _Job) -> list[Frames]:
    path, keys, label, labelled = job
    return list(read_any(path, keys, label, labelled=labelled))


def write_frames(blocks: Iterable[Frames], path: str | Path, split: str, method: str, software: str) -> Path:
    """Write blocks as extended XYZ or parquet, whole or not at all, and return the path.

    Raises:
        DataError: for another ending than .xyz, .extxyz, .parquet, or nothing to write.
    """
    path = Path(path)
    ending = path.suffix.lower()
    if ending == ".parquet":
        with ParquetWriter(path, method or "unknown", software) as writer:
            for block in blocks:
                writer.add(block, split)
        return path
    if ending not in XYZ:
        raise DataError(f"{path} has no ending that is known here; use .parquet, .xyz or .extxyz.")
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as stream:
        said: set[str] = set()
        for block in blocks:
            stream.writelines(xyz_lines(block, said))
    return path
