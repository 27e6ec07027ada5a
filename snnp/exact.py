"""Modules whose constants stay exact: a change to float32 and back rounds parameters, but never tables and matrices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

from torch import Tensor, nn

__all__ = ["ExactModule"]


class ExactModule(nn.Module):
    """A module with constants: buffers that are not stored, and are derived anew when the float type changes.

    Without this, a model stored in float32 and loaded in float64 would keep constants rounded to seven digits, and its
    forces would be the derivative of its energy to seven digits only.
    """

    def __init__(self) -> None:
        super().__init__()
        self._exact: dict[str, Tensor] = {}

    def register_constant(self, name: str, value: Tensor) -> None:
        """Add a buffer `name` that keeps `value` at full precision behind it."""
        self.register_buffer(name, value, persistent=False)
        self._exact[name] = value

    def exact(self, name: str) -> Tensor:
        """The constant `name` at full precision, on the device where it was registered."""
        return self._exact[name]

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        for name, value in self._exact.items():
            # The buffer has the new type and device by now, whichever of the two `fn` changes.
            self._buffers[name] = value.to(self.get_buffer(name))
        return self
