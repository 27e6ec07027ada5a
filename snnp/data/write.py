"""From `Frames` to files: extended XYZ that holds every digit, and parquet in the column names of ColabFit.

The columns are those of docs/datasets.md. Parquet is compressed with zstd; the metadata of the file says `snnp`: format
version and units.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from ase.data import chemical_symbols

from snnp.data.frames import Frames
from snnp.data.labels import outranked
from snnp.data.storage.contents import LABELS, Extras, contents_of
from snnp.data.storage.extxyz import XYZ
from snnp.data.storage.extxyz_comment import read_comment, write_pair
from snnp.data.storage.parquet import FORMAT_KEY, arrow, parquet
from snnp.errors import DataError
from snnp.files import replacing

__all__ = ["ParquetWriter", "parquet_writer", "write_frames", "xyz_lines"]

_log = logging.getLogger(__name__)
_FORMAT = {
    "format": "snnp-dataset",
    "format_version": 1,
    "units": {"energy": "eV", "length": "angstrom", "forces": "eV/angstrom", "cauchy_stress": "eV/angstrom^3"},
}
_KINDS = {"f": "R", "i": "I", "u": "I", "b": "L", "U": "S"}  # of columns in extended XYZ, by that of an array
_GROUP_ROWS = 8192
_GROUP_ATOMS = 400_000  # 20 MB of positions and forces: what is unpacked to look at one frame
_LEVEL = 3  # of zstd; 9 takes twice the time and is no smaller (measured on mlearn and qm22)
# Bytes of the same place in all numbers come together: 1 to 6 % smaller than plain, read 10 to 20 % faster (same sets).
_VECTORS = ("positions", "atomic_forces", "cell", "cauchy_stress")
_FLOATS = (*(f"{name}.list.element.list.element" for name in _VECTORS), "energy", "atomic_energies.list.element")
_INTEGERS = ("atomic_numbers.list.element", "nsites")


def write_frames(pieces: Iterable[tuple[str, Frames]], path: str | Path, method: str, software: str) -> int:
    """Write frames with the split that they belong to, whole or not at all, and return their number.

    `path` ends in .parquet, which must have a `method` (level of theory), .xyz or .extxyz.
    """
    path = Path(path)
    if path.suffix.lower() == ".parquet":
        with parquet_writer(path, method, software) as writer:
            for split, frames in pieces:
                writer.add(frames, split)
        return writer.rows
    if path.suffix.lower() not in XYZ:
        raise DataError(f"{path} has no ending that is known here; use .parquet, .xyz or .extxyz.")
    path.parent.mkdir(parents=True, exist_ok=True)
    rows, said = 0, set[str]()
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as stream:
        for _, frames in pieces:
            stream.writelines(xyz_lines(frames, said))
            rows += len(frames)
    return rows


def xyz_lines(frames: Frames, said: set[str] | None = None) -> Iterator[str]:
    """The text of each frame in extended XYZ, with the shortest digits that give back the same numbers.

    Refuses metadata that would not be read as they were meant; warnings are given once for what was `said`.
    """
    said = set() if said is None else said
    for row in range(len(frames)):
        one = frames[row : row + 1]
        labels, extras = contents_of(one)
        where = one.sources[0] if one.sources else "a frame"
        forces = labels.pop(extras.names.get("forces", "forces"), None)
        columns: list[tuple[str, np.ndarray]] = [("pos", one.positions)]
        columns += [] if forces is None else [(extras.names.get("forces", "forces"), forces)]
        columns += [("energies", labels.pop("energies"))] if "energies" in labels else []
        columns += list(extras.arrays.items())
        pairs = [f'Lattice="{_matrix(one.cell[0].T)}"'] if one.cell[0].any() else []
        fields = [f"{name}:{_KINDS[array.dtype.kind]}:{array[0].size}" for name, array in columns]
        pairs.append("Properties=" + ":".join(["species:S:1", *fields]))
        for name, value in {**labels, **extras.info}.items():
            special = name in ("stress", "virial") and np.shape(value) == (3, 3)
            pairs.append(f'{name}="{_matrix(value)}"' if special else write_pair(name, value))
        comment = " ".join([*pairs, f'pbc="{" ".join(_words(one.pbc[0]))}"'])
        if extras.info or extras.arrays or extras.names:
            _check_comment(comment, {*labels, *extras.info}, columns, one.pbc[0], where)
            _say_rivals(extras, said, where)
        yield f"{len(one.numbers)}\n{comment}\n" + "\n".join(_rows(one, columns)) + "\n"


def _check_comment(
    comment: str, names: set[str], columns: list[tuple[str, np.ndarray]], pbc: np.ndarray, where: str
) -> None:
    """What is written must be read as it was meant: metadata of other programs may have any names."""
    try:
        comment.encode()
        found = read_comment(comment, where, {})
        whole = not set("\r\n") & set(comment) and set(found) - {"Lattice", "Properties", "pbc"} == names
        whole = whole and found["pbc"] == pbc.tolist()
        whole = whole and all(array[0].size and not set(name) & set(': \t"') for name, array in columns)
        reason = "" if whole else ": names that stand for something else, or hold spaces"
    except (DataError, UnicodeEncodeError) as error:
        whole, reason = False, f" ({str(error).removeprefix(f'{where}: ')[:100]})"
    if not whole:
        raise DataError(f"{where}: its metadata cannot be written as extended XYZ{reason}; rename, or use parquet.")


def _say_rivals(extras: Extras, said: set[str], where: str) -> None:
    """Of two energies, both of which are kept, a reader must be told which one was meant."""
    for quantity in LABELS:
        name = extras.names.get(quantity, quantity)
        others = ", ".join(outranked(name, extras.arrays if quantity == "forces" else extras.info))
        if others and f"{name}: {others}" not in said:
            said.add(f"{name}: {others}")
            _log.warning(
                "%s: beside its %s it says %s, which a reader of extended XYZ may take instead; read what is written "
                "with --%s-key %s (data.%s_key).",
                *(where, name, others, quantity, name, quantity),
            )


def _matrix(value: np.ndarray) -> str:
    return " ".join(map(repr, np.asarray(value).ravel(order="F").tolist()))


def _rows(one: Frames, columns: Iterable[tuple[str, np.ndarray]]) -> Iterator[str]:
    texts: list[list[str]] = [[chemical_symbols[number] for number in one.numbers]]
    for name, array in columns:
        texts += (_words(values) for values in array.reshape(len(array), -1).T)
        if array.dtype.kind == "U" and any(text.split() != [text] for text in array.ravel().tolist()):
            raise DataError(f"the texts of {name} have spaces, which extended XYZ cannot hold; use parquet.")
    return (" ".join(row) for row in zip(*texts, strict=True))


def _words(values: np.ndarray) -> list[str]:
    if values.dtype.kind == "b":
        return ["T" if value else "F" for value in values]
    return values.tolist() if values.dtype.kind == "U" else list(map(repr, values.tolist()))


def _table(frames: Frames, splits: Sequence[str], method: str, software: str) -> Any:
    pa = arrow()
    b, threes = len(frames), np.full(len(frames), 3)
    columns = {
        "configuration_id": pa.array(frames.sources, pa.string()),
        "split": pa.array(splits, pa.string()),
        "atomic_numbers": _lists(frames.counts, frames.numbers.astype(np.int32)),
        "positions": _lists(frames.counts, frames.positions),
        "cell": _lists(threes, frames.cell.reshape(-1, 3)),
        "pbc": _lists(threes, frames.pbc.ravel()),
        "energy": pa.array(frames.energy, pa.float64(), mask=~frames.has_energy),
        "atomic_forces": _lists(frames.counts, frames.forces, frames.has_forces),
        "cauchy_stress": _lists(threes, frames.stress.reshape(-1, 3), frames.has_stress),
        "atomic_energies": _lists(frames.counts, frames.energies, frames.has_energies),
        "method": pa.array([method] * b, pa.string()),
        "software": pa.array([software] * b, pa.string()),
        "nsites": pa.array(frames.counts, pa.int32()),
        "chemical_formula_hill": pa.array(_formulas(frames), pa.string()),
        "labels": pa.array([None if group is None else [group] for group in frames.groups], pa.list_(pa.string())),
        "configuration_metadata": pa.array(frames.extras, pa.string()),
    }
    return pa.table(columns, metadata={FORMAT_KEY: json.dumps(_FORMAT).encode()})


def _lists(counts: np.ndarray, values: np.ndarray, known: np.ndarray | None = None) -> Any:
    """So many values or vectors for each frame; frames where they are not known are null, and take no room."""
    pa = arrow()
    if known is not None:
        counts, values = np.where(known, counts, 0), values[np.repeat(known, counts)]
    inner = pa.array(values) if values.ndim == 1 else _lists(np.full(len(values), 3), values.ravel())
    offsets = pa.array(np.concatenate([[0], np.cumsum(counts)]).astype(np.int32))
    return pa.ListArray.from_arrays(offsets, inner, mask=None if known is None or known.all() else pa.array(~known))


def _formulas(frames: Frames) -> list[str]:
    """In Hill's order: carbon, hydrogen, then the others by letter; without carbon all by letter."""
    kinds, kind = np.unique(frames.composition(), axis=0, return_inverse=True)
    names = []
    for row in kinds.tolist():
        counts = {symbol: n for symbol, n in zip(frames.elements, row, strict=True) if n}
        order = sorted(counts, key=lambda symbol: ("C" not in counts or symbol not in ("C", "H"), symbol))
        names.append("".join(f"{symbol}{counts[symbol] if counts[symbol] > 1 else ''}" for symbol in order))
    return [names[k] for k in kind.ravel()]


