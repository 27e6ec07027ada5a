"""Energies, forces and virials of an s-NNP on a GPU, through Triton; reasons in docs/decisions/010-gpu-kernel.md.

The kernels themselves need Triton, which comes with the CUDA builds of torch. With `TRITON_INTERPRET=1` set before
Python starts they run on the CPU, slowly: that is how they are tested where there is no GPU.
"""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import sysconfig
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from snnp.errors import InputError, MissingDependencyError
from snnp.kernels.gpu.lists import Rows
from snnp.kernels.parameters import SplineParameters, SplineTable
from snnp.units import COULOMB_EV_ANGSTROM

__all__ = [
    "Atoms",
    "Form",
    "GpuKernel",
    "GpuResult",
    "Work",
    "available",
    "full_virial",
    "make_form",
    "make_network",
    "make_tables",
    "make_work",
    "on_device",
    "overlap_message",
    "supports",
]

Array = NDArray[np.float64]

_MOST_FILTERS, _MOST_HARMONICS, _MOST_HIDDEN, _MOST_CHANNELS = 64, 49, 128, 4
"""Beyond these the arrays of one atom no longer fit into the registers of a warp."""

_SMALLEST_PRODUCT = 16
"""Rows and columns of the smallest matrix product that Triton compiles for every kind of GPU."""
_SHORTEST = 0.1  # Å; closer than this two atoms are one atom written twice
_ROWS_AT_ONCE = 2**17
_OLDEST_TRITON = (3, 6)
_OPTIONS = {"num_stages": 1, "enable_fp_fusion": True}
"""One stage: staging the small tables through shared memory, as Triton would, costs more than reading them."""


def supports(parameters: SplineParameters) -> bool:
    """Whether the kernels cover this form; others (spline evaluator, embedding) are left to torch."""
    legendre = parameters.evaluator == "legendre" or parameters.f.n_filters == 0
    widths = [weight.shape[1] for weight in parameters.readout.weights]
    return (
        legendre
        and parameters.readout.embedding is None
        and parameters.n_channels <= _MOST_CHANNELS
        and parameters.n_channels * max(parameters.f.n_filters, 1) <= _MOST_FILTERS
        and parameters.rho.n_filters <= _MOST_FILTERS
        and (parameters.degree + 1) ** 2 <= _MOST_HARMONICS
        and max(widths, default=0) <= _MOST_HIDDEN
    )


@lru_cache(maxsize=1)
def available() -> bool:
    """Whether Triton is installed, in a version that compiles the kernels, and can start them."""
    if find_spec("triton") is None:
        return False
    import triton

    major, minor = triton.__version__.split(".")[:2]
    recent = (int(major), int(minor)) >= _OLDEST_TRITON
    return recent and (triton.knobs.runtime.interpret or _has_compiler())


def _has_compiler() -> bool:
    """Whether there are a C compiler and Python's headers: Triton starts kernels through C that it compiles first."""
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    return compiler is not None and (Path(sysconfig.get_path("include")) / "Python.h").is_file()


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


