"""Splines against SciPy's, end conditions, derivatives, and the projection to Legendre polynomials."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
import torch
from scipy.interpolate import BSpline, CubicSpline
from scipy.special import eval_legendre

from snnp.errors import InputError
from snnp.splines import End, SplineGrid, SplineSet, bspline_weights, end_map, fit_knots, legendre_projection

GRID = SplineGrid(1.4, 5.0, 9)
INSIDE = torch.linspace(1.4, 5.0, 301, dtype=torch.float64)
AROUND = torch.linspace(0.4, 6.5, 301, dtype=torch.float64)


def _random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def _filled(splines: SplineSet, seed: int = 0) -> SplineSet:
    """A set with random parameters."""
    splines.double()
    with torch.no_grad():
        splines.free.copy_(_random(*splines.free.shape, seed=seed))
    return splines


def _curvature(splines: SplineSet, x: torch.Tensor) -> torch.Tensor:
    """Second derivatives [n, F] at x [n] in the grid, by automatic differentiation of the slopes."""
    x = x.clamp(max=GRID.upper - 1e-13).requires_grad_()
    slopes = splines(x)[1]
    bends = [torch.autograd.grad(slope.sum(), x, retain_graph=True)[0] for slope in slopes.unbind(dim=1)]
    return torch.stack(bends, dim=1)


def test_values_and_derivatives_are_scipys() -> None:
    """The coefficients are those of a B-spline on uniform knots that reach three intervals beyond the ends."""
    splines = _filled(SplineSet([GRID], 2))
    h = GRID.spacing
    knots = GRID.lower + h * np.arange(-3, GRID.n_intervals + 4)
    values, slopes = splines(INSIDE)
    for k in range(2):
        oracle = BSpline(knots, splines.free[0, k].detach().numpy(), 3)
        for ours, order in ((values, 0), (slopes, 1), (_curvature(splines, INSIDE), 2)):
            np.testing.assert_allclose(ours[:-1, k].detach(), oracle(INSIDE, order)[:-1], rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("ends", [(None, None), (0.7, -1.3), (None, 2.0), (0.0, None)])
def test_fit_to_knots_is_scipys_cubic_spline(ends: tuple[float | None, float | None]) -> None:
    values = _random(3, GRID.n_intervals + 1, seed=1)
    splines = SplineSet([GRID], 3)
    splines.set_knots(values, 0, *ends)
    conditions = tuple((2, 0.0) if slope is None else (1, slope) for slope in ends)
    found, slopes = splines(INSIDE)
    for k in range(3):
        oracle = CubicSpline(GRID.knots(), values[k], bc_type=conditions)
        for ours, order in ((found, 0), (slopes, 1), (_curvature(splines, INSIDE), 2)):
            np.testing.assert_allclose(ours[:, k].detach(), oracle(INSIDE, order), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(splines.knot_values().detach(), values)
    for ours, wanted in zip(splines.end_slopes(), ends, strict=True):
        if wanted is not None:
            torch.testing.assert_close(ours.detach(), torch.full((3,), wanted, dtype=torch.float64))


def test_fit_takes_one_slope_per_spline() -> None:
    values, slopes = _random(4, GRID.n_intervals + 1), _random(4, seed=2)
    splines = SplineSet([GRID], 4)
    splines.set_knots(values, 0, slopes, -slopes)
    torch.testing.assert_close(splines.end_slopes()[0].detach(), slopes)
    torch.testing.assert_close(splines.end_slopes()[1].detach(), -slopes)


def test_cubic_polynomials_are_reproduced() -> None:
    """A clamped spline through the knots of a cubic is that cubic."""

    def cubic(x: torch.Tensor) -> torch.Tensor:
        return 0.3 * x**3 - x**2 + 2.0 * x - 5.0

    def slope(x: float) -> float:
        return 0.9 * x**2 - 2.0 * x + 2.0

    splines = SplineSet([GRID], 1)
    splines.set_knots(cubic(GRID.knots())[None], 0, slope(GRID.lower), slope(GRID.upper))
    torch.testing.assert_close(splines(INSIDE)[0][:, 0].detach(), cubic(INSIDE), atol=1e-12, rtol=0.0)


@pytest.mark.parametrize("group", [None, 1])
def test_slopes_are_the_derivative_of_the_values(group: int | None) -> None:
    """Inside and outside the grid, by automatic differentiation."""
    splines = _filled(SplineSet([GRID, SplineGrid(0.9, 4.0, 5)], 3) if group else SplineSet([GRID], 3))
    x = AROUND.clone().requires_grad_()
    groups = None if group is None else torch.full(x.shape, group)
    values, slopes = splines(x, groups)
    for k in range(3):
        (wanted,) = torch.autograd.grad(values[:, k].sum(), x, retain_graph=True)
        torch.testing.assert_close(slopes[:, k].detach(), wanted, atol=1e-12, rtol=1e-12)


def test_outside_the_grid_a_spline_is_its_tangent() -> None:
    splines = _filled(SplineSet([GRID], 2))
    below, above = splines.end_slopes()
    ends, _ = splines(torch.tensor([GRID.lower, GRID.upper], dtype=torch.float64))
    outside, slopes = splines(torch.tensor([GRID.lower - 0.8, GRID.upper + 2.5], dtype=torch.float64))
    torch.testing.assert_close(outside[0], ends[0] - 0.8 * below)
    torch.testing.assert_close(outside[1], ends[1] + 2.5 * above)
    torch.testing.assert_close(slopes, torch.stack([below, above]))


@pytest.mark.parametrize("end", get_args(End))
@pytest.mark.parametrize("upper", [False, True])
def test_end_conditions(end: End, upper: bool) -> None:
    ends: tuple[End, End] = ("free", end) if upper else (end, "free")
    splines = _filled(SplineSet([GRID], 5, *ends))
    # Just inside: curvature is zero outside by construction.
    at = torch.tensor([GRID.upper - 1e-13 if upper else GRID.lower], dtype=torch.float64)
    value, slope = (each.detach() for each in splines(at))
    curvature = _curvature(splines, at)
    vanish = {"free": (), "flat": (slope, curvature), "zero": (value, slope, curvature)}[end]
    for derivative in (value, slope, curvature):
        largest = float(derivative.abs().max())
        if any(derivative is each for each in vanish):
            assert largest < 1e-10
        else:
            assert largest > 1e-2


def test_zero_end_stays_zero_beyond() -> None:
    splines = _filled(SplineSet([GRID], 3, "flat", "zero"))
    values, slopes = splines(torch.tensor([5.0, 5.1, 100.0], dtype=torch.float64))
    torch.testing.assert_close(values, torch.zeros_like(values), atol=1e-14, rtol=0.0)
    torch.testing.assert_close(slopes, torch.zeros_like(slopes), atol=1e-14, rtol=0.0)


@pytest.mark.parametrize("ends", [("free", "free"), ("flat", "zero")])
def test_basis_and_coefficients_are_two_views_of_one_spline(ends: tuple[End, End]) -> None:
    one = _filled(SplineSet([GRID], 3, *ends))
    two = SplineSet([GRID, GRID], 3, *ends)
    with torch.no_grad():
        two.free.copy_(one.free.expand_as(two.free))
    values, slopes = one.basis(AROUND)
    gathered = two(AROUND, torch.ones(len(AROUND), dtype=torch.int64))
    for dense, found in zip((values, slopes), gathered, strict=True):
        torch.testing.assert_close(dense @ one.free[0].T, found, atol=1e-13, rtol=1e-12)
    for direct, found in zip(one(AROUND), gathered, strict=True):
        torch.testing.assert_close(direct, found, atol=1e-13, rtol=1e-12)


def test_groups_have_their_own_grids() -> None:
    grids = [GRID, SplineGrid(0.5, 3.0, 4), SplineGrid(2.0, 7.0, 6)]
    splines = _filled(SplineSet(grids, 2))
    x = AROUND[:, None].expand(-1, 3)
    values, slopes = splines(x, torch.arange(3).expand_as(x))
    for k, grid in enumerate(grids):
        alone = SplineSet([grid], 2)
        with torch.no_grad():
            alone.free.copy_(splines.free[k : k + 1, :, : grid.n_coefficients])
        wanted = alone(AROUND)
        torch.testing.assert_close(values[:, k], wanted[0])
        torch.testing.assert_close(slopes[:, k], wanted[1])


def test_constants_are_exact_after_float32() -> None:
    """Grids and end conditions are not rounded by a model's stay in float32."""
    splines = _filled(SplineSet([SplineGrid(1.4, 5.1, 11)], 2, "flat", "zero"))
    with torch.no_grad():
        splines.free.copy_(splines.free.float().double())
    before = splines(INSIDE)[0]
    assert splines.float()(INSIDE.float())[0].dtype == torch.float32
    torch.testing.assert_close(splines.double()(INSIDE)[0], before, atol=0.0, rtol=0.0)


