"""The CPU kernel as an operator of torch, `torch.ops.snnp.spline_nnp`, for scripted and exported models.

Importing this module registers it; a process that loads a scripted model with the operator must do so, too.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import torch
from torch import Tensor

from snnp.errors import InputError, MissingDependencyError
from snnp.kernels.cpu.call import NativeKernel, NativeList, PreparedCall
from snnp.kernels.cpu.library import Report, library, status_message

__all__ = ["pack_tensor", "spline_nnp"]


def pack_tensor(kernel: NativeKernel) -> Tensor:
    """The kernel's model as a uint8 tensor, for the first argument of the operator (or a buffer of a module)."""
    packed = torch.empty(kernel.packed.nbytes, dtype=torch.uint8)  # torch aligns it to 64 bytes
    packed.numpy()[:] = kernel.packed
    return packed


def _evaluate(
    packed: Tensor,
    positions: Tensor,
    species: Tensor,
    rows: tuple[Tensor, Tensor, Tensor],
    images: Tensor,
    weights: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    lib = library()
    if lib is None:
        raise MissingDependencyError("the kernels are not built here; run 'python -m snnp.kernels.build'.")
    first, neighbour, image = (part.detach().contiguous() for part in rows)
    expected = {"species": (species, torch.int32), "neighbour": (neighbour, torch.int32), "image": (image, torch.int32)}
    expected |= {
        "first": (first, torch.int64),
        "positions": (positions, torch.float64),
        "images": (images, torch.float64),
    }
    for name, (tensor, dtype) in expected.items():
        if tensor.dtype != dtype or tensor.device.type != "cpu":
            raise InputError(f"{name} must be {dtype} on the CPU, got {tensor.dtype} on {tensor.device}.")
    n, n_pairs = positions.shape[0], neighbour.shape[0]
    shapes = {"positions": (positions, (n, 3)), "species": (species, (n,)), "first": (first, (n + 1,))}
    shapes |= {"image": (image, (n_pairs,)), "images": (images, (images.shape[0], 3))}
    for name, (tensor, shape) in shapes.items():
        if tuple(tensor.shape) != shape:
            raise InputError(f"{name} has shape {tuple(tensor.shape)}, expected {shape}.")
    report = Report()
    columns = [part.numpy().ctypes.data for part in (first, neighbour, image)]
    if int(first[-1]) != n_pairs or lib.snnp_check_list(n, images.shape[0], *columns, ctypes.byref(report)):
        raise InputError(status_message(Report(4, report.i, 0, 0.0)))
    kernel = NativeKernel.from_packed(packed.detach().numpy())
    if n and not 0 <= int(species.min()) <= int(species.max()) < kernel.n_elements:
        raise InputError(f"species must lie in [0, {kernel.n_elements}).")
    shifts = np.zeros((images.shape[0], 3)), np.zeros(images.shape[0], np.int64)
    rows_of = NativeList(first.numpy(), neighbour.numpy(), image.numpy(), *shifts, kernel.cutoff)
    arrays = (tensor.detach().contiguous().numpy() for tensor in (species, images, positions))
    of_species, of_images, at = arrays
    call = PreparedCall(kernel, of_species, rows_of, of_images, torch.get_num_threads())
    chosen = None if weights is None else weights.detach().double().contiguous().numpy()
    result = call(at, weights=chosen)
    assert result.forces is not None
    return tuple(torch.from_numpy(x) for x in (result.energies, result.forces, result.virial[0]))  # type: ignore[return-value]


@torch.library.custom_op("snnp::spline_nnp", mutates_args=(), device_types="cpu")
def spline_nnp(
    packed: Tensor,
    positions: Tensor,
    species: Tensor,
    first: Tensor,
    neighbour: Tensor,
    image: Tensor,
    images: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Energies [N] eV (with E0), forces [N, 3] eV/Å, and virial sum r (x) dE/dr [3, 3] eV; float64.

    Energies are differentiable in the positions, once; forces and virial are results, not to be differentiated.

    Arguments:
        packed: from `pack_tensor`. positions: [N, 3] float64, Å. species: [N] int32, index of the element in the model.
        first, neighbour, image, images: the list, as in `NativeList` and `NativeList.images`.

    Raises:
        InputError: for wrong types or shapes, a list that points outside the system, overlapping atoms.
    """
    return _evaluate(packed, positions, species, (first, neighbour, image), images, None)


@spline_nnp.register_fake
def _(
    packed: Tensor, positions: Tensor, species: Tensor, first: Tensor, neighbour: Tensor, image: Tensor, images: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    n = positions.shape[0]
    return positions.new_empty(n), positions.new_empty(n, 3), positions.new_empty(3, 3)


def _keep(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs)
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, energies: Tensor | None, forces: Tensor | None, virial: Tensor | None) -> tuple[Any, ...]:
    if forces is not None or virial is not None:
        raise InputError("forces and virial of the kernel cannot be differentiated; train with snnp.training instead.")
    packed, positions, species, first, neighbour, image, images = ctx.saved_tensors
    gradient = None
    if energies is not None:
        gradient = -_evaluate(packed, positions, species, (first, neighbour, image), images, energies)[1]
    return None, gradient, None, None, None, None, None


spline_nnp.register_autograd(_differentiate, setup_context=_keep)
