"""From `Frames` to files: extended XYZ that holds every digit, and parquet in the column names of ColabFit.

| column | type | |
|---|---|---|
| `configuration_id` | string | unique in the file, such as "train.xyz#17" |
| `atomic_numbers` | list of int32 | |
| `positions`, `atomic_forces` | list of lists of float64 | Å, eV/Å; forces may be null |
| `cell`, `cauchy_stress` | 3x3 float64 | rows are lattice vectors, Å; eV/Å³ in ASE's sign; stress may be null |
| `pbc` | list of 3 bool | |
| `energy` | float64 | total energy, eV; may be null |
| `method`, `software` | string | the same in the whole file: one level of theory |
| `split` | string | "train", "valid", "test", ... |
| `nsites`, `chemical_formula_hill`, `labels` | int32, string, list of string | for people who look and search |
| `configuration_metadata` | string | JSON of all else, see `snnp.data.storage.contents` |

Parquet is compressed with zstd. The metadata of the file says `snnp`: format version and units.
"""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
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

__all__ = ["ParquetWriter", "write_frames", "xyz_lines"]

_log = logging.getLogger(__name__)
_FORMAT = {
    "format": "snnp-dataset",
    "format_version": 1,
    "units": {"energy": "eV", "length": "angstrom", "forces": "eV/angstrom", "cauchy_stress": "eV/angstrom^3"},
}
_GROUP_ROWS = 8192
_GROUP_ATOMS = 400_000  # 20 MB of positions and forces: what is unpacked to look at one frame
_LEVEL = 3  # of zstd; 9 takes twice the time and is no smaller (measured on mlearn and qm22)
# Bytes of the same place in all numbers come together: 1 to 6 % smaller than plain, read 10 to 20 % faster (same sets).
_FLOATS = (
    "positions.list.element.list.element",
    "atomic_forces.list.element.list.element",
    "cell.list.element.list.element",
    "cauchy_stress.list.element.list.element",
    "energy",
)
_INTEGERS = ("atomic_numbers.list.element", "nsites")


def write_frames(pieces: Iterable[tuple[str, Frames]], path: str | Path, method: str, software: str) -> int:
    """Write frames with the split that they belong to, whole or not at all.

    Arguments:
        pieces: split, and frames.
        path: ends in .parquet, .xyz or .extxyz.
        method: level of theory; parquet must have it.
        software: program that computed the labels.

    Returns:
        The number of frames.

    Raises:
        DataError: for another ending, or nothing to write.
    """
    path, rows = Path(path), 0
    if path.suffix.lower() == ".parquet":
        with ParquetWriter(path, method, software) as writer:
            for split, frames in pieces:
                writer.add(frames, split)
        return writer.rows
    if path.suffix.lower() not in XYZ:
        raise DataError(f"{path} has no ending that is known here; use .parquet, .xyz or .extxyz.")
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as stream:
        said: set[str] = set()
        for _, frames in pieces:
            stream.writelines(xyz_lines(frames, said))
            rows += len(frames)
    return rows


def xyz_lines(block: Frames, said: set[str] | None = None) -> Iterator[str]:
    """The text of each frame in extended XYZ, with the shortest digits that give back the same numbers.

    Arguments:
        block: the frames.
        said: warnings of the same file, which are given once.

    Raises:
        DataError: for metadata that would not be read as they were meant.
    """
    said = set() if said is None else said
    for row in range(len(block)):
        one = block[row : row + 1]
        labels, extras = contents_of(one)
        forces = labels.pop(extras.names.get("forces", "forces"), None)
        columns: list[tuple[str, np.ndarray]] = [("pos", one.positions)]
        columns += [] if forces is None else [(extras.names.get("forces", "forces"), forces)]
        columns += list(extras.arrays.items())
        comment = _comment(one, extras, labels, columns)
        if extras.info or extras.arrays or extras.names:
            _check_comment(comment, {*labels, *extras.info}, columns, one)
            _say_rivals(extras, said, one.sources[0] if one.sources else "a frame")
        yield f"{len(one.numbers)}\n{comment}\n" + "\n".join(_rows(one, columns)) + "\n"


def _check_comment(comment: str, names: set[str], columns: list[tuple[str, np.ndarray]], one: Frames) -> None:
    """What is written must be read as it was meant: metadata of other programs may have any names."""
    where = one.sources[0] if one.sources else "a frame"
    try:
        comment.encode()
        found = read_comment(comment, where, {})
        whole = not set("\r\n") & set(comment) and set(found) - {"Lattice", "Properties", "pbc"} == names
        whole = whole and found["pbc"] == one.pbc[0].tolist()
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


