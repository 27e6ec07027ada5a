"""What a potential says of crystals: at rest, under small strains, and compressed until nuclei would meet.

Properties of cubic crystals of one element are lattice constant, cohesive energy and elastic constants,

    C_ij = d(stress_i) / d(strain_j)  at zero stress and zero temperature, by central differences,

with the atoms of the cell at rest under each strain. For the two atoms of the diamond structure that is

    C44 = C44(atoms follow the cell) - Λ K⁻¹ Λ / V,    Λ = d(force) / d(shear),    K = -d(force) / d(position).

Under compression the energy must rise all the way, or atoms fall into a hole. A crystal is compressed from its
equilibrium volume V0 without relaxation (atoms follow the cell): to V/V0 = 0.2 from all sides, and to 0.5 along [100],
[110], [111] (hcp: a and c). A molecule is scaled like a crystal under pressure. Where the energy falls again, a barrier
ends and a hole begins.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.build import bulk
from ase.data import atomic_numbers, reference_states
from scipy.optimize import brentq

from snnp.data.reference import FROM_ISOLATED_ATOMS
from snnp.errors import InputError, near_matches
from snnp.models.formats import stated
from snnp.models.potential import Potential
from snnp.structure import Structure
from snnp.units import EV_PER_ANGSTROM3_IN_GPA

__all__ = ["GROUND_STATES", "REFERENCES", "Compression", "CubicProperties", "Hole", "compression_scan"]
__all__ += ["cubic_properties", "ground_state", "holes_in_words", "lattice_constants", "model_properties"]
__all__ += ["stated_properties"]

GROUND_STATES = {
    **dict.fromkeys(("Ni", "Cu", "Al", "Ag", "Au", "Pd", "Pt", "Pb", "Ca"), "fcc"),
    **dict.fromkeys(("Li", "Na", "K", "V", "Nb", "Ta", "Mo", "W", "Cr", "Fe"), "bcc"),
    **dict.fromkeys(("Si", "Ge"), "diamond"),
}
"""Structures for which properties are computed unless another one is asked for."""

_ATOMS_PER_CELL = {"fcc": 4, "bcc": 2, "diamond": 8}
_STRAIN = 1e-3
_DISPLACEMENT = 5e-3  # Å
_STEP, _MOST_STEPS = 0.01, 25  # of the lattice constant: the search covers about ±25 %
_CUBIC = {"[100]": (1, 0, 0), "[110]": (1, 1, 0), "[111]": (1, 1, 1)}
_WAYS = {**dict.fromkeys(("fcc", "bcc", "diamond"), _CUBIC), "hcp": {"along a": (1, 0, 0), "along c": (0, 0, 1)}}
_HYDROSTATIC, _UNIAXIAL, _FINE = 0.2, 0.5, 0.005  # V / V0
_FALL = 1e-3  # eV/atom: more than rounding, less than anything that holds atoms
_AT_ONCE = 32  # structures
_SEARCH, _WIDTH = 65, 0.25  # lattice constants around the measured one

_KITTEL = "lattice constant and cohesive energy: C. Kittel, Introduction to Solid State Physics (8th ed.), ch. 1 and 3"
_SIMMONS_WANG = (
    f"{_KITTEL}; elastic constants at 300 K: G. Simmons, H. Wang, Single Crystal Elastic Constants (MIT Press, 1971)"
)
_KNOWN = f"{_SIMMONS_WANG}, as recalled and not compared with the printed tables"
_MCSKIMIN = (
    f"{_KITTEL}; elastic constants at 298 K: H. J. McSkimin, P. Andreatch, J. Appl. Phys. 35, 2161 (1964) and "
    "34, 651 (1963)"
)
_ZUO = (
    "PBE, as recalled from Y. Zuo et al., J. Phys. Chem. A 124, 731 (2020), doi 10.1021/acs.jpca.9b08723, and not "
    "compared with the printed table"
)

# A rough fit to strained cells of the data set of the same paper agrees with these within 5 % for Ni, Cu, Mo (Li: C11,
# C12) and within 15 % for Si and Ge. Its Ge has another lattice constant than the table, which is left out.
_PUBLISHED: tuple[tuple[str, str, str, float | None, float | None, float, float, float], ...] = (
    # Lattice constant (Å), cohesive energy (eV/atom), C11, C12, C44 (GPa); None where it is not known well enough.
    ("Ni", "experiment", _SIMMONS_WANG, 3.524, 4.44, 246.5, 147.3, 124.7),
    ("Ni", "DFT", _ZUO, 3.508, None, 276.0, 159.0, 132.0),
    ("Cu", "experiment", _SIMMONS_WANG, 3.615, 3.49, 168.4, 121.4, 75.4),
    ("Cu", "DFT", _ZUO, 3.621, None, 173.0, 133.0, 88.0),
    ("Al", "experiment", _SIMMONS_WANG, 4.050, 3.39, 106.8, 60.4, 28.3),
    ("Li", "experiment", _SIMMONS_WANG, 3.510, 1.63, 13.5, 11.4, 8.8),
    ("Li", "DFT", _ZUO, 3.427, None, 15.0, 13.0, 11.0),
    ("Mo", "experiment", _SIMMONS_WANG, 3.147, 6.82, 463.7, 157.8, 109.2),
    ("Mo", "DFT", _ZUO, 3.168, None, 472.0, 158.0, 106.0),
    ("Si", "experiment", _MCSKIMIN, 5.431, 4.63, 165.8, 63.9, 79.6),
    ("Si", "DFT", _ZUO, 5.469, None, 156.0, 65.0, 76.0),
    ("Ag", "experiment", _KNOWN, 4.09, 2.95, 124.0, 93.4, 46.1),
    ("Au", "experiment", _KNOWN, 4.08, 3.81, 192.3, 163.1, 42.0),
    ("Pd", "experiment", _KNOWN, 3.89, 3.89, 227.1, 176.0, 71.7),
    ("Pt", "experiment", _KNOWN, 3.92, 5.84, 346.7, 250.7, 76.5),
    ("W", "experiment", _KNOWN, 3.16, 8.90, 522.4, 204.4, 160.8),
    ("Ta", "experiment", _KNOWN, 3.30, 8.10, 260.2, 154.5, 82.6),
    ("Nb", "experiment", _KNOWN, 3.30, 7.57, 246.5, 134.5, 28.7),
    ("Ge", "experiment", _MCSKIMIN, 5.658, 3.85, 128.5, 48.3, 66.8),
    ("Ge", "DFT", _ZUO, None, None, 116.0, 48.0, 58.0),
)


def _with_units(*values: float | None) -> dict[str, float | None]:
    names = ("lattice_constant_angstrom", "cohesive_energy_ev_per_atom", "bulk_modulus_gpa")
    return dict(zip((*names, "c11_gpa", "c12_gpa", "c44_gpa"), values, strict=True))


REFERENCES: dict[str, dict[str, dict[str, Any]]] = {}
"""Published values by element and kind ("experiment", "DFT"), with their source."""
for _element, _kind, _source, _a, _cohesive, _c11, _c12, _c44 in _PUBLISHED:
    _values = _with_units(_a, _cohesive, (_c11 + 2.0 * _c12) / 3.0, _c11, _c12, _c44)
    REFERENCES.setdefault(_element, {})[_kind] = {"source": _source, **_values}


@dataclass(frozen=True)
class CubicProperties:
    """What a potential says about a cubic crystal at zero temperature and stress, moduli in GPa."""

    element: str
    structure: str
    lattice_constant: float  # Å, of the conventional cell
    energy_per_atom: float  # eV, E0 included
    cohesive_energy: float | None  # eV/atom, E0 minus that; None where E0 is not the energy of an isolated atom
    bulk_modulus: float
    c11: float
    c12: float
    c44: float

    def to_dict(self) -> dict[str, Any]:
        """JSON values with units in their names, and the published values known for the ground state of the element."""
        published = REFERENCES.get(self.element, {}) if GROUND_STATES.get(self.element) == self.structure else {}
        return {
            "element": self.element,
            "structure": self.structure,
            "energy_per_atom_ev": self.energy_per_atom,
            **_with_units(self.lattice_constant, self.cohesive_energy, self.bulk_modulus, self.c11, self.c12, self.c44),
            "references": copy.deepcopy(published),
        }


def ground_state(element: str) -> str | None:
    """Lattice of an element's crystal, such as "fcc" or "hcp": `GROUND_STATES`, else ASE's; None if unknown."""
    return GROUND_STATES.get(element) or _measured(element).get("symmetry")


def _measured(element: str) -> dict[str, Any]:
    """What ASE knows of an element's crystal: `symmetry`, `a` in Å, ...; nothing for what is no element."""
    return (reference_states[atomic_numbers[element]] if element in atomic_numbers else None) or {}


