"""Reads a data set for examination: what cannot be read is a finding, and the rest is examined all the same."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from snnp.data import Frames, Keys, load_dataset
from snnp.data.read import dataset_files, is_xyz, labels_of, read_any
from snnp.doctor.survey import UNASSIGNED
from snnp.errors import DataError
from snnp.report import Finding

__all__ = ["read_set"]

_USUAL = ("train", "valid", "test", "all")
_NAMES = {name: name for name in _USUAL[:3]} | {"training": "train", "validation": "valid", "val": "valid"}


def read_set(
    sources: Sequence[str | Path], keys: Keys | None = None, *, part: str | None = None
) -> tuple[dict[str, Frames], list[Finding]]:
    """Read files, folders and datasets by name, and sort the frames into splits, the one that is trained on first.

    Splits are those of a dataset; for files, the word "train", "valid" or "test" in the name, or as in `train=FILE`.
    Others are "all", or "other" beside files that have one. Broken frames are a finding; sources that do not exist, or
    cannot be read at all, are refused.
    """
    named: list[tuple[str | None, str]] = []
    for text in map(str, sources):  # a path that holds "=" is taken as it is where it exists
        name, sign, rest = text.partition("=")
        given = bool(sign) and re.fullmatch(r"\w+", name) is not None and not Path(text).exists()
        named.append((name, rest) if given else (None, text))
    files = [(split, file) for split, source in named for file in _files(source)]
    labels = dict(zip(files, labels_of([file for _, file in files]), strict=True)) if files else {}
    parts: dict[str, list[Frames]] = defaultdict(list)
    broken: list[str] = []
    for (split, file), label in labels.items():
        parts[split or _split_in(file.name)] += read_any(file, keys or Keys(), label, labelled=False)
    for split, source in named:
        if not _files(source):
            dataset = load_dataset(source, part=part)
            for name in [each for each in dataset.splits if each] or [""]:
                parts[split or name or "all"] += (dataset.select(name) if name else dataset).chunks()
    frames = {name: Frames.concatenate([each.checked(broken) for each in found]) for name, found in parts.items()}
    frames = {name: found for name, found in frames.items() if len(found)}
    if len(frames) > 1 and "all" in frames:
        both = [*([frames[UNASSIGNED]] if UNASSIGNED in frames else []), frames.pop("all")]
        frames[UNASSIGNED] = Frames.concatenate(both)
    order = sorted(frames, key=lambda name: _USUAL.index(name) if name in _USUAL else len(_USUAL))
    unreadable = Finding(
        "readable",
        "error",
        f"{len(broken):,} frames cannot be read; the first: {''.join(broken[:1])}",
        "Training refuses the whole file because of them: NaN would spread to every parameter.",
        "Remove these frames or recompute them (failed calculations often leave NaN behind).",
        tuple(text.partition(": ")[0] for text in broken),
    )
    return {name: frames[name] for name in order}, [unreadable] if broken else []


def _files(source: str) -> list[Path]:
    """The files that a source stands for; none for datasets in parquet or by name."""
    path = Path(source)
    if path.is_file() and path.suffix.lower() != ".parquet":
        return [path]
    if not path.is_dir() or dataset_files(path):
        return []
    files = sorted(file for file in path.iterdir() if is_xyz(file))
    if not files:
        raise DataError(f"the folder {source} holds neither parquet nor extended XYZ files; name the files.")
    return files


def _split_in(name: str) -> str:
    """The split that a file's name speaks of, or "all"."""
    words = re.split(r"[^a-z]+", name.lower())
    return next((_NAMES[word] for word in words if word in _NAMES), "all")
