r"""The "spline" evaluator: three-body sums over pairs of neighbours, with every function exactly its cubic spline.

    G3_b(i) = 1/2 sum_{j != k} f_b(r_ij) f_b(r_ik) g_b(cos theta_jik)

costs O(J²) per atom. For the gradient, with h_b = dE/dG3_b and c = cos theta_jik,

    dE/dr_ij = u_j sum_b h_b f'_b(r_ij) sum_k f_b(r_ik) g_b(c)
             + 1 / r_ij sum_k (u_k - c u_j) sum_b h_b f_b(r_ij) f_b(r_ik) g'_b(c).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from snnp.models.shells import Shell
from snnp.splines import SplineSet

__all__ = ["Triples", "triple_features", "triple_pair_gradients"]


@dataclass(frozen=True)
class Triples:
    """Functions on the pairs and triples of N atoms.

    `f`, `f_slope` [N, J, F]; `g`, `g_slope` [N, J, J, F], zero for j = k and in padding; `cosine` [N, J, J].
    """

    f: Tensor
    f_slope: Tensor
    g: Tensor
    g_slope: Tensor
    cosine: Tensor


def make_triples(shell: Shell, functions: tuple[Tensor, Tensor], angle: SplineSet, n_elements: int) -> Triples:
    """Evaluate g on all pairs of neighbours; `functions` are f and f' [N, J, F] on the shell."""
    inside = shell.mask[..., None]
    f, f_slope = functions[0] * inside, functions[1] * inside
    cosine = (shell.unit @ shell.unit.transpose(1, 2)).clamp(-1.0, 1.0)
    n_columns = cosine.shape[-1]
    different = ~torch.eye(n_columns, dtype=torch.bool, device=cosine.device)
    valid = (different & shell.mask[:, :, None] & shell.mask[:, None, :])[..., None]
    group = None
    if len(angle.grids) > 1:
        a = torch.minimum(shell.channel[:, :, None], shell.channel[:, None, :])
        b = torch.maximum(shell.channel[:, :, None], shell.channel[:, None, :])
        # Unordered pairs are numbered row by row: (0,0), (0,1), ..., (1,1), ...
        group = a * n_elements - a * (a - 1) // 2 + (b - a)
    g, g_slope = angle(cosine, group)
    return Triples(f, f_slope, g * valid, g_slope * valid, cosine)


def triple_features(triples: Triples) -> tuple[Tensor, Tensor]:
    """Features [N, F] and the inner sums `sum_k f(r_ik) g(c)` [N, J, F]."""
    inner = (triples.g * triples.f[:, None, :, :]).sum(dim=2)
    return 0.5 * (triples.f * inner).sum(dim=1), inner


def triple_pair_gradients(shell: Shell, triples: Triples, inner: Tensor, feature_gradient: Tensor) -> Tensor:
    """dE/dr_ij [N, J, 3] from dE/dG3 [N, F]."""
    h = feature_gradient[:, None, :]
    radial = (h * triples.f_slope * inner).sum(dim=-1)
    left = h * triples.f
    weight = (triples.g_slope * left[:, :, None, :] * triples.f[:, None, :, :]).sum(dim=-1)
    turned = weight @ shell.unit - (weight * triples.cosine).sum(dim=-1, keepdim=True) * shell.unit
    return radial[..., None] * shell.unit + turned / shell.distance[..., None]
