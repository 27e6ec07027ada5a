r"""Sums over the neighbours of each atom, and from gradients by these sums the gradients by pairs.

Radial filters sum over neighbours. Three-body filters, with u the unit vectors and h_b = dE/dG3_b,

    G3_b(i) = 1/2 sum_{j != k} f_b(r_ij) f_b(r_ik) g_b(c),   c = cos theta_jik

    dE/dr_ij = u_j sum_b h_b f'_b(r_ij) sum_k f_b(r_ik) g_b(c)
             + 1 / r_ij sum_k (u_k - c u_j) sum_b h_b f_b(r_ij) f_b(r_ik) g'_b(c)

have two evaluators. "spline" sums over pairs of neighbours, O(J²) per atom, with every function exactly its cubic
spline. "legendre" goes through moments of the neighbour density: with the free coefficients c_b of f_b, and B_k the
functions they multiply,

    M_k,lm(i) = sum_j B_k(r_ij) Y_lm(r_ij)         A_b,lm = sum_k c_bk M_k,lm          S_kq = sum_j B_k B_q
    G3_b      = 1/2 [ sum_lm g_bl A_b,lm² - g_b(1) c_b . S c_b ]

where g_bl are Legendre coefficients of g_b; the last term takes out j = k. From W = dE/dM and V = dE/dS follow

    dE/dr_ij = u (R - u . G / r) + G / r,
    R   = sum_k,lm B'_k W_k,lm Y_lm + 2 sum_kq B'_k V_kq B_q,     G_a = sum_k,lm B_k W_k,lm dS_lm/dr_a

(S_lm solid harmonics). With several elements the index k runs over (neighbour element, spline function).

Training evaluates one geometry many times. Parameters act on M and S only, never on pairs; "spline" takes them out too,
with the functions C_q that the parameters of g multiply:

    X_j,qp = sum_k C_q(c) B_p(r_ik),   Y_j,qp = 1 / r_ij sum_k (u_k - c u_j) C'_q(c) B_p(r_ik),   T = sum_j B(r_ij) X_j
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from snnp.harmonics import Harmonics
from snnp.models.gradients import Shell
from snnp.splines import SplineSet

__all__ = ["Back", "Moments", "RadialSums", "TripleSums", "sum_triples"]

Back = Callable[[Tensor], Tensor]  # from dE/dG3 [n, F] to dE/dr_ij [n, J, 3]


def _channel_basis(splines: SplineSet, shell: Shell, n_channels: int) -> tuple[Tensor, Tensor]:
    """Basis values and slopes [n, J, E K]: zero except in the neighbour's channel, zero in padding."""
    values, slopes = splines.basis(shell.distance)
    inside = shell.mask[..., None]
    if n_channels == 1:
        return values * inside, slopes * inside
    channel = torch.arange(n_channels, device=values.device) == shell.channel[..., None]
    chosen = (channel & inside)[..., None]
    return (values[..., None, :] * chosen).flatten(-2), (slopes[..., None, :] * chosen).flatten(-2)


@dataclass(frozen=True)
class RadialSums:
    """What radial filters need of n atoms: `sums` [n, E K] and `slopes` [n, J, E K]. Differentiable in the shell."""

    sums: Tensor
    slopes: Tensor

    @staticmethod
    def of(splines: SplineSet, shell: Shell, n_channels: int) -> RadialSums:
        values, slopes = _channel_basis(splines, shell, n_channels)
        return RadialSums(values.sum(dim=1), slopes)


@dataclass(frozen=True)
class Moments:
    """What the "legendre" evaluator needs of n atoms, free of parameters. Differentiable in the shell.

    `moments` [n, E K, (L+1)²], `overlaps` [n, E K, E K], and per pair `basis` [n, J, E K], `slopes` [n, J, E K],
    `targets` [n, J, (L+1)² + E K] (harmonics, then basis).
    """

    moments: Tensor
    overlaps: Tensor
    basis: Tensor
    slopes: Tensor
    targets: Tensor

    @staticmethod
    def of(splines: SplineSet, harmonics: Harmonics, shell: Shell, n_channels: int) -> Moments:
        values, slopes = _channel_basis(splines, shell, n_channels)
        targets = torch.cat([harmonics(shell.unit), values], dim=-1)
        products = values.transpose(1, 2) @ targets
        size = (harmonics.degree + 1) ** 2
        return Moments(products[..., :size], products[..., size:], values, slopes, targets)

    def features(
        self, shell: Shell, lowering: Tensor, filters: Tensor, angles: Tensor, at_one: Tensor
    ) -> tuple[Tensor, Back]:
        """Features G3 [n, F], and the way back to the pairs.

        Arguments:
            lowering: [3, (L+1)², L²] gradients of the solid harmonics.
            filters: [C, F, E K] or, where they depend on the centre, [n, C, F, E K]; C = 1, or one per neighbour
                element.
            angles: [C, C, F, (L+1)²] Legendre coefficients of g repeated over m; at_one: [C, F], g(1) of one element.
        """
        n_channels, n_filters = filters.shape[-3], filters.shape[-2]
        flat = filters.flatten(-3, -2)
        a = flat @ self.moments
        if n_channels == 1:
            weighted = a * angles[0, 0]
        else:
            split = a.unflatten(1, (n_channels, n_filters))
            weighted = torch.einsum("cdbl,ndbl->ncbl", angles, split).flatten(1, 2)
        pairs = (a * weighted).sum(dim=-1)
        selves = ((flat @ self.overlaps) * flat).sum(dim=-1) * at_one.flatten()
        features = 0.5 * (pairs - selves).unflatten(1, (n_channels, n_filters)).sum(dim=1)

        def back(h: Tensor) -> Tensor:
            h = h.repeat(1, n_channels)
            moment = flat.transpose(-1, -2) @ (weighted * h[..., None])
            strength = -0.5 * h * at_one.flatten()
            if flat.dim() == 2:
                outer = flat[:, :, None] * flat[:, None, :]
                overlap = (strength @ outer.flatten(1)).unflatten(1, outer.shape[1:])
            else:
                overlap = (flat * strength[..., None]).transpose(1, 2) @ flat
            weights = torch.cat([moment, 2.0 * overlap], dim=-1)  # W and V
            radial = ((self.slopes @ weights) * self.targets).sum(dim=-1)
            n_lower = lowering.shape[2]
            lowered = moment @ lowering.permute(1, 0, 2).reshape(lowering.shape[1], -1)
            tangent = (self.basis @ lowered).unflatten(-1, (3, n_lower))
            tangent = (tangent * self.targets[..., None, :n_lower]).sum(dim=-1) / shell.distance[..., None]
            along = radial - (tangent * shell.unit).sum(dim=-1)
            return tangent + along[..., None] * shell.unit

        return features, back


