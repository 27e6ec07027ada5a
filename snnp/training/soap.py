r"""SOAP: Adam in the eigenbasis of Shampoo's preconditioner.

For a parameter matrix with gradient G, moving averages of `G G^T` and `G^T G` are kept; in the basis of their
eigenvectors Q_L, Q_R the gradient `Q_L^T G Q_R` is nearly uncorrelated, and Adam's elementwise scaling is applied
there. The matrices of an s-NNP are small (at most some hundred rows), so the basis costs little and each step goes
farther than Adam's.

Source: N. Vyas et al., SOAP: Improving and Stabilizing Shampoo using Adam (2024), arXiv:2409.11321, algorithm 3.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

__all__ = ["Soap"]

_MOST_ROWS = 256
"""Of one matrix: its preconditioner costs the third power, which for filters of pairs of elements is all of a step."""
_DECAY, _TINY = 0.95, 1e-8  # of the first and second moments and of `G G^T`; beside the root of the second moment
_REFRESH = 10  # steps between updates of the eigenbasis


class Soap(torch.optim.Optimizer):
    """The optimiser; parameters of one effective dimension are stepped by plain Adam.

    Arguments:
        parameters: tensors, or groups of them as torch has them; leading axes of length one are ignored, further axes
            are folded into the rows, or, beyond 256 of these, number matrices that have preconditioners of their own.
        lr: learning rate. weight_decay: as in AdamW.
    """

    def __init__(
        self, parameters: Iterable[Tensor] | Iterable[dict[str, Any]], lr: float = 3e-3, weight_decay: float = 0.0
    ) -> None:
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        assert closure is None
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None and parameter.numel():
                    self._step(parameter, group)

    def _step(self, parameter: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        gradient = parameter.grad
        assert gradient is not None
        matrix = _as_matrices(gradient)
        rotates = min(matrix.shape[-2:]) > 1
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)
            state["mean"], state["square"] = torch.zeros_like(matrix), torch.zeros_like(matrix)
            if rotates:
                state["left"], state["right"] = matrix @ matrix.mT, matrix.mT @ matrix
                state["left_basis"], state["right_basis"] = _eigenbasis(state["left"]), _eigenbasis(state["right"])
        state["step"] += 1
        state["mean"].lerp_(matrix, 1.0 - _DECAY)
        rotated, mean = matrix, state["mean"]
        if rotates:
            left, right = state["left_basis"], state["right_basis"]
            rotated, mean = left.mT @ matrix @ right, left.mT @ mean @ right
        state["square"].lerp_(rotated.square(), 1.0 - _DECAY)
        count = float(state["step"])
        scale = (1.0 - _DECAY**count) ** 0.5 / (1.0 - _DECAY**count)
        update = scale * mean / (state["square"].sqrt() + _TINY)
        if rotates:
            update = left @ update @ right.mT
            self._refresh(state, matrix, int(count))
        if group["weight_decay"]:
            parameter.mul_(1.0 - group["lr"] * group["weight_decay"])
        parameter.add_(update.reshape(parameter.shape), alpha=-group["lr"])

    @staticmethod
    def _refresh(state: dict[str, Tensor], matrix: Tensor, count: int) -> None:
        """Follow the preconditioner; now and then turn the basis by one power iteration."""
        state["left"].lerp_(matrix @ matrix.mT, 1.0 - _DECAY)
        state["right"].lerp_(matrix.mT @ matrix, 1.0 - _DECAY)
        if count % _REFRESH:
            return
        for side, axis in (("left", -2), ("right", -1)):
            basis = state[f"{side}_basis"]
            moved = state[side] @ basis
            # Sorted by eigenvalue, so that the second moments move along with their directions.
            order = (basis * moved).sum(dim=-2).argsort(dim=-1, descending=True)
            rows = order[..., :, None] if axis == -2 else order[..., None, :]
            state["square"] = torch.take_along_dim(state["square"], rows, dim=axis)
            sorted_ = torch.take_along_dim(moved, order[..., None, :], dim=-1)
            state[f"{side}_basis"] = torch.linalg.qr(sorted_)[0].contiguous()


def _as_matrices(gradient: Tensor) -> Tensor:
    """[m, n], or [K, m, n] where one matrix would have too many rows."""
    if gradient.dim() < 2:
        return gradient[None]
    flat = gradient.reshape(-1, gradient.shape[-1])
    return flat if gradient.dim() == 2 or len(flat) <= _MOST_ROWS else gradient.flatten(0, -3)


def _eigenbasis(matrix: Tensor) -> Tensor:
    """Eigenvectors of symmetric matrices, largest eigenvalue first."""
    jitter = 1e-30 + 1e-7 * matrix.diagonal(dim1=-2, dim2=-1).mean(dim=-1).double()[..., None, None]
    identity = torch.eye(matrix.shape[-1], dtype=torch.float64, device=matrix.device)
    _, vectors = torch.linalg.eigh(matrix.double() + jitter * identity)
    # Contiguous: a restored state then enters the same kernels, and a resumed run repeats every bit.
    return vectors.flip(-1).to(matrix.dtype).contiguous()
