"""One naming scheme for models and datasets, the one function that finds them, and models by any name.

Looked for in this order, the first that exists is taken; a revision, where one is named, rules out the first two,
unless a folder has just that name:

- a bundled model (`snnp-si`) or dataset (`aluminium-7net`), in the installation;
- a folder or file (`runs/mine`), on this disk;
- a repository (`org/name`, `org/name@v1.0`) in the mirror that `SNNP_MIRROR` names;
- a repository on the Hub, in the cache of huggingface_hub, fetched if need be.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from snnp.errors import HubError, InputError, near_matches
from snnp.files import bundled_folders
from snnp.hub.client import fetch
from snnp.hub.manifest import read_manifest, verify_folder
from snnp.hub.mirror import find_in_mirror, mirror_folder
from snnp.hub.names import Kind, parse_reference
from snnp.models import store
from snnp.models.potential import Potential

__all__ = ["Resolved", "bundled_datasets", "load_model", "resolve"]


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

    Raises:
        HubError: if it is missing, out of reach or damaged; ModelFileError: for a model folder without a model.
        InputError: for a name that is neither, or a revision of something that has none.

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
    if not force and (found := find_in_mirror(reference, kind)) is not None:
        folder, commit = found
        return Resolved(folder, reference.repository, "mirror", reference.revision or "main", commit)
    if not revised and Path(text).parent.is_dir():
        raise HubError(f"{_missing_here(text)} For a {kind} of that name on the Hub write {text}@main.")
    try:
        folder, commit, _ = fetch(reference, kind, force=force)
    except HubError as error:  # that of the last place, after the others that were looked into
        mirror = mirror_folder()
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

    Raises:
        HubError: for a repository that is missing, out of reach or damaged.
        ModelFileError: for a missing, damaged, unknown or too new model.
        InputError: for an unfit name, a type that is not float32 or float64, or a device that cannot be used.
    """
    if isinstance(source, Potential):
        return store.load_model(source, dtype=dtype, device=device)
    found = resolve(source, "model", revision)
    model = store.load_model(found.folder, dtype=dtype, device=device)
    model.name = found.pinned
    if found.commit is not None:
        model.metadata = {**model.metadata, "loaded_from": found.record()}
    return model