def _comment(one: Frames, extras: Extras, labels: dict[str, Any], columns: Iterable[tuple[str, np.ndarray]]) -> str:
    pairs = []
    if one.cell[0].any():
        pairs.append(f'Lattice="{_matrix(one.cell[0].T)}"')
    kinds = {"f": "R", "i": "I", "u": "I", "b": "L", "U": "S"}
    fields = [f"{name}:{kinds[array.dtype.kind]}:{array[0].size}" for name, array in columns]
    pairs.append("Properties=" + ":".join(["species:S:1", *fields]))
    for name, value in {**labels, **extras.info}.items():
        special = name in ("stress", "virial") and np.shape(value) == (3, 3)
        pairs.append(f'{name}="{_matrix(value)}"' if special else write_pair(name, value))
    flags = " ".join("T" if periodic else "F" for periodic in one.pbc[0])
    return " ".join([*pairs, f'pbc="{flags}"'])


def _matrix(value: np.ndarray) -> str:
    """Nine numbers, column by column."""
    return " ".join(map(repr, np.asarray(value).ravel(order="F").tolist()))


def _rows(one: Frames, columns: Iterable[tuple[str, np.ndarray]]) -> Iterator[str]:
    """One line per atom."""
    texts: list[list[str]] = [[chemical_symbols[number] for number in one.numbers]]
    for name, array in columns:
        flat = array.reshape(len(array), -1)
        for values in flat.T.tolist():
            if array.dtype.kind == "b":
                texts.append(["T" if value else "F" for value in values])
            elif array.dtype.kind == "U":
                if any(not value or value.split() != [value] for value in values):
                    raise DataError(f"the texts of {name} have spaces, which extended XYZ cannot hold; use parquet.")
                texts.append(values)
            else:
                texts.append(list(map(repr, values)))
    return (" ".join(row) for row in zip(*texts, strict=True))


def schema() -> Any:
    """The columns and their types, as an Arrow schema."""
    pa = arrow()
    vectors = pa.list_(pa.list_(pa.float64()))
    return pa.schema(
        [
            ("configuration_id", pa.string()),
            ("split", pa.string()),
            ("atomic_numbers", pa.list_(pa.int32())),
            ("positions", vectors),
            ("cell", vectors),
            ("pbc", pa.list_(pa.bool_())),
            ("energy", pa.float64()),
            ("atomic_forces", vectors),
            ("cauchy_stress", vectors),
            ("method", pa.string()),
            ("software", pa.string()),
            ("nsites", pa.int32()),
            ("chemical_formula_hill", pa.string()),
            ("labels", pa.list_(pa.string())),
            ("configuration_metadata", pa.string()),
        ],
        metadata={FORMAT_KEY: json.dumps(_FORMAT).encode()},
    )


def columns_of(block: Frames, splits: Sequence[str], method: str, software: str) -> Any:
    """A block as an Arrow table.

    Arguments:
        block: with ids.
        splits: [B] split of each frame.
        method, software: level of theory, and the program that computed it.
    """
    pa = arrow()
    b = len(block)
    starts = block.starts
    offsets = starts.astype(np.int32)
    groups = pa.array([None if group is None else [group] for group in block.groups], pa.list_(pa.string()))
    columns = {
        "configuration_id": pa.array(block.sources, pa.string()),
        "split": pa.array(splits, pa.string()),
        "atomic_numbers": pa.ListArray.from_arrays(offsets, pa.array(block.numbers, pa.int32())),
        "positions": pa.ListArray.from_arrays(offsets, _triples(block.positions)),
        "cell": pa.ListArray.from_arrays(_steps(b, 3), _triples(block.cell)),
        "pbc": pa.ListArray.from_arrays(_steps(b, 3), pa.array(block.pbc.ravel())),
        "energy": pa.array(block.energy, pa.float64(), mask=~block.has_energy),
        "atomic_forces": _forces(block),
        "cauchy_stress": _stresses(block),
        "method": pa.array([method] * b, pa.string()),
        "software": pa.array([software] * b, pa.string()),
        "nsites": pa.array(block.counts, pa.int32()),
        "chemical_formula_hill": pa.array(_formulas(block), pa.string()),
        "labels": groups,
        "configuration_metadata": pa.array(block.extras, pa.string()),
    }
    return pa.table(columns, schema=schema())


def _steps(number: int, step: int) -> np.ndarray:
    return np.arange(0, number * step + 1, step, dtype=np.int32)


def _triples(values: np.ndarray) -> Any:
    """[..., 3] numbers as a list of lists of three."""
    pa = arrow()
    return pa.ListArray.from_arrays(_steps(values.size // 3, 3), pa.array(np.ascontiguousarray(values).ravel()))


def _forces(block: Frames) -> Any:
    """Null where there are none: such frames take no room."""
    kept = np.repeat(block.has_forces, block.counts)
    offsets = np.concatenate([[0], np.cumsum(np.where(block.has_forces, block.counts, 0))])
    return _with_nulls(offsets, _triples(block.forces[kept]), block.has_forces)


def _stresses(block: Frames) -> Any:
    offsets = np.concatenate([[0], np.cumsum(3 * block.has_stress)])
    return _with_nulls(offsets, _triples(block.stress[block.has_stress]), block.has_stress)


def _with_nulls(offsets: np.ndarray, values: Any, known: np.ndarray) -> Any:
    pa = arrow()
    mask = None if known.all() else pa.array(~known)
    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), values, mask=mask)


