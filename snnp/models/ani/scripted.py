"""ANI in the part of Python that TorchScript compiles: the formulas of `aev.py` on dense rows of neighbours."""
# No `from __future__ import annotations` here: TorchScript needs the annotations themselves.

import copy

import torch
from torch import Tensor, nn

from snnp.models.ani.aev import ANGLE_FACTOR, LEAST_EXPONENT, cosine_cutoff
from snnp.models.ani.model import ANI
from snnp.models.gradients import Shell, make_shell
from snnp.models.scripted import Pairs, ScriptedPotential

__all__ = ["ScriptedANI"]

_CHUNK = 256  # atoms whose vectors are computed at once


class ScriptedANI(ScriptedPotential):
    """The twin of an `ANI`."""

    radial_shifts: Tensor
    angular_shifts: Tensor
    half_sections: Tensor

    def __init__(self, model: ANI, forces: bool) -> None:
        super().__init__(model, forces, (_CHUNK, _CHUNK))
        self.n_elements = len(model.elements)
        radial, angular = model.config.aev.radial, model.config.aev.angular
        self.radial_cutoff, self.radial_eta = radial.cutoff, radial.eta
        self.angular_cutoff, self.angular_eta, self.zeta = angular.cutoff, angular.eta, angular.zeta
        self.angle_factor, self.least = ANGLE_FACTOR, LEAST_EXPONENT
        for name in ("radial_shifts", "angular_shifts", "half_sections"):
            self.register_buffer(name, getattr(model.aev, name).clone())
        self.networks = nn.ModuleList(copy.deepcopy(model.network(symbol)) for symbol in model.elements)

    def exponential(self, exponent: Tensor) -> Tensor:
        """Clear of denormal numbers."""
        return torch.exp(exponent.clamp(min=self.least))

    def features(self, far: Shell, near: Shell) -> Tensor:
        """[n, D] from neighbours within the radial and the angular cutoff."""
        gaussians = self.exponential(-self.radial_eta * (far.distance.unsqueeze(-1) - self.radial_shifts).square())
        gaussians = gaussians * (0.25 * cosine_cutoff(far.distance, self.radial_cutoff) * far.mask).unsqueeze(-1)
        parts: list[Tensor] = []
        for a in range(self.n_elements):
            parts.append((gaussians * (far.channel == a).unsqueeze(-1)).sum(dim=1))
        n_columns = near.distance.shape[1]
        # Pairs first < second by a formula: `torch.export` would fix the shape of `triu_indices`.
        pair = torch.arange(n_columns * (n_columns - 1) // 2, device=near.j.device)
        second = ((1.0 + (1.0 + 8.0 * pair.double()).sqrt()) / 2.0).floor().to(torch.int64)
        first = pair - second * (second - 1) // 2
        cosine = self.angle_factor * (near.unit @ near.unit.transpose(1, 2))[:, first, second]
        mean = 0.5 * (near.distance[:, first] + near.distance[:, second])
        cut = cosine_cutoff(near.distance, self.angular_cutoff) * near.mask
        weight = 2.0 * cut[:, first] * cut[:, second]
        shells = self.exponential(-self.angular_eta * (mean.unsqueeze(-1) - self.angular_shifts).square())
        turned = torch.stack([cosine, (1.0 - cosine.square()).sqrt()], dim=-1)
        powers = self.exponential(self.zeta * (turned @ self.half_sections + 0.5).log())
        low = torch.minimum(near.channel[:, first], near.channel[:, second])
        high = torch.maximum(near.channel[:, first], near.channel[:, second])
        for a in range(self.n_elements):
            for b in range(a, self.n_elements):
                mine = (weight * ((low == a) & (high == b))).unsqueeze(-1)
                parts.append(((shells * mine).transpose(1, 2) @ powers).flatten(1))
        return torch.cat(parts, dim=1)

    def energies(self, pairs: Pairs, species: Tensor, centre: Tensor) -> Tensor:
        far, _ = make_shell(pairs, species, centre, self.radial_cutoff)
        features = self.features(far, make_shell(pairs, species, centre, self.angular_cutoff)[0])
        total = torch.zeros_like(features[:, 0])
        for element, network in enumerate(self.networks):
            mine = (species[centre] == element).nonzero()[:, 0]
            if mine.shape[0] > 0:
                total = total.index_add(0, mine, network(features.index_select(0, mine)))
        return total
