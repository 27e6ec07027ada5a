r"""Uniform cubic B-splines: values, slopes, end conditions, and conversion from and to knot values.

On a grid of `n` intervals of width h between `lower` and `upper`, a spline is

    s(x) = sum_k c_k B(t - k),   t = (x - lower) / h,   k = 0 .. n + 2,

where in interval m = floor(t), with u = t - m, only k = m .. m + 3 contribute with the weights

    (1 - u)^3 / 6,  (3 u^3 - 6 u^2 + 4) / 6,  (-3 u^3 + 3 u^2 + 3 u + 1) / 6,  u^3 / 6.

Outside the grid a spline continues as its tangent. With the end conditions `flat` and `zero` the tangent has no slope
and the joint is smooth in value, slope and curvature. Source: C. de Boor, A Practical Guide to Splines (2001), ch. IX.
"""

# No `from __future__ import annotations` here: TorchScript, which compiles `SplineSet`, needs them as they are.

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from snnp.errors import InputError
from snnp.exact import ExactModule

__all__ = ["End", "SplineGrid", "SplineSet", "bspline_weights", "end_map", "fit_knots", "legendre_projection"]

End = Literal["free", "flat", "zero"]


@dataclass(frozen=True)
class SplineGrid:
    """A uniform grid: `n_intervals` intervals between `lower` and `upper` (Å for distances).

    Raises `InputError` if there is no interval or `upper` does not lie above `lower`, by an amount that can be divided.
    """

    lower: float
    upper: float
    n_intervals: int

    def __post_init__(self) -> None:
        if self.n_intervals < 1 or not self.upper > self.lower or not 1e-12 < self.spacing < math.inf:
            raise InputError(
                f"a spline grid needs at least one interval and upper > lower, "
                f"got {self.n_intervals} intervals on [{self.lower}, {self.upper}]."
            )

    @property
    def spacing(self) -> float:
        """Distance between knots."""
        return (self.upper - self.lower) / self.n_intervals

    @property
    def n_coefficients(self) -> int:
        """Number of B-splines that reach into the grid."""
        return self.n_intervals + 3

    def knots(self) -> Tensor:
        """[n_intervals + 1] float64."""
        return torch.linspace(self.lower, self.upper, self.n_intervals + 1, dtype=torch.float64)


def _weights(u: Tensor, derivative: int) -> Tensor:
    """[..., 4] weights of the four B-splines of an interval at the local coordinate u, or their derivatives."""
    v = 1.0 - u
    if derivative == 0:
        columns = (v**3, 3.0 * u**3 - 6.0 * u**2 + 4.0, 3.0 * v**3 - 6.0 * v**2 + 4.0, u**3)
        return torch.stack(columns, dim=-1) * (1.0 / 6.0)
    return torch.stack((-(v**2), 3.0 * u**2 - 4.0 * u, -3.0 * v**2 + 4.0 * v, u**2), dim=-1) * 0.5