def make_form(parameters: SplineParameters, precision: str, block: int, atoms: int) -> Form:
    """The constants of a model."""
    readout = parameters.readout
    n_harmonics = (parameters.degree + 1) ** 2
    widths = [weight.shape[1] for weight in readout.weights[:-1]]
    return Form(
        degree=parameters.degree,
        n_harmonics=n_harmonics,
        columns=_power_of_two(n_harmonics, _SMALLEST_PRODUCT),
        n_radial=parameters.rho.n_filters,
        radial=_power_of_two(parameters.rho.n_filters),
        n_filters=parameters.f.n_filters,
        filters=_power_of_two(parameters.f.n_filters, _SMALLEST_PRODUCT),
        elements=parameters.n_elements,
        channels=_power_of_two(parameters.n_channels),
        features=_power_of_two(readout.mean.shape[0], _SMALLEST_PRODUCT),
        hidden=_power_of_two(max(widths, default=1), _SMALLEST_PRODUCT),
        n_layers=len(widths),
        copies=readout.n_copies,
        activation=readout.activation,
        pair_term=parameters.phi is not None,
        repulsion=parameters.repulsion is not None,
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
    """[(L+1)²] factors w with sum_m w_lm R_lm(u) R_lm(v) = P_l(u . v) for the harmonics of `_maths`."""
    orders = [(n, abs(m)) for n in range(degree + 1) for m in range(-n, n + 1)]
    return np.array([(2.0 if m else 1.0) * math.factorial(n - m) * math.factorial(n + m) for n, m in orders])


def make_tables(parameters: SplineParameters, form: Form, device: torch.device, dtype: torch.dtype) -> Tables:
    """Tables of a model on the device."""
    to = _Device(device, dtype)
    repeated = np.repeat(parameters.legendre, 2 * np.arange(parameters.degree + 1) + 1, axis=-1)  # [C, C, F, (L+1)²]
    legendre = _padded(
        (repeated * _racah(parameters.degree)).transpose(0, 3, 1, 2), form.columns, form.channels, form.filters
    )
    legendre = np.concatenate([legendre, np.zeros((form.channels - len(legendre), *legendre.shape[1:]))])
    length, *fits = parameters.screening
    cutoffs = (parameters.cutoff, parameters.angular_cutoff, *(parameters.repulsion or (0.0, 0.0)))
    charges = parameters.numbers.astype(np.float64)
    return Tables(
        rho=_spline_arrays(parameters.rho, form.radial, to),
        f=_spline_arrays(parameters.f, form.filters, to),
        phi=_spline_arrays(parameters.phi, 1, to),
        radial_group=to.integer(parameters.radial_group),
        pair_group=to.integer(parameters.pair_group),
        legendre=to.real(legendre),
        at_one=to.real(_padded(parameters.at_one, form.channels, form.filters)),
        charges=to.real(charges),
        screening=to.real(charges**0.23 / length),
        constants=to.real(np.array([*cutoffs, 0.5 * COULOMB_EV_ANGSTROM, *fits])),
    )


def make_network(parameters: SplineParameters, form: Form, device: torch.device, dtype: torch.dtype) -> NetworkArrays:
    """The readout of a model on the device."""
    to, readout, d, h = _Device(device, dtype), parameters.readout, form.features, form.hidden
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


@dataclass(frozen=True)
class GpuResult:
    """energies [N] eV with E0 and virial [B, 3, 3] eV (sum of r_ij (x) dE/dr_ij), float64; forces [N, 3] eV/Å."""

    energies: Tensor
    forces: Tensor
    virial: Tensor


class GpuKernel:
    """A model on a device, ready to be evaluated.

    Arguments:
        parameters: the model; `supports(parameters)` must hold.
        device: a CUDA device; the CPU under Triton's interpreter.
        dtype: in which distances, moments and the network are computed; positions enter in float64.
        precision: of float32 matrix products: "ieee" is plain float32; "tf32x3" runs on tensor cores, with the first
            21 bits of every product.

    Raises:
        MissingDependencyError: without Triton, or without the C compiler that it needs.
    """

    def __init__(
        self,
        parameters: SplineParameters,
        device: torch.device | str,
        dtype: torch.dtype = torch.float32,
        *,
        precision: str = "ieee",
    ) -> None:
        if not available():
            raise MissingDependencyError(
                "the GPU kernels need Triton 3.6 or newer (pip install 'snnp[gpu]'), a C compiler and Python's headers "
                "(on Debian: apt install gcc python3-dev)."
            )
        # Imported here: the rest of the package works without Triton.
        from snnp.kernels.gpu import _atoms

        self._kernels = _atoms
        self.device, self.dtype, self.cutoff = torch.device(device), dtype, parameters.cutoff
        self.form = make_form(parameters, precision if dtype == torch.float32 else "ieee", block=32, atoms=32)
        self.tables = make_tables(parameters, self.form, self.device, dtype)
        self.network = make_network(parameters, self.form, self.device, dtype)
        self.reference = torch.from_numpy(parameters.reference).to(self.device)

    def make_work(self, n_atoms: int, capacity: int) -> Work:
        """Work arrays for N atoms with rows of `capacity` neighbours."""
        return make_work(self.form, n_atoms, capacity, self.device, self.dtype)

    def launch(self, atoms: Atoms, rows: Rows, work: Work) -> None:
        """Fill `work`; nothing waits for the device, so that the launches can be captured in a CUDA graph."""
        n, form, kernels = atoms.species.shape[0], self.form, self._kernels
        if n == 0:
            return
        with on_device(self.device):
            kernels.moments_kernel[(n,)](atoms, rows, self.tables, work, form, num_warps=1, **_OPTIONS)
            blocks = (-(-n // form.atoms),)
            kernels.network_kernel[blocks](n, atoms.species, self.network, work, form, num_warps=4, **_OPTIONS)
            kernels.gradients_kernel[(n,)](atoms, rows, self.tables, work, form, num_warps=1, **_OPTIONS)
            kernels.forces_kernel[(n,)](rows, work, form, num_warps=1, **_OPTIONS)

    def evaluate(
        self,
        atoms: Atoms,
        rows: Rows,
        structure: Tensor,
        n_structures: int = 1,
    ) -> GpuResult:
        """One evaluation of a batch of B structures.

        Arguments:
            structure: [N] int64, structure of each atom.

        Raises:
            InputError: for overlapping atoms or NaN positions.
        """
        n = atoms.species.shape[0]
        work = self.make_work(n, rows.capacity)
        self.launch(atoms, rows, work)
        if int(work.status):
            raise InputError(overlap_message(atoms, rows))
        energies = work.energies.double() + self.reference[atoms.species.long()]
        virial = torch.zeros(n_structures, 6, dtype=torch.float64, device=self.device)
        virial.index_add_(0, structure, work.virial.double())
        return GpuResult(energies, work.forces, full_virial(virial))


def full_virial(six: Tensor) -> Tensor:
    """[..., 3, 3] from (xx, yy, zz, yz, xz, xy) [..., 6]."""
    return six[..., [0, 5, 4, 5, 1, 3, 4, 3, 2]].unflatten(-1, (3, 3))


def overlap_message(atoms: Atoms, rows: Rows) -> str:
    """Which atoms overlap, for an `InputError`."""
    columns = torch.arange(rows.capacity, device=rows.length.device)
    nearest, found = math.inf, (0, 0)
    # In parts: vectors of all pairs would take more memory than everything else.
    for first in range(0, rows.length.shape[0], _ROWS_AT_ONCE):
        part = slice(first, first + _ROWS_AT_ONCE)
        neighbour = rows.neighbour[part].long()
        vectors = atoms.positions[neighbour] - atoms.positions[part, None] + atoms.images[rows.image[part].long()]
        squares = vectors.square().sum(dim=-1).nan_to_num(nan=-1.0, posinf=math.inf)
        squares = squares.masked_fill(columns >= rows.length[part, None], math.inf)
        worst = int(squares.argmin())
        if float(squares.flatten()[worst]) < nearest:
            nearest = float(squares.flatten()[worst])
            found = first + worst // rows.capacity, int(neighbour.flatten()[worst])
    distance = math.sqrt(nearest) if nearest >= 0.0 else math.nan
    return (
        f"atoms {found[0]} and {found[1]} overlap ({distance:.3f} Å apart); "
        "remove the duplicate, or check the units of the positions (Å expected)."
    )


def on_device(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Within this block Triton starts kernels on the device."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
