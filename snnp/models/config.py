"""What the configurations of all families share: strict values, bounds of sizes, the short-range repulsion."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal, Self

from pydantic import BaseModel, Field, model_validator

__all__ = ["AngularReach", "Elements", "FamilyConfig", "ForceTraining", "FormConfig", "Layers", "Reach"]
__all__ += ["RepulsionConfig", "TensorShape", "Width", "linear_tensors"]

# Far beyond every potential that was ever published; what a file from elsewhere states above it is no potential.
Elements = Annotated[tuple[str, ...], Field(max_length=118)]
Width = Annotated[int, Field(ge=1, le=65_536)]
Layers = Annotated[tuple[Width, ...], Field(max_length=64)]
Reach = Annotated[float, Field(gt=0.0, le=30.0)]
"""Å. Copper has 9,600 neighbours within 30 Å."""
AngularReach = Annotated[float, Field(gt=0.0, le=15.0)]

ForceTraining = Literal["exact", "directional"]
TensorShape = tuple[str, tuple[int, ...]]
"""Name and shape of a stored tensor."""


class FormConfig(BaseModel, extra="forbid", frozen=True, allow_inf_nan=False):
    """Base of what fixes the form of a potential: no unknown keys, no NaN, no infinities."""


class RepulsionConfig(FormConfig):
    """Screened nuclear repulsion, whole below `inner` and gone beyond `outer` (Å)."""

    inner: Reach
    outer: Reach

    @model_validator(mode="after")
    def _check(self) -> RepulsionConfig:
        if not self.outer > self.inner:
            raise ValueError("repulsion.outer must be larger than repulsion.inner")
        return self


class FamilyConfig(FormConfig):
    """What the configuration of every family says of its form.

    `family`: its name. `penalises`: whether its potentials give a penalty to `Potential.energies_and_penalty`.
    """

    family: ClassVar[str]
    penalises: ClassVar[bool] = False

    elements: Elements = ()
    repulsion: RepulsionConfig | None = None

    @model_validator(mode="after")
    def _check_repulsion(self) -> Self:
        if self.repulsion is not None and (outer := self.repulsion.outer) > self.reach:
            raise ValueError(f"repulsion.outer must not be larger than the cutoff, got {outer} and {self.reach} Å")
        return self

    @property
    @abstractmethod
    def reach(self) -> float:
        """Å, the largest distance at which atoms act on each other."""

    @property
    def summary(self) -> str:
        """The form in a few words."""
        return type(self).__name__.removesuffix("Config")

    @property
    def force_training(self) -> ForceTraining:
        """The faster way to force gradients, as measured on one CPU core (docs/studies/directional.md)."""
        return "exact"

    @abstractmethod
    def tensors(self) -> Iterator[TensorShape]:
        """The tensors that a model of this form stores, one after the other; nothing is allocated."""

    @abstractmethod
    def ranged(self, shortest: float) -> Self:
        """The same with what `ranges: auto` sets, given the shortest distance (Å) of the training set."""

    def repulsion_from(self, shortest: float, farthest: float = math.inf) -> RepulsionConfig:
        """The one that was asked for, or one that acts from 1.05 d inwards (Å) and is whole at 0.6 d."""
        outer = min(round(1.05 * shortest, 3), farthest)
        return self.repulsion or RepulsionConfig(inner=round(0.6 * shortest, 3), outer=outer)


def linear_tensors(name: str, n_in: int, n_out: int, *, bias: bool = True) -> Iterator[TensorShape]:
    """Those of `torch.nn.Linear`."""
    yield f"{name}.weight", (n_out, n_in)
    if bias:
        yield f"{name}.bias", (n_out,)
