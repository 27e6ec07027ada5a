"""Failures of the Hub: what may pass is tried again, the rest becomes a `HubError` in one line with the cure."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import TypeVar

from snnp.errors import HubError, MissingDependencyError, SnnpError, near_matches
from snnp.hub.names import Kind, Reference

__all__ = ["endpoint", "explained", "hub_library", "patiently"]

_WAITS = (0.5, 1.0, 2.0)  # seconds between attempts
_TOKEN = re.compile(r"[!-~]{1,4096}")
_T = TypeVar("_T")


def hub_library() -> ModuleType:
    """The package huggingface_hub.

    Raises:
        MissingDependencyError: if it is not installed.
    """
    try:
        import huggingface_hub
        import huggingface_hub.constants
        import huggingface_hub.errors  # its attributes are lazy, its modules are not among them
    except ImportError:
        raise MissingDependencyError(
            "models and datasets of the Hub need huggingface_hub; install it with 'pip install \"snnp[hub]\"'."
        ) from None
    except ValueError as error:  # it reads its variables while it is imported
        raise HubError(
            f"huggingface_hub cannot start ({error}); correct HF_ENDPOINT and the other HF_... variables."
        ) from None
    return huggingface_hub


def endpoint() -> str:
    """Address of the Hub that is asked (`HF_ENDPOINT`)."""
    return str(hub_library().constants.ENDPOINT)


def patiently(call: Callable[[], _T]) -> _T:
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


def _root(error: BaseException) -> BaseException:
    """The failure of the connection behind one of the cache, where there is one."""
    seen = error
    while seen.__cause__ is not None:
        seen = seen.__cause__
    return seen


def _status(error: BaseException) -> int | None:
    response = getattr(error, "response", None)
    return None if response is None else int(response.status_code)


def _may_pass(error: BaseException) -> bool:
    """Whether it is worth trying again: 5xx answers, and connections that broke after they stood."""
    errors = hub_library().errors
    cause: BaseException | None = error
    while cause is not None:
        status = _status(cause)
        if status is not None:
            return status in (408, 429) or status >= 500
        if isinstance(cause, errors.HTTPError):
            return type(cause).__name__ in ("RemoteProtocolError", "ReadError", "WriteError", "ReadTimeout")
        if _is_cut_short(cause):
            return True
        cause = cause.__cause__
    return False


def _is_cut_short(error: BaseException) -> bool:
    """Whether a file came with fewer bytes than were announced; huggingface_hub has no class of its own for it."""
    return isinstance(error, OSError) and "Consistency check failed" in str(error)


@contextmanager
def explained(reference: Reference, kind: Kind, *, writing: bool = False) -> Iterator[None]:
    """Turn the errors of huggingface_hub into one line that says what to do."""
    errors = hub_library().errors
    _check_token()
    try:
        yield
    except SnnpError:
        raise
    except errors.GatedRepoError:
        raise HubError(
            f"{reference} is gated: ask for access at {endpoint()}/{reference.repository}, then log in with "
            "'hf auth login'."
        ) from None
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
        cause = _root(error)
        if not isinstance(cause, errors.HTTPError):
            raise HubError(f"the transfer of {reference} failed ({_line(cause)}); try again.") from None
        raise HubError(_refused(reference, cause, writing)) from None
    except errors.FileMetadataError as error:
        raise HubError(f"{endpoint()} does not answer as a Hub does ({_line(error)}); check HF_ENDPOINT.") from None
    except OSError as error:
        if not _is_cut_short(error):
            raise
        raise HubError(f"{reference} could not be fetched whole ({_line(error)}); try again.") from None
    except Exception as error:  # whatever the library makes of pages and JSON that no Hub sends
        raise HubError(
            f"{endpoint()} does not answer as a Hub does: the login page of a network, a proxy or another program "
            f"stands in its place ({type(error).__name__}: {_line(error)}); check the connection and HF_ENDPOINT."
        ) from None


def _check_token() -> None:
    """Refuse a token that cannot be sent, before an error of the connection shows it."""
    token = hub_library().get_token()
    if token is not None and not _TOKEN.fullmatch(token):
        raise HubError(
            "the token of the Hub holds spaces, line breaks or letters that no token has; set HF_TOKEN again, or log "
            "in with 'hf auth login'."
        )


def _line(error: BaseException) -> str:
    """The first words of an error, on one line."""
    text = " ".join(str(error).split())
    if token := hub_library().get_token():
        text = text.replace(token, "…")
    return text if len(text) <= 200 else f"{text[:200]}…"


def _refused(reference: Reference, error: BaseException, writing: bool) -> str:
    status = _status(error)
    if status == 401:
        return f"{endpoint()} does not accept your token (401); log in again with 'hf auth login', or correct HF_TOKEN."
    if status == 403:
        what = "write to" if writing else "read"
        return f"your token may not {what} {reference.repository} (403); use one that may, or another owner."
    if status is None:
        return (
            f"cannot reach {endpoint()} ({_line(error) or type(error).__name__}); check the connection and HF_ENDPOINT."
        )
    if status in (409, 412):
        return f"{reference.repository} was changed by someone else meanwhile ({status}); look at it, and try again."
    return f"{endpoint()} answered {status} for {reference} after several attempts ({_line(error)}); try again later."


def _out_of_reach(reference: Reference, kind: Kind, error: BaseException) -> str:
    errors, cause = hub_library().errors, _root(error)
    if isinstance(cause, errors.OfflineModeIsEnabled) or hub_library().constants.is_offline_mode():
        reason = "HF_HUB_OFFLINE is set"
    elif (status := _status(cause)) is not None:
        if status in (401, 403):
            return _refused(reference, cause, writing=False)
        reason = f"{endpoint()} answered {status}"
    else:
        reason = f"{endpoint()} cannot be reached: {_line(cause)}"
    flag = "" if kind == "model" else "--dataset "
    return (
        f"{reference} is not (or not wholly) in the cache and {reason}; run 'snnp pull {flag}{reference}' where there "
        "is internet, or make a mirror there with 'snnp mirror' and set SNNP_MIRROR here."
    )


def _no_repository(reference: Reference, kind: Kind) -> str:
    library = hub_library()
    api, owner = library.HfApi(), reference.repository.partition("/")[0]
    other: Kind = "dataset" if kind == "model" else "model"
    hint = ""
    try:
        if api.repo_exists(reference.repository, repo_type=other):
            hint = f" There is a {other} of that name."
        else:
            listing = api.list_models if kind == "model" else api.list_datasets
            hint = near_matches(reference.repository, [each.id for each in listing(author=owner, limit=200)])
    except Exception:  # a hint is worth no second error
        hint = ""
    return (
        f"there is no {kind} {reference.repository!r} on {endpoint()} that you may read.{hint} If it is private, log "
        "in with 'hf auth login' or set HF_TOKEN."
    )


def _no_revision(reference: Reference, kind: Kind) -> str:
    library = hub_library()
    try:
        refs = library.HfApi().list_repo_refs(reference.repository, repo_type=kind)
        known = [each.name for each in (*refs.branches, *refs.tags)]
    except Exception:  # a hint is worth no second error
        known = []
    wanted = str(reference.revision)
    hint = near_matches(wanted, known) or (f" It has {', '.join(known[:10])}." if known else "")
    return f"{reference.repository} has no revision {wanted!r}.{hint} Commit hashes must be given in full."
