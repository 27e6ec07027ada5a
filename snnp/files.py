"""Files that users keep: written whole or not at all, never over an input, by one program at a time.

Temporary files lie beside their target as `.partial-*`, lock files as `.*.lock`. A process that is killed leaves them
behind, but not its locks: the next writer of the same file sees that nobody holds them and takes them away.
"""

from __future__ import annotations

import errno
import fcntl
import importlib.util
import os
import re
import shutil
import socket
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from snnp.errors import InputError

__all__ = ["bundled_folders", "hold", "naming", "refuse_existing", "refuse_inputs", "replacing", "scratch_folder"]
__all__ += ["why_full", "write_atomically"]

_PARTIAL, _LOCK = ".partial-", ".lock"
_LONGEST_NAME = 200  # bytes; most file systems allow 255, and something is put before and behind
_FULL = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the limit on the size of files is reached",
}
_swept: set[str] = set()


def bundled_folders(kind: str, holding: str) -> dict[str, Path]:
    """Name -> folder of what is part of the installation.

    Arguments:
        kind: "model_zoo" or "datasets": package data of the installation (`snnp_...`), else the repository's folder.
        holding: files that a folder must hold, as a pattern.
    """
    spec = importlib.util.find_spec(f"snnp_{kind}")
    installed = [] if spec is None else [Path(entry) for entry in spec.submodule_search_locations or ()]
    found: dict[str, Path] = {}
    for root in (*installed, Path(__file__).resolve().parents[1] / kind):
        for path in sorted(root.glob(f"*/{holding}")):
            found.setdefault(path.parent.name, path.parent)
    return found


def why_full(error: OSError) -> str | None:
    """What there was no room in, if that is why a write failed: disk, quota, or the allowed size of a file."""
    return _FULL.get(error.errno or 0)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let an `OSError` of the block say which file it was about; a failed write knows only its descriptor."""
    try:
        yield
    except OSError as error:
        known = error.filename
        if not isinstance(known, str) or Path(known).name.startswith(_PARTIAL) or known.endswith(_LOCK):
            error.filename = str(path)
        raise


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary file beside `path` with its ending; it takes the name when the block ends without error.

    Readers see the old content or the new, never a part. What is no ordinary file (`/dev/null`, a pipe) is written
    straight. An `OSError` names the file; `why_full` tells a full disk.
    """
    path = Path(path)
    with naming(path):
        if path.exists() and not path.is_file():
            yield path
            return
        temporary, handle = _make_partial(path.parent, path.name, tempfile.mkstemp)
        try:
            yield temporary
            os.fsync(handle)
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
            os.close(handle)


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file under a temporary name and rename it; raises as `replacing` does."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


@contextmanager
def scratch_folder(parent: Path, name: str) -> Iterator[Path]:
    """A new folder in `parent` for work on `name`; removed in the end, unless it was renamed."""

    def make(*, dir: Path, prefix: str, suffix: str) -> tuple[int, str]:
        made = tempfile.mkdtemp(dir=dir, prefix=prefix, suffix=suffix)
        return os.open(made, os.O_RDONLY), made

    folder, handle = _make_partial(parent, name, make)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(handle)


def _make_partial(parent: Path, name: str, make: Callable[..., tuple[int, str]]) -> tuple[Path, int]:
    """A new temporary file or folder, and the descriptor by whose lock others see that it is in use."""
    ending = "-" + os.fsdecode(os.fsencode(name)[-_LONGEST_NAME:])
    _sweep(parent, ending)
    while True:
        handle, made = make(dir=parent, prefix=_PARTIAL, suffix=ending)
        with suppress(OSError):  # a file system without locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        if os.path.exists(made):
            return Path(made), handle
        os.close(handle)  # swept by another process before the lock was taken


def _sweep(parent: Path, ending: str) -> None:
    """Remove what dead processes left of earlier attempts; once for each file, as folders may be large."""
    key = os.path.join(os.path.abspath(parent), ending)
    if key in _swept:
        return
    _swept.add(key)
    left = re.compile(f"{re.escape(_PARTIAL)}[^-]*{re.escape(ending)}", re.DOTALL)
    with suppress(OSError):
        for path in [parent / name for name in os.listdir(parent) if left.fullmatch(name)]:
            with suppress(OSError):
                handle = os.open(path, os.O_RDONLY)
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    if stat.S_ISDIR(os.fstat(handle).st_mode):
                        shutil.rmtree(path, ignore_errors=True)
                    else:
                        path.unlink()
                finally:
                    os.close(handle)


@contextmanager
def hold(paths: Iterable[Path]) -> Iterator[None]:
    """Keep files to this process while the block runs, or it ends; `InputError` where another run is writing one."""
    with ExitStack() as stack:
        for path in paths:
            if path.is_file() or not path.exists():  # devices and pipes may be shared
                lock = path.with_name(f".{os.fsdecode(os.fsencode(path.name)[-_LONGEST_NAME:])}{_LOCK}")
                with naming(path):
                    stack.callback(os.close, _lock(path, lock))
                # Called first, while it is still held: nobody else has it open as the valid one.
                stack.callback(lock.unlink, missing_ok=True)
        yield


def _lock(path: Path, lock: Path) -> int:
    while True:
        handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(handle, 200, 0).decode(errors="replace") or "another process"
            os.close(handle)
            raise InputError(
                f"'{path}' is being written by another run ({holder}); wait for its end, or name another file."
            ) from None
        except OSError:
            return handle  # a file system without locks
        with suppress(FileNotFoundError):
            if os.stat(lock).st_ino == os.fstat(handle).st_ino:
                with suppress(OSError):  # who holds it is only for the message
                    os.ftruncate(handle, 0)
                    os.pwrite(handle, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
                return handle
        os.close(handle)  # its last holder has removed it meanwhile


def refuse_existing(paths: Iterable[Path], cure: str) -> None:
    """Refuse to replace files: an `InputError` names the first that exists, and the cure."""
    for path in paths:
        if path.is_file():
            raise InputError(f"'{path}' exists already and would be replaced; {cure}.")


def refuse_inputs(path: Path, inputs: Iterable[Path]) -> None:
    """Refuse to write onto what is read, under whatever name: `InputError` where `path` is one of the inputs."""
    for each in inputs:
        if path.exists() and each.exists() and os.path.samefile(path, each):
            raise InputError(f"'{path}' is the file that is read; choose another file to write to.")
