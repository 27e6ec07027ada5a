"""Mirrors: plain folders for machines without internet, made where there is some.

    MIRROR/models/org/name/<commit>/...     the files of the repository, manifest.json among them
    MIRROR/models/org/name/refs/main        the commit that this name stood for when the mirror was made
    MIRROR/datasets/...                     likewise

A mirror may be copied, moved, and mounted read-only.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from snnp.errors import HubError, InputError
from snnp.files import naming, scratch_folder, write_atomically
from snnp.hub.client import fetch
from snnp.hub.manifest import MANIFEST_FILE, check_inside, read_manifest, read_verified, verify_folder
from snnp.hub.names import Kind, Reference, is_commit, parse_reference

__all__ = ["add_to_mirror", "find_in_mirror", "mirror_folder"]

_VARIABLE = "SNNP_MIRROR"


def mirror_folder() -> Path | None:
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


def find_in_mirror(reference: Reference, kind: Kind) -> tuple[Path, str] | None:
    """The folder and the commit of a repository in the mirror, checked; None if there is no mirror, or it lacks it."""
    mirror = mirror_folder()
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
