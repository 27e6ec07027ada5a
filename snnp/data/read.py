"""The way in for every file of structures, and for datasets in a folder, a mirror or on the Hub.

read_frames(["train.xyz", "org/name:train"])        files and datasets, as training takes them
load_dataset("aluminium-7net", split="train")       bundled
load_dataset("org/name@v1.0", split="train")        from the Hub or a mirror
load_dataset("folder", part="ccsdt", split="test")  one of several levels of theory
read_any("train.xyz")                               a file of any format, some frames at a time
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

import ase.io
import numpy as np
from ase import Atoms
from ase.io.formats import filetype

from snnp.data.dataset import Dataset
from snnp.data.frames import Frames
from snnp.data.labels import Keys, Units
from snnp.data.storage.atoms import from_atoms, to_atoms
from snnp.data.storage.contents import in_usual_units
from snnp.data.storage.extxyz import PACKED, XYZ, read_plain, read_xyz
from snnp.data.storage.parquet import MemorySource, ParquetSource, Source
from snnp.data.write import write_frames
from snnp.errors import DataError, near_matches

__all__ = ["as_dataset", "convert", "dataset_files", "dataset_records", "holds_xyz", "is_xyz", "labels_of"]
__all__ += ["load_dataset", "open_source", "read_any", "read_atoms", "read_frames", "read_images"]

_STATED = re.compile(rb"\b(?:properties|lattice)\s*=", re.IGNORECASE)
_SELECTION = re.compile(r"(?P<name>.+?):(?:(?P<part>[\w.-]+)/)?(?P<split>\w+)")


def is_xyz(path: Path) -> bool:
    """Whether a name stands for extended XYZ, packed or not."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    unpacked = suffixes[:-1] if suffixes[-1:] and suffixes[-1] in PACKED else suffixes
    return bool(unpacked) and unpacked[-1] in XYZ


def holds_xyz(path: Path) -> bool:
    """Whether a file is extended XYZ, by its name or by what it holds: ASE's own reader is never asked for that."""
    if is_xyz(path):
        return True
    try:
        with path.open("rb") as stream:
            head = stream.read(1 << 16).lstrip().split(b"\n")
        stated = len(head) > 1 and head[0].strip().isdigit() and _STATED.search(head[1]) is not None
        return stated or filetype(str(path)) in ("extxyz", "xyz")
    except Exception:  # whatever ASE's readers raise on files that are damaged or of no format
        return False


def read_any(
    path: str | Path, keys: Keys = Keys(), label: str | None = None, *, labelled: bool = True, extras: bool = True
) -> Iterator[Frames]:
    """Some frames of a file after the other: parquet, extended XYZ, or whatever ASE reads; arguments of `read_xyz`."""
    path = Path(path)
    _check_file(path)
    if path.suffix.lower() == ".parquet":
        source = ParquetSource(path)
        if keys.units != Units() and source.states_units:
            raise DataError(f"{path} states its units, eV and Å; leave --units away.")
        yield from (in_usual_units(source.chunk(group), keys.units) for group in range(len(source.sizes)))
    elif holds_xyz(path):
        yield from read_xyz(path, keys, label, labelled=labelled, extras=extras)
    else:
        images = _images(path)
        name = label or path.name
        yield from_atoms(images, [f"{name}#{k}" for k in range(len(images))], keys, labelled=labelled, extras=extras)


def read_atoms(path: str | Path, index: int = -1) -> Atoms:
    """One structure of a file that `holds_xyz`, with what belongs to its atoms (momenta, constraints), without results.

    `index` is that of the frame, from the end where negative.
    """
    _check_file(Path(path))
    (atoms,) = to_atoms(next(read_plain(path, index)))
    return atoms


def read_images(path: str | Path) -> list[Atoms]:
    """All structures of a file of any format; their labels, if there are any, are not asked for."""
    path = Path(path)
    _check_file(path)
    if path.suffix.lower() == ".parquet":
        chunks = read_any(path)
    elif holds_xyz(path):
        chunks = read_plain(path)
    else:
        return _images(path)
    return [atoms for frames in chunks for atoms in to_atoms(frames)]


