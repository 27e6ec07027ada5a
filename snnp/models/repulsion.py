r"""Short-range repulsion: the screened nuclear potential of Ziegler, Biersack and Littmark, switched off smoothly.

    phi(r) = Z_i Z_j e² / r * chi(r / a) * w(r),   a = 0.46850 Å / (Z_i^0.23 + Z_j^0.23)

with w = 1 below `inner`, 0 beyond `outer` and the quintic step between them (value, slope and curvature continuous).
Source: J. F. Ziegler, J. P. Biersack, U. Littmark, The Stopping and Range of Ions in Matter (1985).
"""

# No `from __future__ import annotations` here: TorchScript needs the annotations themselves.

import torch
from torch import Tensor, nn

from snnp.units import COULOMB_EV_ANGSTROM

__all__ = ["AMPLITUDES", "DECAYS", "SCREENING_LENGTH", "Repulsion"]

AMPLITUDES = (0.18175, 0.50986, 0.28022, 0.02817)
DECAYS = (3.19980, 0.94229, 0.40290, 0.20162)
SCREENING_LENGTH = 0.46850  # Å


class Repulsion(nn.Module):
    """The potential of one range, for eager use and inside TorchScript. `inner`, `outer`: Å, ends of the switch."""

    def __init__(self, inner: float, outer: float) -> None:
        super().__init__()
        self.inner, self.outer = inner, outer
        self.screening, self.strength = SCREENING_LENGTH, 0.5 * COULOMB_EV_ANGSTROM
        self.terms = list(zip(AMPLITUDES, DECAYS, strict=True))

    def forward(self, r: Tensor, zi: Tensor, zj: Tensor) -> tuple[Tensor, Tensor]:
        """Half of each pair's energy in eV, and its slope in eV/Å; all of the shape of the distances `r` (Å).

        `zi`, `zj`: atomic numbers in the float type of `r`.
        """
        decay = (zi**0.23 + zj**0.23) / self.screening
        chi, slope = torch.zeros_like(r), torch.zeros_like(r)
        for amplitude, rate in self.terms:
            term = amplitude * torch.exp(-rate * decay * r)
            chi, slope = chi + term, slope - rate * decay * term
        t = ((r - self.inner) / (self.outer - self.inner)).clamp(0.0, 1.0)
        switch = 1.0 - t**3 * (10.0 - 15.0 * t + 6.0 * t**2)
        switch_slope = -30.0 * (t * (1.0 - t)) ** 2 / (self.outer - self.inner)
        strength = self.strength * zi * zj / r
        return strength * chi * switch, strength * (slope * switch + chi * (switch_slope - switch / r))
