r"""The ways through torch: plain pairs, for any family, and what an s-NNP sums over them.

Of an s-NNP what no parameter changes is computed once, for all atoms, and cut by atoms. Pair gradients are analytic and
differentiable in the parameters, so a force loss needs one backward pass. Through pairs forces are differentiated
twice, or a difference of gradients is taken.

Directional force training gives the parameter gradients of a force loss without a second back-propagation. With
p = dL/dF and q = dL/dS (the loss L of forces F and stresses S, both held fixed), the parameter gradient is that of
the derivative of the energy along one direction: positions move by -p, and the strain is q / V,

    dL/dw = d/dw d/de E(r - e p, strain e q / V)  =  [dE/dw(+eta) - dE/dw(-eta)] / (2 eta)  + O(eta²).

So a step takes the forces once, for p, and the parameter gradients of the energies of two displaced copies. The energy
part of the loss rides on the same copies: their mean is the gradient in the middle, to the same order. Each structure
has its own eta, so that no pair vector moves by more than a given length: larger residuals take smaller steps.

Source: J. S. Smith, N. Lubbers, A. P. Thompson, K. Barros, Simple and efficient algorithms for training machine
learning potentials to force data (2020), arXiv:2006.05475.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor

from snnp.models.gradients import PairGradients, Shell, sum_forces
from snnp.models.potential import Potential
from snnp.models.spline.model import Geometry, SplineNNP
from snnp.neighbours import Neighbours, neighbour_list, pair_vectors
from snnp.structure import Structure
from snnp.training.backends.backend import Backend, Batch, Loss, Predicted, Residuals

__all__ = ["Pairs", "PairsBackend", "SumsBackend"]

_JOINED_PAIRS = 10_000
"""Up to so many pairs both copies pass the model together, which saves calls; beyond, arrays would leave the caches."""
_CHUNK_ATOMS = 512
"""Atoms whose geometry is formed at once in float64: few, so that little more than the result is ever held."""


@dataclass(frozen=True)
class Pairs:
    """Structures (float64), their neighbour list, and its vectors [P, 3] in the type of the training."""

    structure: Structure
    neighbours: Neighbours
    vectors: Tensor

    @property
    def owner(self) -> Tensor:
        """[P] structure of each pair."""
        return self.structure.structure_of_atom[self.neighbours.i]


@dataclass(frozen=True)
class PairsBackend(Backend):
    """Pairs of any family.

    `displacement`: Å by which directional training moves the pair vector that moves most in each structure; None for
    exact training.
    """

    dtype: torch.dtype
    device: torch.device
    displacement: float | None = None

    def prepare(self, model: Potential, structure: Structure) -> Pairs:
        """Pairs reach so far beyond the cutoff that their vectors may be displaced."""
        neighbours = neighbour_list(structure, model.cutoff + (self.displacement or 0.0))
        vectors = pair_vectors(structure, neighbours).to(self.device, self.dtype)
        return Pairs(structure.to(device=self.device), neighbours.to(self.device), vectors)

    def cut(self, geometry: Pairs, frames: Tensor, rows: Tensor, owner: Tensor) -> Pairs:
        whole, lists = geometry.structure, geometry.neighbours
        local = torch.empty_like(whole.numbers)
        local[rows] = torch.arange(len(rows), device=rows.device)
        structure = Structure(whole.numbers[rows], whole.positions[rows], whole.cell[frames], whole.pbc[frames], owner)
        # The list is sorted by centre: the pairs of an atom are a run of rows.
        first = torch.searchsorted(lists.i, rows)
        counts = torch.searchsorted(lists.i, rows, right=True) - first
        before = counts.cumsum(0) - counts
        chosen = torch.arange(int(counts.sum()), device=rows.device) + (first - before).repeat_interleave(counts)
        neighbours = Neighbours(local[lists.i[chosen]], local[lists.j[chosen]], lists.shift[chosen], lists.cutoff)
        return Pairs(structure, neighbours, geometry.vectors[chosen])

    def predict(self, model: Potential, batch: Batch, *, forces: bool = True) -> Predicted:
        """Where no gradient is recorded, the model's own inference answers."""
        pairs: Pairs = batch.geometry
        structure, neighbours, penalty = pairs.structure, pairs.neighbours, None
        if not forces:
            energies, penalty = model.energies_and_penalty(structure, pairs.vectors, neighbours)
            return Predicted.of(batch, energies, penalty=penalty)
        if torch.is_grad_enabled():
            vectors = pairs.vectors.detach().requires_grad_()
            energies, penalty = model.energies_and_penalty(structure, vectors, neighbours)
            (gradients,) = torch.autograd.grad(
                energies.sum(), vectors, create_graph=True, allow_unused=True, materialize_grads=True
            )
            found = PairGradients(neighbours.i, neighbours.j, pairs.vectors, gradients)
        else:
            energies, found = model._energies_and_pair_gradients(structure, neighbours)
            energies = model.above_isolated(energies, model.species(structure))
        # Of molecules, too: they have no stress, but compression works on them.
        strain = batch.volume.new_zeros(len(batch.counts), 3, 3)
        strain = strain.index_add(0, batch.owner[found.i], found.vectors[:, :, None] * found.gradients[:, None, :])
        forces_found = sum_forces(found, structure.n_atoms)
        return Predicted.of(batch, energies, forces_found, batch.symmetric(strain), penalty)

    def backward(self, model: Potential, batch: Batch, loss: Loss, *, forces: bool = True) -> Tensor:
        if self.displacement is None:
            return super().backward(model, batch, loss, forces=forces)
        pairs, displacement = batch.geometry, self.displacement
        with torch.no_grad():
            found = loss(self.predict(model, batch), batch)
        change, owner = _direction(pairs, found, batch), pairs.owner
        farthest = torch.zeros_like(batch.volume).scatter_reduce(0, owner, change.norm(dim=1), "amax")
        # Where nothing pulls (no force labels, or none missed) a structure stays where it is.
        change = torch.where(farthest > 0.0, displacement / farthest, 0.0)[owner, None] * change
        slope = (0.5 * farthest / displacement)[batch.owner]
        value = found.value
        for signs in ((1.0, -1.0),) if len(change) <= _JOINED_PAIRS else ((1.0,), (-1.0,)):
            copies = _displaced(pairs, [sign * change for sign in signs])
            energies, penalty = model.energies_and_penalty(copies.structure, copies.vectors, copies.neighbours)
            factors = torch.cat([0.5 * found.to_energies + sign * slope for sign in signs])
            part = (factors * energies).sum()
            if penalty is not None and found.penalty_weight > 0.0:
                share = 0.5 * len(signs) * found.penalty_weight * penalty.mean()
                part, value = part + share, value + share.detach()
            part.backward()
        return value

    def features(self, model: Potential, batch: Batch) -> Tensor:
        assert isinstance(model, SplineNNP)
        structure, lists, vectors = batch.geometry.structure, batch.geometry.neighbours, batch.geometry.vectors
        everyone = torch.arange(structure.n_atoms, device=vectors.device)
        return model.features(model.geometry((lists.i, lists.j, vectors), model.species(structure), everyone))


