r"""Real spherical harmonics normalised by the addition theorem, through degree-by-degree products with the unit vector.

    sum_m Y_lm(u) Y_lm(v) = P_l(u . v),     Y_00 = 1.

Within a degree, m runs from -l to l in the usual real convention (Y_1 = y, z, x). The solid harmonics r^l Y_lm(r/|r|)
are homogeneous polynomials, so two families of constant matrices suffice: the products `S_l = C_l (S_{l-1} x r)` that
raise the degree, and the gradients `dS_l/dr_a = D_l^a S_{l-1}` that lower it.
"""

# No `from __future__ import annotations` here: TorchScript, which compiles `Harmonics`, needs them as they are.

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from snnp.exact import ExactModule

__all__ = ["Harmonics"]


def _solid_harmonics(points: np.ndarray, degree: int) -> np.ndarray:
    """[P, 2 degree + 1] solid harmonics from the Legendre recursion (used once, to find the matrices)."""
    x, y, z = points.T
    r2 = x**2 + y**2 + z**2
    powers = (x + 1j * y)[None] ** np.arange(degree + 1)[:, None]
    columns = np.zeros((len(points), 2 * degree + 1))
    for m in range(degree + 1):
        q = np.full(len(points), float(np.prod(np.arange(2 * m - 1, 0, -2))))
        before = np.zeros_like(q)
        for n in range(m + 1, degree + 1):
            before, q = q, ((2 * n - 1) * z * q - (n + m - 1) * r2 * before) / (n - m)
        ratio = 1.0 / np.prod(np.arange(degree - m + 1, degree + m + 1), dtype=float)
        norm = np.sqrt(ratio) if m == 0 else np.sqrt(2.0 * ratio)
        columns[:, degree + m] = norm * q * powers[m].real
        if m > 0:
            columns[:, degree - m] = norm * q * powers[m].imag
    return columns


@lru_cache
def _matrices(degree: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Raising matrices C_l [3 (2l-1), 2l+1] and lowering matrices D_l [3, 2l+1, 2l-1] for l = 1 .. degree."""
    points = np.random.default_rng(0).normal(size=(8 * (degree + 1) ** 2 + 8, 3))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    raising, lowering = [], []
    lower, gradient = np.ones((len(points), 1)), np.zeros((3, len(points), 1))
    for n in range(1, degree + 1):
        target = _solid_harmonics(points, n)
        products = (lower[:, :, None] * points[:, None, :]).reshape(len(points), -1)
        c = np.linalg.lstsq(products, target, rcond=1e-12)[0]
        c[np.abs(c) < 1e-13] = 0.0
        moved = gradient[:, :, :, None] * points[None, :, None, :]
        moved += lower[None, :, :, None] * np.eye(3)[:, None, None, :]
        new_gradient = moved.reshape(3, len(points), -1) @ c
        d = np.stack([np.linalg.lstsq(lower, new_gradient[a], rcond=1e-12)[0].T for a in range(3)])
        d[np.abs(d) < 1e-13] = 0.0
        raising.append(c)
        lowering.append(d)
        lower, gradient = target, new_gradient
    return raising, lowering


class Harmonics(ExactModule):
    """Spherical harmonics up to `degree` on unit vectors.

    Buffers: `degree_of` [(L+1)²] float, the degree of every column; `raising` [L, ...] the matrices C_l, filled up;
    `lowering` [3, (L+1)², L²], the gradient of the solid harmonics in terms of harmonics up to degree L - 1.
    """

    def __init__(self, degree: int) -> None:
        super().__init__()
        self.degree = degree
        raising, lowering = _matrices(degree)
        products = np.zeros((degree, max(3 * (2 * degree - 1), 0), 2 * degree + 1))
        for each, c in zip(products, raising, strict=True):
            each[: c.shape[0], : c.shape[1]] = c
        self.register_constant("raising", torch.from_numpy(products))
        size = (degree + 1) ** 2
        full = np.zeros((3, size, max(degree**2, 1)))
        for n, d in enumerate(lowering, start=1):
            full[:, n**2 : (n + 1) ** 2, (n - 1) ** 2 : n**2] = d
        self.register_constant("lowering", torch.from_numpy(full))
        degrees = [float(n) for n in range(degree + 1) for _ in range(2 * n + 1)]
        self.register_buffer("degree_of", torch.tensor(degrees, dtype=torch.float64), persistent=False)

    raising: Tensor
    lowering: Tensor
    degree_of: Tensor

    def forward(self, unit: Tensor) -> Tensor:
        """[..., (L+1)²] harmonics of unit vectors [..., 3]; differentiable (as solid harmonics)."""
        current = torch.ones_like(unit[..., :1])
        columns = [current]
        for n in range(1, self.degree + 1):
            products = current.unsqueeze(-1) * unit.unsqueeze(-2)
            current = products.flatten(-2) @ self.raising[n - 1, : 3 * (2 * n - 1), : 2 * n + 1]
            columns.append(current)
        return torch.cat(columns, dim=-1)