def _formulas(block: Frames) -> list[str]:
    """Formulas in Hill's order."""
    known: dict[bytes, str] = {}
    formulas = []
    starts = block.starts
    for first, last in itertools.pairwise(starts.tolist()):
        key = block.numbers[first:last].tobytes()
        if key not in known:
            known[key] = _hill(block.numbers[first:last])
        formulas.append(known[key])
    return formulas


def _hill(numbers: np.ndarray) -> str:
    """Carbon, hydrogen, then the others by letter; without carbon all by letter."""
    counts = {chemical_symbols[z]: n for z, n in enumerate(np.bincount(numbers).tolist()) if n and z < 119}
    first = [symbol for symbol in ("C", "H") if "C" in counts and symbol in counts]
    order = first + sorted(set(counts) - set(first))
    return "".join(f"{symbol}{counts[symbol] if counts[symbol] > 1 else ''}" for symbol in order)


class ParquetWriter:
    """Writes blocks into one parquet file; the file appears whole when the `with` block ends, or not at all.

    Arguments:
        path: of the file.
        method: level of theory, such as "DFT-PBE"; one for the whole file.
        software: program that computed the labels.

    Frames of one split should come together: `load_dataset(..., split=...)` then skips the rest without looking at it.

    Example:
        with ParquetWriter("copper.parquet", "DFT-PBE", "VASP") as writer:
            for block in read_xyz("train.xyz"):
                writer.add(block, "train")
    """

    def __init__(self, path: str | Path, method: str, software: str) -> None:
        if not method.strip():
            raise DataError("a dataset needs its level of theory; give method='DFT-PBE', for example.")
        self.path = Path(path)
        self.rows = 0
        self._method, self._software = method, software
        self._waiting: list[tuple[Frames, str]] = []
        self._ids: list[np.ndarray] = []  # hashes: the names of millions of frames would fill the memory
        self._stack = ExitStack()
        self._temporary: Path | None = None
        self._file: Any = None

    def __enter__(self) -> ParquetWriter:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._temporary = self._stack.enter_context(replacing(self.path))
        self._file = parquet().ParquetWriter(
            self._temporary,
            schema(),
            compression="zstd",
            compression_level=_LEVEL,
            use_dictionary=["split", "method", "software", "chemical_formula_hill", "labels.list.element", *_INTEGERS],
            write_statistics=["split", "method", "software"],
            column_encoding=dict.fromkeys(_FLOATS, "BYTE_STREAM_SPLIT"),
        )
        return self

    def add(self, block: Frames, split: str) -> None:
        """Add frames to a split.

        Raises:
            DataError: for an unfit name of a split.
        """
        if not split.replace("_", "").isalnum():
            raise DataError(f"{split!r} is no name of a split; use letters, digits and _, as in train.")
        self._ids.append(np.array([hash(one) for one in block.sources], dtype=np.int64))
        for first in range(0, len(block), _GROUP_ROWS):
            self._waiting.append((block[first : min(first + _GROUP_ROWS, len(block))], split))
            rows = sum(len(each) for each, _ in self._waiting)
            atoms = sum(len(each.numbers) for each, _ in self._waiting)
            if rows >= _GROUP_ROWS or atoms >= _GROUP_ATOMS:
                self._flush()

    def _flush(self) -> None:
        """Write what is waiting as one row group."""
        if not self._waiting:
            return
        splits = [split for block, split in self._waiting for _ in range(len(block))]
        block = Frames.concatenate([block for block, _ in self._waiting])
        self._file.write_table(columns_of(block, splits, self._method, self._software), row_group_size=len(block))
        self.rows += len(block)
        self._waiting = []

    def _check_ids(self) -> None:
        if len(np.unique(np.concatenate(self._ids))) == self.rows:
            return
        ids = parquet().read_table(self._temporary, columns=["configuration_id"])["configuration_id"]
        counts = {one["values"]: one["counts"] for one in ids.value_counts().to_pylist()}
        twice = next((one for one, number in counts.items() if number > 1), None)
        if twice is not None:
            raise DataError(f"two frames have the id {twice!r}; files of one name need labels that tell them apart.")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            with suppress(OSError):  # the first error counts
                self._file.close()
            self._stack.__exit__(kind, error, trace)
            return
        with self._stack:
            self._flush()
            if self.rows == 0:
                raise DataError(f"there are no frames to write into {self.path}.")
            self._file.close()
            self._check_ids()
