"""Where frames come from: a file, a dataset in a folder, or a dataset by name, and one function for all of them.

    load_dataset("org/name@v1.0", split="train")        from the Hub or a mirror
    load_dataset("folder", part="ccsdt", split="test")  one of several levels of theory
    read_frames(["train.xyz", "org/name:train"])        files and datasets, as training takes them

Only this module knows names; all others of `snnp.data` work on files.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from snnp.data.dataset import Dataset
from snnp.data.files import holds_xyz, is_xyz, labels_of, read_any
from snnp.data.frames import Frames
from snnp.data.labels import Keys
from snnp.data.parquet.row_groups import MemorySource, ParquetSource, Source
from snnp.errors import DataError, near_matches

__all__ = ["dataset_files", "dataset_records", "load_dataset", "open_source", "read_frames"]

_SELECTION = re.compile(r"(?P<name>.+?):(?:(?P<part>[\w.-]+)/)?(?P<split>\w+)")


def load_dataset(
    name: str | Path, split: str | None = None, *, part: str | None = None, revision: str | None = None
) -> Dataset:
    """Open a dataset; nothing but its footer is read.

    Arguments:
        name: `org/name[@revision]` on the Hub or in a mirror, a folder, a parquet file, or a file of extended XYZ
            (which is read into memory).
        split: "train", "valid", "test", ...; None: all frames.
        part: which file, where a dataset has several, one for each level of theory; its name without ".parquet".
        revision: branch, tag or commit hash; may also follow the name after an @.

    Raises:
        DataError: if there is no such split or part, or the file is damaged or hostile.
        HubError: if the name is unknown or cannot be fetched, or the files are not those of the manifest.
        MissingDependencyError: without pyarrow, or huggingface_hub for names on the Hub.
    """
    from snnp.hub import resolve

    place = resolve(name, "dataset", revision)
    path = place.folder
    if path.is_dir():
        path = _choose(dataset_files(path), part, str(name))
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


def _choose(files: dict[str, Path], part: str | None, name: str) -> Path:
    if not files:
        raise DataError(f"{name} is a folder without parquet files; make one with 'snnp convert' or a recipe.")
    if part is None and len(files) == 1:
        return next(iter(files.values()))
    if part is None:
        raise DataError(f"{name} has several levels of theory, name one with part=...: {', '.join(files)}.")
    if part not in files:
        raise DataError(f"{name} has no part {part!r}; it has: {', '.join(files)}.{near_matches(part, files)}")
    return files[part]


def read_frames(path: str | Path | Sequence[str | Path], keys: Keys = Keys(), *, split: str | None = None) -> Frames:
    """Read frames from files and datasets: extended XYZ, whatever ASE reads, parquet, folders, names on the Hub.

    A dataset may be followed by `:split` or `:part/split`, as in `org/name:train` or `org/ani-1x:ccsdt_cbs/test`.
    Energies, forces, stresses and groups of files are found by their usual names (`REF_energy`, `energy`,
    `dft_virial`, results of a calculator, `config_type`, ...) or by `keys`; within one file one name is used.
    Any of them may be missing on some frames. Stresses of structures that are not fully periodic are left out: they
    have no defined volume. The `source` of a frame is "name#index", with the folder before it where names repeat.

    Arguments:
        path: one or several.
        keys: names and units of the labels in files, where they are unusual; those of datasets are fixed.
        split: of datasets that name none and have it; None: all frames.

    Raises:
        DataError: as `load_dataset` says; and for a file that is missing, empty, unreadable, without energies or not
            understood, for a named key that is absent, for shapes that do not match the number of atoms, and for NaN.
    """
    sources = [path] if isinstance(path, str | Path) else list(path)
    if not sources:
        raise DataError("no data file was given; name at least one file of reference structures.")
    parts: list[Frames] = []
    for source, label in zip(sources, labels_of([Path(str(source)) for source in sources]), strict=True):
        dataset = _as_dataset(str(source), split)
        if dataset is None:
            blocks = read_any(source, keys, label, extras=False)
            parts += [block.checked() for block in blocks]
        elif keys != Keys():
            raise DataError(
                f"{source} is a dataset, whose columns have fixed names and units; leave the keys and units of labels "
                "away, or make another dataset of it with 'snnp convert'."
            )
        else:
            found = dataset.frames()
            if len(sources) > 1:
                found = replace(found, sources=[f"{label}/{source}" for source in found.sources])
            parts.append(found)
    return Frames.concatenate(parts)


def dataset_records(sources: Iterable[str]) -> list[dict[str, str]]:
    """What a run keeps of the datasets that it took from the Hub or a mirror: name, revision, commit."""
    from snnp.hub import parse_reference, resolve

    records: dict[str, dict[str, str]] = {}
    for source in sources:
        name, _, _ = _selection(source)
        if not Path(name).exists() and parse_reference(name) is not None and not _is_missing_file(Path(name)):
            found = resolve(name, "dataset")
            records[found.pinned] = found.record()
    return list(records.values())


def _selection(text: str) -> tuple[str, str | None, str | None]:
    """Name, part and split of `name:part/split`."""
    if not Path(text).exists() and (match := _SELECTION.fullmatch(text)):
        return match["name"], match["part"], match["split"]
    return text, None, None


def _is_missing_file(path: Path) -> bool:
    """Whether a name that is not there looks like a file's rather than like a repository's."""
    return is_xyz(path) or (bool(path.suffix) and path.parent.is_dir())


def _as_dataset(text: str, split: str | None) -> Dataset | None:
    """A dataset if the text names one; None for files that are read by the file."""
    from snnp.hub import parse_reference

    name, part, wanted = _selection(text)
    path = Path(name)
    if path.is_file() and path.suffix.lower() != ".parquet":
        return None
    if not path.exists() and (path.suffix.lower() == ".parquet" or parse_reference(name) is None):
        return None
    if not path.exists() and _is_missing_file(path):
        return None
    dataset = load_dataset(name, part=part)
    if wanted is not None:
        return dataset.select(wanted)
    return dataset.select(split) if split in dataset.splits else dataset
