r"""Short-range repulsion: the screened nuclear potential of Ziegler, Biersack and Littmark, switched off smoothly.

    phi(r) = Z_i Z_j e² / r * chi(r / a) * w(r),   a = 0.46850 Å / (Z_i^0.23 + Z_j^0.23)

with w = 1 below `inner`, 0 beyond `outer` and the quintic step between them (value, slope and curvature continuous).
Source: J. F. Ziegler, J. P. Biersack, U. Littmark, The Stopping and Range of Ions in Matter (1985).
"""

from __future__ import annotations

import torch
from torch import Tensor

from snnp.models.shells import Shell
from snnp.units import COULOMB_EV_ANGSTROM

__all__ = ["AMPLITUDES", "DECAYS", "SCREENING_LENGTH", "zbl_energies"]

AMPLITUDES = (0.18175, 0.50986, 0.28022, 0.02817)
DECAYS = (3.19980, 0.94229, 0.40290, 0.20162)
SCREENING_LENGTH = 0.46850  # Å


def zbl_energies(shell: Shell, numbers: Tensor, inner: float, outer: float) -> tuple[Tensor, Tensor]:
    """Energies [n] (half of each pair) and pair slopes [n, J] (dE_i/dr_ij) in eV and eV/Å.

    Arguments:
        shell: neighbours; numbers: [N] atomic numbers of all atoms; inner, outer: Å, ends of the switch.
    """
    r = shell.distance
    z = numbers.to(r.dtype)
    zi, zj = z[shell.centre][:, None], z[shell.j]
    decay = (zi**0.23 + zj**0.23) / SCREENING_LENGTH
    chi, slope = torch.zeros_like(r), torch.zeros_like(r)
    for amplitude, rate in zip(AMPLITUDES, DECAYS, strict=True):
        term = amplitude * torch.exp(-rate * decay * r)
        chi = chi + term
        slope = slope - rate * decay * term
    t = ((r - inner) / (outer - inner)).clamp(0.0, 1.0)
    switch = 1.0 - t**3 * (10.0 - 15.0 * t + 6.0 * t**2)
    switch_slope = -30.0 * (t * (1.0 - t)) ** 2 / (outer - inner)
    strength = 0.5 * COULOMB_EV_ANGSTROM * zi * zj / r * shell.mask
    energy = strength * chi * switch
    return energy.sum(dim=1), strength * (slope * switch + chi * (switch_slope - switch / r))