def test_partition_of_unity() -> None:
    _, weights, slopes = bspline_weights(
        AROUND, torch.tensor(GRID.lower), torch.tensor([GRID.spacing]), torch.tensor(GRID.n_intervals)
    )
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones_like(AROUND))
    torch.testing.assert_close(slopes.sum(dim=-1), torch.zeros_like(AROUND), atol=1e-12, rtol=0.0)


def test_set_knots_under_end_conditions_fits_what_it_can() -> None:
    """A function that keeps the conditions comes back; none that breaks them is forced through the knots."""
    splines = _filled(SplineSet([GRID], 2, "flat", "zero"))
    other = SplineSet([GRID], 2, "flat", "zero")
    other.set_knots(splines.knot_values().detach(), 0, 0.0, 0.0)
    torch.testing.assert_close(other.free, splines.free, atol=1e-10, rtol=1e-10)


# Legendre polynomials.


@pytest.mark.parametrize("degree", [0, 1, 4, 7])
@pytest.mark.parametrize("intervals", [1, 8])
def test_projection_is_scipys(degree: int, intervals: int) -> None:
    """Coefficients g_l are integrals of g P_l, here on a grid fine enough for the trapezoidal rule."""
    grid = SplineGrid(-1.0, 1.0, intervals)
    splines = _filled(SplineSet([grid], 2))
    ours = splines.free[0].detach() @ legendre_projection(grid, degree).T
    x = torch.linspace(-1.0, 1.0, 200_001, dtype=torch.float64)
    values = splines(x)[0].detach()
    for n in range(degree + 1):
        integrand = values * torch.from_numpy(eval_legendre(n, x.numpy()))[:, None]
        wanted = (2 * n + 1) / 2.0 * torch.trapezoid(integrand, x, dim=0)
        torch.testing.assert_close(ours[:, n], wanted, atol=1e-8, rtol=0.0)


