r"""What a potential says of matter under compression: the energy must rise all the way, or atoms fall into a hole.

A crystal is compressed from its equilibrium volume V0 without relaxation (atoms follow the cell),

    hydrostatic   V / V0 = 1 ... 0.2          uniaxial along [100], [110], [111]   V / V0 = 1 ... 0.5

and a molecule is scaled like a crystal under pressure. Where the energy falls again, a barrier ends and a hole begins.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.build import bulk
from ase.data import atomic_numbers, reference_states

from snnp.analysis.properties import GROUND_STATES
from snnp.models.potential import Potential
from snnp.structure import Structure
from snnp.units import EV_PER_ANGSTROM3_IN_GPA

__all__ = ["Compression", "Hole", "compression_scan", "equilibrium_volumes", "holes_in_words", "lattice_constants"]

_DIRECTIONS = {"[100]": (1, 0, 0), "[110]": (1, 1, 0), "[111]": (1, 1, 1)}
_HYDROSTATIC, _UNIAXIAL, _STEP = 0.2, 0.5, 0.005  # V / V0
_FALL = 1e-3  # eV/atom: more than rounding, less than anything that holds atoms
_AT_ONCE = 32  # structures
_SEARCH, _WIDTH = 65, 0.25  # lattice constants around the measured one


@dataclass(frozen=True)
class Hole:
    """Where the energy falls under compression.

    Arguments:
        ratio: V/V0 at the top of the barrier.
        barrier: eV/atom, of its top above the equilibrium.
        pressure: GPa, the largest on the way there: what it takes to push the atoms over. NaN for molecules.
        bottom: eV/atom, of the lowest point behind it relative to the equilibrium; negative in a hole that is deeper.
        bottom_ratio: V/V0 there.
    """

    ratio: float
    barrier: float
    pressure: float
    bottom: float
    bottom_ratio: float


@dataclass(frozen=True)
class Compression:
    """One way of compressing one system.

    Arguments:
        system: such as "fcc Cu"; way: "hydrostatic", a direction such as "[110]", or "scaled" for a molecule.
        solid: whether it is a crystal.
        ratio: [n] V/V0, descending from 1; energy: [n] eV/atom relative to ratio 1.
        hole: None where the energy rises all the way.
    """

    system: str
    way: str
    solid: bool
    ratio: np.ndarray
    energy: np.ndarray
    hole: Hole | None

    def to_dict(self) -> dict[str, Any]:
        """JSON values with units in their names."""
        hole = self.hole and {
            "v_over_v0": self.hole.ratio,
            "barrier_ev_per_atom": self.hole.barrier,
            "pressure_gpa": self.hole.pressure if np.isfinite(self.hole.pressure) else None,
            "bottom_ev_per_atom": self.hole.bottom,
            "bottom_v_over_v0": self.hole.bottom_ratio,
        }
        known = {"system": self.system, "way": self.way, "down_to_v_over_v0": float(self.ratio[-1])}
        return {**known, "energy_at_end_ev_per_atom": float(self.energy[-1]), "hole": hole}


def lattice_constants(model: Potential) -> dict[str, float]:
    """Å, of the ground-state crystals of the model's elements, where cubic, by symbol.

    The minimum of the energy downhill from the measured constant, or the measured one if there is none within 25 %.
    """
    found: dict[str, float] = {}
    for symbol in model.elements:
        if symbol not in GROUND_STATES:
            continue
        measured = found[symbol] = _measured(symbol)
        a, width = measured, _WIDTH
        for _ in range(3):  # each time in finer steps around the lowest
            constants = a * np.linspace(1.0 - width, 1.0 + width, _SEARCH)
            cells = [bulk(symbol, GROUND_STATES[symbol], a=each) for each in constants]
            energy = model.compute(Structure.from_ase(cells), forces=False).energy.cpu().numpy()
            # Downhill from the middle: a hole farther inside may be lower than any crystal.
            k = _SEARCH // 2
            while 0 < k < _SEARCH - 1 and min(energy[k - 1], energy[k + 1]) < energy[k]:
                k += 1 if energy[k + 1] < energy[k - 1] else -1
            a, width = float(constants[k]), 4.0 * width / (_SEARCH - 1)
        if abs(a / measured - 1.0) < 0.95 * _WIDTH:
            found[symbol] = a
    return found


def equilibrium_volumes(model: Potential) -> dict[str, float]:
    """Å³ per atom of the crystals of `lattice_constants`."""
    cells = {symbol: bulk(symbol, GROUND_STATES[symbol], a=a) for symbol, a in lattice_constants(model).items()}
    return {symbol: atoms.get_volume() / len(atoms) for symbol, atoms in cells.items()}


def _measured(symbol: str) -> float:
    state: Any = reference_states[atomic_numbers[symbol]]
    return float(state["a"])


def compression_scan(model: Potential, molecules: Mapping[str, Atoms] | None = None) -> list[Compression]:
    """Compress the crystals of the model's elements, or `molecules` (by name) where it knows no crystal; in float64.

    Arguments:
        model: stays as it is.
        molecules: at rest, such as that of lowest energy in the training data.
    """
    exact = copy.deepcopy(model).double()
    result = []
    for symbol, a in lattice_constants(exact).items():
        atoms, system = bulk(symbol, GROUND_STATES[symbol], a=a), f"{GROUND_STATES[symbol]} {symbol}"
        ratio = np.arange(1.0, _HYDROSTATIC - 0.5 * _STEP, -_STEP)
        strains = [np.eye(3) * x ** (1.0 / 3.0) for x in ratio]
        result.append(_compressed(exact, atoms, (system, "hydrostatic"), ratio, strains))
        ratio = np.arange(1.0, _UNIAXIAL - 0.5 * _STEP, -_STEP)
        for name, direction in _DIRECTIONS.items():
            n = np.array(direction) / np.linalg.norm(direction)
            strains = [np.eye(3) - (1.0 - x) * np.outer(n, n) for x in ratio]
            result.append(_compressed(exact, atoms, (system, name), ratio, strains))
    if result:
        return result
    for name, molecule in (molecules or {}).items():
        ratio = np.arange(1.0, _HYDROSTATIC - 0.5 * _STEP, -_STEP)
        strains = [np.eye(3) * x ** (1.0 / 3.0) for x in ratio]
        result.append(_compressed(exact, molecule, (name, "scaled"), ratio, strains))
    return result


def _compressed(
    model: Potential, atoms: Atoms, name: tuple[str, str], ratio: np.ndarray, strains: Sequence[np.ndarray]
) -> Compression:
    """One scan; `strains` [n] deform the cell, and the atoms with it."""
    energies, stresses, solid = [], [], bool(atoms.pbc.all())
    for first in range(0, len(strains), _AT_ONCE):
        cells = []
        for strain in strains[first : first + _AT_ONCE]:
            cells.append(atoms.copy())
            cells[-1].positions = atoms.positions @ strain
            cells[-1].cell = atoms.cell.array @ strain
        with torch.no_grad():
            found = model.compute(Structure.from_ase(cells), forces=False, stress=solid)
        energies.append(found.energy.cpu().numpy() / len(atoms))
        if found.stress is not None:
            stresses.append(found.stress.cpu().numpy())
    energy = np.concatenate(energies)
    energy = energy - energy[0]
    pressure = np.full(len(ratio), np.nan)
    if solid:
        # The push along the way: -dE/dV, by the stress along the change of the cell.
        change = np.gradient(np.stack(strains), axis=0) @ np.linalg.inv(np.stack(strains))
        rate = np.trace(change, axis1=1, axis2=2)
        pressure = -np.einsum("nab,nab->n", np.concatenate(stresses), change) / rate * EV_PER_ANGSTROM3_IN_GPA
    return Compression(*name, solid, ratio, energy, _hole(ratio, energy, pressure))


def _hole(ratio: np.ndarray, energy: np.ndarray, pressure: np.ndarray) -> Hole | None:
    """The first barrier on the way inwards, and the lowest point behind it."""
    energy = np.where(np.isfinite(energy), energy, -np.inf)  # what is no number holds nobody
    falls = np.flatnonzero(np.maximum.accumulate(energy) - energy > _FALL)
    if not len(falls):
        return None
    top = int(energy[: falls[0]].argmax())
    bottom = top + int(energy[top:].argmin())
    most = float(pressure[: top + 1].max())
    return Hole(float(ratio[top]), float(energy[top]), most, float(energy[bottom]), float(ratio[bottom]))


def holes_in_words(scan: Sequence[Mapping[str, Any]]) -> list[str]:
    """A sentence without its full stop for each hole in `Compression.to_dict()` values."""
    said = []
    for each in scan:
        if (hole := each["hole"]) is None:
            continue
        way = each["way"] if each["way"] in ("hydrostatic", "scaled") else f"uniaxial {each['way']}"
        push = "" if hole["pressure_gpa"] is None else f", {hole['pressure_gpa']:.3g} GPa"
        said.append(
            f"{each['system']}, {way}: beyond a barrier at V/V0 = {hole['v_over_v0']:.3f} "
            f"({hole['barrier_ev_per_atom']:.2f} eV/atom{push}) the energy falls to {hole['bottom_ev_per_atom']:.2f} "
            f"eV/atom at V/V0 = {hole['bottom_v_over_v0']:.3f}"
        )
    return said
