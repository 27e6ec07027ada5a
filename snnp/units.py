"""Physical constants and unit conversions: the only place where they are written.

Units inside snnp: eV, Å, eV/Å, eV/Å³, amu, K, fs. Constants are CODATA 2018 (https://physics.nist.gov/cuu/Constants).
"""

from __future__ import annotations

__all__ = ["AMU_ANGSTROM2_PER_FS2_IN_EV", "AMU_PER_ANGSTROM3_IN_G_PER_CM3", "BAR_IN_EV_PER_ANGSTROM3"]
__all__ += ["BOHR_IN_ANGSTROM", "BOLTZMANN_EV_PER_K", "COULOMB_EV_ANGSTROM", "ENERGY_UNITS", "EV_IN_KJ_PER_MOL"]
__all__ += ["EV_PER_ANGSTROM3_IN_GPA", "GPA_IN_EV_PER_ANGSTROM3", "HARTREE_IN_EV", "KCAL_PER_MOL_IN_EV", "LENGTH_UNITS"]
__all__ += ["NM_IN_ANGSTROM", "PRESSURE_UNITS"]

_ELEMENTARY_CHARGE_C = 1.602176634e-19  # exact
_AVOGADRO_PER_MOL = 6.02214076e23  # exact
_BOLTZMANN_J_PER_K = 1.380649e-23  # exact
_ATOMIC_MASS_KG = 1.66053906660e-27

NM_IN_ANGSTROM = 10.0
BOHR_IN_ANGSTROM = 0.529177210903
HARTREE_IN_EV = 27.211386245988
COULOMB_EV_ANGSTROM = HARTREE_IN_EV * BOHR_IN_ANGSTROM
"""e² / (4 pi eps0) in eV Å."""

BOLTZMANN_EV_PER_K = _BOLTZMANN_J_PER_K / _ELEMENTARY_CHARGE_C
EV_IN_KJ_PER_MOL = _ELEMENTARY_CHARGE_C * _AVOGADRO_PER_MOL / 1000.0
KCAL_PER_MOL_IN_EV = 4.184 / EV_IN_KJ_PER_MOL
EV_PER_ANGSTROM3_IN_GPA = _ELEMENTARY_CHARGE_C * 1e30 / 1e9
GPA_IN_EV_PER_ANGSTROM3 = 1.0 / EV_PER_ANGSTROM3_IN_GPA
BAR_IN_EV_PER_ANGSTROM3 = 1e-4 * GPA_IN_EV_PER_ANGSTROM3
AMU_ANGSTROM2_PER_FS2_IN_EV = _ATOMIC_MASS_KG * 1e10 / _ELEMENTARY_CHARGE_C
"""1 amu (Å/fs)² in eV: the factor between kinetic energies in amu, Å, fs and eV."""
AMU_PER_ANGSTROM3_IN_G_PER_CM3 = _ATOMIC_MASS_KG * 1e27

ENERGY_UNITS = {
    "eV": 1.0,
    "meV": 1e-3,
    "Hartree": HARTREE_IN_EV,
    "Ha": HARTREE_IN_EV,
    "mHa": 1e-3 * HARTREE_IN_EV,
    "Rydberg": 0.5 * HARTREE_IN_EV,
    "Ry": 0.5 * HARTREE_IN_EV,
    "mRy": 0.5e-3 * HARTREE_IN_EV,
    "kcal/mol": KCAL_PER_MOL_IN_EV,
    "kJ/mol": 1.0 / EV_IN_KJ_PER_MOL,
}
"""One of each in eV, by the names that files and people use."""

LENGTH_UNITS = {
    **dict.fromkeys(("angstrom", "Angstrom", "Ang", "A", "\u00c5", "\u212b"), 1.0),
    **dict.fromkeys(("bohr", "Bohr", "a0"), BOHR_IN_ANGSTROM),
    "nm": NM_IN_ANGSTROM,
    "pm": 0.01,
}
"""One of each in Å."""

PRESSURE_UNITS = {
    "GPa": GPA_IN_EV_PER_ANGSTROM3,
    "MPa": 1e-3 * GPA_IN_EV_PER_ANGSTROM3,
    "Pa": 1e-9 * GPA_IN_EV_PER_ANGSTROM3,
    "kbar": 1e3 * BAR_IN_EV_PER_ANGSTROM3,
    "kB": 1e3 * BAR_IN_EV_PER_ANGSTROM3,
    "bar": BAR_IN_EV_PER_ANGSTROM3,
    "atm": 1.01325 * BAR_IN_EV_PER_ANGSTROM3,
}
"""One of each in eV/Å³."""
