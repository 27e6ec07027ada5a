r"""Layers of HIP-NN: sums over neighbours, on-site residual layers, and the gradients of both by hand.

Pairs lie in dense shells, so that sums over neighbours are batched matrix products. With sensitivities s_v, tensors A_c
of the unit vectors (1; u; the traceless u u) and features z,

    e_i,cbv = sum_j A_c(u_ij) z_j,b s_v(r_ij)        t_i,ca = sum_bv e_i,cbv W_bva

and backwards, with H = dE/de,

    dE/ds_v(r_ij) = sum_cb H_i,cbv A_c z_j,b         dE/d(A_c z_j,b) = sum_v H_i,cbv s_v(r_ij).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from snnp.harmonics import Harmonics
from snnp.models.gradients import Shell, activate
from snnp.models.hipnn.config import HIPNNConfig

__all__ = ["Block", "Interaction", "OnSite", "PairGeometry", "Residual", "Tensors", "dense"]

_FAR = 9.0  # exp(-81/2) is 3e-18: nothing beside 1. Farther out numbers become denormal, and exp ten times slower.


@dataclass(frozen=True)
class PairGeometry:
    """What the layers need of the pairs of n atoms; the neighbours J stand last, where the processor runs along them.

    `inverse` 1/r, `cut` and `cut_slope` [n, J]: the cosine that ends every sensitivity (zero in padding); `directions`
    [n, C, J]: the tensors A.
    """

    shell: Shell
    inverse: Tensor
    cut: Tensor
    cut_slope: Tensor
    directions: Tensor


class Tensors(Harmonics):
    """Tensors A of unit vectors as their independent components, so that squares of components add up to the norm.

    The spherical harmonics of `Harmonics` differ by a factor: (u u - 1/3)² = 2/3 P_2.
    """

    def __init__(self, l_max: int) -> None:
        super().__init__(l_max)
        factors = [(1.0, 1.0, math.sqrt(2.0 / 3.0))[n] for n in range(l_max + 1) for _ in range(2 * n + 1)]
        self.register_constant("factors", torch.tensor(factors, dtype=torch.float64))

    factors: Tensor

    def geometry(self, shell: Shell, cutoff: float) -> PairGeometry:
        """Functions of distances and directions that all layers share. Differentiable in the shell."""
        angle = (0.5 * math.pi / cutoff) * shell.distance
        cosine = torch.cos(angle) * shell.mask
        slope = (-math.pi / cutoff) * cosine * torch.sin(angle)
        directions = torch.ones_like(shell.distance)[:, None]
        if self.degree:
            directions = (self(shell.unit) * self.factors).transpose(1, 2).contiguous()
        return PairGeometry(shell, shell.distance.reciprocal(), cosine.square(), slope, directions)

    def pair_gradients(self, geometry: PairGeometry, slopes: Tensor, turns: Tensor | None) -> Tensor:
        """dE/dr_ij [n, J, 3] from dE/dr [n, J] and, above degree 0, dE/dA [n, C, J]."""
        unit = geometry.shell.unit
        if turns is None:
            return slopes[..., None] * unit
        n_lower = self.degree**2
        lowering = (self.lowering * self.factors[:, None]).transpose(1, 2).flatten(0, 1)
        # Solid harmonics of the lower degrees: A without its factors, which are 1 below degree 2.
        lowered = (lowering @ turns).unflatten(1, (3, n_lower)) * geometry.directions[:, None, :n_lower]
        tangent = (lowered.sum(dim=2) * geometry.inverse[:, None]).transpose(1, 2)
        return tangent + (slopes - (tangent * unit).sum(dim=-1))[..., None] * unit


def dense(n_in: int, n_out: int, *, bias: bool = True) -> nn.Linear:
    """A linear layer in float64."""
    return nn.Linear(n_in, n_out, bias=bias, dtype=torch.float64)


class Interaction(nn.Module):
    """Sum over neighbours: features [N, F_in] to pre-activations [n, F_out]."""

    def __init__(self, config: HIPNNConfig, n_in: int) -> None:
        super().__init__()
        n_out, n_radial = config.n_features, config.n_sensitivities
        self.l_max, self.cusp = config.l_max, config.cusp
        centres = torch.linspace(1.0 / config.upper, 1.0 / config.lower, n_radial, dtype=torch.float64).reciprocal()
        self.mu = nn.Parameter(centres)
        self.sigma = nn.Parameter(torch.full_like(centres, 2.0 * config.lower * n_radial))
        self.weights = nn.Parameter(torch.zeros(n_in, n_radial, n_out, dtype=torch.float64))
        self.own = dense(n_in, n_out)
        scales = torch.zeros(config.l_max, n_out, dtype=torch.float64)
        self.scales = nn.Parameter(scales) if config.l_max else None

    def _gaussians(self, geometry: PairGeometry) -> Tensor:
        """exp(-t²/2) [n, V, J] with t = (1/r - 1/mu) sigma."""
        t = (geometry.inverse[:, None] - self.mu.reciprocal()[:, None]) * self.sigma[:, None]
        return t.clamp(-_FAR, _FAR).square().mul_(-0.5).exp_()

    def _sources(self, features: Tensor, geometry: PairGeometry) -> tuple[Tensor, Tensor]:
        """Features of the neighbours [n, F, J], and times the tensors [n, C F, J]."""
        j = geometry.shell.j
        z = features.index_select(0, j.flatten()).unflatten(0, j.shape).transpose(1, 2)
        if self.l_max == 0:
            return z, z
        z = z.contiguous()
        return z, (geometry.directions[:, :, None] * z[:, None]).flatten(1, 2)

    def tensors(self, features: Tensor, geometry: PairGeometry) -> Tensor:
        """[n, C, F_out]: sums over neighbours of features [N, F_in], mixed by the weights; differentiable."""
        sensitivities = self._gaussians(geometry) * geometry.cut[:, None]
        _, sources = self._sources(features, geometry)
        environment = sources @ sensitivities.transpose(1, 2)
        n_in, n_radial, n_out = self.weights.shape
        mixed = environment.reshape(-1, n_in * n_radial) @ self.weights.reshape(n_in * n_radial, n_out)
        return mixed.unflatten(0, (-1, geometry.directions.shape[1]))

    def forward(self, tensors: Tensor, own: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """[n, F_out] from the sums [n, C, F_out] and the atoms' own features [n, F_in]; and from its gradient dE/dt."""
        total = tensors[:, 0] + self.own(own)
        scaled = []  # components of degree 1 and up, and their scale over their norm
        for degree, scale in enumerate(() if self.scales is None else self.scales, 1):
            part = tensors[:, degree**2 : (degree + 1) ** 2]
            norm = (part.square().sum(dim=1) + self.cusp).sqrt()
            total = total + scale * norm
            scaled.append((part, scale, norm))

        def back(gradient: Tensor) -> Tensor:
            turned = [part * (gradient * scale / norm)[:, None] for part, scale, norm in scaled]
            return torch.cat([gradient[:, None], *turned], dim=1)

        return total, back

    def backward_pairs(
        self, features: Tensor, geometry: PairGeometry, gradient: Tensor, *, to_features: bool
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Gradients of the pairs from dE/dt [n, C, F_out].

        They are dE/dr [n, J]; above degree 0 dE/dA [n, C, J]; `to_features`, dE/dz_j [n, J, F_in] of the neighbours.
        """
        n_in, n_radial, n_out = self.weights.shape
        n_atoms, n_components = gradient.shape[:2]
        back = gradient.reshape(-1, n_out) @ self.weights.reshape(-1, n_out).T
        back = back.reshape(n_atoms, n_components * n_in, n_radial)
        gaussians = self._gaussians(geometry)
        z, sources = self._sources(features, geometry)
        # The slope of a Gaussian is linear in 1/r, so that three weighted sums over v are enough.
        squares = self.sigma.square()
        weights = torch.stack([torch.ones_like(squares), squares, squares / self.mu])
        sums = weights @ (back.transpose(1, 2) @ sources).mul_(gaussians)
        along = geometry.inverse * sums[:, 1] - sums[:, 2]
        slopes = geometry.cut_slope * sums[:, 0] + geometry.cut * geometry.inverse.square() * along
        if not to_features and self.l_max == 0:
            return slopes, None, None
        sensitivities = gaussians.mul_(geometry.cut[:, None])
        if self.l_max == 0:
            return slopes, None, sensitivities.transpose(1, 2) @ back.transpose(1, 2)
        to_sources = (back @ sensitivities).unflatten(1, (n_components, n_in))
        turns = (to_sources * z[:, None]).sum(dim=2)
        if not to_features:
            return slopes, turns, None
        return slopes, turns, (to_sources * geometry.directions[:, :, None]).sum(dim=1).transpose(1, 2)


class Residual(nn.Module):
    """`z' = R f(x) + A z` after each pre-activation x; A is the identity where the widths of z and z' agree."""

    def __init__(self, activation: str, n_in: int, n_out: int) -> None:
        super().__init__()
        self.activation = activation
        self.linear = dense(n_out, n_out)
        self.adjust = dense(n_in, n_out, bias=False) if n_in != n_out else None

    def forward(self, x: Tensor, z: Tensor) -> tuple[Tensor, Callable[[Tensor], tuple[Tensor, Tensor]]]:
        """New features [n, F_out]; and from dE/dz' dE/dx and, through the shortcut alone, dE/dz."""
        value, slope = activate(self.activation, x)

        def back(gradient: Tensor) -> tuple[Tensor, Tensor]:
            shortcut = gradient if self.adjust is None else gradient @ self.adjust.weight
            return (gradient @ self.linear.weight) * slope, shortcut

        return self.linear(value) + (z if self.adjust is None else self.adjust(z)), back


class OnSite(nn.Module):
    """An on-site layer, `z' = R f(W z + b) + z`."""

    def __init__(self, activation: str, n_features: int) -> None:
        super().__init__()
        self.linear = dense(n_features, n_features)
        self.residual = Residual(activation, n_features, n_features)

    def forward(self, z: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """New features, and from their gradient that of z."""
        after, residual_back = self.residual(self.linear(z), z)

        def back(gradient: Tensor) -> Tensor:
            to_x, to_z = residual_back(gradient)
            return to_z + to_x @ self.linear.weight

        return after, back


class Block(nn.Module):
    """An interaction layer and the on-site layers after it."""

    def __init__(self, config: HIPNNConfig, n_in: int) -> None:
        super().__init__()
        n_out = config.n_features
        self.interaction = Interaction(config, n_in)
        self.residual = Residual(config.activation, n_in, n_out)
        self.layers = nn.ModuleList(OnSite(config.activation, n_out) for _ in range(config.n_atom_layers))

    @property
    def onsite(self) -> list[OnSite]:
        return [layer for layer in self.layers if isinstance(layer, OnSite)]

    def forward(self, tensors: Tensor, own: Tensor) -> tuple[Tensor, Callable[[Tensor], tuple[Tensor, Tensor]]]:
        """New features [n, F_out] from sums [n, C, F_out] and own features [n, F_in].

        Also the way back: from the gradient of the new features dE/dt [n, C, F_out] and dE/d(own features) [n, F_in].
        """
        x, interaction_back = self.interaction(tensors, own)
        z, residual_back = self.residual(x, own)
        backs = []
        for layer in self.layers:
            z, layer_back = layer(z)
            backs.append(layer_back)

        def back(gradient: Tensor) -> tuple[Tensor, Tensor]:
            for layer_back in reversed(backs):
                gradient = layer_back(gradient)
            to_x, to_own = residual_back(gradient)
            return interaction_back(to_x), to_own + to_x @ self.interaction.own.weight

        return z, back

    @torch.no_grad()
    def reset(self, generator: torch.Generator) -> None:
        """Draw weights as hippynn does: variance 2 / (fan-in + fan-out), or uniform within 1 / sqrt(fan-in)."""
        weights, scales = self.interaction.weights, self.interaction.scales
        n_in, n_radial, n_out = weights.shape
        weights.normal_(0.0, math.sqrt(2.0 / (n_in * (n_out + n_radial))), generator=generator)
        if scales is not None:
            scales.normal_(0.0, 1.0, generator=generator)
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                bound = layer.in_features**-0.5
                layer.weight.uniform_(-bound, bound, generator=generator)
                if layer.bias is not None:
                    layer.bias.uniform_(-bound, bound, generator=generator)
        for layer in (self.interaction.own, *(onsite.linear for onsite in self.onsite)):
            layer.weight.normal_(0.0, math.sqrt(2.0 / (layer.in_features + layer.out_features)), generator=generator)
