"""Configuration of HIP-NN and HIP-NN-TS: everything that fixes the form of the network, as plain JSON values."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from snnp.models.config import RepulsionConfig

__all__ = ["HIPNNConfig"]


class HIPNNConfig(BaseModel):
    """The form of a HIP-NN (`l_max` 0) or HIP-NN-TS (`l_max` 1 or 2).

    `n_features` per atom, `n_sensitivities` radial functions in each of `n_interactions` interaction layers, which are
    followed by `n_atom_layers` on-site layers each. Sensitivities start with their centres evenly spaced in 1/r from
    `lower` to `upper` (Å) and end at `cutoff` (Å). `cusp` is what hippynn calls `cusp_reg`: added under the square root
    of tensor norms, so that they are smooth where a tensor vanishes. `repulsion` is no part of the network, and None in
    published ones.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    elements: tuple[str, ...] = ()
    n_features: int = Field(20, ge=1)
    n_sensitivities: int = Field(20, ge=1)
    n_interactions: int = Field(2, ge=1)
    n_atom_layers: int = Field(3, ge=0)
    lower: float = Field(0.85, gt=0.0)
    upper: float = Field(5.0, gt=0.0)
    cutoff: float = Field(6.0, gt=0.0)
    l_max: Literal[0, 1, 2] = 0
    activation: Literal["softplus", "silu", "tanh"] = "softplus"
    cusp: float = Field(1e-6, gt=0.0)
    repulsion: RepulsionConfig | None = None

    @model_validator(mode="after")
    def _check(self) -> HIPNNConfig:
        if not self.lower < self.upper:
            raise ValueError(f"upper must be larger than lower, got {self.upper} and {self.lower} Å")
        if self.repulsion is not None:
            self.repulsion.check_within(self.cutoff)
        return self

    @property
    def widths(self) -> tuple[int, ...]:
        """Features before each interaction layer and after the last: Z (one per element), then `n_features`."""
        return (len(self.elements), *(self.n_features for _ in range(self.n_interactions)))

    @property
    def n_components(self) -> int:
        """C: components of all tensors up to `l_max`."""
        return (self.l_max + 1) ** 2
