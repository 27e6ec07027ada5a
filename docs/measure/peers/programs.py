"""Which programs can be measured, where they are installed, and the cases that each offers."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from peers.processes import Case
from peers.systems import system_of

from snnp.errors import InputError, MissingDependencyError, near_matches
from snnp.kernels.build import find_compiler
from snnp.models.store import load_model

__all__ = ["PEERS", "ceiling_cases", "find_pythons", "own_cases", "peer_cases"]

PEERS = ("lammps", "hippynn", "torchani", "mace", "nep")
_VERSIONS = "import sys, importlib.metadata as m; [m.version(name) for name in sys.argv[1:]]"


def find_pythons(peers: Sequence[str], given: Mapping[str, str]) -> dict[str, str]:
    """The interpreter of each peer: as given, else the variable SNNP_PYTHON_<PEER>, else the one that runs this.

    Raises:
        InputError: for a peer that is not known, or an interpreter that does not start.
        MissingDependencyError: if an interpreter lacks the peer's packages; names them and the ways out.
    """
    for name in [*peers, *given]:
        if name not in PEERS:
            raise InputError(
                f"no program '{name}' to compare with.{near_matches(name, PEERS)} Known: {', '.join(PEERS)}."
            )
    pythons = {}
    for name in peers:
        python = given.get(name) or os.environ.get(f"SNNP_PYTHON_{name.upper()}") or sys.executable
        packages = _packages(name)
        try:
            found = subprocess.run([python, "-c", _VERSIONS, *packages], capture_output=True, check=False)
        except OSError as error:
            raise InputError(f"'{python}' does not start ({error.strerror}); give --python {name}=PATH.") from None
        if found.returncode != 0:
            raise MissingDependencyError(
                f"{name} needs {', '.join(packages)}, which {python} lacks; install them there, or name the "
                f"interpreter of another environment: --python {name}=PATH (docs/benchmarks says how each is set up)."
            )
        pythons[name] = python
    return pythons


def _packages(program: str) -> tuple[str, ...]:
    packages: tuple[str, ...] = importlib.import_module(f"peers.adapters.{program}").PACKAGES
    return packages


def peer_cases(program: str, python: str, n_atoms: int, threads: int) -> list[Case]:
    """All cases of a peer, with at most `n_atoms` atoms."""
    offered = importlib.import_module(f"peers.adapters.{program}").CASES
    return [
        Case(program, case["name"], case["structure"], min(n_atoms, case.get("atoms", n_atoms)), python, case, threads)
        for case in offered
    ]


def own_cases(
    models: Mapping[str, str | Path],
    n_atoms: int,
    threads: int,
    *,
    structure: str | None = None,
    dtype: str | None = None,
    device: str | None = None,
) -> list[Case]:
    """One case per model of snnp, on a structure that suits it unless one is named.

    Arguments:
        models: names, and what to load for them.

    Raises:
        ModelFileError: for a model that cannot be loaded. InputError: for one that no crystal suits.
    """
    cases = []
    for name, source in models.items():
        specification = structure or system_of(load_model(source))
        options = {"model": str(source), "dtype": dtype, "device": device}
        cases.append(Case("own", name, specification, n_atoms, sys.executable, options, threads))
    return cases


def ceiling_cases(threads: int, device: str | None = None) -> list[Case]:
    """The machine's own speed: multiply-adds (on a CPU with a compiler at hand), matrix products and a copy."""
    offered = importlib.import_module("peers.adapters.machine").CASES
    if find_compiler() is None or device not in (None, "cpu"):
        offered = [case for case in offered if case["kind"] != "multiply-add"]
    return [
        Case("machine", case["name"], "molecules", 1, sys.executable, {**case, "device": device or "cpu"}, threads)
        for case in offered
    ]
