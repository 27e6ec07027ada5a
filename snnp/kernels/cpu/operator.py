"""The CPU kernel as an operator of torch, `torch.ops.snnp.spline_nnp`, for scripted and exported models.

Importing this module registers it; a process that loads a scripted model with the operator must do so, too.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from snnp.errors import InputError, MissingDependencyError
from snnp.kernels.cpu.call import NeighbourRows, PreparedCall
from snnp.kernels.cpu.library import HEADER_BYTES, Report, addresses, library, refusal

__all__ = ["pack_tensor", "spline_nnp"]


def pack_tensor(packed: NDArray[np.uint8]) -> Tensor:
    """A packed model as a uint8 tensor, for the first argument of the operator (or a buffer of a module)."""
    tensor = torch.empty(packed.nbytes, dtype=torch.uint8)  # torch aligns it to 64 bytes
    tensor.numpy()[:] = packed
    return tensor


def _evaluate(inputs: tuple[Tensor, ...], weights: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Check and evaluate; `inputs` are those of `spline_nnp`, `weights` [N] as in `PreparedCall`."""
    lib = library()
    if lib is None:
        raise MissingDependencyError("the kernels are not built here; run 'python -m snnp.kernels.build'.")
    names = ("packed", "positions", "species", "first", "neighbour", "image", "images")
    given = {name: tensor.detach().contiguous() for name, tensor in zip(names, inputs, strict=True)}
    n, n_pairs, n_images = (given[name].shape[0] for name in ("positions", "neighbour", "images"))
    expected = {
        "species": (torch.int32, (n,)),
        "neighbour": (torch.int32, (n_pairs,)),
        "image": (torch.int32, (n_pairs,)),
        "first": (torch.int64, (n + 1,)),
        "positions": (torch.float64, (n, 3)),
        "images": (torch.float64, (n_images, 3)),
    }
    for name, (dtype, shape) in expected.items():
        tensor = given[name]
        if tensor.dtype != dtype or tensor.device.type != "cpu":
            raise InputError(f"{name} must be {dtype} on the CPU, got {tensor.dtype} on {tensor.device}.")
        if tuple(tensor.shape) != shape:
            raise InputError(f"{name} has shape {tuple(tensor.shape)}, expected {shape}.")
    packed, positions, species, first, neighbour, image, images = (tensor.numpy() for tensor in given.values())
    report = Report()
    columns = addresses(first, neighbour, image)
    if int(first[-1]) != n_pairs or lib.snnp_check_list(n, n_images, *columns, ctypes.byref(report)):
        raise refusal(Report(4, report.i, 0, 0.0))
    if packed.nbytes < HEADER_BYTES:
        raise InputError(f"a packed model has at least {HEADER_BYTES} bytes, got {packed.nbytes}.")
    n_elements = int(packed[32:40].view(np.int64)[0])
    if n and not 0 <= int(species.min()) <= int(species.max()) < n_elements:
        raise InputError(f"species must lie in [0, {n_elements}).")
    rows = NeighbourRows(first, neighbour, image, np.zeros((n_images, 3)), np.zeros(n_images, np.int64))
    call = PreparedCall(packed, species, rows, images, torch.get_num_threads())
    factors = None if weights is None else weights.detach().double().contiguous().numpy()
    energies, forces, virial = call(positions, weights=factors)
    assert forces is not None
    return torch.from_numpy(energies), torch.from_numpy(forces), torch.from_numpy(virial[0])


@torch.library.custom_op("snnp::spline_nnp", mutates_args=(), device_types="cpu")
def spline_nnp(
    packed: Tensor, positions: Tensor, species: Tensor, first: Tensor, neighbour: Tensor, image: Tensor, images: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Energies [N] eV (with E0), forces [N, 3] eV/Å, and virial sum r (x) dE/dr [3, 3] eV; float64.

    Energies are differentiable in the positions, once; forces and virial are results, not to be differentiated.

    Arguments:
        packed: from `pack_tensor`. positions: [N, 3] float64, Å. species: [N] int32, index of the element in the model.
        first, neighbour, image, images: the list, as in `NeighbourRows` and `NeighbourRows.images`.

    Raises `InputError` for wrong types or shapes, a list that points outside the system, overlapping atoms.
    """
    return _evaluate((packed, positions, species, first, neighbour, image, images), None)


@spline_nnp.register_fake
def _(packed: Tensor, positions: Tensor, *others: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    n = positions.shape[0]
    return positions.new_empty(n), positions.new_empty(n, 3), positions.new_empty(3, 3)


def _keep(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs)
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, energies: Tensor | None, forces: Tensor | None, virial: Tensor | None) -> tuple[Any, ...]:
    if forces is not None or virial is not None:
        raise InputError("forces and virial of the kernel cannot be differentiated; train with snnp.training instead.")
    gradient = None if energies is None else -_evaluate(ctx.saved_tensors, energies)[1]
    return None, gradient, None, None, None, None, None


spline_nnp.register_autograd(_differentiate, setup_context=_keep)
