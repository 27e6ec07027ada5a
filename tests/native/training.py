"""Records the passes of a training step, so that the driver can replay them without Python."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

from snnp.kernels.cpu.training import TrainingBatch, TrainingKernel
from snnp.training.backends.compiled import CompiledBackend

sys.path.insert(0, str(Path(__file__).parent))
from cases import blob, number, random_case

__all__ = ["read_results", "write_training_case"]

_ALL = ("rho", "f", "embedding", "e", "p", "s", "features", "energies", "forces", "virial", "gradient")
"""In the order of snnp_training."""
_OUTPUTS = ({"features"}, {"energies", "forces", "virial"}, {"gradient"})
"""Of each task."""


class _Recorder(TrainingKernel):
    """Keeps each call as bytes for the driver, and what it gave."""

    calls: list[bytes]
    results: list[np.ndarray]

    def _run(self, task: int, batch: TrainingBatch, n_threads: int, **arrays: Any) -> None:
        rows = dict(zip(_ALL[:3], self._rows.values(), strict=True))
        super()._run(task, batch, n_threads, **arrays)
        call = number(task)
        for name in _ALL:
            array = (rows | arrays).get(name)
            if array is None:
                call += number(0)
            elif name in _OUTPUTS[task]:
                call += number(2) + number(array.nbytes)
            else:
                call += number(1) + blob(array)
        self.calls.append(call)
        self.results += [np.array(arrays[name]).reshape(-1) for name in _ALL if name in _OUTPUTS[task]]


def write_training_case(path: Path, seed: int, n_threads: int) -> list[np.ndarray] | None:
    """Record all passes of a random case with random gradients; returns the arrays that they gave, one behind another.

    None, and no file, if the passes do not cover this model or there are no atoms.
    """
    case = random_case(seed)
    model, structure = case.model, case.structure
    if structure.n_atoms == 0 or not CompiledBackend.covers(model, model.dtype, "cpu"):
        return None
    backend = CompiledBackend(model, model.dtype)
    kernel, batch = backend.kernel, backend.prepare(model, structure)
    backend.write(model)
    kernel.__class__, recorder = _Recorder, kernel
    assert isinstance(recorder, _Recorder)
    recorder.calls, recorder.results = [], []
    rng = np.random.default_rng(seed)
    e, p = rng.standard_normal(structure.n_atoms), rng.standard_normal((structure.n_atoms, 3))
    s = rng.standard_normal((structure.n_structures, 3, 3))
    kernel.features(batch, n_threads)
    kernel.predict(batch, n_threads)
    kernel.learn(batch, n_threads, e, p, s)
    kernel.learn(batch, n_threads, e, None, None)
    pairs = batch.pairs
    columns = [batch.rows, batch.shift, batch.owner, pairs.first, pairs.neighbour, pairs.species]
    arrays = [recorder._packed, *columns, pairs.x, pairs.y, pairs.z, pairs.r]
    content = [number(1), *(blob(array) for array in arrays)]
    content += [number(batch.n_structures), number(n_threads), number(len(recorder.calls)), *recorder.calls]
    path.write_bytes(b"".join(content))
    return recorder.results


def read_results(path: Path, like: list[np.ndarray]) -> list[np.ndarray]:
    """The arrays that the driver wrote, in the types and sizes of those recorded."""
    content, start, arrays = path.read_bytes(), 0, []
    for array in like:
        arrays.append(np.frombuffer(content[start : start + array.nbytes], dtype=array.dtype))
        start += array.nbytes
    assert start == len(content)
    return arrays
