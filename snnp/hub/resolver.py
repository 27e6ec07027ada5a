"""One naming scheme for models and datasets, the one function that finds them, and models by any name.

Looked for in this order, the first that exists is taken; a revision, where one is named, rules out the first two,
unless a folder has just that name:

- a bundled model (`snnp-si`) or dataset (`aluminium-7net`), in the installation;
- a folder or file (`runs/mine`), on this disk;
- a repository (`org/name`, `org/name@v1.0`) in the mirror that `SNNP_MIRROR` names;
- a repository on the Hub, in the cache of huggingface_hub, fetched if need be.

Mirrors are plain folders for machines without internet, made where there is some; they may be copied, moved, and
mounted read-only:

    MIRROR/models/org/name/<commit>/...     the files of the repository, manifest.json among them
    MIRROR/models/org/name/refs/main        the commit that this name stood for when the mirror was made
    MIRROR/datasets/...                     likewise
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from snnp.errors import HubError, InputError, near_matches
from snnp.files import bundled_folders, naming, scratch_folder, write_atomically
from snnp.hub.client import fetch
from snnp.hub.manifest import MANIFEST_FILE, check_inside, read_manifest, read_verified, verify_folder
from snnp.hub.names import Kind, Reference, is_commit, parse_reference
from snnp.models import store
from snnp.models.potential import Potential

__all__ = ["Resolved", "add_to_mirror", "bundled_datasets", "load_model", "resolve"]

_VARIABLE = "SNNP_MIRROR"


@dataclass(frozen=True)
class Resolved:
    """Where something lies, and exactly which version of it."""

    folder: Path
    name: str
    source: Literal["bundled", "folder", "mirror", "hub"]
    revision: str | None = None
    commit: str | None = None

    @property
    def pinned(self) -> str:
        """The name that will mean the same tomorrow: `org/name@commit`; without a commit the name itself."""
        return self.name if self.commit is None else f"{self.name}@{self.commit}"

    def record(self) -> dict[str, str]:
        """What a run or a card keeps: name and source, revision and commit hash where there are any."""
        values = {"name": self.name, "source": self.source, "revision": self.revision, "commit": self.commit}
        return {key: value for key, value in values.items() if value is not None}


def resolve(name: str | Path, kind: Kind = "model", revision: str | None = None, *, force: bool = False) -> Resolved:
    """Find a model or dataset by a name as in the list above, fetch it if need be, and check it against its manifest.

    `revision` is a branch, tag or commit hash, which may also follow the name after an @; `force` downloads again.

    Raises `HubError` if it is missing, out of reach or damaged, `ModelFileError` for a model folder without a model,
    `InputError` for a name that is neither, or a revision of something that has none.

    Example:
        >>> resolve("snnp-si").source
        'bundled'
    """
    text = str(name)
    here = isinstance(name, Path) or (revision is None and Path(text).exists())  # whatever its name looks like
    reference = None if here else parse_reference(text, revision)
    revised = reference is not None and reference.revision is not None
    bundled = text in (store.list_models() if kind == "model" else bundled_datasets())
    if not revised and (bundled or Path(text).exists()):
        source: Literal["bundled", "folder"] = "bundled" if bundled else "folder"
        if revision is not None:
            raise InputError(f"{text} is {source} and has no revisions; leave {revision!r} away.")
        folder = store.model_folder(text) if kind == "model" else bundled_datasets().get(text, Path(text))
        if bundled and kind == "dataset":
            verify_folder(folder, read_manifest(folder, kind), cure="install snnp again")
        return Resolved(folder, text, source)
    if reference is None and kind == "model":
        return Resolved(store.model_folder(text), text, "folder")  # which says what is wrong
    if reference is None:
        raise HubError(f"{_missing_here(text)} Nor is it the name of a dataset on the Hub (org/name).")
    if not force and (found := _find_in_mirror(reference, kind)) is not None:
        folder, commit = found
        return Resolved(folder, reference.repository, "mirror", reference.revision or "main", commit)
    if not revised and Path(text).parent.is_dir():
        raise HubError(f"{_missing_here(text)} For a {kind} of that name on the Hub write {text}@main.")
    try:
        folder, commit, _ = fetch(reference, kind, force=force)
    except HubError as error:  # that of the last place, after the others that were looked into
        mirror = _mirror_folder()
        said = f"{error}" if mirror is None else f"the mirror {mirror} does not hold it; {error}"
        said = said if "@" in text else f"{_missing_here(text)} As the name of a {kind} on the Hub: {said}"
        raise HubError(said) from None
    return Resolved(folder, reference.repository, "hub", reference.revision or "main", commit)


def bundled_datasets() -> dict[str, Path]:
    """Name -> folder of each dataset that is part of the installation; others have a recipe there, and no data."""
    return bundled_folders("datasets", "*.parquet")


def _missing_here(text: str) -> str:
    path = Path(text)
    siblings = [str(each) for each in path.parent.iterdir()] if path.parent.is_dir() else []
    siblings += bundled_datasets()
    return f"there is no file or folder '{text}'.{near_matches(text, siblings)}"


def load_model(
    source: str | Path | Potential,
    *,
    revision: str | None = None,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
) -> Potential:
    """Load a model: bundled, from a folder or run, from a mirror, or from the Hub; a `Potential` passes through.

    Its `name` is the one to report, `org/name@commit` if it has a commit; models from a mirror or the Hub carry both in
    `metadata["loaded_from"]`, too.

    Arguments:
        source, revision: see `resolve`.
        dtype: torch.float32 or torch.float64, or the name; None keeps the stored type.
        device: where to put it; None keeps it on the CPU.

    Raises `HubError` for a repository that is missing, out of reach or damaged; `ModelFileError` for a model that is
    missing, damaged, unknown or too new; `InputError` for an unfit name, another type, or a device that cannot be used.
    """
    if isinstance(source, Potential):
        return store.load_model(source, dtype=dtype, device=device)
    found = resolve(source, "model", revision)
    model = store.load_model(found.folder, dtype=dtype, device=device)
    model.name = found.pinned
    if found.commit is not None:
        model.metadata = {**model.metadata, "loaded_from": found.record()}
    return model


def _mirror_folder() -> Path | None:
    """The mirror that `SNNP_MIRROR` names, if any; refuses what is no folder."""
    named = os.environ.get(_VARIABLE)
    if not named:
        return None
    folder = Path(named)
    if not folder.is_dir():
        raise InputError(
            f"{_VARIABLE} names {named!r}, which is no folder; make it with 'snnp mirror' or unset {_VARIABLE}."
        )
    return folder


def _find_in_mirror(reference: Reference, kind: Kind) -> tuple[Path, str] | None:
    """The folder and the commit of a repository in the mirror, checked; None if there is no mirror, or it lacks it."""
    mirror = _mirror_folder()
    if mirror is None:
        return None
    base = mirror / f"{kind}s" / reference.repository
    commit = reference.revision or "main"
    if (base / "refs" / commit).is_file():
        commit = (base / "refs" / commit).read_text(encoding="ascii", errors="replace").strip()
    folder = base / commit
    if not is_commit(commit) or not (folder / MANIFEST_FILE).is_file():
        return None
    read_verified(folder, kind, cure=f"mirror it again with 'snnp mirror {mirror} {reference}'")
    return folder, commit


def add_to_mirror(mirror: str | Path, name: str, kind: Kind = "model") -> tuple[Path, str]:
    """Fetch a repository, `org/name[@revision]`, from the Hub and copy it into a mirror, which is made if need be.

    Returns the folder of the repository in the mirror, and its commit. Raises what `fetch` does, and `InputError` for a
    name that is none of a repository.
    """
    reference = parse_reference(name)
    if reference is None:
        raise InputError(f"{name!r} is no name of the form org/name; bundled models and folders need no mirror.")
    source, commit, manifest = fetch(reference, kind)
    base = Path(mirror) / f"{kind}s" / reference.repository
    folder = base / commit
    base.mkdir(parents=True, exist_ok=True)
    try:
        verify_folder(folder, read_manifest(folder, kind), quick=False)
    except HubError:  # it is not there, or not whole
        _copy(source, folder, [MANIFEST_FILE, *manifest.files])
        verify_folder(folder, manifest, quick=False)
    revision = reference.revision or "main"
    if revision != commit:
        note = base / "refs" / revision
        note.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(note, f"{commit}\n".encode())
    return folder, commit


def _copy(source: Path, folder: Path, names: list[str]) -> None:
    """Copy into a folder beside, then rename: readers see all or nothing; a damaged folder in the way is set aside."""
    with scratch_folder(folder.parent, folder.name) as temporary:
        for name in names:
            check_inside(source, name, source.parent.parent)  # the links of the cache lead to the blobs beside it
            target = temporary / name
            target.parent.mkdir(parents=True, exist_ok=True)
            with naming(target):
                shutil.copyfile(source / name, target)
        temporary.chmod(0o755)
        if folder.exists():
            folder.rename(folder.with_name(f".{folder.name}.{os.getpid()}.damaged"))
        try:
            temporary.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another process was faster
                raise
