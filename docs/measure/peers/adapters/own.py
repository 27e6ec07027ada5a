"""snnp itself, through the calls of its simulations: a kept neighbour list, the native kernel where there is one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["CASES", "PACKAGES", "prepare"]

PACKAGES = ("snnp", "torch")
CASES: list[dict[str, Any]] = []
"""None of its own: the caller names models (`model`: name or folder; `dtype` and `device` are optional)."""


def prepare(case: dict[str, Any], system: Any, threads: int) -> tuple[Callable[..., Any], dict[str, Any]]:
    """See `serve.py`."""
    import torch

    from snnp.models import load_model
    from snnp.sampling.cost import repeated_call
    from snnp.structure import Structure

    torch.set_num_threads(threads)
    dtype = getattr(torch, case.get("dtype") or "float32")
    model = load_model(case["model"], dtype=dtype, device=case.get("device"))
    structure = Structure(
        numbers=torch.from_numpy(system.numbers),
        positions=torch.from_numpy(system.positions),
        cell=torch.from_numpy(system.cells),
        pbc=torch.full((len(system.cells), 3), system.pbc),
        structure_of_atom=torch.from_numpy(system.structure_of_atom),
    )
    evaluator = model.evaluator()
    facts = {
        "parameters": model.n_parameters,
        "cutoff": model.cutoff,
        "dtype": str(dtype).removeprefix("torch."),
        "path": "torch" if evaluator is None else evaluator.target,
    }
    return repeated_call(model, structure), facts
