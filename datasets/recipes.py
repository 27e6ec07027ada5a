"""Recipes: from the raw files of a dataset to a folder that can be opened, checked and published.

    python datasets/NAME/recipe.py RAW OUT

What they all share is here, beside them. `RAW` holds the upstream files that `manifest.json` beside
the recipe lists; `OUT` gets one parquet file for each level of theory, the card, the manifest of the files, and the
recipe itself.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from ase.data import atomic_numbers

from snnp.data.description import Description, finish, read_description
from snnp.data.frames import Frames
from snnp.data.read import read_any
from snnp.data.storage.parquet_checks import MOST_GROUP_BYTES
from snnp.data.write import ParquetWriter, parquet_writer
from snnp.errors import DataError, MissingDependencyError, SnnpError
from snnp.files import write_atomically
from snnp.hub.manifest import fingerprint
from snnp.neighbours import neighbour_list, pair_vectors
from snnp.report import Markup, Table
from snnp.text import code

__all__ = [
    "Piece",
    "build",
    "check_raw",
    "from_xyz",
    "hdf5",
    "main",
    "numbers_of",
    "repulsion",
    "split_by",
    "table",
]

DESCRIPTION_FILE = "manifest.json"
_MOST_UNPACKING = 64  # bytes out of one byte of an HDF5 file; compressed coordinates give two or three
_DEEPEST = 16  # groups in groups
_MOST_TEXTS = 100_000  # names of elements in one array
_LONGEST_TEXT = 100


@dataclass(frozen=True)
class Piece:
    """Some frames of one part and one split."""

    part: str
    split: str
    frames: Frames


Make = Callable[[Path, Description], Iterable[Piece]]
"""A recipe: raw folder and description in, pieces out; the pieces of one split should come together."""


def check_raw(raw: Path, description: Description) -> None:
    """Compare the raw files with the checksums of the description; files without one must only be there."""
    for wanted in description.raw:
        path = raw / wanted.name
        if not path.is_file():
            where = f" from {wanted.url}" if wanted.url else f" ({description.origin})"
            raise DataError(f"{path} is missing, which the recipe of {description.name} needs; fetch it{where}.")
        if wanted.sha256 is not None and (found := fingerprint(path).sha256) != wanted.sha256:
            raise DataError(
                f"{path} has sha256 {found[:12]}…, the recipe of {description.name} was made for "
                f"{wanted.sha256[:12]}…; fetch that version, or leave the check out with --any-raw."
            )


def from_xyz(raw: Path, description: Description) -> Iterator[Piece]:
    """The recipe of sets that are extended XYZ: the files that each part's `files` names, split by split."""
    for part, about in description.parts.items():
        for split, names in about.files.items():
            for name in names:
                for frames in read_any(raw / name, label=name, labelled=False):
                    yield Piece(part, split, frames)


def build(raw: Path, out: Path, folder: Path, make: Make, *, check: bool = True) -> Description:
    """Run a recipe.

    Arguments:
        raw: folder of the raw files, whose checksums must be those of the description if `check`.
        out: folder to write; made if need be.
        folder: of the recipe, with `manifest.json`.
        make: reads the raw files.

    Returns:
        The description with counts.
    """
    description = read_description(folder / DESCRIPTION_FILE)
    if check:
        check_raw(raw, description)
    out.mkdir(parents=True, exist_ok=True)
    writers: dict[str, ParquetWriter] = {}
    try:
        with ExitStack() as stack:
            for piece in make(raw, description):
                if piece.part not in writers:
                    about, path = description.parts[piece.part], out / f"{piece.part}.parquet"
                    writers[piece.part] = stack.enter_context(parquet_writer(path, about.method, about.software))
                writers[piece.part].add(piece.frames, piece.split)
    except SnnpError:
        raise
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        raise DataError(
            f"the raw files are not laid out as the recipe of {description.name} expects ({type(error).__name__}: "
            f"{error}); fetch the version that it was made for."
        ) from error
    if missing := sorted(set(description.parts) - set(writers)):
        raise DataError(f"the recipe of {description.name} found nothing for the part {missing[0]} in {raw}.")
    for table in (file.name for file in description.raw if file.name.endswith(".csv")):
        write_atomically(out / table, (raw / table).read_bytes())  # what no column can hold goes beside
    recipe = folder / "recipe.py"
    if recipe.is_file():
        write_atomically(out / "recipe.py", recipe.read_bytes())
    return finish(out, description)


