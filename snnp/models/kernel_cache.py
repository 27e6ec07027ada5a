"""Which compiled kernel belongs to the present parameters of a model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from snnp.kernels.library import library
from snnp.kernels.native import NativeKernel, supports
from snnp.models.plan import make_plan

if TYPE_CHECKING:
    from snnp.models.spline_nnp import SplineNNP

__all__ = ["KernelCache"]


class KernelCache:
    """The kernel of a model's parameters as they are; packed again when one of them has changed.

    Changes are seen through torch's version counters, which all of torch's own ways to change a tensor advance.
    """

    def __init__(self) -> None:
        self._tensors: list[Tensor] = []
        self._state: tuple[Any, ...] = ()
        self._kernel: NativeKernel | None = None

    def of(self, model: SplineNNP) -> NativeKernel | None:
        """The kernel; None where the library is missing or switched off, on a GPU, and for forms it does not cover."""
        if not self._tensors:
            self._tensors = [*model.parameters(), model.readout.mean, model.readout.std]
        first = self._tensors[0]
        if first.device.type != "cpu" or library() is None:
            return None
        state = (id(model._reference), *((tensor._version, tensor.data_ptr()) for tensor in self._tensors))
        if state != self._state:
            # Parameters may have been replaced, not only changed.
            self._tensors = [*model.parameters(), model.readout.mean, model.readout.std]
            plan = make_plan(model)
            real = np.float32 if model.dtype == torch.float32 else np.float64
            self._kernel = NativeKernel(plan, real) if supports(plan) else None
            self._state = (state[0], *((tensor._version, tensor.data_ptr()) for tensor in self._tensors))
        return self._kernel

    def __deepcopy__(self, memo: dict[int, Any]) -> KernelCache:
        """Copies of a model start afresh."""
        return KernelCache()

    def __reduce__(self) -> tuple[Any, ...]:
        return KernelCache, ()
