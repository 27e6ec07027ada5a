r"""The "legendre" evaluator: three-body sums through moments of the neighbour density.

With the free spline coefficients c_b of a filter f_b, and B_k the functions they multiply,

    M_k,lm(i) = sum_j B_k(r_ij) Y_lm(r_ij)         A_b,lm = sum_k c_bk M_k,lm          S_kq = sum_j B_k B_q
    G3_b      = 1/2 [ sum_lm g_bl A_b,lm² - g_b(1) c_b . S c_b ]

where g_bl are Legendre coefficients of g_b; the last term takes out j = k. Parameters act on M and S only, never on
pairs: in training M, S and the geometry of the pairs are computed once per structure. From W = dE/dM and V = dE/dS
follow the pair gradients

    dE/dr_ij = u (R - u . G / r) + G / r,
    R   = sum_k,lm B'_k W_k,lm Y_lm + 2 sum_kq B'_k V_kq B_q,     G_a = sum_k,lm B_k W_k,lm dS_lm/dr_a

(S_lm solid harmonics). With several elements the index k runs over (neighbour element, spline function).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from snnp.harmonics import Harmonics
from snnp.models.shells import Shell
from snnp.splines import SplineSet

__all__ = [
    "AngularGeometry",
    "RadialGeometry",
    "angular_features",
    "angular_geometry",
    "angular_pair_gradients",
    "channel_basis",
    "moment_gradients",
    "radial_geometry",
]


@dataclass(frozen=True)
class RadialGeometry:
    """What radial filters need of N atoms: `sums` [N, E K] and `slopes` [N, J, E K] (B')."""

    sums: Tensor
    slopes: Tensor


@dataclass(frozen=True)
class AngularGeometry:
    """What three-body filters need of N atoms.

    `moments` [N, E K, (L+1)²], `overlaps` [N, E K, E K], and per pair `basis` [N, J, E K], `slopes` [N, J, E K],
    `targets` [N, J, (L+1)² + E K] (harmonics, then basis).
    """

    moments: Tensor
    overlaps: Tensor
    basis: Tensor
    slopes: Tensor
    targets: Tensor


def channel_basis(splines: SplineSet, shell: Shell, n_channels: int) -> tuple[Tensor, Tensor]:
    """Basis values and slopes [N, J, E K]: zero except in the neighbour's channel, zero in padding."""
    values, slopes = splines.basis(shell.distance)
    inside = shell.mask[..., None]
    if n_channels == 1:
        return values * inside, slopes * inside
    channel = torch.arange(n_channels, device=values.device) == shell.channel[..., None]
    chosen = (channel & inside)[..., None]
    return (values[..., None, :] * chosen).flatten(-2), (slopes[..., None, :] * chosen).flatten(-2)


def radial_geometry(splines: SplineSet, shell: Shell, n_channels: int) -> RadialGeometry:
    """Sums and slopes of the radial basis. Differentiable in the shell."""
    values, slopes = channel_basis(splines, shell, n_channels)
    return RadialGeometry(values.sum(dim=1), slopes)


def angular_geometry(splines: SplineSet, harmonics: Harmonics, shell: Shell, n_channels: int) -> AngularGeometry:
    """Moments, overlaps and pair arrays. Differentiable in the shell."""
    values, slopes = channel_basis(splines, shell, n_channels)
    targets = torch.cat([harmonics(shell.unit), values], dim=-1)
    products = values.transpose(1, 2) @ targets
    size = (harmonics.degree + 1) ** 2
    return AngularGeometry(
        moments=products[..., :size],
        overlaps=products[..., size:],
        basis=values,
        slopes=slopes,
        targets=targets,
    )


def angular_features(
    geometry: AngularGeometry, filters: Tensor, angles: Tensor, at_one: Tensor
) -> tuple[Tensor, Tensor]:
    """Features G3 [n, F] and the weighted moments `g A` [n, C F, (L+1)²] from which gradients follow.

    Arguments:
        filters: [C, F, E K] or, where they depend on the centre, [n, C, F, E K]; C = 1, or one per neighbour element.
        angles: [C, C, F, (L+1)²] Legendre coefficients of g repeated over m; at_one: [C, F], g(1) of equal elements.
    """
    n_channels, n_filters = filters.shape[-3], filters.shape[-2]
    flat = filters.flatten(-3, -2)
    a = flat @ geometry.moments
    if n_channels == 1:
        weighted = a * angles[0, 0]
    else:
        split = a.unflatten(1, (n_channels, n_filters))
        weighted = torch.einsum("cdbl,ndbl->ncbl", angles, split).flatten(1, 2)
    pairs = (a * weighted).sum(dim=-1)
    selves = ((flat @ geometry.overlaps) * flat).sum(dim=-1) * at_one.flatten()
    features = 0.5 * (pairs - selves).unflatten(1, (n_channels, n_filters)).sum(dim=1)
    return features, weighted


def moment_gradients(
    filters: Tensor, weighted: Tensor, at_one: Tensor, feature_gradient: Tensor
) -> tuple[Tensor, Tensor]:
    """W = dE/dM [n, E K, (L+1)²] and V = dE/dS [n, E K, E K] from dE/dG3 [n, F]; arguments as in `angular_features`."""
    flat = filters.flatten(-3, -2)
    h = feature_gradient.repeat(1, filters.shape[-3])
    moment = flat.transpose(-1, -2) @ (weighted * h[..., None])
    strength = -0.5 * h * at_one.flatten()
    if flat.dim() == 2:
        outer = flat[:, :, None] * flat[:, None, :]
        overlap = (strength @ outer.flatten(1)).unflatten(1, outer.shape[1:])
    else:
        overlap = (flat * strength[..., None]).transpose(1, 2) @ flat
    return moment, overlap


def angular_pair_gradients(
    geometry: AngularGeometry,
    shell: Shell,
    lowering: Tensor,
    moment_gradient: Tensor,
    overlap_gradient: Tensor,
) -> Tensor:
    """dE/dr_ij [N, J, 3] from W = dE/dM [N, E K, (L+1)²] and V = dE/dS [N, E K, E K] (symmetric).

    `lowering` [3, (L+1)², L²] are the gradients of the solid harmonics.
    """
    weights = torch.cat([moment_gradient, 2.0 * overlap_gradient], dim=-1)
    radial = ((geometry.slopes @ weights) * geometry.targets).sum(dim=-1)
    n_lower = lowering.shape[2]
    lowered = moment_gradient @ lowering.permute(1, 0, 2).reshape(lowering.shape[1], -1)
    tangent = (geometry.basis @ lowered).unflatten(-1, (3, n_lower))
    tangent = (tangent * geometry.targets[..., None, :n_lower]).sum(dim=-1)
    tangent = tangent / shell.distance[..., None]
    along = radial - (tangent * shell.unit).sum(dim=-1)
    return tangent + along[..., None] * shell.unit
