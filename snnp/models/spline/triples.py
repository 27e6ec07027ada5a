r"""The "spline" evaluator: three-body sums over pairs of neighbours, with every function exactly its cubic spline.

    G3_b(i) = 1/2 sum_{j != k} f_b(r_ij) f_b(r_ik) g_b(cos theta_jik)

costs O(J²) per atom. For the gradient, with h_b = dE/dG3_b and c = cos theta_jik,

    dE/dr_ij = u_j sum_b h_b f'_b(r_ij) sum_k f_b(r_ik) g_b(c)
             + 1 / r_ij sum_k (u_k - c u_j) sum_b h_b f_b(r_ij) f_b(r_ik) g'_b(c).

Training evaluates one geometry many times. Then the parameters' part is taken out of the sums: with the functions B_p
and C_q that the parameters of f and g multiply,

    X_j,qp = sum_k C_q(c) B_p(r_ik),   Y_j,qp = 1 / r_ij sum_k (u_k - c u_j) C'_q(c) B_p(r_ik),   S = sum_j B(r_ij) X_j

are computed once per structure (`triple_geometry`), and every evaluation is a few small matrix products with them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from snnp.models.shells import Shell
from snnp.models.spline.moments import channel_basis
from snnp.splines import SplineSet

__all__ = [
    "TripleGeometry",
    "Triples",
    "make_triples",
    "triple_features",
    "triple_geometry",
    "triple_pair_gradients",
    "triple_sum_features",
    "triple_sum_pair_gradients",
]


@dataclass(frozen=True)
class Triples:
    """Functions on the pairs of N atoms and on their T = J (J - 1) / 2 unordered pairs of neighbours.

    `first`, `second` [T]: columns j < k of the shell. `f`, `f_slope` [N, J, F], zero in padding; `products` f_j f_k,
    `g`, `g_slope` [N, T, F]; `cosine` [N, T].
    """

    first: Tensor
    second: Tensor
    f: Tensor
    f_slope: Tensor
    products: Tensor
    g: Tensor
    g_slope: Tensor
    cosine: Tensor


def make_triples(shell: Shell, functions: tuple[Tensor, Tensor], angle: SplineSet, n_elements: int) -> Triples:
    """Evaluate g on all pairs of neighbours; `functions` are f and f' [N, J, F] on the shell."""
    inside = shell.mask[..., None]
    f, f_slope = functions[0] * inside, functions[1] * inside
    n_columns = f.shape[1]
    first, second = torch.triu_indices(n_columns, n_columns, 1, device=f.device)
    cosine = (shell.unit @ shell.unit.transpose(1, 2))[:, first, second].clamp(-1.0, 1.0)
    group = None
    if len(angle.grids) > 1:
        a = torch.minimum(shell.channel[:, first], shell.channel[:, second])
        b = torch.maximum(shell.channel[:, first], shell.channel[:, second])
        # Unordered pairs are numbered row by row: (0,0), (0,1), ..., (1,1), ...
        group = a * n_elements - a * (a - 1) // 2 + (b - a)
    g, g_slope = angle(cosine, group)
    return Triples(first, second, f, f_slope, f.index_select(1, first) * f.index_select(1, second), g, g_slope, cosine)


def triple_features(triples: Triples) -> Tensor:
    """Features [N, F]."""
    return (triples.products * triples.g).sum(dim=1)


def triple_pair_gradients(shell: Shell, triples: Triples, feature_gradient: Tensor) -> Tensor:
    """dE/dr_ij [N, J, 3] from dE/dG3 [N, F]."""
    first, second, f = triples.first, triples.second, triples.f
    inner = torch.zeros_like(f).index_add(1, first, triples.g * f.index_select(1, second))
    inner = inner.index_add(1, second, triples.g * f.index_select(1, first))
    radial = ((triples.f_slope * inner) @ feature_gradient[..., None])[..., 0]
    weight = ((triples.products * triples.g_slope) @ feature_gradient[..., None])[..., 0]
    square = torch.zeros_like(shell.unit @ shell.unit.transpose(1, 2))
    square[:, first, second] = weight
    square = square + square.transpose(1, 2)
    along = torch.zeros_like(radial).index_add(1, first, weight * triples.cosine)
    along = along.index_add(1, second, weight * triples.cosine)
    turned = square @ shell.unit - along[..., None] * shell.unit
    return radial[..., None] * shell.unit + turned / shell.distance[..., None]


@dataclass(frozen=True)
class TripleGeometry:
    """What three-body filters need of N atoms, free of parameters; P = E K functions of f, Q functions of g.

    `sums` S [N, P, Q P], and per pair `basis` B and `slopes` B' [N, J, P], `along` X [N, J, Q P], `turned` Y
    [N, J, 3, Q P].
    """

    sums: Tensor
    basis: Tensor
    slopes: Tensor
    along: Tensor
    turned: Tensor


def triple_geometry(splines: SplineSet, angle: SplineSet, shell: Shell, n_channels: int) -> TripleGeometry:
    """Sums over pairs of neighbours, for one g per filter whatever the elements."""
    basis, slopes = channel_basis(splines, shell, n_channels)
    cosine = (shell.unit @ shell.unit.transpose(1, 2)).clamp(-1.0, 1.0)
    values, derivatives = angle.basis(cosine)
    # The basis vanishes in padding; only j = k is left to take out.
    different = ~torch.eye(cosine.shape[-1], dtype=torch.bool, device=cosine.device)[..., None]
    others = basis[:, None]

    def summed(over_triples: Tensor) -> Tensor:
        return ((over_triples * different).transpose(2, 3) @ others).flatten(2)

    directions = shell.unit[:, None] - cosine[..., None] * shell.unit[:, :, None]
    directions = directions / shell.distance[:, :, None, None]
    along = summed(values)
    turned = torch.stack([summed(derivatives * directions[..., axis, None]) for axis in range(3)], dim=2)
    return TripleGeometry(basis.transpose(1, 2) @ along, basis, slopes, along, turned)


def triple_sum_features(geometry: TripleGeometry, filters: Tensor, angles: Tensor) -> tuple[Tensor, Tensor]:
    """Features G3 [n, F] and the products of coefficients [F, Q P] or [n, F, Q P] from which gradients follow.

    Arguments:
        filters: coefficients of f, [F, P] or, where they depend on the centre, [n, F, P]; angles: of g, [F, Q].
    """
    products = (angles[:, :, None] * filters[..., None, :]).flatten(-2)
    inner = geometry.sums @ products.transpose(-1, -2)
    return 0.5 * (filters.transpose(-1, -2) * inner).sum(dim=-2), products


def triple_sum_pair_gradients(
    geometry: TripleGeometry, shell: Shell, filters: Tensor, products: Tensor, feature_gradient: Tensor
) -> Tensor:
    """dE/dr_ij [n, J, 3] from dE/dG3 [n, F]; other arguments as in and from `triple_sum_features`."""
    weights = filters.transpose(-1, -2) @ (feature_gradient[..., None] * products)
    radial = ((geometry.slopes @ weights) * geometry.along).sum(dim=-1, keepdim=True)
    turned = geometry.turned @ (geometry.basis @ weights)[..., None]
    return radial * shell.unit + turned[..., 0]
