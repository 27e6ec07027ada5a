r"""What an s-NNP says of each atom, taken apart: parts of its energy, and what each filter contributes.

With x_i the features of atom i, of element z, R_z the readout (network, linear skip, embedding), xbar_z the mean of the
features over the atoms of that element in the material, and hbar_z the mean of dR_z/dx over them, the energy is

    E_i = E_z                                  typical: E0 and the readout of the mean features
        + hbar_z . (x_i - xbar_z), radial      pair
        + hbar_z . (x_i - xbar_z), three-body  three-body
        + what the network adds to that        network: it bends where the filters alone would go straight
        + what embedding splines add to that   embedding
        + 1/2 sum_j phi(r_ij)                  pair term
        + 1/2 sum_j repulsion(r_ij)            repulsion

The parts sum to the energy exactly. The mean gradient is unique, whatever the network and the skip share between them,
and needs no inverse of a matrix; a filter contributes the standard deviation of hbar_z,a (x_i,a - xbar_z,a).
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from snnp.data import Frames
from snnp.errors import InputError
from snnp.models.ensemble import Ensemble
from snnp.models.gradients import chunks
from snnp.models.potential import Potential
from snnp.models.spline.model import SplineNNP
from snnp.neighbours import neighbour_list, pair_vectors
from snnp.structure import Structure

__all__ = ["PARTS", "Anatomy", "Typical", "gradient_products", "spline_model"]

PARTS = ("pair", "three-body", "network", "embedding", "pair term", "repulsion")

Array = NDArray[np.float64]
_CHUNK = 256  # atoms
_CHUNK_OF_GRADIENTS = 64
_ROUNDING = 1e-12  # eV


def spline_model(model: Potential, name: str) -> SplineNNP:
    """The model in float64, if it has filters.

    Raises:
        InputError: for families without filters, and for ensembles.
    """
    kind = type(model).__name__
    if isinstance(model, Ensemble):
        kind = f"ensemble of {type(model.members[0]).__name__}"
        if isinstance(model.members[0], SplineNNP):
            raise InputError(f"{name} is an ensemble: what it learned is that of its members; explain one of them.")
    if not isinstance(model, SplineNNP):
        raise InputError(
            f"{name} ({kind}) is a model without filters: nothing in it can be drawn as a curve; name an s-NNP "
            "('snnp ls'), or distil one from it with 'snnp distill'."
        )
    return copy.deepcopy(model).double()


@dataclass(frozen=True)
class Typical:
    """Of each element: the mean features [Z, D] and mean gradients of the readout [Z, D] (eV) over some atoms.

    `count` [Z]: how many atoms there were; where none, the scales of the training stand in. `energy` [Z]: eV of the
    readout at the mean features, without E0.
    """

    features: Tensor
    gradient: Tensor
    energy: Tensor
    count: Tensor


class Anatomy:
    """The N atoms of some structures, as an s-NNP in float64 sees them.

    Arguments:
        model: in float64 on the CPU. frames: labelled or not; energies of the labels are not used.
        typical: what parts are counted from; by default the means over these atoms.

    Attributes:
        species: [N] index of elements. features: [N, D]. standard: [N, D], standardised as the readout sees them.
        learned: [N] eV of the readout. gradient: [N, D] of it by the features. energies: [N] eV, all of it.
    """

    @torch.no_grad()
    def __init__(self, model: SplineNNP, frames: Frames, typical: Typical | None = None) -> None:
        self.model, self.frames = model, frames
        structure = frames.structure()
        self.structure, self.species = structure, model.species(structure)
        neighbours = neighbour_list(structure, model.cutoff)
        self.energies = model.compute(structure, neighbours, forces=False).energies.double()
        self.features = _features(model, structure, self.species)
        self.standard = (self.features - model.readout.mean) / model.readout.std
        self.learned, self.gradient = model.readout(self.features, self.species)
        self.repulsion = torch.zeros_like(self.learned)
        if model.repulsion is not None:
            self.repulsion, _ = model.repulsion_energies(structure, pair_vectors(structure, neighbours), neighbours)
        self.typical = typical or self._typical()

    def _typical(self) -> Typical:
        z, readout = self.model.config.n_elements, self.model.readout
        count = torch.bincount(self.species, minlength=z)
        share = 1.0 / count.clamp_min(1)[:, None]
        zeros = torch.zeros(z, self.features.shape[1], dtype=torch.float64)
        features = zeros.index_add(0, self.species, self.features) * share
        features = torch.where(count[:, None] > 0, features, readout.mean)
        energy, own = readout(features, torch.arange(z))
        gradient = zeros.index_add(0, self.species, self.gradient) * share
        return Typical(features, torch.where(count[:, None] > 0, gradient, own), energy, count)

    @cached_property
    def away(self) -> Tensor:
        """[N, D] features beyond those of a typical atom of the element."""
        return self.features - self.typical.features[self.species]

    @cached_property
    def first_order(self) -> Tensor:
        """[N, D] eV: mean gradient times what a feature is beyond its mean."""
        return self.typical.gradient[self.species] * self.away

    @cached_property
    def parts(self) -> dict[str, Array]:
        """Name -> [N] eV; "typical" and the parts of `PARTS` that the model has, which sum to the energies."""
        model, readout = self.model, self.model.readout
        n_radial, first = model.config.radial.n_filters, self.first_order
        found = {"pair": first[:, :n_radial].sum(dim=1)}
        if model.has_three_body:
            found["three-body"] = first[:, n_radial:].sum(dim=1)
        # What bends is the network or the embedding: with both, the part of the embedding is evaluated by itself.
        bent = self.learned - self.typical.energy[self.species] - first.sum(dim=1)
        if readout.embedding is not None:
            found["embedding"] = bent if readout.network is None else bent - self._network_alone()
        if readout.network is not None:
            found["network"] = bent - found.get("embedding", torch.zeros_like(bent))
        if model.phi is not None:
            found["pair term"] = _pair_terms(model, self.structure, self.species)
        if model.repulsion is not None:
            found["repulsion"] = self.repulsion
        typical = self.energies - sum(found.values(), torch.zeros_like(bent))
        return {"typical": typical.numpy()} | {name: found[name].numpy() for name in PARTS if name in found}

    @torch.no_grad()
    def _network_alone(self) -> Tensor:
        """[N] eV by which the network departs from its mean gradient, seen by itself."""
        network, readout = self.model.readout.network, self.model.readout
        assert network is not None
        z = torch.arange(self.model.config.n_elements)
        value, slope = network(self.standard, self.species)
        middle, _ = network((self.typical.features - readout.mean) / readout.std, z)
        mean = torch.zeros(len(z), slope.shape[1], dtype=slope.dtype).index_add(0, self.species, slope)
        mean = mean / (self.typical.count.clamp_min(1)[:, None] * readout.std)
        bent: Tensor = value - middle[self.species] - (mean[self.species] * self.away).sum(dim=1)
        return bent

    @cached_property
    def contribution(self) -> Array:
        """[D] eV: standard deviation over the atoms of what each filter adds to first order."""
        found: Array = self.first_order.square().mean(dim=0).sqrt().numpy()
        return found

    @cached_property
    def usage(self) -> Array:
        """[Z, D] eV: the same for the atoms of each element; zero for elements that do not occur."""
        z = self.model.config.n_elements
        squares = torch.zeros(z, self.features.shape[1], dtype=torch.float64)
        squares.index_add_(0, self.species, self.first_order.square())
        found: Array = (squares / self.typical.count.clamp_min(1)[:, None]).sqrt().numpy()
        return found

    @cached_property
    def linear_share(self) -> dict[str, float | None]:
        """Which share of the variance of the readout's energies over the atoms of each element is linear.

        "best": of any linear function of the features (least squares); "skip": of the model's own linear skip, None
        without one, negative where the network has to undo it.
        """
        total, left, beside = 0.0, 0.0, 0.0
        linear = self.model.readout.linear
        for element in self.species.unique().tolist():
            mine = self.species == element
            target = self.learned[mine] - self.learned[mine].mean()
            total += float(target.square().sum())
            left += float((target - _fitted(self.standard[mine], target)).square().sum())
            if linear is not None:
                rest = target - self.standard[mine] @ linear.detach()[element]
                beside += float((rest - rest.mean()).square().sum())
        whole = total or 1.0
        return {"best": 1.0 - left / whole, "skip": None if linear is None else 1.0 - beside / whole}

    @cached_property
    def turned(self) -> float:
        """How often a filter pulls the other way than on average: share of atoms, weighted by what filters add."""
        opposite = (self.gradient * self.typical.gradient[self.species] < 0.0).double().mean(dim=0).numpy()
        return float(opposite @ self.contribution / max(self.contribution.sum(), 1e-30))

    @cached_property
    def broken(self) -> dict[str, float]:
        """Where the readout is not "monotone", share of atoms and filters; "convex", of pairs of one element."""
        bends = list[Tensor]()
        for element in self.species.unique():
            mine = self.species == element
            x, slope = (each - each.roll(len(each) // 2, 0) for each in (self.features[mine], self.gradient[mine]))
            bends.append((x * slope).sum(dim=1) < -_ROUNDING)
        found = {"monotone": self.gradient < 0.0, "convex": torch.cat(bends)}
        return {name: float(each.double().mean()) for name, each in found.items()}

    def farness(self, seen: Anatomy) -> Array:
        """[N] how far the features of each atom are from those of the atoms of its element in `seen`.

        The root of the mean squared distance along the main directions of `seen`, in standard deviations: about 1 for
        atoms like those, several for what was not seen. NaN for elements that did not occur there.
        """
        found = np.full(len(self.species), np.nan)
        for element in self.species.unique().tolist():
            known = seen.standard[seen.species == element]
            if len(known) < 2:
                continue
            values, vectors = torch.linalg.eigh(torch.cov(known.T).reshape(known.shape[1], -1))
            # Directions that hardly vary, or not at all, would be blown up by noise.
            kept = values > 1e-6 * values[-1]
            mine = self.species == element
            along = (self.standard[mine] - known.mean(dim=0)) @ vectors[:, kept] / values[kept].sqrt()
            found[mine.numpy()] = along.square().mean(dim=1).sqrt().numpy()
        return found

    def labels(self) -> list[str]:
        """Chemical symbol of each atom."""
        return [self.model.elements[k] for k in self.species.tolist()]


def _fitted(x: Tensor, target: Tensor) -> Tensor:
    """Least squares of a target [n] by columns [n, D] with a constant; exact copies among them do no harm."""
    x = x - x.mean(dim=0)
    square = x.T @ x
    square = square + 1e-10 * square.diagonal().mean() * torch.eye(len(square), dtype=x.dtype)
    return x @ torch.linalg.solve(square, x.T @ target)


@torch.no_grad()
def _features(model: SplineNNP, structure: Structure, species: Tensor) -> Tensor:
    """[N, D]."""
    lists = neighbour_list(structure, model.cutoff)
    bounds = [*range(0, structure.n_atoms, _CHUNK), structure.n_atoms]
    found = [torch.zeros(0, model.config.n_features, dtype=torch.float64)]
    for centre, pairs in chunks(lists, pair_vectors(structure, lists), structure.n_atoms, bounds):
        found.append(model.features(model.geometry(pairs, species, centre)))
    return torch.cat(found)


@torch.no_grad()
def _pair_terms(model: SplineNNP, structure: Structure, species: Tensor) -> Tensor:
    """[N] eV of the pair term, half of each pair's."""
    found = torch.zeros(structure.n_atoms, dtype=torch.float64)
    if model.phi is None:
        return found
    lists = neighbour_list(structure, model.cutoff)
    distance = pair_vectors(structure, lists).norm(dim=1)
    group = model.unordered[species[lists.i], species[lists.j]]
    values = model.phi(distance, group)[0][:, 0] * (distance < model.cutoff)
    return found.index_add(0, lists.i, 0.5 * values)


