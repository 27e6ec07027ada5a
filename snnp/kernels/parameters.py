"""A trained s-NNP as plain float64 arrays, in the layout in which kernels evaluate it; nothing here knows torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

__all__ = ["ReadoutParameters", "SplineParameters", "SplineTable", "spline_table"]

Array = NDArray[np.float64]
Indices = NDArray[np.int32]


@dataclass(frozen=True)
class SplineTable:
    """Cubic splines as polynomials: group s, segment k, filter b is `sum_d coefficients[s, k, d, b] u^d`.

    With `t = (x - lower) * inverse_spacing` the segment is `k = clamp(floor(t), -1, n) + 1` and `u = t - (k - 1)`: the
    segments 0 and n + 1 continue the spline beyond its grid as its tangent. Derivatives in x are those in u times
    `inverse_spacing`.
    """

    lower: Array  # [G]
    inverse_spacing: Array  # [G]
    n_intervals: Indices  # [G] n
    coefficients: Array  # [G, K, 4, F] with K = largest n + 2; unused segments are zero

    @property
    def n_filters(self) -> int:
        """F."""
        return self.coefficients.shape[3]


def spline_table(lower: Array, spacing: Array, n_intervals: NDArray[np.int64], bsplines: Array) -> SplineTable:
    """Convert B-spline coefficients [G, F, largest n + 3] on uniform grids into polynomials."""
    n_groups, n_filters = bsplines.shape[:2]
    table = np.zeros((n_groups, int(n_intervals.max()) + 2, 4, n_filters))
    for group, n in enumerate(n_intervals.tolist()):
        c = bsplines[group].T  # [K, F]
        c0, c1, c2, c3 = c[:n], c[1 : n + 1], c[2 : n + 2], c[3 : n + 3]
        table[group, 1 : n + 1, 0] = (c0 + 4.0 * c1 + c2) / 6.0
        table[group, 1 : n + 1, 1] = (c2 - c0) / 2.0
        table[group, 1 : n + 1, 2] = (c0 - 2.0 * c1 + c2) / 2.0
        table[group, 1 : n + 1, 3] = (c3 - c0 + 3.0 * (c1 - c2)) / 6.0
        slope = (c[2] - c[0]) / 2.0
        table[group, 0, 0], table[group, 0, 1] = table[group, 1, 0] - slope, slope
        table[group, n + 1, 0] = (c[n] + 4.0 * c[n + 1] + c[n + 2]) / 6.0
        table[group, n + 1, 1] = (c[n + 2] - c[n]) / 2.0
    return SplineTable(lower, 1.0 / spacing, n_intervals.astype(np.int32), table)


@dataclass(frozen=True)
class ReadoutParameters:
    """From D features x to an energy: `NN_z(y) + linear_z . y + U_z(x)` with `y = (x - mean) / std`.

    Layers have one copy for all elements or one for each, and none there is without a network; the last has one output.
    """

    mean: Array  # [D]
    std: Array  # [D]
    weights: tuple[Array, ...]  # per layer [copies, out, in], with constraints applied
    biases: tuple[Array, ...]  # per layer [copies, out]
    activation: Literal["silu", "tanh", "softplus"]  # of the hidden layers
    linear: Array  # [Z, D], zeros without a skip
    embedding: SplineTable | None  # U, splines of the features in groups per element
    embeds_sum: bool  # the embedding has one filter, of the sum of the features

    @property
    def n_copies(self) -> int:
        """Of the network, or 1 without one."""
        return self.weights[0].shape[0] if self.weights else 1


@dataclass(frozen=True)
class SplineParameters:
    """Everything a kernel needs to know about a model with Z elements."""

    numbers: Indices  # [Z] atomic numbers
    reference: Array  # [Z] E0 in eV
    cutoff: float  # Å, of radial filters, pair term and repulsion
    angular_cutoff: float  # Å, of f
    rho: SplineTable
    f: SplineTable  # without filters if there is no three-body term
    radial_group: Indices  # [Z, Z] group of rho and f for (centre, neighbour)
    phi: SplineTable | None  # the pair term
    pair_group: Indices  # [Z, Z] group of phi, and of g for two neighbours if it has several
    evaluator: Literal["spline", "legendre"]  # of the three-body term
    degree: int  # L
    legendre: Array  # [C, C, F, L + 1] coefficients of g for two channels; C = Z where g depends on elements, or 1
    at_one: Array  # [C, F] g(1) for two neighbours of one channel
    g: SplineTable  # for the evaluator "spline"
    repulsion: tuple[float, float] | None  # inner, outer in Å
    screening: tuple[float, ...]  # its length in Å, four amplitudes, four decay constants
    readout: ReadoutParameters

    @property
    def n_elements(self) -> int:
        """Z."""
        return len(self.numbers)

    @property
    def n_channels(self) -> int:
        """C."""
        return self.legendre.shape[0]
