"""The reader of extended XYZ: every frame of a file or an error that names file, frame and line.

Linear in time and bounded in memory, also where the file is packed (.gz, .bz2, .xz): it is gone through twice, once for
the names that occur in it and once for the frames. Blank lines may stand between frames and at the end.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import re
import zlib
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
from ase.calculators.calculator import all_properties
from ase.data import atomic_numbers

from snnp.data.frames import Frames
from snnp.data.labels import Keys, Names, Shape, Units, choose_names
from snnp.data.storage.contents import Said, made_frames
from snnp.data.storage.extxyz_comment import TRUTH, comment_names, integer, read_comment, real
from snnp.errors import DataError

__all__ = ["PACKED", "ROWS", "XYZ", "read_plain", "read_xyz"]

ROWS = 2048  # frames at once
_PIECE = 1 << 24  # bytes of a file looked at in one go
_RUN_BYTES = 1 << 26  # text of them
_LONGEST_LINE = 1 << 24  # bytes
_MOST_ATOMS = 100_000_000
_MOST_COLUMNS = 10_000
_LEAST_LINE = 8  # bytes: "H 0 0 0" and the end of the line
_MOST_UNPACKED, _MOST_RATIO = 1 << 28, 200  # of packed files: bytes, and bytes from each one
_NEWLINE = ord("\n")
_BLANK = re.compile(rb"\s*")
_DEFAULT_PROPERTIES = "species:S:1:pos:R:3"
_ARRAY_NAMES = {"pos": "positions", "Z": "numbers", "charge": "charges", "species": "symbols"}  # as ASE renames them
_NUMBERS = {symbol: number for symbol, number in atomic_numbers.items() if number > 0}
_MEANT: dict[str, Callable[[str], Any]] = {
    **{"R": real, "I": integer, "S": str, "L": TRUTH.__getitem__},
    "species": lambda text: _NUMBERS[text.capitalize()],
}
"""What a word of each kind says; ValueError or KeyError for what it cannot be."""
XYZ = (".xyz", ".extxyz")
PACKED: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
"""How files with these endings are opened."""

_Layout = tuple[tuple[str, str], ...]
"""Name and kind (R, I, S, L, or species) of what each word in a line of atoms says."""


@dataclass(frozen=True)
class _Text:
    """One frame as text, named `source` and, in errors, `where`; `line` is where it begins, counted from 1."""

    source: str
    line: int
    n_atoms: int
    comment: str
    atoms: bytes

    @property
    def where(self) -> str:
        return f"{self.source} (line {self.line})"


@dataclass
class _Run:
    """Consecutive frames of one layout, with their atoms' lines still as text."""

    layout: _Layout
    texts: list[_Text] = field(default_factory=list)
    infos: list[dict[str, Any]] = field(default_factory=list)
    size: int = 0


def read_xyz(
    path: str | Path, keys: Keys = Keys(), label: str | None = None, *, labelled: bool = True, extras: bool = True
) -> Iterator[Frames]:
    """Read a file of extended XYZ (also .gz, .bz2, .xz), 2,048 frames at a time, or say where what is not understood.

    Arguments:
        label: stands before "#index" in the sources; None: the name of the file.
        labelled: whether there must be energies.
        extras: whether what is no label is kept.
    """
    path = Path(path)
    label = path.name if label is None else label
    with _opened(path) as stream:
        shapes, single = _shapes(_texts(path, stream, label))
        names = choose_names(path, shapes, single, keys, labelled=labelled)
        for run in _runs(_texts(path, stream, label)):
            yield made_frames(_said(run, names), names, keys.units, extras=extras)


def read_plain(path: str | Path, index: int | None = None) -> Iterator[Frames]:
    """Frames with all that they say but results, no labels taken; plain XYZ may have remarks behind the columns.

    `index` is that of one frame, from the end where negative; None: all frames.
    """
    path = Path(path)
    names: Names = dict.fromkeys(("energy", "forces", "stress", "group"))
    with _opened(path) as stream:
        texts = _texts(path, stream, path.name)
        if index is not None:
            wanted, n = -index if index < 0 else index + 1, 0
            last: deque[_Text] = deque(maxlen=wanted if index < 0 else 1)
            for n, text in enumerate(texts, 1):
                last.append(text)
                if n == index + 1:
                    break
            if n < wanted:
                raise DataError(f"{path} has {n} frames, there is none at {index}.")
            texts = iter([last[0]])
        for run in _runs(texts, lenient=True):
            yield made_frames(_said(run, names, all_properties), names, Units(), extras=True)


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    try:
        with PACKED.get(path.suffix.lower(), open)(path, "rb") as stream:
            yield stream
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise DataError(f"{path} cannot be read: {' '.join(str(error).split())}.") from error


