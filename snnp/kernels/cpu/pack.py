"""Write a plan into one block of memory, as `src/plan.h` describes it (the layouts must change together)."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from snnp.kernels.parameters import ReadoutPlan, SplinePlan, SplineTable
from snnp.units import COULOMB_EV_ANGSTROM

__all__ = ["HEADER_BYTES", "MAX_DEGREE", "MAX_LAYERS", "VERSION", "pack_plan"]

MAGIC, VERSION = 0x504E4E5373706C6E, 3
MAX_LAYERS, MAX_DEGREE = 8, 8
_PAD = 64
_EVALUATORS = {"none": 0, "legendre": 1, "spline": 2}
_ACTIVATIONS = {"silu": 0, "tanh": 1, "softplus": 2}
_HEADER = f"<6q 2q 4d 10d 4q {5 * 8}q 2q 5q 4q {MAX_LAYERS * 7}q"

HEADER_BYTES = struct.calcsize(_HEADER)


@dataclass
class _Block:
    """Arrays behind one another, each at a multiple of 64 bytes; `real` is the float type of the kernel."""

    real: type
    size: int = HEADER_BYTES
    pieces: list[tuple[int, bytes]] = field(default_factory=list)

    def add(self, values: NDArray[np.generic], dtype: type | None = None) -> int:
        offset = -(-self.size // _PAD) * _PAD
        content = np.ascontiguousarray(values, dtype=dtype or self.real).tobytes()
        self.pieces.append((offset, content))
        self.size = offset + len(content)
        return offset

    def stride(self, n: int) -> int:
        lanes = _PAD // np.dtype(self.real).itemsize
        return -(-n // lanes) * lanes

    def rows(self, values: NDArray[np.float64]) -> int:
        """Add an array whose last axis is padded with zeros to whole vectors."""
        n = values.shape[-1]
        widths = [(0, 0)] * (values.ndim - 1) + [(0, self.stride(n) - n)]
        return self.add(np.pad(values, widths))


def _table(block: _Block, table: SplineTable | None) -> list[int]:
    if table is None or table.n_filters == 0:
        return [0] * 8
    n_groups, n_segments, _, n_filters = table.coefficients.shape
    fields = [n_groups, n_segments, n_filters, block.stride(n_filters)]
    fields += [block.add(table.lower), block.add(table.inverse_spacing), block.add(table.n_intervals, np.int32)]
    return [*fields, block.rows(table.coefficients)]


def _layers(block: _Block, readout: ReadoutPlan) -> list[int]:
    fields = []
    for weight, bias in zip(readout.weights, readout.biases, strict=True):
        n_out, n_in = weight.shape[1:]
        fields += [n_in, n_out, block.stride(n_in), block.stride(n_out)]
        fields += [block.rows(weight.transpose(0, 2, 1)), block.rows(weight), block.rows(bias)]
    return fields + [0] * (MAX_LAYERS * 7 - len(fields))


def _repulsion(plan: SplinePlan) -> tuple[list[float], list[float]]:
    inner, outer = plan.repulsion or (0.0, 0.0)
    constants = [COULOMB_EV_ANGSTROM, *plan.screening]
    return [plan.cutoff, plan.angular_cutoff, inner, outer], constants


def pack_plan(plan: SplinePlan, dtype: type[np.float32] | type[np.float64]) -> NDArray[np.uint8]:
    """The block as bytes, starting at a multiple of 64; kernels compute in `dtype`."""
    block = _Block(dtype)
    readout, z = plan.readout, plan.n_elements
    three_body = plan.f.n_filters > 0
    evaluator = plan.evaluator if three_body else "none"
    cutoffs, constants = _repulsion(plan)
    groups = [block.add(plan.numbers, np.int32), block.add(plan.reference, np.float64)]
    groups += [block.add(plan.radial_group, np.int32), block.add(plan.pair_group, np.int32)]
    tables = _table(block, plan.rho) + _table(block, plan.f) + _table(block, plan.phi)
    tables += _table(block, plan.g if evaluator == "spline" else None) + _table(block, readout.embedding)
    angular = [0, 0]
    if evaluator == "legendre":
        angular = [block.rows(plan.legendre.transpose(0, 1, 3, 2)), block.rows(plan.at_one)]
    n_features = readout.mean.shape[0]
    features = [n_features, block.stride(n_features), block.rows(readout.mean), block.rows(1.0 / readout.std)]
    features.append(block.rows(readout.linear))
    n_copies = readout.weights[0].shape[0] if readout.weights else 1
    network = [len(readout.weights), n_copies, _ACTIVATIONS[readout.activation], int(readout.embeds_sum)]
    layers = _layers(block, readout)
    total = -(-block.size // _PAD) * _PAD
    header = [MAGIC, VERSION, total, np.dtype(dtype).itemsize, z, plan.n_channels, plan.degree, _EVALUATORS[evaluator]]
    memory = np.zeros(total + _PAD, dtype=np.uint8)
    start = -memory.ctypes.data % _PAD
    packed = memory[start : start + total]
    bytes_ = struct.pack(
        _HEADER, *header, *cutoffs, *constants, *groups, *tables, *angular, *features, *network, *layers
    )
    packed[: len(bytes_)] = np.frombuffer(bytes_, np.uint8)
    for offset, content in block.pieces:
        packed[offset : offset + len(content)] = np.frombuffer(content, np.uint8)
    return packed