def _direction(pairs: Pairs, found: Residuals, batch: Batch) -> Tensor:
    """[P, 3] change of the pair vectors per step along the direction: `q / V . r_ij - (p_j - p_i)`."""
    i, j = pairs.neighbours.i, pairs.neighbours.j
    change = torch.zeros_like(pairs.vectors) if found.to_forces is None else found.to_forces[i] - found.to_forces[j]
    if found.to_stress is not None:
        of_pair = batch.symmetric(found.to_stress)[pairs.owner]
        change = change + (of_pair @ pairs.vectors[:, :, None])[:, :, 0]
    return change


def _displaced(pairs: Pairs, changes: Sequence[Tensor]) -> Pairs:
    """Copies of the pairs side by side, one for each of the changes [P, 3] of their vectors."""
    lists, n, k = pairs.neighbours, pairs.structure.n_atoms, len(changes)
    offset = n * torch.arange(k, device=lists.i.device).repeat_interleave(len(lists.i))
    neighbours = Neighbours(
        lists.i.repeat(k) + offset, lists.j.repeat(k) + offset, lists.shift.repeat(k, 1), lists.cutoff
    )
    structure = Structure.concatenate([pairs.structure] * k)
    return Pairs(structure, neighbours, torch.cat([pairs.vectors + change for change in changes]))


