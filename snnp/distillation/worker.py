"""What runs in the teacher's interpreter: structures come in through a pipe, labels go out through another.

    PYTHON worker.py '{"calculators": [["sevenn.calculator:SevenNetCalculator", {"model": "7net-0"}]]}'

It imports nothing but the standard library, NumPy and ASE, from Python 3.8 on, so that any environment with a
calculator can run it. A message is `SNNL`, length and CRC-32 of what follows (8 bytes, little-endian), then one line of
JSON that names the arrays behind it; the store of labels is a file of the same messages.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import socket
import struct
import sys
import time
import zlib
from contextlib import contextmanager, suppress
from typing import IO, Any, Iterator  # noqa: UP035 (Python 3.8)

import numpy as np

__all__ = ["MAGIC", "main", "pack", "read_message", "unpack"]

MAGIC = b"SNNL"
_HEAD = struct.Struct("<4sII")
_DTYPES = ("<f8", "<i8", "|b1")
_MOST_BYTES = 1 << 30
_SMALLEST_FILE = 256  # bytes; less holds no weights
_NO_WEIGHTS = (".py", ".pyc", ".so", ".pyi", ".h", ".toml", ".cfg", ".ini", ".log", ".lock", "METADATA", "RECORD")
_NO_MODELS = ("/proc/", "/sys/", "/dev/", "/etc/", "/usr/share/", "/matplotlib/", "/fontconfig/", ".dist-info/")


def pack(header: dict[str, Any], arrays: dict[str, np.ndarray]) -> bytes:
    """One message: JSON values, and arrays of float64, int64 or bool by name."""
    known = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    listed = [[name, array.dtype.str, list(array.shape)] for name, array in known.items()]
    body = json.dumps({**header, "arrays": listed}).encode() + b"\n" + b"".join(a.tobytes() for a in known.values())
    return _HEAD.pack(MAGIC, len(body), zlib.crc32(body)) + body


def unpack(body: bytes) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Header and arrays of what follows the head of a message.

    Raises:
        ValueError: for anything that `pack` did not write.
    """
    line, _, data = body.partition(b"\n")
    header, arrays, first = json.loads(line), {}, 0
    for name, dtype, shape in header.pop("arrays"):
        if dtype not in _DTYPES:
            raise ValueError(f"an array of {dtype!r}")
        last = first + int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        arrays[name] = np.frombuffer(data[first:last], dtype=dtype).reshape(shape)
        first = last
    return header, arrays


def read_message(stream: IO[bytes]) -> bytes | None:
    """The body of the next message; None where the stream ends, or holds no whole message."""
    head = stream.read(_HEAD.size)
    if len(head) < _HEAD.size:
        return None
    magic, length, checksum = _HEAD.unpack(head)
    if magic != MAGIC or length > _MOST_BYTES:
        return None
    body = stream.read(length)
    return body if len(body) == length and zlib.crc32(body) == checksum else None


def main() -> None:
    """Build the calculators, say who they are, and label what comes until the pipe is closed."""
    sys.path[0] = os.getcwd()  # not the folder of this file, whose names belong to nobody else
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # calculators print what they like
    try:
        wanted = json.loads(sys.argv[1])["calculators"]
        files: list[str] = []
        calculators = [_build(name, kwargs, files) for name, kwargs in wanted]
        hello: dict[str, Any] = {"kind": "ready", **_identity(wanted, calculators, files)}
    except Exception as fault:
        hello = {"kind": "failed", "error": _said(fault)}
    _send(answers, hello, {})
    while hello["kind"] == "ready":
        body = read_message(sys.stdin.buffer)
        if body is None:
            break
        header, arrays = unpack(body)
        with _kept(header.get("keep")) as keep:
            if keep is not None and os.path.exists(keep):  # of a worker whose program was killed meanwhile
                with open(keep, "rb") as stream:
                    answers.write(stream.read())
                answers.flush()
                continue
            for row, seconds, found in _label_all(calculators, _images(arrays)):
                error = found if isinstance(found, str) else None
                header = {"row": row, "seconds": seconds, "error": error, "peak_bytes": _peak_bytes()}
                _send(answers, header, {} if isinstance(found, str) else found, keep)


def _send(stream: IO[bytes], header: dict[str, Any], arrays: dict[str, np.ndarray], keep: str | None = None) -> None:
    message = pack(header, arrays)
    if keep is not None:
        with open(keep + ".partial", "wb") as file:
            file.write(message)
            file.flush()
            os.fsync(file.fileno())
        os.replace(keep + ".partial", keep)
    stream.write(message)
    stream.flush()


@contextmanager
def _kept(keep: str | None) -> Iterator[str | None]:
    """The file in which the answer to a single structure is kept, locked for this process by a file beside it."""
    if keep is None:
        yield None
        return
    import fcntl

    with open(keep + ".lock", "a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.truncate(0)
        lock.write(f"{os.getpid()} {socket.gethostname()}")
        lock.flush()
        yield keep


def _peak_bytes() -> int | None:
    """The largest resident memory of this process so far; None where the system does not say."""
    # Linux, whose getrusage counts the memory of the process that this one was forked from.
    with suppress(OSError, ValueError, StopIteration), open("/proc/self/status", encoding="ascii") as stream:
        return 1024 * int(next(line.split()[1] for line in stream if line.startswith("VmHWM:")))
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else 1024 * peak)


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".strip()


