"""Files that a run appends to: the CSV log, and trajectories in extended XYZ, DCD and XTC, chosen by the suffix.

Extended XYZ holds everything (energy, forces, momenta, step) at 1e-8 Å. DCD (single precision) and XTC (rounded to
0.01 Å) hold positions and cell only, brought to the form of `reduce_cell`; `NAME_topology.pdb`, written beside them,
has the first frame in the same axes, with the elements.
"""

from __future__ import annotations

import csv
import hashlib
import io
import math
import os
import struct
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, BinaryIO, TextIO

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.geometry import cellpar_to_cell
from ase.io.extxyz import write_extxyz

from snnp.errors import InputError, MissingDependencyError
from snnp.files import naming, write_atomically
from snnp.sampling.checkpoint import FileMark
from snnp.sampling.settings import MDSettings
from snnp.sampling.snapshot import Sample, Snapshot
from snnp.structure import clip_to_reduced, reduce_cell
from snnp.units import NM_IN_ANGSTROM

__all__ = ["LogWriter", "TrajectoryWriter", "check_mark", "open_trajectory", "read_dcd_frame", "read_log"]
__all__ += ["topology_beside"]

_TAIL = 64
"""Bytes before a mark whose checksum tells files apart: shorter than a frame, longer than what all have in common."""


def check_mark(path: Path, mark: FileMark) -> None:
    """Raise `InputError` unless a file is the one that stood at a mark: neither missing, nor shorter, nor another."""
    if path.exists() and not path.is_file():
        return
    if _size(path) < mark.n_bytes:
        raise InputError(
            f"'{path}' holds {_size(path)} bytes but had {mark.n_bytes} at the checkpoint; "
            "put the file of the interrupted run back, or start a new run."
        )
    if mark.tail and mark.tail != _tail(path, mark.n_bytes):
        raise InputError(
            f"'{path}' is not the file that the run wrote: it differs before byte {mark.n_bytes}, where the checkpoint "
            "was taken; put the file of the interrupted run back, or start a new run."
        )


def _size(path: Path) -> int:
    """Bytes of an ordinary file; 0 of others, such as /dev/null."""
    return path.stat().st_size if path.is_file() else 0


def _tail(path: Path, n_bytes: int) -> str:
    with open(path, "rb") as file:
        file.seek(max(0, n_bytes - _TAIL))
        return hashlib.sha256(file.read(min(_TAIL, n_bytes))).hexdigest()[:16]


class _Appended:
    """A file that grows by frames or rows, each written whole or not at all; an old one is cut back to its mark."""

    _file: IO[Any] | None = None  # where it stays open

    def __init__(self, path: Path, mark: FileMark | None) -> None:
        self._path = path
        self._n_frames, self._n_bytes = (0, 0) if mark is None else (mark.n_frames, mark.n_bytes)
        if mark is not None:
            check_mark(path, mark)
            if path.is_file():
                os.truncate(path, mark.n_bytes)

    def _open(self, mark: FileMark | None) -> TextIO:
        self._file = open(self._path, "w" if mark is None else "a", newline="", encoding="utf-8")  # noqa: SIM115
        return self._file

    @contextmanager
    def _appending(self) -> Iterator[None]:
        """Let the block append one frame; an `OSError` names the file, which then ends with the frame before."""
        try:
            with naming(self._path):
                yield
        except OSError:
            with suppress(OSError):
                self._roll_back()
            raise
        self._n_frames += 1
        self._n_bytes = _size(self._path)

    def _roll_back(self) -> None:
        with suppress(OSError):
            self.close()  # which tries once more to write what waits
        os.truncate(self._path, self._n_bytes)

    def mark(self) -> FileMark:
        """Where the file stands now, safely on disk.

        Raises `InputError` if somebody else has changed the file, `OSError`, which names it, if the disk is full.
        """
        path = self._path
        if path.exists() and not path.is_file():
            return FileMark(0, self._n_frames)
        if _size(path) != self._n_bytes:
            raise InputError(
                f"'{path}' holds {_size(path)} bytes although {self._n_bytes} were written; "
                "another program has changed it while the run went on."
            )
        with naming(path), open(path, "rb+") as file:
            os.fsync(file.fileno())
        return FileMark(self._n_bytes, self._n_frames, _tail(path, self._n_bytes))

    def close(self) -> None:
        if self._file is not None:
            with naming(self._path):  # after a full disk it tries once more to write
                self._file.close()