def main(make: Make = from_xyz, arguments: list[str] | None = None) -> None:
    """The command line of a recipe: `recipe.py RAW OUT [--any-raw]`."""
    folder = Path(sys.argv[0]).resolve().parent
    parser = argparse.ArgumentParser(description=f"Build the dataset {folder.name} from its raw files.")
    parser.add_argument("raw", type=Path, metavar="RAW", help="folder of the raw files")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write")
    parser.add_argument("--any-raw", action="store_true", help="accept raw files with other checksums")
    given = parser.parse_args(arguments)
    try:
        made = build(given.raw, given.out, folder, make, check=not given.any_raw)
    except SnnpError as error:
        sys.exit(f"error: {error}")
    for name, part in made.parts.items():
        print(f"{given.out / name}.parquet: {part.frames:,} frames, {part.splits}")


def table(descriptions: Sequence[Description]) -> str:
    """All datasets in one table: counts, levels of theory, licences, sizes."""
    columns = ("dataset", "part", "frames", "atoms", "in one", "elements", "labels", "level of theory", "licence")
    rows = []
    for description in descriptions:
        licence = description.licence or "none stated"
        if description.why_not_redistributable() is not None:
            licence += " (recipe only)"
        for name, part in description.parts.items():
            few = len(part.elements) <= 8
            rows.append(
                (
                    *(Markup(code(description.name)), Markup(code(name))),
                    *("not built here" if part.frames is None else part.frames, part.atoms, part.atoms_in_one),
                    *(" ".join(part.elements) if few else f"{len(part.elements)} elements", part.labels),
                    *(part.method, licence, None if part.bytes is None else f"{part.bytes / 1e6:.2f} MB"),
                )
            )
    return Table((*columns, "parquet"), rows, n_text=10).markdown()


def split_by(name: str, valid: float = 0.05, test: float = 0.05) -> str:
    """A split for everything of one name (a molecule, a formula): the same on every machine, fixed for good.

    Conformers of one molecule resemble each other; to put all of them into one split keeps the test set apart.
    """
    draw = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]) / 2**64
    return "test" if draw < test else "valid" if draw < test + valid else "train"


def hdf5(path: Path, names: Collection[str]) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """Each group of arrays in an HDF5 file, by its path in it: the layout of the ANI releases.

    Only arrays of these `names` are read. Refuses a file that is no HDF5, that points to other files or places, or that
    would unpack to far more than it holds.
    """
    try:
        import h5py
    except ImportError:
        raise MissingDependencyError("this recipe reads HDF5; install h5py with: pip install 'snnp[data]'.") from None
    if not path.is_file():
        raise DataError(f"{path} is no file; fetch it again.")
    budget = _Budget(path, max(MOST_GROUP_BYTES, _MOST_UNPACKING * path.stat().st_size))
    try:
        with h5py.File(path, "r") as file:
            yield from _groups(file, (), names, budget)
    except DataError:
        raise
    except (ArithmeticError, LookupError, OSError, RuntimeError, TypeError, ValueError) as error:  # all that HDF5 finds
        raise DataError(f"{path} cannot be read as HDF5: {' '.join(str(error).split())}.") from None


@dataclass
class _Budget:
    """What may still be read of a file: bytes in all, and each group once."""

    path: Path
    n_bytes: int
    seen: set[Any] = field(default_factory=set)

    def refuse(self, name: str, why: str) -> NoReturn:
        raise DataError(f"{self.path}: {name} {why}; the file is damaged, hostile, or not meant for this program.")


