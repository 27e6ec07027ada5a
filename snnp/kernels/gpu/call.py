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
from typing import Any

import torch
from torch import Tensor

from snnp.errors import InputError, MissingDependencyError
from snnp.kernels.gpu.arrays import Atoms, Rows, Work, make_form, make_network, make_tables, make_work
from snnp.kernels.parameters import SplinePlan

__all__ = ["GpuKernel", "GpuResult", "available", "rows_of", "supports"]

_MOST_FILTERS, _MOST_HARMONICS, _MOST_HIDDEN, _MOST_CHANNELS = 64, 49, 128, 4
"""Beyond these the arrays of one atom no longer fit into the registers of a warp."""

_ROWS_AT_ONCE = 2**17
_OLDEST_TRITON = (3, 6)
_OPTIONS = {"num_stages": 1, "enable_fp_fusion": True}
"""One stage: staging the small tables through shared memory, as Triton would, costs more than reading them."""


def supports(plan: SplinePlan) -> bool:
    """Whether the kernels cover this form; others (spline evaluator, embedding) are left to torch."""
    legendre = plan.evaluator == "legendre" or plan.f.n_filters == 0
    widths = [weight.shape[1] for weight in plan.readout.weights]
    return (
        legendre
        and plan.readout.embedding is None
        and plan.n_channels <= _MOST_CHANNELS
        and plan.n_channels * max(plan.f.n_filters, 1) <= _MOST_FILTERS
        and plan.rho.n_filters <= _MOST_FILTERS
        and (plan.degree + 1) ** 2 <= _MOST_HARMONICS
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


@dataclass(frozen=True)
class GpuResult:
    """energies [N] eV with E0 and virial [B, 3, 3] eV (sum of r_ij (x) dE/dr_ij), float64; forces [N, 3] eV/Å."""

    energies: Tensor
    forces: Tensor
    virial: Tensor


def rows_of(pairs: tuple[Tensor, Tensor, Tensor], n_atoms: int, structure: Tensor) -> tuple[Rows, tuple[int, int, int]]:
    """Rows of a full list of pairs (i [P] ascending, j [P], shift [P, 3]), and the reach of the images along each axis.

    Arguments:
        structure: [N] of each atom: images of structure b follow those of structure b - 1.

    Raises:
        InputError: if the list lacks the reverse of a pair.
    """
    i, j, shift = pairs
    n_pairs, device = i.shape[0], i.device
    reach = shift.abs().amax(dim=0) if n_pairs else shift.new_zeros(3)
    sizes = 2 * reach + 1
    n_images = int(sizes.prod())

    def image(s: Tensor) -> Tensor:
        s = s + reach
        return (s[:, 0] * sizes[1] + s[:, 1]) * sizes[2] + s[:, 2]

    count = torch.bincount(i, minlength=n_atoms)
    capacity = max(int(count.max()) if n_pairs else 1, 1)
    column = torch.arange(n_pairs, device=device) - (count.cumsum(0) - count)[i]
    place = i * capacity + column
    # Every pair as one number: (centre, neighbour, image); the reverse pair is looked up among the sorted numbers.
    keys, order = torch.sort((i * n_atoms + j) * n_images + image(shift))
    wanted = (j * n_atoms + i) * n_images + image(-shift)
    found = torch.searchsorted(keys, wanted).clamp(max=max(n_pairs - 1, 0))
    if n_pairs and not torch.equal(keys[found], wanted):
        raise InputError("the neighbour list holds i -> j without j -> i; give a full list (see snnp.neighbours).")
    wide = torch.int32 if n_atoms * capacity < 2**31 else torch.int64

    def dense(values: Tensor, kind: torch.dtype) -> Tensor:
        flat = torch.zeros(n_atoms * capacity, dtype=kind, device=device)
        return flat.index_copy_(0, place, values.to(kind)).view(n_atoms, capacity)

    reached = reach.tolist()
    rows = Rows(
        length=count.to(torch.int32),
        neighbour=dense(j, torch.int32),
        image=dense(image(shift) + structure[i] * n_images, torch.int32),
        reverse=dense(place[order[found]] if n_pairs else place, wide),
        capacity=capacity,
    )
    return rows, (reached[0], reached[1], reached[2])


def image_vectors(reach: tuple[int, int, int], cell: Tensor) -> Tensor:
    """[B * images, 3] float64 translations in Å of all numbered images, for cells [B, 3, 3]."""
    axes = [torch.arange(-r, r + 1, dtype=torch.float64, device=cell.device) for r in reach]
    shifts = torch.cartesian_prod(*axes)
    return (shifts @ cell.double()).reshape(-1, 3).contiguous()


class GpuKernel:
    """A model on a device, ready to be evaluated.

    Arguments:
        plan: the model; `supports(plan)` must hold.
        device: a CUDA device; the CPU under Triton's interpreter.
        dtype: in which distances, moments and the network are computed; positions enter in float64.
        precision: of float32 matrix products: "ieee" is plain float32; "tf32x3" runs on tensor cores, with the first
            21 bits of every product.

    Raises:
        MissingDependencyError: without Triton, or without the C compiler that it needs.
    """

    def __init__(
        self,
        plan: SplinePlan,
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
        from snnp.kernels.gpu import _atoms as _gpu_atoms
        from snnp.kernels.gpu import _network as _gpu_network

        self._kernels, self._network_kernel = _gpu_atoms, _gpu_network.network_kernel
        self.device, self.dtype, self.cutoff = torch.device(device), dtype, plan.cutoff
        self.form = make_form(plan, precision if dtype == torch.float32 else "ieee", block=32, atoms=32)
        self.tables = make_tables(plan, self.form, self.device, dtype)
        self.network = make_network(plan, self.form, self.device, dtype)
        self.reference = torch.from_numpy(plan.reference).to(self.device)

    def make_work(self, n_atoms: int, capacity: int) -> Work:
        """Work arrays for N atoms with rows of `capacity` neighbours."""
        return make_work(self.form, n_atoms, capacity, self.device, self.dtype)

    def launch(self, atoms: Atoms, rows: Rows, work: Work) -> None:
        """Fill `work`; nothing waits for the device, so that the launches can be captured in a CUDA graph."""
        n, form, kernels = atoms.species.shape[0], self.form, self._kernels
        if n == 0:
            return
        with _on(self.device):
            kernels.moments_kernel[(n,)](atoms, rows, self.tables, work, form, num_warps=1, **_OPTIONS)
            blocks = (-(-n // form.atoms),)
            self._network_kernel[blocks](n, atoms.species, self.network, work, form, num_warps=4, **_OPTIONS)
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


def _on(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
