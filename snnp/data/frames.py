"""Frames: reference structures with energies, forces and stresses, read from extended XYZ or whatever ASE reads."""

from __future__ import annotations

import gzip
import io
import logging
import zlib
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
from ase import Atoms
from ase.data import chemical_symbols
from ase.io.formats import UnknownFileTypeError

from snnp.errors import DataError, InputError, near_matches
from snnp.structure import Structure

__all__ = ["USUAL_NAMES", "Frame", "Keys", "choose_names", "elements_of", "labels_of", "parse_images", "read_frames"]

_log = logging.getLogger(__name__)

# In order of preference: names that can only mean the reference come before names that a calculator may have written.
USUAL_NAMES = {
    "energy": (
        *("REF_energy", "ref_energy", "energy", "dft_energy", "DFT_energy", "Energy"),
        *("total_energy", "free_energy"),
    ),
    "forces": ("REF_forces", "ref_forces", "forces", "dft_forces", "DFT_forces", "Forces", "force", "Force"),
    "stress": (
        *("REF_stress", "ref_stress", "stress", "dft_stress", "DFT_stress", "Stress"),
        *("REF_virial", "ref_virial", "virial", "dft_virial", "DFT_virial", "virials", "Virial"),
    ),
    "group": ("config_type", "group", "tag"),
}

# What ASE's readers raise on files that are damaged, cut short or of another format.
_READ_ERRORS = (
    *(OSError, EOFError, ValueError, KeyError, IndexError, TypeError, AttributeError, AssertionError),
    *(RuntimeError, StopIteration, UnknownFileTypeError, zlib.error),
)


@dataclass(frozen=True)
class Keys:
    """Names under which a file holds its reference data; None takes the first usual name that the file has.

    Arguments:
        energy: total energy per structure, eV.
        forces: per-atom column, eV/Å.
        stress: eV/Å³ in ASE's sign, 3x3, 9 or 6 (Voigt) numbers; a name that holds "virial" means `-stress * V` in eV.
        group: label of the kind of structure.
    """

    energy: str | None = None
    forces: str | None = None
    stress: str | None = None
    group: str | None = None


@dataclass(frozen=True)
class Frame:
    """One reference structure of N atoms with what is known about it.

    Arguments:
        structure: exactly one structure, float64.
        energy: eV, or None.
        forces: [N, 3] eV/Å, or None.
        stress: [3, 3] eV/Å³, `dE/dstrain / V`, or None.
        group: kind of structure (`config_type`), or None.
        source: where it came from, as in "train.xyz#17"; unique within one data set.

    Raises:
        DataError: for wrong shapes, NaN or infinite numbers.
    """

    structure: Structure
    energy: float | None
    forces: np.ndarray | None
    stress: np.ndarray | None
    group: str | None
    source: str

    def __post_init__(self) -> None:
        n = self.structure.n_atoms
        if self.structure.n_structures != 1 or n == 0:
            raise DataError(f"{self.source}: a frame holds one structure with atoms, got {n} atoms.")
        expected = {"energy": (), "forces": (n, 3), "stress": (3, 3)}
        for name, shape in expected.items():
            value = getattr(self, name)
            if value is None:
                continue
            if np.shape(value) != shape:
                raise DataError(f"{self.source}: {name} has shape {np.shape(value)}, expected {shape} for {n} atoms.")
            if not np.isfinite(value).all():
                raise DataError(f"{self.source}: {name} holds NaN or infinite numbers; remove or recompute this frame.")

    @property
    def n_atoms(self) -> int:
        """Number of atoms N."""
        return self.structure.n_atoms


def elements_of(frames: Iterable[Frame]) -> tuple[str, ...]:
    """Chemical symbols that occur in `frames`, sorted by atomic number."""
    numbers = {z for frame in frames for z in frame.structure.numbers.tolist()}
    return tuple(chemical_symbols[z] for z in sorted(numbers))


def read_frames(path: str | Path | Sequence[str | Path], keys: Keys = Keys()) -> list[Frame]:
    """Read reference data from one file or several: extended XYZ (also .gz), or any format that ASE reads.

    Energies, forces, stresses and groups are found by their usual names (`REF_energy`, `energy`, calculator results,
    `config_type`, ...), or by the names in `keys`. Within one file one name is used throughout, so that levels of
    theory are never mixed. Any of them may be missing on some frames. Stresses of structures that are not fully
    periodic are left out: they have no defined volume.

    Arguments:
        path: a file or a sequence of files.
        keys: names to use in place of the usual ones. A named key must exist in each file (forces, stress and group may
            be absent from a file of single atoms).

    Returns:
        The frames in the order of the files; `source` is "name#index", with the folder before it where names repeat.

    Raises:
        DataError: for a file that is missing, empty, unreadable or without energies, for a named key that is absent,
            for shapes that do not match the number of atoms, and for NaN.
    """
    files = [Path(path)] if isinstance(path, str | Path) else [Path(one) for one in path]
    if not files:
        raise DataError("no data file was given; name at least one file of reference structures.")
    frames: list[Frame] = []
    for file, label in zip(files, labels_of(files), strict=True):
        frames.extend(_read_file(file, label, keys))
    return frames


def labels_of(files: list[Path]) -> list[str]:
    """Shortest trailing part of each path that tells the files apart.

    Raises:
        DataError: for a file that is listed twice.
    """
    for depth in range(1, max(len(file.parts) for file in files) + 1):
        labels = ["/".join(file.parts[-depth:]) for file in files]
        if len(set(labels)) == len(labels):
            return labels
    twice = next(str(file) for file in files if files.count(file) > 1)
    raise DataError(f"{twice} is listed twice; name each data file once.")