def model_properties(model: Potential) -> list[CubicProperties]:
    """`cubic_properties` of each element of the model whose ground state is known to be cubic, in its order."""
    return [cubic_properties(model, element) for element in model.elements if element in GROUND_STATES]


def stated_properties(model: Potential) -> dict[str, dict[str, Any]]:
    """`properties` of the metadata by element, without numbers that are called cohesive energies and are none."""
    crystals = stated(model.metadata).get("properties", {})
    none = {"cohesive_energy_ev_per_atom": None}
    return {
        symbol: each if _counts_from_atoms(model, symbol) else {**each, **none} for symbol, each in crystals.items()
    }


def _counts_from_atoms(model: Potential, element: str) -> bool:
    """Whether E0 is the energy of an isolated atom, by the model itself or, in older files, by its statements."""
    origin = model.metadata.get("reference_energies_from")
    return element in model.isolated_atoms or (isinstance(origin, dict) and origin.get(element) == FROM_ISOLATED_ATOMS)


def cubic_properties(
    model: Potential, element: str, structure: str | None = None, *, guess: float | None = None
) -> CubicProperties:
    """Lattice constant, cohesive energy and elastic constants of a cubic crystal of one element, in float64.

    `structure` is "fcc", "bcc" or "diamond", by default the ground state; the search starts at `guess` (Å), by default
    the measured constant. Raises `InputError` for another structure, or if the model has no stable crystal within 25 %
    of the guess, `UnknownElementError` if it does not know the element.
    """
    structure = structure or GROUND_STATES.get(element)
    if structure not in _ATOMS_PER_CELL:
        known = ", ".join(_ATOMS_PER_CELL)
        hint = near_matches(str(structure), _ATOMS_PER_CELL)
        raise InputError(f"structure of {element} must be one of {known}, got {structure!r}.{hint}")
    if guess is None:  # ASE's value for the ground state; for another structure, the one of equal volume per atom
        symmetry = str(_measured(element).get("symmetry"))
        if symmetry not in _ATOMS_PER_CELL:
            raise InputError(f"no cubic lattice constant of {element!r} is known to start from; give one as guess.")
        guess = float(_measured(element)["a"]) * (_ATOMS_PER_CELL[structure] / _ATOMS_PER_CELL[symmetry]) ** (1.0 / 3.0)
    exact = copy.deepcopy(model).double()
    a = _lattice_constant(exact, element, structure, guess)
    crystal = Structure.from_ase(bulk(element, structure, a=a))  # primitive: one atom, or two for diamond
    c11, c12, c44 = _elastic_constants(exact, crystal, element)
    energy = float(exact.compute(crystal, forces=False).energy[0]) / crystal.n_atoms
    cohesive = exact.reference_energies[element] - energy if _counts_from_atoms(exact, element) else None
    return CubicProperties(element, structure, a, energy, cohesive, (c11 + 2.0 * c12) / 3.0, c11, c12, c44)


