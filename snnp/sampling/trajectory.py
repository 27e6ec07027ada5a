"""Trajectory files: extended XYZ, DCD and XTC, chosen by the suffix, cut back to the checkpoint on resuming.

Extended XYZ holds everything (energy, forces, momenta, step) at 1e-8 Å. DCD (single precision) and XTC (rounded to
0.01 Å) hold positions and cell only, and expect the first cell vector along x and the second in the xy plane:
structures in another orientation are rotated to it.
"""

from __future__ import annotations

import io
import os
import struct
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io.extxyz import write_extxyz

from snnp.errors import InputError, MissingDependencyError
from snnp.models.io import write_atomically
from snnp.sampling.checkpoint import FileMark
from snnp.sampling.log import cut_back
from snnp.sampling.settings import MDSettings
from snnp.sampling.snapshot import Snapshot
from snnp.units import NM_IN_ANGSTROM

__all__ = ["TrajectoryWriter", "open_trajectory"]


class TrajectoryWriter(ABC):
    """Writes frames to one file."""

    def __init__(self, path: Path, mark: FileMark | None) -> None:
        self._path = path
        self._n_frames = 0 if mark is None else mark.n_frames
        if mark is not None:
            cut_back(path, mark)

    @property
    def companions(self) -> dict[str, Path]:
        """Further files written beside the trajectory, by name."""
        return {}

    def write(self, snapshot: Snapshot, step: int) -> None:
        """Append one frame and hand it to the operating system."""
        self._write(snapshot, step)
        self._n_frames += 1

    def mark(self) -> FileMark:
        """Where the file stands now, safely on disk."""
        if self._path.is_file():
            with open(self._path, "rb+") as file:
                os.fsync(file.fileno())
        return FileMark(self._path.stat().st_size if self._path.is_file() else 0, self._n_frames)

    @abstractmethod
    def _write(self, snapshot: Snapshot, step: int) -> None: ...

    def close(self) -> None:  # noqa: B027 - only files that stay open need it
        """Close the file."""


class _ExtXYZWriter(TrajectoryWriter):
    def __init__(self, path: Path, settings: MDSettings, mark: FileMark | None) -> None:
        super().__init__(path, mark)
        self._dt_fs = settings.dt_fs
        self._file = open(path, "w" if mark is None else "a", encoding="utf-8")  # noqa: SIM115

    def _write(self, snapshot: Snapshot, step: int) -> None:
        atoms = snapshot.atoms.copy()
        results: dict[str, Any] = {"energy": snapshot.potential_energy, "forces": snapshot.forces}
        if snapshot.stress is not None:
            results["stress"] = snapshot.stress
        atoms.calc = SinglePointCalculator(atoms, **results)
        atoms.info = {"step": step, "time_fs": step * self._dt_fs}
        write_extxyz(self._file, [atoms])
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class _OpenMMWriter(TrajectoryWriter):
    """What DCD and XTC share: OpenMM's writers, their topology, and a PDB file with which readers open the frames."""

    def __init__(self, path: Path, atoms: Atoms, mark: FileMark | None) -> None:
        self._app = _openmm_app(path)
        super().__init__(path, mark)
        self._topology = self._app.Topology()
        residue = self._topology.addResidue("UNK", self._topology.addChain())
        for symbol in atoms.symbols:
            self._topology.addAtom(symbol, self._app.Element.getBySymbol(symbol), residue)
        positions, box = _standard_orientation(atoms)
        if box is not None:
            self._topology.setPeriodicBoxVectors(_vectors(box))
        self._pdb = path.with_name(f"{path.stem}_topology.pdb")
        text = io.StringIO()
        self._app.PDBFile.writeFile(self._topology, positions / NM_IN_ANGSTROM, text)
        write_atomically(self._pdb, text.getvalue().encode())

    @property
    def companions(self) -> dict[str, Path]:
        return {"topology": self._pdb}

    def _write(self, snapshot: Snapshot, step: int) -> None:
        positions, box = _standard_orientation(snapshot.atoms)
        vectors = None if box is None else _vectors(box)
        self._write_model(positions / NM_IN_ANGSTROM, vectors)

    @abstractmethod
    def _write_model(self, positions_nm: np.ndarray, box: Any) -> None: ...


