"""HIP-NN in the part of Python that TorchScript compiles: the formulas of `layers.py` on dense rows of neighbours."""
# No `from __future__ import annotations` here: TorchScript needs the annotations themselves.

import copy
import math

import torch
from torch import Tensor, nn

from snnp.harmonics import Harmonics
from snnp.models.gradients import Shell, activate, make_shell
from snnp.models.hipnn.layers import Block
from snnp.models.hipnn.model import HIPNN
from snnp.models.scripted import Pairs, ScriptedPotential

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


class ScriptedHIPNN(ScriptedPotential):
    """The twin of a `HIPNN`; all atoms at once, because features pass between them."""

    bare: Tensor
    factors: Tensor

    def __init__(self, model: HIPNN, forces: bool) -> None:
        super().__init__(model, forces)
        activation = model.config.activation
        self.harmonics = Harmonics(model.config.l_max).to(model.angles.factors)
        self.register_buffer("factors", model.angles.factors.clone())
        self.blocks = nn.ModuleList(_Block(block, activation) for block in model.blocks if isinstance(block, Block))
        self.readouts = nn.ModuleList(copy.deepcopy(readout) for readout in list(model.readouts)[1:])
        # [Z, 1]: the first term of each element.
        self.register_buffer("bare", model.get_parameter("readouts.0.weight").detach().T.clone())

    def energies(self, pairs: Pairs, species: Tensor, centre: Tensor) -> Tensor:
        return self.of_shell(make_shell(pairs, species, centre, self.cutoff)[0], species)

    def of_shell(self, shell: Shell, species: Tensor) -> Tensor:
        """Energies [N] from the neighbours of all atoms."""
        cut = (torch.cos((0.5 * math.pi / self.cutoff) * shell.distance) * shell.mask).square()
        directions = (self.harmonics(shell.unit) * self.factors).transpose(1, 2)
        z = torch.eye(self.bare.shape[0], dtype=cut.dtype, device=cut.device)[species]
        total = self.bare[species]
        for block, readout in zip(self.blocks, self.readouts):  # noqa: B905  TorchScript knows no strict
            z = block(z, shell.j, shell.distance, cut, directions)
            total = total + readout(z)
        return total[:, 0]