def _groups(
    group: Any, parents: tuple[str, ...], names: Collection[str], budget: _Budget
) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """Groups that hold arrays, those inside other groups too."""
    import h5py

    here = "/".join(parents)
    identity = h5py.h5o.get_info(group.id)
    if (place := (identity.fileno, identity.addr)) in budget.seen or len(parents) > _DEEPEST:
        budget.refuse(here or "/", "is linked twice or in a circle, or lies too deep")
    budget.seen.add(place)
    arrays, inner, unpacked = {}, [], 0
    for name in group:
        if not isinstance(group.get(name, getlink=True), h5py.HardLink):
            budget.refuse(f"{here}/{name}", "is a link to another place or file")
        item = group[name]
        if isinstance(item, h5py.Group):
            inner.append((name, item))
        elif isinstance(item, h5py.Dataset) and name in names:
            if item.external or item.is_virtual:
                budget.refuse(f"{here}/{name}", "keeps its numbers in another file")
            unpacked += item.size * item.dtype.itemsize if item.size else 0
            if unpacked > min(MOST_GROUP_BYTES, budget.n_bytes):
                budget.refuse(f"{here}/{name}", f"would unpack to {unpacked:,} bytes, far more than the file holds")
            arrays[name] = _array(item, f"{here}/{name}", budget)
    budget.n_bytes -= unpacked
    if arrays:
        yield here, arrays
    for name, item in inner:
        yield from _groups(item, (*parents, name), names, budget)


def _array(item: Any, name: str, budget: _Budget) -> np.ndarray:
    """The numbers or texts of a dataset; texts of any length one by one, since many may be one long text."""
    if item.dtype.kind in "biufS":
        values: np.ndarray = item[()]
        return values
    if item.dtype.kind != "O" or item.ndim > 1 or (item.size or 0) > _MOST_TEXTS:
        budget.refuse(name, f"holds values of type {item.dtype} that no dataset of atoms has")
    texts = []
    for k in range(item.size):
        texts.append(item[k] if item.ndim else item[()])
        if not isinstance(texts[-1], bytes | str) or len(texts[-1]) > _LONGEST_TEXT:
            budget.refuse(name, "holds something else than names of elements")
    return np.array(texts, dtype=object)


def numbers_of(species: np.ndarray) -> np.ndarray:
    """Atomic numbers of an array of numbers or of symbols (text or bytes)."""
    if species.dtype.kind in "iuf":
        return species.astype(np.int32)
    symbols = [one.decode(errors="replace") if isinstance(one, bytes) else str(one) for one in species.tolist()]
    if unknown := sorted(set(symbols) - set(atomic_numbers)):
        raise DataError(f"{unknown[0][:20]!r} is no chemical symbol; the raw file is damaged, or of another layout.")
    return np.array([atomic_numbers[symbol] for symbol in symbols], dtype=np.int32)


def repulsion(chunks: Iterable[Frames], cutoff: float = 3.0) -> float:
    """Mean force, eV/Å, with which the closest two atoms of each frame push each other apart.

    Data sets have been published with gradients in place of forces. Where atoms come closer than they would by
    themselves forces push them apart, so in data with hot or compressed structures the mean is positive; where it is
    negative the sign is wrong.
    """
    found = []
    for frames in chunks:
        frames = frames.take(frames.has_forces)
        for piece in frames.pieces(np.inf, 256):
            batch = frames[piece]
            structure = batch.structure()
            neighbours = neighbour_list(structure, cutoff)
            vectors = pair_vectors(structure, neighbours).numpy()
            lengths, i, j = np.linalg.norm(vectors, axis=1), neighbours.i.numpy(), neighbours.j.numpy()
            owner = batch.owner[i]
            order = np.lexsort((lengths, owner))
            closest = order[np.unique(owner[order], return_index=True)[1]]
            pushed = batch.forces[j[closest]] - batch.forces[i[closest]]
            found.append(0.5 * (pushed * vectors[closest] / lengths[closest, None]).sum(axis=1))
    values = np.concatenate([np.zeros(0), *found])
    return float(values.mean()) if len(values) else float("nan")
