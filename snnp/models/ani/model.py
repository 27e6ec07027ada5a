r"""ANI: one feed-forward network per element on fixed atomic environment vectors (AEV).

    E_i = E0[z_i] + NN_{z_i}(G_i)

with the vectors G of `snnp.models.ani.aev`. Forces are analytic: each network returns dE/dG, the vectors turn it into
dE/dr_ij. Elements that a structure lacks have zero terms; their columns of the first layer are left out.
Source: J. S. Smith, O. Isayev, A. E. Roitberg, Chem. Sci. 8, 3192 (2017), doi 10.1039/C6SC05720A.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import ClassVar, Literal

import torch
from pydantic import model_validator
from torch import Tensor, nn

from snnp.models.ani.aev import AEV, AEVConfig
from snnp.models.config import FamilyConfig, ForceTraining, Layers, TensorShape, linear_tensors
from snnp.models.gradients import PairGradients, activate, chunks, refuse_overlaps
from snnp.models.potential import Potential, Prediction
from snnp.neighbours import Neighbours
from snnp.structure import Structure

__all__ = ["ANI", "ANIConfig", "AtomicNetwork"]

Activation = Literal["celu", "gaussian"]

_CHUNK_TRIPLES = {"cpu": 1 << 15, "cuda": 1 << 21}  # evaluated at once: on a CPU their arrays stay in a core's caches


class ANIConfig(FamilyConfig):
    """The form of an ANI potential.

    `elements`: chemical symbols in the order of the vector; in a training config left out, they come from the data.
    `hidden`: sizes of the hidden layers, for all elements or by element. `activation`: "celu" with alpha 0.1
    (NeuroChem's 9), or "gaussian" exp(-x²) (NeuroChem's 5). `repulsion` is no part of the networks, and None in
    published ones.
    """

    family: ClassVar[str] = "ani"

    aev: AEVConfig = AEVConfig()
    hidden: Layers | dict[str, Layers] = (128, 112, 96)
    activation: Activation = "celu"

    @model_validator(mode="after")
    def _check(self) -> ANIConfig:
        sizes = self.hidden.values() if isinstance(self.hidden, dict) else [self.hidden]
        if not all(sizes):
            raise ValueError("hidden needs at least one layer for each element")
        if isinstance(self.hidden, dict) and self.elements and set(self.hidden) != set(self.elements):
            raise ValueError(f"hidden must name exactly the elements {', '.join(self.elements)}")
        return self

    def layers(self, symbol: str) -> tuple[int, ...]:
        return self.hidden[symbol] if isinstance(self.hidden, dict) else self.hidden

    def tensors(self) -> Iterator[TensorShape]:
        length = self.aev.length(len(self.elements))
        for symbol in self.elements:
            for k, (n_in, n_out) in enumerate(pairwise([length, *self.layers(symbol), 1])):
                yield from linear_tensors(f"networks.{symbol}.layers.{k}", n_in, n_out)

    @property
    def reach(self) -> float:
        """Å."""
        return self.aev.cutoff

    @property
    def force_training(self) -> ForceTraining:
        """Vectors cost far more to differentiate twice than networks."""
        return "directional"

    def ranged(self, shortest: float) -> ANIConfig:
        """Shifts move to the interval from 0.9 d to the cutoff, and Gaussians widen with the distance between them."""
        tree = self.model_dump()
        for part in (tree["aev"]["radial"], tree["aev"]["angular"]):
            first, lower, cutoff = min(part["shifts"]), round(0.9 * shortest, 3), part["cutoff"]
            stretch = (cutoff - lower) / (cutoff - first)
            if stretch > 0.0:
                part["shifts"] = [round(lower + stretch * (shift - first), 6) for shift in part["shifts"]]
                part["eta"] = round(part["eta"] / stretch**2, 6)
        tree["repulsion"] = self.repulsion_from(shortest, self.reach)
        return ANIConfig.model_validate(tree)


class AtomicNetwork(nn.Module):
    """The network of one element: `sizes` (D, hidden, ...), a linear layer to one number; TorchScript compiles it."""

    def __init__(self, sizes: tuple[int, ...], activation: Activation) -> None:
        super().__init__()
        self.activation = activation
        self.layers = nn.ModuleList(nn.Linear(n_in, n_out) for n_in, n_out in pairwise((*sizes, 1)))

    def forward(self, x: Tensor) -> Tensor:
        """Energies [n] of features [n, D]."""
        for k, layer in enumerate(self.layers):
            x = layer(x if k == 0 else activate(self.activation, x)[0])
        return x[:, 0]

    def with_gradient(self, features: Tensor, columns: Tensor | None) -> tuple[Tensor, Callable[[], Tensor]]:
        """Energies [n], and what gives dE/dfeatures [n, D]; of the `columns` of the first layer, None for all."""
        first, *others = (layer for layer in self.layers if isinstance(layer, nn.Linear))
        weights, slopes = [first.weight if columns is None else first.weight.index_select(1, columns)], []
        x = nn.functional.linear(features, weights[0], first.bias)
        for layer in others:
            x, slope = activate(self.activation, x)
            x = layer(x)
            weights.append(layer.weight)
            slopes.append(slope)

        def gradient() -> Tensor:
            h = weights[-1]
            for slope, weight in zip(reversed(slopes), reversed(weights[:-1]), strict=True):
                h = (h * slope) @ weight
            return h

        return x[:, 0], gradient


class ANI(Potential):
    """An ANI potential, one network.

    `reference_energies`: E0 in eV per element (missing ones are zero). `seed`: for the initial weights.

    Example:
        >>> from ase.build import molecule
        >>> model = ANI(ANIConfig(elements=("H", "O")))
        >>> model.compute(Structure.from_ase(molecule("H2O"))).forces.shape
        torch.Size([3, 3])
    """

    config: ANIConfig

    def __init__(self, config: ANIConfig, reference_energies: dict[str, float] | None = None, *, seed: int = 0) -> None:
        super().__init__(config.elements, reference_energies or {}, config.reach)
        self.config = config
        self.aev = AEV(config.aev)
        length = config.aev.length(len(self.elements))
        self.networks = nn.ModuleDict(
            {symbol: AtomicNetwork((length, *config.layers(symbol)), config.activation) for symbol in self.elements}
        )
        self.double()
        self.reset(seed)

    @torch.no_grad()
    def reset(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        for parameter in self.networks.parameters():
            parameter.zero_()
            if parameter.ndim > 1:
                drawn = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.copy_(parameter.shape[1] ** -0.5 * drawn)

    def network(self, symbol: str) -> AtomicNetwork:
        network = self.networks[symbol]
        assert isinstance(network, AtomicNetwork)
        return network

    def atomic_energies(self, structure: Structure, vectors: Tensor, neighbours: Neighbours) -> Tensor:
        """[N] energies of the networks; twice differentiable in the vectors and the parameters."""
        return _evaluate([self], structure, vectors, neighbours)[0][0]

    def _energies_and_pair_gradients(
        self, structure: Structure, neighbours: Neighbours
    ) -> tuple[Tensor, PairGradients]:
        vectors = self._vectors(structure, neighbours)
        energies, slopes = _evaluate([self], structure, vectors, neighbours, n_gradients=1)
        return energies[0], PairGradients(neighbours.i, neighbours.j, vectors, slopes[0])

    @torch.no_grad()
    def compute_each(
        self, potentials: Sequence[Potential], structure: Structure, neighbours: Neighbours, **wanted: bool
    ) -> list[Prediction]:
        """As the base; networks of the same elements that see the same vectors share them."""
        alike = [p for p in potentials if isinstance(p, ANI) and p.elements == self.elements]
        alike = [model for model in alike if model.config.aev == self.config.aev]
        if len(alike) < len(potentials):
            return super().compute_each(potentials, structure, neighbours, **wanted)
        forces, stress = wanted["forces"], wanted["stress"]
        neighbours = neighbours.to(self.device)
        vectors = self._vectors(structure, neighbours)
        n_gradients = (len(alike) if wanted["apart"] else 1) if forces or stress else 0
        energies, slopes = _evaluate(alike, structure, vectors, neighbours, n_gradients=n_gradients)
        pairs: list[PairGradients | None] = [
            PairGradients(neighbours.i, neighbours.j, vectors, slope) for slope in slopes
        ] or [None]
        return [
            model._complete(structure, neighbours, mine, pairs[k % len(pairs)], forces=forces, stress=stress)
            for k, (model, mine) in enumerate(zip(alike, energies, strict=True))
        ]


def _evaluate(
    models: Sequence[ANI], structure: Structure, vectors: Tensor, neighbours: Neighbours, *, n_gradients: int = 0
) -> tuple[Tensor, list[Tensor]]:
    """Energies [M, N] without E0 of M networks on one computation of their vectors, and gradients dE/dr_ij [P, 3].

    `n_gradients`: M for those of each network, 1 for those of their mean, 0 for none.
    """
    refuse_overlaps(vectors.detach().square().sum(dim=1), neighbours.i, neighbours.j)
    first = models[0]
    species = first.species(structure)
    if structure.n_atoms == 0:
        return vectors.new_zeros(len(models), 0), [torch.zeros_like(vectors)] * n_gradients
    present = torch.unique(species).tolist()
    columns = None
    if len(present) < len(first.elements):
        columns = first.aev.columns(present, len(first.elements)).to(species.device)
        species = torch.searchsorted(torch.tensor(present, device=species.device), species)
    symbols = [first.elements[element] for element in present]
    energies, slopes = [], []
    bounds = _bounds(first, vectors, neighbours, structure.n_atoms)
    for atoms, (row, j, mine) in chunks(neighbours, vectors, structure.n_atoms, bounds):
        own = species[atoms]
        features, back = first.aev(row, species[j], mine, (len(own), len(present)))
        groups = [(own == element).nonzero()[:, 0] for element in range(len(present))]
        order = torch.cat(groups).argsort()
        inputs = [features.index_select(0, group) for group in groups]
        each, by_features = [], []
        for model in models:
            networks = [model.network(symbol) for symbol in symbols]
            evaluated = [each.with_gradient(x, columns) for each, x in zip(networks, inputs, strict=True)]
            each.append(torch.cat([part for part, _ in evaluated])[order])
            if n_gradients:
                by_features.append(torch.cat([gradient() for _, gradient in evaluated])[order])
        energies.append(torch.stack(each))
        if n_gradients < len(models) and by_features:
            by_features = [torch.stack(by_features).mean(dim=0)]
        slopes.append([back(h) for h in by_features])
    return torch.cat(energies, dim=1), [torch.cat(parts) for parts in zip(*slopes, strict=True)]


def _bounds(model: ANI, vectors: Tensor, neighbours: Neighbours, n_atoms: int) -> list[int]:
    """Where atoms are cut into ranges that hold few enough triples."""
    near = vectors.detach().square().sum(dim=1) < model.config.aev.angular.cutoff**2
    triples = torch.bincount(neighbours.i[near], minlength=n_atoms)
    triples = (triples * (triples - 1) // 2).cumsum(0)
    number = triples.div(_CHUNK_TRIPLES["cuda" if vectors.is_cuda else "cpu"], rounding_mode="floor")
    return [0, *(torch.diff(number).nonzero()[:, 0] + 1).tolist(), n_atoms]
