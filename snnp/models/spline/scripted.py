"""The s-NNP in the part of Python that TorchScript compiles, with analytic gradients.

The readout and splines compile themselves; formulas of the three-body terms are those of `three_body.py`.
"""
# No `from __future__ import annotations` here: TorchScript needs the annotations themselves.

import copy

import torch
from torch import Tensor, nn

from snnp.models.gradients import Shell, make_shell
from snnp.models.scripted import Pairs, ScriptedPotential
from snnp.models.spline.model import SplineNNP
from snnp.splines import SplineSet

__all__ = ["ScriptedSplineNNP"]


def _free(splines: SplineSet) -> SplineSet:
    """A copy whose end conditions are worked in."""
    free = SplineSet(list(splines.grids), splines.n_filters).to(splines.free)
    free.free.data = splines.coefficients().detach().clone()
    return free


class _Triples(nn.Module):
    """Three-body features with exact splines; see `three_body.py`."""

    group_of: Tensor

    def __init__(self, model: SplineNNP) -> None:
        super().__init__()
        self.g = _free(model.g)
        self.register_buffer("group_of", model.unordered.clone())

    def features(self, f: Tensor, pairs: Shell) -> tuple[Tensor, list[Tensor]]:
        """G3 [n, F], and what the gradient needs besides: f [n, J, F] is zero in padding."""
        cosine = (pairs.unit @ pairs.unit.transpose(1, 2)).clamp(-1.0, 1.0)
        group = pairs.channel
        if self.g.n_groups > 1:
            group = self.group_of[pairs.channel[:, :, None], pairs.channel[:, None, :]]
        g, slope = self.g(cosine, group)
        others = (1.0 - torch.eye(cosine.shape[-1], dtype=g.dtype, device=g.device))[None, :, :, None]
        g, slope = g * others, slope * others
        inner = (g * f[:, None, :, :]).sum(dim=2)
        return 0.5 * (f * inner).sum(dim=1), [inner, slope, cosine]

    def gradients(self, h: Tensor, f: Tensor, f_slope: Tensor, state: list[Tensor], pairs: Shell) -> Tensor:
        """dE/dr_ij [n, J, 3] from h = dE/dG3 [n, F]."""
        inner, slope, cosine = state[0], state[1], state[2]
        h = h[:, None, :]
        radial = (h * f_slope * inner).sum(dim=-1)
        weight = (slope * (h * f)[:, :, None, :] * f[:, None, :, :]).sum(dim=-1)
        turned = weight @ pairs.unit - (weight * cosine).sum(dim=-1, keepdim=True) * pairs.unit
        return radial.unsqueeze(-1) * pairs.unit + turned / pairs.distance.unsqueeze(-1)


class _Moments(nn.Module):
    """Three-body features through moments of the neighbour density; see `three_body.py`."""

    angles: Tensor
    at_one: Tensor
    lowering: Tensor

    def __init__(self, model: SplineNNP) -> None:
        super().__init__()
        angles, at_one = model.angle_coefficients()
        self.register_buffer("angles", angles.detach().clone())
        self.register_buffer("at_one", at_one.detach().flatten().clone())
        self.n_channels, self.n_filters = angles.shape[1:3]
        harmonics = model.harmonics
        self.n_lower = harmonics.lowering.shape[2]
        self.register_buffer("lowering", harmonics.lowering.permute(1, 0, 2).flatten(1).clone())
        self.harmonics = copy.deepcopy(harmonics)

    def by_channel(self, f: Tensor, pairs: Shell) -> Tensor:
        """[n, J, C F]: zero except in the channel of the neighbour."""
        if self.n_channels == 1:
            return f
        own = torch.arange(self.n_channels, device=f.device) == pairs.channel.unsqueeze(-1)
        return (own.to(f.dtype).unsqueeze(-1) * f.unsqueeze(-2)).flatten(-2)

    def features(self, f: Tensor, pairs: Shell) -> tuple[Tensor, list[Tensor]]:
        """G3 [n, F], and what the gradient needs besides: f [n, J, F] is zero in padding."""
        f = self.by_channel(f, pairs)
        y = self.harmonics(pairs.unit)
        a = f.transpose(1, 2) @ y
        if self.n_channels == 1:
            weighted = a * self.angles[0, 0]
        else:
            split = a.reshape(-1, self.n_channels, self.n_filters, y.shape[-1])
            weighted = torch.einsum("cdbl,ndbl->ncbl", self.angles, split).flatten(1, 2)
        each = 0.5 * ((a * weighted).sum(dim=-1) - (f * f).sum(dim=1) * self.at_one)
        return each.reshape(-1, self.n_channels, self.n_filters).sum(dim=1), [f, y, weighted]

    def gradients(self, h: Tensor, f: Tensor, f_slope: Tensor, state: list[Tensor], pairs: Shell) -> Tensor:
        """dE/dr_ij [n, J, 3] from h = dE/dG3 [n, F]."""
        f, y, weighted = state[0], state[1], state[2]
        h = h.repeat(1, self.n_channels)
        weighted = weighted * h.unsqueeze(-1)
        left = y @ weighted.transpose(1, 2) - f * (h * self.at_one).unsqueeze(1)
        radial = (left * self.by_channel(f_slope, pairs)).sum(dim=-1)
        tangent = (f @ (weighted @ self.lowering)).reshape(f.shape[0], f.shape[1], 3, self.n_lower)
        tangent = (tangent * y[:, :, None, : self.n_lower]).sum(dim=-1) / pairs.distance.unsqueeze(-1)
        along = radial - (tangent * pairs.unit).sum(dim=-1)
        return tangent + along.unsqueeze(-1) * pairs.unit