class LogWriter(_Appended):
    """Writes samples to a CSV file whose columns are the fields of `Sample`; empty where a quantity does not exist."""

    def __init__(self, path: Path, mark: FileMark | None = None, *, watched: bool = False) -> None:
        super().__init__(path, mark)
        self._columns = (
            _columns_of(path) if mark is not None and path.is_file() else Sample._fields[: None if watched else -1]
        )
        self._text = self._open(mark)
        if mark is None:
            self._append(",".join(self._columns))
            self._n_frames = 0

    def write(self, sample: Sample) -> None:
        """Append one row and hand it to the operating system; raises `OSError`, which names the file."""
        cells = [str(sample.step), f"{sample.time_ps:.6f}"]
        self._append(
            ",".join(cells + ["" if math.isnan(value) else f"{value:.8f}" for value in sample[2 : len(self._columns)]])
        )

    def _append(self, line: str) -> None:
        with self._appending():
            self._text.write(line + "\n")
            self._text.flush()


def _columns_of(path: Path) -> tuple[str, ...]:
    """All columns of a log, or all but the last, which runs have that watch their uncertainty."""
    with open(path, newline="", encoding="utf-8") as file:
        found = tuple(next(csv.reader(file), ()))
    if found not in (Sample._fields, Sample._fields[:-1]):
        expected = ", ".join(Sample._fields[:-1])
        raise InputError(f"'{path}' is not a molecular dynamics log: expected the columns {expected}.")
    return found


def read_log(path: Path) -> list[Sample]:
    _columns_of(path)
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    return [Sample(int(row[0]), *(float(cell) if cell else math.nan for cell in row[1:])) for row in rows[1:]]


class TrajectoryWriter(_Appended, ABC):
    """Writes frames to one file; made by `open_trajectory`."""

    def __init__(self, path: Path, settings: MDSettings, mark: FileMark | None) -> None:
        super().__init__(path, mark)
        self._dt_fs = settings.dt_fs

    def write(self, snapshot: Snapshot, step: int, time_fs: float | None = None) -> None:
        """Append one frame, by default at the time of `step` steps, and hand it to the operating system.

        Where that fails (`OSError`, which names the file), the file ends with the frame before.
        """
        with self._appending():
            self._write(snapshot, step, step * self._dt_fs if time_fs is None else time_fs)

    @abstractmethod
    def _write(self, snapshot: Snapshot, step: int, time_fs: float) -> None: ...


class _ExtXYZWriter(TrajectoryWriter):
    def __init__(self, path: Path, settings: MDSettings, mark: FileMark | None) -> None:
        super().__init__(path, settings, mark)
        self._text = self._open(mark)

    def _write(self, snapshot: Snapshot, step: int, time_fs: float) -> None:
        atoms = snapshot.atoms.copy()
        results: dict[str, Any] = {"energy": snapshot.potential_energy, "forces": snapshot.forces}
        if snapshot.stress is not None:
            results["stress"] = snapshot.stress
        atoms.calc = SinglePointCalculator(atoms, **results)
        atoms.info = {"step": step, "time_fs": time_fs}
        write_extxyz(self._text, [atoms])
        self._text.flush()


