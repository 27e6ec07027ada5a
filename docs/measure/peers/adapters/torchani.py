"""torchani: the architecture of ANI-2x, one network and eight, with random weights; forces by autograd."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np

__all__ = ["CASES", "PACKAGES", "prepare"]

PACKAGES = ("torchani", "torch")
CASES: list[dict[str, Any]] = [
    {"name": "ANI-2x, one network", "structure": "molecules", "networks": 1},
    {"name": "ANI-2x, eight networks", "structure": "molecules", "networks": 8},
]


def prepare(case: dict[str, Any], system: Any, threads: int) -> tuple[Callable[..., Any], dict[str, Any]]:
    """See `serve.py`. Molecules form a padded batch."""
    os.environ["TORCHANI_NO_WARN_EXTENSIONS"] = "1"  # the extension is for GPUs
    import torch
    from torchani.arch import Assembler

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    assembler = Assembler(periodic_table_index=True)
    assembler.set_symbols(("H", "C", "N", "O", "S", "F", "Cl"))
    assembler.set_global_cutoff_fn("cosine")
    assembler.set_aev_computer(radial="ani2x", angular="ani2x", strategy="pyaev")
    assembler.set_atomic_networks(ctor="ani2x")
    assembler.set_neighborlist("all_pairs")
    assembler.set_zeros_as_self_energies()
    model = assembler.assemble(case["networks"]).to(torch.float32)
    model.requires_grad_(False)
    owner = system.structure_of_atom
    place = np.arange(len(owner)) - np.searchsorted(owner, owner)
    numbers = -np.ones((owner[-1] + 1, place.max() + 1), dtype=np.int64)
    numbers[owner, place] = system.numbers
    padded = np.zeros((*numbers.shape, 3), dtype=np.float32)
    species = torch.from_numpy(numbers)

    def call(moved: Any) -> tuple[Any, Any]:
        padded[owner, place] = moved
        positions = torch.from_numpy(padded).requires_grad_(True)
        energies = model((species, positions)).energies
        (gradient,) = torch.autograd.grad(energies.sum(), positions)
        return energies.detach().numpy(), -gradient.numpy()[owner, place]

    return call, {"parameters": sum(p.numel() for p in model.parameters()), "dtype": "float32"}