def _lattice_constant(model: Potential, element: str, structure: str, start: float) -> float:
    """Root of the pressure nearest to `start` downhill in energy: bracketed by steps of 1 %."""

    def tension(a: float) -> float:
        """Positive where the crystal wants to shrink."""
        stress = model.compute(Structure.from_ase(bulk(element, structure, a=a)), forces=False, stress=True).stress
        assert stress is not None
        return float(stress[0].trace())

    near, shrinks = start, tension(start) > 0
    for _ in range(_MOST_STEPS):
        far = near * (1.0 - _STEP if shrinks else 1.0 + _STEP)
        if (tension(far) > 0) != shrinks:
            return float(brentq(tension, near, far, xtol=1e-12))
        near = far
    raise InputError(
        f"this model has no {structure} {element} crystal with a lattice constant between {min(near, start):.2f} and "
        f"{max(near, start):.2f} Å; is it meant for {structure} {element}?"
    )


def _elastic_constants(model: Potential, crystal: Structure, element: str) -> tuple[float, float, float]:
    stretch, shear = np.zeros((3, 3)), np.zeros((3, 3))
    stretch[0, 0] = 1.0
    # The engineering strain is twice the tensor's: half on each side of the diagonal.
    shear[1, 2] = shear[2, 1] = 0.5
    stretched, _ = _slopes(model, crystal, stretch)
    sheared, push = _slopes(model, crystal, shear)
    c44 = sheared[1, 2]
    if crystal.n_atoms == 2:
        axes = [_slopes(model, crystal, None, axis)[1] for axis in np.eye(3)]
        stiffness = -0.5 * (np.stack(axes) + np.stack(axes).T)
        if np.linalg.eigvalsh(stiffness).min() <= 0:
            raise InputError(f"this model's {element} crystal is unstable: its sublattices part without a barrier.")
        # A shear pushes the sublattices apart; where they follow, the crystal gives way.
        c44 -= push @ np.linalg.solve(stiffness, push) / float(crystal.volume()[0]) * EV_PER_ANGSTROM3_IN_GPA
    return float(stretched[0, 0]), float(0.5 * (stretched[1, 1] + stretched[2, 2])), float(c44)