class _DCDWriter(_OpenMMWriter):
    def __init__(self, path: Path, atoms: Atoms, settings: MDSettings, mark: FileMark | None, next_step: int) -> None:
        super().__init__(path, atoms, mark)
        self._file = open(path, "w+b" if mark is None else "r+b")  # noqa: SIM115
        interval = settings.trajectory_interval
        if mark is not None:
            # The header counts the frames (bytes 8-11) and holds the last step (20-23): both go back to the checkpoint.
            for offset, number in ((8, mark.n_frames), (20, next_step - interval)):
                self._file.seek(offset)
                self._file.write(struct.pack("<i", number))
        first_step = next_step - self._n_frames * interval
        dt_ps = settings.dt_fs / 1000.0
        self._dcd = self._app.DCDFile(self._file, self._topology, dt_ps, first_step, interval, append=mark is not None)

    def _write_model(self, positions_nm: np.ndarray, box: Any) -> None:
        self._dcd.writeModel(positions_nm, periodicBoxVectors=box)

    def close(self) -> None:
        self._file.close()


class _XTCWriter(_OpenMMWriter):
    def __init__(self, path: Path, atoms: Atoms, settings: MDSettings, mark: FileMark | None, next_step: int) -> None:
        super().__init__(path, atoms, mark)
        if mark is None:
            path.unlink(missing_ok=True)
        interval = settings.trajectory_interval
        first_step = next_step - self._n_frames * interval
        dt_ps = settings.dt_fs / 1000.0
        append = self._n_frames > 0
        self._xtc = self._app.XTCFile(str(path), self._topology, dt_ps, first_step, interval, append=append)

    def _write_model(self, positions_nm: np.ndarray, box: Any) -> None:
        self._xtc.writeModel(positions_nm, periodicBoxVectors=box)


def open_trajectory(
    path: Path, atoms: Atoms, settings: MDSettings, mark: FileMark | None = None, next_step: int = 0
) -> TrajectoryWriter:
    """Open a trajectory file for the atoms; the suffix chooses the format.

    Arguments:
        path: the file; replaced unless resuming.
        atoms: the structure at the start.
        settings: time step and interval go into the file.
        mark: where the file stood at the checkpoint to resume from, or None for a new file.
        next_step: the step of the next frame.

    Raises:
        InputError: an unknown suffix, or a file shorter than at the checkpoint.
        MissingDependencyError: `.dcd` and `.xtc` need OpenMM.
    """
    suffix = path.suffix.lower()
    if suffix in (".xyz", ".extxyz"):
        return _ExtXYZWriter(path, settings, mark)
    if suffix == ".dcd":
        return _DCDWriter(path, atoms, settings, mark, next_step)
    if suffix == ".xtc":
        return _XTCWriter(path, atoms, settings, mark, next_step)
    raise InputError(f"trajectory '{path}' has no known suffix; use .extxyz, .xyz, .dcd or .xtc.")


def _openmm_app(path: Path) -> Any:
    try:
        from openmm import app
    except ImportError as error:
        raise MissingDependencyError(
            f"writing '{path.name}' needs OpenMM: pip install 'snnp[openmm]', or choose the suffix .extxyz."
        ) from error
    return app


def _vectors(box: np.ndarray) -> Any:
    """Cell rows in Å as OpenMM's vectors in nm."""
    from openmm import Vec3, unit

    return tuple(Vec3(*(row / NM_IN_ANGSTROM)) for row in box) * unit.nanometer


def _standard_orientation(atoms: Atoms) -> tuple[np.ndarray, np.ndarray | None]:
    """Positions [N, 3] and cell [3, 3] in Å, rotated to a right-handed lower triangular cell; no cell for molecules."""
    if not atoms.pbc.any():
        return atoms.positions, None
    cell = atoms.cell.complete()
    # Missing vectors of slabs and wires come as unit vectors: make the box hold all atoms.
    cell[atoms.cell.lengths() == 0.0] *= float(np.ptp(atoms.positions, axis=0).max()) + 10.0
    if cell.handedness < 0:
        # The negated vectors span the same lattice.
        cell = cell.new(-cell.array)
    if np.allclose(cell.array, np.tril(cell.array), atol=1e-12) and np.all(np.diag(cell.array) > 0.0):
        return atoms.positions, cell.array
    standard, rotation = cell.standard_form()
    return atoms.positions @ rotation.T, standard.array
