"""Splits: which frames train, validate and test; the same for the same seed on every machine, and saved as a file."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from snnp.data.frames import Frame, Frames
from snnp.data.reference import are_isolated_atoms
from snnp.errors import DataError
from snnp.files import write_atomically

__all__ = ["Split", "load_split", "save_split", "split_frames"]

_FORMAT = "snnp-split"
_PARTS = ("train", "valid", "test")


@dataclass(frozen=True)
class Split:
    """A data set in three parts, each in the order of the data set."""

    train: Frames
    valid: Frames
    test: Frames


def split_frames(frames: Sequence[Frame], valid: float = 0.1, test: float = 0.0, seed: int = 0) -> Split:
    """Divide frames into train, valid and test, each group in proportion.

    The choice depends on the seed and on the frames' `source` and `group` only: neither on the order of the frames nor
    on the versions of any library. Isolated atoms always train: they fix E0 and are no test of anything. Repeated
    sources are refused, and what would leave nothing to train on.

    Arguments:
        valid, test: each a fraction of the frames in [0, 1), or a whole number of them.
        seed: another seed draws another split.
    """
    frames = _unique(frames)
    pool: dict[str, list[str]] = {}
    for source, group, isolated in zip(frames.sources, frames.groups, are_isolated_atoms(frames), strict=True):
        if not isolated:
            pool.setdefault(group or "", []).append(source)
    # A hash orders the frames: unlike a random generator's stream it is fixed for good.
    draw = {source: hashlib.sha256(f"{seed}\n{source}".encode()).digest() for source in frames.sources}
    pool = {group: sorted(pool[group], key=draw.__getitem__) for group in sorted(pool)}
    total = sum(len(sources) for sources in pool.values())
    n_test, n_valid = (_number(name, value, total) for name, value in (("test", test), ("valid", valid)))
    if n_valid + n_test >= len(frames):
        raise DataError(
            f"{n_valid} validation and {n_test} test frames leave nothing to train on, out of {len(frames)} frames; "
            "ask for fewer."
        )
    part_of = {}
    for part, number in (("test", n_test), ("valid", n_valid)):
        taken = _shares({group: len(sources) for group, sources in pool.items()}, number)
        for group, share in taken.items():
            part_of.update(dict.fromkeys(pool[group][:share], part))
            pool[group] = pool[group][share:]
    parts = np.array([part_of.get(source, "train") for source in frames.sources])
    return Split(*(frames.take(parts == part) for part in _PARTS))


def save_split(split: Split, path: str | Path, *, checksums: bool = False) -> None:
    """Write the sources of each part as JSON, atomically; with checksums, changed frames are noticed on loading."""
    parts = {part: getattr(split, part) for part in _PARTS}
    content: dict[str, Any] = {part: list(frames.sources) for part, frames in parts.items()}
    if checksums:
        content["checksums"] = {part: [_checksum(frame) for frame in frames] for part, frames in parts.items()}
    content = {"format": _FORMAT, **content}
    write_atomically(Path(path), (json.dumps(content, indent=1) + "\n").encode())


def load_split(path: str | Path, frames: Sequence[Frame]) -> Split:
    """Restore a split of `frames` from a file written by `save_split`; frames that it does not name are of no part.

    Raises `DataError` for a missing file, one that is no split, or names a frame that is not there or has changed.
    """
    frames = _unique(frames)
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as a split file: {error}.") from error
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise DataError(f"{path} is not a split file (no format '{_FORMAT}'); write one with save_split.")
    rows = {source: row for row, source in enumerate(frames.sources)}
    parts: dict[str, Frames] = {}
    for part in _PARTS:
        sources = content.get(part, [])
        if missing := [source for source in sources if source not in rows]:
            raise DataError(
                f"{path} names {len(missing)} frames that the data does not hold, the first is '{missing[0]}'; "
                "give the data files that the split was made from."
            )
        found = parts[part] = frames.take([rows[source] for source in sources])
        checksums = content.get("checksums", {}).get(part)
        if checksums is None:  # early files have none
            continue
        changed = [frame.source for frame, known in zip(found, checksums, strict=False) if _checksum(frame) != known]
        if changed or len(found) != len(checksums):
            raise DataError(
                f"{len(changed)} frames have changed since {path} was written, the first is "
                f"'{(changed or ['none'])[0]}'; give the data files that the split was made from."
            )
    return Split(**parts)


def _checksum(frame: Frame) -> str:
    """Of all that a model can learn from a frame."""
    structure, labels = frame.structure, (frame.energy, frame.forces, frame.stress, frame.energies)
    arrays = [each.numpy() for each in (structure.numbers, structure.positions, structure.cell, structure.pbc)]
    arrays += [np.array(value, dtype=float) for value in labels if value is not None]
    present = repr([value is not None for value in labels[:3]])  # as in early files
    return hashlib.sha256(present.encode() + b"".join(array.tobytes() for array in arrays)).hexdigest()[:16]


def _unique(frames: Sequence[Frame]) -> Frames:
    frames = Frames.of(frames)
    for source, number in Counter(frames.sources).items():
        if number > 1:
            raise DataError(f"two frames have the source '{source}'; read all files in one read_frames call.")
    return frames


def _number(name: str, value: float, total: int) -> int:
    if value < 0 or (value >= 1 and value != int(value)):
        raise DataError(f"{name} must be a fraction in [0, 1) or a whole number of frames, got {value}.")
    if value >= 1:
        return int(value)
    # At least one where any were asked for: an empty part would silently switch its use off.
    return max(1, round(value * total)) if value > 0 else 0


def _shares(sizes: dict[str, int], number: int) -> dict[str, int]:
    """Divide `number` over groups in proportion to their sizes: largest remainder, ties in the order of names."""
    total = sum(sizes.values())
    if number > total:
        raise DataError(f"{number} frames were asked for but only {total} are left to choose from.")
    exact = {group: number * size / total for group, size in sizes.items()} if total else {}
    shares = {group: int(value) for group, value in exact.items()}
    by_remainder = sorted(exact, key=lambda group: (shares[group] - exact[group], group))
    for group in by_remainder[: number - sum(shares.values())]:
        shares[group] += 1
    return shares