class _OpenMMWriter(TrajectoryWriter):
    """What DCD and XTC share: OpenMM's writers, their topology, and a PDB file with which readers open the frames."""

    def __init__(self, path: Path, atoms: Atoms, settings: MDSettings, mark: FileMark | None, next_step: int) -> None:
        try:
            from openmm import app
        except ImportError as error:
            raise MissingDependencyError(
                f"writing '{path.name}' needs OpenMM: pip install 'snnp[openmm]', or choose the suffix .extxyz."
            ) from error
        self._app: Any = app
        super().__init__(path, settings, mark)
        self._topology = app.Topology()
        residue = self._topology.addResidue("UNK", self._topology.addChain())
        for symbol in atoms.symbols:
            self._topology.addAtom(symbol, app.Element.getBySymbol(symbol), residue)
        # Time step in ps, step of the first frame, interval: what the headers hold.
        interval = settings.trajectory_interval
        self._clock = settings.dt_fs / 1000.0, next_step - self._n_frames * interval, interval
        self._lattice: np.ndarray | None = None  # found once: in a cell that breathes the same vectors stay the box
        positions, box = self._standard_orientation(atoms)
        if box is not None:
            self._topology.setPeriodicBoxVectors(_vectors(clip_to_reduced(box)))
        pdb = topology_beside(path)
        if mark is None or not pdb.is_file():
            text = io.StringIO()
            self._app.PDBFile.writeFile(self._topology, positions, text)  # bare numbers are Å here
            write_atomically(pdb, text.getvalue().encode())
        self._begin(mark)

    @abstractmethod
    def _begin(self, mark: FileMark | None) -> None: ...

    def _write(self, snapshot: Snapshot, step: int, time_fs: float) -> None:
        positions, box = self._standard_orientation(snapshot.atoms)
        try:
            self._write_model(positions / NM_IN_ANGSTROM, None if box is None else _vectors(box))
        except ValueError as error:
            raise InputError(f"'{self._path}' cannot hold step {step}: {error}; choose the suffix .extxyz.") from error

    @abstractmethod
    def _write_model(self, positions_nm: np.ndarray, box: Any) -> None: ...

    def _standard_orientation(self, atoms: Atoms) -> tuple[np.ndarray, np.ndarray | None]:
        """Positions [N, 3] and cell [3, 3] in Å in the form of `reduce_cell`; no cell for molecules."""
        if not atoms.pbc.any():
            return atoms.positions, None
        cell = atoms.cell.complete().array
        # Missing vectors of slabs and wires come as unit vectors: make the box hold all atoms.
        cell[atoms.cell.lengths() == 0.0] *= float(np.ptp(atoms.positions, axis=0).max()) + 10.0
        if self._lattice is None:
            self._lattice = reduce_cell(cell)[0]
        cell = self._lattice @ cell
        if np.allclose(cell, np.tril(cell), atol=1e-12) and np.all(np.diag(cell) > 0.0):
            return atoms.positions, cell
        rotation = reduce_cell(cell)[1]
        return atoms.positions @ rotation, np.tril(cell @ rotation)


class _DCDWriter(_OpenMMWriter):
    def _begin(self, mark: FileMark | None) -> None:
        if mark is not None:
            self._set_header()
        self._file = open(self._path, "w+b" if mark is None else "r+b")  # noqa: SIM115
        self._dcd = self._app.DCDFile(self._file, self._topology, *self._clock, mark is not None)

    def _write_model(self, positions_nm: np.ndarray, box: Any) -> None:
        self._dcd.writeModel(positions_nm, periodicBoxVectors=box)

    def _set_header(self) -> None:
        """Take number of frames (bytes 8-11) and last step (20-23) back to what the file holds."""
        _, first_step, interval = self._clock
        with open(self._path, "r+b") as file:
            for offset, number in ((8, self._n_frames), (20, first_step + (self._n_frames - 1) * interval)):
                file.seek(offset)
                file.write(struct.pack("<i", number))

    def _roll_back(self) -> None:
        super()._roll_back()
        if self._n_bytes:
            self._set_header()


class _XTCWriter(_OpenMMWriter):
    def _begin(self, mark: FileMark | None) -> None:
        if mark is None:
            self._path.write_bytes(b"")
        self._xtc = self._app.XTCFile(str(self._path), self._topology, *self._clock, append=self._n_frames > 0)

    def _write_model(self, positions_nm: np.ndarray, box: Any) -> None:
        self._xtc.writeModel(positions_nm, periodicBoxVectors=box)
        # OpenMM does not look whether its writes succeed.
        with open(self._path, "rb") as file:
            file.seek(self._n_bytes)
            missing = _xtc_frame_size(file.read(_XTC_HEADER)) - (_size(self._path) - self._n_bytes)
        if missing > 0:
            with open(self._path, "ab", buffering=0) as raw:
                raw.write(bytes(missing))  # the operating system says why that fails
            raise InputError(f"a frame of '{self._path}' was not written whole; check the disk, then resume.")


_XTC_HEADER = 92  # bytes before the packed coordinates: 4 numbers, the box, and how the coordinates are packed


def _xtc_frame_size(header: bytes) -> int:
    """Bytes of a frame of an XTC file from its beginning; without a whole one, those of the header."""
    n_atoms = struct.unpack(">i", header[52:56])[0] if len(header) >= 56 else None
    if n_atoms is not None and n_atoms <= 9:  # these are not packed
        return 56 + 12 * int(n_atoms)
    n_packed = struct.unpack(">i", header[88:92])[0] if len(header) == _XTC_HEADER else 0
    return _XTC_HEADER + (int(n_packed) + 3) // 4 * 4


