"""Publishing a folder as it stands: manifest, a look at what would be uploaded, one commit."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from snnp.errors import HubError
from snnp.hub.client import upload
from snnp.hub.manifest import MANIFEST_FILE, Manifest, read_verified
from snnp.hub.names import Kind, check_repository
from snnp.text import one_line

__all__ = ["Publication", "publish"]

_LARGEST_CARD = 1_000_000  # bytes


@dataclass(frozen=True)
class Publication:
    """What was uploaded, or would be: `commit` and `address` are None after a dry run."""

    files: dict[str, int]  # name and size in bytes, the manifest included
    commit: str | None = None
    address: str | None = None


def publish(
    kind: Kind,
    folder: str | Path,
    repository: str,
    *,
    private: bool = False,
    dry_run: bool = False,
    message: str | None = None,
) -> Publication:
    """Upload the files that a folder's manifest lists, in one commit.

    Arguments:
        kind: "model" or "dataset".
        folder: with `manifest.json` (see `write_manifest`) and a card, `README.md`, that begins with a YAML header.
        repository: `org/name`; made if it does not exist.
        private: whether a new repository is visible to its owner only.
        dry_run: check everything, upload nothing.
        message: of the commit.

    Raises:
        HubError: if the folder is not what its manifest says, has no card with a licence, or the Hub refuses.
        InputError: for an unfit name.
    """
    check_repository(repository)
    folder = Path(folder)
    manifest = read_verified(folder, kind, cure="write the manifest again", quick=False)
    _check_card(folder, manifest)
    files = {name: entry.bytes for name, entry in manifest.files.items()}
    files[MANIFEST_FILE] = (folder / MANIFEST_FILE).stat().st_size
    if dry_run:
        return Publication(files)
    summary = message or f"Publish {kind} with snnp"
    commit, address = upload(folder, list(files), repository, kind, private=private, message=summary)
    return Publication(files, commit, address)


def _check_card(folder: Path, manifest: Manifest) -> None:
    """A repository needs a card whose header names a licence: the Hub shows and filters by it."""
    import yaml

    if "README.md" not in manifest.files:
        raise HubError(f"{folder} has no README.md among its files; write a card first.")
    if manifest.files["README.md"].bytes > _LARGEST_CARD:
        raise HubError(f"{folder / 'README.md'} has more than {_LARGEST_CARD:,} bytes, which no card has.")
    parts = (folder / "README.md").read_text(encoding="utf-8", errors="replace").split("---\n", 2)
    try:
        header = yaml.safe_load(parts[1]) if len(parts) == 3 and not parts[0].strip() else None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise HubError(f"the header of {folder / 'README.md'} is no YAML ({' '.join(str(error).split())}).") from None
    licence = header.get("license") if isinstance(header, dict) else None
    if not isinstance(licence, str) or licence.strip() != one_line(licence):
        raise HubError(
            f"{folder / 'README.md'} names no licence in its YAML header (license: ...); add it to the card."
        )