def _slopes(
    model: Potential, crystal: Structure, strain: np.ndarray | None, shift: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Derivatives of the stress ([3, 3] GPa) and of the force on the last atom ([3] eV/Å) by a strain, or its shift."""
    step, ends = (_DISPLACEMENT if strain is None else _STRAIN), []
    for size in (step, -step):
        deform = torch.eye(3, dtype=torch.float64) + (0.0 if strain is None else size * torch.from_numpy(strain))
        positions = crystal.positions @ deform
        positions[-1] += 0.0 if shift is None else size * torch.from_numpy(shift)
        found = model.compute(replace(crystal, positions=positions, cell=crystal.cell @ deform), stress=True)
        assert found.forces is not None
        assert found.stress is not None
        ends.append((found.stress[0].double().cpu().numpy(), found.forces[-1].double().cpu().numpy()))
    stress, force = ((plus - minus) / (2.0 * step) for plus, minus in zip(*ends, strict=True))
    return stress * EV_PER_ANGSTROM3_IN_GPA, force


# Compression.


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
    return {symbol: _measured(symbol)["a"] * _rest(model, crystal) for symbol, crystal in _solids(model).items()}


def _solids(model: Potential) -> dict[str, Atoms]:
    """Primitive cells as measured, by element; none for models of molecules, and carbon beside hydrogen is in those."""
    seen = model.metadata.get("training_range")
    if isinstance(seen, dict) and seen.get("periodic") == "none":
        return {}
    known = {symbol: structure for symbol in model.elements if (structure := ground_state(symbol)) in _WAYS}
    if "H" in model.elements:
        known.pop("C", None)
    return {symbol: bulk(symbol, structure, a=_measured(symbol)["a"]) for symbol, structure in known.items()}


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
        ratio = np.arange(1.0, _HYDROSTATIC - 0.5 * _FINE, -_FINE)
        strains = np.cbrt(ratio)[:, None, None] * np.eye(3)
        result.append(_compressed(exact, rest, (name, "hydrostatic" if solid else "scaled"), ratio, strains))
        ratio = np.arange(1.0, _UNIAXIAL - 0.5 * _FINE, -_FINE)
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
