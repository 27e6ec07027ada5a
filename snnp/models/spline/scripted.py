"""The s-NNP in the part of Python that TorchScript compiles: plain tensors, analytic forces, free of snnp when loaded.

Everything that the parameters fix is worked out once, at construction: end conditions, constraints, Legendre
coefficients. Formulas are those of `triples.py`, `moments.py` and `readout.py`; tests hold both equal.
"""
# No `from __future__ import annotations` here: TorchScript needs the annotations themselves.

from typing import NamedTuple

import torch
from torch import Tensor, nn

from snnp.models.spline.model import SplineNNP
from snnp.models.spline.readout import Network, Readout, activate
from snnp.splines import SplineSet, bspline_weights

__all__ = ["DensePairs", "ScriptedInChunks", "ScriptedSplineNNP", "make_dense"]


class DensePairs(NamedTuple):
    """Pairs of n atoms as padded rows: `row`, `column` [Q] say where the pairs `kept` (of P) are; see `Shell`."""

    kept: Tensor
    row: Tensor
    column: Tensor
    channel: Tensor
    distance: Tensor
    unit: Tensor
    mask: Tensor


def make_dense(row: Tensor, channel: Tensor, vectors: Tensor, species: Tensor, cutoff: float) -> DensePairs:
    """Rows of the pairs closer than `cutoff`; `row` [P] ascending, `channel` [P], `vectors` [P, 3], `species` [n]."""
    kept = (vectors.detach().square().sum(dim=1) < cutoff * cutoff).nonzero()[:, 0]
    row, channel, vectors = row[kept], channel[kept], vectors[kept]
    n_rows = species.shape[0]
    counts = torch.bincount(row, minlength=n_rows)
    n_columns = max(int(counts.max()), 1) if n_rows > 0 else 1
    column = torch.arange(row.shape[0], device=row.device) - (counts.cumsum(0) - counts)[row]
    padding = torch.zeros([n_rows, n_columns, 3], dtype=vectors.dtype, device=vectors.device)
    padding[:, :, 0] = 2.0 * cutoff
    dense = padding.index_put([row, column], vectors)
    channels = species[:, None].repeat(1, n_columns).index_put([row, column], channel)
    mask = torch.zeros([n_rows, n_columns], dtype=vectors.dtype, device=vectors.device)
    mask = mask.index_put([row, column], torch.ones_like(vectors[:, 0]))
    distance = torch.linalg.vector_norm(dense, dim=-1)
    return DensePairs(kept, row, column, channels, distance, dense / distance.unsqueeze(-1), mask)


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


class _Matrix(nn.Module):
    """A constant, where TorchScript wants a module to iterate over."""

    value: Tensor

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.register_buffer("value", value.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.value


class _Layer(nn.Module):
    """Weights [C, out, in] and biases [C, out] of one layer of `Network`."""

    weight: Tensor
    bias: Tensor

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight.detach().clone())
        self.register_buffer("bias", bias.detach().clone())

    def forward(self, x: Tensor, element: int) -> tuple[Tensor, Tensor]:
        weight = self.weight[element]
        return torch.addmm(self.bias[element], x, weight.T), weight


class _Network(nn.Module):
    """`Network` with its constraints worked in; `n_copies` 0 stands for no network."""

    def __init__(self, network: Network | None) -> None:
        super().__init__()
        self.n_copies = 0 if network is None else network.biases[0].shape[0]
        self.activation = "none" if network is None else network.config.activation
        pairs = [] if network is None else zip(network.effective_weights(), network.biases, strict=True)
        self.layers = nn.ModuleList(_Layer(weight, bias) for weight, bias in pairs)

    def one(self, x: Tensor, element: int) -> tuple[Tensor, Tensor]:
        """Energies [n] and gradients [n, D] for atoms of one element."""
        weights: list[Tensor] = []
        slopes: list[Tensor] = []
        hidden = x
        for layer in self.layers:
            hidden, weight = layer(hidden, element)
            weights.append(weight)
            slopes.append(torch.ones_like(hidden))
            if len(weights) < len(self.layers):
                hidden, slopes[-1] = activate(self.activation, hidden)
        gradient = slopes[-1]
        for k in range(len(weights) - 1, 0, -1):
            gradient = (gradient @ weights[k]) * slopes[k - 1]
        return hidden[:, 0], gradient @ weights[0]

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

    def __init__(self, readout: Readout, splines: _Splines | None) -> None:
        super().__init__()
        self.has_network, self.has_linear = readout.network is not None, readout.linear is not None
        self.sums_features = readout.sums_features
        self.register_buffer("mean", readout.mean.clone())
        self.register_buffer("std", readout.std.clone())
        linear = torch.zeros(0, 0) if readout.linear is None else readout.linear.detach().clone()
        self.register_buffer("linear", linear)
        self.network = _Network(readout.network)
        self.embedding = splines

    def forward(self, features: Tensor, species: Tensor) -> tuple[Tensor, Tensor]:
        x = (features - self.mean) / self.std
        energy, gradient = torch.zeros_like(x[:, 0]), torch.zeros_like(x)
        if self.has_network:
            energy, gradient = self.network(x, species)
        if self.has_linear:
            rows = self.linear[species]
            energy, gradient = energy + (rows * x).sum(dim=1), gradient + rows
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
    """Three-body features through moments of the neighbour density; see `moments.py`."""

    angles: Tensor
    at_one: Tensor
    lowering: Tensor

    def __init__(self, model: SplineNNP) -> None:
        super().__init__()
        angles, at_one = (each.detach().clone() for each in model.angle_coefficients())
        self.register_buffer("angles", angles)
        self.register_buffer("at_one", at_one.flatten())
        self.n_channels, self.n_filters = angles.shape[1:3]
        harmonics = model.harmonics
        self.n_lower = harmonics.lowering.shape[2]
        self.register_buffer("lowering", harmonics.lowering.permute(1, 0, 2).flatten(1).clone())
        steps = range(1, harmonics.degree + 1)
        self.raising = nn.ModuleList(_Matrix(harmonics.get_buffer(f"raising_{n}")) for n in steps)

    def harmonics(self, unit: Tensor) -> Tensor:
        """[n, J, (L+1)²]; see `Harmonics`."""
        current = torch.ones_like(unit[..., :1])
        columns = [current]
        for raising in self.raising:
            current = raising((current.unsqueeze(-1) * unit.unsqueeze(-2)).flatten(-2))
            columns.append(current)
        return torch.cat(columns, dim=-1)

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


