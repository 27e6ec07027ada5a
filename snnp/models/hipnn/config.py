"""Configuration of HIP-NN and HIP-NN-TS: everything that fixes the form of the network, as plain JSON values."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from snnp.models.config import FamilyConfig, ForceTraining, Reach, TensorShape, Width, linear_tensors

__all__ = ["HIPNNConfig"]

_Layers = Annotated[int, Field(le=64)]


class HIPNNConfig(FamilyConfig):
    """The form of a HIP-NN (`l_max` 0) or HIP-NN-TS (`l_max` 1 or 2).

    `n_features` per atom, `n_sensitivities` radial functions in each of `n_interactions` interaction layers, which are
    followed by `n_atom_layers` on-site layers each. Sensitivities start with their centres evenly spaced in 1/r from
    `lower` to `upper` (Å) and end at `cutoff` (Å). `cusp` is what hippynn calls `cusp_reg`: added under the square root
    of tensor norms, so that they are smooth where a tensor vanishes. `repulsion` is no part of the network, and None in
    published ones.
    """

    family: ClassVar[str] = "hip-nn"
    penalises: ClassVar[bool] = True

    n_features: Width = 20
    n_sensitivities: Width = 20
    n_interactions: _Layers = Field(2, ge=1)
    n_atom_layers: _Layers = Field(3, ge=0)
    lower: Reach = 0.85
    upper: Reach = 5.0
    cutoff: Reach = 6.0
    l_max: Literal[0, 1, 2] = 0
    activation: Literal["softplus", "silu", "tanh"] = "softplus"
    cusp: float = Field(1e-6, gt=0.0)

    @model_validator(mode="after")
    def _check(self) -> HIPNNConfig:
        if not self.lower < self.upper:
            raise ValueError(f"upper must be larger than lower, got {self.upper} and {self.lower} Å")
        return self

    @property
    def reach(self) -> float:
        """Å."""
        return self.cutoff

    @property
    def summary(self) -> str:
        words = [f"HIP-NN-TS with tensors up to l = {self.l_max}" if self.l_max else "HIP-NN"]
        words += [f"interaction layers: {self.n_interactions}", f"on-site layers after each: {self.n_atom_layers}"]
        return ", ".join([*words, f"{self.n_features} features", f"{self.n_sensitivities} sensitivities"])

    @property
    def force_training(self) -> ForceTraining:
        """Tensors cost more to differentiate twice."""
        return "directional" if self.l_max else "exact"

    def ranged(self, shortest: float) -> HIPNNConfig:
        """The innermost sensitivity is centred at the shortest distance, times 0.85 as in the paper's examples."""
        changes = {"lower": round(0.85 * shortest, 3), "repulsion": self.repulsion_from(shortest, self.cutoff)}
        return HIPNNConfig.model_validate({**self.model_dump(), **changes})

    @property
    def widths(self) -> tuple[int, ...]:
        """Features before each interaction layer and after the last: Z (one per element), then `n_features`."""
        return (len(self.elements), *(self.n_features for _ in range(self.n_interactions)))

    def tensors(self) -> Iterator[TensorShape]:
        width, radial = self.n_features, self.n_sensitivities
        for n, n_in in enumerate(self.widths[:-1]):
            interaction = f"blocks.{n}.interaction"
            yield from ((f"{interaction}.mu", (radial,)), (f"{interaction}.sigma", (radial,)))
            yield f"{interaction}.weights", (n_in, radial, width)
            if self.l_max:
                yield f"{interaction}.scales", (self.l_max, width)
            yield from linear_tensors(f"{interaction}.own", n_in, width)
            yield from linear_tensors(f"blocks.{n}.residual.linear", width, width)
            if n_in != width:
                yield from linear_tensors(f"blocks.{n}.residual.adjust", n_in, width, bias=False)
            for k in range(self.n_atom_layers):
                for name in ("linear", "residual.linear"):
                    yield from linear_tensors(f"blocks.{n}.layers.{k}.{name}", width, width)
        for k, n_in in enumerate(self.widths):
            yield from linear_tensors(f"readouts.{k}", n_in, 1, bias=k > 0)
