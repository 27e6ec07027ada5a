"""Configuration of the s-NNP: everything that fixes its form, as plain JSON values."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from snnp.splines import SplineGrid

__all__ = [
    "AngularConfig",
    "EmbeddingConfig",
    "GridsConfig",
    "NetworkConfig",
    "RadialConfig",
    "RepulsionConfig",
    "SplineNNPConfig",
]


class _Config(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class RadialConfig(_Config):
    """Radial filters rho_a: `n_filters` splines of `intervals` intervals on [lower, cutoff] Å."""

    n_filters: int = Field(16, ge=0)
    lower: float = Field(1.5, ge=0.0)
    cutoff: float = Field(5.0, gt=0.0)
    intervals: int = Field(14, ge=4)


class AngularConfig(_Config):
    """Three-body filters f_b (on [lower, cutoff] Å) and g_b (on [-1, 1]).

    `evaluator`: "spline" sums over pairs of neighbours with g exactly a cubic spline; "legendre" projects g on Legendre
    polynomials up to `degree` and factorises the sum through moments. `elements`: "shared" uses one g per filter,
    "pair" one per pair of neighbour elements.
    """

    n_filters: int = Field(16, ge=0)
    lower: float = Field(1.5, ge=0.0)
    cutoff: float = Field(5.0, gt=0.0)
    intervals: int = Field(12, ge=4)
    evaluator: Literal["spline", "legendre"] = "legendre"
    degree: int = Field(4, ge=0, le=12)
    angle_intervals: int = Field(8, ge=1)
    elements: Literal["shared", "pair"] = "shared"


class NetworkConfig(_Config):
    """The network NN: hidden layer sizes, activation, and constraints.

    `constraint`: "monotone" keeps all weights non-negative (energy never falls when a feature grows), "convex" keeps
    all weights after the first layer non-negative (the energy is convex in the features), "monotone-convex" is both.
    `elements`: one network per centre element, or one shared by all.
    """

    hidden: tuple[int, ...] = (64, 64)
    activation: Literal["silu", "tanh", "softplus"] = "silu"
    constraint: Literal["none", "monotone", "convex", "monotone-convex"] = "none"
    elements: Literal["element", "shared"] = "element"

    @model_validator(mode="after")
    def _check(self) -> NetworkConfig:
        if not self.hidden or min(self.hidden) < 1:
            raise ValueError("network.hidden needs at least one layer of positive size; use network: null for none")
        if self.constraint == "monotone" and self.activation == "silu":
            raise ValueError("constraint 'monotone' needs a non-decreasing activation: tanh or softplus")
        if "convex" in self.constraint and self.activation != "softplus":
            raise ValueError(f"constraint {self.constraint!r} needs the convex activation softplus")
        return self


class EmbeddingConfig(_Config):
    """Embedding splines U on [lower, upper], one set per centre element.

    `of`: "features" gives every feature its own spline, "sum" one spline of the sum of all features (EAM, s-MEAM).
    """

    lower: float = -2.0
    upper: float = 2.0
    intervals: int = Field(8, ge=1)
    of: Literal["features", "sum"] = "features"


class RepulsionConfig(_Config):
    """Screened nuclear repulsion, whole below `inner` and gone beyond `outer` (Å)."""

    inner: float = Field(gt=0.0)
    outer: float = Field(gt=0.0)

    @model_validator(mode="after")
    def _check(self) -> RepulsionConfig:
        if not self.outer > self.inner:
            raise ValueError("repulsion.outer must be larger than repulsion.inner")
        return self

    def check_within(self, cutoff: float) -> None:
        """Raise `ValueError` where the repulsion would reach farther than a model's cutoff (Å)."""
        if self.outer > cutoff:
            raise ValueError(f"repulsion.outer must not be larger than the cutoff, got {self.outer} and {cutoff} Å")


class GridsConfig(_Config):
    """Grids `(lower, upper, intervals)` per group, where groups differ (potentials read from files).

    None takes the grids from the other keys.
    """

    pair: tuple[tuple[float, float, int], ...] | None = None
    radial: tuple[tuple[float, float, int], ...] | None = None
    angular: tuple[tuple[float, float, int], ...] | None = None
    angle: tuple[tuple[float, float, int], ...] | None = None
    embedding: tuple[tuple[float, float, int], ...] | None = None


class SplineNNPConfig(_Config):
    """The form of an s-NNP (design of Vita and Trinkle 2023, doi 10.1016/j.commatsci.2023.112655).

    `elements`: chemical symbols; in a training config left out, they come from the data. `filters`: radial functions
    rho and f are "shared" by all elements, one set per neighbour "element", or one per ordered "pair" (centre,
    neighbour). `ends`: "smooth" lets every radial function vanish with slope and curvature at its cutoff and become
    constant below its grid; "free" leaves both ends as they are (tangent continuation).
    """

    elements: tuple[str, ...] = ()
    filters: Literal["shared", "element", "pair"] = "element"
    ends: Literal["smooth", "free"] = "smooth"
    radial: RadialConfig = RadialConfig()
    angular: AngularConfig = AngularConfig()
    pair_term: bool = False
    network: NetworkConfig | None = NetworkConfig()
    skip: bool = True
    embedding: EmbeddingConfig | None = None
    repulsion: RepulsionConfig | None = None
    grids: GridsConfig = GridsConfig()

    @model_validator(mode="after")
    def _check(self) -> SplineNNPConfig:
        if self.radial.n_filters + self.angular.n_filters == 0:
            raise ValueError("radial.n_filters and angular.n_filters are both zero: nothing would see the neighbours")
        if self.network is None and not self.skip and self.embedding is None:
            raise ValueError("without network, skip, and embedding no energy comes out: keep at least one")
        return self

    @property
    def n_elements(self) -> int:
        """Z."""
        return len(self.elements)

    @property
    def n_features(self) -> int:
        """D: radial plus three-body features."""
        return self.radial.n_filters + self.angular.n_filters

    @property
    def n_groups(self) -> int:
        """Number of groups of radial functions."""
        return {"shared": 1, "element": self.n_elements, "pair": self.n_elements**2}[self.filters]

    @property
    def n_pairs(self) -> int:
        """Number of unordered pairs of elements."""
        return self.n_elements * (self.n_elements + 1) // 2

    def grid(self, name: Literal["pair", "radial", "angular", "angle", "embedding"]) -> list[SplineGrid]:
        """Grids of all groups of one kind of spline."""
        explicit = getattr(self.grids, name)
        if explicit is not None:
            return [SplineGrid(*entry) for entry in explicit]
        if name == "angle":
            count = self.n_pairs if self.angular.elements == "pair" else 1
            return [SplineGrid(-1.0, 1.0, self.angular.angle_intervals)] * count
        if name == "embedding":
            assert self.embedding is not None
            return [SplineGrid(self.embedding.lower, self.embedding.upper, self.embedding.intervals)] * self.n_elements
        shape = self.angular if name == "angular" else self.radial
        count = self.n_pairs if name == "pair" else self.n_groups
        return [SplineGrid(shape.lower, shape.cutoff, shape.intervals)] * count

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