def labels_of(files: list[Path]) -> list[str]:
    """Shortest trailing part of each path that tells the files apart; refuses a file that is listed twice."""
    for depth in range(1, max(len(file.parts) for file in files) + 1):
        labels = ["/".join(file.parts[-depth:]) for file in files]
        if len(set(labels)) == len(labels):
            return labels
    twice = next(str(file) for file in files if files.count(file) > 1)
    raise DataError(f"{twice} is listed twice; name each data file once.")


def _check_file(path: Path) -> None:
    if not path.is_file():
        siblings = [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []
        what = "is a folder, not a data file" if path.is_dir() else "does not exist"
        raise DataError(f"{path} {what}.{near_matches(path.name, siblings)}")
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty; expected at least one structure.")


def _images(path: Path) -> list[Atoms]:
    try:
        images = list(ase.io.read(path, index=":"))
    except Exception as error:  # whatever ASE's readers raise
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{path} cannot be read as a file of structures: {reason}.") from error
    if not images:
        raise DataError(f"{path} is empty; expected at least one structure.")
    return images


def load_dataset(
    name: str | Path, split: str | None = None, *, part: str | None = None, revision: str | None = None
) -> Dataset:
    """Open a dataset; nothing but its footer is read.

    Arguments:
        name: a bundled dataset, `org/name[@revision]` on the Hub or in a mirror (the revision may also be given apart),
            a folder, a parquet file, or extended XYZ (which is read into memory).
        split: "train", "valid", "test", ...; None: all frames.
        part: which file, where a dataset has several, one for each level of theory; its name without ".parquet".

    Raises `DataError` if there is no such split or part, or the file is damaged or hostile; `HubError` if the name is
    unknown or cannot be fetched, or the files are not those of the manifest; `MissingDependencyError` without pyarrow,
    or huggingface_hub for names on the Hub.
    """
    from snnp.hub import resolve

    place = resolve(name, "dataset", revision)
    path = place.folder
    if path.is_dir():
        files = dataset_files(path)
        if not files:
            raise DataError(f"{name} is a folder without parquet files; make one with 'snnp convert' or a recipe.")
        if part is None and len(files) > 1:
            raise DataError(f"{name} has several levels of theory, name one with part=...: {', '.join(files)}.")
        if part is not None and part not in files:
            raise DataError(f"{name} has no part {part!r}; it has: {', '.join(files)}.{near_matches(part, files)}")
        path = files[part or next(iter(files))]
    elif part is not None and part != path.stem:
        raise DataError(f"{name} is one file, it has no part {part!r}.")
    source = open_source(path)
    dataset = Dataset(source, np.arange(int(source.sizes.sum())))
    return dataset if split is None else dataset.select(split)


def open_source(path: Path, *, labelled: bool = True) -> Source:
    """A parquet file as it lies there, or a file of extended XYZ in memory, which must have energies if `labelled`."""
    if path.is_file() and holds_xyz(path):
        return MemorySource(list(read_any(path, labelled=labelled)), path.name)
    return ParquetSource(path)


def dataset_files(folder: Path) -> dict[str, Path]:
    """Part -> parquet file of a dataset's folder."""
    return {path.stem: path for path in sorted(folder.glob("*.parquet")) if not path.name.startswith(".")}


def read_frames(path: str | Path | Sequence[str | Path], keys: Keys = Keys(), *, split: str | None = None) -> Frames:
    """Read frames from files and datasets: extended XYZ, whatever ASE reads, parquet, folders, names on the Hub.

    A dataset may be followed by `:split` or `:part/split`, as in `org/name:train` or `org/ani-1x:ccsdt_cbs/test`.
    Energies, forces, stresses and groups of files are found by their usual names (`REF_energy`, `energy`,
    `dft_virial`, results of a calculator, `config_type`, ...) or by `keys`, with their units (those of datasets are
    fixed); within one file one name is used. Any may be missing on some frames. Stresses of structures that are not
    fully periodic are left out: they have no defined volume. The `source` of a frame is "name#index", with the folder
    before it where names repeat. `split` is taken of datasets that name none and have it.

    Raises `DataError` as `load_dataset` says, and for a file that is missing, empty, unreadable, not understood or
    without energies, for a named key that is absent, for shapes that do not match the number of atoms, and for NaN.
    """
    sources = [path] if isinstance(path, str | Path) else list(path)
    if not sources:
        raise DataError("no data file was given; name at least one file of reference structures.")
    parts: list[Frames] = []
    for source, label in zip(sources, labels_of([Path(str(source)) for source in sources]), strict=True):
        dataset = as_dataset(str(source), split)
        if dataset is None:
            parts += [frames.checked() for frames in read_any(source, keys, label, extras=False)]
            continue
        if keys != Keys():
            raise DataError(
                f"{source} is a dataset, whose columns have fixed names and units; leave the keys and units of labels "
                "away, or make another dataset of it with 'snnp convert'."
            )
        found = dataset.frames()
        if len(sources) > 1:
            found = replace(found, sources=[f"{label}/{each}" for each in found.sources])
        parts.append(found)
    return Frames.concatenate(parts)


def as_dataset(text: str, split: str | None) -> Dataset | None:
    """The dataset that a text `name:part/split` stands for, of `split` where it names none and has it; None: a file."""
    if (named := _named(text)) is None:
        return None
    name, part, wanted = named
    dataset = load_dataset(name, part=part)
    wanted = split if wanted is None and split in dataset.splits else wanted
    return dataset if wanted is None else dataset.select(wanted)


def dataset_records(sources: Iterable[str]) -> list[dict[str, str]]:
    """What a run keeps of the datasets that it took from the Hub or a mirror: name, revision, commit."""
    from snnp.hub import resolve

    named = (_named(source) for source in sources)
    found = [resolve(each[0], "dataset") for each in named if each is not None and not Path(each[0]).exists()]
    return list({each.pinned: each.record() for each in found}.values())


def _named(text: str) -> tuple[str, str | None, str | None] | None:
    """Name, part and split of the dataset that a text `name:part/split` stands for; None for a file of its own."""
    from snnp.hub import bundled_datasets, parse_reference

    match = None if Path(text).exists() else _SELECTION.fullmatch(text)
    name, part, split = (text, None, None) if match is None else match.groups()
    path = Path(name)
    if name in bundled_datasets():
        is_file = False
    elif path.exists():
        is_file = path.is_file() and path.suffix.lower() != ".parquet"
    else:  # what looks like the name of a file is missed as one
        is_file = is_xyz(path) or path.suffix.lower() == ".parquet" or parse_reference(name) is None
        is_file = is_file or (bool(path.suffix) and path.parent.is_dir())
    return None if is_file else (name, part, split)


def convert(
    files: Mapping[str, Sequence[str | Path]],
    target: str | Path,
    *,
    method: str = "",
    software: str = "",
    keys: Keys = Keys(),
    labelled: bool = True,
    workers: int = 1,
) -> int:
    """Write one file from several, and return the number of frames; the error names the file that cannot be read.

    Arguments:
        files: split -> files of that split.
        target: .parquet, or .xyz, .extxyz.
        method: level of theory; parquet must have it. `software` is the program that computed the labels.
        keys: names and units of the labels in the files, where they are unusual.
        labelled: whether there must be energies.
        workers: files that are read at the same time, each in a process of its own.
    """
    listed = [(split, Path(file)) for split, group in files.items() for file in group]
    if not listed:
        raise DataError("no file was given to convert; name at least one.")
    paths = [file for _, file in listed]
    labels = labels_of(paths)
    with ExitStack() as stack:
        found: Iterable[Iterable[Frames]]
        if workers > 1 and len(paths) > 1:
            pool = stack.enter_context(ProcessPoolExecutor(min(workers, len(paths))))
            found = pool.map(partial(_read_whole, keys=keys, labelled=labelled), paths, labels)
        else:
            named = zip(paths, labels, strict=True)
            found = (read_any(path, keys, label, labelled=labelled) for path, label in named)
        pieces = ((split, frames) for (split, _), each in zip(listed, found, strict=True) for frames in each)
        return write_frames(pieces, target, method, software)


def _read_whole(path: Path, label: str, *, keys: Keys, labelled: bool) -> list[Frames]:
    return list(read_any(path, keys, label, labelled=labelled))
