r"""Atomic environment vectors (AEV): what an ANI network sees of an atom's surroundings.

For atom i, with neighbours j, k of elements s, t, and theta = arccos(0.95 cos theta_jik),

    G_s,k(i)   = 1/4 sum_j exp[-eta_R (r_ij - R_k)²] f_R(r_ij)
    G_st,az(i) = 2 sum_{j<k} Z_z(theta) exp[-eta_A ((r_ij + r_ik) / 2 - R_a)²] f_A(r_ij) f_A(r_ik)
    Z_z(theta) = [(1 + cos(theta - theta_z)) / 2]^zeta
    f(r)       = 1/2 [1 + cos(pi r / R_c)] inside the cutoff, zero outside

The factors 1/4, 0.95 and 2 are NeuroChem's; the order of the vector is radial terms by element, then angular terms by
unordered pair of elements (0,0), (0,1), ..., (1,1), ..., the sections z running fastest.

An angular term is a product of a radial factor [T, A] and an angular one [T, Z] of T triples. Triples of one atom and
one pair of elements stand side by side (see `snnp.models.ani.triples`), so that sums over them are matrix products.
Source: J. S. Smith, O. Isayev, A. E. Roitberg, Chem. Sci. 8, 3192 (2017), doi 10.1039/C6SC05720A.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field, model_validator
from torch import Tensor

from snnp.exact import ExactModule
from snnp.models.ani.triples import Triples, make_triples
from snnp.models.config import AngularReach, FormConfig, Reach

__all__ = ["AEV", "ANGLE_FACTOR", "LEAST_EXPONENT", "AEVAngularConfig", "AEVConfig", "AEVRadialConfig", "AEVState"]

ANGLE_FACTOR = 0.95
"""NeuroChem's: keeps the sine away from zero, where the derivative of an angle is infinite."""

LEAST_EXPONENT = -40.0
"""exp of it, 4e-18, stands for everything smaller."""

_SHARPEST = 1e6  # of a Gaussian (1/Å²) or a power; from infinity times zero come forces that are no numbers
_Place = Annotated[float, Field(ge=-100.0, le=100.0)]


class AEVRadialConfig(FormConfig):
    """Radial terms: Gaussians of width `eta` (1/Å²) at `shifts` (Å), up to `cutoff` (Å)."""

    eta: float = Field(16.0, gt=0.0, le=_SHARPEST)
    shifts: tuple[_Place, ...] = Field(tuple(0.9 + 0.26875 * k for k in range(16)), min_length=1, max_length=1000)
    cutoff: Reach = 5.2


class AEVAngularConfig(FormConfig):
    """Angular terms: `eta` (1/Å²) at `shifts` (Å) times power `zeta` at angles `sections` (rad), up to `cutoff` (Å)."""

    eta: float = Field(8.0, gt=0.0, le=_SHARPEST)
    zeta: float = Field(32.0, gt=0.0, le=_SHARPEST)
    shifts: tuple[_Place, ...] = Field((0.9, 1.55, 2.2, 2.85), min_length=1, max_length=1000)
    sections: tuple[float, ...] = Field(
        tuple(math.pi * (2 * k + 1) / 16 for k in range(8)), min_length=1, max_length=1000
    )
    cutoff: AngularReach = 3.5

    @model_validator(mode="after")
    def _check(self) -> AEVAngularConfig:
        # Between them the base of the power stays positive, whatever the angle.
        if min(self.sections) < 0.0 or max(self.sections) > math.pi:
            raise ValueError(
                f"sections must lie between 0 and pi (rad), got {min(self.sections)} to {max(self.sections)}"
            )
        return self


class AEVConfig(FormConfig):
    """The form of the vector; the defaults are those of ANI-1x and ANI-1ccx."""

    radial: AEVRadialConfig = AEVRadialConfig()
    angular: AEVAngularConfig = AEVAngularConfig()

    @property
    def cutoff(self) -> float:
        """Å, the farther of the two reaches."""
        return max(self.radial.cutoff, self.angular.cutoff)

    def length(self, n_elements: int) -> int:
        """D for a number of elements."""
        n_pairs = n_elements * (n_elements + 1) // 2
        n_angular = len(self.angular.shifts) * len(self.angular.sections)
        return n_elements * len(self.radial.shifts) + n_pairs * n_angular