def _texts(path: Path, stream: BinaryIO, label: str) -> Iterator[_Text]:
    """The frames as text, from the beginning; lines are found in large pieces of the file."""
    index, number, rest, ended = 0, 1, b"", False
    numbers: dict[bytes, int] = {}  # sizes repeat
    size = path.stat().st_size
    unpacked, most = 0, _MOST_UNPACKED + _MOST_RATIO * size  # what an honest file of this size can hold
    most_atoms = _MOST_ATOMS if path.suffix.lower() in PACKED else (size + 1) // _LEAST_LINE
    stream.seek(0)
    while not ended:
        # A frame that does not fit is looked for in twice as much: the work stays in proportion to the file.
        piece = stream.read(max(_PIECE, len(rest)))
        ended, unpacked = not piece, unpacked + len(piece)
        if unpacked > most:
            raise DataError(
                f"{path} unpacks to more than {most:,} bytes, {_MOST_RATIO} times its size: it is damaged or "
                "hostile; if you made it, unpack it first."
            )
        text = rest + piece + (b"\n" if ended and rest and not rest.endswith(b"\n") else b"")
        starts = np.concatenate([[0], np.flatnonzero(np.frombuffer(text, np.uint8) == _NEWLINE) + 1])
        if np.diff(np.append(starts, len(text))).max() > _LONGEST_LINE:
            raise DataError(f"{label}#{index}: a line has more than {_LONGEST_LINE:,} bytes: this is no extended XYZ.")
        line, last = 0, len(starts) - 1
        while line < last:
            blank = _BLANK.match(text, starts[line])
            assert blank is not None
            if (end := blank.end()) >= starts[line + 1]:  # blank lines between frames
                line = min(int(np.searchsorted(starts, end, side="right")) - 1, last)
                continue
            head = text[starts[line] : starts[line + 1]]
            if (n := numbers.get(head, 0)) == 0:
                n = numbers[head] = _number_of_atoms(head, f"{label}#{index} (line {number + line})", index == 0)
                if n > most_atoms:
                    raise DataError(
                        f"{label}#{index} (line {number + line}): {n:,} atoms are announced, more than a file of "
                        f"{size:,} bytes can hold."
                    )
            if line + 2 + n > last:
                break
            try:
                comment = text[starts[line + 1] : starts[line + 2]].decode().strip()
            except UnicodeDecodeError:
                raise DataError(f"{label}#{index} (line {number + line}): the comment is no text in UTF-8.") from None
            yield _Text(f"{label}#{index}", number + line, n, comment, text[starts[line + 2] : starts[line + 2 + n]])
            line += 2 + n
            index += 1
        rest, number = text[starts[line] :], number + line
    if rest.strip():
        raise DataError(f"{label}#{index} (line {number}): the file ends in the middle of this frame; it is cut short.")
    if index == 0:
        raise DataError(f"{label} is empty; expected at least one structure.")


def _number_of_atoms(head: bytes, where: str, first: bool) -> int:
    head = head.removeprefix(b"\xef\xbb\xbf") if first else head
    try:
        n = integer(head.decode())
    except ValueError:
        n = 0
    if n < 1:
        raise DataError(
            f"{where}: expected a number of atoms, found {head[:60].decode(errors='replace').strip()!r}; the file is "
            "no extended XYZ, or the frame before it has another number of atoms than it says."
        )
    if n > _MOST_ATOMS:
        raise DataError(f"{where}: {n:,} atoms are announced, more than the {_MOST_ATOMS:,} that a frame may have.")
    return n


