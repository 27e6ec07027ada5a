"""Names of models and datasets, and of the files in their repositories: what is a name, and what is refused."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal

from snnp.errors import HubError, InputError

__all__ = ["Kind", "Reference", "check_file_name", "check_repository", "is_commit", "parse_reference"]

Kind = Literal["model", "dataset"]

_PART = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?"
_REPOSITORY = re.compile(f"{_PART}/{_PART}", re.ASCII)
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_FILE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*(/[A-Za-z0-9_][A-Za-z0-9_.+-]*)*", re.ASCII)
_LONGEST = 200

# What a repository may hold. Everything else is refused, above all what only pickle reads (.bin, .pt, .ckpt, .pkl).
_TEXTS_AND_PICTURES = frozenset(
    {".cff", ".csv", ".html", ".json", ".md", ".pdf", ".png", ".svg", ".txt", ".xyz", ".yaml", ".yml"}
)
_ENDINGS: dict[Kind, frozenset[str]] = {
    "model": _TEXTS_AND_PICTURES | {".safetensors"},
    # recipe.py says how a dataset was made; it is kept beside the data and never run.
    "dataset": _TEXTS_AND_PICTURES | {".parquet", ".extxyz", ".py"},
}
_PLAIN_NAMES = frozenset({"LICENSE", "LICENCE", "NOTICE", "SHA256SUMS"})


@dataclass(frozen=True)
class Reference:
    """A repository on the Hub: `org/name`, and the branch, tag or commit asked for (None: the default branch)."""

    repository: str
    revision: str | None = None

    def __str__(self) -> str:
        return self.repository if self.revision is None else f"{self.repository}@{self.revision}"


def parse_reference(text: str, revision: str | None = None) -> Reference | None:
    """Read `org/name[@revision]`; None for what cannot be the name of a repository (paths, bundled names).

    `revision` is one that was given apart from the name; refused is another than that of the name, and what is no
    branch, tag or commit.
    """
    repository, at, inner = text.partition("@")
    if not _REPOSITORY.fullmatch(repository) or "--" in repository or ".." in repository:
        return None
    if at and revision is not None and inner != revision:
        raise InputError(f"{text!r} names one revision and revision={revision!r} another; give one of them.")
    wanted = inner if at else revision
    if wanted is not None and (not _REVISION.fullmatch(wanted) or ".." in wanted or len(wanted) > _LONGEST):
        raise InputError(
            f"{wanted!r} is no revision; give a branch, a tag or a commit hash, as in org/name@main or org/name@v1.0."
        )
    return Reference(repository, wanted)


def check_repository(text: str) -> None:
    """Refuse what is not `org/name`."""
    reference = parse_reference(text)
    if reference is None or reference.revision is not None:
        raise InputError(f"{text!r} is no name of a repository; give org/name.")


def is_commit(text: str) -> bool:
    """Whether a text is a whole commit hash."""
    return _COMMIT.fullmatch(text) is not None


def check_file_name(name: str, kind: Kind, where: str) -> None:
    """Refuse files that would lie outside their folder, or of kinds that a repository must not hold."""
    if not _FILE.fullmatch(name) or ".." in name or len(name) > _LONGEST:
        raise HubError(
            f"{where} lists {name[:80]!r}, which is no plain file name inside the repository (letters, digits, and "
            "._+- only); the repository is damaged or hostile: do not use it."
        )
    path = PurePosixPath(name)
    if path.name not in _PLAIN_NAMES and path.suffix.lower() not in _ENDINGS[kind]:
        raise HubError(
            f"{where} lists {name!r}: a {kind} repository holds no files of this kind (allowed: "
            f"{' '.join(sorted(_ENDINGS[kind]))}); weights must be safetensors, pickles are never read."
        )
