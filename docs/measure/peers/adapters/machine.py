"""The machine itself: how fast it multiplies and adds, multiplies matrices, and copies: the ceilings of all else.

Matrix products of common libraries may leave half of a processor idle (on AMD they use 256-bit vectors), so a loop of
nothing but fused multiply-adds is compiled and timed, too, where there is a compiler.
"""

from __future__ import annotations

import ctypes
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["CASES", "PACKAGES", "prepare"]

PACKAGES = ("torch",)
CASES: list[dict[str, Any]] = [
    {"name": "multiply-add float32", "kind": "multiply-add", "dtype": "float32"},
    {"name": "multiply-add float64", "kind": "multiply-add", "dtype": "float64"},
    {"name": "matrix product float32", "kind": "matrix product", "dtype": "float32"},
    {"name": "matrix product float64", "kind": "matrix product", "dtype": "float64"},
    {"name": "copy", "kind": "copy", "dtype": "float32"},
]
_SIZE = 1024
_BYTES = 2**28  # far beyond any cache
_CHAINS, _ROUNDS = 10, 1_000_000  # independent sums: more than the latency of two units, fewer than registers
_SOURCE = """
typedef REAL vector __attribute__((vector_size(BYTES)));
extern "C" REAL multiply_add(long rounds, REAL x, REAL y) {
  vector sums[CHAINS] = {}, factor = vector{} + x, term = vector{} + y;
  for (long k = 0; k < rounds; ++k)
#pragma GCC unroll 16
    for (int c = 0; c < CHAINS; ++c) sums[c] = sums[c] * factor + term;
  REAL total = 0;
  for (int c = 0; c < CHAINS; ++c) total += sums[c][0];
  return total;
}
"""


def prepare(case: dict[str, Any], system: Any, threads: int) -> tuple[Callable[..., Any], dict[str, Any]]:
    """See `serve.py`; the facts hold `flops` or `bytes` (read and written) of a call.

    `case["device"]` names another device than the CPU; one thread multiplies and adds, whatever `threads` says.
    """
    nothing = np.zeros((len(system.numbers), 3))
    work, facts = _multiply_add(case["dtype"]) if case["kind"] == "multiply-add" else _library(case, threads)

    def call(_: Any) -> tuple[float, Any]:
        work()
        return 0.0, nothing

    return call, {**facts, "kind": case["kind"], "dtype": case["dtype"]}


def _multiply_add(dtype: str) -> tuple[Callable[[], Any], dict[str, Any]]:
    from snnp.kernels.build import find_compiler
    from snnp.kernels.cpu.library import instruction_set

    compiler = find_compiler()
    assert compiler is not None
    n_bytes = {"avx512": 64, "avx2": 32}.get(instruction_set() or "", 16)
    real, size, kind = ("float", 4, ctypes.c_float) if dtype == "float32" else ("double", 8, ctypes.c_double)
    flags = ["-O3", "-march=native", "-ffp-contract=fast", "-shared", "-fPIC"]
    flags += [f"-DREAL={real}", f"-DBYTES={n_bytes}", f"-DCHAINS={_CHAINS}"]
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder) / "peak.cpp", Path(folder) / "peak.so"
        source.write_text(_SOURCE, encoding="utf-8")
        subprocess.run([*compiler, *flags, str(source), "-o", str(library)], check=True)
        function = ctypes.CDLL(str(library)).multiply_add
    function.restype, function.argtypes = kind, [ctypes.c_long, kind, kind]
    return lambda: function(_ROUNDS, 0.999, 1e-3), {"flops": 2 * _CHAINS * _ROUNDS * (n_bytes // size)}


def _library(case: dict[str, Any], threads: int) -> tuple[Callable[[], Any], dict[str, Any]]:
    import torch

    torch.set_num_threads(threads)
    dtype, device = getattr(torch, case["dtype"]), torch.device(case.get("device", "cpu"))
    if case["kind"] == "matrix product":
        size = _SIZE if device.type == "cpu" else 8 * _SIZE
        left, right = (torch.rand(size, size, dtype=dtype, device=device) for _ in range(2))
        facts = {"flops": 2 * size**3}
    else:
        left = right = torch.zeros(_BYTES // 4, dtype=dtype, device=device)
        facts = {"bytes": 2 * _BYTES}
    out = torch.empty_like(left)

    def work() -> None:
        if case["kind"] == "matrix product":
            torch.mm(left, right, out=out)
        else:
            out.copy_(left)
        if device.type != "cpu":
            torch.cuda.synchronize(device)

    return work, facts