@dataclass(frozen=True)
class SumsBackend(Backend):
    """Geometry of an s-NNP's atoms (`snnp.models.spline.model.Geometry`)."""

    dtype: torch.dtype
    device: torch.device

    def prepare(self, model: Potential, structure: Structure) -> Geometry:
        assert isinstance(model, SplineNNP)
        lists, species = neighbour_list(structure, model.cutoff), model.species(structure)
        vectors = pair_vectors(structure, lists)
        distance = vectors.norm(dim=1)
        radial, angular = (
            max(1, int(torch.bincount(lists.i[distance < reach], minlength=1).max()))
            for reach in (model.cutoff, model.config.angular_cutoff or model.cutoff)
        )
        parts = []
        for centre in torch.arange(structure.n_atoms).split(_CHUNK_ATOMS):
            # The list is sorted by centre: the pairs of some atoms in a row are a run of it.
            first, last = torch.searchsorted(lists.i, torch.stack([centre[0], centre[-1] + 1])).tolist()
            pairs = (lists.i[first:last] - centre[0], lists.j[first:last], vectors[first:last])
            part = model.geometry(pairs, species, centre, (radial, angular), reused=True)
            parts.append(_map(lambda t: t.to(self.device, self.dtype if t.is_floating_point() else None), part))
        return _map(lambda *tensors: torch.cat(tensors), *parts)

    def cut(self, geometry: Geometry, frames: Tensor, rows: Tensor, owner: Tensor) -> Geometry:
        local = torch.empty_like(geometry.species)
        local[rows] = torch.arange(len(rows), device=rows.device)
        found = _map(lambda tensor: tensor.index_select(0, rows), geometry)

        def relabel(shell: Shell) -> Shell:
            return shell._replace(centre=local[shell.centre], j=local[shell.j])

        radial = relabel(found.radial_shell)
        angular = radial if found.angular_shell is found.radial_shell else relabel(found.angular_shell)
        return replace(found, radial_shell=radial, angular_shell=angular)

    def predict(self, model: Potential, batch: Batch, *, forces: bool = True) -> Predicted:
        assert isinstance(model, SplineNNP)
        energies, gradients = model.evaluate(batch.geometry)
        energies = model.above_isolated(energies, batch.geometry.species)
        found = torch.zeros_like(batch.forces)
        strain = torch.zeros_like(batch.stress).flatten(1)
        for shell, gradient in gradients:
            found = found + sum_forces(shell.pair_gradients(gradient), len(found))
            # Sum over an atom's neighbours first: a product of small matrices instead of an outer product per pair.
            per_atom = (shell.unit * shell.distance[..., None]).transpose(1, 2) @ gradient
            strain = strain.index_add(0, batch.owner, per_atom.flatten(1))
        return Predicted.of(batch, energies, found, batch.symmetric(strain.unflatten(1, (3, 3))))

    def features(self, model: Potential, batch: Batch) -> Tensor:
        assert isinstance(model, SplineNNP)
        return model.features(batch.geometry)


def _map(function: Callable[..., Tensor], *values: Any) -> Any:
    """Apply a function to tensors at one place of nested dataclasses and shells; what the first shares stays so."""
    done: dict[int, Any] = {}

    def visit(*nodes: Any) -> Any:
        first = nodes[0]
        if isinstance(first, Tensor):
            return function(*nodes)
        if not isinstance(first, Shell) and not is_dataclass(first):
            return first
        if id(first) not in done:
            kind: Any = type(first)
            done[id(first)] = kind(*(visit(*(getattr(node, name) for node in nodes)) for name in kind.__annotations__))
        return done[id(first)]

    return visit(*values)