class ScriptedSplineNNP(nn.Module):
    """Energies and pair gradients of an `SplineNNP` without its repulsion, ready for `torch.jit.script`.

    Arguments:
        model: where the parameters come from (copied). forces: whether gradients are computed.
    """

    group_of: Tensor
    pair_of: Tensor
    reference: Tensor

    def __init__(self, model: SplineNNP, forces: bool) -> None:
        super().__init__()
        config, z = model.config, model.config.n_elements
        self.forces, self.cutoff, self.n_radial = forces, model.cutoff, config.radial.n_filters
        self.angular_cutoff = config.angular_cutoff if config.ends == "smooth" else model.cutoff
        centre, neighbour = torch.meshgrid(torch.arange(z), torch.arange(z), indexing="ij")
        groups = {"shared": 0 * centre, "element": neighbour, "pair": centre * z + neighbour}
        self.register_buffer("group_of", groups[config.filters].to(model.device))
        self.register_buffer("pair_of", model.unordered.clone())
        self.register_buffer("reference", model.energy_offsets().to(model.device, copy=True))
        self.rho = _Splines(model.rho)
        self.f = _Splines(model.f)
        self.phi = None if model.phi is None else _Splines(model.phi)
        angular = _Moments if config.angular.evaluator == "legendre" else _Triples
        self.angular = angular(model) if model.has_three_body else None
        embedding = model.readout.embedding
        self.readout = _Readout(model.readout, None if embedding is None else _Splines(embedding))

    def forward(self, row: Tensor, channel: Tensor, vectors: Tensor, species: Tensor) -> tuple[Tensor, Tensor]:
        """Energies [n] float64 (eV, with E0) and pair gradients dE/dr_ij [P, 3] (eV/Å; zeros unless asked for).

        Arguments:
            row: [P] ascending, centre of each pair; channel: [P] species of the neighbour; vectors: [P, 3] Å.
            species: [n] of the centres.
        """
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
        return energies.double() + self.reference[species], gradients


class ScriptedInChunks(nn.Module):
    """A potential whose atoms know nothing but their neighbours' distances, evaluated some atoms at a time."""

    def __init__(self, model: SplineNNP, forces: bool) -> None:
        super().__init__()
        legendre = model.config.angular.evaluator == "legendre"
        self.chunk_cpu, self.chunk_gpu = 256, 4096 if legendre else 512
        self.potential = ScriptedSplineNNP(model, forces)

    def forward(self, i: Tensor, j: Tensor, vectors: Tensor, species: Tensor) -> tuple[Tensor, Tensor]:
        """Energy [] float64 (eV) and pair gradients [P, 3] (eV/Å); arguments as in `ScriptedHIPNN`."""
        vectors = vectors.to(self.potential.rho.table.dtype)
        n_atoms = species.shape[0]
        ends = torch.bincount(i, minlength=n_atoms).cumsum(0)
        energy = torch.zeros([], dtype=torch.float64, device=vectors.device)
        gradients = [torch.zeros_like(vectors[:0])]
        chunk = self.chunk_gpu if vectors.is_cuda else self.chunk_cpu
        begin = 0
        for first in range(0, n_atoms, chunk):
            last = min(first + chunk, n_atoms)
            end = int(ends[last - 1])
            here, channel = i[begin:end] - first, species[j[begin:end]]
            energies, part = self.potential(here, channel, vectors[begin:end], species[first:last])
            energy = energy + energies.sum()
            gradients.append(part)
            begin = end
        return energy, torch.cat(gradients)
