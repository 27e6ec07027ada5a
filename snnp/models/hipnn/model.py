r"""The hierarchically interacting particle neural network, with or without tensor sensitivities (HIP-NN, HIP-NN-TS).

    x_i  = sum_bv W_bva sum_j s_v(r_ij) z_j,b + (tensor norms) + (W z_i)_a + b_a        an interaction layer
    z'_i = R f(x_i) + z_i,  f = softplus                                       after it, and after each on-site layer
    s_v(r) = exp[-(1/r - 1/mu_v)² sigma_v² / 2] cos²(pi r / 2 R_c)
    E_i  = E0[z_i] + sum_n (w_n . z_i^n + b_n)                                 one term after each interaction layer

HIP-NN-TS adds to x_i the norms of the same sums weighted with the vector u_ij (`l_max` 1) and the traceless tensor u u
(`l_max` 2), each times a scale per feature. Terms of higher order should be smaller: `hierarchicality` measures it.

Sources: N. Lubbers, J. S. Smith, K. Barros, J. Chem. Phys. 148, 241715 (2018), doi 10.1063/1.5011181; M. Chigaev and
others, J. Chem. Phys. 158, 184108 (2023), doi 10.1063/5.0142127. Conventions follow hippynn.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from snnp.models.gradients import PairGradients, chunks, join_gradients, make_shell
from snnp.models.hipnn.config import HIPNNConfig
from snnp.models.hipnn.layers import Block, PairGeometry, Tensors, dense
from snnp.models.potential import Potential
from snnp.neighbours import Neighbours, neighbour_list
from snnp.structure import Structure

__all__ = ["HIPNN", "hierarchicality"]

_Back = Callable[[Tensor], tuple[Tensor, Tensor]]
_CHUNK_NUMBERS = 2**18  # V or F for each pair of a chunk of atoms: for inference its arrays (1 MB) stay in cache


class HIPNN(Potential):
    """HIP-NN (`l_max` 0) or HIP-NN-TS (`l_max` 1 or 2).

    `reference_energies`: E0 in eV per element (missing ones are zero). `seed`: for the initial weights.

    Example:
        >>> from ase.build import molecule
        >>> model = HIPNN(HIPNNConfig(elements=("H", "O")))
        >>> model.compute(Structure.from_ase(molecule("H2O"))).forces.shape
        torch.Size([3, 3])
    """

    config: HIPNNConfig

    def __init__(
        self, config: HIPNNConfig, reference_energies: dict[str, float] | None = None, *, seed: int = 0
    ) -> None:
        super().__init__(config.elements, reference_energies or {}, config.cutoff)
        self.config = config
        self.angles = Tensors(config.l_max)
        self.blocks = nn.ModuleList(Block(config, n_in) for n_in in config.widths[:-1])
        # The first term is a constant per element: no bias beside it.
        self.readouts = nn.ModuleList(dense(n, 1, bias=k > 0) for k, n in enumerate(config.widths))
        self.double()
        self.reset(seed)
        # From now on glibc keeps as much as this block, of up to 32 MB, when it is freed, in place of returning the
        # arrays of every call to the system: half the time of a batch of molecules. Untouched, it takes no memory.
        torch.empty(31 * 2**20, dtype=torch.uint8)

    @torch.no_grad()
    def reset(self, seed: int) -> None:
        """Draw the initial weights; the terms of the energy start small, that of the bare atom at zero."""
        generator = torch.Generator().manual_seed(seed)
        for block in self._blocks:
            block.reset(generator)
        for order, readout in enumerate(self._readouts):
            readout.weight.normal_(0.0, 0.1 * readout.in_features**-0.5, generator=generator)
            readout.weight.mul_(float(order > 0))
            if readout.bias is not None:
                readout.bias.zero_()

    @property
    def _blocks(self) -> list[Block]:
        return [block for block in self.blocks if isinstance(block, Block)]

    @property
    def _readouts(self) -> list[nn.Linear]:
        return [readout for readout in self.readouts if isinstance(readout, nn.Linear)]

    def energy_terms(self, structure: Structure, vectors: Tensor, neighbours: Neighbours) -> Tensor:
        """[N, n_interactions + 1] hierarchical terms of the energies in eV without E0, differentiable."""
        species = self.species(structure)
        everyone = torch.arange(structure.n_atoms, device=vectors.device)
        shell, _ = make_shell((neighbours.i, neighbours.j, vectors), species, everyone, self.cutoff)
        return torch.cat(self._forward(species, [self.angles.geometry(shell, self.cutoff)])[0], dim=1)

    def atomic_energies(self, structure: Structure, vectors: Tensor, neighbours: Neighbours) -> Tensor:
        """[N] energies without E0; differentiable, twice, in the vectors and the parameters."""
        return self.energy_terms(structure, vectors, neighbours).sum(dim=1)

    def energies_and_penalty(
        self, structure: Structure, vectors: Tensor, neighbours: Neighbours
    ) -> tuple[Tensor, Tensor | None]:
        """As the base; the penalty is the hierarchicality."""
        terms = self.energy_terms(structure, vectors, neighbours)
        return self.above_isolated(terms.sum(dim=1), self.species(structure)), hierarchicality(terms)

    def _forward(
        self, species: Tensor, geometries: list[PairGeometry]
    ) -> tuple[list[Tensor], list[Tensor], list[_Back]]:
        """Terms [N, 1] of each order, features before each layer, and each block's way back."""
        z = nn.functional.one_hot(species, len(self.elements)).to(self.dtype)
        terms, before, backs = [self._readouts[0](z)], [], []
        for block, readout in zip(self._blocks, self._readouts[1:], strict=True):
            before.append(z)
            z, back = block(torch.cat([block.interaction.tensors(z, part) for part in geometries]), z)
            backs.append(back)
            terms.append(readout(z))
        return terms, before, backs

    def _energies_and_pair_gradients(
        self, structure: Structure, neighbours: Neighbours
    ) -> tuple[Tensor, PairGradients]:
        """Analytic: layer by layer forwards and backwards."""
        species = self.species(structure)
        parts = self._geometries(structure, neighbours, species)
        terms, before, backs = self._forward(species, parts)
        totals = [torch.zeros_like(part.shell.unit) for part in parts]
        gradient = torch.zeros_like(self._readouts[-1].weight).expand(structure.n_atoms, -1)
        for order in range(self.config.n_interactions, 0, -1):
            block = self._blocks[order - 1]
            to_tensors, gradient = backs[order - 1](gradient + self._readouts[order].weight)
            for part, total in zip(parts, totals, strict=True):
                rows = to_tensors[part.shell.centre]
                along, turn, to_j = block.interaction.backward_pairs(
                    before[order - 1], part, rows, to_features=order > 1
                )
                total += self.angles.pair_gradients(part, along, turn)
                if to_j is not None:
                    gradient.index_add_(0, part.shell.j.flatten(), to_j.flatten(0, 1))
        pieces = [part.shell.pair_gradients(total) for part, total in zip(parts, totals, strict=True)]
        return torch.cat(terms, dim=1).sum(dim=1), join_gradients(pieces)

    def _geometries(self, structure: Structure, neighbours: Neighbours, species: Tensor) -> list[PairGeometry]:
        """Chunks of atoms, in order; at least one."""
        n_atoms, config = structure.n_atoms, self.config
        n_pairs = _CHUNK_NUMBERS // max(config.n_features, config.n_sensitivities)
        n_pairs = n_pairs // 2 if config.l_max else n_pairs
        n_chunk = max(1, n_pairs * n_atoms // max(1, neighbours.n_pairs))
        bounds = [*range(0, max(n_atoms, 1), n_chunk), n_atoms]
        return [
            self.angles.geometry(make_shell(pairs, species, centre, self.cutoff)[0], self.cutoff)
            for centre, pairs in chunks(neighbours, self._vectors(structure, neighbours), n_atoms, bounds)
        ]

    # The hierarchy.

    def hierarchical_energies(self, structure: Structure) -> Tensor:
        """[N, n_interactions + 1] float64 terms of each atom's energy in eV; rows sum to `energies`.

        Order 0 holds all that is no term of the network: E0 (less the energy of the atom alone, where E0 is that) and
        the repulsion. Raises as `compute`.
        """
        structure = structure.to(device=self.device)
        neighbours = neighbour_list(structure, self.cutoff)
        with torch.no_grad():
            vectors = self._vectors(structure, neighbours)
            terms = self.energy_terms(structure, vectors, neighbours).double()
            terms[:, 0] += self.energy_offsets().to(self.device)[self.species(structure)]
            if self.repulsion is not None:
                terms[:, 0] += self.repulsion_energies(structure, vectors, neighbours)[0]
        return terms

    def hierarchicality(self, structure: Structure) -> Tensor:
        """[N] R of each atom, see the function of the same name: large where the network is unsure of itself."""
        return hierarchicality(self.hierarchical_energies(structure))


def hierarchicality(terms: Tensor) -> Tensor:
    """`R_i = sum_n E_n² / (E_n² + E_(n-1)²)` [N] of hierarchical terms [N, n_interactions + 1]; differentiable.

    Small where each order is a small correction to the one before. As a regulariser its mean is added to the loss; as
    a sign of uncertainty it is compared between structures or atoms (Lubbers and others 2018).
    """
    squares = terms.square()
    tiny = torch.finfo(terms.dtype).tiny  # 0 / 0 is 0: an order that adds nothing is no cause for doubt
    return (squares[:, 1:] / (squares[:, 1:] + squares[:, :-1] + tiny)).sum(dim=1)
