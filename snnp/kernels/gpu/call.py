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
from functools import lru_cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from snnp.errors import InputError, MissingDependencyError, overlap_message
from snnp.kernels.gpu.lists import Rows
from snnp.kernels.parameters import ReadoutParameters, SplineParameters, SplineTable
from snnp.units import COULOMB_EV_ANGSTROM

__all__ = ["Atoms", "GpuKernel", "Work", "available", "supports"]

Array = NDArray[np.float64]

# Beyond these the arrays of one atom no longer fit into the registers of a warp.
_MOST_FILTERS, _MOST_HARMONICS, _MOST_HIDDEN, _MOST_CHANNELS = 64, 49, 128, 4
_SMALLEST_PRODUCT = 16  # rows and columns that Triton compiles for every kind of GPU
_SHORTEST = 0.1  # Å; closer than this two atoms are one atom written twice
_ROWS_AT_ONCE = 2**17
_OLDEST_TRITON = (3, 6)
# One stage: staging the small tables through shared memory, as Triton would, costs more than reading them.
_OPTIONS = {"num_stages": 1, "enable_fp_fusion": True}


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
    """Constants that kernels are compiled for."""

    degree: int  # L
    n_harmonics: int  # (L+1)²
    columns: int  # the same; sizes without `n_` are filled up to powers of two
    n_radial: int  # functions rho
    radial: int
    n_filters: int  # functions f
    filters: int
    elements: int  # Z, as it is
    channels: int  # C
    features: int  # D
    hidden: int  # of the widest hidden layer
    n_layers: int  # hidden layers
    copies: int  # of the network
    activation: str
    pair_term: bool  # whether there is one
    repulsion: bool
    shortest: float  # Å, below which a pair is refused
    block: int  # neighbours at once
    atoms: int  # atoms at once in the network


class SplineArrays(NamedTuple):
    """`SplineTable` on the device; coefficients [G, K, 4, F filled up]."""

    lower: Tensor
    inverse_spacing: Tensor
    n_intervals: Tensor
    n_segments: int
    coefficients: Tensor


class Tables(NamedTuple):
    """Everything that acts on pairs."""

    rho: SplineArrays
    f: SplineArrays
    phi: SplineArrays
    radial_group: Tensor  # [Z, Z] int32
    pair_group: Tensor  # [Z, Z] int32
    legendre: Tensor  # [C, (L+1)² filled up, C, F]
    at_one: Tensor  # [C, F]
    charges: Tensor  # [Z] nuclear charges
    screening: Tensor  # [Z] their part of the inverse screening length, 1/Å
    # Cutoff, angular cutoff, inner, outer, half of e²/(4 pi eps0), four amplitudes, four decay constants.
    constants: Tensor


class NetworkArrays(NamedTuple):
    """The readout, for H hidden units in n layers."""

    mean: Tensor  # [D]
    inverse_std: Tensor  # [D]
    linear: Tensor  # [Z, D]
    first: Tensor  # [copies, H, D]
    rest: Tensor  # [copies, n-1, H, H]
    biases: Tensor  # [copies, n, H]
    last: Tensor  # [copies, H]
    offset: Tensor  # [copies]


class Atoms(NamedTuple):
    """positions [N, 3] float64 Å, species [N] int32, images [I, 3] float64 Å: translations of the periodic images."""

    positions: Tensor
    species: Tensor
    images: Tensor


class Work(NamedTuple):
    """What kernels write."""

    features: Tensor  # [N, D] G
    slopes: Tensor  # [N, D] dE/dG
    weighted: Tensor  # [N, C, (L+1)², F] moments times Legendre coefficients
    gradients: Tensor  # [N, capacity, 4] dE_i/dr_ij in eV/Å and a zero
    own: Tensor  # [N, 4] their sums
    energies: Tensor  # [N] eV without E0
    virial: Tensor  # [N, 6] eV (xx, yy, zz, yz, xz, xy) of r_ij (x) dE_i/dr_ij
    forces: Tensor  # [N, 3] eV/Å
    status: Tensor  # [1] int32, 1 where a pair was closer than `Form.shortest` or NaN


def _power_of_two(n: int, least: int = 1) -> int:
    return max(1 << max(n - 1, 0).bit_length(), least)


def _form(parameters: SplineParameters) -> Form:
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
        block=32,
        atoms=32,
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
    lower, inverse_spacing, n_intervals = table.lower, table.inverse_spacing, to.integer(table.n_intervals)
    coefficients = to.real(_padded(table.coefficients, width))
    return SplineArrays(to.real(lower), to.real(inverse_spacing), n_intervals, coefficients.shape[1], coefficients)


