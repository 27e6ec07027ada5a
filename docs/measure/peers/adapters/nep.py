"""NEP through calorine's CPUNEP (C++): NEP4 with random parameters; its neighbour list is built in each call."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["CASES", "PACKAGES", "prepare"]

PACKAGES = ("calorine",)
CASES: list[dict[str, Any]] = [
    {"name": "NEP, 30 neurons", "structure": "fcc:Al:a=4.05", "cutoffs": [6, 5], "l_max": [4, 2, 0], "neurons": 30},
    {"name": "NEP, 10 neurons", "structure": "fcc:Al:a=4.05", "cutoffs": [6, 4], "l_max": [4, 0, 0], "neurons": 10},
]
_N_MAX, _BASIS = 4, 8


def _write(path: Path, case: dict[str, Any]) -> int:
    """Write a NEP4 file for Al with random parameters; returns their number."""
    (radial, angular), (l3, l4, l5), neurons = case["cutoffs"], case["l_max"], case["neurons"]
    n_features = (_N_MAX + 1) * (1 + l3 + (l4 > 0) + (l5 > 0))
    n_parameters = (n_features + 2) * neurons + 1 + 2 * (_N_MAX + 1) * (_BASIS + 1)
    values = np.random.default_rng(0).normal(0.0, 0.3, n_parameters)
    lines = [
        "nep4 1 Al",
        f"cutoff {radial} {angular} 200 200",
        f"n_max {_N_MAX} {_N_MAX}",
        f"basis_size {_BASIS} {_BASIS}",
        f"l_max {l3} {l4} {l5}",
        f"ANN {neurons} 0",
        *(f"{value:.7e}" for value in values),
        *["0.1"] * n_features,
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return n_parameters


def prepare(case: dict[str, Any], system: Any, threads: int) -> tuple[Callable[..., Any], dict[str, Any]]:
    """See `serve.py`; the number of threads is OMP_NUM_THREADS."""
    from ase import Atoms
    from calorine.calculators import CPUNEP

    atoms = Atoms(system.numbers, system.positions, cell=system.cells[0], pbc=system.pbc)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "nep.txt"
        parameters = _write(file, case)
        atoms.calc = CPUNEP(str(file), atoms=atoms)
        atoms.get_potential_energy()

    def call(moved: Any) -> tuple[float, Any]:
        atoms.positions[:] = moved
        return atoms.get_potential_energy(), atoms.get_forces()

    return call, {"parameters": parameters, "cutoff": max(case["cutoffs"]), "dtype": "float64"}