@dataclass(frozen=True)
class AEVState:
    """What the backward pass needs of the forward one: P pairs, Q + 1 angular pairs (the last is padding), T triples.

    Arguments:
        key: [P] atom and element of each pair; distance: [P] Å; unit: [P, 3]; gaussians: [P, K].
        near: [Q] the pairs that are angular, sorted by atom and element.
        near_distance: [Q + 1]; near_unit: [Q + 1, 3]; triples: of the angular pairs.
        cosine, mean, weight: [T] cosine, mean distance and product of cutoffs of each triple.
        shells: [T, A]; base, powers: [T, Z].
    """

    key: Tensor
    distance: Tensor
    unit: Tensor
    gaussians: Tensor
    near: Tensor
    near_distance: Tensor
    near_unit: Tensor
    triples: Triples
    cosine: Tensor
    mean: Tensor
    weight: Tensor
    shells: Tensor
    base: Tensor
    powers: Tensor


class AEV(ExactModule):
    """Environment vectors and their pair gradients, for whichever elements are present."""

    def __init__(self, config: AEVConfig) -> None:
        super().__init__()
        self.config = config
        radial, angular = config.radial, config.angular
        double = torch.float64
        self.register_constant("radial_shifts", torch.tensor(radial.shifts, dtype=double))
        self.register_constant("angular_shifts", torch.tensor(angular.shifts, dtype=double))
        sections = torch.tensor(angular.sections, dtype=double)
        self.register_constant("half_sections", 0.5 * torch.stack([sections.cos(), sections.sin()]))

    radial_shifts: Tensor
    angular_shifts: Tensor
    half_sections: Tensor

    @property
    def sizes(self) -> tuple[int, int]:
        """Radial terms per element, angular terms per pair of elements."""
        return len(self.radial_shifts), len(self.angular_shifts) * self.half_sections.shape[1]

    def columns(self, present: list[int], n_elements: int) -> Tensor:
        """Where the terms of the elements `present` (ascending) stand in the vector of all elements."""
        n_radial, n_angular = self.sizes
        blocks = [torch.arange(s * n_radial, (s + 1) * n_radial) for s in present]
        for k, low in enumerate(present):
            for high in present[k:]:
                pair = low * n_elements - low * (low - 1) // 2 + (high - low)
                start = n_elements * n_radial + pair * n_angular
                blocks.append(torch.arange(start, start + n_angular))
        return torch.cat(blocks)

    def forward(self, row: Tensor, element: Tensor, vectors: Tensor, sizes: tuple[int, int]) -> tuple[Tensor, AEVState]:
        """Vectors [n, D] of n atoms, and the state for `pair_gradients`; twice differentiable in the pair vectors.

        Arguments:
            row: [P] ascending, the centre in [0, n); element: [P] of the neighbour, in [0, Z); vectors: [P, 3] Å.
            sizes: n, Z.
        """
        config = self.config
        distance = vectors.norm(dim=1)
        unit = vectors / distance[:, None]
        gaussians = _gaussians(distance, self.radial_shifts, config.radial.eta)
        inside = 0.25 * cosine_cutoff(distance, config.radial.cutoff)
        key = row * sizes[1] + element
        radial = gaussians.new_zeros(sizes[0] * sizes[1], gaussians.shape[1])
        radial = radial.index_add(0, key, gaussians * inside[:, None])

        near, triples = make_triples(key, element, distance.detach() < config.angular.cutoff, sizes)
        # Padding of triples is one more pair, beyond the cutoff.
        near_distance = torch.cat([distance[near], distance.new_full((1,), 2.0 * config.angular.cutoff)])
        near_unit = torch.cat([unit[near], unit.new_tensor([[1.0, 0.0, 0.0]])])
        cutoff = cosine_cutoff(near_distance, config.angular.cutoff)
        first, second = triples.first, triples.second
        cosine = (near_unit.index_select(0, first) * near_unit.index_select(0, second)).sum(dim=1)
        mean = 0.5 * (near_distance.index_select(0, first) + near_distance.index_select(0, second))
        weight = 2.0 * cutoff.index_select(0, first) * cutoff.index_select(0, second)
        shells = _gaussians(mean, self.angular_shifts, config.angular.eta)
        # [1 + cos(theta - theta_z)] / 2, and its power.
        base = torch.stack(_tilted(cosine), dim=1) @ self.half_sections + 0.5
        powers = _exp(base.log(), config.angular.zeta)
        angular = triples.products(shells * weight[:, None], powers)
        state = AEVState(
            *(key, distance, unit, gaussians, near, near_distance, near_unit, triples),
            *(cosine, mean, weight, shells, base, powers),
        )
        return torch.cat([radial.reshape(sizes[0], -1), angular.reshape(sizes[0], -1)], dim=1), state

    def pair_gradients(self, state: AEVState, gradient: Tensor) -> Tensor:
        """dE/dr_ij [P, 3] from dE/dG [n, D]."""
        n_pairs = len(state.triples.counts)
        split = gradient.shape[1] - n_pairs // max(1, len(gradient)) * self.sizes[1]
        slopes = self._radial_slopes(state, gradient[:, :split].reshape(-1, self.sizes[0]))
        angular = self._angular_gradients(state, gradient[:, split:])
        return (slopes[:, None] * state.unit).index_add(0, state.near, angular)

    def _radial_slopes(self, state: AEVState, h: Tensor) -> Tensor:
        """[P] dE/dr from h = dE/dG [n Z, K]."""
        config, distance = self.config.radial, state.distance
        weighted = state.gaussians * h.index_select(0, state.key)
        plain, shifted = (weighted @ _moments(self.radial_shifts)).unbind(dim=1)
        value, slope = cosine_cutoff(distance, config.cutoff), cosine_cutoff_slope(distance, config.cutoff)
        return 0.25 * (slope * plain - 2.0 * config.eta * value * (distance * plain - shifted))

    def _angular_gradients(self, state: AEVState, h: Tensor) -> Tensor:
        """[Q, 3] dE/dr_ij from h = dE/dG [n, pairs * A * Z]; per triple, W = sum_az h_az R_a Z_z."""
        config, triples = self.config.angular, state.triples
        over_sections, over_shells = triples.contractions(
            state.shells, state.powers, h.reshape(-1, len(self.angular_shifts), self.half_sections.shape[1])
        )
        value, shifted = ((over_sections * state.shells) @ _moments(self.angular_shifts)).unbind(dim=1)
        by_mean = -2.0 * config.eta * state.weight * (state.mean * value - shifted)
        turned = (over_shells * state.powers / state.base) @ self.half_sections.T
        tilted, sine = _tilted(state.cosine)
        by_cosine = turned[:, 0] - tilted / sine * turned[:, 1]
        by_cosine = by_cosine * state.weight * (ANGLE_FACTOR * config.zeta)
        distance, unit = state.near_distance, state.near_unit
        cutoff = cosine_cutoff(distance, config.cutoff)
        slope = cosine_cutoff_slope(distance, config.cutoff)
        # Per pair: the slope along it, sum by_cosine u_k, and sum by_cosine cos.
        sums = distance.new_zeros(len(distance), 5)
        for one, other in ((triples.first, triples.second), (triples.second, triples.first)):
            along = 2.0 * value * slope.index_select(0, one) * cutoff.index_select(0, other) + 0.5 * by_mean
            turn = by_cosine[:, None] * unit.index_select(0, other)
            columns = torch.cat([along[:, None], (by_cosine * state.cosine)[:, None], turn], dim=1)
            sums = sums.index_add(0, one, columns)
        sideways = (sums[:, 2:] - sums[:, 1:2] * unit) / distance[:, None]
        return (sums[:, :1] * unit + sideways)[:-1]


