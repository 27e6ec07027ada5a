"""The compiled library in `lib/`, through its C interface; absent where it was not built."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

from snnp.errors import InputError
from snnp.kernels.cpu.pack import VERSION

__all__ = ["TARGETS", "Pairs", "Report", "System", "library", "native_target", "status_message", "switched_off"]

_SUFFIX = {"darwin": ".dylib", "win32": ".dll"}.get(sys.platform, ".so")
LIBRARY_FILE = Path(__file__).parents[1] / "lib" / f"libsnnp_kernels{_SUFFIX}"
SWITCH = "SNNP_KERNELS"
"""Environment variable: "off" leaves the library out; "avx512", "avx2" or "portable" choose instructions."""

TARGETS = ("avx512", "avx2", "portable")
"""Instruction sets, the fastest first."""

_pointer, _int, _double = ctypes.c_void_p, ctypes.c_int64, ctypes.c_double


class Report(ctypes.Structure):
    """`snnp_report` of src/snnp_kernels.h."""

    _fields_ = [("status", _int), ("i", _int), ("j", _int), ("value", _double)]


class System(ctypes.Structure):
    """`snnp_system` of src/snnp_kernels.h."""

    _fields_ = [
        *[(name, _int) for name in ("n_atoms", "n_structures", "n_images")],
        *[(name, _pointer) for name in ("positions", "species", "structure", "first", "neighbour", "image", "images")],
        ("weights", _pointer),
        ("n_threads", _int),
        *[(name, _pointer) for name in ("energies", "forces", "virial")],
    ]


class Pairs(ctypes.Structure):
    """`snnp_pairs` of src/snnp_kernels.h."""

    _fields_ = [
        *[(name, _int) for name in ("n_atoms", "n_pairs", "half")],
        *[(name, _pointer) for name in ("i", "j", "shift", "structure")],
        ("reach", _int * 3),
        *[(name, _pointer) for name in ("first", "neighbour", "image")],
    ]


def _declare(lib: ctypes.CDLL) -> None:
    lib.snnp_target.restype = ctypes.c_char_p
    lib.snnp_set_target.argtypes = [ctypes.c_char_p]
    lib.snnp_evaluate.argtypes = [_pointer, _int, ctypes.POINTER(System), ctypes.POINTER(Report)]
    lib.snnp_check_list.argtypes = [_int, _int, _pointer, _pointer, _pointer, ctypes.POINTER(Report)]
    lib.snnp_train.argtypes = [_int, _pointer, _int, _pointer, _pointer, ctypes.POINTER(Report)]
    lib.snnp_gradient_layout.argtypes = [_pointer, _int, _pointer]
    lib.snnp_pack_list.argtypes = [ctypes.POINTER(Pairs)]
    lib.snnp_pack_list.restype = None
    lib.snnp_largest_move.argtypes = [_int, _pointer, _pointer, _pointer]
    lib.snnp_largest_move.restype = _double


_switched_off = False


@contextmanager
def switched_off() -> Iterator[None]:
    """Within this block the library counts as absent, for all threads: to compare with torch, in tests and timings."""
    global _switched_off
    before, _switched_off = _switched_off, True
    try:
        yield
    finally:
        _switched_off = before


def library() -> ctypes.CDLL | None:
    """The library, or None where it was not built, does not fit this machine, or is switched off.

    Raises:
        InputError: if the environment variable SNNP_KERNELS names something unknown.
    """
    return None if _switched_off else _loaded()


@lru_cache(maxsize=1)
def _loaded() -> ctypes.CDLL | None:
    wanted = os.environ.get(SWITCH, "")
    if wanted == "off" or not LIBRARY_FILE.is_file():
        return None
    try:
        lib = ctypes.CDLL(str(LIBRARY_FILE))
    except OSError:
        # Built for another system or architecture: the torch path serves.
        return None
    lib.snnp_version.restype = _int
    if lib.snnp_version() != VERSION:
        # Left over from other sources.
        return None
    _declare(lib)
    if lib.snnp_target() is None:
        # Compiled for the instruction set of another machine alone.
        return None
    if wanted and not lib.snnp_set_target(wanted.encode()):
        best = lib.snnp_target().decode()
        there = [name for name in TARGETS if lib.snnp_set_target(name.encode())]
        lib.snnp_set_target(best.encode())
        raise InputError(
            f"{SWITCH}={wanted} is not available here; use {', '.join(['off', *there])}, or leave it unset for {best} "
            "('python -m snnp.kernels.build' compiles all instruction sets of this architecture)."
        )
    return lib


def native_target() -> str | None:
    """Instruction set that the kernels use ("avx512", "avx2", "portable"), or None without the library."""
    lib = library()
    return None if lib is None else str(lib.snnp_target().decode())


def status_message(report: Report) -> str:
    """What a status other than 0 means, for an `InputError`."""
    if report.status == 2:
        return (
            f"atoms {report.i} and {report.j} overlap ({report.value:.3f} Å apart); "
            "remove the duplicate, or check the units of the positions (Å expected)."
        )
    return {
        1: "the packed model is damaged or of another version; pack it again.",
        3: "there is not enough memory for the kernel's work arrays; use fewer atoms or threads.",
        4: f"entry {report.i} of the neighbour list points outside the system; build the list again.",
        5: f"stored pairs of atom {report.i} are not sorted by radial functions and channel; prepare the data again.",
    }[report.status]
