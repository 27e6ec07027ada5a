"""What the GPU kernels read and write: a plan as tensors on the device, rows of neighbours, work arrays.

The named tuples here are arguments of kernels, so that their fields, not long lists of pointers, cross into Triton.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from snnp.kernels.parameters import SplinePlan, SplineTable
from snnp.units import COULOMB_EV_ANGSTROM

__all__ = [
    "Atoms",
    "Form",
    "NetworkArrays",
    "Rows",
    "SplineArrays",
    "Tables",
    "Work",
    "make_form",
    "make_network",
    "make_tables",
    "make_work",
]

Array = NDArray[np.float64]

_SMALLEST_PRODUCT = 16
"""Rows and columns of the smallest matrix product that Triton compiles for every kind of GPU."""
_SHORTEST = 0.1  # Å; closer than this two atoms are one atom written twice


class Form(NamedTuple):
    """Constants that kernels are compiled for; sizes without `n_` are filled up to powers of two.

    Arguments:
        degree: L; n_harmonics: (L+1)², columns filled up.
        n_radial, radial; n_filters, filters: functions rho and f.
        elements: Z; channels: C filled up; features: D filled up.
        hidden: widest hidden layer filled up; n_layers: hidden layers; copies: of the network; activation: of it.
        pair_term, repulsion: whether there are any.
        shortest: Å, distance below which a pair is refused.
        block: neighbours at once; atoms: atoms at once in the network.
        precision: of matrix products in float32: "ieee", or "tf32x3" on tensor cores.
    """

    degree: int
    n_harmonics: int
    columns: int
    n_radial: int
    radial: int
    n_filters: int
    filters: int
    elements: int
    channels: int
    features: int
    hidden: int
    n_layers: int
    copies: int
    activation: str
    pair_term: bool
    repulsion: bool
    shortest: float
    block: int
    atoms: int
    precision: str


class SplineArrays(NamedTuple):
    """`SplineTable` on the device; coefficients [G, K, 4, F filled up]."""

    lower: Tensor
    inverse_spacing: Tensor
    n_intervals: Tensor
    n_segments: int
    coefficients: Tensor


class Tables(NamedTuple):
    """Everything that acts on pairs.

    Arguments:
        radial_group, pair_group: [Z, Z] int32.
        legendre: [C, (L+1)² filled up, C, F]; at_one: [C, F].
        charges: [Z] nuclear charges; screening: [Z] their part of the inverse screening length, 1/Å.
        constants: cutoff, angular cutoff, inner, outer, half of e²/(4 pi eps0), four amplitudes, four decay constants.
    """

    rho: SplineArrays
    f: SplineArrays
    phi: SplineArrays
    radial_group: Tensor
    pair_group: Tensor
    legendre: Tensor
    at_one: Tensor
    charges: Tensor
    screening: Tensor
    constants: Tensor


class NetworkArrays(NamedTuple):
    """The readout: mean, inverse_std [D], linear [Z, D], first [C, H, D], rest [C, n-1, H, H], biases [C, n, H],
    last [C, H], offset [C]."""

    mean: Tensor
    inverse_std: Tensor
    linear: Tensor
    first: Tensor
    rest: Tensor
    biases: Tensor
    last: Tensor
    offset: Tensor


class Atoms(NamedTuple):
    """positions [N, 3] float64 Å, species [N] int32, images [I, 3] float64 Å: translations of the periodic images."""

    positions: Tensor
    species: Tensor
    images: Tensor


class Rows(NamedTuple):
    """Neighbours of atom i in row i of [N, capacity], of which `length[i]` are in use.

    Arguments:
        length: [N] int32.
        neighbour, image: [N, capacity] int32: the pair's vector is `r_j - r_i + images[image]`.
        reverse: [N, capacity] integer, place of the pair j -> i in the flattened array.
        capacity: entries per row.
    """

    length: Tensor
    neighbour: Tensor
    image: Tensor
    reverse: Tensor
    capacity: int


class Work(NamedTuple):
    """What kernels write.

    Arguments:
        features, slopes: [N, D] G and dE/dG.
        weighted: [N, C, (L+1)², F] moments times Legendre coefficients.
        gradients: [N, capacity, 4] dE_i/dr_ij in eV/Å and a zero; own: [N, 4] their sums.
        energies: [N] eV without E0; virial: [N, 6] eV (xx, yy, zz, yz, xz, xy) of r_ij (x) dE_i/dr_ij.
        forces: [N, 3] eV/Å.
        status: [1] int32, 1 where a pair was closer than `Form.shortest` or NaN.
    """

    features: Tensor
    slopes: Tensor
    weighted: Tensor
    gradients: Tensor
    own: Tensor
    energies: Tensor
    virial: Tensor
    forces: Tensor
    status: Tensor


def _power_of_two(n: int, least: int = 1) -> int:
    return max(1 << max(n - 1, 0).bit_length(), least)


def make_form(plan: SplinePlan, precision: str, block: int, atoms: int) -> Form:
    """The constants of a plan."""
    readout = plan.readout
    n_harmonics = (plan.degree + 1) ** 2
    widths = [weight.shape[1] for weight in readout.weights[:-1]]
    return Form(
        degree=plan.degree,
        n_harmonics=n_harmonics,
        columns=_power_of_two(n_harmonics, _SMALLEST_PRODUCT),
        n_radial=plan.rho.n_filters,
        radial=_power_of_two(plan.rho.n_filters),
        n_filters=plan.f.n_filters,
        filters=_power_of_two(plan.f.n_filters, _SMALLEST_PRODUCT),
        elements=plan.n_elements,
        channels=_power_of_two(plan.n_channels),
        features=_power_of_two(readout.mean.shape[0], _SMALLEST_PRODUCT),
        hidden=_power_of_two(max(widths, default=1), _SMALLEST_PRODUCT),
        n_layers=len(widths),
        copies=readout.weights[0].shape[0] if readout.weights else 1,
        activation=readout.activation,
        pair_term=plan.phi is not None,
        repulsion=plan.repulsion is not None,
        shortest=_SHORTEST,
        block=block,
        atoms=atoms,
        precision=precision,
    )


class _Device(NamedTuple):
    """Where arrays go, and in which type."""

    device: torch.device
    dtype: torch.dtype

    def real(self, values: Array) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).to(device=self.device, dtype=self.dtype)

    def integer(self, values: NDArray[np.int32]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values, dtype=np.int32)).to(self.device)


def _padded(values: Array, *shape: int) -> Array:
    """Fill up the last axes with zeros."""
    kept = values.ndim - len(shape)
    widths = [(0, 0)] * kept + [(0, new - old) for new, old in zip(shape, values.shape[kept:], strict=True)]
    return np.pad(values, widths)


def _spline_arrays(table: SplineTable | None, width: int, to: _Device) -> SplineArrays:
    if table is None or table.n_filters == 0:
        nothing = to.real(np.zeros(1))
        return SplineArrays(nothing, nothing, to.integer(np.zeros(1, np.int32)), 0, nothing)
    coefficients = to.real(_padded(table.coefficients, width))
    steps = to.real(table.inverse_spacing)
    return SplineArrays(to.real(table.lower), steps, to.integer(table.n_intervals), coefficients.shape[1], coefficients)


def _racah(degree: int) -> Array:
    """[(L+1)²] factors w with sum_m w_lm R_lm(u) R_lm(v) = P_l(u . v) for the harmonics of `_gpu_maths`."""
    orders = [(n, abs(m)) for n in range(degree + 1) for m in range(-n, n + 1)]
    return np.array([(2.0 if m else 1.0) * math.factorial(n - m) * math.factorial(n + m) for n, m in orders])


def make_tables(plan: SplinePlan, form: Form, device: torch.device, dtype: torch.dtype) -> Tables:
    """Tables of a plan on the device."""
    to = _Device(device, dtype)
    repeated = np.repeat(plan.legendre, 2 * np.arange(plan.degree + 1) + 1, axis=-1)  # [C, C, F, (L+1)²]
    legendre = _padded(
        (repeated * _racah(plan.degree)).transpose(0, 3, 1, 2), form.columns, form.channels, form.filters
    )
    legendre = np.concatenate([legendre, np.zeros((form.channels - len(legendre), *legendre.shape[1:]))])
    length, *fits = plan.screening
    inner, outer = plan.repulsion or (0.0, 0.0)
    charges = plan.numbers.astype(np.float64)
    return Tables(
        rho=_spline_arrays(plan.rho, form.radial, to),
        f=_spline_arrays(plan.f, form.filters, to),
        phi=_spline_arrays(plan.phi, 1, to),
        radial_group=to.integer(plan.radial_group),
        pair_group=to.integer(plan.pair_group),
        legendre=to.real(legendre),
        at_one=to.real(_padded(plan.at_one, form.channels, form.filters)),
        charges=to.real(charges),
        screening=to.real(charges**0.23 / length),
        constants=to.real(np.array([plan.cutoff, plan.angular_cutoff, inner, outer, 0.5 * COULOMB_EV_ANGSTROM, *fits])),
    )


def make_network(plan: SplinePlan, form: Form, device: torch.device, dtype: torch.dtype) -> NetworkArrays:
    """The readout of a plan on the device."""
    to, readout, d, h = _Device(device, dtype), plan.readout, form.features, form.hidden
    copies, n = form.copies, form.n_layers
    first, rest = np.zeros((copies, h, d)), np.zeros((copies, max(n - 1, 1), h, h))
    biases, last, offset = np.zeros((copies, max(n, 1), h)), np.zeros((copies, h)), np.zeros(copies)
    if n:
        first = _padded(readout.weights[0], h, d)
        for k, weight in enumerate(readout.weights[1:-1]):
            rest[:, k] = _padded(weight, h, h)
        for k, bias in enumerate(readout.biases[:-1]):
            biases[:, k] = _padded(bias, h)
        last, offset = _padded(readout.weights[-1][:, 0], h), readout.biases[-1][:, 0]
    mean, std = _padded(readout.mean, d), np.ones(d)
    std[: len(readout.std)] = readout.std
    arrays = (mean, 1.0 / std, _padded(readout.linear, d), first, rest, biases, last, offset)
    return NetworkArrays(*(to.real(array) for array in arrays))


def make_work(form: Form, n_atoms: int, capacity: int, device: torch.device, dtype: torch.dtype) -> Work:
    """Work arrays for N atoms with rows of `capacity` neighbours."""

    def real(*shape: int) -> Tensor:
        return torch.empty(shape, device=device, dtype=dtype)

    return Work(
        # Columns that fill up the features are never written: they must be numbers.
        features=torch.zeros(n_atoms, form.features, device=device, dtype=dtype),
        slopes=real(n_atoms, form.features),
        weighted=real(n_atoms, form.channels, form.n_harmonics, form.filters),
        gradients=real(n_atoms, capacity, 4),
        own=real(n_atoms, 4),
        energies=real(n_atoms),
        virial=real(n_atoms, 6),
        forces=real(n_atoms, 3),
        status=torch.zeros(1, device=device, dtype=torch.int32),
    )
