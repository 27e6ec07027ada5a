"""Models as compiled packages of `torch.export` and AOTInductor, for programs without snnp: `write_package`."""

from __future__ import annotations

from snnp.models.aot.package import write_package

__all__ = ["write_package"]
