"""Which compiled kernel belongs to the present parameters of a model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from snnp.kernels.cpu.call import CompiledKernel, supports
from snnp.kernels.cpu.library import library
from snnp.kernels.gpu import call as gpu
from snnp.kernels.gpu.call import GpuKernel
from snnp.models.spline.parameters import kernel_parameters

if TYPE_CHECKING:
    from snnp.models.spline.model import SplineNNP

__all__ = ["KernelCache"]


class KernelCache:
    """The kernel of a model's parameters as they are; packed again when one of them has changed.

    Changes are seen through torch's version counters, which all of torch's own ways to change a tensor advance.
    """

    def __init__(self) -> None:
        # Tensors, their state when they were packed, and the kernel: replaced together, as threads may share a model.
        self._known: tuple[list[Tensor], tuple[Any, ...], CompiledKernel | GpuKernel | None] = ([], (), None)

    def native(self, model: SplineNNP) -> CompiledKernel | None:
        """The CPU's kernel; None without the library, or with it switched off, and for forms it does not cover."""
        kernel = self._of(model)
        return kernel if isinstance(kernel, CompiledKernel) else None

    def gpu(self, model: SplineNNP) -> GpuKernel | None:
        """The GPU's kernel; None without Triton, in float64, and for forms it does not cover."""
        kernel = self._of(model)
        return kernel if isinstance(kernel, GpuKernel) else None

    def _of(self, model: SplineNNP) -> CompiledKernel | GpuKernel | None:
        tensors, state, kernel = self._known
        tensors = tensors or _tensors_of(model)
        device = tensors[0].device
        if not (library() is not None if device.type == "cpu" else device.type == "cuda" and gpu.available()):
            return None
        if state != _state_of(model, tensors):
            # Parameters may have been replaced, not only changed. Changes during packing are packed at the next call.
            tensors = _tensors_of(model)
            state = _state_of(model, tensors)
            kernel = _pack(model, device)
            self._known = tensors, state, kernel
        return kernel

    def __deepcopy__(self, memo: dict[int, Any]) -> KernelCache:
        """Copies of a model start afresh."""
        return KernelCache()

    def __reduce__(self) -> tuple[Any, ...]:
        return KernelCache, ()


def _tensors_of(model: SplineNNP) -> list[Tensor]:
    # E0 among them: kept alive, its id cannot pass to another tensor.
    return [*model.parameters(), model.readout.mean, model.readout.std, model._reference]


def _state_of(model: SplineNNP, tensors: list[Tensor]) -> tuple[Any, ...]:
    zero = (id(model._reference), model.isolated_atoms)
    return (zero, *((tensor._version, tensor.data_ptr()) for tensor in tensors))


def _pack(model: SplineNNP, device: torch.device) -> CompiledKernel | GpuKernel | None:
    parameters, single = kernel_parameters(model), model.dtype == torch.float32
    if device.type == "cpu":
        return CompiledKernel(parameters, np.float32 if single else np.float64) if supports(parameters) else None
    return GpuKernel(parameters, device) if single and gpu.supports(parameters) else None
