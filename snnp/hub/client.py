"""Everything that speaks to the Hub, through `huggingface_hub`: its cache, tokens, offline mode and endpoint.

What may pass is tried again; all other failures become a `HubError` in one line with the cure.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import yaml

from snnp.errors import HubError, MissingDependencyError, SnnpError, near_matches
from snnp.hub.manifest import MANIFEST_FILE, Manifest, read_manifest, read_verified, verify_folder
from snnp.hub.names import Kind, Reference, check_repository, is_commit
from snnp.text import one_line

__all__ = ["Publication", "RemoteRepository", "fetch", "hub_library", "list_repositories", "publish"]

_WAITS = (0.5, 1.0, 2.0)  # seconds between attempts
_TOKEN = re.compile(r"[!-~]{1,4096}")
_CUT_SHORT = "Consistency check failed"  # of files with fewer bytes than were announced: huggingface_hub has no class
_LARGEST_CARD = 1_000_000  # bytes
_T = TypeVar("_T")


@dataclass(frozen=True)
class RemoteRepository:
    """One line of a listing: a repository on the Hub."""

    name: str
    kind: Kind
    commit: str | None
    private: bool
    downloads: int
    modified: str | None


@dataclass(frozen=True)
class Publication:
    """What was uploaded, or would be: `commit` and `address` are None after a dry run."""

    files: dict[str, int]  # name and size in bytes, the manifest included
    commit: str | None = None
    address: str | None = None


def fetch(reference: Reference, kind: Kind, *, force: bool = False) -> tuple[Path, str, Manifest]:
    """Bring a repository into the cache of huggingface_hub, unless it is there, and check every file of its manifest.

    `force` downloads again, and reads again files that passed before. Returns the folder in the cache, the commit hash,
    and the manifest; files that it does not list are not fetched.
    """
    library = hub_library()
    asked = {"repo_id": reference.repository, "repo_type": kind}
    with _explained(reference, kind):
        revision = _patiently(lambda: library.HfApi().resolve_revision(**asked, revision=reference.revision))
        commit = _checked_commit(str(revision.resolved))
        pinned: dict[str, Any] = {**asked, "revision": commit}
        try:
            first = _patiently(lambda: library.hf_hub_download(**pinned, filename=MANIFEST_FILE, force_download=force))
        except library.errors.RemoteEntryNotFoundError:
            raise HubError(
                f"{reference} on {_endpoint()} has no {MANIFEST_FILE}, so it is no {kind} published by snnp; check the "
                "name."
            ) from None
        folder = Path(first).parent
        manifest = read_manifest(folder, kind)
        names = [MANIFEST_FILE, *manifest.files]
        if force or not all((folder / name).is_file() for name in names):
            _patiently(
                lambda: library.snapshot_download(**pinned, allow_patterns=names, force_download=force, max_workers=4)
            )
    cure = f"'snnp pull --force {reference}' downloads it again; if it stays so, tell the owner of the repository"
    verify_folder(folder, manifest, cure=cure, quick=not force)
    return folder, commit, manifest


def _checked_commit(commit: str) -> str:
    """A commit hash becomes a folder name, so it must be one."""
    if not is_commit(commit):
        raise HubError(f"{_endpoint()} answered {commit[:60]!r} where a commit hash belongs; check HF_ENDPOINT.")
    return commit


def list_repositories(kind: Kind, *, owner: str | None = None) -> list[RemoteRepository]:
    """Repositories of snnp on the Hub: those that carry its tag."""
    listing = _listing(kind)
    # Without `expand` the Hub leaves commit and dates away.
    fields = ["sha", "private", "downloads", "lastModified"]
    with _explained(Reference("the listing"), kind):
        found = _patiently(lambda: list(listing(filter="snnp", author=owner, limit=100, expand=fields)))
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


def _listing(kind: Kind) -> Any:
    api = hub_library().HfApi()
    return api.list_models if kind == "model" else api.list_datasets


def publish(
    kind: Kind,
    folder: str | Path,
    repository: str,
    *,
    private: bool = False,
    dry_run: bool = False,
    message: str | None = None,
) -> Publication:
    """Upload the files that a folder's manifest lists in one commit, which removes those that snnp put there before.

    Arguments:
        folder: with `manifest.json` (see `write_manifest`) and a card, `README.md`, that begins with a YAML header.
        repository: `org/name`; made if it does not exist.
        private: whether a new repository is visible to its owner only.
        dry_run: check everything, upload nothing.
        message: of the commit.

    Raises `HubError` if the folder is not what its manifest says, has no card with a licence, or the Hub refuses;
    `InputError` for an unfit name.
    """
    check_repository(repository)
    folder = Path(folder)
    manifest = read_verified(folder, kind, cure="write the manifest again", quick=False)
    _check_card(folder / "README.md", manifest)
    files = {name: entry.bytes for name, entry in manifest.files.items()}
    files[MANIFEST_FILE] = (folder / MANIFEST_FILE).stat().st_size
    if dry_run:
        return Publication(files)
    library = hub_library()
    api = library.HfApi()
    asked: dict[str, Any] = {"repo_id": repository, "repo_type": kind}
    with _explained(Reference(repository), kind, writing=True):
        _patiently(lambda: api.create_repo(**asked, private=private, exist_ok=True))
        head = _patiently(lambda: api.repo_info(**asked)).sha
        present = set(_patiently(lambda: api.list_repo_files(**asked, revision=head)))
        gone: set[str] = set()
        if MANIFEST_FILE in present:
            before = library.hf_hub_download(**asked, filename=MANIFEST_FILE, revision=head)
            with suppress(HubError):  # no manifest of ours
                gone = set(read_manifest(Path(before).parent, kind).files) & present - set(files)
        # Fresh operations in each attempt: they carry state.
        commit = _patiently(
            lambda: api.create_commit(
                **asked,
                operations=[
                    *(library.CommitOperationAdd(name, folder / name) for name in files),
                    *(library.CommitOperationDelete(name, is_folder=False) for name in sorted(gone)),
                ],
                commit_message=message or f"Publish {kind} with snnp",
                parent_commit=head,
            )
        )
    return Publication(files, _checked_commit(str(commit.oid)), str(commit.commit_url))


def _check_card(card: Path, manifest: Manifest) -> None:
    """A repository needs a card whose header names a licence: the Hub shows and filters by it."""
    if card.name not in manifest.files:
        raise HubError(f"{card.parent} has no README.md among its files; write a card first.")
    if manifest.files[card.name].bytes > _LARGEST_CARD:
        raise HubError(f"{card} has more than {_LARGEST_CARD:,} bytes, which no card has.")
    parts = card.read_text(encoding="utf-8", errors="replace").split("---\n", 2)
    try:
        header = yaml.safe_load(parts[1]) if len(parts) == 3 and not parts[0].strip() else None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise HubError(f"the header of {card} is no YAML ({' '.join(str(error).split())}).") from None
    licence = header.get("license") if isinstance(header, dict) else None
    if not isinstance(licence, str) or licence.strip() != one_line(licence):
        raise HubError(f"{card} names no licence in its YAML header (license: ...); add it to the card.")


def hub_library() -> ModuleType:
    """The package huggingface_hub, an optional dependency that is imported where it is needed."""
    try:
        import huggingface_hub
        import huggingface_hub.constants
        import huggingface_hub.errors  # its attributes are lazy, its modules are not among them
    except ImportError:
        raise MissingDependencyError(
            "models and datasets of the Hub need huggingface_hub; install it with 'pip install \"snnp[hub]\"'."
        ) from None
    except ValueError as error:  # it reads its variables while it is imported
        raise HubError(f"huggingface_hub cannot start ({error}); correct its variables, such as HF_ENDPOINT.") from None
    return huggingface_hub


def _endpoint() -> str:
    return str(hub_library().constants.ENDPOINT)


def _patiently(call: Callable[[], _T]) -> _T:
    """Call again, after a pause, what failed for a reason that may pass."""
    errors = hub_library().errors
    for wait in _WAITS:
        try:
            return call()
        except (OSError, RuntimeError, errors.HTTPError, errors.RevisionResolutionError) as error:
            if not _may_pass(error):
                raise
            time.sleep(wait)
    return call()


def _causes(error: BaseException) -> list[BaseException]:
    """An error, and the failures behind it: the last is that of the connection, where there is one."""
    return [error, *(_causes(error.__cause__) if error.__cause__ is not None else ())]


def _status(error: BaseException) -> int | None:
    response = getattr(error, "response", None)
    return None if response is None else int(response.status_code)


def _may_pass(error: BaseException) -> bool:
    """Whether it is worth trying again: 5xx answers, and connections that broke after they stood."""
    for cause in _causes(error):
        if (status := _status(cause)) is not None:
            return status in (408, 429) or status >= 500
        if isinstance(cause, hub_library().errors.HTTPError):
            return type(cause).__name__ in ("RemoteProtocolError", "ReadError", "WriteError", "ReadTimeout")
        if isinstance(cause, OSError) and _CUT_SHORT in str(cause):
            return True
    return False


@contextmanager
def _explained(reference: Reference, kind: Kind, *, writing: bool = False) -> Iterator[None]:
    """Turn the errors of huggingface_hub into one line that says what to do."""
    errors = hub_library().errors
    token = hub_library().get_token()
    if token is not None and not _TOKEN.fullmatch(token):  # before an error of the connection shows it
        raise HubError(
            "the token of the Hub holds spaces, line breaks or letters that no token has; set HF_TOKEN again, or log "
            "in with 'hf auth login'."
        )
    try:
        yield
    except SnnpError:
        raise
    except errors.GatedRepoError:
        place = f"{_endpoint()}/{reference.repository}"
        raise HubError(f"{reference} is gated: ask for access at {place}, then log in with 'hf auth login'.") from None
    except errors.RepositoryNotFoundError:
        raise HubError(_no_repository(reference, kind)) from None
    except errors.RevisionNotFoundError:
        raise HubError(_no_revision(reference, kind)) from None
    except errors.HFValidationError as error:
        raise HubError(f"{reference} cannot be the name of a repository: {_line(error)}") from None
    except errors.HTTPError as error:
        raise HubError(_refused(reference, error, writing)) from None
    except (errors.RevisionResolutionError, errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        raise HubError(_out_of_reach(reference, kind, error)) from None
    except (RuntimeError, errors.XetDownloadError) as error:  # what is made of a failed transfer of one file
        cause = _causes(error)[-1]
        if not isinstance(cause, errors.HTTPError):
            raise HubError(f"the transfer of {reference} failed ({_line(cause)}); try again.") from None
        raise HubError(_refused(reference, cause, writing)) from None
    except errors.FileMetadataError as error:
        raise HubError(f"{_endpoint()} does not answer as a Hub does ({_line(error)}); check HF_ENDPOINT.") from None
    except OSError as error:
        if _CUT_SHORT not in str(error):
            raise
        raise HubError(f"{reference} could not be fetched whole ({_line(error)}); try again.") from None
    except Exception as error:  # whatever the library makes of pages and JSON that no Hub sends
        raise HubError(
            f"{_endpoint()} does not answer as a Hub does: the login page of a network, a proxy or another program "
            f"stands in its place ({type(error).__name__}: {_line(error)}); check the connection and HF_ENDPOINT."
        ) from None


def _line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    if token := hub_library().get_token():
        text = text.replace(token, "…")
    return text if len(text) <= 200 else f"{text[:200]}…"


def _refused(reference: Reference, error: BaseException, writing: bool) -> str:
    status, hub = _status(error), _endpoint()
    if status == 401:
        return f"{hub} does not accept your token (401); log in again with 'hf auth login', or correct HF_TOKEN."
    if status == 403:
        what = "write to" if writing else "read"
        return f"your token may not {what} {reference.repository} (403); use one that may, or another owner."
    if status is None:
        return f"cannot reach {hub} ({_line(error) or type(error).__name__}); check the connection and HF_ENDPOINT."
    if status in (409, 412):
        return f"{reference.repository} was changed by someone else meanwhile ({status}); look at it, and try again."
    return f"{hub} answered {status} for {reference} after several attempts ({_line(error)}); try again later."


def _out_of_reach(reference: Reference, kind: Kind, error: BaseException) -> str:
    errors, cause = hub_library().errors, _causes(error)[-1]
    if isinstance(cause, errors.OfflineModeIsEnabled) or hub_library().constants.is_offline_mode():
        reason = "HF_HUB_OFFLINE is set"
    elif (status := _status(cause)) is not None:
        if status in (401, 403):
            return _refused(reference, cause, writing=False)
        reason = f"{_endpoint()} answered {status}"
    else:
        reason = f"{_endpoint()} cannot be reached: {_line(cause)}"
    flag = "" if kind == "model" else "--dataset "
    return (
        f"{reference} is not (or not wholly) in the cache and {reason}; run 'snnp pull {flag}{reference}' where there "
        "is internet, or make a mirror there with 'snnp mirror' and set SNNP_MIRROR here."
    )


def _no_repository(reference: Reference, kind: Kind) -> str:
    api, owner = hub_library().HfApi(), reference.repository.partition("/")[0]
    other: Kind = "dataset" if kind == "model" else "model"
    hint = ""
    with suppress(Exception):  # a hint is worth no second error
        if api.repo_exists(reference.repository, repo_type=other):
            hint = f" There is a {other} of that name."
        else:
            hint = near_matches(reference.repository, [each.id for each in _listing(kind)(author=owner, limit=200)])
    return (
        f"there is no {kind} {reference.repository!r} on {_endpoint()} that you may read.{hint} If it is private, log "
        "in with 'hf auth login' or set HF_TOKEN."
    )


def _no_revision(reference: Reference, kind: Kind) -> str:
    known: list[str] = []
    with suppress(Exception):  # a hint is worth no second error
        refs = hub_library().HfApi().list_repo_refs(reference.repository, repo_type=kind)
        known = [each.name for each in (*refs.branches, *refs.tags)]
    wanted = str(reference.revision)
    hint = near_matches(wanted, known) or (f" It has {', '.join(known[:10])}." if known else "")
    return f"{reference.repository} has no revision {wanted!r}.{hint} Commit hashes must be given in full."