def bspline_weights(x: Tensor, lower: Tensor, spacing: Tensor, n_intervals: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """First index [...], weights [..., 4] and slopes [..., 4] of the four B-splines that make up s(x).

    `x`: [...] where to evaluate; grid parameters are tensors that broadcast against it.

    Beyond the ends the weights continue linearly. Differentiable in x.
    """
    t = (x - lower) / spacing
    inside = torch.minimum(t.clamp_min(0.0), n_intervals.to(t.dtype))
    first = torch.minimum(inside.detach().floor(), (n_intervals - 1).to(t.dtype))
    u = inside - first
    slopes = _weights(u, 1)
    weights = _weights(u, 0) + slopes.detach() * (t - inside)[..., None]
    return first.to(torch.int64), weights, slopes / spacing[..., None]


def end_map(n_intervals: int, lower: End, upper: End) -> Tensor:
    """[K_free, n_intervals + 3] map from free parameters to B-spline coefficients under end conditions.

    `free` keeps all coefficients; `flat` ties three of them so that slope and curvature vanish at the end; `zero` makes
    value, slope and curvature vanish. Raises `InputError` if no free parameter is left.
    """
    rows = torch.eye(n_intervals + 3, dtype=torch.float64)
    for end in (lower, upper):
        if end == "flat":
            rows = torch.cat([rows[:3].sum(dim=0, keepdim=True), rows[3:]])
        elif end == "zero":
            rows = rows[3:]
        elif end != "free":
            raise InputError(f"unknown spline end condition {end!r}; use free, flat, or zero.")
        if rows.shape[0] < 2:
            raise InputError(f"{n_intervals} intervals are too few for the end conditions {lower!r}, {upper!r}.")
        rows = rows.flip(0).flip(1)  # turned round, for the other end and back again
    return rows.contiguous()


def fit_knots(
    grid: SplineGrid,
    values: Tensor,
    lower_slope: Tensor | float | None = None,
    upper_slope: Tensor | float | None = None,
) -> Tensor:
    """B-spline coefficients [..., n_intervals + 3] of the cubic spline through knot values.

    Arguments:
        values: [..., n_intervals + 1].
        lower_slope, upper_slope: clamped slopes at the ends ([...] or a number); None makes the end natural.
    """
    from scipy.linalg import solve_banded  # here: models that are loaded do not need it, and it takes time to import

    n = grid.n_intervals
    if values.shape[-1] != n + 1:
        raise InputError(f"{values.shape[-1]} knot values for a grid with {n + 1} knots.")
    right = torch.zeros(*values.shape[:-1], n + 3, dtype=torch.float64)
    right[..., 1 : n + 2] = values
    bands = np.zeros((5, n + 3))  # of a banded matrix: bands[2 + row - column, column]
    bands[1, 2:], bands[2, 1:-1], bands[3, :-2] = 1.0 / 6.0, 4.0 / 6.0, 1.0 / 6.0
    for row, slope in ((0, lower_slope), (n + 2, upper_slope)):
        columns, half = min(row, n) + np.arange(3), 0.5 / grid.spacing
        bands[2 + row - columns, columns] = [1.0, -2.0, 1.0] if slope is None else [-half, 0.0, half]
        right[..., row] = 0.0 if slope is None else torch.as_tensor(slope, dtype=torch.float64)
    flat = right.reshape(-1, n + 3).numpy()
    solved = torch.from_numpy(solve_banded((2, 2), bands, flat.T).T.copy())
    return solved.reshape(right.shape)


class SplineSet(ExactModule):
    """`S` groups of `F` splines; the splines of a group share a grid.

    Arguments:
        grids: one grid per group (groups may be, for instance, neighbour elements).
        n_filters: F.
        lower, upper: end conditions, see `end_map`.

    The parameter `free` has shape [S, F, K_free]; groups with fewer intervals than the longest leave the rest unused.
    End conditions other than `free` need equal numbers of intervals.
    """

    def __init__(self, grids: list[SplineGrid], n_filters: int, lower: End = "free", upper: End = "free") -> None:
        super().__init__()
        self.grids = tuple(grids)
        self.n_filters = n_filters
        n_max = max(grid.n_intervals for grid in grids)
        if (lower, upper) != ("free", "free") and any(grid.n_intervals != n_max for grid in grids):
            raise InputError("end conditions other than 'free' need the same number of intervals in every group.")
        self.n_groups, self.n_coefficients = len(grids), n_max + 3
        n_free = self.n_coefficients
        self.register_buffer("map", None, persistent=False)
        if (lower, upper) != ("free", "free"):  # else the map is the identity, whose size is the square of the knots
            self.register_constant("map", end_map(n_max, lower, upper))
            n_free = self.exact("map").shape[0]
        self.register_constant("lower", torch.tensor([g.lower for g in grids], dtype=torch.float64))
        self.register_constant("spacing", torch.tensor([g.spacing for g in grids], dtype=torch.float64))
        self.register_buffer("n_intervals", torch.tensor([g.n_intervals for g in grids]), persistent=False)
        self.free = nn.Parameter(torch.zeros(len(grids), n_filters, n_free, dtype=torch.float64))

    map: Tensor | None
    lower: Tensor
    spacing: Tensor
    n_intervals: Tensor

    __jit_unused_properties__ = ("shares_grid",)

    @property
    def shares_grid(self) -> bool:
        """True where all groups have one grid, so that a dense basis serves them all."""
        return all(grid == self.grids[0] for grid in self.grids)

    def coefficients(self) -> Tensor:
        """[S, F, n_intervals + 3] B-spline coefficients."""
        mapped = self.map
        if mapped is None:
            return self.free
        return self.free @ mapped

    def forward(self, x: Tensor, group: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Values and slopes [..., F] at x [...] of the splines of `group` ([...] int64; None: 0). Differentiable."""
        if group is None or self.n_groups == 1:
            # One grid, one group: a dense product is several times faster than gathering coefficients.
            values, derivatives = self.basis(x)
            return values @ self.free[0].T, derivatives @ self.free[0].T
        first, weights, slopes = bspline_weights(x, self.lower[group], self.spacing[group], self.n_intervals[group])
        coefficients = self.coefficients()
        length = coefficients.shape[2]
        table = coefficients.transpose(1, 2).flatten(0, 1)
        rows = (group * length + first)[..., None] + torch.arange(4, device=x.device)
        local = table[rows]
        return (weights[..., None] * local).sum(-2), (slopes[..., None] * local).sum(-2)

    def basis(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Values and slopes [..., K_free] of the functions that `free` multiplies, on the one grid. Differentiable."""
        first, weights, slopes = bspline_weights(x, self.lower[0], self.spacing[:1], self.n_intervals[0])
        columns = first[..., None] + torch.arange(4, device=x.device)
        shape = list(columns.shape)
        shape[-1] = self.n_coefficients
        values = torch.zeros(shape, dtype=x.dtype, device=x.device).scatter(-1, columns, weights)
        derivatives = torch.zeros(shape, dtype=x.dtype, device=x.device).scatter(-1, columns, slopes)
        mapped = self.map
        if mapped is None:
            return values, derivatives
        return values @ mapped.T, derivatives @ mapped.T

    def knot_values(self, group: int = 0) -> Tensor:
        """[F, n_intervals + 1] values at the knots of a group."""
        n = self.grids[group].n_intervals
        c = self.coefficients()[group]
        return (c[:, : n + 1] + 4.0 * c[:, 1 : n + 2] + c[:, 2 : n + 3]) / 6.0

    def end_slopes(self, group: int = 0) -> tuple[Tensor, Tensor]:
        """Slopes [F] at the lower and the upper end of a group."""
        grid, c = self.grids[group], self.coefficients()[group]
        n = grid.n_intervals
        return (c[:, 2] - c[:, 0]) / (2.0 * grid.spacing), (c[:, n + 2] - c[:, n]) / (2.0 * grid.spacing)

    @torch.no_grad()
    def set_knots(
        self,
        values: Tensor,
        group: int = 0,
        lower_slope: Tensor | float | None = None,
        upper_slope: Tensor | float | None = None,
    ) -> None:
        """Set a group from knot values [F, n_intervals + 1]; see `fit_knots`. With end conditions, the nearest fit."""
        fitted = fit_knots(self.grids[group], values, lower_slope, upper_slope)
        if self.map is not None:
            fitted = torch.linalg.lstsq(self.map.double().T, fitted.T).solution.T
        self.free[group, :, : fitted.shape[-1]] = fitted.to(self.free)


def legendre_projection(grid: SplineGrid, degree: int) -> Tensor:
    r"""[degree + 1, n_intervals + 3] float64: Legendre coefficients of each B-spline on [-1, 1].

    `g_l = (2 l + 1) / 2 * integral of g(x) P_l(x) dx`, exact (Gauss-Legendre quadrature on every interval).
    """
    nodes, quadrature = map(torch.from_numpy, np.polynomial.legendre.leggauss((degree + 3) // 2 + 1))
    n = grid.n_intervals
    u = 0.5 * (nodes + 1.0)
    x = grid.lower + (torch.arange(n, dtype=torch.float64)[:, None] + u) * grid.spacing
    basis = _weights(u, 0) * (0.5 * grid.spacing * quadrature)[:, None]
    projection = torch.zeros(degree + 1, grid.n_coefficients, dtype=torch.float64)
    previous, current = torch.zeros_like(x), torch.ones_like(x)
    for degree_l in range(degree + 1):
        parts = (2 * degree_l + 1) / 2.0 * (current @ basis)
        for column in reversed(range(4)):
            projection[degree_l, column : column + n] += parts[:, column]
        previous, current = current, ((2 * degree_l + 1) * x * current - degree_l * previous) / (degree_l + 1)
    return projection