@torch.enable_grad()
def gradient_products(model: SplineNNP, structure: Structure, most: int = 400) -> Tensor:
    """[Z, D, D] mean over atoms of an element of sum_j dx_a/dr_ij . dx_b/dr_ij (1/Å²), x the standardised features.

    Arguments:
        most: atoms, evenly chosen.
    """
    species, n = model.species(structure), model.config.n_features
    lists = neighbour_list(structure, model.cutoff)
    vectors, i, j = pair_vectors(structure, lists), lists.i, lists.j
    centres = torch.linspace(0, structure.n_atoms - 1, min(structure.n_atoms, most)).long().unique()
    row = torch.full((structure.n_atoms,), -1)
    row[centres] = torch.arange(len(centres))
    found = torch.zeros(model.config.n_elements, n, n, dtype=torch.float64)
    for rows in torch.arange(len(centres)).split(_CHUNK_OF_GRADIENTS):
        kept = (row[i] >= rows[0]) & (row[i] <= rows[-1])
        mine = vectors[kept].requires_grad_()
        pairs = (row[i[kept]] - rows[0], j[kept], mine)
        features = model.features(model.geometry(pairs, species, centres[rows])) / model.readout.std
        columns = [
            torch.autograd.grad(
                features[:, k].sum(), mine, retain_graph=True, allow_unused=True, materialize_grads=True
            )
            for k in range(n)
        ]
        gradients = torch.stack([each.detach() for (each,) in columns])
        for element, own in enumerate(species[i[kept]] == torch.arange(len(found))[:, None]):
            flat = gradients[:, own].flatten(1)
            found[element] += flat @ flat.T
    count = torch.bincount(species[centres], minlength=len(found)).clamp_min(1)
    return found / count[:, None, None]