def _tables(parameters: SplineParameters, form: Form, to: _Device) -> Tables:
    # Factors w with sum_m w_lm R_lm(u) R_lm(v) = P_l(u . v) for the harmonics of `_maths`.
    orders = [(n, abs(m)) for n in range(parameters.degree + 1) for m in range(-n, n + 1)]
    racah = np.array([(2.0 if m else 1.0) * math.factorial(n - m) * math.factorial(n + m) for n, m in orders])
    repeated = np.repeat(parameters.legendre, 2 * np.arange(parameters.degree + 1) + 1, axis=-1)  # [C, C, F, (L+1)²]
    legendre = (repeated * racah).transpose(0, 3, 1, 2)
    legendre = _padded(legendre, form.channels, form.columns, form.channels, form.filters)
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


def _network(readout: ReadoutParameters, form: Form, to: _Device) -> NetworkArrays:
    d, h = form.features, form.hidden
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


class GpuKernel:
    """A model on a device, ready to be evaluated.

    Arguments:
        parameters: the model; `supports(parameters)` must hold.
        device: a CUDA device; the CPU under Triton's interpreter.
        dtype: in which distances, moments and the network are computed; positions enter in float64.

    Raises `MissingDependencyError` without Triton, or without the C compiler that it needs.
    """

    def __init__(
        self, parameters: SplineParameters, device: torch.device | str, dtype: torch.dtype = torch.float32
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
        self.form, to = _form(parameters), _Device(self.device, dtype)
        self.tables, self.network = _tables(parameters, self.form, to), _network(parameters.readout, self.form, to)
        self.reference = torch.from_numpy(parameters.reference).to(self.device)

    def make_work(self, n_atoms: int, capacity: int) -> Work:
        """Work arrays for N atoms with rows of `capacity` neighbours."""
        form, empty = self.form, partial(torch.empty, device=self.device, dtype=self.dtype)
        return Work(
            # Columns that fill up the features are never written: they must be numbers.
            features=empty(n_atoms, form.features).zero_(),
            slopes=empty(n_atoms, form.features),
            weighted=empty(n_atoms, form.channels, form.n_harmonics, form.filters),
            gradients=empty(n_atoms, capacity, 4),
            own=empty(n_atoms, 4),
            energies=empty(n_atoms),
            virial=empty(n_atoms, 6),
            forces=empty(n_atoms, 3),
            status=torch.zeros(1, device=self.device, dtype=torch.int32),
        )

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
        self, atoms: Atoms, rows: Rows, structure: Tensor, n_structures: int = 1
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Energies [N] eV with E0 (float64), forces [N, 3] eV/Å, virial [B, 3, 3] eV (float64) of B structures.

        `structure`: [N] int64, structure of each atom. Raises `InputError` for overlapping atoms or NaN positions.
        """
        work = self.make_work(atoms.species.shape[0], rows.capacity)
        self.launch(atoms, rows, work)
        refuse_overlaps(atoms, rows, work)
        energies = work.energies.double() + self.reference[atoms.species.long()]
        virial = torch.zeros(n_structures, 6, dtype=torch.float64, device=self.device)
        virial.index_add_(0, structure, work.virial.double())
        return energies, work.forces, full_virial(virial)


def full_virial(six: Tensor) -> Tensor:
    """[..., 3, 3] from (xx, yy, zz, yz, xz, xy) [..., 6]."""
    return six[..., [0, 5, 4, 5, 1, 3, 4, 3, 2]].unflatten(-1, (3, 3))


def refuse_overlaps(atoms: Atoms, rows: Rows, work: Work) -> None:
    """Raise `InputError` if an evaluation met atoms that overlap, or NaN positions. Waits for the device."""
    if not int(work.status):
        return
    columns, found = torch.arange(rows.capacity, device=rows.length.device), []
    # In parts: vectors of all pairs would take more memory than everything else.
    for first in range(0, rows.length.shape[0], _ROWS_AT_ONCE):
        part = slice(first, first + _ROWS_AT_ONCE)
        neighbour = rows.neighbour[part].long()
        vectors = atoms.positions[neighbour] - atoms.positions[part, None] + atoms.images[rows.image[part].long()]
        squares = vectors.square().sum(dim=-1).nan_to_num(nan=-1.0, posinf=math.inf)
        squares = squares.masked_fill(columns >= rows.length[part, None], math.inf)
        worst = int(squares.argmin())
        place = first + worst // rows.capacity, int(neighbour.flatten()[worst])
        found.append((float(squares.flatten()[worst]), *place))
    nearest, i, j = min(found)
    raise InputError(overlap_message(i, j, math.sqrt(nearest) if nearest >= 0.0 else math.nan))


def on_device(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Within this block Triton starts kernels on the device."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
