"""Structures from a file or from a short specification such as `fcc:Al:4x4x4`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import ase.build
import ase.io
from ase import Atoms
from ase.collections import g2
from ase.data import atomic_numbers, chemical_symbols, reference_states
from ase.io.formats import UnknownFileTypeError

from snnp.data.reader import holds_xyz, read_atoms
from snnp.errors import DataError, InputError, near_matches

__all__ = ["build_structure"]

_LATTICES = ("fcc", "bcc", "diamond", "hcp", "sc")
_EXAMPLES = "fcc:Al:4x4x4, bcc:Mo:3x3x3:a=3.16, hcp:Mg:4x3x3:a=3.21:c=5.21, diamond:Si:3x3x3, molecule:CH3CH2OH"
_MOST_ATOMS = 10_000_000


def build_structure(spec: str | Path, *, lattice_constant: float | None = None) -> Atoms:
    """Read or build the atoms that a specification names.

    Arguments:
        spec: a file (the last frame, or `file.xyz@3` for another), a crystal `LATTICE:ELEMENT:SIZE[:a=Å][:c=Å]` with
            lattice fcc, bcc, diamond, sc (cubic cells) or hcp (orthorhombic cells), or `molecule:NAME` from the G2 set.
        lattice_constant: Å, for crystals whose specification gives none; by default ASE's reference value.

    Raises:
        InputError: a missing or unreadable file, or a specification that is not understood.

    Example:
        >>> len(build_structure("fcc:Al:4x4x4"))
        256
    """
    text = str(spec)
    kind, colon, rest = text.partition(":")
    if colon and kind == "molecule":
        return _molecule(rest)
    if colon and kind in _LATTICES:
        return _crystal(text, lattice_constant)
    path = Path(text.partition("@")[0])
    if path.is_file():
        return _from_file(text)
    if path.is_dir():
        raise InputError(f"'{path}' is a folder; name a structure file, or a specification such as {_EXAMPLES}.")
    if colon:
        hint = near_matches(kind, [*_LATTICES, "molecule"])
        raise InputError(f"unknown kind of structure '{kind}' in '{text}'.{hint} Examples: {_EXAMPLES}.")
    hint = near_matches(path.name, [file.name for file in path.parent.iterdir()]) if path.parent.is_dir() else ""
    raise InputError(f"no structure file '{text}'.{hint} Give a file or a specification such as {_EXAMPLES}.")


def _from_file(text: str) -> Atoms:
    name, _, index = text.partition("@")
    if holds_xyz(Path(name)) and re.fullmatch(r"-?\d*", index):
        try:
            return read_atoms(name, int(index or -1))
        except DataError as error:
            raise InputError(f"cannot read a structure from '{text}': {error}") from error
    try:
        atoms = ase.io.read(text)
    except UnknownFileTypeError as error:
        raise InputError(f"the format of '{text}' is not known to ASE; save it as .extxyz or .cif.") from error
    # ASE's readers raise whatever their parsing trips over; all of it means that the file cannot be read.
    except (
        OSError,
        ValueError,
        KeyError,
        IndexError,
        TypeError,
        AttributeError,
        AssertionError,
        StopIteration,
    ) as error:
        detail = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"cannot read a structure from '{text}': {detail}; check the file, or save it as .extxyz."
        ) from error
    if not isinstance(atoms, Atoms):
        raise InputError(f"'{text}' names {len(atoms)} structures; name one, for example file.xyz@0.")
    return atoms


def _molecule(name: str) -> Atoms:
    if name not in g2.names:
        raise InputError(
            f"no molecule '{name}' in ASE's G2 set.{near_matches(name, g2.names)} Example: molecule:CH3CH2OH."
        )
    atoms: Atoms = ase.build.molecule(name)
    return atoms


def _crystal(text: str, lattice_constant: float | None) -> Atoms:
    lattice, *parts = text.split(":")
    if len(parts) < 2:
        raise InputError(f"'{text}' is not a crystal; write LATTICE:ELEMENT:SIZE, for example {_EXAMPLES}.")
    symbol, size, *options = parts
    if symbol not in atomic_numbers or symbol == "X":
        raise InputError(
            f"'{symbol}' in '{text}' is not a chemical element.{near_matches(symbol, chemical_symbols[1:])}"
        )
    repeats = _size(size, text)
    lengths = _lengths(options, text)
    a = lengths.get("a", lattice_constant)
    c = lengths.get("c")
    if a is None:
        state: dict[str, Any] | None = reference_states[atomic_numbers[symbol]]
        if state is None or state["symmetry"] != lattice or "a" not in state:
            raise InputError(f"no lattice constant of {lattice} {symbol} is known; give one, for example {text}:a=4.0.")
        a = float(state["a"])
        c = float(state["c/a"]) * a if c is None and "c/a" in state else c
    if lattice == "hcp":
        unit = ase.build.bulk(symbol, "hcp", a=a, c=c, orthorhombic=True)
    elif c is not None:
        raise InputError(f"'{text}' gives c, which only hcp has; leave it out.")
    else:
        unit = ase.build.bulk(symbol, lattice, a=a, cubic=True)
    n_atoms = len(unit) * repeats[0] * repeats[1] * repeats[2]
    if n_atoms > _MOST_ATOMS:
        raise InputError(f"'{text}' has {n_atoms} atoms, more than {_MOST_ATOMS}; make it smaller.")
    atoms: Atoms = unit.repeat(repeats)
    return atoms


def _size(size: str, text: str) -> tuple[int, int, int]:
    match = re.fullmatch(r"([1-9]\d{0,6})(?:x([1-9]\d{0,6})x([1-9]\d{0,6}))?", size)
    if match is None:
        raise InputError(f"size '{size}' in '{text}' is not understood; write 4x4x4 or 4, all positive.")
    first, second, third = match.groups()
    return int(first), int(second or first), int(third or first)


def _lengths(options: list[str], text: str) -> dict[str, float]:
    lengths = {}
    for option in options:
        match = re.fullmatch(r"([ac])=(\d+\.?\d*|\.\d+)", option)
        if match is None or float(match[2]) <= 0.0:
            raise InputError(f"'{option}' in '{text}' is not understood; write a=4.05 (and c=... for hcp), in Å.")
        lengths[match[1]] = float(match[2])
    return lengths