def _read_file(file: Path, label: str, keys: Keys) -> list[Frame]:
    images = parse_images(file)
    tables = [_named_values(atoms) for atoms in images]
    present = {name for table in tables for name in table}
    names = choose_names(file, present, all(len(atoms) == 1 for atoms in images), keys)
    _log.info("%s: %d frames, %s", file, len(images), names)
    return [
        _frame(atoms, table, names, f"{label}#{index}")
        for index, (atoms, table) in enumerate(zip(images, tables, strict=True))
    ]


def parse_images(file: Path) -> list[Atoms]:
    """All images of a file, as ASE reads them.

    Raises:
        DataError: for a file that is missing, empty or unreadable.
    """
    if not file.is_file():
        siblings = [other.name for other in file.parent.iterdir()] if file.parent.is_dir() else []
        what = "is a folder, not a data file" if file.is_dir() else "does not exist"
        raise DataError(f"{file} {what}.{near_matches(file.name, siblings)}")
    images: list[Atoms] = []
    if file.stat().st_size > 0:
        try:
            images = _read_images(file)
        except _READ_ERRORS as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise DataError(f"{file} cannot be read as a file of structures: {reason}.") from error
    if not images:
        raise DataError(f"{file} is empty; expected at least one structure with an energy.")
    return images


def _read_images(file: Path) -> list[Atoms]:
    suffixes = [suffix.lower() for suffix in file.suffixes]
    if suffixes[-1:] in ([".xyz"], [".extxyz"]):
        return list(ase.io.read(file, index=":", format="extxyz"))
    if suffixes[-2:] in ([".xyz", ".gz"], [".extxyz", ".gz"]):
        # Unpacked into memory first: ASE's reader seeks backwards, which in a compressed file starts over each time.
        with gzip.open(file, "rt") as stream:
            return list(ase.io.read(io.StringIO(stream.read()), index=":", format="extxyz"))
    return list(ase.io.read(file, index=":"))


def _named_values(atoms: Atoms) -> dict[str, Any]:
    """Everything a file says about one image, by name: ASE spreads it over info, arrays and a calculator."""
    values: dict[str, Any] = dict(atoms.info.get("key_value_pairs", {}))
    values.update(atoms.info)
    values.update((name, array) for name, array in atoms.arrays.items() if name not in ("numbers", "positions"))
    if atoms.calc is not None:
        values.update(atoms.calc.results)
    return {name: value for name, value in values.items() if value is not None}


def choose_names(
    file: Path, present: Collection[str], single_atoms: bool, keys: Keys = Keys(), *, labelled: bool = True
) -> dict[str, str | None]:
    """The one name per quantity that is used for a file: "energy", "forces", "stress", "group" -> name or None.

    Arguments:
        file: named in errors.
        present: all names that occur in the file.
        single_atoms: whether it holds single atoms only, which need no forces.
        keys: names that are prescribed.
        labelled: whether there must be energies.

    Raises:
        DataError: if a prescribed name is missing, or there is no energy.
    """
    listing = ", ".join(sorted(present)) or "none"
    names: dict[str, str | None] = {}
    for quantity, usual in USUAL_NAMES.items():
        wanted = getattr(keys, quantity)
        if wanted is None:
            names[quantity] = next((name for name in usual if name in present), None)
            continue
        if wanted not in present and (quantity == "energy" or not single_atoms):
            raise DataError(
                f"{file} has no key '{wanted}' for {quantity}; it has: {listing}.{near_matches(wanted, present)}"
            )
        names[quantity] = wanted
    if names["energy"] is None and labelled:
        raise DataError(
            f"{file} holds no energies under a usual name (such as energy or REF_energy); it has: {listing}. "
            "Name the key that holds the energy."
        )
    return names


def _frame(atoms: Atoms, table: dict[str, Any], names: dict[str, str | None], source: str) -> Frame:
    found = {quantity: table.get(name) if name else None for quantity, name in names.items()}
    structure = Structure.from_ase(atoms)
    try:
        structure.check()
    except InputError as error:
        raise DataError(f"{source}: {error}") from error
    numbers = {
        quantity: _numbers(value, source, quantity, names[quantity])
        for quantity, value in found.items()
        if value is not None and quantity != "group"
    }
    stress = None
    if "stress" in numbers and bool(structure.pbc.all()):
        stress = _full_tensor(numbers["stress"], source)
        if "virial" in str(names["stress"]).lower():
            stress = -stress / float(structure.volume()[0])
    energy = numbers.get("energy")
    return Frame(
        structure=structure,
        energy=None if energy is None else _scalar(energy, source),
        forces=numbers.get("forces"),
        stress=stress,
        group=None if found["group"] is None else str(found["group"]),
        source=source,
    )


def _numbers(value: Any, source: str, quantity: str, name: str | None) -> np.ndarray:
    try:
        return np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"{source}: {quantity} (key '{name}') is not numeric: {value!r}.") from error


def _scalar(value: np.ndarray, source: str) -> float:
    if value.size != 1:
        raise DataError(f"{source}: energy has {value.size} numbers, expected one total energy in eV.")
    return float(value.reshape(()))


def _full_tensor(value: np.ndarray, source: str) -> np.ndarray:
    """[3, 3] symmetric tensor from 3x3, 9, or 6 numbers in Voigt order xx, yy, zz, yz, xz, xy."""
    if value.size == 6:
        xx, yy, zz, yz, xz, xy = value.reshape(6)
        return np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]])
    if value.size != 9:
        raise DataError(f"{source}: stress has {value.size} numbers, expected 3x3, 9, or 6 (Voigt).")
    full = value.reshape(3, 3)
    return 0.5 * (full + full.T)