def test_projection_keeps_polynomials() -> None:
    """A g that is P_l has the coefficient one at l and zero elsewhere (up to degree three, what a spline holds)."""
    grid = SplineGrid(-1.0, 1.0, 6)
    for n in range(4):
        knots = torch.from_numpy(eval_legendre(n, grid.knots().numpy()))
        end = n * (n + 1) / 2.0
        coefficients = fit_knots(grid, knots, (-1.0) ** (n + 1) * end, end)
        found = legendre_projection(grid, 5) @ coefficients
        wanted = torch.zeros(6, dtype=torch.float64)
        wanted[n] = 1.0
        torch.testing.assert_close(found, wanted, atol=1e-13, rtol=0.0)


# What is refused.


@pytest.mark.parametrize("arguments", [(1.0, 1.0, 5), (2.0, 1.0, 5), (0.0, 1.0, 0)])
def test_grid_must_have_an_extent(arguments: tuple[float, float, int]) -> None:
    with pytest.raises(InputError, match="upper > lower"):
        SplineGrid(*arguments)


def test_number_of_knot_values() -> None:
    with pytest.raises(InputError, match="9 knot values for a grid with 10 knots"):
        fit_knots(GRID, torch.zeros(9))


def test_too_few_intervals_for_the_ends() -> None:
    with pytest.raises(InputError, match="2 intervals are too few"):
        end_map(2, "flat", "zero")


def test_unknown_end() -> None:
    with pytest.raises(InputError, match="'open'"):
        end_map(8, "open", "zero")  # type: ignore[arg-type]


def test_end_conditions_need_equal_grids() -> None:
    with pytest.raises(InputError, match="same number of intervals"):
        SplineSet([GRID, SplineGrid(1.0, 2.0, 4)], 1, "flat", "zero")
