"""Everything that speaks to the Hub, through `huggingface_hub`: its cache, tokens, offline mode and endpoint."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from snnp.errors import HubError
from snnp.hub.failures import endpoint, explained, hub_library, patiently
from snnp.hub.manifest import MANIFEST_FILE, Manifest, read_manifest, verify_folder
from snnp.hub.names import Kind, Reference, is_commit

__all__ = ["RemoteRepository", "fetch", "list_repositories", "upload"]


@dataclass(frozen=True)
class RemoteRepository:
    """One line of a listing: a repository on the Hub."""

    name: str
    kind: Kind
    commit: str | None
    private: bool
    downloads: int
    modified: str | None


def fetch(reference: Reference, kind: Kind, *, force: bool = False) -> tuple[Path, str, Manifest]:
    """Bring a repository into the cache of huggingface_hub, unless it is there, and check every file of its manifest.

    Arguments:
        reference: `org/name`, with a revision or without.
        kind: "model" or "dataset".
        force: download again, and read again files that passed before.

    Returns:
        The folder in the cache, the commit hash, and the manifest. Files that the manifest does not list are not
        fetched.

    Raises:
        HubError: names what is missing, out of reach, refused or damaged.
        MissingDependencyError: without huggingface_hub.
    """
    library = hub_library()
    asked = {"repo_id": reference.repository, "repo_type": kind}
    with explained(reference, kind):
        revision = patiently(lambda: library.HfApi().resolve_revision(**asked, revision=reference.revision))
        commit = _checked_commit(str(revision.resolved))
        pinned: dict[str, Any] = {**asked, "revision": commit}
        try:
            first = patiently(lambda: library.hf_hub_download(**pinned, filename=MANIFEST_FILE, force_download=force))
        except library.errors.RemoteEntryNotFoundError:
            raise HubError(
                f"{reference} on {endpoint()} has no {MANIFEST_FILE}, so it is no {kind} published by snnp; check the "
                "name."
            ) from None
        folder = Path(first).parent
        manifest = read_manifest(folder, kind)
        names = [MANIFEST_FILE, *manifest.files]
        if force or not all((folder / name).is_file() for name in names):
            patiently(
                lambda: library.snapshot_download(**pinned, allow_patterns=names, force_download=force, max_workers=4)
            )
    cure = f"'snnp pull --force {reference}' downloads it again; if it stays so, tell the owner of the repository"
    verify_folder(folder, manifest, cure=cure, quick=not force)
    return folder, commit, manifest


def _checked_commit(commit: str) -> str:
    """A commit hash becomes a folder name, so it must be one."""
    if not is_commit(commit):
        raise HubError(f"{endpoint()} answered {commit[:60]!r} where a commit hash belongs; check HF_ENDPOINT.")
    return commit


def list_repositories(kind: Kind, *, owner: str | None = None, limit: int = 100) -> list[RemoteRepository]:
    """Repositories of snnp on the Hub: those that carry its tag.

    Raises:
        HubError: if the Hub cannot be reached.
    """
    api = hub_library().HfApi()
    listing = api.list_models if kind == "model" else api.list_datasets
    # Without `expand` the Hub leaves commit and dates away.
    fields = ["sha", "private", "downloads", "lastModified"]
    with explained(Reference("the listing"), kind):
        found = patiently(lambda: list(listing(filter="snnp", author=owner, limit=limit, expand=fields)))
    return [
        RemoteRepository(
            name=str(each.id),
            kind=kind,
            commit=each.sha,
            private=bool(each.private),
            downloads=int(each.downloads or 0),
            modified=each.last_modified.date().isoformat() if each.last_modified else None,
        )
        for each in found
    ]


def upload(
    folder: Path, names: list[str], repository: str, kind: Kind, *, private: bool, message: str
) -> tuple[str, str]:
    """Put files into a repository in one commit; files that snnp put there before and that are not among them go.

    Returns:
        The commit hash, and the address of the commit.

    Raises:
        HubError: if the Hub refuses or cannot be reached; what was there before is then still there.
    """
    library = hub_library()
    api = library.HfApi()
    asked: dict[str, Any] = {"repo_id": repository, "repo_type": kind}
    with explained(Reference(repository), kind, writing=True):
        patiently(lambda: api.create_repo(**asked, private=private, exist_ok=True))
        head = patiently(lambda: api.repo_info(**asked)).sha
        present = set(patiently(lambda: api.list_repo_files(**asked, revision=head)))
        gone = _listed_before(repository, kind, head) & present - set(names) if MANIFEST_FILE in present else set()
        # Fresh operations in each attempt: they carry state.
        commit = patiently(
            lambda: api.create_commit(
                **asked,
                operations=[
                    *(library.CommitOperationAdd(name, folder / name) for name in names),
                    *(library.CommitOperationDelete(name, is_folder=False) for name in sorted(gone)),
                ],
                commit_message=message,
                parent_commit=head,
            )
        )
    return _checked_commit(str(commit.oid)), str(commit.commit_url)


def _listed_before(repository: str, kind: Kind, commit: str) -> set[str]:
    """Files of the manifest that is in the repository now; none if that is no manifest of ours."""
    library = hub_library()
    path = library.hf_hub_download(repository, MANIFEST_FILE, repo_type=kind, revision=commit)
    try:
        return set(read_manifest(Path(path).parent, kind).files)
    except HubError:
        return set()
