r"""The readout: features of an atom to its energy, with the gradient written out; compiles under TorchScript.

    E_i = NN_z([x - mean] / std) + w_z . [x - mean] / std + sum_a U_z,a(x_a)

with the network `h_1 = act(W_1 x + b_1), ..., NN = w . h_n + b`. Each part is optional.
"""

# No `from __future__ import annotations` here: TorchScript, which compiles the readout, needs them as they are.

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
        self.config, self.activation = config, config.activation
        sizes = [n_inputs, *config.hidden, 1]
        self.first_free, self.rest_free = config.constraint in ("none", "convex"), config.constraint == "none"
        self.n_copies = copies = n_elements if config.elements == "element" else 1
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
        effective: list[Tensor] = []
        for weight in self.weights:
            free = self.rest_free if effective else self.first_free
            effective.append(weight if free else weight.abs())
        return effective

    def forward(self, x: Tensor, species: Tensor) -> tuple[Tensor, Tensor]:
        """Energies [n] and gradients [n, D] for inputs [n, D] of atoms of `species` [n]."""
        weights = self.effective_weights()
        if self.n_copies == 1:
            return self.of_element(x, 0, weights)
        energy, gradient = torch.zeros_like(x[:, 0]), torch.zeros_like(x)
        for element in range(self.n_copies):
            mine = (species == element).nonzero()[:, 0]
            if mine.numel() > 0:
                e, g = self.of_element(x[mine], element, weights)
                energy, gradient = energy.index_copy(0, mine, e), gradient.index_copy(0, mine, g)
        return energy, gradient

    def of_element(self, x: Tensor, element: int, weights: list[Tensor]) -> tuple[Tensor, Tensor]:
        """As `forward`, of one copy; `weights` are the effective ones."""
        slopes: list[Tensor] = []
        for k, bias in enumerate(self.biases):
            weight = weights[k][element]
            if k + 1 < len(weights):
                x, slope = activate(self.activation, torch.addmm(bias[element], x, weight.T))
                slopes.append(slope)
            else:
                x = x @ weight.T + bias[element]
        gradient = weights[-1][element] * slopes[-1]
        for k in range(len(slopes) - 1, 0, -1):
            gradient = (gradient @ weights[k][element]) * slopes[k - 1]
        return x[:, 0], gradient @ weights[0][element]


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
            energy, gradient = self.network(x, species)
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
        zeros = self.mean.new_zeros(self.n_elements, len(self.mean))
        energies: Tensor = self(zeros, torch.arange(self.n_elements, device=zeros.device))[0]
        return energies

    def kernel_parameters(self) -> ReadoutParameters:
        """The present parameters as kernels read them."""
        network, zeros = self.network, np.zeros((self.n_elements, len(self.mean)))
        return ReadoutParameters(
            mean=array_of(self.mean),
            std=array_of(self.std),
            weights=() if network is None else tuple(array_of(w) for w in network.effective_weights()),
            biases=() if network is None else tuple(array_of(b) for b in network.biases),
            activation="silu" if network is None else network.activation,
            linear=zeros if self.linear is None else array_of(self.linear),
            embedding=None if self.embedding is None else table_of(self.embedding),
            embeds_sum=self.sums_features,
        )


# Arithmetic is numpy's from here: torch's threads do not exist in a forked process that the parent's torch did not
# prepare.


def array_of(value: Tensor) -> Any:
    return value.detach().cpu().numpy().astype(np.float64)


def table_of(splines: SplineSet) -> SplineTable:
    """Splines as polynomials, on the exact grids: the model's buffers may be rounded to float32."""
    lower = np.array([grid.lower for grid in splines.grids])
    spacing = np.array([grid.spacing for grid in splines.grids])
    n_intervals = np.array([grid.n_intervals for grid in splines.grids], dtype=np.int64)
    free = array_of(splines.free)
    full = free if splines.map is None else free @ array_of(splines.exact("map"))
    return spline_table(lower, spacing, n_intervals, full)
