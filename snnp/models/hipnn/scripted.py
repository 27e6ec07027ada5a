"""HIP-NN in the part of Python that TorchScript compiles: plain tensors, free of snnp when loaded.

The formulas of `hipnn_layers.py`; gradients come from automatic differentiation inside the compiled module. Tests hold
both equal.
"""
# No `from __future__ import annotations` here: TorchScript needs the annotations themselves.

import copy
import math

import torch
from torch import Tensor, nn

from snnp.models.hipnn.layers import Block
from snnp.models.hipnn.model import HIPNN
from snnp.models.spline.readout import activate
from snnp.models.spline.scripted import make_dense

__all__ = ["ScriptedHIPNN"]


class _Block(nn.Module):
    """An interaction layer and the on-site layers after it: features [N, F_in] to [N, F_out]."""

    mu: Tensor
    sigma: Tensor
    weights: Tensor
    scales: Tensor

    def __init__(self, block: Block, activation: str) -> None:
        super().__init__()
        layer = block.interaction
        self.activation, self.l_max, self.cusp = activation, layer.l_max, layer.cusp
        scales = layer.mu.new_zeros(0) if layer.scales is None else layer.scales
        for name, value in (("mu", layer.mu), ("sigma", layer.sigma), ("weights", layer.weights), ("scales", scales)):
            self.register_buffer(name, value.detach().clone())
        self.own = copy.deepcopy(layer.own)
        self.adjust = copy.deepcopy(block.residual.adjust)
        self.first = copy.deepcopy(block.residual.linear)
        self.before = nn.ModuleList(copy.deepcopy(onsite.linear) for onsite in block.onsite)
        self.after = nn.ModuleList(copy.deepcopy(onsite.residual.linear) for onsite in block.onsite)

    def forward(self, z: Tensor, j: Tensor, distance: Tensor, cut: Tensor, directions: Tensor) -> Tensor:
        """New features; `j`, `distance`, `cut` [N, J], `directions` [N, C, J]."""
        t = (1.0 / distance.unsqueeze(1) - 1.0 / self.mu[:, None]) * self.sigma[:, None]
        sensitivities = torch.exp(-0.5 * t.clamp(-9.0, 9.0).square()) * cut.unsqueeze(1)
        neighbours = z.index_select(0, j.flatten()).reshape(j.shape[0], j.shape[1], -1).transpose(1, 2)
        sources = (directions.unsqueeze(2) * neighbours.unsqueeze(1)).flatten(1, 2)
        environment = sources @ sensitivities.transpose(1, 2)
        n_in, n_radial, n_out = self.weights.shape
        mixed = environment.reshape(-1, n_in * n_radial) @ self.weights.reshape(n_in * n_radial, n_out)
        tensors = mixed.reshape(j.shape[0], directions.shape[1], n_out)
        x = tensors[:, 0] + self.own(z)
        for degree in range(1, self.l_max + 1):
            part = tensors[:, degree * degree : (degree + 1) * (degree + 1)]
            x = x + self.scales[degree - 1] * (part.square().sum(dim=1) + self.cusp).sqrt()
        shortcut = z
        if self.adjust is not None:
            shortcut = self.adjust(z)
        z = self.first(activate(self.activation, x)[0]) + shortcut
        for before, after in zip(self.before, self.after):  # noqa: B905  TorchScript knows no strict
            z = after(activate(self.activation, before(z))[0]) + z
        return z


class ScriptedHIPNN(nn.Module):
    """Energies and pair gradients of a `HIPNN` without its repulsion, ready for `torch.jit.script`.

    Arguments:
        model: where the parameters come from (copied). forces: whether gradients are computed.
    """

    reference: Tensor

    def __init__(self, model: HIPNN, forces: bool) -> None:
        super().__init__()
        self.forces, self.cutoff, self.l_max = forces, model.cutoff, model.config.l_max
        self.register_buffer("reference", model.energy_offsets().to(model.device, copy=True))
        activation = model.config.activation
        self.blocks = nn.ModuleList(_Block(block, activation) for block in model.blocks if isinstance(block, Block))
        self.readouts = nn.ModuleList(copy.deepcopy(readout) for readout in list(model.readouts)[1:])
        # [Z, 1]: the first term of each element.
        self.register_buffer("bare", model.get_parameter("readouts.0.weight").detach().T.clone())
        self.requires_grad_(False)

    bare: Tensor

    def directions(self, unit: Tensor) -> Tensor:
        """[N, C, J] independent components of 1, u and u u - 1/3, orthonormal."""
        x, y, z = unit[..., 0], unit[..., 1], unit[..., 2]
        columns = [torch.ones_like(x)]
        if self.l_max > 0:
            columns += [x, y, z]
        if self.l_max > 1:
            columns += [math.sqrt(2.0) * x * y, math.sqrt(2.0) * y * z, math.sqrt(2.0) * z * x]
            columns += [(x * x - y * y) * math.sqrt(0.5), math.sqrt(1.5) * (z * z - 1.0 / 3.0)]
        return torch.stack(columns, dim=1)

    def energies(self, i: Tensor, j: Tensor, vectors: Tensor, species: Tensor) -> Tensor:
        """[N] without E0."""
        pairs = make_dense(i, species[j], vectors, species, self.cutoff)
        n_atoms, n_columns = pairs.distance.shape
        everyone = torch.arange(n_atoms, device=j.device)[:, None].repeat(1, n_columns)
        neighbour = everyone.index_put([pairs.row, pairs.column], j[pairs.kept])
        cut = (torch.cos((0.5 * math.pi / self.cutoff) * pairs.distance) * pairs.mask).square()
        directions = self.directions(pairs.unit)
        z = torch.eye(self.bare.shape[0], dtype=vectors.dtype, device=vectors.device)[species]
        total = self.bare[species]
        for block, readout in zip(self.blocks, self.readouts):  # noqa: B905  TorchScript knows no strict
            z = block(z, neighbour, pairs.distance, cut, directions)
            total = total + readout(z)
        return total[:, 0]

    def forward(self, i: Tensor, j: Tensor, vectors: Tensor, species: Tensor) -> tuple[Tensor, Tensor]:
        """Energy [] float64 (eV, with E0) and pair gradients dE/dr_ij [P, 3] (eV/Å; zeros unless asked for).

        Arguments:
            i: [P] ascending, centre of each pair; j: [P] neighbour; vectors: [P, 3] Å; species: [N].
        """
        vectors = vectors.to(self.bare.dtype)
        gradients = torch.zeros_like(vectors)
        if self.forces:
            # Whatever mode the caller is in. TorchScript knows this as a call, not as a context.
            before = torch.is_grad_enabled()
            torch.set_grad_enabled(True)
            vectors = vectors.detach().requires_grad_()
            energies = self.energies(i, j, vectors, species)
            found = torch.autograd.grad([energies.sum()], [vectors], allow_unused=True)[0]
            if found is not None:
                gradients = found
            energies = energies.detach()
            torch.set_grad_enabled(before)
        else:
            energies = self.energies(i, j, vectors, species)
        return energies.double().sum() + self.reference[species].sum(), gradients
