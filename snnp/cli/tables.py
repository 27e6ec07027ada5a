"""Tables that several commands print."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from snnp.cli.console import number, print_table, say

__all__ = ["print_errors", "print_properties"]

_QUANTITIES = (
    ("energy MAE", "energy_mae_mev_per_atom"),
    ("RMSE", "energy_rmse_mev_per_atom"),
    ("max (meV/atom)", "energy_max_mev_per_atom"),
    ("force MAE", "force_mae_ev_per_angstrom"),
    ("RMSE", "force_rmse_ev_per_angstrom"),
    ("max (eV/Å)", "force_max_ev_per_angstrom"),
)
_STRESS = ("stress MAE (GPa)", "stress_mae_gpa")
_PROPERTIES = {
    "a (Å)": "lattice_constant_angstrom",
    "E coh (eV/atom)": "cohesive_energy_ev_per_atom",
    "B (GPa)": "bulk_modulus_gpa",
    "C11 (GPa)": "c11_gpa",
    "C12 (GPa)": "c12_gpa",
    "C44 (GPa)": "c44_gpa",
}


def print_errors(parts: Mapping[str, Mapping[str, Any]], title: str) -> None:
    """One row of errors per part of some data (train, test, or groups); `GroupErrors.to_dict` says what a row holds."""
    has_stress = any(part.get("stress_mae_gpa") is not None for part in parts.values())
    quantities = [*_QUANTITIES, _STRESS] if has_stress else _QUANTITIES
    rows = []
    for name, part in parts.items():
        counts = [str(part.get(count, "–")) for count in ("n_structures", "n_atoms")]
        rows.append([name, *counts, *(number(part.get(key)) for _, key in quantities)])
    print_table(["", "structures", "atoms", *(label for label, _ in quantities)], rows, title=title)


def print_properties(crystals: Iterable[Mapping[str, Any]]) -> None:
    """A table per crystal: the model beside published values; `CubicProperties.to_dict` says what a crystal holds."""
    sources: dict[str, str] = {}
    crystals = list(crystals)
    for crystal in crystals:
        lines = {"model": crystal, **crystal["references"]}
        rows = [[name, *(number(line.get(key), 4) for key in _PROPERTIES.values())] for name, line in lines.items()]
        print_table(["", *_PROPERTIES], rows, title=f"\n{crystal['structure']} {crystal['element']}")
        sources |= {line["source"]: name for name, line in crystal["references"].items()}
    for source, name in sources.items():
        say(f"{name}: {source}")
    if any(crystal.get("cohesive_energy_ev_per_atom") is None for crystal in crystals):
        say("E coh: the model has none where E0 is not the energy of an isolated atom.")
