"""Spherical harmonics: SciPy's Legendre polynomials through the addition theorem, orthogonality, gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import eval_legendre

from snnp.harmonics import Harmonics


def _units(n: int, seed: int = 0) -> torch.Tensor:
    points = torch.randn(n, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return points / points.norm(dim=1, keepdim=True)


def _degrees(degree: int) -> list[slice]:
    return [slice(n**2, (n + 1) ** 2) for n in range(degree + 1)]


@pytest.mark.parametrize("degree", [0, 1, 2, 5, 12])
def test_addition_theorem(degree: int) -> None:
    u, v = _units(200), _units(200, seed=1)
    harmonics = Harmonics(degree)
    products = harmonics(u) * harmonics(v)
    cosine = (u * v).sum(dim=1).numpy()
    for n, mine in enumerate(_degrees(degree)):
        np.testing.assert_allclose(products[:, mine].sum(dim=1), eval_legendre(n, cosine), atol=2e-13)


def test_low_degrees_are_written_out() -> None:
    """The usual order within a degree: m from -l to l, so degree one is y, z, x."""
    u = _units(50)
    x, y, z = u.T
    root = 3.0**0.5
    wanted = [torch.ones_like(x), y, z, x]
    wanted += [root * x * y, root * y * z, 1.5 * z**2 - 0.5, root * x * z, 0.5 * root * (x**2 - y**2)]
    torch.testing.assert_close(Harmonics(2)(u), torch.stack(wanted, dim=1), atol=1e-13, rtol=0.0)


def test_orthogonality_on_the_sphere() -> None:
    """The mean of Y_a Y_b over the sphere is 1 / (2 l + 1) for a = b, else zero (product quadrature, exact)."""
    degree = 5
    z, weights = np.polynomial.legendre.leggauss(degree + 1)
    angles = 2.0 * np.pi * np.arange(2 * degree + 1) / (2 * degree + 1)
    rho = np.sqrt(1.0 - z**2)[:, None]
    points = np.stack([rho * np.cos(angles), rho * np.sin(angles), z[:, None] + 0.0 * angles], axis=-1)
    values = Harmonics(degree)(torch.from_numpy(points))
    mean = torch.einsum("z,zpa,zpb->ab", torch.from_numpy(weights), values, values) / (2.0 * len(angles))
    wanted = torch.diag(1.0 / (2.0 * Harmonics(degree).degree_of + 1.0))
    torch.testing.assert_close(mean, wanted, atol=1e-14, rtol=0.0)


@pytest.mark.parametrize("degree", [0, 1, 3, 8])
def test_lowering_gives_the_gradient_of_the_solid_harmonics(degree: int) -> None:
    """The columns are homogeneous polynomials off the sphere, too: automatic differentiation is the oracle."""
    harmonics = Harmonics(degree)
    points = (1.7 * _units(20)).requires_grad_()
    values = harmonics(points)
    lower = values.detach()[:, : harmonics.lowering.shape[2]]
    for column in range((degree + 1) ** 2):
        wanted = torch.zeros_like(points)
        if column > 0:
            (wanted,) = torch.autograd.grad(values[:, column].sum(), points, retain_graph=True)
        found = torch.stack([lower @ harmonics.lowering[a, column] for a in range(3)], dim=1)
        torch.testing.assert_close(found, wanted, atol=1e-11, rtol=1e-11)


def test_columns_are_homogeneous() -> None:
    harmonics = Harmonics(6)
    u = _units(10)
    scaled = harmonics(1.3 * u)
    torch.testing.assert_close(scaled, harmonics(u) * 1.3**harmonics.degree_of, atol=1e-13, rtol=1e-13)


def test_rotation_mixes_within_a_degree_only() -> None:
    q, _ = torch.linalg.qr(torch.from_numpy(np.random.default_rng(3).normal(size=(3, 3))))
    u, harmonics = _units(100), Harmonics(4)
    before, after = harmonics(u), harmonics(u @ q.T)
    for mine in _degrees(4):
        matrix = torch.linalg.lstsq(before[:, mine], after[:, mine]).solution
        torch.testing.assert_close(before[:, mine] @ matrix, after[:, mine], atol=1e-12, rtol=0.0)
        torch.testing.assert_close(matrix @ matrix.T, torch.eye(len(matrix)).double(), atol=1e-12, rtol=0.0)


def test_any_batch_shape_and_type() -> None:
    u = _units(24)
    wanted = Harmonics(3)(u)
    torch.testing.assert_close(Harmonics(3)(u.reshape(2, 3, 4, 3)).reshape(24, 16), wanted)
    single = Harmonics(3).float()(u.float())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), wanted, atol=1e-6, rtol=0.0)


def test_matrices_are_exact_after_float32() -> None:
    u = _units(10)
    torch.testing.assert_close(Harmonics(4).float().double()(u), Harmonics(4)(u), atol=0.0, rtol=0.0)
