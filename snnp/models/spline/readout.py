r"""The readout: features of an atom to its energy, with the gradient written out.

    E_i = NN_z([x - mean] / std) + w_z . [x - mean] / std + sum_a U_z,a(x_a)

with the network `h_1 = act(W_1 x + b_1), ..., NN = w . h_n + b`. Each part is optional.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from snnp.kernels.parameters import ReadoutParameters, SplineTable, spline_table
from snnp.models.gradients import activate
from snnp.models.spline.config import NetworkConfig, SplineNNPConfig
from snnp.splines import SplineSet

__all__ = ["Network", "Readout", "array_of", "table_of"]


class Network(nn.Module):
    """A small multilayer perceptron per element with its analytic input gradient.

    Parameters: `weights[k]` [Z, out, in] and `biases[k]` [Z, out].
    """

    def __init__(self, config: NetworkConfig, n_inputs: int, n_elements: int) -> None:
        super().__init__()
        self.config = config
        sizes = [n_inputs, *config.hidden, 1]
        copies = n_elements if config.elements == "element" else 1
        shapes = list(zip(sizes[1:], sizes[:-1], strict=True))
        self.weights = nn.ParameterList(
            nn.Parameter(torch.zeros(copies, *shape, dtype=torch.float64)) for shape in shapes
        )
        self.biases = nn.ParameterList(nn.Parameter(torch.zeros(copies, out, dtype=torch.float64)) for out, _ in shapes)

    @torch.no_grad()
    def reset(self, generator: torch.Generator) -> None:
        """Draw weights of variance 1 / fan-in (the last layer a tenth), zero biases."""
        for k, weight in enumerate(self.weights):
            scale = 0.1 if k == len(self.weights) - 1 else 1.0
            std = scale / math.sqrt(weight.shape[-1])
            drawn = torch.randn(weight.shape, dtype=torch.float64, generator=generator)
            weight.copy_(drawn * std)

    def effective_weights(self) -> list[Tensor]:
        """Weights [Z, out, in] with the constraint applied (absolute values where they must not be negative)."""
        constraint = self.config.constraint
        first_free = constraint in ("none", "convex")
        rest_free = constraint == "none"
        return [w if (first_free if k == 0 else rest_free) else w.abs() for k, w in enumerate(self.weights)]

    def forward(self, x: Tensor, element: int) -> tuple[Tensor, Tensor]:
        """Energies [n] and gradients [n, D] for inputs [n, D] of atoms of one element."""
        weights = [w[element] for w in self.effective_weights()]
        slopes = []
        hidden = x
        for k, weight in enumerate(weights[:-1]):
            hidden, slope = activate(self.config.activation, torch.addmm(self.biases[k][element], hidden, weight.T))
            slopes.append(slope)
        energy = (hidden @ weights[-1].T)[:, 0] + self.biases[-1][element]
        gradient = weights[-1] * slopes[-1]
        for weight, slope in zip(weights[-2:0:-1], slopes[-2::-1], strict=True):
            gradient = (gradient @ weight) * slope
        return energy, gradient @ weights[0]

    def energies(self, x: Tensor) -> Tensor:
        """[C] of one input [D], in every copy of the network at once."""
        *inner, last = zip(self.effective_weights(), self.biases, strict=True)
        hidden = x[:, None]
        for weight, bias in inner:
            hidden, _ = activate(self.config.activation, weight @ hidden + bias[..., None])
        weight, bias = last
        return (weight @ hidden + bias[..., None])[:, 0, 0]


class Readout(nn.Module):
    """Features [n, D] and species [n] to energies [n] and their gradients [n, D].

    Buffers `mean`, `std` [D] standardise the features; they are set from training data once and then fixed.
    """

    def __init__(self, config: SplineNNPConfig) -> None:
        super().__init__()
        n_features, n_elements = config.n_features, config.n_elements
        self.n_elements = n_elements
        self.register_buffer("mean", torch.zeros(n_features, dtype=torch.float64))
        self.register_buffer("std", torch.ones(n_features, dtype=torch.float64))
        self.network = None if config.network is None else Network(config.network, n_features, n_elements)
        zeros = torch.zeros(n_elements, n_features, dtype=torch.float64)
        self.linear = nn.Parameter(zeros) if config.skip else None
        self.embedding: SplineSet | None = None
        self.sums_features = False
        if config.embedding is not None:
            self.sums_features = config.embedding.of == "sum"
            self.embedding = SplineSet(config.grid("embedding"), 1 if self.sums_features else n_features)

    mean: Tensor
    std: Tensor

    def forward(self, features: Tensor, species: Tensor) -> tuple[Tensor, Tensor]:
        """Energies and gradients; differentiable in features and parameters."""
        x = (features - self.mean) / self.std
        energy, gradient = torch.zeros_like(x[:, 0]), torch.zeros_like(x)
        if self.network is not None:
            energy, gradient = self._network(x, species, self.network)
        if self.linear is not None:
            rows = self.linear[species]
            energy, gradient = energy + (rows * x).sum(dim=1), gradient + rows
        gradient = gradient / self.std
        if self.embedding is not None:
            if self.sums_features:
                value, slope = self.embedding(features.sum(dim=1), species)
                energy, gradient = energy + value[:, 0], gradient + slope
            else:
                # One spline per feature: filters are the features, so each takes its own column of the evaluation.
                value, slope = self.embedding(features, species[:, None].expand_as(features))
                energy = energy + value.diagonal(dim1=1, dim2=2).sum(dim=1)
                gradient = gradient + slope.diagonal(dim1=1, dim2=2)
        return energy, gradient

    def at_zero(self) -> Tensor:
        """[Z] energies of all elements where every feature is zero: atoms without neighbours. Differentiable."""
        x = -self.mean / self.std
        energies = x.new_zeros(self.n_elements)
        if self.network is not None:
            energies = energies + self.network.energies(x)
        if self.linear is not None:
            energies = energies + self.linear @ x
        if self.embedding is not None:
            n_arguments, groups = self.embedding.n_filters, torch.arange(self.n_elements, device=x.device)
            zeros = x.new_zeros(self.n_elements, n_arguments)
            value, _ = self.embedding(zeros, groups[:, None].expand_as(zeros))
            energies = energies + value.diagonal(dim1=1, dim2=2).sum(dim=1)
        return energies

    def _network(self, x: Tensor, species: Tensor, network: Network) -> tuple[Tensor, Tensor]:
        if network.biases[0].shape[0] == 1:
            return network(x, 0)
        energy, gradient = torch.zeros_like(x[:, 0]), torch.zeros_like(x)
        for element in range(self.n_elements):
            mine = (species == element).nonzero()[:, 0]
            if mine.numel():
                e, g = network(x[mine], element)
                energy, gradient = energy.index_copy(0, mine, e), gradient.index_copy(0, mine, g)
        return energy, gradient

    def kernel_parameters(self) -> ReadoutParameters:
        """The present parameters as kernels read them."""
        network, zeros = self.network, np.zeros((self.n_elements, len(self.mean)))
        return ReadoutParameters(
            mean=array_of(self.mean),
            std=array_of(self.std),
            weights=() if network is None else tuple(array_of(w) for w in network.effective_weights()),
            biases=() if network is None else tuple(array_of(b) for b in network.biases),
            activation="silu" if network is None else network.config.activation,
            linear=zeros if self.linear is None else array_of(self.linear),
            embedding=None if self.embedding is None else table_of(self.embedding),
            embeds_sum=self.sums_features,
        )


# Arithmetic is numpy's from here: torch's threads do not exist in a forked process that the parent's torch did not
# prepare.


def array_of(value: Tensor) -> Any:
    """The values in float64."""
    return value.detach().cpu().numpy().astype(np.float64)


def table_of(splines: SplineSet) -> SplineTable:
    """Splines as polynomials, on the exact grids: the model's buffers may be rounded to float32."""
    lower = np.array([grid.lower for grid in splines.grids])
    spacing = np.array([grid.spacing for grid in splines.grids])
    n_intervals = np.array([grid.n_intervals for grid in splines.grids], dtype=np.int64)
    free = array_of(splines.free)
    full = free if splines.ends == ("free", "free") else free @ array_of(splines.exact("map"))
    return spline_table(lower, spacing, n_intervals, full)
