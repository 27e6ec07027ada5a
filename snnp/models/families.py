"""Families of potentials: one record for each. A new one is a folder and a line below (docs/add-a-family.md)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from snnp.models.ani.model import ANI, ANIConfig
from snnp.models.ani.scripted import ScriptedANI
from snnp.models.config import FamilyConfig
from snnp.models.hipnn.config import HIPNNConfig
from snnp.models.hipnn.model import HIPNN
from snnp.models.hipnn.scripted import ScriptedHIPNN
from snnp.models.potential import Potential
from snnp.models.spline.config import SplineNNPConfig
from snnp.models.spline.model import SplineNNP
from snnp.models.spline.scripted import ScriptedSplineNNP

__all__ = ["FAMILIES", "Family", "family_of"]


@dataclass(frozen=True)
class Family:
    """A family of potentials.

    Arguments:
        config: everything that fixes the form; its `family` is the name.
        potential: a `Potential`, made in float64 from a configuration, E0 (eV per element) and `seed`; files name its
            class.
        scripted: the twin that TorchScript compiles, of a potential and whether forces are wanted; None if it has none.
    """

    config: type[FamilyConfig]
    potential: type[Any]
    scripted: Callable[[Any, bool], nn.Module] | None = None


# Written out: nothing is ever imported because a file says so.
FAMILIES = {
    family.config.family: family
    for family in (
        Family(SplineNNPConfig, SplineNNP, ScriptedSplineNNP),
        Family(HIPNNConfig, HIPNN, ScriptedHIPNN),
        Family(ANIConfig, ANI, ScriptedANI),
    )
}
"""By name, as configurations of training runs have it."""


def family_of(model: Potential | str) -> Family | None:
    """The family of a potential, or of the name of its class in a file."""
    for family in FAMILIES.values():
        if model == family.potential.__name__ or isinstance(model, family.potential):
            return family
    return None
