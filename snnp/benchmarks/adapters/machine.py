"""The machine itself: how fast it multiplies matrices and copies memory, the ceilings of everything else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

__all__ = ["CASES", "PACKAGES", "prepare"]

PACKAGES = ("torch",)
CASES: list[dict[str, Any]] = [
    {"name": "matrix product float32", "kind": "product", "dtype": "float32"},
    {"name": "matrix product float64", "kind": "product", "dtype": "float64"},
    {"name": "copy", "kind": "copy", "dtype": "float32"},
]
_SIZE = 1024
_BYTES = 2**28  # far beyond any cache


def prepare(case: dict[str, Any], system: Any, threads: int) -> tuple[Callable[..., Any], dict[str, Any]]:
    """See `snnp.benchmarks.adapters`; the facts hold `flops` or `bytes` (read and written) of a call.

    `case["device"]` names another device than the CPU.
    """
    import torch

    torch.set_num_threads(threads)
    dtype, device = getattr(torch, case["dtype"]), torch.device(case.get("device", "cpu"))
    nothing = np.zeros((len(system.numbers), 3))
    if case["kind"] == "product":
        size = _SIZE if device.type == "cpu" else 8 * _SIZE
        left, right = (torch.rand(size, size, dtype=dtype, device=device) for _ in range(2))
        out = torch.empty_like(left)
        facts = {"flops": 2 * size**3}
    else:
        left = torch.zeros(_BYTES // 4, dtype=dtype, device=device)
        out = torch.empty_like(left)
        facts = {"bytes": 2 * _BYTES}

    def call(_: Any) -> tuple[float, Any]:
        if case["kind"] == "product":
            torch.mm(left, right, out=out)
        else:
            out.copy_(left)
        if device.type != "cpu":
            torch.cuda.synchronize(device)
        return 0.0, nothing

    return call, {**facts, "dtype": case["dtype"]}
