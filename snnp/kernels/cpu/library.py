"""The compiled library in `lib/` through its C interface, and a model in the one block of memory that it reads.

Layouts here are those of `src/snnp_kernels.h` and `src/plan.h`, and must change together with them.
"""

from __future__ import annotations

import ctypes
import os
import struct
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from snnp.errors import InputError, overlap_message
from snnp.kernels.build import library_name
from snnp.kernels.parameters import ReadoutParameters, SplineParameters, SplineTable
from snnp.units import COULOMB_EV_ANGSTROM

__all__ = ["LIBRARY_FILE", "SWITCH", "TARGETS", "instruction_set", "library", "pack_parameters"]

LIBRARY_FILE = Path(__file__).parents[1] / "lib" / library_name()
SWITCH = "SNNP_KERNELS"
"""Environment variable: "off" leaves the library out; "avx512", "avx2" or "portable" choose instructions."""

TARGETS = ("avx512", "avx2", "portable")
"""Instruction sets, the fastest first."""

MAGIC, VERSION = 0x504E4E5373706C6E, 4
MAX_LAYERS, MAX_DEGREE = 8, 8
_PAD = 64

_pointer, _int, _double = ctypes.c_void_p, ctypes.c_int64, ctypes.c_double


class Report(ctypes.Structure):
    """`snnp_report`."""

    _fields_ = [("status", _int), ("i", _int), ("j", _int), ("value", _double)]


class System(ctypes.Structure):
    """`snnp_system`."""

    _fields_ = [
        *[(name, _int) for name in ("n_atoms", "n_structures", "n_images")],
        *[(name, _pointer) for name in ("positions", "species", "structure", "first", "neighbour", "image", "images")],
        ("weights", _pointer),
        ("n_threads", _int),
        *[(name, _pointer) for name in ("energies", "forces", "virial")],
    ]


class Pairs(ctypes.Structure):
    """`snnp_pairs`."""

    _fields_ = [
        *[(name, _int) for name in ("n_atoms", "n_pairs", "half")],
        *[(name, _pointer) for name in ("i", "j", "shift", "structure")],
        ("reach", _int * 3),
        *[(name, _pointer) for name in ("first", "neighbour", "image")],
    ]


def addresses(*arrays: NDArray[Any] | None) -> list[int | None]:
    """Where arrays begin; None is the null pointer."""
    return [None if array is None else array.ctypes.data for array in arrays]


def aligned_bytes(size: int) -> NDArray[np.uint8]:
    """Zeros that start at a multiple of 64 bytes, as whole vectors must."""
    memory = np.zeros(size + _PAD, np.uint8)
    start = -memory.ctypes.data % _PAD
    return memory[start : start + size]


def _declare(lib: ctypes.CDLL) -> None:
    lib.snnp_target.restype = ctypes.c_char_p
    lib.snnp_set_target.argtypes = [ctypes.c_char_p]
    lib.snnp_evaluate.argtypes = [_pointer, _int, ctypes.POINTER(System), ctypes.POINTER(Report)]
    lib.snnp_evaluate_heads.argtypes = [_pointer, ctypes.POINTER(System), ctypes.POINTER(Report)]
    lib.snnp_check_list.argtypes = [_int, _int, _pointer, _pointer, _pointer, ctypes.POINTER(Report)]
    lib.snnp_train.argtypes = [_int, _pointer, _int, _pointer, _pointer, ctypes.POINTER(Report)]
    lib.snnp_gradient_layout.argtypes = [_pointer, _int, _pointer]
    lib.snnp_pack_list.argtypes = [ctypes.POINTER(Pairs)]
    lib.snnp_pack_list.restype = None
    lib.snnp_largest_move.argtypes = [_int, _pointer, _pointer, _pointer]
    lib.snnp_largest_move.restype = _double


@lru_cache(maxsize=1)
def library() -> ctypes.CDLL | None:
    """The library, or None where it was not built, does not fit this machine, or is switched off.

    `InputError` if the environment variable SNNP_KERNELS names something unknown.
    """
    wanted = os.environ.get(SWITCH, "")
    if wanted == "off" or not LIBRARY_FILE.is_file():
        return None
    try:
        lib = ctypes.CDLL(str(LIBRARY_FILE))
    except OSError:  # built for another system or architecture
        return None
    lib.snnp_version.restype = _int
    if lib.snnp_version() != VERSION:  # left over from other sources
        return None
    _declare(lib)
    if lib.snnp_target() is None:  # compiled for the instruction set of another machine alone
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


def instruction_set() -> str | None:
    """What the kernels use ("avx512", "avx2", "portable"), or None without the library."""
    lib = library()
    return None if lib is None else str(lib.snnp_target().decode())


