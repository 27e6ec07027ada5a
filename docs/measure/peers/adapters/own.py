"""snnp itself, through the calls of its simulations: a kept neighbour list, the native kernel where there is one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

__all__ = ["CASES", "PACKAGES", "prepare"]

PACKAGES = ("snnp", "torch")
CASES: list[dict[str, Any]] = []
"""None of its own: the caller names models (`model`: name or folder; `dtype` and `device` are optional)."""


def prepare(case: dict[str, Any], system: Any, threads: int) -> tuple[Callable[..., Any], dict[str, Any]]:
    """See `serve.py`."""
    import torch

    from snnp.models import load_model

    torch.set_num_threads(threads)
    model = load_model(case["model"], dtype=case.get("dtype") or "float32", device=case.get("device"))
    evaluator = model.evaluator()
    facts = {
        "parameters": model.n_parameters,
        "cutoff": model.cutoff,
        "dtype": str(model.dtype).removeprefix("torch."),
        "path": "torch" if evaluator is None else evaluator.target,
    }
    return (_one(model, system) if len(system.cells) == 1 else _batch(model, system)), facts


def _one(model: Any, system: Any) -> Callable[..., Any]:
    import numpy as np

    from snnp.models.session import Session

    session, pbc = Session(model), np.full(3, system.pbc)

    def call(moved: Any) -> tuple[Any, Any]:
        result = session.evaluate(system.numbers, moved, system.cells[0], pbc)
        return result.energy, result.forces

    return call


def _batch(model: Any, system: Any) -> Callable[..., Any]:
    import torch

    from snnp.neighbours import VerletList
    from snnp.structure import Structure

    structure = Structure(
        numbers=torch.from_numpy(system.numbers),
        positions=torch.from_numpy(system.positions),
        cell=torch.from_numpy(system.cells),
        pbc=torch.full((len(system.cells), 3), system.pbc),
        structure_of_atom=torch.from_numpy(system.structure_of_atom),
    ).to(device=model.device)
    verlet = VerletList(model.cutoff)

    def call(moved: Any) -> tuple[Any, Any]:
        now = replace(structure, positions=torch.from_numpy(moved).to(model.device))
        prediction = model.compute(now, verlet.update(now))
        return prediction.energy.cpu().numpy(), prediction.forces.cpu().numpy()

    return call