def _shapes(texts: Iterator[_Text]) -> tuple[Counter[Shape], bool]:
    """Which names occur together in how many frames, and whether all frames are single atoms."""
    layouts: dict[str, frozenset[str]] = {}
    shapes: Counter[Shape] = Counter()
    single = True
    for text in texts:
        names, properties = comment_names(text.comment, text.where)
        properties = properties or _DEFAULT_PROPERTIES
        if properties not in layouts:
            columns = frozenset(name for name, _ in _read_layout(properties, text.where))
            layouts[properties] = columns - {"symbols", "positions", "numbers"}
        shapes[names - {"Properties", "Lattice", "pbc"}, layouts[properties]] += 1
        single = single and text.n_atoms == 1
    return shapes, single


def _read_layout(properties: str, where: str) -> _Layout:
    """What a `Properties` value says of the words of a line."""
    fields = properties.strip().split(":")
    layout: list[tuple[str, str]] = []
    names: list[str] = []
    try:
        for name, kind, number in zip(fields[::3], fields[1::3], map(integer, fields[2::3]), strict=True):
            if kind not in ("R", "I", "S", "L") or not 1 <= number <= 1000 or not name or len(layout) > _MOST_COLUMNS:
                raise ValueError
            names.append(_ARRAY_NAMES.get(name, name))
            layout += [(names[-1], "species" if names[-1] == "symbols" else kind)] * number
    except ValueError:
        raise DataError(
            f"{where}: Properties={properties[:80]} is not a list of name:type:columns with types R, I, S, L "
            f"and up to {_MOST_COLUMNS:,} columns."
        ) from None
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise DataError(f"{where}: Properties names the column {twice[:40]} twice; rename or remove one of them.")
    if "positions" not in names or not {"symbols", "numbers"} & set(names):
        raise DataError(
            f"{where}: the columns of the atoms hold no species or no three coordinates; expected species:S:1 (or "
            f"Z:I:1) and pos:R:3 in Properties, got {properties[:60]}."
        )
    return tuple(layout)


def _runs(texts: Iterator[_Text], *, lenient: bool = False) -> Iterator[_Run]:
    """Frames of one layout together; `lenient` drops what stands behind the columns of plain XYZ."""
    layouts: dict[str, _Layout] = {}
    known: dict[tuple[str, str], Any] = {}
    run: _Run | None = None
    for text in texts:
        info = read_comment(text.comment, text.where, known)
        stated = info.pop("Properties", None)
        properties = str(stated or _DEFAULT_PROPERTIES)
        layout = layouts.get(properties) or layouts.setdefault(properties, _read_layout(properties, text.where))
        if lenient and stated is None:
            lines = [b" ".join(line.split()[: len(layout)]) for line in text.atoms.split(b"\n")]
            text = replace(text, atoms=b"\n".join(lines))
        if run is not None and (run.layout is not layout or len(run.texts) == ROWS or run.size > _RUN_BYTES):
            yield run
            run = None
        run = run or _Run(layout)
        run.texts.append(text)
        run.infos.append(info)
        run.size += len(text.atoms)
    if run is not None:
        yield run


def _columns(run: _Run) -> dict[str, np.ndarray]:
    """The columns of all atoms of a run, by name: through Arrow's parser, or one by one where that does not follow."""
    parts: dict[str, list[np.ndarray]] = {}
    for (name, _), part in zip(run.layout, _parse_quickly(run) or _parse_patiently(run), strict=True):
        parts.setdefault(name, []).append(part)
    return {name: mine[0] if len(mine) == 1 else np.stack(mine, axis=1) for name, mine in parts.items()}


def _parse_quickly(run: _Run) -> list[np.ndarray] | None:
    """One array per column of text; None where the text is not as plain as it usually is, or Arrow is missing."""
    try:
        import pyarrow as pa
        from pyarrow import csv
    except ImportError:
        return None
    text = _single_spaces(b"".join(each.atoms for each in run.texts))
    types = {"R": pa.float64(), "I": pa.int64()}
    words = pa.dictionary(pa.int32(), pa.string())
    labels = [str(k) for k in range(len(run.layout))]
    try:
        table = csv.read_csv(
            pa.BufferReader(text),
            read_options=csv.ReadOptions(column_names=labels, use_threads=False, block_size=max(len(text), 1)),
            parse_options=csv.ParseOptions(delimiter=" ", quote_char=False, ignore_empty_lines=False),
            convert_options=csv.ConvertOptions(
                column_types={
                    label: types.get(kind, words) for label, (_, kind) in zip(labels, run.layout, strict=True)
                },
                null_values=[],
                strings_can_be_null=False,
            ),
        )
    except pa.ArrowException:
        return None
    if table.num_rows != sum(each.n_atoms for each in run.texts):
        return None
    parts = []
    for column, (_, kind) in zip(table.columns, run.layout, strict=True):
        if kind in types:
            parts.append(column.to_numpy())
            continue
        chunk = column.unify_dictionaries().combine_chunks()
        chunk = chunk.chunk(0) if isinstance(chunk, pa.ChunkedArray) else chunk
        try:
            meant = np.array([_MEANT[kind](word) for word in chunk.dictionary.to_pylist()])
        except KeyError:
            return None
        parts.append(meant[chunk.indices.to_numpy()])
    return parts