def refusal(report: Report) -> InputError:
    """What a status other than 0 means."""
    said = {
        1: "the packed model is damaged or of another version; pack it again.",
        2: overlap_message(report.i, report.j, report.value),
        3: "there is not enough memory for the kernel's work arrays; use fewer atoms or threads.",
        4: f"entry {report.i} of the neighbour list points outside the system; build the list again.",
        5: f"stored pairs of atom {report.i} are not sorted by radial functions and channel; prepare the data again.",
    }
    return InputError(said[report.status])


_EVALUATORS = {"none": 0, "legendre": 1, "spline": 2}
_ACTIVATIONS = {"silu": 0, "tanh": 1, "softplus": 2}
_HEADER = f"<6q 2q 4d 10d 4q {5 * 8}q 2q 5q 4q {MAX_LAYERS * 7}q"
HEADER_BYTES = struct.calcsize(_HEADER)


class _Block:
    """Arrays behind one another, each at a multiple of 64 bytes; `real` is the float type of the kernel."""

    def __init__(self, real: type) -> None:
        self.real, self.lanes, self.size = real, _PAD // np.dtype(real).itemsize, HEADER_BYTES
        self.pieces: list[tuple[int, bytes]] = []

    def add(self, values: NDArray[np.generic], dtype: type | None = None) -> int:
        offset = -(-self.size // _PAD) * _PAD
        content = np.ascontiguousarray(values, dtype=dtype or self.real).tobytes()
        self.pieces.append((offset, content))
        self.size = offset + len(content)
        return offset

    def stride(self, n: int) -> int:
        return -(-n // self.lanes) * self.lanes

    def rows(self, values: NDArray[np.float64]) -> int:
        """Add an array whose last axis is padded with zeros to whole vectors."""
        n = values.shape[-1]
        return self.add(np.pad(values, [(0, 0)] * (values.ndim - 1) + [(0, self.stride(n) - n)]))

    def table(self, table: SplineTable | None) -> list[int]:
        if table is None or table.n_filters == 0:
            return [0] * 8
        n_groups, n_segments, _, n_filters = table.coefficients.shape
        fields = [n_groups, n_segments, n_filters, self.stride(n_filters)]
        fields += [self.add(table.lower), self.add(table.inverse_spacing), self.add(table.n_intervals, np.int32)]
        return [*fields, self.rows(table.coefficients)]

    def layers(self, readout: ReadoutParameters) -> list[float]:
        fields: list[float] = []
        for weight, bias in zip(readout.weights, readout.biases, strict=True):
            n_out, n_in = weight.shape[1:]
            fields += [n_in, n_out, self.stride(n_in), self.stride(n_out)]
            fields += [self.rows(weight.transpose(0, 2, 1)), self.rows(weight), self.rows(bias)]
        return fields + [0] * (MAX_LAYERS * 7 - len(fields))

    def finish(self, fields: list[float]) -> NDArray[np.uint8]:
        """Header and arrays; `fields` are those of the header behind its size in bytes."""
        total = -(-self.size // _PAD) * _PAD
        packed = aligned_bytes(total)
        for offset, content in [(0, struct.pack(_HEADER, MAGIC, VERSION, total, *fields)), *self.pieces]:
            packed[offset : offset + len(content)] = np.frombuffer(content, np.uint8)
        return packed


def pack_parameters(parameters: SplineParameters, dtype: type[np.float32] | type[np.float64]) -> NDArray[np.uint8]:
    """The block of a model as bytes; kernels compute in `dtype`."""
    block, readout = _Block(dtype), parameters.readout
    evaluator = parameters.evaluator if parameters.f.n_filters else "none"
    fields: list[float] = [np.dtype(dtype).itemsize, parameters.n_elements, parameters.n_channels]
    fields += [parameters.degree, _EVALUATORS[evaluator]]
    fields += [parameters.cutoff, parameters.angular_cutoff, *(parameters.repulsion or (0.0, 0.0))]
    fields += [COULOMB_EV_ANGSTROM, *parameters.screening]
    fields += [block.add(parameters.numbers, np.int32), block.add(parameters.reference, np.float64)]
    fields += [block.add(parameters.radial_group, np.int32), block.add(parameters.pair_group, np.int32)]
    g = parameters.g if evaluator == "spline" else None
    for table in (parameters.rho, parameters.f, parameters.phi, g, readout.embedding):
        fields += block.table(table)
    if evaluator == "legendre":
        fields += [block.rows(parameters.legendre.transpose(0, 1, 3, 2)), block.rows(parameters.at_one)]
    else:
        fields += [0, 0]
    n_features = readout.mean.shape[0]
    fields += [n_features, block.stride(n_features), block.rows(readout.mean), block.rows(1.0 / readout.std)]
    fields += [block.rows(readout.linear), len(readout.weights), readout.n_copies]
    fields += [_ACTIVATIONS[readout.activation], int(readout.embeds_sum)]
    return block.finish(fields + block.layers(readout))
