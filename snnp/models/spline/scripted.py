"""The s-NNP in the part of Python that TorchScript compiles, with analytic gradients.

Formulas are those of `three_body.py` and `readout.py`.
"""
# No `from __future__ import annotations` here: TorchScript needs the annotations themselves.

import torch
from torch import Tensor, nn

from snnp.models.gradients import activate
from snnp.models.scripted import DensePairs, ScriptedHarmonics, ScriptedPotential, constants, make_dense
from snnp.models.spline.model import SplineNNP
from snnp.models.spline.readout import Network, Readout
from snnp.splines import SplineSet, bspline_weights

__all__ = ["ScriptedSplineNNP"]


class _Splines(nn.Module):
    """A `SplineSet` with its end conditions worked in: values and slopes [..., F] at x [...] of group [...]."""

    table: Tensor
    lower: Tensor
    spacing: Tensor
    n_intervals: Tensor

    def __init__(self, splines: SplineSet) -> None:
        super().__init__()
        coefficients = splines.coefficients().detach()
        self.n_groups, self.n_filters, self.length = coefficients.shape
        self.register_buffer("table", coefficients.transpose(1, 2).flatten(0, 1).clone())
        self.register_buffer("lower", splines.lower.clone())
        self.register_buffer("spacing", splines.spacing.clone())
        self.register_buffer("n_intervals", splines.n_intervals.clone())

    def forward(self, x: Tensor, group: Tensor) -> tuple[Tensor, Tensor]:
        if self.n_groups == 1:
            # A dense product is several times faster than gathering coefficients.
            first, weights, slopes = bspline_weights(x, self.lower[0], self.spacing[:1], self.n_intervals[0])
            columns = first.unsqueeze(-1) + torch.arange(4, device=x.device)
            shape = list(x.shape)
            shape.append(self.length)
            zeros = torch.zeros(shape, dtype=x.dtype, device=x.device)
            return zeros.scatter(-1, columns, weights) @ self.table, zeros.scatter(-1, columns, slopes) @ self.table
        first, weights, slopes = bspline_weights(x, self.lower[group], self.spacing[group], self.n_intervals[group])
        rows = (group * self.length + first).unsqueeze(-1) + torch.arange(4, device=x.device)
        local = self.table[rows]
        return (weights.unsqueeze(-1) * local).sum(dim=-2), (slopes.unsqueeze(-1) * local).sum(dim=-2)