def _build(name: str, kwargs: dict[str, Any], files: list[str]) -> Any:
    """The calculator that `module:callable` makes; what it opens meanwhile is added to `files`."""
    module, _, path = name.partition(":")
    made = importlib.import_module(module)
    for part in path.split("."):
        made = getattr(made, part)
    watching = True

    def note(event: str, args: Any) -> None:
        if watching and event == "open" and isinstance(args[0], str) and not str(args[1] or "r").startswith(("w", "a")):
            files.append(args[0])

    sys.addaudithook(note)
    try:
        return made(**kwargs)  # type: ignore[operator]
    finally:
        watching = False


def _identity(wanted: list[Any], calculators: list[Any], files: list[str]) -> dict[str, Any]:
    """Everything that can change a label, and the licences: packages with versions, model files with hashes."""
    packages = {}
    for name, _ in wanted:
        top = name.partition(":")[0].partition(".")[0]
        packages[top] = _distribution(top)
    found: dict[str, Any] = {"packages": packages, "files": _hashes(files), "python": sys.version.split()[0]}
    for calculator in calculators:
        for name, value in getattr(calculator, "identity", {}).items():
            found[name] = {**found[name], **value} if isinstance(found.get(name), dict) else value
    return found


def _distribution(top: str) -> dict[str, str]:
    from importlib import metadata

    listed: Any = getattr(metadata, "packages_distributions", dict)()  # since Python 3.10
    names = listed.get(top, [top])
    try:
        known: Any = metadata.metadata(names[0])
    except metadata.PackageNotFoundError:
        return {"name": top, "version": "", "licence": ""}
    classified = [text.rpartition(" :: ")[2] for text in known.get_all("Classifier") or () if "License ::" in text]
    licence = known.get("License-Expression") or ", ".join(classified) or (known.get("License") or "").split("\n")[0]
    return {"name": names[0], "version": str(known.get("Version")), "licence": licence[:200]}


def _hashes(files: list[str]) -> dict[str, str]:
    """sha256 of those that may hold a model, and what they are called, without where they are installed."""
    found = {}
    for file in sorted(set(map(os.path.abspath, files))):
        if file.endswith(_NO_WEIGHTS) or any(part in file for part in _NO_MODELS) or not os.path.isfile(file):
            continue
        if os.path.getsize(file) >= _SMALLEST_FILE:
            with open(file, "rb") as stream:
                found[hashlib.sha256(stream.read()).hexdigest()] = "/".join(file.split(os.sep)[-2:])
    return found


def _images(arrays: dict[str, np.ndarray]) -> list[Any]:
    from ase import Atoms

    images, first = [], 0
    for count, cell, pbc in zip(arrays["counts"].tolist(), arrays["cell"], arrays["pbc"]):  # noqa: B905 (Python 3.8)
        mine = slice(first, first + count)
        images.append(Atoms(arrays["numbers"][mine], arrays["positions"][mine], cell=cell, pbc=pbc))
        first += count
    return images


def _label_all(calculators: list[Any], images: list[Any]) -> Iterator[tuple[int, float, Any]]:
    """Row, seconds, and labels or the text of an error; a single calculator may take all at once with `label`."""
    together = getattr(calculators[0], "label", None) if len(calculators) == 1 else None
    if together is not None:
        start = time.perf_counter()
        try:
            labels = together(images)
        except Exception as error:
            if len(images) == 1:
                yield 0, time.perf_counter() - start, _said(error)
                return
        else:
            seconds = (time.perf_counter() - start) / len(images)
            yield from ((row, seconds, found) for row, found in enumerate(labels))
            return
    for row, atoms in enumerate(images):
        start, found = time.perf_counter(), None
        try:
            found = together([atoms])[0] if together else _mean([_label(each, atoms) for each in calculators])
        except Exception as fault:
            found = _said(fault)
            for each in calculators:  # else some give what they had reached if they are asked again
                getattr(each, "reset", lambda: None)()
        yield row, time.perf_counter() - start, found


def _label(calculator: Any, atoms: Any) -> dict[str, np.ndarray]:
    """What one calculator of ASE says."""
    from ase.calculators.calculator import PropertyNotImplementedError

    atoms = atoms.copy()
    atoms.calc = calculator
    found = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces()}
    # Forces are derivatives of the free energy, which is another one than the energy where electrons are smeared.
    found["energy"] = calculator.results.get("free_energy", found["energy"])
    if atoms.pbc.all():
        with suppress(PropertyNotImplementedError, NotImplementedError):
            found["stress"] = atoms.get_stress(voigt=False)
    energies = calculator.results.get("energies")
    if energies is not None and np.shape(energies) == (len(atoms),):
        found["energies"] = energies
    return {name: np.array(value, dtype=np.float64) for name, value in found.items()}


def _mean(members: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Mean of what all members have, and the standard deviation of energies and forces where there are several."""
    names = set.intersection(*(set(member) for member in members))
    found = {name: np.mean([member[name] for member in members], axis=0) for name in sorted(names)}
    if len(members) > 1:
        for name in ("energy", "forces"):
            found[name + "_std"] = np.std([member[name] for member in members], axis=0)
    return found


if __name__ == "__main__":
    main()
