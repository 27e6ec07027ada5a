"""Configuration of the s-NNP: everything that fixes its form, as plain JSON values."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import Annotated, ClassVar, Literal, get_args

from pydantic import Field, model_validator

from snnp.models.config import AngularReach, FamilyConfig, FormConfig, Layers, Reach, TensorShape
from snnp.splines import SplineGrid

__all__ = ["AngularConfig", "EmbeddingConfig", "GridName", "GridsConfig", "NetworkConfig", "RadialConfig"]
__all__ += ["SplineNNPConfig"]

_Filters = Annotated[int, Field(ge=0, le=65_536)]
_Intervals = Annotated[int, Field(ge=4, le=1000)]
_Grid = tuple[float, float, Annotated[int, Field(ge=1, le=20_000)]]
_Grids = Annotated[tuple[_Grid, ...], Field(min_length=1)]

_MOST_SMOOTH = 1000  # intervals: the map of their conditions has the square of it
_FARTHEST = {"pair": 30.0, "radial": 30.0, "angular": 15.0}  # Å

GridName = Literal["pair", "radial", "angular", "angle", "embedding"]


class RadialConfig(FormConfig):
    """Radial filters rho_a: `n_filters` splines of `intervals` intervals on [lower, cutoff] Å."""

    n_filters: _Filters = 16
    lower: float = Field(1.5, ge=0.0)
    cutoff: Reach = 5.0
    intervals: _Intervals = 14


class AngularConfig(FormConfig):
    """Three-body filters f_b (on [lower, cutoff] Å) and g_b (on [-1, 1]).

    `evaluator`: "spline" sums over pairs of neighbours with g exactly a cubic spline; "legendre" projects g on Legendre
    polynomials up to `degree` and factorises the sum through moments. `elements`: "shared" uses one g per filter,
    "pair" one per pair of neighbour elements.
    """

    n_filters: _Filters = 16
    lower: float = Field(1.5, ge=0.0)
    cutoff: AngularReach = 5.0
    intervals: _Intervals = 12
    evaluator: Literal["spline", "legendre"] = "legendre"
    degree: int = Field(4, ge=0, le=12)
    angle_intervals: int = Field(8, ge=1, le=1000)
    elements: Literal["shared", "pair"] = "shared"


class NetworkConfig(FormConfig):
    """The network NN: hidden layer sizes, activation, and constraints.

    `constraint`: "monotone" keeps all weights non-negative (energy never falls when a feature grows), "convex" keeps
    all weights after the first layer non-negative (the energy is convex in the features), "monotone-convex" is both.
    `elements`: one network per centre element, or one shared by all.
    """

    hidden: Layers = (64, 64)
    activation: Literal["silu", "tanh", "softplus"] = "silu"
    constraint: Literal["none", "monotone", "convex", "monotone-convex"] = "none"
    elements: Literal["element", "shared"] = "element"

    @model_validator(mode="after")
    def _check(self) -> NetworkConfig:
        if not self.hidden:
            raise ValueError("network.hidden needs at least one layer; use network: null for none")
        if self.constraint == "monotone" and self.activation == "silu":
            raise ValueError("constraint 'monotone' needs a non-decreasing activation: tanh or softplus")
        if "convex" in self.constraint and self.activation != "softplus":
            raise ValueError(f"constraint {self.constraint!r} needs the convex activation softplus")
        return self


class EmbeddingConfig(FormConfig):
    """Embedding splines U on [lower, upper], one set per centre element.

    `of`: "features" gives every feature its own spline, "sum" one spline of the sum of all features (EAM, s-MEAM).
    """

    lower: float = -2.0
    upper: float = 2.0
    intervals: int = Field(8, ge=1, le=1000)
    of: Literal["features", "sum"] = "features"


class GridsConfig(FormConfig):
    """Grids `(lower, upper, intervals)` per group, where groups differ, as in files; None: those of the other keys."""

    pair: _Grids | None = None
    radial: _Grids | None = None
    angular: _Grids | None = None
    angle: _Grids | None = None
    embedding: _Grids | None = None


class SplineNNPConfig(FamilyConfig):
    """The form of an s-NNP (design of Vita and Trinkle 2023, doi 10.1016/j.commatsci.2023.112655).

    `elements`: chemical symbols; in a training config left out, they come from the data. `filters`: radial functions
    rho and f are "shared" by all elements, one set per neighbour "element", or one per ordered "pair" (centre,
    neighbour). `ends`: "smooth" lets every radial function vanish with slope and curvature at its cutoff and become
    constant below its grid; "free" leaves both ends as they are (tangent continuation).
    """

    family: ClassVar[str] = "s-nnp"

    filters: Literal["shared", "element", "pair"] = "element"
    ends: Literal["smooth", "free"] = "smooth"
    radial: RadialConfig = RadialConfig()
    angular: AngularConfig = AngularConfig()
    pair_term: bool = False
    network: NetworkConfig | None = NetworkConfig()
    skip: bool = True
    embedding: EmbeddingConfig | None = None
    grids: GridsConfig = GridsConfig()

    @model_validator(mode="after")
    def _check(self) -> SplineNNPConfig:
        if self.radial.n_filters + self.angular.n_filters == 0:
            raise ValueError("radial.n_filters and angular.n_filters are both zero: nothing would see the neighbours")
        if self.network is None and not self.skip and self.embedding is None:
            raise ValueError("without network, skip, and embedding no energy comes out: keep at least one")
        for kind in get_args(GridName):
            if (grids := getattr(self.grids, kind)) is None:
                continue
            if self.elements and len(grids) != self.n_groups(kind):
                raise ValueError(f"grids.{kind} holds {len(grids)} grids for {self.n_groups(kind)} groups")
            farthest, most = max(upper for _, upper, _ in grids), max(n for _, _, n in grids)
            if farthest > _FARTHEST.get(kind, math.inf):
                raise ValueError(f"grids.{kind} reaches {farthest:g} Å, more than the {_FARTHEST[kind]:g} Å allowed")
            if kind in _FARTHEST and self.ends == "smooth" and most > _MOST_SMOOTH:
                raise ValueError(f"grids.{kind} has {most} intervals; smooth ends allow {_MOST_SMOOTH}")
        return self

    @property
    def n_elements(self) -> int:
        """Z."""
        return len(self.elements)

    @property
    def n_features(self) -> int:
        """D: radial plus three-body features."""
        return self.radial.n_filters + self.angular.n_filters

    def n_groups(self, kind: GridName) -> int:
        """Number of groups of one kind of spline."""
        z = self.n_elements
        if kind in ("radial", "angular"):
            return {"shared": 1, "element": z, "pair": z * z}[self.filters]
        unordered = z * (z + 1) // 2
        return {"pair": unordered, "angle": unordered if self.angular.elements == "pair" else 1, "embedding": z}[kind]

    def tensors(self) -> Iterator[TensorShape]:
        """The tensors that a model of this form stores, one after the other; nothing is allocated."""
        tied = 5 if self.ends == "smooth" else 0  # coefficients that the conditions at both ends fix

        def splines(name: str, kind: GridName, n_filters: int, tied: int = 0) -> TensorShape:
            grids = self.grid(kind)
            return f"{name}.free", (len(grids), n_filters, max(grid.n_coefficients for grid in grids) - tied)

        yield splines("rho", "radial", self.radial.n_filters, tied)
        yield splines("f", "angular", self.angular.n_filters, tied)
        yield splines("g", "angle", self.angular.n_filters)
        if self.pair_term:
            yield splines("phi", "pair", 1, tied)
        yield from (("readout.mean", (self.n_features,)), ("readout.std", (self.n_features,)))
        if self.network is not None:
            copies = self.n_elements if self.network.elements == "element" else 1
            for k, (n_in, n_out) in enumerate(pairwise([self.n_features, *self.network.hidden, 1])):
                yield f"readout.network.weights.{k}", (copies, n_out, n_in)
                yield f"readout.network.biases.{k}", (copies, n_out)
        if self.skip:
            yield "readout.linear", (self.n_elements, self.n_features)
        if self.embedding is not None:
            yield splines("readout.embedding", "embedding", 1 if self.embedding.of == "sum" else self.n_features)

    def grid(self, kind: GridName) -> list[SplineGrid]:
        """Grids of all groups of one kind of spline."""
        explicit = getattr(self.grids, kind)
        if explicit is not None:
            return [SplineGrid(*entry) for entry in explicit]
        if kind == "angle":
            one = SplineGrid(-1.0, 1.0, self.angular.angle_intervals)
        elif kind == "embedding":
            assert self.embedding is not None
            one = SplineGrid(self.embedding.lower, self.embedding.upper, self.embedding.intervals)
        else:
            shape = self.angular if kind == "angular" else self.radial
            one = SplineGrid(shape.lower, shape.cutoff, shape.intervals)
        return [one] * self.n_groups(kind)

    @property
    def radial_cutoff(self) -> float:
        """Å, reach of the radial filters, the pair term and the repulsion."""
        reach = [g.upper for g in self.grid("radial")] if self.radial.n_filters else []
        reach += [g.upper for g in self.grid("pair")] if self.pair_term else []
        reach += [self.repulsion.outer] if self.repulsion else []
        return max([*reach, self.angular_cutoff if self.ends == "free" else 0.0])

    @property
    def angular_cutoff(self) -> float:
        """Å, reach of the three-body filters."""
        return max((g.upper for g in self.grid("angular")), default=0.0) if self.angular.n_filters else 0.0

    @property
    def reach(self) -> float:
        """Å, of anything."""
        return max(self.radial_cutoff, self.angular_cutoff)

    @property
    def summary(self) -> str:
        words = [f"{self.radial.n_filters} radial filters"]
        if self.angular.n_filters:
            limit = f", L = {self.angular.degree}" if self.angular.evaluator == "legendre" else ", exact spline angles"
            words.append(f"{self.angular.n_filters} three-body filters ({self.angular.cutoff:g} Å{limit})")
        words += [] if self.network is None else [f"network {'-'.join(map(str, self.network.hidden))}"]
        return ", ".join([*words, *(["linear skip"] if self.skip else [])])

    def ranged(self, shortest: float) -> SplineNNPConfig:
        """Filters begin at 0.8 d and must still be steep at d."""
        tree = self.model_dump()
        tree["radial"]["lower"] = tree["angular"]["lower"] = round(0.8 * shortest, 3)
        tree["repulsion"] = self.repulsion_from(shortest)
        return SplineNNPConfig.model_validate(tree)
