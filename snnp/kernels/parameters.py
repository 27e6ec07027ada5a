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

    Arguments:
        lower, inverse_spacing: [G]; n_intervals: [G] int32.
        coefficients: [G, K, 4, F] with K = largest n + 2 (unused segments are zero).
    """

    lower: Array
    inverse_spacing: Array
    n_intervals: Indices
    coefficients: Array

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

    Arguments:
        mean, std: [D].
        weights, biases: per layer [C, out, in] and [C, out] with constraints applied, C = 1 or Z copies; empty without
            a network. The last layer has one output.
        activation: of the hidden layers.
        linear: [Z, D], zeros without a skip.
        embedding: splines of the features in groups per element, or None; with `embeds_sum` one filter, of their sum.
    """

    mean: Array
    std: Array
    weights: tuple[Array, ...]
    biases: tuple[Array, ...]
    activation: Literal["silu", "tanh", "softplus"]
    linear: Array
    embedding: SplineTable | None
    embeds_sum: bool

    @property
    def n_copies(self) -> int:
        """C of the network, or 1 without one."""
        return self.weights[0].shape[0] if self.weights else 1


@dataclass(frozen=True)
class SplineParameters:
    """Everything a kernel needs to know about a model with Z elements.

    Arguments:
        numbers: [Z] atomic numbers; reference: [Z] E0 in eV.
        cutoff: Å, of radial filters, pair term and repulsion; angular_cutoff: Å, of f.
        rho, f: radial functions, in group `radial_group` [Z, Z] of (centre, neighbour); f has no filters if there is no
            three-body term.
        phi: pair term or None, in group `pair_group` [Z, Z].
        evaluator: of the three-body term.
        degree: L. legendre: [C, C, F, L + 1] coefficients of g for neighbours in the channels (c, c'); at_one: [C, F],
            g(1) for two neighbours of one channel; C = 1, or Z where g depends on elements (channel = element).
        g: angular splines (evaluator "spline"), in group `pair_group` of the two neighbours if it has several.
        repulsion: (inner, outer) in Å or None. screening: its length in Å, four amplitudes and four decay constants.
    """

    numbers: Indices
    reference: Array
    cutoff: float
    angular_cutoff: float
    rho: SplineTable
    f: SplineTable
    radial_group: Indices
    phi: SplineTable | None
    pair_group: Indices
    evaluator: Literal["spline", "legendre"]
    degree: int
    legendre: Array
    at_one: Array
    g: SplineTable
    repulsion: tuple[float, float] | None
    screening: tuple[float, ...]
    readout: ReadoutParameters

    @property
    def n_elements(self) -> int:
        """Z."""
        return len(self.numbers)

    @property
    def n_channels(self) -> int:
        """C."""
        return self.legendre.shape[0]
