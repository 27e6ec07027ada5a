"""What a trajectory is driven through: temperature and density as functions of time, and how both are drawn.

    x(t) = x0 + (x1 - x0) t / t_max + A sin²(pi t / P)

The form, and the ranges from which the usual settings start, are those of the nonequilibrium sampling of ANI-Al
(Smith et al., Nat. Commun. 12, 1257 (2021)).
"""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from snnp.distillation.settings import NamedSettings

__all__ = ["SamplingSettings", "Schedule"]

Range = tuple[float, float]

_USUAL: dict[str, dict[str, Any]] = {
    "metal": {
        "temperatures_k": (100.0, 3000.0),
        "swing_k": (0.0, 1000.0),
        "placement_density": (0.7, 1.3),
        "density_change": (0.85, 1.15),
        "density_swing": (-0.1, 0.1),
        "closest": 0.9,
        "force_scale": 0.5,
    },
    "semiconductor": {
        "temperatures_k": (100.0, 3000.0),
        "swing_k": (0.0, 1000.0),
        "placement_density": (0.7, 1.3),
        "density_change": (0.9, 1.1),
        "density_swing": (-0.08, 0.08),
        "closest": 0.85,
        "force_scale": 0.7,
    },
    "molecule": {
        "temperatures_k": (100.0, 1000.0),
        "swing_k": (0.0, 500.0),
        "placement_density": (0.8, 1.2),
        "density_change": (0.95, 1.05),
        "density_swing": (0.0, 0.0),
        "closest": 0.9,
        "force_scale": 1.0,
    },
}


class Schedule(BaseModel):
    """One quantity over a trajectory: start, end and swing in its unit, period and length in ps."""

    model_config = ConfigDict(frozen=True)

    start: float
    end: float
    swing: float
    period_ps: float
    length_ps: float

    def at(self, time_ps: float) -> float:
        """Its value; beyond the length that of the end, with the swing."""
        part = min(time_ps / self.length_ps, 1.0)
        wave = math.sin(math.pi * time_ps / self.period_ps)
        return self.start + (self.end - self.start) * part + self.swing * wave * wave


class SamplingSettings(NamedSettings):
    """How a committee of models samples; what depends on the kind of matter has the usual value of `system`.

    Pairs are ranges, from which each trajectory draws a value of its own. A frame is harvested where one of the limits
    is crossed: spread of the energy, of forces in the mean, and of the force that is least certain. Those of forces are
    fractions of sqrt(force_scale² + mean square of the frame's own forces): what is far from rest may be less certain.

    Raises:
        ConfigError: names the key, and what was expected.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    system: Literal["metal", "semiconductor", "molecule"] = Field("metal", description="Whose usual values apply")
    elements: tuple[str, ...] = Field((), description="Of random placements, in random proportions")
    formula: str | None = Field(None, description="Of random placements, such as Al2O3, in place of elements")
    n_atoms: tuple[int, int] = Field((8, 32), description="Atoms of random placements")
    placement_density: Range = Field(description="Of random placements, of the reference density")
    reference_density: float | None = Field(
        None, gt=0.0, description="g/cm³; by default that of the elements' crystals, or by covalent radii"
    )
    closest: float = Field(
        gt=0.0,
        description="Shortest distance of random placements, of the sum of covalent radii; less where the density "
        "leaves no room for it",
    )
    trajectories: int = Field(64, ge=1, description="Number of trajectories")
    together: int = Field(16, ge=1, description="How many of them run at the same time")
    picoseconds: float = Field(5.0, gt=0.0, description="Length of a trajectory that nothing ends")
    dt_fs: float | None = Field(None, gt=0.0, description="Time step; by default 0.5, 1 or 2 by the lightest atom")
    friction_per_ps: float = Field(20.0, gt=0.0, description="Langevin friction")
    temperatures_k: Range = Field(description="Of start and end")
    swing_k: Range = Field(description="A of the temperature")
    density_change: Range = Field(description="Density of the end over that of the start (periodic structures)")
    density_swing: Range = Field(description="A of the density, of that of the start")
    period_ps: Range = Field((2.0, 10.0), description="P of temperature and density")
    check_steps: int = Field(20, ge=1, description="Steps between two looks at the spread")
    energy_limit: float = Field(0.01, gt=0.0, description="Spread of the energy, eV/atom")
    force_limit: float = Field(0.1, gt=0.0, description="Mean spread of forces, of the force scale")
    largest_force_limit: float = Field(0.3, gt=0.0, description="Largest spread of a force, of the force scale")
    force_scale: float = Field(gt=0.0, description="eV/Å; see above")
    fused: float = Field(0.55, gt=0.0, description="Distance that ends a trajectory, of the sum of covalent radii")
    give_up: float = Field(8.0, ge=1.0, description="Spread, in units of its limit, that ends a trajectory")
    most_frames_each: int = Field(3, ge=1, description="Frames of one trajectory, which ends with the last of them")
    apart_ps: float = Field(0.2, ge=0.0, description="Time between two frames of a trajectory, at least")
    most_frames: int | None = Field(None, ge=1, description="Frames in all, of which the most different are kept")

    @model_validator(mode="before")
    @classmethod
    def _usual(cls, values: Any) -> Any:
        return {**_USUAL.get(str(values.get("system", "metal")), {}), **values}

    @model_validator(mode="after")
    def _check(self) -> SamplingSettings:
        ranges = ("n_atoms", "placement_density", "temperatures_k", "swing_k", "density_change", "density_swing")
        for name in (*ranges, "period_ps"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"{name}: the first of a range is the lower one, got {low:g} and {high:g}")
            if low <= 0 and name not in ("swing_k", "density_swing"):
                raise ValueError(f"{name} must be positive, got {low:g}")
        coldest = self.temperatures_k[0] + min(self.swing_k[0], 0.0)
        thinnest = min(1.0, self.density_change[0]) + min(self.density_swing[0], 0.0)
        for name, least in (("swing_k", coldest), ("density_swing", thinnest)):
            if least <= 0:
                raise ValueError(f"{name} can bring temperature or density below zero; raise its lower bound")
        return self

    def schedules(self, rng: np.random.Generator) -> tuple[Schedule, Schedule]:
        """Temperature (K), and density in units of that of the start, of one trajectory."""
        t0, t1 = rng.uniform(*self.temperatures_k, 2).tolist()
        swings = [float(rng.uniform(*each)) for each in (self.swing_k, self.density_swing)]
        periods = rng.uniform(*self.period_ps, 2).tolist()
        change = float(rng.uniform(*self.density_change))
        ends = ((t0, t1), (1.0, change))
        one, other = (
            Schedule(start=start, end=end, swing=swing, period_ps=period, length_ps=self.picoseconds)
            for (start, end), swing, period in zip(ends, swings, periods, strict=True)
        )
        return one, other
