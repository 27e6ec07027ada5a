"""Families of potentials that can be trained: what differs between them, side by side."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel
from torch import Tensor

from snnp.models.ani.model import ANI, ANIConfig
from snnp.models.hipnn.model import HIPNN, HIPNNConfig, hierarchicality
from snnp.models.potential import Potential
from snnp.models.spline.config import RepulsionConfig, SplineNNPConfig
from snnp.models.spline.model import SplineNNP
from snnp.training.backends.pairs import Pairs

__all__ = ["FAMILIES", "Family", "ForceTraining", "family_of", "penalised_energies"]

ForceTraining = Literal["exact", "directional"]


@dataclass(frozen=True)
class Family:
    """A family of potentials, as training sees it.

    Arguments:
        config: its configuration; potential: builds it from configuration, E0 and `seed`.
        force_training: the faster way to the force gradients of a configuration, as measured on one CPU core
            (docs/studies/directional.md).
        cutoff: reach (Å) of a configuration.
        ranges: a configuration with what `ranges: auto` sets, given the shortest distance (Å) of the training set.
    """

    config: type[BaseModel]
    potential: Callable[..., Potential]
    force_training: Callable[[Any], ForceTraining]
    cutoff: Callable[[Any], float]
    ranges: Callable[[Any, float], BaseModel]


def _repulsion(config: SplineNNPConfig | HIPNNConfig | ANIConfig, shortest: float) -> RepulsionConfig:
    """The one that was asked for, or one that acts from 1.05 d inwards and is whole at 0.6 d."""
    if config.repulsion is not None:
        return config.repulsion
    outer = round(1.05 * shortest, 3)
    if not isinstance(config, SplineNNPConfig):  # the reach of which follows
        outer = min(outer, config.cutoff)
    return RepulsionConfig(inner=round(0.6 * shortest, 3), outer=outer)


def _spline_ranges(config: SplineNNPConfig, shortest: float) -> SplineNNPConfig:
    """Filters begin at 0.8 d and must still be steep at d."""
    lower = round(0.8 * shortest, 3)
    tree = config.model_dump()
    tree["radial"]["lower"] = tree["angular"]["lower"] = lower
    tree["repulsion"] = _repulsion(config, shortest)
    return SplineNNPConfig.model_validate(tree)


def _hip_ranges(config: HIPNNConfig, shortest: float) -> HIPNNConfig:
    """The innermost sensitivity is centred at the shortest distance, times 0.85 as in the paper's examples."""
    changes = {"lower": round(0.85 * shortest, 3), "repulsion": _repulsion(config, shortest)}
    return HIPNNConfig.model_validate({**config.model_dump(), **changes})


def _ani_ranges(config: ANIConfig, shortest: float) -> ANIConfig:
    """Shifts move to the interval from 0.9 d to the cutoff, and Gaussians widen with the distance between them."""
    tree = config.model_dump()
    for part in (tree["aev"]["radial"], tree["aev"]["angular"]):
        first, lower, cutoff = min(part["shifts"]), round(0.9 * shortest, 3), part["cutoff"]
        stretch = (cutoff - lower) / (cutoff - first)
        if stretch > 0.0:
            part["shifts"] = [round(lower + stretch * (shift - first), 6) for shift in part["shifts"]]
            part["eta"] = round(part["eta"] / stretch**2, 6)
    tree["repulsion"] = _repulsion(config, shortest)
    return ANIConfig.model_validate(tree)


FAMILIES: dict[str, Family] = {
    "s-nnp": Family(
        config=SplineNNPConfig,
        potential=SplineNNP,
        force_training=lambda _: "exact",
        cutoff=lambda config: max(config.radial_cutoff, config.angular_cutoff),
        ranges=_spline_ranges,
    ),
    "hip-nn": Family(
        config=HIPNNConfig,
        potential=HIPNN,
        force_training=lambda config: "directional" if config.l_max else "exact",
        cutoff=lambda config: config.cutoff,
        ranges=_hip_ranges,
    ),
    "ani": Family(
        config=ANIConfig,
        potential=ANI,
        force_training=lambda _: "directional",
        cutoff=lambda config: config.cutoff,
        ranges=_ani_ranges,
    ),
}


def family_of(config: BaseModel) -> str:
    """The name of the family that a configuration belongs to."""
    return next(name for name, family in FAMILIES.items() if isinstance(config, family.config))


def penalised_energies(model: Potential, pairs: Pairs) -> tuple[Tensor, Tensor | None]:
    """[N] energies without E0 and repulsion, and the family's own penalty [N] (HIP-NN: hierarchicality) of one pass."""
    arguments, species = (pairs.structure, pairs.vectors, pairs.neighbours), model.species(pairs.structure)
    if isinstance(model, HIPNN):
        terms = model.energy_terms(*arguments)
        return model.above_isolated(terms.sum(dim=1), species), hierarchicality(terms)
    return model.above_isolated(model.atomic_energies(*arguments), species), None
