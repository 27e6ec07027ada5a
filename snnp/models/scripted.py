"""What the TorchScript twins of all families share: chunks of atoms, gradients, E0, repulsion.

A twin is the potential in the part of Python that TorchScript compiles: plain tensors, free of snnp when loaded, and
everything that the parameters fix worked out once, at construction. Tests hold each equal to its potential.
"""
# No `from __future__ import annotations` here: TorchScript needs the annotations themselves.

import torch
from ase.data import atomic_numbers
from torch import Tensor, nn

from snnp.models.potential import Potential
from snnp.models.repulsion import Repulsion

__all__ = ["Pairs", "ScriptedPotential"]

Pairs = tuple[Tensor, Tensor, Tensor]
_ALL_ATOMS = 2**62


class ScriptedPotential(nn.Module):
    """Base of the twins. A family gives `energies`, or its own `evaluate` if it has analytic gradients.

    Arguments:
        model: where the parameters come from (copied). forces: whether gradients are computed.
        chunks: how many atoms at a time, on a CPU and on a GPU.
    """

    real: Tensor
    reference: Tensor
    charge: Tensor

    def __init__(self, model: Potential, forces: bool, chunks: tuple[int, int] = (_ALL_ATOMS, _ALL_ATOMS)) -> None:
        super().__init__()
        self.forces, self.cutoff = forces, model.cutoff
        self.chunk_cpu, self.chunk_gpu = chunks
        self.register_buffer("real", torch.zeros(0, dtype=model.dtype, device=model.device))
        self.register_buffer("reference", model.energy_offsets().to(model.device, copy=True))
        charge = [float(atomic_numbers[symbol]) for symbol in model.elements]
        self.register_buffer("charge", torch.tensor(charge, dtype=torch.float64, device=model.device))
        found = model.repulsion
        self.repulsion = None if found is None else Repulsion(found.inner, found.outer)

    def energies(self, pairs: Pairs, species: Tensor, centre: Tensor) -> Tensor:
        """Energies [n] of the family in eV, differentiable in the vectors; arguments as of `make_shell`."""
        raise NotImplementedError

    def evaluate(self, pairs: Pairs, species: Tensor, centre: Tensor) -> tuple[Tensor, Tensor]:
        """Energies [n], and pair gradients [P, 3] or zeros; by automatic differentiation unless overridden."""
        row, j, vectors = pairs
        if not self.forces:
            return self.energies(pairs, species, centre), torch.zeros_like(vectors)
        # Whatever mode the caller is in. TorchScript knows this as a call, not as a context.
        before = torch.is_grad_enabled()
        torch.set_grad_enabled(True)
        vectors = vectors.detach().requires_grad_()
        energies = self.energies((row, j, vectors), species, centre)
        gradients = torch.zeros_like(vectors)
        if energies.requires_grad:
            found = torch.autograd.grad([energies.sum()], [vectors], allow_unused=True)[0]
            if found is not None:
                gradients = found
        torch.set_grad_enabled(before)
        return energies.detach(), gradients

    def forward(self, i: Tensor, j: Tensor, vectors: Tensor, species: Tensor) -> tuple[Tensor, Tensor]:
        """Energy [] float64 (eV, with E0 and repulsion) and pair gradients dE/dr_ij [P, 3] (eV/Å; zeros unless asked).

        `i`: [P] ascending, centre of each pair; `j`: [P] neighbour; `vectors`: [P, 3] Å, float64; `species`: [N].
        """
        n_atoms, real = species.shape[0], vectors.to(self.real.dtype)
        ends = torch.bincount(i, minlength=n_atoms).cumsum(0)
        energy, parts = self.reference[species].sum(), [torch.zeros_like(real[:0])]
        chunk = self.chunk_gpu if vectors.is_cuda else self.chunk_cpu
        begin = 0
        for first in range(0, n_atoms, chunk):
            last = min(first + chunk, n_atoms)
            end = int(ends[last - 1])
            centre = torch.arange(first, last, device=i.device)
            energies, part = self.evaluate((i[begin:end] - first, j[begin:end], real[begin:end]), species, centre)
            energy = energy + energies.double().sum()
            parts.append(part)
            begin = end
        gradients = torch.cat(parts)
        if self.repulsion is not None:
            outer = self.repulsion.outer
            close = (vectors.detach().square().sum(dim=1) < outer * outer).nonzero()[:, 0]
            vectors, charge = vectors[close], self.charge[species]
            distance = torch.linalg.vector_norm(vectors, dim=1)
            halves, slopes = self.repulsion(distance, charge[i[close]], charge[j[close]])
            energy = energy + halves.sum()
            gradients = gradients.index_add(0, close, ((slopes / distance).unsqueeze(1) * vectors).to(gradients.dtype))
        return energy, gradients