@dataclass(frozen=True)
class TripleSums:
    """What the "spline" evaluator needs of n atoms, free of parameters; P = E K functions of f, Q functions of g.

    `sums` T [n, P, Q P], and per pair `basis` B and `slopes` B' [n, J, P], `along` X [n, J, Q P], `turned` Y
    [n, J, 3, Q P].
    """

    sums: Tensor
    basis: Tensor
    slopes: Tensor
    along: Tensor
    turned: Tensor

    @staticmethod
    def of(splines: SplineSet, angle: SplineSet, shell: Shell, n_channels: int) -> TripleSums:
        """Those of a shell, for one g per filter whatever the elements."""
        basis, slopes = _channel_basis(splines, shell, n_channels)
        cosine = (shell.unit @ shell.unit.transpose(1, 2)).clamp(-1.0, 1.0)
        values, derivatives = angle.basis(cosine)
        # The basis vanishes in padding; only j = k is left to take out.
        different = ~torch.eye(cosine.shape[-1], dtype=torch.bool, device=cosine.device)[..., None]

        def summed(over_triples: Tensor) -> Tensor:
            return ((over_triples * different).transpose(2, 3) @ basis[:, None]).flatten(2)

        directions = shell.unit[:, None] - cosine[..., None] * shell.unit[:, :, None]
        directions = directions / shell.distance[:, :, None, None]
        along = summed(values)
        turned = torch.stack([summed(derivatives * directions[..., axis, None]) for axis in range(3)], dim=2)
        return TripleSums(basis.transpose(1, 2) @ along, basis, slopes, along, turned)

    def features(self, shell: Shell, filters: Tensor, angles: Tensor) -> tuple[Tensor, Back]:
        """Features G3 [n, F], and the way back to the pairs.

        `filters`: coefficients of f, [F, P] or, where they depend on the centre, [n, F, P]; `angles`: of g, [F, Q].
        """
        products = (angles[:, :, None] * filters[..., None, :]).flatten(-2)
        inner = self.sums @ products.transpose(-1, -2)
        features = 0.5 * (filters.transpose(-1, -2) * inner).sum(dim=-2)

        def back(h: Tensor) -> Tensor:
            weights = filters.transpose(-1, -2) @ (h[..., None] * products)
            radial = ((self.slopes @ weights) * self.along).sum(dim=-1, keepdim=True)
            return radial * shell.unit + (self.turned @ (self.basis @ weights)[..., None])[..., 0]

        return features, back


def sum_triples(
    shell: Shell, functions: tuple[Tensor, Tensor], angle: SplineSet, unordered: Tensor
) -> tuple[Tensor, Back]:
    """Features G3 [n, F] of the "spline" evaluator straight from the J (J - 1) / 2 pairs of neighbours, and back.

    `functions`: f and f' [n, J, F] on the shell; `unordered`: [Z, Z] numbers of unordered pairs of elements.
    """
    inside = shell.mask[..., None]
    f, f_slope = functions[0] * inside, functions[1] * inside
    first, second = torch.triu_indices(f.shape[1], f.shape[1], 1, device=f.device)
    cosine = (shell.unit @ shell.unit.transpose(1, 2))[:, first, second].clamp(-1.0, 1.0)
    group = None
    if len(angle.grids) > 1:
        group = unordered[shell.channel[:, first], shell.channel[:, second]]
    g, g_slope = angle(cosine, group)
    products = f.index_select(1, first) * f.index_select(1, second)

    def back(h: Tensor) -> Tensor:
        inner = torch.zeros_like(f).index_add(1, first, g * f.index_select(1, second))
        inner = inner.index_add(1, second, g * f.index_select(1, first))
        radial = ((f_slope * inner) @ h[..., None])[..., 0]
        weight = ((products * g_slope) @ h[..., None])[..., 0]
        square = torch.zeros_like(shell.unit @ shell.unit.transpose(1, 2))
        square[:, first, second] = weight
        square = square + square.transpose(1, 2)
        along = torch.zeros_like(radial).index_add(1, first, weight * cosine).index_add(1, second, weight * cosine)
        turned = square @ shell.unit - along[..., None] * shell.unit
        return radial[..., None] * shell.unit + turned / shell.distance[..., None]

    return (products * g).sum(dim=1), back