def _single_spaces(text: bytes) -> bytes:
    """Columns with one space between them, none at the ends of lines."""
    if b"\t" in text or b"\r" in text:
        text = text.replace(b"\t", b" ").replace(b"\r\n", b"\n")
    letters = np.frombuffer(text, np.uint8)
    space = letters == ord(" ")
    space[:-1] &= letters[1:] <= ord(" ")  # all of a run but its last, and the last before the end of a line
    text = letters[~space].tobytes()
    return text.replace(b"\n ", b"\n").lstrip(b" ")


def _parse_patiently(run: _Run) -> list[np.ndarray]:
    """One array per column of text, or the error of the first text that does not fit."""
    found: list[list[Any]] = [[] for _ in run.layout]
    for frame in run.texts:
        for offset, line in enumerate(frame.atoms.decode(errors="replace").split("\n")[:-1]):
            where = f"{frame.source} (line {frame.line + 2 + offset})"
            texts = line.split()
            if len(texts) != len(run.layout):
                names = ", ".join(dict.fromkeys(name for name, _ in run.layout))
                raise DataError(
                    f"{where}: a line of atoms has {len(texts)} columns, expected {len(run.layout)} "
                    f"({names}): {line.strip()[:60]!r}."
                    + (" Describe them with Properties=..." if len(texts) > len(run.layout) else "")
                )
            for values, text, (name, kind) in zip(found, texts, run.layout, strict=True):
                try:
                    values.append(_MEANT[kind](text))
                except (ValueError, KeyError):
                    raise DataError(f"{where}: {text[:40]!r} does not fit the column {name}.") from None
    return [np.array(values) for values in found]


def _said(run: _Run, names: Names, unwanted: Collection[str] = ()) -> list[Said]:
    """What each frame of a run says, but for what has an unwanted name."""
    arrays, where = _columns(run), run.texts[0].where
    positions, z, symbols = arrays.pop("positions"), arrays.pop("numbers", None), arrays.pop("symbols", None)
    for found in (z, symbols):
        if found is not None and (
            found.ndim != 1 or found.dtype.kind != "i" or not 1 <= found.min() <= found.max() <= 118
        ):
            raise DataError(f"{where}: the columns of the atoms hold no species: expected symbols, or Z from 1 to 118.")
    if z is not None and symbols is not None and not np.array_equal(z, symbols):
        raise DataError(f"{where}: the columns species and Z name different elements.")
    numbers = cast(np.ndarray, symbols if z is None else z)
    forces = arrays.pop(str(names["forces"]), None)
    if positions.ndim != 2 or positions.shape[1] != 3 or positions.dtype.kind not in "fi":
        raise DataError(f"{where}: the columns of the atoms hold no species or no three coordinates.")
    if forces is not None and (forces.shape != positions.shape or forces.dtype.kind not in "fi"):
        width = forces.shape[1] if forces.ndim == 2 else 1
        raise DataError(
            f"{where}: forces (column '{names['forces']}') have {width} columns of type {forces.dtype.name}, expected "
            "three of type R."
        )
    said, first = [], 0
    for text, info in zip(run.texts, run.infos, strict=True):
        mine = slice(first, first + text.n_atoms)
        first = mine.stop
        info = {name: value for name, value in info.items() if name not in unwanted}
        rest = {name: array[mine] for name, array in arrays.items() if name not in unwanted}
        pushed = None if forces is None else forces[mine]
        said.append(Said(text.source, text.where, numbers[mine], positions[mine], pushed, info, rest))
    return said