@contextmanager
def parquet_writer(path: str | Path, method: str, software: str) -> Iterator[ParquetWriter]:
    """Write frames of one level of theory into a parquet file; it appears whole when the `with` block ends, or never.

    Frames of one split should come together: `load_dataset(..., split=...)` then skips the rest without looking at it.

    Example:
        with parquet_writer("copper.parquet", "DFT-PBE", "VASP") as writer:
            for frames in read_xyz("train.xyz"):
                writer.add(frames, "train")
    """
    if not method.strip():
        raise DataError("a dataset needs its level of theory; give method='DFT-PBE', for example.")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        writer = ParquetWriter(temporary, method, software)
        try:
            yield writer
            writer.flush()
        except BaseException:
            with suppress(OSError):  # the first error counts
                writer.close()
            raise
        if writer.rows == 0:
            raise DataError(f"there are no frames to write into {path}.")
        writer.close()
        writer.check_ids()


class ParquetWriter:
    """What `parquet_writer` gives."""

    def __init__(self, path: Path, method: str, software: str) -> None:
        self.rows = 0
        self._path, self._method, self._software = path, method, software
        self._waiting: list[tuple[Frames, str]] = []
        self._ids: list[np.ndarray] = []  # hashes: the names of millions of frames would fill the memory
        self._file: Any = None

    def add(self, frames: Frames, split: str) -> None:
        """Add frames to a split; refuses an unfit name of one."""
        if not split.replace("_", "").isalnum():
            raise DataError(f"{split!r} is no name of a split; use letters, digits and _, as in train.")
        self._ids.append(np.array([hash(one) for one in frames.sources], dtype=np.int64))
        for first in range(0, len(frames), _GROUP_ROWS):
            self._waiting.append((frames[first : first + _GROUP_ROWS], split))
            rows = sum(len(each) for each, _ in self._waiting)
            atoms = sum(len(each.numbers) for each, _ in self._waiting)
            if rows >= _GROUP_ROWS or atoms >= _GROUP_ATOMS:
                self.flush()

    def flush(self) -> None:
        """Write what is waiting as one row group."""
        if not self._waiting:
            return
        splits = [split for frames, split in self._waiting for _ in range(len(frames))]
        table = _table(Frames.concatenate([each for each, _ in self._waiting]), splits, self._method, self._software)
        if self._file is None:
            texts = ["split", "method", "software"]
            self._file = parquet().ParquetWriter(
                self._path,
                table.schema,
                compression="zstd",
                compression_level=_LEVEL,
                use_dictionary=[*texts, "chemical_formula_hill", "labels.list.element", *_INTEGERS],
                write_statistics=texts,
                column_encoding=dict.fromkeys(_FLOATS, "BYTE_STREAM_SPLIT"),
            )
        self._file.write_table(table, row_group_size=len(table))
        self.rows += len(table)
        self._waiting = []

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def check_ids(self) -> None:
        """Refuse two frames of one name."""
        if len(np.unique(np.concatenate(self._ids))) == self.rows:
            return
        ids = parquet().read_table(self._path, columns=["configuration_id"])["configuration_id"]
        for one in ids.value_counts().to_pylist():
            if one["counts"] > 1:
                raise DataError(f"two frames have the id {one['values']!r}; files of one name need different labels.")
