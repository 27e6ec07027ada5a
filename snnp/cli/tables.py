"""Tables that several commands print."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from snnp.cli.console import number, print_table

__all__ = ["print_errors"]

_QUANTITIES = (
    ("energy MAE", "energy_mae_mev_per_atom"),
    ("RMSE", "energy_rmse_mev_per_atom"),
    ("max (meV/atom)", "energy_max_mev_per_atom"),
    ("force MAE", "force_mae_ev_per_angstrom"),
    ("RMSE", "force_rmse_ev_per_angstrom"),
    ("max (eV/Å)", "force_max_ev_per_angstrom"),
)
_STRESS = ("stress MAE (GPa)", "stress_mae_gpa")


def print_errors(parts: Mapping[str, Mapping[str, Any]], title: str) -> None:
    """One row of errors per part of some data (train, test, or groups); `GroupErrors.to_dict` says what a row holds."""
    has_stress = any(part.get("stress_mae_gpa") is not None for part in parts.values())
    quantities = [*_QUANTITIES, _STRESS] if has_stress else _QUANTITIES
    rows = []
    for name, part in parts.items():
        counts = [str(part.get(count, "–")) for count in ("n_structures", "n_atoms")]
        rows.append([name, *counts, *(number(part.get(key)) for _, key in quantities)])
    print_table(["", "structures", "atoms", *(label for label, _ in quantities)], rows, title=title)