def open_trajectory(
    path: Path, atoms: Atoms, settings: MDSettings, mark: FileMark | None = None, next_step: int = 0
) -> TrajectoryWriter:
    """Open a trajectory file, a new one or to go on at a `mark`; the suffix chooses the format.

    `next_step`, that of the next frame, goes into the header of DCD and XTC. Raises `InputError` for a file that is not
    as at the `mark`, `MissingDependencyError` where `.dcd` and `.xtc` lack OpenMM.
    """
    binary = {".dcd": _DCDWriter, ".xtc": _XTCWriter}.get(path.suffix.lower())
    return _ExtXYZWriter(path, settings, mark) if binary is None else binary(path, atoms, settings, mark, next_step)


def _vectors(box: np.ndarray) -> Any:
    """Cell rows in Å as OpenMM's vectors in nm."""
    from openmm import Vec3, unit

    return tuple(Vec3(*(row / NM_IN_ANGSTROM)) for row in box) * unit.nanometer


def topology_beside(trajectory: Path) -> Path:
    """The PDB file with the elements of a DCD or XTC trajectory."""
    return trajectory.with_name(f"{trajectory.stem}_topology.pdb")


def read_dcd_frame(path: Path, index: int, n_atoms: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Positions [N, 3] and cell [3, 3] in Å of one frame, in either byte order; no cell where the file holds none.

    Negative indices count from the end of what was written whole. Raises `InputError` for what is not a DCD file, not
    of `n_atoms`, or without such a frame.
    """
    with open(path, "rb") as file:
        try:
            order, first, has_cell, four = _read_header(file, path, n_atoms)
        except struct.error:
            raise InputError(f"'{path}' is cut short in its header; name a whole DCD file.") from None
    contents = ({"cell": ("f8", 6)} if has_cell else {}) | dict.fromkeys("xyzw" if four else "xyz", ("f4", n_atoms))
    record: list[Any] = []
    for name, (kind, n) in contents.items():  # each stands between its lengths
        record += [(f"before {name}", "i4"), (name, f"{order}{kind}", (n,)), (f"behind {name}", "i4")]
    frame = np.dtype(record)
    n_frames = (path.stat().st_size - first) // frame.itemsize
    if not -n_frames <= index < n_frames:
        raise InputError(f"'{path}' has {n_frames} frames; there is no frame {index}.")
    found = np.fromfile(path, frame, 1, offset=first + frame.itemsize * (index % n_frames))[0]
    cell = _cell(found["cell"].tolist()) if has_cell else None
    positions = np.stack([found[axis] for axis in "xyz"], axis=1).astype(float)
    if not np.isfinite(positions).all():
        raise InputError(f"frame {index} of '{path}' holds positions that are not finite; name another frame.")
    return positions, cell


def _read_header(file: BinaryIO, path: Path, n_atoms: int) -> tuple[str, int, bool, bool]:
    """Byte order, where the frames begin, whether each holds a cell, and whether it holds a fourth coordinate."""
    start = file.read(8)
    order = {b"T\0\0\0CORD": "<", b"\0\0\0TCORD": ">"}.get(start)
    if order is None:
        raise InputError(f"'{path}' is not a DCD file of positions; name its format with --format.")
    control = struct.unpack(f"{order}20i", file.read(80))
    _, titles = struct.unpack(f"{order}2i", file.read(8))  # records stand between their lengths
    file.seek(titles + 4, os.SEEK_CUR)
    _, found, _ = struct.unpack(f"{order}3i", file.read(12))
    if control[8]:
        raise InputError(f"'{path}' leaves out {control[8]} fixed atoms, which is not read; write all atoms.")
    if found != n_atoms:
        raise InputError(f"'{path}' holds {found} atoms, its topology {n_atoms}; name the right one with --topology.")
    is_charmm = control[19] != 0
    return order, file.tell(), is_charmm and control[10] != 0, is_charmm and control[11] != 0


def _cell(numbers: list[float]) -> np.ndarray | None:
    """[3, 3] Å from a, gamma, b, beta, alpha, c, angles in degrees or as cosines; None for all zeros."""
    a, gamma, b, beta, alpha, c = numbers
    if a == b == c == 0.0:
        return None
    angles = [float(np.degrees(np.arccos(angle))) if abs(angle) <= 1.0 else angle for angle in (alpha, beta, gamma)]
    return np.asarray(cellpar_to_cell([a, b, c, *angles]))
