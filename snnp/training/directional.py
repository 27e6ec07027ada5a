r"""Directional force training: parameter gradients of a force loss without a second back-propagation.

With p = dL/dF and q = dL/dS (the loss L of forces F and stresses S, both held fixed), the parameter gradient is that of
the derivative of the energy along one direction: positions move by -p, and the strain is q / V,

    dL/dw = d/dw d/de E(r - e p, strain e q / V)  =  [dE/dw(+eta) - dE/dw(-eta)] / (2 eta)  + O(eta²).

So a step takes the forces once, for p, and the parameter gradients of the energies of two displaced copies. The energy
part of the loss rides on the same copies: their mean is the gradient in the middle, to the same order. Each structure
has its own eta, so that no pair vector moves by more than a given length: larger residuals take smaller steps.

Source: J. S. Smith, N. Lubbers, A. P. Thompson, K. Barros, Simple and efficient algorithms for training machine
learning potentials to force data (2020), arXiv:2006.05475.
"""

from __future__ import annotations

import torch
from torch import Tensor

from snnp.models.potential import Potential
from snnp.training.backends.pairs import Pairs, join_pairs
from snnp.training.batches import Batch
from snnp.training.config import LossConfig
from snnp.training.loss import Residuals, Weights, predict, residuals

__all__ = ["directional_backward"]

_JOINED_PAIRS = 10_000
"""Up to so many pairs both copies pass the model together, which saves calls; beyond, arrays would leave the caches."""


def _direction(pairs: Pairs, found: Residuals, volume: Tensor) -> Tensor:
    """[P, 3] change of the pair vectors per step along the direction: `q / V . r_ij - (p_j - p_i)`."""
    i, j = pairs.neighbours.i, pairs.neighbours.j
    change = torch.zeros_like(pairs.vectors) if found.to_forces is None else found.to_forces[i] - found.to_forces[j]
    if found.to_stress is not None:
        strain = 0.5 * (found.to_stress + found.to_stress.mT) / volume[:, None, None]
        of_pair = strain[pairs.structure.structure_of_atom[i]]
        change = change + (of_pair @ pairs.vectors[:, :, None])[:, :, 0]
    return change


def directional_backward(
    model: Potential, batch: Batch, config: LossConfig, weights: Weights, displacement: float
) -> Tensor:
    """Add the gradient of the loss of a batch to the parameters' `grad`; returns the loss.

    Arguments:
        batch: of pairs, whose list reaches `displacement` beyond the cutoff (see `prepare`).
        displacement: Å, by how much the pair vector that moves most does so, in each structure.
    """
    pairs = batch.geometry
    assert isinstance(pairs, Pairs)
    with torch.no_grad():
        found = residuals(predict(model, batch), batch, config, weights)
    change, owner = _direction(pairs, found, batch.volume), batch.owner[pairs.neighbours.i]
    farthest = torch.zeros_like(batch.volume).scatter_reduce(0, owner, change.norm(dim=1), "amax")
    # Where nothing pulls (no force labels, or none missed) a structure stays where it is.
    change = torch.where(farthest > 0.0, displacement / farthest, 0.0)[owner, None] * change
    slope = 0.5 * farthest / displacement
    value = found.value
    for signs in ((1.0, -1.0),) if len(change) <= _JOINED_PAIRS else ((1.0,), (-1.0,)):
        copies = join_pairs([pairs.displaced(sign * change) for sign in signs])
        energies, penalty = model.energies_and_penalty(copies.structure, copies.vectors, copies.neighbours)
        factors = torch.cat([0.5 * found.to_energy + sign * slope for sign in signs])
        part = (factors * copies.per_structure(energies)).sum()
        if penalty is not None and config.hierarchicality_weight > 0.0:
            share = 0.5 * len(signs) * config.hierarchicality_weight * penalty.mean()
            part, value = part + share, value + share.detach()
        part.backward()
    return value