class ScriptedSplineNNP(ScriptedPotential):
    """The twin of an `SplineNNP`."""

    group_of: Tensor
    pair_of: Tensor

    def __init__(self, model: SplineNNP, forces: bool) -> None:
        config = model.config
        legendre = config.angular.evaluator == "legendre"
        super().__init__(model, forces, (256, 4096 if legendre else 512))
        self.n_radial = config.radial.n_filters
        self.angular_cutoff = config.angular_cutoff if config.ends == "smooth" else model.cutoff
        self.register_buffer("group_of", model.radial_group.clone())
        self.register_buffer("pair_of", model.unordered.clone())
        self.rho, self.f = _free(model.rho), _free(model.f)
        self.phi = None if model.phi is None else _free(model.phi)
        self.angular = (_Moments if legendre else _Triples)(model) if model.has_three_body else None
        self.readout = copy.deepcopy(model.readout)

    def evaluate(self, pairs: Pairs, species: Tensor, centre: Tensor) -> tuple[Tensor, Tensor]:
        far, kept = make_shell(pairs, species, centre, self.cutoff)
        near, kept_near = far, kept
        if self.angular is not None and self.angular_cutoff < self.cutoff:
            near, kept_near = make_shell(pairs, species, centre, self.angular_cutoff)
        energies, radial, angular = self.of_shells(far, near, species[centre])
        gradients = torch.zeros_like(pairs[2])
        if self.forces:
            gradients = gradients.index_copy(0, kept, radial[far.mask])
            if self.angular is not None:
                gradients = gradients.index_add(0, kept_near, angular[near.mask])
        return energies, gradients

    def of_shells(self, far: Shell, near: Shell, own: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Energies [n] of atoms of species `own` [n], and gradients [n, J, 3] on the radial and the angular shell."""
        group, inside = self.group_of[own[:, None], far.channel], far.mask.unsqueeze(-1)
        value, slope = self.rho(far.distance, group)
        features = [(value * inside).sum(dim=1)]
        f, f_slope, state = value, slope, [value]
        if self.angular is not None:
            f, f_slope = self.f(near.distance, self.group_of[own[:, None], near.channel])
            f, f_slope = f * near.mask.unsqueeze(-1), f_slope * near.mask.unsqueeze(-1)
            three_body, state = self.angular.features(f, near)
            features.append(three_body)
        energies, h = self.readout(torch.cat(features, dim=1), own)
        radial = (slope * inside * h[:, None, : self.n_radial]).sum(dim=-1)
        if self.phi is not None:
            value, slope = self.phi(far.distance, self.pair_of[own[:, None], far.channel])
            energies = energies + 0.5 * (value * inside).sum(dim=2).sum(dim=1)
            radial = radial + 0.5 * (slope * inside)[..., 0]
        radial = radial.unsqueeze(-1) * far.unit
        if self.forces and self.angular is not None:
            return energies, radial, self.angular.gradients(h[:, self.n_radial :], f, f_slope, state, near)
        return energies, radial, torch.zeros_like(near.unit)
