"""LAMMPS for tests: the pair style compiled once, structures evaluated in a program that keeps running."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ase import Atoms

from snnp_lammps.box import LammpsBox, read_dump
from snnp_lammps.conversation import Conversation
from snnp_lammps.md import BAR_PER_EV_ANGSTROM3

__all__ = ["Numbers", "evaluate", "prepare"]

PER_ATOM = "id fx fy fz c_energies " + " ".join(f"c_stresses[{k}]" for k in range(1, 10))


class Numbers(NamedTuple):
    """Energy (eV), forces [N, 3] (eV/Å), virial [3, 3] (eV), energies [N] (eV), virials of atoms [N, 3, 3] (eV)."""

    energy: float
    forces: np.ndarray
    virial: np.ndarray
    energies: np.ndarray
    virials: np.ndarray


def prepare(box: LammpsBox, atoms: Atoms, pair: Sequence[str], folder: Path, *before: str) -> list[str]:
    """Commands up to the potential; `{types}` in `pair` stands for the elements, `before` come before the box."""
    elements, _ = box.write_data(folder / "case.data", atoms)
    commands = ["clear", "units metal", "atom_style atomic", "newton on", "box tilt large", *before]
    commands += [f"boundary {' '.join('p' if periodic else 's' for periodic in atoms.pbc)}", "read_data case.data"]
    return [*commands, *(line.format(types=" ".join(elements)) for line in pair)]


def evaluate(lammps: Conversation, atoms: Atoms, pair: Sequence[str], *before: str) -> Numbers:
    """One evaluation; arguments as of `prepare`."""
    box = LammpsBox.of(atoms)
    commands = [
        *prepare(box, atoms, pair, lammps.folder, *before),
        "compute virial all pressure NULL virial",
        "compute energies all pe/atom pair",
        "compute stresses all centroid/stress/atom NULL pair",
        "thermo_style custom step pe vol " + " ".join(f"c_virial[{k}]" for k in range(1, 7)),
        f"dump all all custom 1 case.bin {PER_ATOM}",
        "dump_modify all sort id",
        "run 0 post no",
        "undump all",
    ]
    asked = " ".join(f"$({name}:%.17g)" for name in ("pe", "vol", *(f"c_virial[{k}]" for k in range(1, 7))))
    energy, volume, xx, yy, zz, xy, xz, yz = map(float, lammps.ask(commands, asked))
    rows = read_dump(lammps.folder / "case.bin", len(PER_ATOM.split()))
    virial = -volume / BAR_PER_EV_ANGSTROM3 * np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]])
    xx, yy, zz, xy, xz, yz, yx, zx, zy = rows[:, 5:].T / BAR_PER_EV_ANGSTROM3  # minus LAMMPS's virial is ours
    virials = np.moveaxis(np.array([[xx, xy, xz], [yx, yy, yz], [zx, zy, zz]]), -1, 0)
    turned = np.array([box.tensor_back(each) for each in virials]).reshape(-1, 3, 3)
    return Numbers(energy, box.back(rows[:, 1:4]), box.tensor_back(virial), rows[:, 4], turned)
