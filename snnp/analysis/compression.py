r"""What a potential says of matter under compression: the energy must rise all the way, or atoms fall into a hole.

A crystal is compressed from its equilibrium volume V0 without relaxation (atoms follow the cell): to V/V0 = 0.2 from
all sides, and to 0.5 along [100], [110], [111] (hcp: a and c). A molecule is scaled like a crystal under pressure.
Where the energy falls again, a barrier ends and a hole begins.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.build import bulk
from ase.data import atomic_numbers, reference_states

from snnp.analysis.properties import ground_state
from snnp.models.potential import Potential
from snnp.structure import Structure
from snnp.units import EV_PER_ANGSTROM3_IN_GPA

__all__ = ["Compression", "Hole", "compression_scan", "holes_in_words", "lattice_constants"]

_CUBIC = {"[100]": (1, 0, 0), "[110]": (1, 1, 0), "[111]": (1, 1, 1)}
_WAYS = {**dict.fromkeys(("fcc", "bcc", "diamond"), _CUBIC), "hcp": {"along a": (1, 0, 0), "along c": (0, 0, 1)}}
_HYDROSTATIC, _UNIAXIAL, _STEP = 0.2, 0.5, 0.005  # V / V0
_FALL = 1e-3  # eV/atom: more than rounding, less than anything that holds atoms
_AT_ONCE = 32  # structures
_SEARCH, _WIDTH = 65, 0.25  # lattice constants around the measured one


@dataclass(frozen=True)
class Hole:
    """Where the energy falls under compression; energies are relative to the equilibrium."""

    v_over_v0: float  # at the top of the barrier
    barrier_ev_per_atom: float
    pressure_gpa: float | None  # the largest on the way there: what it takes to push the atoms over; None for molecules
    bottom_ev_per_atom: float  # of the lowest point behind it
    bottom_v_over_v0: float


@dataclass(frozen=True)
class Compression:
    """One way of compressing one system."""

    system: str  # such as "fcc Cu"
    way: str  # "hydrostatic", a direction such as "[110]", or "scaled" for a molecule
    solid: bool
    ratio: np.ndarray  # [n] V/V0, descending from 1
    energy: np.ndarray  # [n] eV/atom relative to ratio 1
    hole: Hole | None  # None where the energy rises all the way

    def to_dict(self) -> dict[str, Any]:
        """JSON values with units in their names."""
        return {
            "system": self.system,
            "way": self.way,
            "down_to_v_over_v0": float(self.ratio[-1]),
            "energy_at_end_ev_per_atom": float(self.energy[-1]),
            "hole": self.hole and asdict(self.hole),
        }


def lattice_constants(model: Potential) -> dict[str, float]:
    """Å, by symbol, of fcc, bcc, hcp and diamond ground states; measured where the model has none within 25 %."""
    return {symbol: _measured(symbol) * _rest(model, crystal) for symbol, crystal in _solids(model).items()}


def _solids(model: Potential) -> dict[str, Atoms]:
    """Primitive cells as measured, by element; none for models of molecules, and carbon beside hydrogen is in those."""
    seen = model.metadata.get("training_range")
    if isinstance(seen, dict) and seen.get("periodic") == "none":
        return {}
    known = {symbol: structure for symbol in model.elements if (structure := ground_state(symbol)) in _WAYS}
    if "H" in model.elements:
        known.pop("C", None)
    return {symbol: bulk(symbol, structure, a=_measured(symbol)) for symbol, structure in known.items()}


def _measured(symbol: str) -> float:
    state: Any = reference_states[atomic_numbers[symbol]]
    return float(state["a"])


def _rest(model: Potential, atoms: Atoms) -> float:
    """The factor on all lengths at the minimum of the energy downhill from 1; 1 if there is none within 25 %."""
    scale, width = 1.0, _WIDTH
    for _ in range(3):  # each time in finer steps around the lowest
        scales = scale * np.linspace(1.0 - width, 1.0 + width, _SEARCH)
        cells = [_strained(atoms, each * np.eye(3)) for each in scales]
        energy = model.compute(Structure.from_ase(cells), forces=False).energy.cpu().numpy()
        # Downhill from the middle: a hole farther inside may be lower than any crystal.
        k = _SEARCH // 2
        while 0 < k < _SEARCH - 1 and min(energy[k - 1], energy[k + 1]) < energy[k]:
            k += 1 if energy[k + 1] < energy[k - 1] else -1
        scale, width = float(scales[k]), 4.0 * width / (_SEARCH - 1)
    return scale if abs(scale - 1.0) < 0.95 * _WIDTH else 1.0


def _strained(atoms: Atoms, strain: np.ndarray) -> Atoms:
    result = atoms.copy()
    result.positions, result.cell = atoms.positions @ strain, atoms.cell.array @ strain
    return result


def compression_scan(model: Potential, others: Mapping[str, Atoms] | None = None) -> list[Compression]:
    """Compress the crystals of the model's elements, in float64, or `others` (by name) where none is known.

    `others` are molecules or crystals, such as that of lowest energy in the training data.
    """
    exact = copy.deepcopy(model).double()
    solids = {f"{ground_state(symbol)} {symbol}": crystal for symbol, crystal in _solids(exact).items()}
    result = []
    for name, atoms in (solids or others or {}).items():
        rest, solid = _strained(atoms, _rest(exact, atoms) * np.eye(3)), bool(atoms.pbc.all())
        ratio = np.arange(1.0, _HYDROSTATIC - 0.5 * _STEP, -_STEP)
        strains = np.cbrt(ratio)[:, None, None] * np.eye(3)
        result.append(_compressed(exact, rest, (name, "hydrostatic" if solid else "scaled"), ratio, strains))
        ratio = np.arange(1.0, _UNIAXIAL - 0.5 * _STEP, -_STEP)
        for way, axis in _WAYS.get(name.split()[0], _CUBIC).items() if solid else ():
            strains = np.eye(3) - (1.0 - ratio)[:, None, None] * np.outer(axis, axis) / np.dot(axis, axis)
            result.append(_compressed(exact, rest, (name, way), ratio, strains))
    return result


def _compressed(
    model: Potential, atoms: Atoms, name: tuple[str, str], ratio: np.ndarray, strains: np.ndarray
) -> Compression:
    solid = bool(atoms.pbc.all())
    with torch.no_grad():
        found = [
            model.compute(Structure.from_ase([_strained(atoms, each) for each in some]), forces=False, stress=solid)
            for some in np.array_split(strains, -(-len(strains) // _AT_ONCE))
        ]
    energy = np.concatenate([each.energy.cpu().numpy() for each in found]) / len(atoms)
    energy, pressure = energy - energy[0], np.full(len(ratio), np.nan)
    if solid:
        # The push along the way: -dE/dV, by the stress along the change of the cell.
        stress = np.concatenate([each.stress.cpu().numpy() for each in found if each.stress is not None])
        change = np.gradient(strains, axis=0) @ np.linalg.inv(strains)
        rate = np.trace(change, axis1=1, axis2=2)
        pressure = -np.einsum("nab,nab->n", stress, change) / rate * EV_PER_ANGSTROM3_IN_GPA
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
    push = most if np.isfinite(most) else None
    return Hole(float(ratio[top]), float(energy[top]), push, float(energy[bottom]), float(ratio[bottom]))


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