def cosine_cutoff(distance: Tensor, cutoff: float) -> Tensor:
    """f(r), zero beyond the cutoff."""
    return torch.where(distance < cutoff, 0.5 * torch.cos(distance * (math.pi / cutoff)) + 0.5, 0.0)


def cosine_cutoff_slope(distance: Tensor, cutoff: float) -> Tensor:
    """f'(r) in 1/Å, zero beyond the cutoff."""
    inside = -0.5 * math.pi / cutoff * torch.sin(distance * (math.pi / cutoff))
    return torch.where(distance < cutoff, inside, 0.0)


def _gaussians(distance: Tensor, shifts: Tensor, eta: float) -> Tensor:
    """[n, K] exp[-eta (r - R_k)²]."""
    away = distance[:, None] - shifts
    return _exp(away.square() if away.requires_grad else away.square_(), -eta)


def _exp(exponent: Tensor, factor: float) -> Tensor:
    """Exponential of `factor` times `exponent`, a number below zero; what is less than 1e-17 stays there.

    Gaussians far out and their products would otherwise be denormal numbers, which processors treat ten times slower.
    `exponent` is overwritten where no graph needs it: fresh memory costs more than the arithmetic.
    """
    if exponent.requires_grad:
        return torch.exp((factor * exponent).clamp(min=LEAST_EXPONENT))
    return exponent.mul_(factor).clamp_(min=LEAST_EXPONENT).exp_()


def _moments(shifts: Tensor) -> Tensor:
    """[K, 2] that sums over shifts, plain and times the shift."""
    return torch.stack([torch.ones_like(shifts), shifts], dim=1)


def _tilted(cosine: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine of theta = arccos(0.95 cos)."""
    tilted = ANGLE_FACTOR * cosine
    return tilted, (1.0 - tilted.square()).sqrt()
