"""Which large files have passed their check before, so that opening a dataset of gigabytes does not read all of it.

A stamp is an empty file in the Hugging Face assets cache. Its name is a hash of the file's real path, size, inode and
time of change, and of the sha256 that it passed, so that a file that was touched since has none.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

__all__ = ["is_stamped", "stamp"]

_LARGE = 32_000_000  # bytes; smaller files are read in less than the time that a person notices


def _stamp_path(path: Path, sha256: str) -> Path | None:
    """Where the stamp of a file lies; None for small files, and without huggingface_hub."""
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


def is_stamped(path: Path, sha256: str) -> bool:
    """Whether this file, untouched since, had this checksum before."""
    place = _stamp_path(path, sha256)
    return place is not None and place.is_file()


def stamp(path: Path, sha256: str) -> None:
    """Remember that a file has this checksum; where that cannot be written it will be read again next time."""
    place = _stamp_path(path, sha256)
    if place is None:
        return
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        place.touch()
    except OSError:  # a home folder that cannot be written to, as on many compute nodes
        return