class _Network(nn.Module):
    """`Network` with its constraints worked in: weights [C, out, in] and biases [C, out]."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.n_copies, self.activation = network.biases[0].shape[0], network.config.activation
        self.weights, self.biases = constants(network.effective_weights()), constants(network.biases)

    def one(self, x: Tensor, element: int) -> tuple[Tensor, Tensor]:
        """Energies [n] and gradients [n, D] for atoms of one element."""
        weights: list[Tensor] = []
        slopes: list[Tensor] = []
        for weight, bias in zip(self.weights, self.biases):  # noqa: B905  TorchScript knows no strict
            if len(weights) > 0:
                x, slope = activate(self.activation, x)
                slopes.append(slope)
            weights.append(weight[element])
            x = torch.addmm(bias[element], x, weights[-1].T)
        gradient = torch.ones_like(x)
        for k in range(len(slopes) - 1, -1, -1):
            gradient = (gradient @ weights[k + 1]) * slopes[k]
        return x[:, 0], gradient @ weights[0]

    def forward(self, x: Tensor, species: Tensor) -> tuple[Tensor, Tensor]:
        if self.n_copies == 1:
            return self.one(x, 0)
        energy, gradient = torch.zeros_like(x[:, 0]), torch.zeros_like(x)
        for element in range(self.n_copies):
            mine = (species == element).nonzero()[:, 0]
            if mine.shape[0] > 0:
                e, g = self.one(x[mine], element)
                energy, gradient = energy.index_copy(0, mine, e), gradient.index_copy(0, mine, g)
        return energy, gradient


class _Readout(nn.Module):
    """`Readout`: features [n, D] and species [n] to energies [n] and gradients [n, D]."""

    mean: Tensor
    std: Tensor
    linear: Tensor

    def __init__(self, readout: Readout) -> None:
        super().__init__()
        self.sums_features = readout.sums_features
        self.register_buffer("mean", readout.mean.clone())
        self.register_buffer("std", readout.std.clone())
        none = readout.mean.new_zeros(readout.n_elements, readout.mean.shape[0])
        self.register_buffer("linear", none if readout.linear is None else readout.linear.detach().clone())
        self.network = None if readout.network is None else _Network(readout.network)
        self.embedding = None if readout.embedding is None else _Splines(readout.embedding)

    def forward(self, features: Tensor, species: Tensor) -> tuple[Tensor, Tensor]:
        x, gradient = (features - self.mean) / self.std, self.linear[species]
        energy = (gradient * x).sum(dim=1)
        if self.network is not None:
            more, slope = self.network(x, species)
            energy, gradient = energy + more, gradient + slope
        gradient = gradient / self.std
        if self.embedding is not None:
            if self.sums_features:
                value, slope = self.embedding(features.sum(dim=1), species)
                energy, gradient = energy + value[:, 0], gradient + slope
            else:
                value, slope = self.embedding(features, species[:, None].expand_as(features))
                energy = energy + value.diagonal(dim1=1, dim2=2).sum(dim=1)
                gradient = gradient + slope.diagonal(dim1=1, dim2=2)
        return energy, gradient


class _Triples(nn.Module):
    """Three-body features with exact splines; see `triples.py`."""

    group_of: Tensor

    def __init__(self, model: SplineNNP) -> None:
        super().__init__()
        self.g = _Splines(model.g)
        self.register_buffer("group_of", model.unordered.clone())

    def features(self, f: Tensor, pairs: DensePairs) -> tuple[Tensor, list[Tensor]]:
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

    def gradients(self, h: Tensor, f: Tensor, f_slope: Tensor, state: list[Tensor], pairs: DensePairs) -> Tensor:
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
        self.harmonics = ScriptedHarmonics(harmonics)

    def by_channel(self, f: Tensor, pairs: DensePairs) -> Tensor:
        """[n, J, C F]: zero except in the channel of the neighbour."""
        if self.n_channels == 1:
            return f
        own = torch.arange(self.n_channels, device=f.device) == pairs.channel.unsqueeze(-1)
        return (own.to(f.dtype).unsqueeze(-1) * f.unsqueeze(-2)).flatten(-2)

    def features(self, f: Tensor, pairs: DensePairs) -> tuple[Tensor, list[Tensor]]:
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

    def gradients(self, h: Tensor, f: Tensor, f_slope: Tensor, state: list[Tensor], pairs: DensePairs) -> Tensor:
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
        config, z = model.config, model.config.n_elements
        legendre = config.angular.evaluator == "legendre"
        super().__init__(model, forces, (256, 4096 if legendre else 512))
        self.n_radial = config.radial.n_filters
        self.angular_cutoff = config.angular_cutoff if config.ends == "smooth" else model.cutoff
        centre, neighbour = torch.meshgrid(torch.arange(z), torch.arange(z), indexing="ij")
        groups = {"shared": 0 * centre, "element": neighbour, "pair": centre * z + neighbour}
        self.register_buffer("group_of", groups[config.filters].to(model.device))
        self.register_buffer("pair_of", model.unordered.clone())
        self.rho, self.f = _Splines(model.rho), _Splines(model.f)
        self.phi = None if model.phi is None else _Splines(model.phi)
        self.angular = (_Moments if legendre else _Triples)(model) if model.has_three_body else None
        self.readout = _Readout(model.readout)

    def evaluate(
        self, row: Tensor, j: Tensor, channel: Tensor, vectors: Tensor, species: Tensor
    ) -> tuple[Tensor, Tensor]:
        """As in `ScriptedPotential`."""
        pairs = make_dense(row, channel, vectors, species, self.cutoff)
        group, inside = self.group_of[species[:, None], pairs.channel], pairs.mask.unsqueeze(-1)
        value, slope = self.rho(pairs.distance, group)
        features = [(value * inside).sum(dim=1)]
        near, f, f_slope, state = pairs, value, slope, [value]
        if self.angular is not None:
            if self.angular_cutoff < self.cutoff:
                near = make_dense(row, channel, vectors, species, self.angular_cutoff)
                group = self.group_of[species[:, None], near.channel]
            f, f_slope = self.f(near.distance, group)
            f, f_slope = f * near.mask.unsqueeze(-1), f_slope * near.mask.unsqueeze(-1)
            three_body, state = self.angular.features(f, near)
            features.append(three_body)
        energies, h = self.readout(torch.cat(features, dim=1), species)
        radial = (slope * inside * h[:, None, : self.n_radial]).sum(dim=-1)
        if self.phi is not None:
            value, slope = self.phi(pairs.distance, self.pair_of[species[:, None], pairs.channel])
            energies = energies + 0.5 * (value * inside).sum(dim=2).sum(dim=1)
            radial = radial + 0.5 * (slope * inside)[..., 0]
        gradients = torch.zeros_like(vectors)
        if self.forces:
            dense = radial.unsqueeze(-1) * pairs.unit
            gradients = gradients.index_copy(0, pairs.kept, dense[pairs.row, pairs.column])
            if self.angular is not None:
                dense = self.angular.gradients(h[:, self.n_radial :], f, f_slope, state, near)
                gradients = gradients.index_add(0, near.kept, dense[near.row, near.column])
        return energies, gradients
