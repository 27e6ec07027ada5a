"""`manifest.json`: which files a repository holds, each with its size and sha256, so that any copy can be checked.

manifest = make_manifest(folder, "model")
write_manifest(folder, manifest)
verify_folder(folder, read_manifest(folder, "model"))
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, Field, JsonValue, ValidationError

from snnp.errors import HubError, first_fault
from snnp.files import write_atomically
from snnp.hub.names import Kind, check_file_name

__all__ = ["MANIFEST_FILE", "FileEntry", "Manifest", "check_inside", "fingerprint", "make_manifest", "parse_manifest"]
__all__ += ["read_manifest", "read_verified", "verify_folder", "write_manifest"]

MANIFEST_FILE = "manifest.json"
MANIFEST_VERSION = 1
_MOST_BYTES = 4_000_000  # of the manifest itself: thousands of files
_LARGE = 32_000_000  # bytes; smaller files are read in less than the time that a person notices


class FileEntry(BaseModel, extra="forbid", frozen=True):
    """Size and checksum of one file."""

    bytes: int = Field(ge=0, strict=True)
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Manifest(BaseModel, extra="forbid", frozen=True):
    """What a repository holds; `about` is free for its maker (origin, licence, counts)."""

    format: Literal["snnp-manifest"] = "snnp-manifest"
    format_version: int = Field(MANIFEST_VERSION, ge=1, strict=True)
    kind: Kind
    files: dict[str, FileEntry] = Field(min_length=1, max_length=10_000)
    about: dict[str, JsonValue] = {}


def fingerprint(path: Path) -> FileEntry:
    """Size and sha256 of a file, read piece by piece."""
    with path.open("rb") as handle:
        sha256 = hashlib.file_digest(handle, "sha256").hexdigest()
        return FileEntry(bytes=handle.tell(), sha256=sha256)


def make_manifest(
    folder: str | Path, kind: Kind, names: Iterable[str] | None = None, about: dict[str, JsonValue] | None = None
) -> Manifest:
    """Describe the files of a folder; refuses an empty one, links, and what else a repository must not hold.

    `names` are files to list, relative to the folder, with slashes; None takes all but hidden ones and the manifest.
    `about` are further JSON values to keep.
    """
    folder = Path(folder)
    if names is None:
        found = (path.relative_to(folder) for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
        names = [path.as_posix() for path in found if not any(part.startswith(".") for part in path.parts)]
    listed = sorted(name for name in names if name != MANIFEST_FILE)
    if not listed:
        raise HubError(f"{folder} holds no files to list; give the folder of a {kind}.")
    for name in listed:
        check_file_name(name, kind, str(folder))
        check_inside(folder, name)
    return Manifest(kind=kind, files={name: fingerprint(folder / name) for name in listed}, about=about or {})


def check_inside(folder: str | Path, name: str, root: Path | None = None) -> None:
    """Refuse what is no plain file, or lies elsewhere: it must not be handed on with a folder.

    Links may lead into `root`, for the cache of huggingface_hub, which keeps its files so; None: no links.
    """
    path = Path(folder)
    for part in name.split("/"):
        path = path / part
        if root is None and path.is_symlink():
            raise HubError(f"{path} is a link, and may lead out of the folder; put a copy in its place, or remove it.")
    if not path.is_file():
        what = "is missing" if not path.exists() else "is no plain file (a folder, a pipe or a device)"
        raise HubError(f"{path} {what}; remove it from the folder, or write the manifest again.")
    if not path.resolve().is_relative_to((root or Path(folder)).resolve()):
        raise HubError(f"{path} leads out of {root or folder}, to {path.resolve()}; do not use it.")


def write_manifest(folder: str | Path, manifest: Manifest) -> Path:
    """Write `manifest.json` atomically and return its path."""
    path = Path(folder) / MANIFEST_FILE
    write_atomically(path, (manifest.model_dump_json(indent=2) + "\n").encode())
    return path


def parse_manifest(content: bytes, kind: Kind, where: str = MANIFEST_FILE) -> Manifest:
    """Read a manifest from the bytes of its file, which may be anything; `where` is named in errors.

    Refuses what is no manifest of this kind, is newer than this snnp, or lists unfit names.
    """
    if len(content) > _MOST_BYTES:
        raise HubError(f"{where} has {len(content):,} bytes, more than the {_MOST_BYTES:,} that a manifest may have.")
    if not content.strip():
        raise HubError(f"{where} is empty, so it is no manifest of snnp; publish the {kind} again.")
    if content.lstrip()[:1] == b"<":
        raise HubError(f"{where} is no manifest of snnp but a web page, such as a network's login; fetch it again.")
    try:
        manifest = Manifest.model_validate_json(content)
    except ValidationError as error:
        _, key, why, _ = first_fault(error)
        said = f"{key[:80]}: {why}" if key else why
        raise HubError(f"{where} is no manifest of snnp ({said}); publish the {kind} again.") from None
    if manifest.format_version > MANIFEST_VERSION:
        raise HubError(
            f"{where} has format version {manifest.format_version}, this snnp reads up to {MANIFEST_VERSION}; "
            "upgrade with 'pip install --upgrade snnp'."
        )
    if manifest.kind != kind:
        raise HubError(f"{where} describes a {manifest.kind}, not a {kind}; ask for it as a {manifest.kind}.")
    for name in manifest.files:
        check_file_name(name, kind, where)
    return manifest


def read_manifest(folder: str | Path, kind: Kind) -> Manifest:
    """Read the manifest of a folder; refuses what `parse_manifest` does."""
    path = Path(folder) / MANIFEST_FILE
    if not path.is_file():
        raise HubError(f"{folder} has no {MANIFEST_FILE}, so it is no {kind} published by snnp; check the name.")
    with path.open("rb") as handle:
        return parse_manifest(handle.read(_MOST_BYTES + 1), kind, str(path))


def read_verified(folder: Path, kind: Kind, *, cure: str, quick: bool = True) -> Manifest:
    """The manifest of a folder whose files are those that it lists, and lie in the folder; refuses any other folder."""
    manifest = read_manifest(folder, kind)
    for name in (MANIFEST_FILE, *manifest.files):
        check_inside(folder, name)
    verify_folder(folder, manifest, cure=cure, quick=quick)
    return manifest


def verify_folder(folder: str | Path, manifest: Manifest, *, cure: str = "fetch it again", quick: bool = True) -> None:
    """Compare every file of a folder with its manifest; refuses the first that is missing or differs, deletes nothing.

    `cure` is what the error advises. Large files that passed before and have not been touched since are not read again
    if `quick`.
    """
    for name, wanted in manifest.files.items():
        path = Path(folder) / name
        if not path.is_file():
            raise HubError(f"{path} is missing, which {MANIFEST_FILE} lists; {cure}.")
        size, stamp = path.stat().st_size, _stamp(path, wanted.sha256)
        differs = "" if size == wanted.bytes else f"has {size:,} bytes, {MANIFEST_FILE} says {wanted.bytes:,}"
        if not differs:
            if quick and stamp is not None and stamp.is_file():
                continue
            found = fingerprint(path).sha256
            if found != wanted.sha256:
                differs = f"has sha256 {found[:12]}…, {MANIFEST_FILE} says {wanted.sha256[:12]}…"
        if differs:
            raise HubError(f"{path} {differs}: it is damaged or was changed; {cure}. Nothing was deleted.")
        if stamp is not None:
            with suppress(OSError):  # a home folder that cannot be written to, as on many compute nodes
                stamp.parent.mkdir(parents=True, exist_ok=True)
                stamp.touch()


def _stamp(path: Path, sha256: str) -> Path | None:
    """An empty file that says that a large file passed its check; None for small ones, and without huggingface_hub.

    Its name is a hash of all that changes when the file is touched, and of the sha256 that it passed.
    """
    real = path.resolve()
    about = real.stat()
    if about.st_size < _LARGE:
        return None
    try:
        from huggingface_hub import constants
    except ImportError:
        return None
    key = f"{real}|{about.st_size}|{about.st_ino}|{about.st_mtime_ns}|{about.st_ctime_ns}|{sha256}"
    return Path(constants.HF_ASSETS_CACHE) / "snnp" / "verified" / hashlib.sha256(key.encode()).hexdigest()
